"""One provider against fastsparse: checked, then timed in alternating rounds and handed to pytest-benchmark.

pytest-benchmark times the provider. The untimed setup of each of its rounds runs fastsparse on the same workload, and
times that, so the two share whatever the machine is doing at that moment; the rounds of fastsparse go to `extra_info`.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import pytest

from bench.checks import Expected, check
from bench.providers import OURS, Call, Provider
from bench.rotation import pinned
from fastsparse.timing import PAUSE, cores_apart

# Seconds of timed calls for each side, and the rounds they may take.
BUDGET = 0.5
ROUNDS = (9, 31)
# Seconds of untimed calls before a timed one: caches, clock and sleeping threads need several calls to settle.
WARM = 0.015


def race(benchmark: Any, case: Any, ours: Provider, rival: Provider, threads: int, expected: Expected) -> None:
    """Check and time `rival` (which may be `ours`) on `case`; skips when it is not installed."""
    if rival.missing:
        pytest.skip(f"{rival.name}: {', '.join(rival.missing)} not installed")
    with pinned(threads):
        calls = {provider.name: provider.setup(case, threads) for provider in (ours, rival)}
        for name, call in calls.items():
            check(name, getattr(call, "result", call)(), expected, case.weight)
        seconds = alternate(benchmark, calls[OURS], calls[rival.name], threads)
    benchmark.extra_info.update(
        workload=case.name, provider=rival.name, threads=threads, flops=case.flops, fastsparse_seconds=seconds
    )


def alternate(benchmark: Any, ours: Call, rival: Call, threads: int) -> list[float]:
    """Time `rival` through pytest-benchmark; returns the seconds of `ours` in the same rounds."""
    pause = PAUSE if threads > 1 else 0.0
    seconds: list[float] = []

    def setup() -> None:
        if ours is not rival:
            _warm_up(ours, pause)
            seconds.append(_seconds(ours))
        _warm_up(rival, pause)

    for call in (ours, rival):
        _warm_up(call, pause)
    rounds = min(ROUNDS[1], max(ROUNDS[0], round(BUDGET / max(_seconds(ours), _seconds(rival)))))
    with cores_apart() if threads > 1 else nullcontext():
        benchmark.pedantic(rival, setup=setup, rounds=rounds, iterations=1, warmup_rounds=1)
    return seconds[-rounds:]


def _warm_up(call: Call, pause: float) -> None:
    time.sleep(pause)
    start = time.perf_counter()
    while True:
        call()
        if time.perf_counter() - start > WARM:
            return


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
