"""Steps that workers share: each task is run once, a step begins when the one before is done, and nobody is waited for
who does not come."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from fastsparse.runtime.buffers import address
from fastsparse.runtime.launch import Arguments, BoundLaunch
from fastsparse.runtime.sequence import SerialSteps, SharedSteps, step_table
from fastsparse.runtime.threading_layer import available_workers
from fastsparse_kernels import sequence, simd
from fastsparse_kernels.compiler import kernel_arguments
from tests.kernels.support import compiled

RECORD = kernel_arguments("runs", "before", "expected", "early", "number")
_view = simd.arguments_view(RECORD)


def _count(arguments, slot):  # type: ignore[no-untyped-def]
    """Count the runs of every task, all runs of the step behind them, and tasks that ran before `expected` of the
    step before had."""
    a = _view(arguments)
    for task in simd.tasks(arguments):
        if a.before != 0 and simd.load_acquire(a.before) < a.expected * a.number:
            simd.fetch_add(a.early, 1)
        simd.fetch_add(a.runs + 8 + task * 8, 1)
        simd.fetch_add(a.runs, 1)


@pytest.fixture(scope="module")
def kernel() -> Any:
    """A kernel that counts."""
    return compiled(_count, 2)


@pytest.fixture(scope="module")
def one_slot() -> Any:
    """The part of one slot, to be called from any thread."""

    def part(table, first, last, patches, count, variables, task, slots, flags, call, slot):  # type: ignore[no-untyped-def]
        sequence.share_steps(table, first, last, patches, count, variables, task, slots, flags, call, slot)

    return compiled(part, 11).ctypes


class Steps:
    """Steps of so many tasks each; the number of the call is the variable 0, patched into all of them."""

    def __init__(self, kernel: Any, tasks: list[int], workers: int) -> None:
        available_workers(workers)  # starts the threads
        self.tasks, self.workers, self.calls, self.variables = tasks, workers, 0, np.zeros(1, np.int64)
        self.runs = [np.zeros(1 + count, np.int64) for count in tasks]
        self.early = np.zeros(1, np.int64)
        self.launches, before = [], 0
        for i, count in enumerate(tasks):
            expected = tasks[i - 1] if i else 0
            record = Arguments(
                RECORD, runs=address(self.runs[i]), before=before, expected=expected, early=address(self.early)
            )
            self.launches.append(BoundLaunch(kernel.address, record, count, 0.0 if i % 3 == 2 else 1.0))
            before = address(self.runs[i])
        self.shared = SharedSteps(self.launches, [[("number", 0, 0, 0)]] * len(tasks), workers, 0.5)

    def next(self) -> int:
        """Begin another call; its number."""
        self.calls += 1
        self.variables[0] = self.calls
        return self.calls

    def check(self) -> None:
        """All tasks have been run once in every call, and none early."""
        for runs, count in zip(self.runs, self.tasks, strict=True):
            assert runs[0] == count * self.calls
            assert (runs[1:] == self.calls).all()
        assert self.early[0] == 0


TASKS = [5, 1, 7, 0, 64, 3, 2, 33]


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_all_tasks_are_run_once_and_in_order(kernel, workers):
    steps = Steps(kernel, TASKS, workers)
    for _ in range(200):
        steps.next()
        steps.shared.run(0, len(TASKS), steps.variables, 0)
    steps.check()


def test_a_part_of_the_steps_can_be_run(kernel):
    """The two counters of a step are used in turn, however often other steps are run."""
    steps = Steps(kernel, [6, 6, 6, 6], 2)
    for first, last in ((0, 1), (0, 3), (3, 4), (1, 4), (0, 4)):
        steps.shared.run(first, last, steps.variables, 0)
    assert [int(runs[0]) // 6 for runs in steps.runs] == [3, 3, 3, 3]
    assert all(len(set(runs[1:].tolist())) == 1 for runs in steps.runs)


def test_slots_that_do_not_come_are_not_waited_for(kernel, one_slot):
    """One slot runs everything alone; the others find nothing to do, and the next call is complete again."""
    steps = Steps(kernel, TASKS, 3)
    for _ in range(4):
        call = steps.next()
        for slot in (1, 2, 0):
            _run(steps, one_slot, call, slot)
            steps.check()


def test_slots_that_are_held_up_between_steps_are_not_waited_for(kernel, one_slot):
    """A slot has come, and is not run while the other one goes on; then it goes through the rest, and finds nothing."""
    steps = Steps(kernel, TASKS, 2)
    for at in (1, 3, 5, 1):
        call = steps.next()
        _run(steps, one_slot, call, 1, last=at)
        _run(steps, one_slot, call, 0)
        steps.check()
        _run(steps, one_slot, call, 1, first=at)
        steps.check()


@pytest.mark.parametrize("workers", [2, 4])
def test_slots_may_come_late(kernel, one_slot, workers, rng):
    steps = Steps(kernel, TASKS, workers)
    for _ in range(60):
        call = steps.next()
        order, alone = rng.permutation(workers).tolist(), rng.integers(workers + 1)
        threads = [threading.Thread(target=_run, args=(steps, one_slot, call, slot)) for slot in order[:alone]]
        for thread in threads:
            thread.start()
        for slot in order[alone:]:
            _run(steps, one_slot, call, slot)
        for thread in threads:
            thread.join()
        steps.check()


def test_alone_all_steps_are_run(kernel):
    steps = Steps(kernel, TASKS, 2)
    table, patches = step_table(steps.launches), np.zeros((0, 4), np.int64)
    SerialSteps(table, patches, steps.variables).bound(0, len(TASKS))()
    steps.calls = 1
    steps.check()


def _run(steps: Steps, one_slot: Any, call: int, slot: int, first: int = 0, last: int = len(TASKS)) -> None:
    shared = steps.shared
    one_slot(
        address(shared._steps), first, last, address(shared._patches), shared._patches.shape[1],
        address(steps.variables), 0, steps.workers, address(shared._flags), call, slot,
    )  # fmt: skip
