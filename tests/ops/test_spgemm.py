"""Sparse samples through sparse weights: contracts R1 to R5. Forward on full samples is tested in test_spmm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import fastsparse as fs
from fastsparse.ops.target import tuned
from fastsparse_kernels import reference as ref
from tests.checking import (
    ACTIVATIONS,
    DTYPES,
    PATTERNS,
    Array,
    assert_same_specials,
    assert_within,
    matrix,
    numbers,
    parts,
    same_bits,
)

both_types = pytest.mark.parametrize("dtype", DTYPES)


def drawn(
    rng: np.random.Generator, samples: int, shape: tuple[int, int], dtype: Any, pattern: str = "scattered",
    integers: bool = False,
) -> tuple[fs.CSR, fs.CSR, Array, Array]:  # fmt: skip
    """x as CSR, W, bias and a gradient."""
    x = matrix(rng, PATTERNS[pattern](rng, (samples, shape[1])), dtype, integers)
    W = matrix(rng, PATTERNS["scattered"](rng, shape), dtype, integers)
    return x, W, numbers(rng, shape[0], dtype, integers), numbers(rng, (samples, shape[0]), dtype, integers)


def counts(a: fs.CSR, b: fs.CSR) -> Array:
    """Matching nonzeros of the rows of a and the rows of b."""
    return (a.toarray() != 0).astype(int) @ (b.toarray() != 0).T.astype(int)


def assert_forward(y: Array, x: fs.CSR, W: fs.CSR, bias: Array | None, activation: str | None = None) -> None:
    """Within R1's bound; absent elements multiply nothing."""
    indptr, indices, values, shape = parts(W)
    exact = ref.linear(x.toarray(), indptr, indices, values, shape, bias)
    total = ref.linear(abs(x.toarray()), indptr, indices, abs(values), shape, None if bias is None else abs(bias))
    assert_within(y, exact, counts(x, W), total, activation)


def assert_gradients(found: Any, grad: Array, x: fs.CSR, W: fs.CSR) -> None:
    indptr, indices, values, shape = parts(W)
    exact = ref.linear_backward(grad, x.toarray(), indptr, indices, values, shape)
    total = ref.linear_backward(abs(grad), abs(x.toarray()), indptr, indices, abs(values), shape)
    samples = x.shape[0]
    products = np.bincount(x.indices, minlength=x.shape[1])[indices]
    per_input = np.bincount(indices, minlength=shape[1])
    for name, actual, wanted, k, bound in zip(
        ("x", "values", "bias"), found, exact, (per_input, products, samples), total, strict=True
    ):
        assert_within(actual, wanted, k, bound, label=name)


@pytest.mark.R1
@both_types
@pytest.mark.parametrize("pattern", PATTERNS)
def test_error_bound_on_every_pattern(rng, pattern, dtype):
    for samples in (1, 2, 33):
        x, W, bias, grad = drawn(rng, samples, (27, 40), dtype, pattern)
        s = x.to_scipy()
        assert_forward(fs.linear(s, W, bias), x, W, bias)
        assert_gradients(fs.linear_backward(grad, s, W), grad, x, W)


@pytest.mark.R1
@both_types
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_error_bound_with_every_activation(rng, activation, dtype):
    x, W, bias, _ = drawn(rng, 9, (35, 40), dtype)
    x, W = x.with_data(rng.standard_normal(x.nnz)), W.with_data(rng.standard_normal(W.nnz))
    x, W = fs.csr(x, dtype), fs.csr(W, dtype)
    for b in (bias, None):
        assert_forward(fs.linear(x.to_scipy(), W, b, activation=activation), x, W, b, activation)


@pytest.mark.R1
@given(
    st.tuples(st.integers(0, 50), st.integers(0, 40), st.integers(0, 60)),
    st.sampled_from(list(PATTERNS)),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32),
)
def test_error_bound_on_drawn_shapes(shape, pattern, dtype, seed):
    samples, rows, columns = shape
    x, W, bias, grad = drawn(np.random.default_rng(seed), samples, (rows, columns), dtype, pattern)
    assert_forward(fs.linear(x.to_scipy(), W, bias), x, W, bias)
    assert_gradients(fs.linear_backward(grad, x.to_scipy(), W), grad, x, W)


@pytest.mark.R2
@both_types
def test_small_integers_are_exact(rng, dtype):
    for samples in (0, 1, 15, 16, 17, 200):
        for rows, columns in ((0, 4), (4, 0), (1, 1), (15, 20), (16, 20), (17, 20), (33, 300)):
            x, W, bias, grad = drawn(rng, samples, (rows, columns), dtype, integers=True)
            expected = ref.linear(x.toarray(), *parts(W), bias)
            assert np.array_equal(fs.linear(x.to_scipy(), W, bias, activation="relu"), expected.clip(0))
            gradients = ref.linear_backward(grad, x.toarray(), *parts(W))
            for actual, wanted in zip(fs.linear_backward(grad, x.to_scipy(), W), gradients, strict=True):
                assert np.array_equal(actual, wanted)


@pytest.mark.R3
@both_types
@tuned(parallel_flops=0)
def test_bits_do_not_depend_on_threads_or_batch(rng, dtype):
    x, W, bias, grad = drawn(rng, 70, (27, 40), dtype)
    s = x.to_scipy()
    with fs.threads(1):
        expected = fs.linear(s, W, bias), fs.linear_backward(grad, s, W)[1]
    for repeat in range(200):
        with fs.threads(2 + repeat % 7):
            assert same_bits(fs.linear(s, W, bias), expected[0])
            assert same_bits(fs.linear_backward(grad, s, W)[1], expected[1])
    for part in (slice(0, 1), slice(5, 30)):
        assert same_bits(fs.linear(s[part], W, bias), expected[0][part])


@pytest.mark.R3
@both_types
def test_bits_are_those_of_dense_samples(rng, dtype):
    """A product with an absent element adds nothing to a dense sample's sum either."""
    x, W, bias, _ = drawn(rng, 20, (27, 40), dtype)
    assert same_bits(fs.linear(x.to_scipy(), W, bias), fs.linear(x.toarray(), W, bias))


@pytest.mark.R4
@both_types
def test_every_element_is_written(rng, dtype):
    for pattern in PATTERNS:
        x, W, bias, _ = drawn(rng, 21, (19, 40), dtype, pattern)
        out = np.full((21, 19), np.nan, dtype)
        assert fs.linear(x.to_scipy(), W, bias, out=out) is out
        assert_forward(out, x, W, bias)
        memory = np.full(2048 + 21 * 19, 7, dtype)
        fs.linear(x.to_scipy(), W, bias, out=memory[1024:-1024].reshape(21, 19))
        assert (memory[:1024] == 7).all()
        assert (memory[-1024:] == 7).all()


@pytest.mark.R5
@both_types
def test_nan_and_inf_travel(rng, dtype):
    """Absent elements of x and W touch nothing; stored zeros do."""
    x, W, bias, _ = drawn(rng, 20, (27, 40), dtype)
    x_values, w_values = x.data.copy(), W.data.copy()
    x_values[[3, 40, 80]], w_values[[5, 60, 90]] = (np.nan, np.inf, 0), (np.inf, np.nan, 0)
    x, W = x.with_data(x_values), W.with_data(w_values)
    expected = np.zeros((20, 27))
    with np.errstate(invalid="ignore"):
        for sample, row in np.ndindex(20, 27):
            mine = slice(x.indptr[sample], x.indptr[sample + 1])
            other = slice(W.indptr[row], W.indptr[row + 1])
            _, i, j = np.intersect1d(x.indices[mine], W.indices[other], return_indices=True)
            expected[sample, row] = (x.data[mine][i] * W.data[other][j]).sum() + bias[row]
    assert 0 < np.isnan(expected).sum() < 200
    assert_same_specials(fs.linear(x.to_scipy(), W, bias), expected)
    assert_same_specials(fs.linear(x.to_scipy(), W, bias, activation="relu"), expected.clip(0))


@pytest.mark.parametrize("format_", ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"])
@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csr_matrix])
def test_every_format(rng, format_, kind):
    x, W, bias, grad = drawn(rng, 8, (6, 12), "float32", integers=True)
    given_ = kind(x.to_scipy()).asformat(format_)
    before = given_.toarray()
    assert np.array_equal(fs.linear(given_, W, bias), ref.linear(x.toarray(), *parts(W), bias))
    expected = ref.linear_backward(grad, x.toarray(), *parts(W))
    for actual, wanted in zip(fs.linear_backward(grad, given_, W), expected, strict=True):
        assert np.array_equal(actual, wanted)
    assert given_.format == format_
    assert np.array_equal(given_.toarray(), before)


def test_duplicates_and_unsorted_columns(rng):
    """They mean their sum, and stay as they are in the matrix given."""
    W = fs.csr(np.arange(12.0).reshape(3, 4))
    indptr, indices, data = np.array([0, 4, 6]), np.array([3, 1, 3, 0, 2, 2]), np.array([1.0, 2, 4, 8, 16, 32])
    x = sparse.csr_array((data, indices, indptr), shape=(2, 4))
    expected = np.array([[8.0, 2, 0, 5], [0, 0, 48, 0]])
    assert np.array_equal(fs.linear(x, W), expected @ W.toarray().T)
    grad = np.array([[1.0, 2, 3], [4, 5, 6]])
    _, values, _ = fs.linear_backward(grad, x, W)
    assert np.array_equal(values, (grad.T @ expected)[W.toarray() != 0])
    assert x.indices.tolist() == [3, 1, 3, 0, 2, 2]
    assert x.data.tolist() == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("dtype", ["float32", "int8", "int64", "uint16", "bool"])
def test_types_of_values(rng, dtype):
    x = sparse.csr_array((rng.random((5, 7)) < 0.4).astype(dtype))
    W = matrix(rng, PATTERNS["scattered"](rng, (6, 7)), "float32", integers=True)
    assert np.array_equal(fs.linear(x, W), x.toarray().astype(float) @ W.toarray().T.astype(float))


def test_matrix_operators_take_sparse_matrices(rng):
    x, W, _, _ = drawn(rng, 8, (6, 12), "float64", integers=True)
    expected = x.toarray() @ W.toarray().T
    assert np.array_equal(x.to_scipy() @ W.T, expected)
    assert np.array_equal(W @ x.to_scipy().T, expected.T)
    assert np.array_equal(W @ x.T, expected.T)
