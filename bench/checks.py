"""Right before fast: every provider's result is held against a float64 reference before it is timed.

The bound is the project's contract for sums of k products, gamma(k + 1) * sum(|w| |x|), with k the nonzeros of a row
for sparse providers and for dense ones too (products with zero are exact). Libraries with blocked, fused or reordered
sums stay within it; a transformed convolution (Winograd) would not, and none of the providers uses one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from bench import lowered
from bench.workloads import Chain, Conv, ConvStep, LinearStep, SparseInput, Spmm
from fastsparse_kernels import reference

# (value, largest error) of every result. Where a third element follows, all are about one result, and it says of which
# part or sum of that result.
Expected = list[tuple[Any, ...]]
# A product of more columns than this is checked in so many columns, _ENDS of them at either end, and in a sum over all.
_WIDE, _ENDS = 512, 80


@lru_cache(maxsize=1)  # the providers of one workload come one after the other
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


@lru_cache(maxsize=1)  # the providers of one workload come one after the other
def expected_conv(case: Conv) -> Expected:
    """The convolution in float64."""
    w = case.weight.astype(np.float64)
    totals = lowered.forward(case, abs(w), np.abs(_wide(case.x)))
    error = reference.bound(_row_lengths(w)[None, :, None, None], totals, np.float32)
    return [(lowered.forward(case, w, _wide(case.x)), error)]


def expected_any(case: Spmm | Conv) -> Expected:
    """A product's or a convolution's result."""
    return expected_spmm(case) if isinstance(case, Spmm) else expected_conv(case)


@lru_cache(maxsize=1)  # the providers of one workload come one after the other
def expected_chain(case: Chain) -> Expected:
    """W8 ... W1 x in float64; a layer adds its own error to what it makes of its input's."""
    value = _wide(case.x)
    error = np.zeros_like(value)
    for weight in case.weights:
        wide = weight.astype(np.float64)
        totals = abs(wide) @ (np.abs(value) + error)
        value, error = wide @ value, abs(wide) @ error + reference.bound(_row_lengths(weight), totals, np.float32)
    return [(value, error)]


@lru_cache(maxsize=1)  # the providers of one workload come one after the other
def expected_sparse_input(case: SparseInput) -> Expected:
    """x @ W.T in float64."""
    x, transposed = case.x.astype(np.float64), case.weight.T.astype(np.float64).tocsr()
    most = int(min(_row_lengths(case.x).max(), _row_lengths(case.weight).max()))
    totals = (abs(x) @ abs(transposed)).toarray()
    return [((x @ transposed).toarray(), reference.bound(most, totals, np.float32))]


@lru_cache(maxsize=1)  # the providers of one workload come one after the other
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


@lru_cache(maxsize=1)  # the providers of one workload come one after the other
def expected_conv_step(case: ConvStep) -> Expected:
    """y, grad_x, grad_values and grad_b in float64."""
    w = case.weight.astype(np.float64)
    places = reference.row_of(w.indptr), w.indices
    grad_x, values = lowered.backward(case, w, _wide(case.x), _wide(case.grad))
    total_x, totals = lowered.backward(case, abs(w), np.abs(_wide(case.x)), np.abs(_wide(case.grad)))
    terms = case.batch * case.out_side**2
    most = int(_row_lengths(w.T.tocsr()).max()) * case.kernel**2
    return [
        *expected_conv(case),
        (grad_x, reference.bound(most, total_x, np.float32)),
        (values[places], reference.bound(terms, totals[places], np.float32)),
        _bias_gradient(case.grad, (0, 2, 3)),
    ]


def check(name: str, result: Any, expected: Expected, weight: Any) -> None:
    """Raise AssertionError when a provider's result leaves the bound anywhere.

    A dense provider's weight gradient is compared at the nonzeros of `weight`.
    """
    results = result if isinstance(result, tuple) else (result,)
    if len(expected[0]) == 3:  # parts of one result
        results = tuple(part(results[0]) for _, _, part in expected)
    assert len(results) == len(expected), f"{name} returned {len(results)} results, expected {len(expected)}"
    for place, (got, (value, bound, *_)) in enumerate(zip(results, expected)):
        if np.ndim(got) > np.ndim(value):  # a dense gradient
            got = np.reshape(got, weight.shape)[reference.row_of(weight.indptr), weight.indices]
        assert got.shape == value.shape, f"result {place} of {name} has shape {got.shape}, expected {value.shape}"
        off = np.abs(got - value)
        assert np.all(off <= bound), f"result {place} of {name} is off by up to {off.max():.2e}"


def _product(weight: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wide = weight.astype(np.float64)
    lengths = _row_lengths(weight)
    totals = abs(wide) @ np.abs(_wide(x))
    return wide @ _wide(x), reference.bound(lengths if x.ndim == 1 else lengths[:, None], totals, np.float32)


def _bias_gradient(grad: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    terms = grad.size // grad.shape[1]
    return _wide(grad).sum(axis=axes), reference.bound(terms, np.abs(_wide(grad)).sum(axis=axes), np.float32)


def _row_lengths(weight: Any) -> np.ndarray:
    return np.diff(weight.indptr)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def _slices(count: int, step: int = 1 << 14) -> list[slice]:
    return [slice(start, start + step) for start in range(0, count, step)]
