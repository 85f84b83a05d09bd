"""Waiting times of new processes."""

from __future__ import annotations

import pytest

from bench.startup import DEMOS, WAITS, measure


@pytest.mark.parametrize("wait", [*WAITS, *DEMOS], ids=lambda wait: wait.name)
def test_startup(benchmark, wait, pytestconfig):
    if wait in DEMOS and not pytestconfig.getoption("--with-demo"):
        pytest.skip("minutes long: ask for it by --with-demo")
    benchmark.group = "startup"
    seconds = measure(wait)
    benchmark.extra_info.update(workload=wait.name, provider="startup", seconds=seconds, target=wait.target)
    benchmark.pedantic(lambda: None, rounds=1)
