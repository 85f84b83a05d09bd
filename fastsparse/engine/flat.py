"""Programs on flat planes: single images, for batches too small to fill vectors with samples.

A tensor lies in one or more forms. "planes" are what convolutions of stride 1 read: zero-padded as all of them need,
and equal for tensors that are added to one another. "plain" is the user's own layout, which linear layers read, too.
"lanes" is for linear layers of a few samples. Every layer writes the form that its readers like best; where they
disagree, the tensor is copied into the other form once. Convolutions of other strides have their input split into
phase planes of their own. Linear layers of one sample are SpMV.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import replace

import numpy as np

from fastsparse import launch, launch_engine, launch_layout
from fastsparse.engine import split
from fastsparse.engine.products import packed, planned
from fastsparse.engine.program import Conv, Linear, Node, Pool, Program, Reshape
from fastsparse.engine.schedule import Buffer, MakeCall, Patch, Place, Schedule, Step, user_place, variable_of
from fastsparse.plan import linear as linear_plans
from fastsparse.plan.conv import FlatConv, conv_flat
from fastsparse.plan.flat import FlatPlanes, conv_flat_between, identity, padded_planes, plain_planes
from fastsparse.plan.lanes import LanesPlanes, lanes_planes, linear_between
from fastsparse.plan.linear import Machine
from fastsparse.plan.pooling import forward_bands


def flat_schedule(program: Program, batch: int, machine: Machine, sizes: split.Split | None = None) -> Schedule:
    """The schedule for `batch` samples. `sizes` is how they are cut, by `split.choose_images` when not given."""
    if sizes is None:
        sizes = split.choose_images(flat_work(program), batch, machine.workers)
    return Lowering.scheduled(program, batch, machine, sizes)


def flat_work(program: Program) -> split.Work:
    """What one sample costs."""
    flops, live = [0.0, 0.0], [0, 0]
    for node in program.nodes:
        stage = isinstance(node.operator, Linear)
        size = sum(math.prod(program.shapes[t]) for t in (*node.inputs, node.output)) * program.dtype.itemsize
        live[stage] = max(live[stage], size)
        if isinstance(node.operator, Conv | Linear):
            flops[stage] += node.operator.useful_flops
    return split.Work(flops[0], flops[1], live[0], live[1], len(program.nodes))


def late_nodes(program: Program) -> set[int]:
    """Outputs of linear layers and of all that follows from them: what runs on all images of a task at once."""
    late: set[int] = set()
    for node in program.nodes:
        if isinstance(node.operator, Linear) or any(t in late for t in node.inputs):
            late.add(node.output)
    return late


class Lowering:
    """Steps and buffers are appended node by node; `forms` knows where a tensor lies in which form.

    Layers on images are lowered once, for `inner` images, and repeated until `outer` images are done; what later
    layers read of them is kept for all of these, plain.
    """

    def __init__(self, program: Program, batch: int, sizes: split.Split, machine: Machine) -> None:
        self.program, self.batch, self.m = program, batch, machine
        self.outer, self.inner = sizes.outer, sizes.inner
        self.images = self.inner  # of the steps that are being lowered
        self.roots, self.alike = program.roots(), program.alike()
        self.late = late_nodes(program)
        self.steps: list[Step] = []
        self.buffers: list[Buffer] = []
        self.results = [self.roots[t] for t in program.outputs]
        self.user_bytes = [self._sample(t) for t in (*program.inputs, *self.results)]
        # (tensor, form) -> place
        self.forms: dict[tuple[int, str], Place] = {
            (t, "plain"): user_place(k) for k, t in enumerate(program.inputs)
        }  # fmt: skip
        self.planes: dict[int, FlatPlanes] = {}
        nodes = [node for node in program.nodes if not isinstance(node.operator, Reshape)]
        self.early = [node for node in nodes if node.output not in self.late]
        self.readers: dict[int, list[Node]] = {t: [] for t in self.roots.values()}
        for node in nodes:
            self.readers[self.roots[node.inputs[0]]].append(node)
        self.added = {self.roots[node.residual] for node in nodes if node.residual is not None}
        self.whole = {self.roots[t] for node in nodes if node.output in self.late for t in node.inputs}
        self.done: set[int] = set()  # numbers of results that are where the user wants them
        self.per_image: dict[int, int] = {}  # bytes of an image in the buffers that hold all images of a task

    @classmethod
    def scheduled(cls, program: Program, batch: int, machine: Machine, sizes: split.Split) -> Schedule:
        """The schedule for `batch` samples that are cut so."""
        lowering = cls(program, batch, sizes, replace(machine, workers=1) if sizes.per_worker else machine)
        return Schedule(lowering.lower(), lowering.buffers, batch // sizes.outer, machine.workers, sizes.per_worker)

    def lower(self) -> list[Step]:
        """All steps of a task."""
        for node in self.early:
            self._node(node)
        for t in self.program.inputs:
            self._give(t)
        repeated = [self._moved(step, first) for first in range(0, self.outer, self.inner) for step in self.steps]
        before, self.images = len(self.steps), self.outer
        if self.outer != self.inner:
            self.forms = {key: place for key, place in self.forms.items() if key[1] == "plain"}
        for node in self.program.nodes:
            if node.output in self.late and not isinstance(node.operator, Reshape):
                self._node(node)
        return repeated + self.steps[before:]

    def _moved(self, step: Step, first: int) -> Step:
        """The step on the images from `first` on."""

        def moved(place: Place) -> Place:
            return place[0], place[1] + first * self.per_image.get(place[0], 0)

        patches = tuple(replace(p, offset=first * self.user_bytes[p.variable - 1]) for p in step.patches)
        return replace(step, sources=tuple(map(moved, step.sources)), target=moved(step.target), patches=patches)

    def _node(self, node: Node) -> None:
        op = node.operator
        if isinstance(op, Conv):
            self._conv(node, op)
        elif isinstance(op, Pool):
            self._pool(node, op)
        elif self.batch == 1:
            assert isinstance(op, Linear)
            self._spmv(node, op)
        else:
            assert isinstance(op, Linear)
            self._linear(node, op)
        if node.output in self.whole and node.output not in self.late:
            self._get(node.output, "plain", node)
        self._give(node.output)

    # --- where tensors lie ---------------------------------------------------------------------

    def _sample(self, t: int) -> int:
        """Bytes of one sample."""
        return math.prod(self.program.shapes[t]) * self.m.size

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

    def _plain(self, t: int) -> FlatPlanes:
        channels, *spatial = self.program.shapes[t]
        return plain_planes(channels, tuple(spatial), self.m)

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

    def _target(self, t: int, form: str, residual: Place | None = None) -> Place:
        """Where a node writes the tensor in that form."""
        if form == "plain" and t in self.results and not self.readers[t] and t not in self.added:
            number = self.results.index(t)
            self.done.add(number)
            self.forms[t, "plain"] = place = user_place(len(self.program.inputs) + number)
            return place
        return self._new(t, form, -1 if residual is None else residual[0])

    def _new(self, t: int, form: str, over: int = -1) -> Place:
        layout: Hashable = None
        first = None
        if form == "lanes":
            size = self._groups * self._features(t)[0].group_stride
        else:
            planes = self._planes(t, form)
            images = self.images
            if form == "planes" and not planes.contiguous:
                between = planes.image_stride if images > 1 else 0
                layout = (planes.channel_stride, planes.spatial, planes.strides, planes.corner, between)
            elif form == "plain" and t in self.whole and t not in self.late:
                images, first = self.outer, -1
                self.per_image[len(self.buffers)] = planes.image_stride
            size = images * planes.image_stride + planes.slack
        self.forms[t, form] = place = self._buffer(size, layout, first, over)
        return place

    def _buffer(self, size: int, layout: Hashable = None, first: int | None = None, over: int = -1) -> Place:
        """A buffer that the next step writes, or one that lives from step `first` on."""
        now = len(self.steps)
        self.buffers.append(Buffer(size, now if first is None else first, now, layout, over))
        return len(self.buffers) - 1, 0

    def _add(
        self, name: str, kernel: str, node: Node | None, sources: tuple[Place, ...], target: Place, make: MakeCall, *,
        scratch: int = 0, fields: tuple[str, ...] = ("x", "y"),
    ) -> None:  # fmt: skip
        """Append a step; `fields` are the record's names for the arrays it reads and for the one it writes."""
        for buffer, _ in sources:
            if buffer >= 0:
                self.buffers[buffer] = replace(self.buffers[buffer], last=len(self.steps))
        patches = tuple(
            Patch(field, variable, 0, self.outer * self.user_bytes[variable - 1])
            for field, place in zip(fields, (*sources, target), strict=True)
            if (variable := variable_of(place)) is not None
        )
        self.steps.append(Step(name, kernel, node, sources, target, make, scratch, patches))

    # --- changing forms --------------------------------------------------------------------------

    def _get(self, t: int, form: str, node: Node) -> Place:
        """The tensor in a form, copied for `node` now if nobody wrote it so."""
        if (t, form) not in self.forms:
            name = name_before(node)
            if form == "plain" and (t, "lanes") in self.forms:
                self._unpack(t, self._new(t, form), name)
            elif form == "plain":
                self._copy(t, "planes", form, self._new(t, form), name)
            elif form == "planes":
                self._get(t, "plain", node)
                self._copy(t, "plain", form, self._new(t, form), name)
            else:
                plain = self._get(t, "plain", node)
                self._pack_lanes(t, plain, name)
        return self.forms[t, form]

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

    def _give(self, t: int) -> None:
        """Steps that give the tensor to the user, where it is a result and not there yet."""
        for number, result in enumerate(self.results):
            if result == t and number not in self.done:
                self.done.add(number)
                place = user_place(len(self.program.inputs) + number)
                if (t, "lanes") in self.forms:
                    self._unpack(t, place, "output")
                else:
                    self._copy_out(t, place, "output")

    def _copy_out(self, t: int, target: Place, name: str) -> None:
        """Step that copies images from the form they have to the plain one."""
        form = "plain" if (t, "plain") in self.forms else "planes"
        self._copy(t, form, "plain", target, name)

    # --- nodes on images -------------------------------------------------------------------------

    def _conv(self, node: Node, op: Conv) -> None:
        t, m, geometry, images = self.roots[node.inputs[0]], self.m, op.geometry, self.images
        sources: tuple[Place, ...] = ()
        if node.residual is not None:
            sources = (self._get(self.roots[node.residual], "planes", node),)
        form = self._written(node)
        y = self._planes(node.output, form)
        if _steps_by_one(node):
            x, kind = self._in_planes(t), "flat planes"
            source = self._get(t, "planes", node)
            plan, values = planned(op.weight, lambda p: conv_flat_between(p, geometry, x, y, m, images))
            image_stride = x.image_stride
        else:
            phases = conv_flat(op.weight.pattern, geometry, m, images, y.all_places())
            image_stride, kind = geometry.channels * phases.channel_stride, "phase planes"
            plan, values = packed(op.weight, phases.spmm)
            have = "planes" if (t, "planes") in self.forms else "plain"
            source = self._buffer(images * image_stride + phases.slack)
            self._pack(t, have, phases, source, name_before(node), "pack into phase planes")
        fresh = self.roots[node.residual] != t if node.residual is not None else False
        target = self._target(node.output, form, sources[0] if fresh else None)

        def make(a: int, *rest: int) -> launch.Call:
            *residual, b, scratch = rest
            return launch.spmm_call(
                plan, values, a, b, m, scratch=scratch, y_row_stride=y.channel_stride, batches=images,
                x_batch_stride=image_stride, y_batch_stride=y.image_stride, bias=op.bias,
                residual=residual[0] if residual else 0, activation=op.activation,
            )  # fmt: skip

        fields = ("x", "residual", "y") if sources else ("x", "y")
        kernel = f"spmm on {kind}, tile {plan.tiles.width}"
        scratch = launch.spmm_scratch(plan, m)
        self._add(node.name, kernel, node, (source, *sources), target, make, scratch=scratch, fields=fields)

    def _pool(self, node: Node, op: Pool) -> None:
        t, m = self.roots[node.inputs[0]], self.m
        count = self.images * self.program.shapes[t][0]
        bands = forward_bands(op.windows, m.vector, -(-count // m.lanes), m.workers)
        have = "planes" if (t, "planes") in self.forms and self._in_planes(t).contiguous else "plain"
        source, form = self._get(t, have, node), self._written(node)
        strides = {"x_stride": self._planes(t, have).channel_stride}
        strides["y_stride"] = self._planes(node.output, form).channel_stride

        def make(a: int, b: int, scratch: int) -> launch.Call:
            call = launch_engine.pool_call(op.kind, op.windows, bands, a, b, count, m, scratch=scratch)
            call.record.set(**strides)
            return call

        self._add(
            node.name, f"{op.kind} pool", node, (source,), self._target(node.output, form), make,
            scratch=launch_engine.pool_scratch(op.windows, bands, m),
        )  # fmt: skip

    # --- linear layers ---------------------------------------------------------------------------

    def _spmv(self, node: Node, op: Linear) -> None:
        t, m, pattern = self.roots[node.inputs[0]], self.m, op.weight.pattern
        source = self._get(t, "plain", node)
        plan = linear_plans.spmv(pattern, m.workers)
        activation = op.activation if node.residual is None else None
        if node.residual is None:
            target = self._target(node.output, "plain")
        else:
            residual = self._get(self.roots[node.residual], "plain", node)
            target = self._buffer(op.weight.shape[0] * m.size + m.vector)
        self._add(
            node.name, "spmv", node, (source,), target,
            lambda a, b, scratch: launch.spmv_call(
                plan, pattern.indptr, op.weight.data, a, b, m, scratch=scratch, y_stride=m.size, bias=op.bias,
                activation=activation,
            ),
            scratch=m.vector,
        )  # fmt: skip
        if node.residual is not None:
            self._sum(node, op, target, residual)

    def _sum(self, node: Node, op: Linear, x: Place, residual: Place) -> None:
        """activation(x + residual): the identity of one channel, whose positions are the features."""
        m, features = self.m, op.weight.shape[0]
        plan, values = identity(features, m), np.ones(1, self.program.dtype)
        target = self._target(node.output, "plain")
        self._add(
            node.name, "sum", None, (x, residual), target,
            lambda a, r, b, scratch: launch.spmm_call(
                plan, values, a, b, m, scratch=scratch, y_row_stride=0, residual=r, activation=op.activation
            ),
            scratch=launch.spmm_scratch(plan, m), fields=("x", "residual", "y"),
        )  # fmt: skip

    @property
    def _groups(self) -> int:
        return -(-self.outer // self.m.lanes)

    def _features(self, t: int) -> tuple[LanesPlanes, LanesPlanes, int]:
        """The tensor in lanes layout: as channels, as one plane of features, and bytes of a sample."""
        features = math.prod(self.program.shapes[t])
        planes = lanes_planes(features, (), (), self.m)
        return planes, replace(planes, channels=1, positions=features), features * self.m.size

    def _linear(self, node: Node, op: Linear) -> None:
        t, m = self.roots[node.inputs[0]], self.m
        x, y = self._features(t)[0], self._features(node.output)[0]
        sources = [self._get(t, "lanes", node)]
        if node.residual is not None:
            sources.append(self._get(self.roots[node.residual], "lanes", node))
        plan, values = planned(op.weight, lambda p: linear_between(p, x, y, m, self._groups))

        def make(a: int, *rest: int) -> launch.Call:
            *residual, b, scratch = rest
            return launch.spmm_call(
                plan, values, a, b, m, scratch=scratch, y_row_stride=m.vector, bias=op.bias,
                residual=residual[0] if residual else 0, activation=op.activation,
            )  # fmt: skip

        fields = ("x", "residual", "y") if node.residual is not None else ("x", "y")
        kernel, scratch = f"spmm in lanes, tile {plan.tiles.width}", launch.spmm_scratch(plan, m)
        target = self._new(node.output, "lanes")
        self._add(node.name, kernel, node, tuple(sources), target, make, scratch=scratch, fields=fields)

    def _pack_lanes(self, t: int, plain: Place, name: str) -> None:
        _, one, sample = self._features(t)
        m, samples = self.m, self.outer
        self._add(
            name, f"pack into lanes of {m.lanes}", None, (plain,), self._new(t, "lanes"),
            lambda a, b, scratch: launch_layout.pack_lanes_call(a, sample, sample, one, b, samples, m),
            fields=("user", "lanes"),
        )  # fmt: skip

    def _unpack(self, t: int, target: Place, name: str) -> None:
        _, one, sample = self._features(t)
        m, samples = self.m, self.outer
        self._add(
            name, "unpack", None, (self.forms[t, "lanes"],), target,
            lambda a, b, scratch: launch_layout.unpack_lanes_call(a, one, b, sample, sample, samples, m),
            fields=("lanes", "user"),
        )  # fmt: skip


def _rows_of(planes: FlatPlanes, m: Machine) -> FlatPlanes:
    """The planes with the places of their rows, which plain ones do without."""
    if len(planes.places):
        return planes
    rows = np.arange(planes.rows, dtype=np.int64) * (planes.spatial[-1] if planes.spatial else 1) * m.size
    spatial = planes.spatial or (1,)
    return replace(planes, spatial=spatial, places=rows.reshape(-1, 1), firsts=np.zeros(1, np.int64))


def name_before(node: Node) -> str:
    """What the report calls a step that prepares a node's input."""
    return node.name.partition(" ")[0]


def _steps_by_one(node: Node) -> bool:
    """Whether the node is a convolution of stride 1."""
    return isinstance(node.operator, Conv) and set(node.operator.geometry.stride) == {1}
