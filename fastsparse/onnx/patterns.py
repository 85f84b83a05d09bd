"""Activations that exporters write in several nodes, as the one operator that is meant.

The new node stands for the old ones and keeps them: where the kernels do not run it, the library gets what the model
says. Constants are those of the activation to the precision of the model's type.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastsparse.onnx.inference import Constants, Info
from fastsparse.onnx.model import Model, Node
from fastsparse.onnx.windows import SAME, WindowError, window

_MANY = 65536  # rows from which on a sum of them needs more precision than float32 has


@dataclass
class _Match:
    """Nodes that make one activation of `x`, the last of them giving its result."""

    op: str
    x: str
    nodes: list[Node]
    attributes: dict[str, Any]


def simplified(model: Model, constants: Constants, infos: Mapping[str, Info]) -> tuple[Model, list[Node]]:
    """The nodes that do not follow from constants, activations among them as one node each.

    New shapes that inference proves, whatever the open sizes of `infos` are, become constants of the model.
    """
    inside = {id(node) for node in constants.nodes}
    finder = _Finder(model, constants)
    taken: dict[int, Node | None] = {}
    for node in model.nodes:
        match = finder.match(node) if id(node) not in inside and id(node) not in taken else None
        if match is None or any(id(n) in taken for n in match.nodes) or not finder.only_inside(match.nodes):
            continue
        last = match.nodes[-1]
        order = sorted(match.nodes, key=lambda n: finder.position[id(n)])
        protos = tuple(proto for n in order for proto in n.protos)
        taken.update((id(n), None) for n in match.nodes)
        made = {name for n in order for name in n.writes} | {match.x}
        others = tuple(dict.fromkeys(name for n in order for name in n.reads if name not in made))
        taken[id(last)] = Node(
            match.op, last.name, (match.x,), last.outputs, match.attributes, last.version, protos, others
        )  # fmt: skip
    found = [taken.get(id(node), node) for node in model.nodes if id(node) not in inside]
    shapes = dict(model.constants)
    nodes = [_with_known_shape(node, constants, infos, shapes) for node in found if node is not None]
    nodes = [_with_pads(_summed_in_double(node, constants), infos) for node in nodes]
    constants.names.update(shapes)
    constants.model = replace(model, constants=shapes)
    return constants.model, _without_dead(nodes, finder.results)


def _with_known_shape(
    node: Node, constants: Constants, infos: Mapping[str, Info], shapes: dict[str, Any]
) -> Node:  # fmt: skip
    """A Reshape to the first size of its input and numbers, as one with a constant shape, which goes to `shapes`."""
    if node.op != "Reshape" or node.version < 5 or len(node.inputs) != 2 or node.inputs[1] in constants.names:
        return node
    before, after = infos.get(node.inputs[0]), infos.get(node.outputs[0])
    if before is None or after is None or not before.shape or not after.shape:
        return node
    first, *rest = after.shape
    if first is None or first != before.shape[0] or not all(isinstance(n, int) for n in rest):
        return node
    name = f"{node.outputs[0]}.shape"
    while name in shapes or name in infos:
        name += "_"
    shapes[name] = np.array([first if isinstance(first, int) else 0, *rest], np.int64)
    proto = type(node.protos[0])()
    proto.CopyFrom(node.protos[0])
    proto.input[1] = name
    del proto.attribute[:]
    return replace(node, inputs=(node.inputs[0], name), protos=(proto,), attributes={})


def _summed_in_double(node: Node, constants: Constants) -> Node:
    """A float32 sum or mean of very many rows, through float64: added one by one they would drift."""
    info = constants.infos.get(node.inputs[0]) if node.op in ("ReduceMean", "ReduceSum") and node.inputs else None
    if info is None or info.dtype != np.float32 or info.fixed is None:
        return node
    axes = node.get("axes")
    if axes is None and len(node.inputs) > 1:
        axes = constants.array(node.inputs[1])
    rank = len(info.fixed)
    summed = {int(a) % rank for a in (range(rank) if axes is None else axes)} if rank else set()
    if rank - 1 in summed or math.prod(info.fixed[a] for a in summed) < _MANY:
        return node
    (proto,), stem = node.protos, node.outputs[0]
    while {f"{stem}.wide", f"{stem}.sum"} & {*constants.names, *constants.infos}:
        stem += "_"
    double = type(proto)()
    double.CopyFrom(proto)
    double.input[0], double.output[0] = f"{stem}.wide", f"{stem}.sum"
    before = type(proto)(op_type="Cast", input=[node.inputs[0]], output=[f"{stem}.wide"])
    after = type(proto)(op_type="Cast", input=[f"{stem}.sum"], output=[node.outputs[0]])
    for cast, code in ((before, 11), (after, 1)):
        cast.attribute.add(name="to", type=2, i=code)
    return replace(node, protos=(before, double, after))


def _with_pads(node: Node, infos: Mapping[str, Info]) -> Node:
    """A dilated window with auto_pad, as one with pads: onnxruntime refuses dilations beside SAME_UPPER."""
    if node.op not in ("Conv", "MaxPool", "AveragePool", "LpPool") or node.get("auto_pad") not in SAME:
        return node
    if all(n == 1 for n in node.get("dilations") or (1,)):
        return node
    x, weight = (infos.get(name) for name in (*node.inputs, "")[:2])
    kernel = None
    if node.op == "Conv":
        if weight is None or weight.fixed is None:
            return node
        kernel = weight.fixed[2:]
    if x is None or x.shape is None:
        return node
    sizes = [n if isinstance(n, int) else None for n in x.shape[2:]]
    strides = node.get("strides") or (1,) * len(sizes)
    if any(n is None and s != 1 for n, s in zip(sizes, strides)):
        return node  # the pads follow from sizes that are open
    with contextlib.suppress(WindowError):  # which the library says in its own words
        found = window(node, [1 if n is None else n for n in sizes], kernel)
        proto = type(node.protos[0])()
        proto.CopyFrom(node.protos[0])
        kept = [a for a in proto.attribute if a.name not in ("auto_pad", "pads")]
        del proto.attribute[:]
        proto.attribute.extend(kept)
        pads = [pad for side in zip(*found.pads) for pad in side]
        proto.attribute.add(name="pads", type=7, ints=pads)
        attributes = {name: value for name, value in node.attributes.items() if name != "auto_pad"}
        return replace(node, attributes={**attributes, "pads": pads}, protos=(proto,))
    return node


def _without_dead(nodes: list[Node], results: set[str]) -> list[Node]:
    """The nodes that something needs."""
    needed, kept = set(results), []
    for node in reversed(nodes):
        if needed.intersection(node.writes):
            kept.append(node)
            needed.update(node.reads)
    return kept[::-1]


class _Finder:
    def __init__(self, model: Model, constants: Constants) -> None:
        self.constants = constants
        self.producer, self.readers = model.producers(), model.readers()
        self.results = {value.name for value in model.outputs}
        self.position = {id(node): i for i, node in enumerate(model.nodes)}

    def match(self, node: Node) -> _Match | None:
        """What begins with, or goes through, this node."""
        find = _FINDERS.get(node.op)
        return None if find is None else find(self, node)

    def only_inside(self, nodes: Sequence[Node]) -> bool:
        """Whether nobody else reads what is between the nodes."""
        inside = {id(node) for node in nodes}
        between = [name for node in nodes[:-1] for name in node.writes]
        if self.results.intersection(between):
            return False
        return all(id(reader) in inside for name in between for reader in self.readers.get(name, []))

    def number(self, name: str) -> float | None:
        """The constant's only number."""
        array = self.constants.array(name) if name in self.constants.names else None
        return (
            float(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.dtype.kind in "iuf" else None
        )

    def is_number(self, name: str, wanted: float) -> bool:
        """Whether the tensor is this constant, to the precision of its type."""
        array = self.constants.array(name) if name in self.constants.names else None
        if array is None or array.size != 1 or array.dtype.kind not in "iuf":
            return False
        return _near(float(array.reshape(-1)[0]), wanted, array.dtype)

    def only_reader(self, name: str, *ops: str) -> Node | None:
        """The only node that reads a tensor, when it is one of these operators."""
        nodes = self.readers.get(name, [])
        return nodes[0] if len(nodes) == 1 and nodes[0].op in ops and name not in self.results else None

    def made_by(self, name: str, *ops: str) -> Node | None:
        """The node that writes a tensor, when it is one of these operators."""
        node = self.producer.get(name)
        return node if node is not None and node.op in ops else None

    def with_number(self, node: Node | None) -> tuple[str, float, str] | None:
        """(tensor, number, the number's name) of a commutative node of a tensor and a number."""
        if node is not None and len(node.inputs) == 2:
            for a, b in (node.inputs, node.inputs[::-1]):
                found = self.number(b)
                if found is not None and a not in self.constants.names:
                    return a, found, b
        return None

    def product(self, name: str, x: str, factor: float) -> list[Node] | None:
        """The multiplications that make name * x * factor, in any order, when that is all they make."""
        nodes: list[Node] = []
        seen, found, dtype = False, 1.0, np.dtype(np.float32)
        for _ in range(3):
            node = self.only_reader(name, "Mul", "Div")
            if node is None or len(node.inputs) != 2 or (node.op == "Div" and node.inputs[0] != name):
                return None
            other = node.inputs[1] if node.inputs[0] == name else node.inputs[0]
            number = self.number(other)
            scaled = self.producer.get(other)
            parts = self.with_number(scaled) if scaled is not None and scaled.op == "Mul" else None
            if number is not None:
                found = found * number if node.op == "Mul" else found / (number or math.nan)
                dtype = self._dtype(other)
            elif node.op == "Mul" and other == x and not seen:
                seen = True
            elif node.op == "Mul" and not seen and scaled is not None and parts is not None and parts[0] == x:
                seen, found, dtype = True, found * parts[1], self._dtype(parts[2])
                nodes.append(scaled)
            else:
                return None
            nodes.append(node)
            name = node.outputs[0]
            if seen and _near(found, factor, dtype):
                return nodes
        return None

    def _dtype(self, name: str) -> np.dtype[Any]:
        array = self.constants.array(name)
        return np.dtype(np.float32) if array is None else array.dtype

    def plus(self, name: str, number: float) -> Node | None:
        """The only reader, when it adds this number."""
        node = self.only_reader(name, "Add")
        if node is None:
            return None
        return node if any(self.is_number(n, number) for n in node.inputs if n != name) else None


def _near(found: float, wanted: float, dtype: np.dtype[Any]) -> bool:
    precision = float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0
    return abs(found - wanted) <= precision * abs(wanted)


def _gelu_by_erf(finder: _Finder, node: Node) -> _Match | None:
    """x * 0.5 * (1 + erf(x / sqrt(2)))"""
    scaled = finder.made_by(node.inputs[0], "Div", "Mul")
    parts = finder.with_number(scaled)
    if scaled is None or parts is None or (scaled.op == "Div" and scaled.inputs[0] != parts[0]):
        return None
    x, root = parts[0], math.sqrt(2) if scaled.op == "Div" else math.sqrt(0.5)
    shifted = finder.plus(node.outputs[0], 1.0)
    if shifted is None or not finder.is_number(parts[2], root):
        return None
    last = finder.product(shifted.outputs[0], x, 0.5)
    return None if last is None else _Match("Gelu", x, [scaled, node, shifted, *last], {})


def _gelu_by_tanh(finder: _Finder, node: Node) -> _Match | None:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))"""
    scaled = finder.made_by(node.inputs[0], "Mul")
    parts = finder.with_number(scaled)
    if scaled is None or parts is None or not finder.is_number(parts[2], math.sqrt(2 / math.pi)):
        return None
    cubes, shifted = _cube_terms(finder, parts[0]), finder.plus(node.outputs[0], 1.0)
    if cubes is None or shifted is None:
        return None
    x, inner = cubes
    last = finder.product(shifted.outputs[0], x, 0.5)
    if last is None:
        return None
    return _Match("Gelu", x, [*inner, scaled, node, shifted, *last], {"approximate": "tanh"})


def _cube_terms(finder: _Finder, name: str) -> tuple[str, list[Node]] | None:
    """x and the nodes, when the tensor is x + 0.044715 x^3."""
    total = finder.made_by(name, "Add")
    for x, rest in (total.inputs, total.inputs[::-1]) if total is not None else ():
        scaled = finder.made_by(rest, "Mul")
        parts = finder.with_number(scaled)
        if scaled is None or parts is None or not finder.is_number(parts[2], 0.044715):
            continue
        assert total is not None
        power = finder.made_by(parts[0], "Pow")
        if power is not None and power.inputs[0] == x and finder.is_number(power.inputs[1], 3.0):
            return x, [power, scaled, total]
        outer = finder.made_by(parts[0], "Mul")
        if outer is not None and x in outer.inputs:
            square = finder.made_by(outer.inputs[1] if outer.inputs[0] == x else outer.inputs[0], "Mul")
            if square is not None and square.inputs == (x, x):
                return x, [square, outer, scaled, total]
    return None


def _silu(finder: _Finder, node: Node) -> _Match | None:
    """x * sigmoid(x)"""
    last = finder.only_reader(node.outputs[0], "Mul")
    if last is None or set(last.inputs) != {node.inputs[0], node.outputs[0]}:
        return None
    return _Match("Swish", node.inputs[0], [node, last], {})


def _hard_swish(finder: _Finder, node: Node) -> _Match | None:
    """x * hard_sigmoid(x) with a slope of 1/6"""
    x = node.inputs[0]
    if not _near(node.get("alpha", 0.2), 1 / 6, np.dtype(np.float32)) or node.get("beta", 0.5) != 0.5:
        return None
    last = finder.product(node.outputs[0], x, 1.0)
    return None if last is None else _Match("HardSwish", x, [node, *last], {})


def _hard_swish_by_clip(finder: _Finder, node: Node) -> _Match | None:
    """x * clip(x + 3, 0, 6) / 6"""
    if clip_limits(node, finder.constants) != (0.0, 6.0):
        return None
    shifted = finder.made_by(node.inputs[0], "Add")
    parts = finder.with_number(shifted)
    if shifted is None or parts is None or parts[1] != 3.0:
        return None
    last = finder.product(node.outputs[0], parts[0], 1 / 6)
    return None if last is None else _Match("HardSwish", parts[0], [shifted, node, *last], {})


def clip_limits(node: Node, constants: Constants) -> tuple[float, float] | None:
    """Limits of a Clip; None where they are not known numbers."""
    if node.version < 11:
        return float(node.get("min", -np.inf)), float(node.get("max", np.inf))
    limits = []
    for position, default in ((1, -np.inf), (2, np.inf)):
        name = node.inputs[position] if position < len(node.inputs) else ""
        array = constants.array(name)
        if name and (array is None or array.size != 1):
            return None
        limits.append(default if array is None else float(array.reshape(-1)[0]))
    return limits[0], limits[1]


_FINDERS: dict[str, Callable[[_Finder, Node], _Match | None]] = {
    "Erf": _gelu_by_erf, "Tanh": _gelu_by_tanh, "Sigmoid": _silu, "HardSigmoid": _hard_swish,
    "Clip": _hard_swish_by_clip,
}  # fmt: skip
