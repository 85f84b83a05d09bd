"""SpMM and SpMV, and every other way to the same product: contracts R1 to R5."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse.ops.target import tuned
from fastsparse.runtime.threading_layer import available_workers
from fastsparse_kernels import reference as ref
from tests.checking import (
    ACTIVATIONS,
    DTYPES,
    PACKING,
    PATTERNS,
    PRODUCTS,
    SETTINGS,
    WAYS,
    assert_product,
    assert_same_specials,
    choose,
    fixed_blocks,
    fixed_width,
    lanes,
    matrix,
    numbers,
    parts,
    rounded,
    same_bits,
)

# ------------------------------------------------------------------------------------------------------------- R1


@pytest.mark.R1
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("columns", [1, 37])
def test_error_bound_on_every_pattern_and_way(rng, pattern, columns, dtype):
    W = matrix(rng, PATTERNS[pattern](rng, (21, 70)), dtype)
    X, bias = numbers(rng, (70, columns), dtype), numbers(rng, 21, dtype)
    for name, way in WAYS.items():
        assert_product(way(W, X, bias, None), W, X, bias, label=name)


@pytest.mark.R1
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("columns", [1, 19])
def test_error_bound_with_every_activation(rng, activation, columns, dtype):
    W = matrix(rng, PATTERNS["scattered"](rng, (9, 30)), dtype)
    X, bias = rng.standard_normal((30, columns)).astype(dtype), rng.standard_normal(9).astype(dtype)
    for name, way in WAYS.items():
        assert_product(way(W, X, bias, activation), W, X, bias, activation, name)
        assert_product(way(W, X, None, activation), W, X, None, activation, name)


@pytest.mark.R1
@given(
    st.tuples(st.integers(0, 40), st.integers(0, 80), st.integers(0, 70)),
    st.sampled_from(list(PATTERNS)),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.sampled_from(list(WAYS)),
    st.integers(0, 2**32 - 1),
)
def test_error_bound_on_drawn_shapes(shape, pattern, dtype, has_bias, way, seed):
    rows, columns, samples = shape
    rng = np.random.default_rng(seed)
    W = matrix(rng, PATTERNS[pattern](rng, (rows, columns)), dtype)
    X, bias = numbers(rng, (columns, samples), dtype), numbers(rng, rows, dtype) if has_bias else None
    assert_product(WAYS[way](W, X, bias, None), W, X, bias)


@pytest.mark.R1
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows(rng, dtype):
    """Thousands of products per row, over many column blocks."""
    W = matrix(rng, PATTERNS["one dense row"](rng, (5, 6000)), dtype)
    X = numbers(rng, (6000, 21), dtype)
    for name in PRODUCTS:
        assert_product(WAYS[name](W, X, None, None), W, X)
    assert_product(fs.spmm(W, X[:, 0]), W, X[:, 0])


# ------------------------------------------------------------------------------------------------------------- R2


def edges(step: int) -> list[int]:
    """Sizes around a multiple of `step`."""
    return [step - 1, step, step + 1]


@pytest.mark.R2
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [None, *range(1, 9)])
def test_small_integers_are_exact_around_tile_edges(rng, width, dtype):
    vector = lanes(dtype)
    sizes, changes = [0, 1, 2, *edges(vector), *edges(2 * vector)], {}
    if width is not None:
        sizes, changes = sorted({*edges(width * vector), *edges(2 * width * vector)}), fixed_width(width)
    W = matrix(rng, PATTERNS["scattered"](rng, (13, 50)), dtype, integers=True)
    dense = W.toarray().astype(np.int64)
    for setting in PACKING:
        with choose(setting, **changes):
            for columns in sizes:
                X = numbers(rng, (50, columns), dtype, integers=True)
                for name, way in WAYS.items():
                    assert np.array_equal(way(W, X, None, None), dense @ X.astype(np.int64)), (name, columns, setting)


@pytest.mark.R2
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 65])
def test_small_integers_are_exact_around_block_edges(rng, rows, dtype):
    """Blocks of four inputs: K below, at and above multiples of them; rows over several groups."""
    changes = {**fixed_blocks(4, 2, dtype), "partial_bytes": 1, "group_rows": 4}
    for columns in (0, 1, 3, 4, 5, 8, 17):
        W = matrix(rng, PATTERNS["scattered"](rng, (rows, columns)), dtype, integers=True)
        X, bias = numbers(rng, (columns, 20), dtype, integers=True), numbers(rng, rows, dtype, integers=True)
        expected = W.toarray().astype(np.int64) @ X.astype(np.int64) + bias.astype(np.int64)[:, None]
        for setting in PACKING:
            with choose(setting, **changes):
                for name, way in WAYS.items():
                    assert np.array_equal(way(W, X, bias, None), expected), (name, columns, setting)
                    assert np.array_equal(way(W, X, bias, "relu6"), expected.clip(0, 6)), (name, columns, setting)


@pytest.mark.R2
@pytest.mark.parametrize("dtype", DTYPES)
def test_spmv_small_integers_are_exact(rng, dtype):
    """Rows of 0 to 40 nonzeros cover every remainder of the running sums; 70 000 columns need 32-bit indices."""
    for columns in (40, 70_000):
        mask = np.zeros((41, columns), bool)
        for row in range(41):
            mask[row, rng.choice(columns, row, replace=False)] = True
        W = matrix(rng, mask, dtype, integers=True)
        x, bias = numbers(rng, columns, dtype, integers=True), numbers(rng, 41, dtype, integers=True)
        expected = W.toarray().astype(np.int64) @ x.astype(np.int64)
        assert np.array_equal(fs.spmm(W, x), expected)
        assert np.array_equal(fs.spmm(W, x[:, None], bias=bias)[:, 0], expected + bias)
        assert np.array_equal(fs.linear(x, W, bias, activation="relu"), (expected + bias).clip(0))
        assert np.array_equal(fs.linear(x[None], W), expected[None])


# ------------------------------------------------------------------------------------------------------------- R3


@pytest.mark.R3
@pytest.mark.parametrize("dtype", DTYPES)
def test_order_of_summation(rng, dtype):
    """Ascending columns, one FMA per nonzero, bias last: the bits are those of exact arithmetic rounded like that."""
    W = matrix(rng, PATTERNS["scattered"](rng, (6, 40)), dtype)
    X, bias = numbers(rng, (40, 3), dtype), numbers(rng, 6, dtype)
    expected = np.zeros((6, 3), dtype)
    for row, column in np.ndindex(6, 3):
        total = Fraction(0)
        for p in range(W.indptr[row], W.indptr[row + 1]):
            product = Fraction(float(W.data[p])) * Fraction(float(X[W.indices[p], column]))
            total = rounded(total + product, dtype)
        expected[row, column] = float(rounded(total + Fraction(float(bias[row])), dtype))
    for name, way in WAYS.items():
        assert same_bits(np.ascontiguousarray(way(W, X, bias, None)), expected), name


@pytest.mark.R3
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_bits_do_not_depend_on_the_plan(rng, setting, dtype):
    columns = 5 * lanes(dtype) + 3
    W = matrix(rng, PATTERNS["scattered"](rng, (33, 90)), dtype)
    X, bias = numbers(rng, (90, columns), dtype), numbers(rng, 33, dtype)
    expected = fs.spmm(W, X, bias=bias, activation="silu")
    for threads in (1, 2, 3):
        with choose(setting), fs.threads(threads):
            for name, way in WAYS.items():
                assert same_bits(np.ascontiguousarray(way(W, X, bias, "silu")), expected), (name, threads)


@pytest.mark.R3
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packing", PACKING)
def test_outputs_that_leave_the_caches_have_the_same_bits(rng, packing, dtype):
    """Wherever the output begins; nothing beside it is written."""
    columns = 16 * lanes(dtype)
    W = matrix(rng, PATTERNS["scattered"](rng, (33, 90)), dtype)
    X, bias = numbers(rng, (90, columns), dtype), numbers(rng, 33, dtype)
    with choose(packing):
        expected = {name: fs.spmm(W, X, bias=bias, activation=name) for name in (None, "relu", "silu")}
    for begin in (0, 1, lanes(dtype) // 2, lanes(dtype) - 1):
        for threads in (1, 2):
            for activation, product in expected.items():
                memory = np.full(product.size + 2 * lanes(dtype), np.nan, dtype)
                begin_byte = memory.ctypes.data // memory.itemsize % lanes(dtype)
                begin_at = (begin - begin_byte) % lanes(dtype)
                out = memory[begin_at : begin_at + product.size].reshape(product.shape)
                with choose(packing, "non-temporal stores"), fs.threads(threads):
                    fs.spmm(W, X, bias=bias, activation=activation, out=out)
                assert same_bits(out, product), (begin, threads, activation)
                assert np.isnan(memory[:begin_at]).all()
                assert np.isnan(memory[begin_at + product.size :]).all()
    with choose(packing, "non-temporal stores"):
        for name, way in WAYS.items():
            assert same_bits(np.ascontiguousarray(way(W, X, bias, "relu")), expected["relu"]), name


@pytest.mark.R3
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [3, 9])
@pytest.mark.parametrize("block_bytes", [2048, 2**20])
def test_dense_rows_have_the_bits_of_others(rng, rows, block_bytes, dtype):
    """Rows of a dense matrix share what is read of X; one more row, with fewer columns, and they go one by one."""
    dense = numbers(rng, (rows, 30), dtype)
    other = np.where(np.arange(30) % 2, numbers(rng, 30, dtype), 0)
    full, mixed = fs.csr(dense), fs.csr(np.vstack([dense, other.astype(dtype)]))
    bias = numbers(rng, rows + 1, dtype)
    for columns in (2, *edges(lanes(dtype)), *edges(3 * lanes(dtype))):
        X = numbers(rng, (30, columns), dtype)
        for name, way in WAYS.items():
            if columns > 1 or name != "row-major":
                for activation in (None, "tanh"):
                    with tuned(l1_block_bytes=block_bytes, l2_block_bytes=block_bytes):
                        found = way(full, X, bias[:rows], activation)
                        assert same_bits(found, way(mixed, X, bias, activation)[:rows]), (name, columns, activation)


@pytest.mark.R3
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("setting", PACKING)
def test_bits_of_a_sample_do_not_depend_on_its_batch(rng, setting, dtype):
    """From two samples on: a single one goes through SpMV."""
    vector = lanes(dtype)
    W = matrix(rng, PATTERNS["scattered"](rng, (12, 60)), dtype)
    X = numbers(rng, (60, 9 * vector), dtype)
    expected = fs.spmm(W, X)
    for columns in (2, 3, vector, vector + 1, 3 * vector - 1, 7 * vector):
        for start in (0, 1, vector):
            part = slice(start, start + columns)
            for name, way in WAYS.items():
                with choose(setting):
                    found = way(W, X[:, part], None, None)
                assert same_bits(found.copy(), expected[:, part].copy()), (name, part)


@pytest.mark.R3
@pytest.mark.parametrize("dtype", DTYPES)
@tuned(parallel_flops=0)
def test_bits_of_spmv_do_not_depend_on_threads(rng, dtype):
    W = matrix(rng, PATTERNS["one dense row"](rng, (70, 300)), dtype)
    x, bias = numbers(rng, 300, dtype), numbers(rng, 70, dtype)
    with fs.threads(1):
        expected = fs.spmm(W, x, bias=bias, activation="gelu")
    for threads in (2, 3, 8):
        with fs.threads(threads):
            assert same_bits(fs.spmm(W, x, bias=bias, activation="gelu"), expected)
            assert same_bits(fs.linear(x, W, bias, activation="gelu"), expected)


@pytest.mark.R3
@pytest.mark.parametrize("dtype", DTYPES)
@tuned(parallel_flops=0)
def test_two_hundred_repeats_have_the_same_bits(rng, parallel_regions, dtype):
    W = matrix(rng, PATTERNS["scattered"](rng, (64, 200)), dtype)
    X = numbers(rng, (200, 100), dtype)
    calls = [lambda: fs.spmm(W, X), lambda: fs.spmm(W, X[:, 0]), lambda: fs.linear(X.T, W)]
    with fs.threads(2):
        expected = [call() for call in calls]
        for _ in range(200):
            for call, first in zip(calls, expected, strict=True):
                assert same_bits(call(), first)
        assert parallel_regions() > 600 or available_workers(2) == 1


# ------------------------------------------------------------------------------------------------------------- R4


@pytest.mark.R4
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 5, 4), (5, 0, 4), (5, 4, 0), (0, 0, 0), (5, 4, 1), (5, 0, 1), (7, 9, 40)])
def test_every_element_is_written(rng, shape, dtype):
    rows, columns, samples = shape
    for pattern in PATTERNS:
        W = matrix(rng, PATTERNS[pattern](rng, (rows, columns)), dtype)
        X, bias = numbers(rng, (columns, samples), dtype), numbers(rng, rows, dtype)
        for order in "CF":
            out = np.full((rows, samples), np.nan, dtype)
            assert fs.spmm(W, np.asarray(X, order=order), bias=bias, out=out) is out
            assert_product(out, W, X, bias)
        out = np.full((samples, rows), np.nan, dtype)
        assert fs.linear(X.T, W, bias, out=out) is out
        assert_product(out.T, W, X, bias)
        out = np.full(rows, np.nan, dtype)
        if samples:
            assert fs.spmm(W, X[:, 0], out=out) is out
            assert_product(out, W, X[:, 0])


@pytest.mark.R4
@pytest.mark.parametrize("setting", PACKING)
def test_nothing_around_the_output_is_written(rng, setting):
    """A guard of a page in front of and behind `out` stays as it is, whatever the tail."""
    W = matrix(rng, PATTERNS["scattered"](rng, (9, 30)), "float32")
    for samples in (1, 2, 15, 16, 17, 31, 33, 130):
        X = numbers(rng, (30, samples), "float32")
        for layout in (X, np.asfortranarray(X)):
            memory = np.full(2048 + 9 * samples, 7, np.float32)
            with choose(setting, parallel_flops=0):
                fs.spmm(W, layout, out=memory[1024:-1024].reshape(9, samples))
            assert (memory[:1024] == 7).all()
            assert (memory[-1024:] == 7).all()


# ------------------------------------------------------------------------------------------------------------- R5


@pytest.mark.R5
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 21])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_inf_travel(rng, columns, activation, dtype):
    W = matrix(rng, PATTERNS["scattered"](rng, (40, 60)), dtype)
    values = W.data.copy()
    values[[3, 50]], values[[7, 90]], values[[20, 21]] = np.nan, np.inf, 0
    W = W.with_data(values)
    X, bias = rng.standard_normal((60, columns)).astype(dtype), rng.standard_normal(40).astype(dtype)
    X[5, columns // 2], X[W.indices[20], 0], X[33, columns - 1] = np.nan, np.inf, -np.inf
    bias[[1, 2, 3]] = np.nan, np.inf, -np.inf
    expected = ref.spmm(*parts(W), X, bias, activation)
    assert np.isnan(expected[W.pattern.rows()[20], 0]), "a stored zero meets Inf"
    assert not np.isnan(expected).all(axis=0).any(), "absent weights touch nothing"
    for name, way in WAYS.items():
        assert_same_specials(way(W, X, bias, activation), expected, name)


@pytest.mark.R5
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_clamps_keep_nan(dtype, activation):
    W = fs.csr(np.eye(3, dtype=dtype))
    for samples in (1, 2, 40):
        X = np.repeat(np.array([[np.nan], [-np.inf], [np.inf]], dtype), samples, axis=1)
        high = np.inf if activation == "relu" else 6.0
        expected = np.repeat([[np.nan], [0.0], [high]], samples, axis=1)
        for way in WAYS.values():
            assert np.array_equal(way(W, X, None, activation), expected, equal_nan=True)


@pytest.mark.R5
@pytest.mark.parametrize("dtype", DTYPES)
def test_overflow_and_the_smallest_numbers(dtype):
    """Sums overflow to Inf; subnormal numbers are not flushed to zero."""
    info = np.finfo(dtype)
    W = fs.csr(np.array([[info.max, info.max, 0], [0, 0, info.smallest_subnormal], [info.tiny, 0, 0]], dtype))
    expected = np.array([[np.inf], [info.smallest_subnormal], [info.tiny]])
    for samples in (1, 2, 40):
        X = np.ones((3, samples), dtype)
        for name, way in WAYS.items():
            assert (way(W, X, None, None) == expected).all(), name
            assert (way(W, X / 2, None, None)[2] == info.tiny / 2).all(), name


# ------------------------------------------------------------------------------------------------------- operators


def test_matrix_operators(rng):
    W = matrix(rng, PATTERNS["scattered"](rng, (9, 30)), "float64")
    X, Z = numbers(rng, (30, 4), "float64"), numbers(rng, (4, 9), "float64")
    assert_product(W @ X, W, X)
    assert_product(W @ X[:, 0], W, X[:, 0])
    assert_product((Z @ W).T, W.T, Z.T)
    assert_product(Z[0] @ W, W.T, Z[0])
