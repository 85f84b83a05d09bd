"""Contract T3: how many threads a call uses."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import nn
from fastsparse.ops.target import target_for, tuned
from fastsparse.runtime import threads as settings

pytestmark = pytest.mark.T3

linux = pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")


@pytest.fixture(autouse=True)
def fresh_setting(monkeypatch):
    """Every test starts with nothing set and leaves nothing set."""
    monkeypatch.setattr(settings, "_process_default", None)


def in_new_thread(function):
    """Call `function` in a thread of its own and return what it returns."""
    found = []
    worker = threading.Thread(target=lambda: found.append(function()))
    worker.start()
    worker.join()
    return found[0]


# --------------------------------------------------------------------------------------------------------- settings


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
        with fs.threads(7):
            assert fs.get_num_threads() == 7
        assert fs.get_num_threads() == 2
    assert fs.get_num_threads() == 4


def test_blocks_end_when_something_raises():
    fs.set_num_threads(4)
    with pytest.raises(KeyError), fs.threads(2):
        raise KeyError
    assert fs.get_num_threads() == 4


def test_a_block_holds_in_its_own_thread_alone():
    fs.set_num_threads(4)
    with fs.threads(2):
        assert in_new_thread(fs.get_num_threads) == 4
        in_new_thread(lambda: fs.set_num_threads(5))
        assert fs.get_num_threads() == 2
        assert in_new_thread(fs.get_num_threads) == 5
    assert fs.get_num_threads() == 5


def test_setting_inside_a_block_ends_with_it_and_stays_in_its_thread():
    fs.set_num_threads(4)
    with fs.threads(2):
        fs.set_num_threads(6)
        assert fs.get_num_threads() == 6
        assert in_new_thread(fs.get_num_threads) == 4
        with fs.threads(3):
            fs.set_num_threads(8)
            assert fs.get_num_threads() == 8
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


def test_blocks_of_two_tasks_do_not_mix():
    """Tasks of asyncio take turns in one thread, in the middle of their blocks."""
    fs.set_num_threads(4)

    async def turns(n):
        seen = [fs.get_num_threads()]
        with fs.threads(n):
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(fs.get_num_threads())
        return [*seen, fs.get_num_threads()]

    async def both():
        return await asyncio.gather(turns(2), turns(7))

    assert asyncio.run(both()) == [[4, 2, 2, 2, 4], [4, 7, 7, 7, 4]]


@pytest.mark.parametrize("setter", [fs.set_num_threads, lambda n: fs.threads(n).__enter__()])
def test_wrong_numbers(setter):
    fs.set_num_threads(4)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"^n is {wrong}, expected a positive integer$"):
            setter(wrong)
    for wrong in (1.5, "2", None, True):
        with pytest.raises(TypeError, match=f"^n is {re.escape(repr(wrong))}, expected a positive integer$"):
            setter(wrong)
    assert fs.get_num_threads() == 4
    with pytest.raises(TypeError, match=r"^n is array\(.{,40}, expected a positive integer$"):
        fs.set_num_threads(np.ones((50, 50)))  # one short line


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


# ------------------------------------------------------------------------------------- numbers are passed, not set


def test_an_engine_of_one_thread_changes_nothing_for_others(parallel_regions):
    """It says nothing about other threads' calls, neither while it is made nor while it runs."""
    fs.set_num_threads(2)
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.SparseLinear(300, 200, sparsity=0.5, rng=rng))
    x = rng.standard_normal((64, 300)).astype(np.float32)
    W, ran, stop, seen = model[0].weight, threading.Event(), threading.Event(), []

    def run_engine():
        engine = fs.compile(model, x.shape, threads=1)
        while not stop.is_set():
            engine(x)
            seen.append(fs.get_num_threads())
            ran.set()

    with tuned(parallel_flops=0):
        expected = fs.linear(x, W)
        worker = threading.Thread(target=run_engine)
        worker.start()
        try:
            assert fs.get_num_threads() == 2, "while the engine is made"
            assert ran.wait(600)
            for _ in range(30):
                before = parallel_regions()
                assert fs.get_num_threads() == target_for(x.dtype).threads == 2
                np.testing.assert_array_equal(fs.linear(x, W), expected)
                assert parallel_regions() > before, "the call was serial"
        finally:
            stop.set()
            worker.join()
    assert set(seen) == {2}


def test_an_engine_keeps_its_number_whatever_block_calls_it(parallel_regions):
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.SparseLinear(300, 200, sparsity=0.5, rng=rng))
    x = rng.standard_normal((64, 300)).astype(np.float32)
    with tuned(parallel_flops=0):
        engine = fs.compile(model, x.shape, threads=1)
        before = parallel_regions()
        with fs.threads(2):
            engine(x)
            engine(x[:40])
        assert parallel_regions() == before


def test_nobody_elses_setting_is_touched(run_python):
    code = """
import json, numba, fastsparse as fs
from fastsparse.runtime.threading_layer import available_workers
before = numba.config.NUMBA_NUM_THREADS, numba.get_num_threads()
fs.set_num_threads(1)
with fs.threads(3):
    available_workers(fs.get_num_threads())
    during = numba.config.NUMBA_NUM_THREADS, numba.get_num_threads()
print(json.dumps([before, during, [numba.config.NUMBA_NUM_THREADS, numba.get_num_threads()]]))
"""
    before, during, after = json.loads(run_python(code, NUMBA_NUM_THREADS="4").stdout)
    assert before == during == after == [4, 4]
