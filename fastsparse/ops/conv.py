"""Convolution over any number of axes: the im2col index of every nonzero folded into a byte offset.

In padded planes, a window element (channel c, kernel index k) is `((c * H + k_h) * W + k_w)` elements from the window's
corner, so a convolution is an SpMM whose columns have these offsets and whose positions are the windows' corners.
Strides, dilation, groups and depthwise need no kernels of their own.

Large batches go through the batch-blocked layout (VL images innermost), small ones through padded NCHW planes, and
small 1x1 convolutions straight through row-major SpMM. All of them sum in the same order, so results do not depend on
the choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR, Pattern
from fastsparse.ops import sddmm, spmm
from fastsparse.ops.geometry import ConvGeometry, Ints
from fastsparse.ops.heuristics import WIDEST_TILE
from fastsparse.ops.layouts import (
    BlockedPlanes,
    PaddedPlanes,
    PhasePlanes,
    banded_planes,
    blocked_planes,
    expect_packing,
    grid,
    pack_blocked,
    pack_padded,
    row_major_strides,
    unaliased_stride,
    unpack_blocked,
)
from fastsparse.ops.sddmm import SddmmPlan, gradient_order
from fastsparse.ops.sparse_operator import (
    PackedValues,
    SparseOperator,
    build_operator,
    channel_blocks,
    packed_for_each,
    packed_values,
)
from fastsparse.ops.spmm import (
    UNALIGNED,
    Peels,
    SpmmPlan,
    alignments,
    expect_kernel,
    plan_row_major,
)
from fastsparse.ops.target import Target, target_for
from fastsparse.ops.tiles import Tiles, tiles_over, vectors_over, whole_vectors
from fastsparse.runtime import buffers
from fastsparse.runtime.buffers import address, optional_address
from fastsparse.runtime.launch import Launch
from fastsparse_kernels.sparse_operator import RUN_VECTORS, WHOLE

Array = NDArray[Any]
Structure = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]  # channel, row, tap, index in the CSR


# ------------------------------------------------------------------------------------------------- forward


def forward(
    x: Array, W: CSR, geometry: ConvGeometry, bias: Array | None, activation: str | None, y: Array,
    target: Target | None = None,
) -> None:  # fmt: skip
    """y = activation(conv(x) + bias), all contiguous."""
    target, images = target or target_for(x.dtype), len(x)
    peels = UNALIGNED
    if geometry.pointwise:
        as_matrices = y.reshape(images, W.shape[0], geometry.positions)
        peels, _ = alignments(address(x), x.strides[1], address(y), as_matrices, target)
    key = geometry, images, activation, target, peels
    W.kept(_prepared, *key).run(address(x), address(y), optional_address(bias))


def _prepared(
    W: CSR, geometry: ConvGeometry, images: int, activation: str | None, target: Target, peels: Peels
) -> _Prepared:
    """The layout for these sizes, and its launches."""
    h = target.heuristics
    by_image = set(geometry.kernel) == {1} and h.fills_vectors(geometry.positions, target.lanes)
    if h.prefers_batch_blocks(images, target.lanes) and not by_image:
        return _batch_blocked(W, geometry, images, activation, target)
    if geometry.pointwise and geometry.groups == 1:
        return _pointwise(W, geometry, images, activation, target, peels)
    return _padded(W, geometry, images, activation, target)


class _Part(NamedTuple):
    """Some images of a batch: launches on them, and where their x and y begin, in bytes."""

    pack: Launch | None
    products: list[Launch]
    unpack: Launch | None
    x_offset: int
    y_offset: int


class _Prepared(NamedTuple):
    """A prepared convolution: its parts, W's values for each of their products, and bytes of the packed x and y of the
    largest part."""

    parts: list[_Part]
    values: list[PackedValues]
    x_bytes: int = 0
    y_bytes: int = 0

    def run(self, x: int, y: int, bias: int) -> None:
        """Compute y from x, both by address."""
        packed_x = buffers.take("x", self.x_bytes) if self.x_bytes else None
        packed_y = buffers.take("y", self.y_bytes) if self.y_bytes else None
        for pack, products, unpack, x_offset, y_offset in self.parts:
            own_x, own_y = x + x_offset, y + y_offset
            read = own_x if packed_x is None else address(packed_x)
            written = own_y if packed_y is None else address(packed_y)
            if pack is not None:
                pack.run(own_x, read)
            for product, values in zip(products, self.values, strict=True):
                product.run(read, written, values.current(), bias)
            if unpack is not None:
                unpack.run(written, own_y)


def _image_bytes(geometry: ConvGeometry, size: int) -> tuple[int, int]:
    """Bytes of an image of x and of y in the user's layout."""
    return geometry.channels * math.prod(geometry.spatial) * size, geometry.out_channels * geometry.positions * size


def _groups_at_once(samples: int, geometry: ConvGeometry, target: Target) -> int:
    """Groups of VL images of a batch that are packed, multiplied and unpacked together."""
    expect_packing(target, blocked=True)
    numbers = geometry.channels * math.prod(geometry.padded) + geometry.out_channels * geometry.positions
    return target.heuristics.chunk_groups(-(-samples // target.lanes), numbers * target.vector)


def _batch_blocked(W: CSR, geometry: ConvGeometry, images: int, activation: str | None, target: Target) -> _Prepared:
    groups = _groups_at_once(images, geometry, target)
    plan = W.pattern.kept(plan_batch_blocked, geometry, target, groups)
    return _blocked_parts(W, images, groups, [plan.spmm], plan.x, plan.y, activation, target, "conv")


def _blocked_parts(
    W: CSR, images: int, groups_at_once: int, plans: list[SpmmPlan], x: BlockedPlanes, y: BlockedPlanes,
    activation: str | None, target: Target, label: str,
) -> _Prepared:  # fmt: skip
    """Plans from batch-blocked x to y, which all write their part of y."""
    x_bytes, y_bytes = (planes.channels * planes.positions * target.size for planes in (x, y))
    parts = []
    for start, stop in spmm.chunks(images, groups_at_once * target.lanes):
        products = _products(plans, x, y, -(-(stop - start) // target.lanes), activation, target, label)
        pack, unpack = pack_blocked(x, stop - start, target), unpack_blocked(y, stop - start, target)
        parts.append(_Part(pack, products, unpack, start * x_bytes, start * y_bytes))
    groups = min(groups_at_once, -(-images // target.lanes))
    return _Prepared(parts, packed_for_each(W, plans), groups * x.group_stride, groups * y.group_stride)


def _products(
    plans: list[SpmmPlan], x: BlockedPlanes, y: BlockedPlanes, groups: int, activation: str | None, target: Target,
    label: str,
) -> list[Launch]:  # fmt: skip
    """Launches of plans from batch-blocked x to y."""
    return [
        spmm.prepare(
            plan, target, y_row_stride=y.channel_stride, batches=groups, x_batch_stride=x.group_stride,
            y_batch_stride=y.group_stride, activation=activation, label=label, layout="batch-blocked",
        )
        for plan in plans
    ]  # fmt: skip


def _pointwise(
    W: CSR, geometry: ConvGeometry, images: int, activation: str | None, target: Target, peels: Peels
) -> _Prepared:
    x_bytes, y_bytes = _image_bytes(geometry, target.size)
    row = geometry.positions * target.size
    plan = W.pattern.kept(plan_row_major, geometry.positions, row, target, peels, images)
    product = spmm.prepare(
        plan, target, y_row_stride=row, batches=images, x_batch_stride=x_bytes, y_batch_stride=y_bytes,
        activation=activation, label="conv", layout="NCHW",
    )  # fmt: skip
    return _Prepared([_Part(None, [product], None, 0, 0)], [packed_values(W, plan.operator)])


def _padded(W: CSR, geometry: ConvGeometry, images: int, activation: str | None, target: Target) -> _Prepared:
    image = geometry.channels * math.prod(geometry.padded) * target.size
    expect_packing(target, blocked=False)
    most = target.heuristics.chunk_groups(images, image)
    plan = W.pattern.kept(plan_padded, geometry, target, most)
    image_stride = geometry.channels * plan.x.channel_stride
    x_bytes, y_bytes = _image_bytes(geometry, target.size)
    x_plane, y_plane = (math.prod(spatial) * target.size for spatial in (geometry.spatial, geometry.out_spatial))
    parts = []
    for start, stop in spmm.chunks(images, most):
        count = stop - start
        pack = pack_padded(plan.x, geometry.channels, count, x_bytes, x_plane, target)
        product = spmm.prepare(
            plan.spmm, target, y_row_stride=y_plane, batches=count, x_batch_stride=image_stride,
            y_batch_stride=y_bytes, activation=activation, label="conv", layout="padded NCHW",
        )  # fmt: skip
        parts.append(_Part(pack, [product], None, start * x_bytes, start * y_bytes))
    values = [packed_values(W, plan.spmm.operator)]
    return _Prepared(parts, values, min(most, images) * image_stride + plan.x.slack)


# ------------------------------------------------------------------------------------------------- gradients


def backward(
    grad: Array, x: Array, W: CSR, geometry: ConvGeometry, need_input: bool, target: Target | None = None
) -> tuple[Array | None, Array]:
    """dX, when asked for, and the values' gradient, always batch-blocked."""
    target, images = target or target_for(W.dtype), len(x)
    plan, parts = W.pattern.kept(_backward, geometry, images, need_input, target)
    values = packed_for_each(W, plan.dx_phases) if need_input else []
    grad_x = buffers.array(x.shape, x.dtype) if need_input else None
    gradients = plan.dw.gradients(W.dtype)
    groups = parts[0].groups
    y_buffer = buffers.take("y", groups * plan.dy.group_stride)
    x_buffer = buffers.take("x", groups * max(plan.x.group_stride, plan.dx.group_stride))
    # In bands, workers have what they packed to themselves, and others read what is unpacked.
    dx_buffer = buffers.take("dx", groups * plan.dx.group_stride) if plan.x.bands else x_buffer
    packed_dy, packed_x, packed_dx = address(y_buffer), address(x_buffer), address(dx_buffer)
    for part in parts:
        part.pack_dy.run(address(grad) + part.y_offset, packed_dy)
        part.pack_x.run(address(x) + part.x_offset, packed_x)
        part.dw.run(packed_x, packed_dy, address(gradients), part is parts[0])
        if grad_x is not None:
            for phase, packed in zip(part.dx, values, strict=True):
                phase.run(packed_dy, packed_dx, packed.current())
            part.unpack_dx.run(packed_dx, address(grad_x) + part.x_offset)
    return grad_x, plan.dw.summed(gradients)


class _BackwardPart(NamedTuple):
    """Some images of a batch: launches on them, and where their x and y begin, in bytes."""

    groups: int
    pack_dy: Launch
    pack_x: Launch
    dw: sddmm.Sddmm
    dx: list[Launch]
    unpack_dx: Launch
    x_offset: int
    y_offset: int


def _backward(
    pattern: Pattern, geometry: ConvGeometry, images: int, need_input: bool, target: Target
) -> tuple[BackwardPlan, list[_BackwardPart]]:
    groups_at_once = _groups_at_once(images, geometry, target)
    plan = pattern.kept(plan_backward, geometry, target, groups_at_once)
    x_bytes, y_bytes = _image_bytes(geometry, target.size)
    parts = []
    for start, stop in spmm.chunks(images, groups_at_once * target.lanes):
        count, groups = stop - start, -(-(stop - start) // target.lanes)
        dw = sddmm.prepare(
            plan.dw, target, y_row_stride=plan.dy.channel_stride, batches=groups, x_batch_stride=plan.x.group_stride,
            y_batch_stride=plan.dy.group_stride,
        )  # fmt: skip
        parts.append(
            _BackwardPart(
                groups,
                pack_blocked(plan.dy, count, target),
                pack_blocked(plan.x, count, target),
                dw,
                _products(plan.dx_phases, plan.dy, plan.dx, groups, None, target, "conv dX") if need_input else [],
                unpack_blocked(plan.dx, count, target),
                start * x_bytes,
                start * y_bytes,
            )
        )
    return plan, parts


def transposed(
    x: Array, W: CSR, geometry: ConvGeometry, bias: Array | None, activation: str | None, y: Array,
    target: Target | None = None,
) -> None:  # fmt: skip
    """y = activation(dX + bias), where dX is the gradient at the input of the convolution `geometry` for a gradient x.

    bias : one number per channel of y
    """
    target, images = target or target_for(x.dtype), len(x)
    W.kept(_transposed, geometry, images, activation, target).run(address(x), address(y), optional_address(bias))


def _transposed(W: CSR, geometry: ConvGeometry, images: int, activation: str | None, target: Target) -> _Prepared:
    groups = _groups_at_once(images, geometry, target)
    plan = W.pattern.kept(plan_backward, geometry, target, groups)
    return _blocked_parts(
        W, images, groups, plan.dx_phases, plan.dy, plan.dx, activation, target, "conv transposed"
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- plans: batch-blocked


def absolute_columns(pattern: Pattern, geometry: ConvGeometry) -> NDArray[np.integer]:
    """Column of every nonzero as (channel, kernel index) over all input channels, whatever the groups."""
    if geometry.groups == 1:
        return pattern.indices
    group = pattern.rows() // max(1, geometry.out_channels // geometry.groups)
    columns = pattern.indices + group * pattern.shape[1]
    return columns.astype(np.int32) if geometry.groups * pattern.shape[1] < 2**31 else columns


@dataclass(frozen=True, eq=False)
class BatchBlockedConv:
    """Forward convolution on the batch-blocked layout: planes of x and y, and the SpMM between them."""

    x: BlockedPlanes
    y: BlockedPlanes
    spmm: SpmmPlan


def plan_batch_blocked(
    pattern: Pattern, geometry: ConvGeometry, target: Target, sample_groups: int
) -> BatchBlockedConv:
    """Forward plan for batches of `sample_groups` groups (which decide only how rows are split over workers)."""
    extent = geometry.dilation[0] * (geometry.kernel[0] - 1) + 1
    edges = _band_edges(geometry, extent, target, sample_groups)
    x = banded_planes(geometry.channels, geometry.spatial, geometry.padding, target, edges, geometry.stride[0], extent)
    y = blocked_planes(geometry.out_channels, geometry.out_spatial, geometry.unpadded, target)
    return BatchBlockedConv(x, y, plan_between_blocked(pattern, geometry, x, y, target, sample_groups))


def _band_edges(geometry: ConvGeometry, extent: int, target: Target, sample_groups: int) -> Ints:
    """Bands of rows of outputs; one, where rows are the last axis, along which tiles and runs go."""
    rows = geometry.out_spatial[0]
    if len(geometry.spatial) == 1:
        return 0, rows
    return target.heuristics.row_edges(rows, extent, sample_groups, target.threads)


def plan_between_blocked(
    pattern: Pattern, geometry: ConvGeometry, x: BlockedPlanes, y: BlockedPlanes, target: Target, sample_groups: int,
    tile_groups: int = 1,
) -> SpmmPlan:  # fmt: skip
    """Convolution between given planes; x has at least the convolution's padding.

    With tile_groups > 1, a tile runs over the positions of several groups, for images of few positions.
    """
    h, ends = target.heuristics, y.all_offsets()
    in_memory = np.argsort(ends, kind="stable")
    starts = _window_starts(geometry, x)
    rates = h.window_rates(geometry.out_spatial[min(reversed(range(len(y.strides))), key=y.strides.__getitem__)])
    width = h.tile_width(geometry.positions * tile_groups, rates, pattern.full and geometry.groups == 1)
    tiles = tiles_between(starts[in_memory], ends[in_memory], x, y, width, tile_groups, target)
    expect_kernel(target, width, tiles.contiguous(target.vector), pattern.full and geometry.groups == 1)
    groups = h.row_groups(
        geometry.out_channels, -(-tiles.count * sample_groups // tile_groups), target.threads, width * target.vector
    )
    apart = tile_groups > 1 and geometry.positions < width
    windows = set(geometry.kernel) != {1}
    per_block = h.block_channels(_window_bytes(geometry.kernel, width, target.vector, apart), windows)
    if not windows and x.channel_stride <= 2 * width * target.vector:
        per_block = h.adjacent_block(geometry.channels, per_block)
    operator = _blocked_operator(pattern, geometry, x, per_block, groups, target, width)
    return SpmmPlan(operator, tiles, nontemporal=WHOLE if h.leaves_cache(y.group_stride * sample_groups) else 0)


def _window_starts(geometry: ConvGeometry, x: BlockedPlanes) -> NDArray[np.int64]:
    """Offsets of the windows' corners."""
    before = sum(before * stride for (before, _), stride in zip(geometry.padding, x.strides, strict=True))
    return x.points(geometry.out_spatial, geometry.stride, -before)


def plan_linear_between(
    pattern: Pattern, x: BlockedPlanes, y: BlockedPlanes, target: Target, tile_groups: int
) -> SpmmPlan:
    """Linear layer that reads x's channels and positions as features, and writes y's channels."""
    h = target.heuristics
    width = h.tile_width(tile_groups, dense=pattern.full)
    here = np.zeros(1, np.int64)
    tiles = tiles_between(here, here, x, y, width, tile_groups, target)
    expect_kernel(target, width, tiles.contiguous(target.vector), pattern.full)
    rows, columns = pattern.shape
    positions = max(1, x.positions)
    density = positions * pattern.nnz / max(1, rows * columns)  # nonzeros per row and channel
    groups = h.row_groups(rows, tiles.count, target.threads, width * target.vector)
    per_block = h.even_block_rows(width * target.vector * positions, x.channels, density)
    blocks = channel_blocks(x.channels, per_block, x.channel_stride, x.all_offsets())
    return SpmmPlan(build_operator(pattern.indptr, pattern.indices, blocks, h, groups, width), tiles)


def tiles_between(
    starts: NDArray[np.int64], ends: NDArray[np.int64], x: BlockedPlanes, y: BlockedPlanes, width: int,
    tile_groups: int, target: Target,
) -> Tiles:  # fmt: skip
    """Tiles that read at `starts` of x and write at `ends` of y, position by position, in `tile_groups` groups."""
    group = np.arange(tile_groups, dtype=np.int64)
    x_offsets = np.add.outer(group * x.group_stride, starts).ravel()
    y_offsets = np.add.outer(group * y.group_stride, ends).ravel()
    return whole_vectors(x_offsets, y_offsets, width, target)


def _blocked_operator(
    pattern: Pattern, geometry: ConvGeometry, x: BlockedPlanes, per_block: int, groups: int, target: Target,
    width: int = 0,
) -> SparseOperator:  # fmt: skip
    """Operator on windows of x, kept with the pattern: plans of several sizes of batches have the same."""
    h, window = target.heuristics, grid(geometry.kernel, geometry.dilation, x.strides)

    def build() -> SparseOperator:
        blocks = channel_blocks(x.channels, per_block, x.channel_stride, window)
        return build_operator(pattern.indptr, absolute_columns(pattern, geometry), blocks, h, groups, width)

    sizes = x.channels, x.channel_stride, per_block, groups, geometry.groups, width
    return pattern.cached(("windows", window.tobytes(), *sizes, h), build)


def _window_bytes(kernel: Ints, width: int, vector: int, apart: bool = False) -> int:
    """Estimated bytes that one channel's window of a tile takes in L1."""
    return math.prod(kernel[:-1]) * (width * kernel[-1] if apart else width + kernel[-1] - 1) * vector


# ------------------------------------------------------------------------------------------------- plans: gradients


@dataclass(frozen=True, eq=False)
class BackwardPlan:
    """dX and dW of a convolution. `dx_phases`: one SpMM with the transposed operator per phase of the stride."""

    x: BlockedPlanes  # padded as in the forward pass, for dW
    dy: BlockedPlanes  # padded for dX
    dx: BlockedPlanes
    dw: SddmmPlan
    dx_phases: list[SpmmPlan]


def _transposed_structure(pattern: Pattern, geometry: ConvGeometry) -> Structure:
    """Nonzeros ordered by (input channel, output channel, kernel index): those arrays, and their index in the CSR."""
    columns = absolute_columns(pattern, geometry)
    taps = math.prod(geometry.kernel)
    channel, tap = columns // taps, columns % taps
    order = np.argsort(channel, kind="stable")  # which keeps the order of rows and taps, ascending already
    return channel[order], pattern.rows()[order], tap[order], order


def _phase_axis(n: int, k: int, s: int, d: int, before: int, phase: int) -> tuple[int, NDArray[Any], NDArray[Any]]:
    """One axis of one phase of dX: inputs phase, phase + s, ... : their number, the taps that reach them, and the
    output index that tap k adds to input index 0 of the phase."""
    taps = np.arange(k)
    reach = (phase + before - taps * d) % s == 0
    return max(0, -(-(n - phase) // s)), taps[reach], (phase + before - taps[reach] * d) // s


def plan_backward(pattern: Pattern, geometry: ConvGeometry, target: Target, sample_groups: int) -> BackwardPlan:
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
    reach = padding[0][0] + padding[0][1] + 1
    extent = geometry.dilation[0] * (geometry.kernel[0] - 1) + 1
    edges: Ints = (0, geometry.spatial[0])
    if geometry.stride[0] == 1 and geometry.spatial[0] == geometry.out_spatial[0]:  # the same rows in x and y
        edges = _band_edges(geometry, max(extent, reach), target, sample_groups)
    x = banded_planes(geometry.channels, geometry.spatial, geometry.padding, target, edges, 1, extent)
    dx = blocked_planes(geometry.channels, geometry.spatial, geometry.unpadded, target)
    dy = banded_planes(geometry.out_channels, geometry.out_spatial, tuple(padding), target, edges, 1, reach)
    dw = _weight_gradient_plan(pattern, geometry, target, sample_groups, x, dy)
    structure = _transposed_structure(pattern, geometry)
    plans = []
    for index in np.ndindex(*(len(axis) for axis in phases)):
        chosen = [axis[i] for axis, i in zip(phases, index, strict=True)]
        plans.append(_phase_plan(structure, geometry, target, sample_groups, index, chosen, dy, dx))
    return BackwardPlan(x, dy, dx, dw, plans)


def _weight_gradient_plan(
    pattern: Pattern, geometry: ConvGeometry, target: Target, sample_groups: int, x: BlockedPlanes, dy: BlockedPlanes
) -> SddmmPlan:
    """dW: positions are the output positions, x read at the windows' corners."""
    h = target.heuristics
    x_step, y_step = geometry.stride[-1] * x.strides[-1], dy.strides[-1]
    positions = 0
    if x_step == y_step == target.vector and geometry.out_spatial[-1] % RUN_VECTORS == 0:
        positions = h.sddmm_run_positions(geometry.channels * math.prod(geometry.padded) * target.vector)
    by_fours = positions > 0
    if by_fours:
        row, height, window = RUN_VECTORS, positions // RUN_VECTORS, (geometry.kernel[0], positions)
    else:
        positions = h.sddmm_window_positions()
        row = h.sddmm_row_part(geometry.out_spatial[-1], positions)
        height = min(geometry.positions // row, max(1, positions // row))
        window = geometry.kernel[0] + height - 1, row
    extent = window[0] * (window[1] + geometry.kernel[-1] - 1) * target.vector
    x_runs = np.ascontiguousarray(_window_starts(geometry, x)[::row])
    y_runs = np.ascontiguousarray(dy.all_offsets()[::row])
    parts = h.sddmm_parts(geometry.positions * sample_groups, len(x_runs) * sample_groups, pattern.nnz * target.size)
    groups = h.row_groups(geometry.out_channels, parts, target.threads, 0)
    sddmm.expect_kernel(by_fours, target)
    operator = _blocked_operator(pattern, geometry, x, h.sddmm_block_rows(extent), groups, target)
    order = gradient_order(operator, by_fours)
    return SddmmPlan(operator, geometry.positions, row, height, x_runs, x_step, y_runs, y_step, by_fours, order, parts)


def _phase_plan(
    structure: Structure, geometry: ConvGeometry, target: Target, sample_groups: int, phase: Ints,
    axes: list[tuple[int, NDArray[Any], NDArray[Any]]], dy: BlockedPlanes, dx: BlockedPlanes,
) -> SpmmPlan:  # fmt: skip
    """SpMM for dX at the inputs of one phase, with the taps of the transposed operator that reach them."""
    h, (channel, row, tap, order) = target.heuristics, structure
    reach = np.ones(1, bool)
    shift_bytes = np.zeros(1, np.int64)
    lowest = 0
    for (_, taps, shift), k, stride in zip(axes, geometry.kernel, dy.strides, strict=True):
        axis_reach, axis_shift = np.zeros(k, bool), np.zeros(k, np.int64)
        least = int(shift.min(initial=0)) if len(shift) else 0
        axis_reach[taps], axis_shift[taps] = True, (shift - least) * stride
        lowest += least * stride
        reach = np.logical_and.outer(reach, axis_reach).ravel()
        shift_bytes = np.add.outer(shift_bytes, axis_shift).ravel()
    kept = reach[tap]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(channel[kept], minlength=geometry.channels))]).astype(np.int64)
    counts = tuple(count for count, _, _ in axes)
    dense = len(kept) > 0 and bool(kept.all()) and len(kept) == geometry.channels * geometry.out_channels * len(reach)
    width = h.tile_width(max(1, math.prod(counts)), h.dense_rates if dense else h.window_rates(counts[-1]))
    steps = tuple(min(s, n) for s, n in zip(geometry.stride, geometry.spatial, strict=True))
    first = sum(a * stride for a, stride in zip(phase, dx.strides, strict=True))
    starts = dy.points(counts, (1,) * len(counts), lowest)
    ends = dx.points(counts, steps, first)
    tiles = whole_vectors(starts, ends, width, target)
    expect_kernel(target, width, tiles.contiguous(target.vector), dense)
    groups = h.row_groups(geometry.channels, tiles.count * sample_groups, target.threads, width * target.vector)
    per_block = h.block_channels(_window_bytes(geometry.kernel, width, target.vector))
    blocks = channel_blocks(geometry.out_channels, per_block, dy.channel_stride, shift_bytes)
    columns = row[kept] * len(shift_bytes) + tap[kept]
    number = np.int32 if geometry.out_channels * len(shift_bytes) < 2**31 else np.int64
    operator = build_operator(indptr, columns.astype(number), blocks, h, groups, width)
    # The permutation points through `order` into the CSR's data.
    permutation = order[kept][operator.permutation].astype(np.uint32)
    return SpmmPlan(replace(operator, permutation=permutation), tiles)


# ------------------------------------------------------------------------------------------------- plans: padded NCHW


@dataclass(frozen=True, eq=False)
class PaddedConv:
    """Forward convolution of single images: phase planes of x, and an SpMM that writes the user's layout."""

    x: PhasePlanes
    spmm: SpmmPlan


def plan_padded(
    pattern: Pattern, geometry: ConvGeometry, target: Target, images: int, y_offsets: NDArray[np.int64] | None = None
) -> PaddedConv:
    """Plan for a small batch: a vector is VL consecutive positions of a padded plane.

    y_offsets : bytes from an output channel to each of its positions; by default they are contiguous
    """
    size, axes = target.size, len(geometry.kernel)
    extents = [-(-n // s) for n, s in zip(geometry.padded, geometry.stride, strict=True)]
    if geometry.stride[-1] == 1:
        # The zeros after one row are those before the next.
        extents[-1] = max(geometry.spatial[-1] + max(geometry.padding[-1]), geometry.out_spatial[-1])
    taps = zip(geometry.kernel, geometry.stride, geometry.dilation, strict=True)
    phases = [sorted({k * d % s for k in range(n)}) for n, s, d in taps]  # rows that windows read
    strides, phase_strides = row_major_strides(tuple(extents)), row_major_strides(tuple(map(len, phases)))
    starts = grid(geometry.out_spatial, (1,) * axes, strides)
    # Windows of the last row reach past its end by the padding of a next row.
    plane = unaliased_stride(-(-(math.prod(extents) + max(geometry.padding[-1])) * size // 64) * 64, 64)
    channel_stride = plane * math.prod(map(len, phases))
    window = np.zeros(1, np.int64)
    for a in range(axes):
        tap = np.arange(geometry.kernel[a]) * geometry.dilation[a]
        index = np.searchsorted(phases[a], tap % geometry.stride[a])
        window = np.add.outer(
            window, index * phase_strides[a] * plane + tap // geometry.stride[a] * strides[a] * size
        ).ravel()
    row_offsets = _phase_row_offsets(geometry, phases, strides, phase_strides, plane, size)
    firsts = np.array([(r - geometry.padding[-1][0]) % geometry.stride[-1] for r in phases[-1]], np.int64)
    if y_offsets is None:
        y_offsets = np.arange(geometry.positions, dtype=np.int64) * size
    plan = _plan_planes(
        pattern, geometry, target, images, starts, y_offsets, geometry.positions * size, window, channel_stride,
        WIDEST_TILE * target.vector,
    )  # fmt: skip
    planes = PhasePlanes(
        math.prod(geometry.spatial[:-1]), geometry.spatial[-1], geometry.stride[-1], row_offsets, firsts,
        channel_stride, plan.tiles.width * target.vector,
    )  # fmt: skip
    return PaddedConv(planes, plan)


def _phase_row_offsets(
    geometry: ConvGeometry, phases: list[list[int]], strides: Ints, phase_strides: Ints, plane: int, size: int
) -> NDArray[np.int64]:
    """Byte offset in a channel of each phase of every image row; -1 for rows that no window reads."""
    offset = np.zeros(1, np.int64)
    seen = np.ones(1, bool)
    for a, n in enumerate(geometry.spatial):
        s, before = geometry.stride[a], geometry.padding[a][0]
        last = a == len(geometry.spatial) - 1
        index = np.array([(r - before) % s for r in phases[a]]) if last else np.arange(n)
        at = index + before
        phase = np.searchsorted(phases[a], at % s).clip(max=len(phases[a]) - 1)
        known = np.isin(at % s, phases[a])
        offset = np.add.outer(offset, phase * phase_strides[a] * plane + at // s * strides[a] * size).ravel()
        seen = np.logical_and.outer(seen, known).ravel()
    return np.where(seen, offset, -1).astype(np.int64)


def plan_between_padded(
    pattern: Pattern, geometry: ConvGeometry, x: PaddedPlanes, y: PaddedPlanes, target: Target, images: int
) -> SpmmPlan:
    """Convolution of stride 1 from padded planes to padded planes; x has at least the convolution's padding."""
    shift = sum(
        (have[0] - want[0]) * stride for have, want, stride in zip(x.padding, geometry.padding, x.strides, strict=True)
    )
    window = grid(geometry.kernel, geometry.dilation, x.strides)
    starts = (grid(geometry.out_spatial, geometry.stride, x.strides) + shift) // target.size
    return _plan_planes(
        pattern, geometry, target, images, starts, y.all_offsets(), y.channel_stride, window, x.channel_stride, x.slack
    )


def _plan_planes(
    pattern: Pattern, geometry: ConvGeometry, target: Target, images: int, starts: NDArray[np.int64],
    y_offsets: NDArray[np.int64], y_stride: int, window: NDArray[np.int64], x_stride: int, slack: int,
) -> SpmmPlan:  # fmt: skip
    """SpMM from planes, which have windows with their corners at numbers `starts`, to positions at `y_offsets`.

    y_stride, x_stride : bytes between planes
    slack : bytes behind the last plane that may be read
    """
    h, dense = target.heuristics, pattern.full and geometry.groups == 1
    width = h.tile_width(len(vectors_over(starts, target.lanes)), h.window_tile_rate, dense)
    step = target.vector if slack >= width * target.vector else 0
    tiles = tiles_over(starts, y_offsets, width, target, step)
    expect_kernel(target, width, tiles.contiguous(target.vector), dense)
    by_rows = h.owns_channels(y_stride, images, target.threads)
    groups = h.row_groups(geometry.out_channels, tiles.count * images, target.threads, width * target.vector, by_rows)
    touched = math.prod(geometry.kernel[:-1]) * (width * target.vector + geometry.kernel[-1] * target.size)
    blocks = channel_blocks(geometry.channels, h.block_channels(touched), x_stride, window)
    operator = build_operator(pattern.indptr, absolute_columns(pattern, geometry), blocks, h, groups, width)
    return SpmmPlan(operator, tiles, by_rows=by_rows)


def plan_identity(positions: int, target: Target) -> SpmmPlan:
    """Identity on one channel of `positions` contiguous numbers, to add a residual or apply an activation."""
    h = target.heuristics
    start = np.arange(positions, dtype=np.int64)
    width = h.tile_width(-(-positions // target.lanes), h.window_tile_rate)
    tiles = tiles_over(start, start * target.size, width, target)
    blocks = channel_blocks(1, 1, 0)
    operator = build_operator(np.arange(2, dtype=np.int64), np.zeros(1, np.int32), blocks, h)
    return SpmmPlan(operator, tiles)
