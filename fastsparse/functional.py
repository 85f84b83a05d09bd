"""Functions on sparse matrices and dense arrays: validate -> plan -> pack -> kernel -> unpack.

Every function takes float32 or float64 (float16, integers and bool are converted once; mixing float32 and float64
raises TypeError), leaves its arguments as they are, and gives bitwise the same result on any number of threads. Only
stored nonzeros are multiplied: an absent weight never meets an Inf or NaN, a stored zero does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import _linear, _sparse_input, elementwise
from fastsparse._arguments import as_array, as_bias, as_float, check_activation, check_matrix, check_out, is_sparse
from fastsparse._convolution import conv1d, conv2d, conv2d_backward, conv3d, conv_backward
from fastsparse.csr import CSR, Pattern
from fastsparse.launch import ACTIVATIONS

__all__ = [
    "ACTIVATIONS",
    "check_activation",
    "conv1d",
    "conv2d",
    "conv2d_backward",
    "conv3d",
    "conv_backward",
    "linear",
    "linear_backward",
    "sddmm",
    "spmm",
]


def spmm(
    W: CSR, X: Any, *, bias: Any = None, activation: str | None = None, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Sparse matrix times dense matrix: activation(W @ X + bias[:, None]).

    Parameters
    ----------
    W : CSR (M, K)
    X : array_like (K, N) or (K,)
        Row-major and column-major are both fast; other layouts are copied first.
    bias : array_like (M,), optional
    activation : str, optional
        One of the names in `ACTIVATIONS`.
    out : ndarray (M, N) or (M,), optional
        Where to write the result: C-contiguous, of W's dtype, apart from X.

    Returns
    -------
    ndarray (M, N) or (M,)

    Raises
    ------
    TypeError, ValueError
        When a shape or dtype does not fit; nothing has been computed or changed then.

    Examples
    --------
    >>> import numpy as np, fastsparse as fs
    >>> W = fs.csr(np.array([[0.0, 2.0], [3.0, 0.0]]))
    >>> fs.spmm(W, np.array([[1.0, 2.0], [10.0, 20.0]]), bias=[0.5, -9.0], activation="relu")
    array([[20.5, 40.5],
           [ 0. ,  0. ]])
    """
    check_matrix(W)
    check_activation(activation)
    dtype, (rows, columns) = W.dtype, W.shape
    X = as_float(X, dtype, "X")
    shape = X.shape
    if len(shape) not in (1, 2) or shape[0] != columns:
        expected = f"({columns}, N) or ({columns},)"
        raise ValueError(f"X has shape {shape}, expected {expected} to match W of shape {W.shape}")
    bias = as_bias(bias, dtype, rows)
    Y = check_out(out, (rows, *shape[1:]), dtype, X, bias, W.data)
    if Y.size == rows:
        if rows:
            _linear.spmv(W, X, Y, bias, activation)
    elif Y.size:
        row_stride, column_stride = X.strides
        if row_stride == dtype.itemsize and column_stride >= columns * row_stride:
            _linear.spmm_column_major(W, X, Y, bias, activation)
        else:
            _linear.spmm_row_major(W, X, Y, bias, activation)
    return Y


def sddmm(pattern: Pattern, A: Any, B: Any) -> CSR:
    """Sampled dense-dense product: (A @ B) at the pattern's nonzeros only, as `torch.sparse.sampled_addmm`.

    Parameters
    ----------
    pattern : Pattern (M, K)
    A : array_like (M, N)
    B : array_like (N, K)

    Returns
    -------
    CSR (M, K)
        Float32, or float64 when A and B are.

    Raises
    ------
    TypeError, ValueError
        When a shape or dtype does not fit.
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern is {type(pattern).__name__}, expected fastsparse.Pattern")
    A, B = as_array(A, "A"), as_array(B, "B")
    dtype = np.dtype(np.float64 if np.float64 in (A.dtype.newbyteorder("="), B.dtype.newbyteorder("=")) else np.float32)
    A, B = as_float(A, dtype, "A", "B"), as_float(B, dtype, "B", "A")
    rows, columns = pattern.shape
    if A.ndim != 2 or A.shape[0] != rows:
        raise ValueError(f"A has shape {A.shape}, expected ({rows}, N) to match pattern of shape {pattern.shape}")
    if B.shape != (A.shape[1], columns):
        raise ValueError(
            f"B has shape {B.shape}, expected {(A.shape[1], columns)} to match A and pattern of shape {pattern.shape}"
        )
    return CSR._trusted(pattern, _linear.sddmm(pattern, A, B))


def linear(
    x: Any, W: CSR, bias: Any = None, *, activation: str | None = None, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Sparse linear layer: activation(x @ W.T + bias).

    Parameters
    ----------
    x : array_like (..., in), or scipy.sparse (batch, in)
        A sparse x stays sparse: work follows the matching nonzeros of x and W.
    W : CSR (out, in)
    bias : array_like (out,), optional
    activation : str, optional
    out : ndarray (..., out), optional
        Where to write the result: C-contiguous, of W's dtype, apart from x.

    Returns
    -------
    ndarray (..., out)

    Raises
    ------
    TypeError, ValueError
        When a shape or dtype does not fit.
    """
    check_matrix(W)
    check_activation(activation)
    rows = W.shape[0]
    bias = as_bias(bias, W.dtype, rows)
    if is_sparse(x):
        given = [getattr(x, name, None) for name in ("data", "indices", "indptr", "row", "col", "offsets")]
        x = _sparse_input.as_csr(x, W)
        y = check_out(out, (x.shape[0], rows), W.dtype, *given, bias, W.data)
        _sparse_input.linear(x, W, y, bias, activation)
        return y
    x = _as_samples(x, W, "x")
    y = check_out(out, (*x.shape[:-1], rows), W.dtype, x, bias, W.data)
    if y.size:
        if y.size == rows:
            _linear.spmv(W, x, y, bias, activation)
        else:
            _linear.linear(W, _linear.as_rows(x), y, bias, activation)
    return y


def linear_backward(
    grad: Any, x: Any, W: CSR, *, need_input: bool = True
) -> tuple[NDArray[Any] | None, NDArray[Any], NDArray[Any]]:
    """Gradients of `linear`, given the gradient `grad` (..., out) before the activation.

    Returns
    -------
    grad_x : ndarray like x (dense, also for sparse x), or None without `need_input`
    grad_values : ndarray (nnz,)
        In the order of W.data: gradients exist at the nonzeros only.
    grad_bias : ndarray (out,)

    Raises
    ------
    TypeError, ValueError
        When a shape or dtype does not fit.
    """
    check_matrix(W)
    rows = W.shape[0]
    sparse_samples = is_sparse(x)
    x = _sparse_input.as_csr(x, W) if sparse_samples else _as_samples(x, W, "x")
    grad = as_float(grad, W.dtype, "grad")
    if grad.shape != (*x.shape[:-1], rows):
        raise ValueError(f"grad has shape {grad.shape}, expected {(*x.shape[:-1], rows)} to match x and W")
    grad_rows = _linear.as_rows(grad)
    grad_bias = elementwise.batch_sum(grad_rows)
    if sparse_samples:
        grad_values = _sparse_input.weight_gradient(grad_rows, x, W)
        grad_x = _linear.input_gradient(grad_rows, W) if need_input else None
        return grad_x, grad_values, grad_bias
    grad_x, grad_values = _linear.backward(grad_rows, _linear.as_rows(x), W, need_input)
    return None if grad_x is None else grad_x.reshape(x.shape), grad_values, grad_bias


def _as_samples(x: Any, W: CSR, name: str) -> NDArray[Any]:
    x = as_float(x, W.dtype, name)
    if x.ndim == 0 or x.shape[-1] != W.shape[1]:
        raise ValueError(f"{name} has shape {x.shape}, expected (..., {W.shape[1]}) to match W of shape {W.shape}")
    return x
