"""Reductions along axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastsparse.onnx.model import Array, Node
from fastsparse.onnx.table import Info, Operator, axis_of, ints, like

# From this opset on the axes of a reduction are an input.
_AXES_ARE_INPUTS = {"ReduceSum": 13}


def reduced_axes(node: Node, inputs: Sequence[Any]) -> tuple[int, ...] | None:
    """The axes to reduce, or None when there is nothing to do."""
    ndim = inputs[0].ndim
    axes = ints(node, inputs, 1, "axes") if node.version >= _AXES_ARE_INPUTS.get(node.op, 18) else node.get("axes")
    if not axes:
        return None if node.get("noop_with_empty_axes", 0) else tuple(range(ndim))
    return tuple(sorted({axis_of(int(a), ndim) for a in axes}))


def _reduced_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    x, axes = inputs[0], reduced_axes(node, inputs)
    if axes is None:
        return [like(x)]
    keep = node.get("keepdims", 1)
    return [like(x, [1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes])]


def _reducing(reduce: Callable[[Array, tuple[int, ...], Array], object], elementwise: Any = None) -> Operator:
    """A reduction; `elementwise` is what is left of it over no axes at all, the identity by default."""

    def run(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
        axes = reduced_axes(node, inputs)
        if axes is None:
            np.copyto(outs[0], inputs[0] if elementwise is None else elementwise(inputs[0]))
            return
        x = inputs[0]
        kept = [1 if i in axes else n for i, n in enumerate(x.shape)]
        reduce(x, axes, outs[0].reshape(kept))

    return Operator(_reduced_shape, run)


def _sum(x: Array, axes: tuple[int, ...], out: Array) -> None:
    np.sum(x, axes, out=out, keepdims=True, dtype=out.dtype)


def _mean(x: Array, axes: tuple[int, ...], out: Array) -> None:
    np.mean(x, axes, out=out, keepdims=True)


def _extreme(function: Any, largest: bool) -> Callable[[Array, tuple[int, ...], Array], None]:
    def reduce(x: Array, axes: tuple[int, ...], out: Array) -> None:
        start: Any
        if x.dtype.kind == "f":
            start = -np.inf if largest else np.inf
        elif x.dtype.kind == "b":
            start = not largest
        else:
            limits = np.iinfo(x.dtype)
            start = limits.min if largest else limits.max
        function(x, axes, out=out, keepdims=True, initial=start)

    return reduce


def _l1(x: Array, axes: tuple[int, ...], out: Array) -> None:
    _sum(np.abs(x), axes, out)


def _sum_square(x: Array, axes: tuple[int, ...], out: Array) -> None:
    _sum(np.square(x), axes, out)


def _l2(x: Array, axes: tuple[int, ...], out: Array) -> None:
    total = np.sum(np.square(x.astype(np.float64)), axes, keepdims=True)
    np.copyto(out, np.sqrt(total), casting="unsafe")


def _log_sum(x: Array, axes: tuple[int, ...], out: Array) -> None:
    np.copyto(out, np.log(np.sum(x, axes, keepdims=True)), casting="unsafe")


def _log_sum_exp(x: Array, axes: tuple[int, ...], out: Array) -> None:
    wide = x.astype(np.float64)
    top = np.max(wide, axes, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0)
    np.copyto(out, np.log(np.sum(np.exp(wide - top), axes, keepdims=True)) + top, casting="unsafe")


def _product(x: Array, axes: tuple[int, ...], out: Array) -> None:
    np.prod(x, axes, out=out, keepdims=True, dtype=out.dtype)


# ---------------------------------------------------------------- places of extremes


def _place_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    x, axis = inputs[0], axis_of(int(node.get("axis", 0)), inputs[0].ndim)
    keep = node.get("keepdims", 1)
    return [like(x, [1 if i == axis else n for i, n in enumerate(x.shape) if keep or i != axis], np.int64)]


def _place(function: Any) -> Operator:
    def run(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
        x, axis = inputs[0], axis_of(int(node.get("axis", 0)), inputs[0].ndim)
        last = bool(node.get("select_last_index", 0))
        found = function(np.flip(x, axis) if last else x, axis)
        np.copyto(outs[0].reshape(found.shape), x.shape[axis] - 1 - found if last else found)

    return Operator(_place_shape, run)


OPERATORS: dict[str, Operator] = {
    "ReduceSum": _reducing(_sum),
    "ReduceMean": _reducing(_mean),
    "ReduceMax": _reducing(_extreme(np.max, largest=True)),
    "ReduceMin": _reducing(_extreme(np.min, largest=False)),
    "ReduceProd": _reducing(_product),
    "ReduceL1": _reducing(_l1, np.abs),
    "ReduceL2": _reducing(_l2, np.abs),
    "ReduceSumSquare": _reducing(_sum_square, np.square),
    "ReduceLogSum": _reducing(_log_sum, np.log),
    "ReduceLogSumExp": _reducing(_log_sum_exp),
    "ArgMax": _place(np.argmax),
    "ArgMin": _place(np.argmin),
}
