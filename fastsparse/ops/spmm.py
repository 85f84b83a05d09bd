"""SpMM: sparse W times dense X, from matrices in the user's layout or panels of samples.

A plan cuts W into column blocks and row groups, and X into tiles of T vectors (`Tiles`); its operator holds the
structure of W packed accordingly. One kernel (`fastsparse_kernels.spmm`) runs all plans, also those of convolutions
(see `conv`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR, Pattern
from fastsparse.ops import layouts, stream
from fastsparse.ops.activations import epilogue
from fastsparse.ops.sparse_operator import (
    PackedValues,
    SparseOperator,
    linear_operator,
    packed_values,
    transposed_values,
)
from fastsparse.ops.stream import CACHE_LINE
from fastsparse.ops.target import Target, narrowed, target_for
from fastsparse.ops.tiles import Tiles, overlapping_tiles, packed_tiles, tiles_from_panels, whole_vectors
from fastsparse.runtime import buffers
from fastsparse.runtime.buffers import address, optional_address
from fastsparse.runtime.launch import Arguments, Launch, expect_launcher
from fastsparse.runtime.memo import bounded_cache
from fastsparse_kernels import sparse_operator, spmm
from fastsparse_kernels.sparse_operator import QUARTERS, ROW_UNROLL, RUN_VECTORS, WHOLE

Array = NDArray[Any]


# ------------------------------------------------------------------------------------------------- entry


def spmm_row_major(
    W: CSR, X: Array, Y: Array, bias: Array | None, activation: str | None, target: Target | None = None
) -> None:
    """Y (M, N) = activation(W @ X + bias), both row-major, Y contiguous."""
    if X.strides[1] != X.itemsize or X.strides[0] < 0:
        X = np.ascontiguousarray(X)
    target = narrowed(target or target_for(W.dtype), X.shape[1])
    x, y, b = address(X), address(Y), optional_address(bias)
    if x % CACHE_LINE and X.shape[1] * target.size == CACHE_LINE and stream.copies(W.pattern, X, target):
        given, X = X, buffers.take_numbers("x", X.size, X.dtype).reshape(X.shape)
        X[:] = given
        x = address(X)
    row_stride = X.strides[0]
    key = X.shape[1], row_stride, activation, target, *alignments(x, row_stride, y, Y, target)
    W.kept(_row_major, *key).run(x, y, b)


def spmm_column_major(
    W: CSR, X: Array, Y: Array, bias: Array | None, activation: str | None, target: Target | None = None
) -> None:
    """Y (M, N) = activation(W @ X + bias) for X (K, N) with contiguous columns and contiguous row-major Y."""
    stride, (features, columns) = X.strides[1], X.shape
    target = narrowed(target or target_for(W.dtype), columns)
    for start, stop in sample_chunks(columns, layouts.panel_stride(features, 1, target), target):
        y = address(Y) + start * target.size
        y_alignment = stream.row_alignment(y, Y.strides[0], Y.nbytes, target)
        key = stop - start, stride, columns, activation, target, y_alignment
        packing, launch = W.kept(_column_major, *key)
        _panels, packed_x = packing.run(X, start * stride, "x", stop - start)
        launch.run(packed_x, y, optional_address(bias))


class Packing(NamedTuple):
    """Samples of x (samples, features), from their rows into panels of as many groups."""

    launch: Launch
    panel_bytes: int

    def run(self, x: Array, offset: int, purpose: str, samples: int) -> tuple[Array, int]:
        """Panels of the samples `offset` bytes into x, and their address, in a buffer of this thread."""
        panels = buffers.take(purpose, self.panel_bytes)
        packed = address(panels)
        self.launch.run(address(x) + offset, packed, samples)
        return panels, packed


def _row_major(
    W: CSR, columns: int, row_stride: int, activation: str | None, target: Target, peels: Peels, y_alignment: int
) -> Launch:
    y_row_stride = columns * target.size
    if stream.pays(W.pattern, columns, target, row_stride):
        return _streamed(W, columns, row_stride, y_row_stride, activation, target, y_alignment)
    plan = W.pattern.kept(plan_row_major, columns, row_stride, target, peels)
    launch = prepare(plan, target, y_row_stride=y_row_stride, activation=activation)
    return packed_values(W, plan.operator).fixed(launch)


def _streamed(
    W: CSR, columns: int, x_row_stride: int, y_row_stride: int, activation: str | None, target: Target, y_alignment: int
) -> Launch:
    plan = W.pattern.kept(stream.plan_rows, columns, target, y_alignment)
    launch = stream.prepare(plan, target, x_row_stride=x_row_stride, y_row_stride=y_row_stride, activation=activation)
    return plan.values(W).fixed(launch)


def _column_major(
    W: CSR, samples: int, stride: int, columns: int, activation: str | None, target: Target, y_alignment: int
) -> tuple[Packing, Launch]:
    y_row_stride, groups = columns * target.size, -(-samples // target.lanes)
    if stream.pays(W.pattern, samples, target):
        width = groups  # one panel: its rows are those of row-major X
        product = _streamed(W, samples, width * target.vector, y_row_stride, activation, target, y_alignment)
        return panel_packing(groups, W.shape[1], stride, width, target), product
    width = panel_width(W.pattern, samples, target)
    plan = W.pattern.kept(plan_panels, samples, width, target, True)
    launch = prepare(plan, target, y_row_stride=y_row_stride, activation=activation)
    return panel_packing(groups, W.shape[1], stride, width, target), plan.values(W).fixed(launch)


@bounded_cache
def panel_packing(groups: int, features: int, row_stride: int, width: int, target: Target) -> Packing:
    """Packing of rows of samples, `row_stride` bytes apart and so many groups in all, into panels of `width` groups."""
    panels, samples = layouts.feature_panels(features, width, target), groups * target.lanes
    launch = layouts.pack_blocked(panels, samples, target, row_stride)
    return Packing(launch, layouts.panel_bytes(samples, panels, target))


def chunks(samples: int, most: int) -> list[tuple[int, int]]:
    """Parts of a batch: of `most` samples each, and a remainder."""
    return [(start, min(samples, start + most)) for start in range(0, samples, most)]


def sample_chunks(samples: int, group_bytes: int, target: Target) -> list[tuple[int, int]]:
    """Parts of a linear layer's batch, in whole vectors of samples, whose workspace stays in a cache."""
    h, groups = target.heuristics, -(-samples // target.lanes)
    return chunks(samples, target.lanes * h.chunk_groups(groups, group_bytes, h.linear_chunk_groups))


# ------------------------------------------------------------------------------------------------- plans


@dataclass(frozen=True, eq=False)
class SpmmPlan:
    """An operator and the tiles it runs over.

    x_row_stride : bytes between rows of X that are packed
    nontemporal : WHOLE or QUARTERS: whole tiles get non-temporal stores, their vectors are aligned to a vector's bytes
        or to 16; 0: ordinary stores
    by_rows : whether workers own rows of Y, and not positions: see `Heuristics.owns_channels`
    """

    operator: SparseOperator
    tiles: Tiles
    x_row_stride: int = 0
    nontemporal: int = 0
    by_rows: bool = False

    def values(self, W: CSR) -> PackedValues:
        """W's values in the order the kernel reads them."""
        return packed_values(W, self.operator)

    def transposed_values(self, W: CSR) -> PackedValues:
        """W.T's values in that order."""
        return transposed_values(W, self.operator)


class Peels(NamedTuple):
    """Alignment peels of row-major X and Y: columns in front of the first aligned vector.

    None where a row has no such vector.
    """

    x: int | None = None
    y: int | None = None


UNALIGNED = Peels()


def alignment_peel(start: int, row_bytes: int, target: Target) -> int | None:
    """Alignment peel of an array at address `start` whose rows are `row_bytes` apart."""
    return None if row_bytes % target.vector or start % target.size else -start % target.vector // target.size


def alignments(x: int, x_row_stride: int, y: int, Y: Array, target: Target) -> tuple[Peels, int]:
    """Alignment peels and `stream.row_alignment` of X and contiguous Y (..., M, N) at addresses x and y, on which plans
    depend."""
    h, y_row_stride = target.heuristics, Y.strides[-2]
    if Y.shape[-1] < h.many_vectors * target.lanes and not h.leaves_cache(Y.nbytes):
        return UNALIGNED, 0
    peels = Peels(alignment_peel(x, x_row_stride, target), alignment_peel(y, y_row_stride, target))
    return peels, stream.row_alignment(y, y_row_stride, Y.nbytes, target)


def plan_row_major(
    pattern: Pattern, columns: int, x_row_stride: int, target: Target, peels: Peels = UNALIGNED, batches: int = 1
) -> SpmmPlan:
    """Plan of row-major X (K, columns), rows `x_row_stride` bytes apart, -> row-major Y (M, columns), `batches` times.

    X is packed into panels block by block, or read in place where each of its rows has few nonzeros. Where there are
    many tiles, or stores are non-temporal, tiles are aligned to vectors of Y, or of X that is read in place.
    """
    h, (rows, inputs) = target.heuristics, pattern.shape
    row_bytes = columns * target.size
    many = columns >= h.many_vectors * target.lanes
    nontemporal = WHOLE if peels.y is not None and h.leaves_cache(batches * rows * row_bytes) else 0
    if nontemporal and peels.y and not many:  # a peel would add a tile to a few
        quarters = h.quarter_stores and peels.y * target.size % 16 == 0
        if quarters or columns < h.peel_vectors * target.lanes:
            nontemporal, peels = QUARTERS if quarters else 0, peels._replace(y=None)
    aligned = many and peels.x is not None and (peels.x == peels.y or not nontemporal)
    near = not h.leaves_cache(batches * inputs * row_bytes)
    in_place = h.reads_in_place(pattern.nnz, inputs, x_row_stride, aligned and near)
    if in_place and columns >= target.lanes and x_row_stride >= row_bytes:
        peel = peels.y if nontemporal == WHOLE else peels.x if aligned else 0
        return _plan_in_place(pattern, columns, x_row_stride, target, peel or 0, nontemporal)
    density = pattern.nnz / max(1, rows * inputs)
    y_stays_near = nontemporal != 0 or rows * row_bytes <= h.near_bytes
    rates = h.row_major_rates(density, inputs, y_stays_near)
    width = h.tile_width(-(-columns // target.lanes), rates, pattern.full)
    peel = (peels.y if many or nontemporal else None) or 0
    tiles = packed_tiles(columns, width, target, peel)
    expect_kernel(target, width, tiles.contiguous(target.vector), pattern.full)
    panel_row = width * target.vector
    groups = h.row_groups(rows, tiles.count, target.threads, panel_row)
    block_rows = h.even_block_rows(panel_row, inputs, density)
    operator = linear_operator(pattern, panel_row, block_rows, groups, h, width)
    return SpmmPlan(operator, tiles, x_row_stride, nontemporal)


def _plan_in_place(
    pattern: Pattern, columns: int, x_row_stride: int, target: Target, peel: int, nontemporal: int
) -> SpmmPlan:
    """Plan that reads X in place. Offsets count rows of X, so every stride has an operator of its own."""
    h, whole = target.heuristics, columns // target.lanes
    # No dense rows here: four full rows would be four nonzeros per row of X, which is packed.
    width = min(h.tile_width(-(-columns // target.lanes), h.in_place_tile_rate[:whole]), whole)
    tiles = overlapping_tiles(columns, width, target, peel)
    expect_kernel(target, width, tiles.contiguous(target.vector), pattern.full)
    groups = h.row_groups(pattern.shape[0], tiles.count, target.threads, width * target.vector)
    operator = linear_operator(pattern, x_row_stride, pattern.shape[1], groups, h, width)
    return SpmmPlan(operator, tiles, nontemporal=nontemporal)


def panel_width(pattern: Pattern, samples: int, target: Target, backward: bool = False) -> int:
    """Groups of VL samples per panel: the tile width; with `backward`, runs of SDDMM, or all if fewer."""
    groups = -(-samples // target.lanes)
    if backward:
        return RUN_VECTORS if groups >= RUN_VECTORS - 1 else groups
    return target.heuristics.tile_width(groups, dense=pattern.full)


def plan_panels(pattern: Pattern, samples: int, width: int, target: Target, y_row_major: bool = False) -> SpmmPlan:
    """Plan of x in panels (panels, K, width, VL) of samples -> y in panels (panels, M, width, VL), or row-major
    (M, samples)."""
    h, (rows, columns) = target.heuristics, pattern.shape
    sample_groups = -(-samples // target.lanes)
    panel, vector = np.arange(-(-sample_groups // width)), np.arange(width) * target.vector
    x_offsets = np.add.outer(panel * layouts.panel_stride(columns, width, target), vector).ravel()
    if y_row_major:
        tiles = tiles_from_panels(samples, width, target, x_offsets[:sample_groups])
    else:
        y_offsets = np.add.outer(panel * layouts.panel_stride(rows, width, target), vector).ravel()
        tiles = whole_vectors(x_offsets, y_offsets, width, target, target.vector)
    expect_kernel(target, width, tiles.contiguous(target.vector), pattern.full)
    row_bytes = width * target.vector
    groups = h.row_groups(rows, tiles.count, target.threads, row_bytes)
    block_rows = h.even_block_rows(row_bytes, columns, pattern.nnz / max(1, rows * columns))
    operator = linear_operator(pattern, row_bytes, block_rows, groups, h, width)
    nontemporal = WHOLE if not y_row_major and h.leaves_cache(rows * samples * target.size) else 0
    return SpmmPlan(operator, tiles, nontemporal=nontemporal)


# ------------------------------------------------------------------------------------------------- launch


@functools.lru_cache(256)  # no Python call when it is known
def expect_kernel(target: Target, width: int, contiguous: bool, full: bool) -> None:
    """Have the kernel of a plan, see `prepare`, compiled while its operator, which may be `full`, is built."""
    h, row_unroll = target.heuristics, 0
    if full and width <= len(h.dense_rates):
        row_unroll = spmm.DENSE
    elif not full and h.interleaves_rows(width):
        row_unroll = spmm.INTERLEAVED
    spmm.spmm_kernel.expect(target.bits, target.lanes, width, int(contiguous), row_unroll)
    sparse_operator.gather.expect(target.bits)
    expect_launcher(target.threads > 1)


def prepare(
    plan: SpmmPlan, target: Target, *, y_row_stride: int, batches: int = 1, x_batch_stride: int = 0,
    y_batch_stride: int = 0, residual: bool = False, activation: str | None = None, label: str = "spmm",
    layout: str = "row-major",
) -> Launch:  # fmt: skip
    """SpMM over the plan's tiles, in each of `batches` batches; strides in bytes.

    Operands x, y, values, bias, residual: values are packed by the plan's operator; bias is 0 for none.

    residual : whether the launch adds an array in y's layout before the activation; it may be y itself
    """
    h, operator, tiles = target.heuristics, plan.operator, plan.tiles
    width = tiles.width * target.vector
    rows = int(operator.group_starts[-1])
    partial = operator.widest_group * width if operator.blocks > 1 else 0
    packed, contiguous = tiles.columns is not None, tiles.contiguous(target.vector)
    assert contiguous or not packed
    panel = int(np.diff(operator.columns.starts).max(initial=0)) * width if packed else 0
    row_unroll = 0
    if operator.dense and tiles.width <= len(h.dense_rates):
        row_unroll = spmm.DENSE
    elif operator.interleaved:
        row_unroll = spmm.INTERLEAVED
    finished = width * (2 + ROW_UNROLL if row_unroll else 2)
    scratch = -(-(partial + finished + panel) // 64) * 64
    arguments = Arguments(
        spmm.ARGUMENTS,
        operator,
        tiles,
        by_rows=plan.by_rows,
        block_bases=operator.columns.bases,
        block_rows=operator.columns.starts,
        tiles=tiles.count,
        x_positions=tiles.x_offsets,
        x_row_stride=plan.x_row_stride,
        x_batch_stride=x_batch_stride,
        packed=packed,
        tile_columns=tiles.columns,
        y_positions=tiles.y_offsets,
        y_batch_stride=y_batch_stride,
        y_row_stride=y_row_stride,
        nontemporal=plan.nontemporal,
        y_distance=0 if plan.nontemporal else h.y_prefetch_distance(rows * tiles.count * width * batches),
        scratch_tile=partial,
        scratch_panel=partial + finished,
        **epilogue(activation, target),
    )
    kernel = spmm.spmm_kernel(target.bits, target.lanes, tiles.width, int(contiguous), row_unroll)
    flops = 2.0 * operator.nnz * tiles.count * tiles.width * target.lanes * batches
    return Launch(
        kernel, arguments, ("x", "y", "values", "bias", "residual"), target.loop,
        tasks=tiles.count * batches * operator.groups,
        flops=flops, scratch=scratch, plan=plan,
        label=(
            label, f"{rows}x{len(operator.columns.block)} by {tiles.count * tiles.width * target.lanes * batches}",
            f"nnz {operator.nnz}", f"{layout} packed" if packed else layout,
            f"tile {tiles.width} blocks {operator.blocks} groups {operator.groups} tiles {tiles.count}", activation,
        ),
    )  # fmt: skip
