"""Programs on spatial tiles: single images, each cut into VL tiles that fill the lanes of a vector.

Tensors have the form "tiles", in planes with the halo that windows of their readers need; the layer that writes one is
followed by a halo exchange where there is one. Where a reader wants other tiles (those of its own output, times its
stride, where the grid of the smaller image is another one), they are gathered for it. Linear layers, and pools whose
windows are not regular, read the user's layout.

The last layers, where much of the tiles of small images hangs over (14 x 14, 7 x 7), run on a stack of images at a
time: one image of one axis more, which is cut into single images along it, so that lanes hold larger parts of them.
Stacks grow along the layers (four images of 14 x 14, then 16 of 7 x 7).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastsparse.engine import split
from fastsparse.engine.lowering.padded import Lowering, Stage, name_before
from fastsparse.engine.lowering.weights import planned
from fastsparse.engine.program import Conv, Interpolate, Node, Pool, Program
from fastsparse.engine.schedule import View
from fastsparse.ops import gates, pooling
from fastsparse.ops import spatial_tiles as tiles
from fastsparse.ops.conv import plan_between_blocked
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.layouts import BlockedPlanes, grid, widest
from fastsparse.ops.pooling import Windows
from fastsparse.ops.target import Target

_CONTIGUOUS = np.empty(0, np.int64)
_MOST_HALO = 64  # times a tile's positions that it may take with its halo, where workers share an image


@dataclass(frozen=True, eq=False)
class _Tiles:
    """Layout of a tensor: what its readers read, and the planes that hold it.

    edges : bytes behind the planes for each group's copies of what workers of other groups read of it
    """

    reading: tiles.Reading
    planes: BlockedPlanes
    edges: int = 0

    @property
    def strides(self) -> tuple[int, int]:
        """Bytes between images and between channels."""
        return self.reading.partition.groups * self.planes.group_stride, self.planes.channel_stride

    @property
    def plane(self) -> int:
        """Bytes between the parts of the memory that workers own, see `Buffer.plane`."""
        parts = self.reading.partition.groups > 1 or self.planes.by_rows
        return self.planes.group_stride if parts else self.planes.channel_stride


def _regular(op: Pool) -> tuple[tuple[int, int, int, int], ...] | None:
    """Per axis kernel, stride, padding in front and weight of a pool's windows, where all windows have the same."""
    found = []
    for table, n in zip((op.windows.rows, op.windows.columns), op.windows.spatial, strict=True):
        axis = tiles.windows_of(table, n)
        weights = set(table[:, 2].tolist()) if op.kind == "mean" else {1}
        if axis is None or len(weights) != 1:
            return None
        found.append((*axis, weights.pop()))
    return tuple(found)


class _TilesLowering(Lowering):
    """As `Lowering`, with convolutions and pools on tiles."""

    def __init__(self, program: Program, batch: int, sizes: split.Split, target: Target) -> None:
        super().__init__(program, batch, sizes, target)
        self._known: dict[int, _Tiles] = {}
        self._largest: tuple[int, int] | None = None  # see `_apart`
        # Gathers address all groups of tiles, whose halos may be many times as large as they are themselves.
        reach = _MOST_HALO * max(math.prod(shape) for shape in program.shapes) * self.target.size
        self._shares = self.images == 1 and reach < tiles.SPATIAL_TILES_LIMIT

    def stages_of(self, nodes: list[Node]) -> list[Stage]:
        """Later stages run those on small images at the end, from the first one whose images hang over."""
        stages = [Stage(self.inner, nodes)]
        while self.inner == 1:
            images, nodes = stages[-1]
            first = self._first_hanging_over(nodes, images)
            early = len(self.early) - len(nodes) + first
            before = {*self.program.inputs, *(node.output for node in self.early[:early])}
            mixed = {self.classes[t] for t in before} & {self.classes[node.output] for node in nodes[first:]}
            if first == len(nodes) or mixed:
                break
            together, _ = self._stack(self._spatial(nodes[first].output), self.outer)
            stages[-1:] = [Stage(images, nodes[:first]), Stage(together, nodes[first:])]
        return stages

    def _stack(self, spatial: tuple[int, ...], images: int) -> tuple[int, float]:
        """Images of the smallest stack with the fewest vectors per image, a divisor of `images`; and those vectors."""
        lanes = self.target.lanes
        sizes = [n for n in range(1, lanes + 1) if lanes % n == images % n == 0]
        vectors = {n: math.prod(tiles.partition(spatial, lanes // n).size) / n for n in sizes}
        return min(vectors.items(), key=lambda item: item[1])

    def _vectors(self, node: Node, images: int = 1) -> float:
        """Vectors of a layer's output per image, in stacks of so many."""
        return math.prod(tiles.partition(self._spatial(node.output), self.target.lanes // images).size) / images

    def _on_small_images(self, node: Node) -> bool:
        """Whether the node is a convolution to small images, or a pool that does not run on tiles."""
        if isinstance(node.operator, Pool):
            return self._pooled_in_tiles(node, node.operator) is None
        return isinstance(node.operator, Conv) and self._vectors(node) < self.target.heuristics.stacked_positions

    def _first_hanging_over(self, nodes: list[Node], images: int) -> int:
        """The first of the nodes at the end, all on small images, that takes clearly fewer vectors in larger stacks;
        their number when there is none."""
        first = len(nodes)
        while first and self._on_small_images(nodes[first - 1]):
            first -= 1
        while first < len(nodes) and not self._hangs_over(nodes[first], images):
            first += 1
        return first

    def _hangs_over(self, node: Node, images: int) -> bool:
        if not isinstance(node.operator, Conv):
            return False
        together, vectors = self._stack(self._spatial(node.output), self.outer)
        return together > images and vectors < self.target.heuristics.stacked_vectors * self._vectors(node, images)

    # --- layouts of tensors ---------------------------------------------------------------------

    def _images(self) -> int:
        """Images of the steps that are being lowered, or stacks of them."""
        return 1 if self.stack > 1 else self.images

    def _spatial(self, t: int) -> tuple[int, ...]:
        return tuple(self.program.shapes[t][1:])

    def _image(self, t: int) -> tuple[int, ...]:
        """Of the image that is being lowered, or of the stack."""
        return (self.stack, *self._spatial(t)) if self.stack > 1 else self._spatial(t)

    def _geometry(self, node: Node, op: Conv) -> ConvGeometry:
        g = _unstrided(op.geometry)
        g = replace(g, stride=tuple(s if n > 1 else 1 for s, n in zip(g.stride, g.out_spatial, strict=True)))
        if node.output not in self.stacks:
            return g
        return replace(
            g, spatial=(self.stacks[node.output], *g.spatial), kernel=(1, *g.kernel), stride=(1, *g.stride),
            padding=((0, 0), *g.padding), dilation=(1, *g.dilation),
        )  # fmt: skip

    def _partition(self, t: int) -> tiles.Partition:
        if t in self.stacks:
            return tiles.stacked_partition(self._spatial(t), self.target.lanes, self.stacks[t])
        if self._shares:
            return tiles.shared_partition(self._spatial(t), self.target)
        return tiles.partition(self._spatial(t), self.target.lanes)

    def _groups_of(self, t: int) -> int:
        """Groups of samples' planes, or of VL tiles', that hold the tensor's images."""
        return self._images() * self._natural(t).reading.partition.groups

    def _reading(self, node: Node) -> tiles.Reading | None:
        """What the node reads of its first input; None where it reads the plain image."""
        op = node.operator
        if isinstance(op, Conv):
            g, y = self._geometry(node, op), self._partition(node.output)
            return tiles.reading(y, g.kernel, g.stride, g.dilation, _before(g), g.spatial, g.out_spatial)
        if isinstance(op, Pool) and (axes := self._pooled_in_tiles(node, op)):
            kernel, stride, before, _ = zip(*axes, strict=True)
            outside = -np.inf if op.kind == "max" else 0.0
            y, w = self._partition(node.output), op.windows
            return tiles.reading(y, kernel, stride, (1, 1), before, w.spatial, w.out_spatial, outside)
        return None

    def _pooled_in_tiles(self, node: Node, op: Pool) -> tuple[tuple[int, int, int, int], ...] | None:
        """The windows of a pool that runs on tiles: those of images, and not of a few numbers, most lanes empty."""
        images = self._spatial(node.inputs[0]) == op.windows.spatial
        enough = math.prod(op.windows.out_spatial) >= self.target.lanes
        return _regular(op) if images and enough else None

    def _natural(self, t: int) -> _Tiles:
        """Layout of the tensor, and of all of its layout class, from layer to layer."""
        leader = self.classes[t]
        if leader not in self._known:
            self._known[leader] = self._laid_out(leader, self._read(leader))
        return self._known[leader]

    def _read(self, leader: int) -> tiles.Reading:
        """What the readers of a layout class read that have tiles as it has, with the largest halo."""
        partition = self._partition(leader)
        readings = [r for r in map(self._reading, self._readers_of(leader)) if r and r.partition == partition]
        outside = next((r.outside for r in readings if r.outside is not None), None)
        padding = widest([r.padding for r in readings if r.outside in (None, outside)], len(partition.size))
        return tiles.Reading(partition, padding, outside)

    def _readers_of(self, t: int) -> list[Node]:
        """The nodes that read tensors of its layout class."""
        leader = self.classes[t]
        return [node for other, nodes in self.readers.items() if self.classes[other] == leader for node in nodes]

    def _laid_out(self, t: int, r: tiles.Reading) -> _Tiles:
        """Tiles in planes. Groups, which are workers' own, are as far apart in all layouts: buffers then share memory,
        and a worker writes where it alone has written. Not those that one worker writes, of little work."""
        h, shape = self.target.heuristics, self.program.shapes[t]
        planes, edges = tiles.tile_planes(shape[0], r, self.target), 0
        if r.partition.groups > 1 and h.gather_flops * math.prod(shape) >= h.parallel_flops:
            apart, most = self._apart()
            planes = replace(planes, group_stride=max(planes.group_stride, apart))
            edges = most if self._lends(t, r) else 0
        return _Tiles(r, planes, edges)

    def _apart(self) -> tuple[int, int]:
        """Bytes of the largest group of tiles of a layout class, and of the largest copies that one lends."""
        if self._largest is None:
            leaders = {self.classes[t] for t, shape in enumerate(self.program.shapes) if len(shape) > 1}
            found = {t: r for t in leaders if (r := self._read(t)).partition.groups > 1}
            planes = {t: tiles.tile_planes(self.program.shapes[t][0], r, self.target) for t, r in found.items()}
            lent = [
                tiles.edge_bytes(self.program.shapes[t][0], planes[t]) for t, r in found.items() if self._lends(t, r)
            ]
            self._largest = max((p.group_stride for p in planes.values()), default=1), max(lent, default=0)
        return self._largest

    def _lends(self, t: int, r: tiles.Reading) -> bool:
        """Whether a group of the tensor's tiles has what workers of others read: halos, or other tiles. Not with more
        images than one: what lies behind one's planes is the next one's."""
        if self.outer > 1:
            return False
        readings = [self._reading(node) for node in self._readers_of(t)]
        return any(map(any, r.padding)) or not all(w is None or r.serves(w) for w in readings)

    def _memory_of(self, t: int) -> tuple[int, None, int]:
        natural = self._natural(t)
        return self._bytes(natural), None, natural.plane

    def _bytes(self, layout: _Tiles) -> int:
        return self._images() * layout.reading.partition.groups * (layout.planes.group_stride + layout.edges)

    # --- changing forms --------------------------------------------------------------------------

    def _lay_out(self, t: int, node: Node) -> None:
        natural = self._natural(t)
        view = self._buffer(self._bytes(natural), plane=natural.plane)
        self._gather(t, natural, view, node)
        self.forms[t, "tiles"] = view

    def _stored(self, t: int) -> tuple[View, NDArray[np.int64], tuple[int, int], int]:
        """The tensor's view, offsets in it of all positions of its images, or stacks, the strides of these and of
        channels, and how many images a stack has."""
        if (t, "tiles") not in self.forms:
            plain = self._plain(t)
            return self.forms[t, "plain"], plain.all_offsets(), (plain.image_stride, plain.channel_stride), 1
        spatial, natural, images = self._spatial(t), self._natural(t), self.stacks.get(t, 1)
        spatial = (images, *spatial) if t in self.stacks else spatial
        positions = tiles.tile_offsets(spatial, natural.reading.partition, natural.planes, self.target.size)
        return self.forms[t, "tiles"], positions, natural.strides, images

    def _source(self, t: int) -> tuple[View, NDArray[np.int64], tuple[int, int]]:
        """The same of all positions that are being lowered."""
        view, positions, strides, images = self._stored(t)
        if self.stack > images:
            positions = np.add.outer(np.arange(self.stack // images) * strides[0], positions).ravel()
        return view, positions, strides

    def _gather(
        self, t: int, to: _Tiles, target: View, node: Node, only: NDArray[np.bool_] | None = None,
        step: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        """Step that gathers the image, or every step-th position of it, for `node`; `only` those of a tile."""
        if (t, "tiles") not in self.forms:
            self._get(t, "plain", node)
        source, positions, strides = self._source(t)
        spatial = self._image(t)
        if step is not None:
            step = (1,) * (len(spatial) - len(step)) + step
            picked = positions.reshape(spatial)[tuple(slice(None, None, s) for s in step)]
            positions, spatial = picked.ravel(), picked.shape
        plan = tiles.gather_tiles(positions, spatial, to.reading, to.planes, self.target, only)
        if (t, "tiles") in self.forms and self._natural(t).edges:
            self._gather_from_groups(t, plan, to, target, to.strides, name_before(node), "tiles")
        else:
            self._add_gather(t, plan, source, strides, target, to.strides, name_before(node), "tiles")

    def _copy_out(self, t: int, target: View, name: str) -> None:
        plain, images = self._plain(t), self.images
        source, positions, strides, stacked = self._stored(t)
        x, tiled = strides, (t, "tiles") in self.forms
        if tiled and t in self.stacks:
            images = stacked
            x = self.target.vector // images, strides[1]  # the next image of a stack lies in the next lanes
        readable = self.target.vector if tiled else 0  # what follows a buffer, too
        plan = tiles.gather_image(positions[: math.prod(self._spatial(t))], self.target, readable)
        to = plain.image_stride, plain.channel_stride
        for first in range(0, self.images, images):  # its own stacks may be smaller than the one that is being lowered
            stack = source[0], source[1] + first // images * strides[0]
            self._add_gather(t, plan, stack, x, (target[0], target[1] + first * to[0]), to, name, "plain", images)

    def _exchange(self, t: int, name: str) -> None:
        """Step that fills the halo of a tensor that has just been written, where readers look."""
        natural, spatial = self._natural(t), self._image(t)
        if natural.reading.exchanged(spatial):
            view, positions, strides = self._source(t)
            plan = tiles.exchange_halo(positions, spatial, natural.reading, natural.planes, self.target)
            self._gather_from_groups(t, plan, natural, view, strides, name, "halo")

    def _gather_from_groups(
        self, t: int, plan: tiles.Gather, to: _Tiles, target: View, y: tuple[int, int], name: str, what: str
    ) -> None:
        """Append a gather from the tensor's tiles, behind a step that copies what groups lend, where they do."""
        view, natural = self.forms[t, "tiles"], self._natural(t)
        owners = plan.target_offsets.astype(np.int64) // to.planes.group_stride
        if to.reading.partition.groups != natural.reading.partition.groups:
            owners[:] = -1
        lent = None
        if natural.edges:
            lent = tiles.with_copies(plan, owners, natural.reading, natural.planes, natural.edges, self.target)
        if lent is not None:
            first, plan = lent
            self._add_gather(t, first, view, natural.strides, view, natural.strides, name, "edges")
        self._add_gather(t, plan, view, natural.strides, target, y, name, what)

    def _add_gather(
        self, t: int, plan: tiles.Gather, source: View, x: tuple[int, int], target: View, y: tuple[int, int],
        name: str, what: str, images: int | None = None,
    ) -> None:  # fmt: skip
        images = self._images() if images is None else images
        launch = tiles.prepare(plan, x, y, self.program.shapes[t][0], images, self.target)
        self._add(name, f"gather {what}", None, (source,), target, launch)

    def _gathered(
        self, node: Node, only: NDArray[np.bool_] | None = None, step: tuple[int, ...] | None = None
    ) -> tuple[View, BlockedPlanes]:
        """The node's first input, or every step-th position of it, in tiles as the node reads them; see `_gather`."""
        t, r = self.roots[node.inputs[0]], self._reading(node)
        assert r is not None
        layout = self._laid_out(t, r)
        target = self._buffer(self._bytes(layout), plane=layout.plane)
        self._gather(t, layout, target, node, only, step)
        return target, layout.planes

    def _tiles_for(self, node: Node, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
                   ) -> tuple[View, tiles.Reading, BlockedPlanes]:  # fmt: skip
        """The node's first input as its windows read it."""
        t, r = self.roots[node.inputs[0]], self._reading(node)
        assert r is not None
        natural = self._natural(t)
        if natural.reading.serves(r):
            return self._get(t, "tiles", node), natural.reading, natural.planes
        only = tiles.touched(self._partition(node.output), r, kernel, stride, dilation)
        view, planes = self._gathered(node, only)
        return view, r, planes

    # --- nodes on images -------------------------------------------------------------------------

    def _conv(self, node: Node, op: Conv) -> None:
        groups, g = self._groups_of(node.output), self._geometry(node, op)
        residual = None if node.residual is None else self._get(self.roots[node.residual], "tiles", node)
        if _unstrided(op.geometry) is op.geometry:
            source, _, x = self._tiles_for(node, g.kernel, g.stride, g.dilation)
        else:
            source, x = self._gathered(node, step=op.geometry.stride)
        r, y = self._reading(node), self._natural(node.output).planes
        assert r is not None
        # Of a tile alone; behind it the windows may end before its last position.
        padding = tiles.exact_padding(self._partition(node.output), g.kernel, g.stride, g.dilation, _before(g))
        inside = replace(g, spatial=r.partition.size, padding=padding)
        weight = planned(op.weight, plan_between_blocked, inside, x, y, self.target, groups)
        fresh = node.residual is not None and self.roots[node.residual] != self.roots[node.inputs[0]]
        target = self._new(node.output, "tiles", residual[0] if residual and fresh else -1)
        self._add_weighted(
            node, op, weight, "on spatial tiles", source, residual, target, y_row_stride=y.channel_stride,
            batches=groups, x_batch_stride=x.group_stride, y_batch_stride=y.group_stride,
        )  # fmt: skip
        self._exchange(node.output, name_before(node))

    def _pool(self, node: Node, op: Pool) -> None:
        axes = self._pooled_in_tiles(node, op)
        if axes is None:
            t = self.roots[node.inputs[0]]
            source, target = self._get(t, "plain", node), self._target(node.output, "plain")
            self._pool_planes(node, op, self._plain(t), source, self._plain(node.output), target)
            return
        kernel, stride, before, weights = zip(*axes, strict=True)
        source, r, x = self._tiles_for(node, kernel, stride, (1, 1))
        y = self._natural(node.output)
        corner = [have[0] - want for have, want in zip(r.padding, before, strict=True)]
        rows, columns = (
            _table(*axis) for axis in zip(y.reading.partition.size, kernel, stride, corner, weights, strict=True)
        )
        height, width = r.padded
        windows = Windows((height, width), rows, columns)
        offsets = grid(r.padded, (1, 1), x.strides)
        whole = replace(x, offsets=offsets if (np.diff(offsets) != self.target.vector).any() else _CONTIGUOUS)
        launch = pooling.prepare_blocked(op.kind, windows, whole, y.planes, self._groups_of(node.output), self.target)
        kernel_name = f"{op.kind} pool on spatial tiles"
        self._add(node.name, kernel_name, node, (source,), self._new(node.output, "tiles"), launch)
        self._exchange(node.output, name_before(node))

    def _interpolate(self, node: Node, op: Interpolate) -> None:
        """Append the step of an interpolation, in the user's layout."""
        t, added = self.roots[node.inputs[0]], node.residual
        residual = None if added is None else self._get(self.roots[added], "plain", node)
        source, target = self._get(t, "plain", node), self._target(node.output, "plain")
        self._add_interpolation(node, op, self._plain(t), source, residual, self._plain(node.output), target)

    def _gate(self, node: Node) -> None:
        t, g = self.roots[node.inputs[0]], self.roots[node.inputs[1]]
        source = self._get(t, "tiles", node)
        tiled = (g, "tiles") in self.forms  # then the number is that of the first lane
        gate_source = self._get(g, "tiles" if tiled else "plain", node)
        gate = self._natural(g).planes if tiled else self._plain(g)
        x, y = (self._natural(s).planes for s in (t, node.output))
        target = self._new(node.output, "tiles", source[0] if gates.in_place(x, y) else -1)
        parts = self._natural(node.output).reading.partition.groups
        self._add_gate(node, "on spatial tiles", x, source, gate, gate_source, y, target, parts)
        self._exchange(node.output, name_before(node))


def _unstrided(g: ConvGeometry) -> ConvGeometry:
    """A 1x1 convolution with strides as one without, on the image of the positions that it reads."""
    if set(g.kernel) != {1} or set(g.stride) == {1} or any(map(any, g.padding)):
        return g
    return replace(g, spatial=g.out_spatial, stride=(1,) * len(g.stride))


def _before(g: ConvGeometry) -> tuple[int, ...]:
    return tuple(before for before, _ in g.padding)


def _table(outputs: int, kernel: int, stride: int, corner: int, weight: int) -> NDArray[np.int64]:
    first = np.arange(outputs, dtype=np.int64) * stride + corner
    return np.ascontiguousarray(np.stack([first, first + kernel, np.full_like(first, weight)], 1))


schedule = _TilesLowering.schedule
