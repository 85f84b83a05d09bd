"""Plans of convolution: the im2col index of every nonzero folded into a byte offset, for any number of axes.

A window element (channel c, kernel index k) lies at `((c * H + k_h) * W + k_w)` from the window's corner in padded
planes, so a convolution is an SpMM whose columns have these offsets and whose positions are the windows' corners.
Strides, dilation, groups and depthwise need no kernels of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import Pattern
from fastsparse_kernels.sparse_operator import RUN_VECTORS

from . import policy
from .lanes import LanesPlanes, channel_blocks, grid, lanes_planes, planes_operator, row_major, tiles_between
from .linear import Machine, tile_width
from .operator import Operator, build_operator
from .sddmm import SddmmPlan, order_of
from .tiles import SpmmPlan, tiles_over, vectors_over, whole_vectors

Ints = tuple[int, ...]
Structure = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]  # channel, row, tap, place in the CSR


@dataclass(frozen=True)
class Geometry:
    """A convolution's sizes, one entry per spatial axis. Padding is (before, after) pairs."""

    channels: int
    out_channels: int
    spatial: Ints
    kernel: Ints
    stride: Ints
    padding: tuple[tuple[int, int], ...]
    dilation: Ints
    groups: int

    @property
    def padded(self) -> Ints:
        return tuple(n + before + after for n, (before, after) in zip(self.spatial, self.padding, strict=True))

    @property
    def out_spatial(self) -> Ints:
        return tuple(
            (n - d * (k - 1) - 1) // s + 1
            for n, k, s, d in zip(self.padded, self.kernel, self.stride, self.dilation, strict=True)
        )

    @property
    def positions(self) -> int:
        """Output positions of one channel."""
        return math.prod(self.out_spatial)

    @property
    def pointwise(self) -> bool:
        """A 1x1 convolution that reads its input as it is."""
        return set(self.kernel) == {1} and set(self.stride) == {1} and not any(map(any, self.padding))


def absolute_columns(pattern: Pattern, geometry: Geometry) -> NDArray[np.integer]:
    """Column of every nonzero as (channel, kernel index) over all input channels, whatever the groups."""
    if geometry.groups == 1:
        return pattern.indices
    group = pattern.rows() // max(1, geometry.out_channels // geometry.groups)
    columns = pattern.indices + group * pattern.shape[1]
    return columns.astype(np.int32) if geometry.groups * pattern.shape[1] < 2**31 else columns


# ---------------------------------------------------------------- lanes layout


@dataclass(frozen=True, eq=False)
class LanesConv:
    """Forward convolution on lanes layout: planes of x and y, and the SpMM between them."""

    x: LanesPlanes
    y: LanesPlanes
    spmm: SpmmPlan


def lanes_operator(
    pattern: Pattern, geometry: Geometry, planes: LanesPlanes, per_block: int, groups: int, width: int = 0
) -> Operator:
    """The operator on lanes planes, cached on the pattern."""
    window = grid(geometry.kernel, geometry.dilation, planes.strides)
    return planes_operator(
        pattern, lambda: absolute_columns(pattern, geometry), planes, window, per_block, groups, geometry.groups, width
    )


def conv_lanes(pattern: Pattern, geometry: Geometry, machine: Machine, sample_groups: int) -> LanesConv:
    """Forward plan for batches of `sample_groups` groups (which decide only how rows are split over workers)."""
    x = lanes_planes(geometry.channels, geometry.spatial, geometry.padding, machine)
    y = lanes_planes(geometry.out_channels, geometry.out_spatial, _no_padding(geometry), machine)
    return LanesConv(x, y, conv_between(pattern, geometry, x, y, machine, sample_groups))


def conv_between(
    pattern: Pattern,
    geometry: Geometry,
    x: LanesPlanes,
    y: LanesPlanes,
    machine: Machine,
    sample_groups: int,
    tile_groups: int = 1,
) -> SpmmPlan:
    """Convolution from given planes to given planes; x has at least the convolution's padding.

    With tile_groups > 1 a tile's vectors run over the positions of that many groups: for images of few positions.
    """
    starts = grid(geometry.out_spatial, geometry.stride, x.strides) + x.corner
    starts -= sum(before * stride for (before, _), stride in zip(geometry.padding, x.strides, strict=True))
    rates = policy.window_rates(geometry.out_spatial[-1])
    width = tile_width(pattern, geometry.positions * tile_groups, machine, rates, geometry.groups)
    tiles = tiles_between(starts, y.all_places(), x, y, width, tile_groups, machine)
    groups = policy.row_groups(
        geometry.out_channels,
        -(-tiles.count * sample_groups // tile_groups),
        machine.workers,
        width * machine.vector,
    )
    apart = tile_groups > 1 and geometry.positions < width
    windows = set(geometry.kernel) != {1}
    window_bytes = _window_bytes(geometry.kernel, width, machine.vector, apart)
    per_block = policy.block_channels(window_bytes, machine.l1_bytes, windows)
    operator = lanes_operator(pattern, geometry, x, per_block, groups, width)
    past_caches = policy.is_far(y.group_stride * sample_groups, machine.l3_bytes)
    return SpmmPlan(operator, tiles, past_caches=past_caches)


def _window_bytes(kernel: Ints, width: int, vector: int, apart: bool = False) -> int:
    """About what one channel's window of a tile brings to L1; the windows of neighbours overlap, or lie apart."""
    return math.prod(kernel[:-1]) * (width * kernel[-1] if apart else width + kernel[-1] - 1) * vector


def _no_padding(geometry: Geometry) -> tuple[tuple[int, int], ...]:
    return ((0, 0),) * len(geometry.kernel)


# ---------------------------------------------------------------- backward, on lanes layout


@dataclass(frozen=True, eq=False)
class LanesConvBackward:
    """dX and dW of a convolution. `dx_phases`: one SpMM with the transposed operator per phase of the stride."""

    x: LanesPlanes  # padded as in the forward pass, for dW
    dy: LanesPlanes  # padded for dX
    dx: LanesPlanes
    dw: SddmmPlan
    dx_phases: list[SpmmPlan]


def _transposed_structure(
    pattern: Pattern, geometry: Geometry
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Nonzeros ordered by (input channel, output channel, kernel index): those arrays, and their place in the CSR."""
    columns = absolute_columns(pattern, geometry)
    taps = math.prod(geometry.kernel)
    channel, tap = columns // taps, columns % taps
    order = np.argsort(channel, kind="stable")  # rows already ascend, then taps: a stable sort by channel keeps that
    return channel[order], pattern.rows()[order], tap[order], order


def _phase_axis(n: int, k: int, s: int, d: int, before: int, phase: int) -> tuple[int, NDArray[Any], NDArray[Any]]:
    """One axis of one phase of dX: inputs phase, phase + s, ... : their number, the taps that reach them, and the
    output index that tap k adds to input index 0 of the phase."""
    taps = np.arange(k)
    reach = (phase + before - taps * d) % s == 0
    return max(0, -(-(n - phase) // s)), taps[reach], (phase + before - taps[reach] * d) // s


def conv_backward_lanes(
    pattern: Pattern, geometry: Geometry, machine: Machine, sample_groups: int
) -> LanesConvBackward:
    """Plan of both gradients."""
    axes = list(
        zip(geometry.spatial, geometry.kernel, geometry.stride, geometry.dilation, geometry.padding, strict=True)
    )
    phases = [[_phase_axis(n, k, s, d, p[0], a) for a in range(min(s, n))] for n, k, s, d, p in axes]
    padding = []
    for axis, out in zip(phases, geometry.out_spatial, strict=True):
        lowest = min((int(shift.min(initial=0)) for _, _, shift in axis), default=0)
        highest = max((count - 1 + int(shift.max(initial=0)) for count, _, shift in axis), default=0)
        padding.append((max(0, -lowest), max(0, highest - (out - 1))))
    x = lanes_planes(geometry.channels, geometry.spatial, geometry.padding, machine)
    dx = lanes_planes(geometry.channels, geometry.spatial, _no_padding(geometry), machine)
    dy = lanes_planes(geometry.out_channels, geometry.out_spatial, tuple(padding), machine)
    dw = _conv_sddmm(pattern, geometry, machine, x, dy)
    structure = _transposed_structure(pattern, geometry)
    plans = []
    for index in np.ndindex(*(len(axis) for axis in phases)):
        chosen = [axis[i] for axis, i in zip(phases, index, strict=True)]
        plans.append(_phase_plan(structure, geometry, machine, sample_groups, index, chosen, dy, dx))
    return LanesConvBackward(x, dy, dx, dw, plans)


def _conv_sddmm(pattern: Pattern, geometry: Geometry, machine: Machine, x: LanesPlanes, dy: LanesPlanes) -> SddmmPlan:
    """dW: positions are the output positions, x read at the windows' corners."""
    x_step, y_step = geometry.stride[-1] * x.strides[-1], dy.strides[-1]
    positions = 0
    if x_step == y_step == machine.vector and geometry.out_spatial[-1] % RUN_VECTORS == 0:
        positions = policy.sddmm_run_positions(x.group_stride, machine.l3_bytes, machine.vector)
    in_fours = positions > 0
    if in_fours:
        row, height, window = RUN_VECTORS, positions // RUN_VECTORS, (geometry.kernel[0], positions)
    else:
        positions = policy.sddmm_window_positions(machine.vector)
        row = policy.sddmm_row_part(geometry.out_spatial[-1], positions)
        height = min(geometry.positions // row, max(1, positions // row))
        window = geometry.kernel[0] + height - 1, row
    extent = window[0] * (window[1] + geometry.kernel[-1] - 1) * machine.vector
    x_runs = np.ascontiguousarray(grid(geometry.out_spatial, geometry.stride, x.strides)[::row])
    y_runs = np.ascontiguousarray(dy.all_places()[::row])
    groups = policy.row_groups(geometry.out_channels, 1, machine.workers, 0)
    operator = lanes_operator(pattern, geometry, x, policy.sddmm_block_rows(extent, machine.l1_bytes), groups)
    order = order_of(operator, in_fours)
    return SddmmPlan(operator, geometry.positions, row, height, x_runs, x_step, y_runs, y_step, in_fours, order)


def _phase_plan(
    structure: Structure,
    geometry: Geometry,
    machine: Machine,
    sample_groups: int,
    phase: Ints,
    axes: list[tuple[int, NDArray[Any], NDArray[Any]]],
    dy: LanesPlanes,
    dx: LanesPlanes,
) -> SpmmPlan:
    """The SpMM that gives dX at the inputs of one phase: the transposed operator's taps that reach them."""
    channel, row, tap, order = structure
    taps_shape = geometry.kernel
    reach = np.ones(1, bool)
    shift_bytes = np.zeros(1, np.int64)
    lowest = 0
    for (_, taps, shift), k, stride in zip(axes, taps_shape, dy.strides, strict=True):
        axis_reach, axis_shift = np.zeros(k, bool), np.zeros(k, np.int64)
        least = int(shift.min(initial=0)) if len(shift) else 0
        axis_reach[taps], axis_shift[taps] = True, (shift - least) * stride
        lowest += least * stride
        reach = np.logical_and.outer(reach, axis_reach).ravel()
        shift_bytes = np.add.outer(shift_bytes, axis_shift).ravel()
    kept = reach[tap]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(channel[kept], minlength=geometry.channels))]).astype(np.int64)
    counts = tuple(count for count, _, _ in axes)
    alike = len(kept) > 0 and bool(kept.all()) and len(kept) == geometry.channels * geometry.out_channels * len(reach)
    rates = policy.alike_rates(machine.vector) if alike else policy.window_rates(counts[-1])
    width = policy.tile_width(max(1, math.prod(counts)), rates)
    steps = tuple(min(s, n) for s, n in zip(geometry.stride, geometry.spatial, strict=True))
    first = sum(a * stride for a, stride in zip(phase, dx.strides, strict=True))
    starts = grid(counts, (1,) * len(counts), dy.strides) + dy.corner + lowest
    ends = grid(counts, steps, dx.strides) + first
    tiles = whole_vectors(starts, ends, width, machine.lanes, machine.size)
    groups = policy.row_groups(geometry.channels, tiles.count * sample_groups, machine.workers, width * machine.vector)
    per_block = policy.block_channels(_window_bytes(geometry.kernel, width, machine.vector), machine.l1_bytes)
    blocks = channel_blocks(geometry.out_channels, per_block, dy.channel_stride, shift_bytes)
    columns = row[kept] * len(shift_bytes) + tap[kept]
    operator = build_operator(indptr, columns.astype(np.int64), blocks, groups, width)
    return SpmmPlan(_renumbered(operator, order[kept]), tiles)


def _renumbered(operator: Operator, order: NDArray[Any]) -> Operator:
    """The operator with its permutation pointing through `order` into the CSR's data."""
    return replace(operator, permutation=order[operator.permutation].astype(np.uint32))


# ---------------------------------------------------------------- flat layout


@dataclass(frozen=True, eq=False)
class FlatConv:
    """Forward convolution of single images: packing into phase planes, and an SpMM that writes the user's layout."""

    rows: int
    row_length: int
    step: int
    places: NDArray[np.int64]  # [rows, phases]
    firsts: NDArray[np.int64]  # [phases]
    channel_stride: int
    slack: int  # bytes behind the last plane that vectors may touch
    spmm: SpmmPlan


def conv_flat(
    pattern: Pattern, geometry: Geometry, machine: Machine, images: int, places: NDArray[np.int64] | None = None
) -> FlatConv:
    """Plan for a small batch: a vector is VL consecutive positions of a padded plane.

    places : bytes from an output channel to each of its positions; by default they lie in a row
    """
    size, axes = machine.size, len(geometry.kernel)
    extents = [-(-n // s) for n, s in zip(geometry.padded, geometry.stride, strict=True)]
    if geometry.stride[-1] == 1:
        # The zeros behind one row serve as those in front of the next.
        extents[-1] = max(geometry.spatial[-1] + max(geometry.padding[-1]), geometry.out_spatial[-1])
    strides = row_major(tuple(extents))
    taps = zip(geometry.kernel, geometry.stride, geometry.dilation, strict=True)
    read = [sorted({k * d % s for k in range(n)}) for n, s, d in taps]
    # The last row's window may look past its end by the padding that the next row would have brought.
    plane = policy.off_the_sets(-(-(math.prod(extents) + max(geometry.padding[-1])) * size // 64) * 64, 64)
    phase_planes = row_major(tuple(len(r) for r in read))
    channel_stride = plane * math.prod(len(r) for r in read)
    window = np.zeros(1, np.int64)
    for a in range(axes):
        tap = np.arange(geometry.kernel[a]) * geometry.dilation[a]
        index = np.searchsorted(read[a], tap % geometry.stride[a])
        window = np.add.outer(
            window, index * phase_planes[a] * plane + tap // geometry.stride[a] * strides[a] * size
        ).ravel()
    rows = _flat_places(geometry, read, strides, phase_planes, plane, size)
    firsts = np.array([(r - geometry.padding[-1][0]) % geometry.stride[-1] for r in read[-1]], np.int64)
    if places is None:
        places = np.arange(geometry.positions, dtype=np.int64) * size
    starts = grid(geometry.out_spatial, (1,) * axes, strides)
    vectors = len(vectors_over(starts, machine.lanes))
    width = tile_width(pattern, vectors, machine, policy.WINDOW_TILE_RATE, geometry.groups)
    tiles = tiles_over(starts, places, width, machine.lanes, size, machine.vector)
    groups = policy.row_groups(geometry.out_channels, tiles.count * images, machine.workers, width * machine.vector)
    touched = math.prod(geometry.kernel[:-1]) * (width * machine.vector + geometry.kernel[-1] * size)
    blocks = channel_blocks(geometry.channels, policy.block_channels(touched, machine.l1_bytes), channel_stride, window)
    operator = build_operator(pattern.indptr, absolute_columns(pattern, geometry), blocks, groups, width)
    leading = math.prod(geometry.spatial[:-1])
    return FlatConv(
        leading, geometry.spatial[-1], geometry.stride[-1], rows, firsts, channel_stride, width * machine.vector,
        SpmmPlan(operator, tiles),
    )  # fmt: skip


def _flat_places(
    geometry: Geometry, read: list[list[int]], strides: Ints, phase_planes: Ints, plane: int, size: int
) -> NDArray[np.int64]:
    """Bytes from the channel to where every image row's phases begin; -1 where the window never looks."""
    place = np.zeros(1, np.int64)
    seen = np.ones(1, bool)
    for a, n in enumerate(geometry.spatial):
        s, before = geometry.stride[a], geometry.padding[a][0]
        last = a == len(geometry.spatial) - 1
        index = np.array([(r - before) % s for r in read[a]]) if last else np.arange(n)
        at = index + before
        phase = np.searchsorted(read[a], at % s).clip(max=len(read[a]) - 1)
        known = np.isin(at % s, read[a])
        place = np.add.outer(place, phase * phase_planes[a] * plane + at // s * strides[a] * size).ravel()
        seen = np.logical_and.outer(seen, known).ravel()
    return np.where(seen, place, -1).astype(np.int64)
