"""Contract T5: warmup compiles the usual kernels, or loads them."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.T5

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
