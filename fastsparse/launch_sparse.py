"""Launching products of sparse samples with sparse weights.

A part of `launch`: contiguous buffers in, kernel calls out, nothing validated.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from fastsparse import workspace
from fastsparse.csr import CSR, Pattern
from fastsparse.launch import Record, address, numbers, run, set_epilogue, write_address
from fastsparse.plan.linear import Machine
from fastsparse_kernels import spgemm

SparseArrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def run_sparse_linear(
    x: SparseArrays, W_T: CSR, y: NDArray[Any], m: Machine, *, bias: NDArray[Any] | None, activation: str | None
) -> None:
    """y (samples, out) = epilogue(x @ W_T) for x given as (indptr int64, indices uint32, data), y contiguous."""
    indptr, indices, values = x
    samples = len(indptr) - 1
    # At W's mean row length, what a sample costs; rows of y are cleared and finished as well.
    flops = 2.0 * len(values) * W_T.nnz / max(1, W_T.shape[0]) + 4.0 * y.size
    scratch = workspace.take("scratch", m.vector * m.workers)
    chunk = max(1, min(16, samples // (4 * m.workers)))
    record = Record(
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
        y=write_address(y, numbers(m), samples * W_T.shape[1], "y"),
        y_row_stride=y.strides[0],
        scratch=address(scratch),
        scratch_stride=m.vector,
    )
    set_epilogue(record, bias, activation, m)
    run(spgemm.forward_kernel(m.bits, m.lanes), record, -(-samples // chunk), flops, m.workers)


def run_sparse_gradient(x: SparseArrays, W_T: Pattern, gradients: NDArray[Any], dy: NDArray[Any], m: Machine) -> None:
    """gradients (in W_T's order) += x^T dy at the pattern of W_T, for x by columns: (indptr, indices, data)."""
    indptr, indices, values = x
    inputs = len(indptr) - 1
    chunk = max(1, min(256, inputs // (8 * m.workers)))
    record = Record(
        spgemm.GRADIENT,
        inputs=inputs,
        chunk=chunk,
        x_indptr=address(indptr),
        x_indices=address(indices),
        x_values=address(values),
        w_indptr=address(W_T.indptr),
        w_indices=address(W_T.indices),
        gradients=write_address(gradients, numbers(m), W_T.nnz, "gradients"),
        dy=address(dy),
        dy_row_stride=dy.strides[0],
    )
    flops = 2.0 * len(values) * W_T.nnz / max(1, inputs)
    run(spgemm.gradient_kernel(m.bits), record, -(-inputs // chunk), flops, m.workers)
