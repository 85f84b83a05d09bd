"""Programs on padded planes: single images, for batches too small to fill vectors with samples.

The form "planes" is what convolutions of stride 1 read: zero-padded as all of them need, and equal for tensors that are
added to one another. Convolutions of other strides have their input split into phase planes of their own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastsparse.engine import split
from fastsparse.engine.lowering.images import Lowering, name_before
from fastsparse.engine.lowering.weights import packed, planned
from fastsparse.engine.program import Conv, Gather, Linear, Node, Pool, Program, RowWise
from fastsparse.engine.schedule import Place, Zeros
from fastsparse.ops.conv import plan_between_padded, plan_padded
from fastsparse.ops.gates import Image
from fastsparse.ops.layouts import PaddedPlanes, PhasePlanes, pack_padded, padded_planes
from fastsparse.ops.target import Target


class _PaddedLowering(Lowering):
    """As `Lowering`, with images on padded planes."""

    def __init__(self, program: Program, batch: int, sizes: split.Split, target: Target) -> None:
        super().__init__(program, batch, sizes, target)
        self.planes: dict[int, PaddedPlanes] = {}

    # --- layouts of tensors ---------------------------------------------------------------------

    def _in_planes(self, t: int) -> PaddedPlanes:
        """The planes of this tensor's layout class, for all convolutions of stride 1 on any of them."""
        leader = self.classes[t]
        if leader not in self.planes:
            members = [other for other in self.readers if self.classes[other] == leader]
            geometries = [
                node.operator.geometry
                for other in members for node in self.readers[other]
                if isinstance(node.operator, Conv) and _steps_by_one(node)
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
        features = t in self.whole or any(isinstance(reader.operator, Linear | RowWise | Gather) for reader in readers)
        return "plain" if unread or pooled or features else "planes"

    def _memory_of(self, t: int) -> tuple[int, Zeros | None]:
        planes, images = self._in_planes(t), self.images
        zeros = None
        if not planes.contiguous:
            between = planes.image_stride if images > 1 else 0
            strides = tuple(n * planes.size for n in planes.strides)
            zeros = Zeros(planes.channel_stride, between, planes.spatial, strides, planes.corner, planes.size)
        return images * planes.image_stride + planes.slack, zeros

    # --- changing forms --------------------------------------------------------------------------

    def _lay_out(self, t: int, node: Node) -> None:
        self._get(t, "plain", node)
        self._copy(t, "plain", "planes", self._new(t, "planes"), name_before(node))

    def _copy_out(self, t: int, target: Place, name: str) -> None:
        form = "planes" if (t, "planes") in self.forms else "plain"
        self._copy(t, form, "plain", target, name)

    def _copy(self, t: int, source: str, form: str, target: Place, name: str) -> None:
        """Step that copies an image from form to form; the padding of planes is zero already."""
        rows = _rows_of(self._planes(t, form), self.target)
        self._pack(t, source, rows, target, name, "copy" if form == "plain" else "pack into planes")

    def _pack(
        self, t: int, form: str, planes: PaddedPlanes | PhasePlanes, target: Place, name: str, kernel: str
    ) -> None:
        x = self._planes(t, form)
        rows = None if x.contiguous else x.row_offsets.ravel()
        # The padding of planes in a buffer of its layout class is zero already.
        launch = pack_padded(
            planes, x.channels, self.images, x.image_stride, x.channel_stride, self.target, rows,
            clear=isinstance(planes, PhasePlanes),
        )  # fmt: skip
        self._add(name, kernel, None, (self.forms[t, form],), target, launch, ("user", "planes"))

    # --- nodes on images -------------------------------------------------------------------------

    def _conv(self, node: Node, op: Conv) -> None:
        t, geometry, images = self.roots[node.inputs[0]], op.geometry, self.images
        residual = None if node.residual is None else self._get(self.roots[node.residual], "planes", node)
        form = self._written(node)
        y = self._planes(node.output, form)
        if _steps_by_one(node):
            x, where = self._in_planes(t), "on padded planes"
            source = self._get(t, "planes", node)
            weight = planned(op.weight, lambda p: plan_between_padded(p, geometry, x, y, self.target, images))
            image_stride = x.image_stride
        else:
            phases = plan_padded(op.weight.pattern, geometry, self.target, images, y.all_offsets())
            image_stride, where = geometry.channels * phases.x.channel_stride, "on phase planes"
            weight = packed(op.weight, phases.spmm)
            have = "planes" if (t, "planes") in self.forms else "plain"
            source = self._buffer(images * image_stride + phases.x.slack)
            self._pack(t, have, phases.x, source, name_before(node), "pack into phase planes")
        fresh = self.roots[node.residual] != t if node.residual is not None else False
        target = self._target(node.output, form, residual if fresh else None)
        self._add_weighted(
            node, op, weight, where, source, residual, target, y_row_stride=y.channel_stride, batches=images,
            x_batch_stride=image_stride, y_batch_stride=y.image_stride,
        )  # fmt: skip

    def _pool(self, node: Node, op: Pool) -> None:
        t, form = self.roots[node.inputs[0]], self._written(node)
        have = "planes" if (t, "planes") in self.forms and self._in_planes(t).contiguous else "plain"
        source = self._get(t, have, node)
        target = self._target(node.output, form)
        self._pool_planes(node, op, self._planes(t, have), source, self._planes(node.output, form), target)

    def _gate(self, node: Node) -> None:
        t, g, form = self.roots[node.inputs[0]], self.roots[node.inputs[1]], self._written(node)
        have, gate_form = ("planes" if (s, "planes") in self.forms else "plain" for s in (t, g))
        source, gate_source = self._get(t, have, node), self._get(g, gate_form, node)
        x, gate, y = (Image.padded(self._planes(s, f)) for s, f in ((t, have), (g, gate_form), (node.output, form)))
        target = self._target(node.output, form, source if x == y else None)
        self._add_gate(node, "on padded planes", x, source, gate, gate_source, y, target)


def _rows_of(planes: PaddedPlanes, target: Target) -> PaddedPlanes:
    """The planes with the offsets of their rows, which those of the user do without."""
    if len(planes.row_offsets):
        return planes
    rows = np.arange(planes.rows, dtype=np.int64) * (planes.spatial[-1] if planes.spatial else 1) * target.size
    spatial = planes.spatial or (1,)
    return replace(planes, spatial=spatial, row_offsets=rows.reshape(-1, 1), firsts=np.zeros(1, np.int64))


def _steps_by_one(node: Node) -> bool:
    """Whether the node is a convolution of stride 1."""
    return isinstance(node.operator, Conv) and set(node.operator.geometry.stride) == {1}


schedule = _PaddedLowering.schedule
