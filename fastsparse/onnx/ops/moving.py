"""Operators that gather numbers from places, or put them there: Concat, Gather, Pad, Tile and their like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastsparse.onnx.model import Array, Node
from fastsparse.onnx.table import Info, Misfit, Operator, axis_of, ints, like, optional, same, value


def _concat_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    first = inputs[0]
    axis = axis_of(int(node.get("axis", 1)), first.ndim)
    for x in inputs:
        if x.ndim != first.ndim or any(a != b for i, (a, b) in enumerate(zip(x.shape, first.shape)) if i != axis):
            raise Misfit(f"shapes {first.shape} and {x.shape} cannot be joined along axis {axis}")
    sizes = list(first.shape)
    sizes[axis] = sum(x.shape[axis] for x in inputs)
    return [like(first, sizes)]


def _concat(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    np.concatenate(inputs, axis_of(int(node.get("axis", 1)), inputs[0].ndim), out=outs[0])


# ---------------------------------------------------------------- gathering


def _indices(index: Array, size: int) -> Array:
    """Indices counted from the front."""
    if index.size and (int(index.min()) < -size or int(index.max()) >= size):
        raise ValueError(f"an index is outside of [{-size}, {size})")
    return np.where(index < 0, index + size, index) if index.size and int(index.min()) < 0 else index


def _gather_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    x, index = inputs[0], inputs[1]
    axis = axis_of(int(node.get("axis", 0)), x.ndim)
    return [like(x, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))]


def _gather(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, axis = inputs[0], axis_of(int(node.get("axis", 0)), inputs[0].ndim)
    # Checked here: NumPy's own check would buffer the output.
    np.take(x, _indices(inputs[1], x.shape[axis]), axis, out=outs[0], mode="wrap")


def _like_index(node: Node, inputs: Sequence[Any]) -> list[Info]:
    return [like(inputs[0], inputs[1].shape)]


def _gather_elements(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, axis = inputs[0], axis_of(int(node.get("axis", 0)), inputs[0].ndim)
    places = list(np.ix_(*(np.arange(n) for n in inputs[1].shape)))
    places[axis] = _indices(inputs[1], x.shape[axis])
    np.copyto(outs[0], x[tuple(places)])


def _gather_nd_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    x, index, batch = inputs[0], inputs[1], int(node.get("batch_dims", 0))
    return [like(x, (*index.shape[:-1], *x.shape[batch + index.shape[-1] :]))]


def _gather_nd(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, index, batch = inputs[0], inputs[1], int(node.get("batch_dims", 0))
    lead = np.ix_(*(np.arange(n) for n in index.shape[:batch])) if batch else ()
    lead = tuple(a.reshape(*a.shape, *(1,) * (index.ndim - 1 - batch)) for a in lead)
    rest = tuple(_indices(index[..., i], x.shape[batch + i]) for i in range(index.shape[-1]))
    np.copyto(outs[0], x[(*lead, *rest)].reshape(outs[0].shape))


_REDUCTIONS: dict[str, Any] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _put(node: Node, out: Array, places: Any, updates: Array) -> None:
    reduction = node.get("reduction", "none")
    if reduction == "none":
        out[places] = updates
    else:
        _REDUCTIONS[reduction].at(out, places, updates)


def _scatter_elements(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, index, updates = inputs[:3]
    axis = axis_of(int(node.get("axis", 0)), x.ndim)
    np.copyto(outs[0], x)
    places = list(np.ix_(*(np.arange(n) for n in index.shape)))
    places[axis] = _indices(index, x.shape[axis])
    _put(node, outs[0], tuple(places), updates)


def _scatter_nd(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, index, updates = inputs[:3]
    np.copyto(outs[0], x)
    places = tuple(_indices(index[..., i], x.shape[i]) for i in range(index.shape[-1]))
    _put(node, outs[0], places, updates)


# ---------------------------------------------------------------- padding and repeating


def pads_of(node: Node, inputs: Sequence[Any]) -> list[tuple[int, int]]:
    """(before, after) of every axis."""
    ndim = inputs[0].ndim
    found = ints(node, inputs, 1, "pads" if node.version >= 2 else "paddings")
    if found is None:
        raise Misfit("it has no pads")
    axes = ints(node, inputs, 3)
    chosen = list(range(ndim)) if axes is None else [axis_of(a, ndim) for a in axes]
    if len(found) != 2 * len(chosen):
        raise Misfit(f"pads has {len(found)} numbers, expected {2 * len(chosen)}")
    pairs = [(0, 0)] * ndim
    for i, axis in enumerate(chosen):
        pairs[axis] = found[i], found[i + len(chosen)]
    return pairs


def _pad_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    x = inputs[0]
    return [like(x, [n + a + b for n, (a, b) in zip(x.shape, pads_of(node, inputs))])]


def _pad(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out, pairs = inputs[0], outs[0], pads_of(node, inputs)
    x = x[tuple(slice(max(0, -a), n - max(0, -b)) for n, (a, b) in zip(x.shape, pairs))]
    pairs = [(max(0, a), max(0, b)) for a, b in pairs]
    mode = node.get("mode", "constant")
    if mode == "constant":
        filling = optional(inputs, 2) if node.version >= 11 else node.get("value", 0.0)
        out[...] = 0 if filling is None else np.asarray(filling).reshape(-1)[0] if np.size(filling) else 0
        out[tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, pairs))] = x
        return
    if mode not in ("reflect", "edge", "wrap"):
        raise Misfit(f"mode is {mode!r}, expected constant, reflect, edge or wrap")
    np.copyto(out, np.pad(x, pairs, mode))


def _tile_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    x = inputs[0]
    return [like(x, [n * r for n, r in zip(x.shape, _repeats(node, inputs))])]


def _repeats(node: Node, inputs: Sequence[Any]) -> list[int]:
    x, repeats = inputs[0], ints(node, inputs, 1)
    if repeats is None or len(repeats) != x.ndim:
        raise Misfit(f"repeats is {repeats}, expected one number per axis of x of shape {x.shape}")
    return repeats


def _tile(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, repeats = inputs[0], _repeats(node, inputs)
    target = outs[0].reshape([n for pair in zip(repeats, x.shape) for n in pair])
    np.copyto(target, x.reshape([n for size in x.shape for n in (1, size)]))


def _triangle(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    diagonal = value(node, inputs, 1)
    k = 0 if diagonal is None else int(diagonal.reshape(-1)[0])
    np.copyto(outs[0], np.triu(inputs[0], k) if node.get("upper", 1) else np.tril(inputs[0], k))


def _cumulative_sum(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out = inputs[0], outs[0]
    along = value(node, inputs, 1)
    axis = axis_of(0 if along is None else int(along.reshape(-1)[0]), x.ndim)
    if node.get("reverse", 0):
        x, out = np.flip(x, axis), np.flip(out, axis)
    np.cumsum(x, axis, out=out)
    if node.get("exclusive", 0):
        np.subtract(out, x, out=out)


def _nonzero_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    x = value(node, inputs, 0)
    assert x is not None
    return [like(x, (max(x.ndim, 1), int(np.count_nonzero(x))), np.int64)]


def _nonzero(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    np.copyto(outs[0], np.stack(np.nonzero(np.atleast_1d(inputs[0]))))


def _one_hot_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    depth = value(node, inputs, 1)
    assert depth is not None
    shape = list(inputs[0].shape)
    axis = axis_of(int(node.get("axis", -1)), len(shape) + 1)
    shape.insert(axis, int(depth.reshape(-1)[0]))
    return [like(inputs[2], shape)]


def _one_hot(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    axis = axis_of(int(node.get("axis", -1)), outs[0].ndim)
    depth = outs[0].shape[axis]
    index = np.expand_dims(np.asarray(inputs[0]).astype(np.int64), axis)
    index = np.where((index >= -depth) & (index < depth), index % max(depth, 1), -1)
    places = np.arange(depth).reshape(-1, *(1,) * (outs[0].ndim - axis - 1))
    np.copyto(outs[0], np.where(index == places, inputs[2][1], inputs[2][0]))


OPERATORS: dict[str, Operator] = {
    "Concat": Operator(_concat_shape, _concat),
    "Gather": Operator(_gather_shape, _gather),
    "GatherElements": Operator(_like_index, _gather_elements),
    "GatherND": Operator(_gather_nd_shape, _gather_nd),
    "Scatter": Operator(same, _scatter_elements),
    "ScatterElements": Operator(same, _scatter_elements),
    "ScatterND": Operator(same, _scatter_nd),
    "Pad": Operator(_pad_shape, _pad),
    "Tile": Operator(_tile_shape, _tile),
    "Trilu": Operator(same, _triangle),
    "CumSum": Operator(same, _cumulative_sum),
    "NonZero": Operator(_nonzero_shape, _nonzero),
    "OneHot": Operator(_one_hot_shape, _one_hot),
}
