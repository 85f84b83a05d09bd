"""Checks of what users pass to `functional`: whole-sentence errors that name the argument."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR
from fastsparse.launch import ACTIVATIONS

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def check_matrix(W: Any, name: str = "W") -> CSR:
    """W itself, when it is a CSR."""
    if not isinstance(W, CSR):
        raise TypeError(f"{name} is {type(W).__name__}, expected fastsparse.CSR (make one with fastsparse.csr)")
    return W


def check_activation(activation: Any) -> str | None:
    """The activation's name, when it is known."""
    if activation not in ACTIVATIONS:
        names = ", ".join(repr(name) for name in ACTIVATIONS)
        raise ValueError(f"activation is {activation!r}, expected one of {names}")
    return activation  # type: ignore[no-any-return]


def as_float(value: Any, dtype: np.dtype[Any], name: str, against: str = "W") -> NDArray[Any]:
    """An aligned array of `dtype` in native byte order; float16, integers and bool are converted.

    Raises
    ------
    TypeError
        For other types, and for float32 where float64 is expected or the other way round.
    """
    array = np.asarray(value)
    if array.dtype == dtype:
        if array.dtype.isnative and array.flags.aligned:
            return array
        return array.astype(dtype.newbyteorder("="))
    if array.dtype.kind in "biu" or array.dtype == np.float16:
        return array.astype(dtype)
    if array.dtype in _FLOATS or array.dtype.newbyteorder("=") in _FLOATS:
        if array.dtype.newbyteorder("=") == dtype:
            return array.astype(dtype)
        raise TypeError(f"{name} has dtype {array.dtype}, expected {dtype} to match {against}")
    raise TypeError(f"{name} has dtype {array.dtype}, expected {dtype}, float16, integers or bool")


def as_bias(bias: Any, dtype: np.dtype[Any], size: int) -> NDArray[Any] | None:
    """bias as a contiguous array (size,), or None."""
    if bias is None:
        return None
    array = np.ascontiguousarray(as_float(bias, dtype, "bias"))
    if array.shape != (size,):
        raise ValueError(f"bias has shape {array.shape}, expected ({size},), one per row of W")
    return array


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], *inputs: Any) -> NDArray[Any]:
    """`out`, when the result can be written into it; a new array when it is None."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is {type(out).__name__}, expected a NumPy array")
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"out has shape {out.shape} and dtype {out.dtype}, expected {shape} and {dtype}")
    if not (out.flags.writeable and out.flags.aligned and out.flags.c_contiguous):
        raise ValueError("out is read-only, unaligned or not C-contiguous, expected a writable C-contiguous array")
    if any(isinstance(array, np.ndarray) and np.may_share_memory(out, array) for array in inputs):
        raise ValueError("out shares memory with an input, expected memory of its own")
    return out


def per_axis(value: Any, axes: int, name: str, least: int) -> tuple[int, ...]:
    """An int for all axes or one per axis, each at least `least`."""
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * axes
    try:
        numbers = tuple(operator.index(item) for item in items)
    except TypeError:
        numbers = ()
    if len(numbers) != axes or min(numbers) < least:
        raise ValueError(f"{name} is {value!r}, expected an integer or {axes} integers, each at least {least}")
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
    if len(pairs) != axes or min(min(pair) for pair in pairs) < 0:
        raise ValueError(
            f"padding is {value!r}, expected an integer, {axes} integers or {axes} (before, after) pairs, none negative"
        )
    return pairs
