"""Contract T2: after fork() a child computes, with the serial twins."""

from __future__ import annotations

import os
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork() is not of this system")

FORK = """
import os, sys
import fastsparse as fs
from fastsparse import runtime
fs.set_num_threads(2)
print("parent", runtime.worker_slots() if sys.argv[1] == "used" else "", flush=True)
def report(name):
    print(name, runtime.worker_slots(), fs.get_num_threads(), flush=True)
child = os.fork()
if not child:
    report("child")
    grandchild = os.fork()
    if not grandchild:
        report("grandchild")
        os._exit(0)
    os._exit(os.waitpid(grandchild, 0)[1])
assert os.waitpid(child, 0)[1] == 0
report("parent")
"""


@pytest.mark.parametrize("layer", ["tbb", "omp", "workqueue"])
@pytest.mark.parametrize("before", ["used", "unused"])
def test_forked_children_are_serial(run_python, layer, before):
    done = run_python(FORK, before, NUMBA_THREADING_LAYER="default" if layer == "tbb" else layer, NUMBA_NUM_THREADS="2")
    lines = done.stdout.splitlines()
    expected = "1" if layer == "workqueue" else "2"
    assert lines[0].split() == (["parent", expected] if before == "used" else ["parent"])
    assert lines[1:] == ["child 1 2", "grandchild 1 2", f"parent {expected} 2"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_openmp_that_a_parent_started_is_noticed(run_python):
    """The parent uses Numba, and only the child imports fastsparse: entering a region would kill it."""
    pytest.importorskip("numba.np.ufunc.omppool")
    code = """
import os, numba
@numba.njit(parallel=True)
def region():
    total = 0
    for i in numba.prange(100):
        total += i
    return total
assert region() == 4950
child = os.fork()
if not child:
    from fastsparse import runtime
    print(runtime.worker_slots(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
from fastsparse import runtime
print(runtime.worker_slots())
"""
    done = run_python(code, NUMBA_THREADING_LAYER="omp", NUMBA_NUM_THREADS="2", FASTSPARSE_NUM_THREADS="2")
    assert done.stdout == "1\n2\n"


def test_blocks_of_threads_left_behind_do_not_hold_in_a_child(run_python):
    code = """
import os, threading
import fastsparse as fs
fs.set_num_threads(4)
inside, leave = threading.Event(), threading.Event()
def hold():
    with fs.threads(9):
        inside.set()
        leave.wait()
worker = threading.Thread(target=hold)
worker.start()
inside.wait()
with fs.threads(3):
    child = os.fork()
    if not child:
        print(fs.get_num_threads(), flush=True)
if not child:
    print(fs.get_num_threads(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(fs.get_num_threads())
leave.set()
"""
    assert run_python(code).stdout == "3\n4\n9\n"


def test_fork_waits_for_compilers_and_stores(run_python):
    """A child must not inherit a lock from a thread that it does not have."""
    code = """
import os, threading, time
import fastsparse as fs
from fastsparse import _memo
from fastsparse_kernels import build
from numba.core.compiler_lock import global_compiler_lock
held = threading.Event()
def hold():
    with build._lock, global_compiler_lock, _memo._lock:
        held.set()
        time.sleep(0.3)
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if not child:
    def take():
        with build._lock, global_compiler_lock, _memo._lock:
            print("free", flush=True)
    worker = threading.Thread(target=take, daemon=True)
    worker.start()
    worker.join(20)
    os._exit(worker.is_alive())
assert os.waitpid(child, 0)[1] == 0
"""
    assert run_python(code).stdout == "free\n"
