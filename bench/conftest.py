"""Options of the benchmarks: which thread counts, where the DLMC files are; what the report says of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import catalog, machine, startup


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastsparse bench")
    group.addoption("--bench-threads", type=int, default=1, help="threads for every provider (default 1)")
    group.addoption("--dlmc", type=Path, metavar="DIR", help="also multiply by the .smtx patterns found below DIR")
    group.addoption("--with-demo", action="store_true", help="also time the whole demo")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not {"race_case", "alone_case"} & set(metafunc.fixturenames):
        return
    chosen = catalog.Chosen(metafunc.config.getoption("--dlmc"))
    try:
        pairs = [(g, case) for groups in catalog.GROUPS.values() for g in groups for case in g.cases(chosen)]
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"--dlmc {chosen.dlmc}: {error}") from None
    if "race_case" in metafunc.fixturenames:
        races = [(g, case, p) for g, case in pairs if g.name != "threads" for p in g.providers]
        metafunc.parametrize("race_case", races, ids=[f"{g.label(case)}-{p.name}" for g, case, p in races])
    else:
        alone = [(g, case) for g, case in pairs if g.measure is not None]
        if metafunc.config.getoption("--with-demo"):
            alone += [(catalog.GROUPS["startup"][0], wait) for wait in startup.DEMOS]
        metafunc.parametrize("alone_case", alone, ids=[g.label(case) for g, case in alone])


@pytest.fixture
def threads(pytestconfig: pytest.Config) -> int:
    """Threads of every provider."""
    return int(pytestconfig.getoption("--bench-threads"))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What the table's header says: versions, commit, who is missing."""
    found = machine.describe()
    machine_info.update({name: found[name] for name in ("fastsparse", "commit", "packages")})
    machine_info["missing_providers"] = catalog.missing_providers()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    missing = catalog.missing_providers()
    if missing:
        terminalreporter.write_line(f"Not installed, so not measured: {', '.join(missing)}")
