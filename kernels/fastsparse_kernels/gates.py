"""Gates: every channel of an image times a number of its own, as squeeze-and-excitation scales channels.

Images are rows of numbers at given offsets, so that padded planes, planes of VL samples and spatial tiles are one case:
y[row, i] = x[row, i] * gate. Nothing is read or written beside the rows. A gate is one number for the channel, or where
numbers of VL samples lie side by side, a vector of VL.

Source: Hu et al., Squeeze-and-Excitation Networks, arXiv:1709.01507, section 3. Time: O(numbers). Nothing is allocated.
"""

from __future__ import annotations

from typing import Any

from . import simd
from .compiler import compile_kernel, compiled_once, kernel_arguments
from .simd.math import multiply

# A task is a channel of an image. Tasks: images * channels.
GATE = kernel_arguments(
    "channels",
    "rows",
    "row_length",  # numbers
    "x",
    "x_image_stride",  # bytes, as all strides and offsets
    "x_channel_stride",
    "x_rows",  # int64 [rows], from the channel
    "gate",
    "gate_image_stride",
    "gate_channel_stride",
    "y",  # may be x where both have the same offsets
    "y_image_stride",
    "y_channel_stride",
    "y_rows",  # int64 [rows]
)
_gate = simd.arguments_view(GATE)


@compiled_once
def gate_kernel(by_lane: int, bits: int, lanes: int) -> Any:
    """Kernel with arguments GATE, whose gates are numbers (0), or vectors (1); rows are whole vectors then."""
    size, load_gate = bits // 8, simd.load if by_lane else simd.filled

    def gate(arguments, slot):  # type: ignore[no-untyped-def]
        a = _gate(arguments)
        like = simd.zeros(1, lanes, bits)
        for task in simd.tasks(arguments):
            channel, image = task % a.channels, task // a.channels
            factor = load_gate(like, a.gate + image * a.gate_image_stride + channel * a.gate_channel_stride)
            x_channel = a.x + image * a.x_image_stride + channel * a.x_channel_stride
            y_channel = a.y + image * a.y_image_stride + channel * a.y_channel_stride
            for row in range(a.rows):
                x = x_channel + simd.load_i64(a.x_rows + row * 8)
                y = y_channel + simd.load_i64(a.y_rows + row * 8)
                for i in range(0, a.row_length, lanes):
                    numbers = simd.load_first(like, x + i * size, a.row_length - i)
                    simd.store_first(multiply(numbers, factor), y + i * size, a.row_length - i)

    return compile_kernel(gate, f"gate_{'by_lane' if by_lane else 'one'}_f{bits}_v{lanes}")
