"""Parts: one image cut into VL parts of equal shape, one per lane, so that a batch of one fills aligned vectors.

A part carries a border of what its neighbours begin with, as deep as the windows of its readers reach. All that lanes
layout offers for VL samples then works for the VL parts of an image: no unaligned loads, no vectors stored in pieces.
The price are the borders, filled after every layer whose readers have windows (a halo exchange, as stencil codes on
many nodes have it), and parts that hang over the end of images that the grid does not divide.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .lanes import Ints, LanesPlanes, grid, row_major
from .linear import Machine
from .pooling import Table

PARTS_LIMIT = 2**31  # bytes of a channel: what gathers address
Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Partition:
    """VL parts of `size`, in row-major order on a grid of `counts`; the last ones may hang over the image's end."""

    counts: Ints
    size: Ints

    def hangs_over(self, spatial: Ints) -> bool:
        return any(c * n != whole for c, n, whole in zip(self.counts, self.size, spatial, strict=True))


@dataclass(frozen=True)
class Reading:
    """What a layer reads: parts of this partition with a border of `padding`.

    other : what its windows find outside the image, in borders and in what hangs over the end; None when no window of
        the image's own outputs looks there, so that anything may lie there
    """

    partition: Partition
    padding: Pads
    other: float | None

    def serves(self, wanted: Reading) -> bool:
        """Whether parts that lie like this hold all that `wanted` reads."""
        enough = all(h[0] >= w[0] and h[1] >= w[1] for h, w in zip(self.padding, wanted.padding, strict=True))
        return self.partition == wanted.partition and enough and wanted.other in (None, self.other)

    def exchanged(self, spatial: Ints) -> bool:
        """Whether something must be filled once all parts of an image are written."""
        return any(map(any, self.padding)) or (self.other is not None and self.partition.hangs_over(spatial))


@dataclass(frozen=True, eq=False)
class Gather:
    """Vectors to write, and where each lane's number lies; see the record in `fastsparse_kernels.layout`."""

    sources: NDArray[np.int32]  # [vectors, VL]
    targets: NDArray[np.uint32]  # [vectors]
    other: NDArray[np.floating]
    last_lanes: int


def _grids(axes: int, lanes: int) -> Iterator[Ints]:
    if axes == 1:
        yield (lanes,)
        return
    for count in range(1, lanes + 1):
        if lanes % count == 0:
            for rest in _grids(axes - 1, lanes // count):
                yield (count, *rest)


@functools.lru_cache(maxsize=256)
def partition(spatial: Ints, lanes: int) -> Partition:
    """The partition with the fewest positions, and of those the one with the shortest borders and the longest rows."""

    def cost(counts: Ints) -> tuple[int, int, int]:
        size = tuple(-(-n // c) for n, c in zip(spatial, counts, strict=True))
        positions = math.prod(size)
        return positions, sum(positions // n for n in size), -size[-1]

    counts = min(_grids(len(spatial), lanes), key=cost)
    return Partition(counts, tuple(-(-n // c) for n, c in zip(spatial, counts, strict=True)))


def exact_padding(y: Partition, kernel: Ints, stride: Ints, dilation: Ints, before: Ints) -> Pads:
    """Padding that gives one part exactly its outputs; behind strided parts it may be less than nothing."""
    return tuple(
        (b, (n - 1) * s + d * (k - 1) + 1 - b - n * s)
        for n, s, d, k, b in zip(y.size, stride, dilation, kernel, before, strict=True)
    )


def reading(
    y: Partition, kernel: Ints, stride: Ints, dilation: Ints, before: Ints, spatial: Ints, outputs: Ints,
    other: float = 0.0,
) -> Reading:  # fmt: skip
    """What windows must find to write all of y's parts, each part for itself.

    spatial, outputs : sizes of the image that is read, and of that which is written
    other : what lies around the image
    """
    size = tuple(n * s for n, s in zip(y.size, stride, strict=True))
    exact = exact_padding(y, kernel, stride, dilation, before)
    axes = zip(spatial, outputs, kernel, stride, dilation, before, strict=True)
    outside = any(b > 0 or (o - 1) * s + d * (k - 1) - b >= n for n, o, k, s, d, b in axes)
    padding = tuple((b, max(0, after)) for b, after in exact)
    return Reading(Partition(y.counts, size), padding, other if outside else None)


def touched(y: Partition, r: Reading, kernel: Ints, stride: Ints, dilation: Ints) -> NDArray[np.bool_]:
    """Which positions of a part and its border some window reads, bool [padded positions]."""
    total = np.ones((), bool)
    axes = zip(y.size, r.partition.size, r.padding, kernel, stride, dilation, strict=True)
    for outputs, inputs, (before, after), k, s, d in axes:
        axis = np.zeros(inputs + before + after, bool)
        axis[np.add.outer(np.arange(outputs) * s, np.arange(k) * d)] = True
        total = np.logical_and.outer(total, axis)
    return total.ravel()


def places(spatial: Ints, p: Partition, planes: LanesPlanes, size: int) -> NDArray[np.int64]:
    """Where every position of the image lies in its parts, in bytes from the channel, int64 [positions]."""
    place, lane = np.zeros((), np.int64), np.zeros((), np.int64)
    axes = zip(spatial, p.counts, p.size, planes.strides, row_major(p.counts), strict=True)
    for n, _, part, stride, lane_stride in axes:
        index = np.arange(n, dtype=np.int64)
        place = np.add.outer(place, index % part * stride)
        lane = np.add.outer(lane, index // part * lane_stride)
    return place.ravel() + planes.corner + lane.ravel() * size


def _image_positions(spatial: Ints, r: Reading) -> NDArray[np.int64]:
    """Position in the image of every lane of every position of a part and its border, -1 outside the image."""
    index, inside = np.zeros((), np.int64), np.ones((), bool)
    axes = zip(spatial, r.partition.counts, r.partition.size, r.padding, row_major(spatial), strict=True)
    for n, count, part, (before, after), stride in axes:
        at = np.add.outer(np.arange(-before, part + after, dtype=np.int64), np.arange(count) * part)
        index = np.add.outer(index, at * stride)
        inside = np.logical_and.outer(inside, (at >= 0) & (at < n))
    dims = 2 * len(spatial)
    order = (*range(0, dims, 2), *range(1, dims, 2))
    found = np.where(inside, index, -1).transpose(order)
    return found.reshape(-1, math.prod(r.partition.counts))


def gather_parts(
    source: NDArray[np.int64], spatial: Ints, r: Reading, machine: Machine, only: NDArray[np.bool_] | None = None
) -> Gather:
    """Fill parts and their borders from an image whose positions lie at `source`; `only` those positions of a part."""
    at = _image_positions(spatial, r)
    vectors = np.arange(len(at)) if only is None else np.flatnonzero(only)
    return _gather(np.where(at < 0, -1, source[at])[vectors], vectors * machine.vector, r.other, machine)


def exchange(source: NDArray[np.int64], spatial: Ints, r: Reading, machine: Machine) -> Gather:
    """Fill borders, and what hangs over the image's end, from the parts themselves, which lie at `source`."""
    at = _image_positions(spatial, r)
    padded = tuple(n + before + after for n, (before, after) in zip(r.partition.size, r.padding, strict=True))
    inner = grid(r.partition.size, (1,) * len(padded), row_major(padded))
    corner = sum(before * step for (before, _), step in zip(r.padding, row_major(padded), strict=True))
    own = np.zeros(len(at), bool)
    own[inner + corner] = True
    vectors = np.flatnonzero(~own | (at < 0).any(axis=1))
    return _gather(np.where(at < 0, -1, source[at])[vectors], vectors * machine.vector, r.other, machine)


def gather_plain(source: NDArray[np.int64], machine: Machine) -> Gather:
    """Write an image whose positions lie at `source` in a row."""
    count = len(source)
    sources = np.concatenate([source, np.full(-count % machine.lanes, -1)]).reshape(-1, machine.lanes)
    gather = _gather(sources, np.arange(len(sources)) * machine.vector, 0.0, machine)
    return Gather(gather.sources, gather.targets, gather.other, (count - 1) % machine.lanes + 1)


def _gather(sources: NDArray[np.int64], targets: NDArray[np.int64], other: float | None, machine: Machine) -> Gather:
    farthest = max(int(sources.max(initial=0)), int(targets.max(initial=0)))
    if farthest >= PARTS_LIMIT:
        raise ValueError(f"a channel in parts spans {farthest} bytes, expected fewer than {PARTS_LIMIT}")
    dtype = np.dtype(f"f{machine.size}")
    outside = np.full(1, other or 0.0, dtype)
    return Gather(np.ascontiguousarray(sources, np.int32), targets.astype(np.uint32), outside, machine.lanes)


def windows_of(table: Table, inputs: int) -> tuple[int, int, int] | None:
    """Kernel size, stride and padding in front of pooling windows, or None where no such three give the table."""
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
