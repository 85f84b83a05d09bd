"""Workspaces: a schedule with memory and with its launches bound, ready to run; pools of them, and bounded stores of
pools.

A workspace serves one call at a time. Everything a call needs but its output is allocated when the workspace is made.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet, ref

import numpy as np
from numpy.typing import NDArray

from fastsparse.engine.schedule import SAMPLES, Schedule, Step, View, assign_memory
from fastsparse.engine.trial import Trial
from fastsparse.runtime import launch, sequence
from fastsparse.runtime.buffers import address
from fastsparse.runtime.fork import after_fork_in_child, fork_safe_lock
from fastsparse.runtime.launch import BoundLaunch
from fastsparse.runtime.measure import seconds
from fastsparse.runtime.memo import held_arrays
from fastsparse.runtime.threading_layer import available_workers
from fastsparse_kernels.compiler import aligned_empty

Array = NDArray[Any]
Arrays = Array | Sequence[Array]  # of a program with one input or output, or with several
_pools: WeakSet[Pool] = WeakSet()
KEPT_BYTES = 256 * 2**20  # plans and workspaces that an engine keeps
STEP_BYTES = 4096  # of the Python objects of a step, in a plan and in a workspace
MOST_WORKSPACES = 8  # calls of one batch size that run at once; more wait

# One lock serves all stores: it is held for dictionary accesses, never while something is planned or run.
_lock = fork_safe_lock()


class Workspace:
    """Memory and bound launches of one schedule.

    alone : a workspace for the same arrays on one worker, where `trial` finds out which of both is faster
    """

    def __init__(self, schedule: Schedule, variables: NDArray[np.int64] | None = None) -> None:
        self.schedule, self.heuristics = schedule, schedule.heuristics
        h = self.heuristics
        self.offsets, size = assign_memory(schedule.buffers, schedule.owned)
        slots = schedule.slots
        workers = 1 if schedule.per_worker else schedule.workers
        scratch = max((step.launch.scratch for step in schedule.steps), default=0)  # of a worker, the same in all steps
        size = -(-size // 4096) * 4096
        self.memory = [aligned_empty((size + scratch * workers + 64,), np.uint8) for _ in range(slots)]
        self.launches: list[list[BoundLaunch]] = []
        for memory in self.memory:
            memory.fill(0)  # what buffers say is zero for good, among other things
            start = address(memory)
            self.launches.append([_bound(step, start, self.offsets, start + size, scratch) for step in schedule.steps])
        self.flops = sum(bound.flops for bound in self.launches[0]) * schedule.tasks
        self._spans = _spans(self.launches[0], h.slice_flops)
        views = [view for step in schedule.steps for view in (*step.sources, step.target)]
        if variables is None:
            variables = np.zeros(1 - min((buffer for buffer, _ in views), default=0), np.int64)
        self._variables = variables
        self.alone = None if schedule.alone is None else Workspace(schedule.alone, variables)
        self.trial = None if self.alone is None else Trial()
        fields = [[(p.field, p.variable, p.offset, p.per_task) for p in step.patches] for step in schedule.steps]
        self._steps, self._patches = sequence.tables(self.launches, fields)
        bound, parallel = self.launches[0], h.parallel_flops
        self._serial = sequence.SerialSteps(self._steps[0], self._patches[0], self._variables)
        self._shared = None if workers == 1 else sequence.SharedSteps(bound, fields, workers, parallel)
        self._sequence = sequence.sequence_launch(
            self._steps, self._patches, self._variables, schedule.tasks, self.flops
        )

    @property
    def nbytes(self) -> int:
        """Bytes of memory for activations and scratch."""
        return sum(memory.nbytes for memory in self.memory) + (0 if self.alone is None else self.alone.nbytes)

    @property
    def taken(self) -> Workspace:
        """The one that runs the next call: this one, or the one for one worker."""
        return self if self.alone is None or self.trial is None or self.trial.way else self.alone

    def run(self, x: Arrays, y: Arrays) -> None:
        """y = network(x); all contiguous, of the schedule's batch size."""
        self.set_arrays(x, y)
        self._run()

    def bound(self, samples: int, given: Sequence[int]) -> tuple[Callable[[], None], NDArray[np.int64]]:
        """A call on arrays at these addresses, inputs before outputs; and the addresses, which may be changed."""
        addresses = self._variables[1:]
        self._variables[SAMPLES], addresses[:] = samples, given[: len(addresses)]
        first, schedule = self.launches[0][0], self.schedule
        alone = schedule.workers == schedule.tasks == len(self._spans) == 1 and not schedule.per_worker
        if launch.VERBOSE or not alone or (len(schedule.steps) == 1 and first.flops > self.heuristics.slice_flops):
            return self._run, addresses
        return self._serial.bound(0, len(schedule.steps)), addresses

    def _run(self) -> None:
        """Run on the arrays that are set."""
        if self.trial is None or self.alone is None:
            self._run_schedule()
        else:
            self.trial.run((self.alone._run_schedule, self._run_schedule))

    def _run_schedule(self) -> None:
        if launch.VERBOSE:
            self._run_and_report()
        else:
            self._run_tasks(self.schedule.workers)

    def run_on(self, workers: int, x: Arrays, y: Arrays) -> None:
        """The same as `run`, by this schedule on so many workers."""
        self.set_arrays(x, y)
        self._run_tasks(workers)

    def _run_tasks(self, workers: int) -> None:
        if self.schedule.per_worker:
            self._sequence.run(workers, self.heuristics.slice_flops)
            return
        workers = available_workers(workers)
        for task in range(self.schedule.tasks):
            for first, last in self._spans:
                self._run_steps(first, last, workers, task)

    def _run_and_report(self) -> None:
        """The same, step by step, with a line for each; those of workers that run all steps alone are one."""
        schedule = self.schedule
        if schedule.per_worker:
            label = "network", f"{len(schedule.steps)} steps for each of {schedule.tasks} tasks"
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
        bound, slice_flops = self.launches[0][first], self.heuristics.slice_flops
        in_slices = last - first == 1 and bound.flops > slice_flops
        shared = self._shared if workers > 1 and not in_slices else None
        if shared is not None and shared.any_shared(first, last):
            shared.run(first, last, self._variables, task)
            return
        end = first if in_slices else last  # then only patched
        self._serial.bound(first, end, task)()
        if in_slices:
            bound.run(workers, slice_flops)


def _bound(step: Step, base: int, offsets: list[int], scratch: int, stride: int) -> BoundLaunch:
    def at(view: View) -> int:
        return 0 if view[0] < 0 else base + offsets[view[0]] + view[1]

    addresses = dict(zip(step.operands, (*map(at, step.sources), at(step.target)), strict=True))
    return step.launch.bind(scratch, stride, **addresses)


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
    """Workspaces that `make` gives for one plan, such as a schedule: made when needed, at most `limit`, and handed
    round."""

    def __init__(self, plan: Any, limit: int = MOST_WORKSPACES, make: Callable[[Any], Any] = Workspace) -> None:
        self.plan = plan
        self._make = make
        self.store: ref[PoolStore] | None = None  # which keeps it, and is told when it grows
        self._limit = limit
        self.nbytes = 0  # of all workspaces
        self._free: list[Workspace] = []
        self.renew()
        _pools.add(self)

    def renew(self) -> None:
        """Forget the workspaces in use, as a forked child must: the threads that use them are not there."""
        self._made = len(self._free)
        self._changed = threading.Condition()

    @property
    def steps(self) -> int:
        """Their number."""
        alone = getattr(self.plan, "alone", None)  # of a schedule for several workers
        return len(self.plan.steps) + (0 if alone is None else len(alone.steps))

    def arrays(self) -> dict[int, int]:
        """Bytes of the arrays of the plan, which other plans may share, by id."""
        return held_arrays(self.plan)

    @contextmanager
    def workspace(self) -> Iterator[Any]:
        """A workspace for one call; waits for one when all are in use."""
        taken = self.take()
        try:
            yield taken
        finally:
            self.give(taken)

    def make(self) -> Any:
        """A new workspace."""
        return self._make(self.plan)

    def give(self, taken: Any) -> None:
        """Hand back a workspace."""
        with self._changed:
            self._free.append(taken)
            self._changed.notify()

    def take(self) -> Any:
        """A workspace that the caller has to give back; waits for one when all are in use."""
        with self._changed:
            while not self._free:
                if self._made < self._limit:
                    self._made += 1
                    break
                self._changed.wait()
            else:
                return self._free.pop()
        try:
            made = self.make()
        except BaseException:
            with self._changed:
                self._made -= 1
                self._changed.notify()
            raise
        self.nbytes = self._made * (made.nbytes + self.steps * STEP_BYTES)
        store = None if self.store is None else self.store()
        if store is not None:
            store.shrink()
        return made


class PoolStore:
    """What was planned, by key, with the pools of its workspaces: the entry not used longest goes when the bytes of all
    plans and workspaces are more than `limit`. The one used last stays whatever its size."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit = limit
        self._entries: OrderedDict[Hashable, tuple[Any, Pool | None, dict[int, int]]] = OrderedDict()
        self._uses: Counter[int] = Counter()  # of the arrays of plans, by id
        self._plan_bytes = 0
        self._newest: tuple[Hashable, Any] | None = None  # the entry used last, which is got without the lock

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def get(self, key: Hashable) -> Any:
        """What is kept under a key, or None."""
        newest = self._newest
        if newest is not None and newest[0] == key:
            return newest[1]
        with _lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            self._newest = key, self._entries[key][0]
            return self._newest[1]

    def put(self, key: Hashable, entry: Any, pool: Pool | None, *, replace: bool = False) -> Any:
        """Keep an entry, unless another thread was first and `replace` is False; give the one that is kept."""
        arrays = {} if pool is None else pool.arrays()
        if pool is not None:
            pool.store = ref(self)
        with _lock:
            self._newest = None
            if replace or key not in self._entries:
                self._drop(key)
                self._entries[key] = entry, pool, arrays
                self._plan_bytes += STEP_BYTES + sum(arrays[i] for i in arrays if not self._uses[i])
                self._uses.update(arrays.keys())
            self._entries.move_to_end(key)
            kept = self._entries[key][0]
        self.shrink()
        return kept

    def clear(self) -> None:
        """Forget all."""
        with _lock:
            for key in list(self._entries):
                self._drop(key)

    @property
    def pools(self) -> list[Pool]:
        """Those that are kept."""
        with _lock:
            return [pool for _, pool, _ in self._entries.values() if pool is not None]

    @property
    def nbytes(self) -> int:
        """Bytes of all plans and workspaces, arrays of several plans once."""
        with _lock:
            return self._plan_bytes + sum(_space(pool) for _, pool, _ in self._entries.values())

    def shrink(self) -> None:
        """Forget entries until the bound holds."""
        with _lock:
            excess = self.nbytes - self.limit
            while len(self._entries) > 1 and excess > 0:
                oldest, (_, pool, _) = next(iter(self._entries.items()))
                excess += self._plan_bytes
                self._drop(oldest)
                excess -= self._plan_bytes + _space(pool)

    def _drop(self, key: Hashable) -> None:
        """Forget an entry, if there is one. To be called with the lock held."""
        self._newest = None
        _, _, arrays = self._entries.pop(key, (None, None, None))
        if arrays is not None:
            self._uses.subtract(arrays.keys())
            self._plan_bytes -= STEP_BYTES + sum(arrays[i] for i in arrays if not self._uses[i])
            for i in arrays:
                if not self._uses[i]:
                    del self._uses[i]


def _space(pool: Pool | None) -> int:
    """Bytes of a pool's workspaces, and of the Python objects of its plan."""
    return 0 if pool is None else pool.nbytes + pool.steps * STEP_BYTES


@after_fork_in_child
def _renew_pools() -> None:
    for pool in list(_pools):
        pool.renew()
