"""Operators that make tensors: constants, casts, and the arithmetic of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastsparse.onnx.dtypes import dtype_of
from fastsparse.onnx.model import Array, Node
from fastsparse.onnx.table import Info, Misfit, Operator, like, value


def _made(make: Any) -> Operator:
    """An operator whose output follows from shapes and attributes alone."""

    def infer(node: Node, inputs: Sequence[Any]) -> list[Info]:
        array = make(node, inputs)
        return [Info(array.shape, array.dtype, array)]

    return Operator(infer, lambda node, inputs, outs: np.copyto(outs[0], make(node, inputs)))


def _constant(node: Node, inputs: Sequence[Any]) -> Array:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in node.attributes:
            found = node.attributes[name]
            if name == "value":
                return np.asarray(found)
            return np.asarray(found, np.float32 if "float" in name else np.int64)
    raise Misfit("it has no value of numbers")


def _shape(node: Node, inputs: Sequence[Any]) -> Array:
    shape = inputs[0].shape
    ndim = len(shape)
    start, end = int(node.get("start", 0)), int(node.get("end", ndim))
    start, end = (min(max(n + ndim if n < 0 else n, 0), ndim) for n in (start, end))
    return np.asarray(shape[start:end], np.int64)


def _size(node: Node, inputs: Sequence[Any]) -> Array:
    return np.asarray(like(inputs[0]).size, np.int64)


def _filled_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    shape, filling = value(node, inputs, 0), _filling(node)
    assert shape is not None
    return [like(filling, [int(n) for n in shape.reshape(-1)])]


def _filling(node: Node) -> Array:
    return np.asarray(node.get("value", np.zeros(1, np.float32))).reshape(-1)[:1]


def _filled(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    outs[0][...] = _filling(node)[0]


def _range_count(node: Node, inputs: Sequence[Any]) -> tuple[Any, int, Any]:
    start, limit, delta = (value(node, inputs, i) for i in range(3))
    assert start is not None
    assert limit is not None
    assert delta is not None
    first, last, step = (v.reshape(-1)[0] for v in (start, limit, delta))
    if step == 0:
        raise Misfit("delta is 0")
    steps = (float(last) - float(first)) / float(step)
    return first, max(0, int(np.ceil(steps))), step


def _range_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    return [like(inputs[0], (_range_count(node, inputs)[1],))]


def _range(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    first, count, step = _range_count(node, inputs)
    np.copyto(outs[0], first + np.arange(count) * step, casting="unsafe")


def _cast_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    return [like(inputs[0], dtype=dtype_of(int(node.attributes["to"]), str(node)))]


def _cast(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    np.copyto(outs[0], inputs[0], casting="unsafe")


def _cast_like_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    return [like(inputs[0], dtype=inputs[1].dtype)]


def _eye_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    kind = dtype_of(int(node.attributes["dtype"]), str(node)) if "dtype" in node.attributes else None
    return [like(inputs[0], dtype=kind)]


def _eye(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    rows, columns = outs[0].shape
    np.copyto(outs[0], np.eye(rows, columns, int(node.get("k", 0)), outs[0].dtype))


OPERATORS: dict[str, Operator] = {
    "Constant": _made(_constant),
    "Shape": _made(_shape),
    "Size": _made(_size),
    "ConstantOfShape": Operator(_filled_shape, _filled),
    "Range": Operator(_range_shape, _range),
    "Cast": Operator(_cast_shape, _cast),
    "CastLike": Operator(_cast_like_shape, _cast),
    "EyeLike": Operator(_eye_shape, _eye),
}
