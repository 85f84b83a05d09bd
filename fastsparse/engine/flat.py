"""Programs on flat planes: single images, for batches too small to fill vectors with samples.

The form "planes" is what convolutions of stride 1 read: zero-padded as all of them need, and equal for tensors that are
added to one another. Convolutions of other strides have their input split into phase planes of their own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastsparse import launch, launch_layout
from fastsparse.engine import split
from fastsparse.engine.by_image import Lowering, name_before
from fastsparse.engine.products import packed, planned
from fastsparse.engine.program import Conv, Linear, Node, Pool, Program
from fastsparse.engine.schedule import Place, Zeros
from fastsparse.plan.conv import FlatConv, conv_flat
from fastsparse.plan.flat import FlatPlanes, conv_flat_between, padded_planes
from fastsparse.plan.linear import Machine


class _FlatLowering(Lowering):
    """As `Lowering`, with images on flat planes."""

    def __init__(self, program: Program, batch: int, sizes: split.Split, machine: Machine) -> None:
        super().__init__(program, batch, sizes, machine)
        self.planes: dict[int, FlatPlanes] = {}

    # --- where tensors lie ---------------------------------------------------------------------

    def _in_planes(self, t: int) -> FlatPlanes:
        """The planes of all tensors that lie like this one, for all convolutions of stride 1 on any of them."""
        leader = self.alike[t]
        if leader not in self.planes:
            alike = [other for other in self.readers if self.alike[other] == leader]
            geometries = [
                node.operator.geometry
                for other in alike for node in self.readers[other]
                if isinstance(node.operator, Conv) and _steps_by_one(node)
            ]  # fmt: skip
            channels, *spatial = self.program.shapes[leader]
            self.planes[leader] = padded_planes(channels, tuple(spatial), geometries, self.m)
        return self.planes[leader]

    def _planes(self, t: int, form: str) -> FlatPlanes:
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
        features = t in self.whole or any(isinstance(reader.operator, Linear) for reader in readers)
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
        """Step that copies an image from form to form; borders of planes are zero already."""
        rows = _rows_of(self._planes(t, form), self.m)
        self._pack(t, source, rows, target, name, "copy" if form == "plain" else "pack into planes")

    def _pack(self, t: int, form: str, planes: FlatPlanes | FlatConv, target: Place, name: str, kernel: str) -> None:
        x, m, images = self._planes(t, form), self.m, self.images
        sources = None if x.contiguous else x.places.ravel()
        zeroed = not isinstance(planes, FlatPlanes)

        def make(a: int, b: int, scratch: int) -> launch.Call:
            call = launch_layout.pack_flat_call(
                a, x.image_stride, x.channel_stride, planes, x.channels, b, images, m, sources
            )  # fmt: skip
            if not zeroed:
                call.record.set(channel_vectors=0)
            return call

        self._add(name, kernel, None, (self.forms[t, form],), target, make, fields=("user", "flat"))

    # --- nodes on images -------------------------------------------------------------------------

    def _conv(self, node: Node, op: Conv) -> None:
        t, m, geometry, images = self.roots[node.inputs[0]], self.m, op.geometry, self.images
        residual = None if node.residual is None else self._get(self.roots[node.residual], "planes", node)
        form = self._written(node)
        y = self._planes(node.output, form)
        if _steps_by_one(node):
            x, where = self._in_planes(t), "on flat planes"
            source = self._get(t, "planes", node)
            product = planned(op.weight, lambda p: conv_flat_between(p, geometry, x, y, m, images))
            image_stride = x.image_stride
        else:
            phases = conv_flat(op.weight.pattern, geometry, m, images, y.all_places())
            image_stride, where = geometry.channels * phases.channel_stride, "on phase planes"
            product = packed(op.weight, phases.spmm)
            have = "planes" if (t, "planes") in self.forms else "plain"
            source = self._buffer(images * image_stride + phases.slack)
            self._pack(t, have, phases, source, name_before(node), "pack into phase planes")
        fresh = self.roots[node.residual] != t if node.residual is not None else False
        target = self._target(node.output, form, residual if fresh else None)
        self._add_product(
            node, op, product, where, source, residual, target, y_row_stride=y.channel_stride, batches=images,
            x_batch_stride=image_stride, y_batch_stride=y.image_stride,
        )  # fmt: skip

    def _pool(self, node: Node, op: Pool) -> None:
        t, form = self.roots[node.inputs[0]], self._written(node)
        have = "planes" if (t, "planes") in self.forms and self._in_planes(t).contiguous else "plain"
        source = self._get(t, have, node)
        target = self._target(node.output, form)
        self._pool_planes(node, op, self._planes(t, have), source, self._planes(node.output, form), target)


def _rows_of(planes: FlatPlanes, m: Machine) -> FlatPlanes:
    """The planes with the places of their rows, which plain ones do without."""
    if len(planes.places):
        return planes
    rows = np.arange(planes.rows, dtype=np.int64) * (planes.spatial[-1] if planes.spatial else 1) * m.size
    spatial = planes.spatial or (1,)
    return replace(planes, spatial=spatial, places=rows.reshape(-1, 1), firsts=np.zeros(1, np.int64))


def _steps_by_one(node: Node) -> bool:
    """Whether the node is a convolution of stride 1."""
    return isinstance(node.operator, Conv) and set(node.operator.geometry.stride) == {1}


flat_schedule = _FlatLowering.schedule
