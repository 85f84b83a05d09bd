"""SpMV by lookup in registers: where nonzeros are, the order of summation, and what it reads beside them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse.ops import spmv
from fastsparse.ops.target import tuned
from fastsparse_kernels import compiler
from fastsparse_kernels.sparse_operator import LOOKUP_BITS, LOOKUP_CHUNK, LOOKUP_EMPTY, LOOKUP_LANES
from tests.checking import PATTERNS, assert_product, fresh, matrix, numbers, rounded, same_bits, target

AVX512 = compiler.lanes(LOOKUP_BITS) == LOOKUP_LANES
only_avx512 = pytest.mark.skipif(not AVX512, reason="looks up in AVX-512's registers")
ALWAYS = {"lookup_nonzeros": 0, "lookup_filled": -1.0, "lookup_cycles": 0.0, "lookup_chunk_cycles": -1.0}
TARGET = target(LOOKUP_BITS, LOOKUP_LANES, **ALWAYS)
SHAPES = [(1, 1), (15, 31), (16, 32), (17, 127), (33, 128), (40, 129), (50, 300)]


@pytest.fixture(autouse=True)
def _whatever_the_gain():
    """Every W is fit."""
    with tuned(**ALWAYS):
        yield


def some(rng: np.random.Generator, rows: int, columns: int, density: float = 0.3) -> fs.CSR:
    """A matrix with one nonzero at least, some rows denser than others."""
    mask = rng.random((rows, columns)) < density * rng.choice([0, 0.5, 1, 3], (rows, 1))
    mask[rng.integers(rows), rng.integers(columns)] = True
    return matrix(rng, mask, "float32")


def multiplied(plan: spmv.SpmvLookupPlan, values: Any, x: Any) -> Any:
    """W @ x from the plan's arrays, in exact arithmetic: an oracle of where nonzeros are."""
    y: list[int] = []
    vectors, found = iter(plan.vector_counts.tolist()), 0
    columns, values = plan.columns.reshape(-1, LOOKUP_LANES), values.reshape(-1, LOOKUP_LANES)
    index = iter(plan.sum_index.reshape(-1, LOOKUP_LANES))
    for group, rows in enumerate(np.diff(plan.group_starts)):
        slices = -(-int(rows) // LOOKUP_LANES)
        assert plan.vector_starts[group] == found
        sums = np.zeros((plan.chunks, slices, LOOKUP_LANES), object)
        for chunk, slice_ in np.ndindex(plan.chunks, slices):
            some_empty, none_empty = divmod(next(vectors), 256)
            for vector in range(found, found + none_empty + some_empty):
                there = columns[vector] != LOOKUP_EMPTY
                assert there.all() or vector >= found + none_empty
                assert there.any()
                assert (values[vector][~there] == 0).all()
                for lane in np.nonzero(there)[0]:
                    column = chunk * LOOKUP_CHUNK + int(columns[vector, lane])
                    sums[chunk, slice_, lane] += int(values[vector, lane]) * int(x[column])
            found += none_empty + some_empty
        sums = sums.reshape(plan.chunks, -1)
        ours = [sum(sums[chunk, next(index)] for chunk in range(plan.chunks)) for _ in range(slices)]
        y += np.concatenate(ours).tolist()[:rows]
    assert plan.vector_starts[-1] == found == len(columns)
    assert next(vectors, None) is None
    assert next(index, None) is None
    return y


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_nonzero_is_there_once(rng, shape, threads):
    W = some(rng, *shape)
    W = fs.CSR(W.indptr, W.indices, np.arange(1, W.nnz + 1, dtype=np.float32), W.shape)
    plan = spmv.plan_spmv(W.pattern, target(LOOKUP_BITS, LOOKUP_LANES, threads, **ALWAYS))
    assert isinstance(plan, spmv.SpmvLookupPlan)
    assert (plan.group_starts[:-1] % LOOKUP_LANES == 0).all()
    assert plan.group_starts[-1] == W.shape[0]
    x = rng.integers(-9, 10, W.shape[1])
    packed = plan.pack(W.data)
    assert len(np.unique(plan.order)) == W.nnz
    assert multiplied(plan, packed, x) == (W.toarray().astype(np.int64) @ x).tolist()


def test_slices_are_full(rng):
    """Rows of a slice have about as many nonzeros, whatever the pattern's rows have."""
    W = some(rng, 1024, 256, 0.2)
    plan = spmv.plan_spmv(W.pattern, TARGET)
    assert isinstance(plan, spmv.SpmvLookupPlan)
    assert W.nnz > 0.9 * len(plan.columns)


@pytest.mark.parametrize("most", [64, 128])
def test_groups_hold_few_rows(rng, most):
    """Also where most rows have no nonzeros, which groups of equal nonzeros would leave to one worker."""
    mask = np.zeros((2000, 40), bool)
    mask[:3] = True
    W = matrix(rng, mask, "float32")
    plan = spmv.plan_spmv(W.pattern, target(LOOKUP_BITS, LOOKUP_LANES, **ALWAYS, lookup_row_limit=most))
    assert isinstance(plan, spmv.SpmvLookupPlan)
    assert np.diff(plan.group_starts).max() <= 2 * most
    x = rng.integers(-9, 10, 40)
    data = np.arange(1, W.nnz + 1, dtype=np.float32)
    dense = fs.CSR(W.indptr, W.indices, data, W.shape).toarray().astype(np.int64)
    assert multiplied(plan, plan.pack(data), x) == (dense @ x).tolist()


def test_other_targets_and_types_do_not_look_up(rng):
    pattern = some(rng, 20, 40).pattern
    for other in (target(32, 8, **ALWAYS), target(32, 4, **ALWAYS), target(64, 8, **ALWAYS)):
        assert isinstance(spmv.plan_spmv(pattern, other), spmv.SpmvPlan)


@pytest.mark.R3
@only_avx512
def test_order_of_summation(rng):
    """Nonzeros of a chunk in ascending columns, by one FMA each; then the sums of the chunks, then the bias."""
    W = some(rng, 37, 300)
    x, bias = numbers(rng, 300, "float32"), numbers(rng, 37, "float32")
    expected = np.zeros(37, np.float32)
    for row, start in enumerate(W.indptr[:-1]):
        sums = [Fraction(0)] * 3
        for p in range(start, W.indptr[row + 1]):
            chunk = int(W.indices[p]) // LOOKUP_CHUNK
            product = Fraction(float(W.data[p])) * Fraction(float(x[W.indices[p]]))
            sums[chunk] = rounded(sums[chunk] + product, "float32")
        total = Fraction(0)
        for term in (*sums, Fraction(float(bias[row]))):
            total = rounded(total + term, "float32")
        expected[row] = float(total)
    for threads in (1, 2, 3):
        with fs.threads(threads):
            out = np.full(37, np.nan, np.float32)
            fs.spmm(fresh(W), x, bias=bias, out=out)
            assert same_bits(out, expected), threads


@pytest.mark.R1
@only_avx512
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", [None, "relu6", "gelu"])
def test_error_bound(rng, shape, activation):
    W = some(rng, *shape)
    x, bias = rng.standard_normal(shape[1]).astype(np.float32), rng.standard_normal(shape[0]).astype(np.float32)
    memory = np.full(shape[0] + 2 * LOOKUP_LANES, np.nan, np.float32)
    out = memory[LOOKUP_LANES:-LOOKUP_LANES]
    fs.spmm(W, x, bias=bias, activation=activation, out=out)
    assert_product(out[:, None], W, x[:, None], bias, activation)
    assert np.isnan(memory[:LOOKUP_LANES]).all()
    assert np.isnan(memory[-LOOKUP_LANES:]).all()


@pytest.mark.R1
@only_avx512
@pytest.mark.parametrize("pattern", PATTERNS)
def test_error_bound_on_every_pattern(rng, pattern):
    W = matrix(rng, PATTERNS[pattern](rng, (35, 170)), "float32")
    x = numbers(rng, 170, "float32")
    assert_product(fs.spmm(W, x)[:, None], W, x[:, None], None)


@pytest.mark.R5
@pytest.mark.R7
@only_avx512
@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_what_a_row_does_not_have_does_not_reach_it(rng, special):
    """Lanes without a nonzero look something up, too."""
    W = some(rng, 37, 200, 0.1)
    for row, start in enumerate(W.indptr[:-1]):
        own = W.indices[start : W.indptr[row + 1]]
        x = np.full(200, special, np.float32)
        x[own] = 1
        data = np.full(W.nnz, special, np.float32)
        data[start : W.indptr[row + 1]] = 2
        found = fs.spmm(fs.CSR(W.indptr, W.indices, data, W.shape), x)
        assert found[row] == 2 * len(own)


@pytest.mark.R5
@only_avx512
def test_stored_zeros_are_multiplied(rng):
    W = some(rng, 20, 40)
    W = fs.CSR(W.indptr, W.indices, np.zeros(W.nnz, np.float32), W.shape)
    x = np.full(40, np.inf, np.float32)
    np.testing.assert_array_equal(np.isnan(fs.spmm(W, x)), np.diff(W.indptr) > 0)


@only_avx512
def test_engines_look_up_as_products_do(rng):
    W = some(rng, 50, 120)
    layer = fs.nn.SparseLinear(120, 50, pattern=W.pattern)
    layer.values.value[...] = W.data
    x = numbers(rng, (1, 120), "float32")
    expected = fs.linear(x, fresh(W), layer.bias.value)
    assert same_bits(fs.compile(fs.nn.Sequential(layer), (1, 120))(x), expected)
