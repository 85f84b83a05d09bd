"""Sparse samples through sparse weights, behind `functional.linear`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from fastsparse import launch_sparse
from fastsparse._arguments import as_float
from fastsparse._validate import INT32_MAX
from fastsparse.csr import CSR, csr
from fastsparse.launch import machine

Array = NDArray[Any]


def as_csr(x: Any, W: CSR) -> sparse.csr_array:
    """x (batch, in) as valid canonical CSR of W's dtype with 32-bit indices; x itself is not changed.

    Raises
    ------
    TypeError, ValueError
        When x does not fit W, or its arrays contradict each other.
    """
    if x.ndim != 2 or x.shape[1] != W.shape[1]:
        raise ValueError(f"x has shape {x.shape}, expected (batch, {W.shape[1]}) to match W of shape {W.shape}")
    if max(*W.shape, x.shape[0]) > INT32_MAX:
        raise ValueError(f"x and W have shapes {x.shape} and {W.shape}, expected no size above {INT32_MAX}")
    as_float(np.empty(0, x.dtype), W.dtype, "x")  # the same rules as for dense input
    try:
        rows = csr(x, W.dtype)
    except (TypeError, ValueError) as error:
        raise type(error)(f"x is not a valid sparse matrix: {error}") from error
    return sparse.csr_array((rows.data, rows.indices.astype(np.uint32), rows.indptr), shape=rows.shape)


def linear(x: sparse.csr_array, W: CSR, y: Array, bias: Array | None, activation: str | None) -> None:
    """y (batch, out) = activation(x @ W.T + bias)."""
    if y.size:
        launch_sparse.run_sparse_linear(arrays(x), W.T, y, machine(W.dtype), bias=bias, activation=activation)


def weight_gradient(grad: Array, x: sparse.csr_array, W: CSR) -> Array:
    """The values' gradient (nnz,): grad^T x at W's nonzeros."""
    transposed, permutation = W.pattern.transpose()
    gradients = np.zeros(W.nnz, W.dtype)
    if W.nnz and x.nnz:
        launch_sparse.run_sparse_gradient(arrays(x.tocsc()), transposed, gradients, grad, machine(W.dtype))
    out = np.empty_like(gradients)
    out[permutation] = gradients
    return out


def arrays(x: Any) -> tuple[Array, Array, Array]:
    """indptr, indices, data as the kernels read them."""
    return np.asarray(x.indptr, np.int64), np.asarray(x.indices, np.uint32), x.data
