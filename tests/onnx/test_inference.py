"""Where ONNX's inference of shapes, or an optimisation of onnxruntime, is wrong, engines give the right numbers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

import fastsparse as fs
from fastsparse.onnx.engine import _wins
from tests.onnx import models

onnxruntime = pytest.importorskip("onnxruntime")


def _with_integers(model):
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.INT64
    return model


def _pool(op):
    """The last window, which would begin behind the image, is none: 5 columns, which inference has as 6."""
    b = models.Builder()
    y = b.add(op, b.conv("x", 3, 4), kernel_shape=[1, 2], strides=[1, 2], pads=[0, 0, 0, 1], ceil_mode=1)
    model = b.model({"x": ["N", 3, 6, 10]}, [b.conv(b.add("Softsign", y), 4, 5), b.add("Shape", y)], opset=18)
    return _with_integers(model)


def _transposed_convolution():
    b = models.Builder()
    weight, same = b.weight(3, 4, 1, 3), "SAME_UPPER"
    y = b.add("ConvTranspose", "x", weight, strides=[1, 3], output_padding=[0, 1], auto_pad=same)
    return b.model({"x": ["N", 3, 6, 10]}, [b.add("Softsign", b.conv(y, 4, 5))])


def _output_of_another_size():
    b = models.Builder()
    y = b.conv("x", 3, 4)
    model = b.model({"x": ["N", 3, 6, 10]}, [y, b.add("Softsign", y)])
    for size in ("N", 4, 7, 7):
        model.graph.output[0].type.tensor_type.shape.dim.add(**{"dim_param" if size == "N" else "dim_value": size})
    return model


def _output_of_another_rank():
    b = models.Builder()
    y = b.add("Squeeze", b.add("Relu", b.conv("x", 3, 4)))
    model = b.model({"x": ["N", 3, 6, 10]}, [y])
    model.graph.output[0].type.tensor_type.shape.dim.add(dim_param="N")
    return model


def _axis_that_is_an_output():
    b = models.Builder()
    ends = [b.constant([n], "int64") for n in (-2, 9, 3)]
    y = b.add("Slice", "x", *ends)
    sizes = b.add("Cast", b.add("Shape", y), to=TensorProto.FLOAT)
    return _with_integers(b.model({"x": [1, 3, 6, 10]}, [b.conv(y, 3, 5), ends[2], sizes]))


def _operator_that_came_later():
    """ThresholdedRelu, in opset 7: onnxruntime has it, and does not say its rank."""
    b = models.Builder()
    y = b.conv("x", 3, 4)
    return b.model({"x": None}, [y, b.conv(b.add("ThresholdedRelu", y), 4, 5)], opset=7)


def _optimisation_that_fails():
    """onnxruntime moves int8 through Reshape and takes it for uint8."""
    b = models.Builder()
    scale, zero = b.constant(0.05), b.constant(3, "int8")
    y = b.add("DequantizeLinear", b.add("QuantizeLinear", b.conv("x", 3, 4), scale, zero), scale, zero)
    return b.model({"x": [1, 3, 6, 10]}, [b.add("Reshape", y, b.constant([-1], "int64"))], opset=21)


CASES = {
    **{op: lambda op=op: _pool(op) for op in ("MaxPool", "AveragePool", "LpPool")},
    **{make.__name__[1:]: make for make in (
        _transposed_convolution, _output_of_another_size, _output_of_another_rank, _axis_that_is_an_output,
        _operator_that_came_later, _optimisation_that_fails,
    )},
}  # fmt: skip


@pytest.mark.R8
@pytest.mark.parametrize("case", CASES)
def test_sizes_are_those_that_the_library_finds(case, rng):
    model = CASES[case]()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    engine = models.on_kernels(model, (1, 3, 6, 10))
    assert engine._plan().kernels
    for _ in range(2):  # step by step, and at fixed addresses
        x = rng.standard_normal((1, 3, 6, 10)).astype("float32")
        for y, want in zip(engine.run([x]), session.run(None, {"x": x}), strict=True):
            np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    everything = engine._checked([x])
    engine._plan().run(everything, 1)
    for step in engine._plan().kernels:  # what compiling measures
        _wins(step, everything, 1, {})
    if "Pool" in case:
        assert engine.output_shapes[engine.output_names[0]] == (1, 5, 6, 5)


@pytest.mark.parametrize("opset", [8, 9, 17])
@pytest.mark.parametrize("slopes", ["flat", "steep", "both", "negative", "one", "with 0", "infinite", "of a vector"])
def test_prelu_of_constant_slopes_is_a_maximum(slopes, opset):
    """Which takes a tenth of the time; bits are the same but for the signs of zeros where slopes are below 0."""
    values = {
        "flat": [0.25, 1, 1e-45],
        "steep": [1.5, 3e38, 2],
        "both": [-0.3, 0.1, 7],
        "negative": [-0.3, -1, -8],
        "one": 0.25,
        "with 0": [0.25, 0, 2],
        "infinite": [0.25, np.inf, 2],
        "of a vector": [0.1, 0.2, 3],
    }
    array = np.array(values[slopes], "float32")
    special = [0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3e-39, -3e-39, 1, -1, 3e38, -3e38, 1e-30, -1e-30]
    b = models.Builder()
    factors = b.constant(array if slopes in ("one", "of a vector") else array[:, None])
    model = b.model(
        {"x": ["N", 3, "L"] if slopes != "of a vector" else ["N", "L", 3]}, [b.add("PRelu", "x", factors)], opset=opset
    )
    for size in (15, 16, 17, 45, 1000):
        x = np.resize(np.array(special, "float32"), (2, 3, size))
        wide = array[:, None] if array.ndim else array
        with np.errstate(all="ignore"):
            expected = np.where(x < 0, wide * x, x)
        if slopes == "of a vector":
            x, expected = (np.ascontiguousarray(a.swapaxes(1, 2)) for a in (x, expected))
        engine = fs.compile(model, x.shape, threads=1, tune=False)
        found = engine(x)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(np.signbit(found)[expected != 0], np.signbit(expected)[expected != 0])
        if slopes in ("flat", "steep", "one"):
            np.testing.assert_array_equal(np.signbit(found)[expected == 0], np.signbit(expected)[expected == 0])
    used = {proto.op_type for node in engine._simple.nodes for proto in node.protos}
    assert ("PRelu" in used) == (slopes in ("with 0", "infinite") or opset == 8)
