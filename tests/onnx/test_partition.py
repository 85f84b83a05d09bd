"""Patterns that become one operator, those that only look like it, and how graphs are cut."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastsparse as fs
from fastsparse.onnx.folding import fold_batch_norms
from fastsparse.onnx.partition import Partitioner, Segment
from fastsparse.onnx.patterns import simplified
from fastsparse.onnx.reader import read
from fastsparse.onnx.specialise import folded, specialised
from tests.onnx import models


def _graph(model, **shapes):
    return simplified(specialised(folded(read(model)), shapes, {}))


def _ops(model, **shapes):
    return [node.op for node in _graph(model, **shapes).nodes]


def _same(model, rng, *shapes):
    """The engine gives what ONNX's own implementation gives."""
    inputs = [rng.standard_normal(shape).astype("float32") for shape in shapes]
    engine = fs.compile(model, list(shapes), tune=False)
    assert max(models.shares(engine.run(inputs), models.reference(model, inputs))) < 2e-6


def _gelu(b, order):
    root, one, half = b.constant(math.sqrt(2)), b.constant(1), b.constant(0.5)
    shifted = b.add("Add", b.add("Erf", b.add("Div", "x", root)), one)
    if order == "x first":
        return b.add("Mul", b.add("Mul", "x", shifted), half)
    if order == "half first":
        return b.add("Mul", b.add("Mul", shifted, half), "x")
    return b.add("Mul", b.add("Mul", "x", half), shifted)


@pytest.mark.parametrize("order", ["x first", "half first", "half x"])
def test_gelu_by_erf(order, rng):
    b = models.Builder()
    model = b.model({"x": [4, 8]}, [_gelu(b, order)])
    assert _ops(model, x=(4, 8)) == ["Gelu"]
    _same(model, rng, (4, 8))


@pytest.mark.parametrize("by", ["Pow", "Mul"])
def test_gelu_by_tanh(by, rng):
    b = models.Builder()
    cube = b.add("Pow", "x", b.constant(3)) if by == "Pow" else b.add("Mul", "x", b.add("Mul", "x", "x"))
    inner = b.add("Add", "x", b.add("Mul", cube, b.constant(0.044715)))
    tanh = b.add("Tanh", b.add("Mul", inner, b.constant(math.sqrt(2 / math.pi))))
    y = b.add("Mul", b.add("Mul", b.constant(0.5), "x"), b.add("Add", tanh, b.constant(1)))
    model = b.model({"x": [4, 8]}, [y])
    assert _ops(model, x=(4, 8)) == ["Gelu"]
    _same(model, rng, (4, 8))


@pytest.mark.parametrize("wrong", ["root", "shift", "factor", "used"])
def test_what_only_looks_like_gelu_stays(wrong, rng):
    b = models.Builder()
    root = b.constant(1.5 if wrong == "root" else math.sqrt(2))
    shifted = b.add("Add", b.add("Erf", b.add("Div", "x", root)), b.constant(2 if wrong == "shift" else 1))
    y = b.add("Mul", b.add("Mul", "x", shifted), b.constant(0.4 if wrong == "factor" else 0.5))
    model = b.model({"x": [4, 8]}, [y, shifted] if wrong == "used" else [y])
    assert "Erf" in _ops(model, x=(4, 8))
    _same(model, rng, (4, 8))


def test_silu_and_hard_swish(rng):
    b = models.Builder()
    x = b.add("Mul", b.add("Sigmoid", "x"), "x")
    y = b.add("Mul", x, b.add("HardSigmoid", x, alpha=1 / 6))
    limited = b.add("Clip", b.add("Add", y, b.constant(3)), b.constant(0), b.constant(6))
    z = b.add("Mul", b.add("Div", limited, b.constant(6)), y)
    model = b.model({"x": [4, 8]}, [z])
    assert _ops(model, x=(4, 8)) == ["Swish", "HardSwish", "HardSwish"]
    _same(model, rng, (4, 8))


@pytest.mark.parametrize("axis", [-1, 1])
def test_layer_norm(axis, rng):
    b = models.Builder()
    mean = b.add("ReduceMean", "x", axes=[axis])
    centred = b.add("Sub", "x", mean)
    variance = b.add("ReduceMean", b.add("Mul", centred, centred), axes=[axis])
    root = b.add("Sqrt", b.add("Add", variance, b.constant(1e-3)))
    y = b.add("Add", b.add("Mul", b.add("Div", centred, root), b.vector(6)), b.vector(6))
    model = b.model({"x": [4, 5, 6]}, [y])
    assert (_ops(model, x=(4, 5, 6)) == ["LayerNormalization"]) == (axis == -1)
    _same(model, rng, (4, 5, 6))


def test_biases_become_part_of_products(rng):
    b = models.Builder()
    x = b.add("Add", b.add("Conv", "x", b.weight(8, 3, 1, 1)), b.constant(b.rng.random((8, 1, 1))))
    flat = b.add("Reshape", x, b.constant([0, -1], "int64"))
    model = b.model({"x": ["N", 3, 4, 4]}, [b.linear(flat, 128, 5)])
    assert _ops(model, x=(2, 3, 4, 4)) == ["Conv", "Reshape", "fastsparse.Linear"]
    _same(model, rng, (2, 3, 4, 4))


@pytest.mark.parametrize("case", ["sparse", "small", "read twice", "an output"])
def test_batch_norm_goes_into_weights_before_shapes_are_known(case, rng):
    b = models.Builder()
    x = b.conv("x", 16, 32, 3 if case == "sparse" else 1)
    y = b.norm(x, 32)
    outputs = {"read twice": [y, b.add("Relu", x)], "an output": [y, x]}.get(case, [y])
    model = b.model({"x": ["N", 16, 6, 6]}, outputs)
    plain = folded(read(model))
    rewritten = fold_batch_norms(plain)
    if case in ("sparse", "small"):
        assert [node.op for node in rewritten.nodes] == ["Conv"]
        assert len(rewritten.constants) == 2
    else:
        assert rewritten.nodes == plain.nodes
    _same(model, rng, (2, 16, 6, 6))


# ---------------------------------------------------------------- cutting


def _cut(model, **shapes):
    """Nodes of every segment by name, and the host's."""
    parts = Partitioner().parts(_graph(model, **shapes))
    segments = [tuple(node.name for node in part.nodes) for part in parts if isinstance(part, Segment)]
    return segments, [part.name for part in parts if not isinstance(part, Segment)]


def test_a_branch_over_the_host_ends_a_segment(rng):
    """conv -> sin -> conv, added to the first conv: one segment would have to wait for itself."""
    b = models.Builder()
    first = b.add("Conv", "x", b.weight(4, 4, 1, 1))
    second = b.add("Conv", b.add("Sin", first), b.weight(4, 4, 1, 1))
    y = b.add("Relu", b.add("Add", first, second))
    model = b.model({"x": ["N", 4, 6, 6]}, [y])
    segments, hosts = _cut(model, x=(2, 4, 6, 6))
    assert segments == [("n0",), ("n2", "n3", "n4")]
    assert hosts == ["n1"]
    _same(model, rng, (2, 4, 6, 6))


def test_branches_of_one_input_are_one_segment_with_two_outputs(rng):
    b = models.Builder()
    left = b.add("Relu", b.add("Conv", "x", b.weight(4, 4, 3, 3), pads=[1] * 4))
    right = b.add("Conv", "x", b.weight(4, 4, 1, 1))
    model = b.model({"x": ["N", 4, 6, 6]}, [left, b.add("Add", left, right)])
    segments, hosts = _cut(model, x=(2, 4, 6, 6))
    assert [set(names) for names in segments] == [{"n0", "n1", "n2", "n3"}]
    assert not hosts
    _same(model, rng, (2, 4, 6, 6))
    _same(model, rng, (17, 4, 6, 6))


def test_a_sum_with_a_tensor_of_the_host(rng):
    b = models.Builder()
    y = b.add("Relu", b.add("Add", b.add("Cos", "x"), b.add("MatMul", "x", b.weight(16, 16))))
    model = b.model({"x": ["N", 16]}, [y])
    segments, hosts = _cut(model, x=(3, 16))
    assert segments == [("n1", "n2", "n3")]
    assert hosts == ["n0"]
    for batch in (1, 3, 40):
        _same(model, rng, (batch, 16))


def test_new_shapes_that_others_want_are_views_of_the_host(rng):
    b = models.Builder()
    x = b.add("Relu", b.add("Conv", "x", b.weight(4, 3, 1, 1)))
    flat = b.add("Flatten", x)
    y = b.add("Gemm", flat, b.weight(5, 64), transB=1)
    model = b.model({"x": ["N", 3, 4, 4]}, [y, b.add("Sin", flat), flat])
    segments, hosts = _cut(model, x=(2, 3, 4, 4))
    assert segments == [("n0", "n1", "n2", "n3")]
    assert hosts == ["n2", "n4"]
    _same(model, rng, (2, 3, 4, 4))
    _same(model, rng, (9, 3, 4, 4))


def test_rows_of_more_axes_are_samples(rng):
    """The batch of a linear layer is all rows; a transposed input is copied first."""
    b = models.Builder()
    x = b.add("Gelu", b.linear(b.add("Transpose", "x", perm=[1, 0, 2]), 24, 40))
    model = b.model({"x": ["N", 5, 24]}, [b.linear(x, 40, 24)], opset=20)
    segments, _ = _cut(model, x=(3, 5, 24))
    assert len(segments) == 1
    for batch in (1, 3, 16):
        _same(model, rng, (batch, 5, 24))


def test_programs_are_shared_by_batch_sizes():
    partitioner = Partitioner()
    for batch in (1, 7):
        model = folded(read(models.residual_network()))
        for _ in range(2):
            partitioner.parts(simplified(specialised(model, {"x": (batch, 3, 32, 32)}, {})))
    programs = len(partitioner.programs)
    again = folded(read(models.residual_network()))
    for batch in (2, 3):
        partitioner.parts(simplified(specialised(again, {"x": (batch, 3, 32, 32)}, {})))
    assert len(partitioner.programs) == programs + 1


def test_unknown_weights_run_on_the_host(rng):
    b = models.Builder()
    model = b.model({"x": ["N", 3, 5, 5], "w": [4, 3, 2, 2]}, [b.add("Relu", b.add("Conv", "x", "w"))])
    segments, hosts = _cut(model, x=(2, 3, 5, 5), w=(4, 3, 2, 2))
    assert not segments
    assert hosts == ["n0", "n1"]
    _same(model, rng, (2, 3, 5, 5), (4, 3, 2, 2))


def test_a_model_of_shapes_alone_computes_nothing(rng):
    b = models.Builder()
    sizes = b.add("Shape", "x")
    y = b.add("ConstantOfShape", b.add("Mul", sizes, b.constant([2, 1], "int64")))
    engine = fs.compile(b.model({"x": ["N", 3]}, [y]))
    np.testing.assert_array_equal(engine(np.ones((4, 3), np.float32)), np.zeros((8, 3)))
    assert "0 segments on the kernels, 0 host steps" in str(engine.report())
