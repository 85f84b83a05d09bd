"""The one door for sparse structure (contract I1): raw arrays come in, owned canonical arrays come out.

Everything is copied before it is checked, so that nothing a caller does later, or in another thread meanwhile, can
change what was checked. Every error names the field, what was found and what was expected.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy import sparse

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

IntArray = NDArray[Any]  # int64, or int32 for indices
FloatArray = NDArray[Any]  # float32 or float64

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Make an array that we own read-only, and return a view of it that cannot be made writable again."""
    array.flags.writeable = False
    return array.view()


def checked_shape(shape: Any) -> tuple[int, int]:
    """Return `shape` as two Python ints.

    Raises
    ------
    ValueError
        When it is anything but two non-negative 64-bit integers.
    """
    try:
        rows, columns = (operator.index(size) for size in shape)
    except (TypeError, ValueError):
        raise ValueError(f"shape is {shape!r}, expected two non-negative integers (rows, columns)") from None
    if min(rows, columns) < 0 or max(rows, columns) > INT64_MAX:
        raise ValueError(f"shape is {(rows, columns)}, expected two non-negative integers below 2**63")
    return rows, columns


def checked_dtype(dtype: DTypeLike | None, name: str = "dtype") -> np.dtype[Any] | None:
    """Return `dtype` as float32 or float64, or None for None.

    Raises
    ------
    TypeError
        For any other data type.
    """
    if dtype is None:
        return None
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{name} is {dtype!r}, expected float32 or float64") from None
    native = found.newbyteorder("=")
    if native not in _FLOATS:
        raise TypeError(f"{name} is {found.name}, expected float32 or float64")
    return native


def value_dtype(found: np.dtype[Any], name: str) -> np.dtype[Any]:
    """Data type in which values of type `found` are kept: float64 stays, all smaller and integer ones become float32.

    Raises
    ------
    TypeError
        For complex, long double, object, text and date types.
    """
    if found.kind == "f" and found.itemsize == 8:
        return np.dtype(np.float64)
    if found.kind in "biu" or (found.kind == "f" and found.itemsize < 8):
        return np.dtype(np.float32)
    raise TypeError(
        f"{name} has dtype {found.name}, expected float32 or float64 (float16, integers and bool are converted)"
    )


def owned_values(values: Any, name: str = "data", dtype: np.dtype[Any] | None = None) -> FloatArray:
    """Copy `values`, of any layout and byte order, into a new native float32 or float64 array of the same shape."""
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, expected an array without a mask (fill it first)")
    array = np.asarray(values)
    kept = value_dtype(array.dtype, name)
    return np.array(array, dtype=dtype or kept, order="C", copy=True, subok=False)


def owned_integers(values: Any, name: str) -> IntArray:
    """Copy a one-dimensional integer array into a new native array that int64 can hold."""
    array = np.asarray(values)
    if array.size == 0 and not isinstance(values, np.ndarray):
        array = array.astype(np.int64)  # an empty list carries no type
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {array.dtype.name}, expected integers")
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}, expected one dimension")
    owned = np.array(array, dtype=array.dtype.newbyteorder("="), copy=True, subok=False)
    if owned.dtype == np.uint64 and owned.size and int(owned.max()) > INT64_MAX:
        position = int(owned.argmax())
        raise ValueError(f"{name}[{position}] is {int(owned[position])}, expected a value below 2**63")
    return owned


def _check_range(values: IntArray, name: str, limit: int, what: str, shape: tuple[int, int]) -> None:
    """Raise unless 0 <= values < limit."""
    if values.size == 0:
        return
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high < limit:
        return
    position = int(values.argmin() if low < 0 else values.argmax())
    raise ValueError(
        f"{name}[{position}] is {int(values[position])}, expected 0 <= {what} < {limit} to match shape {shape}"
    )


def _check_indptr(indptr: IntArray, length: int, rows: int, shape: tuple[int, int]) -> None:
    """Raise unless `indptr` starts at 0, never falls and ends at `length`."""
    if len(indptr) != rows + 1:
        raise ValueError(f"indptr has length {len(indptr)}, expected {rows + 1} to match shape {shape}")
    if indptr[0] != 0:
        raise ValueError(f"indptr[0] is {indptr[0]}, expected 0")
    falls = indptr[1:] < indptr[:-1]
    if falls.any():
        position = int(falls.argmax()) + 1
        raise ValueError(
            f"indptr[{position}] is {indptr[position]}, expected at least {indptr[position - 1]}, the value before it"
        )
    if indptr[-1] != length:
        raise ValueError(f"indptr[{rows}] is {indptr[-1]}, expected {length}, the length of indices")


def index_dtype(columns: int) -> type[np.int32] | type[np.int64]:
    """Type of column indices for a matrix of that many columns."""
    return np.int32 if columns <= INT32_MAX else np.int64


def canonical(
    indptr: Any, indices: Any, data: Any | None, shape: Any, *, what: str = "column", dtype: np.dtype[Any] | None = None
) -> tuple[IntArray, IntArray, Any, tuple[int, int]]:
    """Check raw compressed rows and return owned read-only ones, sorted and with duplicates summed. O(nnz).

    Parameters
    ----------
    indptr : array_like of int, (rows + 1,)
    indices : array_like of int, (nnz,)
    data : array_like, (nnz,), or None for a structure without values
    shape : (rows, columns)
    what : {"column", "row"}
        What an index stands for. With "row", the arrays are compressed columns and `shape` is that of the matrix;
        the answer is still compressed columns.
    dtype : float32 or float64, optional
        Type of the returned values; by default as `value_dtype` says.

    Returns
    -------
    indptr, indices, data, shape
        int64, int32 or int64, float32 or float64 (None when `data` is), and two Python ints.

    Raises
    ------
    ValueError
        When a field breaks contract I1.
    TypeError
        When `data` is not real numbers.
    """
    full_shape = checked_shape(shape)
    major, minor = full_shape if what == "column" else full_shape[::-1]
    pointers = owned_integers(indptr, "indptr").astype(np.int64, copy=False)
    minors = owned_integers(indices, "indices")
    values = None if data is None else owned_values(data, dtype=dtype)
    _check_indptr(pointers, len(minors), major, full_shape)
    if values is not None and values.shape != minors.shape:
        raise ValueError(f"data has shape {values.shape}, expected {minors.shape} to match indices")
    _check_range(minors, "indices", minor, what, full_shape)
    minors = minors.astype(index_dtype(minor), copy=False)
    if not _is_canonical(pointers, minors):
        pointers, minors, values = _sorted_and_summed(pointers, minors, values, (major, minor))
    return frozen(pointers), frozen(minors), None if values is None else frozen(values), full_shape


def _is_canonical(indptr: IntArray, indices: IntArray) -> bool:
    """Tell whether columns rise strictly inside every row."""
    if len(indices) < 2:
        return True
    rises = indices[1:] > indices[:-1]
    starts = indptr[1:-1]
    rises[starts[(starts > 0) & (starts < len(indices))] - 1] = True  # from one row to the next anything goes
    return bool(rises.all())


def _sorted_and_summed(
    indptr: IntArray, indices: IntArray, values: FloatArray | None, shape: tuple[int, int]
) -> tuple[IntArray, IntArray, FloatArray | None]:
    """Sort columns inside rows and sum duplicates, in the values' own precision."""
    placeholder = np.zeros(len(indices), np.float32) if values is None else values
    matrix = sparse.csr_array((placeholder, indices, indptr), shape=shape)
    matrix.sum_duplicates()
    kept = matrix.nnz
    return (
        np.array(matrix.indptr, dtype=np.int64),
        np.array(matrix.indices[:kept], dtype=index_dtype(shape[1])),
        None if values is None else np.array(matrix.data[:kept]),
    )


def from_coordinates(
    rows: Any, columns: Any, data: Any, shape: Any, dtype: np.dtype[Any] | None
) -> tuple[IntArray, IntArray, Any, tuple[int, int]]:
    """Check coordinates and return canonical compressed rows, as `canonical` does."""
    full_shape = checked_shape(shape)
    row, column = owned_integers(rows, "row"), owned_integers(columns, "col")
    values = owned_values(data, dtype=dtype)
    for name, found in (("col", column.shape), ("data", values.shape)):
        if found != row.shape:
            raise ValueError(f"{name} has shape {found}, expected {row.shape} to match row")
    _check_range(row, "row", full_shape[0], "row", full_shape)
    _check_range(column, "col", full_shape[1], "column", full_shape)
    matrix = sparse.coo_array((values, (row, column)), shape=full_shape).tocsr()
    return canonical(matrix.indptr, matrix.indices, matrix.data, full_shape)
