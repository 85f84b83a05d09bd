"""Initial values, and empty shells of models that are read from files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.checks import INT64_MAX
from fastsparse.csr import Pattern

Array = NDArray[Any]

_shells: ContextVar[bool] = ContextVar("fastsparse_shells", default=False)


@contextmanager
def shells() -> Iterator[None]:
    """Make layers without memory for their arrays, which loaded state replaces afterwards.

    A file that declares a huge layer then costs nothing before its arrays have been compared with the declaration.
    """
    token = _shells.set(True)
    try:
        yield
    finally:
        _shells.reset(token)


def constant(shape: int | tuple[int, ...], value: float, dtype: np.dtype[Any]) -> Array:
    """An array of one value."""
    if _shells.get():
        return _shell(shape, dtype)
    _check_size(shape, dtype)
    return np.full(shape, value, dtype)


def standard_normal(shape: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    """Normal numbers of variance 1."""
    if _shells.get():
        return _shell(shape, dtype)
    _check_size(shape, dtype)
    return np.asarray(rng.standard_normal(shape, dtype))


def kaiming(shape: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    """Normal numbers of variance 2 / fan-in for a dense weight (out, ...), fan-in = size of one row.

    He et al., Delving Deep into Rectifiers, ICCV 2015, section 2.2.
    """
    values = standard_normal(shape, dtype, rng)
    if not _shells.get():
        values *= np.sqrt(2 / max(int(np.prod(shape[1:])), 1), dtype=dtype)
    return values


def sparse_kaiming(pattern: Pattern, dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    """As :func:`kaiming` for the values of `pattern`, each row's fan-in being its own number of nonzeros."""
    values = standard_normal((pattern.nnz,), dtype, rng)
    if not _shells.get():
        counts = np.diff(pattern.indptr)
        values *= np.repeat(np.sqrt(2 / np.maximum(counts, 1)).astype(dtype), counts)
    return values


def _check_size(shape: int | tuple[int, ...], dtype: np.dtype[Any]) -> None:
    sizes = shape if isinstance(shape, tuple) else (shape,)
    if math.prod(sizes) * dtype.itemsize > INT64_MAX:
        raise ValueError(f"the layer has an array of shape {sizes}, expected sizes whose product is below 2**63 bytes")


def scale(values: Array, factor: float) -> None:
    """Multiply initial values, in place."""
    if not _shells.get():
        values *= values.dtype.type(factor)


def _shell(shape: int | tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array of any shape in the memory of one element."""
    return np.broadcast_to(np.zeros((), dtype), shape)
