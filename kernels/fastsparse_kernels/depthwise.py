"""Depthwise convolution: y[c] = epilogue(windows of plane c times the channel's own full window of weights).

As SpMM, such a layer loads a vector of x for every multiply-add; here R rows of y are computed at once and every vector
of x that is loaded serves all of them, with the weights in registers. With stride 2 two vectors are loaded and their
even and odd numbers taken apart. Planes need no padding: loads are masked where windows leave the image, and rows above
and below it are read from a row of zeros. Nothing but the image is read.

Rows of a narrow image fit a vector, or half of one: then a row is loaded once, the columns of its windows are shifts of
its lanes, and two channels lie side by side. Such images have a kernel of their own for each padding on the left.

Order of summation: that of SpMM (rows of the window, then columns, one FMA each, zeros of the padding included; then
bias, then residual). Time: O(numbers of y * window). Nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from . import simd
from .compiler import compile_kernel, compiled_once, inlined_function, kernel_arguments, kernel_function
from .simd.types import (
    I32,
    I64,
    Tile,
    first_lanes,
    fma_function,
    in_order,
    instruction,
    load_value,
    masked_load,
    masked_store,
    opaque,
    pack,
    shifted,
    shuffle,
    splat,
    unpack,
)

WINDOWS = tuple((side, stride) for side in (3, 5) for stride in (1, 2))
ROWS = 7  # most of y at once: as many multiply-adds do not wait for one another

IMAGES = (  # arguments of kernels from planes to planes
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
    "residual",  # added last, with the strides of y; may be y itself; or 0
    "limits",  # float [2]: clamp to (low, high)
)
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
    *IMAGES,
    "values",  # float [channels, side * side]
    "bias",  # float [channels] or 0
    "activation",  # address of a function(tile address, vectors) that works in place, or 0
    "scratch",  # ROWS rows of whole vectors per worker; of narrow images all rows
    "scratch_stride",
    "scratch_row_stride",
)
_arguments = simd.arguments_view(DEPTHWISE)


def _make_each(parts: int) -> Any:
    @instruction()
    def each(builder: Any, args: Any, like: Any, first: Any, second: Any) -> Any:
        """Consecutive numbers from two addresses on, one of each per vector, in all lanes of its part."""
        vectors, half = [], like.lanes // 2
        for i in range(like.count):
            at = [shifted(builder, address, i * like.size) for address in args[1 : 1 + parts]]
            own = [splat(builder, like, load_value(builder, a, like.element, like.size)) for a in at]
            lanes = [*range(half), *range(like.lanes, like.lanes + half)]
            vector = own[0] if parts == 1 else shuffle(builder, own[0], own[1], lanes)
            vectors.append(opaque(builder, vector))  # or LLVM broadcasts from memory in every multiply-add
        return pack(builder, like.vector, vectors)

    return each


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


def _load_shifted(
    builder: Any, tile: Tile, addresses: list[Any], columns: Any, side: int, stride: int, left: int
) -> list[Any]:
    """The same of whole rows, one of each channel that has a part of the vectors; `left` is the padding."""
    parts, none = len(addresses), ir.Constant(tile.vector, None)
    part = tile.lanes // parts

    whole = Tile(1, part * stride if parts == 2 else tile.lanes, tile.bits)

    def load(address: Any, first: int) -> Any:
        numbers = ir.Constant(ir.VectorType(I32, whole.lanes), [first + lane for lane in range(whole.lanes)])
        mask = builder.icmp_signed("<", numbers, splat(builder, whole, builder.trunc(columns, I32)))
        return masked_load(builder, whole, shifted(builder, address, first * tile.size), mask)

    if parts == 1:
        loaded = [load(addresses[0], i * tile.lanes) for i in range(stride)]
    else:
        loaded = [load(address, 0) for address in addresses]
    phases = []
    for phase in range(stride):
        at = [stride * lane + phase for lane in range(tile.lanes)]
        if parts == 2:
            at = [stride * (lane % part) + phase + lane // part * whole.lanes for lane in range(tile.lanes)]
        phases.append(shuffle(builder, loaded[0], loaded[-1], at))
    found = []
    for column in range(side):
        distance, phase = divmod(column - left, stride)
        at = [lane + distance if 0 <= lane % part + distance < part else tile.lanes for lane in range(tile.lanes)]
        found.append(shuffle(builder, phases[phase], none, at))
    return found


def _make_windows(side: int, stride: int, parts: int, load_row: Callable[..., list[Any]]) -> Any:
    @instruction()
    def windows(builder: Any, args: Any, sums: Any, weights: Any, image: Any, corner: Any, sizes: Any) -> Any:
        """sums + the windows of as many rows.

        image : address, bytes to that of the other part's channel, a row of zeros, bytes between rows
        corner : row and column of the first window's first number
        sizes : of the image
        load_row : what the columns of a window read, of a tile, addresses of rows, first column, columns of the image
        """
        fma, taps = fma_function(builder, sums), unpack(builder, args[1], weights.count)
        x, apart, zeros, distance = unpack(builder, args[2], 4)
        (top, left), (rows, columns) = unpack(builder, args[3], 2), unpack(builder, args[4], 2)
        totals = unpack(builder, args[0], sums.count)
        for row in range((sums.count - 1) * stride + side):
            at = shifted(builder, top, row)
            first, inside = builder.add(x, builder.mul(distance, at)), builder.icmp_unsigned("<", at, rows)
            own = [first, builder.add(first, apart)][:parts]
            addresses = [builder.select(inside, address, zeros) for address in own]
            over = [i for i in range(sums.count) if 0 <= row - i * stride < side]  # rows of y that read it
            for column, vector in enumerate(load_row(builder, sums, addresses, left, columns)):
                for i in over:
                    totals[i] = fma(taps[(row - i * stride) * side + column], vector, totals[i])
            for i, total in zip(over, in_order(builder, [totals[i] for i in over]), strict=True):
                totals[i] = total
        return pack(builder, sums.vector, totals)

    return windows


def _by_rows(make_rows: Callable[[int], Callable[..., None]]) -> Any:
    """block(count, *operands): the function of `count` rows of y that `make_rows` makes, for every count."""
    rows = make_rows(1)

    @inlined_function
    def block(count, *operands):  # type: ignore[no-untyped-def]
        rows(*operands)

    for most in range(2, ROWS + 1):
        block = _up_to(most, make_rows(most), block)
    return block


def _up_to(most: int, rows: Callable[..., None], fewer: Callable[..., None]) -> Callable[..., None]:
    @inlined_function
    def block(count, *operands):  # type: ignore[no-untyped-def]
        if count == most:
            rows(*operands)
        else:
            fewer(count, *operands)

    return block


# Divisions take longer than some of a small plane's multiply-adds: a single image in one band does without.


@inlined_function
def _located(task, groups, bands):  # type: ignore[no-untyped-def]
    """Group of channels, band and image of a task."""
    if task < groups:
        return task, 0, 0
    return task % groups, task // groups % bands, task // (groups * bands)


@inlined_function
def _blocks_of(blocks, band, bands):  # type: ignore[no-untyped-def]
    """The first block of rows of a band, and the one behind its last."""
    if bands == 1:
        return 0, blocks
    return blocks * band // bands, blocks * (band + 1) // bands


@compiled_once
def depthwise_kernel(side: int, stride: int, bits: int, lanes: int) -> Any:
    """Kernel with arguments DEPTHWISE, for windows of side x side."""
    size, taps, each = bits // 8, side * side, _make_each(1)

    def loads(masked: bool) -> Callable[..., list[Any]]:
        return lambda builder, tile, addresses, first, columns: load_windows(
            builder, tile, addresses[0], first, columns, side, stride, masked
        )

    at_edges, inside = (_make_windows(side, stride, 1, loads(masked)) for masked in (True, False))
    # Of the pairs of vectors that are taken apart, too.
    reach = (lanes - 1) * stride + side if stride == 1 else 2 * lanes + side - 1
    if lanes * size > 16:  # masked loads are as fast
        inside, reach = at_edges, 0

    def make_rows(count: int) -> Callable[..., None]:
        """`count` rows of y at once, before the activation."""

        @inlined_function
        def rows(a, weights, bias, image, row, residual, targets, target_stride, low, high):  # type: ignore[no-untyped-def]
            sizes, top, target = (a.x_rows, a.x_columns), row * stride - a.top, targets[0]
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

    block = _by_rows(make_rows)

    def depthwise(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        scratch, blocks = a.scratch + slot * a.scratch_stride, (a.rows + ROWS - 1) // ROWS
        step = (a.rows + blocks - 1) // blocks
        for task in simd.tasks(arguments):
            channel, band, image = _located(task, a.channels, a.bands)
            start, stop = _blocks_of(blocks, band, a.bands)
            values = a.values + channel * taps * size
            weights = each(simd.zeros(taps, lanes, bits), values, values)
            bias = simd.zero(bits)
            if a.bias != 0:
                bias = simd.load_float(bits, a.bias + channel * size)
            x = a.x + a.x_corner + image * a.x_image_stride + channel * a.x_channel_stride
            y = a.y + a.y_corner + image * a.y_image_stride + channel * a.y_channel_stride
            image_rows = x, 0, a.zeros, a.x_row_stride
            for i in range(start, stop):
                row, end = i * step, min(i * step + step, a.rows)
                at, residual = y + row * a.y_row_stride, 0
                if a.residual != 0:
                    residual = at + a.residual - a.y
                sums, sums_stride = at, a.y_row_stride
                if a.activation != 0:
                    sums, sums_stride = scratch, a.scratch_row_stride
                block(end - row, a, weights, bias, image_rows, row, residual, (sums, sums), sums_stride, low, high)
                if a.activation != 0:
                    activate(a, end - row, scratch, at)

    return compile_kernel(depthwise, f"depthwise_{side}_s{stride}_f{bits}_v{lanes}")


def _make_store_parts(parts: int) -> Any:
    @instruction(types.void)
    def store_parts(builder: Any, args: Any, tile: Any, targets: Any, stride: Any, columns: Any) -> Any:
        """Write the first `columns` numbers of each part of vector i to the part's target + i * stride."""
        part = Tile(1, tile.lanes // parts, tile.bits)
        mask = first_lanes(builder, part, args[3], I32)
        for i, vector in enumerate(unpack(builder, args[0], tile.count)):
            distance = builder.mul(args[2], ir.Constant(I64, i))
            for k, target in enumerate(unpack(builder, args[1], 2)[:parts]):
                own = shuffle(builder, vector, vector, range(k * part.lanes, (k + 1) * part.lanes))
                masked_store(builder, part, own, builder.add(target, distance), mask)

    return store_parts


@compiled_once
def narrow_kernel(side: int, stride: int, left: int, parts: int, bits: int, lanes: int) -> Any:
    """Kernel with arguments DEPTHWISE, without residual, for images whose rows fit `stride` vectors, and those of y
    one; of two `parts`, half of that. Tasks: images * bands * channels / parts, rounded up.

    left : the padding there
    """
    size, taps = bits // 8, side * side
    each, store_parts = _make_each(parts), _make_store_parts(parts)
    windows = _make_windows(
        side, stride, parts,
        lambda builder, tile, addresses, _, columns: _load_shifted(
            builder, tile, addresses, columns, side, stride, left
        ),
    )  # fmt: skip

    @kernel_function
    def activate(a, count, sums, targets):  # type: ignore[no-untyped-def]
        """Rows of y from sums in the scratch, behind the loop over rows: a call spills all vector registers."""
        vector = lanes * size
        simd.call(a.activation, sums, count)
        for i in range(count):
            at = targets[0] + i * a.y_row_stride, targets[1] + i * a.y_row_stride
            store_parts(simd.load(simd.zeros(1, lanes, bits), sums + i * vector), at, 0, a.columns)

    def make_rows(count: int) -> Callable[..., None]:
        @inlined_function
        def rows(a, weights, bias, image, row, scratch, targets, target_stride, low, high):  # type: ignore[no-untyped-def]
            acc, sizes = simd.zeros(count, lanes, bits), (a.x_rows, a.x_columns)
            acc = windows(acc, weights, image, (row * stride - a.top, 0), sizes)
            if a.bias != 0:
                acc = simd.add_vector(acc, bias)
            acc = simd.clamp(acc, low, high)
            if a.activation != 0:
                simd.store(acc, scratch)
            else:
                store_parts(acc, targets, target_stride, a.columns)

        return rows

    block = _by_rows(make_rows)

    def narrow(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        scratch, blocks = a.scratch + slot * a.scratch_stride, (a.rows + ROWS - 1) // ROWS
        step = (a.rows + blocks - 1) // blocks
        groups = (a.channels + parts - 1) // parts
        for task in simd.tasks(arguments):
            group, band, image = _located(task, groups, a.bands)
            start, stop = _blocks_of(blocks, band, a.bands)
            first = group * parts
            second = min(first + parts - 1, a.channels - 1)  # of an odd number the last channel is both
            values = a.values + first * taps * size, a.values + second * taps * size
            weights, bias = each(simd.zeros(taps, lanes, bits), *values), simd.zeros(1, lanes, bits)
            if a.bias != 0:
                bias = each(bias, a.bias + first * size, a.bias + second * size)
            x = a.x + a.x_corner + image * a.x_image_stride + first * a.x_channel_stride
            y = a.y + a.y_corner + image * a.y_image_stride + first * a.y_channel_stride
            rows = x, (second - first) * a.x_channel_stride, a.zeros, a.x_row_stride
            apart, sums = (second - first) * a.y_channel_stride, scratch
            for i in range(start, stop):
                row, end = i * step, min(i * step + step, a.rows)
                at = y + row * a.y_row_stride
                block(end - row, a, weights, bias, rows, row, sums, (at, at + apart), a.y_row_stride, low, high)
                sums += step * lanes * size
            if a.activation != 0:
                at = y + start * step * a.y_row_stride
                activate(a, min(stop * step, a.rows) - start * step, scratch, (at, at + apart))

    return compile_kernel(narrow, f"depthwise_narrow_{side}_s{stride}_p{left}_{parts}_f{bits}_v{lanes}")
