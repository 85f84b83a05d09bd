"""Lanes layout: planes (groups, channels, positions, VL) of VL samples each, and products from planes to planes.

Whatever lies in planes can be read by an operator: a column's byte offset says where its channel and its place are, a
tile's positions say where windows begin. Networks keep their activations here from layer to layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import Pattern

from . import policy
from .linear import Machine, tile_width
from .operator import INDEX_LIMIT, ColumnBlocks, Operator, build_operator
from .tiles import SpmmPlan, Tiles, whole_vectors

Ints = tuple[int, ...]


def grid(sizes: Ints, steps: Ints, strides: Ints) -> NDArray[np.int64]:
    """sum of index * step * stride over all index tuples below `sizes`, in row-major order."""
    total = np.zeros((), np.int64)
    for size, step, stride in zip(sizes, steps, strides, strict=True):
        total = np.add.outer(total, np.arange(size, dtype=np.int64) * step * stride)
    return total.ravel()


def row_major(sizes: Ints) -> Ints:
    """Strides of a contiguous row-major array, in elements."""
    return tuple(math.prod(sizes[i + 1 :]) for i in range(len(sizes)))


@dataclass(frozen=True, eq=False)
class LanesPlanes:
    """Planes in lanes layout, with a zero border or none. Strides, places and the corner are in bytes."""

    channels: int
    positions: int  # of the user's plane
    places: NDArray[np.int64]  # [positions, rounded up to a multiple of VL]; empty: positions in a row
    borders: NDArray[np.int64]
    channel_stride: int
    group_stride: int
    spatial: Ints = ()
    strides: Ints = ()  # of the spatial axes
    corner: int = 0  # place of position 0
    panel_groups: int = 1  # groups that lie `group_stride` apart; of 1 each group is a panel
    panel_stride: int = 0  # bytes between panels of more groups

    def all_places(self) -> NDArray[np.int64]:
        """Place of every position, int64 [positions]."""
        return grid(self.spatial, (1,) * len(self.spatial), self.strides) + self.corner


def lanes_planes(channels: int, spatial: Ints, padding: tuple[tuple[int, int], ...], machine: Machine) -> LanesPlanes:
    """Planes for `spatial` images with a zero border. spatial () is for features: one position per channel.

    Padding may be negative only in the sense of 0: callers shift positions instead.
    """
    padded = tuple(n + before + after for n, (before, after) in zip(spatial, padding, strict=True))
    strides = tuple(s * machine.vector for s in row_major(padded))
    total, positions = math.prod(padded), math.prod(spatial)
    channel_stride = policy.off_the_sets(max(1, total) * machine.vector, machine.vector)
    group_stride = policy.off_the_sets(channels * channel_stride, machine.vector)
    corner = sum(before * stride for (before, _), stride in zip(padding, strides, strict=True))
    places = borders = np.empty(0, np.int64)
    if total != positions:
        places = grid(spatial, (1,) * len(spatial), strides) + corner
        inside = np.zeros(total, bool)
        inside[places // machine.vector] = True
        borders = np.flatnonzero(~inside) * machine.vector
        places = np.concatenate([places, np.zeros(-positions % machine.lanes, np.int64)])
    return LanesPlanes(channels, positions, places, borders, channel_stride, group_stride, spatial, strides, corner)


def channel_blocks(channels: int, per_block: int, channel_stride: int, window: NDArray[np.int64]) -> ColumnBlocks:
    """Blocks of channels; column (c, k) lies at c * channel_stride + window[k] bytes.

    Raises
    ------
    ValueError
        When a window reaches 2**32 bytes or more from its corner: offsets are 32-bit.
    """
    farthest = int(window.max(initial=0))
    if farthest >= INDEX_LIMIT:
        raise ValueError(f"the window of x spans {farthest} bytes, expected fewer than {INDEX_LIMIT} in 32-bit offsets")
    per_block = max(1, min(per_block, channels, (INDEX_LIMIT - 1 - farthest) // max(1, channel_stride)))
    channel = np.arange(channels, dtype=np.int64)
    block = channel // per_block
    offset = np.add.outer((channel - block * per_block) * channel_stride, window)
    count = max(1, -(-channels // per_block))
    starts = np.minimum(np.arange(count + 1) * per_block, channels)
    return ColumnBlocks(
        np.repeat(block, len(window)).astype(np.int32),
        offset.ravel().astype(np.uint32),
        starts[:-1] * channel_stride,
        starts,
    )


def planes_operator(
    pattern: Pattern,
    columns: Callable[[], NDArray[np.integer]],
    x: LanesPlanes,
    window: NDArray[np.int64],
    per_block: int,
    groups: int,
    kind: int = 1,
    width: int = 0,
) -> Operator:
    """The operator whose column (c, k) lies at place window[k] of x's channel c, cached on the pattern.

    columns : gives the columns of the nonzeros over all of x's channels; `kind` tells those of one pattern apart.
    """
    return pattern.cached(
        ("planes operator", x.channels, x.channel_stride, window.tobytes(), per_block, groups, kind, width),
        lambda: build_operator(
            pattern.indptr, columns(), channel_blocks(x.channels, per_block, x.channel_stride, window), groups, width
        ),
    )


def tiles_between(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    x: LanesPlanes,
    y: LanesPlanes,
    width: int,
    tile_groups: int,
    machine: Machine,
) -> Tiles:
    """Tiles that read at `starts` of x and write at `ends` of y, position by position, in `tile_groups` groups."""
    group = np.arange(tile_groups, dtype=np.int64)
    x_positions = np.add.outer(group * x.group_stride, starts).ravel()
    y_positions = np.add.outer(group * y.group_stride, ends).ravel()
    return whole_vectors(x_positions, y_positions, width, machine.lanes, machine.size)


def linear_between(pattern: Pattern, x: LanesPlanes, y: LanesPlanes, machine: Machine, tile_groups: int) -> SpmmPlan:
    """Linear layer that reads x's channels and positions as features, and writes y's channels."""
    width = tile_width(pattern, tile_groups, machine)
    here = np.zeros(1, np.int64)
    tiles = tiles_between(here, here, x, y, width, tile_groups, machine)
    rows, columns = pattern.shape
    positions = max(1, x.positions)
    density = positions * pattern.nnz / max(1, rows * columns)  # nonzeros that a row has in a channel
    groups = policy.row_groups(rows, tiles.count, machine.workers, width * machine.vector)
    per_block = policy.even_block_rows(width * machine.vector * positions, x.channels, density)
    places = x.all_places()
    operator = planes_operator(pattern, lambda: pattern.indices, x, places, per_block, groups, width=width)
    return SpmmPlan(operator, tiles)
