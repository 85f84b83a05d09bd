"""SDDMM over positions: gradient[p] += sum over positions of y[row(p), position] . x[position + offset(p)].

The weight gradient of linear layers and convolutions, at the nonzeros only. Both arrays are batch-blocked (see
layouts.py) and the offsets are those of the SpMM operator. Positions may be in several parts, each with gradients of
its own, so that a worker reads what it packed. Every gradient of a part is written by one worker; its summation order
depends on geometry, never on the number of workers. Two forms:

`sddmm`, for any positions: eight nonzeros of a row at once, one vector of y against eight of x, eight accumulators, and
one shuffle tree that leaves the eight sums in one vector. (A dot product per nonzero: three quarters of the speed.)

`sddmm_runs`, for positions in contiguous runs of RUN_VECTORS vectors, as the samples of linear layers and the rows of
some images are, a fifth faster: two runs of a row of y stay in eight registers over all the row's nonzeros, at eight
multiply-adds with vectors of x in memory each. A shuffle tree reduces four nonzeros to one vector of partial sums,
which are buffered, so that the rest of the tree has full vectors, too. Rows are padded to a multiple of RUN_VECTORS
nonzeros in the gradients and in the offsets: see `fastsparse/ops/sddmm.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import simd
from .compiler import compile_kernel, compiled_once, inlined_function, kernel_arguments, kernel_function
from .sparse_operator import RUN_VECTORS

OFFSETS_BYTES = RUN_VECTORS * 4
BUFFERED = 128  # gradients, after which buffered partial sums are reduced

ARGUMENTS = kernel_arguments(
    # tasks are (part of the positions, row group of the operator)
    "groups",
    "blocks",
    "segments",
    "entries",  # uint32 [entries + 1, 2], end of the nonzeros of the entry before, and each one's row
    "offsets",  # OVERREAD items after the last of these two are readable
    "gradients",  # float [parts, nnz] in the operator's order
    "gradients_stride",  # bytes between parts
    "from_zero",  # 1: what is in the gradients counts as 0; 0: it is added to
    "block_bases",
    # positions: runs of equally spaced ones, a row of an image or some groups of samples
    "positions",  # in all runs of a batch; the last run may be shorter than run_length
    "run_length",
    "part_passes",  # int64 [parts, 2], the first pass of every part and the one behind its last
    "passes",  # int64 [passes, 3], passes over the nonzeros: batch, first run, the run behind the last
    "x",
    "x_batch_stride",
    "x_runs",  # int64 [runs], bytes to each run's first position
    "x_step",  # bytes between a run's positions
    "y",
    "y_batch_stride",
    "y_row_stride",
    "y_runs",
    "y_step",
    # worker scratch, see `scratch_bytes`
    "scratch",
    "scratch_stride",
)
_arguments = simd.arguments_view(ARGUMENTS)


def _make_passes(run_block: Callable[..., Any]) -> Callable[..., None]:
    """The kernel that runs run_block(arguments, gradients, first and last entry, x, y, first run, the run behind the
    last, scratch, from_zero) on all blocks of all passes of a task."""

    def sddmm(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        scratch = a.scratch + slot * a.scratch_stride
        for task in simd.tasks(arguments):
            part, group = task // a.groups, task % a.groups
            segments, gradients = a.segments + group * a.blocks * 16, a.gradients + part * a.gradients_stride
            passes = a.part_passes + part * 16
            first, last = simd.load_i64(passes), simd.load_i64(passes + 8)
            for i in range(first, last):
                at, from_zero = a.passes + i * 24, int(a.from_zero and i == first)
                batch, run, run_end = simd.load_i64(at), simd.load_i64(at + 8), simd.load_i64(at + 16)
                x, y = a.x + batch * a.x_batch_stride, a.y + batch * a.y_batch_stride
                for block in range(a.blocks):
                    entry, end = simd.load_u32(segments + block * 16), simd.load_u32(segments + block * 16 + 16)
                    inputs = x + simd.load_i64(a.block_bases + block * 8)
                    run_block(a, gradients, entry, end, inputs, y, run, run_end, scratch, from_zero)

    return sddmm


def make_over_row(lanes: int, make_take: Callable[[int], Callable[..., None]]) -> Callable[..., None]:
    """over_row(p, end, *operands): take(p, valid, *operands) on eight nonzeros of a row at a time, or VL; the last ones
    by the narrowest of three widths.

    make_take : gives `take` for a width, of which `valid` nonzeros exist
    """
    count = min(8, lanes)
    half, quarter = max(1, count // 2), max(1, count // 4)
    take_all, take_half, take_quarter = make_take(count), make_take(half), make_take(quarter)

    @inlined_function
    def over_row(p, end, *operands):  # type: ignore[no-untyped-def]
        while p + count <= end:  # inlined, with the number known: no selection of addresses
            take_all(p, count, *operands)
            p += count
        if p + half < end:
            take_all(p, end - p, *operands)
        elif p + quarter < end:
            take_half(p, end - p, *operands)
        elif p < end:
            take_quarter(p, end - p, *operands)

    return over_row


@compiled_once
def sddmm_kernel(bits: int, lanes: int) -> Any:
    """Kernel on vectors of `lanes` numbers of `bits` bits. It takes eight nonzeros of a row at a time, or VL."""
    size = bits // 8

    @inlined_function
    def add_run(acc, a, run, y, bases, offset):  # type: ignore[no-untyped-def]
        x_step, y_step = a.x_step, a.y_step
        end = y + min(a.run_length, a.positions - run * a.run_length) * y_step
        while y < end:
            acc = simd.dot(acc, y, bases, offset)
            y += y_step
            offset += x_step
        return acc

    def make_take(width: int) -> Callable[..., Any]:
        """Dot products of one row of y with `width` rows of x over some runs, added to the gradients."""

        @inlined_function
        def take(p, valid, a, gradients, x, y_row, run, run_end, from_zero):  # type: ignore[no-untyped-def]
            bases = simd.row_addresses(width, x, a.offsets + p * 4, 32, 1, valid)
            acc = simd.zeros(width, lanes, bits)
            while run < run_end:
                offset = simd.load_i64(a.x_runs + run * 8)
                acc = add_run(acc, a, run, y_row + simd.load_i64(a.y_runs + run * 8), bases, offset)
                run += 1
            simd.add_reduced(acc, gradients + p * size, valid, from_zero)

        return take

    over_row = make_over_row(lanes, make_take)

    @kernel_function
    def run_entries(a, gradients, entry, end, x, y, run, run_end, scratch, from_zero):  # type: ignore[no-untyped-def]
        p = simd.load_u32(a.entries + entry * 8)
        while entry < end:
            stop = simd.load_u32(a.entries + entry * 8 + 8)
            y_row = y + simd.load_u32(a.entries + entry * 8 + 4) * a.y_row_stride
            over_row(p, stop, a, gradients, x, y_row, run, run_end, from_zero)
            p = stop
            entry += 1

    return compile_kernel(_make_passes(run_entries), f"sddmm_f{bits}_v{lanes}")


# ---------------------------------------------------------------- contiguous runs


def scratch_bytes(lanes: int, bits: int, longest: int) -> int:
    """Bytes that one worker needs, for entries of up to `longest` nonzeros."""
    numbers = BUFFERED + longest + RUN_VECTORS + lanes  # whole chunks are read
    return -(-numbers // RUN_VECTORS * max(RUN_VECTORS, lanes) * bits // 8 // 64) * 64


@compiled_once
def sddmm_runs_kernel(bits: int, lanes: int) -> Any:
    """Kernel on contiguous runs, vectors of `lanes` numbers of `bits` bits.

    Entries begin at multiples of RUN_VECTORS in `offsets` and `gradients`.
    """
    size = bits // 8
    vector = lanes * size
    chunk = max(lanes, RUN_VECTORS)  # gradients updated at once
    each = max(1, RUN_VECTORS // lanes)  # vectors of partial sums of four nonzeros
    parts, partial_bytes = chunk // RUN_VECTORS * each, each * vector

    @kernel_function
    def reduce_buffered(buffer, gradients, number, from_zero):  # type: ignore[no-untyped-def]
        like = simd.zeros(parts, lanes, bits)
        while number >= chunk:
            simd.add_reduced_fours(simd.load(like, buffer), gradients, chunk, from_zero)
            buffer += parts * vector
            gradients += chunk * size
            number -= chunk
        if number > 0:
            simd.add_reduced_fours(simd.load(like, buffer), gradients, number, from_zero)

    def make_pass(runs: int) -> Callable[..., Any]:
        """All entries of a block, on one run or two."""

        @inlined_function
        def dot(y0, y1, x0, x1, offset):  # type: ignore[no-untyped-def]
            acc = simd.dot_tile(simd.zeros(1, lanes, bits), y0, x0 + offset)
            if runs == 2:
                acc = simd.dot_tile(acc, y1, x1 + offset)
            return acc

        @kernel_function
        def run_entries(a, gradients, entry, end, x0, x1, first_y, second_y, buffer, from_zero):  # type: ignore[no-untyped-def]
            offsets, y_row_stride, to_second = a.offsets, a.y_row_stride, second_y - first_y
            nothing, like = simd.zeros(1, lanes, bits), simd.zeros(RUN_VECTORS, lanes, bits)
            cursor, cursor_end = a.entries + entry * 8, a.entries + end * 8
            at = (simd.load_u32(cursor) + RUN_VECTORS - 1) // RUN_VECTORS * OFFSETS_BYTES
            gradients, target = gradients + at // 4 * size, buffer
            full = buffer + BUFFERED // RUN_VECTORS * partial_bytes
            # Loads that other loads depend on are one entry ahead, as in `spmm`.
            row, next_entry = simd.load_u32(cursor + 4), simd.load_i64(cursor + 8)
            next_four = simd.load_four_u32(vector, offsets + at)
            while cursor < cursor_end:
                y_row = first_y + row * y_row_stride
                stop, row = (next_entry & 0xFFFFFFFF) * 4, (next_entry >> 32) & 0xFFFFFFFF
                next_entry = simd.load_i64(cursor + 16)
                y0, y1 = simd.load(like, y_row), simd.load(like, y_row + to_second)
                while at + OFFSETS_BYTES <= stop:
                    (two, more), next_four = next_four, simd.load_four_u32(vector, offsets + at + OFFSETS_BYTES)
                    s0 = dot(y0, y1, x0, x1, two & 0xFFFFFFFF)
                    s1 = dot(y0, y1, x0, x1, (two >> 32) & 0xFFFFFFFF)
                    s2 = dot(y0, y1, x0, x1, more & 0xFFFFFFFF)
                    s3 = dot(y0, y1, x0, x1, (more >> 32) & 0xFFFFFFFF)
                    simd.store(simd.reduce_fours(s0, s1, s2, s3), target)
                    target += partial_bytes
                    at += OFFSETS_BYTES
                if at < stop:
                    (two, more), next_four = next_four, simd.load_four_u32(vector, offsets + at + OFFSETS_BYTES)
                    s0, s1, s2 = dot(y0, y1, x0, x1, two & 0xFFFFFFFF), nothing, nothing
                    if at + 4 < stop:
                        s1 = dot(y0, y1, x0, x1, (two >> 32) & 0xFFFFFFFF)
                    if at + 8 < stop:
                        s2 = dot(y0, y1, x0, x1, more & 0xFFFFFFFF)
                    simd.store(simd.reduce_fours(s0, s1, s2, nothing), target)
                    target += partial_bytes
                    at += OFFSETS_BYTES
                if target >= full:
                    number = (target - buffer) // partial_bytes * RUN_VECTORS
                    reduce_buffered(buffer, gradients, number, from_zero)
                    gradients, target = gradients + number * size, buffer
                cursor += 8
            reduce_buffered(buffer, gradients, (target - buffer) // partial_bytes * RUN_VECTORS, from_zero)

        return run_entries

    run_one, run_two = make_pass(1), make_pass(2)

    @kernel_function
    def run_block(a, gradients, entry, end, x, y, first, last, buffer, from_zero):  # type: ignore[no-untyped-def]
        for run in range(first, last - 1, 2):
            x_runs, y_runs, initial = a.x_runs + run * 8, a.y_runs + run * 8, int(from_zero and run == first)
            x0, x1 = x + simd.load_i64(x_runs), x + simd.load_i64(x_runs + 8)
            y0, y1 = y + simd.load_i64(y_runs), y + simd.load_i64(y_runs + 8)
            run_two(a, gradients, entry, end, x0, x1, y0, y1, buffer, initial)
        if (last - first) % 2:
            x0 = x + simd.load_i64(a.x_runs + last * 8 - 8)
            y0 = y + simd.load_i64(a.y_runs + last * 8 - 8)
            run_one(a, gradients, entry, end, x0, x0, y0, y0, buffer, int(from_zero and last - 1 == first))

    return compile_kernel(_make_passes(run_block), f"sddmm_runs_f{bits}_v{lanes}")
