"""SpMM and SDDMM that stream the rows of a CSR matrix: nothing is packed, X and Y are read and written in place.

For matrices that are not layers: few nonzeros a row, many columns, rows of any length. A row's sums stay in registers
over its nonzeros; indices and values are the matrix's own. Order of summation, and so the bits, as in `spmm.py`:
ascending columns, one FMA each, then the bias, then the activation.

Rows of X and Y of any length are whole vectors, the last of which overlaps the one before; fewer columns than lanes are
one or two vectors of fewer lanes. Nothing is masked. All tiles of a row are computed before the next row, so that Y is
written in order: a line with parts of two tiles is complete when it leaves the core.

Multiply-adds of a row wait for each other. Where a row of X is one vector, and sums have no epilogue, four rows are
computed at once, unless rows of X are prefetched: then memory is what they wait for.

The ends of rows of any length are mispredicted, which costs more than all else where X and Y are narrow. There the rows
of a task are sorted by length.

Tasks are chunks of about equal nonzeros plus rows, each with one writer. A row longer than a chunk is split along the
columns of X.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import simd
from .compiler import compile_kernel, compiled_once, inlined_function, kernel_arguments, kernel_function
from .sddmm import make_over_row
from .sparse_operator import WHOLE

SPMM = kernel_arguments(
    # tasks are (batch, chunk), the chunk innermost
    "chunks",  # per batch
    "bounds",  # int64 [chunks, 4], first and last row, first and last tile of each
    "order",  # uint32 [M], row of Y for each row, or 0 where they are the same
    "indptr",  # int64 [M + 1]
    "indices",  # int32 or int64 [nnz]
    "values",  # float [nnz]
    "nonzeros",
    "x",
    "x_batch_stride",
    "x_row_stride",
    "y",
    "y_batch_stride",
    "y_row_stride",
    "tiles",  # per row
    "tile_stride",  # bytes from one tile to the next, except the last
    "last_tile",  # bytes to the last tile
    "last_vector",  # bytes from a tile to its last vector
    "last_tile_vector",  # the same in the last tile
    "distance",  # prefetch distance of rows of X in nonzeros; 0: no prefetch
    "nontemporal",  # `sparse_operator.WHOLE` or `QUARTERS`: how y is stored; 0: ordinary stores
    "bias",  # float [M] or 0
    "limits",  # float [2]: clamp to (low, high)
    "activation",  # as in spmm
    "activation_vectors",  # of its own lanes, that hold a tile
    "scratch",  # per worker with an activation: a tile in whole vectors
    "scratch_stride",
)
_spmm = simd.arguments_view(SPMM)

SDDMM = kernel_arguments(
    # tasks are chunks of rows
    "bounds",  # int64 [chunks + 1], rows
    "indptr",
    "indices",
    "gradients",  # float [nnz], written in the order of the CSR
    "batches",
    "columns",  # of x and y
    "x",  # row k for column k of the matrix
    "x_batch_stride",
    "x_row_stride",
    "y",  # row m for row m of the matrix
    "y_batch_stride",
    "y_row_stride",
    "distance",
)
_sddmm = simd.arguments_view(SDDMM)


@compiled_once
def spmm_kernel(bits: int, lanes: int, width: int, index_bits: int) -> Any:
    """Kernel on tiles of `width` vectors of `lanes` numbers of `bits` bits, for indices of `index_bits` bits."""
    size = bits // 8
    tile_bytes, index_size = width * lanes * size, index_bits // 8
    load_index = simd.load_i64 if index_bits == 64 else simd.load_u32

    @inlined_function
    def add_row(a, acc, x, p, end, last):  # type: ignore[no-untyped-def]
        indices, values, stride = a.indices, a.values, a.x_row_stride
        while p < end:
            acc = simd.axpy_overlapping(acc, values + p * size, x + load_index(indices + p * index_size) * stride, last)
            p = simd.opaque_i64(p + 1)
        return acc

    @inlined_function
    def add_row_prefetching(a, acc, x, p, end, last, distance, final):  # type: ignore[no-untyped-def]
        indices, values, stride = a.indices, a.values, a.x_row_stride
        while p < end:
            later = x + load_index(indices + min(p + distance, final) * index_size) * stride
            simd.prefetch_l2(later, tile_bytes)
            acc = simd.axpy_overlapping(acc, values + p * size, x + load_index(indices + p * index_size) * stride, last)
            p = simd.opaque_i64(p + 1)
        return acc

    @inlined_function
    def activate(acc, activation, vectors, scratch):  # type: ignore[no-untyped-def]
        simd.store(acc, scratch)
        simd.call(activation, scratch, vectors)
        return simd.load(acc, scratch)

    @inlined_function
    def finish(a, acc, row, y, last, ends, slot):  # type: ignore[no-untyped-def]
        low, high, clamped, plainly = ends
        target = y + row * a.y_row_stride
        if plainly:
            simd.store_overlapping(acc, target, last)
            return
        if a.bias != 0:
            acc = simd.add_scalar(acc, simd.load_float(bits, a.bias + row * size))
        if clamped:
            acc = simd.clamp(acc, low, high)
        if a.activation != 0:
            acc = activate(acc, a.activation, a.activation_vectors, a.scratch + slot * a.scratch_stride)
        if a.nontemporal == 0:
            simd.store_overlapping(acc, target, last)
        elif a.nontemporal == WHOLE:
            simd.store_nontemporal(acc, target)
        else:
            simd.store_nontemporal_quarters(acc, target, last)

    @inlined_function
    def add_four_rows(a, x, p0, p1, p2, p3, p4):  # type: ignore[no-untyped-def]
        """Sums over as many nonzeros of four rows as the shortest has, one of each at a time; where the rests begin."""
        indices, values, stride = a.indices, a.values, a.x_row_stride
        s0, s1 = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, bits)
        s2, s3 = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, bits)
        end = p0 + min(min(p1 - p0, p2 - p1), min(p3 - p2, p4 - p3))
        while p0 < end:
            s0 = simd.axpy_overlapping(s0, values + p0 * size, x + load_index(indices + p0 * index_size) * stride, 0)
            s1 = simd.axpy_overlapping(s1, values + p1 * size, x + load_index(indices + p1 * index_size) * stride, 0)
            s2 = simd.axpy_overlapping(s2, values + p2 * size, x + load_index(indices + p2 * index_size) * stride, 0)
            s3 = simd.axpy_overlapping(s3, values + p3 * size, x + load_index(indices + p3 * index_size) * stride, 0)
            p0, p1, p2, p3 = simd.opaque_i64(p0 + 1), p1 + 1, p2 + 1, p3 + 1
        return s0, s1, s2, s3, p0, p1, p2, p3

    @kernel_function
    def run_four_rows(a, row, stop, x, y):  # type: ignore[no-untyped-def]
        """Rows from `row` on, four at a time, without epilogue; the first that is left."""
        indptr, order, stride = a.indptr, a.order, a.y_row_stride
        p0 = simd.load_i64(indptr + row * 8)
        while row + 4 <= stop:
            at = indptr + row * 8
            p1, p2, p3 = simd.load_i64(at + 8), simd.load_i64(at + 16), simd.load_i64(at + 24)
            p4 = simd.load_i64(at + 32)
            s0, s1, s2, s3, q0, q1, q2, q3 = add_four_rows(a, x, p0, p1, p2, p3, p4)
            s0, s1 = add_row(a, s0, x, q0, p1, 0), add_row(a, s1, x, q1, p2, 0)
            s2, s3 = add_row(a, s2, x, q2, p3, 0), add_row(a, s3, x, q3, p4, 0)
            if order == 0:
                out = y + row * stride
                simd.store(s0, out)
                simd.store(s1, out + stride)
                simd.store(s2, out + 2 * stride)
                simd.store(s3, out + 3 * stride)
            else:
                at = order + row * 4
                simd.store(s0, y + simd.load_u32(at) * stride)
                simd.store(s1, y + simd.load_u32(at + 4) * stride)
                simd.store(s2, y + simd.load_u32(at + 8) * stride)
                simd.store(s3, y + simd.load_u32(at + 12) * stride)
            p0, row = p4, row + 4
        return row

    @kernel_function
    def run_rows(a, row, stop, x, y, last, ends, slot):  # type: ignore[no-untyped-def]
        indptr, order, distance, final = a.indptr, a.order, a.distance, a.nonzeros - 1
        if width == 1 and ends[3] and distance == 0:
            row = run_four_rows(a, row, stop, x, y)
        p = simd.load_i64(indptr + row * 8)
        while row < stop:
            end, acc = simd.load_i64(indptr + row * 8 + 8), simd.zeros(width, lanes, bits)
            if distance > 0:
                acc = add_row_prefetching(a, acc, x, p, end, last, distance, final)
            else:
                acc = add_row(a, acc, x, p, end, last)
            finish(a, acc, row if order == 0 else simd.load_u32(order + row * 4), y, last, ends, slot)
            p, row = end, row + 1

    def stream_spmm(arguments, slot):  # type: ignore[no-untyped-def]
        a = _spmm(arguments)
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        clamped = low > -np.inf or high < np.inf
        ends = (low, high, clamped, not (clamped or a.bias != 0 or a.activation != 0 or a.nontemporal != 0))
        if a.activation != 0:  # defined numbers behind the tile
            for at in range(0, a.scratch_stride, lanes * size):
                simd.store(simd.zeros(1, lanes, bits), a.scratch + slot * a.scratch_stride + at)
        for task in simd.tasks(arguments):
            batch, chunk = task // a.chunks, task % a.chunks
            bounds = a.bounds + chunk * 32
            row, stop = simd.load_i64(bounds), simd.load_i64(bounds + 8)
            first, after = simd.load_i64(bounds + 16), simd.load_i64(bounds + 24)
            x, y = a.x + batch * a.x_batch_stride, a.y + batch * a.y_batch_stride
            step = stop - row if after - first == 1 else 1  # rows of all tiles in order
            while row < stop:
                for tile in range(first, after):
                    at, last = tile * a.tile_stride, a.last_vector
                    if tile == a.tiles - 1:
                        at, last = a.last_tile, a.last_tile_vector
                    run_rows(a, row, row + step, x + at, y + at, last, ends, slot)
                row += step
        if a.nontemporal != 0:
            simd.store_fence()

    return compile_kernel(stream_spmm, f"stream_spmm_f{bits}_v{lanes}_t{width}_i{index_bits}")


@compiled_once
def sddmm_kernel(bits: int, lanes: int, index_bits: int) -> Any:
    """gradients[p] += y[row(p)] . x[column(p)] over the batches, each product over `columns` numbers that lie in a row.

    Eight nonzeros of a row at once, as in `sddmm.py`: a vector of y is read once for all of them, and one shuffle tree
    reduces their sums. Products are added up vector by vector, the rest under a mask as one more.
    """
    size = bits // 8
    vector = lanes * size
    index_size, load_index = index_bits // 8, simd.load_i64 if index_bits == 64 else simd.load_u32

    def make_take(width: int) -> Callable[..., Any]:
        """The products of up to `width` nonzeros from p on."""

        @inlined_function
        def take(p, valid, a, x, y):  # type: ignore[no-untyped-def]
            bases = simd.row_addresses(width, x, a.indices + p * index_size, index_bits, a.x_row_stride, valid)
            acc = simd.zeros(width, lanes, bits)
            at, whole = 0, a.columns // lanes * vector
            while at < whole:
                acc = simd.dot(acc, y + at, bases, at)
                at += vector
            if at < a.columns * size:
                acc = simd.dot_first(acc, y + at, bases, at, a.columns - at // size)
            simd.add_reduced(acc, a.gradients + p * size, valid, 0)

        return take

    over_row = make_over_row(lanes, make_take)

    @inlined_function
    def prefetch(a, x, p, end):  # type: ignore[no-untyped-def]
        """The rows of x that belong to nonzeros from p on, up to `end`."""
        nbytes = a.columns * size
        while p < end:
            row = x + load_index(a.indices + p * index_size) * a.x_row_stride
            for at in range(0, nbytes, 64):
                simd.prefetch_l2(row + at, 1)
            simd.prefetch_l2(row + nbytes - size, 1)  # one line more where x is not aligned to lines
            p += 1

    @kernel_function
    def run_rows(a, row, stop, x, y):  # type: ignore[no-untyped-def]
        p, final = simd.load_i64(a.indptr + row * 8), simd.load_i64(a.indptr + stop * 8)
        distance, prefetched = a.distance, p
        while row < stop:
            end, y_row = simd.load_i64(a.indptr + row * 8 + 8), y + row * a.y_row_stride
            if distance > 0:
                reach = min(end + distance, final)
                prefetch(a, x, max(prefetched, p), min(reach, max(prefetched, p) + distance))
                prefetched = reach
            over_row(p, end, a, x, y_row)
            p = end
            row += 1

    def stream_sddmm(arguments, slot):  # type: ignore[no-untyped-def]
        a = _sddmm(arguments)
        for task in simd.tasks(arguments):
            row, stop = simd.load_i64(a.bounds + task * 8), simd.load_i64(a.bounds + task * 8 + 8)
            for batch in range(a.batches):
                run_rows(a, row, stop, a.x + batch * a.x_batch_stride, a.y + batch * a.y_batch_stride)

    return compile_kernel(stream_sddmm, f"stream_sddmm_f{bits}_v{lanes}_i{index_bits}")
