"""Tensors of ONNX files as arrays. What a file declares is compared with what it holds before memory is taken."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastsparse.csr import CSR
from fastsparse.files import FileFormatError, Folder
from fastsparse.onnx.model import TYPES, Array, Constant, Shape, SparseWeight, bits_of

_EXTERNAL = 1  # TensorProto.DataLocation
_FIELDS = {1: "float_data", 8: "string_data", 11: "double_data", 7: "int64_data", 12: "uint64_data", 13: "uint64_data",
           14: "float_data", 15: "double_data"}  # fmt: skip
LARGEST = 2**62  # bytes: what 64-bit sizes can say
# A sparse tensor may take this many times what the file holds of it, and this many bytes in any case.
_BLOW_UP, _SMALL = 4096, 2**26


def sizes_of(dims: Any, what: str) -> Shape:
    """A declared shape; 64-bit sizes whose product cannot be wrong."""
    shape = tuple(int(n) for n in dims)
    if any(n < 0 for n in shape):
        raise FileFormatError(f"{what} has shape {shape}, expected sizes of at least 0")
    if len(shape) > 64:
        raise FileFormatError(f"{what} has {len(shape)} axes, expected at most 64")
    if math.prod(shape) >= LARGEST:
        raise FileFormatError(f"{what} of shape {shape} takes more than {LARGEST} bytes")
    return shape


def check_size(tensor: Any, what: str) -> None:
    """Hold the numbers that a TensorProto brings against what it declares."""
    shape, bits = sizes_of(tensor.dims, what), bits_of(tensor.data_type)
    count = math.prod(shape)
    if tensor.data_location == _EXTERNAL:
        return
    if tensor.HasField("raw_data"):
        if bits and len(tensor.raw_data) != -(-count * bits // 8):
            raise FileFormatError(
                f"{what} of shape {shape} has {len(tensor.raw_data)} bytes, expected {-(-count * bits // 8)}"
            )
        return
    found = len(getattr(tensor, _FIELDS.get(tensor.data_type, "int32_data")))
    if tensor.data_type in (14, 15):
        found //= 2
    if (found != count and bits >= 8) or (tensor.data_type == 8 and found != count):
        raise FileFormatError(f"{what} of shape {shape} has {found} numbers, expected {count}")


def constant_of(tensor: Any, what: str, folder: Folder | None) -> Constant:
    """The numbers of a TensorProto, or the message itself where NumPy does not have the type.

    Raises
    ------
    FileFormatError
        When the data do not have the declared size, or are outside of the file and may not.
    """
    check_size(tensor, what)
    if tensor.data_location == _EXTERNAL:
        raw: Any = external(tensor, what, folder)
    else:
        raw = tensor.raw_data if tensor.HasField("raw_data") else None
    if tensor.data_type not in TYPES or tensor.data_type == 8:
        if tensor.data_location == _EXTERNAL:
            tensor = inline(tensor, raw)
        return tensor
    dtype, shape = TYPES[tensor.data_type], tuple(tensor.dims)
    if raw is None:
        from onnx import numpy_helper

        return numpy_helper.to_array(tensor)
    array = np.frombuffer(raw, dtype.newbyteorder("<"))
    if dtype == np.bool_:
        array = np.frombuffer(raw, np.uint8) != 0
    return array.astype(dtype, copy=False).reshape(shape)


def inline(tensor: Any, raw: Any) -> Any:
    """A TensorProto that holds its bytes itself."""
    made = type(tensor)(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    made.raw_data = bytes(raw)
    return made


def external(tensor: Any, what: str, folder: Folder | None) -> Array:
    """Bytes of another file."""
    if folder is None:
        raise FileFormatError(
            f"{what} lies in another file; it is read when the model is given as a path, with allow_external_data=True"
        )
    entries = {entry.key: entry.value for entry in tensor.external_data}
    size = -(-math.prod(tensor.dims) * bits_of(tensor.data_type) // 8)
    path = folder.find(entries.get("location", ""), what)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
    except ValueError:
        raise FileFormatError(f"{what} has an offset or a length that is no integer") from None
    if offset < 0 or length != size or offset + size > path.stat().st_size:
        raise FileFormatError(f"{what}: {path.name!r} does not hold {size} bytes from {offset} on")
    return np.fromfile(path, np.uint8, size, offset=offset)


def tensors_inside(message: Any) -> Iterator[Any]:
    """All TensorProtos in the attributes of a node, those of graphs in them included."""
    waiting = list(message.attribute)
    while waiting:
        attribute = waiting.pop()
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        graphs = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        for sparse in (*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
                       *attribute.sparse_tensors, *(s for g in graphs for s in g.sparse_initializer)):  # fmt: skip
            yield from (sparse.values, sparse.indices)
        for graph in graphs:
            yield from graph.initializer
            waiting += [inner for node in graph.node for inner in node.attribute]


def sparse_of(tensor: Any, what: str, folder: Folder | None) -> Constant:
    """A SparseTensorProto: kept sparse where it is a large matrix of floating-point numbers."""
    values, indices = (constant_of(t, what, folder) for t in (tensor.values, tensor.indices))
    if not isinstance(values, np.ndarray) or not isinstance(indices, np.ndarray):
        raise FileFormatError(f"{what} has values of a type that sparse tensors cannot have")
    shape = sizes_of(tensor.dims, what)
    count = math.prod(shape)
    places = _places(indices, values, shape, what)
    if len(places) and (places[0] < 0 or places[-1] >= count or (np.diff(places) <= 0).any()):
        raise FileFormatError(f"{what} has indices that are not ascending within shape {shape}")
    most = max(_SMALL, _BLOW_UP * (values.nbytes + indices.nbytes))
    if count * values.itemsize > most:
        raise FileFormatError(f"{what} of shape {shape} takes more than {most} bytes, for {len(values)} numbers")
    if len(shape) >= 2 and values.dtype in (np.float32, np.float64) and count:
        columns = math.prod(shape[1:])
        indptr = np.searchsorted(places, np.arange(shape[0] + 1, dtype=np.int64) * columns)
        return SparseWeight(CSR(indptr, places % columns, values, (shape[0], columns)), shape)
    dense = np.zeros(count, values.dtype)
    dense[places] = values
    return dense.reshape(shape)


def _places(indices: Array, values: Array, shape: Shape, what: str) -> Array:
    """Places of the values in row-major order."""
    if values.ndim != 1 or indices.dtype != np.int64:
        raise FileFormatError(f"{what} has values of shape {values.shape} and indices of {indices.dtype}")
    if indices.shape == values.shape:
        return indices
    if indices.shape != (len(values), len(shape)):
        raise FileFormatError(f"{what} has {indices.shape} indices for {len(values)} values of {len(shape)} axes")
    if (indices < 0).any() or (indices >= np.asarray(shape, np.int64)).any():
        raise FileFormatError(f"{what} has indices outside of shape {shape}")
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return indices @ np.asarray(strides, np.int64)
