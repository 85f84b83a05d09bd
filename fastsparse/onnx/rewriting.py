"""Helpers of passes that replace several nodes by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from fastsparse.onnx.model import Array, Node, unused
from fastsparse.onnx.specialise import Graph, without_dead
from fastsparse.onnx.table import Info


class Rewriter:
    """A graph while nodes are replaced. What a new node makes superfluous goes when the pass ends."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producer = graph.producers()
        self.readers = graph.readers()
        self.uses = graph.uses()
        self._new: dict[str, Node] = {}  # by the output they write
        self._constants = 0

    def number(self, name: str) -> float | None:
        """The constant's only number."""
        array = self._small(name)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def _small(self, name: str) -> Array | None:
        info = self.graph.infos.get(name) if name else None
        if info is None or info.constant is None or info.size > 1 or info.dtype.kind not in "iuf":
            return None
        return info.value

    def is_number(self, name: str, wanted: float) -> bool:
        """Whether the tensor is this constant, as far as float16 would tell."""
        found = self.number(name)
        return found is not None and abs(found - wanted) <= 2e-3 * abs(wanted)

    def made_by(self, name: str, *ops: str) -> Node | None:
        """The node that writes a tensor, when it is one of these operators."""
        node = self.producer.get(name)
        return node if node is not None and node.op in ops else None

    def only_reader(self, name: str, *ops: str) -> Node | None:
        """The only node that reads a tensor, when it is one of these operators."""
        if self.uses[name] != 1 and not self._squares(name):
            return None
        nodes = self.readers.get(name, [])
        return nodes[0] if len(nodes) == 1 and nodes[0].op in ops else None

    def _squares(self, name: str) -> bool:
        nodes = self.readers.get(name, [])
        return len(nodes) == 1 and nodes[0].inputs == (name, name) and name not in self.graph.outputs

    def other(self, node: Node, name: str) -> str:
        """The other operand of a node with two."""
        return node.inputs[1] if node.inputs[0] == name else node.inputs[0]

    def with_number(self, node: Node) -> tuple[str, float] | None:
        """(tensor, number) of a commutative node of a tensor and a number."""
        if len(node.inputs) == 2:
            for a, b in (node.inputs, node.inputs[::-1]):
                found = self.number(b)
                if found is not None:
                    return a, found
        return None

    def constant(self, array: Array) -> str:
        """A new constant's name."""
        name = unused(f"#{len(self.graph.infos)}", self.graph.infos)
        self.graph.infos[name] = Info(array.shape, array.dtype, array)
        return name

    def replace(self, last: Node, op: str, inputs: Iterable[str], **attributes: object) -> None:
        """Compute the output of `last` by another operator."""
        version = 25 if op not in ("Conv", "Gemm", "Add") else last.version
        self._new[last.outputs[0]] = replace(
            last, op=op, inputs=tuple(inputs), outputs=last.outputs[:1], attributes=attributes, version=version
        )

    def put(self, output: str, node: Node) -> None:
        """Compute a tensor by a node that was made elsewhere."""
        self._new[output] = node

    def done(self) -> Graph:
        """The graph with the new nodes, and without those that nothing needs any more."""
        graph = self.graph
        nodes = [self._new.get(node.outputs[0], node) for node in graph.nodes]
        return Graph(without_dead(nodes, graph.outputs), graph.infos, graph.inputs, graph.outputs)


def per_channel(array: Array, shape: tuple[int, ...], axis: int) -> Array | None:
    """`array` as one number per place along `axis` of a tensor of `shape`, when that is what it broadcasts to."""
    if array.ndim > len(shape) or array.dtype.kind != "f":
        return None
    sizes = (1,) * (len(shape) - array.ndim) + array.shape
    if any(n != 1 for i, n in enumerate(sizes) if i != axis) or sizes[axis] not in (1, shape[axis]):
        return None
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (shape[axis],)))
