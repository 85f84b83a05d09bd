"""Sparse times dense, against scipy, MKL, torch and dense products."""

from __future__ import annotations

import dataclasses

import pytest

from bench.checks import expected_spmm
from bench.measure import race
from bench.providers.spmm import PROVIDERS
from bench.workloads import SPMM

_NAMES = [provider.name for provider in PROVIDERS]


@pytest.mark.parametrize("provider", PROVIDERS, ids=_NAMES)
@pytest.mark.parametrize("case", SPMM, ids=lambda case: case.name)
def test_spmm(benchmark, case, provider, threads):
    benchmark.group = f"spmm {case.name}"
    race(benchmark, case, PROVIDERS[0], provider, threads, expected_spmm(case))


@pytest.mark.parametrize("provider", PROVIDERS, ids=_NAMES)
def test_dlmc(benchmark, dlmc_case, provider, threads):
    benchmark.group = f"dlmc {dlmc_case.name}"
    case = dataclasses.replace(dlmc_case)  # its matrices go with it: all of them together would fill the memory
    race(benchmark, case, PROVIDERS[0], provider, threads, expected_spmm(case))
