"""The operators of CSR: ``W @ X`` and ``X @ W``, exact on small integers."""

from __future__ import annotations

import re

import numpy as np
import pytest
import scipy.sparse as sp

import fastsparse as fs

W_DENSE = np.array([[0, 2, 0, -1], [0, 0, 0, 0], [3, 0, 1, 4]])
DTYPES = ["float32", "float64"]


@pytest.fixture(params=DTYPES)
def W(request):
    return fs.csr(W_DENSE.astype(request.param))


def integers(rng, shape, W):
    return rng.integers(-9, 10, shape).astype(W.dtype)


def same(result, expected, W):
    assert type(result) is np.ndarray
    assert result.dtype == W.dtype
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("shape", [(4,), (4, 0), (4, 1), (4, 5), (4, 67)])
def test_matrix_on_the_left(rng, W, shape):
    X = integers(rng, shape, W)
    same(W @ X, W_DENSE @ X, W)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (1, 3), (5, 3), (67, 3)])
def test_matrix_on_the_right(rng, W, shape):
    X = integers(rng, shape, W)
    same(X @ W, X @ W_DENSE, W)


@pytest.mark.parametrize("kind", [sp.csr_array, sp.csc_array, sp.coo_matrix])
def test_sparse_operands_of_scipy(rng, W, kind):
    left = kind(integers(rng, (6, 3), W) * (rng.random((6, 3)) < 0.5))
    right = kind(integers(rng, (4, 6), W) * (rng.random((4, 6)) < 0.5))
    same(left @ W, left.toarray() @ W_DENSE, W)
    same(W @ right, W_DENSE @ right.toarray(), W)


def test_two_matrices(W):
    same(W @ W.T, W_DENSE @ W_DENSE.T, W)
    same(W.T @ W, W_DENSE.T @ W_DENSE, W)


def test_lists(W):
    same(W @ [1, 2, 3, 4], W_DENSE @ [1, 2, 3, 4], W)
    same([1, 2, 3] @ W, [1, 2, 3] @ W_DENSE, W)


def refusal(shape, expected):
    return f"^{re.escape(f'X has shape {shape}, expected {expected} to match W of shape (3, 4)')}$"


@pytest.mark.parametrize("shape", [(3,), (5, 4), (3, 4), (2, 4, 3), ()])
def test_shapes_that_do_not_fit_to_the_right_of_it(W, shape):
    with pytest.raises(ValueError, match=refusal(shape, "(4, N) or (4,)")):
        W @ np.zeros(shape, W.dtype)


@pytest.mark.parametrize("shape", [(4,), (5, 4), (4, 3, 3), ()])
def test_shapes_that_do_not_fit_to_the_left_of_it(W, shape):
    with pytest.raises(ValueError, match=refusal(shape, "(..., 3)")):
        np.zeros(shape, W.dtype) @ W


def test_shapes_of_sparse_operands_that_do_not_fit(W):
    S = sp.csr_array(np.zeros((5, 6), W.dtype))
    with pytest.raises(ValueError, match=refusal((5, 6), "(4, N)")):
        W @ S
    with pytest.raises(ValueError, match=refusal((5, 6), "(..., 3)")):
        S @ W
    with pytest.raises(ValueError, match=refusal((3, 4), "(4, N)")):
        W @ W


@pytest.mark.parametrize("dtype", DTYPES)
def test_float32_and_float64_do_not_mix(W, dtype):
    if W.dtype == dtype:
        W @ np.zeros(4, dtype)
        return
    with pytest.raises(TypeError, match="float32"):
        W @ np.zeros(4, dtype)
    with pytest.raises(TypeError, match="float32"):
        np.zeros(3, dtype) @ W
