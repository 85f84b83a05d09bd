"""Depthwise convolution: y[c] = epilogue(windows of plane c times the channel's own full window of weights).

Planes are padded with zeros, so that no window leaves them, and rows lie at a fixed distance. As SpMM, such a layer
loads a vector of x for every multiply-add; here R rows of y are computed at once and every vector of x that is loaded
serves all of them, with the weights in registers. With stride 2 two vectors are loaded and their even and odd numbers
taken apart.

Order of summation: that of SpMM (rows of the window, then columns, one FMA each; then bias, then residual).
Time: O(numbers of y * window). Nothing is allocated. Vectors reach up to three vectors past the end of a row of x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import simd
from .compiler import compile_kernel, compiled_once, inlined_function, kernel_arguments
from .simd.types import I64, Tile, fma_function, load_value, opaque, pack, shifted, shuffle, splat, unpack

WINDOWS = tuple((side, stride) for side in (3, 5) for stride in (1, 2))
ROWS = 7  # most of y at once: as many multiply-adds do not wait for one another

# A task is a plane of an image. Tasks: images * channels.
DEPTHWISE = kernel_arguments(
    "channels",
    "rows",  # of y
    "columns",
    "x",
    "x_corner",  # bytes from a plane to the first window, as all strides
    "x_image_stride",
    "x_channel_stride",
    "x_row_stride",
    "y",
    "y_corner",
    "y_image_stride",
    "y_channel_stride",
    "y_row_stride",
    "values",  # float [channels, side * side]
    "bias",  # float [channels] or 0
    "residual",  # added after the bias, with the strides of y; may be y itself; or 0
    "limits",  # float [2]: clamp to (low, high)
    "activation",  # address of a function(tile address, vectors) that works in place, or 0
    "scratch",  # ROWS vectors per worker
    "scratch_stride",
)
_arguments = simd.arguments_view(DEPTHWISE)


@intrinsic
def _broadcast(typing: Any, like: Any, address: Any) -> Any:
    """Consecutive numbers from `address` on, one per vector, in all of its lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = (
            load_value(builder, shifted(builder, args[1], i * like.size), like.element, like.size)
            for i in range(like.count)
        )
        # Opaque, or LLVM broadcasts from memory in every multiply-add.
        return pack(builder, like.vector, [opaque(builder, splat(builder, like, number)) for number in numbers])

    return like(like, types.int64), codegen


def _row(builder: Any, tile: Tile, address: Any, side: int, stride: int) -> list[Any]:
    """What the columns of a window read of a row: number `stride * i + column` in lane i, for every column."""

    def load(first: int) -> Any:
        return load_value(builder, shifted(builder, address, first * tile.size), tile.vector, tile.size)

    if stride == 1:
        return [load(column) for column in range(side)]
    found = []
    for column in range(0, side, 2):
        pair = load(column), load(column + tile.lanes)
        found += [shuffle(builder, *pair, range(parity, 2 * tile.lanes, 2)) for parity in (0, 1)]
    return found[:side]


def _make_windows(side: int, stride: int) -> Any:
    @intrinsic
    def windows(typing: Any, sums: Any, weights: Any, x: Any, row_stride: Any) -> Any:
        """sums + the windows of as many rows, the first of which begins at address x."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            fma, taps = fma_function(builder, sums), unpack(builder, args[1], weights.count)
            totals = unpack(builder, args[0], sums.count)
            for row in range((sums.count - 1) * stride + side):
                address = builder.add(args[2], builder.mul(args[3], ir.Constant(I64, row)))
                for column, vector in enumerate(_row(builder, sums, address, side, stride)):
                    for i in range(sums.count):
                        if 0 <= row - i * stride < side:
                            totals[i] = fma(taps[(row - i * stride) * side + column], vector, totals[i])
            return pack(builder, sums.vector, totals)

        return sums(sums, weights, types.int64, types.int64), codegen

    return windows


def make_depthwise(side: int, stride: int, bits: int, lanes: int) -> Callable[..., None]:
    """Kernel with arguments DEPTHWISE, for windows of side x side."""
    size, taps, windows = bits // 8, side * side, _make_windows(side, stride)

    def make_rows(count: int) -> Callable[..., None]:
        """`count` rows of y at once."""

        @inlined_function
        def some(a, weights, bias, x, y, columns, scratch, low, high):  # type: ignore[no-untyped-def]
            acc = windows(simd.zeros(count, lanes, bits), weights, x, a.x_row_stride)
            if a.bias != 0:
                acc = simd.add_scalar(acc, bias)
            if a.residual != 0:
                acc = simd.add(acc, simd.load_rows(acc, y + a.residual - a.y, a.y_row_stride, count, columns))
            if a.activation != 0:
                simd.store(acc, scratch)
                simd.call(a.activation, scratch, count)
                acc = simd.load(acc, scratch)
            else:
                acc = simd.clamp(acc, low, high)
            if columns >= lanes:
                simd.store_at(acc, simd.strided_addresses(count, y, a.y_row_stride), 0)
            else:
                simd.store_rows(acc, y, a.y_row_stride, count, columns)

        @inlined_function
        def rows(a, weights, bias, x, y, scratch, low, high):  # type: ignore[no-untyped-def]
            for column in range(0, a.columns, lanes):
                left = a.columns - column
                some(a, weights, bias, x + column * stride * size, y + column * size, left, scratch, low, high)

        return rows

    one, two, three, four, five, six, seven = (make_rows(count) for count in range(1, ROWS + 1))

    @inlined_function
    def block(count, a, weights, bias, x, y, scratch, low, high):  # type: ignore[no-untyped-def]
        if count == 7:
            seven(a, weights, bias, x, y, scratch, low, high)
        elif count == 6:
            six(a, weights, bias, x, y, scratch, low, high)
        elif count == 5:
            five(a, weights, bias, x, y, scratch, low, high)
        elif count == 4:
            four(a, weights, bias, x, y, scratch, low, high)
        elif count == 3:
            three(a, weights, bias, x, y, scratch, low, high)
        elif count == 2:
            two(a, weights, bias, x, y, scratch, low, high)
        else:
            one(a, weights, bias, x, y, scratch, low, high)

    def depthwise(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        scratch = a.scratch + slot * a.scratch_stride
        task = simd.fetch_add(a.counter, 1)
        while task < a.stop:
            channel, image = task % a.channels, task // a.channels
            weights = _broadcast(simd.zeros(taps, lanes, bits), a.values + channel * taps * size)
            bias = simd.zero(bits)
            if a.bias != 0:
                bias = simd.load_float(bits, a.bias + channel * size)
            x = a.x + a.x_corner + image * a.x_image_stride + channel * a.x_channel_stride
            y = a.y + a.y_corner + image * a.y_image_stride + channel * a.y_channel_stride
            blocks = (a.rows + ROWS - 1) // ROWS
            for i in range(blocks):
                row, count = a.rows * i // blocks, a.rows * (i + 1) // blocks - a.rows * i // blocks
                top = x + row * stride * a.x_row_stride
                block(count, a, weights, bias, top, y + row * a.y_row_stride, scratch, low, high)
            task = simd.fetch_add(a.counter, 1)

    return depthwise


@compiled_once
def depthwise_kernel(side: int, stride: int, bits: int, lanes: int) -> Any:
    """The compiled kernel with arguments DEPTHWISE."""
    return compile_kernel(make_depthwise(side, stride, bits, lanes), f"depthwise_{side}_s{stride}_f{bits}_v{lanes}")
