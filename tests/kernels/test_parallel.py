"""Tasks are shared: each is run once, own ones first and in order, and who is held up is helped."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
import pytest

from fastsparse.runtime.buffers import address
from fastsparse.runtime.threading_layer import parallel_for, prepare_threading
from fastsparse_kernels import parallel, simd
from tests.kernels.support import compiled

WORDS = 16
RUNS, SLOT = 2, 3  # words of the record: int64 [tasks] runs of each, and the slot that ran it


def _take(record, slot):  # type: ignore[no-untyped-def]
    runs, slots = simd.load_i64(record + 8 * RUNS), simd.load_i64(record + 8 * SLOT)
    task = simd.fetch_add(simd.load_i64(record), 1)
    while task < simd.load_i64(record + 8):
        simd.fetch_add(runs + task * 8, 1)
        simd.store_i64(slot, slots + task * 8)
        task = simd.fetch_add(simd.load_i64(record), 1)


@pytest.fixture(scope="module")
def kernel() -> Any:
    """A kernel that notes who runs its tasks."""
    return compiled(_take, 2)


def shared(tasks: int, first: int, last: int, slots: int, kernel: Any, run: Any) -> tuple[np.ndarray, np.ndarray]:
    """Runs of each task, and the slot of its last one, of tasks first to last."""
    runs, who = np.zeros(max(1, tasks), np.int64), np.full(max(1, tasks), -1, np.int64)
    record, copies = np.zeros(WORDS, np.int64), np.zeros((slots, WORDS), np.int64)
    record[[RUNS, SLOT]] = address(runs), address(who)
    run(kernel.address, address(record), WORDS, address(copies), slots, first, last)
    return runs[:tasks], who[:tasks]


def on_numbas_threads(kernel: int, record: int, words: int, copies: int, slots: int, first: int, last: int) -> None:
    prepare_threading()
    parallel.run_parallel()(kernel, record, words, copies, slots, parallel_for(), first, last)


@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 100_000])
@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_every_task_is_run_once(kernel, tasks, slots):
    for first, last in ((0, tasks), (tasks // 3, tasks - tasks // 4)):
        runs, _ = shared(tasks, first, last, slots, kernel, on_numbas_threads)
        expected = np.zeros(tasks, np.int64)
        expected[first:last] = 1
        assert np.array_equal(runs, expected)


def test_alone_all_tasks_are_run(kernel):
    def run(kernel: int, record: int, words: int, copies: int, slots: int, first: int, last: int) -> None:
        parallel.run_serial()(kernel, record, words, first, last)

    runs, who = shared(9, 2, 8, 1, kernel, run)
    assert runs.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0]
    assert who.tolist() == [-1, -1, 0, 0, 0, 0, 0, 0, -1]


def test_a_slot_that_does_not_come_is_helped(kernel):
    """Slot 1 of three takes its own part, then that of slot 2, then that of slot 0."""

    def share(record, words, copies, slots, first, last):  # type: ignore[no-untyped-def]
        parallel.split_tasks(record, words, copies, slots, first, last)

    def take(kernel, copies, words, slots, slot):  # type: ignore[no-untyped-def]
        parallel.run_tasks(kernel, copies, words, slots, slot)

    sharer, taker = compiled(share, 6), compiled(take, 5)
    done = []

    def run(kernel: int, record: int, words: int, copies: int, slots: int, first: int, last: int) -> None:
        sharer.ctypes(record, words, copies, slots, first, last)
        bounds = np.frombuffer((ctypes.c_int64 * (slots * words)).from_address(copies), np.int64).reshape(slots, words)
        assert bounds[:, 1].tolist() == [33, 66, 100]
        assert bounds[:, words - parallel.COUNTER_WORDS].tolist() == [0, 33, 66]
        late = threading.Thread(target=taker.ctypes, args=(kernel, copies, words, slots, 1))
        late.start()
        late.join()
        done.append(bounds[:, words - parallel.COUNTER_WORDS].tolist())

    runs, who = shared(100, 0, 100, 3, kernel, run)
    assert (runs == 1).all()
    assert (who == 1).all()
    assert done == [[33, 67, 100]], "who owns tasks asks once too often, who helps takes what is left in halves"
