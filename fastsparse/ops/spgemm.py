"""Sparse samples through sparse weights: a linear layer whose input stays sparse, and its weight gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR, Pattern
from fastsparse.ops.activations import set_epilogue
from fastsparse.ops.target import Target, target_for
from fastsparse.runtime.buffers import address
from fastsparse.runtime.launch import Arguments
from fastsparse_kernels import spgemm

Array = NDArray[Any]
SparseRows = tuple[Array, Array, Array]  # indptr int64, indices uint32, data


def forward(
    x: SparseRows, W: CSR, y: Array, bias: Array | None, activation: str | None, target: Target | None = None
) -> None:
    """y (samples, out) = activation(x @ W.T + bias), y contiguous."""
    if not y.size:
        return
    target, W_T = target or target_for(W.dtype), W.T
    indptr, indices, values = x
    samples = len(indptr) - 1
    # Cost of a sample at W's mean row length, plus clearing and finishing its row of y.
    flops = 2.0 * len(values) * W_T.nnz / max(1, W_T.shape[0]) + 4.0 * y.size
    chunk = max(1, min(16, samples // (4 * target.threads)))
    arguments = Arguments(
        spgemm.FORWARD,
        samples=samples,
        chunk=chunk,
        x_indptr=address(indptr),
        x_indices=address(indices),
        x_values=address(values),
        w_indptr=address(W_T.indptr),
        w_indices=address(W_T.indices),
        w_values=address(W_T.data),
        outputs=y.shape[1],
        y_row_stride=y.strides[0],
        scratch_stride=target.vector,
    )
    set_epilogue(arguments, activation, target)
    launch = target.launch(
        spgemm.forward_kernel(target.bits, target.lanes), arguments, ("y", "bias"), tasks=-(-samples // chunk),
        flops=flops, scratch=target.vector, keep=(x, W_T),
        label=("sparse linear", f"{W.shape[0]}x{W.shape[1]} by {samples}x{W.shape[1]} nnz {len(values)}",
               f"nnz {W.nnz}", "row-major", f"chunk {chunk}", activation),
    )  # fmt: skip
    launch.run(address(y), 0 if bias is None else address(bias))


def weight_gradient(grad: Array, x_columns: SparseRows, W: CSR, target: Target | None = None) -> Array:
    """The values' gradient (nnz,): grad^T x at W's nonzeros, for x in compressed columns."""
    transposed, permutation = W.pattern.transpose()
    gradients = np.zeros(W.nnz, W.dtype)
    if W.nnz and len(x_columns[2]):
        _gradient(x_columns, transposed, gradients, grad, target or target_for(W.dtype))
    out = np.empty_like(gradients)
    out[permutation] = gradients
    return out


def _gradient(x: SparseRows, W_T: Pattern, gradients: Array, grad: Array, target: Target) -> None:
    """gradients (in W_T's order) += x^T grad at the pattern of W_T."""
    indptr, indices, values = x
    inputs = len(indptr) - 1
    chunk = max(1, min(256, inputs // (8 * target.threads)))
    arguments = Arguments(
        spgemm.GRADIENT,
        inputs=inputs,
        chunk=chunk,
        x_indptr=address(indptr),
        x_indices=address(indices),
        x_values=address(values),
        w_indptr=address(W_T.indptr),
        w_indices=address(W_T.indices),
        dy_row_stride=grad.strides[0],
    )
    launch = target.launch(
        spgemm.gradient_kernel(target.bits), arguments, ("gradients", "dy"), tasks=-(-inputs // chunk),
        flops=2.0 * len(values) * W_T.nnz / max(1, inputs), keep=(x, W_T),
        label=("sparse linear gradient", f"{W_T.shape[1]}x{W_T.shape[0]}", f"nnz {W_T.nnz}", "row-major",
               f"chunk {chunk}"),
    )  # fmt: skip
    launch.run(address(gradients), address(grad))
