"""Coefficients that are kept: the result of every `encode`, and what its arguments mean."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from fastsparse.arguments import as_float, is_sparse
from fastsparse.checks import as_array, shown
from fastsparse.csr import CSR, as_csr, value_dtype

Array = NDArray[Any]
CodesLike: TypeAlias = "Codes | CSR | sparse.sparray | sparse.spmatrix | ArrayLike"


class Codes(NamedTuple):
    """Sparse coefficients of samples, and what they leave out.

    Attributes
    ----------
    matrix : scipy.sparse.csr_array (samples, coefficients)
    squared_error : float64 array (samples,)
        Sum of squared differences of a sample and its reconstruction; see `encode` for where it is an upper bound.
    """

    matrix: sparse.csr_array
    squared_error: NDArray[np.float64]


def as_samples(x: ArrayLike, shape: tuple[int, ...], name: str = "x") -> Array:
    """x (samples, *shape) in float32 or float64, finite."""
    array = as_array(x, name)
    array = as_float(array, value_dtype(array.dtype, name), name)
    if array.shape[1:] != shape or array.ndim != len(shape) + 1:
        expected = ", ".join(map(str, ("samples", *shape)))
        raise ValueError(f"{name} has shape {array.shape}, expected ({expected})")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity, expected finite numbers")
    return array


def as_matrix(codes: CodesLike, columns: int) -> Any:
    """The matrix of `codes`: CSR, or a dense array, (samples, columns)."""
    found: Any = codes.matrix if isinstance(codes, Codes) else codes
    matrix = as_csr(found, "codes") if is_sparse(found) else as_array(found, "codes")
    if matrix.ndim != 2 or matrix.shape[1] != columns:
        raise ValueError(f"codes has shape {matrix.shape}, expected (samples, {columns})")
    return matrix if isinstance(matrix, CSR) else as_float(matrix, value_dtype(matrix.dtype, "codes"), "codes")


def as_count(keep: Any, size: int) -> int:
    """How many of `size` coefficients `keep` means: an integer is their number, a float their share."""
    if isinstance(keep, (int, np.integer)) and not isinstance(keep, bool) and 1 <= keep <= size:
        return int(keep)
    if isinstance(keep, (float, np.floating)) and 0 < keep <= 1:
        return max(1, math.floor(size * float(keep) + 0.5))
    raise ValueError(f"keep is {shown(keep)}, expected an integer from 1 to {size} or a share in (0.0, 1.0]")


def soft_threshold(values: Array, threshold: Any) -> Array:
    """Values drawn towards 0 by `threshold`: the proximal operator of threshold * |values|."""
    return np.asarray(values - np.clip(values, -threshold, threshold))


def energy(values: Array) -> NDArray[np.float64]:
    """Sum of squares of every row, in float64."""
    return np.asarray(np.einsum("ij,ij->i", values, values, dtype=np.float64))
