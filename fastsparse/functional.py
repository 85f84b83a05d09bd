"""Functions on sparse matrices and dense arrays: validate -> plan -> pack -> kernel -> unpack.

Every function takes float32 or float64 (float16, integers and bool are converted once; mixing float32 and float64
raises TypeError), leaves its arguments as they are, and gives bitwise the same result on any number of threads. Only
stored nonzeros are multiplied: an absent weight never meets an Inf or NaN, a stored zero does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from fastsparse import checks
from fastsparse.arguments import (
    Axes,
    Padding,
    Samples,
    as_bias,
    as_float,
    check_activation,
    check_matrix,
    checked_geometry,
    is_sparse,
    transposed_geometry,
)
from fastsparse.checks import as_array
from fastsparse.csr import CSR, INT32_MAX, MatrixLike, Pattern, csr
from fastsparse.ops import conv as conv_ops
from fastsparse.ops import linear as linear_ops
from fastsparse.ops import spgemm, spmv
from fastsparse.ops.activations import ACTIVATIONS
from fastsparse.ops.spmm import spmm_column_major, spmm_row_major
from fastsparse.ops.sums import batch_sum, channel_sums
from fastsparse.runtime.buffers import check_out
from fastsparse.scipy_matrices import matrix_of

__all__ = [
    "ACTIVATIONS",
    "check_activation",
    "conv1d",
    "conv1d_backward",
    "conv2d",
    "conv2d_backward",
    "conv3d",
    "conv3d_backward",
    "conv_backward",
    "conv_transpose2d",
    "linear",
    "linear_backward",
    "matmul",
    "sddmm",
    "spmm",
]

# From so many rows or columns for each nonzero on, of a matrix that has many, products leave out those that are empty.
_MOSTLY_EMPTY = 8
_MANY = 2**15

Array = NDArray[Any]
Gradients = tuple[Array | None, Array, Array]


# ------------------------------------------------------------------------------------------------- matrices


def spmm(
    W: CSR, X: ArrayLike, *, bias: ArrayLike | None = None, activation: str | None = None, out: Array | None = None
) -> Array:
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
    if (rows > _MANY or columns > _MANY) and bias is None and activation is None:
        many = max(_MANY, _MOSTLY_EMPTY * W.nnz)
        scattered = len(shape) == 2 and shape[1] > 1 and X.strides[1] != dtype.itemsize  # rows of X would be packed
        if rows > many or (columns > many and scattered):
            return _hypersparse(W, X, out)
    bias = as_bias(bias, dtype, rows)
    Y = check_out(out, (rows, *shape[1:]), dtype, X, bias, W.data)
    if Y.size == rows:
        if rows:
            spmv.multiply(W, X, Y, bias, activation)
    elif Y.size:
        row_stride, column_stride = X.strides
        if row_stride == dtype.itemsize and column_stride >= columns * row_stride:
            spmm_column_major(W, X, Y, bias, activation)
        else:
            spmm_row_major(W, X, Y, bias, activation)
    return Y


def _hypersparse(W: CSR, X: Array, out: Array | None) -> Array:
    """W @ X for a W of mostly empty rows or columns: the product of the others, in its place. Of X only their rows are
    read, and of a new result only their rows are written (Buluc and Gilbert, Representation and multiplication of
    hypersparse matrices, IPDPS 2008)."""
    shape = W.shape[0], *X.shape[1:]
    Y = None if out is None else check_out(out, shape, W.dtype, X, W.data)
    rows, columns, core = W._without_empty()
    product = spmm(core, X[columns])
    if Y is None:
        Y = np.zeros(shape, W.dtype)
    else:
        Y[...] = 0
    Y[rows] = product
    return Y


def sddmm(pattern: Pattern, A: ArrayLike, B: ArrayLike) -> CSR:
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
    return CSR._trusted(pattern, linear_ops.sampled_product(pattern, A, B))


def linear(
    x: Samples, W: CSR, bias: ArrayLike | None = None, *, activation: str | None = None, out: Array | None = None
) -> Array:
    """Sparse linear layer: activation(x @ W.T + bias).

    Parameters
    ----------
    x : array_like (..., in), or CSR or scipy.sparse (batch, in)
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
        samples = _as_sparse_samples(x, W)
        y = check_out(out, (samples.shape[0], rows), W.dtype, *given, bias, W.data)
        spgemm.forward(_compressed(samples), W, y, bias, activation)
        return y
    x = _as_samples(x, W)
    y = check_out(out, (*x.shape[:-1], rows), W.dtype, x, bias, W.data)
    if y.size:
        if y.size == rows:
            spmv.multiply(W, x, y, bias, activation)
        else:
            linear_ops.forward(W, linear_ops.as_rows(x), y, bias, activation)
    return y


def linear_backward(grad: ArrayLike, x: Samples, W: CSR, *, need_input: bool = True) -> Gradients:
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
    if need_input is not True:
        need_input = checks.flag(need_input, "need_input")
    rows = W.shape[0]
    sparse_samples = is_sparse(x)
    x = _as_sparse_samples(x, W) if sparse_samples else _as_samples(x, W)
    grad = as_float(grad, W.dtype, "grad")
    if grad.shape != (*x.shape[:-1], rows):
        raise ValueError(f"grad has shape {grad.shape}, expected {(*x.shape[:-1], rows)} to match x and W")
    grad_rows = linear_ops.as_rows(grad)
    if sparse_samples:
        grad_values = spgemm.weight_gradient(grad_rows, _compressed(sparse.csc_array(x)), W)
        grad_x = linear_ops.input_gradient(grad_rows, W) if need_input else None
        return grad_x, grad_values, batch_sum(grad_rows)
    grad_x, grad_values = linear_ops.backward(grad_rows, linear_ops.as_rows(x), W, need_input)
    return None if grad_x is None else grad_x.reshape(x.shape), grad_values, batch_sum(grad_rows)


def _as_samples(x: Any, W: CSR) -> Array:
    x = as_float(x, W.dtype, "x")
    if x.ndim == 0 or x.shape[-1] != W.shape[1]:
        raise ValueError(f"x has shape {x.shape}, expected (..., {W.shape[1]}) to match W of shape {W.shape}")
    return x


def _as_sparse_samples(x: Any, W: CSR) -> sparse.csr_array:
    """x (batch, in) as valid canonical CSR of W's dtype with 32-bit indices; x itself is not changed.

    Raises
    ------
    TypeError, ValueError
        When x does not fit W, or its arrays contradict each other.
    """
    if len(x.shape) != 2 or x.shape[1] != W.shape[1]:
        raise ValueError(f"x has shape {x.shape}, expected (batch, {W.shape[1]}) to match W of shape {W.shape}")
    if max(*W.shape, x.shape[0]) > INT32_MAX:
        raise ValueError(f"x and W have shapes {x.shape} and {W.shape}, expected no size above {INT32_MAX}")
    as_float(np.empty(0, x.dtype), W.dtype, "x")  # the same rules as for dense input
    rows = _valid(csr, x, W.dtype, "x")
    return sparse.csr_array((rows.data, rows.indices.astype(np.uint32), rows.indptr), shape=rows.shape)


def _compressed(x: Any) -> spgemm.SparseRows:
    """indptr, indices, data as the kernels read them."""
    return np.asarray(x.indptr, np.int64), np.asarray(x.indices, np.uint32), x.data


def matmul(A: MatrixLike, X: MatrixLike, *, out: Array | None = None) -> Any:
    """Matrix product ``A @ X`` of which one factor or both are sparse.

    Parameters
    ----------
    A, X : CSR, any scipy.sparse array or matrix, or array_like
        (M, K) and (K, N). A dense factor may also be a vector: X (K,), or A (K,). A scipy.sparse matrix is checked at
        its first product and remembered, with the plans made for it, while its memory lives; so is its transpose
        ``A.T``. Its arrays may change in between: their contents are compared at every call. LIL and DOK matrices are
        converted at every call.
    out : ndarray, optional
        Where to write a dense result: C-contiguous, of its dtype, apart from the factors.

    Returns
    -------
    ndarray, or CSR for two sparse factors (a scipy.sparse array when SciPy's are both)

    Raises
    ------
    TypeError, ValueError
        When a shape or dtype does not fit, neither factor is sparse, or a matrix's fields contradict each other.

    Notes
    -----
    Beside a scipy.sparse matrix, data types are SciPy's: ``np.result_type(A, X)``, which is float64 for int64 times
    float32. What is not float32 or float64 then (integers times integers, complex numbers) is computed by SciPy, and
    so are products of two sparse factors. Beside a `CSR` the rules of `spmm` hold: float32 and float64 do not mix.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sp, fastsparse as fs
    >>> A = sp.csr_array(np.array([[0.0, 2.0], [3.0, 0.0]]))
    >>> fs.matmul(A, np.array([[1.0, 2.0], [10.0, 20.0]]))
    array([[20., 40.],
           [ 3.,  6.]])
    >>> fs.matmul(np.array([1.0, 1.0]), A)
    array([3., 2.])
    """
    return product(A, X, ("A", "X"), out)


def product(left: Any, right: Any, names: tuple[str, str], out: Array | None = None) -> Any:
    """`matmul`, and the operators of `CSR`; `names` are those that errors give to the factors."""
    if is_sparse(left) and is_sparse(right):
        if out is not None:
            raise TypeError("out is for dense results, and the product of two sparse matrices is sparse")
        return _sparse_product(left, right, names)
    if not is_sparse(left) and not is_sparse(right):
        kinds = " and ".join(f"{name} is {type(value).__name__}" for name, value in zip(names, (left, right)))
        raise TypeError(f"{kinds}, expected one of them to be sparse: a fastsparse.CSR or a scipy.sparse matrix")
    on_the_left = is_sparse(left)
    (matrix, name), (dense, dense_name) = (left, names[0]), (right, names[1])
    if not on_the_left:
        (matrix, name), (dense, dense_name) = (dense, dense_name), (matrix, name)
    dense, shape = as_array(dense, dense_name), tuple(matrix.shape)
    if dense.dtype.kind not in "biufc":
        raise TypeError(f"{dense_name} has dtype {dense.dtype}, expected numbers")
    if len(shape) != 2:
        raise ValueError(f"{name} has shape {shape}, expected two dimensions (rows, columns)")
    inner, axis = (shape[1], 0) if on_the_left else (shape[0], -1)
    if dense.ndim not in (1, 2) or dense.shape[axis] != inner:
        expected = f"({inner}, N) or ({inner},)" if on_the_left else f"(N, {inner}) or ({inner},)"
        raise ValueError(f"{dense_name} has shape {dense.shape}, expected {expected} to match {name} of shape {shape}")
    if isinstance(matrix, CSR):
        dense = as_float(dense, matrix.dtype, dense_name, name)
    else:
        dtype = np.result_type(matrix.dtype, dense.dtype)
        if dtype not in (np.float32, np.float64):
            return _by_scipy(left if on_the_left else dense, dense if on_the_left else right, out)
        matrix, dense = _valid(matrix_of, matrix, dtype, name), np.asarray(dense, dtype)
    return spmm(matrix, dense, out=out) if on_the_left else linear(dense, matrix.T, out=out)


def _sparse_product(left: Any, right: Any, names: tuple[str, str]) -> Any:
    """The product of two sparse matrices, by SciPy."""
    if len(right.shape) != 2 or len(left.shape) != 2 or right.shape[0] != left.shape[1]:
        raise ValueError(
            f"{names[1]} has shape {right.shape}, expected ({left.shape[-1]}, N) to match {names[0]} of "
            f"shape {left.shape}"
        )
    if not isinstance(left, CSR) and not isinstance(right, CSR):
        return left @ right
    dtype = left.dtype if isinstance(left, CSR) else right.dtype
    factors = []
    for factor, name, other in zip((left, right), names, reversed(names)):
        as_float(np.empty(0, factor.dtype), dtype, name, other)  # the same rules as for dense factors
        factors.append(_valid(csr, factor, dtype, name).to_scipy())
    return csr(factors[0] @ factors[1])


def _valid(make: Callable[[Any, Any], CSR], matrix: Any, dtype: np.dtype[Any], name: str) -> CSR:
    try:
        return make(matrix, dtype)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} is not a valid sparse matrix: {error}") from error


def _by_scipy(left: Any, right: Any, out: Array | None) -> Array:
    """A product in types that the kernels do not have."""
    found = np.asarray(left @ right)
    if out is None:
        return found
    Y = check_out(out, found.shape, found.dtype)
    Y[...] = found
    return Y


# ------------------------------------------------------------------------------------------------- convolutions


def _conv(
    axes: int,
    x: Any,
    W: CSR,
    bias: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: str | None,
    out: Array | None,
) -> Array:
    check_activation(activation)
    x, geometry = checked_geometry(axes, x, W, kernel_size, stride, padding, dilation, groups)
    bias = as_bias(bias, x.dtype, geometry.out_channels)
    y = check_out(out, (len(x), geometry.out_channels, *geometry.out_spatial), x.dtype, x, bias, W.data)
    if y.size:
        conv_ops.forward(x, W, geometry, bias, activation, y)
    return y


def conv1d(
    x: ArrayLike,
    W: CSR,
    bias: ArrayLike | None = None,
    *,
    kernel_size: Axes,
    stride: Axes = 1,
    padding: Padding = 0,
    dilation: Axes = 1,
    groups: int = 1,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """Sparse convolution of x (N, C, L); see `conv2d`. W is CSR (out, in/groups * k)."""
    return _conv(1, x, W, bias, kernel_size, stride, padding, dilation, groups, activation, out)


def conv2d(
    x: ArrayLike,
    W: CSR,
    bias: ArrayLike | None = None,
    *,
    kernel_size: Axes,
    stride: Axes = 1,
    padding: Padding = 0,
    dilation: Axes = 1,
    groups: int = 1,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """Sparse convolution: activation(conv(x, W) + bias), cross-correlation as in torch.

    Parameters
    ----------
    x : array_like (N, C, H, W)
    W : CSR (out, C/groups * kh * kw)
        Columns in the order of an OIHW weight's rows: input channel, kernel row, kernel column.
    bias : array_like (out,), optional
    kernel_size, stride, dilation : int or (int, int)
    padding : int, (int, int) or ((top, bottom), (left, right))
        Zeros around the image. Stored weights multiply them, so an Inf weight gives NaN at edges.
    groups : int
        Output channels in group g see input channels in group g only; groups=C is depthwise.
    activation : str, optional
    out : ndarray (N, out, OH, OW), optional
        Where to write the result: C-contiguous, of W's dtype, apart from x.

    Returns
    -------
    ndarray (N, out, OH, OW)

    Raises
    ------
    TypeError, ValueError
        When a shape, dtype or size does not fit; nothing has been computed or changed then.
    """
    return _conv(2, x, W, bias, kernel_size, stride, padding, dilation, groups, activation, out)


def conv3d(
    x: ArrayLike,
    W: CSR,
    bias: ArrayLike | None = None,
    *,
    kernel_size: Axes,
    stride: Axes = 1,
    padding: Padding = 0,
    dilation: Axes = 1,
    groups: int = 1,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """Sparse convolution of x (N, C, D, H, W); see `conv2d`. W is CSR (out, in/groups * kd * kh * kw)."""
    return _conv(3, x, W, bias, kernel_size, stride, padding, dilation, groups, activation, out)


def conv_transpose2d(
    x: ArrayLike,
    W: CSR,
    bias: ArrayLike | None = None,
    *,
    kernel_size: Axes,
    stride: Axes = 1,
    padding: Padding = 0,
    output_padding: Axes = 0,
    dilation: Axes = 1,
    groups: int = 1,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """Sparse transposed convolution: the gradient of `conv2d` at its input, as torch.nn.ConvTranspose2d computes it.

    Parameters
    ----------
    x : array_like (N, C, H, W)
    W : CSR (C, out/groups * kh * kw)
        Rows in the order of a weight (C, out/groups, kh, kw).
    bias : array_like (out,), optional
    kernel_size, stride, dilation, groups
        Of the convolution that is transposed: a stride of 2 doubles height and width.
    padding : int, (int, int) or ((top, bottom), (left, right))
        What is cut off the result's edges.
    output_padding : int or (int, int)
        Rows and columns added behind the result, fewer than `stride`: of the sizes whose convolution gives that of x.
    activation : str, optional
    out : ndarray (N, out, OH, OW), optional
        Where to write the result: C-contiguous, of W's dtype, apart from x.

    Returns
    -------
    ndarray (N, out, OH, OW) with OH = (H - 1) stride + dilation (kh - 1) + 1 - top - bottom + output_padding

    Raises
    ------
    TypeError, ValueError
        When a shape, dtype or size does not fit; nothing has been computed or changed then.
    """
    check_activation(activation)
    x, geometry = transposed_geometry(x, W, kernel_size, stride, padding, output_padding, dilation, groups)
    bias = as_bias(bias, x.dtype, geometry.channels)
    y = check_out(out, (len(x), geometry.channels, *geometry.spatial), x.dtype, x, bias, W.data)
    if y.size:
        conv_ops.transposed(x, W, geometry, bias, activation, y)
    return y


def _conv_backward(
    axes: int, grad: Any, x: Any, W: CSR, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    need_input: bool,
) -> Gradients:  # fmt: skip
    x, geometry = checked_geometry(axes, x, W, kernel_size, stride, padding, dilation, groups)
    if need_input is not True:
        need_input = checks.flag(need_input, "need_input")
    grad = as_float(grad, W.dtype, "grad")
    expected = (len(x), W.shape[0], *geometry.out_spatial)
    if grad.shape != expected:
        raise ValueError(f"grad has shape {grad.shape}, expected {expected} to match x and W")
    grad = np.ascontiguousarray(grad)
    grad_bias = channel_sums(grad)
    if grad.size == 0 or x.size == 0:
        return np.zeros(x.shape, x.dtype) if need_input else None, np.zeros(W.nnz, W.dtype), grad_bias
    grad_x, grad_values = conv_ops.backward(grad, x, W, geometry, need_input)
    return grad_x, grad_values, grad_bias


def conv1d_backward(
    grad: ArrayLike,
    x: ArrayLike,
    W: CSR,
    *,
    kernel_size: Axes,
    stride: Axes = 1,
    padding: Padding = 0,
    dilation: Axes = 1,
    groups: int = 1,
    need_input: bool = True,
) -> Gradients:
    """Gradients of `conv1d`, x (N, C, L); see `conv2d_backward`."""
    return _conv_backward(1, grad, x, W, kernel_size, stride, padding, dilation, groups, need_input)


def conv2d_backward(
    grad: ArrayLike,
    x: ArrayLike,
    W: CSR,
    *,
    kernel_size: Axes,
    stride: Axes = 1,
    padding: Padding = 0,
    dilation: Axes = 1,
    groups: int = 1,
    need_input: bool = True,
) -> Gradients:
    """Gradients of `conv2d`, given the gradient `grad` (N, out, OH, OW) before the activation.

    Returns
    -------
    grad_x : ndarray (N, C, H, W), or None without `need_input`
        0 at inputs that no window reads. Weights multiply zeros around `grad`, so an Inf weight gives NaN at edges.
    grad_values : ndarray (nnz,)
        In the order of W.data: gradients exist at the nonzeros only.
    grad_bias : ndarray (out,)

    Raises
    ------
    TypeError, ValueError
        When a shape, dtype or size does not fit.
    """
    return _conv_backward(2, grad, x, W, kernel_size, stride, padding, dilation, groups, need_input)


def conv3d_backward(
    grad: ArrayLike,
    x: ArrayLike,
    W: CSR,
    *,
    kernel_size: Axes,
    stride: Axes = 1,
    padding: Padding = 0,
    dilation: Axes = 1,
    groups: int = 1,
    need_input: bool = True,
) -> Gradients:
    """Gradients of `conv3d`, x (N, C, D, H, W); see `conv2d_backward`."""
    return _conv_backward(3, grad, x, W, kernel_size, stride, padding, dilation, groups, need_input)


def conv_backward(
    grad: ArrayLike,
    x: ArrayLike,
    W: CSR,
    *,
    kernel_size: Axes,
    stride: Axes = 1,
    padding: Padding = 0,
    dilation: Axes = 1,
    groups: int = 1,
    need_input: bool = True,
) -> Gradients:
    """Gradients of `conv1d`, `conv2d` and `conv3d` (by the number of axes of x); see `conv2d_backward`."""
    shape = as_array(x, "x").shape
    if len(shape) not in (3, 4, 5):
        raise ValueError(f"x has shape {shape}, expected (N, C, ...) with one, two or three spatial axes")
    return _conv_backward(len(shape) - 2, grad, x, W, kernel_size, stride, padding, dilation, groups, need_input)
