"""Programs on padded planes: single images, for batches too small to fill vectors with samples.

The form "planes" is what convolutions of stride 1 read: zero-padded as all of them need, and equal for tensors that are
added to one another. Depthwise convolutions with a kernel of their own need no padding. Other convolutions have their
input split into phase planes of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fastsparse.csr import CSR
from fastsparse.engine import split
from fastsparse.engine.lowering.images import Lowering, name_before
from fastsparse.engine.lowering.weights import PackedWeight, packed, planned
from fastsparse.engine.program import Conv, Gather, Interpolate, Linear, Node, Pool, Program, RowWise
from fastsparse.engine.schedule import Place, Zeros
from fastsparse.ops import depthwise
from fastsparse.ops.conv import plan_between_padded, plan_padded
from fastsparse.ops.gates import Image
from fastsparse.ops.layouts import PaddedPlanes, PhasePlanes, pack_padded, padded_planes
from fastsparse.ops.target import Target


class _Product(NamedTuple):
    """A packed weight, where it runs, its input, and bytes between images of this."""

    weight: PackedWeight
    where: str
    source: Place
    image_stride: int


class _PaddedLowering(Lowering):
    """As `Lowering`, with images on padded planes."""

    def __init__(self, program: Program, batch: int, sizes: split.Split, target: Target) -> None:
        super().__init__(program, batch, sizes, target)
        self.planes: dict[int, PaddedPlanes] = {}
        self.padding_readers = {node.output for node in program.nodes if _reads_padding(node)}
        self.expansions = self._expansions() if self.inner == 1 else {}
        self.by_channels = {node.output for node in self.expansions.values()}

    # --- layouts of tensors ---------------------------------------------------------------------

    def _in_planes(self, t: int) -> PaddedPlanes:
        """The planes of this tensor's layout class, for all convolutions of stride 1 on any of them."""
        leader = self.classes[t]
        if leader not in self.planes:
            members = [other for other in self.readers if self.classes[other] == leader]
            geometries = [
                node.operator.geometry
                for other in members for node in self.readers[other]
                if isinstance(node.operator, Conv) and node.output in self.padding_readers
            ]  # fmt: skip
            channels, *spatial = self.program.shapes[leader]
            self.planes[leader] = padded_planes(channels, tuple(spatial), geometries, self.target)
        return self.planes[leader]

    def _planes(self, t: int, form: str) -> PaddedPlanes:
        return self._plain(t) if form == "plain" else self._in_planes(t)

    def _written(self, node: Node) -> str:
        """The form in which a node on images writes its output."""
        t, readers = node.output, self.readers[node.output]
        if node.residual is not None:
            return "planes"
        planes = self._in_planes(t)
        if isinstance(node.operator, Pool) and not planes.contiguous:
            return "plain"
        if t in self.added:
            return "planes"
        unread = not readers and t in self.results
        pooled = any(isinstance(reader.operator, Pool) for reader in readers) and not planes.contiguous
        features = any(isinstance(r.operator, Linear | RowWise | Gather) or self._on_vectors(r) for r in readers)
        return "plain" if unread or pooled or features or t in self.whole else "planes"

    def _on_vectors(self, node: Node) -> bool:
        """Whether a node is a convolution of one image of one position, which is an SpMV unless it reads padding."""
        if not isinstance(node.operator, Conv) or self.images != 1:
            return False
        g = node.operator.geometry
        return g.groups == g.positions == 1 == max(*g.spatial, *g.kernel) and not any(front for front, _ in g.padding)

    def _memory_of(self, t: int) -> tuple[int, Zeros | None, int]:
        planes, images = self._in_planes(t), self.images
        zeros = None
        if not planes.contiguous:
            between = planes.image_stride if images > 1 else 0
            strides = tuple(n * planes.size for n in planes.strides)
            zeros = Zeros(planes.channel_stride, between, planes.spatial, strides, planes.corner, planes.size)
        return images * planes.image_stride + planes.slack, zeros, planes.channel_stride

    # --- changing forms --------------------------------------------------------------------------

    def _lay_out(self, t: int, node: Node) -> None:
        self._get(t, "plain", node)
        self._copy(t, "plain", "planes", self._new(t, "planes"), name_before(node))

    def _copy_out(self, t: int, target: Place, name: str) -> None:
        form = "planes" if (t, "planes") in self.forms else "plain"
        self._copy(t, form, "plain", target, name)

    def _copy(self, t: int, source: str, form: str, target: Place, name: str) -> None:
        """Step that copies an image from form to form; the padding of planes is zero already."""
        rows, place = _rows_of(self._planes(t, form), self.target), self.forms[t, source]
        kernel = "copy" if form == "plain" else "pack into planes"
        self._pack(self._planes(t, source), place, rows, target, name, kernel)

    def _pack(
        self, x: PaddedPlanes, source: Place, planes: PaddedPlanes | PhasePlanes, target: Place, name: str, kernel: str
    ) -> None:  # fmt: skip
        rows = None if x.contiguous else x.row_offsets.ravel()
        # The padding of planes in a buffer of its layout class is zero already.
        launch = pack_padded(
            planes, x.channels, self.images, x.image_stride, x.channel_stride, self.target, rows,
            clear=isinstance(planes, PhasePlanes),
        )  # fmt: skip
        self._add(name, kernel, None, (source,), target, launch, ("user", "planes"))

    # --- nodes on images -------------------------------------------------------------------------

    def _conv(self, node: Node, op: Conv) -> None:
        if node.output in self.by_channels:
            return  # its reader adds it
        if self._on_vectors(node):
            self._spmv(node, op)
            return
        if node.output in self.expansions:
            self._depthwise(self.expansions[node.output], node, op)
            return
        t = self.roots[node.inputs[0]]
        residual = None if node.residual is None else self._get(self.roots[node.residual], "planes", node)
        form = self._written(node)
        if node.output in self.padding_readers:
            self._get(t, "planes", node)
        have = "planes" if (t, "planes") in self.forms else "plain"
        source, x, y = self._get(t, have, node), self._planes(t, have), self._planes(node.output, form)
        fresh = self.roots[node.residual] != t if node.residual is not None else False

        def target() -> Place:
            return self._target(node.output, form, residual if fresh else None)

        self._add_conv(node, op, x, source, y, residual, target)

    def _add_conv(
        self, node: Node, op: Conv, x: PaddedPlanes, source: Place, y: PaddedPlanes, residual: Place | None,
        target: Callable[[], Place] | Place,
    ) -> None:  # fmt: skip
        """The step of a convolution, behind one that packs its input if need be; a new target is made between them."""
        if not _has_full_windows(op):
            product = self._product(node, op, x, source, y)
            self._add_product(node, op, product, y, residual, target() if callable(target) else target)
            return
        launch = depthwise.prepare(
            x, y, op.geometry, op.weight, op.bias, op.activation, self.images, self.target, residual is not None
        )
        sources = (source,) if residual is None else (source, residual)
        operands = ("x", "y") if residual is None else ("x", "residual", "y")
        self._add(
            node.name,
            "depthwise on padded planes",
            node,
            sources,
            target() if callable(target) else target,
            launch,
            operands,
        )

    def _product(self, node: Node, op: Conv, x: PaddedPlanes, source: Place, y: PaddedPlanes) -> _Product:
        """The product of a convolution from planes to planes; its input is split into phases now if need be."""
        geometry, images = op.geometry, self.images
        if _steps_by_one(node):
            weight = planned(op.weight, plan_between_padded, geometry, x, y, self.target, images)
            return _Product(weight, "on padded planes", source, x.image_stride)
        phases = plan_padded(op.weight.pattern, geometry, self.target, images, y.all_offsets())
        image_stride = geometry.channels * phases.x.channel_stride
        place = self._buffer(images * image_stride + phases.x.slack, plane=phases.x.channel_stride)
        self._pack(x, source, phases.x, place, name_before(node), "pack into phase planes")
        return _Product(packed(op.weight, phases.spmm), "on phase planes", place, image_stride)

    def _add_product(
        self, node: Node, op: Conv, product: _Product, y: PaddedPlanes, residual: Place | None, target: Place
    ) -> None:  # fmt: skip
        weight, where, source, image_stride = product
        self._add_weighted(
            node, op, weight, where, source, residual, target, y_row_stride=y.channel_stride, batches=self.images,
            x_batch_stride=image_stride, y_batch_stride=y.image_stride,
        )  # fmt: skip

    # --- some channels at a time -----------------------------------------------------------------

    def _piece_bytes(self) -> int:
        """Bytes of the channels that are computed at a time: each worker has its part of them in a cache."""
        return self.target.heuristics.expanded_bytes * self.target.threads

    def _expansions(self) -> dict[int, Node]:
        """Products that a depthwise convolution alone reads, and that would leave a near cache, by its output."""
        limit, found = self._piece_bytes(), dict[int, Node]()
        products = {n.output: n for n in self.early if n.output in self.padding_readers and n.residual is None}
        for node in self.early:
            op, first = node.operator, products.get(self.roots[node.inputs[0]])
            if first is None or not isinstance(op, Conv) or node.residual is not None or self._on_vectors(node):
                continue
            t, u, geometry = first.output, node.output, op.geometry
            assert isinstance(first.operator, Conv)
            each = geometry.groups == geometry.channels == geometry.out_channels
            alone = len(self.readers[t]) == 1 and not {t, u} & set(self.results) and t not in self.added
            if each and alone and first.operator.geometry.groups == 1 and self._sample(t) > limit:
                found[u] = first
        return found

    def _depthwise(self, first: Node, node: Node, op: Conv) -> None:
        """A product and the depthwise convolution that reads it, some channels at a time: what is between them stays in
        a near cache, and takes no more memory than that."""
        assert isinstance(first.operator, Conv)
        t, channels = first.output, op.geometry.channels
        x, source = (
            self._in_planes(self.roots[first.inputs[0]]),
            self._get(self.roots[first.inputs[0]], "planes", first),
        )
        between, y = self._in_planes(t), self._planes(node.output, self._written(node))
        count = max(1, self._piece_bytes() // between.channel_stride)
        _, zeros, _ = self._memory_of(t)
        place = self._buffer(
            min(count, channels) * between.channel_stride + between.slack, zeros, plane=between.channel_stride
        )
        target = self._target(node.output, self._written(node))
        for start in range(0, channels, count):
            stop = min(channels, start + count)
            part, expanded, windowed = replace(between, channels=stop - start), *(
                _channels(o, start, stop) for o in (first.operator, op)
            )  # fmt: skip
            self._add_product(first, expanded, self._product(first, expanded, x, source, part), part, None, place)
            to = target[0], target[1] + start * y.channel_stride
            self._add_conv(node, windowed, part, place, replace(y, channels=stop - start), None, to)

    def _pool(self, node: Node, op: Pool) -> None:
        t, form = self.roots[node.inputs[0]], self._written(node)
        have = "planes" if (t, "planes") in self.forms and self._in_planes(t).contiguous else "plain"
        source = self._get(t, have, node)
        target = self._target(node.output, form)
        self._pool_planes(node, op, self._planes(t, have), source, self._planes(node.output, form), target)

    def _interpolate(self, node: Node, op: Interpolate) -> None:
        t, form = self.roots[node.inputs[0]], self._written(node)
        residual = None if node.residual is None else self._get(self.roots[node.residual], form, node)
        have = "planes" if (t, "planes") in self.forms else "plain"
        source, y = self._get(t, have, node), self._planes(node.output, form)
        target = self._target(node.output, form, residual)
        self._add_interpolation(node, op, self._planes(t, have), source, residual, y, target)

    def _gate(self, node: Node) -> None:
        t, g, form = self.roots[node.inputs[0]], self.roots[node.inputs[1]], self._written(node)
        have, gate_form = ("planes" if (s, "planes") in self.forms else "plain" for s in (t, g))
        source, gate_source = self._get(t, have, node), self._get(g, gate_form, node)
        x, gate, y = (Image.padded(self._planes(s, f)) for s, f in ((t, have), (g, gate_form), (node.output, form)))
        target = self._target(node.output, form, source if x == y else None)
        self._add_gate(node, "on padded planes", x, source, gate, gate_source, y, target)


def _channels(op: Conv, start: int, stop: int) -> Conv:
    """Some output channels of a convolution, and of a depthwise one the input channels that they read."""
    indptr, geometry, count = op.weight.indptr, op.geometry, stop - start
    kept = slice(int(indptr[start]), int(indptr[stop]))
    weight = CSR(
        indptr[start : stop + 1] - indptr[start], op.weight.indices[kept], op.weight.data[kept],
        (count, op.weight.shape[1]),
    )  # fmt: skip
    read, groups = (geometry.channels, 1) if geometry.groups == 1 else (count, count)
    geometry = replace(geometry, channels=read, out_channels=count, groups=groups)
    bias = None if op.bias is None else op.bias[start:stop].copy()
    return replace(op, weight=weight, bias=bias, geometry=geometry)


def _rows_of(planes: PaddedPlanes, target: Target) -> PaddedPlanes:
    """The planes with the offsets of their rows, which those of the user do without."""
    if len(planes.row_offsets):
        return planes
    rows = np.arange(planes.rows, dtype=np.int64) * (planes.spatial[-1] if planes.spatial else 1) * target.size
    spatial = planes.spatial or (1,)
    return replace(planes, spatial=spatial, row_offsets=rows.reshape(-1, 1), firsts=np.zeros(1, np.int64))


def _has_full_windows(op: Conv) -> bool:
    """Whether the kernel of depthwise convolutions runs it."""
    return depthwise.serves(op.geometry, op.weight)


def _reads_padding(node: Node) -> bool:
    """Whether the node is a convolution that reads the planes of its layout class, with their padding."""
    return isinstance(node.operator, Conv) and _steps_by_one(node) and not _has_full_windows(node.operator)


def _steps_by_one(node: Node) -> bool:
    """Whether the node is a convolution of stride 1."""
    return isinstance(node.operator, Conv) and set(node.operator.geometry.stride) == {1}


schedule = _PaddedLowering.schedule
