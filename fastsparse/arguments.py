"""Checks of the arguments of `functional`, with errors in one sentence that name the argument."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from fastsparse.csr import CSR, Pattern
from fastsparse.ops.activations import ACTIVATIONS

Samples: TypeAlias = "ArrayLike | sparse.sparray | sparse.spmatrix"  # of a linear layer: dense or sparse
Factor: TypeAlias = "CSR | ArrayLike | sparse.sparray | sparse.spmatrix"  # of a matrix product
Axes = int | Sequence[int]  # one number for all axes, or one per axis
Padding = (
    int | Sequence[int] | Sequence[Sequence[int]]
)  # one number for all axes, one per axis, or (before, after) per axis
Seed = int | np.random.Generator | None

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_LARGEST = 2**31 - 1  # bound of kernel size, stride, padding and dilation: 64-bit geometry cannot overflow


def check_matrix(W: Any, name: str = "W") -> CSR:
    """W, if it is a CSR."""
    if not isinstance(W, CSR):
        raise TypeError(f"{name} is {type(W).__name__}, expected fastsparse.CSR (make one with fastsparse.csr)")
    return W


def check_activation(activation: Any) -> str | None:
    """The activation's name, if it is known."""
    if not (activation is None or isinstance(activation, str)) or activation not in ACTIVATIONS:
        names = ", ".join(repr(name) for name in ACTIVATIONS)
        raise ValueError(f"activation is {activation!r}, expected one of {names}")
    return activation


def is_sparse(value: Any) -> bool:
    """Whether it is a scipy.sparse array or matrix."""
    return type(value) is not np.ndarray and sparse.issparse(value)


def as_float(value: Any, dtype: np.dtype[Any], name: str, against: str = "W") -> NDArray[Any]:
    """An aligned array of `dtype` in native byte order; float16, integers and bool are converted.

    Raises
    ------
    TypeError
        For other types, and for float32 where float64 is expected or the other way round.
    ValueError
        For nested sequences that are no array.
    """
    if type(value) is np.ndarray and value.dtype == dtype and value.flags.aligned:
        return value  # fast path with the result of the checks below
    array = as_array(value, name)
    found = array.dtype.newbyteorder("=")
    if found == dtype:
        return array if array.dtype.isnative and array.flags.aligned else array.astype(dtype)
    if found.kind in "biu" or found == np.float16:
        return array.astype(dtype)
    if found in _FLOATS:
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected {dtype} to match {against}: convert one of them with .astype"
        )
    raise TypeError(f"{name} has dtype {array.dtype}, expected {dtype}, float16, integers or bool")


def as_cast(value: Any, dtype: np.dtype[Any], name: str, against: str) -> NDArray[Any]:
    """As `as_float`, but float32 and float64 are cast to each other: what layers and engines take.

    Raises
    ------
    TypeError
        For other types.
    """
    if type(value) is not np.ndarray or value.dtype != dtype:
        array = as_array(value, name)
        if array.dtype.newbyteorder("=") in _FLOATS:
            with np.errstate(over="ignore"):
                value = array.astype(dtype)
    return as_float(value, dtype, name, against)


def as_array(value: Any, name: str) -> NDArray[Any]:
    """A dense array of any type."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, expected an array without a mask (fill it first)")
    if isinstance(value, (CSR, Pattern)) or sparse.issparse(value):
        raise TypeError(f"{name} is {type(value).__name__}, expected a dense array")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is no array: {error}") from error


def as_bias(bias: Any, dtype: np.dtype[Any], size: int) -> NDArray[Any] | None:
    """bias as a contiguous array (size,), or None."""
    if bias is None:
        return None
    array = as_float(bias, dtype, "bias")
    if array.shape != (size,):
        raise ValueError(f"bias has shape {array.shape}, expected ({size},), one per row of W")
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def per_axis(value: Any, axes: int, name: str, least: int) -> tuple[int, ...]:
    """An int for all axes or one per axis, each at least `least` and below 2**31."""
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * axes
    try:
        numbers = tuple(operator.index(item) for item in items)
    except TypeError:
        numbers = ()
    if len(numbers) != axes or min(numbers) < least or max(numbers) > _LARGEST:
        wanted = "an integer" if axes == 1 else f"an integer or {axes} integers, each"
        raise ValueError(f"{name} is {value!r}, expected {wanted} from {least} to {_LARGEST}")
    return numbers


def padding_pairs(value: Any, axes: int) -> tuple[tuple[int, int], ...]:
    """Padding as (before, after) per axis, from an int, one int per axis, or pairs."""
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * axes
    try:
        pairs = tuple(
            (operator.index(item[0]), operator.index(item[1]))
            if isinstance(item, Sequence) and len(item) == 2
            else (operator.index(item),) * 2
            for item in items
        )
    except TypeError:
        pairs = ()
    if len(pairs) != axes or min(map(min, pairs)) < 0 or max(map(max, pairs)) > _LARGEST:
        raise ValueError(
            f"padding is {value!r}, expected an integer, one per axis ({axes}) or one pair (before, after) per axis, "
            f"from 0 to {_LARGEST}"
        )
    return pairs
