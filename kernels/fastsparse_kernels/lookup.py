"""SpMV whose x is looked up in registers: for AVX-512, where one instruction takes 16 numbers out of 32.

See `lookup_layout.py` for how W lies. A row's sums, `SHARE` of them, lie in the worker's scratch until all chunks are
done; then the rows of a tile are added up together, by a shuffle tree. Order of summation: nonzero i of a row and chunk
goes to sum i mod `SHARE`, chunks in turn, and the sums are added in pairs. The row alone fixes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import simd
from .build import compile_kernel, compiled_once, kernel_part, kernel_record
from .lookup_layout import BITS, CHUNK, LANES, SHARE, TILE_BYTES

AHEAD = 8192  # bytes, before values are asked for: nothing in between would wait for memory

ARGUMENTS = kernel_record(
    # tasks are row groups, of whole tiles but for the last one
    "group_starts",  # int64 [groups + 1], rows
    "chunks",
    "inputs",  # K
    "vectors",  # uint32 [groups * chunks + 1], where those of a group and chunk begin
    "sums",  # uint16 [vectors], which vector of the group's sums it is added to
    "places",  # uint8 [vectors, LANES]
    "values",  # float [nnz + LANES] in the order of vectors and lanes
    "starts",  # int64 [groups], each group's first value
    "x",  # float [K]
    "y",  # float [M]
    "bias",  # float [M] or 0
    "limits",  # float [2]
    "activation",  # as in spmm
    "scratch",  # sums of the widest group, then a vector
    "scratch_stride",
    "scratch_vector",
)
_arguments = simd.record_view(ARGUMENTS)


def make_lookup(tables: int) -> Callable[..., None]:
    """Kernel for chunks of `tables` pairs of registers."""
    size, vector, registers = BITS // 8, LANES * BITS // 8, 2 * tables

    @kernel_part
    def add_chunk(a, chunk, v, end, weights, sums):  # type: ignore[no-untyped-def]
        """Add the products of the chunk's vectors from v up to `end`; gives where the next one's values are."""
        first = chunk * tables * CHUNK
        x = simd.load_first(simd.zeros(registers, LANES, BITS), a.x + first * size, a.inputs - first)
        places, numbers = a.places, a.sums
        while v < end:
            target, place = sums + simd.load_u16(numbers + v * 2) * vector, places + v * LANES
            simd.prefetch(weights + AHEAD)
            simd.prefetch(place + AHEAD // 4)
            acc = simd.load(simd.zeros(1, LANES, BITS), target)
            taken = simd.places_taken(acc, place)
            simd.store(simd.dot_lookup(acc, weights, x, place), target)
            weights += taken * size
            v += 1
        return weights

    def lookup(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        scratch = a.scratch + slot * a.scratch_stride
        low, high = simd.load_float(BITS, a.limits), simd.load_float(BITS, a.limits + size)
        group = simd.fetch_add(a.counter, 1)
        while group < a.stop:
            row, last = simd.load_i64(a.group_starts + group * 8), simd.load_i64(a.group_starts + group * 8 + 8)
            tiles = (last - row + LANES - 1) // LANES
            for place in range(scratch, scratch + tiles * TILE_BYTES, vector):
                simd.store(simd.zeros(1, LANES, BITS), place)
            weights = a.values + simd.load_i64(a.starts + group * 8) * size
            ends = a.vectors + group * a.chunks * 4
            for chunk in range(a.chunks):
                v, end = simd.load_u32(ends + chunk * 4), simd.load_u32(ends + chunk * 4 + 4)
                if v < end:
                    weights = add_chunk(a, chunk, v, end, weights, scratch)
            for tile in range(tiles):
                acc = simd.sums_of_halves(simd.load(simd.zeros(SHARE, LANES, BITS), scratch + tile * TILE_BYTES))
                if a.bias != 0:
                    acc = simd.add(acc, simd.load_first(acc, a.bias + row * size, last - row))
                acc = simd.clamp(acc, low, high)
                if a.activation != 0:
                    simd.store(acc, scratch + a.scratch_vector)
                    simd.call(a.activation, scratch + a.scratch_vector, 1)
                    acc = simd.load(acc, scratch + a.scratch_vector)
                simd.store_first(acc, a.y + row * size, last - row)
                row += LANES
            group = simd.fetch_add(a.counter, 1)

    return lookup


@compiled_once
def lookup_kernel(tables: int) -> Any:
    """The compiled variant, on CPUs with AVX-512."""
    return compile_kernel(make_lookup(tables), f"lookup_t{tables}")
