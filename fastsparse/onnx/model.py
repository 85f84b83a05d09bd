"""ONNX models as the compiler sees them: nodes, constants, inputs and outputs, beside the messages they came in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR

Array = NDArray[Any]
Shape = tuple[int, ...]

# The types that NumPy has; strings are objects to it.
TYPES: dict[int, np.dtype[Any]] = {
    code: np.dtype(kind)
    for code, kind in {
        1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 8: object,
        9: np.bool_, 10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64, 14: np.complex64, 15: np.complex128,
    }.items()
}  # fmt: skip
BFLOAT16 = 16
EXTERNAL = 1  # TensorProto.DataLocation
# Bits of an element of the other ones.
_BITS = {BFLOAT16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
HALF = np.dtype(np.float16)


@dataclass(frozen=True, eq=False)
class SparseWeight:
    """A constant of which only the nonzeros are kept: CSR (shape[0], product of the rest)."""

    matrix: CSR
    shape: Shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.matrix.dtype

    def dense(self) -> Array:
        """With its zeros."""
        return self.matrix.toarray().reshape(self.shape)


# A TensorProto where NumPy does not have the type.
Constant = Array | SparseWeight | Any


@dataclass(frozen=True, eq=False)
class Node:
    """One operator. Missing inputs and outputs are empty names; `version` is the opset it was written for.

    protos : the NodeProto that it is in the model, or all those that it stands for.
    captured : other tensors that these read: graphs in attributes, and nodes that are stood for.
    activation : the activation of the kernels that it computes.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    version: int
    protos: tuple[Any, ...]
    captured: tuple[str, ...] = ()
    activation: str | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    @property
    def reads(self) -> tuple[str, ...]:
        """All tensors that it needs."""
        return tuple(dict.fromkeys(filter(None, (*self.inputs, *self.captured))))

    @property
    def writes(self) -> tuple[str, ...]:
        """All tensors that it makes."""
        return tuple(filter(None, self.outputs))

    def __str__(self) -> str:
        return f"node {self.name!r} ({self.op})"


@dataclass(frozen=True)
class Value:
    """An input or output of a model.

    dtype : None where it is no tensor, or one of a type that NumPy does not have.
    shape : sizes are numbers, names of sizes, or None where nothing is said.
    proto : the ValueInfoProto.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None
    proto: Any = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class Model:
    """A model: `nodes` stand in an order in which they can run, and every name is written once.

    header : a ModelProto without a graph: versions, opsets.
    """

    nodes: tuple[Node, ...]
    constants: dict[str, Constant]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    header: Any

    def constant(self, name: str) -> Array | SparseWeight | None:
        """A constant as it is kept; None where the tensor is none, or of a type that NumPy does not have."""
        found = self.constants.get(name)
        return found if isinstance(found, np.ndarray | SparseWeight) else None

    def array(self, name: str) -> Array | None:
        """A constant with its zeros."""
        found = self.constant(name)
        return None if found is None else dense(found)

    def part(self, nodes: Sequence[Node], inputs: Iterable[str], outputs: Iterable[str], types: Any = None) -> Model:
        """Some nodes as a model; `types` are TypeProtos, by name, of ends that this one does not declare."""

        def ends(names: Iterable[str], declared: tuple[Value, ...]) -> Iterator[Value]:
            known, types_of = {value.name: value for value in declared}, types or {}
            for name in names:
                proto = type(self.header)().graph.input.add(name=name, type=types_of.get(name))
                yield known.get(name) or Value(name, None, None, proto)

        both = tuple(ends(inputs, self.inputs)), tuple(ends(outputs, self.outputs))
        return Model(tuple(nodes), self.constants, *both, self.header)

    def readers(self) -> dict[str, list[Node]]:
        """The nodes that read each tensor."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.reads:
                found.setdefault(name, []).append(node)
        return found

    def producers(self) -> dict[str, Node]:
        """The node that writes each tensor."""
        return {name: node for node in self.nodes for name in node.writes}


def copied(message: Any) -> Any:
    """Another message like this one."""
    made = type(message)()
    made.CopyFrom(message)
    return made


def put_outside(tensor: Any, location: str, offset: int, length: int) -> None:
    """Say of a TensorProto where its bytes are."""
    tensor.data_location = EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def dense(constant: Constant) -> Array:
    """The constant as an array."""
    return constant.dense() if isinstance(constant, SparseWeight) else constant


def density(constant: Constant) -> float:
    """Share of elements that are not zero."""
    nonzeros = constant.matrix.nnz if isinstance(constant, SparseWeight) else np.count_nonzero(constant)
    return float(nonzeros) / max(1, math.prod(constant.shape))


def code_of(dtype: np.dtype[Any]) -> int:
    """ONNX's number of a NumPy type."""
    return next(code for code, kind in TYPES.items() if kind == dtype)


def bits_of(code: int) -> int:
    """Bits of an element, 0 where that is not known or has no bound."""
    if code == 8 or code not in (*TYPES, *_BITS):
        return 0
    return TYPES[code].itemsize * 8 if code in TYPES else _BITS[code]
