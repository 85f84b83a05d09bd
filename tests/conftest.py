"""What every test gets: poisoned uninitialised memory, fixed random numbers, a way to run another process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from fastsparse.runtime import buffers, threading_layer
from fastsparse_kernels import parallel

ROOT = Path(__file__).parents[1]

# A first example may wait for a kernel to be compiled, so examples have no deadline.
settings.register_profile("fastsparse", deadline=None, derandomize="CI" in os.environ, max_examples=50)
settings.load_profile("fastsparse")

_empty, _empty_like = np.empty, np.empty_like


def _poison(array: np.ndarray) -> np.ndarray:
    """Fill with NaN what is floating-point, and raw bytes with those of a NaN, so that unwritten elements are seen."""
    if array.dtype.kind in "fc":
        array.fill(np.nan)
    elif array.dtype == np.uint8:
        array.fill(255)
    return array


def _poisoned_empty(*args: Any, **kwargs: Any) -> np.ndarray:
    return _poison(_empty(*args, **kwargs))


def _poisoned_empty_like(*args: Any, **kwargs: Any) -> np.ndarray:
    return _poison(_empty_like(*args, **kwargs))


def _import_path(root: Path) -> str:
    return os.pathsep.join((str(root), str(root / "kernels")))


COMPILE_AHEAD = """
from fastsparse.runtime import launch  # says where the cache is
from fastsparse_kernels import compiler, registry

for family in reversed(registry.FAMILIES):
    for bits in (64, 32):
        for key in reversed(family.arguments(bits, compiler.lanes(bits))):
            family.get(*key).address
"""


@pytest.fixture(scope="session", autouse=True)
def compiled_ahead() -> Iterator[None]:
    """Kernels that are not in the cache are compiled by a second process from the other end: half of a cold run's wait.

    The tests use them through the cache, and compile what they need earlier themselves.
    """
    command, environment = [sys.executable, "-c", COMPILE_AHEAD], {**os.environ, "PYTHONPATH": _import_path(ROOT)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as process:
        yield
        process.terminate()


def pytest_configure() -> None:
    """Let Numba register its implementation of np.empty before a test replaces the name."""
    from numba.core.registry import cpu_target

    cpu_target.target_context.refresh()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Fail where a test file cannot be imported: looking for doctests, pytest skips it, and then finds it empty."""
    report = yield
    if report.skipped and "unable to import module" in str(report.longrepr):
        report.outcome = "failed"
    return report


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make np.empty, np.empty_like and the buffers of calls hand out NaN."""
    take, array = buffers.take, buffers.array

    def poisoned_take(purpose: str, size: int) -> np.ndarray:
        buffer = take(purpose, size)
        buffer[:size].fill(255)
        return buffer

    monkeypatch.setattr(np, "empty", _poisoned_empty)
    monkeypatch.setattr(np, "empty_like", _poisoned_empty_like)

    def poisoned_array(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        fresh = array(shape, dtype)
        fresh.reshape(-1).view(np.uint8).fill(255)
        return fresh

    monkeypatch.setattr(buffers, "take", poisoned_take)
    monkeypatch.setattr(buffers, "array", poisoned_array)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(20240607)


@pytest.fixture
def parallel_regions(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the parallel regions that were entered since the test began."""
    entered, enter = [], parallel.run_parallel

    def counted() -> Callable[..., None]:
        entered.append(1)
        return enter()

    counted.expect = enter.expect  # plans have it compiled ahead
    monkeypatch.setattr(parallel, "run_parallel", counted)
    return lambda: len(entered)


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a piece of Python in a new process that sees this checkout; fail the test when it fails.

    ``run_python(code, *arguments, check=True, root=ROOT, **environment)``: an environment value of None removes it.
    """

    def run(
        code: str, *arguments: str, check: bool = True, root: Path = ROOT, **environment: str | None
    ) -> subprocess.CompletedProcess[str]:
        # Without the line that says that kernels are compiled, which depends on the cache and on the machine's speed.
        merged = {**os.environ, "PYTHONPATH": _import_path(root), "FASTSPARSE_VERBOSE": "0", **environment}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={name: value for name, value in merged.items() if value is not None},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            pytest.fail(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
        return done

    return run


@pytest.fixture
def layer_environment() -> Callable[[str], dict[str, str | None]]:
    """Environment in which Numba takes the given threading layer; skips the test where the system lacks it."""

    def environment(layer: str) -> dict[str, str | None]:
        if layer != "workqueue" and find_spec(f"numba.np.ufunc.{layer}pool") is None:
            pytest.skip(f"Numba has no layer {layer} here")
        if layer != "tbb":
            return {"NUMBA_THREADING_LAYER": layer}
        if not any(path.name in ("libtbb.so.12", "tbb12.dll") for path in threading_layer._installed_files("tbb")):
            pytest.skip("TBB has no wheel for this platform")
        return {"NUMBA_THREADING_LAYER": None}  # the first choice: fastsparse puts it within reach

    return environment
