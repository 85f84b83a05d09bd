"""What the benchmarks add to pytest and pytest-benchmark: options, workloads as parameters, the machine in the JSON."""

from __future__ import annotations

from typing import Any

import pytest

from bench import groups, machine

PROBLEMS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup("fastsparse bench").addoption
    groups.add_options(add)
    add("--what", default="", metavar="NAMES", help="sections or groups of workloads, with commas in between")


def _options(config: pytest.Config) -> groups.Options:
    return groups.Options(*(config.getoption(name) for name in groups.Options.__dataclass_fields__))


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
