"""Depthwise convolution: y[c] = epilogue(windows of plane c times the channel's own full window of weights).

As SpMM, such a layer loads a vector of x for every multiply-add; here R rows of y are computed at once and every vector
of x that is loaded serves all of them, with the weights in registers. With stride 2 two vectors are loaded and their
even and odd numbers taken apart. Planes need no padding: loads are masked where windows leave the image, and rows above
and below it are read from a row of zeros. Nothing but the image is read.

Order of summation: that of SpMM (rows of the window, then columns, one FMA each, zeros of the padding included; then
bias, then residual). Time: O(numbers of y * window). Nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import simd
from .compiler import compile_kernel, compiled_once, inlined_function, kernel_arguments, kernel_function
from .simd.types import (
    I32,
    I64,
    Tile,
    fma_function,
    in_order,
    load_value,
    masked_load,
    opaque,
    pack,
    shifted,
    shuffle,
    splat,
    unpack,
)

WINDOWS = tuple((side, stride) for side in (3, 5) for stride in (1, 2))
ROWS = 7  # most of y at once: as many multiply-adds do not wait for one another

# Tasks are (image, band of rows, channel), the channel innermost. Tasks: images * bands * channels.
DEPTHWISE = kernel_arguments(
    "channels",
    "bands",
    "rows",  # of y
    "columns",
    "x_rows",
    "x_columns",
    "top",  # padding
    "left",
    "zeros",  # float [x_columns]
    "x",
    "x_corner",  # bytes from a plane to the image's first number, as all strides
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
    "scratch",  # ROWS rows of whole vectors per worker
    "scratch_stride",
    "scratch_row_stride",
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


def load_windows(
    builder: Any, tile: Tile, row: Any, first: Any, columns: Any, side: int, stride: int, masked: bool
) -> list[Any]:
    """What the columns of a window read of a row, whose number `first` is that of lane 0 in column 0: number
    `stride * i + column` from there in lane i, for every column; zeros outside of the `columns` numbers of the row."""
    address = builder.add(row, builder.mul(first, ir.Constant(I64, tile.size)))
    lanes = ir.VectorType(I32, tile.lanes)
    start, end = (splat(builder, tile, builder.trunc(n, I32)) for n in (first, columns)) if masked else (None, None)

    def load(column: int) -> Any:
        at = shifted(builder, address, column * tile.size)
        if not masked:
            return load_value(builder, at, tile.vector, tile.size)
        numbers = builder.add(start, ir.Constant(lanes, [lane + column for lane in range(tile.lanes)]))
        return masked_load(builder, tile, at, builder.icmp_unsigned("<", numbers, end))  # the negative are large

    if stride == 1:
        return [load(column) for column in range(side)]
    found = []
    for column in range(0, side, 2):
        pair = load(column), load(column + tile.lanes)
        found += [shuffle(builder, *pair, range(parity, 2 * tile.lanes, 2)) for parity in (0, 1)]
    return found[:side]


def _make_windows(side: int, stride: int, masked: bool) -> Any:
    @intrinsic
    def windows(typing: Any, sums: Any, weights: Any, image: Any, corner: Any, sizes: Any) -> Any:
        """sums + the windows of as many rows.

        image : address, of a row of zeros, bytes between rows
        corner : row and column of the first window's first number
        sizes : of the image
        """

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            fma, taps = fma_function(builder, sums), unpack(builder, args[1], weights.count)
            x, zeros, distance = unpack(builder, args[2], 3)
            (top, left), (rows, columns) = unpack(builder, args[3], 2), unpack(builder, args[4], 2)
            totals = unpack(builder, args[0], sums.count)
            for row in range((sums.count - 1) * stride + side):
                at = shifted(builder, top, row)
                address = builder.add(x, builder.mul(distance, at))
                address = builder.select(builder.icmp_unsigned("<", at, rows), address, zeros)
                over = [i for i in range(sums.count) if 0 <= row - i * stride < side]  # rows of y that read it
                for column, vector in enumerate(
                    load_windows(builder, sums, address, left, columns, side, stride, masked)
                ):
                    for i in over:
                        totals[i] = fma(taps[(row - i * stride) * side + column], vector, totals[i])
                for i, total in zip(over, in_order(builder, [totals[i] for i in over]), strict=True):
                    totals[i] = total
            return pack(builder, sums.vector, totals)

        return sums(sums, weights, types.UniTuple(types.int64, 3), *(types.UniTuple(types.int64, 2),) * 2), codegen

    return windows


def make_depthwise(side: int, stride: int, bits: int, lanes: int) -> Callable[..., None]:
    """Kernel with arguments DEPTHWISE, for windows of side x side."""
    size, taps = bits // 8, side * side
    at_edges, inside = (_make_windows(side, stride, masked) for masked in (True, False))
    # Of the pairs of vectors that are taken apart, too.
    reach = (lanes - 1) * stride + side if stride == 1 else 2 * lanes + side - 1
    if lanes * size > 16:  # masked loads are as fast
        inside, reach = at_edges, 0

    def make_rows(count: int) -> Callable[..., None]:
        """`count` rows of y at once, before the activation."""

        @inlined_function
        def rows(a, weights, bias, x, row, residual, target, target_stride, low, high):  # type: ignore[no-untyped-def]
            image, sizes = (x, a.zeros, a.x_row_stride), (a.x_rows, a.x_columns)
            top = row * stride - a.top
            for column in range(0, a.columns, lanes):
                acc, left, columns = simd.zeros(count, lanes, bits), column * stride - a.left, a.columns - column
                if reach and left >= 0 and left + reach <= a.x_columns:
                    acc = inside(acc, weights, image, (top, left), sizes)
                else:
                    acc = at_edges(acc, weights, image, (top, left), sizes)
                if a.bias != 0:
                    acc = simd.add_scalar(acc, bias)
                if residual != 0:
                    at = residual + column * size
                    acc = simd.add(acc, simd.load_rows(acc, at, a.y_row_stride, count, columns))
                acc = simd.clamp(acc, low, high)
                at = target + column * size
                if columns >= lanes or a.activation != 0:  # whole, as what a masked store wrote is slow to read
                    simd.store_at(acc, simd.strided_addresses(count, at, target_stride), 0)
                else:
                    simd.store_rows(acc, at, target_stride, count, columns)

        return rows

    @kernel_function
    def activate(a, count, sums, y):  # type: ignore[no-untyped-def]
        """Rows of y from sums in the scratch. A function of its own: a call spills all vector registers."""
        like = simd.zeros(1, lanes, bits)
        simd.call(a.activation, sums, count * (a.scratch_row_stride // (lanes * size)))
        for i in range(count):
            source, target = sums + i * a.scratch_row_stride, y + i * a.y_row_stride
            for column in range(0, a.columns, lanes):
                vector = simd.load(like, source + column * size)
                simd.store_first(vector, target + column * size, a.columns - column)

    one, two, three, four, five, six, seven = (make_rows(count) for count in range(1, ROWS + 1))

    @inlined_function
    def block(count, a, weights, bias, x, row, residual, target, target_stride, low, high):  # type: ignore[no-untyped-def]
        if count == 7:
            seven(a, weights, bias, x, row, residual, target, target_stride, low, high)
        elif count == 6:
            six(a, weights, bias, x, row, residual, target, target_stride, low, high)
        elif count == 5:
            five(a, weights, bias, x, row, residual, target, target_stride, low, high)
        elif count == 4:
            four(a, weights, bias, x, row, residual, target, target_stride, low, high)
        elif count == 3:
            three(a, weights, bias, x, row, residual, target, target_stride, low, high)
        elif count == 2:
            two(a, weights, bias, x, row, residual, target, target_stride, low, high)
        else:
            one(a, weights, bias, x, row, residual, target, target_stride, low, high)

    def depthwise(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        scratch, blocks = a.scratch + slot * a.scratch_stride, (a.rows + ROWS - 1) // ROWS
        task = simd.fetch_add(a.counter, 1)
        while task < a.stop:
            channel, band = task % a.channels, task // a.channels % a.bands
            image = task // (a.channels * a.bands)
            weights = _broadcast(simd.zeros(taps, lanes, bits), a.values + channel * taps * size)
            bias = simd.zero(bits)
            if a.bias != 0:
                bias = simd.load_float(bits, a.bias + channel * size)
            x = a.x + a.x_corner + image * a.x_image_stride + channel * a.x_channel_stride
            y = a.y + a.y_corner + image * a.y_image_stride + channel * a.y_channel_stride
            for i in range(blocks * band // a.bands, blocks * (band + 1) // a.bands):
                row, end = a.rows * i // blocks, a.rows * (i + 1) // blocks
                at, residual = y + row * a.y_row_stride, 0
                if a.residual != 0:
                    residual = at + a.residual - a.y
                sums, sums_stride = at, a.y_row_stride
                if a.activation != 0:
                    sums, sums_stride = scratch, a.scratch_row_stride
                block(end - row, a, weights, bias, x, row, residual, sums, sums_stride, low, high)
                if a.activation != 0:
                    activate(a, end - row, scratch, at)
            task = simd.fetch_add(a.counter, 1)

    return depthwise


@compiled_once
def depthwise_kernel(side: int, stride: int, bits: int, lanes: int) -> Any:
    """The compiled kernel with arguments DEPTHWISE."""
    return compile_kernel(make_depthwise(side, stride, bits, lanes), f"depthwise_{side}_s{stride}_f{bits}_v{lanes}")
