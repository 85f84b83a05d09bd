"""Sparse convolution, against im2col with scipy and numpy, and dense convolutions."""

from __future__ import annotations

import pytest

from bench.checks import expected_conv
from bench.measure import race
from bench.providers.conv import PROVIDERS
from bench.workloads import CONV


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
@pytest.mark.parametrize("case", CONV, ids=lambda case: case.name)
def test_conv(benchmark, case, provider, threads):
    benchmark.group = f"conv {case.name}"
    race(benchmark, case, PROVIDERS[0], provider, threads, expected_conv(case))
