"""SpMV: y = epilogue(W @ x) for one column, where the operator's bytes are the cost.

Plain CSR and `CHAINS` running sums per row, the lanes of one vector: of a row of n nonzeros the first n mod CHAINS go
to the first sums, one each, the others in turn to all of them, and the sums are added in pairs. That order is fixed by
the row alone. Each x is loaded into its lane by itself: gather instructions are slow on many CPUs, and all by scalars
the loop is bound by three loads a nonzero. The first nonzeros are a whole vector, too, of which the lanes behind them
are dropped: branches on their number would be guessed wrong half the time, and behind the loop they would wait for its
end. The sums of four rows are added and finished together.

On AVX-512, `lookup.py` takes the place of this where W is dense enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import simd
from .build import compile_kernel, compiled_once, inlined_part, kernel_part, kernel_record
from .operators import CHAINS

ROWS = 4  # that are finished together

ARGUMENTS = kernel_record(
    # tasks are row groups
    "group_starts",  # int64 [groups + 1]
    "indptr",  # int64 [M + 1]
    "columns",  # uint16 or uint32 [nnz + CHAINS], the last of them any that x has
    "nonzeros",
    "values",  # float [nnz]
    "x",  # float [K]
    "y",  # float [M]
    "bias",  # float [M] or 0
    "limits",  # float [2]
    "activation",  # as in spmm
    "scratch",  # `scratch_bytes` per worker, where there is an activation
    "scratch_stride",
)
_arguments = simd.record_view(ARGUMENTS)


def scratch_bytes(bits: int, lanes: int) -> int:
    """What a worker needs for an activation: four sums, and whole vectors."""
    return max(ROWS, lanes) * bits // 8


def make_spmv(bits: int, lanes: int, column_bits: int) -> Callable[..., None]:
    """Kernel for column indices of `column_bits` (16 or 32) bits."""
    size = bits // 8
    column_size = column_bits // 8
    activated = scratch_bytes(bits, lanes) // size

    @inlined_part
    def row_sums(a, row, last):  # type: ignore[no-untyped-def]
        """The running sums of a row; zeros where there is no such row."""
        sums = simd.zeros(1, CHAINS, bits)
        if row >= last:
            return sums
        p, end = simd.load_i64(a.indptr + row * 8), simd.load_i64(a.indptr + row * 8 + 8)
        if p == end:
            return sums
        values, columns, rest = a.values + p * size, a.columns + p * column_size, (end - p) & (CHAINS - 1)
        if p + CHAINS <= a.nonzeros:
            sums = simd.dot_gathered_first(sums, values, a.x, columns, column_bits, rest, 0)
        else:  # there is no value behind the last
            sums = simd.dot_gathered_first(sums, values, a.x, columns, column_bits, rest, 1)
        p += rest
        while p < end:
            sums = simd.dot_gathered(sums, a.values + p * size, a.x, a.columns + p * column_size, column_bits)
            p += CHAINS
        return sums

    @kernel_part
    def activate(a, acc, scratch):  # type: ignore[no-untyped-def]
        for i in range(0, activated, ROWS):
            simd.store(acc, scratch + i * size)
        simd.call(a.activation, scratch, activated // lanes)
        return simd.load(acc, scratch)

    def spmv(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        group = simd.fetch_add(a.counter, 1)
        while group < a.stop:
            row, last = simd.load_i64(a.group_starts + group * 8), simd.load_i64(a.group_starts + group * 8 + 8)
            while row < last:
                acc = simd.sums_of_four(
                    row_sums(a, row, last), row_sums(a, row + 1, last), row_sums(a, row + 2, last),
                    row_sums(a, row + 3, last),
                )  # fmt: skip
                if a.bias != 0:
                    acc = simd.add(acc, simd.load_first(acc, a.bias + row * size, last - row))
                acc = simd.clamp(acc, low, high)
                if a.activation != 0:
                    acc = activate(a, acc, a.scratch + slot * a.scratch_stride)
                if row + ROWS <= last:
                    simd.store(acc, a.y + row * size)
                else:
                    simd.store_first(acc, a.y + row * size, last - row)
                row += ROWS
            group = simd.fetch_add(a.counter, 1)

    return spmv


@compiled_once
def spmv_kernel(bits: int, lanes: int, column_bits: int) -> Any:
    """The compiled variant."""
    return compile_kernel(make_spmv(bits, lanes, column_bits), f"spmv_f{bits}_v{lanes}_c{column_bits}")
