"""Gates: channels of images times a number each, in any layout."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastsparse.ops.layouts import Planes, grid
from fastsparse.ops.target import Target
from fastsparse.runtime.launch import Arguments, Launch
from fastsparse_kernels import gates as kernels


def in_place(x: Planes, y: Planes) -> bool:
    """Whether y may be written over x: all positions have the same offsets."""
    offsets = [(p.spatial, p.strides, p.corner, p.channel_stride, p.image_stride) for p in (x, y)]
    return offsets[0] == offsets[1]


def prepare(
    x: Planes, gate: tuple[int, int], y: Planes, channels: int, images: int, target: Target, *, by_lane: bool
) -> Launch:
    """y = x * gate; operands x, gate, y. The memory around the images is left alone.

    gate : bytes between images, and between channels
    by_lane : a gate is a vector of VL samples' numbers
    """
    x_rows, y_rows, row_bytes = _rows(x, y)
    arguments = Arguments(
        kernels.GATE,
        channels=channels,
        rows=len(x_rows),
        row_length=row_bytes // target.size,
        x_image_stride=x.image_stride,
        x_channel_stride=x.channel_stride,
        x_rows=x_rows,
        gate_image_stride=gate[0],
        gate_channel_stride=gate[1],
        y_image_stride=y.image_stride,
        y_channel_stride=y.channel_stride,
        y_rows=y_rows,
    )
    kernel = kernels.gate_kernel(int(by_lane), target.bits, target.lanes)
    numbers = images * channels * len(x_rows) * row_bytes / target.size
    return Launch(
        kernel, arguments, ("x", "gate", "y"), target.loop,
        tasks=images * channels, flops=numbers,
        label=("gate", f"{images}x{channels}x{math.prod(x.spatial)}", "", "by lane" if by_lane else ""),
    )  # fmt: skip


def _rows(x: Planes, y: Planes) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Where contiguous rows of both begin, int64 [rows] each, and their bytes: as long as they can be."""
    order = sorted(range(len(x.spatial)), key=lambda axis: -x.strides[axis])  # as axes lie in memory
    spatial, x_strides, y_strides = (tuple(of[axis] for axis in order) for of in (x.spatial, x.strides, y.strides))
    axes, row_bytes = len(spatial) - 1, spatial[-1] * x_strides[-1]
    while axes and x_strides[axes - 1] == y_strides[axes - 1] == row_bytes:
        axes -= 1
        row_bytes *= spatial[axes]
    x_rows, y_rows = (grid(spatial[:axes], (1,) * axes, strides[:axes]) for strides in (x_strides, y_strides))
    return x_rows + x.corner, y_rows + y.corner, row_bytes
