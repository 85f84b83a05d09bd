"""Patterns that become one operator, those that only look like it, and how graphs are cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import helper

from fastsparse.onnx.executor import Host, Kernels
from fastsparse.onnx.lowering import contraction
from tests.onnx import models

onnxruntime = pytest.importorskip("onnxruntime")


def _ops(model, **shapes):
    return [node.op for node in models.on_kernels(model, shapes)._simple.nodes]


def _same(model, rng, *shapes):
    """The engine gives what ONNX's own implementation gives; the second call runs on memory that is shared."""
    inputs = [rng.standard_normal(shape).astype("float32") for shape in shapes]
    engine = models.on_kernels(model, list(shapes))
    wanted = models.reference(model, inputs)
    for _ in range(2):
        assert max(models.shares(engine.run(inputs), wanted)) < 2e-6


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


@pytest.mark.parametrize("spelling", ["x / (1 + exp(-x))", "x * min(max(x / 6 + 0.5, 0), 1)", "0.5 x (tanh + 1)"])
def test_activations_are_known_by_what_they_compute(spelling, rng):
    b = models.Builder()
    if spelling.startswith("x / "):
        y, op = b.add("Div", "x", b.add("Add", b.constant(1), b.add("Exp", b.add("Neg", "x")))), "Swish"
    elif spelling.startswith("x * "):
        line = b.add("Add", b.add("Div", "x", b.constant(6)), b.constant(0.5))
        y, op = b.add("Mul", "x", b.add("Min", b.add("Max", line, b.constant(0)), b.constant(1))), "HardSwish"
    else:
        square = b.add("Add", b.add("Mul", b.add("Mul", "x", "x"), b.constant(0.044715)), b.constant(1))
        tanh = b.add("Tanh", b.add("Mul", b.add("Mul", "x", b.constant(math.sqrt(2 / math.pi))), square))
        y, op = b.add("Mul", b.add("Mul", "x", b.add("Add", tanh, b.constant(1))), b.constant(0.5)), "Gelu"
    model = b.model({"x": [4, 8]}, [y])
    assert _ops(model, x=(4, 8)) == [op]
    _same(model, rng, (4, 8))


@pytest.mark.parametrize("both", [True, False])
def test_activations_behind_a_node_of_several_results(both, rng):
    b = models.Builder()
    first, second = b.add("Split", "x", b.constant([3, 5], "int64"), outputs=2, axis=1)
    y = b.add("Relu", b.add("Add", second, second))
    model = b.model({"x": [4, 8]}, [y, b.add("Neg", first)] if both else [y])
    _same(model, rng, (4, 8))


@pytest.mark.parametrize("constant", [0.5005, 1 / math.sqrt(2) + 1e-4])
def test_constants_near_those_of_gelu_are_no_gelu(constant, rng):
    b = models.Builder()
    half, root = (constant, math.sqrt(0.5)) if constant < 0.6 else (0.5, constant)
    shifted = b.add("Add", b.add("Erf", b.add("Mul", "x", b.constant(root))), b.constant(1))
    model = b.model({"x": [4, 8]}, [b.add("Mul", b.add("Mul", "x", b.constant(half)), shifted)])
    assert "Erf" in _ops(model, x=(4, 8))
    _same(model, rng, (4, 8))


def test_what_is_constant_runs_before(rng):
    """Weights behind nodes that only convert them, biases that are computed, and new shapes from sizes."""
    b = models.Builder()
    weight = b.add("Transpose", b.add("Cast", b.add("Identity", b.weight(128, 32)), to=1), perm=[1, 0])
    bias = b.add("Mul", b.vector(128), b.constant(2))
    x = b.add("Relu", b.add("Add", b.add("MatMul", "x", weight), bias))
    batch = b.add("Gather", b.add("Shape", "x"), b.constant(0, "int64"), axis=0)
    sizes = b.add("Concat", b.add("Unsqueeze", batch, b.constant([0], "int64")), b.constant([128], "int64"), axis=0)
    model = b.model({"x": ["N", 1, 32]}, [b.linear(b.add("Reshape", x, sizes), 128, 8)])
    segments, hosts = _cut(model, x=(2, 1, 32))
    assert len(segments) == 1
    assert not hosts
    for batch in (2, 3, 1):
        _same(model, rng, (batch, 1, 32))


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(alpha, transposed, rng):
    b = models.Builder()
    shape = (24, 16) if transposed else (16, 24)
    y = b.add("Gemm", "x", b.weight(*shape), b.vector(24), transB=transposed, alpha=alpha, beta=1 - alpha / 4)
    model = b.model({"x": ["N", 16]}, [b.add("Relu", y)])
    segments, hosts = _cut(model, x=(4, 16))
    assert (len(segments), hosts) == (1, [])
    _same(model, rng, (5, 16))


def test_weights_with_axes_of_one(rng):
    b = models.Builder()
    weight = b.add("Unsqueeze", b.weight(16, 24), b.constant([0], "int64"))
    model = b.model({"x": ["N", 16]}, [b.add("Tanh", b.add("MatMul", "x", weight))])
    assert _cut(model, x=(4, 16))[1] == []
    _same(model, rng, (5, 16))


@pytest.mark.parametrize("shape", [(16, 24), (3, 16, 24), (2, 3, 16, 24), (1, 1, 16, 1), (16, 16), (2, 24, 16, 16)])
def test_a_sparse_matrix_on_the_left(shape, rng):
    """Its bias is one number per row of the result, also where rows and columns, or other sizes, are as many."""
    for per_row in (True, False):
        b = models.Builder()
        bias = b.constant(rng.standard_normal((24, 1) if per_row else shape[-1:]))
        y = b.add("Relu", b.add("Add", b.add("MatMul", b.weight(24, 16), "x"), bias))
        model = b.model({"x": list(shape)}, [y])
        segments, hosts = _cut(model, x=shape)
        assert len(segments) == 1
        assert not hosts or (not per_row and shape[-1] > 1)
        _same(model, rng, shape)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_with_a_sparse_matrix_on_the_left(transposed, rng):
    b = models.Builder()
    shape = (16, 24) if transposed else (24, 16)
    bias = b.constant(rng.standard_normal((24, 1)))
    y = b.add("Gemm", b.weight(*shape), "x", bias, transA=transposed, alpha=0.5, beta=2.0)
    model = b.model({"x": [16, 5]}, [b.add("Relu", y)])
    assert _cut(model, x=(16, 5))[1] == []
    _same(model, rng, (16, 5))


@pytest.mark.parametrize(
    ("shape", "window", "attributes", "taken"),
    [
        ((6, 5, 7), (2, 2), {"strides": [2, 2]}, True),
        ((6, 5, 7), (3, 4), {"strides": [2, 3], "pads": [1, 0, 2, 1], "output_padding": [1, 2]}, True),
        ((6, 5, 7), (3, 3), {"pads": [1, 1, 1, 1]}, True),
        ((6, 5, 7), (3, 2), {"dilations": [2, 3], "strides": [3, 2], "group": 2}, True),
        ((6, 9), (5,), {"strides": [3], "pads": [1, 2]}, True),
        ((6, 3, 4, 5), (2, 1, 3), {"strides": [2, 1, 2]}, True),
        ((6, 5, 7), (1, 1), {}, True),
        ((6, 5, 7), (3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, False),
        ((6, 5, 7), (3, 3), {"strides": [2, 2], "pads": [1, 1, 0, 0], "output_shape": [10, 14]}, False),
    ],
)
def test_transposed_convolutions(shape, window, attributes, taken, rng):
    """By a sparse weight they run on the kernels, and what follows stays there."""
    b, group = models.Builder(), attributes.get("group", 1)
    y = b.add("ConvTranspose", "x", b.weight(6, 8, *window), b.constant(rng.standard_normal(8 * group)), **attributes)
    y = b.add("Add", b.add("Relu", y), b.constant(rng.standard_normal((8 * group, *(1,) * len(window)))))
    model = b.model({"x": ["N", *shape]}, [y])
    segments, hosts = _cut(model, x=(2, *shape))
    assert (len(segments), not hosts) == (taken, taken)
    session = onnxruntime.InferenceSession(model.SerializeToString())  # onnx.reference has no groups
    engine = models.on_kernels(model, [(2, *shape)])
    for samples in (2, 17, 1):
        x = rng.standard_normal((samples, *shape)).astype("float32")
        assert max(models.shares(engine.run([x]), session.run(None, {"x": x}))) < 2e-6


_SIZES = {"a": 3, "b": 5, "c": 16, "d": 6, "e": 4, "f": 8}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    ("x", "weight", "y", "taken"),
    [
        ("ac", "cd", "ad", True),
        ("abc", "dc", "abd", True),
        ("abc", "cde", "abde", True),
        ("abc", "ecd", "abde", True),
        ("abde", "dce", "abc", True),
        ("abde", "fdec", "abcf", True),
        ("... c", "cd", "...d", True),
        ("abcd", "ce", "abde", False),  # what is summed is not last
        ("abc", "cd", "adb", False),  # nor is what the weight brings
        ("abc", "bcd", "abd", False),  # an axis that both have and y keeps
        ("abc", "cd", "ad", False),  # an axis of x is summed
        ("abc", "cd", "ab", False),  # an axis of the weight is summed
        ("abc", "d", "abcd", False),
    ],
)
def test_einsum(x, weight, y, taken, left, rng):
    """A weight of any axes is a matrix where x's last axes are summed; a bias of its axes follows."""
    b, shapes = models.Builder(), {x: tuple(_SIZES[a] for a in x.replace("... ", "ab"))}
    terms = (weight, x) if left else (x, weight)
    operands = [b.weight(*(_SIZES[a] for a in weight))] * left + ["x"] + [b.weight(*(_SIZES[a] for a in weight))]
    product = b.add("Einsum", *operands[:2], equation=f"{','.join(terms)} -> {y}")
    bias = b.constant(rng.standard_normal([_SIZES[a] for a in y if a in weight] if taken else [1]))
    model = b.model({"x": ["N", *shapes[x][1:]]}, [b.add("Add", product, bias)])
    segments, hosts = _cut(model, x=shapes[x])
    assert (len(segments), not hosts) == (taken, taken)
    _same(model, rng, shapes[x])
    _same(model, rng, (7, *shapes[x][1:]))


@pytest.mark.parametrize("equation", ["ab,bc", "ab,bc,cd->ad", "aab,bc->ac", "ab,bb->ab", "1b,bc->1c", "", "ab->ab"])
def test_equations_that_are_no_products_by_a_weight(equation):
    assert contraction(equation, False) is None
    assert contraction(None, True) is None


# ---------------------------------------------------------------- cutting


def _cut(model, **shapes):
    """Nodes of every region by name, and the library's."""
    steps = models.on_kernels(model, shapes)._plan().steps
    regions = [tuple(node.name for node in step.nodes) for step in steps if isinstance(step, Kernels)]
    return regions, [node.name for step in steps if not isinstance(step, Kernels) for node in step.nodes]


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


@pytest.mark.parametrize("first", ["image", "gate"])
@pytest.mark.parametrize("by", ["Conv", "Gemm"])
def test_squeeze_and_excitation_is_one_segment(by, first, rng):
    b = models.Builder()
    image = b.add("Relu", b.conv("x", 4, 6))
    g = b.add("GlobalAveragePool", image)
    if by == "Conv":
        g = b.conv(b.add("Relu", b.conv(g, 6, 3, 1)), 3, 6, 1)
    else:
        g = b.add("Gemm", b.add("Flatten", g), b.weight(6, 6), b.vector(6), transB=1)
    g = b.add("HardSigmoid", g, alpha=0.2 if first == "gate" else 1 / 6)
    if by == "Gemm":
        g = b.add("Unsqueeze", g, b.constant([2, 3], "int64"))
    y = b.add("Mul", *((image, g) if first == "image" else (g, image)))
    model = b.model({"x": ["N", 4, 6, 7]}, [b.conv(y, 6, 3, 1)])
    segments, hosts = _cut(model, x=(2, 4, 6, 7))
    assert (len(segments), hosts) == (1, [])
    for batch in (1, 2, 17):
        _same(model, rng, (batch, 4, 6, 7))


def test_images_in_the_order_of_tensorflow_are_one_segment(rng):
    """Every convolution stands between two transpositions, with what works on channels last between them."""
    b, x = models.Builder(), "x"
    for channels, out in ((4, 6), (6, 8), (8, 5)):
        x = b.conv(b.add("Transpose", x, perm=[0, 3, 1, 2]), channels, out)
        x = b.add("Relu", b.add("Mul", b.add("Transpose", x, perm=[0, 2, 3, 1]), b.vector(out)))
    model = b.model({"x": ["N", 6, 7, 4]}, [x])
    segments, hosts = _cut(model, x=(2, 6, 7, 4))
    assert len(segments) == 1
    assert {"n0", "n12", "n13", "n14"}.issuperset(hosts)  # before the first convolution and behind the last one
    for batch in (2, 1, 17):
        _same(model, rng, (batch, 6, 7, 4))


@pytest.mark.parametrize("version", [3, 4])
def test_files_of_old_formats_have_shapes(version, rng):
    """Up to version 3 all initializers are inputs, too."""
    b = models.Builder()
    model = b.model({"x": ["N", 4, 6, 7]}, [b.add("Relu", b.conv(b.conv("x", 4, 6), 6, 3))], opset=8)
    model.ir_version = version
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    segments, hosts = _cut(model, x=(2, 4, 6, 7))
    assert (len(segments), hosts) == (1, [])
    _same(model, rng, (3, 4, 6, 7))


@pytest.mark.parametrize("by", ["slopes per channel", "one slope", "LeakyRelu", "of rows"])
def test_slopes_below_zero_stay_between_products(by, rng):
    """relu(x) - slope * relu(-x) runs in the kernels' layouts: exactly, of infinities, too."""
    b, image = models.Builder(), by != "of rows"
    x = b.conv("x", 4, 6) if image else b.linear("x", 4, 6)
    slopes = np.array([-0.3, 0, 1e-6, 0.25, 1, 1.7]).reshape((6, 1, 1) if image else 6)
    if by == "LeakyRelu":
        x = b.add("LeakyRelu", x, alpha=0.2)
    else:
        x = b.add("PRelu", x, b.constant(slopes[:1] if by == "one slope" else slopes))
    y = b.conv(x, 6, 3, 1) if image else b.linear(x, 6, 3)
    model = b.model({"x": ["N", 4, 6, 7] if image else ["N", 4]}, [y, x])
    shape = (2, 4, 6, 7) if image else (2, 4)
    segments, hosts = _cut(model, x=shape)
    assert (len(segments), hosts) == (1, [])
    for batch in (1, 2, 17):
        _same(model, rng, (batch, *shape[1:]))


@pytest.mark.parametrize("infinite", [np.inf, -np.inf, np.nan])
def test_slopes_below_zero_of_numbers_that_are_not_finite(infinite):
    b = models.Builder()
    y = b.add("PRelu", b.add("Conv", "x", b.constant(np.eye(4).reshape(4, 4, 1, 1))), b.constant([[[0.25]]] * 4))
    x = np.full((1, 4, 3, 3), infinite, "float32")
    x[0, 1:] = 0  # the weights' zeros are none for ONNX, and times infinity they are no numbers
    engine = models.on_kernels(b.model({"x": [1, 4, 3, 3]}, [y]), [x.shape])
    np.testing.assert_array_equal(engine(x)[0, 0], np.where(x[0, 0] < 0, 0.25, 1) * x[0, 0])


@pytest.mark.parametrize("shape", ["same", "spatial", "of another batch", "one channel"])
def test_products_that_are_no_gates_are_the_librarys(shape, rng):
    b = models.Builder()
    left, right = b.conv("x", 4, 4), b.conv("x", 4, 4, 1)
    if shape == "spatial":
        right = b.add("ReduceMean", right, axes=[1], keepdims=1)
    elif shape == "of another batch":
        right = b.add("ReduceMean", right, axes=[0, 2, 3], keepdims=1)
    elif shape == "one channel":
        right = b.add("ReduceMean", right, axes=[1, 2, 3], keepdims=1)
    model = b.model({"x": ["N", 4, 5, 5]}, [b.conv(b.add("Mul", left, right), 4, 2, 1)])
    assert "Mul" in [b.nodes[int(name[1:])].op_type for name in _cut(model, x=(2, 4, 5, 5))[1]]
    _same(model, rng, (2, 4, 5, 5))
    _same(model, rng, (1, 4, 5, 5))


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


def test_new_shapes_that_others_want(rng):
    b = models.Builder()
    x = b.add("Relu", b.add("Conv", "x", b.weight(4, 3, 1, 1)))
    flat = b.add("Flatten", x)
    y = b.add("Gemm", flat, b.weight(5, 64), transB=1)
    model = b.model({"x": ["N", 3, 4, 4]}, [y, b.add("Sin", flat), flat])
    segments, hosts = _cut(model, x=(2, 3, 4, 4))
    assert segments == [("n0", "n1", "n2", "n3")]
    assert hosts == ["n4"]
    _same(model, rng, (2, 3, 4, 4))
    _same(model, rng, (9, 3, 4, 4))


@pytest.mark.parametrize(
    ("mode", "where", "rounded", "scales", "sizes", "taken"),
    [
        ("nearest", "asymmetric", "floor", [1, 1, 2, 2], None, True),
        ("nearest", "asymmetric", "floor", [1, 1, 3, 1], None, True),
        ("nearest", "half_pixel", "round_prefer_floor", [1, 1, 2, 4], None, True),
        ("nearest", "half_pixel", "round_prefer_ceil", None, [2, 4, 15, 12], True),
        ("linear", "half_pixel", "floor", [1, 1, 2, 2], None, True),
        ("linear", "half_pixel", "floor", None, [2, 4, 5, 18], True),
        ("nearest", "asymmetric", "round_prefer_floor", [1, 1, 2, 2], None, False),
        ("nearest", "half_pixel", "floor", [1, 1, 2, 2], None, False),
        ("nearest", "asymmetric", "floor", [1, 1, 1.5, 2], None, False),
        ("nearest", "asymmetric", "floor", None, [2, 4, 5, 3], False),
        ("nearest", "asymmetric", "floor", [1, 2, 2, 2], None, False),
        ("linear", "align_corners", "floor", [1, 1, 2, 2], None, False),
        ("cubic", "half_pixel", "floor", [1, 1, 2, 2], None, False),
    ],
)
def test_resizing_to_multiples_stays_in_the_kernels(mode, where, rounded, scales, sizes, taken, rng):
    b = models.Builder()
    given = [b.constant(scales or [], "float32"), *([] if sizes is None else [b.constant(sizes, "int64")])]
    x = b.add("Relu", b.add("Conv", "x", b.weight(4, 3, 1, 1)))
    x = b.add("Resize", x, "", *given, mode=mode, coordinate_transformation_mode=where, nearest_mode=rounded)
    channels = 8 if scales and scales[1] == 2 else 4
    y = b.add("Conv", x, b.weight(5, channels, 3, 3), pads=[1, 1, 1, 1])
    model = b.model({"x": [2, 3, 5, 6]}, [y])
    segments, hosts = _cut(model, x=(2, 3, 5, 6))
    assert (segments, hosts) == ([("n0", "n1", "n2", "n3")], []) if taken else hosts == ["n2"]
    _same(model, rng, (2, 3, 5, 6))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_channels_become_positions_in_the_kernels(mode, rng):
    b = models.Builder()
    x = b.add("DepthToSpace", b.add("Conv", "x", b.weight(18, 3, 1, 1)), blocksize=3, mode=mode)
    y = b.add("Conv", b.add("Relu", x), b.weight(5, 2, 3, 3), pads=[1, 1, 1, 1])
    model = b.model({"x": ["N", 3, 5, 6]}, [y])
    segments, hosts = _cut(model, x=(2, 3, 5, 6))
    assert (segments, hosts) == ([("n0", "n1", "n2", "n3")], [])
    for batch in (1, 2, 17):
        _same(model, rng, (batch, 3, 5, 6))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_channels_that_make_no_whole_squares_are_refused(mode):
    b = models.Builder()
    model = b.model({"x": [2, 15, 2, 2]}, [b.add("DepthToSpace", "x", blocksize=2, mode=mode)])
    with pytest.raises(ValueError, match=r"cannot be computed: .*multiple of"):
        models.on_kernels(model, (2, 15, 2, 2))(np.ones((2, 15, 2, 2), np.float32))


def test_chains_of_new_shapes_between_regions(rng):
    b = models.Builder()
    x = b.add("Conv", "x", b.weight(4, 3, 5, 1))
    for op, axis in (("Squeeze", 2), ("Identity", None), ("Unsqueeze", 3)):
        x = b.add(op, x, *([] if axis is None else [b.constant([axis], "int64")]))
    model = b.model({"x": ["N", 3, 5, 6]}, [b.add("Conv", x, b.weight(2, 4, 1, 1))])
    engine = models.on_kernels(model, (2, 3, 5, 6))
    assert [type(step) for step in engine._plan().steps] == [Kernels, Host, Kernels]
    for _ in range(3):
        x = rng.standard_normal((2, 3, 5, 6)).astype("float32")
        assert max(models.shares(engine.run([x]), models.reference(model, [x]))) < 2e-6


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
    engine = models.on_kernels(models.residual_network())
    for batch in (1, 2, 7):
        engine.run(engine.random_inputs(batch))
    assert [len(step._entries) for step in engine._plan().kernels] == [1]


def test_other_shapes_than_the_kernels_take_go_to_the_library(rng):
    """A new shape that flattens images of one size, and splits those of others."""
    b = models.Builder()
    x = b.add("Reshape", b.add("Conv", "x", b.weight(4, 3, 1, 1)), b.constant([-1, 64], "int64"))
    model = b.model({"x": ["N", 3, "H", 4]}, [b.add("MatMul", x, b.weight(64, 5))])
    engine = models.on_kernels(model, (2, 3, 4, 4))
    assert [type(step) for step in engine._plan().steps] == [Kernels]
    for height in (4, 8, 4):
        x = rng.standard_normal((2, 3, height, 4)).astype("float32")
        for _ in range(2):
            assert max(models.shares(engine.run([x]), models.reference(model, [x]))) < 2e-6


def test_sparse_layers_of_half_precision_compute_in_float32(rng):
    b = models.Builder()
    weight = b.add("Cast", b.weight(64, 128), to=10)
    y = b.add("Softmax", b.add("Relu", b.add("MatMul", b.add("Cast", "x", to=10), weight)), axis=-1)
    model = b.model({"x": ["N", 64]}, [b.add("Cast", y, to=1)])
    assert _cut(model, x=(4, 64))[0] == [("n2", "n3")]
    x = rng.standard_normal((4, 64)).astype("float32")
    engine = models.on_kernels(model, (4, 64))
    for _ in range(2):
        assert max(models.shares(engine.run([x]), models.reference(model, [x]))) < 2e-3


def test_unknown_weights_run_on_the_host(rng):
    b = models.Builder()
    model = b.model({"x": ["N", 3, 5, 5], "w": [4, 3, 2, 2]}, [b.add("Relu", b.add("Conv", "x", "w"))])
    segments, hosts = _cut(model, x=(2, 3, 5, 5), w=(4, 3, 2, 2))
    assert not segments
    assert hosts == ["n0", "n1"]
    _same(model, rng, (2, 3, 5, 5), (4, 3, 2, 2))


def test_a_model_of_shapes_alone(rng):
    b = models.Builder()
    sizes = b.add("Shape", "x")
    y = b.add("ConstantOfShape", b.add("Mul", sizes, b.constant([2, 1], "int64")))
    engine = models.on_kernels(b.model({"x": ["N", 3]}, [y]))
    for n in (4, 5):
        np.testing.assert_array_equal(engine(np.ones((n, 3), np.float32)), np.zeros((2 * n, 3)))


def test_graphs_in_nodes_read_what_is_outside(rng):
    """An If whose branches read a region's result, in front of another region."""
    from onnx import TensorProto, helper

    b = models.Builder()
    x = b.add("Relu", b.add("MatMul", "x", b.weight(16, 16)))
    branches = []
    for op in ("Neg", "Abs"):
        value = helper.make_tensor_value_info(f"{op}_y", TensorProto.FLOAT, None)
        node = helper.make_node(op, [x], [value.name])
        branches.append(helper.make_graph([node], op, [], [value]))
    flag = b.add("Greater", b.add("ReduceSum", "x", keepdims=0), b.constant(0))
    y = b.add("If", flag, then_branch=branches[0], else_branch=branches[1])
    model = b.model({"x": ["N", 16]}, [b.add("MatMul", y, b.weight(16, 8))])
    segments, _ = _cut(model, x=(3, 16))
    assert len(segments) == 2
    for sign in (1, -1):
        data = sign * np.abs(rng.standard_normal((3, 16))).astype("float32")
        found = models.on_kernels(model, (3, 16)).run([data])
        assert max(models.shares(found, models.reference(model, [data]))) < 2e-6


@pytest.mark.parametrize("batch", [1, 3])
def test_joined_channels_stay_in_one_region(batch, rng):
    """Of images, with readers besides; of rows; with a term from outside; a result that is joined."""
    b = models.Builder()
    first = b.add("Relu", b.conv("x", 3, 8))
    second = b.add("Sigmoid", b.conv(first, 8, 5))
    joined = b.add("Concat", first, second, "x", axis=1)
    y = b.add("Relu", b.conv(joined, 16, 4))
    pooled = b.add("Flatten", b.add("GlobalAveragePool", joined))
    rows = b.add("Concat", b.linear(pooled, 16, 6), pooled, axis=-1)
    model = b.model({"x": [batch, 3, 9, 7]}, [b.add("Concat", y, second, axis=1), b.linear(rows, 22, 5)])
    segments, _ = _cut(model, x=(batch, 3, 9, 7))
    assert len(segments) == 1
    _same(model, rng, (batch, 3, 9, 7))


def test_what_is_joined_along_other_axes_is_the_librarys(rng):
    b = models.Builder()
    x = b.conv("x", 3, 4)
    joined = b.add("Concat", x, b.add("Relu", x), axis=2)
    model = b.model({"x": [2, 3, 5, 6]}, [b.conv(joined, 4, 4)])
    regions, library = _cut(model, x=(2, 3, 5, 6))
    assert len(regions) == 2
    assert library == ["n2"]
    _same(model, rng, (2, 3, 5, 6))
