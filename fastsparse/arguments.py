"""Checks of the arguments of `functional` that depend on one another or on matrices; single ones are in `checks`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from fastsparse import checks
from fastsparse.checks import FLOATS, as_array
from fastsparse.csr import CSR
from fastsparse.ops.activations import ACTIVATIONS
from fastsparse.ops.geometry import ConvGeometry

Samples: TypeAlias = "ArrayLike | CSR | sparse.sparray | sparse.spmatrix"  # of a linear layer: dense or sparse
Axes = int | Sequence[int]  # one number for all axes, or one per axis
Padding = (
    int | Sequence[int] | Sequence[Sequence[int]]
)  # one number for all axes, one per axis, or (before, after) per axis

_MOST_NUMBERS = 2**53  # elements in the planes of an image, so that bytes of a vector of images stay below 2**63
_LARGEST = 2**31 - 1  # bound of kernel size, stride, padding and dilation: 64-bit geometry cannot overflow


def check_matrix(W: Any) -> CSR:
    """W, if it is a CSR."""
    if not isinstance(W, CSR):
        raise TypeError(f"W is {type(W).__name__}, expected fastsparse.CSR (make one with fastsparse.csr)")
    return W


def check_activation(activation: Any) -> str | None:
    """The activation's name, if it is known."""
    known = (activation is None or isinstance(activation, str)) and activation in ACTIVATIONS
    return activation if known else str(checks.choice(activation, "activation", ACTIVATIONS))


def is_sparse(value: Any) -> bool:
    """Whether it is a CSR, or a scipy.sparse array or matrix."""
    return type(value) is not np.ndarray and (sparse.issparse(value) or isinstance(value, CSR))


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
    if found in FLOATS:
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
        if array.dtype.newbyteorder("=") in FLOATS:
            with np.errstate(over="ignore"):
                value = array.astype(dtype)
    return as_float(value, dtype, name, against)


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
    return checks.axes(value, axes, name, least, _LARGEST)


def padding_pairs(value: Any, axes: int) -> tuple[tuple[int, int], ...]:
    """Padding as (before, after) per axis, from an int, one int per axis, or pairs."""
    items = value if checks.is_sequence(value) else (value,) * axes
    pairs = [item if checks.is_sequence(item) and len(item) == 2 else (item, item) for item in items]
    numbers = [checks.index(number) for pair in pairs for number in pair]
    if len(pairs) != axes or not all(n is not None and 0 <= n <= _LARGEST for n in numbers):
        raise ValueError(
            f"padding is {checks.shown(value)}, expected an integer, one per axis ({axes}) or one pair (before, after) "
            f"per axis, from 0 to {_LARGEST}"
        )
    whole = [n for n in numbers if n is not None]
    return tuple(zip(whole[::2], whole[1::2]))


# ---------------------------------------------------------------- convolutions


def checked_geometry(
    axes: int, x: Any, W: CSR, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> tuple[NDArray[Any], ConvGeometry]:
    """x as a contiguous array, and the convolution's sizes.

    Raises
    ------
    TypeError, ValueError
        When something does not fit; the message names it.
    """
    check_matrix(W)
    x = as_float(x, W.dtype, "x")
    if x.ndim != axes + 2:
        names = {1: "(N, C, L)", 2: "(N, C, H, W)", 3: "(N, C, D, H, W)"}[axes]
        raise ValueError(f"x has shape {x.shape}, expected {names}")
    x = np.ascontiguousarray(x)
    sizes = kernel_size, stride, padding, dilation, groups
    # Keys are the text of arguments, because 1.0 and np.True_ equal 1 but are refused.
    weight = W.shape
    key = axes, x.shape, weight, str(sizes)
    geometry = _known_geometries.get(key)
    if geometry is None:
        geometry = _geometry(axes, x.shape, weight, *sizes)
        if len(_known_geometries) >= _MOST_GEOMETRIES:
            _known_geometries.clear()
        _known_geometries[key] = geometry
    return x, geometry


_known_geometries: dict[tuple[Any, ...], ConvGeometry] = {}
_MOST_GEOMETRIES = 256


def _geometry(
    axes: int, shape: tuple[int, ...], weight: tuple[int, int], kernel_size: Any, stride: Any, padding: Any,
    dilation: Any, groups: Any,
) -> ConvGeometry:  # fmt: skip
    kernel = per_axis(kernel_size, axes, "kernel_size", 1)
    (groups,) = per_axis(groups, 1, "groups", 1)
    channels, rows = shape[1], weight[0]
    for name, count in (("input channels of x", channels), ("rows of W", rows)):
        if count % groups:
            raise ValueError(f"groups is {groups}, expected a divisor of the {count} {name}")
    columns = channels // groups * math.prod(kernel)
    if weight[1] != columns:
        raise ValueError(
            f"W has shape {weight}, expected (out, {columns}) = (out, C / groups * kernel) "
            f"to match x of shape {shape}, kernel_size {kernel} and groups {groups}"
        )
    geometry = ConvGeometry(
        channels, rows, shape[2:], kernel,
        per_axis(stride, axes, "stride", 1),
        padding_pairs(padding, axes),
        per_axis(dilation, axes, "dilation", 1),
        groups,
    )  # fmt: skip
    if min(geometry.out_spatial) < 1:
        raise ValueError(
            f"x has shape {shape}, expected at least the window of kernel_size {kernel} "
            f"with dilation {geometry.dilation} inside the padding {geometry.padding}"
        )
    largest = max(channels * math.prod(geometry.padded), rows * geometry.positions)
    if largest >= _MOST_NUMBERS:
        raise ValueError(
            f"x has shape {shape}, expected fewer than {_MOST_NUMBERS} numbers per image with the padding "
            f"{geometry.padding} and in the result"
        )
    return geometry


def transposed_geometry(
    x: Any, W: CSR, kernel_size: Any, stride: Any, padding: Any, output_padding: Any, dilation: Any, groups: Any
) -> tuple[NDArray[Any], ConvGeometry]:
    """x as a contiguous array, and the sizes of the convolution that is transposed: from the result to x.

    Raises
    ------
    TypeError, ValueError
        When something does not fit; the message names it.
    """
    check_matrix(W)
    x = as_float(x, W.dtype, "x")
    if x.ndim != 4 or x.shape[1] != W.shape[0]:
        raise ValueError(f"x has shape {x.shape}, expected (N, {W.shape[0]}, H, W) to match W of shape {W.shape}")
    kernel, step = per_axis(kernel_size, 2, "kernel_size", 1), per_axis(stride, 2, "stride", 1)
    pairs, spread = padding_pairs(padding, 2), per_axis(dilation, 2, "dilation", 1)
    more, (groups,) = per_axis(output_padding, 2, "output_padding", 0), per_axis(groups, 1, "groups", 1)
    if any(m >= s for m, s in zip(more, step)):
        raise ValueError(f"output_padding is {output_padding!r}, expected less than the stride {step}")
    if W.shape[1] % math.prod(kernel):
        raise ValueError(
            f"W has shape {W.shape}, expected (C, out / groups * {math.prod(kernel)}) to match kernel_size"
        )
    sizes = tuple(
        (n - 1) * s + d * (k - 1) + 1 - sum(pair) + m
        for n, s, d, k, pair, m in zip(x.shape[2:], step, spread, kernel, pairs, more)
    )
    if min(sizes) < 1:
        raise ValueError(f"x has shape {x.shape}, expected an image that is larger than the padding {pairs} cuts off")
    shape = len(x), W.shape[1] // math.prod(kernel) * groups, *sizes
    return np.ascontiguousarray(x), _geometry(2, shape, W.shape, kernel, step, pairs, spread, groups)
