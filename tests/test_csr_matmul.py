"""The operators of CSR: ``W @ X`` and ``X @ W``, exact on small integers."""

from __future__ import annotations

import re

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import gmres, svds

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


def same_sparse(result, expected, W):
    assert type(result) is fs.CSR
    assert result.dtype == W.dtype
    assert np.array_equal(result.toarray(), expected)


@pytest.mark.parametrize("kind", [sp.csr_array, sp.csc_array, sp.coo_matrix])
def test_sparse_operands_of_scipy(rng, W, kind):
    left = kind(integers(rng, (6, 3), W) * (rng.random((6, 3)) < 0.5))
    right = kind(integers(rng, (4, 6), W) * (rng.random((4, 6)) < 0.5))
    same(left @ W, left.toarray() @ W_DENSE, W)
    same_sparse(fs.matmul(left, W), left.toarray() @ W_DENSE, W)
    same_sparse(W @ right, W_DENSE @ right.toarray(), W)
    same_sparse(W @ right.astype(np.int8), W_DENSE @ right.toarray(), W)


def test_two_matrices(W):
    same_sparse(W @ W.T, W_DENSE @ W_DENSE.T, W)
    same_sparse(W.T @ W, W_DENSE.T @ W_DENSE, W)


@pytest.mark.parametrize("row", [0, 1, 2, -1, -3, np.int64(2)])
def test_rows(W, row):
    same(W[row], W_DENSE[row], W)


@pytest.mark.parametrize("rows", [np.s_[:], np.s_[1:], np.s_[:-1], np.s_[1:1], np.s_[2:1], np.s_[5:9], np.s_[::2],
                                  np.s_[::-1]])  # fmt: skip
def test_slices_of_rows(W, rows):
    same_sparse(W[rows], W_DENSE[rows], W)
    W[rows].pattern.indptr  # noqa: B018
    same(W[rows] @ np.ones(4, W.dtype), W_DENSE[rows].sum(1), W)


@pytest.mark.parametrize("row", [3, -4])
def test_rows_that_are_not_there(W, row):
    with pytest.raises(IndexError, match=f"row {row} is out of range for shape"):
        W[row]


@pytest.mark.parametrize("number", [2, True, 0.5, np.float32(2), np.float64(-3), np.int8(3), np.array(2.0)])
def test_times_a_number(W, number):
    for result, expected in ((W * number, W_DENSE * number), (number * W, number * W_DENSE)):
        same_sparse(result, expected, W)
        assert result.pattern is W.pattern
    same_sparse(W / number, (W_DENSE / number).astype(W.dtype), W)
    same_sparse(-W, -W_DENSE, W)


@pytest.mark.parametrize(
    "use",
    [
        lambda W: W + W, lambda W: W - 1, lambda W: 1 + W, lambda W: W * W, lambda W: W * np.ones(4), lambda W: W * 1j,
        lambda W: 1 / W, lambda W: W**2, lambda W: W[1, 2], lambda W: W[[0, 1]], lambda W: W["a"],
    ],
)  # fmt: skip
def test_what_is_left_to_scipy(W, use):
    with pytest.raises(TypeError, match=r"W\.to_scipy\(\)"):
        use(W)


def test_names_that_scipy_has(W):
    with pytest.raises(AttributeError, match=r"a CSR has no 'sum', SciPy's matrices do: use W\.to_scipy\(\)\.sum"):
        W.sum()
    with pytest.raises(AttributeError, match=r"a CSR has no 'nonsense'$"):
        W.nonsense  # noqa: B018


def test_as_an_array_of_numpy(W):
    same(np.asarray(W), W_DENSE, W)
    assert np.asarray(W, np.float16).dtype == np.float16
    assert np.allclose(W, W_DENSE)
    large = fs.CSR([0] * 100_001, [], [], (100_000, 100_000))
    with pytest.raises(ValueError, match=r"W\.toarray\(\) if that is meant, or W\.to_scipy\(\)"):
        np.asarray(large)
    with pytest.raises(ValueError, match="without a copy"):
        W.__array__(copy=False)


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
    with pytest.raises(ValueError, match=refusal(shape, "(N, 3) or (3,)")):
        np.zeros(shape, W.dtype) @ W


def test_shapes_of_sparse_operands_that_do_not_fit(W):
    S = sp.csr_array(np.zeros((5, 6), W.dtype))
    with pytest.raises(ValueError, match=refusal((5, 6), "(4, N)")):
        W @ S
    with pytest.raises(ValueError, match=refusal((5, 6), "(N, 3) or (3,)")):
        S.toarray() @ W
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


def test_solvers_of_scipy_take_it_as_it_is(rng):
    dense = rng.random((30, 30)) * (rng.random((30, 30)) < 0.2) + 10 * np.eye(30)
    W, b = fs.csr(dense), rng.random(30)
    solved, failed = gmres(W, b, rtol=1e-12)
    assert not failed
    np.testing.assert_allclose(dense @ solved, b, rtol=1e-8)
    wide = fs.csr(dense[:20])
    found = svds(wide, k=3, v0=np.ones(20), return_singular_vectors=False)
    np.testing.assert_allclose(np.sort(found), np.linalg.svd(dense[:20], compute_uv=False)[2::-1], rtol=1e-8)
