"""Memory between pages that nobody may touch, for the fuzzers, and workers that may die of it."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import faulthandler
import functools
import gc
import json
import math
import mmap
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.runtime import buffers, memo
from fastsparse_kernels.compiler import aligned_empty

ROOT = Path(__file__).parents[1]
PATIENCE = 300  # seconds without progress after which a worker hangs
_PAGE = mmap.PAGESIZE


def guarded(shape: tuple[int, ...], dtype: Any, *, front: bool = False, alignment: int = 1) -> NDArray[Any]:
    """A C-contiguous array of bytes 255, so NaN, whose last byte, or with `front` the first, is beside such a page."""
    dtype = np.dtype(dtype)
    count = math.prod(shape) * dtype.itemsize
    pages = -(-count // _PAGE) + 2
    memory = np.frombuffer(mmap.mmap(-1, pages * _PAGE), np.uint8)
    _protect(memory.ctypes.data)
    _protect(memory.ctypes.data + (pages - 1) * _PAGE)
    memory[_PAGE:-_PAGE] = 255
    start = _PAGE if front else ((pages - 1) * _PAGE - count) // alignment * alignment
    return memory[start : start + count].view(dtype).reshape(shape)


def _protect(page: int) -> None:
    if _libc().mprotect(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE), 0):
        raise OSError("mprotect failed")


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)


@functools.cache
def _allocating(modules: int) -> list[Any]:
    """Modules that allocate what kernels read and write, of so many that are imported."""
    return [module for name, module in list(sys.modules.items())
            if name.startswith("fastsparse") and getattr(module, "aligned_empty", None) is aligned_empty]  # fmt: skip


@contextlib.contextmanager
def guarded_memory() -> Iterator[None]:
    """Let all packed operands, panels and workspaces made in the block lie in front of such a page."""
    users = _allocating(len(sys.modules))

    def made(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        return guarded(shape, dtype, alignment=64)

    for module in users:
        module.aligned_empty = made
    try:
        buffers._own.buffers.clear()  # that later calls take what they need and no more
        yield
    finally:
        buffers._own.buffers.clear()
        for module in users:
            module.aligned_empty = aligned_empty


@contextlib.contextmanager
def forgetful() -> Iterator[None]:
    """Let every store in the block drop all but its newest entry: nobody may use what only a store holds."""
    kept, memo.MOST_ENTRIES = memo.MOST_ENTRIES, 1
    try:
        yield
    finally:
        memo.MOST_ENTRIES = kept


# ---------------------------------------------------------------- workers


def work(first: int, last: int, progress: Path, outcome: Callable[[int], str]) -> None:
    """Worker: cases `first` to `last`; `progress` holds the number of the one that is being tried."""
    faulthandler.enable()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)  # cases make much that is thrown away at once
    with progress.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 8)
        counts: collections.Counter[str] = collections.Counter()
        for number in range(first, last):
            shared[:8] = struct.pack("<q", number)
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            counts[outcome(number)] += 1
            progress.with_suffix(".counts").write_text(json.dumps(counts), encoding="ascii")
        faulthandler.cancel_dump_traceback_later()


def supervise(
    command: list[str], first: int, last: int, label: str, say: Callable[[str], None] = print
) -> dict[str, int]:
    """Run cases in worker processes, a new one after each that fails; counts of the outcomes, "failed" among them.

    command : arguments of Python, to which `--worker FIRST LAST PROGRESS` is appended.
    """
    total: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress"
        while first < last:
            progress.write_bytes(struct.pack("<q", first - 1))
            counts = progress.with_suffix(".counts")
            counts.write_text("{}", encoding="ascii")
            done = subprocess.run(
                [sys.executable, *command, "--worker", str(first), str(last), str(progress)],
                cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "kernels")))},
                stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
            total.update(json.loads(counts.read_text(encoding="ascii")))
            if done.returncode == 0:
                break
            (number,) = struct.unpack("<q", progress.read_bytes())
            if number < first:
                raise RuntimeError(f"no worker starts: {done.stderr}")
            total["failed"] += 1
            say(f"{label} {number}: exit status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
            first = number + 1
    return dict(total)
