"""ONNX models as plain data: nodes, constants, inputs and outputs, apart from protocol buffers."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR

Array = NDArray[Any]
Shape = tuple[int, ...]

# A tensor of more bytes than this is refused before memory is taken for it, as protocol buffers refuse such files.
LARGEST_TENSOR = 2**31
_ALLOWED_BYTES = 2**24  # that any sparse weight may take when it is made dense,
_ALLOWED_FACTOR = 1024  # and how many times what the file holds of it


def check_dense_size(count: int, itemsize: int, held: int, what: str) -> None:
    """Refuse a sparse tensor of `count` elements that is so large for the `held` bytes that a file has of it.

    Raises
    ------
    ValueError
    """
    most = min(LARGEST_TENSOR, max(_ALLOWED_BYTES, _ALLOWED_FACTOR * held))
    if count * itemsize > most:
        raise ValueError(f"{what} takes {count * itemsize} bytes with its zeros, expected at most {most}")


@dataclass(frozen=True, eq=False)
class SparseWeight:
    """A constant of which only the nonzeros are kept.

    matrix : CSR (shape[0], product of the rest), or (shape[1], shape[0]) when `transposed`, which takes two axes.
    """

    matrix: CSR
    shape: Shape
    transposed: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.matrix.dtype

    def dense(self) -> Array:
        """With its zeros."""
        matrix = self.matrix.toarray()
        return np.ascontiguousarray(matrix.T if self.transposed else matrix).reshape(self.shape)


Constant = Array | SparseWeight


@dataclass(frozen=True, eq=False)
class Node:
    """One operator. Missing inputs and outputs are empty names; `version` is the opset it was written for."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    version: int = 25

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def __str__(self) -> str:
        return f"node {self.name!r} ({self.op})"


@dataclass(frozen=True)
class Value:
    """An input or output of a model: sizes are numbers, names of sizes, or None where nothing is said."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, eq=False)
class Model:
    """A model: `nodes` stand in an order in which they can run, and every name is written once."""

    nodes: tuple[Node, ...]
    constants: dict[str, Constant]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def names_in(model: Model) -> set[str]:
    """Names of all tensors."""
    written = {name for node in model.nodes for name in (*node.inputs, *node.outputs)}
    return written | set(model.constants) | {value.name for value in (*model.inputs, *model.outputs)}


def unused(name: str, taken: Container[str]) -> str:
    """A name for a new tensor: `name`, with more behind it where another tensor has it already."""
    while name in taken:
        name += "'"
    return name


def dense(constant: Constant) -> Array:
    """The constant as an array."""
    return constant.dense() if isinstance(constant, SparseWeight) else constant
