"""Programs on single images, for batches too small to fill vectors with samples, on padded planes.

A tensor has one or more forms. "plain" is the user's own layout, which linear layers read, too, and which row-wise
operators read and write. "blocks of n" is for linear layers: batch-blocked, with n rows of a sample in the place of
samples. "planes" is what convolutions of stride 1 read: zero-padded as all of them need, and equal for tensors that are
added to one another. Every layer writes the form that its readers like best; where they disagree, the tensor is copied
into the other form once. Linear layers of one row are SpMV.

Depthwise convolutions with a kernel of their own need no padding. Other convolutions of larger strides have their input
split into phase planes of their own. Spatial tiles are another form for images: a subclass in a file of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fastsparse.csr import CSR, Pattern
from fastsparse.engine import split
from fastsparse.engine.lowering.weights import PlannedWeight, planned, prepared, way
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
from fastsparse.engine.schedule import Buffer, Patch, Schedule, Step, View, Zeros
from fastsparse.ops import (
    attention,
    depthwise,
    gates,
    interpolation,
    layouts,
    norm,
    pooling,
    softmax,
    spatial_tiles,
    spmm,
    spmv,
)
from fastsparse.ops.conv import plan_between_padded, plan_identity, plan_linear_between, plan_padded
from fastsparse.ops.layouts import BlockedPlanes, PaddedPlanes, PhasePlanes, Planes, blocked_planes, user_planes
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


class Stage(NamedTuple):
    """Layers on images, and how many images they run on at a time: equally many or more than the stage before."""

    images: int
    nodes: list[Node]


class _Product(NamedTuple):
    """A packed weight, where it runs, its input, and bytes between images of this."""

    weight: PlannedWeight
    where: str
    source: View
    image_stride: int


class Lowering:
    """Steps and buffers are appended node by node; `forms` has the view of every tensor in every form.

    Layers on images are lowered once, for `inner` images, and repeated until `outer` images are done; what later
    layers read of them is kept for all of these, plain. A subclass may have another form for images between layers, and
    later stages, whose layers run on stacks of more images at a time.
    """

    def __init__(self, program: Program, batch: int, sizes: split.Split, target: Target) -> None:
        self.program, self.batch, self.target = program, batch, target
        self.outer, self.inner = sizes.outer, sizes.inner
        self.images = self.inner  # of the steps that are being lowered
        self.roots, self.classes = program.roots(), program.layout_classes()
        self.late = program.late_nodes()
        self.steps: list[Step] = []
        self.buffers: list[Buffer] = []
        self.results = [self.roots[t] for t in program.outputs]
        self.user_bytes = [self._sample(t) for t in (*program.inputs, *self.results)]
        self.user = [(-1 - k, 0) for k in range(len(self.user_bytes))]
        # (tensor, form) -> view
        self.forms: dict[tuple[int, str], View] = {(t, "plain"): at for t, at in zip(program.inputs, self.user)}
        nodes = [node for node in program.nodes if not isinstance(node.operator, Reshape)]
        self.early = [node for node in nodes if node.output not in self.late]
        self.readers: dict[int, list[Node]] = {t: [] for t in self.roots.values()}
        for node in nodes:
            self.readers[self.roots[node.inputs[0]]].append(node)
        # Read beside a first input.
        self.added = {self.roots[t] for node in nodes for t in node.inputs[1:]}
        self.whole = {self.roots[t] for node in nodes if node.output in self.late for t in node.inputs}
        self.done: set[int] = set()  # numbers of results that are where the user wants them
        self.planes: dict[int, PaddedPlanes] = {}  # by layout class
        self.plains: dict[int, PaddedPlanes] = {}  # by tensor
        self.padding_readers = {node.output for node in nodes if _reads_padding(node)}
        self.expansions = self._expansions() if self.inner == 1 else {}
        self.by_channels = {node.output for node in self.expansions.values()}
        # Of buffers that hold images of several repetitions: bytes of an image, and how many images.
        self.per_image: dict[int, tuple[int, int]] = {}
        self.stack = 1  # images of the stack that is being lowered
        self.stages = self.stages_of(self.early)
        self.stacks = {node.output: stage.images for stage in self.stages[1:] for node in stage.nodes}  # by tensor
        # Images of tensors that are kept from repetition to repetition, for the last stage that reads them.
        self.kept: dict[int, int] = {}
        for stage in self.stages[1:]:
            read = {self.roots[t] for node in stage.nodes for t in node.inputs}
            self.kept |= dict.fromkeys(read - {node.output for node in stage.nodes}, stage.images)

    @classmethod
    def schedule(cls, program: Program, batch: int, target: Target, sizes: split.Split | None = None) -> Schedule:
        """The schedule for `batch` samples. `sizes` is how they are cut, by `split.choose_images` when not given."""
        if sizes is None:
            sizes = split.choose_images(work_of_images(program), batch, target)
        lowering = cls(program, batch, sizes, target.serial if sizes.per_worker else target)
        tasks, steps = batch // sizes.outer, lowering.lower()
        return Schedule(steps, lowering.buffers, tasks, target.threads, sizes.per_worker, target.heuristics)

    def lower(self) -> list[Step]:
        """All steps of a task."""
        stages = []  # images and steps of each
        for number, (images, nodes) in enumerate(self.stages):
            begin = len(self.steps)
            if number:
                self.images = self.stack = images
                self._drop_forms(self.kept.keys())
            for node in nodes:
                self._node(node)
            if not number:
                for t in self.program.inputs:
                    self._give(t)
            stages.append((images, self.steps[begin:]))
        self.stack = 1
        last = stages[-1][0]
        repeated = [s for first in range(0, self.outer, last) for s in self._repeated(stages, first)]
        before, self.images = len(self.steps), self.outer
        if self.outer != self.inner:
            self._drop_forms(set())
        for node in self.program.nodes:
            if node.output in self.late and not isinstance(node.operator, Reshape):
                self._node(node)
        return repeated + self.steps[before:]

    def _repeated(self, stages: list[tuple[int, list[Step]]], first: int) -> Iterator[Step]:
        """The steps of these stages on the images of one repetition of the last one, from image `first` on."""
        *earlier, (images, steps) = stages
        if earlier:
            for start in range(first, first + images, earlier[-1][0]):
                yield from self._repeated(earlier, start)
        yield from (self._moved(step, first) for step in steps)

    def _moved(self, step: Step, first: int) -> Step:
        """The step on the images from `first` on."""

        def moved(view: View) -> View:
            nbytes, images = self.per_image.get(view[0], (0, 1))
            return view[0], view[1] + first % images * nbytes

        patches = tuple(replace(p, offset=first * self.user_bytes[p.variable - 1]) for p in step.patches)
        return replace(step, sources=tuple(map(moved, step.sources)), target=moved(step.target), patches=patches)

    def _drop_forms(self, kept: Collection[int]) -> None:
        """Forget the forms of images, but for tensors that are kept, in memory of more repetitions than one."""
        self.forms = {
            key: view for key, view in self.forms.items()
            if key[1] == "plain" or (key[0] in kept and view[0] in self.per_image)
        }  # fmt: skip

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

    def stages_of(self, nodes: list[Node]) -> list[Stage]:
        """How the early nodes run, in their order."""
        return [Stage(self.inner, nodes)]

    # --- views of tensors ---------------------------------------------------------------------

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
            self.planes[leader] = layouts.padded_planes(channels, tuple(spatial), geometries, self.target)
        return self.planes[leader]

    def _have(self, t: int) -> str:
        """The form of an image that there is, planes before plain."""
        return "planes" if (t, "planes") in self.forms else "plain"

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
            size = self.target.size
            zeros = Zeros(planes.channel_stride, between, planes.spatial, planes.strides, planes.corner, size)
        return images * planes.image_stride + planes.slack, zeros, planes.channel_stride

    def _sample(self, t: int) -> int:
        """Bytes of one sample."""
        return math.prod(self.program.shapes[t]) * self.target.size

    def _plain(self, t: int) -> PaddedPlanes:
        if t not in self.plains:
            channels, *spatial = self.program.shapes[t]
            self.plains[t] = user_planes(channels, tuple(spatial), self.target)
        return self.plains[t]

    def _target(self, t: int, form: str, residual: View | None = None) -> View:
        """Where a node writes the tensor in that form."""
        if form == "plain" and t in self.results and not self.readers[t] and t not in self.added:
            number = self.results.index(t)
            self.done.add(number)
            self.forms[t, "plain"] = view = self.user[len(self.program.inputs) + number]
            return view
        return self._new(t, form, -1 if residual is None else residual[0])

    def _new(self, t: int, form: str, over: int = -1) -> View:
        zeros: Zeros | None = None
        first, plane = None, 0
        if form.startswith(_BLOCKS):
            rows = int(form.removeprefix(_BLOCKS))
            size = self._groups(rows) * self._features(t, rows)[0].group_stride
        elif form == "plain":
            planes, images = self._plain(t), self.images
            if t not in self.late and (t in self.whole or self._keeps(t)):
                images, first = self.outer if t in self.whole else self.kept[t], -1
                self.per_image[len(self.buffers)] = planes.image_stride, images
            size = images * planes.image_stride + planes.slack
            plane = planes.channel_stride
        else:
            size, zeros, plane = self._memory_of(t)
            if self._keeps(t):
                self.per_image[len(self.buffers)] = size // self.images, self.kept[t]
                size, first = size // self.images * self.kept[t], -1
        self.forms[t, form] = view = self._buffer(size, zeros, first, over, plane)
        return view

    def _keeps(self, t: int) -> bool:
        """Whether a tensor that is written now is kept for a stage on more images."""
        return self.images < self.kept.get(t, 0)

    def _buffer(
        self, size: int, zeros: Zeros | None = None, first: int | None = None, over: int = -1, plane: int = 0
    ) -> View:
        """A buffer that the next step writes, or one that lives from step `first` on."""
        now = len(self.steps)
        self.buffers.append(Buffer(size, now if first is None else first, now, zeros, over, plane))
        return len(self.buffers) - 1, 0

    def _add(
        self, name: str, kernel: str, node: Node | None, sources: tuple[View | None, ...], target: View, launch: Launch,
        operands: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """Append a step that reads the sources that are there.

        operands : the launch's names for the sources and the target; by default of x, perhaps a residual, and y
        """
        operands = operands or (("x", "y") if len(sources) == 1 else ("x", "residual", "y"))
        named = [(field, view) for field, view in zip(operands, (*sources, target), strict=True) if view is not None]
        fields, views = zip(*named, strict=True)
        for buffer, _ in views[:-1]:
            if buffer >= 0:
                self.buffers[buffer] = replace(self.buffers[buffer], last=len(self.steps))
        patches = tuple(  # the user's arrays depend on the call
            Patch(field, -b, 0, self.outer * self.user_bytes[-b - 1]) for field, (b, _) in named if b < 0
        )  # fmt: skip
        self.steps.append(Step(name, kernel, node, views[:-1], target, launch, fields, patches))

    def _add_weighted(
        self, node: Node, op: Conv | Linear, weight: PlannedWeight, where: str, source: View, residual: View | None,
        target: View, **strides: int,
    ) -> None:  # fmt: skip
        """Append the step of an SpMM; `strides` are keywords of `spmm.prepare`."""
        launch = prepared(weight, op, self.target, residual=residual is not None, **strides)
        kernel = f"spmm {where}, {way(launch, weight.plan)}"
        self._add(node.name, kernel, node, (source, residual), target, launch)

    # --- changing forms --------------------------------------------------------------------------

    def _get(self, t: int, form: str, node: Node) -> View:
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
                view = self.user[len(self.program.inputs) + number]
                if (t, "plain") not in self.forms and (blocks := self._in_blocks(t)):
                    self._unpack(t, blocks, view, "output")
                else:
                    self._copy_out(t, view, "output")

    def _in_blocks(self, t: int) -> str | None:
        """The form of blocks that the tensor has, if any."""
        return next((form for other, form in self.forms if other == t and form.startswith(_BLOCKS)), None)

    def _lay_out(self, t: int, node: Node) -> None:
        self._get(t, "plain", node)
        self._copy(t, "plain", "planes", self._new(t, "planes"), name_before(node))

    def _copy_out(self, t: int, target: View, name: str) -> None:
        form = self._have(t)
        self._copy(t, form, "plain", target, name)

    def _copy(self, t: int, source: str, form: str, target: View, name: str) -> None:
        """Step that copies an image from form to form; the padding of planes is zero already."""
        rows, view = _rows_of(self._planes(t, form), self.target), self.forms[t, source]
        kernel = "copy" if form == "plain" else "pack into planes"
        self._pack(self._planes(t, source), view, rows, target, name, kernel)

    def _pack(
        self, x: PaddedPlanes, source: View, planes: PaddedPlanes | PhasePlanes, target: View, name: str, kernel: str
    ) -> None:  # fmt: skip
        rows = None if x.contiguous else x.row_offsets.ravel()
        # The padding of planes in a buffer of its layout class is zero already.
        launch = layouts.pack_padded(
            planes, x.channels, self.images, x.image_stride, x.channel_stride, self.target, rows,
            clear=isinstance(planes, PhasePlanes),
        )  # fmt: skip
        self._add(name, kernel, None, (source,), target, launch, ("user", "planes"))

    # --- nodes ------------------------------------------------------------------------------------

    def _pool_planes(self, node: Node, op: Pool, x: PaddedPlanes, source: View, y: PaddedPlanes, target: View) -> None:
        """Append the step of a pool between contiguous planes."""
        count = self.images * x.channels
        launch = pooling.prepare(op.kind, op.windows, count, self.target, x.channel_stride, y.channel_stride)
        self._add(node.name, f"{op.kind} pool", node, (source,), target, launch)

    def _rows(self, node: Node, op: RowWise) -> None:
        """Append the step of an operator on rows, which the user's layout has contiguous."""
        sources = tuple(self._get(self.roots[t], "plain", node) for t in node.inputs)
        shape = self.program.shapes[node.output]
        operands: tuple[str, ...] = ()
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
        strides = (x, x // op.blocks), (y, y // op.blocks)
        launch = spatial_tiles.prepare(plan, *strides, op.blocks, self.images, self.target)
        source = self._get(t, "plain", node)
        self._add(node.name, "gather", node, (source,), self._target(node.output, "plain"), launch)

    def _add_interpolation(
        self, node: Node, op: Interpolate, x: PaddedPlanes, source: View, residual: View | None, y: PaddedPlanes,
        target: View,
    ) -> None:  # fmt: skip
        launch = interpolation.prepare(x, y, op.scale, op.activation, self.images, self.target)
        self._add(node.name, "interpolation", node, (source, residual), target, launch)

    def _add_gate(
        self, node: Node, where: str, x: Planes, source: View, gate: Planes, gate_source: View, y: Planes,
        target: View, parts: int = 1,
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
        launch = spmv.with_values(spmv.prepare(plan, target_cpu, activation), plan, values).fixed(bias=op.bias)
        self._add(node.name, "spmv", node, (source,), target, launch)
        if node.residual is not None:
            self._sum(node, op, target, residual)

    def _sum(self, node: Node, op: Conv | Linear, x: View, residual: View) -> None:
        """activation(x + residual): the identity of one channel, whose positions are the features."""
        plan = plan_identity(op.weight.shape[0], self.target)
        values = plan.operator.pack(np.ones(1, self.program.dtype))
        launch = spmm.prepare(
            plan, self.target, y_row_stride=0, residual=True, activation=op.activation, label="add"
        ).fixed(values=values)
        target = self._target(node.output, "plain")
        self._add(node.name, "sum", None, (x, residual), target, launch)

    def _groups(self, rows: int) -> int:
        return -(-self.images * rows // self.target.lanes)

    def _features(self, t: int, rows: int) -> tuple[BlockedPlanes, BlockedPlanes]:
        """The tensor in blocks of rows: as channels, and as one plane of features."""
        features = math.prod(self.program.shapes[t]) // rows
        planes = blocked_planes(features, (), (), self.target)
        return planes, replace(planes, channels=1, positions=features)

    def _linear(self, node: Node, op: Linear) -> None:
        t = self.roots[node.inputs[0]]
        x, y, form = self._features(t, op.rows)[0], self._features(node.output, op.rows)[0], f"{_BLOCKS}{op.rows}"
        source = self._get(t, form, node)
        residual = None if node.residual is None else self._get(self.roots[node.residual], form, node)
        weight = planned(op.weight, plan_linear_between, x, y, self.target, self._groups(op.rows))
        target = self._new(node.output, form)
        self._add_weighted(node, op, weight, "batch-blocked", source, residual, target, y_row_stride=self.target.vector)

    def _pack_blocked(self, t: int, form: str, plain: View, name: str) -> None:
        rows = int(form.removeprefix(_BLOCKS))
        _, one = self._features(t, rows)
        launch = layouts.pack_blocked(one, self.images * rows, self.target)
        kernel = f"pack into blocks of {self.target.lanes}"
        self._add(name, kernel, None, (plain,), self._new(t, form), launch, ("user", "blocked"))

    def _unpack(self, t: int, form: str, target: View, name: str) -> None:
        rows = int(form.removeprefix(_BLOCKS))
        _, one = self._features(t, rows)
        launch = layouts.unpack_blocked(one, self.images * rows, self.target)
        self._add(name, "unpack", None, (self.forms[t, form],), target, launch, ("blocked", "user"))

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
        have = self._have(t)
        source, x, y = self._get(t, have, node), self._planes(t, have), self._planes(node.output, form)
        fresh = self.roots[node.residual] != t if node.residual is not None else False

        def target() -> View:
            return self._target(node.output, form, residual if fresh else None)

        self._add_conv(node, op, x, source, y, residual, target)

    def _add_conv(
        self, node: Node, op: Conv, x: PaddedPlanes, source: View, y: PaddedPlanes, residual: View | None,
        target: Callable[[], View] | View,
    ) -> None:  # fmt: skip
        """The step of a convolution, behind one that packs its input if need be; a new target is made between them."""
        if not depthwise.serves(op.geometry, op.weight):
            product = self._product(node, op, x, source, y)
            self._add_product(node, op, product, y, residual, target() if callable(target) else target)
            return
        launch = depthwise.prepare(
            x, y, op.geometry, op.weight, op.bias, op.activation, self.images, self.target, residual is not None
        )
        to = target() if callable(target) else target
        self._add(node.name, "depthwise on padded planes", node, (source, residual), to, launch)

    def _product(self, node: Node, op: Conv, x: PaddedPlanes, source: View, y: PaddedPlanes) -> _Product:
        """The product of a convolution from planes to planes; its input is split into phases now if need be."""
        geometry, images = op.geometry, self.images
        if _steps_by_one(node):
            weight = planned(op.weight, plan_between_padded, geometry, x, y, self.target, images)
            return _Product(weight, "on padded planes", source, x.image_stride)
        phases = plan_padded(op.weight.pattern, geometry, self.target, images, y.all_offsets())
        image_stride = geometry.channels * phases.x.channel_stride
        view = self._buffer(images * image_stride + phases.x.slack, plane=phases.x.channel_stride)
        self._pack(x, source, phases.x, view, name_before(node), "pack into phase planes")
        return _Product(PlannedWeight(op.weight, phases.spmm), "on phase planes", view, image_stride)

    def _add_product(
        self, node: Node, op: Conv, product: _Product, y: PaddedPlanes, residual: View | None, target: View
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
            if first.output in found:
                continue  # layers of one channel in a row: the first is behind a product of its own
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
        t, channels, read = first.output, op.geometry.channels, self.roots[first.inputs[0]]
        x, source = self._in_planes(read), self._get(read, "planes", first)
        between, y = self._in_planes(t), self._planes(node.output, self._written(node))
        count = max(1, self._piece_bytes() // between.channel_stride)
        _, zeros, _ = self._memory_of(t)
        size = min(count, channels) * between.channel_stride + between.slack
        view = self._buffer(size, zeros, plane=between.channel_stride)
        target = self._target(node.output, self._written(node))
        for start in range(0, channels, count):
            stop = min(channels, start + count)
            part, expanded, windowed = replace(between, channels=stop - start), *(
                _channels(o, start, stop) for o in (first.operator, op)
            )  # fmt: skip
            self._add_product(first, expanded, self._product(first, expanded, x, source, part), part, None, view)
            to = target[0], target[1] + start * y.channel_stride
            self._add_conv(node, windowed, part, view, replace(y, channels=stop - start), None, to)

    def _pool(self, node: Node, op: Pool) -> None:
        t, form = self.roots[node.inputs[0]], self._written(node)
        have = "planes" if (t, "planes") in self.forms and self._in_planes(t).contiguous else "plain"
        source = self._get(t, have, node)
        target = self._target(node.output, form)
        self._pool_planes(node, op, self._planes(t, have), source, self._planes(node.output, form), target)

    def _interpolate(self, node: Node, op: Interpolate) -> None:
        t, form = self.roots[node.inputs[0]], self._written(node)
        residual = None if node.residual is None else self._get(self.roots[node.residual], form, node)
        have = self._have(t)
        source, y = self._get(t, have, node), self._planes(node.output, form)
        target = self._target(node.output, form, residual)
        self._add_interpolation(node, op, self._planes(t, have), source, residual, y, target)

    def _gate(self, node: Node) -> None:
        t, g, form = self.roots[node.inputs[0]], self.roots[node.inputs[1]], self._written(node)
        have, gate_form = self._have(t), self._have(g)
        source, gate_source = self._get(t, have, node), self._get(g, gate_form, node)
        x, gate, y = (self._planes(s, f) for s, f in ((t, have), (g, gate_form), (node.output, form)))
        target = self._target(node.output, form, source if gates.in_place(x, y) else None)
        self._add_gate(node, "on padded planes", x, source, gate, gate_source, y, target)


def name_before(node: Node) -> str:
    """What the report calls a step that prepares a node's input."""
    return node.name.partition(" ")[0]


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


def _reads_padding(node: Node) -> bool:
    """Whether the node is a convolution that reads the planes of its layout class, with their padding."""
    op = node.operator
    return isinstance(op, Conv) and _steps_by_one(node) and not depthwise.serves(op.geometry, op.weight)


def _steps_by_one(node: Node) -> bool:
    """Whether the node is a convolution of stride 1."""
    return isinstance(node.operator, Conv) and set(node.operator.geometry.stride) == {1}


schedule = Lowering.schedule
