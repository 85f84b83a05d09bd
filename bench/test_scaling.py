"""fastsparse on two threads against fastsparse on one, in alternating rounds; activations as user arrays."""

from __future__ import annotations

import os

import pytest

import fastsparse as fs
from bench.measure import alternate
from bench.providers import Call
from bench.providers.conv import PROVIDERS as CONV_PROVIDERS
from bench.providers.spmm import PROVIDERS as SPMM_PROVIDERS
from bench.workloads import SCALING, Spmm


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")
@pytest.mark.parametrize("case", SCALING, ids=lambda case: case.name)
def test_two_threads(benchmark, case):
    benchmark.group = f"two threads against one {case.name}"
    provider = (SPMM_PROVIDERS if isinstance(case, Spmm) else CONV_PROVIDERS)[0]
    call = provider.setup(case, 2)

    def on(threads: int) -> Call:
        def run() -> None:
            with fs.threads(threads):
                call()

        return run

    seconds = alternate(benchmark, on(1), on(2), threads=2)
    benchmark.extra_info.update(
        workload=case.name, provider="two threads", threads=2, flops=case.flops, one_thread_seconds=seconds
    )
