"""Branches: those that follow from constants, shapes and small integers are taken before the model runs."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import fastsparse as fs
from tests.onnx import models


def _graph(b, name, result, *nodes):
    """A branch of nodes (operator, inputs, output, attributes); all branches use the same names inside."""
    made = [helper.make_node(op, inputs, [output], **attributes) for op, inputs, output, attributes in nodes]
    return helper.make_graph(made, name, [], [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)])


def _choice(b, flag, x, width):
    """x @ W or relu(x @ V), with W and V in the branches."""
    weights = [b.weight(width, width), b.weight(width, width)]
    yes = _graph(b, "yes", "y", ("MatMul", [x, weights[0]], "y", {}))
    no = _graph(b, "no", "y", ("MatMul", [x, weights[1]], "t", {}), ("Relu", ["t"], "y", {}))
    return b.add("If", flag, then_branch=yes, else_branch=no)


def _same(engine, model, inputs):
    for _ in range(3):  # by the library, by the engine for the case, and by that at fixed addresses
        assert max(models.shares(engine.run(inputs), models.reference(model, inputs))) < 2e-6


def test_constant_conditions(rng):
    b = models.Builder()
    flag = b.add("Not", b.constant(True, "bool"))
    model = b.model({"x": ["N", 16]}, [_choice(b, flag, _choice(b, flag, "x", 16), 16)])
    engine = models.on_kernels(model, (3, 16))
    assert [node.op for node in engine._simple.nodes] == ["MatMul", "Relu"] * 2
    _same(engine, model, [rng.standard_normal((3, 16)).astype(np.float32)])


def test_conditions_on_shapes(rng):
    b = models.Builder()
    size = b.add("Gather", b.add("Shape", "x"), b.constant(0, "int64"))
    y = _choice(b, b.add("Equal", size, b.constant(1, "int64")), "x", 16)
    model = b.model({"x": ["N", 16]}, [_choice(b, b.add("Less", size, b.constant(3, "int64")), y, 16)])
    engine = models.on_kernels(model, (1, 16))
    for n in (1, 2, 5, 1, 2):
        x = rng.standard_normal((n, 16)).astype(np.float32)
        _same(engine, model, [x])
        case = engine._for(engine._checked([x]))
        assert case is not engine
        assert case._plan().kernels
        assert not [node for node in case._simple.nodes if node.op == "If"]
    assert len(engine._cases.engines) == 3
    assert engine.report().rows


def test_conditions_on_small_integers(rng, tmp_path):
    from fastsparse.engine import load_engine

    b = models.Builder()
    y = _choice(b, b.add("Equal", "rate", b.constant(16000, "int64")), "x", 16)
    model = b.model({"x": ["N", 16], "rate": []}, [y], dtypes={"rate": TensorProto.INT64})
    engine = models.on_kernels(model, {"x": (2, 16)})
    x = rng.standard_normal((2, 16)).astype(np.float32)
    for rate in (16000, 8000, 4000, 16000):
        _same(engine, model, [x, np.array(rate)])
    assert len(engine._cases.engines) == 2
    engine.save(tmp_path / "engine")
    _same(load_engine(tmp_path / "engine"), model, [x, np.array(16000)])


def test_conditions_on_numbers_stay_in_the_library(rng):
    b = models.Builder()
    flag = b.add("Greater", b.add("ReduceSum", "x", keepdims=0), b.constant(0))
    model = b.model({"x": ["N", 16]}, [_choice(b, flag, "x", 16)])
    engine = models.on_kernels(model, (3, 16))
    for sign in (1, -1):
        _same(engine, model, [sign * np.abs(rng.standard_normal((3, 16))).astype(np.float32)])


def test_models_with_conditions_on_numbers_are_measured():
    b = models.Builder()
    flag = b.add("Greater", b.add("ReduceSum", "x", keepdims=0), b.constant(0))
    y = b.add("MatMul", _choice(b, flag, "x", 256), b.weight(256, 256, sparsity=0.95))
    engine = fs.compile(b.model({"x": [64, 256]}, [y]), threads=1)
    assert engine._cases is None
    assert "measured" in engine.report().facts["choice"]


def test_branches_inside_branches(rng):
    """An inner If reads what the outer branch made; names inside branches repeat."""
    b = models.Builder()
    size = b.add("Gather", b.add("Shape", "x"), b.constant(0, "int64"))
    inner = [_graph(b, op, "y", (op, ["t"], "y", {})) for op in ("Neg", "Abs")]
    flags = [b.add("Equal", size, b.constant(n, "int64")) for n in (1, 2)]
    yes = _graph(b, "yes", "y", ("Sub", ["x", b.constant(1)], "t", {}),
                 ("If", [flags[0]], "y", {"then_branch": inner[0], "else_branch": inner[1]}))  # fmt: skip
    z = b.add("If", b.add("Or", *flags), then_branch=yes, else_branch=_graph(b, "no", "y", ("Relu", ["x"], "y", {})))
    model = b.model({"x": ["N", 4]}, [b.add("MatMul", z, b.weight(4, 4)), z])
    engine = models.on_kernels(model, (1, 4))
    for n in (1, 2, 3):
        _same(engine, model, [rng.standard_normal((n, 4)).astype(np.float32)])
    assert len(engine._cases.engines) == 3


@pytest.mark.parametrize("kind", ["string", "sequence"])
def test_branches_beside_inputs_that_are_no_numbers(rng, kind):
    b = models.Builder()
    size = b.add("Gather", b.add("Shape", "x"), b.constant(0, "int64"))
    y = _choice(b, b.add("Equal", size, b.constant(1, "int64")), "x", 16)
    alone = b.model({"x": ["N", 16]}, [y])
    z = b.add("Identity" if kind == "string" else "SequenceLength", "s")
    model = b.model({"x": ["N", 16], "s": [2]}, [y, z], dtypes={"s": TensorProto.STRING})
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.STRING if kind == "string" else TensorProto.INT64
    other: object = np.array(["a", "b"], object)
    if kind == "sequence":
        model.graph.input[1].CopyFrom(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
        other = [np.ones((2, 3), np.float32), np.ones(4, np.float32)]  # of other shapes
    engine = models.on_kernels(model, {"x": (1, 16)})
    for n in (1, 1, 1, 2, 2):
        x = rng.standard_normal((n, 16)).astype(np.float32)
        found = engine.run([x, other])
        assert models.shares(found[:1], models.reference(alone, [x]))[0] < 2e-6
        assert np.array_equal(found[1], other if kind == "string" else 2)
    assert len(engine._cases.engines) == 2


def test_branches_and_conditions_that_are_missing_are_damage():
    one = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "body", [], [one])
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    true = helper.make_tensor("c", TensorProto.BOOL, [1], [True])
    for inputs, branches, message in (
        ([], {"then_branch": body, "else_branch": body}, "If\\) has 0 inputs, expected at least 1"),
        (["c"], {"else_branch": body}, "If\\) has no then_branch"),
    ):
        graph = helper.make_graph([helper.make_node("If", inputs, ["y"], **branches)], "g", [value], [one], [true])
        with pytest.raises(fs.FileFormatError, match=message):
            fs.compile(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tune=False)
