"""Measuring one workload: every baseline is checked, then timed in interleaved rounds that go to pytest-benchmark.

pytest-benchmark times one callable after the other; ratios of two that ran minutes apart say little on a machine whose
clock wanders. Here all callables of a workload take turns in one test, and each becomes an entry of its own in
pytest-benchmark's results, with the same statistics and in the same JSON as any other.
"""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from bench import machine
from bench.baselines import OURS
from bench.checks import check
from bench.groups import Group, Options
from fastsparse.timing import PAUSE, interleaved

_NOT_KEPT = ("file", "files", "program", "run")  # fields of a workload that say how to make it, not what it is


def measure(benchmark: Any, group: Group, case: Any, options: Options) -> list[str]:
    """Check and time a workload; returns what went wrong, one line for each baseline that is therefore not timed."""
    problems: list[str] = []
    threads = max(options.threads, 2) if group.name == "threads" else options.threads
    benchmark._mode = "interleaved"  # pytest-benchmark warns about a fixture that was not used
    benchmark.group = group.label(case)
    info = {
        "kind": group.name, "title": group.title, "workload": case.name, "threads": threads,
        "fields": {name: getattr(case, name) for name in case.__dataclass_fields__ if name not in _NOT_KEPT},
        "flops": 0, "bytes": 0,
    }  # fmt: skip
    with pinned(threads):
        if group.measure is not None:
            try:
                rounds, facts = group.measure(case, benchmark._timer)
            except Exception as error:
                return [_problem(group, case, OURS, error)]
            _record(benchmark, OURS, rounds, {**info, "facts": facts})
            return []
        info |= {"flops": case.flops, "bytes": case.bytes_moved}
        calls = _checked(group, case, threads, problems)
        if benchmark.disabled or not calls:
            return problems
        round_trip = machine.round_trip() if threads > 1 else None
        with _undisturbed(threads):
            found = interleaved(calls, **_budget(group, threads, options, benchmark._timer))
    for name, rounds in found.items():
        facts = dict(getattr(calls[name], "facts", {}))
        if round_trip is not None and name == OURS:
            facts["cache line round trip"] = f"{round_trip * 1e9:.0f} ns"
        _record(benchmark, name, rounds, {**info, "facts": facts})
    return problems


def _checked(group: Group, case: Any, threads: int, problems: list[str]) -> dict[str, Any]:
    """Callables of the installed baselines whose results are right."""
    calls: dict[str, Any] = {}
    installed = [baseline for baseline in group.baselines if not baseline.missing]
    try:
        expected = group.expected(case) if group.expected is not None and installed else None
    except Exception as error:
        problems.append(_problem(group, case, "reference", error))
        return calls
    for baseline in installed:
        try:
            call = baseline.setup(case, threads)
            if call is None:
                continue
            result = getattr(call, "result", call)()
            if expected is not None and baseline.checked:
                check(baseline.name, result, expected, getattr(case, "weight", None))
            calls[baseline.name] = call
        except Exception as error:
            problems.append(_problem(group, case, baseline.name, error))
    return calls


def _budget(group: Group, threads: int, options: Options, clock: Any) -> dict[str, Any]:
    seconds, rounds = (0.3, 5) if options.quick else (group.seconds, group.rounds)
    budget: dict[str, Any] = {"seconds": seconds, "rounds": (3, rounds), "block": group.block}
    if group.name == "threads":  # nobody else's threads are about that would need a rest
        return budget
    return {**budget, "clock": clock, "pause": PAUSE if threads > 1 else 0.0}


def _record(benchmark: Any, name: str, rounds: list[float], info: dict[str, Any]) -> None:
    """Add an entry to the session of pytest-benchmark, as its fixture does after timing (`_make_stats`, `update`)."""
    entry = copy.copy(benchmark)
    entry.name, entry.fullname = f"{benchmark.name}-{name}", f"{benchmark.fullname}-{name}"
    entry.extra_info = {**info, "baseline": name}
    stats = entry._make_stats(iterations=1)
    for seconds in rounds:
        stats.update(seconds)


def _problem(group: Group, case: Any, baseline: str, error: Exception) -> str:
    return f"{group.label(case)}: {baseline}: {type(error).__name__}: {error}"


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """The same number of threads for fastsparse, BLAS and OpenMP; other baselines' setup tells their libraries."""
    import fastsparse as fs

    with fs.threads(threads), threadpool_limits(threads):
        # Before its first large product OpenBLAS was seen to be four times slower on small ones, for good.
        square = np.ones((512, 512), np.float32)
        np.matmul(square, square)
        yield


@contextlib.contextmanager
def _undisturbed(threads: int) -> Iterator[None]:
    """No garbage collection, and threads on cores of their own."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with machine.cores_apart() if threads > 1 else contextlib.nullcontext():
            yield
    finally:
        if enabled:
            gc.enable()
