"""Engines in forked children and over many calls."""

from __future__ import annotations

import os
import sys

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

_FORK = """
import os, threading
import numpy as np
import fastsparse as fs
from tests.engine.networks import network

model, shape = network("demo")
batch = {batch}
x = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
engine = fs.compile(model, x.shape, threads=2)
expected = engine(x)
fs.compile(model, x.shape, threads=2)  # an engine that is gone
(pool,) = engine._plans.pools
holders = [pool.workspace() for _ in range(8)]
for holder in holders:
    holder.__enter__()  # eight calls in flight, in threads that the child does not have
child = os.fork()
if child == 0:
    right = all(np.array_equal(engine(x), expected) for _ in range(3))
    right &= np.array_equal(engine(x[:1]), fs.compile(model, (1, *shape))(x[:1]))
    grandchild = os.fork()
    if grandchild == 0:
        os._exit(0 if np.array_equal(engine(x), expected) else 1)
    _, status = os.waitpid(grandchild, 0)
    os._exit(0 if right and status == 0 else 1)
_, status = os.waitpid(child, 0)
for holder in holders:
    holder.__exit__(None, None, None)
assert status == 0, status
assert np.array_equal(engine(x), expected)
assert pool._made == len(pool._free) == 8
"""

_MEMORY = """
import numpy as np
import fastsparse as fs
from tests.engine.networks import network

def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * 4096

model, shape = network("demo")
xs = [np.random.default_rng(0).standard_normal((n, *shape)).astype(np.float32) for n in (1, 3, 40)]
engine = fs.compile(model, xs[0].shape)
def calls(count):
    for _ in range(count):
        for x in xs:
            engine(x)
calls(300)
before = resident()
calls(4000)
assert resident() - before < 2**20, resident() - before
"""


@pytest.mark.T2
@needs_fork
@pytest.mark.parametrize("batch", [1, 64])
def test_children_compute_while_the_parent_has_calls_in_flight(run_python, batch):
    run_python(_FORK.format(batch=batch))


@pytest.mark.T6
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat(run_python):
    run_python(_MEMORY)
