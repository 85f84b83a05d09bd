"""Passes on graphs: what exporters write in several nodes becomes the one operator that is meant.

Each pass takes a graph and gives a graph that computes the same. `simplified` is their order.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from fastsparse.onnx.model import Node
from fastsparse.onnx.rewriting import Rewriter, per_channel
from fastsparse.onnx.specialise import Graph
from fastsparse.onnx.weights import DENSEST, FLOATS, by_rows, density


def simplified(graph: Graph) -> Graph:
    """All passes, in their order."""
    for rewrite in _PASSES:
        graph = rewrite(graph)
    return graph


def plain_sums(graph: Graph) -> Graph:
    """Sum(a, b) -> Add(a, b)."""
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        if node.op == "Sum" and len(node.inputs) == 2:
            rewriter.put(node.outputs[0], replace(node, op="Add", version=max(node.version, 7)))
    return rewriter.done()


def constants_last(graph: Graph) -> Graph:
    """Add(constant, x) -> Add(x, constant), and the same for Mul."""
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        if node.op in ("Add", "Mul") and node.version >= 7 and graph.constant(node.inputs[0]) is not None:
            rewriter.put(node.outputs[0], replace(node, inputs=node.inputs[::-1]))
    return rewriter.done()


# ---------------------------------------------------------------- activations


def _product_with(rewriter: Rewriter, name: str, x: str, factor: float) -> Node | None:
    """The last of the multiplications that make name * x * factor, in any order, when that is all they make."""
    seen_x, found = False, 1.0
    while True:
        node = rewriter.only_reader(name, "Mul", "Div")
        if node is None:
            return None
        other = rewriter.other(node, name)
        number = rewriter.number(other)
        if number is not None and node.op == "Div" and node.inputs[0] == name and number:
            found /= number
        elif number is not None and node.op == "Mul":
            found *= number
        elif node.op == "Mul" and other == x and not seen_x:
            seen_x = True
        elif node.op == "Mul" and not seen_x and (scaled := _times_number(rewriter, other, x)) is not None:
            seen_x, found = True, found * scaled
        else:
            return None
        name = node.outputs[0]
        if seen_x and abs(found - factor) <= 2e-3 * factor:
            return node


def _times_number(rewriter: Rewriter, name: str, x: str) -> float | None:
    """c, when the tensor is x * c."""
    node = rewriter.made_by(name, "Mul")
    parts = rewriter.with_number(node) if node is not None else None
    return parts[1] if parts is not None and parts[0] == x else None


def _plus_one(rewriter: Rewriter, name: str) -> str | None:
    node = rewriter.only_reader(name, "Add")
    return node.outputs[0] if node is not None and rewriter.is_number(rewriter.other(node, name), 1.0) else None


def gelu_by_erf(graph: Graph) -> Graph:
    """x * 0.5 * (1 + erf(x / sqrt(2))) -> Gelu(x)."""
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        scaled = rewriter.made_by(node.inputs[0], "Div", "Mul") if node.op == "Erf" else None
        parts = rewriter.with_number(scaled) if scaled is not None else None
        if scaled is None or parts is None or (scaled.op == "Div" and scaled.inputs[0] != parts[0]):
            continue
        x, number = parts
        root = number if scaled.op == "Div" else 1 / number if number else 0.0
        shifted = _plus_one(rewriter, node.outputs[0])
        if abs(root - math.sqrt(2)) < 2e-3 and shifted is not None:
            last = _product_with(rewriter, shifted, x, 0.5)
            if last is not None:
                rewriter.replace(last, "Gelu", [x])
    return rewriter.done()


def _cube_terms(rewriter: Rewriter, name: str) -> str | None:
    """x, when the tensor is x + 0.044715 x^3."""
    total = rewriter.made_by(name, "Add")
    if total is None:
        return None
    for x, rest in (total.inputs, total.inputs[::-1]):
        scaled = rewriter.made_by(rest, "Mul")
        parts = rewriter.with_number(scaled) if scaled is not None else None
        if parts is None or abs(parts[1] - 0.044715) > 1e-4:
            continue
        power = rewriter.made_by(parts[0], "Pow")
        if power is not None and power.inputs[0] == x and rewriter.is_number(power.inputs[1], 3.0):
            return x
        outer = rewriter.made_by(parts[0], "Mul")
        if outer is not None and x in outer.inputs:
            square = rewriter.made_by(rewriter.other(outer, x), "Mul")
            if square is not None and square.inputs == (x, x):
                return x
    return None


def gelu_by_tanh(graph: Graph) -> Graph:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) -> Gelu(x, approximate="tanh")."""
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        scaled = rewriter.made_by(node.inputs[0], "Mul") if node.op == "Tanh" else None
        parts = rewriter.with_number(scaled) if scaled is not None else None
        if parts is None or abs(parts[1] - math.sqrt(2 / math.pi)) > 2e-3:
            continue
        x, shifted = _cube_terms(rewriter, parts[0]), _plus_one(rewriter, node.outputs[0])
        last = _product_with(rewriter, shifted, x, 0.5) if x is not None and shifted is not None else None
        if last is not None and x is not None:
            rewriter.replace(last, "Gelu", [x], approximate="tanh")
    return rewriter.done()


def silu(graph: Graph) -> Graph:
    """x * sigmoid(x) -> Swish(x)."""
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        if node.op == "Sigmoid":
            last = rewriter.only_reader(node.outputs[0], "Mul")
            if last is not None and rewriter.other(last, node.outputs[0]) == node.inputs[0]:
                rewriter.replace(last, "Swish", node.inputs)
    return rewriter.done()


def hard_swish(graph: Graph) -> Graph:
    """x * clip(x + 3, 0, 6) / 6, or x * hard_sigmoid(x) with a slope of 1/6 -> HardSwish(x)."""
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        if node.op == "HardSigmoid" and abs(node.get("alpha", 0.2) - 1 / 6) < 1e-4 and node.get("beta", 0.5) == 0.5:
            last = _product_with(rewriter, node.outputs[0], node.inputs[0], 1.0)
            x = node.inputs[0]
        elif node.op == "Clip" and _limits(rewriter, node) == (0.0, 6.0):
            shifted = rewriter.made_by(node.inputs[0], "Add")
            parts = rewriter.with_number(shifted) if shifted is not None else None
            if parts is None or parts[1] != 3.0:
                continue
            x = parts[0]
            last = _product_with(rewriter, node.outputs[0], x, 1 / 6)
        else:
            continue
        if last is not None:
            rewriter.replace(last, "HardSwish", [x])
    return rewriter.done()


def _limits(rewriter: Rewriter, node: Node) -> tuple[float | None, float | None]:
    if node.version < 11:
        return node.get("min"), node.get("max")
    low, high = (rewriter.number(name) if name else None for name in (*node.inputs, "", "")[1:3])
    return low, high


# ---------------------------------------------------------------- normalisation


def layer_norms(graph: Graph) -> Graph:
    """(x - mean) / sqrt(mean((x - mean)^2) + eps) * scale + bias -> LayerNormalization(x, scale, bias)."""
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        if node.op == "Sqrt":
            _layer_norm(rewriter, node)
    return rewriter.done()


def _layer_norm(rewriter: Rewriter, root: Node) -> None:
    graph = rewriter.graph
    shifted = rewriter.made_by(root.inputs[0], "Add")
    parts = rewriter.with_number(shifted) if shifted is not None else None
    variance = rewriter.made_by(parts[0], "ReduceMean") if parts is not None else None
    if parts is None or variance is None or not _over_last_axis(rewriter, variance):
        return
    square = rewriter.made_by(variance.inputs[0], "Pow", "Mul")
    if square is None or not (square.inputs[0] == square.inputs[1] or rewriter.is_number(square.inputs[1], 2.0)):
        return
    centred = square.inputs[0]
    difference = rewriter.made_by(centred, "Sub")
    mean = rewriter.made_by(difference.inputs[1], "ReduceMean") if difference is not None else None
    if (
        difference is None
        or mean is None
        or not _over_last_axis(rewriter, mean)
        or mean.inputs[0] != difference.inputs[0]
    ):
        return
    last = rewriter.only_reader(root.outputs[0], "Div")
    if last is None or last.inputs != (centred, root.outputs[0]):
        return
    x = difference.inputs[0]
    info, width = graph.infos[x], graph.infos[x].shape[-1]
    scale = _vector_behind(rewriter, last, "Mul", width)
    gamma = rewriter.constant(np.ones(width, info.dtype)) if scale is None else scale[1]
    last = last if scale is None else scale[0]
    shift = _vector_behind(rewriter, last, "Add", width) if scale is not None else None
    inputs = [x, gamma] if shift is None else [x, gamma, shift[1]]
    rewriter.replace(last if shift is None else shift[0], "LayerNormalization", inputs, axis=-1, epsilon=parts[1])


def _over_last_axis(rewriter: Rewriter, node: Node) -> bool:
    ndim = rewriter.graph.infos[node.inputs[0]].ndim
    axes = node.get("axes")
    if axes is None and len(node.inputs) > 1:
        found = rewriter.graph.array(node.inputs[1])
        axes = None if found is None else found.reshape(-1).tolist()
    return bool(axes is not None and list(axes) in ([-1], [ndim - 1]) and node.get("keepdims", 1))


def _vector_behind(rewriter: Rewriter, node: Node, op: str, width: int) -> tuple[Node, str] | None:
    """The only reader of the node, when it multiplies by or adds a constant vector: reader and the vector's name."""
    following = rewriter.only_reader(node.outputs[0], op)
    if following is None:
        return None
    name = rewriter.other(following, node.outputs[0])
    info = rewriter.graph.infos[name]
    return (following, name) if info.constant is not None and info.shape == (width,) else None


# ---------------------------------------------------------------- biases


def linear_layers(graph: Graph) -> Graph:
    """MatMul(x, constant matrix), with or without Add(constant vector) -> fastsparse.Linear."""
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        if node.op != "MatMul" or graph.constant(node.inputs[1]) is None or graph.infos[node.inputs[1]].ndim != 2:
            continue
        if not graph.infos[node.inputs[0]].ndim or graph.infos[node.inputs[0]].ndim < 2:
            continue
        width = graph.infos[node.inputs[1]].shape[1]
        added = rewriter.only_reader(node.outputs[0], "Add")
        bias = None
        if added is not None and added.version >= 7:
            name = rewriter.other(added, node.outputs[0])
            shape = graph.infos[added.outputs[0]].shape
            array = graph.array(name) if graph.infos[name].size <= width else None
            fits = shape == graph.infos[node.outputs[0]].shape
            bias = per_channel(array, shape, len(shape) - 1) if array is not None and fits else None
        if bias is not None and added is not None:
            named = replace(node, outputs=added.outputs)
            rewriter.replace(named, "fastsparse.Linear", [*node.inputs, rewriter.constant(bias)])
        else:
            rewriter.replace(node, "fastsparse.Linear", node.inputs)
    return rewriter.done()


def left_products(graph: Graph) -> Graph:
    """MatMul(sparse constant matrix, x) -> fastsparse.SparseMatMul(x)."""
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        weight = graph.constant(node.inputs[0]) if node.op == "MatMul" else None
        info = graph.infos[node.inputs[1]] if weight is not None else None
        if weight is None or info is None or len(weight.shape) != 2 or info.ndim < 2 or info.dtype not in FLOATS:
            continue
        if density(weight) <= DENSEST and info.size:
            rewriter.replace(node, "fastsparse.SparseMatMul", node.inputs[1:], matrix=by_rows(weight))
    return rewriter.done()


def conv_biases(graph: Graph) -> Graph:
    """Conv without bias and Add(constant per channel) -> Conv with bias."""
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        added = rewriter.only_reader(node.outputs[0], "Add") if node.op == "Conv" and len(node.inputs) == 2 else None
        if added is None or added.version < 7:
            continue
        shape = graph.infos[node.outputs[0]].shape
        name = rewriter.other(added, node.outputs[0])
        array = graph.array(name) if graph.infos[name].size <= shape[1] else None
        bias = per_channel(array, shape, 1) if array is not None else None
        if bias is not None and graph.infos[added.outputs[0]].shape == shape:
            inputs = [*node.inputs, rewriter.constant(bias)]
            rewriter.put(added.outputs[0], replace(node, inputs=tuple(inputs), outputs=added.outputs))
    return rewriter.done()


_PASSES = (
    plain_sums,
    constants_last,
    gelu_by_erf,
    gelu_by_tanh,
    silu,
    hard_swish,
    layer_norms,
    linear_layers,
    left_products,
    conv_biases,
)
