"""Programs on single images: what is common to all ways of laying out images.

A tensor has one or more forms. "plain" is the user's own layout, which linear layers read, too, and which row-wise
operators read and write. "blocks of n" is for linear layers: batch-blocked, with n rows of a sample in the place of
samples. Another one is the subclass's, for convolutions and pools. Every layer writes the form that its readers like
best; where they disagree, the tensor is copied into the other form once. Linear layers of one row are SpMV.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from fastsparse.csr import Pattern
from fastsparse.engine import split
from fastsparse.engine.lowering.weights import PackedWeight, planned, prepared
from fastsparse.engine.program import (
    Attention,
    Conv,
    Gate,
    Gather,
    Interpolate,
    LayerNorm,
    Linear,
    Node,
    Pool,
    Program,
    Reshape,
    RowWise,
)
from fastsparse.engine.schedule import Buffer, Place, Schedule, Step, Zeros, patches_of, user_place
from fastsparse.ops import attention, gates, interpolation, layouts, norm, pooling, softmax, spatial_tiles, spmm, spmv
from fastsparse.ops.conv import plan_identity, plan_linear_between
from fastsparse.ops.layouts import BlockedPlanes, PaddedPlanes, blocked_planes, user_planes
from fastsparse.ops.target import Target
from fastsparse.runtime.launch import Launch

_BLOCKS = "blocks of "  # rows of a sample


def work_of_images(program: Program) -> split.Work:
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
    """Outputs of linear layers and of all that follows from them: what runs on all images of a task at once.

    What gates images runs with them.
    """
    late: set[int] = set()
    early = program.before_gates()
    for node in program.nodes:
        if node.output not in early and (isinstance(node.operator, Linear) or any(t in late for t in node.inputs)):
            late.add(node.output)
    return late


class Lowering:
    """Steps and buffers are appended node by node; `forms` has the place of every tensor in every form.

    Layers on images are lowered once, for `inner` images, and repeated until `outer` images are done; what later
    layers read of them is kept for all of these, plain. Subclasses say in which form images go from layer to layer, and
    which last layers on images, the joint ones, run on `together` images at a time.
    """

    def __init__(self, program: Program, batch: int, sizes: split.Split, target: Target) -> None:
        self.program, self.batch, self.target = program, batch, target
        self.outer, self.inner = sizes.outer, sizes.inner
        self.images = self.inner  # of the steps that are being lowered
        self.roots, self.classes = program.roots(), program.layout_classes()
        self.late = late_nodes(program)
        self.steps: list[Step] = []
        self.buffers: list[Buffer] = []
        self.results = [self.roots[t] for t in program.outputs]
        self.user_bytes = [self._sample(t) for t in (*program.inputs, *self.results)]
        self.user = [user_place(k) for k in range(len(self.user_bytes))]
        # (tensor, form) -> place
        self.forms: dict[tuple[int, str], Place] = {(t, "plain"): at for t, at in zip(program.inputs, self.user)}
        nodes = [node for node in program.nodes if not isinstance(node.operator, Reshape)]
        self.early = [node for node in nodes if node.output not in self.late]
        self.readers: dict[int, list[Node]] = {t: [] for t in self.roots.values()}
        for node in nodes:
            self.readers[self.roots[node.inputs[0]]].append(node)
        # Read beside a first input.
        self.added = {self.roots[t] for node in nodes for t in node.inputs[1:]}
        self.whole = {self.roots[t] for node in nodes if node.output in self.late for t in node.inputs}
        self.done: set[int] = set()  # numbers of results that are where the user wants them
        # Of buffers that hold images of several repetitions: bytes of an image, and how many images.
        self.per_image: dict[int, tuple[int, int]] = {}
        self.together, self.joint, self.in_joint = self.inner, set[int](), False
        joint = self.joint_nodes()
        self.joint = {node.output for node in joint}
        read = {self.roots[t] for node in joint for t in node.inputs}
        self.kept = read - {self.roots[t] for t in self.joint}  # from repetition to repetition, for joint layers

    @classmethod
    def schedule(cls, program: Program, batch: int, target: Target, sizes: split.Split | None = None) -> Schedule:
        """The schedule for `batch` samples. `sizes` is how they are cut, by `split.choose_images` when not given."""
        if sizes is None:
            sizes = split.choose_images(work_of_images(program), batch, target)
        lowering = cls(program, batch, sizes, target.serial if sizes.per_worker else target)
        return Schedule(
            lowering.lower(),
            lowering.buffers,
            batch // sizes.outer,
            target.threads,
            sizes.per_worker,
            target.heuristics,
        )

    def lower(self) -> list[Step]:
        """All steps of a task."""
        single = [node for node in self.early if node.output not in self.joint]
        for node in single:
            self._node(node)
        for t in self.program.inputs:
            self._give(t)
        alone = list(self.steps)
        if self.joint:
            self.images, self.in_joint = self.together, True
            self._drop_forms(self.kept)
            for node in self.early[len(single) :]:
                self._node(node)
        self.in_joint = False
        joint, repeated = self.steps[len(alone) :], []
        for start in range(0, self.outer, self.together):
            for first in range(start, start + self.together, self.inner):
                repeated += [self._moved(step, first) for step in alone]
            repeated += [self._moved(step, start) for step in joint]
        before, self.images = len(self.steps), self.outer
        if self.outer != self.inner:
            self._drop_forms(set())
        for node in self.program.nodes:
            if node.output in self.late and not isinstance(node.operator, Reshape):
                self._node(node)
        return repeated + self.steps[before:]

    def _moved(self, step: Step, first: int) -> Step:
        """The step on the images from `first` on."""

        def moved(place: Place) -> Place:
            nbytes, images = self.per_image.get(place[0], (0, 1))
            return place[0], place[1] + first % images * nbytes

        patches = tuple(replace(p, offset=first * self.user_bytes[p.variable - 1]) for p in step.patches)
        return replace(step, sources=tuple(map(moved, step.sources)), target=moved(step.target), patches=patches)

    def _drop_forms(self, kept: set[int]) -> None:
        """Forget the forms of single images, but for tensors that are kept."""
        self.forms = {key: place for key, place in self.forms.items() if key[1] == "plain" or key[0] in kept}

    def _node(self, node: Node) -> None:
        op = node.operator
        if isinstance(op, Conv):
            self._conv(node, op)
        elif isinstance(op, Pool):
            self._pool(node, op)
        elif isinstance(op, RowWise):
            self._rows(node, op)
        elif isinstance(op, Gate):
            self._gate(node)
        elif isinstance(op, Gather):
            self._rearrange(node, op)
        elif isinstance(op, Interpolate):
            self._interpolate(node, op)
        else:
            assert isinstance(op, Linear)
            (self._spmv if self.batch == op.rows == 1 else self._linear)(node, op)
        if node.output in self.whole and node.output not in self.late:
            self._get(node.output, "plain", node)
        self._give(node.output)

    # --- what subclasses say ---------------------------------------------------------------------

    def joint_nodes(self) -> list[Node]:
        """The last early nodes, if they run on `together` images at a time, which this sets."""
        return []

    def _memory_of(self, t: int) -> tuple[int, Zeros | None, int]:
        """Bytes, zeros and plane of a buffer for the tensor in the subclass's form."""
        raise NotImplementedError

    def _lay_out(self, t: int, node: Node) -> None:
        """Bring the tensor from another form into the subclass's, for `node`."""
        raise NotImplementedError

    def _copy_out(self, t: int, target: Place, name: str) -> None:
        """Step that copies the tensor from the subclass's form, or where it has none from the plain one, to plain."""
        raise NotImplementedError

    def _conv(self, node: Node, op: Conv) -> None:
        raise NotImplementedError

    def _pool(self, node: Node, op: Pool) -> None:
        raise NotImplementedError

    def _gate(self, node: Node) -> None:
        raise NotImplementedError

    # --- places of tensors ---------------------------------------------------------------------

    def _sample(self, t: int) -> int:
        """Bytes of one sample."""
        return math.prod(self.program.shapes[t]) * self.target.size

    def _plain(self, t: int) -> PaddedPlanes:
        channels, *spatial = self.program.shapes[t]
        return user_planes(channels, tuple(spatial), self.target)

    def _target(self, t: int, form: str, residual: Place | None = None) -> Place:
        """Where a node writes the tensor in that form."""
        if form == "plain" and t in self.results and not self.readers[t] and t not in self.added:
            number = self.results.index(t)
            self.done.add(number)
            self.forms[t, "plain"] = place = self.user[len(self.program.inputs) + number]
            return place
        return self._new(t, form, -1 if residual is None else residual[0])

    def _new(self, t: int, form: str, over: int = -1) -> Place:
        zeros: Zeros | None = None
        first, plane = None, 0
        if form.startswith(_BLOCKS):
            rows = int(form.removeprefix(_BLOCKS))
            size = self._groups(rows) * self._features(t, rows)[0].group_stride
        elif form == "plain":
            planes, images = self._plain(t), self.images
            if t not in self.late and (t in self.whole or self._keeps(t)):
                images, first = self.outer if t in self.whole else self.together, -1
                self.per_image[len(self.buffers)] = planes.image_stride, images
            size = images * planes.image_stride + planes.slack
            plane = planes.channel_stride
        else:
            size, zeros, plane = self._memory_of(t)
            if self._keeps(t):
                self.per_image[len(self.buffers)] = size // self.images, self.together
                size, first = size // self.images * self.together, -1
        self.forms[t, form] = place = self._buffer(size, zeros, first, over, plane)
        return place

    def _keeps(self, t: int) -> bool:
        """Whether a tensor that is written now is kept for joint layers."""
        return t in self.kept and self.images < self.together

    def _buffer(
        self, size: int, zeros: Zeros | None = None, first: int | None = None, over: int = -1, plane: int = 0
    ) -> Place:
        """A buffer that the next step writes, or one that lives from step `first` on."""
        now = len(self.steps)
        self.buffers.append(Buffer(size, now if first is None else first, now, zeros, over, plane))
        return len(self.buffers) - 1, 0

    def _add(
        self, name: str, kernel: str, node: Node | None, sources: tuple[Place, ...], target: Place, launch: Launch,
        operands: tuple[str, ...] = ("x", "y"),
    ) -> None:  # fmt: skip
        """Append a step; `operands` are the launch's names for the arrays it reads and for the one it writes."""
        for buffer, _ in sources:
            if buffer >= 0:
                self.buffers[buffer] = replace(self.buffers[buffer], last=len(self.steps))
        patches = patches_of(operands, (*sources, target), [self.outer * size for size in self.user_bytes])
        self.steps.append(Step(name, kernel, node, sources, target, launch, operands, patches))

    def _add_weighted(
        self, node: Node, op: Conv | Linear, weight: PackedWeight, where: str, source: Place, residual: Place | None,
        target: Place, **strides: int,
    ) -> None:  # fmt: skip
        """Append the step of an SpMM; `strides` are keywords of `spmm.prepare`."""
        launch = prepared(weight, op, self.target, residual=residual is not None, **strides)
        sources = (source,) if residual is None else (source, residual)
        operands = ("x", "y") if residual is None else ("x", "residual", "y")
        kernel = f"spmm {where}, tile {weight.plan.tiles.width}"
        self._add(node.name, kernel, node, sources, target, launch, operands)

    # --- changing forms --------------------------------------------------------------------------

    def _get(self, t: int, form: str, node: Node) -> Place:
        """The tensor in a form, copied for `node` now if nobody wrote it so."""
        if (t, form) not in self.forms:
            name = name_before(node)
            if form.startswith(_BLOCKS):
                self._pack_blocked(t, form, self._get(t, "plain", node), name)
            elif form != "plain":
                self._lay_out(t, node)
            elif blocks := self._in_blocks(t):
                self._unpack(t, blocks, self._new(t, form), name)
            else:
                self._copy_out(t, self._new(t, form), name)
        return self.forms[t, form]

    def _give(self, t: int) -> None:
        """Steps that give the tensor to the user, where it is a result and not there yet."""
        for number, result in enumerate(self.results):
            if result == t and number not in self.done:
                self.done.add(number)
                place = self.user[len(self.program.inputs) + number]
                if (t, "plain") not in self.forms and (blocks := self._in_blocks(t)):
                    self._unpack(t, blocks, place, "output")
                else:
                    self._copy_out(t, place, "output")

    def _in_blocks(self, t: int) -> str | None:
        """The form of blocks that the tensor has, if any."""
        return next((form for other, form in self.forms if other == t and form.startswith(_BLOCKS)), None)

    # --- nodes ------------------------------------------------------------------------------------

    def _pool_planes(
        self, node: Node, op: Pool, x: PaddedPlanes, source: Place, y: PaddedPlanes, target: Place
    ) -> None:
        """Append the step of a pool between contiguous planes."""
        count = self.images * x.channels
        launch = pooling.prepare(op.kind, op.windows, count, self.target, x.channel_stride, y.channel_stride)
        self._add(node.name, f"{op.kind} pool", node, (source,), target, launch)

    def _rows(self, node: Node, op: RowWise) -> None:
        """Append the step of an operator on rows, which the user's layout has contiguous."""
        sources = tuple(self._get(self.roots[t], "plain", node) for t in node.inputs)
        shape = self.program.shapes[node.output]
        operands: tuple[str, ...] = ("x", "y")
        target, numbers = self._target(node.output, "plain"), self.images * math.prod(shape)
        if isinstance(op, LayerNorm):
            centred = op.shift is not None
            launch = norm.prepare_layer_norm(numbers // op.scale.size, op.scale.size, op.eps, centred, self.target)
            launch = launch.fixed(gamma=op.scale, beta=op.shift)
        elif isinstance(op, Attention):
            keys = self.program.shapes[node.inputs[1]][0]
            launch = attention.prepare(self.images, op.heads, shape[1], shape[0], keys, op.causal, self.target)
            operands = (*("q", "k", "v", "mask")[: len(sources)], "y")
        else:
            launch = softmax.prepare(numbers // shape[-1], shape[-1], self.target)
        self._add(node.name, "row by row", node, sources, target, launch, operands)

    def _rearrange(self, node: Node, op: Gather) -> None:
        """Append the step of a gather, in the user's layout."""
        t, size = self.roots[node.inputs[0]], self.target.size
        x, y = math.prod(self.program.shapes[t]) * size, math.prod(op.shape) * size
        plan = spatial_tiles.gather_image(op.index * size, self.target)
        launch = spatial_tiles.prepare(
            plan, (x, x // op.blocks), (y, y // op.blocks), op.blocks, self.images, self.target
        )
        source = self._get(t, "plain", node)
        self._add(node.name, "gather", node, (source,), self._target(node.output, "plain"), launch)

    def _interpolate(self, node: Node, op: Interpolate) -> None:
        """Append the step of an interpolation, in the user's layout."""
        t, added = self.roots[node.inputs[0]], node.residual
        residual = None if added is None else self._get(self.roots[added], "plain", node)
        source, target = self._get(t, "plain", node), self._target(node.output, "plain")
        self._add_interpolation(node, op, self._plain(t), source, residual, self._plain(node.output), target)

    def _add_interpolation(
        self, node: Node, op: Interpolate, x: PaddedPlanes, source: Place, residual: Place | None, y: PaddedPlanes,
        target: Place,
    ) -> None:  # fmt: skip
        launch = interpolation.prepare(x, y, op.scale, op.activation, self.images, self.target)
        sources = (source,) if residual is None else (source, residual)
        operands = ("x", "y") if residual is None else ("x", "residual", "y")
        self._add(node.name, "interpolation", node, sources, target, launch, operands)

    def _add_gate(
        self, node: Node, where: str, x: gates.Image, source: Place, gate: gates.Image, gate_source: Place,
        y: gates.Image, target: Place, parts: int = 1,
    ) -> None:  # fmt: skip
        """Append the step of a gate, a number for each channel. A single image may lie in `parts`, as images do."""
        channels, strides = self.program.shapes[node.output][0], (gate.image_stride, gate.channel_stride)
        if parts > 1:
            strides = 0, gate.channel_stride
        launch = gates.prepare(x, strides, y, channels, self.images * parts, self.target, by_lane=False)
        sources = source, (gate_source[0], gate_source[1] + gate.corner)
        self._add(node.name, f"gate {where}", node, sources, target, launch, ("x", "gate", "y"))

    def _spmv(self, node: Node, op: Conv | Linear) -> None:
        t, target_cpu, pattern = self.roots[node.inputs[0]], self.target, op.weight.pattern
        source = self._get(t, "plain", node)
        # Bits of a convolution do not depend on how many images there are: slices sum in the order of SpMM.
        in_order = spmv.plan_slices(pattern, target_cpu) if isinstance(op, Conv) else None
        own = Pattern._trusted(pattern.indptr, pattern.indices, pattern.shape)
        plan = in_order or spmv.plan_spmv(own, target_cpu)
        values, activation = plan.pack(op.weight.data), op.activation if node.residual is None else None
        if node.residual is None:
            target = self._target(node.output, "plain")
        else:
            residual = self._get(self.roots[node.residual], "plain", node)
            target = self._buffer(op.weight.shape[0] * target_cpu.size + target_cpu.vector)
        launch = spmv.prepare(plan, target_cpu, activation)
        launch = launch.fixed(values=values, bias=op.bias)
        self._add(node.name, "spmv", node, (source,), target, launch)
        if node.residual is not None:
            self._sum(node, op, target, residual)

    def _sum(self, node: Node, op: Conv | Linear, x: Place, residual: Place) -> None:
        """activation(x + residual): the identity of one channel, whose positions are the features."""
        plan = plan_identity(op.weight.shape[0], self.target)
        values = plan.operator.pack(np.ones(1, self.program.dtype))
        launch = spmm.prepare(
            plan, self.target, y_row_stride=0, residual=True, activation=op.activation, label="add"
        ).fixed(values=values)
        target = self._target(node.output, "plain")
        self._add(node.name, "sum", None, (x, residual), target, launch, ("x", "residual", "y"))

    def _groups(self, rows: int) -> int:
        return -(-self.images * rows // self.target.lanes)

    def _features(self, t: int, rows: int) -> tuple[BlockedPlanes, BlockedPlanes, int]:
        """The tensor in blocks of rows: as channels, as one plane of features, and bytes of a row."""
        features = math.prod(self.program.shapes[t]) // rows
        planes = blocked_planes(features, (), (), self.target)
        return planes, replace(planes, channels=1, positions=features), features * self.target.size

    def _linear(self, node: Node, op: Linear) -> None:
        t = self.roots[node.inputs[0]]
        x, y, form = self._features(t, op.rows)[0], self._features(node.output, op.rows)[0], f"{_BLOCKS}{op.rows}"
        source = self._get(t, form, node)
        residual = None if node.residual is None else self._get(self.roots[node.residual], form, node)
        weight = planned(op.weight, plan_linear_between, x, y, self.target, self._groups(op.rows))
        target = self._new(node.output, form)
        self._add_weighted(node, op, weight, "batch-blocked", source, residual, target, y_row_stride=self.target.vector)

    def _pack_blocked(self, t: int, form: str, plain: Place, name: str) -> None:
        rows = int(form.removeprefix(_BLOCKS))
        _, one, row = self._features(t, rows)
        launch = layouts.pack_blocked(one, self.images * rows, row, row, self.target)
        kernel = f"pack into blocks of {self.target.lanes}"
        self._add(name, kernel, None, (plain,), self._new(t, form), launch, ("user", "blocked"))

    def _unpack(self, t: int, form: str, target: Place, name: str) -> None:
        rows = int(form.removeprefix(_BLOCKS))
        _, one, row = self._features(t, rows)
        launch = layouts.unpack_blocked(one, self.images * rows, row, row, self.target)
        self._add(name, "unpack", None, (self.forms[t, form],), target, launch, ("blocked", "user"))


def name_before(node: Node) -> str:
    """What the report calls a step that prepares a node's input."""
    return node.name.partition(" ")[0]
