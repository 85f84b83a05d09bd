"""Networks as exporters write them: against ONNX's NumPy implementation in float64, and how they are cut."""

from __future__ import annotations

import numpy as np
import pytest

import fastsparse as fs
from fastsparse.onnx import engine as engines
from tests.onnx import models

# The largest difference relative to the largest output: a few float32 roundings per layer.
_TOLERANCE = {"float32": 3e-6, "float64": 1e-12}


def _images(rng, batch, size, dtype):
    return rng.standard_normal((batch, 3, size, size)).astype("float32").astype(dtype)


def _checked(make, inputs, dtype, tolerance=None, **kwargs):
    engine = models.on_kernels(make(dtype), **kwargs)
    wide = [x.astype("float64") if x.dtype.kind == "f" else x for x in inputs]
    found, wanted = engine.run(inputs), models.reference(make("float64"), wide)
    assert max(models.shares(found, wanted)) < (tolerance or _TOLERANCE[dtype])
    assert all(y.dtype == dtype for y in found)
    return engine


@pytest.mark.R8
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 3, 19])
@pytest.mark.parametrize(
    ("make", "size"), [(models.residual_network, 32), (models.mobile_network, 16), (models.u_network, 16)]
)
def test_images(rng, make, size, batch, dtype):
    _checked(make, [_images(rng, batch, size, dtype)], dtype)


@pytest.mark.R8
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


@pytest.mark.R8
@pytest.mark.parametrize("batch", [1, 2, 64])
def test_a_perceptron(rng, batch):
    _checked(models.perceptron, [rng.standard_normal((batch, 64)).astype("float32")], "float32")


def test_a_residual_network_is_one_region():
    engine = models.on_kernels(models.residual_network())
    report = str(engine.report())
    assert "1 on the kernels, 0 in onnxruntime" in report
    assert "Conv + BatchNormalization + Add + Relu" in report
    assert [type(step).__name__ for step in engine._plan().steps] == ["Kernels"]


def test_an_encoder_runs_products_with_residuals_and_gelu_in_regions():
    engine = models.on_kernels(models.encoder(), [(2, 8), (2, 8)])
    operators = [row.operator for row in engine.report().rows]
    assert operators.count("MatMul + Add + Gelu") == 2
    assert operators.count("MatMul + Add + Add") == 4
    # q, k and v read one tensor, so they are one region that packs once; the last layer is one more.
    assert sum(row.kernel.startswith("pack") for row in engine.report().rows) == 3 * 2 + 1


def test_reports_cover_regions_and_the_library():
    engine = models.on_kernels(models.u_network())
    report = engine.report(batch=2)
    text = str(report)
    for word in ("ConvTranspose, Concat", "Resize", "onnxruntime", "spmm", "sparsity", "2x32x16x16"):
        assert word in text
    convolutions = [row for row in report.rows if row.operator.startswith("Conv") and row.sparsity is not None]
    assert len(convolutions) == 3
    assert all(0.7 < row.sparsity < 0.9 for row in convolutions)
    assert all(row.milliseconds > 0 for row in report.rows)
    assert engine.benchmark(0.01, batch=2).batch == 2


def test_dense_models_are_the_librarys_alone(rng):
    b = models.Builder()
    y = b.add("Relu", b.add("MatMul", "x", b.constant(rng.standard_normal((400, 300)).astype("float32"))))
    engine = fs.compile(b.model({"x": ["N", 400]}, [y]))
    report = engine.report()
    assert engine._plan().whole is not None
    assert "all of it is the library's" in report.facts["choice"]
    (row,) = report.rows
    assert row.operator == "MatMul, Relu"


def test_what_is_sparse_runs_on_the_kernels_by_estimate(rng):
    """A large dense layer goes to the library, the sparse one behind it to the kernels."""
    b = models.Builder()
    dense = b.constant(rng.standard_normal((512, 2048)).astype("float32"))
    y = b.add("MatMul", b.add("MatMul", "x", dense), b.weight(2048, 2048, sparsity=0.95))
    engine = fs.compile(b.model({"x": [16, 512]}, [y]), tune=False)
    rows = {row.layer: row for row in engine.report().rows if "MatMul" in row.operator}
    assert "onnxruntime" in rows["n0"].kernel
    assert "spmm" in rows["n1"].kernel
    assert "estimated" in rows["n1"].why


def test_measuring_may_take_a_region_away(monkeypatch):
    monkeypatch.setattr(engines, "_GAIN", 0.0)
    engine = models.on_kernels(models.residual_network())
    engine._costs = type(engine._costs)(dense=1e9, region=0.0, crossing=0.0, least=1)
    assert engine._plan().kernels
    engine._choose(tune=True)
    assert engine._plan().whole is not None
    assert engine._library


@pytest.mark.parametrize("opset", [11, 13, 17, 25])
def test_opsets(rng, opset):
    b = models.Builder()
    axes = b.constant([2, 3], "int64")
    x = b.add("Relu", b.conv("x", 3, 8))
    x = b.add("ReduceMean", x, axes) if opset >= 18 else b.add("ReduceMean", x, axes=[2, 3])
    x = b.add("Squeeze", x, axes) if opset >= 13 else b.add("Squeeze", x, axes=[2, 3])
    model = b.model({"x": ["N", 3, 8, 8]}, [b.add("Softmax", x, axis=1)], opset=opset)
    x = _images(rng, 2, 8, "float32")
    engine = models.on_kernels(model)
    assert engine._plan().kernels
    assert max(models.shares(engine.run([x]), models.reference(model, [x]))) < 3e-6
