"""Convolutions whose weights are not constant, and transposed convolutions, through BLAS."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastsparse.onnx.model import Array, Node, Shape
from fastsparse.onnx.table import Info, Misfit, Operator, like, optional
from fastsparse.onnx.windows import kernel_of, window
from fastsparse.ops import dense
from fastsparse.runtime import buffers


def _groups(node: Node, x: Any, weight: Any) -> int:
    groups = int(node.get("group", 1))
    if x.ndim < 3 or weight.ndim != x.ndim:
        raise Misfit(f"x has shape {x.shape} and W {weight.shape}, expected (N, C, ...) and as many axes")
    if groups < 1 or x.shape[1] % groups:
        raise Misfit(f"x has {x.shape[1]} channels, expected a multiple of group = {groups}")
    return groups


def conv_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    """Shape of a convolution."""
    x, weight = inputs[0], inputs[1]
    groups = _groups(node, x, weight)
    if weight.shape[1] * groups != x.shape[1] or weight.shape[0] % groups:
        raise Misfit(f"W has shape {weight.shape}, which does not fit x of shape {x.shape} in {groups} groups")
    bias = optional(inputs, 2)
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise Misfit(f"B has shape {bias.shape}, expected ({weight.shape[0]},)")
    found = window(node, x.shape[2:], kernel_of(node, weight.shape))
    return [like(x, (x.shape[0], weight.shape[0], *found.outputs))]


def _conv(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, weight, bias = inputs[0], inputs[1], optional(inputs, 2)
    found = window(node, x.shape[2:], kernel_of(node, weight.shape))
    geometry = dense.Geometry(found.kernel, found.stride, found.pads, found.dilation, int(node.get("group", 1)))
    weight = np.ascontiguousarray(weight)
    np.copyto(outs[0], dense.conv(x, weight, bias, geometry), casting="same_kind")


# ---------------------------------------------------------------- transposed


def _transposed_sizes(node: Node, x: Any, weight: Any) -> tuple[Shape, Shape, list[tuple[int, int]], Shape]:
    """Strides, dilations, pads to cut off, and sizes of the result."""
    spatial, kernel = x.shape[2:], kernel_of(node, weight.shape)
    axes = len(spatial)
    stride = tuple(node.get("strides") or (1,) * axes)
    dilation = tuple(node.get("dilations") or (1,) * axes)
    extra = tuple(node.get("output_padding") or (0,) * axes)
    auto, wanted = node.get("auto_pad", "NOTSET"), node.get("output_shape")
    full = [s * (n - 1) + e + d * (k - 1) + 1 for n, s, e, k, d in zip(spatial, stride, extra, kernel, dilation)]
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(spatial, stride)]
    if wanted is None:
        given = tuple(node.get("pads") or (0,) * (2 * axes))
        pads = [(0, 0) if auto == "VALID" else (given[i], given[i + axes]) for i in range(axes)]
        return stride, dilation, pads, tuple(f - a - b for f, (a, b) in zip(full, pads))
    totals = [max(0, f - w) for f, w in zip(full, wanted)]
    halves = [(t // 2, t - t // 2) for t in totals]
    pads = halves if auto == "SAME_UPPER" else [(b, a) for a, b in halves]
    return stride, dilation, pads, tuple(int(n) for n in wanted)


def _transposed_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    x, weight = inputs[0], inputs[1]
    groups = _groups(node, x, weight)
    if weight.shape[0] != x.shape[1]:
        raise Misfit(f"W has shape {weight.shape}, expected {x.shape[1]} input channels")
    sizes = _transposed_sizes(node, x, weight)[3]
    return [like(x, (x.shape[0], weight.shape[1] * groups, *sizes))]


def _transposed(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, weight, out = inputs[0], inputs[1], outs[0]
    stride, dilation, pads, sizes = _transposed_sizes(node, x, weight)
    groups, spatial, kernel = int(node.get("group", 1)), x.shape[2:], weight.shape[2:]
    bias = optional(inputs, 2)
    out[...] = 0 if bias is None else bias.reshape(-1, *(1,) * len(spatial))
    columns = np.ascontiguousarray(x).reshape(len(x), groups, -1, math.prod(spatial))
    matrices = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    part = buffers.array((len(x), groups, weight.shape[1], math.prod(spatial)), out.dtype)
    for tap, offset in enumerate(itertools.product(*map(range, kernel))):
        np.matmul(np.ascontiguousarray(matrices[..., tap].swapaxes(1, 2)), columns, out=part)
        source, target = [], []
        for n, o, s, d, (before, _), size in zip(spatial, offset, stride, dilation, pads, sizes):
            # Input i goes to i * s + o * d - before, where that lies in the result.
            shift = o * d - before
            low, high = max(0, -(shift // s)), min(n, -((shift - size) // s))
            source.append(slice(low, max(low, high)))
            target.append(slice(low * s + shift, max(low, high) * s + shift - s + 1 if high > low else 0, s))
        if all(s.stop > s.start for s in source):
            out[(slice(None), slice(None), *target)] += part.reshape(len(x), -1, *spatial)[
                (slice(None), slice(None), *source)
            ]


OPERATORS: dict[str, Operator] = {
    "Conv": Operator(conv_shape, _conv),
    "ConvTranspose": Operator(_transposed_shape, _transposed),
}
