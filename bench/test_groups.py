"""Every group of the catalog: each provider against fastsparse; and what is about fastsparse alone."""

from __future__ import annotations

import dataclasses

from bench.measure import race
from bench.providers import OURS


def test_race(benchmark, race_case, threads):
    group, case, provider = race_case
    benchmark.group = group.label(case)
    case = dataclasses.replace(case)  # its matrices go with it: all of them together would fill the memory
    race(benchmark, case, group.providers[0], provider, threads, group.expected(case))


def test_alone(benchmark, alone_case):
    group, case = alone_case
    benchmark.group = group.label(case)
    seconds, facts = group.measure(case)
    target = getattr(case, "target", None)
    benchmark.extra_info.update(workload=case.name, provider=OURS, waits=seconds.get(OURS), facts=facts, target=target)
    benchmark.pedantic(lambda: None, rounds=1)
