"""Dense products over positions: what `spmm` computes for a full pattern, to the last bit, at twice the speed.

Where every weight is there, rows need no offsets of their own, so R rows share the loads of x: a block of R rows and T
vectors lies in R * T registers, and each column adds the outer product of R weights and T vectors. Order of summation:
ascending columns, one FMA each, then bias, then residual, as in `spmm`; which of the two runs shows in the time alone.

Positions, offsets and the epilogue are as in `spmm`. Columns are not cut into blocks: what R rows read of x is read
again by the next R, from L1 or L2, R * T multiply-adds for every T vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.extending import register_jitable

from . import simd
from .build import compile_kernel, compiled_once, kernel_record

ARGUMENTS = kernel_record(
    # tasks are (batch, tile, chunk of row blocks), the chunk innermost
    "tiles",  # tiles per batch
    "chunks",
    "chunk_starts",  # int64 [chunks + 1], first row block of every chunk
    "blocks",  # int64 [row blocks, 3]: first row, rows, bytes from a position to the first input of their group
    "columns",  # of every row
    "offsets",  # uint32 [columns], bytes
    "values",  # float [row blocks, columns, R], zeros for rows that are not there
    "x",
    "x_batch_stride",
    "x_positions",  # int64 [tiles, T]
    "y",
    "y_batch_stride",
    "y_row_stride",
    "passes",
    "y_positions",  # int64 [tiles, passes, T]
    "masks",  # uint16 [tiles, passes, T]
    "full",  # uint8 [tiles]
    "bias",  # float [M] or 0
    "residual",  # laid out as y, or 0
    "limits",  # float [2]
    "activation",  # address of a function(tile address, vectors), or 0
    "scratch",  # R * T vectors per worker
    "scratch_stride",
)
_arguments = simd.record_view(ARGUMENTS)


def make_dense(bits: int, lanes: int, count: int, rows: int) -> Callable[..., None]:
    """Kernel on blocks of `rows` rows and `count` vectors of `lanes` numbers of `bits` bits."""
    size = bits // 8
    width, every = count * lanes * size, rows * count

    @register_jitable
    def activated(acc, a, place, low, high):  # type: ignore[no-untyped-def]
        acc = simd.clamp(acc, low, high)
        if a.activation != 0:
            simd.store(acc, place)
            simd.call(a.activation, place, count)
            acc = simd.load(acc, place)
        return acc

    @register_jitable
    def finish(a, row, place, y, masks, table, low, high):  # type: ignore[no-untyped-def]
        """The epilogue of one row, whose sums are at `place`."""
        acc = simd.load(simd.zeros(count, lanes, bits), place)
        if a.bias != 0:
            acc = simd.add_scalar(acc, simd.load_float(bits, a.bias + row * size))
        target = row * a.y_row_stride
        source = target + a.residual - a.y
        if masks == 0:
            out = simd.gather_addresses(count, y, table)
            if a.residual != 0:
                acc = simd.add(acc, simd.load_at(acc, out, source))
            simd.store_at(activated(acc, a, place, low, high), out, target)
            return
        for i in range(a.passes):
            places, stored = simd.gather_addresses(count, y, table + i * count * 8), masks + i * count * 2
            added = acc
            if a.residual != 0:
                added = simd.add(acc, simd.load_masked_at(acc, places, source, stored))
            simd.store_masked_at(activated(added, a, place, low, high), places, target, stored)

    @register_jitable
    def run_task(a, task, scratch, low, high):  # type: ignore[no-untyped-def]
        chunk, tile = task % a.chunks, task // a.chunks
        batch, tile = tile // a.tiles, tile % a.tiles
        x, y = a.x + batch * a.x_batch_stride, a.y + batch * a.y_batch_stride
        places = a.x_positions + tile * count * 8
        table = a.y_positions + tile * a.passes * count * 8
        masks = a.masks + tile * a.passes * count * 2
        if simd.load_u8(a.full + tile) != 0:
            masks = 0
        block, end = simd.load_i64(a.chunk_starts + chunk * 8), simd.load_i64(a.chunk_starts + chunk * 8 + 8)
        columns, offsets = a.columns, a.offsets
        while block < end:
            entry = a.blocks + block * 24
            bases = simd.gather_addresses(count, x + simd.load_i64(entry + 16), places)
            acc = simd.zeros(every, lanes, bits)
            weights = a.values + block * columns * rows * size
            for k in range(columns):
                acc = simd.outer_at(acc, weights, bases, simd.load_u32(offsets + k * 4))
                weights += rows * size
            simd.store(acc, scratch)
            row = simd.load_i64(entry)
            for r in range(simd.load_i64(entry + 8)):
                finish(a, row + r, scratch + r * width, y, masks, table, low, high)
            block += 1

    def dense(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        scratch = a.scratch + slot * a.scratch_stride
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        task = simd.fetch_add(a.counter, 1)
        while task < a.stop:
            run_task(a, task, scratch, low, high)
            task = simd.fetch_add(a.counter, 1)

    return dense


@compiled_once
def dense_kernel(bits: int, lanes: int, count: int, rows: int) -> Any:
    """The compiled variant."""
    return compile_kernel(make_dense(bits, lanes, count, rows), f"dense_f{bits}_v{lanes}_t{count}_r{rows}")
