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
from fastsparse.engine import split
from fastsparse.engine.program import Conv, Linear, Node, Pool, Program, Reshape
from fastsparse.engine.schedule import USER, Buffer, MakeCall, Patch, Place, Schedule, Step, X, Y
from fastsparse.plan import linear as linear_plans
from fastsparse.plan.conv import conv_flat
from fastsparse.plan.flat import FlatPlanes, conv_flat_between, padded_planes, plain_planes
from fastsparse.plan.lanes import LanesPlanes, lanes_planes, linear_between
from fastsparse.plan.linear import Machine
from fastsparse.plan.pooling import forward_bands


def flat_schedule(program: Program, batch: int, machine: Machine, sizes: split.Split | None = None) -> Schedule:
    """The schedule for `batch` samples. `sizes` is how they are cut, by `split.choose_images` when not given."""
    if sizes is None:
        sizes = split.choose_images(_work_of(program), batch, machine.workers)
    lowering = _Lowering(program, batch, sizes, replace(machine, workers=1) if sizes.per_worker else machine)
    return Schedule(lowering.lower(), lowering.buffers, batch // sizes.outer, machine.workers, sizes.per_worker)


def _work_of(program: Program) -> split.Work:
    """What one sample costs."""
    flops, live = [0.0, 0.0], [0, 0]
    for node in program.nodes:
        stage = isinstance(node.operator, Linear)
        size = sum(math.prod(program.shapes[t]) for t in (*node.inputs, node.output)) * program.dtype.itemsize
        live[stage] = max(live[stage], size)
        if isinstance(node.operator, Conv | Linear):
            flops[stage] += node.operator.useful_flops
    return split.Work(flops[0], flops[1], live[0], live[1], len(program.nodes))


class _Lowering:
    """Steps and buffers are appended node by node; `forms` knows where a tensor lies in which layout.

    Layers on images are lowered once, for `inner` images, and repeated until `outer` images are done; what linear
    layers read of them is kept for all of these.
    """

    def __init__(self, program: Program, batch: int, sizes: split.Split, machine: Machine) -> None:
        self.program, self.batch, self.m = program, batch, machine
        self.outer, self.inner = sizes.outer, sizes.inner
        self.roots = program.roots()
        self.steps: list[Step] = []
        self.buffers: list[Buffer] = []
        (source,), (result,) = program.inputs, program.outputs
        self.result = self.roots[result]
        self.sample_bytes = [math.prod(program.shapes[t]) * machine.size for t in (source, result)]
        # (tensor, form) -> place; form is "plain", "padded" or "lanes".
        self.forms: dict[tuple[int, str], Place] = {(source, "plain"): (USER, 0)}
        self.planes: dict[int, FlatPlanes] = {}
        late = [node for node in program.nodes if isinstance(node.operator, Linear)]
        self.whole = {self.roots[node.inputs[0]] for node in late}
        self.per_image: dict[int, int] = {}  # bytes of an image in the buffers that hold all images of a task

    def lower(self) -> list[Step]:
        """All steps of a task."""
        for node in self.program.nodes:
            if isinstance(node.operator, Conv):
                self._conv(node, node.operator)
            elif isinstance(node.operator, Pool):
                self._pool(node, node.operator)
        repeated = [self._moved(step, first) for first in range(0, self.outer, self.inner) for step in self.steps]
        before = len(self.steps)
        for node in self.program.nodes:
            if isinstance(node.operator, Linear):
                (self._spmv if self.batch == 1 else self._linear)(node, node.operator)
        if (self.result, "lanes") in self.forms:
            self._unpack(self.result)
        elif self.result == self.program.inputs[0]:
            self._copy()
        return repeated + self.steps[before:]

    def _moved(self, step: Step, first: int) -> Step:
        """The step on the images from `first` on."""

        def moved(place: Place) -> Place:
            return place[0], place[1] + first * self.per_image.get(place[0], 0)

        patches = tuple(replace(p, offset=first * self.sample_bytes[p.variable]) for p in step.patches)
        return replace(step, source=moved(step.source), target=moved(step.target), patches=patches)

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

    def _form(self, t: int, convolved: bool) -> tuple[FlatPlanes, str]:
        """How a node writes the tensor: a convolution into padded planes, unless somebody wants it plain."""
        readers = self._readers(t)
        if convolved and t != self.result and readers and all(map(_steps_by_one, readers)):
            return self._padded(t), "padded"
        return self._plain(t), "plain"

    def _target(self, t: int, convolved: bool) -> tuple[FlatPlanes, Place]:
        """Where a node writes the tensor, and how."""
        planes, form = self._form(t, convolved)
        if t == self.result and not self._readers(t):
            self.forms[t, "plain"] = (USER, 0)
            return planes, (USER, 0)
        return planes, self._new(t, form, planes)

    def _new(self, t: int, form: str, planes: FlatPlanes | LanesPlanes) -> Place:
        layout: Hashable = None
        first = None
        if isinstance(planes, LanesPlanes):
            size = self._groups * planes.group_stride
        elif form == "padded":
            size = self.inner * planes.image_stride + planes.slack
            between = planes.image_stride if self.inner > 1 else 0
            layout = (planes.channel_stride, planes.spatial, planes.strides, planes.corner, between)
        elif t in self.whole:
            size, first = self.outer * planes.image_stride + planes.slack, -1
        else:
            size = self.inner * planes.image_stride + planes.slack
        self.forms[t, form] = place = self._buffer(size, layout, first)
        if first is not None:
            self.per_image[place[0]] = planes.image_stride  # type: ignore[union-attr]
        return place

    def _buffer(self, size: int, layout: Hashable = None, first: int | None = None) -> Place:
        """A buffer that the next step writes, or one that lives from step `first` on."""
        now = len(self.steps)
        self.buffers.append(Buffer(size, now if first is None else first, now, layout))
        return len(self.buffers) - 1, 0

    def _read(self, place: Place) -> None:
        """The next step reads the buffer."""
        if place[0] != USER:
            self.buffers[place[0]] = replace(self.buffers[place[0]], last=len(self.steps))

    def _add(
        self, name: str, kernel: str, node: Node | None, source: Place, target: Place, make: MakeCall, *,
        scratch: int = 0, fields: tuple[str, str] = ("x", "y"),
    ) -> None:  # fmt: skip
        """Append a step; `fields` are the record's names for the arrays it reads and writes."""
        self._read(source)
        patches = tuple(
            Patch(field, variable, 0, self.outer * self.sample_bytes[variable])
            for field, variable, place in zip(fields, (X, Y), (source, target))
            if place[0] == USER
        )
        self.steps.append(Step(name, kernel, node, source, target, make, scratch, patches))

    # --- nodes ---------------------------------------------------------------------------------

    def _conv(self, node: Node, op: Conv) -> None:
        t, m, geometry, images = self.roots[node.inputs[0]], self.m, op.geometry, self.inner
        x: Any
        if _steps_by_one(node):
            x, source = self._padded(t), self._packed(t, node)
            y, target = self._target(node.output, True)
            plan = conv_flat_between(op.weight.pattern, geometry, x, y, m, images)
            image_stride, kind = x.image_stride, "flat planes"
        else:
            places = self._form(node.output, True)[0].all_places()
            x = conv_flat(op.weight.pattern, geometry, m, images, places)
            image_stride, plan, kind = geometry.channels * x.channel_stride, x.spmm, "phase planes"
            source = self._buffer(images * image_stride + x.slack)
            self._pack(t, x, source, node)
            y, target = self._target(node.output, True)
        values = packed_values(op.weight, plan.operator)
        self._add(
            node.name, f"spmm on {kind}, tile {plan.tiles.width}", node, source, target,
            lambda a, b, scratch: launch.spmm_call(
                plan, values, a, b, m, scratch=scratch, y_row_stride=y.channel_stride, batches=images,
                x_batch_stride=image_stride, y_batch_stride=y.image_stride, bias=op.bias, activation=op.activation,
            ),
            scratch=launch.spmm_scratch(plan, m),
        )  # fmt: skip

    def _packed(self, t: int, node: Node) -> Place:
        """The tensor in padded planes, packed now if nobody wrote it so."""
        if (t, "padded") not in self.forms:
            planes = self._padded(t)
            target = self._new(t, "padded", planes)
            self._pack(t, planes, target, node, borders=False)
        return self.forms[t, "padded"]

    def _pack(self, t: int, planes: Any, target: Place, node: Node, borders: bool = True) -> None:
        """Step from plain to (phase) planes, for `node`; without `borders` the image's zeros are there already."""
        m, images, channels = self.m, self.inner, self.program.shapes[t][0]
        sample, channel = (math.prod(self.program.shapes[t][i:]) * m.size for i in (0, 1))

        def make(a: int, b: int, scratch: int) -> launch.Call:
            call = launch.pack_flat_call(a, sample, channel, planes, channels, b, images, m)
            if not borders:
                call.record.set(channel_vectors=0)
            return call

        source = self.forms[t, "plain"]
        self._add(_before(node), "pack into planes", None, source, target, make, fields=("user", "flat"))

    def _pool(self, node: Node, op: Pool) -> None:
        t, m = self.roots[node.inputs[0]], self.m
        planes = self.inner * self.program.shapes[t][0]
        bands = forward_bands(op.windows, m.vector, -(-planes // m.lanes), m.workers)
        _, target = self._target(node.output, False)
        self._add(
            node.name, f"{op.kind} pool", node, self.forms[t, "plain"], target,
            lambda a, b, scratch: launch_engine.pool_call(op.kind, op.windows, bands, a, b, planes, m, scratch=scratch),
            scratch=launch_engine.pool_scratch(op.windows, bands, m),
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
        return -(-self.outer // self.m.lanes)

    def _features(self, t: int) -> tuple[LanesPlanes, LanesPlanes, int]:
        """The tensor in lanes layout: as channels, as one plane of features, and bytes of a sample."""
        features = math.prod(self.program.shapes[t])
        planes = lanes_planes(features, (), (), self.m)
        return planes, replace(planes, channels=1, positions=features), features * self.m.size

    def _linear(self, node: Node, op: Linear) -> None:
        t, m, groups = self.roots[node.inputs[0]], self.m, self._groups
        (x, one, sample), (y, _, _) = self._features(t), self._features(node.output)
        samples = self.outer
        if (t, "lanes") not in self.forms:
            plain = self.forms[t, "plain"]
            target = self._new(t, "lanes", x)
            self._add(
                _before(node), f"pack into lanes of {m.lanes}", None, plain, target,
                lambda a, b, scratch: launch.pack_lanes_call(a, sample, sample, one, b, samples, m),
                fields=("user", "lanes"),
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
        m, samples = self.m, self.outer
        self._add(
            "output", "unpack", None, self.forms[t, "lanes"], (USER, 0),
            lambda a, b, scratch: launch.unpack_lanes_call(a, one, b, sample, sample, samples, m),
            fields=("lanes", "user"),
        )  # fmt: skip

    def _copy(self) -> None:
        """The program does nothing: through lanes layout and back."""
        t, m, samples = self.result, self.m, self.outer
        planes, one, sample = self._features(t)
        place = self._new(t, "lanes", planes)
        self._add(
            "input", f"pack into lanes of {m.lanes}", None, (USER, 0), place,
            lambda a, b, scratch: launch.pack_lanes_call(a, sample, sample, one, b, samples, m),
            fields=("user", "lanes"),
        )  # fmt: skip
        self._unpack(t)


def _before(node: Node) -> str:
    """What the report calls a step that prepares a node's input."""
    return node.name.partition(" ")[0]


def _steps_by_one(node: Node) -> bool:
    """Whether the node is a convolution of stride 1."""
    return isinstance(node.operator, Conv) and set(node.operator.geometry.stride) == {1}
