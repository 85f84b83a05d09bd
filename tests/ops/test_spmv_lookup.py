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
from fastsparse_kernels.sparse_operator import (
    LOOKUP_BITS,
    LOOKUP_CHUNK,
    LOOKUP_EMPTY,
    LOOKUP_LANES,
    LOOKUP_ROWS,
    LOOKUP_VECTORS,
)
from tests.checking import PATTERNS, assert_product, fresh, matrix, numbers, rounded, same_bits, target

AVX512 = compiler.lanes(LOOKUP_BITS) == LOOKUP_LANES
only_avx512 = pytest.mark.skipif(not AVX512, reason="looks up in AVX-512's registers")
ALWAYS = {"lookup_nonzeros": 0, "lookup_filled": -1.0, "lookup_cycles": 0.0, "lookup_chunk_cycles": -1.0}
TARGET = target(LOOKUP_BITS, LOOKUP_LANES, **ALWAYS)
SHAPES = [(1, 1), (15, 31), (16, 126), (17, 127), (63, 128), (64, 32), (65, 254), (130, 300)]


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
    counts, found = iter(plan.step_counts.tolist()), 0
    columns = plan.columns.reshape(-1, LOOKUP_LANES, LOOKUP_VECTORS).swapaxes(1, 2).reshape(-1, LOOKUP_ROWS)
    if values.dtype == np.uint16:
        halves = values.reshape(-1, LOOKUP_VECTORS // 2, LOOKUP_LANES, 2).swapaxes(2, 3)
        values = (halves.astype(np.uint32) << 16).ravel().view(np.float32)
    values = values.reshape(-1, LOOKUP_ROWS)
    index = iter(plan.sum_index.reshape(-1, LOOKUP_LANES))
    for group, rows in enumerate(np.diff(plan.group_starts)):
        slices = -(-int(rows) // LOOKUP_ROWS)
        assert plan.step_starts[group] == found
        sums = np.zeros((plan.chunks, slices, LOOKUP_ROWS), object)
        for chunk, slice_ in np.ndindex(plan.chunks, slices):
            for step in range(found, found := found + next(counts)):
                there = columns[step] != LOOKUP_EMPTY
                assert there.any()
                assert (values[step][~there] == 0).all()
                for lane in np.nonzero(there)[0]:
                    column = chunk * LOOKUP_CHUNK + int(columns[step, lane])
                    sums[chunk, slice_, lane] += int(values[step, lane]) * int(x[column])
        sums = sums.reshape(plan.chunks, -1)
        vectors = range(slices * LOOKUP_VECTORS)
        ours = [sum(sums[chunk, next(index)] for chunk in range(plan.chunks)) for _ in vectors]
        y += np.concatenate(ours).tolist()[:rows]
    assert plan.step_starts[-1] == found == len(columns)
    assert next(counts, None) is None
    assert next(index, None) is None
    return y


def bfloat16(values: Any) -> Any:
    """The values cut to bfloat16 numbers, in float32."""
    return (np.asarray(values, np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_nonzero_is_there_once(rng, shape, threads):
    W = some(rng, *shape)
    W = fs.CSR(W.indptr, W.indices, np.arange(1, W.nnz + 1, dtype=np.float32), W.shape)
    plan = spmv.plan_spmv(W.pattern, target(LOOKUP_BITS, LOOKUP_LANES, threads, **ALWAYS))
    assert isinstance(plan, spmv.SpmvLookupPlan)
    assert (plan.group_starts[:-1] % LOOKUP_ROWS == 0).all()
    assert plan.group_starts[-1] == W.shape[0]
    x = rng.integers(-9, 10, W.shape[1])
    packed = plan.pack(W.data)
    assert len(np.unique(plan.order)) == W.nnz
    assert multiplied(plan, packed, x) == (W.toarray().astype(np.int64) @ x).tolist()
    W = W.with_data(bfloat16(W.data))
    packed = plan.pack(W.data)
    assert packed.dtype == np.uint16
    assert multiplied(plan, packed, x) == (W.toarray().astype(np.int64) @ x).tolist()


def test_slices_are_full(rng):
    """Rows of a slice have about as many nonzeros, whatever the pattern's rows have."""
    W = some(rng, 2048, 256, 0.2)
    plan = spmv.plan_spmv(W.pattern, TARGET)
    assert isinstance(plan, spmv.SpmvLookupPlan)
    assert W.nnz > 0.88 * len(plan.columns)


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
        assert not isinstance(spmv.plan_spmv(pattern, other), spmv.SpmvLookupPlan)


@pytest.mark.R3
@only_avx512
@pytest.mark.parametrize("narrow", [False, True], ids=["32 bits", "16 bits"])
@pytest.mark.parametrize("narrow_x", [False, True], ids=["x of 32 bits", "x of 16 bits"])
def test_order_of_summation(rng, narrow, narrow_x):
    """Nonzeros of a chunk in ascending columns, by one FMA each; then the sums of the chunks, then the bias."""
    W = some(rng, 37, 300)
    if narrow:
        W = W.with_data(bfloat16(W.data))
    x, bias = numbers(rng, 300, "float32"), numbers(rng, 37, "float32")
    if narrow_x:
        x = bfloat16(x)
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


# ---------------------------------------------------------------- values in 16 bits

SPECIAL = [np.nan, np.inf, -np.inf, -0.0, 1e-40, -1e-40, 3e38, 1.0, -1.5]


def packed_bits(values: Any) -> int:
    """Bits of a value of a matrix with these values in its one row, as they are packed."""
    W = fs.CSR([0, len(values)], np.arange(len(values)), values, (1, len(values)))
    plan = spmv.plan_spmv(W.pattern, TARGET)
    return int(plan.pack(W.data).itemsize * 8)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 130])
def test_values_have_16_bits_where_all_are_bfloat16_numbers(rng, count):
    values = bfloat16(rng.standard_normal(count))
    values[: len(SPECIAL)] = bfloat16(SPECIAL)[:count]
    assert packed_bits(values) == 16
    for i in {0, count // 2, count - 1}:
        other = values.copy()
        other[i] = np.nextafter(np.float32(1), np.float32(2))
        assert packed_bits(other) == 32


@pytest.mark.R3
@only_avx512
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("x_kind", ["wide", "narrow", "all but one narrow", "few special"])
def test_bits_do_not_depend_on_those_of_values_and_x(rng, shape, activation, x_kind, monkeypatch):
    W = some(rng, *shape)
    special = [*SPECIAL, *rng.standard_normal(30)]
    W = W.with_data(bfloat16(rng.choice([1.0, 2.0] if x_kind == "few special" else special, W.nnz)))
    x, bias = numbers(rng, shape[1], "float32"), numbers(rng, shape[0], "float32")
    if x_kind != "wide":
        x = bfloat16(rng.choice(special, shape[1]) if x_kind == "few special" else x)
    if x_kind == "all but one narrow":
        x[rng.integers(shape[1])] = np.nextafter(np.float32(1), np.float32(2))
    memory = np.full(shape[0] + 2 * LOOKUP_LANES, 7, np.float32)
    narrow = fs.spmm(fresh(W), x, bias=bias, activation=activation, out=memory[LOOKUP_LANES:-LOOKUP_LANES])
    assert (memory[:LOOKUP_LANES] == 7).all()
    assert (memory[-LOOKUP_LANES:] == 7).all()
    monkeypatch.setattr(spmv, "_SAMPLE", 0)
    monkeypatch.setattr(spmv.sparse_operator, "scatter_bfloat16", lambda: lambda *_: -1)
    assert same_bits(narrow, fs.spmm(fresh(W), x, bias=bias, activation=activation))


@pytest.mark.R1
@only_avx512
@pytest.mark.parametrize("pattern", PATTERNS)
def test_error_bound_of_16_bits(rng, pattern):
    W = matrix(rng, PATTERNS[pattern](rng, (70, 170)), "float32")
    W, x = W.with_data(bfloat16(W.data)), numbers(rng, 170, "float32")
    for given in (x, bfloat16(x)):
        assert_product(fs.spmm(W, given)[:, None], W, given[:, None], None)


@only_avx512
def test_values_that_change_have_the_bits_they_need(rng):
    """A layer whose values are trained, or loaded again: both ways, and an engine keeps what it was compiled of."""
    W = some(rng, 50, 120)
    layer, x = fs.nn.SparseLinear(120, 50, bias=False, pattern=W.pattern), numbers(rng, (1, 120), "float32")
    layer.eval()
    narrow, wide = bfloat16(W.data), rng.standard_normal(W.nnz).astype(np.float32)
    engines = []
    for values in (wide, narrow, 2 * narrow, wide, narrow):
        layer.values.value[...] = values
        layer.values.updated()
        assert same_bits(layer(x), fs.linear(x, fs.CSR(W.indptr, W.indices, values, W.shape)))
        engines.append((fs.compile(fs.nn.Sequential(layer), (1, 120)), layer(x)))
    for engine, expected in engines:
        assert same_bits(engine(x), expected)


@only_avx512
def test_saved_engines_keep_16_bits(rng, tmp_path):
    W = some(rng, 50, 120)
    layer, x = fs.nn.SparseLinear(120, 50, pattern=W.pattern), numbers(rng, (1, 120), "float32")
    layer.values.value[...] = bfloat16(W.data)
    engine = fs.compile(fs.nn.Sequential(layer), (1, 120))
    engine.save(tmp_path / "engine")
    assert same_bits(fs.load_engine(tmp_path / "engine")(x), engine(x))
