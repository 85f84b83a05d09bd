"""SDDMM where positions come in runs of four that lie in a row: the samples of linear layers, rows of some images.

Two runs of a row of y stay in eight registers while the row's nonzeros go by: eight multiply-adds with vectors of x in
memory for each. Four nonzeros go together; a shuffle tree leaves what is to be added up of them in one vector, which
is kept until there are some more, so that the rest of the tree has full vectors, too. Rows that do not have a multiple
of four nonzeros leave gaps, in the gradients as in the offsets: see `fastsparse.plan.sddmm`.

Against `sddmm`, which reads y again for every eight nonzeros, and ends their sums at once: a fifth faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import simd
from .build import compile_kernel, compiled_once, inlined_part, kernel_part
from .operators import FOUR
from .sddmm import ARGUMENTS

FOUR_BYTES = FOUR * 4  # of their offsets
KEPT = 128  # gradients, after which kept vectors are added up
_arguments = simd.record_view(ARGUMENTS)


def scratch_bytes(lanes: int, bits: int, longest: int) -> int:
    """Bytes that one worker needs, for entries of up to `longest` nonzeros."""
    numbers = KEPT + longest + FOUR + lanes  # whole chunks are read
    return -(-numbers // FOUR * max(FOUR, lanes) * bits // 8 // 64) * 64


def make_sddmm_runs(bits: int, lanes: int) -> Callable[..., None]:
    """Kernel on vectors of `lanes` numbers of `bits` bits. In its record `entries`, `offsets` and `gradients` have
    gaps."""
    size = bits // 8
    vector = lanes * size
    chunk = max(lanes, FOUR)  # gradients that are added to at once
    each = max(1, FOUR // lanes)  # vectors that are kept of four nonzeros
    parts, kept_bytes = chunk // FOUR * each, each * vector

    @kernel_part
    def add_kept(kept, gradients, number):  # type: ignore[no-untyped-def]
        like = simd.zeros(parts, lanes, bits)
        while number >= chunk:
            simd.add_fours(simd.load(like, kept), gradients, chunk)
            kept += parts * vector
            gradients += chunk * size
            number -= chunk
        if number > 0:
            simd.add_fours(simd.load(like, kept), gradients, number)

    def make_pass(runs: int) -> Callable[..., Any]:
        """All entries of a block, on one run or two."""

        @inlined_part
        def dot(y0, y1, x0, x1, offset):  # type: ignore[no-untyped-def]
            acc = simd.dot_tile(simd.zeros(1, lanes, bits), y0, x0 + offset)
            if runs == 2:
                acc = simd.dot_tile(acc, y1, x1 + offset)
            return acc

        @kernel_part
        def run_entries(a, entry, end, x0, x1, first_y, second_y, kept):  # type: ignore[no-untyped-def]
            offsets, y_row_stride, to_second = a.offsets, a.y_row_stride, second_y - first_y
            nothing, like = simd.zeros(1, lanes, bits), simd.zeros(FOUR, lanes, bits)
            cursor, cursor_end = a.entries + entry * 8, a.entries + end * 8
            at = (simd.load_u32(cursor) + FOUR - 1) // FOUR * FOUR_BYTES
            gradients, place, full = a.gradients + at // 4 * size, kept, kept + KEPT // FOUR * kept_bytes
            # What leads to other loads is loaded before it is used, as in `spmm`.
            row, behind = simd.load_u32(cursor + 4), simd.load_i64(cursor + 8)
            coming = simd.load_four_u32(vector, offsets + at)
            while cursor < cursor_end:
                y_row = first_y + row * y_row_stride
                stop, row, behind = (behind & 0xFFFFFFFF) * 4, (behind >> 32) & 0xFFFFFFFF, simd.load_i64(cursor + 16)
                y0, y1 = simd.load(like, y_row), simd.load(like, y_row + to_second)
                while at + FOUR_BYTES <= stop:
                    (two, more), coming = coming, simd.load_four_u32(vector, offsets + at + FOUR_BYTES)
                    s0 = dot(y0, y1, x0, x1, two & 0xFFFFFFFF)
                    s1 = dot(y0, y1, x0, x1, (two >> 32) & 0xFFFFFFFF)
                    s2 = dot(y0, y1, x0, x1, more & 0xFFFFFFFF)
                    s3 = dot(y0, y1, x0, x1, (more >> 32) & 0xFFFFFFFF)
                    simd.store(simd.fours_of(s0, s1, s2, s3), place)
                    place += kept_bytes
                    at += FOUR_BYTES
                if at < stop:
                    (two, more), coming = coming, simd.load_four_u32(vector, offsets + at + FOUR_BYTES)
                    s0, s1, s2 = dot(y0, y1, x0, x1, two & 0xFFFFFFFF), nothing, nothing
                    if at + 4 < stop:
                        s1 = dot(y0, y1, x0, x1, (two >> 32) & 0xFFFFFFFF)
                    if at + 8 < stop:
                        s2 = dot(y0, y1, x0, x1, more & 0xFFFFFFFF)
                    simd.store(simd.fours_of(s0, s1, s2, nothing), place)
                    place += kept_bytes
                    at += FOUR_BYTES
                if place >= full:
                    number = (place - kept) // kept_bytes * FOUR
                    add_kept(kept, gradients, number)
                    gradients, place = gradients + number * size, kept
                cursor += 8
            add_kept(kept, gradients, (place - kept) // kept_bytes * FOUR)

        return run_entries

    run_one, run_two = make_pass(1), make_pass(2)

    def sddmm(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        kept = a.scratch + slot * a.scratch_stride
        runs = a.positions // FOUR
        group = simd.fetch_add(a.counter, 1)
        while group < a.stop:
            segments = a.segments + group * a.blocks * 16
            for batch in range(a.batches):
                x, y = a.x + batch * a.x_batch_stride, a.y + batch * a.y_batch_stride
                for first in range(0, runs, a.runs_per_block):
                    last = min(runs, first + a.runs_per_block)
                    for block in range(a.blocks):
                        entry = simd.load_u32(segments + block * 16)
                        end = simd.load_u32(segments + block * 16 + 16)
                        base = x + simd.load_i64(a.block_bases + block * 8)
                        for run in range(first, last - 1, 2):
                            x_runs, y_runs = a.x_runs + run * 8, a.y_runs + run * 8
                            x0, x1 = base + simd.load_i64(x_runs), base + simd.load_i64(x_runs + 8)
                            y0, y1 = y + simd.load_i64(y_runs), y + simd.load_i64(y_runs + 8)
                            run_two(a, entry, end, x0, x1, y0, y1, kept)
                        if (last - first) % 2:
                            x0 = base + simd.load_i64(a.x_runs + last * 8 - 8)
                            y0 = y + simd.load_i64(a.y_runs + last * 8 - 8)
                            run_one(a, entry, end, x0, x0, y0, y0, kept)
            group = simd.fetch_add(a.counter, 1)

    return sddmm


@compiled_once
def sddmm_runs_kernel(bits: int, lanes: int) -> Any:
    """The compiled variant."""
    return compile_kernel(make_sddmm_runs(bits, lanes), f"sddmm_runs_f{bits}_v{lanes}")
