"""Activations, known by what they compute.

Exporters write an activation in one node or in many, in any order. Nodes that make one tensor from another one and from
single numbers are evaluated at some points, in float64, and are the activation of the kernels whose values they give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import erf, expit

from fastsparse.onnx.folding import Info
from fastsparse.onnx.model import FLOATS, HALF, Array, Model, Node
from fastsparse.ops.activations import ACTIVATIONS
from fastsparse_kernels.reference import activate

_MOST = 10  # nodes of one activation
_POINTS = np.concatenate([np.linspace(-8, 8, 65), *(10.0**n * np.array([-1, 1]) for n in range(1, 39))])
_VALUES = {name: np.asarray(activate(name, _POINTS), np.float64) for name in ACTIVATIONS if name is not None}
_ROUNDINGS = 2  # units in the last place, of the numbers in the model, by which values may differ


def _hard_sigmoid(node: Node, x: Array) -> Array:
    return np.asarray(np.clip(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0, 1))


def _clip(node: Node, x: Array, low: Any = None, high: Any = None) -> Array:
    if node.version < 11:
        low, high = node.get("min"), node.get("max")
    return np.asarray(np.clip(x, -np.inf if low is None else low, np.inf if high is None else high))


def _gelu(node: Node, x: Array) -> Array:
    return np.asarray(activate("gelu_tanh" if node.get("approximate") == "tanh" else "gelu", x), np.float64)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda node, *inputs: function(*inputs)


# What operators compute; those that bend a line are here, and those that only shift and scale it below.
_BENDING: dict[str, Callable[..., Any]] = {
    "Relu": _plain(lambda x: np.maximum(x, 0)), "Sigmoid": _plain(expit), "Tanh": _plain(np.tanh), "Erf": _plain(erf),
    "Exp": _plain(np.exp), "LeakyRelu": lambda node, x: np.where(x < 0, node.get("alpha", 0.01), 1) * x, "Clip": _clip,
    "HardSigmoid": _hard_sigmoid, "HardSwish": _plain(lambda x: x * np.clip(x + 3, 0, 6) / 6), "Gelu": _gelu,
    "Swish": lambda node, x: x * expit(node.get("alpha", 1.0) * x), "Min": _plain(np.minimum),
    "Max": _plain(np.maximum),
}  # fmt: skip
_STRAIGHT: dict[str, Callable[..., Any]] = {
    "Add": _plain(np.add), "Sub": _plain(np.subtract), "Mul": _plain(np.multiply), "Div": _plain(np.divide),
    "Pow": _plain(np.power), "Neg": _plain(np.negative), "Reciprocal": _plain(np.reciprocal),
}  # fmt: skip
_COMPUTED = {**_BENDING, **_STRAIGHT}
# What the node is called that stands for the others.
_OPERATORS = {"silu": "Swish", "hardswish": "HardSwish", "gelu": "Gelu", "gelu_tanh": "Gelu", "relu": "Relu",
              "relu6": "Clip", "leaky_relu": "LeakyRelu", "sigmoid": "Sigmoid", "tanh": "Tanh",
              "hardsigmoid": "HardSigmoid"}  # fmt: skip


@dataclass(frozen=True)
class _Found:
    """Nodes that compute an activation of `x`, the last of them giving its result."""

    name: str
    x: str
    nodes: list[Node]


def with_activations(model: Model, infos: Mapping[str, Info]) -> list[Node]:
    """The nodes, each activation as one node.

    That one keeps the nodes it stands for: where the kernels do not run it, the library gets what the model says.
    """
    finder = _Finder(model, infos)
    taken, kept = set[int](), list[Node]()
    for node in reversed(model.nodes):  # so that the largest is found first
        if id(node) in taken:
            continue
        found = finder.found(node)
        if found is None or taken.intersection(map(id, found.nodes)):
            kept.append(node)
            continue
        taken.update(map(id, found.nodes))
        kept.append(_joined(found))
    return kept[::-1]


def _joined(found: _Found) -> Node:
    *_, last = found.nodes
    if len(found.nodes) == 1:
        return replace(last, activation=found.name)
    made = {name for node in found.nodes for name in node.writes} | {found.x}
    others = tuple(dict.fromkeys(name for node in found.nodes for name in node.reads if name not in made))
    protos = tuple(proto for node in found.nodes for proto in node.protos)
    op = _OPERATORS[found.name]
    return Node(op, last.name, (found.x,), last.outputs, {}, last.version, protos, others, found.name)


class _Finder:
    def __init__(self, model: Model, infos: Mapping[str, Info]) -> None:
        self.model, self.infos = model, infos
        self.producer, self.readers = model.producers(), model.readers()
        self.results = {value.name for value in model.outputs}
        self.position = {id(node): i for i, node in enumerate(model.nodes)}

    def found(self, last: Node) -> _Found | None:
        """The activation whose result a node gives."""
        for nodes, x in self._behind(last):
            if not any(node.op in _BENDING for node in nodes):
                continue
            name = self._activation(nodes, x)
            if name is not None:
                return _Found(name, x, nodes)
        return None

    def _behind(self, last: Node) -> Iterator[tuple[list[Node], str]]:
        """Nodes that make the result of the last one from a single tensor, and that tensor: ever more of them."""
        nodes, waiting = [last], self._tensors(last)
        while last.op in _COMPUTED and len(last.outputs) == 1 and len(nodes) <= _MOST:
            if len(waiting) == 1:
                yield nodes[::-1], next(iter(waiting))
            makers = [self.producer[name] for name in waiting if name in self.producer]
            last = max(makers, key=lambda node: self.position[id(node)], default=nodes[-1])
            if last is nodes[-1] or len(last.outputs) != 1:
                return
            nodes.append(last)
            name = last.outputs[0]
            if name in self.results or any(reader not in nodes for reader in self.readers[name]):
                return
            waiting = (waiting - {name}) | self._tensors(last)

    def _tensors(self, node: Node) -> set[str]:
        """What a node reads that are no constants."""
        return {name for name in node.reads if name not in self.model.constants}

    def _activation(self, nodes: Sequence[Node], x: str) -> str | None:
        """The activation that the nodes compute of a tensor."""
        info = self.infos.get(x)
        if info is None or info.dtype not in (*FLOATS, HALF):
            return None
        known: dict[str, Any] = {x: _POINTS, "": None}
        for node in nodes:
            for name in node.inputs:
                if name not in known:
                    array = self.model.array(name)
                    if array is None or array.size != 1 or array.dtype.kind not in "iuf":
                        return None
                    known[name] = float(array.reshape(-1)[0])
            try:
                with np.errstate(all="ignore"):
                    known[node.outputs[0]] = _COMPUTED[node.op](node, *(known[name] for name in node.inputs))
            except TypeError:  # another number of inputs than the operator has
                return None
        allowed = _ROUNDINGS * np.finfo(info.dtype).eps * np.maximum(1, np.abs(_POINTS))
        apart = {
            name: float(np.max(np.abs(known[nodes[-1].outputs[0]] - values) / allowed))
            for name, values in _VALUES.items()
        }
        nearest = min(apart, key=apart.__getitem__)
        return nearest if apart[nearest] <= 1 else None
