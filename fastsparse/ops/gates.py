"""Gates: channels of images times a number each, in any layout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastsparse.ops.geometry import Ints
from fastsparse.ops.layouts import BlockedPlanes, PaddedPlanes, grid
from fastsparse.ops.target import Target
from fastsparse.runtime.launch import Arguments, Launch
from fastsparse_kernels import gates as kernels


@dataclass(frozen=True)
class Image:
    """Where the positions of an image lie in a channel, and channels in an image. All but `spatial` in bytes.

    strides : of the spatial axes; the last one is what a position takes
    corner : offset of position 0
    """

    spatial: Ints
    strides: Ints
    corner: int
    channel_stride: int
    image_stride: int

    @staticmethod
    def padded(planes: PaddedPlanes) -> Image:
        """Of padded planes, or of the user's layout."""
        strides = tuple(n * planes.size for n in planes.strides)
        return Image(planes.spatial, strides, planes.corner, planes.channel_stride, planes.image_stride)

    @staticmethod
    def blocked(planes: BlockedPlanes) -> Image:
        """Of planes of samples or of spatial tiles, with axes as they lie in memory."""
        order = sorted(range(len(planes.spatial)), key=lambda axis: -planes.strides[axis])
        spatial, strides = (tuple(of[axis] for axis in order) for of in (planes.spatial, planes.strides))
        return Image(spatial, strides, planes.corner, planes.channel_stride, planes.group_stride)


def prepare(
    x: Image, gate: tuple[int, int], y: Image, channels: int, images: int, target: Target, *, by_lane: bool
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
    kernel = kernels.gate_kernel(kernels.BY_LANE if by_lane else kernels.ONE, target.bits, target.lanes)
    numbers = images * channels * len(x_rows) * row_bytes / target.size
    return Launch(
        kernel, arguments, ("x", "gate", "y"), target.loop,
        tasks=images * channels, flops=numbers,
        label=("gate", f"{images}x{channels}x{math.prod(x.spatial)}", "", "by lane" if by_lane else ""),
    )  # fmt: skip


def _rows(x: Image, y: Image) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Where contiguous rows of both begin, int64 [rows] each, and their bytes: as long as they can be."""
    axes, row_bytes = len(x.spatial) - 1, x.spatial[-1] * x.strides[-1]
    while axes and x.strides[axes - 1] == y.strides[axes - 1] == row_bytes:
        axes -= 1
        row_bytes *= x.spatial[axes]
    found = [grid(i.spatial[:axes], (1,) * axes, i.strides[:axes]) + i.corner for i in (x, y)]
    return np.ascontiguousarray(found[0], np.int64), np.ascontiguousarray(found[1], np.int64), row_bytes
