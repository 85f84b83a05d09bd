"""Everybody in turn, round after round, so that a machine whose speed wanders slows all of them alike.

A measurement is the mean of a block of calls, after calls that do not count; long calls are a block of their own.
Slow contenders sit out later rounds: their share of the time is limited, the fast ones need many short blocks.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from bench.providers import Call
from fastsparse.timing import PAUSE, cores_apart


@dataclass(frozen=True)
class Budget:
    """How long one workload may take.

    Attributes
    ----------
    seconds : float
        For all contenders together; exceeded where the fewest rounds take longer.
    fewest, most : int
        Rounds of every contender.
    block : float
        Seconds of calls that make one measurement, and seconds of untimed calls before it.
    pause : float
        Seconds of rest before that on more than one thread: threads of other libraries stop waiting for work.
    clock : callable
        Wall clock; or processor time of one thread's work, on a machine that does something else as well.
    """

    seconds: float = 1.0
    fewest: int = 3
    most: int = 15
    block: float = 0.003
    pause: float = PAUSE
    clock: Callable[[], float] = time.perf_counter


# From this on a call's own data flush the caches anyway: no untimed call comes first.
_LONG = 0.03


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """The same number of threads for fastsparse, BLAS and OpenMP; other providers' setup tells their libraries."""
    import fastsparse as fs

    with fs.threads(threads), threadpool_limits(threads):
        # Before its first large product OpenBLAS was seen to be four times slower on small ones, for good.
        square = np.ones((512, 512), np.float32)
        np.matmul(square, square)
        yield


def rotate(calls: Mapping[str, Call], threads: int, budget: Budget) -> dict[str, list[float]]:
    """Seconds per call of every contender, one entry for each round it took part in.

    Entry i of two contenders comes from the same round: their ratio compares like with like.
    """
    once = {name: _estimate(call, budget.clock) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    share = budget.seconds / len(calls)
    pause = budget.pause if threads > 1 else 0.0
    with _undisturbed(threads):
        for turn in range(budget.most):
            playing = [name for name in calls if turn < budget.fewest or spent[name] < share]
            if turn >= budget.fewest and sum(spent.values()) > budget.seconds:
                break
            for name in playing:
                time.sleep(pause)
                started = budget.clock()
                seconds[name].append(_block(calls[name], once[name], budget))
                spent[name] += budget.clock() - started
    return seconds


def _estimate(call: Call, clock: Callable[[], float]) -> float:
    """Seconds of one call, the third one if the first was short: it may have planned or allocated."""
    for _ in range(3):
        started = clock()
        call()
        elapsed = clock() - started
        if elapsed > _LONG:
            break
    return elapsed


def _block(call: Call, once: float, budget: Budget) -> float:
    clock = budget.clock
    if once < _LONG:
        started = clock()
        while True:
            call()
            if clock() - started > budget.block:
                break
    repeats = max(1, round(budget.block / max(once, 1e-7)))
    started = clock()
    for _ in range(repeats):
        call()
    return (clock() - started) / repeats


@contextmanager
def _undisturbed(threads: int) -> Iterator[None]:
    """No garbage collection, and threads on cores of their own."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        if threads > 1:
            with cores_apart():
                yield
        else:
            yield
    finally:
        if enabled:
            gc.enable()
