"""Softmax and normalisations.

Rows, that is numbers along the last axis, have kernels; the rest is NumPy. Everything is computed in place in the
output, so that calls allocate only one number per row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastsparse.onnx.model import Array, Node
from fastsparse.onnx.table import Info, Misfit, Operator, axis_of, like, optional, same
from fastsparse.ops.norm import layer_norm
from fastsparse.ops.softmax import softmax


def runs_in_kernel(node: Node, inputs: Sequence[Any], outputs: int) -> bool:
    """Whether a kernel computes the node: rows of float32 or float64, scales and shifts of their size, one output."""
    if node.op not in ("Softmax", "LayerNormalization", "RMSNormalization"):
        return False
    x, *vectors = inputs
    flat = node.op == "Softmax" and node.version < 13  # all axes from one on are one
    rows = flat or axis_of(int(node.get("axis", -1)), x.ndim) == x.ndim - 1
    fit = all(v is None or (v.shape == x.shape[-1:] and v.dtype == x.dtype) for v in vectors)
    return rows and fit and outputs == 1 and x.dtype in (np.float32, np.float64)


# ---------------------------------------------------------------- softmax


def _rows(node: Node, x: Array, out: Array) -> tuple[Array, Array, int]:
    """Input, output and the axis to normalise; before opset 13 all axes from one on were one."""
    if node.version >= 13:
        return x, out, axis_of(int(node.get("axis", -1)), x.ndim)
    axis = axis_of(int(node.get("axis", 1)), x.ndim)
    shape = math.prod(x.shape[:axis]), math.prod(x.shape[axis:])
    return x.reshape(shape), out.reshape(shape), 1


def _softmax(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out, axis = _rows(node, inputs[0], outs[0])
    if runs_in_kernel(node, inputs, len(outs)):
        softmax(x, out)
        return
    np.subtract(x, np.max(x, axis, keepdims=True, initial=-np.inf), out=out)
    np.exp(out, out=out)
    np.divide(out, np.sum(out, axis, keepdims=True), out=out)


def _log_softmax(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out, axis = _rows(node, inputs[0], outs[0])
    np.subtract(x, np.max(x, axis, keepdims=True, initial=-np.inf), out=out)
    np.subtract(out, np.log(np.sum(np.exp(out), axis, keepdims=True)), out=out)


def _hardmax(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out, axis = _rows(node, inputs[0], outs[0])
    out[...] = 0
    np.put_along_axis(out, np.expand_dims(np.argmax(x, axis), axis), 1, axis)


# ---------------------------------------------------------------- by mean and variance of the input


def _normalised(x: Array, out: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array]:
    """out = (x - mean) / sqrt(variance + eps) over axes; mean and 1 / sqrt(variance + eps).

    Means are taken in float64, of no more numbers than there are rows."""
    count = max(1, math.prod(x.shape[a] for a in axes))
    mean = (np.sum(x, axes, keepdims=True, dtype=np.float64) / count).astype(_wide(out))
    np.subtract(x, mean, out=out, casting="same_kind")
    variance = np.asarray(_squares(out, axes), np.float64) / count
    scale = (1 / np.sqrt(variance + eps)).astype(_wide(out))
    np.multiply(out, scale, out=out, casting="same_kind")
    return mean, scale


def _wide(x: Array) -> Any:
    """The type to compute with: float16 in float32."""
    return np.float32 if x.dtype == np.float16 else x.dtype


def _squares(x: Array, axes: tuple[int, ...]) -> Array:
    """Sums of squares over axes, without an array of squares where the axes are the last ones."""
    first = x.ndim - len(axes)
    if x.dtype != np.float16 and axes == tuple(range(first, x.ndim)):
        rows = x.reshape(-1, math.prod(x.shape[first:]))
        kept = (*x.shape[:first], *(1,) * len(axes))
        return np.einsum("ij,ij->i", rows, rows).reshape(kept)
    return np.sum(np.square(x.astype(_wide(x))), axes, keepdims=True)


def _layer_norm_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    x = inputs[0]
    axis = axis_of(int(node.get("axis", -1)), x.ndim)
    stash = like(x, (*x.shape[:axis], *(1,) * (x.ndim - axis)), _wide(x))
    return [like(x), stash, stash][: len(node.outputs)]


def _layer_norm(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out = inputs[0], outs[0]
    axes = tuple(range(axis_of(int(node.get("axis", -1)), x.ndim), x.ndim))
    bias, eps = optional(inputs, 2), node.get("epsilon", 1e-5)
    if runs_in_kernel(node, inputs, len(outs)):
        layer_norm(x, inputs[1], bias, eps, out)
        return
    found = _normalised(x, out, axes, eps)
    np.multiply(out, inputs[1], out=out)
    if bias is not None:
        np.add(out, bias, out=out)
    for target, numbers in zip(outs[1:], found):
        np.copyto(target, numbers, casting="unsafe")


def _rms_norm(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out = inputs[0], outs[0]
    axes = tuple(range(axis_of(int(node.get("axis", -1)), x.ndim), x.ndim))
    if runs_in_kernel(node, inputs, len(outs)):
        layer_norm(x, inputs[1], None, node.get("epsilon", 1e-5), out, centred=False)
        return
    np.copyto(out, x)
    mean = np.asarray(_squares(out, axes), np.float64) / max(1, math.prod(x.shape[a] for a in axes))
    np.multiply(out, (1 / np.sqrt(mean + node.get("epsilon", 1e-5))).astype(_wide(out)), out=out, casting="same_kind")
    np.multiply(out, inputs[1], out=out, casting="same_kind")


def _per_channel(values: Array, ndim: int) -> Array:
    return values.reshape(-1, *(1,) * (ndim - 2))


def _instance_norm(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out = inputs[0], outs[0]
    _normalised(x, out, tuple(range(2, x.ndim)), node.get("epsilon", 1e-5))
    np.multiply(out, _per_channel(inputs[1], x.ndim), out=out)
    np.add(out, _per_channel(inputs[2], x.ndim), out=out)


def _group_norm(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out, groups = inputs[0], outs[0], int(node.attributes["num_groups"])
    if x.shape[1] % groups:
        raise Misfit(f"x has {x.shape[1]} channels, expected a multiple of num_groups = {groups}")
    rows = (x.shape[0], groups, -1)
    _normalised(np.ascontiguousarray(x).reshape(rows), out.reshape(rows), (2,), node.get("epsilon", 1e-5))
    scale, bias = inputs[1], inputs[2]
    if node.version < 21:  # one number per group
        scale, bias = (np.repeat(v, x.shape[1] // groups) for v in (scale, bias))
    np.multiply(out, _per_channel(scale, x.ndim), out=out)
    np.add(out, _per_channel(bias, x.ndim), out=out)


def _mean_variance(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    axes = tuple(sorted(axis_of(int(a), inputs[0].ndim) for a in node.get("axes", [0, 2, 3])))
    _normalised(inputs[0], outs[0], axes, 1e-9)


# ---------------------------------------------------------------- by given numbers


def batch_norm_scale(node: Node, inputs: Sequence[Array]) -> tuple[Array, Array]:
    """Scale and shift per channel, float64, of a BatchNormalization in inference."""
    gamma, beta, mean, variance = (np.asarray(v, np.float64) for v in inputs[1:5])
    scale = gamma / np.sqrt(variance + node.get("epsilon", 1e-5))
    return scale, beta - mean * scale


def _batch_norm_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    if node.get("training_mode", 0) or (node.version < 14 and sum(map(bool, node.outputs)) > 1):
        raise Misfit("it is in training mode, which inference does not have")
    channels = inputs[0].shape[1] if inputs[0].ndim > 1 else 1
    for i in range(1, 5):
        if inputs[i].size != channels:
            raise Misfit(f"input {i} has shape {inputs[i].shape}, expected ({channels},)")
    return [like(inputs[0])]


def _batch_norm(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out = inputs[0], outs[0]
    scale, shift = batch_norm_scale(node, inputs)
    if x.ndim > 1:
        scale, shift = _per_channel(scale, x.ndim), _per_channel(shift, x.ndim)
    np.multiply(x, scale.astype(_wide(out)), out=out, casting="same_kind")
    np.add(out, shift.astype(_wide(out)), out=out, casting="same_kind")


def _local_response(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out, size = inputs[0], outs[0], int(node.attributes["size"])
    alpha, beta, bias = node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    squares, channels = np.square(x), x.shape[1]
    out[...] = 0
    for shift in range(-((size - 1) // 2), size - 1 - (size - 1) // 2 + 1):
        low, high = max(0, -shift), min(channels, channels - shift)
        if low < high:
            out[:, low:high] += squares[:, low + shift : high + shift]
    np.multiply(out, out.dtype.type(alpha / size), out=out)
    np.add(out, out.dtype.type(bias), out=out)
    np.power(out, out.dtype.type(-beta), out=out)
    np.multiply(out, x, out=out)


def _lp_norm(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, axis = inputs[0], axis_of(int(node.get("axis", -1)), inputs[0].ndim)
    norm = (
        np.abs(x).sum(axis, keepdims=True) if node.get("p", 2) == 1 else np.sqrt(np.square(x).sum(axis, keepdims=True))
    )
    np.divide(x, np.where(norm == 0, 1, norm).astype(x.dtype), out=outs[0])


OPERATORS: dict[str, Operator] = {
    "Softmax": Operator(same, _softmax),
    "LogSoftmax": Operator(same, _log_softmax),
    "Hardmax": Operator(same, _hardmax),
    "LayerNormalization": Operator(_layer_norm_shape, _layer_norm),
    "RMSNormalization": Operator(same, _rms_norm),
    "InstanceNormalization": Operator(same, _instance_norm),
    "GroupNormalization": Operator(same, _group_norm),
    "MeanVarianceNormalization": Operator(same, _mean_variance),
    "BatchNormalization": Operator(_batch_norm_shape, _batch_norm),
    "LRN": Operator(same, _local_response),
    "LpNormalization": Operator(same, _lp_norm),
}
