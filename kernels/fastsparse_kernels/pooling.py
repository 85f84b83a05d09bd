"""Pooling: the largest value or the mean of windows, and the gradients of both.

Everything is computed on vectors of VL planes (image and channel), one lane each, position by position: any window,
stride and padding then costs one aligned load per element, and small images fill their vectors. Arrays (N, C, H, W) are
brought to that form in the worker's scratch by transposing squares in registers, a band of rows at a time;
batch-blocked arrays are pooled in place.

Windows are data, one table per axis: int64 [outputs, 3] = first input, end, weight. Windows are clipped to the image,
so padding is never read. A mean is the sum over the window divided by the row weight times the column weight. First
inputs and ends must not descend. The index of a largest value is its position h * W + w in the plane, as in torch.

The gradient of an element is summed by the one worker that owns it, in ascending order of outputs.
Time: O(outputs * window). No function here allocates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from . import simd
from .compiler import compile_kernel, compiled_once, kernel_arguments, kernel_function
from .simd import types as tiles
from .simd.math import Lanes, Mask, lanewise, where

KINDS = "max", "max_index", "mean"
GRADIENT_KINDS = "max_index", "mean"
BATCH_BLOCKED_KINDS = "max", "mean"
_PART = 256  # elements of a mean that are added one after the other, at the least; then these sums are

# Contiguous planes, forward (x -> y) and backward (y -> x: y is dY, x is dX). Tasks are (group of VL planes,
# band), the band innermost.
NCHW = kernel_arguments(
    "planes",  # N * C
    "bands",
    "band_rows",  # int64 [bands, 4]: input rows from, to; output rows from, to
    "width",  # of x
    "out_width",
    "rows",  # int64 [output height, 3]
    "columns",  # int64 [output width, 3]
    "x",  # float [planes, height * width]
    "x_stride",  # bytes per plane
    "y",  # float [planes, output height * output width]
    "y_stride",
    "index",  # integers of the size of y's numbers, of its shape ("max_index" and its gradient only)
    # worker scratch: a band of x, of y and of the index, each with room for VL more vectors
    "scratch",
    "scratch_stride",
    "scratch_y",
    "scratch_index",
)

# Batch-blocked (groups, channels, positions, VL). Tasks are (group, channel, band), the band innermost.
BATCH_BLOCKED = kernel_arguments(
    "channels",
    "bands",
    "band_rows",
    "width",
    "out_width",
    "rows",
    "columns",
    "x",
    "x_group_stride",
    "x_channel_stride",
    "x_offsets",  # int64 [height * width], bytes from the plane to each position; 0: contiguous positions
    "y",
    "y_group_stride",
    "y_channel_stride",
    "y_offsets",  # int64 [output height * output width], or 0; bytes between them are not written
)
_nchw_arguments = simd.arguments_view(NCHW)
_blocked_arguments = simd.arguments_view(BATCH_BLOCKED)

# ---------------------------------------------------------------- on vectors


def _wins(value: Lanes, best: Lanes) -> Mask:
    """True where value is larger than best, or is the first NaN."""
    return Mask(value.builder, value.builder.fcmp_unordered(">", value.value, best.value)) & best.is_number()


_larger = lanewise(lambda best, value: where(best > value, best, value), 2)  # keeps no NaN but the last
_poisoned = lanewise(lambda poison, value: where(value.is_number(), poison, value), 2)
_lowest = lanewise(lambda like: like.broadcast(float("-inf")), 1)


def _numbers(builder: Any, tile: simd.Tile, number: Any) -> Any:
    """An int64 in every lane, as integers of the lanes' size."""
    return tiles.splat(builder, tile, builder.trunc(number, ir.IntType(tile.bits)) if tile.bits < 64 else number)


@tiles.instruction(lambda like, position: simd.Tile(2, like.lanes, like.bits))
def _contest(builder: Any, args: Any, like: Any, position: Any) -> Any:
    """A tile of two vectors: -inf, and the bits of `position`."""
    lowest = Lanes(builder, like, None).broadcast(float("-inf"))
    index = lowest.from_bits(_numbers(builder, like, args[1]))
    return tiles.pack(builder, like.vector, [lowest.value, index.value])


@tiles.instruction()
def _challenge(builder: Any, args: Any, contest: Any, address: Any, position: Any) -> Any:
    """(best, index) after a look at the vector at `address`, which belongs to `position`."""
    best, index = (Lanes(builder, contest, v) for v in tiles.unpack(builder, args[0], 2))
    value = Lanes(builder, contest, tiles.load_value(builder, args[1], contest.vector, contest.size))
    position = index.from_bits(_numbers(builder, contest, args[2]))
    wins = _wins(value, best)
    return tiles.pack(builder, contest.vector, [where(wins, value, best).value, where(wins, position, index).value])


@tiles.instruction()
def _chosen(builder: Any, args: Any, gradient: Any, index: Any, position: Any) -> Any:
    """The gradient in lanes whose index is `position`, 0 elsewhere."""
    dy, at = (Lanes(builder, gradient, tiles.unpack(builder, arg, 1)[0]) for arg in args[:2])
    same = builder.icmp_unsigned("==", at.bits(), _numbers(builder, gradient, args[2]))
    return tiles.pack(builder, gradient.vector, [where(Mask(builder, same), dy, 0.0).value])


@tiles.instruction()
def _divided(builder: Any, args: Any, tile: Any, weight: Any) -> Any:
    """The tile divided by an int64."""
    divisor = tiles.splat(builder, tile, builder.sitofp(args[1], tile.element))
    return tiles.elementwise(builder, tile, lambda v: builder.fdiv(v, divisor), args[0])


# ---------------------------------------------------------------- windows


def _make_windows(kind: str, gradient: bool, bits: int, lanes: int) -> Callable[..., Any]:
    """Loop over the windows of a band of rows of one plane vector: what they reduce goes to y, or a gradient in y to
    the input rows of the band.

    x, y, index: addresses of position 0 of planes whose positions are at `offsets`, or contiguous when that is 0.
    """
    vector = lanes * bits // 8

    @kernel_function
    def position_address(base, offsets, position):  # type: ignore[no-untyped-def]
        return base + (position * vector if offsets == 0 else simd.load_i64(offsets + position * 8))

    @kernel_function
    def largest(x, offsets, width, top, end, left, right, weight, out, index):  # type: ignore[no-untyped-def]
        like = simd.zeros(1, lanes, bits)
        best, poison = _lowest(like), like  # apart, so that steps wait for one comparison only
        for h in range(top, end):
            for w in range(left, right):
                value = simd.load(like, position_address(x, offsets, h * width + w))
                best, poison = _larger(best, value), _poisoned(poison, value)
        simd.store(_poisoned(best, poison), out)

    @kernel_function
    def largest_index(x, offsets, width, top, end, left, right, weight, out, index):  # type: ignore[no-untyped-def]
        contest = _contest(simd.zeros(1, lanes, bits), top * width + left)
        for h in range(top, end):
            for w in range(left, right):
                contest = _challenge(contest, position_address(x, offsets, h * width + w), h * width + w)
        simd.store_at(contest, simd.strided_addresses(2, out, index - out), 0)

    @kernel_function
    def mean(x, offsets, width, top, end, left, right, weight, out, index):  # type: ignore[no-untyped-def]
        like = simd.zeros(1, lanes, bits)
        total = like
        if (end - top) * (right - left) <= _PART:
            for h in range(top, end):
                for w in range(left, right):
                    total = simd.add(total, simd.load(like, position_address(x, offsets, h * width + w)))
        else:
            part, summed = like, 0
            for h in range(top, end):
                for start in range(left, right, _PART):
                    stop = min(start + _PART, right)
                    for w in range(start, stop):
                        part = simd.add(part, simd.load(like, position_address(x, offsets, h * width + w)))
                    summed += stop - start
                    if summed >= _PART:
                        total, part, summed = simd.add(total, part), like, 0
            total = simd.add(total, part)
        simd.store(_divided(total, weight), out)

    @kernel_function
    def to_largest(x, offsets, width, top, end, left, right, weight, dy, index):  # type: ignore[no-untyped-def]
        like = simd.zeros(1, lanes, bits)
        slope, winner = simd.load(like, dy), simd.load(like, index)
        for h in range(top, end):
            for w in range(left, right):
                at = position_address(x, offsets, h * width + w)
                simd.store(simd.add(simd.load(like, at), _chosen(slope, winner, h * width + w)), at)

    @kernel_function
    def to_all(x, offsets, width, top, end, left, right, weight, dy, index):  # type: ignore[no-untyped-def]
        like = simd.zeros(1, lanes, bits)
        share = _divided(simd.load(like, dy), weight)
        for h in range(top, end):
            for w in range(left, right):
                at = position_address(x, offsets, h * width + w)
                simd.store(simd.add(simd.load(like, at), share), at)

    one_window = {"max": largest, "max_index": largest_index, "mean": mean}[kind]
    if gradient:
        one_window = to_all if kind == "mean" else to_largest

    @kernel_function
    def windows(a, band, x, x_offsets, y, y_offsets, index):  # type: ignore[no-untyped-def]
        width, out_width, columns = a.width, a.out_width, a.columns
        low, high = simd.load_i64(band), simd.load_i64(band + 8)
        for i in range(simd.load_i64(band + 16), simd.load_i64(band + 24)):
            row = a.rows + i * 24
            row_weight = simd.load_i64(row + 16)
            top, end = max(low, simd.load_i64(row)), min(high, simd.load_i64(row + 8))
            for j in range(out_width):
                column = columns + j * 24
                left, right = simd.load_i64(column), simd.load_i64(column + 8)
                weight = row_weight * simd.load_i64(column + 16)
                at = i * out_width + j
                out = position_address(y, y_offsets, at)
                one_window(x, x_offsets, width, top, end, left, right, weight, out, index + at * vector)

    return windows


# ---------------------------------------------------------------- planes <-> vectors of planes


def _make_transposes(bits: int, lanes: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(gather, scatter): `count` contiguous elements of `planes` planes <-> `count` vectors, through squares."""
    size = bits // 8
    vector = lanes * size

    @kernel_function
    def gather(user, stride, planes, count, target):  # type: ignore[no-untyped-def]
        like = simd.zeros(lanes, lanes, bits)
        for i in range(0, count, lanes):
            source = user + i * size
            if planes >= lanes and count - i >= lanes:
                square = simd.load_at(like, simd.strided_addresses(lanes, source, stride), 0)
            else:
                square = simd.load_rows(like, source, stride, planes, count - i)
            simd.store(simd.transpose(square), target + i * vector)

    @kernel_function
    def scatter(source, user, stride, planes, count):  # type: ignore[no-untyped-def]
        like = simd.zeros(lanes, lanes, bits)
        for i in range(0, count, lanes):
            square = simd.transpose(simd.load(like, source + i * vector))
            target = user + i * size
            if planes >= lanes and count - i >= lanes:
                simd.store_at(square, simd.strided_addresses(lanes, target, stride), 0)
            else:
                simd.store_rows(square, target, stride, planes, count - i)

    return gather, scatter


# ---------------------------------------------------------------- kernels


@compiled_once
def pool_kernel(kind: str, bits: int, lanes: int) -> Any:
    """Kernel with arguments NCHW, x -> y."""
    return compile_kernel(_make_pool(kind, False, bits, lanes), f"pool_{kind}_f{bits}_v{lanes}")


@compiled_once
def pool_grad_kernel(kind: str, bits: int, lanes: int) -> Any:
    """Kernel with arguments NCHW, y (dY) -> x (dX); kind is one of GRADIENT_KINDS."""
    return compile_kernel(_make_pool(kind, True, bits, lanes), f"pool_grad_{kind}_f{bits}_v{lanes}")


def _make_pool(kind: str, gradient: bool, bits: int, lanes: int) -> Callable[..., None]:
    size, vector = bits // 8, lanes * bits // 8
    parts = 2 if kind == "max_index" else 1  # y, and the index
    windows, (gather, scatter) = _make_windows(kind, gradient, bits, lanes), _make_transposes(bits, lanes)

    def pool(arguments, slot):  # type: ignore[no-untyped-def]
        a = _nchw_arguments(arguments)
        scratch, zero = a.scratch + slot * a.scratch_stride, simd.zeros(1, lanes, bits)
        for task in simd.tasks(arguments):
            group, band = task // a.bands, a.band_rows + task % a.bands * 32
            planes = a.planes - group * lanes
            start, elements = simd.load_i64(band) * a.width, (simd.load_i64(band + 8) - simd.load_i64(band)) * a.width
            first, last = simd.load_i64(band + 16), simd.load_i64(band + 24)
            done, count = first * a.out_width, (last - first) * a.out_width
            x = a.x + group * lanes * a.x_stride + start * size
            outputs, to_index = group * lanes * a.y_stride + done * size, a.scratch_index - a.scratch_y
            if gradient:
                for part in range(parts):
                    source = (a.index if part else a.y) + outputs
                    gather(source, a.y_stride, planes, count, scratch + a.scratch_y + part * to_index)
                for i in range(elements):
                    simd.store(zero, scratch + i * vector)
            else:
                gather(x, a.x_stride, planes, elements, scratch)
            y = scratch + a.scratch_y - done * vector
            windows(a, band, scratch - start * vector, 0, y, 0, y + to_index)
            if gradient:
                scatter(scratch, x, a.x_stride, planes, elements)
            else:
                for part in range(parts):
                    target = (a.index if part else a.y) + outputs
                    scatter(scratch + a.scratch_y + part * to_index, target, a.y_stride, planes, count)

    return pool


@compiled_once
def pool_batch_blocked_kernel(kind: str, bits: int, lanes: int) -> Any:
    """Kernel with arguments BATCH_BLOCKED; kind is one of BATCH_BLOCKED_KINDS."""
    windows = _make_windows(kind, False, bits, lanes)

    def pool_batch_blocked(arguments, slot):  # type: ignore[no-untyped-def]
        a = _blocked_arguments(arguments)
        for task in simd.tasks(arguments):
            plane, band = task // a.bands, a.band_rows + task % a.bands * 32
            group, channel = plane // a.channels, plane % a.channels
            x = a.x + group * a.x_group_stride + channel * a.x_channel_stride
            y = a.y + group * a.y_group_stride + channel * a.y_channel_stride
            windows(a, band, x, a.x_offsets, y, a.y_offsets, 0)

    return compile_kernel(pool_batch_blocked, f"pool_batch_blocked_{kind}_f{bits}_v{lanes}")
