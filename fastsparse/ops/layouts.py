"""Layouts of activations, with packing and unpacking.

Besides the user's NCHW (`PaddedPlanes` without padding), kernels read two layouts:

- *batch-blocked* (`BlockedPlanes`), written NCHW16n elsewhere: VL samples innermost, (groups, channels, positions, VL).
  Vectors of every window are aligned. With spatial tiles in place of samples (`spatial_tiles`) the same layout serves
  single images, or one with channels between rows and columns.
- *padded NCHW* (`PaddedPlanes`): every channel a plane with zeros around it, a vector is VL consecutive positions.

Memory after an image, a panel or a plane is either never read, or written by the same code that writes the layout: the
packing functions here, or the last step of the previous layer (contract R7).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastsparse.ops.geometry import ConvGeometry, Ints, Padding
from fastsparse.ops.heuristics import ALIASED_BYTES, WIDEST_TILE
from fastsparse.ops.target import Target
from fastsparse.runtime.launch import Arguments, Launch
from fastsparse_kernels import layouts as kernels

_NONE = np.empty(0, np.int64)
_EVEN_BYTES = 512  # tiles of parts of rows this far apart leave a part of the cache sets unused


# ------------------------------------------------------------------------------------------------- batch-blocked


def grid(sizes: Ints, steps: Ints, strides: Ints) -> NDArray[np.int64]:
    """sum of index * step * stride over all index tuples below `sizes`, in row-major order."""
    total = np.zeros((), np.int64)
    for size, step, stride in zip(sizes, steps, strides, strict=True):
        total = np.add.outer(total, np.arange(size, dtype=np.int64) * step * stride)
    return total.ravel()


def row_major_strides(sizes: Ints, size: int = 1) -> Ints:
    """Strides of a contiguous row-major array, in elements, or in bytes for elements of `size` bytes."""
    return tuple(math.prod(sizes[i + 1 :]) * size for i in range(len(sizes)))


class Planes(Protocol):
    """Images in memory, in any layout: where their channels, rows and positions are, in bytes."""

    @property
    def channels(self) -> int:
        """Channels of an image."""

    @property
    def spatial(self) -> Ints:
        """Sizes of a plane, without padding."""

    @property
    def strides(self) -> Ints:
        """Bytes between neighbours along each axis."""

    @property
    def corner(self) -> int:
        """Offset of position 0 from the plane."""

    @property
    def channel_stride(self) -> int:
        """Bytes between planes."""

    @property
    def image_stride(self) -> int:
        """Bytes between images, or groups of VL samples."""


@dataclass(frozen=True, eq=False)
class BlockedPlanes:
    """Batch-blocked planes, with padding of zeros or none. Strides, offsets and the corner are in bytes."""

    channels: int
    positions: int  # of the user's plane
    offsets: NDArray[np.int64]  # [positions, rounded up to a multiple of VL]; empty: contiguous positions
    padding_offsets: NDArray[np.int64]  # ascending
    channel_stride: int
    group_stride: int
    spatial: Ints = ()
    strides: Ints = ()  # of the spatial axes
    corner: int = 0  # offset of position 0
    panel_groups: int = 1  # groups `group_stride` apart; with 1, each group is a panel
    panel_stride: int = 0  # bytes between panels of more groups
    bands: Bands | None = None

    @property
    def image_stride(self) -> int:
        """As in `Planes`."""
        return self.group_stride

    @property
    def by_rows(self) -> bool:
        """Whether channels lie between rows and columns, see `blocked_planes`."""
        return max(self.strides, default=0) > self.channel_stride

    def sample_bytes(self, target: Target) -> int:
        """Bytes of a sample in the user's layout."""
        return self.channels * self.positions * target.size

    def all_offsets(self) -> NDArray[np.int64]:
        """Offset of every position, int64 [positions]."""
        return self.points(self.spatial, (1,) * len(self.spatial))

    def points(self, counts: Ints, steps: Ints, first: int = 0) -> NDArray[np.int64]:
        """Offsets of `counts` points, `steps` apart, the first one `first` bytes behind position 0. In bands, a row of
        points lies in the band that it belongs to by its number."""
        points = grid(counts, steps, self.strides) + (self.corner + first)
        if self.bands is None:
            return points
        rows = np.repeat(self.bands.starts, np.diff(self.bands.edges))
        return (points.reshape(counts[0], -1) + rows[:, None]).ravel()


class Bands(NamedTuple):
    """How planes are cut along their first axis into bands of rows, one for each worker, apart in memory, with the rows
    of their neighbours that windows read: a worker reads no lines then that another one writes.

    edges : first row of every band, and the number of rows
    starts : int64 [bands], bytes to add to an offset for each band
    chunks : int64 [bands, 3], what is packed, and
    padding_starts : int64 [bands + 1], what is zeroed: see `fastsparse_kernels.layouts.BATCH_BLOCKED`
    """

    edges: Ints
    starts: NDArray[np.int64]
    chunks: NDArray[np.int64]
    padding_starts: NDArray[np.int64]


def blocked_planes(
    channels: int, spatial: Ints, padding: Padding, target: Target, order: Ints | None = None, *, by_rows: bool = False
) -> BlockedPlanes:
    """Batch-blocked planes of padded images. spatial () is for features: one position per channel.

    order : the spatial axes as they lie in memory, the last one with neighbours side by side; row-major by default
    by_rows : channels lie between rows and columns, (groups, rows, channels, columns, VL): what a tile within one row
        reads of all channels is one piece of memory, which fills cache sets evenly and which the CPU fetches ahead
    """
    padded = tuple(n + before + after for n, (before, after) in zip(spatial, padding, strict=True))
    order = order or tuple(range(len(padded)))
    total, positions = math.prod(padded), math.prod(spatial)
    row = padded[order[-1]] if by_rows else total  # positions of a channel side by side
    channel_stride = unaliased_stride(max(1, row) * target.vector, target.vector)
    if by_rows and channel_stride % _EVEN_BYTES == 0:
        channel_stride += target.vector
    row_stride = unaliased_stride(channels * channel_stride, target.vector)
    group_stride = unaliased_stride(total // max(1, row) * row_stride, target.vector)
    ordered = list(row_major_strides(tuple(padded[axis] for axis in order), target.vector))
    if by_rows:
        ordered[:-1] = [n // (row * target.vector) * row_stride for n in ordered[:-1]]
    strides = tuple(ordered[order.index(axis)] for axis in range(len(padded)))
    corner = sum(before * stride for (before, _), stride in zip(padding, strides, strict=True))
    offsets = padding_offsets = _NONE
    if total != positions or strides != row_major_strides(padded, target.vector):
        offsets = grid(spatial, (1,) * len(spatial), strides) + corner
        outside = np.ones(padded, bool)
        outside[tuple(slice(before, before + n) for n, (before, _) in zip(spatial, padding, strict=True))] = False
        padding_offsets = np.sort(grid(padded, (1,) * len(padded), strides)[outside.ravel()])
        offsets = np.concatenate([offsets, np.zeros(-positions % target.lanes, np.int64)])
    return BlockedPlanes(
        channels, positions, offsets, padding_offsets, channel_stride, group_stride, spatial, strides, corner
    )


def banded_planes(
    channels: int, spatial: Ints, padding: Padding, target: Target, edges: Ints, step: int, extent: int
) -> BlockedPlanes:
    """Batch-blocked planes in bands, for windows in rows of outputs; without bands where there is but one.

    edges : rows of outputs, as in `Bands`
    step, extent : rows between windows, and rows of a window
    """
    if len(edges) == 2:
        return blocked_planes(channels, spatial, padding, target)
    inner = tuple(n + before + after for n, (before, after) in zip(spatial[1:], padding[1:], strict=True))
    first = np.array(edges[:-1]) * step - padding[0][0]
    height = int(np.diff(edges).max() - 1) * step + extent
    strides = row_major_strides((height, *inner), target.vector)
    channel_stride = (height * strides[0] // target.vector | 1) * target.vector  # on all cache sets in turn
    band_stride = unaliased_stride(channels * channel_stride, target.vector)
    group_stride = unaliased_stride(len(first) * band_stride, target.vector)
    corner = sum(before * stride for (before, _), stride in zip(padding[1:], strides[1:], strict=True))
    starts = np.arange(len(first)) * band_stride - first * strides[0]
    offsets: list[NDArray[np.int64]] = []
    zeros, chunks, padding_starts, row, count = [], [], [0], math.prod(spatial[1:]), 0
    for start, low in zip(starts, first, strict=True):
        begin, end = max(0, low), min(spatial[0], low + height)
        inside = grid((end - begin, *spatial[1:]), (1,) * len(spatial), strides) + corner + (begin * strides[0] + start)
        everything = (start + low * strides[0]) + np.arange(height * strides[0] // target.vector) * target.vector
        chunks.append((begin * row, end * row, count))
        count += len(inside)
        offsets.append(inside)
        zeros.append(np.setdiff1d(everything, inside, assume_unique=True))
        padding_starts.append(padding_starts[-1] + len(zeros[-1]))
    bands = Bands(edges, starts, np.array(chunks, np.int64), np.array(padding_starts, np.int64))
    more = np.zeros(target.lanes, np.int64)
    return BlockedPlanes(
        channels, math.prod(spatial), np.concatenate([*offsets, more]), np.concatenate(zeros), channel_stride,
        group_stride, spatial, strides, corner, bands=bands,
    )  # fmt: skip


def feature_panels(features: int, width: int, target: Target) -> BlockedPlanes:
    """Features of samples in panels (panels, features, width, VL) of `width` groups of samples: the SpMM's x and y."""
    offsets = np.arange(-(-features // target.lanes) * target.lanes, dtype=np.int64) * (width * target.vector)
    stride = panel_stride(features, width, target)
    return BlockedPlanes(1, features, offsets, _NONE, 0, target.vector, panel_groups=width, panel_stride=stride)


def unaliased_stride(stride_bytes: int, vector_bytes: int) -> int:
    """A stride that is no multiple of 4096 bytes, which would map every plane onto the same cache sets."""
    return stride_bytes + vector_bytes if stride_bytes % ALIASED_BYTES == 0 else stride_bytes


def panel_stride(features: int, width: int, target: Target) -> int:
    """Bytes from one panel (features, width, VL) of samples to the next."""
    return unaliased_stride(max(1, features) * width * target.vector, target.vector)


def panel_bytes(samples: int, panels: BlockedPlanes, target: Target) -> int:
    """Bytes of all panels of so many samples."""
    return -(-samples // (panels.panel_groups * target.lanes)) * panels.panel_stride


def expect_packing(target: Target, *, blocked: bool) -> None:
    """Have the kernels that pack images, and unpack them from batch-blocked arrays, compiled with the next kernel."""
    if not blocked:
        kernels.pack_padded_kernel.expect(target.bits, target.lanes)
        return
    for pack in (1, 0):
        kernels.batch_blocked_kernel.expect(pack, target.bits, target.lanes)


def pack_blocked(planes: BlockedPlanes, samples: int, target: Target, sample_stride: int | None = None) -> Launch:
    """user[sample, channel, position] -> batch-blocked; operands user, blocked.

    Writes the padding, and zeros in lanes without samples. A third operand of `run` is another number of samples that
    need as many groups.

    sample_stride : bytes between samples, each of them contiguous; by default they follow one another
    """
    return _blocked(1, ("user", "blocked", "samples"), planes, samples, target, sample_stride)


def unpack_blocked(planes: BlockedPlanes, samples: int, target: Target, sample_stride: int | None = None) -> Launch:
    """Batch-blocked -> user[sample, channel, position]; operands blocked, user, all else as in `pack_blocked`."""
    return _blocked(0, ("blocked", "user", "samples"), planes, samples, target, sample_stride)


def _blocked(
    packs: int, operands: tuple[str, ...], planes: BlockedPlanes, samples: int, target: Target,
    sample_stride: int | None,
) -> Launch:  # fmt: skip
    h, groups, sample_bytes = target.heuristics, -(-samples // target.lanes), planes.sample_bytes(target)
    chunks, padding_starts = _chunks(planes, groups, target, packs)
    arguments = Arguments(
        kernels.BATCH_BLOCKED,
        planes,
        chunks=len(chunks),
        chunk_positions=chunks,
        samples=samples,
        user_sample_stride=sample_bytes if sample_stride is None else sample_stride,
        user_channel_stride=planes.positions * target.size,
        nontemporal=h.leaves_cache(samples * sample_bytes),
        blocked_group_stride=planes.group_stride,
        blocked_channel_stride=planes.channel_stride,
        panel_stride=planes.panel_stride or planes.group_stride,
        offsets=planes.offsets if len(planes.offsets) else None,
        padding_starts=padding_starts,
    )
    if packs:  # panels are packed whole, with zeros after the samples, for SDDMM
        groups = -(-groups // planes.panel_groups) * planes.panel_groups
    flops = h.pack_flops * groups * target.lanes * planes.channels * planes.positions
    return Launch(
        kernels.batch_blocked_kernel(packs, target.bits, target.lanes), arguments, operands, target.loop,
        tasks=groups * planes.channels * len(chunks), flops=flops,
        label=("pack" if packs else "unpack", f"{samples}x{planes.channels}x{planes.positions}", "", "batch-blocked"),
    )  # fmt: skip


def _chunks(
    planes: BlockedPlanes, groups: int, target: Target, packs: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Chunks of positions, and the padding that is zeroed with each, as the kernels read them.

    A worker packs what it reads in products. Whole planes are unpacked, where there are enough of them: workers would
    write the user's array in turns.
    """
    if packs and planes.bands is not None:
        return planes.bands.chunks, planes.bands.padding_starts
    h, parts = target.heuristics, 1
    if packs or planes.channels < h.unpacked_planes * target.threads:
        parts = h.position_parts(planes.positions, groups, target.threads)
    chunk = max(1, -(-planes.positions // (parts * target.lanes))) * target.lanes
    firsts = np.arange(0, max(1, planes.positions), chunk)
    padding_starts = np.full(len(firsts) + 1, len(planes.padding_offsets), np.int64)
    padding_starts[0] = 0
    if len(planes.offsets):
        padding_starts[1:-1] = np.searchsorted(
            planes.padding_offsets, np.maximum.accumulate(planes.offsets[firsts[1:]])
        )
    return np.stack([firsts, np.minimum(firsts + chunk, planes.positions), firsts], 1), padding_starts


# ------------------------------------------------------------------------------------------------- padded NCHW


@dataclass(frozen=True, eq=False)
class PaddedPlanes:
    """Planes of images that windows of stride 1 read, and how to pack them. Strides, offsets, the corner: in bytes.

    Without padding the planes are the user's own layout, channels `channel_stride` apart.
    """

    channels: int
    spatial: Ints
    padding: Padding
    strides: Ints
    corner: int  # offset of position 0
    channel_stride: int
    slack: int  # bytes after the last plane, for vectors and tiles that reach beyond it
    row_offsets: NDArray[np.int64]  # [rows, 1], offset of every image row
    firsts: NDArray[np.int64]
    contiguous: bool  # a plane is its image without padding; channels may be apart
    step: int = 1
    rows: int = field(init=False)
    row_length: int = field(init=False)
    image_stride: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", math.prod(self.spatial[:-1]))
        object.__setattr__(self, "row_length", self.spatial[-1] if self.spatial else 1)
        object.__setattr__(self, "image_stride", self.channels * self.channel_stride)

    def all_offsets(self) -> NDArray[np.int64]:
        """Offset of every position, int64 [positions]."""
        return grid(self.spatial, (1,) * len(self.spatial), self.strides) + self.corner


@dataclass(frozen=True, eq=False)
class PhasePlanes:
    """Planes of images that strided windows read: one plane for each phase of the strides.

    `row_offsets` [rows, phases] is -1 for rows that no window reads; `firsts` [phases] is each phase's first column.
    """

    rows: int
    row_length: int
    step: int
    row_offsets: NDArray[np.int64]
    firsts: NDArray[np.int64]
    channel_stride: int
    slack: int


def user_planes(channels: int, spatial: Ints, target: Target) -> PaddedPlanes:
    """The user's layout: contiguous (channels, *spatial). spatial () is for features."""
    strides, stride = row_major_strides(spatial, target.size), math.prod(spatial) * target.size
    pads = ((0, 0),) * len(spatial)
    return PaddedPlanes(channels, spatial, pads, strides, 0, stride, target.vector, _NONE, _NONE, True)


def widest(paddings: list[Padding], axes: int) -> Padding:
    """The least padding that is enough for all of these, of images of so many axes."""
    found = [((0, 0),) * axes, *paddings]
    return tuple((max(p[a][0] for p in found), max(p[a][1] for p in found)) for a in range(axes))


def padded_planes(channels: int, spatial: Ints, readers: list[ConvGeometry], target: Target) -> PaddedPlanes:
    """Planes with enough padding for all convolutions `readers`, of stride 1.

    Without padding, rows are contiguous as in the user's layout.
    """
    padding = widest([g.padding for g in readers], len(spatial))
    extents = [n + before + after for n, (before, after) in zip(spatial, padding, strict=True)]
    extents[-1] = max(spatial[-1] + max(padding[-1]), *(g.out_spatial[-1] for g in readers), 1)
    strides = row_major_strides(tuple(extents), target.size)
    offsets = grid(spatial[:-1], (1,) * (len(spatial) - 1), strides[:-1])
    corner = sum(before * stride for (before, _), stride in zip(padding, strides, strict=True))
    # Windows of the last row reach past its end by the padding of a next row.
    plane = -(-(math.prod(extents) + max(padding[-1])) * target.size // 64) * 64
    return PaddedPlanes(
        channels, spatial, padding, strides, corner, unaliased_stride(plane, 64), WIDEST_TILE * target.vector,
        offsets.reshape(-1, 1) + corner, np.zeros(1, np.int64), tuple(extents) == spatial,
    )  # fmt: skip


def pack_padded(
    planes: PaddedPlanes | PhasePlanes, channels: int, images: int, image_stride: int, channel_stride: int,
    target: Target, row_sources: NDArray[np.int64] | None = None, *, clear: bool = True,
) -> Launch:  # fmt: skip
    """user[image, channel, ...] -> zero-padded planes; operands user, planes.

    row_sources : bytes from the user's channel to each of its rows; by default rows are contiguous
    clear : whether to write the zeros of the padding, too
    """
    arguments = Arguments(
        kernels.PADDED_NCHW,
        planes,
        channels=channels,
        phases=len(planes.firsts),
        user_image_stride=image_stride,
        user_channel_stride=channel_stride,
        source_offsets=row_sources,
        plane_image_stride=channels * planes.channel_stride,
        plane_channel_stride=planes.channel_stride,
        channel_vectors=planes.channel_stride // target.vector if clear else 0,
    )
    flops = 1.0 * images * channels * planes.channel_stride / target.size
    kernel = kernels.pack_padded_kernel(target.bits, target.lanes)
    return Launch(
        kernel, arguments, ("user", "planes"), target.loop,
        tasks=images * channels, flops=flops,
        label=("pack", f"{images}x{channels}x{planes.rows}x{planes.row_length}", "", "padded NCHW"),
    )  # fmt: skip
