"""SpMV alone: its order of summation, and what it reads beside a row without taking it into account."""

from __future__ import annotations

import sys
from fractions import Fraction

import numpy as np
import pytest

import fastsparse as fs
from fastsparse_kernels.sparse_operator import SPMV_ACCUMULATORS
from fastsparse_kernels.spmv import ROWS
from tests.checking import DTYPES, matrix, numbers, rounded, same_bits

LENGTHS = [0, 1, 2, 7, 8, 9, 15, 16, 17, 3, 5]


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
def test_order_of_summation(rng, dtype):
    """The first n mod SPMV_ACCUMULATORS nonzeros go to the first sums, the others cyclically to all, each by one FMA.

    Neighbouring sums are added, the bias comes last.
    """
    W = rows_of(rng, LENGTHS, 40, dtype)
    x, bias = numbers(rng, 40, dtype), numbers(rng, len(LENGTHS), dtype)
    expected = np.zeros(len(LENGTHS), dtype)
    for row, start in enumerate(W.indptr[:-1]):
        sums = [Fraction(0)] * SPMV_ACCUMULATORS
        end = W.indptr[row + 1]
        rest = (end - start) % SPMV_ACCUMULATORS
        for i, p in enumerate(range(start, end)):
            chain = i if i < rest else (i - rest) % SPMV_ACCUMULATORS
            product = Fraction(float(W.data[p])) * Fraction(float(x[W.indices[p]]))
            sums[chain] = rounded(sums[chain] + product, dtype)
        expected[row] = float(rounded(added_in_pairs(sums, dtype) + Fraction(float(bias[row])), dtype))
    assert same_bits(fs.spmm(W, x, bias=bias), expected)


@pytest.mark.R3
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_has_the_bits_it_has_among_others(rng, dtype):
    """Rows are finished together; which ones, and how many are left over, makes no difference."""
    W = rows_of(rng, LENGTHS, 40, dtype)
    x, bias = numbers(rng, 40, dtype), numbers(rng, len(LENGTHS), dtype)
    for activation in (None, "relu6", "gelu"):
        expected = fs.spmm(W, x, bias=bias, activation=activation)
        for first in range(len(LENGTHS)):
            for last in range(first + 1, min(first + ROWS + 2, len(LENGTHS)) + 1):
                at = slice(W.indptr[first], W.indptr[last])
                part = fs.CSR(
                    W.indptr[first : last + 1] - W.indptr[first], W.indices[at], W.data[at], (last - first, 40)
                )
                out = np.full(last - first, np.nan, dtype)
                fs.spmm(part, x, bias=bias[first:last], activation=activation, out=out)
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
        expected = fs.spmm(W, np.where(np.isfinite(x), x, 0).astype(dtype))[row]
        assert same_bits(fs.spmm(W.with_data(values), x)[row], expected)


CODE = """
import ctypes, mmap, sys
import numpy as np
import fastsparse as fs
from fastsparse.ops import spmv
from fastsparse.ops.target import target_for
from fastsparse.runtime.buffers import address

dtype = np.dtype(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
everything = np.frombuffer(pages, np.uint8)
assert libc.mprotect(everything.ctypes.data + mmap.PAGESIZE, mmap.PAGESIZE, 0) == 0
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
