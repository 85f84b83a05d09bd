"""What the benchmarks add to pytest and pytest-benchmark: options, workloads as parameters, the machine in the JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from bench import groups, machine

PROBLEMS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup("fastsparse bench").addoption
    add("--threads", type=int, default=1, help="threads for every baseline (default 1)")
    add("--dlmc", type=_directory, metavar="DIR", help="also the .smtx patterns found below DIR")
    add("--quick", action="store_true", help="fewer rounds, and only some of the pruned layers")
    add("--deepsparse", metavar="PYTHON", help="interpreter of an environment with DeepSparse, for end_to_end")
    add("--what", default="", metavar="NAMES", help="sections or groups of workloads, with commas in between")


def _directory(text: str) -> Path:
    if Path(text).is_dir():
        return Path(text).resolve()
    raise argparse.ArgumentTypeError(f"got {text!r}, expected a directory")


def _options(config: pytest.Config) -> groups.Options:
    return groups.Options(*(config.getoption(name) for name in ("threads", "dlmc", "quick", "deepsparse")))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[PROBLEMS] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "workload" in metafunc.fixturenames:
        try:
            chosen = groups.chosen(metafunc.config.getoption("what"))
            pairs = [(group, case) for group in chosen for case in group.cases(_options(metafunc.config))]
        except (OSError, ValueError) as error:
            raise pytest.UsageError(str(error)) from None
        metafunc.parametrize("workload", pairs, ids=[group.label(case) for group, case in pairs])


@pytest.fixture
def options(pytestconfig: pytest.Config) -> groups.Options:
    """What the command line asks for."""
    return _options(pytestconfig)


@pytest.fixture
def problems(pytestconfig: pytest.Config) -> list[str]:
    """What went wrong so far."""
    return pytestconfig.stash[PROBLEMS]


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """What the report says beyond the measurements."""
    output_json["fastsparse"] = {
        **machine.describe(),
        "peaks": machine.peaks(quick=config.getoption("quick")),
        "threads": config.getoption("threads"),
        "missing": groups.missing_baselines(),
        "problems": config.stash[PROBLEMS],
    }
