"""SciPy's sparse matrices as operands: validated once, and remembered while their arrays stay what they were.

What is remembered belongs to the arrays, not to the object around them: ``A`` and ``A.T``, a new object at every use,
are one matrix in memory. Arrays may be written to at any time, so their contents are compared at every use, which
takes a small share of a product's time.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from fastsparse.csr import CSR, csr, frozen

Array = NDArray[Any]
Key = tuple[Any, ...]

# The arrays that formats consist of; lists and dictionaries of rows (LIL, DOK) are converted at every use.
_FIELDS = {
    "csr": ("indptr", "indices", "data"),
    "csc": ("indptr", "indices", "data"),
    "bsr": ("indptr", "indices", "data"),
    "coo": ("row", "col", "data"),
    "dia": ("offsets", "data"),
}

_MOST = 64  # matrices that are remembered at once

# By the arrays' addresses: copies of the arrays, the matrix that they make, and what ends with their memory.
_remembered: OrderedDict[Key, tuple[tuple[Array, ...], CSR, Any]] = OrderedDict()


def compressed_rows(x: Any, name: str) -> sparse.csr_array:
    """A CSR or a scipy.sparse matrix as compressed rows, whose arrays may be its own; its fields are checked first.

    SciPy's conversions, slices and products read and write wherever indices say.

    Raises
    ------
    ValueError
        When its fields contradict each other.
    """
    if isinstance(x, CSR):
        return x.to_scipy()
    try:
        if x.format in _COMPRESSED:
            x = _COMPRESSED[x.format](x)  # another object of the same arrays, which the check may replace
            x.check_format(full_check=True)
        else:
            x = sparse.coo_array(x)  # checked when it is made
        return sparse.csr_array(x)
    except ValueError as error:
        raise ValueError(f"{name} is not a valid sparse matrix: {error}") from error


_COMPRESSED = {"csr": sparse.csr_array, "csc": sparse.csc_array, "bsr": sparse.bsr_array}


def matrix_of(A: Any, dtype: np.dtype[Any]) -> CSR:
    """A scipy.sparse array or matrix as a CSR of `dtype`, kept as long as the memory of its values is.

    Raises
    ------
    ValueError
        When it does not have two dimensions, or its fields contradict each other.
    TypeError
        When its values are not real numbers.
    """
    fields = [getattr(A, name) for name in _FIELDS.get(A.format, ())]
    if not fields or len(A.shape) != 2 or not all(isinstance(field, np.ndarray) for field in fields):
        return csr(A, dtype)
    transposed = A.format == "csc"  # compressed columns are the compressed rows of the transposed matrix
    kind, shape = ("csr", A.shape[::-1]) if transposed else (A.format, A.shape)
    key = (kind, shape, dtype, tuple(map(_address, fields)))
    known = _remembered.get(key)
    if known is None or not all(map(_equal, known[0], fields)):
        copies = [field.copy() for field in fields]
        if known is not None and known[0][1] is known[1].indices and all(map(_equal, known[0][:2], fields[:2])):
            # Other values of the same pattern, in the order that the matrix has them: its plans stay.
            matrix = CSR._trusted(known[1].pattern, frozen(copies[2].astype(dtype)))
        else:
            matrix = csr(A.T if transposed else A, dtype)
        own = {"indices": matrix.indices, "data": matrix.data} if kind == "csr" else {}
        kept = tuple(_once(copy, own.get(name)) for copy, name in zip(copies, _FIELDS[A.format]))
        known = kept, matrix, _when_freed(fields[-1], key)
        _remembered[key] = known
        while len(_remembered) > _MOST:
            _remembered.popitem(last=False)  # in one step, beside other threads
    return known[1].T if transposed else known[1]


def _address(array: Array) -> Key:
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str


def _equal(kept: Array, array: Array) -> bool:
    """Whether two arrays hold the same bits."""
    if kept.dtype != array.dtype or kept.shape != array.shape:
        return False
    bits = np.dtype(f"u{array.itemsize}")
    return np.array_equal(kept.view(bits), array.view(bits))


def _once(copy: Array, own: Array | None) -> Array:
    """The matrix's own array where it is the same as the copy, so that memory is taken once."""
    return own if own is not None and _equal(copy, own) else copy


def _when_freed(array: Array, key: Key) -> Any:
    """Forget `key` when the memory of an array is given back."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return weakref.ref(array, lambda _: _remembered.pop(key, None))
