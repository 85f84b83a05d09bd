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

from numba.extending import register_jitable

from . import simd
from .build import compile_kernel, compiled_once, kernel_record

ARGUMENTS = kernel_record(
    # tasks are row groups of the operator
    "blocks",
    "segments",
    "row_ends",
    "rows",
    "offsets",
    "gradients",  # float [nnz] in the operator's order, zeroed by the caller
    "block_bases",
    "batches",
    "positions",  # positions per batch
    "position_block",  # positions that are walked before the next nonzeros are taken
    "x",
    "x_batch_stride",
    "x_positions",  # int64 [positions]
    "y",
    "y_batch_stride",
    "y_row_stride",
    "y_positions",  # int64 [positions]
)
_arguments = simd.record_view(ARGUMENTS)


def make_sddmm(bits: int, lanes: int, count: int) -> Callable[..., None]:
    """Kernel that takes `count` nonzeros of a row at a time (a power of two <= lanes)."""
    size = bits // 8

    @register_jitable
    def walk(a, bases, y_row, position, end):  # type: ignore[no-untyped-def]
        acc = simd.zeros(count, lanes, bits)
        while position < end:
            y = y_row + simd.load_i64(a.y_positions + position * 8)
            acc = simd.dot_step(acc, y, bases, simd.load_i64(a.x_positions + position * 8))
            position += 1
        return acc

    @register_jitable
    def run_entries(a, entry, end, x, y, position, position_end):  # type: ignore[no-untyped-def]
        offsets, gradients = a.offsets, a.gradients
        p = simd.load_u32(a.row_ends + entry * 4)
        while entry < end:
            stop = simd.load_u32(a.row_ends + entry * 4 + 4)
            y_row = y + simd.load_u32(a.rows + entry * 4) * a.y_row_stride
            while p + count <= stop:
                bases = simd.gather_addresses_u32(count, x, offsets + p * 4, count)
                simd.add_sums(walk(a, bases, y_row, position, position_end), gradients + p * size)
                p += count
            if p < stop:
                bases = simd.gather_addresses_u32(count, x, offsets + p * 4, stop - p)
                simd.add_sums_first(walk(a, bases, y_row, position, position_end), gradients + p * size, stop - p)
                p = stop
            entry += 1

    def sddmm(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        group = simd.fetch_add(a.counter, 1)
        while group < a.stop:
            segments = a.segments + group * a.blocks * 16
            for batch in range(a.batches):
                x, y = a.x + batch * a.x_batch_stride, a.y + batch * a.y_batch_stride
                for position in range(0, a.positions, a.position_block):
                    position_end = min(a.positions, position + a.position_block)
                    for block in range(a.blocks):
                        entry = simd.load_u32(segments + block * 16)
                        end = simd.load_u32(segments + block * 16 + 16)
                        base = x + simd.load_i64(a.block_bases + block * 8)
                        run_entries(a, entry, end, base, y, position, position_end)
            group = simd.fetch_add(a.counter, 1)

    return sddmm


@compiled_once
def sddmm_kernel(bits: int, lanes: int, count: int) -> Any:
    """The compiled variant."""
    return compile_kernel(make_sddmm(bits, lanes, count), f"sddmm_f{bits}_v{lanes}_t{count}")
