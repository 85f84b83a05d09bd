"""Reading TFLite files: flatbuffers to plain records, weights to float32 arrays, checked against what the file holds.

Files may be damaged or hostile. Numbers of tensors and operators are bounded, weights' elements by the file's size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import extras
from fastsparse.engine.program import UnsupportedOperatorError
from fastsparse.files import FileFormatError

Array = NDArray[Any]
Shape = tuple[int, ...]

_MOST = 100_000  # tensors or operators
# All that is read may take this many times the file, and this many bytes in any case: sparse ones take more.
_BLOW_UP, _SMALL = 256, 2**26
_NUMBER = 64  # bytes that an input or output of an operator counts as, for each is read by itself
# TensorType: NumPy's names, and what it is called where NumPy has none.
_TYPES = {
    0: "f4", 1: "f2", 2: "i4", 3: "u1", 4: "i8", 6: "?", 7: "i2", 9: "i1", 10: "f8", 12: "u8", 15: "u4", 16: "u2",
}  # fmt: skip
_OTHER_TYPES = {
    5: "STRING",
    8: "COMPLEX64",
    11: "COMPLEX128",
    13: "RESOURCE",
    14: "VARIANT",
    17: "INT4",
    18: "BFLOAT16",
}


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor. constant : its numbers, where the file holds them; floats and quantised numbers are float32 then.

    quantised : whether its numbers stand for others (and the model computes with them, unless it is constant).
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    constant: Array | None
    quantised: bool


@dataclass(frozen=True, eq=False)
class Operator:
    """An operator. `options` reads a field of its options by name: ``options("StrideH")``; None where it has none."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Callable[[str], Any]

    def __str__(self) -> str:
        return f"operator {self.kind}"


@dataclass(frozen=True, eq=False)
class Model:
    """The first subgraph of a model; inputs and outputs are numbers of tensors."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read(path: str | os.PathLike[str]) -> Model:
    """Read a model.

    Raises
    ------
    FileFormatError
        When the file is damaged, or no TFLite model.
    UnsupportedOperatorError
        When a tensor is of a type that NumPy does not have.
    OSError
        When it cannot be read.
    """
    extras.require("a TFLite model", "tflite", tflite="tflite", onnx="onnx")
    import tflite

    content = Path(path).read_bytes()
    if content[4:8] != b"TFL3":
        raise FileFormatError(f"{os.fspath(path)} is not a TFLite model")
    try:
        return _Reader(tflite, content).model()
    except (FileFormatError, UnsupportedOperatorError, MemoryError):
        raise
    except Exception as error:  # offsets that point anywhere
        raise FileFormatError(f"{os.fspath(path)} is damaged: {error}") from error


class _Reader:
    """Reads one file."""

    def __init__(self, tflite: Any, content: bytes) -> None:
        self._tflite, self._content = tflite, content
        self._left = max(_SMALL, _BLOW_UP * len(content))
        self._kinds = {number: name for name, number in vars(tflite.BuiltinOperator).items() if type(number) is int}

    def model(self) -> Model:
        root = self._tflite.Model.GetRootAsModel(self._content, 0)
        if root.SubgraphsLength() < 1:
            raise ValueError("it has no subgraph")
        graph = root.Subgraphs(0)
        count, operators = graph.TensorsLength(), graph.OperatorsLength()
        if max(count, operators) > _MOST:
            raise ValueError(f"it has {count} tensors and {operators} operators, expected at most {_MOST}")
        tensors = _named([self._tensor(root, graph.Tensors(i)) for i in range(count)])
        return Model(
            tuple(tensors),
            tuple(self._operator(root, graph.Operators(i), count) for i in range(operators)),
            _indices(graph.InputsLength(), graph.Inputs, count),
            _indices(graph.OutputsLength(), graph.Outputs, count),
        )

    def _spend(self, size: int) -> None:
        """Count bytes that are read: tables and vectors may stand in several places."""
        self._left -= size
        if self._left < 0:
            raise ValueError("it takes far more memory than the file, expected no such sizes")

    def _operator(self, root: Any, operator: Any, tensors: int) -> Operator:
        code = root.OperatorCodes(operator.OpcodeIndex())
        self._spend(_NUMBER * (operator.InputsLength() + operator.OutputsLength()))
        kind = self._kinds.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "UNKNOWN")
        if kind == "CUSTOM":
            kind = (code.CustomCode() or b"CUSTOM").decode("utf-8", "replace")
            self._spend(len(kind))
        table, name = operator.BuiltinOptions(), _OPTIONS.get(kind)
        found = None
        if table is not None and name is not None:
            found = getattr(self._tflite, name)()
            found.Init(table.Bytes, table.Pos)

        def option(field: str) -> Any:
            return None if found is None else getattr(found, field)()

        return Operator(
            kind,
            _indices(operator.InputsLength(), operator.Inputs, tensors, least=-1),
            _indices(operator.OutputsLength(), operator.Outputs, tensors),
            option,
        )

    def _tensor(self, root: Any, tensor: Any) -> Tensor:
        name = (tensor.Name() or b"").decode("utf-8", "replace")
        self._spend(len(name))
        shape = tuple(int(n) for n in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
        if tensor.Type() in _OTHER_TYPES:
            raise UnsupportedOperatorError(
                f"tensor {name!r} is of type {_OTHER_TYPES[tensor.Type()]}, which is not supported in TFLite models"
            )
        if tensor.Type() not in _TYPES:
            raise ValueError(f"tensor {name!r} is of type {tensor.Type()}, which is not known")
        if len(shape) > 8 or any(n < -1 for n in shape):
            raise ValueError(f"tensor {name!r} has shape {shape}")
        dtype = np.dtype(_TYPES[tensor.Type()])
        scales, zeros, axis = self._quantisation(tensor)
        quantised = dtype.kind in "iu" and scales.size > 0
        held = self._buffer(root.Buffers(tensor.Buffer()))
        if not held.size and tensor.Sparsity() is None:
            return Tensor(name, shape, dtype, None, quantised)
        if min(shape, default=1) < 1:
            raise ValueError(f"tensor {name!r} has shape {shape} and numbers")
        values: Array = held.view(dtype.newbyteorder("<"))
        wide = np.dtype(np.float32) if quantised or dtype == np.float16 else dtype
        self._spend(math.prod(shape) * wide.itemsize)
        sparsity = tensor.Sparsity()
        if sparsity is not None:
            values = _densified(sparsity, values, shape, name, len(self._content))
        if values.size != math.prod(shape):
            raise ValueError(f"tensor {name!r} of shape {shape} has {values.size} numbers")
        values = values.reshape(shape).astype(wide)
        if quantised:
            if scales.size > 1:
                sides = [1] * len(shape)
                sides[axis] = shape[axis]
                scales, zeros = scales.reshape(sides), zeros.reshape(sides)
            values = (values - zeros) * scales
        return Tensor(name, shape, wide, values.astype(wide, copy=False), quantised)

    def _quantisation(self, tensor: Any) -> tuple[Array, Array, int]:
        """Scales, zero points, and the axis that they belong to; without scales where it has none."""
        found = tensor.Quantization()
        if found is None or not found.ScaleLength():
            return np.empty(0, np.float32), np.empty(0, np.float32), 0
        scales = np.array(found.ScaleAsNumpy(), np.float32)
        zeros = np.array(found.ZeroPointAsNumpy(), np.float32) if found.ZeroPointLength() else np.zeros_like(scales)
        if zeros.shape != scales.shape:
            zeros = np.broadcast_to(zeros, scales.shape)
        return scales, zeros, found.QuantizedDimension()

    def _buffer(self, buffer: Any) -> Array:
        """The bytes of a buffer, which in files above 2 GiB lie behind the flatbuffer."""
        first, size = buffer.Offset(), buffer.Size()
        if first > 1:
            if first + size > len(self._content):
                raise ValueError(f"a buffer lies in bytes {first} to {first + size} of {len(self._content)}")
            return np.frombuffer(self._content, np.uint8, size, first)
        return np.asarray(buffer.DataAsNumpy()) if buffer.DataLength() else np.empty(0, np.uint8)


_OPTIONS = {
    "CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions", "MAX_POOL_2D": "Pool2DOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions", "FULLY_CONNECTED": "FullyConnectedOptions", "SOFTMAX": "SoftmaxOptions",
    "ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions", "DIV": "DivOptions", "RESHAPE": "ReshapeOptions",
    "CONCATENATION": "ConcatenationOptions", "RESIZE_BILINEAR": "ResizeBilinearOptions", "SQUEEZE": "SqueezeOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions", "DEPTH_TO_SPACE": "DepthToSpaceOptions",
    "SPACE_TO_DEPTH": "SpaceToDepthOptions", "LEAKY_RELU": "LeakyReluOptions", "MEAN": "ReducerOptions",
    "SUM": "ReducerOptions", "REDUCE_MAX": "ReducerOptions", "STRIDED_SLICE": "StridedSliceOptions",
    "BATCH_MATMUL": "BatchMatMulOptions", "TRANSPOSE_CONV": "TransposeConvOptions",
}  # fmt: skip


def _indices(count: int, get: Callable[[int], int], tensors: int, least: int = 0) -> tuple[int, ...]:
    if count > _MOST:
        raise ValueError(f"{count} tensors are read or written at once, expected at most {_MOST}")
    found = tuple(int(get(i)) for i in range(count))
    for number in found:
        if not least <= number < tensors:
            raise ValueError(f"tensor number {number} is read or written, and there are {tensors}")
    return found


def _named(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors with names that no other one has."""
    taken: set[str] = set()
    named = []
    for i, tensor in enumerate(tensors):
        name = tensor.name or f"tensor_{i}"
        while name in taken:
            name = f"{name}_{i}"
        taken.add(name)
        named.append(Tensor(name, tensor.shape, tensor.dtype, tensor.constant, tensor.quantised))
    return named


def _densified(sparsity: Any, values: Array, shape: Shape, name: str, held: int) -> Array:
    """A sparse tensor with its zeros.

    Levels are gone through in the order of traversal, outermost first, as in TACO (Kjolstad et al., OOPSLA 2017): a
    dense level has all its indices below every node, a compressed one those of its segment. Levels behind the tensor's
    own axes are axes of blocks. Every node is a value or has a segment: there are no more than the file `held` bytes.
    """
    order = [int(n) for n in sparsity.TraversalOrderAsNumpy()]
    blocked = [int(n) for n in sparsity.BlockMapAsNumpy()] if sparsity.BlockMapLength() else []
    rank, levels = len(shape), sparsity.DimMetadataLength()
    if sorted(order) != list(range(rank + len(blocked))) or levels != len(order) or any(
        not 0 <= axis < rank for axis in blocked
    ):  # fmt: skip
        raise ValueError(f"tensor {name!r} of shape {shape} has levels {order} and blocks of axes {blocked}")
    limit = min(math.prod(shape), held)
    parents, places = np.zeros(1, np.int64), dict[int, Array]()
    sizes = {}
    for level, axis in enumerate(order):
        metadata = sparsity.DimMetadata(level)
        if metadata.Format() == 0:
            size = sizes[axis] = metadata.DenseSize()
            if size < 1 or len(parents) * size > limit:
                raise ValueError(f"tensor {name!r} of shape {shape} has a dense level of {size}")
            counts, inside = np.full(len(parents), size, np.int64), np.tile(np.arange(size), len(parents))
            parents = np.arange(len(parents) * size)
        else:
            segments, indices = _level(metadata)
            counts = np.diff(segments)
            ends = len(segments) == len(parents) + 1 and not segments[0] and segments[-1] == len(indices)
            if not ends or (counts < 0).any() or len(indices) > limit:
                raise ValueError(f"tensor {name!r} of shape {shape} has segments that do not fit its indices")
            inside, parents = indices, np.arange(len(indices))
        places = {known: np.repeat(array, counts) for known, array in places.items()}
        places[axis] = inside
    for i, axis in enumerate(blocked):
        if rank + i not in sizes:
            raise ValueError(f"tensor {name!r} has blocks that are not dense")
        places[axis] = places[axis] * sizes[rank + i] + places[rank + i]
    if len(parents) != len(values):
        raise ValueError(f"tensor {name!r} has {len(values)} numbers for {len(parents)} places")
    for axis, size in enumerate(shape):
        if len(parents) and not (places[axis].min() >= 0 and places[axis].max() < size):
            raise ValueError(f"tensor {name!r} has indices outside of shape {shape}")
    dense = np.zeros(shape, values.dtype)
    dense[tuple(places[axis] for axis in range(rank))] = values
    return dense


def _level(metadata: Any) -> tuple[Array, Array]:
    """Segments and indices of a compressed level."""
    return _vector(metadata.ArraySegments(), metadata.ArraySegmentsType()), _vector(
        metadata.ArrayIndices(), metadata.ArrayIndicesType()
    )


def _vector(table: Any, kind: int) -> Array:
    """One of SparseIndexVector's three vectors."""
    import tflite

    classes = {1: tflite.Int32Vector, 2: tflite.Uint16Vector, 3: tflite.Uint8Vector}
    if table is None or kind not in classes:
        raise ValueError(f"a sparse level has indices of type {kind}")
    vector = classes[kind]()
    vector.Init(table.Bytes, table.Pos)
    return np.array(vector.ValuesAsNumpy() if vector.ValuesLength() else [], np.int64)
