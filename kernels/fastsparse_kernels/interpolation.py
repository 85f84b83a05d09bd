"""Interpolation of images to a multiple of their size: linear between positions, continued by the edges.

Of `scale` positions made of one, those in the first half lie between it and the one before, those in the second half
between it and the one after, and a middle one is itself. A task interpolates between rows, in registers, then between
columns, and interleaves the phases by shuffles. Loads are masked at the ends of rows: nothing but the image is read.

Order of summation: rows, then columns, the own position first, then the other one, one FMA each; then residual, then
the clamp. Batch-blocked planes, where a position is a vector of VL samples, have a kernel of their own, with the same
bits. Time: O(numbers of y). Nothing is allocated.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from . import simd
from .compiler import compile_kernel, compiled_once, inlined_function, kernel_arguments, kernel_function
from .depthwise import IMAGES, load_windows
from .simd.types import I32, I64, Tile, fma_function, instruction, load_value, pack, shifted, shuffle, splat, unpack

MOST = 8  # times a row is made longer, at most

# Tasks are (image, channel). Tasks: images * channels.
INTERPOLATION = kernel_arguments(
    "channels",
    "rows",  # of x
    "columns",
    "row_scale",
    "row_weights",  # float [row_scale, 2]: of the own row and of the other one, which is not read for 0
    "column_weights",  # float [column scale, 2]
    *IMAGES,
    # Of batch-blocked planes, whose images are groups of VL samples:
    "column_scale",
    "x_column_stride",
    "y_column_stride",
)
_arguments = simd.arguments_view(INTERPOLATION)


def _interleaved(builder: Any, tile: Tile, phases: list[Any]) -> list[Any]:
    """As many vectors, in which number i of every phase stands next to those of the others."""
    found = []
    for vector in range(len(phases)):
        at = [divmod(vector * tile.lanes + lane, len(phases)) for lane in range(tile.lanes)]
        total = shuffle(builder, phases[0], phases[0], [index for index, _ in at])
        for phase, values in enumerate(phases[1:], 1):
            kept = [tile.lanes + index if of == phase else lane for lane, (index, of) in enumerate(at)]
            total = shuffle(builder, total, values, kept)
        found.append(total)
    return found


def _make_vectors(scale: int, both: bool) -> Any:
    @instruction()
    def vectors(builder: Any, args: Any, like: Any, rows: Any, row_weights: Any, column_weights: Any, at: Any) -> Any:
        """The `scale` vectors of y that one of x is made to.

        rows : addresses of the own row and of the other one
        row_weights, column_weights : addresses
        at : column of the vector's first number, and columns
        """
        tile, fma = Tile(1, like.lanes, like.bits), fma_function(builder, like)
        zero = ir.Constant(tile.vector, None)
        addresses, (first, columns) = unpack(builder, args[1], 2), unpack(builder, args[4], 2)

        def weights(address: Any, phase: int) -> list[Any]:
            pair = (shifted(builder, address, (2 * phase + i) * tile.size) for i in range(2))
            return [splat(builder, tile, load_value(builder, one, tile.element, tile.size)) for one in pair]

        before = shifted(builder, first, -1)
        own = load_windows(builder, tile, addresses[0], before, columns, 3, 1, True)
        if both:
            of_own, of_other = weights(args[2], 0)
            other = load_windows(builder, tile, addresses[1], before, columns, 3, 1, True)
            own = [fma(of_other, b, fma(of_own, a, zero)) for a, b in zip(own, other, strict=True)]
        lanes = ir.Constant(ir.VectorType(I32, tile.lanes), list(range(tile.lanes)))
        numbers = builder.add(splat(builder, tile, builder.trunc(first, I32)), lanes)
        ends = ir.Constant(I64, 0), shifted(builder, columns, -1)
        edges = (builder.icmp_signed("==", numbers, splat(builder, tile, builder.trunc(end, I32))) for end in ends)
        near = [builder.select(edge, own[1], own[i]) for edge, i in zip(edges, (0, 2), strict=True)]
        phases = []
        for phase in range(scale):
            if 2 * phase + 1 == scale:
                phases.append(own[1])
                continue
            of_own, of_other = weights(args[3], phase)
            phases.append(fma(of_other, near[2 * phase + 1 > scale], fma(of_own, own[1], zero)))
        return pack(builder, tile.vector, _interleaved(builder, tile, phases))

    return vectors


@kernel_function
def _other(at, phase, scale, count):  # type: ignore[no-untyped-def]
    """The position that a phase of a position lies next to."""
    if 2 * phase + 1 > scale:
        return min(at + 1, count - 1)
    return max(at - 1, 0)


@compiled_once
def interpolation_kernel(scale: int, bits: int, lanes: int) -> Any:
    """Kernel with arguments INTERPOLATION, for rows that become `scale` times as long."""
    size = bits // 8
    between, alone = (_make_vectors(scale, both) for both in (True, False))

    def interpolation(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        like = simd.zeros(scale, lanes, bits)
        for task in simd.tasks(arguments):
            channel, image = task % a.channels, task // a.channels
            x = a.x + a.x_corner + image * a.x_image_stride + channel * a.x_channel_stride
            y = a.y + a.y_corner + image * a.y_image_stride + channel * a.y_channel_stride
            for out in range(a.rows * a.row_scale):
                row, phase = out // a.row_scale, out % a.row_scale
                other = _other(row, phase, a.row_scale, a.rows)
                rows = x + row * a.x_row_stride, x + other * a.x_row_stride
                weights, target = a.row_weights + phase * 2 * size, y + out * a.y_row_stride
                for column in range(0, a.columns, lanes):
                    if 2 * phase + 1 == a.row_scale:
                        made = alone(like, rows, weights, a.column_weights, (column, a.columns))
                    else:
                        made = between(like, rows, weights, a.column_weights, (column, a.columns))
                    at, count = target + column * scale * size, (a.columns - column) * scale
                    if a.residual != 0:
                        made = simd.add(made, simd.load_first(like, at + a.residual - a.y, count))
                    simd.store_first(simd.clamp(made, low, high), at, count)

    return compile_kernel(interpolation, f"interpolation_{scale}_f{bits}_v{lanes}")


@compiled_once
def interpolation_batch_blocked_kernel(bits: int, lanes: int) -> Any:
    """Kernel with arguments INTERPOLATION, on vectors of VL samples."""
    size = bits // 8

    @inlined_function
    def weighted(own, other, weights, phase, scale):  # type: ignore[no-untyped-def]
        """What lies between two vectors, or the own one where a phase is the middle."""
        if 2 * phase + 1 == scale:
            return own
        at = weights + phase * 2 * size
        made = simd.axpy_tile(simd.zeros(1, lanes, bits), at, own)
        return simd.axpy_tile(made, at + size, other)

    @inlined_function
    def between_rows(a, own, other, phase):  # type: ignore[no-untyped-def]
        like = simd.zeros(1, lanes, bits)
        return weighted(simd.load(like, own), simd.load(like, other), a.row_weights, phase, a.row_scale)

    def interpolation(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        like = simd.zeros(1, lanes, bits)
        for task in simd.tasks(arguments):
            channel, image = task % a.channels, task // a.channels
            x = a.x + a.x_corner + image * a.x_image_stride + channel * a.x_channel_stride
            y = a.y + a.y_corner + image * a.y_image_stride + channel * a.y_channel_stride
            for out in range(a.rows * a.row_scale):
                row, phase = out // a.row_scale, out % a.row_scale
                own = x + row * a.x_row_stride
                other = x + _other(row, phase, a.row_scale, a.rows) * a.x_row_stride
                for made in range(a.columns * a.column_scale):
                    column, part = made // a.column_scale, made % a.column_scale
                    at = column * a.x_column_stride
                    beside = _other(column, part, a.column_scale, a.columns) * a.x_column_stride
                    here = between_rows(a, own + at, other + at, phase)
                    there = between_rows(a, own + beside, other + beside, phase)
                    total = weighted(here, there, a.column_weights, part, a.column_scale)
                    target = y + out * a.y_row_stride + made * a.y_column_stride
                    if a.residual != 0:
                        total = simd.add(total, simd.load(like, target + a.residual - a.y))
                    simd.store(simd.clamp(total, low, high), target)

    return compile_kernel(interpolation, f"interpolation_batch_blocked_f{bits}_v{lanes}")
