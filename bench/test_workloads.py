"""The one benchmark: a workload with all its baselines."""

from __future__ import annotations

import dataclasses

import pytest

from bench.harness import measure


def test_workload(benchmark, workload, options, problems):
    group, case = workload
    # A copy: its matrices go with it, those of all workloads together would fill the memory.
    found = measure(benchmark, group, dataclasses.replace(case), options)
    problems += found
    if found:
        pytest.fail("\n".join(found), pytrace=False)
