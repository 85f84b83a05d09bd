"""Pooling in any number of axes: one pass over the image per element of the window, without a padded copy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastsparse.onnx.model import Array, Node
from fastsparse.onnx.table import Info, Misfit, Operator, like
from fastsparse.onnx.windows import Window, window


def _taps(found: Window, spatial: Sequence[int]) -> Iterator[tuple[tuple[int, ...], Any, Any]]:
    """For every element of the window: its offset, what of the image it meets, and the results that get it."""
    for offset in itertools.product(*map(range, found.kernel)):
        source: list[slice] = [slice(None), slice(None)]
        target: list[slice] = [slice(None), slice(None)]
        for n, o, s, d, (before, _), size in zip(
            spatial, offset, found.stride, found.dilation, found.pads, found.outputs
        ):
            shift = o * d - before
            low, high = max(0, -(shift // s)), min(size, -((shift - n) // s))
            if high <= low:
                break
            target.append(slice(low, high))
            source.append(slice(low * s + shift, (high - 1) * s + shift + 1, s))
        else:
            yield offset, tuple(source), tuple(target)


def _pooled_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    x = inputs[0]
    if x.ndim < 3:
        raise Misfit(f"x has shape {x.shape}, expected (N, C, ...)")
    shape = (*x.shape[:2], *window(node, x.shape[2:]).outputs)
    return [like(x, shape), like(x, shape, np.int64)][: len(node.outputs)]


def _lowest(dtype: np.dtype[Any]) -> Any:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


def _max_pool(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out = inputs[0], outs[0]
    found = window(node, x.shape[2:])
    out[...] = _lowest(out.dtype)
    if len(outs) == 1:
        for _, source, target in _taps(found, x.shape[2:]):
            np.maximum(out[target], x[source], out=out[target])
        return
    places = _places(x.shape, bool(node.get("storage_order", 0)))
    for _, source, target in _taps(found, x.shape[2:]):
        larger = x[source] > out[target]
        np.copyto(out[target], x[source], where=larger)
        np.copyto(outs[1][target], places[source], where=larger)


def _places(shape: Sequence[int], column_major: bool) -> Array:
    """The place of every element in the whole tensor, images read by rows or by columns."""
    images, spatial = shape[0] * shape[1], tuple(shape[2:])
    inside = np.arange(int(np.prod(spatial))).reshape(spatial, order="F" if column_major else "C")
    return (np.arange(images)[:, None] * inside.size + inside.reshape(1, -1)).reshape(shape)


def _counts(found: Window, spatial: Sequence[int], with_padding: bool) -> Array:
    """How many elements each window has, broadcastable over images."""
    total = np.ones((1,) * len(spatial), np.float64)
    for axis, (n, k, s, d, (before, after), size) in enumerate(
        zip(spatial, found.kernel, found.stride, found.dilation, found.pads, found.outputs)
    ):
        at = np.arange(size)[:, None] * s + np.arange(k) * d - before
        low, high = (-before, n + after) if with_padding else (0, n)
        shape = [1] * len(spatial)
        shape[axis] = size
        total = total * ((at >= low) & (at < high)).sum(1).reshape(shape)
    return total


def _average_pool(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out = inputs[0], outs[0]
    found = window(node, x.shape[2:])
    out[...] = 0
    for _, source, target in _taps(found, x.shape[2:]):
        out[target] += x[source]
    counts = np.maximum(_counts(found, x.shape[2:], bool(node.get("count_include_pad", 0))), 1)
    np.divide(out, counts.astype(out.dtype), out=out)


def _lp_pool(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out, p = inputs[0], outs[0], int(node.get("p", 2))
    powers = np.abs(x) ** p
    out[...] = 0
    for _, source, target in _taps(window(node, x.shape[2:]), x.shape[2:]):
        out[target] += powers[source]
    np.power(out, out.dtype.type(1 / p), out=out)


def _global_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    x = inputs[0]
    return [like(x, (*x.shape[:2], *(1,) * (x.ndim - 2)))]


def _global_average(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    np.mean(inputs[0], tuple(range(2, inputs[0].ndim)), out=outs[0], keepdims=True)


def _global_max(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    np.max(inputs[0], tuple(range(2, inputs[0].ndim)), out=outs[0], keepdims=True)


OPERATORS: dict[str, Operator] = {
    "MaxPool": Operator(_pooled_shape, _max_pool),
    "AveragePool": Operator(_pooled_shape, _average_pool),
    "LpPool": Operator(_pooled_shape, _lp_pool),
    "GlobalAveragePool": Operator(_global_shape, _global_average),
    "GlobalMaxPool": Operator(_global_shape, _global_max),
}
