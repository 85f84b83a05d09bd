"""What SpMM's loop over rows asks for ahead: the next panel of an X that is in no cache.

A core waits for few lines at a time, and drops what is asked for beyond: it is asked for little by little. Where a
panel's rows lie in a row, every turn of the loop over nonzeros asks for some lines, which takes it an addition.
Elsewhere finding them would take too many registers there, and each entry asks for some rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import simd
from .build import inlined_part, kernel_part
from .operators import LINE, LINES


def make_asking(count: int, width: int, asks: int, addresses: Any, ask_for: Any) -> tuple[Callable[..., Any], ...]:
    """Functions (next_panel, ask_rows, lines_from, ask_lines) of the kernel on tiles of `count` vectors, `width` bytes.

    next_panel : gives `ahead`, what all others take
    asks : `operators.ROWS`, `operators.LINES`, or 0 where no loop over rows asks for anything
    addresses, ask_for : of the kernel's tiles, see `spmm.make_spmm`
    """

    @kernel_part
    def behind(a, tile, block):  # type: ignore[no-untyped-def]
        """Tile and block of the panel behind this one; the tile may be behind the last."""
        if block + 1 < a.blocks:
            return tile, block + 1
        return tile + 1, 0

    if asks == LINES:

        @kernel_part
        def next_panel(a, x, tile, block, entry, end):  # type: ignore[no-untyped-def]
            """Where the panel begins, its bytes, bytes for each turn; the first nonzero of the entries from `entry` to
            `end`, and how many they have.

            Turns may ask a little behind the panel, and behind X: they are counted by an average.
            """
            begin = simd.load_u32(a.entries + entry * 8)
            nonzeros = simd.load_u32(a.entries + end * 8) - begin
            tile, block = behind(a, tile, block)
            if a.ahead == 0 or tile >= a.tiles or nonzeros == 0:
                return x, 0, 0, begin, 1
            row = simd.load_i64(a.block_rows + block * 8)
            nbytes = (simd.load_i64(a.block_rows + block * 8 + 8) - row) * width
            turns = (2 * nonzeros - 3 * (end - entry)) // 8  # of four nonzeros, but for 1.5 of an entry on average
            first = x + simd.load_i64(a.x_positions + tile * count * 8) + row * width
            return first, nbytes, nbytes // max(1, turns), begin, nonzeros

        @inlined_part
        def ask_rows(a, ahead, entry):  # type: ignore[no-untyped-def]
            pass

        @inlined_part
        def lines_from(ahead, p):  # type: ignore[no-untyped-def]
            """Where nonzeros from p on begin to ask."""
            first, nbytes, _, begin, nonzeros = ahead
            return first + (p - begin) * nbytes // nonzeros

        @inlined_part
        def ask_lines(ahead, asked):  # type: ignore[no-untyped-def]
            """Ask for a turn's lines, from `asked` on; some again, where it is less than a line. Where to go on."""
            each = ahead[2]
            simd.prefetch(asked)
            simd.prefetch(asked + LINE)
            if each > 2 * LINE:
                simd.prefetch(asked + 2 * LINE)
                if each > 3 * LINE:  # wide tiles of W of few rows
                    simd.prefetch(asked + 3 * LINE)
                    simd.prefetch(asked + 4 * LINE)
            return asked + each

    else:

        @kernel_part
        def next_panel(a, x, tile, block, entry, end):  # type: ignore[no-untyped-def]
            """Where the panel's first row begins, less what entries before `entry` would add; its last row, counted
            from there; its tile's positions; rows for each entry up to `end`.
            """
            tile, block = behind(a, tile, block)
            if not asks or a.ahead == 0 or tile >= a.tiles or end == entry:
                return 0, 0, 0, 0
            row = simd.load_i64(a.block_rows + block * 8)
            rows = simd.load_i64(a.block_rows + block * 8 + 8) - row
            each = (rows + end - entry - 1) // (end - entry)
            first = x + (row - entry * each) * a.x_row_stride
            return first, entry * each + rows - 1, a.x_positions + tile * count * 8, each

        @inlined_part
        def ask_rows(a, ahead, entry):  # type: ignore[no-untyped-def]
            first, last_row, places, each = ahead
            for i in range(each):  # never behind the last row: pages that are not there cost the most
                ask_for(addresses(first, places), min(entry * each + i, last_row) * a.x_row_stride)

        @inlined_part
        def lines_from(ahead, p):  # type: ignore[no-untyped-def]
            return 0

        @inlined_part
        def ask_lines(ahead, asked):  # type: ignore[no-untyped-def]
            return asked

    return next_panel, ask_rows, lines_from, ask_lines
