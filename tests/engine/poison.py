"""Runs with NaN in all undefined memory: what nobody has written shows in the results (contract R7).

Steps run one by one, and before each of them all memory is filled with NaN but for buffers that it or a later step
still reads, and for `Zeros`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from fastsparse.engine.schedule import Schedule, Zeros
from fastsparse.engine.workspace import Arrays, Workspace
from fastsparse.onnx.executor import Kernels, Step

_NAN = 255  # the byte of which a NaN of any size can be made


@contextmanager
def poisoned() -> Iterator[None]:
    """Let every workspace, of engines of all kinds, run with poisoned memory. Not for several threads. Engines of ONNX
    models bind their steps when they are first called: not before the block."""

    def both(self: Workspace, x: Arrays, y: Arrays) -> None:
        """Step by step, and in one call, whose result stays; on one worker, too, where that is tried."""
        results = [y] if isinstance(y, np.ndarray) else y
        found = []
        for space in filter(None, (self.alone, self)):
            for run in (partial(_run, space), partial(space.run_on, space.schedule.workers)):
                for slot in range(len(space.memory)):
                    _fill(space, slot, set())
                for array in results:
                    array.fill(np.nan)
                run(x, y)
                found.append([array.tobytes() for array in results])
        if any(other != found[0] for other in found):
            raise AssertionError("a schedule gives other numbers step by step than in one call, or on one worker")

    with mock.patch.object(Workspace, "run", both), mock.patch.object(Kernels, "bound", Step.bound):
        yield


def _run(space: Workspace, x: Arrays, y: Arrays) -> None:
    """y = network(x), step by step.

    Raises
    ------
    AssertionError
        When a step writes where zeros must stay, or two buffers that are in use share memory.
    """
    space.set_arrays(x, y)
    live = live_buffers(space.schedule)
    for task in range(space.schedule.tasks):
        for i, step in enumerate(space.schedule.steps):
            _fill(space, 0, live[i])
            space.run_step(i, task)
            _check_zeros(space, step.name)


def live_buffers(schedule: Schedule) -> list[set[int]]:
    """Before every step the buffers whose contents it or a later step reads."""
    steps = schedule.steps
    reads = [{buffer for buffer, _ in step.sources} for step in steps]
    begins = _beginnings(schedule)
    found: list[set[int]] = []
    live: set[int] = set()
    for step, read, begin in zip(reversed(steps), reversed(reads), reversed(begins), strict=True):
        live = (live - {step.target[0]} if begin else live) | read
        found.append({buffer for buffer in live if buffer >= 0})
    return found[::-1]


def _beginnings(schedule: Schedule) -> list[bool]:
    """Whether a step's target holds nothing before it. What steps write bit by bit, at several offsets, holds what the
    others wrote, until one of them comes again behind a reader."""
    found = []
    written: dict[int, set[int]] = {}
    was_read: set[int] = set()
    for step in schedule.steps:
        buffer, offset = step.target
        read = {source for source, _ in step.sources}
        was_read |= read - {buffer}  # a halo exchange goes on with what it reads
        before = written.setdefault(buffer, set())
        begins = not before or (offset in before and buffer in was_read and buffer not in read)
        if begins:
            before.clear()
        before.add(offset)
        was_read.discard(buffer)
        found.append(begins)
    return found


def _fill(space: Workspace, slot: int, live: set[int]) -> None:
    """NaN everywhere but in the live buffers and where buffers are zero for good."""
    memory, buffers = space.memory[slot], space.schedule.buffers
    spans = sorted((space.offsets[b], space.offsets[b] + buffers[b].size) for b in live)
    if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
        raise AssertionError(f"buffers {sorted(live)} are in use and share memory")
    kept = [memory[start:end].copy() for start, end in spans]
    memory.fill(_NAN)
    for piece, mask in _zeros(space, slot):
        piece[mask] = 0
    for (start, end), contents in zip(spans, kept, strict=True):
        memory[start:end] = contents


def _check_zeros(space: Workspace, step: str) -> None:
    for number, (piece, mask) in enumerate(_zeros(space, 0)):
        if piece[mask].any():
            raise AssertionError(f"step {step} wrote around the images of buffer {number}, which must stay zero")


def _zeros(space: Workspace, slot: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """Memory and mask of every buffer that has zeros."""
    for buffer, start in zip(space.schedule.buffers, space.offsets, strict=True):
        if buffer.zeros is not None:
            yield space.memory[slot][start : start + buffer.size], _mask(buffer.zeros, buffer.size)


_mask = functools.lru_cache(maxsize=256)(Zeros.mask)
