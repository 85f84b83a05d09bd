"""SDDMM over positions: gradient[p] += sum over positions of y[row(p), position] . x[position + offset(p)].

The weight gradient of linear layers and convolutions, at the nonzeros only. Both arrays are in lanes layout (see
layout.py) and the offsets are those of the SpMM operator. Eight nonzeros of a row go together: one vector of y against
eight of x, eight accumulators, and one shuffle tree that leaves the eight sums in one vector. A dot product per
nonzero reached three quarters of that.

Every gradient is written by one worker; its summation order depends on geometry, never on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import simd
from .build import compile_kernel, compiled_once, inlined_part, kernel_part, kernel_record

ARGUMENTS = kernel_record(
    # tasks are row groups of the operator
    "blocks",
    "segments",
    "entries",  # uint32 [entries + 1, 2], where the nonzeros of the one before end, and each one's row
    "offsets",  # READ_AHEAD items behind these two may be read
    "gradients",  # float [nnz] in the operator's order, zeroed by the caller
    "block_bases",
    "batches",
    # positions: runs of equally spaced ones, a row of an image or some groups of samples
    "positions",  # in all runs; the last run may be shorter than run_length
    "run_length",
    "runs_per_block",  # runs that are walked before the next nonzeros are taken
    "x",
    "x_batch_stride",
    "x_runs",  # int64 [runs], bytes to each run's first position
    "x_step",  # bytes between a run's positions
    "y",
    "y_batch_stride",
    "y_row_stride",
    "y_runs",
    "y_step",
    # worker scratch, see sddmm_runs.py
    "scratch",
    "scratch_stride",
)
_arguments = simd.record_view(ARGUMENTS)


def make_sddmm(bits: int, lanes: int) -> Callable[..., None]:
    """Kernel on vectors of `lanes` numbers of `bits` bits. It takes eight nonzeros of a row at a time, or VL."""
    size, count = bits // 8, min(8, lanes)
    half, quarter = max(1, count // 2), max(1, count // 4)

    @kernel_part
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

        @inlined_part
        def take(a, x, y_row, p, valid, run, run_end):  # type: ignore[no-untyped-def]
            bases = simd.gather_addresses_u32(width, x, a.offsets + p * 4, valid)
            acc = simd.zeros(width, lanes, bits)
            while run < run_end:
                offset = simd.load_i64(a.x_runs + run * 8)
                acc = add_run(acc, a, run, y_row + simd.load_i64(a.y_runs + run * 8), bases, offset)
                run += 1
            if valid == width:
                simd.add_sums(acc, a.gradients + p * size)
            else:
                simd.add_sums_first(acc, a.gradients + p * size, valid)

        return take

    take_all, take_half, take_quarter = make_take(count), make_take(half), make_take(quarter)

    @kernel_part
    def run_entries(a, entry, end, x, y, run, run_end):  # type: ignore[no-untyped-def]
        p = simd.load_u32(a.entries + entry * 8)
        while entry < end:
            stop = simd.load_u32(a.entries + entry * 8 + 8)
            y_row = y + simd.load_u32(a.entries + entry * 8 + 4) * a.y_row_stride
            while p + count <= stop:  # inlined, with the number known: no selection of addresses
                take_all(a, x, y_row, p, count, run, run_end)
                p += count
            if p + half < stop:
                take_all(a, x, y_row, p, stop - p, run, run_end)
            elif p + quarter < stop:
                take_half(a, x, y_row, p, stop - p, run, run_end)
            elif p < stop:
                take_quarter(a, x, y_row, p, stop - p, run, run_end)
            p = stop
            entry += 1

    def sddmm(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        runs = (a.positions + a.run_length - 1) // a.run_length
        group = simd.fetch_add(a.counter, 1)
        while group < a.stop:
            segments = a.segments + group * a.blocks * 16
            for batch in range(a.batches):
                x, y = a.x + batch * a.x_batch_stride, a.y + batch * a.y_batch_stride
                for run in range(0, runs, a.runs_per_block):
                    run_end = min(runs, run + a.runs_per_block)
                    for block in range(a.blocks):
                        entry = simd.load_u32(segments + block * 16)
                        end = simd.load_u32(segments + block * 16 + 16)
                        run_entries(a, entry, end, x + simd.load_i64(a.block_bases + block * 8), y, run, run_end)
            group = simd.fetch_add(a.counter, 1)

    return sddmm


@compiled_once
def sddmm_kernel(bits: int, lanes: int) -> Any:
    """The compiled variant."""
    return compile_kernel(make_sddmm(bits, lanes), f"sddmm_f{bits}_v{lanes}")
