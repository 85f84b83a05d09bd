"""Contracts T1 and T3: which threading layer runs, and how many of its threads a call may use."""

from __future__ import annotations

import pytest

LAYER = """
from fastsparse.runtime import threading_layer
print(threading_layer.prepare_threading(), threading_layer.parallel_allowed())
"""


@pytest.mark.T1
@pytest.mark.parametrize(("layer", "allowed"), [("tbb", True), ("omp", True), ("workqueue", False)])
def test_layers(run_python, layer_environment, layer, allowed):
    done = run_python(LAYER, **layer_environment(layer))
    assert done.stdout == f"{layer} {allowed}\n"
    assert done.stderr == ""


@pytest.mark.T1
def test_a_layer_that_cannot_start_means_one_thread(run_python):
    code = (
        "import sys; sys.modules['numba.np.ufunc.tbbpool'] = None\n"
        "from fastsparse.runtime import threading_layer; threading_layer.load_tbb = lambda: False\n"
        + LAYER
        + "print(threading_layer.available_workers(2))"
    )
    done = run_python(code, NUMBA_THREADING_LAYER="tbb", FASTSPARSE_NUM_THREADS="2")
    assert done.stdout == "none False\n1\n"
    assert done.stderr.count("RuntimeWarning: calls use one thread: No threading layer could be loaded.") == 1


@pytest.mark.T1
@pytest.mark.parametrize("asked", ["default", "workqueue"])
def test_a_system_without_tbb_and_openmp_means_one_thread_and_is_told(run_python, asked):
    """Images of containers often have no libgomp, and TBB has no wheels for AArch64."""
    code = "import sys; sys.modules['numba.np.ufunc.tbbpool'] = sys.modules['numba.np.ufunc.omppool'] = None\n" + LAYER
    done = run_python(code, NUMBA_THREADING_LAYER=asked, NUMBA_NUM_THREADS="2")
    assert done.stdout == "workqueue False\n"
    assert done.stderr.count("RuntimeWarning: calls use one thread: Numba found neither TBB") == (asked == "default")


@pytest.mark.T3
def test_workers_never_exceed_numbas_threads(run_python):
    code = "from fastsparse.runtime.threading_layer import available_workers; print(available_workers(64))"
    assert run_python(code, NUMBA_NUM_THREADS="3").stdout == "3\n"


@pytest.mark.T3
def test_one_thread_starts_no_threading_layer(run_python):
    code = """
import fastsparse as fs
from fastsparse.runtime.threading_layer import available_workers
from numba.np.ufunc import parallel
with fs.threads(1):
    print(available_workers(fs.get_num_threads()), parallel._is_initialized)
"""
    assert run_python(code).stdout == "1 False\n"
