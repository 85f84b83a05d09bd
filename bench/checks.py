"""Right before fast: every baseline's result is held against a float64 reference before it is timed.

The bound is the project's contract for sums of k products, gamma(k + 1) * sum(|w| |x|), with k the nonzeros of a row
for sparse baselines and for dense ones too (products with zero are exact). Libraries with blocked, fused or reordered
sums stay within it; a transformed convolution (Winograd) would not, and none of the baselines uses one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bench.matrices import MatrixProduct
from bench.workloads import Conv, ConvStep, LinearStep, SparseInput, Spmm
from fastsparse_kernels import reference

# (value, largest error) of every result. Where a third element follows, all are about one result, and it says of which
# part or sum of that result.
Expected = list[tuple[Any, ...]]
# A product of more columns than this is checked in so many columns, _ENDS of them at either end, and in a sum over all.
_WIDE, _ENDS = 512, 80


def expected_spmm(case: Spmm) -> Expected:
    """W @ X in float64; of a wide X some columns, those at the ends included, and a random sum over all of them."""
    if case.n <= _WIDE:
        return [_product(case.weight, case.x)]
    rng = np.random.default_rng(4)
    ends = np.r_[:_ENDS, case.n - _ENDS : case.n]
    chosen = np.union1d(ends, rng.integers(0, case.n, _WIDE - 2 * _ENDS))
    signs = rng.choice([-1.0, 1.0], case.n)
    sums = np.stack([_wide(row) @ signs for row in case.x])
    sizes = np.stack([np.abs(row).sum(dtype=np.float64) for row in case.x])
    bound = reference.bound(_row_lengths(case.weight), abs(case.weight.astype(np.float64)) @ sizes, np.float32)
    return [
        (*_product(case.weight, case.x[:, chosen]), lambda y: y[:, chosen]),
        (case.weight.astype(np.float64) @ sums, bound, lambda y: np.stack([_wide(row) @ signs for row in y])),
    ]


def expected_conv(case: Conv) -> Expected:
    """The convolution in float64."""
    w = case.weight.astype(np.float64)
    totals = convolve(case, abs(w), np.abs(_wide(case.x)))
    error = reference.bound(_row_lengths(w)[None, :, None, None], totals, np.float32)
    return [(convolve(case, w, _wide(case.x)), error)]


def expected_any(case: Spmm | Conv) -> Expected:
    """A product's or a convolution's result."""
    return expected_spmm(case) if isinstance(case, Spmm) else expected_conv(case)


def expected_matrix(case: MatrixProduct) -> Expected:
    """Some columns of a product, both ends included."""
    if case.n == 1:
        return [_product(case.weight.tocsr(), case.x)]
    chosen = np.unique(np.r_[0, case.n - 1, np.random.default_rng(4).integers(0, case.n, 6)])
    return [(*_product(case.weight.tocsr(), case.x[:, chosen]), lambda y: y[:, chosen])]


def expected_sddmm(case: MatrixProduct) -> Expected:
    """Some of the values."""
    chosen = np.unique(np.random.default_rng(4).integers(0, case.weight.nnz, 10_000))
    a, b = _wide(case.a[reference.row_of(case.weight.indptr)[chosen]]), _wide(case.x[case.weight.indices[chosen]])
    totals = np.einsum("ij,ij->i", abs(a), abs(b))
    return [(np.einsum("ij,ij->i", a, b), reference.bound(case.n, totals, case.dtype), lambda values: values[chosen])]


def expected_sparse_input(case: SparseInput) -> Expected:
    """x @ W.T in float64."""
    x, transposed = case.x.astype(np.float64), case.weight.T.astype(np.float64).tocsr()
    most = int(min(_row_lengths(case.x).max(), _row_lengths(case.weight).max()))
    totals = (abs(x) @ abs(transposed)).toarray()
    return [((x @ transposed).toarray(), reference.bound(most, totals, np.float32))]


def expected_linear_step(case: LinearStep) -> Expected:
    """y, grad_x, grad_values and grad_b in float64."""
    w, x, grad = case.weight, case.x, case.grad
    y, y_bound = _product(w, x.T)
    grad_x, grad_x_bound = _product(w.T.tocsr(), grad.T)
    rows = reference.row_of(w.indptr)
    values, totals = (
        np.concatenate([np.einsum("ij,ij->j", a[:, rows[s]], b[:, w.indices[s]]) for s in _slices(int(w.nnz))])
        for a, b in ((_wide(grad), _wide(x)), (np.abs(_wide(grad)), np.abs(_wide(x))))
    )
    return [
        (y.T, y_bound.T),
        (grad_x.T, grad_x_bound.T),
        (values, reference.bound(case.batch, totals, np.float32)),
        _bias_gradient(grad, (0,)),
    ]


def expected_conv_step(case: ConvStep) -> Expected:
    """y, grad_x, grad_values and grad_b in float64."""
    w = case.weight.astype(np.float64)
    nonzeros = reference.row_of(w.indptr), w.indices
    grad_x, values = convolve_backward(case, w, _wide(case.x), _wide(case.grad))
    total_x, totals = convolve_backward(case, abs(w), np.abs(_wide(case.x)), np.abs(_wide(case.grad)))
    terms = case.batch * case.out_side**2
    most = int(_row_lengths(w.T.tocsr()).max()) * case.kernel**2
    return [
        *expected_conv(case),
        (grad_x, reference.bound(most, total_x, np.float32)),
        (values[nonzeros], reference.bound(terms, totals[nonzeros], np.float32)),
        _bias_gradient(case.grad, (0, 2, 3)),
    ]


def check(name: str, result: Any, expected: Expected, weight: Any) -> None:
    """Raise AssertionError when a baseline's result leaves the bound anywhere.

    A dense baseline's weight gradient is compared at the nonzeros of `weight`.
    """
    results = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    if len(expected[0]) == 3:  # parts of one result
        results = tuple(part(results[0]) for _, _, part in expected)
    assert len(results) == len(expected), f"{name} returned {len(results)} results, expected {len(expected)}"
    for number, (got, (value, bound, *_)) in enumerate(zip(results, expected)):
        if np.ndim(got) > np.ndim(value):  # a dense gradient
            got = np.reshape(got, weight.shape)[reference.row_of(weight.indptr), weight.indices]
        assert got.shape == value.shape, f"result {number} of {name} has shape {got.shape}, expected {value.shape}"
        off = np.abs(np.subtract(np.asarray(got), value, dtype=np.float64))
        assert np.all(off <= bound), f"result {number} of {name} is off by up to {off.max():.2e}"


def _product(weight: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wide = weight.astype(np.float64)
    lengths = _row_lengths(weight)
    totals = abs(wide) @ np.abs(_wide(x))
    return wide @ _wide(x), reference.bound(lengths if x.ndim == 1 else lengths[:, None], totals, x.dtype)


def _bias_gradient(grad: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    terms = grad.size // grad.shape[1]
    return _wide(grad).sum(axis=axes), reference.bound(terms, np.abs(_wide(grad)).sum(axis=axes), np.float32)


def _row_lengths(weight: Any) -> np.ndarray:
    return np.diff(weight.indptr)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def _slices(count: int, step: int = 1 << 14) -> list[slice]:
    return [slice(start, start + step) for start in range(0, count, step)]


def convolve(case: Conv, weight: Any, x: np.ndarray) -> np.ndarray:
    """conv(x, weight) in float64 by im2col and whole products; weight is float64 CSR.

    The kernels' oracle (`fastsparse_kernels.reference`) is plainer and would take ten times as long; a test holds the
    two together.
    """
    return np.stack([weight @ columns for columns in map(_columns_of(case), x)]).reshape(case.out_shape)


def convolve_backward(case: Conv, weight: Any, x: np.ndarray, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """grad_x, and the weight's whole gradient as a dense matrix."""
    grad_x, grad_weight = np.zeros_like(x), np.zeros(weight.shape)
    transposed, lower = weight.T.tocsr(), _columns_of(case)
    for image, dy, dx in zip(x, grad.reshape(case.batch, case.out, -1), grad_x):
        grad_weight += dy @ lower(image).T
        _add_columns(case, transposed @ dy, dx)
    return grad_x, grad_weight


def _columns_of(case: Conv) -> Any:
    """A function from an image (channels, side, side) to its columns (channels * kernel^2, positions)."""
    pad, kernel, step = case.padding, case.kernel, case.stride

    def lower(image: np.ndarray) -> np.ndarray:
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
        windows = sliding_window_view(padded, (kernel, kernel), axis=(1, 2))[:, ::step, ::step]
        return windows.transpose(0, 3, 4, 1, 2).reshape(case.channels * kernel**2, -1)

    return lower


def _add_columns(case: Conv, columns: np.ndarray, image: np.ndarray) -> None:
    """Add every column to the window it was taken from."""
    pad, side, size = case.padding, case.side, case.out_side
    padded = np.zeros((case.channels, side + 2 * pad, side + 2 * pad))
    parts = columns.reshape(case.channels, case.kernel, case.kernel, size, size)
    reach = case.stride * (size - 1) + 1
    for row in range(case.kernel):
        for column in range(case.kernel):
            window = (slice(row, row + reach, case.stride), slice(column, column + reach, case.stride))
            padded[(slice(None), *window)] += parts[:, row, column]
    image += padded[:, pad : pad + side, pad : pad + side]
