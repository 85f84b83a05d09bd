"""Fair timing of several ways to do the same work.

Contenders run in turn, round after round, so that a machine that slows down slows all of them; every block of timed
calls is preceded by a pause (threads of the previous contender may still spin for work) and by an untimed call.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

Call = Callable[[], object]

# Seconds. OpenBLAS workers wait for their next product on a busy core for 2^28 clock cycles, about 0.1 s.
PAUSE = 0.15


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one entry for each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the rounds, in seconds."""
        return statistics.median(self.rounds)

    @property
    def minimum(self) -> float:
        """Fastest round, in seconds."""
        return min(self.rounds)


def interleaved(
    contenders: Mapping[str, Call], *, rounds: int = 7, block_seconds: float = 0.02, pause: float | None = None
) -> dict[str, Timing]:
    """Time every contender in turn, `rounds` times.

    Parameters
    ----------
    contenders : mapping of name to callable
        Each callable does the whole work once.
    rounds : int
        How often each contender is measured.
    block_seconds : float
        A measurement repeats the call until about this much time has passed and takes the mean.
    pause : float, optional
        Seconds of rest before each measurement; `PAUSE` by default.

    Returns
    -------
    dict of str to Timing
        In the order of `contenders`.
    """
    rest = PAUSE if pause is None else pause
    repeats = {name: _repeats(call, block_seconds) for name, call in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with cores_apart():
        for _ in range(rounds):
            for name, call in contenders.items():
                time.sleep(rest)
                call()
                seconds[name].append(_mean_seconds(call, repeats[name]))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def speedup(rival: Timing, ours: Timing) -> float:
    """How many times faster `ours` is: the median over the rounds of rival / ours within one round."""
    return statistics.median(r / o for r, o in zip(rival.rounds, ours.rounds))


@contextlib.contextmanager
def cores_apart() -> Iterator[None]:
    """Keep the main thread on one core and all other threads of the process on the others, whoever started them.

    Some kernels (seen on virtual machines) wake a pool's thread on the core of the thread that waits for it and leave
    it there, so that two threads are as fast as one, in some processes and not in others. Threads must have been
    started before: one that is started inside stays with the thread that starts it. Does nothing on one core and on
    systems that cannot do it.
    """
    masks = _masks()
    here = masks.get(os.getpid(), set())
    if len(here) < 2:
        yield
        return
    first, *others = sorted(here)
    try:
        for thread in masks:
            _move(thread, {first} if thread == os.getpid() else set(others))
        yield
    finally:
        for thread, mask in masks.items():
            _move(thread, mask)


def _masks() -> dict[int, set[int]]:
    """The cores each thread of this process may use, by the thread's number; empty where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return {}
    masks = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):
                masks[int(name)] = os.sched_getaffinity(int(name))
    return masks


def _move(thread: int, cores: set[int]) -> None:
    with contextlib.suppress(OSError):  # it has ended, or a control group took the cores away
        os.sched_setaffinity(thread, cores)


def _mean_seconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _repeats(call: Call, block_seconds: float) -> int:
    call()  # the first call may compile, plan or allocate
    once = _mean_seconds(call, 1)
    return max(1, min(1000, round(block_seconds / max(once, 1e-9))))
