"""Batch normalisation of (N, C, S): statistics per channel, y = gamma (x - mean) / sqrt(variance + eps) + beta.

One pass over x gives both statistics, as float64 sums of x - K and (x - K)^2, where K is the mean of the first images.
What the subtraction `sum2 - sum1^2 / n` can lose is at most the number of such parts that the channel has, for any
data, so the variance needs no second pass. See Chan, Golub, LeVeque, Algorithms for computing the sample variance, The
American Statistician 37 (1983), section 3.

A channel is summed by one worker in a fixed order, so results do not depend on the number of threads. x - mean is
computed with the mean rounded to x's type; what the rounding lost goes into the shift.

A *line* is what belongs together in one image: with S > 1 the S numbers of one channel, which are summed over lanes;
with S = 1 the numbers of VL channels, one in each lane. A line's parameters are vectors in both cases. A task is a
block of neighbouring lines in all images, image by image: short lines alone would bring one cache line of every page.
Sums and parameters of the block's lines are in the worker's scratch. Time: O(N C S). No function here allocates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import simd
from .build import compile_kernel, compiled_once, kernel_part, kernel_record
from .simd_math import Lanes, converted, filled, first_kept, fma, lanewise, square_root, total, where

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
FORWARD = kernel_record(
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
BACKWARD = kernel_record(
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

_forward = simd.record_view(FORWARD)
_backward = simd.record_view(BACKWARD)


def scratch_line(bits: int, lanes: int) -> int:
    """Bytes of scratch per line of a block: two sums and K in float64, four parameters in x's type."""
    return lanes * (3 * 8 + 4 * bits // 8)


# ---------------------------------------------------------------- on vectors


def _variance(sum1: Lanes, sum2: Lanes, n: Lanes) -> Lanes:
    variance = (sum2 - sum1 * sum1 / n) / n
    return where(variance < 0.0, 0.0, variance)


_subtract = lanewise(lambda a, b: a - b, 2)
_multiply = lanewise(lambda a, b: a * b, 2)
_divide = lanewise(lambda a, b: a / b, 2)
_multiply_add = lanewise(fma, 3)
_negative = lanewise(lambda a: -a, 1)
_variance_of = lanewise(_variance, 3)
_inverse_root = lanewise(lambda variance, eps: 1.0 / square_root(variance + eps), 2)
_finite_or_zero = lanewise(lambda x: where((x - x) >= 0.0, x, 0.0), 1)

# ---------------------------------------------------------------- lines


def _make_channels(lanes: int, columns: int) -> tuple[Callable[..., Any], ...]:
    """(read, write, collected, line_numbers): a line's parameters in the tables per channel, its sums, its length."""

    @kernel_part
    def read(a, table, line):  # type: ignore[no-untyped-def]
        one = simd.zeros(1, lanes, 64)
        if columns:
            return simd.load_first(one, table + line * lanes * 8, a.channels - line * lanes)
        return filled(one, simd.load_float(64, table + line * 8))

    @kernel_part
    def write(a, parameter, table, line):  # type: ignore[no-untyped-def]
        if columns:
            simd.store_first(parameter, table + line * lanes * 8, a.channels - line * lanes)
        else:
            simd.store_first(parameter, table + line * 8, 1)

    @kernel_part
    def collected(sums):  # type: ignore[no-untyped-def]
        """The channel's sum in every lane, or the lanes' sums as they are."""
        return sums if columns else filled(sums, total(sums))

    @kernel_part
    def line_numbers(a, line):  # type: ignore[no-untyped-def]
        return min(lanes, a.channels - line * lanes) if columns else a.positions

    return read, write, collected, line_numbers


def _make_sums(bits: int, lanes: int, line_numbers: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    """(sum_lines, sum_gradients) of a block, added to the two sums at each line's scratch."""
    size, wide_vector, pitch = bits // 8, lanes * 8, scratch_line(bits, lanes)

    @kernel_part
    def clear(scratch, lines):  # type: ignore[no-untyped-def]
        zero = simd.zeros(1, lanes, 64)
        for i in range(lines):
            simd.store(zero, scratch + i * pitch)
            simd.store(zero, scratch + i * pitch + wide_vector)

    @kernel_part
    def sum_lines(a, x, images, first, last, scratch):  # type: ignore[no-untyped-def]
        """Sums of x - K and of its square; x is the address of line `first` in the first image."""
        like, one = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, 64)
        clear(scratch, last - first)
        for n in range(images):
            at, sums = x + n * a.image_stride, scratch
            for line in range(first, last):
                count = line_numbers(a, line)
                sum1, sum2 = simd.load(one, sums), simd.load(one, sums + wide_vector)
                centre = simd.load(one, sums + 2 * wide_vector)
                full = count // lanes * lanes
                for i in range(0, full, lanes):
                    v = _subtract(converted(one, simd.load(like, at + i * size)), centre)
                    sum1, sum2 = simd.add(sum1, v), _multiply_add(v, v, sum2)
                if full < count:
                    v = _subtract(converted(one, simd.load_first(like, at + full * size, count - full)), centre)
                    v = first_kept(v, count - full)
                    sum1, sum2 = simd.add(sum1, v), _multiply_add(v, v, sum2)
                simd.store(sum1, sums)
                simd.store(sum2, sums + wide_vector)
                at, sums = at + count * size, sums + pitch

    @kernel_part
    def sum_gradients(a, dy, x, images, first, last, scratch):  # type: ignore[no-untyped-def]
        """Sums of dy and of dy (x - K)."""
        like, one = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, 64)
        clear(scratch, last - first)
        for n in range(images):
            at, ahead, sums = x + n * a.image_stride, dy - x, scratch
            for line in range(first, last):
                count = line_numbers(a, line)
                sum1, sum2 = simd.load(one, sums), simd.load(one, sums + wide_vector)
                centre = simd.load(one, sums + 2 * wide_vector)
                full = count // lanes * lanes
                for i in range(0, full, lanes):
                    g = converted(one, simd.load(like, at + ahead + i * size))
                    v = _subtract(converted(one, simd.load(like, at + i * size)), centre)
                    sum1, sum2 = simd.add(sum1, g), _multiply_add(g, v, sum2)
                if full < count:  # g is 0 behind the line's end
                    g = converted(one, simd.load_first(like, at + ahead + full * size, count - full))
                    v = _subtract(converted(one, simd.load_first(like, at + full * size, count - full)), centre)
                    sum1, sum2 = simd.add(sum1, g), _multiply_add(g, v, sum2)
                simd.store(sum1, sums)
                simd.store(sum2, sums + wide_vector)
                at, sums = at + count * size, sums + pitch

    return sum_lines, sum_gradients


def _make_affine(bits: int, lanes: int, line_numbers: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    """(normalise, combine) a block; the parameters are vectors of x's type behind the sums in each line's scratch."""
    size, vector = bits // 8, lanes * bits // 8
    pitch, parameters = scratch_line(bits, lanes), 3 * 8 * lanes

    @kernel_part
    def normalise(a, x, y, first, last, scratch):  # type: ignore[no-untyped-def]
        """y = (x - centre) scale + shift."""
        like = simd.zeros(1, lanes, bits)
        for n in range(a.images):
            at, ahead, place = x + n * a.image_stride, y - x, scratch + parameters
            for line in range(first, last):
                count = line_numbers(a, line)
                centre, scale = simd.load(like, place), simd.load(like, place + vector)
                shift = simd.load(like, place + 2 * vector)
                full = count // lanes * lanes
                for i in range(0, full, lanes):
                    v = _subtract(simd.load(like, at + i * size), centre)
                    simd.store(_multiply_add(v, scale, shift), at + ahead + i * size)
                if full < count:
                    v = _subtract(simd.load_first(like, at + full * size, count - full), centre)
                    simd.store_first(_multiply_add(v, scale, shift), at + ahead + full * size, count - full)
                at, place = at + count * size, place + pitch

    @kernel_part
    def combine(a, dy, x, dx, first, last, scratch):  # type: ignore[no-untyped-def]
        """dx = (x - centre) slope + shift + scale dy."""
        like = simd.zeros(1, lanes, bits)
        for n in range(a.images):
            at, place = x + n * a.image_stride, scratch + parameters
            for line in range(first, last):
                count = line_numbers(a, line)
                centre, slope = simd.load(like, place), simd.load(like, place + vector)
                shift, scale = simd.load(like, place + 2 * vector), simd.load(like, place + 3 * vector)
                full = count // lanes * lanes
                for i in range(0, full, lanes):
                    v = _multiply_add(_subtract(simd.load(like, at + i * size), centre), slope, shift)
                    v = _multiply_add(simd.load(like, at + (dy - x) + i * size), scale, v)
                    simd.store(v, at + (dx - x) + i * size)
                if full < count:
                    end, rest = at + full * size, count - full
                    v = _multiply_add(_subtract(simd.load_first(like, end, rest), centre), slope, shift)
                    v = _multiply_add(simd.load_first(like, end + (dy - x), rest), scale, v)
                    simd.store_first(v, end + (dx - x), rest)
                at, place = at + count * size, place + pitch

    return normalise, combine


# ---------------------------------------------------------------- kernels


def make_batch_norm(bits: int, lanes: int, columns: int) -> Callable[..., None]:
    """Kernel of record FORWARD; `columns` is 1 for S = 1."""
    read, write, collected, line_numbers = _make_channels(lanes, columns)
    sum_lines, _ = _make_sums(bits, lanes, line_numbers)
    normalise, _ = _make_affine(bits, lanes, line_numbers)
    size, vector, wide_vector = bits // 8, lanes * bits // 8, lanes * 8
    pitch = scratch_line(bits, lanes)

    @kernel_part
    def statistics(a, x, first, last, scratch):  # type: ignore[no-untyped-def]
        """Mean and variance of the block's channels."""
        one = simd.zeros(1, lanes, 64)
        for line in range(first, last):
            simd.store(one, scratch + (line - first) * pitch + 2 * wide_vector)
        for part in range(2):  # K from the first images, then the sums over all
            images = a.images if part else a.first_images
            sum_lines(a, x, images, first, last, scratch)
            n = filled(one, float(images * a.positions))
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
        eps = filled(one, simd.load_float(64, a.eps))
        task = simd.fetch_add(a.counter, 1)
        while task < a.stop:
            first = task * a.block
            last = min(a.lines, first + a.block)
            start = first * (lanes if columns else a.positions) * size
            if a.training != 0:
                statistics(a, a.x + start, first, last, scratch)
            for line in range(first, last):
                place = scratch + (line - first) * pitch + 3 * wide_vector
                mean = read(a, a.mean, line)
                centre = converted(like, mean)
                scale = _multiply(read(a, a.gamma, line), _inverse_root(read(a, a.variance, line), eps))
                lost = _subtract(converted(one, centre), mean)
                simd.store(centre, place)
                simd.store(converted(like, scale), place + vector)
                simd.store(converted(like, _multiply_add(lost, scale, read(a, a.beta, line))), place + 2 * vector)
            normalise(a, a.x + start, a.y + start, first, last, scratch)
            task = simd.fetch_add(a.counter, 1)

    return batch_norm


def make_batch_norm_grad(bits: int, lanes: int, columns: int) -> Callable[..., None]:
    """Kernel of record BACKWARD; `columns` is 1 for S = 1."""
    read, write, collected, line_numbers = _make_channels(lanes, columns)
    _, sum_gradients = _make_sums(bits, lanes, line_numbers)
    _, combine = _make_affine(bits, lanes, line_numbers)
    size, vector, wide_vector = bits // 8, lanes * bits // 8, lanes * 8
    pitch = scratch_line(bits, lanes)

    @kernel_part
    def prepare(a, line, sums, eps):  # type: ignore[no-untyped-def]
        """Write the line's gradients, and the parameters of its dx to the scratch."""
        like, one = simd.zeros(1, lanes, bits), simd.zeros(1, lanes, 64)
        sum1, sum2 = collected(simd.load(one, sums)), collected(simd.load(one, sums + wide_vector))
        mean, inverse = read(a, a.mean, line), _inverse_root(read(a, a.variance, line), eps)
        scale = _multiply(read(a, a.gamma, line), inverse)
        write(a, sum1, a.grad_beta, line)
        write(a, _multiply(sum2, inverse), a.grad_gamma, line)
        place = sums + 3 * wide_vector
        # dx = scale (dy - mean(dy) - (x - mean) inverse^2 mean(dy (x - mean)))
        rate = _divide(_negative(scale), filled(one, float(a.images * a.positions)))
        slope = _multiply(_multiply(rate, sum2), _multiply(inverse, inverse))
        centre = converted(like, mean)
        lost = _subtract(converted(one, centre), mean)
        simd.store(centre, place)
        simd.store(converted(like, slope), place + vector)
        simd.store(converted(like, _multiply_add(lost, slope, _multiply(rate, sum1))), place + 2 * vector)
        simd.store(converted(like, scale), place + 3 * vector)

    def batch_norm_grad(arguments, slot):  # type: ignore[no-untyped-def]
        a = _backward(arguments)
        scratch = a.scratch + slot * a.scratch_stride
        eps = filled(simd.zeros(1, lanes, 64), simd.load_float(64, a.eps))
        task = simd.fetch_add(a.counter, 1)
        while task < a.stop:
            first = task * a.block
            last = min(a.lines, first + a.block)
            start = first * (lanes if columns else a.positions) * size
            for line in range(first, last):
                simd.store(read(a, a.mean, line), scratch + (line - first) * pitch + 2 * wide_vector)
            sum_gradients(a, a.dy + start, a.x + start, a.images, first, last, scratch)
            for line in range(first, last):
                prepare(a, line, scratch + (line - first) * pitch, eps)
            combine(a, a.dy + start, a.x + start, a.dx + start, first, last, scratch)
            task = simd.fetch_add(a.counter, 1)

    return batch_norm_grad


@compiled_once
def batch_norm_kernel(bits: int, lanes: int, columns: int) -> Any:
    """The compiled kernel of record FORWARD."""
    name = f"batch_norm_{'columns' if columns else 'segments'}_f{bits}_v{lanes}"
    return compile_kernel(make_batch_norm(bits, lanes, columns), name)


@compiled_once
def batch_norm_grad_kernel(bits: int, lanes: int, columns: int) -> Any:
    """The compiled kernel of record BACKWARD."""
    name = f"batch_norm_grad_{'columns' if columns else 'segments'}_f{bits}_v{lanes}"
    return compile_kernel(make_batch_norm_grad(bits, lanes, columns), name)
