"""Tensors of ONNX files as arrays. What a file declares is compared with what it holds before memory is taken."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from fastsparse.csr import CSR
from fastsparse.files import FileFormatError
from fastsparse.onnx.dtypes import dtype_of
from fastsparse.onnx.model import LARGEST_TENSOR, Array, Constant, Shape, SparseWeight, check_dense_size

_EXTERNAL = 1  # TensorProto.DataLocation
_LEAST_SPARSE = 4096  # elements; a smaller sparse_initializer is made dense
_FIELDS = {
    "float32": "float_data", "float64": "double_data", "int64": "int64_data", "uint64": "uint64_data",
    "uint32": "uint64_data",
}  # fmt: skip


def sizes_of(dims: Any, what: str) -> Shape:
    """A declared shape; 64-bit sizes whose product cannot be wrong."""
    shape = tuple(int(n) for n in dims)
    if any(n < 0 for n in shape):
        raise FileFormatError(f"{what} has shape {shape}, expected sizes of at least 0")
    if len(shape) > 64:
        raise FileFormatError(f"{what} has {len(shape)} axes, expected at most 64")
    return shape


def array_of(tensor: Any, what: str, folder: Path | None = None) -> Array:
    """The numbers of a TensorProto. `folder` is where external data may lie, None refuses it.

    Raises
    ------
    FileFormatError
        When the data do not have the declared size, or lie outside of the file and may not.
    UnsupportedOperatorError
        For types of elements that NumPy does not have.
    """
    dtype = dtype_of(tensor.data_type, what)
    shape = sizes_of(tensor.dims, what)
    count = math.prod(shape)
    if count * dtype.itemsize > LARGEST_TENSOR:
        raise FileFormatError(f"{what} of shape {shape} takes more than {LARGEST_TENSOR} bytes")
    if tensor.data_location == _EXTERNAL:
        raw: Any = _external(tensor, what, folder, count * dtype.itemsize)
    elif tensor.HasField("raw_data"):
        raw = tensor.raw_data
    else:
        return _typed(tensor, dtype, count, what).reshape(shape)
    if len(raw) != count * dtype.itemsize:
        raise FileFormatError(f"{what} of shape {shape} has {len(raw)} bytes, expected {count * dtype.itemsize}")
    array = np.frombuffer(raw, dtype.newbyteorder("<"))
    if dtype == np.bool_:
        array = np.frombuffer(raw, np.uint8) != 0
    return array.astype(dtype, copy=False).reshape(shape)


def _typed(tensor: Any, dtype: np.dtype[Any], count: int, what: str) -> Array:
    field = getattr(tensor, _FIELDS.get(dtype.name, "int32_data"))
    if len(field) != count:
        raise FileFormatError(f"{what} of shape {tuple(tensor.dims)} has {len(field)} numbers, expected {count}")
    if dtype == np.float16:  # their bits
        return np.asarray(field, np.int32).astype(np.uint16).view(np.float16)
    return np.asarray(field).astype(dtype)


def _external(tensor: Any, what: str, folder: Path | None, size: int) -> Array:
    if folder is None:
        raise FileFormatError(f"{what} lies in another file; allow_external_data=True reads it")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "")
    base = Path(os.path.realpath(folder))
    path = Path(os.path.realpath(base / name))
    if not name or base not in path.parents:
        raise FileFormatError(f"{what} lies in {name!r}, expected a file in the folder of the model")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
    except ValueError:
        raise FileFormatError(f"{what} has an offset or a length that is no integer") from None
    if not path.is_file() or offset < 0 or length != size or offset + size > path.stat().st_size:
        raise FileFormatError(f"{what}: {name!r} does not hold {size} bytes from {offset} on")
    return np.fromfile(path, np.uint8, size, offset=offset)


def sparse_of(tensor: Any, what: str, folder: Path | None = None) -> Constant:
    """A SparseTensorProto: kept sparse where it is a large matrix of floating-point numbers."""
    values = array_of(tensor.values, what, folder)
    indices = array_of(tensor.indices, f"indices of {what}", folder)
    shape = sizes_of(tensor.dims, what)
    count = math.prod(shape)
    try:
        check_dense_size(count, values.itemsize, values.nbytes + indices.nbytes, f"{what} of shape {shape}")
    except ValueError as error:
        raise FileFormatError(str(error)) from None
    places = _places(indices, values, shape, what)
    if len(places) and (places[0] < 0 or places[-1] >= count or (np.diff(places) <= 0).any()):
        raise FileFormatError(f"{what} has indices that are not ascending within shape {shape}")
    if len(shape) >= 2 and count >= _LEAST_SPARSE and values.dtype in (np.float32, np.float64):
        columns = math.prod(shape[1:])
        indptr = np.searchsorted(places, np.arange(shape[0] + 1, dtype=np.int64) * columns)
        return SparseWeight(CSR(indptr, places % columns, values, (shape[0], columns)), shape)
    dense = np.zeros(count, values.dtype)
    dense[places] = values
    return dense.reshape(shape)


def _places(indices: Array, values: Array, shape: Shape, what: str) -> Array:
    """Places of the values in row-major order."""
    if values.ndim != 1 or indices.dtype != np.int64 or math.prod(shape) >= 2**63:
        raise FileFormatError(f"{what} has values of shape {values.shape} and indices of {indices.dtype}")
    if indices.shape == values.shape:
        return indices
    if indices.shape != (len(values), len(shape)):
        raise FileFormatError(f"{what} has {indices.shape} indices for {len(values)} values of {len(shape)} axes")
    if (indices < 0).any() or (indices >= np.asarray(shape, np.int64)).any():
        raise FileFormatError(f"{what} has indices outside of shape {shape}")
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return indices @ np.asarray(strides, np.int64)
