"""SpMM over positions: y[m, position] = epilogue(sum over row m's nonzeros of value * x[position + offset]).

One kernel serves linear layers, convolution of every kind and the input gradients of both. What differs is data: a
nonzero's byte offset (column times row stride, or the im2col index, is folded into it) and the positions of a tile,
which are T base addresses anywhere in memory.

A tile's sums stay in T vector registers over all nonzeros of a row in a column block; rows that span several blocks
keep their partial sums in the worker's scratch. A block's inputs fit the L1 cache, as a rule. Order of summation:
ascending columns, one FMA each, then bias, then residual, whatever the tile, the blocks, or the number of workers.

The loop nest, outermost first; each stage is a function below, in this order:

    for task (batch, tile, row group):                  spmm
        for column block:
            bases = load the block's inputs             load: in place, or packed into a panel
            for entry (a row's part of the block):      run_rows
                acc = 0, or the partial sum             initial_sum
                for four nonzeros: acc += w * x         multiply
                for the rest of the row: acc += w * x   multiply_rest
                acc = activation(acc + bias + residual) epilogue
                y = acc                                 store

The epilogue runs in the block where a row ends; elsewhere the partial sum is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import codegen, simd
from .compiler import compile_kernel, compiled_once, inlined_function, kernel_arguments, kernel_function
from .layouts import make_copy_numbers
from .sparse_operator import FIRST, KINDS, LAST, ONLY, ROW_UNROLL, WHOLE

RESIDUAL_DISTANCE = 8  # prefetch distance of the residual in entries: some 400 cycles; OVERREAD covers it
PACK_DISTANCE = 8  # prefetch distance of rows that are packed: their parts are too short for hardware prefetch
DENSE, INTERLEAVED = 1, 2  # kinds of row unroll


def widest_dense(vector_bytes: int) -> int:
    """Widest tile of dense rows whose sums, vectors of x and weight fit the registers."""
    return (codegen.vector_registers(vector_bytes) - 1) // (ROW_UNROLL + 1)


# All values are int64; names in capitals in the comment are lengths, addresses point to arrays of the named type.
ARGUMENTS = kernel_arguments(
    # tasks are (batch, tile, row group), the last one innermost
    "tiles",  # tiles per batch
    "groups",  # row groups
    "by_rows",  # 1: tasks are (batch, row group, tile), so that workers own rows of y
    # operator: see sparse_operator.py
    "blocks",  # column blocks
    "group_starts",  # int64 [groups + 1], first row of every group
    "segments",  # uint32 [groups * blocks * 4 + 1], entries by group, block and kind
    # OVERREAD items after the last of entries, offsets and values are readable
    "entries",  # uint32 [entries + 1, 2], index of each entry's first nonzero, and its row
    "offsets",  # uint32 [nnz], bytes from the block's base
    "values",  # float [nnz]
    "block_bases",  # int64 [blocks], bytes from a position to the block's first input
    "block_rows",  # int64 [blocks + 1], first X row of every block (packed inputs only)
    # input
    "x",
    "x_batch_stride",
    "x_positions",  # int64 [tiles, T], bytes from x of the batch to each vector of the tile
    "x_row_stride",  # of packed inputs
    "packed",  # 1: copy the tile's columns of every block from row-major x into a panel (contiguous tiles only); 0: no
    "tile_columns",  # uint32 [tiles], columns of x in the tile (packed inputs only)
    # output
    "y",
    "y_batch_stride",
    "y_row_stride",
    "y_positions",  # int64 [tiles, T], of whole tiles
    "nontemporal",  # `sparse_operator.WHOLE` or, of contiguous tiles, `QUARTERS`: how whole tiles are stored; 0: no
    "y_distance",  # prefetch distance of y in entries, at most RESIDUAL_DISTANCE; 0: no prefetch
    "tile_pieces",  # uint32 [tiles, 2], begin and end of the tile's pieces; the same for a whole tile
    "pieces",  # int64 [pieces, 3]: bytes from the tile's first number, bytes from y of the batch, numbers
    # epilogue
    "bias",  # float [M] or 0
    "residual",  # added after the bias, with the strides and positions of y; may be y itself; or 0
    "limits",  # float [2]: clamp to (low, high)
    "activation",  # address of a function(tile address, vectors) that works in place, or 0
    # worker scratch: partial sums, then two tiles (six with row unroll), then the panel
    "scratch",
    "scratch_stride",
    "scratch_tile",
    "scratch_panel",
)
_arguments = simd.arguments_view(ARGUMENTS)


@compiled_once
def spmm_kernel(bits: int, lanes: int, width: int, contiguous: int, row_unroll: int) -> Any:
    """Kernel on tiles of `width` vectors of `lanes` numbers of `bits` bits.

    contiguous : 1 when the vectors of every tile are contiguous in x and in y: one address serves all of them, which
        leaves registers for wider tiles. 0: each vector has an address of its own.
    row_unroll : how four rows are computed at once. DENSE: all rows have the same columns, and four share what is read
        of x. INTERLEAVED: the nonzeros of four entries are interleaved (see sparse_operator.py), for narrow tiles,
        which wait on the latency of one row's multiply-adds. 0: row by row.
    """
    size = bits // 8
    vector = lanes * size
    tile_bytes = width * vector
    copy_numbers = make_copy_numbers(bits, lanes)

    # ------------------------------------------------------------ load: the inputs of a block

    @kernel_function
    def pack_panel(source, stride, columns, panel, rows, final):  # type: ignore[no-untyped-def]
        """Copy `columns` columns of `rows` rows into a panel, zeros after them. final : address of x's last row."""
        like = simd.zeros(width, lanes, bits)
        if columns >= width * lanes:
            for k in range(rows):
                simd.prefetch_l2(min(source + (k + PACK_DISTANCE) * stride, final), tile_bytes)
                simd.store(simd.load(like, source + k * stride), panel + k * tile_bytes)
        else:
            nothing = simd.zeros(1, lanes, bits)
            for k in range(rows):
                for rest in range(columns // lanes, width):
                    simd.store(nothing, panel + k * tile_bytes + rest * vector)
                copy_numbers(source + k * stride, panel + k * tile_bytes, columns)

    @kernel_function
    def block_inputs(a, x, tile, block, panel):  # type: ignore[no-untyped-def]
        """Base address of the tile's inputs in a block, in place or packed into the panel; or one per vector."""
        positions, base = a.x_positions + tile * width * 8, x + simd.load_i64(a.block_bases + block * 8)
        if contiguous:
            if a.packed == 0:
                return base + simd.load_i64(positions)
            row = simd.load_i64(a.block_rows + block * 8)
            rows = simd.load_i64(a.block_rows + block * 8 + 8) - row
            source, stride = x + simd.load_i64(positions), a.x_row_stride
            final = source + (simd.load_i64(a.block_rows + a.blocks * 8) - 1) * stride
            columns = simd.load_u32(a.tile_columns + tile * 4)
            pack_panel(source + row * stride, stride, columns, panel, rows, final)
            return panel
        return simd.gather_addresses(width, base, positions)

    # ------------------------------------------------------------ multiply

    @inlined_function
    def initial_sum(row, partial, from_zero):  # type: ignore[no-untyped-def]
        acc = simd.zeros(width, lanes, bits)
        if from_zero == 0:
            acc = simd.load(acc, partial + row * tile_bytes)
        return acc

    @inlined_function
    def multiply(acc, offsets, values, at, stop, bases, four):  # type: ignore[no-untyped-def]
        """Nonzeros from `at` on, four at a time; `at` and `stop` are bytes of the offsets array.

        four : the offsets at `at`. Those of the next iteration are loaded one ahead, and one load brings four weights:
            the loop is bound by loads, and loads of x wait for their addresses.
        """
        while at + 16 <= stop:
            weights = simd.load_four_weights(acc, values + at * (size // 4))
            (two, more), four = four, simd.load_four_u32(vector, offsets + at + 16)
            acc = simd.axpy_lane(acc, weights, 0, bases, two & 0xFFFFFFFF)
            acc = simd.axpy_lane(acc, weights, 1, bases, (two >> 32) & 0xFFFFFFFF)
            acc = simd.axpy_lane(acc, weights, 2, bases, more & 0xFFFFFFFF)
            acc = simd.axpy_lane(acc, weights, 3, bases, (more >> 32) & 0xFFFFFFFF)
            at += 16
        return acc, at, four

    @inlined_function
    def multiply_rest(acc, values, at, stop, bases, four):  # type: ignore[no-untyped-def]
        """The last one to three nonzeros of a row, whose offsets are in `four`."""
        if at < stop:
            weights, (two, more) = simd.load_four_weights(acc, values + at * (size // 4)), four
            acc = simd.axpy_lane(acc, weights, 0, bases, two & 0xFFFFFFFF)
            if at + 4 < stop:
                acc = simd.axpy_lane(acc, weights, 1, bases, (two >> 32) & 0xFFFFFFFF)
            if at + 8 < stop:
                acc = simd.axpy_lane(acc, weights, 2, bases, more & 0xFFFFFFFF)
        return acc

    multiply_four_rows = _make_row_unroll(bits, lanes, width, row_unroll, initial_sum)

    # ------------------------------------------------------------ epilogue and store, of the tiles that need more

    @kernel_function
    def activate(a, buffer, low, high):  # type: ignore[no-untyped-def]
        """Clamp or activate the tile in `buffer`."""
        if a.activation != 0:
            simd.call(a.activation, buffer, width)
        else:
            simd.store(simd.clamp(simd.load(simd.zeros(width, lanes, bits), buffer), low, high), buffer)

    @kernel_function
    def store_pieces(buffer, y, piece, pieces_end):  # type: ignore[no-untyped-def]
        """Store a tile that is not whole: contiguous pieces of it."""
        while piece < pieces_end:
            target = y + simd.load_i64(piece + 8)
            copy_numbers(buffer + simd.load_i64(piece), target, simd.load_i64(piece + 16))
            piece += 24

    @kernel_function
    def finish_in_memory(a, row, buffer, y, out, piece, pieces_end, low, high):  # type: ignore[no-untyped-def]
        """Epilogue after the bias, and store, of the tile in `buffer`: with an activation, or in pieces. A whole tile
        without a residual may be where it belongs.

        A function of its own, which keeps rare code out of the loop over rows.
        """
        like = simd.zeros(width, lanes, bits)
        target = row * a.y_row_stride
        if piece == pieces_end:
            if a.residual != 0:
                acc = simd.add(simd.load(like, buffer), simd.load_at(like, out, target + a.residual - a.y))
                simd.store(acc, buffer)
            activate(a, buffer, low, high)
            if contiguous and buffer == out + target:
                return
            simd.store_at(simd.load(like, buffer), out, target)
            return
        if a.residual != 0:
            added, source, at = buffer + tile_bytes, y + target + a.residual - a.y, piece
            while at < pieces_end:
                copy_numbers(source + simd.load_i64(at + 8), added + simd.load_i64(at), simd.load_i64(at + 16))
                at += 24
            simd.store(simd.add(simd.load(like, buffer), simd.load(like, added)), buffer)
        activate(a, buffer, low, high)
        store_pieces(buffer, y + target, piece, pieces_end)

    # ------------------------------------------------------------ the loop over rows

    @inlined_function
    def run_rows(a, from_zero, entry, end, p, bases, targets, low, high, epilogue):  # type: ignore[no-untyped-def]
        """The loop over entries: sums go through the epilogue (1), or are stored as they are, `to_stride` bytes a row
        apart (0): partial sums, and those of rows that end in the block and have no epilogue.

        It becomes two loops and not one, as what does not fit the registers costs a lot; not four, as each takes its
        time to compile: whether rows begin in the block is tested at run time, which costs nothing that could be
        measured.
        """
        partial, to, to_stride, (buffer, y, out, piece, pieces_end) = targets
        entries, offsets, values = a.entries, a.offsets, a.values
        bias, residual, y_row_stride = a.bias, a.residual, a.y_row_stride
        clamped = low > -np.inf or high < np.inf
        in_registers, nontemporal = piece == pieces_end and a.activation == 0, a.nontemporal
        y_ahead = a.y_distance * 8 if piece == pieces_end else 0
        four_sums, ready = buffer + 2 * tile_bytes, 0
        # Loads that other loads depend on are one row ahead: an entry's end and the next row (one number of 64
        # bits), and its first four offsets.
        cursor, cursor_end, at = entries + entry * 8, entries + end * 8, p * 4
        row, next_entry = simd.load_u32(cursor + 4), simd.load_i64(cursor + 8)
        next_four = simd.load_four_u32(vector, offsets + at)
        while cursor < cursor_end:
            stop, next_row, four = (next_entry & 0xFFFFFFFF) * 4, (next_entry >> 32) & 0xFFFFFFFF, next_four
            next_entry = simd.load_i64(cursor + 16)
            if not row_unroll:  # four rows at once have loads enough in flight
                next_four = simd.load_four_u32(vector, offsets + stop)
                if from_zero == 0:
                    simd.prefetch_l1(partial + next_row * tile_bytes, tile_bytes)

            # multiply
            if row_unroll and ready == 0 and cursor + 32 <= cursor_end:
                multiply_four_rows(a, (cursor - entries) // 8, at // 4, bases, partial, from_zero, four_sums)
                ready = 4
            if row_unroll and ready > 0:
                acc = simd.load(simd.zeros(width, lanes, bits), four_sums + (4 - ready) * tile_bytes)
                ready -= 1
            else:
                acc = initial_sum(row, partial, from_zero)
                if row_unroll:
                    four = simd.load_four_u32(vector, offsets + at)
                acc, at, four = multiply(acc, offsets, values, at, stop, bases, four)
                acc = multiply_rest(acc, values, at, stop, bases, four)
            at = stop

            # epilogue and store
            if y_ahead != 0:
                later = simd.load_u32(cursor + y_ahead + 4)
                if epilogue:
                    simd.prefetch_l2_at(acc, out, later * y_row_stride)
                elif to != partial:
                    simd.prefetch_l2(to + later * to_stride, tile_bytes)
            if epilogue:
                if bias != 0:
                    acc = simd.add_scalar(acc, simd.load_float(bits, bias + row * size))
                if in_registers:
                    if residual != 0:
                        if nontemporal != 0:  # then y is larger than the caches, and so is the residual
                            later = simd.load_u32(cursor + RESIDUAL_DISTANCE * 8 + 4)
                            simd.prefetch_l2_at(acc, out, later * y_row_stride + residual - a.y)
                        acc = simd.add(acc, simd.load_at(acc, out, row * y_row_stride + residual - a.y))
                    if clamped:
                        acc = simd.clamp(acc, low, high)
                    if nontemporal != 0:
                        simd.store_nontemporal_at(acc, out, row * y_row_stride, nontemporal == WHOLE)
                    else:
                        simd.store_at(acc, out, row * y_row_stride)
                elif a.activation == 0 and residual == 0:
                    if clamped:
                        acc = simd.clamp(acc, low, high)
                    simd.store(acc, buffer)
                    store_pieces(buffer, y + row * y_row_stride, piece, pieces_end)
                else:
                    place = buffer
                    if contiguous and residual == 0 and piece == pieces_end:
                        place = out + row * y_row_stride  # gets its activation there
                    simd.store(acc, place)
                    finish_in_memory(a, row, place, y, out, piece, pieces_end, low, high)
            else:
                simd.store(acc, to + row * to_stride)
            cursor, row = cursor + 8, next_row
        return at // 4

    @kernel_function
    def store_sums(a, from_zero, entry, end, p, bases, targets, low, high):  # type: ignore[no-untyped-def]
        return run_rows(a, from_zero, entry, end, p, bases, targets, low, high, 0)

    @kernel_function
    def finish_rows(a, from_zero, entry, end, p, bases, targets, low, high):  # type: ignore[no-untyped-def]
        return run_rows(a, from_zero, entry, end, p, bases, targets, low, high, 1)

    # ------------------------------------------------------------ the kernel

    @kernel_function
    def direct_target(a, out, whole, low, high):  # type: ignore[no-untyped-def]
        """Address of row 0 of a contiguous tile without epilogue, whose sums are stored as they are; 0 for others."""
        if contiguous:
            clamped = low > -np.inf or high < np.inf
            added = a.bias != 0 or a.residual != 0
            if whole and not (clamped or added or a.activation != 0 or a.nontemporal != 0):
                return out
        return 0

    def spmm(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        scratch = a.scratch + slot * a.scratch_stride
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        groups, blocks = a.groups, a.blocks
        for task in simd.tasks(arguments):
            batch, part = task // (groups * a.tiles), task % (groups * a.tiles)
            group, tile = (part // a.tiles, part % a.tiles) if a.by_rows else (part % groups, part // groups)
            x, y = a.x + batch * a.x_batch_stride, a.y + batch * a.y_batch_stride
            positions = a.y_positions + tile * width * 8
            out = y + simd.load_i64(positions) if contiguous else simd.gather_addresses(width, y, positions)
            piece = a.pieces + simd.load_u32(a.tile_pieces + tile * 8) * 24
            pieces_end = a.pieces + simd.load_u32(a.tile_pieces + tile * 8 + 4) * 24
            partial = scratch - simd.load_i64(a.group_starts + group * 8) * tile_bytes
            panel, output = scratch + a.scratch_panel, (scratch + a.scratch_tile, y, out, piece, pieces_end)
            segment = a.segments + group * blocks * 16
            entry = simd.load_u32(segment)
            p = simd.load_u32(a.entries + entry * 8)
            direct = direct_target(a, out, piece == pieces_end, low, high)
            for block in range(blocks):
                bases = block_inputs(a, x, tile, block, panel)
                for kind in range(KINDS):
                    end = simd.load_u32(segment + block * 16 + kind * 4 + 4)
                    from_zero, ends = int(kind in (ONLY, FIRST)), kind in (ONLY, LAST)
                    to, to_stride = (direct, a.y_row_stride) if ends else (partial, tile_bytes)
                    targets = (partial, to, to_stride, output)
                    if ends and direct == 0:
                        p = finish_rows(a, from_zero, entry, end, p, bases, targets, low, high)
                    else:
                        p = store_sums(a, from_zero, entry, end, p, bases, targets, low, high)
                    entry = end
        if a.nontemporal != 0:
            simd.store_fence()

    name = f"spmm_f{bits}_v{lanes}_t{width}" + ("" if contiguous else "_scattered")
    return compile_kernel(spmm, name + ("", "_dense", "_interleaved")[row_unroll])


# ---------------------------------------------------------------- row unroll


def _make_row_unroll(bits: int, lanes: int, width: int, row_unroll: int, initial_sum: Any) -> Callable[..., Any]:
    """The multiply stage for four rows at once, whose sums go to `sums` in the worker's scratch."""
    size = bits // 8
    vector = lanes * size
    tile_bytes = width * vector

    @inlined_function
    def initial_sums(a, entry, partial, from_zero):  # type: ignore[no-untyped-def]
        rows = a.entries + entry * 8 + 4
        s0 = initial_sum(simd.load_u32(rows), partial, from_zero)
        s1 = initial_sum(simd.load_u32(rows + 8), partial, from_zero)
        s2 = initial_sum(simd.load_u32(rows + 16), partial, from_zero)
        s3 = initial_sum(simd.load_u32(rows + 24), partial, from_zero)
        return s0, s1, s2, s3

    @inlined_function
    def store_sums(s0, s1, s2, s3, sums):  # type: ignore[no-untyped-def]
        simd.store(s0, sums)
        simd.store(s1, sums + tile_bytes)
        simd.store(s2, sums + 2 * tile_bytes)
        simd.store(s3, sums + 3 * tile_bytes)

    @inlined_function
    def multiply_dense(a, entry, p, bases, partial, from_zero, sums):  # type: ignore[no-untyped-def]
        """Four rows with the same columns: each vector of x is read once for all."""
        n = simd.load_u32(a.entries + entry * 8 + 8) - p
        step, weight = n * size, a.values + p * size
        s0, s1, s2, s3 = initial_sums(a, entry, partial, from_zero)
        for offset in range(a.offsets + p * 4, a.offsets + (p + n) * 4, 4):
            x = simd.load_at(s0, bases, simd.load_u32(offset))
            s0, s1 = simd.axpy_tile(s0, weight, x), simd.axpy_tile(s1, weight + step, x)
            s2, s3 = simd.axpy_tile(s2, weight + 2 * step, x), simd.axpy_tile(s3, weight + 3 * step, x)
            weight += size
        store_sums(s0, s1, s2, s3, sums)

    @inlined_function
    def multiply_rest(acc, a, p, end, bases):  # type: ignore[no-untyped-def]
        while p < end:
            acc = simd.axpy(acc, a.values + p * size, bases, simd.load_u32(a.offsets + p * 4))
            p += 1
        return acc

    @inlined_function
    def multiply_interleaved(a, entry, p, bases, partial, from_zero, sums):  # type: ignore[no-untyped-def]
        """Four rows of about the same length: one nonzero of each per iteration, then the rest of each row."""
        ends = a.entries + entry * 8
        end0, end1, end2 = simd.load_u32(ends + 8), simd.load_u32(ends + 16), simd.load_u32(ends + 24)
        end3 = simd.load_u32(ends + 32)
        shortest = min(min(end0 - p, end1 - end0), min(end2 - end1, end3 - end2))
        s0, s1, s2, s3 = initial_sums(a, entry, partial, from_zero)
        end0, end1, end2 = end0 + 3 * shortest, end1 + 2 * shortest, end2 + shortest
        stop, next_four = p + 4 * shortest, simd.load_four_u32(vector, a.offsets + p * 4)
        while p < stop:
            (two, more), next_four = next_four, simd.load_four_u32(vector, a.offsets + p * 4 + 16)
            weights = simd.load_four_weights(s0, a.values + p * size)
            s0 = simd.axpy_lane(s0, weights, 0, bases, two & 0xFFFFFFFF)
            s1 = simd.axpy_lane(s1, weights, 1, bases, (two >> 32) & 0xFFFFFFFF)
            s2 = simd.axpy_lane(s2, weights, 2, bases, more & 0xFFFFFFFF)
            s3 = simd.axpy_lane(s3, weights, 3, bases, (more >> 32) & 0xFFFFFFFF)
            p += 4
        s0, s1 = multiply_rest(s0, a, p, end0, bases), multiply_rest(s1, a, end0, end1, bases)
        s2, s3 = multiply_rest(s2, a, end1, end2, bases), multiply_rest(s3, a, end2, end3, bases)
        store_sums(s0, s1, s2, s3, sums)

    return multiply_dense if row_unroll == DENSE else multiply_interleaved
