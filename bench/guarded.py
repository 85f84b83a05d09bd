"""Memory between pages that nobody may touch, for the fuzzers, and workers that may die of it."""

from __future__ import annotations

import argparse
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
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.runtime import buffers, memo
from fastsparse_kernels.compiler import aligned_empty

ROOT = Path(__file__).parents[1]
Outcome = Callable[[int], str]  # of a case, by its number, in one word; what fails raises or dies
Opened = Callable[[str, int], contextlib.AbstractContextManager[Outcome]]
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


def work(first: int, last: int, progress: Path, outcome: Outcome) -> None:
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
    module: str, kind: str, seed: int, first: int, last: int, say: Callable[[str], None] = print
) -> dict[str, int]:
    """Run cases of a kind in worker processes, a new one after each that fails.

    Parameters
    ----------
    module : of bench, whose command is `main`

    Returns
    -------
    Counts of the outcomes, "failed" among them.
    """
    total: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress"
        while first < last:
            progress.write_bytes(struct.pack("<q", first - 1))
            counts = progress.with_suffix(".counts")
            counts.write_text("{}", encoding="ascii")
            done = subprocess.run(
                [sys.executable, "-m", f"bench.{module}", "--kind", kind, "--seed", str(seed),
                 "--worker", str(first), str(last), str(progress)],
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
            say(f"{kind} {number}: exit status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
            first = number + 1
    return dict(total)


def main(module: str, about: str, kinds: Collection[str], opened: Opened) -> int:
    """Run the command of a fuzzer; 1 when a case failed.

    Parameters
    ----------
    module : of bench
    about : what the command's help says
    opened : makes what runs a case, from a kind and a seed
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{module}", description=about)
    parser.add_argument("--count", type=int, default=10_000, help="cases of each kind (default: 10000)")
    parser.add_argument("--kind", choices=kinds, action="append", help="may be repeated (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one case of a kind, in this process")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    chosen = given.kind or list(kinds)
    if given.worker:
        first, last, progress = given.worker
        with opened(chosen[0], given.seed) as outcome:
            work(int(first), int(last), Path(progress), outcome)
        return 0
    if given.only is not None:
        with opened(chosen[0], given.seed) as outcome:
            print(outcome(given.only))
        return 0
    failed = 0
    for kind in chosen:
        counts = supervise(module, kind, given.seed, 0, given.count)
        failed += counts.get("failed", 0)
        print(f"{kind}: {json.dumps(counts, sort_keys=True)}", flush=True)
    return int(failed > 0)
