"""Softmax of contiguous rows: exp(x - max) / sum.

Sums are float64. A row is computed by one worker in a fixed order, so results do not depend on the number of threads.
Rows are read three times; the rows of a task are consecutive, so all reads but the first hit the cache. y may be x.
"""

from __future__ import annotations

import math
from typing import Any

from . import simd
from .compiler import compile_kernel, compiled_once, kernel_arguments, kernel_function
from .norm import make_over_rows
from .simd.math import broadcast, convert, exp, horizontal_max, horizontal_sum, keep_first, lanewise, multiply, where

# A task is `chunk` rows. Tasks: ceil(rows / chunk).
SOFTMAX = kernel_arguments("rows", "columns", "chunk", "x", "y")
_softmax = simd.arguments_view(SOFTMAX)

_lowest = lanewise(lambda x: x.broadcast(-math.inf), 1)
_ones = lanewise(lambda x: x.broadcast(1.0), 1)
_larger = lanewise(lambda a, b: where(b > a, b, a), 2)
_minus_inf_unless = lanewise(lambda x, kept: where(kept > 0.0, x, -math.inf), 2)
_exp_of_difference = lanewise(lambda x, top: exp(x - top), 2)
_inverse = lanewise(lambda a: 1.0 / a, 1)


def make_softmax_row(bits: int, lanes: int) -> Any:
    """Function row(x, y, numbers in whole vectors, numbers after them)."""
    size = bits // 8

    @kernel_function
    def row_max(x, full, rest):  # type: ignore[no-untyped-def]
        """The row's largest number in all lanes; NaN does not count."""
        like = simd.zeros(1, lanes, bits)
        top = _lowest(like)
        for i in range(0, full, lanes):
            top = _larger(top, simd.load(like, x + i * size))
        if rest > 0:
            last = simd.load_first(like, x + full * size, rest)
            top = _larger(top, _minus_inf_unless(last, keep_first(_ones(like), rest)))
        return broadcast(like, horizontal_max(top))

    @kernel_function
    def row(x, y, full, rest):  # type: ignore[no-untyped-def]
        like, sums = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, 64)
        top = row_max(x, full, rest)
        for i in range(0, full, lanes):
            power = _exp_of_difference(simd.load(like, x + i * size), top)
            sums = simd.add(sums, convert(sums, power))
            simd.store(power, y + i * size)
        if rest > 0:
            power = _exp_of_difference(simd.load_first(like, x + full * size, rest), top)
            sums = simd.add(sums, convert(sums, keep_first(power, rest)))
            simd.store_first(power, y + full * size, rest)
        scale = convert(like, _inverse(broadcast(sums, horizontal_sum(sums))))
        for i in range(0, full + rest, lanes):
            at, left = y + i * size, full + rest - i
            simd.store_first(multiply(simd.load_first(like, at, left), scale), at, left)

    return row


@compiled_once
def softmax_kernel(bits: int, lanes: int) -> Any:
    """Kernel with arguments SOFTMAX."""
    one_row = make_softmax_row(bits, lanes)

    @kernel_function
    def row(a, x, y, full, rest):  # type: ignore[no-untyped-def]
        one_row(x, y, full, rest)

    return compile_kernel(make_over_rows(_softmax, row, bits // 8, lanes), f"softmax_f{bits}_v{lanes}")
