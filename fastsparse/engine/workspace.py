"""Workspaces: a schedule with memory and with its launches bound, ready to run; and a bounded pool of them.

A workspace serves one call at a time. Everything a call needs but its output is allocated when the workspace is made.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from fastsparse.engine.schedule import SAMPLES, Place, Schedule, Step, assign_memory
from fastsparse.runtime import launch, sequence
from fastsparse.runtime.buffers import address
from fastsparse.runtime.fork import after_fork_in_child
from fastsparse.runtime.launch import BoundLaunch
from fastsparse.runtime.measure import seconds
from fastsparse.runtime.threading_layer import available_workers
from fastsparse_kernels.compiler import aligned_empty

Array = NDArray[Any]
Arrays = Array | Sequence[Array]  # of a program with one input or output, or with several
_pools: WeakSet[Pool] = WeakSet()


class Workspace:
    """Memory and bound launches of one schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.heuristics = schedule, schedule.heuristics
        h = self.heuristics
        self.offsets, size = assign_memory(schedule.buffers)
        workers = 1 if schedule.per_worker else schedule.workers
        scratch = max((step.launch.scratch for step in schedule.steps), default=0) * workers
        size = -(-size // 4096) * 4096
        self.memory = [aligned_empty((size + scratch + 64,), np.uint8) for _ in range(schedule.slots)]
        self.launches: list[list[BoundLaunch]] = []
        for memory in self.memory:
            memory.fill(0)  # what buffers say is zero for good, among other things
            start = address(memory)
            self.launches.append([_bound(step, start, self.offsets, start + size) for step in schedule.steps])
        places = [place for step in schedule.steps for place in (*step.sources, step.target)]
        self._variables = np.zeros(1 - min((buffer for buffer, _ in places), default=0), np.int64)
        tables = [sequence.step_table(bound, workers, h.parallel_flops) for bound in self.launches]
        self._steps, self._copies = np.stack([table for table, _ in tables]), [copies for _, copies in tables]
        patches = [self._patches(bound) for bound in self.launches]
        self._patch_table = np.array(patches, np.int64).reshape(len(self.launches), -1, 4)
        self._addresses = address(self._steps), address(self._patch_table), address(self._variables)
        self.flops = sum(bound.flops for bound in self.launches[0]) * schedule.tasks
        self._sequence = sequence.sequence_launch(
            self._steps, self._patch_table, self._variables, schedule.tasks, self.flops
        )
        self._spans = _spans(self.launches[0], h.slice_flops)

    @property
    def nbytes(self) -> int:
        """Bytes of memory for activations and scratch."""
        return sum(memory.nbytes for memory in self.memory)

    def _patches(self, launches: list[BoundLaunch]) -> list[tuple[int, int, int, int]]:
        return [
            (bound.arguments.field_address(patch.field), patch.variable, patch.offset, patch.per_task)
            for step, bound in zip(self.schedule.steps, launches, strict=True)
            for patch in step.patches
        ]

    def run(self, x: Arrays, y: Arrays) -> None:
        """y = network(x); all contiguous, of the schedule's batch size."""
        schedule = self.schedule
        self.set_arrays(x, y)
        if launch.VERBOSE:
            self._run_and_report()
            return
        if schedule.per_worker:
            self._sequence.run(schedule.workers, self.heuristics.slice_flops)
            return
        workers = available_workers(schedule.workers)
        for task in range(schedule.tasks):
            for first, last in self._spans:
                self._run_steps(first, last, workers, task)

    def _run_and_report(self) -> None:
        """The same, step by step, with a line for each; those of workers that run all steps alone are one."""
        schedule = self.schedule
        if schedule.per_worker:
            label = f"network,{len(schedule.steps)} steps for each of {schedule.tasks} tasks"
            run = partial(self._sequence.run, schedule.workers, self.heuristics.slice_flops)
            launch.report(label, schedule.workers, seconds(run))
            return
        for task in range(schedule.tasks):
            for i, step in enumerate(schedule.steps):
                launch.report(step.launch.label, schedule.workers, seconds(partial(self.run_step, i, task)))

    def set_arrays(self, x: Arrays, y: Arrays) -> None:
        """Say where the user's arrays are."""
        arrays = (*_listed(x), *_listed(y))
        self._variables[SAMPLES] = len(arrays[0])
        for i, array in enumerate(arrays, 1):
            if i < len(self._variables):
                self._variables[i] = address(array)

    def run_step(self, index: int, task: int = 0) -> None:
        """Run one step of a task, for measuring and for tests."""
        workers = 1 if self.schedule.per_worker else self.schedule.workers
        self._run_steps(index, index + 1, available_workers(workers), task)

    def _run_steps(self, first: int, last: int, workers: int, task: int) -> None:
        steps, patches, variables = self._addresses
        bound, slice_flops, count = self.launches[0][first], self.heuristics.slice_flops, self._patch_table.shape[1]
        if last - first > 1 or bound.flops <= slice_flops:
            sequence.run_steps(steps, first, last, patches, count, variables, task, workers)
        else:  # patch, and run the step in slices
            sequence.run_steps(steps, 0, 0, patches, count, variables, task, 1)
            bound.run(workers, slice_flops)


def _bound(step: Step, base: int, offsets: list[int], scratch: int) -> BoundLaunch:
    def at(place: Place) -> int:
        return 0 if place[0] < 0 else base + offsets[place[0]] + place[1]

    return step.bound((*map(at, step.sources), at(step.target)), scratch)


def _listed(arrays: Arrays) -> Sequence[Array]:
    return [arrays] if isinstance(arrays, np.ndarray) else arrays


def _spans(launches: list[BoundLaunch], slice_flops: float) -> list[tuple[int, int]]:
    """Runs of steps short enough that Ctrl-C is noticed between them."""
    spans, first, flops = [], 0, 0.0
    for i, bound in enumerate(launches):
        if i > first and flops + bound.flops > slice_flops:
            spans.append((first, i))
            first, flops = i, 0.0
        flops += bound.flops
    return [*spans, (first, len(launches))]


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


@after_fork_in_child
def _renew_pools() -> None:
    for pool in list(_pools):
        pool.renew()
