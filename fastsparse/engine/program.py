"""Programs: what a network computes, as a graph of operators on tensors, apart from how it is computed.

A tensor is a number; its shape is that of one sample, without the batch. Every tensor is written by one node or is an
input, and nodes stand in an order in which they can run. Passes take a program and give a program.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.pooling import Windows

Array = NDArray[Any]
Shape = tuple[int, ...]


class UnsupportedOperatorError(NotImplementedError):
    """A layer or operator that the engine does not know."""


@dataclass(frozen=True, eq=False)
class Conv:
    """activation(conv(x, weight) + bias); x (C, *spatial). weight is CSR (out, C/groups * kernel).

    A node of two inputs (x, residual) adds the residual, of the result's shape, before the activation.
    """

    weight: CSR
    bias: Array | None
    geometry: ConvGeometry
    activation: str | None = None
    dense: bool = False  # written as a dense layer in the model

    @property
    def useful_flops(self) -> float:
        """Multiplications and additions per sample."""
        return 2.0 * self.weight.nnz * self.geometry.positions


@dataclass(frozen=True, eq=False)
class Linear:
    """activation(weight @ x + bias) along the last axis of x. weight is CSR (out, in).

    A second input is a residual, as in `Conv`.

    rows : of x and of the result, in a sample; more than one for sequences (tokens, features)
    """

    weight: CSR
    bias: Array | None
    activation: str | None = None
    dense: bool = False
    rows: int = 1

    @property
    def useful_flops(self) -> float:
        """Multiplications and additions per sample."""
        return 2.0 * self.weight.nnz * self.rows


@dataclass(frozen=True, eq=False)
class Scale:
    """scale * x + shift per channel (the first axis), in float64: batch norm at inference."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]


@dataclass(frozen=True)
class Activate:
    """An activation by name."""

    name: str


@dataclass(frozen=True, eq=False)
class Pool:
    """Largest value ("max") or mean ("mean") of windows of x (C, H, W)."""

    kind: str
    windows: Windows


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """scale (x - mean) / sqrt(variance + eps) + shift over the last axes of x, which are those of scale and shift.

    shift : None for the root mean square norm, which takes the mean for 0
    """

    scale: Array
    shift: Array | None
    eps: float


@dataclass(frozen=True)
class Softmax:
    """exp(x) over its sum along the last axis."""


@dataclass(frozen=True)
class Reshape:
    """The same numbers in another shape."""


@dataclass(frozen=True)
class Add:
    """activation(a + b), both of one shape: what joins the branches of a residual block."""

    activation: str | None = None


@dataclass(frozen=True)
class Gate:
    """x * g, with x (C, *spatial) and a number g for each channel: squeeze and excitation. Two inputs: x, g."""


@dataclass(frozen=True)
class Concat:
    """Its inputs side by side along the first axis. Passes turn it into products."""


@dataclass(frozen=True, eq=False)
class Gather:
    """Numbers of x in another order: x and y, of `shape`, are cut into `blocks` along the first axis, and number i of a
    block of y is number index[i] of that block of x."""

    index: NDArray[np.int64]
    blocks: int
    shape: Shape


@dataclass(frozen=True)
class Interpolate:
    """activation(x interpolated to a multiple of its size); x (C, *spatial), as `fastsparse.nn.Upsample` does it.

    scale : of each spatial axis
    activation : one that `ops.interpolation.takes`; a second input is a residual, as in `Conv`
    """

    scale: tuple[int, ...]
    activation: str | None = None


@dataclass(frozen=True)
class Attention:
    """softmax(Q K^T / sqrt(length)) V for every head; inputs Q (queries, features), K and V (keys, features).

    A fourth input (keys) is added to the scores: 0, or -inf where a key is padding.
    """

    heads: int
    causal: bool


@dataclass(frozen=True, eq=False)
class Lookup:
    """What makes numbers of the user's integers: rows of a table, plus the row of each position where there are any."""

    table: Array  # (rows, length)
    positions: Array | None = None  # (tokens, length)


@dataclass(frozen=True)
class PaddingMask:
    """What makes 0 of the user's False, and -inf of True."""


@dataclass(frozen=True, eq=False)
class Direction:
    """One direction of a recurrent layer, W x + R h + biases, with gates in ONNX's order.

    W, R : CSR (gates * hidden, features) and (gates * hidden, hidden)
    recurrent_bias : of GRU, what R h gets; that of the others is in `bias`, which W x gets
    """

    W: CSR
    R: CSR
    bias: Array
    recurrent_bias: Array
    reverse: bool = False


@dataclass(frozen=True, eq=False)
class Recurrent:
    """A recurrent layer, alone in its program, with ONNX's shapes: x (times, samples, features) and states
    (directions, samples, hidden) come in, Y (times, directions, samples, hidden) and the last states go out.

    kind : "lstm", "gru", "rnn_tanh" or "rnn_relu"
    states : what the program's inputs behind x are, of "h", "c"; others begin with zeros
    results : what its outputs are, of "Y", "Y_h", "Y_c"; the node writes all of them
    """

    kind: str
    directions: tuple[Direction, ...]
    states: tuple[str, ...]
    results: tuple[str, ...]
    times: int

    @property
    def useful_flops(self) -> float:
        """Multiplications and additions of a sequence."""
        return 2.0 * self.times * sum(d.W.nnz + d.R.nnz for d in self.directions)


RowWise = LayerNorm | Softmax | Attention  # operators on contiguous rows, in the user's layout
Operator = (
    Conv
    | Linear
    | Interpolate
    | Scale
    | Activate
    | Pool
    | LayerNorm
    | Softmax
    | Attention
    | Reshape
    | Add
    | Gate
    | Concat
    | Gather
    | Recurrent
)


@dataclass(frozen=True, eq=False)
class Node:
    """An operator between tensors. `name` is what messages and the report call it."""

    name: str
    operator: Operator
    inputs: tuple[int, ...]
    output: int

    @functools.cached_property
    def residual(self) -> int | None:
        """The tensor that a product or an interpolation adds before its activation."""
        adds = isinstance(self.operator, Conv | Linear | Interpolate)
        return self.inputs[1] if len(self.inputs) > 1 and adds else None


@dataclass(frozen=True, eq=False)
class Program:
    """A network. shapes[t] is the shape of one sample of tensor t.

    lookups : for each input what makes it of the user's integers or booleans; None where the user's numbers are it
    """

    shapes: tuple[Shape, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    nodes: tuple[Node, ...]
    dtype: np.dtype[Any]
    lookups: tuple[Lookup | PaddingMask | None, ...] = ()

    @property
    def user_shapes(self) -> tuple[Shape, ...]:
        """Shape of one sample of each input as the user has it."""
        sizes = ((self.shapes[t], made) for t, made in self.user_inputs())
        return tuple(shape[:-1] if isinstance(made, Lookup) else shape for shape, made in sizes)

    def user_inputs(self) -> list[tuple[int, Lookup | PaddingMask | None]]:
        """Inputs, and what makes them."""
        return list(zip(self.inputs, self.lookups or (None,) * len(self.inputs), strict=True))

    def roots(self) -> dict[int, int]:
        """For every tensor the one whose memory it shares: reshaping moves nothing."""
        root = {t: t for t in range(len(self.shapes))}
        for node in self.nodes:
            if isinstance(node.operator, Reshape):
                root[node.output] = root[node.inputs[0]]
        return root

    def late_nodes(self, few_positions: int = 0) -> set[int]:
        """Outputs of linear layers, of convolutions of fewer positions than these, and of all that follows from them:
        the second stage, which runs on more samples at once. What gates images belongs to the first stage with them."""
        before_gates, late = set[int](), set[int]()
        for node in reversed(self.nodes):
            if isinstance(node.operator, Gate) or node.output in before_gates:
                before_gates.update(node.inputs)
        for node in self.nodes:
            op = node.operator
            begins = isinstance(op, Linear) or (isinstance(op, Conv) and op.geometry.positions < few_positions)
            if node.output not in before_gates and (begins or not late.isdisjoint(node.inputs)):
                late.add(node.output)
        return late

    def layout_classes(self) -> dict[int, int]:
        """For every tensor the one that stands for its layout class: tensors that are added have equal layouts."""
        root = self.roots()
        leader = {t: t for t in root.values()}

        def find(t: int) -> int:
            while leader[t] != t:
                t = leader[t]
            return t

        for node in self.nodes:
            if node.residual is not None:
                first, second = sorted((find(root[node.residual]), find(root[node.output])))
                leader[second] = first
        return {t: find(r) for t, r in root.items()}

    @property
    def row_wise(self) -> bool:
        """Whether some operator needs whole rows in the user's layout."""
        return any(
            isinstance(node.operator, RowWise)
            or (isinstance(node.operator, Linear) and len(self.shapes[node.output]) > 1)
            for node in self.nodes
        )

    def useful_flops(self) -> float:
        """Multiplications and additions of all products, per sample."""
        products = Conv | Linear | Recurrent
        return sum(n.operator.useful_flops for n in self.nodes if isinstance(n.operator, products))


def size(shape: Shape) -> int:
    """Numbers in one sample of a tensor."""
    return math.prod(shape)
