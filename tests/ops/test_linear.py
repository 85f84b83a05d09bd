"""Linear layers on dense samples and their gradients: contracts R1 to R6. Forward is tested further in test_spmm."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse.ops.target import tuned
from fastsparse.runtime.threading_layer import available_workers
from fastsparse_kernels import reference as ref
from tests.checking import (
    DTYPES,
    PATTERNS,
    SETTINGS,
    Array,
    assert_product,
    assert_same_specials,
    assert_within,
    choose,
    lanes,
    matrix,
    numbers,
    parts,
    same_bits,
    with_values,
)

both_types = pytest.mark.parametrize("dtype", DTYPES)


def drawn(
    rng: np.random.Generator, samples: int, shape: tuple[int, int], dtype: Any, pattern: str = "scattered",
    integers: bool = False,
) -> tuple[Array, fs.CSR, Array]:  # fmt: skip
    """x, W and a gradient."""
    W = matrix(rng, PATTERNS[pattern](rng, shape), dtype, integers)
    return numbers(rng, (samples, shape[1]), dtype, integers), W, numbers(rng, (samples, shape[0]), dtype, integers)


def assert_gradients(found: Any, grad: Array, x: Array, W: fs.CSR) -> None:
    """All three gradients within R1's bound."""
    indptr, indices, values, shape = parts(W)
    exact = ref.linear_backward(grad, x, indptr, indices, values, shape)
    total = ref.linear_backward(abs(grad), abs(x), indptr, indices, abs(values), shape)
    samples = math.prod(x.shape[:-1])
    per_input = np.bincount(indices, minlength=shape[1])
    for name, actual, wanted, k, bound in zip(
        ("x", "values", "bias"), found, exact, (per_input, samples, samples), total, strict=True
    ):
        assert actual.dtype == W.dtype
        assert_within(actual, wanted, k, bound, label=name)


# ------------------------------------------------------------------------------------------------------------- R1


@pytest.mark.R1
@both_types
@pytest.mark.parametrize("pattern", PATTERNS)
def test_error_bound_on_every_pattern(rng, pattern, dtype):
    for samples in (1, 2, lanes(dtype), 45):
        x, W, grad = drawn(rng, samples, (23, 50), dtype, pattern)
        assert_gradients(fs.linear_backward(grad, x, W), grad, x, W)


@pytest.mark.R1
@given(
    st.tuples(st.integers(0, 70), st.integers(0, 40), st.integers(0, 60)),
    st.sampled_from(list(PATTERNS)),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32),
)
def test_error_bound_on_drawn_shapes(shape, pattern, dtype, seed):
    samples, rows, columns = shape
    x, W, grad = drawn(np.random.default_rng(seed), samples, (rows, columns), dtype, pattern)
    assert_gradients(fs.linear_backward(grad, x, W), grad, x, W)
    assert_product(fs.linear(x, W).T, W, x.T)


@pytest.mark.R1
@both_types
def test_many_samples(rng, dtype):
    """Several blocks of positions, and several parts of a batch that take different plans."""
    x, W, grad = drawn(rng, 40 * lanes(dtype) + 5, (11, 300), dtype)
    assert_gradients(fs.linear_backward(grad, x, W), grad, x, W)
    with tuned(chunk_share=0):
        assert_gradients(fs.linear_backward(grad, x, W), grad, x, W)


@pytest.mark.R1
@both_types
def test_samples_in_any_number_of_axes(rng, dtype):
    x, W, grad = drawn(rng, 24, (9, 14), dtype)
    bias, flat = numbers(rng, 9, dtype), fs.linear_backward(grad, x, W)
    expected = fs.linear(x, W, bias)
    for axes in ((24,), (2, 12), (2, 3, 4), (1, 24, 1), (2, 2, 3, 2)):
        y = fs.linear(x.reshape(*axes, 14), W, bias)
        assert same_bits(y, expected.reshape(*axes, 9))
        found = fs.linear_backward(grad.reshape(*axes, 9), x.reshape(*axes, 14), W)
        assert same_bits(found[0], flat[0].reshape(*axes, 14))
        assert same_bits(found[1], flat[1])
        assert same_bits(found[2], flat[2])
    assert_product(fs.linear(x[0], W, bias), W, x[0], bias)
    assert_gradients(fs.linear_backward(grad[0], x[0], W), grad[0], x[0], W)


# ------------------------------------------------------------------------------------------------------------- R2


@pytest.mark.R2
@both_types
def test_small_integers_are_exact(rng, dtype):
    vector = lanes(dtype)
    for samples in (0, 1, 2, vector - 1, vector, vector + 1, 4 * vector, 32 * vector + 1, 33 * vector):
        for shape in ((0, 5), (5, 0), (1, 1), (7, 9), (8, 8), (9, 17)):
            x, W, grad = drawn(rng, samples, shape, dtype, "lower triangle", integers=True)
            expected = ref.linear_backward(grad, x, *parts(W))
            for actual, wanted in zip(fs.linear_backward(grad, x, W), expected, strict=True):
                assert np.array_equal(actual, wanted)


# ------------------------------------------------------------------------------------------------------------- R3


@pytest.mark.R3
@both_types
@pytest.mark.parametrize("setting", SETTINGS)
def test_bits_of_the_input_gradient_are_those_of_a_product(rng, setting, dtype):
    x, W, grad = drawn(rng, 3 * lanes(dtype) + 1, (60, 35), dtype)
    expected = fs.spmm(W.T, grad.T).T
    for threads in (1, 2, 3):
        with choose(setting), fs.threads(threads):
            dx, dw, db = fs.linear_backward(grad, x, W)
        assert same_bits(dx, np.ascontiguousarray(expected))
        assert_gradients((dx, dw, db), grad, x, W)


@pytest.mark.R3
@both_types
def test_bits_of_a_sample_do_not_depend_on_its_batch(rng, dtype):
    x, W, grad = drawn(rng, 3 * lanes(dtype), (20, 35), dtype)
    expected = fs.linear_backward(grad, x, W)[0]
    for part in (slice(1), slice(4, 6), slice(1, lanes(dtype) + 2)):
        assert same_bits(fs.linear_backward(grad[part], x[part], W)[0], expected[part])


@pytest.mark.R3
@both_types
@tuned(parallel_flops=0)
def test_bits_of_all_gradients_do_not_depend_on_threads(rng, parallel_regions, dtype):
    x, W, grad = drawn(rng, 50, (64, 40), dtype)
    with fs.threads(1):
        expected = fs.linear_backward(grad, x, W)
    for repeat in range(200):
        with fs.threads(2 + repeat % 7):
            found = fs.linear_backward(grad, x, W)
            assert all(itertools.starmap(same_bits, zip(found, expected, strict=True)))
            assert parallel_regions() > repeat or available_workers(2) == 1


@pytest.mark.R3
@both_types
def test_without_input_gradient(rng, dtype):
    x, W, grad = drawn(rng, 20, (12, 16), dtype)
    expected = fs.linear_backward(grad, x, W)
    found = fs.linear_backward(grad, x, W, need_input=False)
    assert found[0] is None
    assert same_bits(found[1], expected[1])
    assert same_bits(found[2], expected[2])


# ------------------------------------------------------------------------------------------------------------- R4


@pytest.mark.R4
@both_types
@pytest.mark.parametrize(("samples", "rows", "columns"), [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0), (1, 0, 1)])
def test_sizes_of_zero(rng, samples, rows, columns, dtype):
    x, W, grad = drawn(rng, samples, (rows, columns), dtype)
    bias = numbers(rng, rows, dtype)
    assert_gradients(fs.linear_backward(grad, x, W), grad, x, W)
    assert np.array_equal(fs.linear(x, W, bias), np.repeat(bias[None], samples, 0))
    more = fs.linear(x.reshape(1, samples, 1, columns), W, bias, activation="relu")
    assert np.array_equal(more, np.repeat(bias[None], samples, 0).clip(0).reshape(1, samples, 1, rows))
    dx, dw, _ = fs.linear_backward(grad.reshape(1, samples, 1, rows), x.reshape(1, samples, 1, columns), W)
    assert dx.shape == (1, samples, 1, columns)
    assert not dx.any()
    assert dw.shape == (W.nnz,)


@pytest.mark.R4
@tuned(chunk_share=0)
def test_parts_of_a_batch_larger_than_the_workspace(rng, monkeypatch):
    monkeypatch.setattr("fastsparse.runtime.buffers.KEEP_BYTES", 1000)
    x, W, grad = drawn(rng, 300, (24, 40), "float32")
    assert_gradients(fs.linear_backward(grad, x, W), grad, x, W)
    assert_product(fs.linear(x, W).T, W, x.T)
    assert_product(fs.spmm(W, x.T), W, x.T)


@pytest.mark.R4
@both_types
@pytest.mark.parametrize("share", [0, 1])
def test_batches_of_as_many_groups_share_what_is_prepared(rng, share, dtype):
    vector = lanes(dtype)
    x, W, grad = drawn(rng, 3 * vector, (24, 40), dtype)
    with tuned(chunk_share=share):
        for most in (vector // 2, vector, 2 * vector, 3 * vector):
            known = None
            for samples in (most, most - 1, most // 2 + 2 if most <= vector else most - vector + 1, most):
                assert_product(fs.linear(x[:samples], W).T, W, x[:samples].T)
                assert_gradients(fs.linear_backward(grad[:samples], x[:samples], W), grad[:samples], x[:samples], W)
                found = [set(owner._entries) for owner in (W, W.pattern, W.pattern.transpose()[0])]
                assert known is None or found == known
                known = found


# ------------------------------------------------------------------------------------------------------------- R5


@pytest.mark.R5
@both_types
@pytest.mark.parametrize("samples", [1, 2, 21])
def test_nan_and_inf_travel(rng, samples, dtype):
    x, W, grad = drawn(rng, samples, (30, 40), dtype)
    values = W.data.copy()
    values[[2, 60, 100]] = np.nan, np.inf, 0
    W = W.with_data(values)
    x[0, W.indices[100]], x[samples - 1, 3] = np.inf, np.nan
    grad[0, 5], grad[samples - 1, 9] = -np.inf, np.nan
    for actual, wanted in zip(fs.linear_backward(grad, x, W), ref.linear_backward(grad, x, *parts(W)), strict=True):
        assert not np.isnan(wanted).all()
        assert_same_specials(actual, wanted)


# ------------------------------------------------------------------------------------------------------------- R6


@pytest.mark.R6
@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_are_finite_differences(rng, pattern):
    """The loss is linear in each of x, values and bias, so that a step of 1 has no truncation error."""
    x, W, grad = drawn(rng, 5, (6, 9), "float64", pattern)
    x, W, grad = (
        rng.standard_normal(x.shape),
        with_values(W, rng.standard_normal(W.nnz)),
        rng.standard_normal(grad.shape),
    )
    bias = rng.standard_normal(6)
    dx, dw, db = fs.linear_backward(grad, x, W)

    def loss(x: Array, values: Array, bias: Array) -> float:
        return float((grad * fs.linear(x, W.with_data(values), bias)).sum())

    for i, (start, found) in enumerate(((x, dx), (W.data, dw), (bias, db))):
        for index in range(start.size):
            step = np.zeros(start.shape)
            step.flat[index] = 1
            up, down = [x, W.data, bias], [x, W.data, bias]
            up[i], down[i] = start + step, start - step
            assert abs((loss(*up) - loss(*down)) / 2 - found.flat[index]) < 1e-12 * (1 + abs(grad).sum())


@pytest.mark.R6
@both_types
@pytest.mark.parametrize("samples", [1, 2, 40])
def test_adjoint_identity(rng, samples, dtype):
    """<W x, g> = <x, W^T g> = <w, dW>, exactly for small integers."""
    x, W, grad = drawn(rng, samples, (33, 47), dtype, integers=True)
    dx, dw, _ = fs.linear_backward(grad, x, W)
    product = (fs.linear(x, W).astype(np.float64) * grad).sum()
    assert product == (x * dx.astype(np.float64)).sum() == (W.data * dw.astype(np.float64)).sum()
