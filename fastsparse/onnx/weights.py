"""Constant weights: which are kept sparse, and in which form products read them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastsparse.csr import CSR, csr
from fastsparse.onnx.model import Array, Constant, Node, SparseWeight

# Above this density BLAS is faster than the sparse kernels (README, Limits), so linear layers stay dense.
DENSEST = 0.4
_LEAST = 4096  # elements; below that a weight is kept as it came
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def kept_sparse(array: Array, uses: Sequence[tuple[Node, int]]) -> Constant:
    """The array, or its nonzeros alone where only products read it, in one way, and most of it is zero."""
    if array.size < _LEAST or array.ndim < 2 or array.dtype not in FLOATS:
        return array
    ways = {_way(node, position) for node, position in uses}
    if len(ways) != 1 or None in ways or np.count_nonzero(array) > DENSEST * array.size:
        return array
    way = ways.pop()
    if way == "columns" and array.ndim != 2:
        return array
    if way == "columns":
        return SparseWeight(csr(array).T, array.shape, transposed=True)
    return SparseWeight(csr(array.reshape(len(array), -1)), array.shape)


def _way(node: Node, position: int) -> str | None:
    """How a node reads a weight: outputs are its "rows" or its "columns"; None where it is no weight."""
    if node.op == "MatMul":
        return ("rows", "columns")[position]
    if position == 1 and node.op == "Conv":
        return "rows"
    if position == 1 and node.op == "Gemm":
        return "rows" if node.get("transB", 0) else "columns"
    return None


def density(weight: Constant) -> float:
    """Share of elements that are not zero."""
    if isinstance(weight, SparseWeight):
        size = weight.matrix.shape[0] * weight.matrix.shape[1]
        return weight.matrix.nnz / max(1, size)
    return float(np.count_nonzero(weight)) / max(1, weight.size)


def by_rows(weight: Constant) -> CSR:
    """CSR (shape[0], product of the rest)."""
    if isinstance(weight, SparseWeight):
        return weight.matrix.T if weight.transposed else weight.matrix
    return csr(weight.reshape(len(weight), -1))


def by_columns(weight: Constant) -> CSR:
    """CSR (shape[1], shape[0]) of a matrix."""
    if isinstance(weight, SparseWeight):
        return weight.matrix if weight.transposed else weight.matrix.T
    return csr(weight).T
