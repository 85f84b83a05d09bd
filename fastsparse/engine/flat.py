"""Programs on flat planes: single images, for batches too small to fill vectors with samples.

A convolution of stride 1 writes the zero-padded planes that the next one reads. Where another kind of layer meets, the
tensor lies as the user would have it and is packed for the convolution behind it. Linear layers of one sample are
SpMV; those of a few samples go through lanes layout.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from fastsparse import launch, launch_engine
from fastsparse._linear import packed_values
from fastsparse.engine.program import Conv, Linear, Node, Pool, Program, Reshape
from fastsparse.engine.schedule import SAMPLES, USER, Buffer, MakeCall, Patch, Place, Schedule, Step, X, Y
from fastsparse.plan import linear as linear_plans
from fastsparse.plan.conv import conv_flat
from fastsparse.plan.flat import FlatPlanes, conv_flat_between, padded_planes, plain_planes
from fastsparse.plan.lanes import LanesPlanes, lanes_planes, linear_between
from fastsparse.plan.linear import Machine
from fastsparse.plan.pooling import forward_bands


def flat_schedule(program: Program, batch: int, machine: Machine) -> Schedule:
    """The schedule for `batch` samples: one task, whose steps all workers share."""
    lowering = _Lowering(program, batch, machine)
    lowering.lower()
    return Schedule(lowering.steps, lowering.buffers, 1, machine.workers, False)


class _Lowering:
    """Steps and buffers are appended node by node; `forms` knows where a tensor lies in which layout."""

    def __init__(self, program: Program, batch: int, machine: Machine) -> None:
        self.program, self.batch, self.m = program, batch, machine
        self.roots = program.roots()
        self.steps: list[Step] = []
        self.buffers: list[Buffer] = []
        (source,), (result,) = program.inputs, program.outputs
        self.result = self.roots[result]
        # (tensor, form) -> place; form is "plain", "padded" or "lanes".
        self.forms: dict[tuple[int, str], Place] = {(source, "plain"): (USER, 0)}
        self.planes: dict[int, FlatPlanes] = {}

    def lower(self) -> None:
        for node in self.program.nodes:
            if isinstance(node.operator, Conv):
                self._conv(node, node.operator)
            elif isinstance(node.operator, Pool):
                self._pool(node, node.operator)
            elif isinstance(node.operator, Linear):
                self._spmv(node, node.operator) if self.batch == 1 else self._linear(node, node.operator)
        if (self.result, "lanes") in self.forms:
            self._unpack(self.result)
        elif self.result == self.program.inputs[0]:
            self._copy()

    # --- where tensors lie ---------------------------------------------------------------------

    def _readers(self, t: int) -> list[Node]:
        return [n for n in self.program.nodes if not isinstance(n.operator, Reshape) and self.roots[n.inputs[0]] == t]

    def _padded(self, t: int) -> FlatPlanes:
        """The padded planes that all stride-1 convolutions on the tensor read."""
        if t not in self.planes:
            readers = [n.operator.geometry for n in self._readers(t) if _steps_by_one(n)]  # type: ignore[union-attr]
            channels, *spatial = self.program.shapes[t]
            self.planes[t] = padded_planes(channels, tuple(spatial), readers, self.m)
        return self.planes[t]

    def _plain(self, t: int) -> FlatPlanes:
        channels, *spatial = self.program.shapes[t]
        return plain_planes(channels, tuple(spatial), self.m)

    def _target(self, t: int, convolved: bool) -> tuple[FlatPlanes, Place]:
        """Where a node writes the tensor: to the padded planes only when nobody wants it plain."""
        readers = self._readers(t)
        if convolved and t != self.result and readers and all(map(_steps_by_one, readers)):
            planes = self._padded(t)
            return planes, self._new(t, "padded", planes)
        plain = self._plain(t)
        if t == self.result and not readers:
            self.forms[t, "plain"] = (USER, 0)
            return plain, (USER, 0)
        return plain, self._new(t, "plain", plain)

    def _new(self, t: int, form: str, planes: FlatPlanes | LanesPlanes) -> Place:
        layout: Hashable = None
        if isinstance(planes, FlatPlanes):
            size = self.batch * planes.image_stride + planes.slack
            if form == "padded":
                between = planes.image_stride if self.batch > 1 else 0
                layout = (planes.channel_stride, planes.spatial, planes.strides, planes.corner, between)
        else:
            size = self._groups * planes.group_stride
        self.forms[t, form] = place = self._buffer(size, layout)
        return place

    def _buffer(self, size: int, layout: Any = None) -> Place:
        """A buffer that the next step writes."""
        now = len(self.steps)
        self.buffers.append(Buffer(size, now, now, layout))
        return len(self.buffers) - 1, 0

    def _read(self, place: Place) -> None:
        """The next step reads the buffer."""
        if place[0] != USER:
            self.buffers[place[0]] = replace(self.buffers[place[0]], last=len(self.steps))

    def _add(
        self, name: str, kernel: str, node: Node | None, source: Place, target: Place, make: MakeCall, *,
        scratch: int = 0, fields: tuple[str, str] = ("x", "y"), samples: bool = False,
    ) -> None:  # fmt: skip
        """Append a step; `fields` are the record's names for the arrays it reads and writes."""
        self._read(source)
        patches = [Patch(f, v, 0, 0) for f, v, p in zip(fields, (X, Y), (source, target)) if p[0] == USER]
        if samples:
            patches.append(Patch("samples", SAMPLES, 0, 0))
        self.steps.append(Step(name, kernel, node, source, target, make, scratch, tuple(patches)))

    # --- nodes ---------------------------------------------------------------------------------

    def _conv(self, node: Node, op: Conv) -> None:
        t, m, geometry, batch = self.roots[node.inputs[0]], self.m, op.geometry, self.batch
        x: Any
        if _steps_by_one(node):
            x, source = self._padded(t), self._packed(t, node)
            y, target = self._target(node.output, True)
            plan = conv_flat_between(op.weight.pattern, geometry, x, y, m, batch)
            image_stride, kind = x.image_stride, "flat planes"
        else:
            x = conv_flat(op.weight.pattern, geometry, m, batch)
            image_stride, plan, kind = geometry.channels * x.channel_stride, x.spmm, "phase planes"
            source = self._buffer(batch * image_stride + x.slack)
            self._pack(t, x, source, image_stride, node)
            y, target = self._target(node.output, False)
        values = packed_values(op.weight, plan.operator)
        self._add(
            node.name, f"spmm on {kind}, tile {plan.tiles.width}", node, source, target,
            lambda a, b, scratch: launch.spmm_call(
                plan, values, a, b, m, scratch=scratch, y_row_stride=y.channel_stride, batches=batch,
                x_batch_stride=image_stride, y_batch_stride=y.image_stride, bias=op.bias, activation=op.activation,
            ),
            scratch=launch.spmm_scratch(plan, m),
        )  # fmt: skip

    def _packed(self, t: int, node: Node) -> Place:
        """The tensor in padded planes, packed now if nobody wrote it so."""
        if (t, "padded") not in self.forms:
            planes = self._padded(t)
            target = self._new(t, "padded", planes)
            self._pack(t, planes, target, planes.image_stride, node, borders=False)
        return self.forms[t, "padded"]

    def _pack(self, t: int, planes: Any, target: Place, image_stride: int, node: Node, borders: bool = True) -> None:
        """Step from plain to (phase) planes, for `node`; without `borders` the image's zeros are there already."""
        m, batch, channels = self.m, self.batch, self.program.shapes[t][0]
        sample, channel = (math.prod(self.program.shapes[t][i:]) * m.size for i in (0, 1))

        def make(a: int, b: int, scratch: int) -> launch.Call:
            call = launch.pack_flat_call(a, sample, channel, planes, channels, b, batch, m)
            if not borders:
                call.record.set(channel_vectors=0)
            return call

        source = self.forms[t, "plain"]
        self._add(_before(node), "pack into planes", None, source, target, make, fields=("user", "flat"))

    def _pool(self, node: Node, op: Pool) -> None:
        t, m = self.roots[node.inputs[0]], self.m
        planes = self.batch * self.program.shapes[t][0]
        bands = forward_bands(op.windows, m.vector, -(-planes // m.lanes), m.workers)
        _, target = self._target(node.output, False)
        self._add(
            node.name, f"{op.kind} pool", node, self.forms[t, "plain"], target,
            lambda a, b, scratch: launch_engine.pool_call(op.kind, op.windows, bands, a, b, planes, m, scratch=scratch),
            scratch=launch_engine.pool_scratch(op.windows, bands, m)[0],
        )  # fmt: skip

    def _spmv(self, node: Node, op: Linear) -> None:
        t, m, pattern = self.roots[node.inputs[0]], self.m, op.weight.pattern
        plan = linear_plans.spmv(pattern, m.workers)
        _, target = self._target(node.output, False)
        self._add(
            node.name, "spmv", node, self.forms[t, "plain"], target,
            lambda a, b, scratch: launch.spmv_call(
                plan, pattern.indptr, op.weight.data, a, b, m, scratch=scratch, y_stride=m.size, bias=op.bias,
                activation=op.activation,
            ),
            scratch=m.vector,
        )  # fmt: skip

    # --- linear layers of a few samples ----------------------------------------------------------

    @property
    def _groups(self) -> int:
        return -(-self.batch // self.m.lanes)

    def _features(self, t: int) -> tuple[LanesPlanes, LanesPlanes, int]:
        """The tensor in lanes layout: as channels, as one plane of features, and bytes of a sample."""
        features = math.prod(self.program.shapes[t])
        planes = lanes_planes(features, (), (), self.m)
        return planes, replace(planes, channels=1, positions=features), features * self.m.size

    def _linear(self, node: Node, op: Linear) -> None:
        t, m, groups = self.roots[node.inputs[0]], self.m, self._groups
        (x, one, sample), (y, _, _) = self._features(t), self._features(node.output)
        batch = self.batch
        if (t, "lanes") not in self.forms:
            plain = self.forms[t, "plain"]
            target = self._new(t, "lanes", x)
            self._add(
                _before(node), f"pack into lanes of {m.lanes}", None, plain, target,
                lambda a, b, scratch: launch.pack_lanes_call(a, sample, sample, one, b, batch, m),
                fields=("user", "lanes"), samples=True,
            )  # fmt: skip
        plan = linear_between(op.weight.pattern, x, y, m, groups)
        values = packed_values(op.weight, plan.operator)
        source = self.forms[t, "lanes"]
        self._add(
            node.name, f"spmm in lanes, tile {plan.tiles.width}", node, source, self._new(node.output, "lanes", y),
            lambda a, b, scratch: launch.spmm_call(
                plan, values, a, b, m, scratch=scratch, y_row_stride=m.vector, bias=op.bias, activation=op.activation
            ),
            scratch=launch.spmm_scratch(plan, m),
        )  # fmt: skip

    def _unpack(self, t: int) -> None:
        _, one, sample = self._features(t)
        m, batch = self.m, self.batch
        self._add(
            "output", "unpack", None, self.forms[t, "lanes"], (USER, 0),
            lambda a, b, scratch: launch.unpack_lanes_call(a, one, b, sample, sample, batch, m),
            fields=("lanes", "user"), samples=True,
        )  # fmt: skip

    def _copy(self) -> None:
        """The program does nothing: through lanes layout and back."""
        t, m, batch = self.result, self.m, self.batch
        planes, one, sample = self._features(t)
        place = self._new(t, "lanes", planes)
        self._add(
            "input", f"pack into lanes of {m.lanes}", None, (USER, 0), place,
            lambda a, b, scratch: launch.pack_lanes_call(a, sample, sample, one, b, batch, m),
            fields=("user", "lanes"), samples=True,
        )  # fmt: skip
        self._unpack(t)


def _before(node: Node) -> str:
    """What the report calls a step that prepares a node's input."""
    return node.name.partition(" ")[0]


def _steps_by_one(node: Node) -> bool:
    """Whether the node is a convolution of stride 1."""
    return isinstance(node.operator, Conv) and set(node.operator.geometry.stride) == {1}
