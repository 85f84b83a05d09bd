"""SpMM over positions: y[m, position] = epilogue(sum over the row's nonzeros of value * x[position + offset]).

The epilogue adds the bias and, where there is one, the residual, which lies as y does; then it applies the activation.

One kernel serves linear layers, convolution of every kind and the input gradients of both. What differs is data: a
nonzero's byte offset (column times row stride, or the im2col index, is folded into it) and a tile's positions, which
are T base addresses that may lie anywhere.

A tile's sums stay in T vector registers over all nonzeros of a row in a column block; rows that span several blocks
keep their partial sum in the worker's scratch. The panel of a block fits the L1 cache. Order of summation: ascending
columns, one FMA each, then bias, then residual, whatever the tile, the blocks, or the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.extending import register_jitable

from . import simd
from .build import compile_kernel, compiled_once, kernel_record

# All values are int64; names in capitals in the comment are lengths, addresses point to arrays of the named type.
ARGUMENTS = kernel_record(
    # tasks are (batch, tile, row group), the group innermost
    "tiles",  # tiles per batch
    "groups",  # row groups
    # operator: see operators.py
    "blocks",  # column blocks
    "group_starts",  # int64 [groups + 1], first row of every group
    "segments",  # uint32 [groups * blocks * 4 + 1], entries by group, block and kind
    "row_ends",  # uint32 [entries + 1], end of every entry's nonzeros
    "rows",  # uint32 [entries]
    "offsets",  # uint32 [nnz], bytes from the block's base
    "values",  # float [nnz]
    "block_bases",  # int64 [blocks], bytes from a position to the block's first input
    "block_rows",  # int64 [blocks + 1], X rows of every block (packed inputs only)
    # input
    "x",
    "x_batch_stride",
    "x_positions",  # int64 [tiles, T], bytes from x of the batch to each vector of the tile
    "x_row_stride",  # packed inputs only
    "packed",  # 1: copy the tile's columns of every block from row-major x into a panel; 0: read x in place
    "tile_columns",  # uint32 [tiles], columns of x that the tile has (packed inputs only)
    # output
    "y",
    "y_batch_stride",
    "y_row_stride",
    "passes",  # how often a tile is stored, each time with other masks: 1 but for tiles that cross image rows
    "y_positions",  # int64 [tiles, passes, T]
    "masks",  # uint16 [tiles, passes, T], lanes to store
    "full",  # uint8 [tiles], 1 where all lanes are stored in one pass
    # epilogue
    "bias",  # float [M] or 0
    "residual",  # what is added behind the bias, with the strides, positions and masks of y; it may be y itself; or 0
    "limits",  # float [2]: clamp to (low, high)
    "activation",  # address of a function(tile address, vectors) that works in place, or 0
    # worker scratch: partial sums, then one tile, then the panel
    "scratch",
    "scratch_stride",
    "scratch_tile",
    "scratch_panel",
)
_arguments = simd.record_view(ARGUMENTS)


def make_spmm(bits: int, lanes: int, count: int) -> Callable[..., None]:
    """Kernel on tiles of `count` vectors of `lanes` numbers of `bits` bits."""
    size = bits // 8
    vector = lanes * size
    width = count * vector

    @register_jitable
    def activated(acc, a, tile_buffer, low, high):  # type: ignore[no-untyped-def]
        acc = simd.clamp(acc, low, high)
        if a.activation != 0:
            simd.store(acc, tile_buffer)
            simd.call(a.activation, tile_buffer, count)
            acc = simd.load(acc, tile_buffer)
        return acc

    @register_jitable
    def finish_added(acc, a, row, tile_buffer, y, out, masks, table, low, high):  # type: ignore[no-untyped-def]
        """The end of the epilogue from the residual on, in each of a tile's passes for the lanes that it stores."""
        target = row * a.y_row_stride
        source = target + a.residual - a.y
        if masks == 0:
            acc = simd.add(acc, simd.load_at(acc, out, source))
            simd.store_at(activated(acc, a, tile_buffer, low, high), out, target)
            return
        for i in range(a.passes):
            places, lanes_stored = simd.gather_addresses(count, y, table + i * count * 8), masks + i * count * 2
            added = simd.add(acc, simd.load_masked_at(acc, places, source, lanes_stored))
            simd.store_masked_at(activated(added, a, tile_buffer, low, high), places, target, lanes_stored)

    def make_rows(first: int, last: int) -> Callable[..., Any]:
        """The loop over entries of one kind: `first` starts from zero, `last` ends in the epilogue."""

        @register_jitable
        def begin(row, partial):  # type: ignore[no-untyped-def]
            acc = simd.zeros(count, lanes, bits)
            if not first:
                acc = simd.load(acc, partial + row * width)
            return acc

        @register_jitable
        def finish(acc, a, row, partial, tile_buffer, y, out, masks, table, low, high):  # type: ignore[no-untyped-def]
            if not last:
                simd.store(acc, partial + row * width)
                return
            if a.bias != 0:
                acc = simd.add_scalar(acc, simd.load_float(bits, a.bias + row * size))
            if a.residual != 0:
                finish_added(acc, a, row, tile_buffer, y, out, masks, table, low, high)
                return
            acc = activated(acc, a, tile_buffer, low, high)
            if masks == 0:
                simd.store_at(acc, out, row * a.y_row_stride)
            else:
                for i in range(a.passes):
                    places = simd.gather_addresses(count, y, table + i * count * 8)
                    simd.store_masked_at(acc, places, row * a.y_row_stride, masks + i * count * 2)

        @register_jitable
        def run_rows(  # type: ignore[no-untyped-def]
            a, entry, end, p, bases, partial, tile_buffer, y, out, masks, table, low, high
        ):
            row_ends, rows, offsets, values = a.row_ends, a.rows, a.offsets, a.values
            while entry < end:
                stop = simd.load_u32(row_ends + entry * 4 + 4)
                row = simd.load_u32(rows + entry * 4)
                acc = begin(row, partial)
                while p + 2 <= stop:  # one load brings two offsets: loads are what the loop is bound by
                    two = simd.load_u64(offsets + p * 4)
                    acc = simd.axpy_at(acc, values + p * size, bases, two & 0xFFFFFFFF)
                    acc = simd.axpy_at(acc, values + p * size + size, bases, (two >> 32) & 0xFFFFFFFF)
                    p += 2
                if p < stop:
                    acc = simd.axpy_at(acc, values + p * size, bases, simd.load_u32(offsets + p * 4))
                    p += 1
                finish(acc, a, row, partial, tile_buffer, y, out, masks, table, low, high)
                entry += 1
            return p

        return run_rows

    only, head, middle, tail = make_rows(1, 1), make_rows(1, 0), make_rows(0, 0), make_rows(0, 1)

    @register_jitable
    def pack_rows(source, stride, columns, panel, rows):  # type: ignore[no-untyped-def]
        """Copy `columns` columns of `rows` rows into a panel, zeros behind them."""
        like = simd.zeros(count, lanes, bits)
        if columns >= count * lanes:
            for k in range(rows):
                simd.store(simd.load(like, source + k * stride), panel + k * width)
        else:
            for k in range(rows):
                simd.store(simd.load_first(like, source + k * stride, columns), panel + k * width)

    @register_jitable
    def run_task(a, task, scratch, low, high):  # type: ignore[no-untyped-def]
        groups, blocks = a.groups, a.blocks
        group, tile = task % groups, task // groups
        batch, tile = tile // a.tiles, tile % a.tiles
        x, y = a.x + batch * a.x_batch_stride, a.y + batch * a.y_batch_stride
        places = a.x_positions + tile * count * 8
        table = a.y_positions + tile * a.passes * count * 8
        out = simd.gather_addresses(count, y, table)
        masks = a.masks + tile * a.passes * count * 2
        if simd.load_u8(a.full + tile) != 0:
            masks = 0
        partial = scratch - simd.load_i64(a.group_starts + group * 8) * width
        panel, tile_buffer = scratch + a.scratch_panel, scratch + a.scratch_tile
        segment = a.segments + group * blocks * 16
        entry = simd.load_u32(segment)
        p = simd.load_u32(a.row_ends + entry * 4)
        for block in range(blocks):
            if a.packed != 0:
                row = simd.load_i64(a.block_rows + block * 8)
                rows = simd.load_i64(a.block_rows + block * 8 + 8) - row
                source = x + simd.load_i64(places) + row * a.x_row_stride
                pack_rows(source, a.x_row_stride, simd.load_u32(a.tile_columns + tile * 4), panel, rows)
                bases = simd.spread(count, panel, vector)
            else:
                bases = simd.gather_addresses(count, x + simd.load_i64(a.block_bases + block * 8), places)
            ends = segment + block * 16
            end = simd.load_u32(ends + 4)
            p = only(a, entry, end, p, bases, partial, tile_buffer, y, out, masks, table, low, high)
            entry, end = end, simd.load_u32(ends + 8)
            p = head(a, entry, end, p, bases, partial, tile_buffer, y, out, masks, table, low, high)
            entry, end = end, simd.load_u32(ends + 12)
            p = middle(a, entry, end, p, bases, partial, tile_buffer, y, out, masks, table, low, high)
            entry, end = end, simd.load_u32(ends + 16)
            p = tail(a, entry, end, p, bases, partial, tile_buffer, y, out, masks, table, low, high)
            entry = end

    def spmm(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        scratch = a.scratch + slot * a.scratch_stride
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        task = simd.fetch_add(a.counter, 1)
        while task < a.stop:
            run_task(a, task, scratch, low, high)
            task = simd.fetch_add(a.counter, 1)

    return spmm


@compiled_once
def spmm_kernel(bits: int, lanes: int, count: int) -> Any:
    """The compiled variant; `.address` is what `build.run_parallel` and `build.run_serial` take."""
    return compile_kernel(make_spmm(bits, lanes, count), f"spmm_f{bits}_v{lanes}_t{count}")
