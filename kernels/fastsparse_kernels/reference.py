"""The oracle: what every kernel must compute, written to be obviously right and not to be fast.

Inputs may have any real dtype. Everything is computed in a wider type than the inputs: float64 for
float32 and smaller, ``numpy.longdouble`` for float64 (80 bits on x86; where longdouble is no wider
than float64, the oracle is float64). Results come back in that wide type, so that they can be held
against a kernel's result with :func:`bound` and no further allowance.

Only stored nonzeros are multiplied: an absent weight never meets an Inf. The zeros of a
convolution's padding are multiplied by every stored weight that sees them, as IEEE 754 says.

Notation: W is the sparse matrix (indptr, indices, data) of shape (M, K), nnz = len(data).
Activations, pooling and normalisation are in :mod:`fastsparse_kernels.reference_layers` and can be
reached from here as well.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse_kernels.reference_layers import (
    ACTIVATIONS,
    activate,
    activate_grad,
    apply_activation,
    avg_pool,
    avg_pool_backward,
    batch_norm,
    batch_norm_backward,
    batch_norm_eval,
    batch_norm_eval_backward,
    crop_spatial,
    layer_norm,
    max_pool,
    max_pool_backward,
    output_size,
    pad_spatial,
    softmax,
    wide,
    window_slices,
)

__all__ = [
    "ACTIVATIONS",
    "activate",
    "activate_grad",
    "avg_pool",
    "avg_pool_backward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_eval",
    "batch_norm_eval_backward",
    "bound",
    "conv",
    "conv_backward",
    "layer_norm",
    "linear",
    "linear_backward",
    "max_pool",
    "max_pool_backward",
    "output_size",
    "pad_spatial",
    "row_of",
    "sddmm",
    "softmax",
    "spmm",
    "spmv",
    "wide",
]

Array = NDArray[Any]
Pairs = Sequence[tuple[int, int]]

# NaN and Inf are legitimate inputs here: no warning about them.
_quiet = np.errstate(invalid="ignore", over="ignore")


def bound(k: ArrayLike, abs_sum: ArrayLike, dtype: Any) -> Array:
    """Largest error that a sum of `k` products and a bias may have in `dtype` (contract R1).

    Parameters
    ----------
    k : int or array of ints
        Number of products summed, per element or for all.
    abs_sum : array
        sum(abs(w) * abs(x)) + abs(b) per element, computed in a wide type.
    dtype : float32 or float64
        The type the kernel computed in.

    Returns
    -------
    array of float64
        ``gamma(k + 1) * abs_sum + (k + 1) * eta`` with gamma(n) = n u / (1 - n u), u the unit
        round-off and eta the smallest normal number (Higham, Accuracy and Stability of Numerical
        Algorithms, chapter 3). Holds for any order of summation, with or without FMA.
    """
    info = np.finfo(dtype)
    u = float(info.eps) / 2
    n = np.asarray(k, np.float64) + 1
    gamma = n * u / (1 - n * u)
    return np.asarray(gamma * np.asarray(abs_sum, np.float64) + n * float(info.tiny))


def row_of(indptr: Array) -> Array:
    """Row index of every nonzero: int64 array of length nnz."""
    counts = np.diff(indptr)
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


@_quiet
def spmm(
    indptr: Array,
    indices: Array,
    data: Array,
    shape: tuple[int, int],
    X: Array,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
) -> Array:
    """activation(W @ X + bias + residual): W (M, K), X (K, N) or (K,), bias (M,), residual as the result
    -> (M, N) or (M,)."""
    if X.ndim == 1:
        column = None if residual is None else residual[:, None]
        return spmm(indptr, indices, data, shape, X[:, None], bias, activation, column)[:, 0]
    values, dense = wide(data, X)
    out = np.zeros((shape[0], dense.shape[1]), dense.dtype)
    for row in range(shape[0]):
        for p in range(indptr[row], indptr[row + 1]):
            out[row] += values[p] * dense[indices[p]]
    if bias is not None:
        out = out + bias.astype(out.dtype)[:, None]
    if residual is not None:
        out = out + residual
    return apply_activation(activation, out)


def spmv(
    indptr: Array,
    indices: Array,
    data: Array,
    shape: tuple[int, int],
    x: Array,
    bias: Array | None = None,
    activation: str | None = None,
) -> Array:
    """activation(W @ x + bias): W (M, K), x (K,), bias (M,) -> (M,)."""
    return spmm(indptr, indices, data, shape, x, bias, activation)


@_quiet
def sddmm(indptr: Array, indices: Array, A: Array, B: Array) -> Array:
    """(A @ B) at the pattern's nonzeros: A (M, N), B (N, K) -> (nnz,) in the order of the nonzeros."""
    left, right = wide(A, B)
    rows = row_of(indptr)
    out = np.zeros(len(indices), left.dtype)
    for p in range(len(indices)):
        out[p] = np.sum(left[rows[p]] * right[:, indices[p]])
    return out


def _as_rows(x: Array) -> Array:
    """(..., features) -> (samples, features), also when there is no feature."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def linear(
    x: Array,
    indptr: Array,
    indices: Array,
    data: Array,
    shape: tuple[int, int],
    bias: Array | None = None,
    activation: str | None = None,
) -> Array:
    """activation(x @ W.T + bias): x (..., in), W (out, in), bias (out,) -> (..., out)."""
    out = spmm(indptr, indices, data, shape, _as_rows(x).T, bias, activation)
    return out.T.reshape(*x.shape[:-1], shape[0])


@_quiet
def linear_backward(
    grad: Array, x: Array, indptr: Array, indices: Array, data: Array, shape: tuple[int, int]
) -> tuple[Array, Array, Array]:
    """Gradients of x @ W.T + bias.

    grad (..., out) is the gradient of the loss at the output, before the activation.

    Returns
    -------
    grad_x (..., in), grad_values (nnz,), grad_bias (out,)
    """
    values, dy = wide(data, _as_rows(grad))
    grad_x = np.zeros((dy.shape[0], shape[1]), dy.dtype)
    rows = row_of(indptr)
    for p in range(len(indices)):
        grad_x[:, indices[p]] += values[p] * dy[:, rows[p]]
    grad_values = sddmm(indptr, indices, _as_rows(grad).T, _as_rows(x))
    return grad_x.reshape(x.shape), grad_values, dy.sum(axis=0)


def _taps(
    indptr: Array,
    indices: Array,
    shape: tuple[int, int],
    kernel_size: Sequence[int],
    groups: int,
    channels: int,
) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
    """Yield (position in data, output channel, input channel, kernel offset) of every nonzero.

    Column c of W's row m stands for (channel inside m's group, kernel offsets) in C order.
    """
    offsets = list(itertools.product(*(range(k) for k in kernel_size)))
    rows = row_of(indptr)
    rows_per_group = max(shape[0] // groups, 1)
    channels_per_group = channels // groups
    for p, column in enumerate(np.asarray(indices).tolist()):
        row = int(rows[p])
        inside, offset = divmod(column, len(offsets))
        yield p, row, row // rows_per_group * channels_per_group + inside, offsets[offset]


@_quiet
def conv(
    indptr: Array,
    indices: Array,
    data: Array,
    shape: tuple[int, int],
    x: Array,
    *,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
    groups: int = 1,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
) -> Array:
    """Sparse convolution over any number of axes (cross-correlation, as torch and ONNX say conv).

    Parameters
    ----------
    indptr, indices, data, shape
        W of shape (out, channels / groups * prod(kernel_size)), rows laid out as in OIHW.
    x : array (N, channels, *spatial)
    kernel_size, stride, dilation : one int per spatial axis
    padding : one (before, after) pair per spatial axis, zeros
    groups : int that divides both channel counts
    bias : array (out,) or None
    activation : name or None
    residual : array of the result's shape, added before the activation, or None

    Returns
    -------
    array (N, out, *output spatial)
    """
    values, dense = wide(data, x)
    padded = pad_spatial(dense, padding, 0.0)
    sizes = output_size(x.shape[2:], kernel_size, stride, padding, dilation)
    out = np.zeros((x.shape[0], shape[0], *sizes), dense.dtype)
    for p, row, channel, offset in _taps(indptr, indices, shape, kernel_size, groups, x.shape[1]):
        window: Any = (slice(None), channel, *window_slices(offset, sizes, stride, dilation))
        out[:, row] += values[p] * padded[window]
    if bias is not None:
        out = out + bias.astype(out.dtype).reshape(-1, *(1 for _ in sizes))
    if residual is not None:
        out = out + residual
    return apply_activation(activation, out)


@_quiet
def conv_backward(
    grad: Array,
    indptr: Array,
    indices: Array,
    data: Array,
    shape: tuple[int, int],
    x: Array,
    *,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
    groups: int = 1,
) -> tuple[Array, Array, Array]:
    """Gradients of :func:`conv` before its activation.

    grad has the shape of the convolution's output.

    Returns
    -------
    grad_x (shape of x; 0 at inputs no window saw), grad_values (nnz,), grad_bias (out,)
    """
    values, dense, dy = wide(data, x, grad)
    padded = pad_spatial(dense, padding, 0.0)
    grad_padded = np.zeros_like(padded)
    grad_values = np.zeros(len(values), dense.dtype)
    sizes = grad.shape[2:]
    for p, row, channel, offset in _taps(indptr, indices, shape, kernel_size, groups, x.shape[1]):
        window: Any = (slice(None), channel, *window_slices(offset, sizes, stride, dilation))
        grad_padded[window] += values[p] * dy[:, row]
        grad_values[p] = np.sum(dy[:, row] * padded[window])
    grad_bias = dy.sum(axis=(0, *range(2, dy.ndim)))
    return crop_spatial(grad_padded, padding, x.shape[2:]), grad_values, grad_bias
