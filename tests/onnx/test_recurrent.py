"""Recurrent layers against onnxruntime: one sequence and several, in poisoned memory; what stays in the library."""

from __future__ import annotations

import numpy as np
import pytest

from fastsparse.onnx.executor import Kernels
from tests.engine.poison import poisoned
from tests.onnx import models

onnxruntime = pytest.importorskip("onnxruntime")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
RESULTS = {"LSTM": 3, "GRU": 2, "RNN": 2}


def _layer(op, sizes, direction="forward", states=True, bias=True, results=None, **attributes):
    """A model of one layer; `results` are positions of its outputs."""
    times, samples, features, hidden = sizes
    directions, rows = 1 + (direction == "bidirectional"), GATES[op] * hidden
    b = models.Builder()
    inputs = {"x": [times, samples, features]}
    names = ["x", b.weight(directions, rows, features), b.weight(directions, rows, hidden)]
    names.append(b.constant(b.rng.standard_normal((directions, 2 * rows))) if bias else "")
    if states:
        inputs |= {name: [directions, samples, hidden] for name in ("h", "c")[: RESULTS[op] - 1]}
        names += ["", *list(inputs)[1:]]
    if op == "GRU":
        attributes = {"linear_before_reset": 1, **attributes}
    outputs = b.add(op, *names, outputs=RESULTS[op], hidden_size=hidden, direction=direction, **attributes)
    wanted = range(RESULTS[op]) if results is None else results
    return b.model(inputs, [outputs[i] for i in wanted])


def _check(model, rng, threads=1):
    engine = models.on_kernels(model, threads=threads)
    assert [type(step) for step in engine._plan().steps] == [Kernels]
    inputs = engine.random_inputs()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(None, dict(zip(engine.input_names, inputs)))
    for _ in range(2):
        assert max(models.shares(engine.run(inputs), wanted)) < 1e-5
    engine._frames.clear()
    with poisoned():
        assert max(models.shares(engine.run(inputs), wanted)) < 1e-5


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_layers(op, direction, rng):
    for sizes in ((1, 1, 5, 17), (4, 1, 33, 16), (3, 2, 20, 7), (2, 40, 9, 24)):
        for states in (False, True):
            _check(_layer(op, sizes, direction, states, bias=states), rng, threads=1 + states)


def test_some_results_and_other_activations(rng):
    for results in ([0], [1], [2], [0, 2]):
        for samples in (1, 3):
            _check(_layer("LSTM", (3, samples, 8, 12), results=results), rng)
    _check(_layer("RNN", (3, 1, 8, 12), activations=["Relu"]), rng)
    _check(_layer("LSTM", (3, 1, 8, 12), activations=["Sigmoid", "Tanh", "Tanh"]), rng)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [("LSTM", {"clip": 1.0}), ("GRU", {"linear_before_reset": 0}), ("LSTM", {"activations": ["Tanh"] * 3}),
     ("LSTM", {"input_forget": 1}), ("RNN", {"activations": ["Sigmoid"]})],
)  # fmt: skip
def test_what_the_kernels_do_not_have_is_the_librarys(op, attributes):
    engine = models.on_kernels(_layer(op, (2, 1, 8, 12), **attributes))
    assert not engine._plan().kernels


def test_an_engine_takes_other_lengths(rng):
    model = _layer("LSTM", ("T", "N", 8, 12), states=False)
    engine = models.on_kernels(model, (3, 1, 8))
    for times, samples in ((5, 1), (1, 1), (2, 4), (1100, 1)):  # the last one is longer than a program can be
        x = rng.standard_normal((times, samples, 8)).astype(np.float32)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        for _ in range(2):
            assert max(models.shares(engine.run([x]), session.run(None, {"x": x}))) < 1e-5


def test_sparse_layers_run_on_the_kernels_by_estimate():
    b = models.Builder()
    weights = b.weight(1, 512, 128, sparsity=0.9), b.weight(1, 512, 128, sparsity=0.9)
    y, _, _ = b.add("LSTM", "x", *weights, outputs=3, hidden_size=128)
    engine = models.compile_onnx(b.model({"x": [8, 1, 128]}, [y]), tune=False)
    assert len(engine._plan().kernels) == 1
    assert "lstm cell" in str(engine.report())


EMPTY = """
import numpy as np
from tests.onnx import models

for op, rows in (("LSTM", 4), ("GRU", 3)):
    for inner in (False, True):
        b = models.Builder()
        x = b.add("Relu", "x") if inner else "x"
        y, _ = b.add(op, x, b.weight(1, rows * 6, 5), b.weight(1, rows * 6, 6), outputs=2, hidden_size=6)
        z, _ = b.add(op, b.add("Squeeze", y, b.constant([1], "int64")), b.weight(1, rows * 6, 6),
                     b.weight(1, rows * 6, 6), outputs=2, hidden_size=6)
        engine = models.on_kernels(b.model({"x": ["T", "N", 5]}, [z]), (3, 2, 5))
        for times, batch in ((3, 0), (0, 2)):
            for _ in range(2):
                try:
                    engine.run([np.zeros((times, batch, 5), np.float32)])
                except ValueError as error:
                    assert "reads an empty tensor" in str(error), error
                else:
                    raise AssertionError(op)
        assert engine.run([np.zeros((4, 2, 5), np.float32)])[0].shape == (4, 1, 2, 6)
print("alive")
"""


NOTHING = """
import numpy as np
from onnx import helper
from tests.onnx import models

def engine(op, *others, dtype, **attributes):
    b = models.Builder()
    scale, zero = b.constant(0.1), b.constant(0, dtype)
    named = {"s": scale, "z": zero, "": ""}
    names = [named[a] if isinstance(a, str) else b.constant(*a) for a in others]
    h = b.add("QuantizeLinear", "x", scale, zero) if dtype == "uint8" else b.add("Neg", "x")
    twice = [h, scale, zero] * 2 if op in ("QLinearAdd", "QLinearMul") else [h]
    y = b.add(op, *twice, *names, domain="com.microsoft", **attributes)
    model = b.model({"x": ["N", 4, 8]}, [y])
    model.graph.output[0].ClearField("type")
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return models.on_kernels(model, (2, 4, 8), threads=2)

x = np.zeros((0, 4, 8), np.float32)
for op in ("QLinearAdd", "QLinearMul"):
    run = engine(op, "s", "z", dtype="uint8")
    for _ in range(3):
        assert run(x).shape == (0, 4, 8)
run = engine("QAttention", dtype="uint8", num_heads=2, *[
    (np.ones((8, 24)), "int8"), (np.ones(24),), "s", "s", "", "z", (0, "int8")])
try:
    run(x)
except ValueError as error:
    assert "reads an empty tensor" in str(error), error
else:
    raise AssertionError("QAttention")
print("alive")
"""


@pytest.mark.parametrize("script", [EMPTY, NOTHING], ids=["recurrent", "quantised"])
def test_layers_that_would_read_nothing(run_python, script):
    """onnxruntime would end the process."""
    assert run_python(script).stdout == "alive\n"
