"""Recurrent layers with sparse weights as regions of their own.

What the kernels do not have stays in the library: lengths of single sequences, peepholes, clipped sums, other
activations, a reset gate in front of the product, batch-major layout, initial states that are constants but not zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastsparse.engine.program import Direction, Program, Recurrent
from fastsparse.engine.program import Node as ProgramNode
from fastsparse.onnx.lowering import Lowering, Region, Specialised
from fastsparse.onnx.model import FLOATS, Array, Node, Shape

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_REVERSED = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_UNKNOWN = ("activation_alpha", "activation_beta", "clip", "input_forget", "layout")
_LONGEST = 1024  # times of a program, all of whose steps stand in one table


def recurrent_region(node: Node, lowering: Lowering, densest: float) -> RecurrentRegion | None:
    """The region of a recurrent layer that the kernels can run and that has a sparse weight."""
    if node.op not in _GATES or node.version < 7 or any(node.get(name) for name in _UNKNOWN):
        return None
    inputs = [*node.inputs, *[""] * (8 - len(node.inputs))]
    kind, reverse = _kind(node), _REVERSED.get(node.get("direction", "forward"))
    model = lowering.model
    W, R, bias = model.constant(inputs[1]), model.constant(inputs[2]), model.array(inputs[3])
    if kind is None or reverse is None or W is None or R is None or (bias is None and inputs[3]):
        return None
    if inputs[4] or inputs[7] or inputs[0] in model.constants or W.dtype not in FLOATS:
        return None
    if len(W.shape) != 3 or len(R.shape) != 3:
        return None
    hidden, rows = R.shape[-1], _GATES[node.op] * R.shape[-1]
    biases = np.zeros((len(reverse), 2 * rows), W.dtype) if bias is None else bias
    fits = (W.shape[:2], R.shape[:2], biases.shape) == (*[(len(reverse), rows)] * 2, (len(reverse), 2 * rows))
    if not fits or 0 in W.shape or node.get("hidden_size", hidden) != hidden:
        return None
    if min(map(lowering.density, (W, R))) > densest:
        return None
    known = [model.array(tensor) for tensor in inputs[5:7] if tensor in model.constants]
    if any(state is None or state.any() for state in known):
        return None
    states = {name: tensor for name, tensor in zip("hc", inputs[5:7]) if tensor and tensor not in model.constants}
    results = {name: tensor for name, tensor in zip(("Y", "Y_h", "Y_c"), node.outputs) if tensor}
    directions = tuple(
        Direction(w, r, *_biases(b, rows, node.op == "GRU"), reverse=back)
        for w, r, b, back in zip(lowering.matrices(W), lowering.matrices(R), biases, reverse)
    )
    return RecurrentRegion(node, kind, directions, inputs[0], states, results) if results else None


def _kind(node: Node) -> str | None:
    directions = 2 if node.get("direction") == "bidirectional" else 1
    names = node.get("activations", _USUAL[node.op] * directions)
    if node.op == "RNN" and names in (["Relu"] * directions, ["relu"] * directions):
        return "rnn_relu"
    if [name.lower() for name in names] != [name.lower() for name in _USUAL[node.op] * directions]:
        return None
    if node.op == "GRU" and not node.get("linear_before_reset", 0):
        return None
    return {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}[node.op]


def _biases(both: Array, rows: int, gru: bool) -> tuple[Array, Array]:
    first, second = both[:rows], both[rows:]
    return (first.copy(), second.copy()) if gru else (first + second, second)


class RecurrentRegion(Region):
    """A recurrent layer: `states` and `results` are names of tensors, by what they are."""

    def __init__(
        self, node: Node, kind: str, directions: tuple[Direction, ...], x: str, states: Mapping[str, str],
        results: Mapping[str, str],
    ) -> None:  # fmt: skip
        self.members, self.node, self.kind, self.directions = [], node, kind, directions
        self.x, self.states, self.results = x, dict(states), dict(results)
        self.inputs, self.outputs = tuple(dict.fromkeys((x, *states.values()))), tuple(results.values())

    @property
    def nodes(self) -> list[Node]:
        return [self.node]

    @property
    def key(self) -> object:
        return id(self.node)

    def specialised(self, shapes: Mapping[str, Shape]) -> Specialised | None:
        first, directions = self.directions[0], len(self.directions)
        x, hidden = shapes[self.x], first.R.shape[1]
        if len(x) != 3 or x[2] != first.W.shape[1] or not 0 < x[0] * directions <= _LONGEST or x[1] < 1:
            return None
        state = directions, x[1], hidden
        if any(shapes[name] != state for name in self.states.values()):
            return None
        results: list[Shape] = [(x[0], *state) if name == "Y" else state for name in self.results]
        operator = Recurrent(self.kind, self.directions, tuple(self.states), tuple(self.results), x[0])
        count = 1 + len(self.states)
        inputs, outputs = tuple(range(count)), tuple(range(count, count + len(results)))
        node = ProgramNode(f"{self.node.name.replace(' ', '_')} {self.node.op}", operator, inputs, outputs[0])
        tensors = (x, *[state] * len(self.states), *results)
        program = Program(tensors, inputs, outputs, (node,), first.W.dtype)
        return Specialised(program, 1, [self.x, *self.states.values()], results)
