"""Contract T5: warmup compiles the usual kernels, or those of a network, or loads them."""

from __future__ import annotations

import numpy as np
import pytest

import fastsparse as fs
from fastsparse_kernels import compiler

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


NETWORK = """
import numpy as np
import fastsparse as fs
from fastsparse import nn
from fastsparse_kernels import compiler

SHAPE, BATCHES = (3, 12, 12), (1, 8, 33)
model = nn.Sequential(
    nn.SparseConv2d(3, 8, 3, padding=1, sparsity=0.5, rng=0), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.SparseLinear(8 * 36, 10, sparsity=0.5, rng=1),
)
running = model.state_dict()

def check(call):
    before = compiler.compile_seconds()
    for batch in BATCHES:
        call(np.ones((batch, *SHAPE), np.float32))
    assert compiler.compile_seconds() == before, "something was compiled, or loaded"

def step(x):
    model.eval()(x)
    y = model.train()(x)
    model.backward(np.ones_like(y))
"""
MODEL = """
fs.warmup(model, BATCHES, input_shape=(1, *SHAPE), progress=False)
assert model.training and all(np.array_equal(a, b) for a, b in zip(running.values(), model.state_dict().values()))
check(step)
"""
ENGINE = """
engine = fs.compile(model, (4, *SHAPE), tune=False, threads=2)
fs.warmup(engine, BATCHES, progress=False)
check(engine)
"""
COMPILE = """
engine = fs.compile(model, (4, *SHAPE), tune=False, batch_sizes=BATCHES)
check(engine)
"""


@pytest.mark.parametrize("code", [MODEL, ENGINE, COMPILE], ids=["model", "engine", "compile"])
def test_no_kernel_is_compiled_or_loaded_afterwards(run_python, code):
    """A server must not hang at its first request of a batch size it was told of."""
    run_python(NETWORK + code, NUMBA_NUM_THREADS="2")


def test_engines_of_onnx_models_are_made_ready(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = fs.nn.Sequential(fs.nn.SparseLinear(6, 4, rng=0))
    fs.to_onnx(model, tmp_path / "model.onnx")
    engine = fs.compile(onnx.load(tmp_path / "model.onnx"), {"x": (2, 6)}, tune=False, batch_sizes=(1, 3))
    before = compiler.compile_seconds()
    for batch in (1, 3):
        engine.run([np.ones((batch, 6), np.float32)])
    assert compiler.compile_seconds() == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda m: ("x",), TypeError, "model_or_engine is a str, expected a fastsparse.nn.Module"),
        (lambda m: (None, (1,)), TypeError, "batch_sizes and input_shape belong to a model"),
        (lambda m: (m, (0,)), ValueError, r"batch_sizes is \(0,\), expected integers of at least 1"),
        (lambda m: (m, 3), TypeError, "batch_sizes is 3, expected a sequence of integers"),
        (lambda m: (fs.nn.Sequential(fs.nn.ReLU()),), ValueError, "begins with ReLU.*pass input_shape"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        fs.warmup(*arguments(fs.nn.Sequential(fs.nn.SparseLinear(6, 4, rng=0))))
