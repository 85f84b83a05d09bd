"""SpMV alone: its orders of summation, and what it reads beside a row without taking it into account."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import numpy as np
import pytest

import fastsparse as fs
from fastsparse.ops import spmv
from fastsparse.ops.target import target_for, tuned
from fastsparse.runtime.buffers import address
from fastsparse_kernels import reference as ref
from fastsparse_kernels.sparse_operator import SPMV_ACCUMULATORS
from fastsparse_kernels.spmv import ROWS
from tests.checking import DTYPES, fresh, lanes, matrix, numbers, rounded, same_bits, target

LENGTHS = [0, 1, 2, 7, 8, 9, 15, 16, 17, 3, 5]


ROWS_FORM = {"slice_nonzeros": -1.0, "lookup_nonzeros": 2**40}
SLICES = {"streamed_calls": 1, "slice_nonzeros": math.inf, "slice_room": math.inf, "lookup_nonzeros": 2**40}
FORMS = {
    "rows": ROWS_FORM,
    "rows prefetched": {**ROWS_FORM, "near_bytes": 0, "spmv_l2_bytes": -1, "stream_near_bytes": -1, "l1_bytes": 2**15},
    "slices": {**SLICES, "slice_filling": math.inf},
    "sorted slices prefetched": {**SLICES, "slice_filling": 0.0, "near_bytes": 0},
}


@pytest.fixture(params=FORMS, autouse=True)
def form(request):
    """The forms without lookup."""
    with tuned(**FORMS[request.param]):
        yield request.param


def product(W, x, **options):
    """W @ x, by the plan of the form. A first call, which short rows have streamed, gives the same bits."""
    first = fs.spmm(fresh(W), x, **options).copy()
    fs.spmm(W, x)
    again = fs.spmm(W, x, **options)
    assert same_bits(again, first)
    return again


def rows_of(rng, lengths, columns, dtype) -> fs.CSR:
    """A matrix with rows of these lengths."""
    mask = np.zeros((len(lengths), columns), bool)
    for row, length in enumerate(lengths):
        mask[row, rng.choice(columns, length, replace=False)] = True
    return matrix(rng, mask, dtype)


def added_in_pairs(sums, dtype):
    """The sum of the lanes, by halves: neighbours first."""
    while len(sums) > 1:
        sums = [rounded(a + b, dtype) for a, b in zip(sums[::2], sums[1::2], strict=True)]
    return sums[0]


@pytest.mark.R3
@pytest.mark.parametrize("dtype", DTYPES)
def test_order_of_summation(rng, form, dtype):
    """The first n mod SPMV_ACCUMULATORS nonzeros go to the first sums, the others cyclically to all, each by one FMA.

    Neighbouring sums are added, the bias comes last. In slices a row has one sum.
    """
    W = rows_of(rng, LENGTHS, 40, dtype)
    x, bias = numbers(rng, 40, dtype), numbers(rng, len(LENGTHS), dtype)
    expected = np.zeros(len(LENGTHS), dtype)
    for row, start in enumerate(W.indptr[:-1]):
        sums = [Fraction(0)] * SPMV_ACCUMULATORS
        end = W.indptr[row + 1]
        rest = (end - start) % SPMV_ACCUMULATORS
        for i, p in enumerate(range(start, end)):
            chain = 0 if "rows" not in form else i if i < rest else (i - rest) % SPMV_ACCUMULATORS
            term = Fraction(float(W.data[p])) * Fraction(float(x[W.indices[p]]))
            sums[chain] = rounded(sums[chain] + term, dtype)
        expected[row] = float(rounded(added_in_pairs(sums, dtype) + Fraction(float(bias[row])), dtype))
    assert same_bits(product(W, x, bias=bias), expected)


@pytest.mark.R3
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_has_the_bits_it_has_among_others(rng, dtype):
    """Rows are finished together; which ones, and how many are left over, makes no difference."""
    W = rows_of(rng, LENGTHS, 40, dtype)
    x, bias = numbers(rng, 40, dtype), numbers(rng, len(LENGTHS), dtype)
    for activation in (None, "relu6", "gelu"):
        expected = product(W, x, bias=bias, activation=activation)
        for first in range(len(LENGTHS)):
            for last in range(first + 1, min(first + ROWS + 2, len(LENGTHS)) + 1):
                at = slice(W.indptr[first], W.indptr[last])
                part = fs.CSR(
                    W.indptr[first : last + 1] - W.indptr[first], W.indices[at], W.data[at], (last - first, 40)
                )
                out = np.full(last - first, np.nan, dtype)
                product(part, x, bias=bias[first:last], activation=activation, out=out)
                assert same_bits(out, expected[first:last]), (first, last, activation)


@pytest.mark.R7
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_what_other_rows_read_does_not_reach_a_row(rng, dtype, special):
    """Behind a short row the vector has columns and values of the next one."""
    W = rows_of(rng, LENGTHS, 40, dtype)
    for row, start in enumerate(W.indptr[:-1]):
        own = W.indices[start : W.indptr[row + 1]]
        x = np.full(40, special, dtype)
        x[own] = numbers(rng, len(own), dtype)
        values = np.full(W.nnz, special, dtype)
        values[start : W.indptr[row + 1]] = W.data[start : W.indptr[row + 1]]
        expected = product(W, np.where(np.isfinite(x), x, 0).astype(dtype))[row]
        assert same_bits(product(W.with_data(values), x)[row], expected)


CODE = """
import ctypes, mmap, sys
import numpy as np
import fastsparse as fs
from fastsparse.ops import spmv
from fastsparse.ops.target import target_for, tuned
from fastsparse.runtime.buffers import address

dtype = np.dtype(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
everything = np.frombuffer(pages, np.uint8)
assert libc.mprotect(everything.ctypes.data + mmap.PAGESIZE, mmap.PAGESIZE, 0) == 0
with tuned(slice_nonzeros=-1.0, lookup_nonzeros=2**40):  # by rows, whose values are not packed
    m = target_for(dtype)
for length in range(1, 20):
    W = fs.csr(np.ones((3, length)), dtype)
    size = W.nnz * dtype.itemsize
    values = everything[mmap.PAGESIZE - size : mmap.PAGESIZE].view(dtype)
    values[:] = W.data
    y = np.full(3, np.nan, dtype)
    launch = spmv.prepare(spmv.plan_spmv(W.pattern, m), m)
    x = np.arange(1, length + 1).astype(dtype)
    launch.run(address(x), address(y), address(values), 0)
    assert (y == length * (length + 1) / 2).all(), (length, y)
print("read nothing behind the values")
"""


@pytest.mark.R7
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="takes a page away by mprotect")
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_behind_the_last_value_is_read(run_python, dtype):
    assert run_python(CODE, dtype).stdout == "read nothing behind the values\n"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_of_a_large_matrix_are_summed_alone(rng, threads, dtype, form):
    """Rows of any length side by side, in several groups, with numbers that spread where a lane is not masked."""
    lengths = rng.integers(0, 10, 5000)
    lengths[rng.integers(0, 5000, 5)] = [9, 100, 700, 1500, 0]
    W = rows_of(rng, lengths, 2000, dtype)
    x = numbers(rng, 2000, dtype)
    x[rng.integers(0, 2000, 40)] = np.repeat([0.0, -0.0, np.inf, np.nan], 10)
    x[0] = np.nan  # the column of empty lanes
    with tuned(parallel_flops=0), fs.threads(threads):
        found = product(fresh(W), x)
    for row in rng.integers(0, 5000, 100):
        at = slice(W.indptr[row], W.indptr[row + 1])
        alone = fs.CSR(np.array([0, lengths[row]]), W.indices[at], W.data[at], (1, 2000))
        assert same_bits(product(alone, x), found[row : row + 1])
    W_dense = W.toarray()
    finite = np.isfinite(found)
    touched = (W_dense != 0) & ~np.isfinite(x)
    assert (finite == ~touched.any(axis=1)).all()
    terms, factors = np.where(touched, 0, W_dense).astype(np.longdouble), np.where(np.isfinite(x), x, 0)
    error = ref.bound(lengths, abs(terms) @ abs(factors), dtype)
    assert (abs(found - terms @ factors)[finite] <= error[finite]).all()


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 2047, 2048, 2049, 4096 + 5])
def test_sizes_around_slices_and_groups(rng, rows, form):
    lengths = rng.integers(0, 4, rows)
    W, bias = rows_of(rng, lengths, 50, "float32"), numbers(rng, rows, "float32")
    x = numbers(rng, 50, "float32")
    out = np.full(rows, np.nan, np.float32)
    product(W, x, bias=bias, activation="relu", out=out)
    want = np.maximum(W.toarray().astype(float) @ x + bias, 0)
    abs_sum = abs(W.toarray()).astype(float) @ abs(x) + abs(bias)
    assert (abs(out - want) <= ref.bound(lengths, abs_sum, "float32")).all()


def test_slices_are_taken_for_short_rows_and_left_for_skewed_ones(rng):
    here = target(32, lanes("float32"), lookup_nonzeros=2**40)
    even = rows_of(rng, np.full(1000, 5), 2000, "float32")
    uneven = rows_of(rng, rng.integers(0, 9, 1000), 2000, "float32")
    skewed = rows_of(rng, np.where(np.arange(1000) % 500, 1, 1500), 2000, "float32")
    long = rows_of(rng, np.full(1000, 80), 2000, "float32")
    plans = [spmv.plan_spmv(W.pattern, here) for W in (even, uneven, skewed, long)]
    assert [type(plan) for plan in plans] == [spmv.SpmvSlicePlan] * 2 + [spmv.SpmvPlan] * 2
    assert len(plans[0].sum_index) == 0
    assert len(plans[1].sum_index) >= 1000
    assert len(plans[1].columns) < 1.2 * uneven.nnz


def bands(rows, columns, offsets) -> np.ndarray:
    """The mask of a matrix whose nonzeros lie on diagonals."""
    mask = np.zeros((rows, columns), bool)
    for offset in offsets:
        mask |= np.eye(rows, columns, offset, dtype=bool)
    return mask


@pytest.mark.R3
@pytest.mark.R7
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("rows", "columns", "offsets"),
    [(100, 100, [0]), (100, 100, [-20, -1, 0, 1, 20]), (3, 100, [7]), (70, 33, [0, 5]), (33, 90, [40, 50])],
)
def test_bands_have_one_column_per_vector(rng, form, dtype, special, rows, columns, offsets):
    """Runs of x are read in place; what lies beside the columns of a row does not reach it."""
    W = matrix(rng, bands(rows, columns, offsets), dtype)
    x = numbers(rng, columns, dtype)
    found = product(W, x)
    dense = W.toarray().astype(float)
    assert (abs(found - dense @ x) <= ref.bound(np.diff(W.indptr), abs(dense) @ abs(x), dtype)).all()
    for row in rng.integers(0, rows, 5):
        spoilt, own = np.full(columns, special, dtype), W.indices[W.indptr[row] : W.indptr[row + 1]]
        spoilt[own] = x[own]
        assert same_bits(product(W, spoilt)[row], found[row])
    if form == "slices" and offsets == [0]:
        plan = spmv.plan_spmv(W.pattern, target(32, 8, **FORMS[form]))
        assert len(plan.columns) == len(plan.masks) == -(-rows // 8)


def test_what_is_called_once_is_not_packed(rng, form):
    """Packing slices takes the time of several calls; values that change are no new pattern."""
    W, x = rows_of(rng, LENGTHS, 40, np.float32), numbers(rng, 40, np.float32)
    plans, streamed = [], target_for(W.dtype).heuristics.streamed_calls
    for factor in range(1, streamed + 4):
        fs.spmm(W.with_data(factor * W.data), x)
        plans.append(any(key[0] == "spmv launch" for key in W.pattern._entries))
    assert plans == ([True] * (streamed + 3) if "rows" in form else [False] * streamed + [True] * 3)


def test_what_is_held_is_packed_at_once(rng):
    """By callers that keep the launch: else it would be the one of the first calls for good."""
    W, x = rows_of(rng, np.full(1000, 5), 2000, "float32"), numbers(rng, 2000, "float32")
    y, before = np.empty(1000, np.float32), fs.spmm(W, x)
    launch = spmv.launch(W, None, target_for(W.dtype), held=True)
    assert "spmv launch" in {key[0] for key in W.pattern._entries}
    launch.run(address(x), address(y), 0)
    assert y.tobytes() == before.tobytes()
