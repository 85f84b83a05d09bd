"""Operators that give the same numbers another shape or order; most are views and move nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastsparse.onnx.model import Array, Node, Shape
from fastsparse.onnx.table import (
    Info,
    Misfit,
    Operator,
    axis_of,
    broadcast,
    checked_shape,
    ints,
    like,
    value,
    viewing,
)


def _reshaping(target: Any) -> Operator:
    """An operator that reads its input in row-major order in another shape, a view where the input is contiguous."""

    def infer(node: Node, inputs: Sequence[Any]) -> list[Info]:
        return [like(inputs[0], target(node, inputs))]

    def view(node: Node, inputs: Sequence[Any]) -> list[Array]:
        return [inputs[0].reshape(target(node, inputs))]

    def run(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
        np.copyto(outs[0].reshape(inputs[0].shape), inputs[0])

    return Operator(infer, run, view, contiguous=True)


def _reshaped(node: Node, inputs: Sequence[Any]) -> Shape:
    x, wanted = inputs[0], ints(node, inputs, 1, "shape")
    if wanted is None:
        raise Misfit("it has no shape")
    if not node.get("allowzero", 0):
        if any(n == 0 and i >= x.ndim for i, n in enumerate(wanted)):
            raise Misfit(f"shape is {wanted}: a 0 stands where x of shape {x.shape} has no axis")
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    size = math.prod(x.shape)
    if wanted.count(-1) == 1:
        rest = math.prod(n for n in wanted if n != -1)
        if rest and size % rest == 0:
            wanted = [size // rest if n == -1 else n for n in wanted]
        elif not rest and not size:
            wanted = [0 if n == -1 else n for n in wanted]
    if any(n < 0 for n in wanted) or math.prod(wanted) != size:
        raise Misfit(f"x of shape {x.shape} does not fit shape {wanted}")
    return tuple(wanted)


def _flattened(node: Node, inputs: Sequence[Any]) -> Shape:
    shape, axis = inputs[0].shape, int(node.get("axis", 1))
    if not -len(shape) <= axis <= len(shape):
        raise Misfit(f"axis is {axis}, expected one of x of shape {shape}")
    return math.prod(shape[:axis]), math.prod(shape[axis:])


def _squeeze(node: Node, inputs: Sequence[Any]) -> list[Array]:
    x, axes = inputs[0], ints(node, inputs, 1, "axes")
    if axes is None:
        return [np.squeeze(x)]
    found = tuple(axis_of(a, x.ndim) for a in axes)
    if any(x.shape[a] != 1 for a in found):
        raise Misfit(f"axes {axes} of x of shape {x.shape} are not all of size 1")
    return [np.squeeze(x, found)]


def _unsqueeze(node: Node, inputs: Sequence[Any]) -> list[Array]:
    x, axes = inputs[0], ints(node, inputs, 1, "axes")
    if axes is None:
        raise Misfit("it has no axes")
    ndim = x.ndim + len(axes)
    found = tuple(axis_of(a, ndim) for a in axes)
    if len(set(found)) < len(found):
        raise Misfit(f"axes are {axes}, expected every axis once")
    return [np.expand_dims(x, found)]


def _transpose(node: Node, inputs: Sequence[Any]) -> list[Array]:
    order = node.get("perm")
    if order is not None and sorted(order) != list(range(inputs[0].ndim)):
        raise Misfit(f"perm is {order}, expected every axis of x of shape {inputs[0].shape} once")
    return [np.transpose(inputs[0], order)]


def _expand(node: Node, inputs: Sequence[Any]) -> list[Array]:
    x, shape = inputs[0], ints(node, inputs, 1)
    wanted = broadcast(x.shape, checked_shape(shape or [], x.dtype))
    return [np.broadcast_to(x, checked_shape(wanted, x.dtype))]


def _identity(node: Node, inputs: Sequence[Any]) -> list[Array]:
    return [inputs[0]]


def _dropout(node: Node, inputs: Sequence[Any]) -> list[Array]:
    training = value(node, inputs, 2) if node.version >= 12 else None
    ratio = value(node, inputs, 1)
    if training is not None and bool(training.item()) and (ratio is None or ratio.item() != 0):
        raise Misfit("it is in training mode, which inference does not have")
    mask = np.broadcast_to(np.array(True), inputs[0].shape)
    if node.version < 10:
        mask = np.broadcast_to(np.ones((), inputs[0].dtype), inputs[0].shape)
    return [inputs[0], mask][: len(node.outputs)]


def slices(node: Node, inputs: Sequence[Any]) -> tuple[slice, ...]:
    """A Slice as an index."""
    x = inputs[0]
    starts, ends = ints(node, inputs, 1, "starts"), ints(node, inputs, 2, "ends")
    if starts is None or ends is None:
        raise Misfit("it has no starts or no ends")
    axes = ints(node, inputs, 3, "axes") or list(range(len(starts)))
    steps = ints(node, inputs, 4) or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise Misfit("starts, ends, axes and steps differ in length")
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps):
        a = axis_of(axis, x.ndim)
        n = x.shape[a]
        if step == 0:
            raise Misfit("a step is 0")
        if step > 0:
            low, high = (min(max(v + n if v < 0 else v, 0), n) for v in (start, end))
            index[a] = slice(low, high, step)
        else:
            low, high = (min(max(v + n if v < 0 else v, -1), n - 1) for v in (start, end))
            index[a] = slice(low, None if high < 0 else high, step) if low >= 0 else slice(0, 0)
    return tuple(index)


def _slice(node: Node, inputs: Sequence[Any]) -> list[Array]:
    return [inputs[0][slices(node, inputs)]]


def _split(node: Node, inputs: Sequence[Any]) -> list[Array]:
    x = inputs[0]
    axis = axis_of(int(node.get("axis", 0)), x.ndim)
    size, count = x.shape[axis], len(node.outputs)
    parts = ints(node, inputs, 1, "split")
    if parts is None:
        width = -(-size // count)
        parts = [max(0, min(width, size - i * width)) for i in range(count)]
    if len(parts) != count or sum(parts) != size or min(parts, default=0) < 0:
        raise Misfit(f"split is {parts} for {count} outputs of x of shape {x.shape} along axis {axis}")
    cuts = np.cumsum(parts)[:-1]
    return list(np.split(x, cuts, axis))


def _blocks(node: Node, x: Any) -> tuple[int, int, int, int, int]:
    if x.ndim != 4:
        raise Misfit(f"x has shape {x.shape}, expected (N, C, H, W)")
    return (*x.shape, int(node.attributes["blocksize"]))


def _to_space_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    n, c, h, w, b = _blocks(node, inputs[0])
    return [like(inputs[0], (n, c // (b * b), h * b, w * b))]


def _depth_to_space(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    n, c, h, w, b = _blocks(node, inputs[0])
    if node.get("mode", "DCR") == "DCR":
        y = inputs[0].reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = inputs[0].reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    np.copyto(outs[0].reshape(y.shape), y)


def _to_depth_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    n, c, h, w, b = _blocks(node, inputs[0])
    return [like(inputs[0], (n, c * b * b, h // b, w // b))]


def _space_to_depth(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    n, c, h, w, b = _blocks(node, inputs[0])
    order = (0, 3, 5, 1, 2, 4) if node.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    y = inputs[0].reshape(n, c, h // b, b, w // b, b).transpose(order)
    np.copyto(outs[0].reshape(y.shape), y)


OPERATORS: dict[str, Operator] = {
    "Reshape": _reshaping(_reshaped),
    "Flatten": _reshaping(_flattened),
    "Squeeze": viewing(_squeeze),
    "Unsqueeze": viewing(_unsqueeze),
    "Transpose": viewing(_transpose),
    "Expand": viewing(_expand),
    "Identity": viewing(_identity),
    "Dropout": viewing(_dropout),
    "Slice": viewing(_slice),
    "Split": viewing(_split),
    "DepthToSpace": Operator(_to_space_shape, _depth_to_space),
    "SpaceToDepth": Operator(_to_depth_shape, _space_to_depth),
}
