"""Programs that are no chains: several inputs and outputs, tensors of several readers, sums of every kind."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastsparse as fs
from fastsparse.engine import split
from fastsparse.engine.choosing import choices
from fastsparse.engine.lowering import batch_blocked, padded, spatial_tiles
from fastsparse.engine.passes import fuse_adds, optimised
from fastsparse.engine.program import (
    Activate,
    Add,
    Conv,
    Gate,
    Interpolate,
    Linear,
    Node,
    Operator,
    Pool,
    Program,
    Reshape,
    Shape,
)
from fastsparse.engine.schedule import Schedule, assign_memory
from fastsparse.engine.workspace import Workspace
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.pooling import adaptive_windows, windows
from fastsparse.ops.target import target_for
from fastsparse_kernels import reference as ref

Array = NDArray[Any]


class Graph:
    """A program being written down."""

    def __init__(self, *inputs: Shape, seed: int = 0) -> None:
        self.shapes: list[Shape] = list(inputs)
        self.inputs = tuple(range(len(inputs)))
        self.nodes: list[Node] = []
        self.rng = np.random.default_rng(seed)

    def add(self, operator: Operator, shape: Shape, *inputs: int) -> int:
        self.shapes.append(shape)
        self.nodes.append(Node(f"n{len(self.nodes)}", operator, inputs, len(self.shapes) - 1))
        return len(self.shapes) - 1

    def weights(self, rows: int, columns: int) -> tuple[fs.CSR, Array]:
        """Small integers, so that sums are exact in any order."""
        dense = self.rng.integers(-2, 3, (rows, columns)) * (self.rng.random((rows, columns)) < 0.4)
        return fs.csr(dense.astype(np.float32)), self.rng.integers(-3, 4, rows).astype(np.float32)

    def conv(self, x: int, out: int, kernel: int = 3, stride: int = 1, activation: str | None = None) -> int:
        channels, *spatial = self.shapes[x]
        axes = len(spatial)
        pads = ((kernel // 2, kernel // 2),) * axes
        geometry = ConvGeometry(
            channels, out, tuple(spatial), (kernel,) * axes, (stride,) * axes, pads, (1,) * axes, 1
        )  # fmt: skip
        weight, bias = self.weights(out, channels * kernel**axes)
        return self.add(Conv(weight, bias, geometry, activation), (out, *geometry.out_spatial), x)

    def linear(self, x: int, out: int, activation: str | None = None) -> int:
        weight, bias = self.weights(out, self.shapes[x][0])
        return self.add(Linear(weight, bias, activation), (out,), x)

    def sum(self, a: int, b: int, activation: str | None = None) -> int:
        return self.add(Add(activation), self.shapes[a], a, b)

    def gate(self, x: int, g: int) -> int:
        return self.add(Gate(), self.shapes[x], x, g)

    def interpolate(self, x: int, *scale: int) -> int:
        channels, *spatial = self.shapes[x]
        return self.add(Interpolate(scale), (channels, *(n * s for n, s in zip(spatial, scale, strict=True))), x)

    def mean(self, x: int) -> int:
        channels, *spatial = self.shapes[x]
        return self.add(Pool("mean", adaptive_windows(tuple(spatial), (1, 1))), (channels, 1, 1), x)

    def pool(self, x: int) -> int:
        channels, *spatial = self.shapes[x]
        tables = windows(tuple(spatial), (2, 2), (2, 2), ((0, 0), (0, 0)))
        return self.add(Pool("max", tables), (channels, *tables.out_spatial), x)

    def flatten(self, x: int) -> int:
        return self.add(Reshape(), (int(np.prod(self.shapes[x])),), x)

    def program(self, *outputs: int) -> Program:
        return Program(tuple(self.shapes), self.inputs, outputs, tuple(self.nodes), np.dtype(np.float32))


def exact(program: Program, inputs: list[Array]) -> list[Array]:
    """What an unoptimised program of integers computes, node by node."""
    known = dict(zip(program.inputs, inputs, strict=True))
    for node in program.nodes:
        op, (x, *rest) = node.operator, [known[t] for t in node.inputs]
        if isinstance(op, Conv):
            g, w = op.geometry, op.weight
            y = ref.conv(
                w.indptr, w.indices, w.data, w.shape, x, kernel_size=g.kernel, stride=g.stride, padding=g.padding,
                dilation=g.dilation, bias=op.bias, activation=op.activation,
            )  # fmt: skip
        elif isinstance(op, Linear):
            w = op.weight
            y = ref.linear(x, w.indptr, w.indices, w.data, w.shape, op.bias, op.activation)
        elif isinstance(op, Add):
            y = ref.activate(op.activation, x + rest[0]) if op.activation else x + rest[0]
        elif isinstance(op, Activate):
            y = ref.activate(op.name, x)
        elif isinstance(op, Pool):
            mean = op.kind == "mean"
            y = x.mean((2, 3), keepdims=True) if mean else ref.max_pool(x, (2, 2), (2, 2), ((0, 0), (0, 0)))
        elif isinstance(op, Interpolate):
            y = ref.interpolate(x, op.scale)
        elif isinstance(op, Gate):
            y = x * rest[0].reshape(*rest[0].shape[:2], *(1,) * (x.ndim - 2))
        else:
            y = x.reshape(len(x), -1)
        known[node.output] = y
    return [np.asarray(known[t]) for t in program.outputs]


def two_inputs_two_outputs() -> Program:
    g = Graph((3, 6, 7), (5, 6, 7))
    a, b = g.conv(0, 4), g.conv(1, 4, kernel=1)
    both = g.sum(a, b, "relu")
    return g.program(g.conv(both, 3), both)


def everything_is_an_output() -> Program:
    """Inputs, what others read, one tensor twice, what is only a view."""
    g = Graph((3, 5, 5), (2, 4))
    a = g.conv(0, 4, activation="relu")
    b = g.conv(a, 4)
    c = g.sum(b, a)
    d = g.flatten(c)
    e = g.linear(d, 6, "relu")
    return g.program(0, a, b, c, c, d, e, 1)


def unused_input() -> Program:
    g = Graph((3, 5, 5), (2, 4, 4))
    return g.program(g.conv(0, 2))


def pyramid() -> Program:
    """A tensor lives long; pools, strides, padded and plain readers meet on one tensor."""
    g = Graph((3, 8, 12))
    a = g.conv(0, 4, activation="relu")
    b = g.pool(a)
    c = g.conv(a, 4, stride=2)
    d = g.conv(a, 4, kernel=1, stride=2)
    e = g.sum(g.sum(b, c), d, "relu")
    f = g.sum(e, e)
    skip = g.conv(a, 4, kernel=5)
    h = g.sum(skip, a, "relu")
    return g.program(f, g.sum(g.conv(h, 4), a), g.linear(g.flatten(h), 3))


def features() -> Program:
    g = Graph((9,), (9,))
    a, b = g.linear(0, 7, "relu"), g.linear(1, 7)
    c = g.sum(a, b, "relu")
    d = g.sum(c, g.linear(c, 7))
    return g.program(g.sum(d, d), g.linear(d, 2), c)


def sum_of_inputs() -> Program:
    g = Graph((3, 4, 5), (3, 4, 5))
    return g.program(g.sum(0, 1, "relu"))


def sum_of_flattened() -> Program:
    g = Graph((2, 3, 3), (18,))
    x = g.conv(0, 2)
    return g.program(g.sum(g.flatten(x), g.linear(1, 18), "relu"), g.sum(g.flatten(x), 1))


def signals_and_volumes() -> Program:
    g = Graph((3, 9), (2, 3, 4, 5))
    a, b = g.conv(0, 3), g.conv(1, 2)
    return g.program(g.sum(a, 0), g.conv(g.sum(g.conv(b, 2), b, "relu"), 3, stride=2), g.conv(a, 2, stride=2))


def gates() -> Program:
    """Of images with and without padding, that are read before and behind the gate; what gates is read, too."""
    g = Graph((3, 4, 8), (3, 8, 1), (5,))
    a = g.gate(g.conv(0, 5, activation="relu"), 2)
    b = g.gate(g.conv(0, 4, kernel=1), g.linear(g.flatten(g.conv(1, 1)), 4))
    c = g.pool(b)
    d = g.sum(g.conv(c, 4), c, "relu")
    e = g.mean(d)
    return g.program(g.gate(d, e), g.linear(g.flatten(e), 3), g.conv(e, 3, kernel=1), g.conv(a, 2), b, 2)


def squeezed() -> Program:
    """Twice in a row: what follows a gate is gated again, then flattened."""
    g = Graph((3, 4, 8))
    a = g.conv(0, 4, activation="relu6")
    b = g.conv(g.gate(a, g.conv(g.mean(a), 4, 1, activation="relu6")), 3, activation="relu6")
    c = g.gate(b, g.conv(g.conv(g.mean(b), 2, 1, activation="relu6"), 3, 1))
    return g.program(c, g.linear(g.flatten(c), 3), g.conv(c, 2, stride=2))


def gated_inputs() -> Program:
    g = Graph((4, 5, 7), (4, 1, 1), (3, 9), (3,))
    return g.program(g.gate(0, 1), g.gate(2, 3), g.conv(g.gate(0, 1), 2, stride=2), 1)


def interpolated() -> Program:
    """Between padded images and others, with and without a residual and an activation; a signal, too."""
    g = Graph((3, 4, 5), (3, 9))
    a = g.add(Activate("relu6"), (3, 8, 10), g.interpolate(g.conv(0, 3), 2, 2))
    b = g.interpolate(a, 2, 1)
    c = g.sum(g.conv(g.interpolate(0, 4, 2), 3), b, "relu")
    d = g.sum(g.interpolate(g.conv(a, 3, kernel=1), 2, 1), c, "relu")
    e = g.conv(g.interpolate(g.conv(d, 8, stride=2), 2, 2), 2, kernel=1, activation="relu")
    return g.program(e, g.sum(g.interpolate(1, 2), g.conv(g.interpolate(1, 2), 3), None), a, g.interpolate(0, 2, 2))


PROGRAMS = {
    f.__name__: f()
    for f in (
        two_inputs_two_outputs, everything_is_an_output, unused_input, pyramid, features, sum_of_inputs,
        sum_of_flattened, signals_and_volumes, gates, squeezed, gated_inputs, interpolated,
    )
}  # fmt: skip


def inputs_of(program: Program, batch: int, seed: int = 1) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.integers(-2, 3, (batch, *program.shapes[t])).astype(np.float32) for t in program.inputs]


def run(schedule: Schedule, inputs: list[Array], program: Program) -> list[Array]:
    outputs = [np.full((len(inputs[0]), *program.shapes[t]), np.nan, np.float32) for t in program.outputs]
    space = Workspace(schedule)
    for _ in range(2):  # what the first run leaves behind must not show in the second
        for y in outputs:
            y.fill(np.nan)
        space.run(inputs, outputs)
    return outputs


@pytest.mark.R1
@pytest.mark.R8
@pytest.mark.parametrize("batch", [1, 2, 6, 19])
@pytest.mark.parametrize("name", PROGRAMS)
def test_graphs_give_what_their_nodes_give(name, batch):
    program = PROGRAMS[name]
    inputs = inputs_of(program, batch)
    expected = exact(program, inputs)
    compiled = optimised(program)
    for threads in (1, 2):
        target = target_for(np.dtype("float32"), threads)
        groups = -(-batch // target.lanes)
        cuts = list(product((True, False), {(1, 1), (batch, 1), (batch, batch)}))
        schedules = [padded.schedule(compiled, batch, target, split.Split(a, *c)) for a, c in cuts]
        schedules += [spatial_tiles.schedule(compiled, batch, target, split.Split(a, *c)) for a, c in cuts]
        cuts = list(product((True, False), {(1, 1), (groups, 1), (groups, groups)}))
        schedules += [batch_blocked.schedule(compiled, batch, target, split.Split(a, *c)) for a, c in cuts]
        for schedule in schedules:
            for y, z in zip(run(schedule, inputs, program), expected, strict=True):
                np.testing.assert_array_equal(y, z)


@pytest.mark.R3
@pytest.mark.parametrize("name", PROGRAMS)
def test_layouts_give_the_same_bits(name):
    """Of numbers that do round; SpMV alone sums in another order, so there are two samples."""
    program = optimised(PROGRAMS[name])
    rng = np.random.default_rng(3)
    inputs = [rng.standard_normal((2, *program.shapes[t])).astype(np.float32) for t in program.inputs]
    target = target_for(np.dtype("float32"), 1)
    expected = run(padded.schedule(program, 2, target), inputs, program)
    for schedule in (spatial_tiles.schedule(program, 2, target), batch_blocked.schedule(program, 2, target)):
        for y, z in zip(expected, run(schedule, inputs, program), strict=True):
            np.testing.assert_array_equal(y.view(np.int32), z.view(np.int32))


def test_the_estimate_counts_what_is_gathered_from_spatial_tiles():
    """With means over images, which read them as they are, padded planes are faster; 3x3 windows like tiles."""
    heavy, gated = Graph((64, 40, 40)), Graph((16, 40, 40))
    a, b = 0, 0
    for _ in range(3):
        a = heavy.conv(a, 64)
        b = gated.conv(b, 16, 1)
        b = gated.gate(b, gated.conv(gated.mean(b), 16, 1))
    chosen = [choices(optimised(p), 1, 1, False)[0].layout for p in (heavy.program(a), gated.program(b))]
    assert chosen == ["spatial tiles", "padded"]


def test_sums_go_into_the_product_that_runs_last():
    g = Graph((3, 4, 4))
    a, b = g.conv(0, 3), g.conv(0, 3)
    (first, second) = fuse_adds(g.program(g.sum(b, a, "relu"))).nodes
    assert (first.output, second.residual) == (a, a)
    assert second.operator.activation == "relu"
    assert second.operator.weight is g.nodes[1].operator.weight


@pytest.mark.parametrize("spoil", ["activation", "second reader", "residual"])
def test_sums_that_fit_no_product_become_one(spoil):
    g = Graph((3, 4, 4))
    a = g.conv(0, 3, activation="relu" if spoil == "activation" else None)
    b = g.sum(a, 0)
    outputs = [b, a] if spoil == "second reader" else [b]
    if spoil == "residual":
        outputs = [g.sum(b, 0)]
    *_, last = fuse_adds(g.program(*outputs)).nodes
    assert last.operator.weight.nnz == 3
    assert last.residual == 0


def test_a_residual_gives_its_memory_to_the_sum():
    g = Graph((3, 4, 4))
    x = g.conv(0, 8, kernel=1)
    for _ in range(6):
        x = g.sum(g.conv(g.conv(x, 8, kernel=1), 8, kernel=1), x, "relu")
    program = optimised(g.program(g.conv(x, 3, kernel=1)))
    target = target_for(np.dtype("float32"), 1)
    makers = (padded.schedule, 1), (spatial_tiles.schedule, 1), (batch_blocked.schedule, 8)
    for schedule in (make(program, batch, target) for make, batch in makers):
        starts, _ = assign_memory(schedule.buffers)
        shared = [step for step in schedule.steps if len(step.sources) == 2]
        assert len(shared) == 6
        for step in shared:
            assert starts[step.sources[1][0]] == starts[step.target[0]]
            assert starts[step.sources[0][0]] != starts[step.target[0]]
