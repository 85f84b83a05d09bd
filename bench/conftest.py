"""Options of the benchmarks: which thread counts, where the DLMC files are; what the report says of the machine."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench import dlmc, workloads
from bench.providers import conv, spmm, steps

_PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "tbb", "mkl", "torch", "onnxruntime")
_ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastsparse bench")
    group.addoption("--bench-threads", type=int, default=1, help="threads for every provider (default 1)")
    group.addoption("--dlmc", type=Path, metavar="DIR", help="also multiply by the .smtx patterns found below DIR")
    group.addoption("--with-demo", action="store_true", help="also time the whole demo")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "dlmc_case" in metafunc.fixturenames:
        cases = _dlmc_cases(metafunc.config.getoption("--dlmc"))
        metafunc.parametrize("dlmc_case", cases, ids=[case.name for case in cases])


def _dlmc_cases(directory: Path | None) -> list[workloads.Spmm]:
    if directory is None:
        return []
    files = sorted(directory.rglob("*.smtx"))
    if not files:
        raise pytest.UsageError(f"--dlmc {directory}: no .smtx file found below it")
    cases = []
    for file in files:
        indptr, _, (rows, columns) = dlmc.read_smtx(file)
        sparsity = 1 - int(indptr[-1]) / (rows * columns)
        cases += [workloads.Spmm(rows, columns, n, sparsity, file) for n in dlmc.columns_of(file)]
    return cases


@pytest.fixture
def threads(pytestconfig: pytest.Config) -> int:
    """Threads of every provider."""
    return int(pytestconfig.getoption("--bench-threads"))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What the table's header says: versions, commit, who is missing."""
    import fastsparse

    machine_info["fastsparse"] = fastsparse.__version__
    machine_info["commit"] = _commit()
    machine_info["packages"] = {name: _version(name) for name in _PACKAGES}
    machine_info["missing_providers"] = _missing()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    missing = _missing()
    if missing:
        terminalreporter.write_line(f"Not installed, so not measured: {', '.join(missing)}")


def _missing() -> list[str]:
    everybody = [*spmm.PROVIDERS, *conv.PROVIDERS, *steps.LINEAR_PROVIDERS, *steps.CONV_PROVIDERS]
    return sorted(
        {f"{provider.name} (needs {', '.join(provider.missing)})" for provider in everybody if provider.missing}
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", _ROOT, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
