"""`fs.matmul`: SciPy's sparse matrices on either side, remembered while their arrays stay what they were."""

from __future__ import annotations

import gc
import re

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, cg, eigsh

import fastsparse as fs
from fastsparse import scipy_matrices
from fastsparse.scipy_matrices import matrix_of

FORMATS = ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"]


@pytest.fixture
def A():
    rng = np.random.default_rng(3)
    return sp.csr_array(rng.integers(-4, 5, (20, 12)) * (rng.random((20, 12)) < 0.4)).astype(np.float64)


def integers(*shape, dtype=np.float64):
    return np.random.default_rng(1).integers(-9, 10, shape).astype(dtype)


def same(found, expected):
    assert type(found) is np.ndarray
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_on_both_sides(A, form):
    S, dense = A.asformat(form), A.toarray()
    for X in (integers(12), integers(12, 1), integers(12, 7)):
        same(fs.matmul(S, X), dense @ X)
    for X in (integers(20), integers(1, 20), integers(7, 20)):
        same(fs.matmul(X, S), X @ dense)
        same(fs.matmul(S.T, X.T), dense.T @ X.T)


@pytest.mark.parametrize("left", ["bool", "int32", "int64", "float32", "float64", "complex64"])
@pytest.mark.parametrize("right", ["bool", "int8", "int64", "float32", "float64", "complex128"])
def test_types_are_those_of_scipy(A, left, right):
    S, X = A.astype(left), integers(12, 3, dtype=right)
    same(fs.matmul(S, X), S @ X)
    same(fs.matmul(X.T, S.T), X.T @ S.T)


@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_out(A, dtype):
    S, X = A.astype(dtype), integers(12, 3, dtype=dtype)
    out = np.empty((20, 3), dtype)
    assert fs.matmul(S, X, out=out) is out
    np.testing.assert_array_equal(out, S @ X)
    out = np.empty((3, 20), dtype)
    assert fs.matmul(X.T, S.T, out=out) is out
    np.testing.assert_array_equal(out, X.T @ S.T)
    with pytest.raises(ValueError, match="out has shape"):
        fs.matmul(S, X, out=np.empty((20, 4), dtype))
    with pytest.raises(TypeError, match="out"):
        fs.matmul(S, S.T, out=out)


@pytest.mark.parametrize("form", FORMATS)
def test_arrays_that_are_written_to_are_seen(A, form):
    S, X = A.asformat(form), integers(12, 2)
    fs.matmul(S, X)
    if form in ("lil", "dok"):
        S[3, 4] = 77
    else:
        S.data *= 3
    same(fs.matmul(S, X), S.toarray() @ X)
    if form == "csr":
        S.indices[:] = 11 - S.indices
        same(fs.matmul(S, X), S.toarray() @ X)


def remembered(S, X, monkeypatch):
    """How often a product makes a CSR."""
    made = []
    monkeypatch.setattr(scipy_matrices, "csr", lambda *given: made.append(given) or fs.csr(*given))
    fs.matmul(S, X)
    return len(made)


@pytest.mark.parametrize("form", FORMATS[:5])
def test_matrices_are_checked_once(A, monkeypatch, form):
    S, X = A.asformat(form), integers(12, 2)
    assert remembered(S, X, monkeypatch) == 1
    assert remembered(S, X, monkeypatch) == 0
    if form in ("csr", "csc"):  # the same memory
        assert remembered(S.T.T, X, monkeypatch) == 0
        assert remembered(S.T, integers(20), monkeypatch) == 0
    assert remembered(S.copy(), X, monkeypatch) == 1


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_other_values_at_the_same_places_keep_the_plans(index):
    A = sp.csr_array(np.eye(5, 9, 2))
    A.indices, A.indptr = A.indices.astype(index), A.indptr.astype(index)
    X = np.arange(27.0).reshape(9, 3)
    before = matrix_of(A, np.dtype(np.float64))
    A.data[:] = np.arange(1.0, 6.0)
    assert np.array_equal(fs.matmul(A, X), A @ X)
    assert (matrix_of(A, np.dtype(np.float64)).pattern is before.pattern) == (index is np.int32)
    A.indices[0] = 8
    assert np.array_equal(fs.matmul(A, X), A @ X)


def test_other_values_in_an_order_of_their_own():
    """Columns that do not rise, and one that comes twice."""
    A = sp.csr_array((np.ones(4), np.array([3, 0, 1, 1], np.int32), np.array([0, 2, 4], np.int32)), shape=(2, 4))
    for values in ([1.0, 2.0, 3.0, 4.0], [5.0, 7.0, 11.0, 13.0]):
        A.data[:] = values
        assert np.array_equal(fs.matmul(A, np.eye(4)), [[values[1], 0, 0, values[0]], [0, values[2] + values[3], 0, 0]])


def test_what_is_remembered_goes_with_the_matrix():
    scipy_matrices._remembered.clear()
    S = sp.random_array((30, 30), density=0.2, format="csr", random_state=0)
    fs.matmul(S, np.ones(30))
    assert len(scipy_matrices._remembered) == 1
    del S
    gc.collect()
    assert not scipy_matrices._remembered
    kept = [sp.eye_array(5, format="csr") for _ in range(3 * scipy_matrices._MOST)]
    for S in kept:
        fs.matmul(S, np.ones(5))
    assert len(scipy_matrices._remembered) == scipy_matrices._MOST


def with_slack(S):
    """Room behind the last nonzero, as builders leave it."""
    S = S.copy()
    S.indices = np.concatenate([S.indices, np.full(9, 99, S.indices.dtype)])
    S.data = np.concatenate([S.data, np.full(9, np.nan, S.data.dtype)])
    return S


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_room_behind_the_last_nonzero_is_no_nonzero(A, form):
    S, X, W = with_slack(A.asformat(form)), integers(12, 2), fs.csr(integers(8, 12))
    assert np.array_equal(fs.csr(S).toarray(), A.toarray())
    same(fs.matmul(S, X), A @ X)
    same(fs.linear(S, W), A @ W.toarray().T)
    same(S @ W.T, A @ W.toarray().T)


def test_fields_that_contradict_each_other(A):
    S = A.copy()
    S.indices[0] = 12
    with pytest.raises(ValueError, match=r"A is not a valid sparse matrix: indices\[0\] is 12"):
        fs.matmul(S, integers(12))
    S.indices[0] = 0  # nothing wrong was remembered
    same(fs.matmul(S, integers(12)), S.toarray() @ integers(12))


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (sp.eye_array(3), np.ones(4), "X has shape (4,), expected (3, N) or (3,) to match A of shape (3, 3)"),
        (np.ones((2, 4)), sp.eye_array(3), "A has shape (2, 4), expected (N, 3) or (3,) to match X of shape (3, 3)"),
        (sp.eye_array(3), np.ones((3, 2, 2)), "X has shape (3, 2, 2), expected (3, N) or (3,)"),
        (fs.csr(np.eye(3)), sp.eye_array(4), "X has shape (4, 4), expected (3, N) to match A of shape (3, 3)"),
        (fs.csr(np.eye(3)), np.ones(3, "f"), "X has dtype float32, expected float64 to match A"),
        (np.ones(3), np.ones(3), "A is ndarray and X is ndarray, expected one of them to be sparse"),
        (sp.eye_array(3), np.array(["a", "b", "c"]), "X has dtype <U1, expected numbers"),
    ],
)  # fmt: skip
def test_what_does_not_fit(left, right, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        fs.matmul(left, right)


def graph(size, edges):
    """The Laplacian of a random graph, and 1 on its diagonal: symmetric and positive definite."""
    rng = np.random.default_rng(0)
    ends = rng.integers(0, size, (2, edges))
    links = sp.coo_array((np.ones(edges), ends), (size, size)).tocsr()
    links = links + links.T
    return (sp.diags_array(np.asarray(links.sum(axis=0)) + 1) - links).tocsr()


def test_as_a_linear_operator_of_scipy():
    L = graph(400, 3000)
    operator = LinearOperator(L.shape, lambda x: fs.matmul(L, x), matmat=lambda X: fs.matmul(L, X), dtype=L.dtype)
    largest = eigsh(L, 3, return_eigenvectors=False)
    np.testing.assert_allclose(eigsh(operator, 3, return_eigenvectors=False), largest, rtol=1e-9)
    b = np.random.default_rng(2).normal(size=400)
    x, failed = cg(operator, b, rtol=1e-10)
    assert not failed
    np.testing.assert_allclose(L @ x, b, atol=1e-6)
    v = b / np.linalg.norm(b)
    for _ in range(300):  # power iteration
        v = operator @ v
        v /= np.linalg.norm(v)
    assert v @ (L @ v) == pytest.approx(largest.max(), rel=1e-3)
