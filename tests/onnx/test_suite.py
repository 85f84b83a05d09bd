"""ONNX's own backend suite: everything whose operators are in the table passes."""

from __future__ import annotations

import pytest

from bench import onnx_suite
from fastsparse.onnx.ops import OPERATORS

# Of the onnx that this was written with; later ones have more. That many are in scope guards against a scope that
# shrinks unseen.
_AT_LEAST = {"node": 1150, "simple": 7, "pytorch-converted": 82, "pytorch-operator": 35, "real": 9}

PROMISED = [
    "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LayerNormalization", "Relu", "LeakyRelu",
    "Clip", "Sigmoid", "Tanh", "Gelu", "Swish", "HardSwish", "HardSigmoid", "Erf", "Softmax", "Add", "Sub",
    "Mul", "Div", "Pow", "Sqrt", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean",
    "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice", "Gather", "Pad",
    "Resize", "Identity", "Dropout", "Constant", "Cast", "Shape", "ConstantOfShape", "Range", "Expand", "Where",
    "Equal", "Less", "Greater", "Min", "Max", "Floor", "Ceil",
]  # fmt: skip


@pytest.mark.parametrize("kind", onnx_suite.KINDS)
def test_everything_in_scope_passes(kind):
    tally = onnx_suite.run((kind,))[kind]
    assert not tally.failed
    assert tally.passed >= _AT_LEAST[kind]


def test_what_is_promised_is_in_the_table():
    assert set(PROMISED) <= set(OPERATORS)


def test_the_runner_sees_wrong_outputs(monkeypatch):
    case = next(c for c in onnx_suite.cases("pytorch-operator") if c.name == "test_operator_addmm")
    assert onnx_suite.failure(case) is None
    wrong = [(inputs, [y + 0.01 for y in outputs]) for inputs, outputs in case.data]
    assert "Not equal to tolerance" in onnx_suite.failure(onnx_suite.Case(case.name, "", case.model, wrong, 1e-3, 1e-7))


def test_the_table_names_reasons():
    tallies = {"node": onnx_suite.Tally(2, {"test_a": "ValueError: b"})}
    tallies["node"].outside["operator Loop"] += 3
    text = onnx_suite.table(tallies)
    assert "3  operator Loop" in text
    assert "FAILED node test_a: ValueError: b" in text
