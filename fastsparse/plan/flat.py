"""Flat planes between layers: convolutions of single images that write the padded planes the next one reads.

A plane is one channel's image with zeros around it, its rows joined by as many zeros as the padding asks for: those
behind one row serve as those in front of the next. A vector is VL consecutive positions of a plane. Lanes that fall on
the padding between rows compute something that is not stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import Pattern

from . import policy
from .conv import Geometry, absolute_columns
from .lanes import Ints, channel_blocks, grid, row_major
from .linear import Machine, tile_width
from .operator import build_operator
from .tiles import SpmmPlan, tiles_over, vectors_over

Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class FlatPlanes:
    """Planes of images that stride-1 windows read; also what packing needs. Strides are in elements, the rest in bytes.

    Without padding the planes are the user's own layout, channels `channel_stride` apart.
    """

    channels: int
    spatial: Ints
    padding: Pads
    strides: Ints
    corner: int  # place of position 0
    channel_stride: int
    slack: int  # behind the last plane, for vectors and tiles that look beyond it
    places: NDArray[np.int64]  # [rows, 1], where every image row begins
    size: int  # bytes of a number
    firsts: NDArray[np.int64]
    step: int = 1

    @property
    def contiguous(self) -> bool:
        """Whether a plane is its image and nothing else, up to what lies between channels."""
        return self.strides == row_major(self.spatial) and not any(map(any, self.padding))

    @property
    def rows(self) -> int:
        return math.prod(self.spatial[:-1])

    @property
    def row_length(self) -> int:
        return self.spatial[-1]

    @property
    def image_stride(self) -> int:
        return self.channels * self.channel_stride

    def all_places(self) -> NDArray[np.int64]:
        """Place of every position, int64 [positions]."""
        return grid(self.spatial, (1,) * len(self.spatial), self.strides) * self.size + self.corner


def plain_planes(channels: int, spatial: Ints, machine: Machine) -> FlatPlanes:
    """The user's layout: contiguous (channels, *spatial). spatial () is for features."""
    strides = row_major(spatial)
    none = np.zeros(0, np.int64)
    stride = math.prod(spatial) * machine.size
    pads = ((0, 0),) * len(spatial)
    return FlatPlanes(channels, spatial, pads, strides, 0, stride, machine.vector, none, machine.size, none)


def padded_planes(channels: int, spatial: Ints, readers: list[Geometry], machine: Machine) -> FlatPlanes:
    """Planes with the padding that all the convolutions `readers`, of stride 1, ask for.

    Without any padding, rows follow one another as in the user's layout.
    """
    axes = range(len(spatial))
    padding = tuple(
        (max((g.padding[a][0] for g in readers), default=0), max((g.padding[a][1] for g in readers), default=0))
        for a in axes
    )
    extents = [n + before + after for n, (before, after) in zip(spatial, padding, strict=True)]
    extents[-1] = max(spatial[-1] + max(padding[-1]), *(g.out_spatial[-1] for g in readers), 1)
    strides = row_major(tuple(extents))
    corner = sum(before * stride for (before, _), stride in zip(padding, strides, strict=True)) * machine.size
    # The last row's window may look past its end by the padding that the next row would have brought.
    plane = -(-(math.prod(extents) + max(padding[-1])) * machine.size // 64) * 64
    places = grid(spatial[:-1], (1,) * (len(spatial) - 1), strides[:-1]) * machine.size + corner
    return FlatPlanes(
        channels, spatial, padding, strides, corner, policy.off_the_sets(plane, 64),
        policy.WIDEST_TILE * machine.vector, places.reshape(-1, 1), machine.size, np.zeros(1, np.int64),
    )  # fmt: skip


def conv_flat_between(
    pattern: Pattern, geometry: Geometry, x: FlatPlanes, y: FlatPlanes, machine: Machine, images: int
) -> SpmmPlan:
    """Convolution of stride 1 from planes to planes; x has at least the convolution's padding."""
    size = machine.size
    shift = sum(
        (have[0] - want[0]) * stride for have, want, stride in zip(x.padding, geometry.padding, x.strides, strict=True)
    )
    window = grid(geometry.kernel, geometry.dilation, x.strides) * size
    starts = grid(geometry.out_spatial, geometry.stride, x.strides) + shift
    vectors = len(vectors_over(starts, machine.lanes))
    width = tile_width(pattern, vectors, machine, policy.WINDOW_TILE_RATE, geometry.groups)
    step = machine.vector if x.slack >= width * machine.vector else 0
    tiles = tiles_over(starts, y.all_places(), width, machine.lanes, size, step)
    groups = policy.row_groups(geometry.out_channels, tiles.count * images, machine.workers, width * machine.vector)
    touched = math.prod(geometry.kernel[:-1]) * (width * machine.vector + geometry.kernel[-1] * size)
    per_block = policy.block_channels(touched, machine.l1_bytes)
    operator = pattern.cached(
        ("flat operator", x.channels, x.channel_stride, window.tobytes(), per_block, groups, geometry.groups, width),
        lambda: build_operator(
            pattern.indptr,
            absolute_columns(pattern, geometry),
            channel_blocks(x.channels, per_block, x.channel_stride, window),
            groups,
            width,
        ),
    )
    return SpmmPlan(operator, tiles)


def identity(positions: int, machine: Machine) -> SpmmPlan:
    """One channel of `positions` numbers in a row as it is: for adding a residual to it, and for activations."""
    start = np.arange(positions, dtype=np.int64)
    width = policy.tile_width(-(-positions // machine.lanes), policy.WINDOW_TILE_RATE)
    tiles = tiles_over(start, start * machine.size, width, machine.lanes, machine.size)
    blocks = channel_blocks(1, 1, 0, np.zeros(1, np.int64))
    return SpmmPlan(build_operator(np.arange(2, dtype=np.int64), np.zeros(1, np.int32), blocks), tiles)
