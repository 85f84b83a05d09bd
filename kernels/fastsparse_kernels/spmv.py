"""SpMV: y = epilogue(W @ x) for one column, where the operator's bytes are the cost.

Plain CSR and `CHAINS` running sums per row, the lanes of one vector: nonzero i of a row goes to sum i mod CHAINS, and
the sums are added in pairs. That order is fixed by the row alone. Each x is loaded into its lane by itself: gather
instructions are slow on many CPUs, and all by scalars the loop is bound by three loads a nonzero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import simd
from .build import compile_kernel, compiled_once, kernel_part, kernel_record

CHAINS = 8

ARGUMENTS = kernel_record(
    # tasks are row groups
    "group_starts",  # int64 [groups + 1]
    "indptr",  # int64 [M + 1]
    "columns",  # uint16 or uint32 [nnz]
    "values",  # float [nnz]
    "x",  # float [K]
    "y",
    "y_stride",  # bytes between results
    "bias",  # float [M] or 0
    "limits",  # float [2]
    "activation",  # as in spmm
    "scratch",  # one vector per worker
    "scratch_stride",
)
_arguments = simd.record_view(ARGUMENTS)


def make_spmv(bits: int, lanes: int, column_bits: int) -> Callable[..., None]:
    """Kernel for column indices of `column_bits` (16 or 32) bits."""
    size = bits // 8
    column_size = column_bits // 8
    load_column = simd.load_u16 if column_bits == 16 else simd.load_u32

    @kernel_part
    def term(a, p, x, total):  # type: ignore[no-untyped-def]
        value = simd.load_float(bits, a.values + p * size)
        return simd.fma(value, simd.load_float(bits, x + load_column(a.columns + p * column_size) * size), total)

    @kernel_part
    def row_sum(a, p, end, x):  # type: ignore[no-untyped-def]
        zero = simd.zero(bits)
        s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
        if p + CHAINS <= end:
            sums = simd.zeros(1, CHAINS, bits)
            while p + CHAINS <= end:
                sums = simd.dot_gathered(sums, a.values + p * size, x, a.columns + p * column_size, column_bits)
                p += CHAINS
            s0, s1, s2, s3 = (
                simd.lane_of(sums, 0),
                simd.lane_of(sums, 1),
                simd.lane_of(sums, 2),
                simd.lane_of(sums, 3),
            )
            s4, s5, s6, s7 = (
                simd.lane_of(sums, 4),
                simd.lane_of(sums, 5),
                simd.lane_of(sums, 6),
                simd.lane_of(sums, 7),
            )
        if p + 4 <= end:
            s0, s1, s2, s3 = term(a, p, x, s0), term(a, p + 1, x, s1), term(a, p + 2, x, s2), term(a, p + 3, x, s3)
            p += 4
        if p < end:
            s4 = term(a, p, x, s4)
        if p + 1 < end:
            s5 = term(a, p + 1, x, s5)
        if p + 2 < end:
            s6 = term(a, p + 2, x, s6)
        return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))

    def spmv(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        scratch = a.scratch + slot * a.scratch_stride
        group = simd.fetch_add(a.counter, 1)
        while group < a.stop:
            end = simd.load_i64(a.group_starts + group * 8 + 8)
            for row in range(simd.load_i64(a.group_starts + group * 8), end):
                total = row_sum(a, simd.load_i64(a.indptr + row * 8), simd.load_i64(a.indptr + row * 8 + 8), a.x)
                acc = simd.add_scalar(simd.zeros(1, lanes, bits), total)
                if a.bias != 0:
                    acc = simd.add_scalar(acc, simd.load_float(bits, a.bias + row * size))
                acc = simd.clamp(acc, low, high)
                if a.activation != 0:
                    simd.store(acc, scratch)
                    simd.call(a.activation, scratch, 1)
                    acc = simd.load(acc, scratch)
                simd.store_float(simd.lane_of(acc, 0), a.y + row * a.y_stride)
            group = simd.fetch_add(a.counter, 1)

    return spmv


@compiled_once
def spmv_kernel(bits: int, lanes: int, column_bits: int) -> Any:
    """The compiled variant."""
    return compile_kernel(make_spmv(bits, lanes, column_bits), f"spmv_f{bits}_v{lanes}_c{column_bits}")
