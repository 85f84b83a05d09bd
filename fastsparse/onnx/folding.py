"""Folding batch norm into the convolutions before it, once for all shapes, so that each weight is kept once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from fastsparse.onnx.model import Array, Constant, Model, Node, SparseWeight, dense, names_in, unused
from fastsparse.onnx.ops.normalising import batch_norm_scale
from fastsparse.onnx.weights import FLOATS


def fold_batch_norms(model: Model) -> Model:
    """BatchNormalization(Conv(x, W, b)) -> Conv(x, scaled W, other b), rounded once from float64."""
    uses = Counter([name for node in model.nodes for name in node.inputs] + [v.name for v in model.outputs])
    producers = {node.outputs[0]: node for node in model.nodes}
    constants, changed, taken = dict(model.constants), dict[int, Node | None](), names_in(model)
    for node in model.nodes:
        product = producers.get(node.inputs[0]) if node.op == "BatchNormalization" else None
        if product is None or product.op != "Conv" or uses[product.outputs[0]] != 1 or not _fits(node, product, model):
            continue
        scale, shift = batch_norm_scale(node, [np.empty(0), *(dense(constants[name]) for name in node.inputs[1:5])])
        weight = model.constants[product.inputs[1]]
        bias = dense(model.constants[product.inputs[2]]) if len(product.inputs) > 2 else np.zeros(len(scale))
        names = [unused(f"{product.name}#{what}", taken) for what in ("weight", "bias")]
        taken.update(names)
        constants[names[0]] = _scaled(weight, scale)
        constants[names[1]] = (bias.astype(np.float64) * scale + shift).astype(weight.dtype)
        changed[id(product)] = None
        changed[id(node)] = replace(product, inputs=(product.inputs[0], *names), outputs=node.outputs)
    nodes = [changed.get(id(node), node) for node in model.nodes]
    left = tuple(node for node in nodes if node is not None)
    read = {name for node in left for name in node.inputs} | {v.name for v in model.outputs}
    return replace(model, nodes=left, constants={n: c for n, c in constants.items() if n in read})


def _fits(node: Node, product: Node, model: Model) -> bool:
    """Whether everything but the convolution's input is constant, and of one type."""
    names = [*node.inputs[1:5], *product.inputs[1:]]
    if len(node.outputs) != 1 or node.get("training_mode", 0) or not all(name in model.constants for name in names):
        return False
    weight = model.constants[product.inputs[1]]
    if weight.dtype not in FLOATS or len(weight.shape) < 3:
        return False
    sizes = {model.constants[name].shape for name in (*node.inputs[1:5], *product.inputs[2:])}
    return sizes == {(weight.shape[0],)}


def _scaled(weight: Constant, scale: Array) -> Constant:
    if isinstance(weight, SparseWeight) and not weight.transposed:
        matrix = weight.matrix
        values = matrix.data.astype(np.float64) * scale[matrix.pattern.rows()]
        return replace(weight, matrix=matrix.with_data(values.astype(matrix.dtype)))
    array = dense(weight)
    return (array * scale.reshape(-1, *(1,) * (array.ndim - 1))).astype(array.dtype)
