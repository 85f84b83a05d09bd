"""Contracts T3 and T5: thread settings, threading layer, what importing does, show_config."""

from __future__ import annotations

import io
import json
import re
import sys
import threading

import numba
import numpy as np
import pytest

import fastsparse as fs
from fastsparse import runtime

linux = pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")


@pytest.fixture(autouse=True)
def fresh_setting(monkeypatch):
    """Every test starts with nothing set and leaves nothing set."""
    monkeypatch.setattr(runtime, "_default_threads", None)


def in_new_thread(function):
    """Call `function` in a thread of its own and return what it returns."""
    found = []
    worker = threading.Thread(target=lambda: found.append(function()))
    worker.start()
    worker.join()
    return found[0]


# ---------------------------------------------------------------------------------------------------------- threads


def test_setting_holds_everywhere():
    fs.set_num_threads(3)
    assert fs.get_num_threads() == 3
    assert in_new_thread(fs.get_num_threads) == 3


def test_setting_made_in_a_thread_outlives_it():
    in_new_thread(lambda: fs.set_num_threads(5))
    assert fs.get_num_threads() == 5


def test_blocks_nest_and_end():
    fs.set_num_threads(4)
    with fs.threads(2):
        assert fs.get_num_threads() == 2
        assert in_new_thread(fs.get_num_threads) == 2
        with fs.threads(7):
            assert fs.get_num_threads() == 7
        assert fs.get_num_threads() == 2
    assert fs.get_num_threads() == 4


def test_blocks_end_when_something_raises():
    fs.set_num_threads(4)
    with pytest.raises(KeyError), fs.threads(2):
        raise KeyError
    assert fs.get_num_threads() == 4


def test_setting_inside_a_block_ends_with_it():
    fs.set_num_threads(4)
    with fs.threads(2):
        fs.set_num_threads(6)
        assert fs.get_num_threads() == 6
    assert fs.get_num_threads() == 4


def test_blocks_of_two_threads_do_not_mix():
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with fs.threads(9):
            inside.set()
            leave.wait()
            return fs.get_num_threads()

    with fs.threads(2):
        found = []
        worker = threading.Thread(target=lambda: found.append(hold()))
        worker.start()
        inside.wait()
        assert fs.get_num_threads() == 2
        leave.set()
        worker.join()
        assert found == [9]
        assert fs.get_num_threads() == 2


@pytest.mark.parametrize("setter", [fs.set_num_threads, lambda n: fs.threads(n).__enter__()])
def test_wrong_numbers(setter):
    fs.set_num_threads(4)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"^n is {wrong}, expected a positive integer$"):
            setter(wrong)
    for wrong in (1.5, "2", None):
        with pytest.raises(TypeError, match=f"^n is {re.escape(repr(wrong))}, expected a positive integer$"):
            setter(wrong)
    assert fs.get_num_threads() == 4


def test_f4_numbers_of_threads_have_an_upper_bound():
    for huge in (1025, 10**6, 10**30):
        with fs.threads(huge):
            assert fs.get_num_threads() == runtime.MOST_THREADS == 1024
    model = fs.nn.Sequential(fs.nn.SparseLinear(40, 8, rng=0))
    for options in ({}, {"threads": 10**6}):
        with fs.threads(10**6):
            engine = fs.compile(model, (2, 40), tune=False, **options)
            engine(np.zeros((2, 40), np.float32))
            assert max(workers for _, workers in engine._plans) <= numba.config.NUMBA_NUM_THREADS


REPORT = "import fastsparse as fs; print(fs.get_num_threads())"


def test_environment_sets_the_first_number(run_python):
    assert run_python(REPORT, FASTSPARSE_NUM_THREADS="3").stdout == "3\n"
    code = "import fastsparse as fs; fs.set_num_threads(2); print(fs.get_num_threads())"
    assert run_python(code, FASTSPARSE_NUM_THREADS="3").stdout == "2\n"


@pytest.mark.parametrize("wrong", ["0", "-2", "two", "1.5"])
def test_wrong_environment_is_told_when_it_is_needed(run_python, wrong):
    assert run_python("import fastsparse", FASTSPARSE_NUM_THREADS=wrong).returncode == 0
    done = run_python(REPORT, FASTSPARSE_NUM_THREADS=wrong, check=False)
    assert done.returncode == 1
    assert f"ValueError: FASTSPARSE_NUM_THREADS is {wrong!r}, expected a positive integer\n" in done.stderr


@linux
def test_affinity_is_the_default(run_python):
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});" + REPORT
    assert run_python(code, FASTSPARSE_NUM_THREADS=None).stdout == "1\n"


def test_nobody_elses_setting_is_touched(run_python):
    code = """
import json, numba, fastsparse as fs
from fastsparse import runtime
before = numba.config.NUMBA_NUM_THREADS, numba.get_num_threads()
fs.set_num_threads(1)
with fs.threads(3):
    WORKERS()
    during = numba.config.NUMBA_NUM_THREADS, numba.get_num_threads()
print(json.dumps([before, during, [numba.config.NUMBA_NUM_THREADS, numba.get_num_threads()]]))
"""
    before, during, after = json.loads(run_python(code, NUMBA_NUM_THREADS="4").stdout)
    assert before == during == after == [4, 4]


def test_worker_slots_never_exceed_numbas_threads(run_python):
    code = "import fastsparse as fs; from fastsparse import runtime; fs.set_num_threads(64); print(WORKERS())"
    assert run_python(code, NUMBA_NUM_THREADS="3").stdout == "3\n"


def test_one_thread_starts_no_threading_layer(run_python):
    code = """
import fastsparse as fs
from fastsparse import runtime
from numba.np.ufunc import parallel
with fs.threads(1):
    print(WORKERS(), parallel._is_initialized)
"""
    assert run_python(code).stdout == "1 False\n"


# -------------------------------------------------------------------------------------------------- threading layer

LAYER = """
from fastsparse import runtime
print(runtime.prepare_threading(), runtime.parallel_allowed())
"""


@pytest.mark.parametrize(("layer", "allowed"), [("tbb", True), ("omp", True), ("workqueue", False)])
def test_layers(run_python, layer_environment, layer, allowed):
    done = run_python(LAYER, **layer_environment(layer))
    assert done.stdout == f"{layer} {allowed}\n"
    assert done.stderr == ""


def test_a_layer_that_cannot_start_means_one_thread(run_python):
    code = "from fastsparse import runtime; runtime.load_tbb = lambda: False\n" + LAYER + "print(WORKERS())"
    code = "import sys; sys.modules['numba.np.ufunc.tbbpool'] = None\n" + code
    done = run_python(code, NUMBA_THREADING_LAYER="tbb", FASTSPARSE_NUM_THREADS="2")
    assert done.stdout == "none False\n1\n"
    assert done.stderr.count("RuntimeWarning: calls use one thread: No threading layer could be loaded.") == 1


# ------------------------------------------------------------------------------------------------------------ import

IMPORT = """
import json, logging, sys, threading, warnings
import numba, scipy.sparse
from numba.core import event
compiled = []
class Listener(event.Listener):
    def on_start(self, event): compiled.append(str(event.data))
    def on_end(self, event): pass
event.register("numba:compile", Listener())
filters, handlers = list(warnings.filters), list(logging.root.handlers)
settings = {name: getattr(numba.config, name) for name in dir(numba.config) if name.isupper()}
import fastsparse
from numba.np.ufunc import parallel
print(json.dumps({
    "compiled": compiled,
    "threads": threading.active_count(),
    "started": parallel._is_initialized,
    "filters": filters == list(warnings.filters),
    "handlers": handlers == list(logging.root.handlers),
    "settings": all(getattr(numba.config, name) == value for name, value in settings.items()),
    "modules": sorted(name for name in sys.modules if name.startswith("fastsparse")),
}))
"""


def test_import_changes_nothing(run_python):
    found = json.loads(run_python(IMPORT).stdout)
    modules = found.pop("modules")
    assert found == {
        "compiled": [],
        "threads": 1,
        "started": False,
        "filters": True,
        "handlers": True,
        "settings": True,
    }
    assert not [
        name for name in modules if name.startswith(("fastsparse_kernels", "fastsparse.nn", "fastsparse.engine"))
    ]


def test_every_public_name_is_there():
    for name in fs.__all__:
        assert getattr(fs, name) is not None
    assert set(fs.__all__) == set(dir(fs))


def test_unknown_names_of_the_package():
    with pytest.raises(AttributeError, match=r"^module 'fastsparse' has no attribute 'nonsense'$"):
        fs.nonsense  # noqa: B018


# ------------------------------------------------------------------------------------------------------------ warmup

WARMUP = """
import numpy as np
import fastsparse as fs
from numba.core import event
from numba.core.ccallback import CFunc
compiled = []
class Listener(event.Listener):
    def on_start(self, event): compiled.append(event.data["dispatcher"])
    def on_end(self, event): pass
compile_callback = CFunc._compile_uncached
def count(self):
    compiled.append(self)
    return compile_callback(self)
event.register("numba:compile", Listener())
CFunc._compile_uncached = count
print(fs.warmup())
print(len(compiled))
with fs.threads(2):
    fs.spmm(fs.csr(np.eye(256, dtype=np.float32)), np.ones((256, 1024), np.float32))
print(len(compiled))
"""


def test_warmup_leaves_nothing_to_compile(run_python):
    first = run_python(WARMUP, NUMBA_NUM_THREADS="2").stdout.splitlines()
    assert first[1] == first[2]
    second = run_python(WARMUP, NUMBA_NUM_THREADS="2")
    assert second.stdout.splitlines() == ["None", "0", "0"]
    assert "kernels: 100%" in second.stderr


# ------------------------------------------------------------------------------------------------------- show_config


def test_show_config_prints_what_it_returns():
    text = io.StringIO()
    found = fs.show_config(file=text)
    lines = dict(re.split(r"\s+", line, maxsplit=1) for line in text.getvalue().splitlines())
    assert lines == {name: str(value) for name, value in found.items()}
    assert found["numba"] == numba.__version__
    assert found["fastsparse"] == fs.__version__
    assert found["vector_bits"] in (128, 256, 512)
    assert found["threads"] == fs.get_num_threads()
    assert found["threading_layer"] in ("tbb", "omp", "workqueue", "none")
    assert found["cpu"].strip()
