"""Contract T1: calls from many Python threads at once are right on every threading layer."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.T1

# Four kinds of work, large enough for parallel regions. `regions` counts those entered.
WORK = """
import faulthandler, threading
faulthandler.dump_traceback_later(600, exit=True)  # a hang is a failure, not a wait
import numpy as np
import fastsparse as fs
from fastsparse_kernels import parallel

rng = np.random.default_rng(5)
A = rng.standard_normal((300, 400)) * (rng.random((300, 400)) < 0.2)
W = fs.csr(A, "float32")
F = fs.csr(rng.standard_normal((64, 32 * 9)) * (rng.random((64, 32 * 9)) < 0.2), "float32")
X = rng.standard_normal((400, 333)).astype("float32")
G = rng.standard_normal((333, 300)).astype("float32")
images = rng.standard_normal((4, 32, 17, 17)).astype("float32")

def work():
    dx, dw, db = fs.linear_backward(G, X.T, W)
    y = fs.conv2d(images, F, kernel_size=3, padding=1, activation="relu")
    return [array.tobytes() for array in (fs.spmm(W, X), dx, dw, db, y)]

regions = 0
enter = parallel.run_parallel
def counted():
    global regions
    regions += 1
    return enter()
counted.expect = enter.expect
parallel.run_parallel = counted
"""

MANY = (
    WORK
    + """
import sys
with fs.threads(1):
    expected = work()
assert regions == 0
wrong, barrier = [], threading.Barrier(16)
def check():
    barrier.wait()
    for _ in range(5):
        wrong.extend(a != b for a, b in zip(work(), expected))
fs.set_num_threads(int(sys.argv[1]))
workers = [threading.Thread(target=check) for _ in range(16)]
for worker in workers: worker.start()
for worker in workers: worker.join()
print(len(wrong), sum(wrong), regions > 0, fs.show_config(file=sys.stderr)["threading_layer"])
"""
)


@pytest.mark.parametrize("layer", ["tbb", "omp", "workqueue"])
@pytest.mark.parametrize("threads", [2, 3])
def test_sixteen_threads_at_once(run_python, layer_environment, layer, threads):
    done = run_python(MANY, str(threads), NUMBA_NUM_THREADS="3", OPENBLAS_NUM_THREADS="1", **layer_environment(layer))
    assert done.stdout == f"400 0 {layer != 'workqueue'} {layer}\n"


def test_the_setting_of_a_thread_reaches_the_kernels(run_python):
    code = (
        WORK
        + """
def used(n):
    global regions
    regions = 0
    with fs.threads(n):
        work()
    return regions > 0
fs.set_num_threads(2)
found = []
worker = threading.Thread(target=lambda: found.extend([work() and regions > 0, used(1), used(2)]))
worker.start()
worker.join()
print(found, used(1), used(2))
"""
    )
    assert run_python(code, NUMBA_NUM_THREADS="2").stdout == "[True, False, True] False True\n"
