"""Contract T2: after fork() a child computes, with the serial twins."""

from __future__ import annotations

import os
import sys

import pytest

pytestmark = [pytest.mark.T2, pytest.mark.skipif(not hasattr(os, "fork"), reason="fork() is not of this system")]

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


LOCKS = """
import importlib, os, pkgutil, signal, sys, threading, time
import fastsparse as fs
from fastsparse.engine.workspace import Pool
from fastsparse_kernels import compiler
from numba.core.compiler_lock import global_compiler_lock

for module in pkgutil.walk_packages(fs.__path__, "fastsparse."):
    if module.name not in ("fastsparse.sklearn", "fastsparse.torch"):  # other libraries, which may not be there
        importlib.import_module(module.name)
pool = Pool(None, 1)

def is_lock(value):
    return not isinstance(value, type) and hasattr(value, "acquire") and hasattr(value, "release")

def locks():
    \"\"\"Locks of modules, and those that objects of modules have.\"\"\"
    found = {"Numba's": global_compiler_lock, "of a pool": pool._changed}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("fastsparse", "fastsparse_kernels"):
            for key, value in vars(module).items():
                if is_lock(value):
                    found[f"{name}.{key}"] = value
                elif type(value).__module__ == name:
                    held = getattr(value, "__dict__", {})
                    found |= {f"{name}.{key}.{k}": v for k, v in held.items() if is_lock(v)}
    return found

for name, lock in locks().items():
    held = threading.Event()
    def hold():
        with lock:
            held.set()
            time.sleep(0.1)  # a fork that waits for it waits so long
    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if not child:
        signal.alarm(20)  # here, and not in a new thread, which may get the number of the one that held the lock
        with locks()[name]:
            print("free", name, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, f"{name} is held in a child"
    holder.join()
print(*locks(), sep="\\n")
"""


def test_no_lock_is_inherited_held(run_python):
    """A child must not inherit a lock from a thread that it does not have: fork() waits for all, or they are new."""
    told = run_python(LOCKS).stdout.splitlines()
    names = [line for line in told if not line.startswith("free ")]
    assert {
        "fastsparse.runtime.memo._lock",
        "fastsparse.engine.workspace._lock",
        "fastsparse_kernels.compiler._lock",
    } <= {*names}
    assert told[: len(names)] == [f"free {name}" for name in names]


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

# Work that fills all caches: plans of new shapes, transposes of new patterns, engines and their plans, launches.
CACHES = """
model = fs.nn.Sequential(fs.nn.SparseLinear(60, 40, sparsity=0.5, rng=0), fs.nn.ReLU())
shared = fs.csr(np.tri(50, 60, dtype=np.float32))
engines = [fs.compile(model, (1, 60), threads=1, tune=False)]

def fill(seed, rounds):
    rng = np.random.default_rng(seed)
    for i in range(rounds):
        n = int(rng.integers(2, 60))
        X = rng.integers(-3, 4, (60, n)).astype(np.float32)
        expected = np.tri(50, 60) @ X
        if not np.array_equal(fs.spmm(shared, X), expected) or not np.array_equal(fs.linear(X.T, shared), expected.T):
            return False
        fresh = fs.csr(np.tri(50, 60, -n, dtype=np.float32))
        grad = fs.linear_backward(np.ones((n, 50), np.float32), X.T, fresh)[0]
        if not np.array_equal(grad, np.tile(np.tri(50, 60, -n).sum(0), (n, 1))):
            return False
        y = engines[0](X.T.copy())
        if np.abs(y - model(X.T.copy())).max() > 1e-3:
            return False
        if i % 10 == 0:
            engines[0] = fs.compile(model, (n, 60), threads=1, tune=False)
        fs.nn.GELU()(X)
    return True
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


def test_fork_while_threads_fill_the_caches(run_python):
    """No child hangs, none computes with half of a plan, and the threads of the parent go on."""
    code = (
        COMPUTE
        + CACHES
        + """
assert fill(0, 3)
stop, wrong = threading.Event(), []
def busy(seed):
    while not stop.is_set():
        if not fill(seed, 5):
            wrong.append(seed)
workers = [threading.Thread(target=busy, args=(seed,)) for seed in range(1, 4)]
for worker in workers: worker.start()
found = [in_child(lambda: fill(seed, 10)) for seed in range(20, 28)]
stop.set()
for worker in workers: worker.join()
print(found == [True] * 8, wrong)
"""
    )
    environment = {"NUMBA_NUM_THREADS": "2", "FASTSPARSE_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    assert run_python(code, **environment).stdout.splitlines()[-1] == "True []"


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
