"""Workspaces: a schedule with memory and with its kernel calls made, ready to run; and a bounded pool of them.

A workspace serves one call at a time. Everything a call needs but its output is allocated when the workspace is made.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from fastsparse import launch_engine
from fastsparse.engine.schedule import SAMPLES, Place, Schedule, Step, assign_memory
from fastsparse.launch import Call, address
from fastsparse.plan import policy
from fastsparse_kernels.build import aligned_empty

Array = NDArray[Any]
Arrays = Array | Sequence[Array]  # of a program with one input or output, or with several
_pools: WeakSet[Pool] = WeakSet()


class Workspace:
    """Memory and calls of one schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        offsets, size = assign_memory(schedule.buffers)
        sharing = 1 if schedule.per_worker else schedule.workers
        scratch = max((step.scratch for step in schedule.steps), default=0) * sharing
        size = -(-size // 4096) * 4096
        self.memory = [aligned_empty((size + scratch + 64,), np.uint8) for _ in range(schedule.slots)]
        self.calls: list[list[Call]] = []
        for memory in self.memory:
            memory.fill(0)  # the borders of planes: nothing writes them again
            start = address(memory)
            self.calls.append([_bound(step, start, offsets, start + size) for step in schedule.steps])
        places = [place for step in schedule.steps for place in (*step.sources, step.target)]
        self._variables = np.zeros(1 - min((buffer for buffer, _ in places), default=0), np.int64)
        tables = [launch_engine.step_table(calls, sharing) for calls in self.calls]
        self._steps, self._copies = np.stack([table for table, _ in tables]), [copies for _, copies in tables]
        patches = [self._patches(calls) for calls in self.calls]
        self._patch_table = np.array(patches, np.int64).reshape(len(self.calls), -1, 4)
        self._addresses = address(self._steps), address(self._patch_table), address(self._variables)
        self.flops = sum(call.flops for call in self.calls[0]) * schedule.tasks
        self._sequence = launch_engine.sequence_call(
            self._steps, self._patch_table, self._variables, schedule.tasks, self.flops
        )
        self._spans = _spans(self.calls[0])

    @property
    def nbytes(self) -> int:
        """Bytes of memory for activations and scratch."""
        return sum(memory.nbytes for memory in self.memory)

    def _patches(self, calls: list[Call]) -> list[tuple[int, int, int, int]]:
        return [
            (call.record.field_address(patch.field), patch.variable, patch.offset, patch.per_task)
            for step, call in zip(self.schedule.steps, calls, strict=True)
            for patch in step.patches
        ]

    def run(self, x: Arrays, y: Arrays) -> None:
        """y = network(x); all contiguous, of the schedule's batch size."""
        schedule = self.schedule
        self.set_arrays(x, y)
        if schedule.per_worker:
            launch_engine.run_tasks(self._sequence, schedule.workers)
            return
        slots = launch_engine.available_slots(schedule.workers)
        for task in range(schedule.tasks):
            for first, last in self._spans:
                self._run_rows(first, last, slots, task)

    def set_arrays(self, x: Arrays, y: Arrays) -> None:
        """Say where the user's arrays are."""
        arrays = (*_listed(x), *_listed(y))
        self._variables[SAMPLES] = len(arrays[0])
        for i, array in enumerate(arrays, 1):
            if i < len(self._variables):
                self._variables[i] = address(array)

    def run_step(self, index: int) -> None:
        """Run one step of the first task, for measuring."""
        workers = 1 if self.schedule.per_worker else self.schedule.workers
        self._run_rows(index, index + 1, launch_engine.available_slots(workers), 0)

    def _run_rows(self, first: int, last: int, slots: int, task: int) -> None:
        steps, patches, variables = self._addresses
        call = self.calls[0][first]
        if last - first > 1 or call.flops <= policy.SLICE_FLOPS:
            count = self._patch_table.shape[1]
            launch_engine.run_rows(steps, first, last, patches, count, variables, task, slots)
        else:  # patch, and run the step in slices
            launch_engine.run_rows(steps, 0, 0, patches, self._patch_table.shape[1], variables, task, 1)
            launch_engine.run_tasks(call, slots)


def _bound(step: Step, base: int, offsets: list[int], scratch: int) -> Call:
    def at(place: Place) -> int:
        return 0 if place[0] < 0 else base + offsets[place[0]] + place[1]

    return step.make(*map(at, step.sources), at(step.target), scratch)


def _listed(arrays: Arrays) -> Sequence[Array]:
    return [arrays] if isinstance(arrays, np.ndarray) else arrays


def _spans(calls: list[Call]) -> list[tuple[int, int]]:
    """Runs of steps short enough that Ctrl-C is noticed between them."""
    spans, first, flops = [], 0, 0.0
    for i, call in enumerate(calls):
        if i > first and flops + call.flops > policy.SLICE_FLOPS:
            spans.append((first, i))
            first, flops = i, 0.0
        flops += call.flops
    return [*spans, (first, len(calls))]


class Pool:
    """Workspaces of one schedule: made when needed, at most `limit`, and handed round."""

    def __init__(self, schedule: Schedule, limit: int) -> None:
        self.schedule = schedule
        self._limit = limit
        self._free: list[Workspace] = []
        self.renew()
        _pools.add(self)

    def renew(self) -> None:
        """Forget the workspaces in use, as a forked child must: the threads that use them are not there."""
        self._made = len(self._free)
        self._changed = threading.Condition()

    @contextmanager
    def workspace(self) -> Iterator[Workspace]:
        """A workspace for one call; waits for one when all are in use."""
        taken = self._take()
        try:
            yield taken
        finally:
            with self._changed:
                self._free.append(taken)
                self._changed.notify()

    def make(self) -> Workspace:
        """A new workspace."""
        return Workspace(self.schedule)

    def _take(self) -> Workspace:
        with self._changed:
            while not self._free:
                if self._made < self._limit:
                    self._made += 1
                    break
                self._changed.wait()
            else:
                return self._free.pop()
        try:
            return self.make()
        except BaseException:
            with self._changed:
                self._made -= 1
                self._changed.notify()
            raise


def _after_fork_in_child() -> None:
    for pool in list(_pools):
        pool.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
