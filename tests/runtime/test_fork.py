"""Contract T2: after fork() a child computes, with the serial twins."""

from __future__ import annotations

import os
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork() is not of this system")

FORK = """
import os, sys
import fastsparse as fs
from fastsparse.runtime.threading_layer import available_workers
fs.set_num_threads(2)
print("parent", available_workers(2) if sys.argv[1] == "used" else "", flush=True)
def report(name):
    print(name, available_workers(fs.get_num_threads()), fs.get_num_threads(), flush=True)
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
def test_forked_children_are_serial(run_python, layer_environment, layer, before):
    done = run_python(FORK, before, NUMBA_NUM_THREADS="2", **layer_environment(layer))
    lines = done.stdout.splitlines()
    expected = "1" if layer == "workqueue" else "2"
    assert lines[0].split() == (["parent", expected] if before == "used" else ["parent"])
    assert lines[1:] == ["child 1 2", "grandchild 1 2", f"parent {expected} 2"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_openmp_that_a_parent_started_is_noticed(run_python, layer_environment):
    """The parent uses Numba, and only the child imports fastsparse: entering a region would kill it."""
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
    from fastsparse.runtime.threading_layer import available_workers
    print(available_workers(2), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
from fastsparse.runtime.threading_layer import available_workers
print(available_workers(2))
"""
    done = run_python(code, NUMBA_NUM_THREADS="2", FASTSPARSE_NUM_THREADS="2", **layer_environment("omp"))
    assert done.stdout == "1\n2\n"


def test_blocks_hold_in_a_child_of_their_own_thread(run_python):
    """Those of threads that the child does not have held for nobody else in the parent."""
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
    assert run_python(code).stdout == "3\n4\n4\n"


def test_fork_waits_for_compilers_and_stores(run_python):
    """A child must not inherit a lock from a thread that it does not have."""
    code = """
import os, threading, time
import fastsparse as fs
from fastsparse.runtime import memo
from fastsparse_kernels import compiler
from numba.core.compiler_lock import global_compiler_lock
held = threading.Event()
def hold():
    with compiler._lock, global_compiler_lock, memo._lock:
        held.set()
        time.sleep(0.3)
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if not child:
    def take():
        with compiler._lock, global_compiler_lock, memo._lock:
            print("free", flush=True)
    worker = threading.Thread(target=take, daemon=True)
    worker.start()
    worker.join(20)
    os._exit(worker.is_alive())
assert os.waitpid(child, 0)[1] == 0
"""
    assert run_python(code).stdout == "free\n"


# ---------------------------------------------------------------------------------------------- results in children

# Work large enough for parallel regions; `check` tells whether it comes out bit for bit as in the parent.
COMPUTE = """
import multiprocessing, os, signal, sys, threading
signal.alarm(600)  # a hang is a failure, not a wait
import numpy as np
import fastsparse as fs

def work():
    rng = np.random.default_rng(5)
    A = rng.standard_normal((300, 400)) * (rng.random((300, 400)) < 0.2)
    W = fs.csr(A, "float32")
    X = rng.standard_normal((400, 333)).astype("float32")
    G = rng.standard_normal((333, 300)).astype("float32")
    dx, dw, db = fs.linear_backward(G, X.T, W)
    return b"".join(array.tobytes() for array in (fs.spmm(W, X), dx, dw, db))

def check(expected):
    return work() == expected

def in_child(function):
    child = os.fork()
    if not child:
        signal.alarm(300)
        code = 9
        try:
            code = 0 if function() else 8
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0
"""

PROCESSES = {
    "fork": "print(in_child(lambda: check(expected)))",
    "fork twice": "print(in_child(lambda: check(expected) and in_child(lambda: check(expected))))",
    "fork, then threads": """
def many():
    found = []
    workers = [threading.Thread(target=lambda: found.append(check(expected))) for _ in range(4)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    return found == [True] * 4
print(in_child(many))
""",
    "fork in a thread": """
found = []
worker = threading.Thread(target=lambda: found.append(in_child(lambda: check(expected))))
worker.start()
worker.join()
print(*found)
""",
    "fork while others compute": """
stop = threading.Event()
def busy():
    while not stop.is_set():
        work()
workers = [threading.Thread(target=busy) for _ in range(3)]
for worker in workers: worker.start()
found = [in_child(lambda: check(expected)) for _ in range(5)]
stop.set()
for worker in workers: worker.join()
print(all(found))
""",
    "fork while SIGTERM is handled": """
signal.signal(signal.SIGTERM, lambda *_: None)
print(in_child(lambda: check(expected) and in_child(lambda: check(expected))))
""",
    "first work in the child": "print(in_child(lambda: len(work()) > 0))",
}


@pytest.mark.parametrize("layer", ["tbb", "omp", "workqueue"])
@pytest.mark.parametrize("name", PROCESSES)
def test_children_compute_what_the_parent_does(run_python, layer_environment, name, layer):
    before = "expected = None\n" if name == "first work in the child" else "expected = work()\n"
    after = "\nprint(expected is None or check(expected))\n"
    environment = {"NUMBA_NUM_THREADS": "2", "FASTSPARSE_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    done = run_python(COMPUTE + before + PROCESSES[name] + after, **environment, **layer_environment(layer))
    told = [line for line in done.stdout.splitlines() if line in ("True", "False")]  # Numba's layers may print, too
    assert told == ["True", "True"]


POOL = """
if __name__ == "__main__":
    expected = work()
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(2) as pool:
        print(pool.map(check, [expected] * 4))
    print(check(expected))
"""


@pytest.mark.parametrize("layer", ["tbb", "omp", "workqueue"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_of_processes(run_python, layer_environment, tmp_path, method, layer):
    script = tmp_path / "pool.py"
    script.write_text(COMPUTE + POOL)
    run = f"import runpy, sys; sys.argv[0] = {str(script)!r}; runpy.run_path({str(script)!r}, run_name='__main__')"
    environment = {"NUMBA_NUM_THREADS": "2", "FASTSPARSE_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    done = run_python(run, method, **environment, **layer_environment(layer))
    assert done.stdout.splitlines() == ["[True, True, True, True]", "True"]
