"""Sparse samples through sparse weights: a linear layer whose input stays sparse, and its weight gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR, Pattern
from fastsparse.ops.activations import epilogue
from fastsparse.ops.target import Target, target_for
from fastsparse.runtime.buffers import address, optional_address
from fastsparse.runtime.launch import Arguments, Launch
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
    indptr, _, values = x
    samples = len(indptr) - 1
    # Cost of a sample at W's mean row length, plus clearing and finishing its row of y.
    flops = 2.0 * len(values) * W_T.nnz / max(1, W_T.shape[0]) + 4.0 * y.size
    chunk = max(1, min(16, samples // (4 * target.threads)))
    arguments = Arguments(
        spgemm.FORWARD,
        samples=samples,
        chunk=chunk,
        **_rows(x, W_T.pattern),
        w_values=W_T.data,
        outputs=y.shape[1],
        y_row_stride=y.strides[0],
        **epilogue(activation, target),
    )
    launch = Launch(
        spgemm.forward_kernel(target.bits, target.lanes), arguments, ("y", "bias"), target.loop,
        tasks=-(-samples // chunk),
        flops=flops, scratch=target.vector,
        label=("sparse linear", f"{W.shape[0]}x{W.shape[1]} by {samples}x{W.shape[1]} nnz {len(values)}",
               f"nnz {W.nnz}", "row-major", f"chunk {chunk}", activation),
    )  # fmt: skip
    launch.run(address(y), optional_address(bias))


def _rows(x: SparseRows, W_T: Pattern) -> dict[str, Array]:
    """Arguments of both kernels: the nonzeros of x and the structure of W^T."""
    return {"x_indptr": x[0], "x_indices": x[1], "x_values": x[2], "w_indptr": W_T.indptr, "w_indices": W_T.indices}


def weight_gradient(grad: Array, x_columns: SparseRows, W: CSR, target: Target | None = None) -> Array:
    """The values' gradient (nnz,): grad^T x at W's nonzeros, for x in compressed columns."""
    W_T, permutation = W.pattern.transpose()
    gradients, inputs, numbers = np.zeros(W.nnz, W.dtype), W.shape[1], len(x_columns[2])
    if W.nnz and numbers:
        target = target or target_for(W.dtype)
        chunk = max(1, min(256, inputs // (8 * target.threads)))
        arguments = Arguments(
            spgemm.GRADIENT, inputs=inputs, chunk=chunk, **_rows(x_columns, W_T), dy_row_stride=grad.strides[0]
        )
        launch = Launch(
            spgemm.gradient_kernel(target.bits), arguments, ("gradients", "dy"), target.loop,
            tasks=-(-inputs // chunk), flops=2.0 * numbers * W.nnz / max(1, inputs),
            label=("sparse linear gradient", f"{W.shape[0]}x{inputs}", f"nnz {W.nnz}", "row-major", f"chunk {chunk}"),
        )  # fmt: skip
        launch.run(address(gradients), address(grad))
    out = np.empty_like(gradients)
    out[permutation] = gradients
    return out
