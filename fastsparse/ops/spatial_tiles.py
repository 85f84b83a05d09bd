"""Spatial tiles: one image cut into VL tiles of equal shape, one per lane, so that one image fills aligned vectors.

A tile has a halo with the edges of its neighbours, as deep as the windows of its readers reach. The VL tiles of an
image are then computed as VL samples are in the batch-blocked layout: with aligned loads, and no vectors stored in
pieces. The costs are the halos, exchanged after every layer whose readers have windows (as in distributed stencil
codes), and tiles that extend past the end of images whose size the grid does not divide.

Where workers share an image it is cut into a multiple of VL tiles: a group of VL for each worker, apart in memory as
groups of samples are. With one group, a worker's positions lie between those of others in every channel, and cores that
share no cache fetch each other's lines ahead in vain.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastsparse.ops.geometry import Ints, Padding
from fastsparse.ops.layouts import BlockedPlanes, blocked_planes, grid, row_major_strides
from fastsparse.ops.pooling import Table
from fastsparse.ops.target import Target
from fastsparse.runtime.launch import Arguments, Launch
from fastsparse_kernels import layouts as kernels

SPATIAL_TILES_LIMIT = 2**31  # bytes of a channel that gathers can address


@dataclass(frozen=True)
class Partition:
    """Tiles of `size`, in row-major order on a grid of `counts`; the last ones may extend past the image's end.

    groups : of VL tiles each
    """

    counts: Ints
    size: Ints
    groups: int = 1

    @property
    def lanes(self) -> int:
        """VL, the tiles of a group."""
        return math.prod(self.counts) // self.groups

    @property
    def order(self) -> Ints:
        """The axes as tiles lie in memory: the longest last, whose positions are side by side."""
        return tuple(sorted(range(len(self.size)), key=self.size.__getitem__))

    def hangs_over(self, spatial: Ints) -> bool:
        return any(c * n != whole for c, n, whole in zip(self.counts, self.size, spatial, strict=True))


@dataclass(frozen=True)
class Reading:
    """Input of a layer: tiles of this partition with a halo of `padding`.

    outside : value that its windows find outside the image, in the halo and past the image's end; None when no window
        of an output inside the image reads there, so that the memory may stay undefined
    """

    partition: Partition
    padding: Padding
    outside: float | None

    @property
    def padded(self) -> Ints:
        """Size of a tile with its halo."""
        return tuple(n + before + after for n, (before, after) in zip(self.partition.size, self.padding, strict=True))

    def serves(self, wanted: Reading) -> bool:
        """Whether tiles in this layout hold everything that `wanted` reads."""
        if self.partition != wanted.partition:
            return False
        enough = all(h[0] >= w[0] and h[1] >= w[1] for h, w in zip(self.padding, wanted.padding, strict=True))
        return enough and wanted.outside in (None, self.outside)

    def exchanged(self, spatial: Ints) -> bool:
        """Whether halos must be filled after all tiles of an image have been written."""
        return any(map(any, self.padding)) or (self.outside is not None and self.partition.hangs_over(spatial))


@functools.lru_cache(maxsize=256)
def partition(spatial: Ints, lanes: int, groups: int = 1) -> Partition:
    """The partition with the fewest positions; among equals that whose groups read the fewest vectors of one another,
    then that with the shortest halos and the longest rows."""

    def cost(counts: Ints) -> tuple[int, int, int, int]:
        size = tuple(-(-n // c) for n, c in zip(spatial, counts, strict=True))
        positions = math.prod(size)
        crossing = 0 if groups == 1 else positions // size[0] if counts[0] % groups == 0 else positions
        return positions, crossing, sum(positions // n for n in size), -size[-1]

    counts = min(_grids(len(spatial), lanes * groups), key=cost)
    return Partition(counts, tuple(-(-n // c) for n, c in zip(spatial, counts, strict=True)), groups)


def stacked_partition(spatial: Ints, lanes: int, images: int) -> Partition:
    """The partition of a stack (images, *spatial) into single images, and of each into lanes / images tiles."""
    one = partition(spatial, lanes // images)
    return Partition((images, *one.counts), (1, *one.size))


@functools.lru_cache(maxsize=256)
def shared_partition(spatial: Ints, target: Target) -> Partition:
    """The partition of an image that workers share: a group of tiles for each, or for several, where few positions more
    are computed and every tile has enough of them."""
    h, alone = target.heuristics, partition(spatial, target.lanes)
    for groups in range(target.threads, 1, -1):
        found = partition(spatial, target.lanes, groups)
        positions = math.prod(found.size)
        if target.threads % groups == 0 and h.groups_tiles(positions, groups, math.prod(alone.size)):
            return found
    return alone


def _grids(axes: int, lanes: int) -> Iterator[Ints]:
    if axes == 1:
        yield (lanes,)
        return
    for count in range(1, lanes + 1):
        if lanes % count == 0:
            for rest in _grids(axes - 1, lanes // count):
                yield (count, *rest)


def exact_padding(y: Partition, kernel: Ints, stride: Ints, dilation: Ints, before: Ints) -> Padding:
    """Padding with which one tile gives exactly its outputs; after strided tiles it may be negative."""
    return tuple(
        (b, (n - 1) * s + d * (k - 1) + 1 - b - n * s)
        for n, s, d, k, b in zip(y.size, stride, dilation, kernel, before, strict=True)
    )


def reading(
    y: Partition, kernel: Ints, stride: Ints, dilation: Ints, before: Ints, spatial: Ints, outputs: Ints,
    outside: float = 0.0,
) -> Reading:  # fmt: skip
    """Input that windows need to write all of y's tiles, each tile on its own.

    spatial, outputs : sizes of the image that is read, and of that which is written
    outside : value around the image
    """
    size = tuple(n * s for n, s in zip(y.size, stride, strict=True))
    exact = exact_padding(y, kernel, stride, dilation, before)
    axes = zip(spatial, outputs, kernel, stride, dilation, before, strict=True)
    looks_out = any(b > 0 or (o - 1) * s + d * (k - 1) - b >= n for n, o, k, s, d, b in axes)
    padding = tuple((b, max(0, after)) for b, after in exact)
    return Reading(Partition(y.counts, size, y.groups), padding, outside if looks_out else None)


def touched(y: Partition, r: Reading, kernel: Ints, stride: Ints, dilation: Ints) -> NDArray[np.bool_]:
    """Positions of a tile and its halo that any window reads, bool [padded positions]."""
    total = np.ones((), bool)
    axes = zip(y.size, r.partition.size, r.padding, kernel, stride, dilation, strict=True)
    for outputs, inputs, (before, after), k, s, d in axes:
        axis = np.zeros(inputs + before + after, bool)
        axis[np.add.outer(np.arange(outputs) * s, np.arange(k) * d)] = True
        total = np.logical_and.outer(total, axis)
    return total.ravel()


def windows_of(table: Table, inputs: int) -> tuple[int, int, int] | None:
    """Kernel size, stride and leading padding of pooling windows; None where the table is not regular."""
    if not len(table):
        return None
    first, end = table[:, 0], table[:, 1]
    kernel = int((end - first).max())
    corner = np.where((first == 0) & (end - first < kernel), end - kernel, first)
    stride = int(corner[1] - corner[0]) if len(table) > 1 else kernel
    before = -int(corner[0])
    corner = np.arange(len(table)) * stride - before
    same = (np.clip(corner, 0, inputs) == first) & (np.clip(corner + kernel, 0, inputs) == end)
    return (kernel, stride, before) if kernel > 0 and stride > 0 and before >= 0 and same.all() else None


# ------------------------------------------------------------------------------------------------- gathers


@dataclass(frozen=True, eq=False)
class Gather:
    """Vectors to write, and the source offset of every lane; see the arguments in `fastsparse_kernels.layouts`.

    near : the position of its group's tiles that each vector has, or is nearest to in the halo, numbered through all
        groups, ascending; there are `positions`
    """

    source_offsets: NDArray[np.int32]  # [vectors, VL]
    lines: NDArray[np.int32]
    line_starts: NDArray[np.int32]  # [vectors + 1]
    target_offsets: NDArray[np.uint32]  # [vectors]
    fill: NDArray[np.floating]
    last_lanes: int
    near: NDArray[np.int64]
    positions: int

    def chunk_starts(self, parts: int) -> NDArray[np.int64]:
        """First vector of every chunk, for parts of a tile with equally many positions."""
        bounds = -(-np.arange(parts + 1) * self.positions // parts)
        return np.searchsorted(self.near, bounds).astype(np.int64)


def tile_offsets(spatial: Ints, p: Partition, planes: BlockedPlanes, size: int) -> NDArray[np.int64]:
    """Offset from the first group's channel of every position of the image, int64 [positions], bytes."""
    offset, number = np.zeros((), np.int64), np.zeros((), np.int64)
    axes = zip(spatial, p.size, planes.strides, row_major_strides(p.counts), strict=True)
    for n, tile, stride, number_stride in axes:
        index = np.arange(n, dtype=np.int64)
        offset = np.add.outer(offset, index % tile * stride)
        number = np.add.outer(number, index // tile * number_stride)
    group, lane = np.divmod(number.ravel(), p.lanes)
    return offset.ravel() + planes.corner + group * planes.group_stride + lane * size


def _image_positions(spatial: Ints, r: Reading) -> NDArray[np.int64]:
    """Position in the image of every lane [groups * positions of a tile and its halo, VL], -1 outside the image."""
    index, inside = np.zeros((), np.int64), np.ones((), bool)
    axes = zip(spatial, r.partition.counts, r.partition.size, r.padding, row_major_strides(spatial), strict=True)
    for n, count, tile, (before, after), stride in axes:
        at = np.add.outer(np.arange(-before, tile + after, dtype=np.int64), np.arange(count) * tile)
        index = np.add.outer(index, at * stride)
        inside = np.logical_and.outer(inside, (at >= 0) & (at < n))
    dims = 2 * len(spatial)
    order = (*range(0, dims, 2), *range(1, dims, 2))
    found = np.where(inside, index, -1).transpose(order).reshape(-1, r.partition.groups, r.partition.lanes)
    return found.swapaxes(0, 1).reshape(-1, r.partition.lanes)


def tile_planes(channels: int, r: Reading, target: Target) -> BlockedPlanes:
    """Planes of tiles with their halos, of one group; by rows where tiles of a product stay within one row.

    By rows gathers address all channels, and not one alone.
    """
    size, order = r.partition.size, r.partition.order
    reach = 2 * channels * math.prod(r.padded) * r.partition.groups * target.vector
    within = target.heuristics.tiles_within_rows(math.prod(size), size[order[-1]])
    by_rows = len(size) > 1 and within and reach < SPATIAL_TILES_LIMIT
    return blocked_planes(channels, size, r.padding, target, order, by_rows=by_rows)


def gather_tiles(
    source: NDArray[np.int64], spatial: Ints, r: Reading, planes: BlockedPlanes, target: Target,
    only: NDArray[np.bool_] | None = None,
) -> Gather:  # fmt: skip
    """Fill tiles and their halos from an image with positions at offsets `source`; `only` those positions of a tile."""
    at = _image_positions(spatial, r)
    vectors = np.arange(len(at)) if only is None else np.flatnonzero(np.tile(only, r.partition.groups))
    return _gather_tiles(np.where(at < 0, -1, source[at]), vectors, source, r, planes, target)


def exchange_halo(
    source: NDArray[np.int64], spatial: Ints, r: Reading, planes: BlockedPlanes, target: Target
) -> Gather:
    """Fill halos, and positions past the image's end, from the tiles themselves, at offsets `source`."""
    at, strides = _image_positions(spatial, r), row_major_strides(r.padded)
    inner = grid(r.partition.size, (1,) * len(strides), strides)
    corner = sum(before * step for (before, _), step in zip(r.padding, strides, strict=True))
    own = np.zeros(math.prod(r.padded), bool)
    own[inner + corner] = True
    vectors = np.flatnonzero(~np.tile(own, r.partition.groups) | (at < 0).any(axis=1))
    return _gather_tiles(np.where(at < 0, -1, source[at]), vectors, source, r, planes, target)


def edge_bytes(channels: int, planes: BlockedPlanes) -> int:
    """Bytes for copies of a group's edges, whole pages: see `with_copies`."""
    return -(-channels * planes.channel_stride // 4096) * 4096


def with_copies(
    gather: Gather, owners: NDArray[np.int64], source: Reading, planes: BlockedPlanes, edges: int, target: Target
) -> tuple[Gather, Gather] | None:
    """A gather from groups of tiles in two steps: each group copies what workers of others read of it to memory of its
    own behind the planes, `edges` bytes for each group, and they read it there. None where nothing is copied.

    A group's planes are then read and written by one worker alone. Where cores share no cache, a core that has lent a
    few lines of a buffer writes thousands of others in it at a third of the speed later.

    owners : the group whose worker writes each vector, -1 where any may
    source, planes : what is read
    """
    sources, stride, vector = gather.source_offsets.astype(np.int64), planes.group_stride, target.vector
    others = (sources >= 0) & (sources // stride != owners[:, None])
    read, number = np.unique(sources[others] // vector * vector, return_inverse=True)
    group = read // stride
    place = np.arange(len(read)) - np.searchsorted(group, group)
    if not len(read) or (place.max() + 1) * vector > planes.channel_stride:
        return None
    groups, tile = source.partition.groups, math.prod(source.partition.size)
    copies = groups * stride + group * edges + place * vector
    sources[others] = copies[number.ravel()] + sources[others] % vector
    ends = np.append(sources.ravel(), copies + vector - target.size)
    lent = replace(gather_vectors(read, copies, target), near=group * tile, positions=groups * tile)
    taken = _gather(sources, gather.target_offsets.astype(np.int64), ends, target)
    return lent, replace(taken, fill=gather.fill, near=gather.near, positions=gather.positions)


def gather_image(source: NDArray[np.int64], target: Target, readable: int = 0) -> Gather:
    """Write a contiguous image from positions at offsets `source`. readable : bytes behind the last of them"""
    count = len(source)
    sources = np.concatenate([source, np.full(-count % target.lanes, -1)]).reshape(-1, target.lanes)
    gather = _gather(sources, np.arange(len(sources)) * target.vector, source, target, readable=readable)
    return replace(gather, last_lanes=(count - 1) % target.lanes + 1)


def gather_vectors(source: NDArray[np.int64], targets: NDArray[np.int64], target: Target) -> Gather:
    """Move whole vectors from offsets `source` to offsets `targets`."""
    sources = np.add.outer(source, np.arange(target.lanes) * target.size)
    return _gather(sources, targets, sources, target)


def _gather_tiles(
    sources: NDArray[np.int64], vectors: NDArray[np.int64], source: NDArray[np.int64], r: Reading,
    planes: BlockedPlanes, target: Target,
) -> Gather:  # fmt: skip
    """Gather of these vectors of groups of tiles and their halos."""
    near, groups = _nearest(r), np.arange(r.partition.groups)[:, None]
    tile = math.prod(r.partition.size)
    in_planes = grid(r.padded, (1,) * len(r.padded), planes.strides)
    targets = (groups * planes.group_stride + in_planes).ravel()
    return replace(
        _gather(sources[vectors], targets[vectors], source, target, r.outside),
        near=(groups * tile + near).ravel()[vectors],
        positions=r.partition.groups * tile,
    )


def _gather(
    sources: NDArray[np.int64], targets: NDArray[np.int64], source: NDArray[np.int64], target: Target,
    outside: float | None = None, readable: int = 0,
) -> Gather:  # fmt: skip
    """Gather of lanes from `sources` [vectors, VL], out of all those at `source`, into vectors at `targets`."""
    end = int(source.max(initial=0)) + target.size
    farthest = max(end - target.size, int(targets.max(initial=0)))
    if farthest >= SPATIAL_TILES_LIMIT:
        raise ValueError(
            f"a channel in spatial tiles spans {farthest} bytes, expected fewer than {SPATIAL_TILES_LIMIT}"
        )
    return Gather(
        np.ascontiguousarray(sources, np.int32),
        *_lines(sources, end + readable, target),
        targets.astype(np.uint32),
        np.full(1, outside or 0.0, np.dtype(f"f{target.size}")),
        target.lanes,
        np.arange(len(targets)),
        len(targets),
    )


def _lines(sources: NDArray[np.int64], end: int, target: Target) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Vectors below `end` that have the lanes of each vector to write, and where those of each begin, as kernels take
    them."""
    lines = np.sort(np.where(sources < 0, -1, sources // target.vector * target.vector), axis=1)
    new = (lines >= 0) & (np.diff(lines, axis=1, prepend=-1) != 0)
    many = (new.sum(axis=1) > target.heuristics.gathered_lines) | (lines.max(axis=1, initial=-1) + target.vector > end)
    new[many], lines[many, :1], new[many, :1] = False, -1, True
    return lines[new].astype(np.int32), np.append(0, np.cumsum(new.sum(axis=1))).astype(np.int32)


def _nearest(r: Reading) -> NDArray[np.int64]:
    """For every position of a tile with its halo the nearest one of the tile."""
    index = np.zeros((), np.int64)
    for n, (before, after) in zip(r.partition.size, r.padding, strict=True):
        index = np.add.outer(index * n, np.clip(np.arange(-before, n + after), 0, n - 1))
    return index.ravel()


def prepare(
    plan: Gather, x_strides: tuple[int, int], y_strides: tuple[int, int], channels: int, images: int, target: Target
) -> Launch:
    """Launch that gathers every channel of x into one of y; strides in bytes. Operands x, y.

    A worker writes the part of a tile that is its own in convolutions, see `Heuristics.position_parts`.
    """
    h, vectors = target.heuristics, len(plan.target_offsets)
    starts = plan.chunk_starts(h.position_parts(plan.positions, images, target.threads))
    chunks = len(starts) - 1
    arguments = Arguments(
        kernels.GATHER,
        plan,
        channels=channels,
        chunks=chunks,
        chunk_starts=starts,
        vectors=vectors,
        x_image_stride=x_strides[0],
        x_channel_stride=x_strides[1],
        y_image_stride=y_strides[0],
        y_channel_stride=y_strides[1],
    )
    return Launch(
        kernels.gather_vectors_kernel(target.bits, target.lanes), arguments, ("x", "y"), target.loop,
        tasks=images * channels * chunks, plan=plan,
        flops=max(h.gather_flops * images * channels * vectors * target.lanes, h.parallel_flops if chunks > 1 else 0.0),
        label=("gather", f"{images}x{channels}x{vectors * target.lanes}", "", "spatial tiles"),
    )  # fmt: skip
