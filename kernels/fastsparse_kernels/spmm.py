"""SpMM over positions: y[m, position] = epilogue(sum over the row's nonzeros of value * x[position + offset]).

The epilogue adds the bias and, where there is one, the residual, which lies as y does; then it applies the activation.

One kernel serves linear layers, convolution of every kind and the input gradients of both. What differs is data: a
nonzero's byte offset (column times row stride, or the im2col index, is folded into it) and a tile's positions, which
are T base addresses that may lie anywhere.

A tile's sums stay in T vector registers over all nonzeros of a row in a column block; rows that span several blocks
keep their partial sum in the worker's scratch. A block's panel fits the L1 cache, as a rule. Order of summation:
ascending columns, one FMA each, then bias, then residual, whatever the tile, the blocks, or the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import simd
from .asking import make_asking
from .build import compile_kernel, compiled_once, inlined_part, kernel_part, kernel_record
from .copying import make_copy_numbers
from .operators import FIRST, KINDS, LAST, ONLY
from .row_sums import make_row_sums

RESIDUALS_AHEAD = 8  # entries, before what is added to a row is asked for: some 400 cycles

# All values are int64; names in capitals in the comment are lengths, addresses point to arrays of the named type.
ARGUMENTS = kernel_record(
    # tasks are (batch, tile, row group), the group innermost
    "tiles",  # tiles per batch
    "groups",  # row groups
    # operator: see operators.py
    "blocks",  # column blocks
    "group_starts",  # int64 [groups + 1], first row of every group
    "segments",  # uint32 [groups * blocks * 4 + 1], entries by group, block and kind
    # READ_AHEAD items behind entries, offsets and values may be read
    "entries",  # uint32 [entries + 1, 2], where each one's nonzeros begin, and its row
    "offsets",  # uint32 [nnz], bytes from the block's base
    "values",  # float [nnz]
    "block_bases",  # int64 [blocks], bytes from a position to the block's first input
    "block_rows",  # int64 [blocks + 1], X rows of every block (packed inputs, and those asked for ahead)
    # input
    "x",
    "x_batch_stride",
    "x_positions",  # int64 [tiles, T], bytes from x of the batch to each vector of the tile
    "x_row_stride",  # of inputs that are packed, or asked for ahead
    "packed",  # 1: copy the tile's columns of every block from row-major x into a panel (vectors in a row only); 0: no
    "tile_columns",  # uint32 [tiles], columns of x that the tile has (packed inputs only)
    "ahead",  # 1: the next panel, of this tile or the one behind it, is asked for meanwhile; 0: no
    # output
    "y",
    "y_batch_stride",
    "y_row_stride",
    "y_positions",  # int64 [tiles, T], of tiles that are stored whole
    "past_caches",  # 1: whole tiles, whose vectors begin at multiples of their bytes, are stored past the caches; 0: no
    "tile_pieces",  # uint32 [tiles, 2], begin and end of the tile's pieces; the same where it is stored whole
    "pieces",  # int64 [pieces, 3]: bytes from the tile's first number, bytes from y of the batch, numbers
    # epilogue
    "bias",  # float [M] or 0
    "residual",  # what is added behind the bias, with the strides and positions of y; it may be y itself; or 0
    "limits",  # float [2]: clamp to (low, high)
    "activation",  # address of a function(tile address, vectors) that works in place, or 0
    # worker scratch: partial sums, then two tiles (six where rows go together), then the panel
    "scratch",
    "scratch_stride",
    "scratch_tile",
    "scratch_panel",
)
_arguments = simd.record_view(ARGUMENTS)


def make_spmm(bits: int, lanes: int, count: int, in_a_row: int, together: int, asks: int) -> Callable[..., None]:
    """Kernel on tiles of `count` vectors of `lanes` numbers of `bits` bits.

    in_a_row : 1 when the vectors of every tile lie in a row, in x and in y: one address serves all of them, and leaves
        registers for wider tiles. 0: each vector has an address of its own.
    together : how four rows go together: `row_sums.ALIKE`, `row_sums.LOCKSTEP`, or 0 where each goes alone
    asks : `operators.ROWS` where the loop over rows asks for the next panel's rows, or for residuals,
        `operators.LINES` for panels whose rows lie in a row; 0 elsewhere: seen at run time it would cost some per cent
    """
    size = bits // 8
    vector = lanes * size
    width = count * vector
    copy_numbers = make_copy_numbers(bits, lanes)

    if in_a_row:

        @kernel_part
        def addresses(base, table):  # type: ignore[no-untyped-def]
            return base + simd.load_i64(table)

        @kernel_part
        def load(like, bases, offset):  # type: ignore[no-untyped-def]
            return simd.load(like, bases + offset)

        @kernel_part
        def store(acc, bases, offset):  # type: ignore[no-untyped-def]
            simd.store(acc, bases + offset)

        @kernel_part
        def stream(acc, bases, offset):  # type: ignore[no-untyped-def]
            simd.stream(acc, bases + offset)

        @kernel_part
        def pack_rows(source, stride, columns, panel, rows):  # type: ignore[no-untyped-def]
            """Copy `columns` columns of `rows` rows into a panel, zeros behind them."""
            like = simd.zeros(count, lanes, bits)
            if columns >= count * lanes:
                for k in range(rows):
                    simd.store(simd.load(like, source + k * stride), panel + k * width)
            else:
                nothing = simd.zeros(1, lanes, bits)
                for k in range(rows):
                    for rest in range(columns // lanes, count):
                        simd.store(nothing, panel + k * width + rest * vector)
                    copy_numbers(source + k * stride, panel + k * width, columns)

        @kernel_part
        def find_inputs(a, x, tile, block, panel):  # type: ignore[no-untyped-def]
            """Where the tile's part of the block's inputs begins, packed where it has to be."""
            places = a.x_positions + tile * count * 8
            if a.packed == 0:
                return addresses(x + simd.load_i64(a.block_bases + block * 8), places)
            row = simd.load_i64(a.block_rows + block * 8)
            rows = simd.load_i64(a.block_rows + block * 8 + 8) - row
            source = x + simd.load_i64(places) + row * a.x_row_stride
            pack_rows(source, a.x_row_stride, simd.load_u32(a.tile_columns + tile * 4), panel, rows)
            return panel

        @kernel_part
        def stored_plainly(a, out, whole, low, high):  # type: ignore[no-untyped-def]
            """Where row 0 of a tile goes whose sums are stored as they are; 0 of others."""
            clamped = low > -np.inf or high < np.inf
            added = a.bias != 0 or a.residual != 0
            return out if whole and not (clamped or added or a.activation != 0 or a.past_caches != 0) else 0

        @kernel_part
        def ask_for(bases, offset):  # type: ignore[no-untyped-def]
            """A tile's part of one row, which need not begin on a line."""
            for distance in range(0, width, 64):
                simd.prefetch(bases + offset + distance)
            simd.prefetch(bases + offset + width - 1)

    else:
        load, store, stream, ask_for = simd.load_at, simd.store_at, simd.stream_at, simd.prefetch_at

        @kernel_part
        def addresses(base, table):  # type: ignore[no-untyped-def]
            return simd.gather_addresses(count, base, table)

        @kernel_part
        def stored_plainly(a, out, whole, low, high):  # type: ignore[no-untyped-def]
            return 0

        @kernel_part
        def find_inputs(a, x, tile, block, panel):  # type: ignore[no-untyped-def]
            return addresses(x + simd.load_i64(a.block_bases + block * 8), a.x_positions + tile * count * 8)

    next_panel, ask_rows, lines_from, ask_lines = make_asking(count, width, asks, addresses, ask_for)

    @inlined_part
    def ask_for_residual(a, out, entry, end):  # type: ignore[no-untyped-def]
        """What is added to a row of some entries later."""
        row = simd.load_u32(a.entries + min(entry + RESIDUALS_AHEAD, end - 1) * 8 + 4)
        ask_for(out, a.residual - a.y + row * a.y_row_stride)

    @kernel_part
    def activate(a, tile_buffer, low, high):  # type: ignore[no-untyped-def]
        """Clamp and activate the tile in `tile_buffer`."""
        simd.store(simd.clamp(simd.load(simd.zeros(count, lanes, bits), tile_buffer), low, high), tile_buffer)
        if a.activation != 0:
            simd.call(a.activation, tile_buffer, count)

    @kernel_part
    def store_pieces(tile_buffer, y, piece, pieces_end):  # type: ignore[no-untyped-def]
        while piece < pieces_end:
            place = y + simd.load_i64(piece + 8)
            copy_numbers(tile_buffer + simd.load_i64(piece), place, simd.load_i64(piece + 16))
            piece += 24

    @kernel_part
    def finish_elsewhere(a, row, tile_buffer, y, out, piece, pieces_end, low, high):  # type: ignore[no-untyped-def]
        """The epilogue behind the bias of the tile at `tile_buffer`, stored in pieces where it has some.

        What few tiles need is kept out of the way of the loop over rows.
        """
        like = simd.zeros(count, lanes, bits)
        target = row * a.y_row_stride
        if piece == pieces_end:
            if a.residual != 0:
                acc = simd.add(simd.load(like, tile_buffer), load(like, out, target + a.residual - a.y))
                simd.store(acc, tile_buffer)
            activate(a, tile_buffer, low, high)
            store(simd.load(like, tile_buffer), out, target)
            return
        if a.residual != 0:
            added, source, at = tile_buffer + width, y + target + a.residual - a.y, piece
            while at < pieces_end:
                place = source + simd.load_i64(at + 8)
                copy_numbers(place, added + simd.load_i64(at), simd.load_i64(at + 16))
                at += 24
            simd.store(simd.add(simd.load(like, tile_buffer), simd.load(like, added)), tile_buffer)
        activate(a, tile_buffer, low, high)
        store_pieces(tile_buffer, y + target, piece, pieces_end)

    begin, add_nonzeros, sum_four = make_row_sums(bits, lanes, count, load, ask_lines, together)

    def make_rows(epilogue: int) -> Callable[..., Any]:
        """The loop over entries whose sums go through the epilogue (1), or are stored as they are (0), `to_stride`
        bytes a row apart: partial sums, and those of rows that end in the block, where there is nothing else to do.

        Every loop that Numba compiles here is a second of a variant's compile time. Whether rows begin in the block is
        seen at run time, which costs nothing that could be measured. What does not fit the registers costs a lot.
        """

        @kernel_part
        def run_rows(  # type: ignore[no-untyped-def]
            a, begins, entry, end, p, bases, places, low, high, ahead
        ):
            partial, to, to_stride, (tile_buffer, y, out, piece, pieces_end) = places
            entries, offsets, values = a.entries, a.offsets, a.values
            bias, residual, y_row_stride = a.bias, a.residual, a.y_row_stride
            clamped = low > -np.inf or high < np.inf
            here, past_caches = piece == pieces_end and a.activation == 0, a.past_caches != 0
            sums, summed, asked = tile_buffer + 2 * width, 0, lines_from(ahead, p)
            # What leads to other loads is loaded a row before: its end and the next one's number, its first offsets.
            cursor, cursor_end, at = entries + entry * 8, entries + end * 8, p * 4
            row, behind = simd.load_u32(cursor + 4), simd.load_i64(cursor + 8)
            coming = simd.load_four_u32(vector, offsets + at)
            while cursor < cursor_end:
                stop, next_row, first = (behind & 0xFFFFFFFF) * 4, (behind >> 32) & 0xFFFFFFFF, coming
                behind = simd.load_i64(cursor + 16)
                if not together:  # rows that go together have loads enough to wait for
                    coming = simd.load_four_u32(vector, offsets + stop)
                    if not asks and begins == 0:
                        simd.prefetch_near(partial + next_row * width, width)
                if asks:
                    ask_rows(a, ahead, (cursor - entries) // 8)
                    if epilogue and here and residual != 0:
                        ask_for_residual(a, out, (cursor - entries) // 8, end)
                if together and summed == 0 and cursor + 32 <= cursor_end:
                    sum_four(a, (cursor - entries) // 8, at // 4, bases, partial, begins, sums)
                    summed = 4
                if together and summed > 0:
                    acc = simd.load(simd.zeros(count, lanes, bits), sums + (4 - summed) * width)
                    summed -= 1
                else:
                    acc = begin(row, partial, begins)
                    if together:
                        first = simd.load_four_u32(vector, offsets + at)
                    acc, asked = add_nonzeros(acc, offsets, values, at, stop, bases, first, ahead, asked)
                at = stop
                if epilogue:
                    if bias != 0:
                        acc = simd.add_scalar(acc, simd.load_float(bits, bias + row * size))
                    if here:
                        if residual != 0:
                            acc = simd.add(acc, load(acc, out, row * y_row_stride + residual - a.y))
                        if clamped:
                            acc = simd.clamp(acc, low, high)
                        if past_caches:
                            stream(acc, out, row * y_row_stride)
                        else:
                            store(acc, out, row * y_row_stride)
                    elif a.activation == 0 and residual == 0:
                        if clamped:
                            acc = simd.clamp(acc, low, high)
                        simd.store(acc, tile_buffer)
                        store_pieces(tile_buffer, y + row * y_row_stride, piece, pieces_end)
                    else:
                        simd.store(acc, tile_buffer)
                        finish_elsewhere(a, row, tile_buffer, y, out, piece, pieces_end, low, high)
                else:
                    simd.store(acc, to + row * to_stride)
                cursor, row = cursor + 8, next_row
            return at // 4

        return run_rows

    store_rows, finish_rows = make_rows(0), make_rows(1)

    def spmm(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        scratch = a.scratch + slot * a.scratch_stride
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        groups, blocks = a.groups, a.blocks
        task = simd.fetch_add(a.counter, 1)
        while task < a.stop:
            group, tile = task % groups, task // groups
            batch, tile = tile // a.tiles, tile % a.tiles
            x, y = a.x + batch * a.x_batch_stride, a.y + batch * a.y_batch_stride
            out = addresses(y, a.y_positions + tile * count * 8)
            piece = a.pieces + simd.load_u32(a.tile_pieces + tile * 8) * 24
            pieces_end = a.pieces + simd.load_u32(a.tile_pieces + tile * 8 + 4) * 24
            partial = scratch - simd.load_i64(a.group_starts + group * 8) * width
            panel, target = scratch + a.scratch_panel, (scratch + a.scratch_tile, y, out, piece, pieces_end)
            segment = a.segments + group * blocks * 16
            entry = simd.load_u32(segment)
            p = simd.load_u32(a.entries + entry * 8)
            plainly_to = stored_plainly(a, out, piece == pieces_end, low, high)
            for block in range(blocks):
                bases = find_inputs(a, x, tile, block, panel)
                ahead = next_panel(a, x, tile, block, entry, simd.load_u32(segment + block * 16 + 16))
                for kind in range(KINDS):
                    end = simd.load_u32(segment + block * 16 + kind * 4 + 4)
                    begins, ends = int(kind in (ONLY, FIRST)), kind in (ONLY, LAST)
                    to, to_stride = (plainly_to, a.y_row_stride) if ends else (partial, width)
                    places = (partial, to, to_stride, target)
                    if ends and plainly_to == 0:
                        p = finish_rows(a, begins, entry, end, p, bases, places, low, high, ahead)
                    else:
                        p = store_rows(a, begins, entry, end, p, bases, places, low, high, ahead)
                    entry = end
            task = simd.fetch_add(a.counter, 1)

    return spmm


@compiled_once
def spmm_kernel(bits: int, lanes: int, count: int, in_a_row: int, together: int, asks: int) -> Any:
    """The compiled variant; `.address` is what `sharing.run_parallel` and `sharing.run_serial` take."""
    way = ("" if in_a_row else "_apart") + ("", "_alike", "_lockstep")[together]
    way += ("", "_asking", "_asking_lines")[asks]
    variant = make_spmm(bits, lanes, count, in_a_row, together, asks)
    return compile_kernel(variant, f"spmm_f{bits}_v{lanes}_t{count}{way}")
