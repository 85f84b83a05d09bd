"""TFLite models: every operator against NumPy in NHWC, sparse and quantised weights, damage."""

from __future__ import annotations

import re

import numpy as np
import pytest

import fastsparse as fs

pytest.importorskip("tflite")
pytest.importorskip("onnxruntime")

from fastsparse.onnx.engine import GraphEngine
from fastsparse.tflite.reader import read
from tests.tflite.files import Writer

RNG = np.random.default_rng(0)
CONV, DEPTHWISE, POOL = "Conv2DOptions", "DepthwiseConv2DOptions", "Pool2DOptions"
SAME, VALID = 0, 1


def normal(*shape):
    return RNG.normal(size=shape).astype("f")


def pruned(*shape, sparsity=0.7):
    return np.where(RNG.random(shape) < sparsity, 0, RNG.normal(size=shape)).astype("f")


def compiled(tmp_path, writer, inputs, outputs, **options):
    path = tmp_path / "m.tflite"
    path.write_bytes(writer.finish(inputs, outputs))
    return fs.compile(path, tune=False, **options)


def windows(x, kernel, stride, padding, dilation=(1, 1), fill=0.0):
    """Windows (N, OH, OW, kh, kw, C) of an image in NHWC, as TensorFlow pads them."""
    sizes = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
    pads = [(0, 0)]
    for n, k, s in zip(x.shape[1:3], sizes, stride):
        total = max((-(-n // s) - 1) * s + k - n, 0) if padding == SAME else 0
        pads.append((total // 2, total - total // 2))
    padded = np.pad(x, [*pads, (0, 0)], constant_values=fill)
    found = np.lib.stride_tricks.sliding_window_view(padded, sizes, (1, 2))[:, :: stride[0], :: stride[1]]
    return np.moveaxis(found[..., :: dilation[0], :: dilation[1]], 3, 5)


def close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- convolutions


@pytest.mark.parametrize("padding", [SAME, VALID])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [((1, 1), (1, 1), (1, 1)), ((3, 2), (2, 1), (1, 1)), ((3, 3), (1, 1), (2, 1)), ((5, 5), (2, 3), (1, 1))],
)
def test_convolutions(tmp_path, padding, kernel, stride, dilation):
    x, weight, bias = normal(2, 9, 10, 6), pruned(7, *kernel, 6), normal(7)
    expected = np.einsum("nhwijc,oijc->nhwo", windows(x, kernel, stride, padding, dilation), weight) + bias
    w = Writer()
    source = w.tensor((1, 9, 10, 6))
    y = w.add("CONV_2D", [source, w.constant(weight), w.constant(bias)], (1, *expected.shape[1:]), CONV,
              Padding=padding, StrideH=stride[0], StrideW=stride[1], DilationHFactor=dilation[0],
              DilationWFactor=dilation[1], FusedActivationFunction=1)  # fmt: skip
    engine = compiled(tmp_path, w, [source], [y])
    assert isinstance(engine, GraphEngine)
    assert engine.input_shape == (1, 9, 10, 6)
    close(engine(x), np.maximum(expected, 0))
    close(engine(x[:1]), np.maximum(expected[:1], 0))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "out"),
    [
        ((2, 2), (2, 2), SAME, (10, 12)),
        ((3, 4), (2, 3), SAME, (10, 18)),
        ((3, 4), (2, 3), SAME, (9, 16)),
        ((3, 4), (2, 3), VALID, (11, 19)),
        ((1, 1), (2, 2), VALID, (10, 12)),  # one row and column that nothing reaches
    ],
)
def test_transposed_convolutions(tmp_path, kernel, stride, padding, out):
    x, weight, bias = normal(2, 5, 6, 4), pruned(7, *kernel, 4), normal(7)
    whole = [(n - 1) * s + k for n, s, k in zip((5, 6), stride, kernel)]
    before = [max(n - o, 0) // 2 for n, o in zip(whole, out)]
    full = np.zeros((2, *np.maximum(whole, out), 7))
    for i, j in np.ndindex(5, 6):
        rows, columns = slice(i * stride[0], i * stride[0] + kernel[0]), slice(j * stride[1], j * stride[1] + kernel[1])
        full[:, rows, columns] += np.einsum("nc,oijc->nijo", x[:, i, j], weight)
    expected = full[:, before[0] : before[0] + out[0], before[1] : before[1] + out[1]] + bias
    w = Writer()
    source = w.tensor((1, 5, 6, 4))
    shape = w.constant(np.array([1, *out, 7], np.int32))
    y = w.add("TRANSPOSE_CONV", [shape, w.constant(weight), source, w.constant(bias)], (1, *out, 7),
              "TransposeConvOptions", Padding=padding, StrideH=stride[0], StrideW=stride[1])  # fmt: skip
    engine = compiled(tmp_path, w, [source], [y])
    close(engine(x), expected)
    close(engine(x[:1]), expected[:1])


def test_transposed_convolutions_that_do_not_reach_their_output(tmp_path):
    w = Writer()
    x, shape = w.tensor((1, 5, 6, 4)), w.constant(np.array([1, 13, 12, 7], np.int32))
    y = w.add("TRANSPOSE_CONV", [shape, w.constant(pruned(7, 2, 2, 4)), x], (1, 13, 12, 7), "TransposeConvOptions",
              Padding=SAME, StrideH=2, StrideW=2)  # fmt: skip
    with pytest.raises(fs.FileFormatError, match="larger than strides of \\[2, 2\\] reach"):
        compiled(tmp_path, w, [x], [y])


@pytest.mark.parametrize("padding", [SAME, VALID])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_convolutions(tmp_path, padding, multiplier):
    x, weight = normal(1, 8, 7, 4), normal(1, 3, 3, 4 * multiplier)
    found = windows(x, (3, 3), (2, 2), padding)
    expected = np.einsum("nhwijc,ijcm->nhwcm", found, weight.reshape(3, 3, 4, multiplier))
    expected = expected.reshape(*expected.shape[:3], -1)
    w = Writer()
    source = w.tensor(x.shape)
    y = w.add("DEPTHWISE_CONV_2D", [source, w.constant(weight), -1], expected.shape, DEPTHWISE, Padding=padding,
              StrideH=2, StrideW=2, DepthMultiplier=multiplier, FusedActivationFunction=3)  # fmt: skip
    close(compiled(tmp_path, w, [source], [y])(x), np.clip(expected, 0, 6))


@pytest.mark.parametrize("stored", ["dense", "float16", "sparse", "sparse float16", "int8", "int8 per channel"])
def test_weights_however_they_are_stored(tmp_path, stored):
    weight, x, w = pruned(16, 1, 1, 24), normal(1, 5, 5, 24), Writer()
    source = w.tensor(x.shape)
    if stored.endswith("float16"):
        half = weight.astype(np.float16)
        weight = half.astype("f")
        held = w.sparse(half) if "sparse" in stored else w.constant(half)
        if "sparse" in stored:
            held = w.add("DENSIFY", [held], weight.shape, dtype="float16")
        held = w.add("DEQUANTIZE", [held], weight.shape)
    elif stored == "sparse":
        held = w.add("DENSIFY", [w.sparse(weight)], weight.shape)
    elif stored == "dense":
        held = w.constant(weight)
    else:
        steps = np.full(16, 0.02, "f") if stored == "int8" else RNG.uniform(0.01, 0.03, 16).astype("f")
        numbers = np.clip(np.round(weight / steps.reshape(-1, 1, 1, 1)), -127, 127).astype(np.int8)
        weight = numbers * steps.reshape(-1, 1, 1, 1)
        scale = {"scale": steps[0]} if stored == "int8" else {"scale": steps, "axis": 0}
        held = w.add("DEQUANTIZE", [w.constant(numbers, **scale)], weight.shape)
    y = w.add("CONV_2D", [source, held], (1, 5, 5, 16), CONV, Padding=SAME, StrideH=1, StrideW=1,
              DilationHFactor=1, DilationWFactor=1)  # fmt: skip
    close(compiled(tmp_path, w, [source], [y])(x), np.einsum("nhwc,oc->nhwo", x, weight[:, 0, 0]))


@pytest.mark.parametrize("kind", ["i4", "u2", "u1"])
@pytest.mark.parametrize(
    ("shape", "order", "block"),
    [((6, 8), None, ()), ((6, 8), [1, 0], ()), ((4, 1, 3, 10), None, ()), ((8, 6), None, ((1, 2),)),
     ((8, 6), [1, 0], ((0, 4),)), ((8, 6), None, ((0, 4), (1, 3))), ((5,), None, ()), ((4, 6, 2), [2, 0, 1], ())],
)  # fmt: skip
def test_sparse_tensors(tmp_path, kind, shape, order, block):
    """Also those without a nonzero, which hold no bytes."""
    for array in (pruned(*shape), np.zeros(shape, "f")):
        w, path = Writer(), tmp_path / "m.tflite"
        held = w.sparse(array, kind, order, block)
        path.write_bytes(w.finish([], [held]))
        np.testing.assert_array_equal(read(path).tensors[held].constant, array)


# ---------------------------------------------------------------- other operators


def resized(x, height, width, mode):
    """Bilinear, as TensorFlow's."""

    def axis(n, m):
        i = np.arange(m)
        place = i * (n - 1) / (m - 1) if mode == "AlignCorners" else i * n / m
        if mode == "HalfPixelCenters":
            place = (i + 0.5) * n / m - 0.5
        place = np.clip(place, 0, n - 1)
        low = np.floor(place).astype(int)
        return low, np.minimum(low + 1, n - 1), (place - low).astype("f")

    (a, b, t), (c, d, u) = axis(x.shape[1], height), axis(x.shape[2], width)
    t, u = t[:, None, None], u[None, :, None]
    rows = lambda i: x[:, i][:, :, c] * (1 - u) + x[:, i][:, :, d] * u  # noqa: E731
    return rows(a) * (1 - t) + rows(b) * t


def depth_to_space(x, size):
    n, h, w, _ = x.shape
    return x.reshape(n, h, w, size, size, -1).transpose(0, 1, 3, 2, 4, 5).reshape(n, h * size, w * size, -1)


def softmax(x, beta):
    e = np.exp(beta * (x - x.max(axis=-1, keepdims=True)))
    return e / e.sum(axis=-1, keepdims=True)


IMAGE, ROWS = normal(1, 4, 6, 8), normal(3, 10)
SLOPES, PLANE = normal(1, 1, 8), normal(1, 4, 6, 8)
PADS = np.array([[0, 0], [1, 2], [0, 1], [0, 0]], np.int32)
CHANNEL_PADS = np.array([[0, 0], [0, 0], [0, 0], [0, 5]], np.int32)
DENSE, BIAS = pruned(5, 10), normal(5)
FLAT = pruned(5, 192)
# Name: x, operator, constants, its options and their fields, the result.
CASES = {
    "relu": (IMAGE, "RELU", [], None, {}, np.maximum(IMAGE, 0)),
    "relu6": (3 * IMAGE, "RELU6", [], None, {}, np.clip(3 * IMAGE, 0, 6)),
    "logistic": (IMAGE, "LOGISTIC", [], None, {}, 1 / (1 + np.exp(-IMAGE))),
    "tanh of rows": (ROWS, "TANH", [], None, {}, np.tanh(ROWS)),
    "hard swish": (IMAGE, "HARD_SWISH", [], None, {}, IMAGE * np.clip(IMAGE + 3, 0, 6) / 6),
    "leaky": (IMAGE, "LEAKY_RELU", [], "LeakyReluOptions", {"Alpha": 0.3}, np.where(IMAGE > 0, IMAGE, 0.3 * IMAGE)),
    "prelu": (IMAGE, "PRELU", [SLOPES], None, {}, np.where(IMAGE > 0, IMAGE, SLOPES * IMAGE)),
    "add": (IMAGE, "ADD", [PLANE], "AddOptions", {"FusedActivationFunction": 1}, np.maximum(IMAGE + PLANE, 0)),
    "multiply channels": (IMAGE, "MUL", [SLOPES[0, 0]], "MulOptions", {}, IMAGE * SLOPES),
    "subtract a number": (IMAGE, "SUB", [np.float32(2)], "SubOptions", {}, IMAGE - 2),
    "add to rows": (ROWS, "ADD", [ROWS[:1]], "AddOptions", {}, ROWS + ROWS[:1]),
    "maximum": (IMAGE, "MAXIMUM", [PLANE], None, {}, np.maximum(IMAGE, PLANE)),
    "pad": (IMAGE, "PAD", [PADS], None, {}, np.pad(IMAGE, PADS)),
    "pad channels": (IMAGE, "PAD", [CHANNEL_PADS], None, {}, np.pad(IMAGE, CHANNEL_PADS)),
    "pad with a value": (IMAGE, "PADV2", [PADS, np.float32(3)], None, {}, np.pad(IMAGE, PADS, constant_values=3)),
    "max pool": (IMAGE, "MAX_POOL_2D", [], POOL, {"Padding": SAME, "StrideH": 2, "StrideW": 2, "FilterHeight": 3,
                 "FilterWidth": 3}, windows(IMAGE, (3, 3), (2, 2), SAME, fill=-np.inf).max((3, 4))),
    "mean pool": (IMAGE, "AVERAGE_POOL_2D", [], POOL, {"Padding": SAME, "StrideH": 2, "StrideW": 2, "FilterHeight": 3,
                  "FilterWidth": 3}, np.nanmean(windows(IMAGE, (3, 3), (2, 2), SAME, fill=np.nan), (3, 4))),
    "depth to space": (IMAGE, "DEPTH_TO_SPACE", [], "DepthToSpaceOptions", {"BlockSize": 2}, depth_to_space(IMAGE, 2)),
    "reshape": (IMAGE, "RESHAPE", [np.array([1, 48, 4], np.int32)], "ReshapeOptions", {}, IMAGE.reshape(1, 48, 4)),
    "reshape by options": (IMAGE, "RESHAPE", [], "ReshapeOptions", {"NewShape": [1, 192]}, IMAGE.reshape(1, 192)),
    "mean of images": (IMAGE, "MEAN", [np.array([1, 2], np.int32)], "ReducerOptions", {}, IMAGE.mean((1, 2))),
    "mean kept": (IMAGE, "MEAN", [np.array([2, 1], np.int32)], "ReducerOptions", {"KeepDims": True},
                  IMAGE.mean((1, 2), keepdims=True)),
    "mean of channels": (IMAGE, "MEAN", [np.array([-1], np.int32)], "ReducerOptions", {}, IMAGE.mean(3)),
    "sum": (IMAGE, "SUM", [np.array([3], np.int32)], "ReducerOptions", {"KeepDims": True}, IMAGE.sum(3, keepdims=True)),
    "transpose": (IMAGE, "TRANSPOSE", [np.array([0, 2, 3, 1], np.int32)], None, {}, IMAGE.transpose(0, 2, 3, 1)),
    "softmax": (IMAGE, "SOFTMAX", [], "SoftmaxOptions", {"Beta": 2.0}, softmax(IMAGE, 2)),
    "softmax of rows": (ROWS, "SOFTMAX", [], "SoftmaxOptions", {"Beta": 1.0}, softmax(ROWS, 1)),
    "slice": (IMAGE, "STRIDED_SLICE", [np.array(a, np.int32) for a in ([0, 1, 0, -1], [1, 4, 6, 0], [1, 2, 1, -2])],
              "StridedSliceOptions", {"BeginMask": 4, "EndMask": 4}, IMAGE[:, 1:4:2, :, -1:0:-2]),
    "slice and shrink": (IMAGE, "STRIDED_SLICE", [np.array(a, np.int32) for a in ([0, 2, 0, 0], [0, 3, 6, 8], [1] * 4)],
                         "StridedSliceOptions", {"BeginMask": 1, "EndMask": 1, "ShrinkAxisMask": 2}, IMAGE[:, 2]),
    "squeeze": (IMAGE.mean((1, 2), keepdims=True), "SQUEEZE", [], "SqueezeOptions", {"SqueezeDims": [1, 2]},
                IMAGE.mean((1, 2))),
    "fully connected": (ROWS, "FULLY_CONNECTED", [DENSE, BIAS], "FullyConnectedOptions",
                        {"FusedActivationFunction": 1}, np.maximum(ROWS @ DENSE.T + BIAS, 0)),
    "fully connected image": (IMAGE, "FULLY_CONNECTED", [FLAT], "FullyConnectedOptions", {},
                              IMAGE.reshape(1, -1) @ FLAT.T),
    "fully connected, axes kept": (normal(1, 3, 10), "FULLY_CONNECTED", [DENSE, BIAS], "FullyConnectedOptions",
                                   {"KeepNumDims": True}, None),
    "matrices": (IMAGE, "BATCH_MATMUL", [DENSE[:, :8]], "BatchMatMulOptions", {"AdjY": True}, IMAGE @ DENSE[:, :8].T),
    "matrices, transposed": (IMAGE, "BATCH_MATMUL", [PLANE], "BatchMatMulOptions", {"AdjX": True},
                             IMAGE.transpose(0, 1, 3, 2) @ PLANE),
    "nearest": (IMAGE, "RESIZE_NEAREST_NEIGHBOR", [np.array([8, 12], np.int32)], "ResizeNearestNeighborOptions", {},
                IMAGE.repeat(2, 1).repeat(2, 2)),
    **{f"bilinear {mode}": (IMAGE, "RESIZE_BILINEAR", [np.array([7, 12], np.int32)], "ResizeBilinearOptions",
                            {mode: True} if mode else {}, resized(IMAGE, 7, 12, mode))
       for mode in ("", "AlignCorners", "HalfPixelCenters")},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators(tmp_path, name):
    x, kind, constants, options, fields, expected = CASES[name]
    expected = x @ DENSE.T + BIAS if expected is None else expected
    w = Writer()
    source = w.tensor(x.shape)
    y = w.add(kind, [source, *map(w.constant, constants)], expected.shape, options, **fields)
    close(compiled(tmp_path, w, [source], [y])(x), expected.astype("f"))


@pytest.mark.parametrize("axis", [1, 3, -1])
def test_concatenation_of_several_inputs(tmp_path, axis):
    w, (x, z) = Writer(), (normal(1, 4, 6, 8), normal(1, 4, 6, 8))
    expected = np.concatenate([x, z, x], axis)
    ends = [w.tensor(x.shape), w.tensor(z.shape)]
    y = w.add("CONCATENATION", [ends[0], ends[1], ends[0]], expected.shape, "ConcatenationOptions", Axis=axis)
    engine = compiled(tmp_path, w, ends, [y])
    assert engine.input_names == ("t0", "t1")
    close(engine.run([x, z])[0], expected)


def small_network(w):
    """PAD, strided convolution, residual, head: as detectors on phones are made."""
    x = w.tensor((1, 8, 8, 3))
    pads = w.constant(np.array([[0, 0], [0, 1], [0, 1], [0, 0]], np.int32))
    options = {"Padding": VALID, "DilationHFactor": 1, "DilationWFactor": 1}
    first, second = pruned(8, 3, 3, 3), pruned(8, 1, 1, 8, sparsity=0.6)
    padded = w.add("PAD", [x, pads], (1, 9, 9, 3))
    y = w.add("CONV_2D", [padded, w.constant(first)], (1, 4, 4, 8), CONV, StrideH=2, StrideW=2,
              FusedActivationFunction=1, **options)  # fmt: skip
    z = w.add("DENSIFY", [w.sparse(second)], second.shape)
    z = w.add("CONV_2D", [y, z], (1, 4, 4, 8), CONV, StrideH=1, StrideW=1, **options)
    z = w.add("ADD", [y, z], (1, 4, 4, 8), "AddOptions")
    head = w.add("RESHAPE", [z, w.constant(np.array([1, 32, 4], np.int32))], (1, 32, 4), "ReshapeOptions")

    def reference(x):
        padded = np.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])
        y = np.maximum(np.einsum("nhwijc,oijc->nhwo", windows(padded, (3, 3), (2, 2), VALID), first), 0)
        return y + y @ second[:, 0, 0].T

    return x, [head, z], lambda x: [reference(x).reshape(len(x), 32, 4), reference(x)]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_small_network(tmp_path, batch):
    w = Writer()
    source, outputs, reference = small_network(w)
    engine = compiled(tmp_path, w, [source], outputs)
    x = normal(batch, 8, 8, 3)
    for found, expected in zip(engine.run([x]), reference(x)):
        close(found, expected)
    assert "Pad" not in {node.op for node in engine._simple.nodes}, "convolutions take pads in"
    engine.save(tmp_path / "engine")
    for found, expected in zip(fs.load_engine(tmp_path / "engine").run([x]), reference(x)):
        close(found, expected)


# ---------------------------------------------------------------- refused


def test_operators_that_are_not_known(tmp_path):
    w = Writer()
    x = w.tensor((1, 4))
    y = w.add("MyOwnOperator", [x], (1, 4))
    with pytest.raises(fs.UnsupportedOperatorError, match="operator MyOwnOperator is not supported in TFLite models"):
        compiled(tmp_path, w, [x], [y])


def test_tensors_of_types_that_numpy_does_not_have(tmp_path):
    w = Writer()
    x, states = w.tensor((1, 4)), w.tensor((1, 4), "resource")
    y = w.add("ADD", [x, states], (1, 4))
    with pytest.raises(fs.UnsupportedOperatorError, match="type RESOURCE, which is not supported in TFLite models"):
        compiled(tmp_path, w, [x], [y])


def test_logistic_of_small_numbers_is_exact(tmp_path):
    w, x = Writer(), np.linspace(-80, -15, 64, dtype=np.float32).reshape(1, 64)
    source = w.tensor(x.shape)
    y = w.add("LOGISTIC", [source], x.shape)
    np.testing.assert_allclose(compiled(tmp_path, w, [source], [y])(x), 1 / (1 + np.exp(-x.astype(float))), rtol=1e-6)


def test_quantised_activations(tmp_path):
    w = Writer()
    x = w.tensor((1, 4), "int8", scale=0.1)
    y = w.add("RELU", [x], (1, 4), dtype="int8")
    with pytest.raises(fs.UnsupportedOperatorError, match="RELU computes with quantised numbers"):
        compiled(tmp_path, w, [x], [y])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": [0, 0]}, "has levels [0, 0]"),
        ({"order": [0]}, "has levels [0]"),
        ({"blocks": [7], "order": [0, 1, 2]}, "blocks of axes [7]"),
        ({"levels": [2**30, ([0], [])]}, "has a dense level of 1073741824"),
        ({"levels": [0, ([0], [])]}, "has a dense level of 0"),
        ({"levels": [4, ([0, 1, 2, 3, 3], [9, 0, 1])]}, "has 4 numbers for 3 places"),
        ({"levels": [4, ([0, 1, 2, 3, 4], [9, 0, 1, 0])]}, "has indices outside of shape (4, 5)"),
        ({"levels": [4, ([0, 2, 1, 3, 4], [0, 1, 2, 3])]}, "has segments that do not fit"),
        ({"levels": [4, ([0, 1, 2, 3, 9], [0, 1, 2, 3])]}, "has segments that do not fit"),
        ({"levels": [4, ([0, 4], [0, 1, 2, 3])]}, "has segments that do not fit"),
    ],
)
def test_sparsity_that_does_not_fit(tmp_path, change, message):
    w = Writer()
    sparsity = {"order": [0, 1], "blocks": [], "levels": [4, ([0, 1, 2, 3, 4], [0, 1, 2, 3])], "kind": "i4", **change}
    w.tensor((4, 5), data=np.ones(4, "f"), sparsity=sparsity)
    path = tmp_path / "m.tflite"
    path.write_bytes(w.finish([], []))
    with pytest.raises(fs.FileFormatError, match=re.escape(message)):
        fs.compile(path)


def test_sparsity_of_more_places_than_the_file_has_bytes(tmp_path):
    w = Writer()
    sparsity = {"order": [0, 1], "blocks": [], "levels": [2048, 2048], "kind": "i4"}
    w.tensor((2048, 2048), data=np.ones(4, "f"), sparsity=sparsity)
    (tmp_path / "m.tflite").write_bytes(w.finish([], []))
    with pytest.raises(fs.FileFormatError, match="has a dense level of 2048"):
        fs.compile(tmp_path / "m.tflite")


def test_huge_shapes(tmp_path):
    for shape in ((2**16, 2**15), (-1, 4), (4, 6)):
        w = Writer()
        w.tensor(shape, data=np.ones(4, "f"))
        (tmp_path / "m.tflite").write_bytes(w.finish([], []))
        with pytest.raises(fs.FileFormatError, match="damaged"):
            fs.compile(tmp_path / "m.tflite")


@pytest.mark.F2
@pytest.mark.parametrize("what", ["names", "inputs"])
def test_what_stands_in_many_places_is_not_taken_many_times(tmp_path, monkeypatch, what):
    """Tables of a flatbuffer may share their strings and vectors."""
    w = Writer()
    x = w.tensor((1, 4))
    long = w.b.CreateString("x" * 100_000), w._numbers([x] * 20_000)
    if what == "inputs":
        w._numbers = lambda values, dtype="int32", make=w._numbers: long[1] if values == [x] else make(values, dtype)
    else:
        monkeypatch.setattr(type(w.b), "CreateString", lambda builder, text: long[0])
    for _ in range(700):
        w.add("RELU", [x], (1, 4))
    (tmp_path / "m.tflite").write_bytes(w.finish([], [len(w.tensors) - 1]))
    with pytest.raises(fs.FileFormatError, match="takes far more memory than the file"):
        fs.compile(tmp_path / "m.tflite")


def test_damage_is_one_error(tmp_path):
    w = Writer()
    source, outputs, _ = small_network(w)
    content, path = w.finish([source], outputs), tmp_path / "m.tflite"
    rng, refused = np.random.default_rng(0), 0
    for trial in range(150):
        damaged = bytearray(content)
        if trial % 4 == 0:
            del damaged[rng.integers(len(damaged)) :]
        else:
            for at in rng.integers(len(damaged), size=rng.integers(1, 5)):
                damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            from fastsparse.tflite.to_onnx import model_of

            model_of(path)
        except (fs.FileFormatError, fs.UnsupportedOperatorError):
            refused += 1
    assert refused > 40
    (tmp_path / "m.tflite").write_bytes(b"\0" * 64)
    with pytest.raises(fs.FileFormatError, match="is not a TFLite model"):
        fs.compile(path)


def test_bench(tmp_path, capsys):
    from fastsparse.cli import main

    w = Writer()
    source, outputs, _ = small_network(w)
    (tmp_path / "m.tflite").write_bytes(w.finish([source], outputs))
    assert main(["bench", str(tmp_path / "m.tflite"), "--against", "onnxruntime", "--seconds", "0.01", "-b", "2"]) == 0
    assert "onnxruntime" in capsys.readouterr().out
