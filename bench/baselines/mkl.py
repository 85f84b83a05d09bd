"""MKL's inspector-executor sparse product, called in the shared library of the PyPI package `mkl`."""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

_NON_TRANSPOSE, _TRANSPOSE, _ROW_MAJOR, _GENERAL = 10, 11, 101, 20
_EXPECTED_CALLS = 1000
_INTEL_THREADING = 0


class _Descriptor(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("mode", ctypes.c_int), ("diag", ctypes.c_int)]


def available() -> bool:
    """Whether the package `mkl` brought its library."""
    return _path() is not None


def spmm(
    weight: sp.csr_array, x: NDArray[Any], threads: int, *, transposed: bool = False, out: bool = True
) -> Callable[[], NDArray[Any]]:
    """A callable that computes `weight @ x`, or `weight.T @ x`, after MKL has inspected the matrix for this shape.

    out : every call writes to the same array; otherwise each allocates one
    """
    library = _library()
    library.MKL_Set_Num_Threads(threads)  # what is optimised for more threads wakes them at every product
    letter, number = ("d", ctypes.c_double) if x.dtype == np.float64 else ("s", ctypes.c_float)
    create, mv, mm = (getattr(library, f"mkl_sparse_{letter}_{name}") for name in ("create_csr", "mv", "mm"))
    operation = _TRANSPOSE if transposed else _NON_TRANSPOSE
    rows, columns = weight.shape
    indptr, indices = weight.indptr.astype(np.int32), weight.indices.astype(np.int32)
    data = weight.data.astype(x.dtype)
    handle, descriptor = ctypes.c_void_p(), _Descriptor(_GENERAL, 0, 0)
    _check(create(ctypes.byref(handle), 0, rows, columns, *map(_pointer, (indptr, indptr[1:], indices, data))))
    one, zero, shape = number(1), number(0), (columns if transposed else rows, *x.shape[1:])
    kept = np.empty(shape, x.dtype)
    if x.ndim == 1:
        _check(library.mkl_sparse_set_mv_hint(handle, operation, descriptor, _EXPECTED_CALLS))
    else:
        n = x.shape[1]
        _check(library.mkl_sparse_set_mm_hint(handle, operation, descriptor, _ROW_MAJOR, n, _EXPECTED_CALLS))
    _check(library.mkl_sparse_optimize(handle))
    x_pointer = _pointer(x)

    def multiply() -> NDArray[Any]:
        library.MKL_Set_Num_Threads(threads)
        y = kept if out else np.empty(shape, x.dtype)
        if x.ndim == 1:
            status = mv(operation, one, handle, descriptor, x_pointer, zero, _pointer(y))
        else:
            status = mm(operation, one, handle, descriptor, _ROW_MAJOR, x_pointer, n, n, zero, _pointer(y), n)
        _check(status)
        return y

    multiply.keep = (indptr, indices, data, x)  # type: ignore[attr-defined]  # MKL does not copy them
    return multiply


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"MKL returned status {status}")


@cache
def _path() -> Path | None:
    try:
        files = importlib.metadata.files("mkl") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())) for f in files if "libmkl_rt" in f.name), None)


@cache
def _library() -> ctypes.CDLL:
    """The library, with Intel's threads: a layer must be chosen before the first call and stays."""
    path = _path()
    if path is None:
        raise ImportError("the package mkl has no libmkl_rt")
    library = ctypes.CDLL(str(path))
    library.MKL_Set_Threading_Layer(_INTEL_THREADING)
    return library
