"""Measuring one workload: every baseline is checked, then timed in interleaved rounds that go to pytest-benchmark.

pytest-benchmark times one callable after the other; ratios of two that ran minutes apart say little on a machine whose
clock wanders. Here all callables of a workload take turns in one test, and each becomes an entry of its own in
pytest-benchmark's results, with the same statistics and in the same JSON as any other.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
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
_SETTLED = 0.02  # seconds of calls after which cores that were at rest run as fast as they can


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
    expected = group.expected(case) if group.expected is not None and installed else None
    for baseline in installed:
        try:
            call = baseline.setup(case, threads)
            if call is None:
                continue
            result = getattr(call, "result", call)()
            if expected is not None:
                check(baseline.name, result, expected, getattr(case, "weight", None))
            calls[baseline.name] = call
        except Exception as error:
            problems.append(_problem(group, case, baseline.name, error))
    return calls


def _budget(group: Group, threads: int, options: Options, clock: Any) -> dict[str, Any]:
    budget: dict[str, Any] = {"seconds": 0.3, "rounds": (3, 5)} if options.quick else {"seconds": group.seconds}
    budget.setdefault("rounds", (3, group.rounds))
    if group.name == "threads":  # nobody else's threads are about that would need a rest
        return {**budget, "block": _SETTLED}
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
        with cores_apart() if threads > 1 else contextlib.nullcontext():
            yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def cores_apart() -> Iterator[None]:
    """Keep the main thread on one core and all other threads of the process on the others, whoever started them.

    Some kernels (seen on virtual machines) wake a pool's thread on the core of the thread that waits for it and leave
    it there, so that two threads are as fast as one, in some processes and not in others. Threads must have been
    started before: one that is started inside stays with the thread that starts it. Does nothing on one core and on
    systems that cannot do it.
    """
    masks = thread_masks()
    here = masks.get(os.getpid(), set())
    if len(here) < 2:
        yield
        return
    first, *others = sorted(here)
    try:
        for thread in masks:
            move(thread, {first} if thread == os.getpid() else set(others))
        yield
    finally:
        for thread, mask in masks.items():
            move(thread, mask)


def thread_masks() -> dict[int, set[int]]:
    """The cores each thread of this process may use, by the thread's number; empty where the system does not tell."""
    masks: dict[int, set[int]] = {}
    if hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(OSError):
            for name in os.listdir("/proc/self/task"):
                with contextlib.suppress(ProcessLookupError):
                    masks[int(name)] = os.sched_getaffinity(int(name))
    return masks


def move(thread: int, cores: set[int]) -> None:
    with contextlib.suppress(OSError):  # it has ended, or a control group took the cores away
        os.sched_setaffinity(thread, cores)
