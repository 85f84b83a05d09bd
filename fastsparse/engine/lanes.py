"""Programs on lanes layout: VL samples innermost from the first layer to the last.

The user's array is packed once, into the zero-padded planes that the first layer reads; every layer writes the planes
that the next one reads, padding included; flattening moves nothing; the last layer's planes are unpacked once.

A task is `outer` groups of VL samples. Its steps come in two stages: those on images run on `inner` groups at a time,
so that what one writes is in the cache when the next one reads it; those on features (and on images of very few
positions) run on all groups of the task at once, since their tiles go over groups.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np

from fastsparse import launch, launch_engine
from fastsparse._linear import packed_values
from fastsparse.engine import split
from fastsparse.engine.program import Conv, Linear, Node, Pool, Program, Reshape
from fastsparse.engine.schedule import SAMPLES, USER, Buffer, Patch, Place, Schedule, Step, X, Y
from fastsparse.plan.conv import conv_between
from fastsparse.plan.lanes import LanesPlanes, lanes_planes, linear_between
from fastsparse.plan.linear import Machine
from fastsparse.plan.pooling import forward_bands
from fastsparse.plan.tiles import SpmmPlan

_NO_BORDERS = np.empty(0, np.int64)


def lanes_schedule(program: Program, batch: int, machine: Machine, sizes: split.Split | None = None) -> Schedule:
    """The schedule for `batch` samples. `sizes` is how the batch is cut, by `split.choose` when not given."""
    if sizes is None:
        sizes = split.choose(work_of(program, machine), -(-batch // machine.lanes), machine.workers)
    planes, late = assign_planes(program, machine), late_nodes(program)
    return _Lowering(program, planes, late, sizes, -(-batch // machine.lanes), machine).schedule()


def assign_planes(program: Program, machine: Machine) -> dict[int, LanesPlanes]:
    """Planes of every tensor that has memory of its own, with the padding that its readers need."""
    roots = program.roots()
    found = {}
    for t in set(roots.values()):
        channels, *spatial = program.shapes[t]
        padding = [(0, 0)] * len(spatial)
        for node in program.nodes:
            if isinstance(node.operator, Conv) and node.inputs[0] == t:
                pairs = zip(padding, node.operator.geometry.padding, strict=True)
                padding = [(max(a[0], b[0]), max(a[1], b[1])) for a, b in pairs]
        found[t] = lanes_planes(channels, tuple(spatial), tuple(padding), machine)
    return {t: found[root] for t, root in roots.items()}


def late_nodes(program: Program) -> set[int]:
    """Outputs of the nodes of the second stage: products of few positions, and all that follows from them."""
    late: set[int] = set()
    for node in program.nodes:
        few = isinstance(node.operator, Linear) or (
            isinstance(node.operator, Conv) and node.operator.geometry.positions < split.FEW_POSITIONS
        )
        if few or any(t in late for t in node.inputs):
            late.add(node.output)
    return late


def work_of(program: Program, machine: Machine) -> split.Work:
    """What one group of samples costs."""
    planes, late = assign_planes(program, machine), late_nodes(program)
    flops, live = [0.0, 0.0], [0, 0]
    for node in program.nodes:
        if isinstance(node.operator, Reshape):
            continue
        stage = node.output in late
        live[stage] = max(live[stage], sum(planes[t].group_stride for t in (*node.inputs, node.output)))
        if isinstance(node.operator, Conv | Linear):
            flops[stage] += node.operator.useful_flops * machine.lanes
    return split.Work(flops[0], flops[1], live[0], live[1], len(program.nodes))


@dataclass
class _Lowering:
    program: Program
    planes: dict[int, LanesPlanes]
    late: set[int]
    sizes: split.Split
    groups: int
    machine: Machine  # of the user

    def schedule(self) -> Schedule:
        per_worker = self.sizes.per_worker
        self.m = replace(self.machine, workers=1) if per_worker else self.machine
        self.roots = self.program.roots()
        outer, inner = self.sizes.outer, self.sizes.inner
        early: list[Node] = []
        late: list[Node] = []
        for node in self.program.nodes:
            if not isinstance(node.operator, Reshape):
                (late if node.output in self.late else early).append(node)
        self.whole = {self.roots[t] for node in late for t in (*node.inputs, node.output)}
        if not early:
            self.whole |= {self.roots[t] for t in self.program.inputs}
        self.buffers, self.index = self._buffers([*early, *late])
        steps: list[Step] = []
        plans = {node.output: self._plan(node) for node in (*early, *late)}
        read_late = {self.roots[t] for node in late for t in node.inputs}
        (source,), (result,) = self.program.inputs, self.program.outputs
        packed_late = source in read_late or not early
        result = self.roots[result]
        for first in range(0, outer if early else 0, inner):
            count = min(inner, outer - first)
            if not packed_late:
                steps.append(self._pack(source, first, count))
            steps += [self._step(node, plans[node.output], first, count) for node in early]
            if result not in self.late:
                steps.append(self._unpack(result, first, count))
        if packed_late:
            steps.insert(0, self._pack(source, 0, outer))
        steps += [self._step(node, plans[node.output], 0, outer) for node in late]
        if result in self.late or not early:
            steps.append(self._unpack(result, 0, outer))
        return Schedule(steps, self.buffers, -(-self.groups // outer), self.machine.workers, per_worker)

    # --- memory --------------------------------------------------------------------------------

    def _buffers(self, nodes: list[Node]) -> tuple[list[Buffer], dict[int, int]]:
        """Buffers by lifetime, counted in nodes, and the buffer of every tensor with memory of its own."""
        last = {self.roots[t]: i for i, node in enumerate(nodes) for t in node.inputs}
        last.update({self.roots[t]: len(nodes) for t in self.program.outputs})
        births = dict.fromkeys(self.program.inputs, -1)
        births.update({node.output: i for i, node in enumerate(nodes)})
        buffers: list[Buffer] = []
        index: dict[int, int] = {}
        for t, birth in births.items():
            planes, whole = self.planes[t], t in self.whole
            groups = self.sizes.outer if whole else self.sizes.inner
            # What the first stage leaves for the second is written bit by bit, all through the first.
            first = -1 if whole and t not in self.late else birth
            layout: Hashable = None
            if len(planes.borders):
                between = planes.group_stride if groups > 1 else 0
                layout = (planes.channel_stride, planes.spatial, planes.strides, planes.corner, between)
            index[t] = len(buffers)
            buffers.append(Buffer(groups * planes.group_stride, first, last.get(t, birth), layout))
        return buffers, index

    def _place(self, tensor: int, first: int) -> Place:
        """Where group `first` of the task lies in the tensor's buffer."""
        t = self.roots[tensor]
        return self.index[t], first * self.planes[t].group_stride if t in self.whole else 0

    # --- steps ---------------------------------------------------------------------------------

    def _user(self, t: int, first: int, variable: int) -> tuple[LanesPlanes, int, int, tuple[Patch, ...]]:
        """The tensor as the user has it, byte strides of samples and channels, and what depends on the call."""
        planes, m, outer = self.planes[t], self.m, self.sizes.outer
        sample = planes.channels * planes.positions * m.size
        lanes = m.lanes
        if planes.channel_stride == m.vector:  # features: one plane
            planes = replace(planes, channels=1, positions=planes.channels)
        patches = (
            Patch("user", variable, first * lanes * sample, outer * lanes * sample),
            Patch("samples", SAMPLES, -first * lanes, -outer * lanes),
        )
        return replace(planes, borders=_NO_BORDERS), sample, planes.positions * m.size, patches

    def _pack(self, tensor: int, first: int, count: int) -> Step:
        t, m = self.roots[tensor], self.m
        planes, sample, channel, patches = self._user(t, first, X)
        return Step(
            "input", f"pack into lanes of {m.lanes}", None, (USER, 0), self._place(t, first),
            lambda x, y, scratch: launch.pack_lanes_call(x, sample, channel, planes, y, count * m.lanes, m),
            patches=patches,
        )  # fmt: skip

    def _unpack(self, tensor: int, first: int, count: int) -> Step:
        t, m = self.roots[tensor], self.m
        planes, sample, channel, patches = self._user(t, first, Y)
        return Step(
            "output", "unpack", None, self._place(t, first), (USER, 0),
            lambda x, y, scratch: launch.unpack_lanes_call(x, planes, y, sample, channel, count * m.lanes, m),
            patches=patches,
        )  # fmt: skip

    def _plan(self, node: Node) -> SpmmPlan | None:
        x, y, op = self.planes[node.inputs[0]], self.planes[node.output], node.operator
        if isinstance(op, Linear):
            return linear_between(op.weight.pattern, x, y, self.m, self.sizes.outer)
        if isinstance(op, Conv):
            groups = self.sizes.outer if node.output in self.late else self.sizes.inner
            tile_groups = split.tile_groups(op.geometry.positions, groups)
            return conv_between(op.weight.pattern, op.geometry, x, y, self.m, groups, tile_groups)
        return None

    def _step(self, node: Node, plan: SpmmPlan | None, first: int, count: int) -> Step:
        source, target = self._place(node.inputs[0], first), self._place(node.output, first)
        x, y, m, op = self.planes[node.inputs[0]], self.planes[node.output], self.m, node.operator
        if isinstance(op, Pool):
            bands = forward_bands(op.windows, m.vector, count * x.channels, m.workers)
            return Step(
                node.name, f"{op.kind} pool in lanes", node, source, target,
                lambda a, b, scratch: launch_engine.pool_lanes_call(op.kind, op.windows, bands, a, x, b, y, count, m),
            )  # fmt: skip
        assert isinstance(op, Conv | Linear)
        assert plan is not None
        values = packed_values(op.weight, plan.operator)
        over_groups = isinstance(op, Linear) or split.tile_groups(op.geometry.positions, count) > 1
        return Step(
            node.name, f"spmm in lanes, tile {plan.tiles.width}", node, source, target,
            lambda a, b, scratch: launch.spmm_call(
                plan, values, a, b, m, scratch=scratch, y_row_stride=y.channel_stride,
                batches=1 if over_groups else count, x_batch_stride=x.group_stride, y_batch_stride=y.group_stride,
                bias=op.bias, activation=op.activation,
            ),
            launch.spmm_scratch(plan, m),
        )  # fmt: skip
