"""SpMV whose x is looked up in registers: for AVX-512, where one instruction takes 16 numbers out of 32.

See `lookup_layout.py` for how W lies. A vector of 16 nonzeros, each of another row, costs a lookup and one
multiply-add, where the SpMV of `spmv.py` loads every x by itself, and adds up the lanes of every row. Order of
summation: the nonzeros of a row and chunk in ascending columns, one FMA each; then the sums of its chunks, one after
the other; then the bias. The row alone fixes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import simd
from .build import compile_kernel, compiled_once, inlined_part, kernel_part, kernel_record
from .lookup_layout import BITS, CHUNK, LANES, TABLES

AHEAD = 8192  # bytes, before values are asked for: a quarter less time from memory, some per cent more in caches

ARGUMENTS = kernel_record(
    # tasks are row groups, of whole slices but for the last one
    "group_starts",  # int64 [groups + 1], rows
    "chunks",
    "inputs",  # K
    "slice_starts",  # int64 [groups + 1], slices of groups before
    "vector_starts",  # int64 [groups + 1], vectors of groups before
    "vectors",  # uint16 [slices] by group, chunk and slice: vectors without empty lanes + 256 * those behind with some
    "places",  # uint8 [vectors, LANES]
    "values",  # float [vectors, LANES]
    "positions",  # uint16 [slices, LANES] by group, slice of rows as they come, and chunk: where a row has its sum
    "x",  # float [K]
    "y",  # float [M]
    "bias",  # float [M] or 0
    "limits",  # float [2]
    "activation",  # as in spmm
    "scratch",  # sums [chunks, rows] of the widest group, then a vector
    "scratch_stride",
    "scratch_vector",
)
_arguments = simd.record_view(ARGUMENTS)


def make_lookup() -> Callable[..., None]:
    """The kernel."""
    size, vector = BITS // 8, LANES * BITS // 8

    def make_add_vectors(gaps: int) -> Callable[..., Any]:
        """Products of some vectors, added to `acc`; and where the next one's places and values are."""

        @inlined_part
        def add_vectors(acc, number, x, place, weights):  # type: ignore[no-untyped-def]
            end = weights + number * vector
            while weights < end:
                simd.prefetch(weights + AHEAD)
                acc = simd.dot_lookup(acc, weights, x, place, gaps)
                weights += vector
                place += LANES
            return acc, place, weights

        return add_vectors

    add_whole, add_with_gaps = make_add_vectors(0), make_add_vectors(1)

    @kernel_part
    def add_chunk(a, chunk, vectors, slices, place, weights, sums):  # type: ignore[no-untyped-def]
        """The sums of all slices of a chunk; gives where the next one's places and values are."""
        first = chunk * CHUNK
        x = simd.load_first(simd.zeros(TABLES, LANES, BITS), a.x + first * size, a.inputs - first)
        end = sums + slices * vector
        while sums < end:
            acc, both = simd.zeros(1, LANES, BITS), simd.load_u16(vectors)
            acc, place, weights = add_whole(acc, both & 0xFF, x, place, weights)
            acc, place, weights = add_with_gaps(acc, both >> 8, x, place, weights)
            simd.store(acc, sums)
            sums += vector
            vectors += 2
        return place, weights

    @kernel_part
    def add_rows(a, row, last, positions, sums, stride, low, high, scratch):  # type: ignore[no-untyped-def]
        """Add up the sums of a slice of rows, and finish them."""
        acc = simd.zeros(1, LANES, BITS)
        for _ in range(a.chunks):
            acc = simd.add(acc, simd.gathered(acc, sums, positions, 16))
            positions += LANES * 2
            sums += stride
        if a.bias != 0:
            acc = simd.add(acc, simd.load_first(acc, a.bias + row * size, last - row))
        acc = simd.clamp(acc, low, high)
        if a.activation != 0:
            simd.store(acc, scratch)
            simd.call(a.activation, scratch, 1)
            acc = simd.load(acc, scratch)
        simd.store_first(acc, a.y + row * size, last - row)

    def lookup(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        scratch = a.scratch + slot * a.scratch_stride
        low, high = simd.load_float(BITS, a.limits), simd.load_float(BITS, a.limits + size)
        group = simd.fetch_add(a.counter, 1)
        while group < a.stop:
            row, last = simd.load_i64(a.group_starts + group * 8), simd.load_i64(a.group_starts + group * 8 + 8)
            slices = (last - row + LANES - 1) // LANES
            before = simd.load_i64(a.slice_starts + group * 8)
            v = simd.load_i64(a.vector_starts + group * 8)
            place, weights = a.places + v * LANES, a.values + v * vector
            for chunk in range(a.chunks):
                vectors = a.vectors + (before + chunk * slices) * 2
                sums = scratch + chunk * slices * vector
                place, weights = add_chunk(a, chunk, vectors, slices, place, weights, sums)
            for i in range(slices):
                positions = a.positions + (before + i * a.chunks) * LANES * 2
                begin = row + i * LANES
                add_rows(a, begin, last, positions, scratch, slices * vector, low, high, scratch + a.scratch_vector)
            group = simd.fetch_add(a.counter, 1)

    return lookup


@compiled_once
def lookup_kernel() -> Any:
    """The compiled kernel, on CPUs with AVX-512."""
    return compile_kernel(make_lookup(), "lookup")
