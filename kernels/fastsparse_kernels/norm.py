"""Batch normalisation of (N, C, S) and layer normalisation of rows.

Batch norm: y = gamma (x - mean) / sqrt(variance + eps) + beta, statistics per channel. One pass over x gives both
statistics, as float64 sums of x - K and (x - K)^2, where K is the mean of the first images. The cancellation in
`sum2 - sum1^2 / n` is at most the number of such parts in the channel, for any data, so the variance needs no second
pass. See Chan, Golub, LeVeque, Algorithms for computing the sample variance, The American Statistician 37 (1983),
section 3.

A channel is summed by one worker in a fixed order, so results do not depend on the number of threads. x - mean is
computed with the mean rounded to x's type; the rounding error goes into the shift.

A *line* is the contiguous part of one image: with S > 1 the S numbers of one channel, reduced over lanes; with S = 1
the numbers of VL channels, one in each lane. A line's parameters are vectors in both cases. A task is a block of
neighbouring lines in all images, image by image: short lines alone would use one cache line of every page. Sums and
parameters of the block's lines are in the worker's scratch. Time: O(N C S). No function here allocates.

Layer norm: gamma (x - mean) / sqrt(variance + eps) + beta over the last axis, with the biased variance, in two passes
over the row: no cancellation. Ba, Kiros and Hinton, Layer Normalization, arXiv:1607.06450.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import simd
from .compiler import compile_kernel, compiled_once, kernel_arguments, kernel_function
from .simd.math import (
    Lanes,
    broadcast,
    convert,
    fma,
    horizontal_sum,
    keep_first,
    lanewise,
    multiply,
    multiply_add,
    sqrt,
    where,
)

# Arrays per channel are float64 [C]. Tasks: ceil(lines / block).
_SHAPE = (
    "images",
    "lines",  # per image: C, or ceil(C / VL) with S = 1
    "block",  # lines per task
    "channels",
    "positions",  # S
    "image_stride",  # bytes, of all arrays shaped as x
    "eps",  # float64 [1]
    "scratch",
    "scratch_stride",  # block * scratch_line(...)
)
BATCH_NORM = kernel_arguments(
    *_SHAPE,
    "training",  # 1: by the statistics of x; 0: by those given
    "first_images",  # whose mean is K
    "x",
    "y",  # may be x
    "gamma",
    "beta",
    "mean",  # written when training, read otherwise
    "variance",  # biased; as mean
)
BATCH_NORM_GRAD = kernel_arguments(
    *_SHAPE,
    "x",
    "dy",
    "dx",  # may be dy
    "gamma",
    "mean",  # of the forward pass in training
    "variance",
    "grad_gamma",
    "grad_beta",
)
PARTS = 16  # K is the mean of one part in so many of a channel,
FIRST_NUMBERS = 4096  # and of not many more numbers than these

_forward = simd.arguments_view(BATCH_NORM)
_backward = simd.arguments_view(BATCH_NORM_GRAD)


def scratch_line(bits: int, lanes: int) -> int:
    """Bytes of scratch per line of a block: two sums and K in float64, four parameters in x's type."""
    return lanes * (3 * 8 + 4 * bits // 8)


# ---------------------------------------------------------------- on vectors


def _variance(sum1: Lanes, sum2: Lanes, n: Lanes) -> Lanes:
    variance = (sum2 - sum1 * sum1 / n) / n
    return where(variance < 0.0, 0.0, variance)


_subtract = lanewise(lambda a, b: a - b, 2)
_divide = lanewise(lambda a, b: a / b, 2)
_negative = lanewise(lambda a: -a, 1)
_variance_of = lanewise(_variance, 3)
_inverse_root = lanewise(lambda variance, eps: 1.0 / sqrt(variance + eps), 2)
_finite_or_zero = lanewise(lambda x: where((x - x) >= 0.0, x, 0.0), 1)

# ---------------------------------------------------------------- lines


def _make_channels(lanes: int, columns: int) -> tuple[Callable[..., Any], ...]:
    """(read, write, collected, line_numbers): a line's parameters in the tables per channel, its sums, its length."""

    @kernel_function
    def read(a, table, line):  # type: ignore[no-untyped-def]
        one = simd.zeros(1, lanes, 64)
        if columns:
            return simd.load_first(one, table + line * lanes * 8, a.channels - line * lanes)
        return broadcast(one, simd.load_float(64, table + line * 8))

    @kernel_function
    def write(a, parameter, table, line):  # type: ignore[no-untyped-def]
        if columns:
            simd.store_first(parameter, table + line * lanes * 8, a.channels - line * lanes)
        else:
            simd.store_first(parameter, table + line * 8, 1)

    @kernel_function
    def collected(sums):  # type: ignore[no-untyped-def]
        """The channel's sum in every lane, or the lanes' sums as they are."""
        return sums if columns else broadcast(sums, horizontal_sum(sums))

    @kernel_function
    def line_numbers(a, line):  # type: ignore[no-untyped-def]
        return min(lanes, a.channels - line * lanes) if columns else a.positions

    return read, write, collected, line_numbers


def _make_sums(bits: int, lanes: int, line_numbers: Callable[..., Any], gradient: bool) -> Callable[..., Any]:
    """The function that adds a block's numbers to the two sums at each line's scratch: x - K and its square, or with
    `gradient` dy and dy (x - K)."""
    size, wide_vector, pitch = bits // 8, lanes * 8, scratch_line(bits, lanes)

    @kernel_function
    def sum_lines(a, dy, x, images, first, last, scratch):  # type: ignore[no-untyped-def]
        """x, dy : addresses of line `first` in the first image"""
        like, one = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, 64)
        for line in range(last - first):
            simd.store(one, scratch + line * pitch)
            simd.store(one, scratch + line * pitch + wide_vector)
        for n in range(images):
            at, to_dy, sums = x + n * a.image_stride, dy - x, scratch
            for line in range(first, last):
                count = line_numbers(a, line)
                sum1, sum2 = simd.load(one, sums), simd.load(one, sums + wide_vector)
                centre = simd.load(one, sums + 2 * wide_vector)
                full = count // lanes * lanes
                for i in range(0, full, lanes):
                    v = _subtract(convert(one, simd.load(like, at + i * size)), centre)
                    term = convert(one, simd.load(like, at + to_dy + i * size)) if gradient else v
                    sum1, sum2 = simd.add(sum1, term), multiply_add(term, v, sum2)
                if full < count:  # behind the line's end the term is 0
                    end, rest = at + full * size, count - full
                    v = _subtract(convert(one, simd.load_first(like, end, rest)), centre)
                    term = convert(one, simd.load_first(like, end + to_dy, rest)) if gradient else keep_first(v, rest)
                    sum1, sum2 = simd.add(sum1, term), multiply_add(term, v, sum2)
                simd.store(sum1, sums)
                simd.store(sum2, sums + wide_vector)
                at, sums = at + count * size, sums + pitch

    return sum_lines


def _make_affine(bits: int, lanes: int, line_numbers: Callable[..., Any], gradient: bool) -> Callable[..., Any]:
    """The function that writes (x - centre) slope + shift, and with `gradient` + scale dy, of a block to `out`.

    These parameters are vectors of x's type after the sums in each line's scratch.
    """
    size, vector = bits // 8, lanes * bits // 8
    pitch, parameters = scratch_line(bits, lanes), 3 * 8 * lanes

    @kernel_function
    def affine(a, dy, x, out, first, last, scratch):  # type: ignore[no-untyped-def]
        like = simd.zeros(1, lanes, bits)
        for n in range(a.images):
            at, to_dy, to_out, target = x + n * a.image_stride, dy - x, out - x, scratch + parameters
            for line in range(first, last):
                count = line_numbers(a, line)
                centre, slope = simd.load(like, target), simd.load(like, target + vector)
                shift = simd.load(like, target + 2 * vector)
                scale = simd.load(like, target + 3 * vector) if gradient else like
                for i in range(0, count, lanes):
                    here, left = at + i * size, count - i
                    v = multiply_add(_subtract(simd.load_first(like, here, left), centre), slope, shift)
                    if gradient:
                        v = multiply_add(simd.load_first(like, here + to_dy, left), scale, v)
                    simd.store_first(v, here + to_out, left)
                at, target = at + count * size, target + pitch

    return affine


# ---------------------------------------------------------------- kernels


@compiled_once
def batch_norm_kernel(bits: int, lanes: int, columns: int) -> Any:
    """Kernel with arguments BATCH_NORM; `columns` is 1 for S = 1."""
    read, write, collected, line_numbers = _make_channels(lanes, columns)
    sum_lines, normalise = (make(bits, lanes, line_numbers, False) for make in (_make_sums, _make_affine))
    size, vector, wide_vector = bits // 8, lanes * bits // 8, lanes * 8
    pitch = scratch_line(bits, lanes)

    @kernel_function
    def statistics(a, x, first, last, scratch):  # type: ignore[no-untyped-def]
        """Mean and variance of the block's channels."""
        one = simd.zeros(1, lanes, 64)
        for line in range(first, last):
            simd.store(one, scratch + (line - first) * pitch + 2 * wide_vector)
        for part in range(2):  # K from the first images, then the sums over all
            images = a.images if part else a.first_images
            sum_lines(a, x, x, images, first, last, scratch)
            n = broadcast(one, float(images * a.positions))
            for line in range(first, last):
                sums = scratch + (line - first) * pitch
                sum1, sum2 = collected(simd.load(one, sums)), collected(simd.load(one, sums + wide_vector))
                if part == 0:
                    simd.store(_finite_or_zero(_divide(sum1, n)), sums + 2 * wide_vector)
                else:
                    write(a, simd.add(simd.load(one, sums + 2 * wide_vector), _divide(sum1, n)), a.mean, line)
                    write(a, _variance_of(sum1, sum2, n), a.variance, line)

    def batch_norm(arguments, slot):  # type: ignore[no-untyped-def]
        a = _forward(arguments)
        like, one = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, 64)
        scratch = a.scratch + slot * a.scratch_stride
        eps = broadcast(one, simd.load_float(64, a.eps))
        for task in simd.tasks(arguments):
            first = task * a.block
            last = min(a.lines, first + a.block)
            start = first * (lanes if columns else a.positions) * size
            if a.training != 0:
                statistics(a, a.x + start, first, last, scratch)
            for line in range(first, last):
                target = scratch + (line - first) * pitch + 3 * wide_vector
                mean = read(a, a.mean, line)
                centre = convert(like, mean)
                scale = multiply(read(a, a.gamma, line), _inverse_root(read(a, a.variance, line), eps))
                lost = _subtract(convert(one, centre), mean)
                simd.store(centre, target)
                simd.store(convert(like, scale), target + vector)
                simd.store(convert(like, multiply_add(lost, scale, read(a, a.beta, line))), target + 2 * vector)
            normalise(a, a.x, a.x + start, a.y + start, first, last, scratch)

    return compile_kernel(batch_norm, f"batch_norm_{'columns' if columns else 'segments'}_f{bits}_v{lanes}")


@compiled_once
def batch_norm_grad_kernel(bits: int, lanes: int, columns: int) -> Any:
    """Kernel with arguments BATCH_NORM_GRAD; `columns` is 1 for S = 1."""
    read, write, collected, line_numbers = _make_channels(lanes, columns)
    sum_gradients, combine = (make(bits, lanes, line_numbers, True) for make in (_make_sums, _make_affine))
    size, vector, wide_vector = bits // 8, lanes * bits // 8, lanes * 8
    pitch = scratch_line(bits, lanes)

    @kernel_function
    def prepare(a, line, sums, eps):  # type: ignore[no-untyped-def]
        """Write the line's gradients, and the parameters of its dx to the scratch."""
        like, one = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, 64)
        sum1, sum2 = collected(simd.load(one, sums)), collected(simd.load(one, sums + wide_vector))
        mean, inverse = read(a, a.mean, line), _inverse_root(read(a, a.variance, line), eps)
        scale = multiply(read(a, a.gamma, line), inverse)
        write(a, sum1, a.grad_beta, line)
        write(a, multiply(sum2, inverse), a.grad_gamma, line)
        target = sums + 3 * wide_vector
        # dx = scale (dy - mean(dy) - (x - mean) inverse^2 mean(dy (x - mean)))
        rate = _divide(_negative(scale), broadcast(one, float(a.images * a.positions)))
        slope = multiply(multiply(rate, sum2), multiply(inverse, inverse))
        centre = convert(like, mean)
        lost = _subtract(convert(one, centre), mean)
        simd.store(centre, target)
        simd.store(convert(like, slope), target + vector)
        simd.store(convert(like, multiply_add(lost, slope, multiply(rate, sum1))), target + 2 * vector)
        simd.store(convert(like, scale), target + 3 * vector)

    def batch_norm_grad(arguments, slot):  # type: ignore[no-untyped-def]
        a = _backward(arguments)
        scratch = a.scratch + slot * a.scratch_stride
        eps = broadcast(simd.zeros(1, lanes, 64), simd.load_float(64, a.eps))
        for task in simd.tasks(arguments):
            first = task * a.block
            last = min(a.lines, first + a.block)
            start = first * (lanes if columns else a.positions) * size
            for line in range(first, last):
                simd.store(read(a, a.mean, line), scratch + (line - first) * pitch + 2 * wide_vector)
            sum_gradients(a, a.dy + start, a.x + start, a.images, first, last, scratch)
            for line in range(first, last):
                prepare(a, line, scratch + (line - first) * pitch, eps)
            combine(a, a.dy + start, a.x + start, a.dx + start, first, last, scratch)

    return compile_kernel(batch_norm_grad, f"batch_norm_grad_{'columns' if columns else 'segments'}_f{bits}_v{lanes}")


# ---------------------------------------------------------------- layer norm

# A task is `chunk` rows. Tasks: ceil(rows / chunk). y may be x.
LAYER_NORM = kernel_arguments(
    "rows",
    "columns",
    "chunk",
    "x",
    "y",
    "gamma",  # [columns], x's type
    "beta",  # the same, or 0
    "eps",  # float64 [1]
    "centred",  # 0: the mean is taken to be 0 (root mean square norm)
)
_layer_norm = simd.arguments_view(LAYER_NORM)
_add_square = lanewise(lambda a, total: fma(a, a, total), 2)


def make_over_rows(view: Any, row: Callable[..., None], size: int, lanes: int) -> Callable[..., None]:
    """The kernel that runs row(arguments, x, y, numbers in whole vectors, numbers after them) on a task's rows."""

    def over_rows(arguments, slot):  # type: ignore[no-untyped-def]
        a = view(arguments)
        full = a.columns // lanes * lanes
        for task in simd.tasks(arguments):
            for i in range(task * a.chunk, min(a.rows, (task + 1) * a.chunk)):
                start = i * a.columns * size
                row(a, a.x + start, a.y + start, full, a.columns - full)

    return over_rows


@compiled_once
def layer_norm_kernel(bits: int, lanes: int) -> Any:
    """Kernel with arguments LAYER_NORM."""
    size = bits // 8

    @kernel_function
    def row_mean(x, full, rest, columns):  # type: ignore[no-untyped-def]
        like, sums = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, 64)
        for i in range(0, full, lanes):
            sums = simd.add(sums, convert(sums, simd.load(like, x + i * size)))
        if rest > 0:
            sums = simd.add(sums, convert(sums, simd.load_first(like, x + full * size, rest)))
        return horizontal_sum(sums) / columns

    @kernel_function
    def row_variance(x, full, rest, columns, mean):  # type: ignore[no-untyped-def]
        like, sums = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, 64)
        centre = broadcast(sums, mean)
        for i in range(0, full, lanes):
            sums = _add_square(_subtract(convert(sums, simd.load(like, x + i * size)), centre), sums)
        if rest > 0:
            last = convert(sums, simd.load_first(like, x + full * size, rest))
            sums = _add_square(keep_first(_subtract(last, centre), rest), sums)
        return horizontal_sum(sums) / columns

    @kernel_function
    def row(a, x, y, full, rest):  # type: ignore[no-untyped-def]
        like, one = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, 64)
        mean = simd.zero(64)
        if a.centred != 0:
            mean = row_mean(x, full, rest, a.columns)
        variance = row_variance(x, full, rest, a.columns, mean)
        wide_mean = broadcast(one, mean)
        centre = convert(like, wide_mean)
        lost = convert(like, _subtract(wide_mean, convert(one, centre)))
        scale = convert(like, _inverse_root(broadcast(one, variance), broadcast(one, simd.load_float(64, a.eps))))
        for i in range(0, full + rest, lanes):
            at, left, shift = i * size, full + rest - i, like
            # (x - mean) * scale; what rounding the mean to x's type lost is subtracted, too
            v = multiply(_subtract(_subtract(simd.load_first(like, x + at, left), centre), lost), scale)
            if a.beta != 0:
                shift = simd.load_first(like, a.beta + at, left)
            simd.store_first(multiply_add(v, simd.load_first(like, a.gamma + at, left), shift), y + at, left)

    return compile_kernel(make_over_rows(_layer_norm, row, size, lanes), f"layer_norm_f{bits}_v{lanes}")
