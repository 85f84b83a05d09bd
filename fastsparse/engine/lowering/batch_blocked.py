"""Programs on the batch-blocked layout: VL samples innermost from the first layer to the last.

The user's arrays are packed once, into the zero-padded planes that their readers read; every layer writes the planes
that the next one reads, padding included; flattening moves nothing; results are unpacked once. Tensors that are added
to one another have equal planes, so that a product's tiles find the residual where they write.

A task is `outer` groups of VL samples. Its steps come in two stages: those on images run on `inner` groups at a time,
so that what one writes is in the cache when the next one reads it; those on features (and on images of very few
positions) run on all groups of the task at once, since their tiles go over groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastsparse.engine import split
from fastsparse.engine.lowering.weights import PlannedWeight, planned, prepared, way
from fastsparse.engine.program import Conv, Gate, Gather, Interpolate, Linear, Node, Pool, Program, Reshape
from fastsparse.engine.schedule import SAMPLES, Buffer, Patch, Schedule, Step, View, Zeros
from fastsparse.ops import gates, interpolation, pooling, spatial_tiles
from fastsparse.ops.conv import plan_between_blocked, plan_linear_between
from fastsparse.ops.geometry import Padding
from fastsparse.ops.layouts import BlockedPlanes, blocked_planes, pack_blocked, unpack_blocked, widest
from fastsparse.ops.target import Target
from fastsparse.runtime.launch import Launch

_UNPADDED = np.empty(0, np.int64)


def schedule(program: Program, batch: int, target: Target, sizes: split.Split | None = None) -> Schedule:
    """The schedule for `batch` samples. `sizes` is how the batch is cut, by `split.choose` when not given."""
    if sizes is None:
        sizes = split.choose(work_of(program, target), -(-batch // target.lanes), target)
    planes, late = assign_planes(program, target), program.late_nodes(target.heuristics.few_positions)
    return _Lowering(program, planes, late, sizes, -(-batch // target.lanes), target).schedule()


def assign_planes(program: Program, target: Target) -> dict[int, BlockedPlanes]:
    """Planes of every tensor, with the padding that the readers of all tensors of its layout class need."""
    classes = program.layout_classes()
    paddings: dict[int, list[Padding]] = {t: [] for t in classes.values()}
    for node in program.nodes:
        if isinstance(node.operator, Conv):
            paddings[classes[node.inputs[0]]].append(node.operator.geometry.padding)
    found = {}
    for t, of_readers in paddings.items():
        channels, *spatial = program.shapes[t]
        found[t] = blocked_planes(channels, tuple(spatial), widest(of_readers, len(spatial)), target)
    return {t: found[leader] for t, leader in classes.items()}


def work_of(program: Program, target: Target) -> split.Work:
    """What one group of samples costs."""
    planes, late = assign_planes(program, target), program.late_nodes(target.heuristics.few_positions)
    flops, live = [0.0, 0.0], [0, 0]
    for node in program.nodes:
        if isinstance(node.operator, Reshape):
            continue
        stage = node.output in late
        live[stage] = max(live[stage], sum(planes[t].group_stride for t in (*node.inputs, node.output)))
        if isinstance(node.operator, Conv | Linear):
            flops[stage] += node.operator.useful_flops * target.lanes
    return split.Work(flops[0], flops[1], live[0], live[1], len(program.nodes))


@dataclass
class _Lowering:
    program: Program
    planes: dict[int, BlockedPlanes]
    late: set[int]
    sizes: split.Split
    groups: int
    user_target: Target

    def schedule(self) -> Schedule:
        per_worker = self.sizes.per_worker
        self.target = self.user_target.serial if per_worker else self.user_target
        self.roots = self.program.roots()
        outer, inner = self.sizes.outer, self.sizes.inner
        early: list[Node] = []
        late: list[Node] = []
        for node in self.program.nodes:
            if not isinstance(node.operator, Reshape):
                (late if node.output in self.late else early).append(node)
        self.whole = {self.roots[t] for node in late for t in (*node.inputs, node.output)}
        # What goes through unchanged is unpacked at the end.
        self.whole |= set(self.program.inputs) & {self.roots[t] for t in self.program.outputs}
        if not early:
            self.whole |= set(self.program.inputs)
        self.buffers, self.index = self._buffers([*early, *late])
        plans = {node.output: self._plan(node) for node in (*early, *late)}
        sources = self.program.inputs
        steps = [self._pack(k, 0, outer) for k, t in enumerate(sources) if t in self.whole]
        for first in range(0, outer if early else 0, inner):
            count = min(inner, outer - first)
            steps += [self._pack(k, first, count) for k, t in enumerate(sources) if t not in self.whole]
            for node in early:
                steps.append(self._step(node, plans[node.output], first, count))
                steps += self._unpacked(node.output, first, count)
        for node in late:
            steps.append(self._step(node, plans[node.output], 0, outer))
            steps += self._unpacked(node.output, 0, outer)
        for t in sources:
            steps += self._unpacked(t, 0, outer)
        return Schedule(
            steps, self.buffers, -(-self.groups // outer), self.user_target.threads, per_worker, self.target.heuristics
        )

    # --- memory --------------------------------------------------------------------------------

    def _buffers(self, nodes: list[Node]) -> tuple[list[Buffer], dict[int, int]]:
        """Buffers by lifetime, counted in nodes, and the buffer of every tensor with memory of its own."""
        last = {self.roots[t]: i for i, node in enumerate(nodes) for t in node.inputs}
        # Results are unpacked where they are written, and inputs that are results at the end.
        last.update(dict.fromkeys(set(self.program.inputs) & {self.roots[t] for t in self.program.outputs}, len(nodes)))
        given = {  # what a node may write over
            node.output: self.roots[node.residual]
            for node in nodes
            if node.residual is not None and self.roots[node.residual] != self.roots[node.inputs[0]]
        }
        for node in nodes:
            x = node.inputs[0]
            if isinstance(node.operator, Gate) and gates.in_place(self.planes[x], self.planes[node.output]):
                given[node.output] = self.roots[x]
        births = dict.fromkeys(self.program.inputs, -1)
        births.update({node.output: i for i, node in enumerate(nodes)})
        buffers: list[Buffer] = []
        index: dict[int, int] = {}
        for t, birth in births.items():
            planes, whole = self.planes[t], t in self.whole
            groups = self.sizes.outer if whole else self.sizes.inner
            # What the first stage leaves for the second is written bit by bit, all through the first.
            first = -1 if whole and t not in self.late else birth
            zeros = None
            if len(planes.padding_offsets):
                between = planes.group_stride if groups > 1 else 0
                corner, vector = planes.corner, self.target.vector
                zeros = Zeros(planes.channel_stride, between, planes.spatial, planes.strides, corner, vector)
            index[t] = len(buffers)
            over = index[given[t]] if t in given else -1
            size = groups * planes.group_stride
            buffers.append(Buffer(size, first, last.get(t, birth), zeros, over, planes.channel_stride))
        return buffers, index

    def _view(self, tensor: int, first: int) -> View:
        """View of group `first` of the task in the tensor's buffer."""
        t = self.roots[tensor]
        return self.index[t], first * self.planes[t].group_stride if t in self.whole else 0

    # --- steps ---------------------------------------------------------------------------------

    def _user(self, t: int, first: int, array: int) -> tuple[BlockedPlanes, tuple[Patch, ...]]:
        """The tensor as the user has it, and what depends on the call."""
        planes, target, outer = self.planes[t], self.target, self.sizes.outer
        sample, lanes = planes.sample_bytes(target), target.lanes
        if planes.channel_stride == target.vector:  # features: one plane
            planes = replace(planes, channels=1, positions=planes.channels)
        patches = (
            Patch("user", array + 1, first * lanes * sample, outer * lanes * sample),
            Patch("samples", SAMPLES, -first * lanes, -outer * lanes),
        )
        return replace(planes, padding_offsets=_UNPADDED), patches

    def _pack(self, number: int, first: int, count: int) -> Step:
        """Input `number` of the program into planes."""
        t, lanes = self.program.inputs[number], self.target.lanes
        planes, patches = self._user(t, first, number)
        launch = pack_blocked(planes, count * lanes, self.target)
        return Step(
            "input", f"pack into blocks of {lanes}", None, ((-1 - number, 0),), self._view(t, first), launch,
            ("user", "blocked"), patches,
        )  # fmt: skip

    def _unpacked(self, tensor: int, first: int, count: int) -> list[Step]:
        """Steps that give the tensor to the user, if it is a result."""
        steps = []
        for number, output in enumerate(self.program.outputs, len(self.program.inputs)):
            if self.roots[output] == tensor:
                planes, patches = self._user(tensor, first, number)
                launch = unpack_blocked(planes, count * self.target.lanes, self.target)
                source = (self._view(tensor, first),)
                steps.append(
                    Step("output", "unpack", None, source, (-1 - number, 0), launch, ("blocked", "user"), patches)
                )
        return steps

    def _plan(self, node: Node) -> PlannedWeight | None:
        x, y, op, target = self.planes[node.inputs[0]], self.planes[node.output], node.operator, self.target
        groups = self.sizes.outer if node.output in self.late else self.sizes.inner
        if isinstance(op, Linear):
            return planned(op.weight, plan_linear_between, x, y, target, groups)
        if isinstance(op, Conv):
            geometry = op.geometry
            tile_groups = split.tile_groups(geometry.positions, groups, target.heuristics)
            return planned(op.weight, plan_between_blocked, geometry, x, y, target, groups, tile_groups)
        return None

    def _step(self, node: Node, weight: PlannedWeight | None, first: int, count: int) -> Step:
        sources, result = tuple(self._view(t, first) for t in node.inputs), self._view(node.output, first)
        x, y, op = self.planes[node.inputs[0]], self.planes[node.output], node.operator
        if isinstance(op, Pool):
            launch = pooling.prepare_blocked(op.kind, op.windows, x, y, count, self.target)
            return Step(node.name, f"{op.kind} pool batch-blocked", node, sources, result, launch)
        operands = ("x", "residual", "y") if len(sources) > 1 else ("x", "y")
        if isinstance(op, Interpolate):
            launch = interpolation.prepare_blocked(x, y, op.scale, op.activation, count, self.target)
            return Step(node.name, "interpolation batch-blocked", node, sources, result, launch, operands)
        if isinstance(op, Gather):
            launch = self._gather(op, self.planes[self.roots[node.inputs[0]]], y, count)
            return Step(node.name, "gather batch-blocked", node, sources, result, launch)
        if isinstance(op, Gate):
            g = self.planes[node.inputs[1]]
            strides, at = (g.group_stride, g.channel_stride), (sources[1][0], sources[1][1] + g.corner)
            launch = gates.prepare(x, strides, y, x.channels, count, self.target, by_lane=True)
            return Step(node.name, "gate batch-blocked", node, (sources[0], at), result, launch, ("x", "gate", "y"))
        assert isinstance(op, Conv | Linear)
        assert weight is not None
        h = self.target.heuristics
        over_groups = isinstance(op, Linear) or split.tile_groups(op.geometry.positions, count, h) > 1
        launch = prepared(
            weight, op, self.target, residual=len(sources) > 1, y_row_stride=y.channel_stride,
            batches=1 if over_groups else count, x_batch_stride=x.group_stride, y_batch_stride=y.group_stride,
        )  # fmt: skip
        kernel = f"spmm batch-blocked, {way(launch, weight.plan)}"
        return Step(node.name, kernel, node, sources, result, launch, operands)

    def _gather(self, op: Gather, x: BlockedPlanes, y: BlockedPlanes, count: int) -> Launch:
        """Vectors of samples at other positions."""

        def offsets(planes: BlockedPlanes) -> tuple[NDArray[np.int64], int]:
            """Of the numbers of a block, and from one block to the next."""
            channels = planes.channels // op.blocks
            at = np.add.outer(np.arange(channels) * planes.channel_stride, planes.all_offsets()).ravel()
            return at, channels * planes.channel_stride

        (source, x_stride), (target, y_stride) = offsets(x), offsets(y)
        plan = spatial_tiles.gather_vectors(source[op.index], target, self.target)
        strides = (x.group_stride, x_stride), (y.group_stride, y_stride)
        return spatial_tiles.prepare(plan, *strides, op.blocks, count, self.target)
