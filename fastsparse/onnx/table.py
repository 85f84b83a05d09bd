"""What an operator is to the engine: one entry that tells shapes and computes, and the helpers entries are made of.

An entry is a rule for the shapes and dtypes of its outputs, `infer`, and a function that computes: either `run`, which
writes preallocated outputs, or `view`, whose outputs are views of its first input. Both read small inputs such as
axes by `value`, at planning as well as when running.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.onnx.model import LARGEST_TENSOR, Array, Constant, Node, Shape, dense

DType = np.dtype[Any]


@dataclass(frozen=True, eq=False)
class Info:
    """What planning knows of a tensor; `constant` where its numbers are known."""

    shape: Shape
    dtype: DType
    constant: Constant | None = None

    @property
    def value(self) -> Array | None:
        """Its numbers, with their zeros."""
        return None if self.constant is None else dense(self.constant)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=object))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class ValueNeeded(Exception):
    """A shape depends on the numbers in a node's input, which are not known."""

    def __init__(self, node: Node, position: int) -> None:
        super().__init__(f"{node} needs the numbers of its input {position} for its shapes")
        self.node = node
        self.position = position


class Misfit(ValueError):
    """What is wrong with a node's inputs or attributes; the node's name is added where it is caught."""


Infer = Callable[[Node, Sequence[Any]], list[Info]]
Run = Callable[[Node, Sequence[Any], Sequence[Array]], None]
View = Callable[[Node, Sequence[Any]], list[Array]]


@dataclass(frozen=True)
class Operator:
    """An entry of the table. `contiguous`: `view` takes only C-contiguous arrays."""

    infer: Infer
    run: Run
    view: View | None = None
    contiguous: bool = False


def value(node: Node, inputs: Sequence[Any], position: int) -> Array | None:
    """The numbers of an input, or None where it is left out.

    Raises
    ------
    ValueNeeded
        At planning, when they are not known.
    """
    if position >= len(inputs) or inputs[position] is None:
        return None
    found = inputs[position]
    if isinstance(found, Info):
        if found.value is None:
            raise ValueNeeded(node, position)
        return found.value
    return np.asarray(found)


def ints(node: Node, inputs: Sequence[Any], position: int, attribute: str | None = None) -> list[int] | None:
    """A list of integers that is an attribute in older opsets and an input in newer ones; None when left out."""
    if attribute is not None and attribute in node.attributes:
        return [int(n) for n in node.attributes[attribute]]
    found = value(node, inputs, position)
    return None if found is None else [int(n) for n in found.reshape(-1)]


def optional(inputs: Sequence[Any], position: int) -> Any:
    """An input, or None where it is left out."""
    return inputs[position] if position < len(inputs) else None


def axis_of(axis: int, ndim: int) -> int:
    """An axis, counted from the front."""
    if not -ndim <= axis < max(ndim, 1):
        raise Misfit(f"axis is {axis}, expected one of a tensor of {ndim} axes")
    return axis + ndim if axis < 0 else axis


def checked_shape(sizes: Sequence[Any], dtype: DType) -> Shape:
    """A shape whose tensor may be allocated."""
    shape = tuple(int(n) for n in sizes)
    if any(n < 0 for n in shape):
        raise Misfit(f"shape {shape} has a negative size")
    count = 1
    for n in shape:
        count *= n
    if count * dtype.itemsize > LARGEST_TENSOR:
        raise Misfit(f"a tensor of shape {shape} takes more than {LARGEST_TENSOR} bytes")
    return shape


def like(x: Any, shape: Sequence[int] | None = None, dtype: Any = None) -> Info:
    """What a tensor like `x` is, of another shape or dtype where given."""
    kind = np.dtype(x.dtype if dtype is None else dtype)
    return Info(checked_shape(x.shape if shape is None else shape, kind), kind)


def same(node: Node, inputs: Sequence[Any]) -> list[Info]:
    """One output like the first input."""
    return [like(inputs[0])]


def broadcast(*shapes: Shape) -> Shape:
    """The shape that shapes broadcast to; nothing is allocated."""
    ndim = max(map(len, shapes), default=0)
    result = []
    for sizes in zip(*((1,) * (ndim - len(shape)) + tuple(shape) for shape in shapes)):
        wide = {n for n in sizes if n != 1}
        if len(wide) > 1:
            raise Misfit(f"shapes {' and '.join(map(str, shapes))} do not broadcast")
        result.append(wide.pop() if wide else 1)
    return tuple(result)


def dummy(x: Any) -> NDArray[Any]:
    """An array of the tensor's shape that takes no memory."""
    return np.broadcast_to(np.zeros((), x.dtype), x.shape)


def viewing(view: View) -> Operator:
    """An operator whose outputs are always views of its first input."""

    def infer(node: Node, inputs: Sequence[Any]) -> list[Info]:
        return [Info(v.shape, v.dtype) for v in view(node, [dummy(inputs[0]), *inputs[1:]])]

    def run(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
        for out, v in zip(outs, view(node, inputs)):
            np.copyto(out, v)

    return Operator(infer, run, view)
