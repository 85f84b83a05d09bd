"""Softmax and layer normalisation of contiguous rows.

Softmax: exp(x - max) / sum. Layer norm: gamma (x - mean) / sqrt(variance + eps) + beta, with the biased variance, whose
sum is taken behind the mean (two passes: no cancellation). Ba, Kiros and Hinton, Layer Normalization, arXiv:1607.06450.

Sums are float64. A row is one worker's, in a fixed order, so results do not depend on the number of threads. Rows are
read three times, and as a task's rows follow one another they are in the cache from the first time on. y may be x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from . import simd
from .build import compile_kernel, compiled_once, kernel_part, kernel_record
from .simd_math import converted, exp, filled, first_kept, fma, highest, lanewise, square_root, total, where

# A task is `chunk` rows. Tasks: ceil(rows / chunk).
SOFTMAX = kernel_record("rows", "columns", "chunk", "x", "y")
LAYER_NORM = kernel_record(
    "rows",
    "columns",
    "chunk",
    "x",
    "y",
    "gamma",  # [columns], x's type
    "beta",  # the same, or 0
    "eps",  # float64 [1]
    "centred",  # 0: the mean is taken for 0 (root mean square norm)
)
_softmax = simd.record_view(SOFTMAX)
_layer_norm = simd.record_view(LAYER_NORM)

_lowest = lanewise(lambda x: x.spread(-math.inf), 1)
_ones = lanewise(lambda x: x.spread(1.0), 1)
_larger = lanewise(lambda a, b: where(b > a, b, a), 2)
_fenced = lanewise(lambda x, kept: where(kept > 0.0, x, -math.inf), 2)
_exp_of_difference = lanewise(lambda x, top: exp(x - top), 2)
_subtract = lanewise(lambda a, b: a - b, 2)
_multiply = lanewise(lambda a, b: a * b, 2)
_multiply_add = lanewise(fma, 3)
_square_added = lanewise(lambda a, total: fma(a, a, total), 2)
_inverse = lanewise(lambda a: 1.0 / a, 1)
_inverse_root = lanewise(lambda variance, eps: 1.0 / square_root(variance + eps), 2)


def _over_rows(view: Any, row: Callable[..., None], size: int, lanes: int) -> Callable[..., None]:
    """The kernel that runs row(record, x, y, numbers in whole vectors, numbers behind them) on a task's rows."""

    def over_rows(arguments, slot):  # type: ignore[no-untyped-def]
        a = view(arguments)
        full = a.columns // lanes * lanes
        task = simd.fetch_add(a.counter, 1)
        while task < a.stop:
            for i in range(task * a.chunk, min(a.rows, (task + 1) * a.chunk)):
                start = i * a.columns * size
                row(a, a.x + start, a.y + start, full, a.columns - full)
            task = simd.fetch_add(a.counter, 1)

    return over_rows


def make_softmax(bits: int, lanes: int) -> Callable[..., None]:
    """Kernel of record SOFTMAX."""
    size = bits // 8

    @kernel_part
    def top_of(x, full, rest):  # type: ignore[no-untyped-def]
        """The row's largest number in all lanes; NaN does not count."""
        like = simd.zeros(1, lanes, bits)
        top = _lowest(like)
        for i in range(0, full, lanes):
            top = _larger(top, simd.load(like, x + i * size))
        if rest > 0:
            last = simd.load_first(like, x + full * size, rest)
            top = _larger(top, _fenced(last, first_kept(_ones(like), rest)))
        return filled(like, highest(top))

    @kernel_part
    def row(a, x, y, full, rest):  # type: ignore[no-untyped-def]
        like, sums = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, 64)
        top = top_of(x, full, rest)
        for i in range(0, full, lanes):
            power = _exp_of_difference(simd.load(like, x + i * size), top)
            sums = simd.add(sums, converted(sums, power))
            simd.store(power, y + i * size)
        if rest > 0:
            power = _exp_of_difference(simd.load_first(like, x + full * size, rest), top)
            sums = simd.add(sums, converted(sums, first_kept(power, rest)))
            simd.store_first(power, y + full * size, rest)
        scale = converted(like, _inverse(filled(sums, total(sums))))
        for i in range(0, full, lanes):
            simd.store(_multiply(simd.load(like, y + i * size), scale), y + i * size)
        if rest > 0:
            end = y + full * size
            simd.store_first(_multiply(simd.load_first(like, end, rest), scale), end, rest)

    return _over_rows(_softmax, row, size, lanes)


@compiled_once
def softmax_kernel(bits: int, lanes: int) -> Any:
    """The compiled kernel of record SOFTMAX."""
    return compile_kernel(make_softmax(bits, lanes), f"softmax_f{bits}_v{lanes}")


def make_layer_norm(bits: int, lanes: int) -> Callable[..., None]:
    """Kernel of record LAYER_NORM."""
    size = bits // 8

    @kernel_part
    def mean_of(x, full, rest, columns):  # type: ignore[no-untyped-def]
        like, sums = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, 64)
        for i in range(0, full, lanes):
            sums = simd.add(sums, converted(sums, simd.load(like, x + i * size)))
        if rest > 0:
            sums = simd.add(sums, converted(sums, simd.load_first(like, x + full * size, rest)))
        return total(sums) / columns

    @kernel_part
    def variance_of(x, full, rest, columns, mean):  # type: ignore[no-untyped-def]
        like, sums = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, 64)
        centre = filled(sums, mean)
        for i in range(0, full, lanes):
            sums = _square_added(_subtract(converted(sums, simd.load(like, x + i * size)), centre), sums)
        if rest > 0:
            last = converted(sums, simd.load_first(like, x + full * size, rest))
            sums = _square_added(first_kept(_subtract(last, centre), rest), sums)
        return total(sums) / columns

    @kernel_part
    def normalised(x, centre, lost, scale):  # type: ignore[no-untyped-def]
        """(x - mean) * scale; what rounding the mean to x's type lost is subtracted, too."""
        return _multiply(_subtract(_subtract(x, centre), lost), scale)

    @kernel_part
    def row(a, x, y, full, rest):  # type: ignore[no-untyped-def]
        like, one = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, 64)
        mean = simd.zero(64)
        if a.centred != 0:
            mean = mean_of(x, full, rest, a.columns)
        variance = variance_of(x, full, rest, a.columns, mean)
        wide_mean = filled(one, mean)
        centre = converted(like, wide_mean)
        lost = converted(like, _subtract(wide_mean, converted(one, centre)))
        scale = converted(like, _inverse_root(filled(one, variance), filled(one, simd.load_float(64, a.eps))))
        for i in range(0, full, lanes):
            at = i * size
            v, shift = normalised(simd.load(like, x + at), centre, lost, scale), like
            if a.beta != 0:
                shift = simd.load(like, a.beta + at)
            simd.store(_multiply_add(v, simd.load(like, a.gamma + at), shift), y + at)
        if rest > 0:
            at = full * size
            v, shift = normalised(simd.load_first(like, x + at, rest), centre, lost, scale), like
            if a.beta != 0:
                shift = simd.load_first(like, a.beta + at, rest)
            simd.store_first(_multiply_add(v, simd.load_first(like, a.gamma + at, rest), shift), y + at, rest)

    return _over_rows(_layer_norm, row, size, lanes)


@compiled_once
def layer_norm_kernel(bits: int, lanes: int) -> Any:
    """The compiled kernel of record LAYER_NORM."""
    return compile_kernel(make_layer_norm(bits, lanes), f"layer_norm_f{bits}_v{lanes}")
