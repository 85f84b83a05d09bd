"""Sparse coding against scikit-learn, against thresholding in orthogonal bases, and by its optimality conditions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import fastsparse as fs
from fastsparse.representations import DCT, Dictionary, dictionary

Array = Any


def _atoms(seed: int = 0, atoms: int = 20, features: int = 8) -> Array:
    drawn = np.random.default_rng(seed).standard_normal((atoms, features))
    return drawn / np.linalg.norm(drawn, axis=1)[:, None]


def _samples(seed: int = 1, count: int = 10, features: int = 8) -> Array:
    return np.random.default_rng(seed).standard_normal((count, features))


def test_matching_pursuit_is_scikit_learns() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    atoms, x = _atoms(), _samples()
    for count in (1, 4, 8):
        found = Dictionary(atoms).encode(x, keep=count).matrix.toarray()
        np.testing.assert_allclose(found, linear_model.orthogonal_mp(atoms.T, x.T, n_nonzero_coefs=count).T, atol=1e-9)
    found = Dictionary(atoms).encode(x, tolerance=1.0)
    np.testing.assert_allclose(found.matrix.toarray(), linear_model.orthogonal_mp(atoms.T, x.T, tol=1.0).T, atol=1e-9)
    assert 0.3 < found.squared_error.max() <= 1


def test_the_lasso_is_scikit_learns() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    atoms, x = _atoms(), _samples()
    wanted = decomposition.sparse_encode(x, atoms, algorithm="lasso_lars", alpha=0.3)
    found = Dictionary(atoms).encode(x, alpha=0.3, gap=1e-9, iterations=100_000)
    np.testing.assert_allclose(found.matrix.toarray(), wanted, atol=1e-4)
    slow = Dictionary(atoms).encode(x, alpha=0.3, gap=1e-4, iterations=100_000, accelerated=False).matrix.toarray()
    limit = 0.5e-4 * (x**2).sum(axis=1)
    assert (_objective(x, slow, atoms, 0.3) <= _objective(x, wanted, atoms, 0.3) + limit).all()


def _objective(x: Array, codes: Array, atoms: Array, alpha: float, known: Any = True) -> Array:
    rest = np.where(known, x - codes @ atoms, 0)
    return 0.5 * (rest**2).sum(axis=1) + alpha * np.abs(codes).sum(axis=1)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.floats(0.05, 1.0), st.booleans(), st.booleans(), st.sampled_from("fd"))
def test_a_lasso_is_within_its_gap_of_the_best(
    seed: int, alpha: float, hidden: bool, stored_sparse: bool, dtype: str
) -> None:
    atoms, x = _atoms(seed).astype(dtype), _samples(seed + 1).astype(dtype)
    atoms = np.where(np.abs(atoms) > 0.1, atoms, 0)
    known = np.random.default_rng(seed).random(x.shape) < (0.7 if hidden else 1.0)
    given_atoms: Any = sparse.csr_array(atoms) if stored_sparse else atoms
    found = Dictionary(given_atoms).encode(x, alpha=alpha, known=known if hidden else None, gap=1e-3, iterations=20_000)
    best = Dictionary(atoms.astype("d")).encode(x.astype("d"), alpha=alpha, known=known, gap=1e-7, iterations=100_000)
    values = [_objective(x, codes.matrix.toarray(), atoms, alpha, known) for codes in (found, best)]
    assert found.matrix.dtype == dtype
    assert (values[0] <= values[1] + (1e-3 + 1e-6) * 0.5 * (np.where(known, x, 0) ** 2).sum(axis=1)).all()


def test_unknown_features_are_not_read() -> None:
    x, known = _samples(), np.random.default_rng(0).random((10, 8)) < 0.6
    wanted = Dictionary(_atoms()).encode(x, alpha=0.1, known=known)
    found = Dictionary(_atoms()).encode(np.where(known, x, 1e6), alpha=0.1, known=known)
    np.testing.assert_array_equal(found.matrix.toarray(), wanted.matrix.toarray())
    error = (np.where(known, x - Dictionary(_atoms()).decode(found), 0) ** 2).sum(axis=1)
    np.testing.assert_allclose(found.squared_error, error, rtol=1e-9)


@given(st.integers(0, 2**32), st.integers(1, 16), st.sampled_from("fd"))
def test_in_an_orthogonal_basis_coding_is_thresholding(seed: int, count: int, dtype: str) -> None:
    transform = DCT(16)
    basis = Dictionary(transform.synthesize(np.eye(16, dtype=dtype)))
    x = _samples(seed, 5, 16).astype(dtype)
    atol = 1e-5 if dtype == "f" else 1e-11
    pairs = [
        (basis.encode(x, keep=count), transform.encode(x, keep=count)),
        (basis.encode(x, alpha=0.5), transform.encode(x, threshold=0.5, soft=True)),
    ]
    for found, wanted in pairs:
        np.testing.assert_allclose(found.matrix.toarray(), wanted.matrix.toarray(), atol=atol)
        np.testing.assert_allclose(found.squared_error, wanted.squared_error, atol=10 * atol)
        np.testing.assert_allclose(basis.decode(found), transform.decode(wanted), atol=10 * atol)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 8), st.booleans(), st.sampled_from("fd"))
def test_matching_pursuit_projects(seed: int, count: int, stored_sparse: bool, dtype: str) -> None:
    """The residual is orthogonal to the atoms that were chosen, and the error told is that of the reconstruction."""
    atoms = _atoms(seed, 20).astype(dtype) * np.linspace(0.5, 2, 20, dtype=dtype)[:, None]
    x, coder = _samples(seed + 1).astype(dtype), Dictionary(sparse.csr_array(atoms) if stored_sparse else atoms)
    codes = coder.encode(x, keep=count)
    dense = codes.matrix.toarray()
    assert np.count_nonzero(dense, axis=1).max() <= count
    rest = x.astype("d") - coder.decode(codes)
    limit = 1e-3 if dtype == "f" else 1e-7
    assert np.abs(np.where(dense != 0, rest @ atoms.T, 0)).max() < limit
    np.testing.assert_allclose(codes.squared_error, (rest**2).sum(axis=1), rtol=1e-5, atol=1e-9)


def test_exact_combinations_and_twin_atoms() -> None:
    atoms = np.vstack([_atoms(atoms=6), _atoms(atoms=6)])  # every atom twice
    truth = np.zeros((3, 12))
    truth[[0, 0, 1], [1, 4, 2]] = 3, -2, 5
    codes = Dictionary(atoms).encode(truth @ atoms, keep=8)
    assert np.diff(codes.matrix.indptr).tolist() == [2, 1, 0], "stops where nothing is left"
    assert codes.squared_error.max() < 1e-20
    assert Dictionary(atoms).encode(np.zeros((2, 8)), alpha=1.0).matrix.nnz == 0
    assert Dictionary(atoms).encode(np.zeros((0, 8)), keep=1).matrix.shape == (0, 12)


@pytest.mark.parametrize("chosen", [{"keep": 3}, {"alpha": 0.2}], ids=["omp", "fista"])
def test_blocks_of_samples_do_not_change_codes(chosen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = _samples()
    whole = Dictionary(_atoms()).encode(x, **chosen)
    monkeypatch.setattr(dictionary, "_BLOCK", 20 * 4)
    parts = Dictionary(_atoms()).encode(x, **chosen)
    np.testing.assert_allclose(parts.matrix.toarray(), whole.matrix.toarray(), atol=1e-12)


def test_learned_atoms_fit_better_than_random_ones() -> None:
    pytest.importorskip("sklearn")
    truth, rng = _atoms(atoms=16), np.random.default_rng(0)
    codes = rng.standard_normal((600, 16)) * (rng.random((600, 16)) < 0.15)
    x = (codes @ truth).astype("f")
    learned = Dictionary.learn(x, 16, alpha=0.1, epochs=20, rng=0)
    assert learned.atoms.shape == (16, 8)
    assert learned.atoms.dtype == np.float32
    errors = [coder.encode(x, keep=2).squared_error.sum() for coder in (learned, Dictionary(_atoms(5, 16).astype("f")))]
    assert errors[0] < 0.4 * errors[1]
    again = Dictionary.learn(x, 16, alpha=0.1, epochs=20, rng=0)
    np.testing.assert_array_equal(learned.atoms, again.atoms)


def test_a_gap_that_is_not_reached_is_told() -> None:
    with pytest.warns(RuntimeWarning, match=r"duality gap is .* after 2 iterations, expected at most 1\.0e-09"):
        Dictionary(_atoms()).encode(_samples(), alpha=0.01, iterations=2, gap=1e-9)


def test_atoms_may_be_any_matrix_and_are_not_shared() -> None:
    atoms = _atoms()
    coder = Dictionary(atoms)
    atoms[:] = 0
    x = _samples()
    wanted = coder.encode(x, keep=3).matrix.toarray()
    for form in (fs.csr(_atoms()), sparse.csc_array(_atoms()), _atoms().tolist()):
        np.testing.assert_allclose(Dictionary(form).encode(x, keep=3).matrix.toarray(), wanted, atol=1e-10)
    assert isinstance(Dictionary(fs.csr(_atoms())).atoms, fs.CSR)


WRONG: list[tuple[Any, str]] = [
    (lambda: Dictionary(np.ones(3)), r"atoms has shape \(3,\), expected \(atoms, features\)"),
    (lambda: Dictionary(np.ones((0, 3))), r"atoms has shape \(0, 3\)"),
    (lambda: Dictionary([[1.0, 0.0], [0.0, 0.0]]), "atoms has a row of zeros"),
    (lambda: Dictionary([[1.0, np.nan]]), "atoms holds NaN"),
    (lambda: Dictionary(sparse.csr_array([[1.0, np.nan]])), "atoms has a row of zeros, or numbers whose squares"),
    (lambda: Dictionary(_atoms()).encode(_samples()), "keep is None, tolerance is None and alpha is None"),
    (lambda: Dictionary(_atoms()).encode(_samples(), keep=1, alpha=1.0), "expected alpha alone, or one or both"),
    (lambda: Dictionary(_atoms()).encode(_samples(), keep=21), "keep is 21, expected an integer from 1 to 20"),
    (lambda: Dictionary(_atoms()).encode(_samples(), alpha=0.0), r"alpha is 0\.0, expected a number above 0"),
    (lambda: Dictionary(_atoms()).encode(_samples(), alpha=np.nan), "alpha is nan"),
    (lambda: Dictionary(_atoms()).encode(_samples(), tolerance=-1.0), r"tolerance is -1\.0"),
    (lambda: Dictionary(_atoms()).encode(_samples(), alpha=1.0, iterations=-1), "iterations is -1"),
    (lambda: Dictionary(_atoms()).encode(_samples(features=5), keep=1), r"x has shape \(10, 5\)"),
    (lambda: Dictionary(_atoms()).encode(_samples(), keep=1, known=np.ones((10, 8), bool)), "expected alpha"),
    (lambda: Dictionary(_atoms()).encode(_samples(), alpha=1.0, known=np.ones(8, bool)), r"expected bool \(10, 8\)"),
    (lambda: Dictionary(_atoms()).encode(_samples(), alpha=1.0, known=np.ones((10, 8))), "known has dtype float64"),
    (lambda: Dictionary(_atoms()).decode(np.ones((2, 8))), r"codes has shape \(2, 8\), expected \(samples, 20\)"),
    (lambda: Dictionary.learn(np.ones(3), 2), r"x has shape \(3,\), expected \(samples, features\)"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_wrong_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_residuals_of_nothing_overflow_nothing() -> None:
    with np.errstate(all="raise"):
        for x in (np.zeros((2, 2)), np.full((2, 2), 1e-300)):
            codes = Dictionary(np.eye(2)).encode(x, alpha=100.0)
            assert codes.matrix.nnz == 0
            np.testing.assert_array_equal(codes.squared_error, np.zeros(2))
