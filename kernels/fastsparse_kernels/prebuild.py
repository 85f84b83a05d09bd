"""Compiling every kernel of the registry ahead of time, for levels of this machine's architecture: what a wheel brings.

    python -m fastsparse_kernels.prebuild DIRECTORY [LEVEL...]

Files go to DIRECTORY/DIGEST, where they are found as `prebuilt` inside this package. A level may be better than this
machine's own: its code is only compiled here.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import codegen, compiler, registry
from .kernel_cache import Directories, cache_digest

_PART = "from fastsparse_kernels.prebuild import compile_part; import sys; compile_part(*sys.argv[1:])"


def compile_variants(directory: Path, level: str, variants: Iterable[tuple[Any, tuple[int, ...]]]) -> None:
    """Compile variants (builder, key) for a level into `directory`, in a process that has compiled nothing yet."""
    gc.disable()
    codegen.use_level(level)
    directory.mkdir(parents=True, exist_ok=True)
    compiler.set_cache_directories(lambda: Directories(write=str(directory)), _write)
    for builder, key in variants:
        builder.expect(*key)
        compiler.compile_waiting()


def _write(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)


def compile_part(directory: str, level: str, part: str, parts: str) -> None:
    """Compile one of several parts of all variants."""
    codegen.use_level(level)  # decides on vectors, and these on variants
    compile_variants(Path(directory), level, list(registry.every())[int(part) :: int(parts)])


def prebuild(base: Path, levels: Iterable[str] = codegen.PREBUILT) -> Path:
    """Compile all variants for the levels below `base`, in as many processes as there are CPUs; return the directory.

    Raises
    ------
    RuntimeError
        When a process fails.
    """
    digest, parts = cache_digest(), os.cpu_count() or 1
    if not digest:
        raise RuntimeError("the kernel sources cannot be read")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for level in levels:
        commands = [
            [sys.executable, "-c", _PART, str(base / digest), level, str(part), str(parts)] for part in range(parts)
        ]
        running = [subprocess.Popen(command, env=environment) for command in commands]
        exits = [process.wait() for process in running]
        if any(exits):
            raise RuntimeError(f"kernels for {level} could not be compiled")
    return base / digest


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m fastsparse_kernels.prebuild DIRECTORY [LEVEL...]")
    print(prebuild(Path(sys.argv[1]), sys.argv[2:] or codegen.PREBUILT))
