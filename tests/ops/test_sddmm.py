"""SDDMM: contracts R1 to R5."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse.ops.target import tuned
from fastsparse_kernels import reference as ref
from tests.checking import DTYPES, PATTERNS, assert_same_specials, assert_within, lanes, matrix, numbers, same_bits

both_types = pytest.mark.parametrize("dtype", DTYPES)


def assert_sampled(found: fs.CSR, pattern: fs.Pattern, A: np.ndarray, B: np.ndarray) -> None:
    """Within R1's bound, on the same pattern."""
    assert found.pattern is pattern
    exact = ref.sddmm(pattern.indptr, pattern.indices, A, B)
    total = ref.sddmm(pattern.indptr, pattern.indices, abs(A), abs(B))
    assert_within(found.data, exact, A.shape[1], total)


@pytest.mark.R1
@both_types
@pytest.mark.parametrize("name", PATTERNS)
def test_error_bound_on_every_pattern(rng, name, dtype):
    pattern = matrix(rng, PATTERNS[name](rng, (19, 45)), dtype).pattern
    for inner in (1, 2, lanes(dtype), 3 * lanes(dtype) + 1):
        A, B = numbers(rng, (19, inner), dtype), numbers(rng, (inner, 45), dtype)
        assert_sampled(fs.sddmm(pattern, A, B), pattern, A, B)


@pytest.mark.R1
@given(
    st.tuples(st.integers(0, 30), st.integers(0, 40), st.integers(0, 70)),
    st.sampled_from(list(PATTERNS)),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32),
)
def test_error_bound_on_drawn_shapes(shape, name, dtype, seed):
    rows, columns, inner = shape
    rng = np.random.default_rng(seed)
    pattern = matrix(rng, PATTERNS[name](rng, (rows, columns)), dtype).pattern
    A, B = numbers(rng, (rows, inner), dtype), numbers(rng, (inner, columns), dtype)
    assert_sampled(fs.sddmm(pattern, A, B), pattern, A, B)


@pytest.mark.R2
@pytest.mark.R4
@both_types
def test_small_integers_are_exact(rng, dtype):
    """Rows of 0 to 20 nonzeros, so that every remainder of the group of eight occurs; one and several blocks."""
    mask = np.tri(21, 20, -1, dtype=bool)
    vector = lanes(dtype)
    pattern = matrix(rng, mask, dtype).pattern
    small = {"l1_bytes": 0, "partial_bytes": 1, "group_rows": 5}
    for changes in ({}, {**small, "sddmm_block_bytes": 0}, {**small, "sddmm_block_bytes": 12 * vector * 8}):
        for inner in (0, 1, vector - 1, vector, vector + 1, 32 * vector, 33 * vector + 2):
            A, B = numbers(rng, (21, inner), dtype, True), numbers(rng, (inner, 20), dtype, True)
            expected = (A.astype(np.int64) @ B.astype(np.int64))[mask]
            with tuned(**changes):
                assert np.array_equal(fs.sddmm(pattern, A, B).data, expected)


@pytest.mark.R3
@both_types
def test_layouts_of_both_arguments_give_the_same_bits(rng, dtype):
    pattern = matrix(rng, PATTERNS["scattered"](rng, (19, 45)), dtype).pattern
    A, B = numbers(rng, (19, 37), dtype), numbers(rng, (37, 45), dtype)
    expected = fs.sddmm(pattern, A, B).data
    for a in (A, np.asfortranarray(A), np.repeat(A, 2, axis=1)[:, ::2], A[::-1].copy()[::-1]):
        for b in (B, np.asfortranarray(B), np.repeat(B, 3, axis=0)[::3], B[:, ::-1].copy()[:, ::-1]):
            assert same_bits(fs.sddmm(pattern, a, b).data, expected)


@pytest.mark.R3
@both_types
@tuned(parallel_flops=0)
def test_bits_do_not_depend_on_threads(rng, dtype):
    pattern = matrix(rng, PATTERNS["scattered"](rng, (90, 45)), dtype).pattern
    A, B = numbers(rng, (90, 100), dtype), numbers(rng, (100, 45), dtype)
    with fs.threads(1):
        expected = fs.sddmm(pattern, A, B).data
    for repeat in range(200):
        with fs.threads(2 + repeat % 7):
            assert same_bits(fs.sddmm(pattern, A, B).data, expected)


@pytest.mark.R5
@both_types
@pytest.mark.parametrize("inner", [1, 33])
def test_nan_and_inf_travel(rng, inner, dtype):
    """They reach the nonzeros of their row and column and nothing else."""
    pattern = matrix(rng, PATTERNS["scattered"](rng, (30, 40)), dtype).pattern
    A, B = numbers(rng, (30, inner), dtype), numbers(rng, (inner, 40), dtype)
    A[3, 0], A[7, inner - 1], B[0, 5], B[inner // 2, 9] = np.nan, np.inf, -np.inf, 0
    expected = ref.sddmm(pattern.indptr, pattern.indices, A, B)
    assert np.isfinite(expected).sum() > 100
    assert_same_specials(fs.sddmm(pattern, A, B).data, expected)


def test_type_of_the_result(rng):
    pattern = matrix(rng, PATTERNS["scattered"](rng, (5, 6)), "float32").pattern
    for a, b, wanted in (
        ("float32", "float32", "float32"), ("float64", "float64", "float64"), ("int64", "float64", "float64"),
        ("int8", "float16", "float32"), (">f8", "int8", "float64"), ("bool", "bool", "float32"),
    ):  # fmt: skip
        assert fs.sddmm(pattern, np.ones((5, 3), a), np.ones((3, 6), b)).dtype == wanted


def test_result_is_a_matrix_of_its_own(rng):
    pattern = matrix(rng, PATTERNS["scattered"](rng, (5, 6)), "float32").pattern
    A, B = numbers(rng, (5, 3), "float32"), numbers(rng, (3, 6), "float32")
    first = fs.sddmm(pattern, A, B)
    kept = first.data.copy()
    fs.sddmm(pattern, -A, B)
    assert same_bits(first.data, kept)
    assert not first.data.flags.writeable
