"""Networks as exporters write them: against ONNX's NumPy implementation in float64, and how they are cut."""

from __future__ import annotations

import numpy as np
import pytest

import fastsparse as fs
from tests.onnx import models

# The largest difference relative to the largest output: a few float32 roundings per layer.
_TOLERANCE = {"float32": 3e-6, "float64": 1e-12}


def _images(rng, batch, size, dtype):
    return rng.standard_normal((batch, 3, size, size)).astype("float32").astype(dtype)


def _checked(make, inputs, dtype, tolerance=None, **kwargs):
    engine = fs.compile(make(dtype), **kwargs)
    wide = [x.astype("float64") if x.dtype.kind == "f" else x for x in inputs]
    found, wanted = engine.run(inputs), models.reference(make("float64"), wide)
    assert max(models.shares(found, wanted)) < (tolerance or _TOLERANCE[dtype])
    assert all(y.dtype == dtype for y in found)
    return engine


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 3, 19])
@pytest.mark.parametrize(
    ("make", "size"), [(models.residual_network, 32), (models.mobile_network, 16), (models.u_network, 16)]
)
def test_images(rng, make, size, batch, dtype):
    _checked(make, [_images(rng, batch, size, dtype)], dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("batch", "length"), [(1, 7), (3, 16)])
def test_an_encoder(rng, batch, length, dtype):
    mask = np.ones((batch, length), np.int64)
    mask[:, length - 2 :] = 0
    ids = rng.integers(0, 50, (batch, length))
    shapes = {"ids": (batch, length), "mask": (batch, length)}
    # ONNX's own implementation computes erf in float32.
    tolerance = 1e-7 if dtype == "float64" else None
    _checked(models.encoder, [ids, mask], dtype, tolerance, input_shape=shapes)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_a_perceptron(rng, batch):
    _checked(models.perceptron, [rng.standard_normal((batch, 64)).astype("float32")], "float32")


def test_a_residual_network_is_one_segment():
    report = str(fs.compile(models.residual_network()).report())
    assert "1 segments on the kernels, 0 host steps" in report
    assert "BatchNormalization" not in report
    assert "Conv + Relu" in report
    assert "Add" in report


def test_an_encoder_runs_products_with_residuals_and_gelu_in_segments():
    engine = fs.compile(models.encoder(), [(2, 8), (2, 8)])
    report = engine.report()
    operators = [row.operator for row in report.rows]
    assert operators.count("Linear + Gelu") == 2
    assert operators.count("Linear + Add") == 4
    assert operators.count("LayerNormalization") == 5
    assert not {"Erf", "Pow", "Sqrt", "ReduceMean", "Sub"} & set(operators[8:])
    # q, k and v read one tensor, so they are one segment that packs once; the last layer is one more.
    assert sum(row.kernel.startswith("pack") for row in report.rows) == 3 * 2 + 1


def test_reports_cover_segments_and_host_steps():
    engine = fs.compile(models.u_network())
    report = engine.report(batch=2)
    text = str(report)
    for word in ("ConvTranspose", "Resize", "NumPy", "spmm", "sparsity", "2x32x16x16"):
        assert word in text
    convolutions = [row for row in report.rows if "Conv" in row.operator.split(" + ")[0].split()]
    assert all(0.7 < row.sparsity < 0.9 for row in convolutions)
    assert all(row.milliseconds > 0 for row in report.rows)
    assert engine.benchmark(0.01, batch=2).batch == 2


def test_a_dense_linear_layer_says_that_it_is(rng):
    b = models.Builder()
    dense = b.constant(rng.standard_normal((400, 300)).astype("float32"))
    sparse = b.weight(300, 200, sparsity=0.9)
    y = b.add("MatMul", b.add("MatMul", "x", dense), sparse)
    engine = fs.compile(b.model({"x": ["N", 400]}, [y]))
    rows = {row.layer: row for row in engine.report().rows if row.sparsity is not None}
    assert "denser than" in rows["n0"].kernel
    assert rows["n0"].sparsity == 0
    assert "spmv" in rows["n1"].kernel
    assert rows["n1"].sparsity == pytest.approx(0.9, abs=0.01)


def test_reports_say_where_rows_are_normalised():
    """In a kernel along the last axis, in NumPy along others; before opset 13 all axes from one on were one."""
    for axis, opset, kernel in ((-1, 17, "row kernel"), (3, 17, "row kernel"), (1, 17, "NumPy"), (1, 11, "row kernel")):
        b = models.Builder()
        model = b.model({"x": ["N", 3, 8, 8]}, [b.add("Softmax", "x", axis=axis)], opset=opset)
        (row,) = fs.compile(model).report().rows
        assert row.kernel == kernel, (axis, opset)


def test_weights_may_stand_on_the_left(rng):
    b = models.Builder()
    b.add("MatMul", b.weight(96, 64, sparsity=0.9), "x")
    model = b.model({"x": [64, "N"]}, ["t0_0"])
    engine = fs.compile(model, (64, 33))
    x = rng.standard_normal((64, 33)).astype("float32")
    assert max(models.shares(engine.run([x]), models.reference(model, [x]))) < 3e-6
    assert "spmm" in str(engine.report())


@pytest.mark.parametrize("opset", [11, 13, 17, 25])
def test_opsets(rng, opset):
    b = models.Builder()
    axes = b.constant([2, 3], "int64")
    x = b.add("Relu", b.conv("x", 3, 8))
    x = b.add("ReduceMean", x, axes) if opset >= 18 else b.add("ReduceMean", x, axes=[2, 3])
    x = b.add("Squeeze", x, axes) if opset >= 13 else b.add("Squeeze", x, axes=[2, 3])
    model = b.model({"x": ["N", 3, 8, 8]}, [b.add("Softmax", x, axis=1)], opset=opset)
    x = _images(rng, 2, 8, "float32")
    assert max(models.shares(fs.compile(model).run([x]), models.reference(model, [x]))) < 3e-6
