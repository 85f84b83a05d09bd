"""SpMV: y = epilogue(W @ x) for one column, where the operator's bytes are the cost. Three forms.

CSR: the accumulators of a row are the `SPMV_ACCUMULATORS` lanes of one vector. Of a row of n nonzeros the first
n mod SPMV_ACCUMULATORS go to the first lanes, one each, the others round-robin to all, and the lanes are summed in
pairs: an order that the row alone fixes. Each x is loaded into its lane by a scalar load, as gather instructions are
slow on many CPUs; with scalars throughout the loop would be bound by three loads a nonzero. The first nonzeros are a
masked vector: a branch on their number would be mispredicted half the time, and after the loop they would wait for its
end. The sums of four rows are reduced and finished at once.

Slices, for short rows: a vector holds one nonzero of each of its rows, so nothing is reduced, and no branch depends on
a row's length. In grids and bands most vectors of x are contiguous, and only the first column is stored. See
`sparse_operator.py` for the format. Order of summation: the nonzeros of a row in ascending columns, one FMA each; then
the bias.

Register lookup, for AVX-512, where W is dense enough: a chunk of x is kept in eight vector registers, and one
permutation takes 16 numbers out of 32. A vector of 16 nonzeros, each of another row, costs a lookup and one
multiply-add; see `sparse_operator.py` for the format. Values that are bfloat16 numbers, as those of today's models are,
have 16 bits in memory and 32 in registers: the same bits come out, after reading three bytes a nonzero instead of five.
Where x consists of such numbers, too, a chunk of it takes four registers, and one permutation 32 numbers out of 64.
Order of summation: the nonzeros of a row and chunk in ascending columns, one FMA each; then the row's chunks in order;
then the bias. The row alone fixes it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import simd
from .activations import make_finish
from .compiler import compile_kernel, compiled_once, inlined_function, kernel_arguments, kernel_function
from .sparse_operator import LOOKUP_CHUNK, LOOKUP_TABLES, LOOKUP_VECTORS, SPMV_ACCUMULATORS

ROWS = 4  # rows finished at once
# Bytes, by the bits of values: a quarter less time from memory; values of 16 bits gain little, and lose with 8192.
PREFETCH_DISTANCE = {32: 8192, 16: 2048}

ARGUMENTS = kernel_arguments(
    # tasks are row groups
    "group_starts",  # int64 [groups + 1]
    "indptr",  # int64 [M + 1]
    "columns",  # uint16 or uint32 [nnz + SPMV_ACCUMULATORS], the last of them any that x has
    "nonzeros",
    "distance",  # prefetch distance of columns and values in bytes; 0: no prefetch
    "x_distance",  # prefetch distance of x in nonzeros; 0: no prefetch
    "values",  # float [nnz]
    "x",  # float [K]
    "y",  # float [M]
    "bias",  # float [M] or 0
    "limits",  # float [2]
    "activation",  # as in spmm
    "scratch",  # `scratch_bytes` per worker, where there is an activation
    "scratch_stride",
)
_arguments = simd.arguments_view(ARGUMENTS)


def scratch_bytes(bits: int, lanes: int) -> int:
    """Bytes of scratch per worker for an activation: four sums, in whole vectors."""
    return max(ROWS, lanes) * bits // 8


@compiled_once
def spmv_kernel(bits: int, lanes: int, column_bits: int) -> Any:
    """Kernel for column indices of `column_bits` (16 or 32) bits."""
    size = bits // 8
    column_size = column_bits // 8
    finish = make_finish(bits, lanes, ROWS)

    @inlined_function
    def row_sums(a, row, last):  # type: ignore[no-untyped-def]
        """The accumulators of a row; zeros past the last row."""
        sums = simd.zeros(1, SPMV_ACCUMULATORS, bits)
        if row >= last:
            return sums
        p, end = simd.load_i64(a.indptr + row * 8), simd.load_i64(a.indptr + row * 8 + 8)
        if p == end:
            return sums
        values, columns, rest = a.values + p * size, a.columns + p * column_size, (end - p) & (SPMV_ACCUMULATORS - 1)
        if p + SPMV_ACCUMULATORS <= a.nonzeros:
            sums = simd.gather_fma_first(sums, values, a.x, columns, column_bits, rest, 0)
        else:  # no values to read past the last
            sums = simd.gather_fma_first(sums, values, a.x, columns, column_bits, rest, 1)
        p += rest
        while p < end:
            if a.distance > 0:
                simd.prefetch_l2(a.values + p * size + a.distance, 1)
                simd.prefetch_l2(a.columns + p * column_size + a.distance, 1)
            if a.x_distance > 0:
                later = min(p + a.x_distance, a.nonzeros)
                simd.prefetch_gathered(sums, a.x, a.columns + later * column_size, column_bits)
            sums = simd.gather_fma(sums, a.values + p * size, a.x, a.columns + p * column_size, column_bits)
            p += SPMV_ACCUMULATORS
        return sums

    def spmv(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        scratch = a.scratch + slot * a.scratch_stride
        for group in simd.tasks(arguments):
            row, last = simd.load_i64(a.group_starts + group * 8), simd.load_i64(a.group_starts + group * 8 + 8)
            while row < last:
                s0, s1 = row_sums(a, row, last), row_sums(a, row + 1, last)
                s2, s3 = row_sums(a, row + 2, last), row_sums(a, row + 3, last)
                finish(a, simd.reduce_four(s0, s1, s2, s3), row, last - row, a.y, low, high, scratch)
                row += ROWS

    return compile_kernel(spmv, f"spmv_f{bits}_v{lanes}_c{column_bits}")


# ---------------------------------------------------------------- slices

SLICE_ARGUMENTS = kernel_arguments(
    # tasks are groups of slices
    "group_starts",  # int64 [groups + 1], slices
    "rows",  # M
    "slice_starts",  # int64 [slices + 1], vectors of slices before
    "column_starts",  # int64 [slices + 1], columns of slices before
    "columns",  # uint32 [VL] of each vector, or its first one only in slices of runs
    "masks",  # uint16 [vectors]
    "distance",  # prefetch distance of columns and values in bytes; 0: no prefetch
    "values",  # float [vectors, VL]
    "sum_index",  # uint16 [slices, VL]: index of a row's sum in its group; 0 where rows have their own order
    "x",  # float [K]
    "y",  # float [M]
    "bias",  # float [M] or 0
    "limits",  # float [2]
    "activation",  # as in spmm
    "scratch",  # a vector, then sums of the widest group
    "scratch_stride",
)
_slice_arguments = simd.arguments_view(SLICE_ARGUMENTS)


@compiled_once
def slices_kernel(bits: int, lanes: int) -> Any:
    """The kernel for slices."""
    size = bits // 8
    vector, finish = lanes * size, make_finish(bits, lanes)

    @inlined_function
    def slice_sums(slice_starts, column_starts, columns, masks, values, x, distance, i):  # type: ignore[no-untyped-def]
        acc = simd.zeros(1, lanes, bits)
        v, end = simd.load_i64(slice_starts + i * 8), simd.load_i64(slice_starts + i * 8 + 8)
        first, last = simd.load_i64(column_starts + i * 8), simd.load_i64(column_starts + i * 8 + 8)
        columns += first * 4
        if last - first == end - v:
            while v < end:
                run = x + simd.load_u32(columns) * size
                acc = simd.fma_masked(acc, values + v * vector, run, simd.load_u16(masks + v * 2))
                columns += 4
                v = simd.opaque_i64(v + 1)
        else:
            while v < end:
                if distance > 0:
                    simd.prefetch_l2(values + v * vector + distance, 1)
                    simd.prefetch_l2(columns + distance, 1)
                mask = simd.load_u16(masks + v * 2)
                acc = simd.gather_fma_masked(acc, values + v * vector, x, columns, mask)
                columns += lanes * 4
                v += 1
        return acc

    def slices(arguments, slot):  # type: ignore[no-untyped-def]
        a = _slice_arguments(arguments)
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        plain = a.bias == 0 and a.activation == 0 and low == -np.inf and high == np.inf
        arrays = a.slice_starts, a.column_starts, a.columns, a.masks, a.values, a.x, a.distance
        y, whole = a.y, a.rows // lanes if plain else 0  # slices that need no more than a store
        scratch = a.scratch + slot * a.scratch_stride
        sums = scratch + vector
        for group in simd.tasks(arguments):
            first, last = simd.load_i64(a.group_starts + group * 8), simd.load_i64(a.group_starts + group * 8 + 8)
            if a.sum_index == 0:
                for i in range(first, min(last, whole)):
                    simd.store(slice_sums(*arrays, i), y + i * vector)
                for i in range(max(first, whole), last):
                    row = i * lanes
                    finish(a, slice_sums(*arrays, i), row, a.rows - row, y, low, high, scratch)
            else:
                for i in range(first, last):
                    simd.store(slice_sums(*arrays, i), sums + (i - first) * vector)
                for i in range(first, last):
                    acc, row = simd.gather(simd.zeros(1, lanes, bits), sums, a.sum_index + i * lanes * 2, 16), i * lanes
                    finish(a, acc, row, a.rows - row, y, low, high, scratch)

    return compile_kernel(slices, f"spmv_slices_f{bits}_v{lanes}")


# ---------------------------------------------------------------- register lookup

LOOKUP_ARGUMENTS = kernel_arguments(
    # tasks are row groups, of whole slices but for the last one
    "group_starts",  # int64 [groups + 1], rows
    "chunks",
    "inputs",  # K
    "slice_starts",  # int64 [groups + 1], slices of groups before
    "step_starts",  # int64 [groups + 1], steps of groups before
    "step_counts",  # uint8 [slices] by group, chunk and slice
    "columns",  # uint8 [steps, VL, LOOKUP_VECTORS]
    "values",  # float [steps, LOOKUP_VECTORS, VL], or bfloat16 [steps, LOOKUP_VECTORS / 2, VL, 2]
    "sum_index",  # uint16 [slices, LOOKUP_ROWS] by group, VL rows in order, and chunk: index of a row's sum
    "x",  # float [K]
    "y",  # float [M]
    "bias",  # float [M] or 0
    "limits",  # float [2]
    "activation",  # as in spmm
    "scratch",  # sums [chunks, rows] of the widest group, then a vector
    "scratch_stride",
    "scratch_vector",
)
_lookup_arguments = simd.arguments_view(LOOKUP_ARGUMENTS)


@compiled_once
def lookup_kernel(bits: int, lanes: int, value_bits: int) -> Any:
    """The register-lookup kernel for values of 32 or 16 bits, on CPUs with AVX-512; its operands are packed for
    LOOKUP_BITS and LOOKUP_LANES."""
    size, slice_rows = bits // 8, LOOKUP_VECTORS * lanes
    slice_sums, step, distance = slice_rows * size, slice_rows * value_bits // 8, PREFETCH_DISTANCE[value_bits]
    finish = make_finish(bits, lanes)

    @inlined_function
    def add_slices(table, step_counts, columns, weights, sums, end):  # type: ignore[no-untyped-def]
        while sums < end:
            acc = simd.zeros(LOOKUP_VECTORS, lanes, bits)
            last = weights + simd.load_u8(step_counts) * step
            while weights < last:
                simd.prefetch_l2(weights + distance, 1)
                acc = simd.lookup_fma(acc, weights, table, columns, value_bits)
                weights += step
                columns += slice_rows
            simd.store(acc, sums)
            sums += slice_sums
            step_counts += 1
        return columns, weights

    @kernel_function
    def add_chunk(a, chunk, step_counts, slices, columns, weights, sums):  # type: ignore[no-untyped-def]
        """The sums of all slices of a chunk; returns the addresses of the next chunk's columns and values."""
        first, end = chunk * LOOKUP_CHUNK, sums + slices * slice_sums
        zeros, inside = simd.zeros(LOOKUP_TABLES, lanes, bits), min(a.inputs - first, LOOKUP_CHUNK)
        x = simd.load_first(zeros, a.x + first * size, inside)
        if value_bits == 16 and simd.lower_halves(x) == 0:  # x comes from a model in bfloat16, as the values do
            return add_slices(simd.upper_halves(x), step_counts, columns, weights, sums, end)
        return add_slices(x, step_counts, columns, weights, sums, end)

    @kernel_function
    def add_rows(a, row, last, sum_index, sums, stride, low, high, scratch):  # type: ignore[no-untyped-def]
        """Sum the chunks of a vector of rows, then the epilogue and the store."""
        rows = simd.zeros(lanes, 1, bits)  # scalars: no lane has to be put into a vector for each chunk
        for _ in range(a.chunks):
            rows = simd.add_indexed(rows, sums, sum_index)
            sum_index += lanes * 2
            sums += stride
        simd.store(rows, scratch)
        finish(a, simd.load(simd.zeros(1, lanes, bits), scratch), row, last - row, a.y, low, high, scratch)

    def lookup(arguments, slot):  # type: ignore[no-untyped-def]
        a = _lookup_arguments(arguments)
        scratch = a.scratch + slot * a.scratch_stride
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        for group in simd.tasks(arguments):
            row, last = simd.load_i64(a.group_starts + group * 8), simd.load_i64(a.group_starts + group * 8 + 8)
            slices = (last - row + slice_rows - 1) // slice_rows
            before, steps = simd.load_i64(a.slice_starts + group * 8), simd.load_i64(a.step_starts + group * 8)
            columns, weights = a.columns + steps * slice_rows, a.values + steps * step
            for chunk in range(a.chunks):
                step_counts, sums = a.step_counts + before + chunk * slices, scratch + chunk * slices * slice_sums
                columns, weights = add_chunk(a, chunk, step_counts, slices, columns, weights, sums)
            sum_index = a.sum_index + before * slice_rows * 2
            while row < last:
                add_rows(a, row, last, sum_index, scratch, slices * slice_sums, low, high, scratch + a.scratch_vector)
                sum_index += a.chunks * lanes * 2
                row += lanes

    return compile_kernel(lookup, f"lookup_w{value_bits}")
