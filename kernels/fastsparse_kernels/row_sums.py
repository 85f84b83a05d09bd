"""SpMM's sums of rows: the loops over nonzeros, of one row or of four that go together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import simd
from .build import inlined_part, kernel_part

ALIKE, LOCKSTEP = 1, 2  # how four rows go together


def make_row_sums(
    bits: int, lanes: int, count: int, load: Any, ask_lines: Any, together: int
) -> tuple[Callable[..., Any], ...]:
    """Functions (begin, add_nonzeros, sum_four) of the kernel on tiles of `count` vectors.

    begin : the sum of a row before its nonzeros
    load, ask_lines : of the kernel, see `spmm.make_spmm` and `asking.make_asking`
    together : ALIKE when all rows have the same columns, as those of a dense matrix: four rows share what is read of x.
        LOCKSTEP when the nonzeros of four entries lie in turn, see operators.py: for tiles of few vectors, which wait
        on the latency of one row's multiply-adds.
    """
    size = bits // 8
    vector = lanes * size
    width = count * vector

    @kernel_part
    def begin(row, partial, begins):  # type: ignore[no-untyped-def]
        acc = simd.zeros(count, lanes, bits)
        if begins == 0:
            acc = simd.load(acc, partial + row * width)
        return acc

    @kernel_part
    def begin_four(a, entry, partial, begins):  # type: ignore[no-untyped-def]
        rows = a.entries + entry * 8 + 4
        s0, s1 = begin(simd.load_u32(rows), partial, begins), begin(simd.load_u32(rows + 8), partial, begins)
        s2, s3 = begin(simd.load_u32(rows + 16), partial, begins), begin(simd.load_u32(rows + 24), partial, begins)
        return s0, s1, s2, s3

    @kernel_part
    def end_four(s0, s1, s2, s3, sums):  # type: ignore[no-untyped-def]
        simd.store(s0, sums)
        simd.store(s1, sums + width)
        simd.store(s2, sums + 2 * width)
        simd.store(s3, sums + 3 * width)

    @inlined_part
    def sum_alike(a, entry, p, bases, partial, begins, sums):  # type: ignore[no-untyped-def]
        """Sums of four rows with the same columns, into `sums`: each vector of x is read once for all."""
        n = simd.load_u32(a.entries + entry * 8 + 8) - p
        step, weight = n * size, a.values + p * size
        s0, s1, s2, s3 = begin_four(a, entry, partial, begins)
        for offset in range(a.offsets + p * 4, a.offsets + (p + n) * 4, 4):
            x = load(s0, bases, simd.load_u32(offset))
            s0, s1 = simd.axpy_tile(s0, weight, x), simd.axpy_tile(s1, weight + step, x)
            s2, s3 = simd.axpy_tile(s2, weight + 2 * step, x), simd.axpy_tile(s3, weight + 3 * step, x)
            weight += size
        end_four(s0, s1, s2, s3, sums)

    @inlined_part
    def add_nonzeros(acc, offsets, values, at, stop, bases, coming, ahead, asked):  # type: ignore[no-untyped-def]
        """Nonzeros from `at` up to `stop`, in bytes of offsets. The first ones are `coming`: four, loaded a turn before
        they are used.

        Loads are what bounds it: one brings four weights, and those of x wait less when their addresses are there.
        """
        while at + 16 <= stop:
            weights = simd.load_weights(acc, values + at * (size // 4))
            (two, more), coming = coming, simd.load_four_u32(vector, offsets + at + 16)
            asked = ask_lines(ahead, asked)
            acc = simd.axpy_with(acc, weights, 0, bases, two & 0xFFFFFFFF)
            acc = simd.axpy_with(acc, weights, 1, bases, (two >> 32) & 0xFFFFFFFF)
            acc = simd.axpy_with(acc, weights, 2, bases, more & 0xFFFFFFFF)
            acc = simd.axpy_with(acc, weights, 3, bases, (more >> 32) & 0xFFFFFFFF)
            at += 16
        if at < stop:
            weights, (two, more) = simd.load_weights(acc, values + at * (size // 4)), coming
            acc = simd.axpy_with(acc, weights, 0, bases, two & 0xFFFFFFFF)
            if at + 4 < stop:
                acc = simd.axpy_with(acc, weights, 1, bases, (two >> 32) & 0xFFFFFFFF)
            if at + 8 < stop:
                acc = simd.axpy_with(acc, weights, 2, bases, more & 0xFFFFFFFF)
        return acc, asked

    @kernel_part
    def add_rest(acc, a, p, end, bases):  # type: ignore[no-untyped-def]
        while p < end:
            acc = simd.axpy(acc, a.values + p * size, bases, simd.load_u32(a.offsets + p * 4))
            p += 1
        return acc

    @inlined_part
    def sum_lockstep(a, entry, p, bases, partial, begins, sums):  # type: ignore[no-untyped-def]
        """Sums of four rows of about the same length, into `sums`: a nonzero of each in turn, as they lie."""
        ends = a.entries + entry * 8
        end0, end1, end2 = simd.load_u32(ends + 8), simd.load_u32(ends + 16), simd.load_u32(ends + 24)
        end3 = simd.load_u32(ends + 32)
        turns = min(min(end0 - p, end1 - end0), min(end2 - end1, end3 - end2))
        s0, s1, s2, s3 = begin_four(a, entry, partial, begins)
        end0, end1, end2 = end0 + 3 * turns, end1 + 2 * turns, end2 + turns
        stop, coming = p + 4 * turns, simd.load_four_u32(vector, a.offsets + p * 4)
        while p < stop:
            (two, more), coming = coming, simd.load_four_u32(vector, a.offsets + p * 4 + 16)
            weights = simd.load_weights(s0, a.values + p * size)
            s0 = simd.axpy_with(s0, weights, 0, bases, two & 0xFFFFFFFF)
            s1 = simd.axpy_with(s1, weights, 1, bases, (two >> 32) & 0xFFFFFFFF)
            s2 = simd.axpy_with(s2, weights, 2, bases, more & 0xFFFFFFFF)
            s3 = simd.axpy_with(s3, weights, 3, bases, (more >> 32) & 0xFFFFFFFF)
            p += 4
        s0, s1 = add_rest(s0, a, p, end0, bases), add_rest(s1, a, end0, end1, bases)
        s2, s3 = add_rest(s2, a, end1, end2, bases), add_rest(s3, a, end2, end3, bases)
        end_four(s0, s1, s2, s3, sums)

    return begin, add_nonzeros, sum_alike if together == ALIKE else sum_lockstep
