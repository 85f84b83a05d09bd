"""Forward and backward of one layer, as training does them."""

from __future__ import annotations

import pytest

from bench.checks import expected_conv_step, expected_linear_step
from bench.measure import race
from bench.providers.steps import CONV_PROVIDERS, LINEAR_PROVIDERS
from bench.workloads import CONV_STEPS, LINEAR_STEPS


@pytest.mark.parametrize("provider", LINEAR_PROVIDERS, ids=lambda provider: provider.name)
@pytest.mark.parametrize("case", LINEAR_STEPS, ids=lambda case: case.name)
def test_linear_step(benchmark, case, provider, threads):
    benchmark.group = f"linear forward+backward {case.name}"
    race(benchmark, case, LINEAR_PROVIDERS[0], provider, threads, expected_linear_step(case))


@pytest.mark.parametrize("provider", CONV_PROVIDERS, ids=lambda provider: provider.name)
@pytest.mark.parametrize("case", CONV_STEPS, ids=lambda case: case.name)
def test_conv_step(benchmark, case, provider, threads):
    benchmark.group = f"conv forward+backward {case.name}"
    race(benchmark, case, CONV_PROVIDERS[0], provider, threads, expected_conv_step(case))
