"""A process that compiles kernels for another one, which starts it and keeps what it gives.

stdin has a line of JSON for each variant: module, builder, key; before them one with the digest of the sources, which
must be the same here, and the level, or null. The answer to that is an empty line, that to a variant a line of JSON,
name and size of the file that the cache would hold, and the file; size 0 for what cannot be compiled.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from importlib import import_module

from . import codegen, compiler
from .kernel_cache import Directories, source_digest


def serve() -> None:
    """Answer until stdin ends."""
    gc.disable()
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    files: list[tuple[str, bytes]] = []
    compiler.set_cache_directories(
        lambda: Directories(write=os.curdir), lambda path, content: files.append((os.path.basename(path), content))
    )
    digest, level = json.loads(sys.stdin.readline())
    if digest != source_digest():
        return
    if level is not None:
        codegen.use_level(level)
    answers.write(b"\n")
    answers.flush()
    for line in sys.stdin:
        module, builder, key = json.loads(line)
        files[:] = [("", b"")]
        try:
            getattr(import_module(module), builder).expect(*key)
            compiler.compile_waiting()
        except Exception:
            files[:] = [("", b"")]  # the process that asked finds out why
        name, content = files[-1]
        answers.write(json.dumps([name, len(content)]).encode() + b"\n" + content)
        answers.flush()
