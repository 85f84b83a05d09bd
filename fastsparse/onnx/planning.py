"""From a graph to a plan: steps in their order, and where every tensor lies.

Tensors are numbers. A tensor is a constant, an array of the user's, a buffer in the workspace's memory, or a view of
one of these. Views are made when a workspace is made; a step that can only give a view by copying writes a buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastsparse.engine.schedule import Buffer, Schedule, assign_memory
from fastsparse.onnx.model import Array, Node, Shape, unused
from fastsparse.onnx.ops import OPERATORS
from fastsparse.onnx.partition import Part, Segment
from fastsparse.onnx.specialise import Graph

NONE = -1  # an input that is left out


@dataclass(frozen=True, eq=False)
class Step:
    """One host node, or one segment with its schedule. `view`: outputs are views, made of what the inputs are."""

    name: str
    node: Node | None
    segment: Segment | None
    schedule: Schedule | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    view: bool = False


@dataclass(eq=False)
class Plan:
    """Steps and memory of a graph."""

    steps: list[Step]
    names: list[str]
    shapes: list[Shape]
    dtypes: list[np.dtype[Any]]
    constants: dict[int, Array]
    buffers: dict[int, int]  # tensor -> offset
    nbytes: int
    inputs: list[int]
    outputs: list[int]
    direct: dict[int, int]  # tensor -> position of the user's output array that it is written to
    copied: list[tuple[int, int]] = field(default_factory=list)  # (tensor, position of the output) to copy at the end


def planned(graph: Graph, parts: list[Part], schedule_of: Callable[[Segment], Schedule]) -> Plan:
    """The plan of a graph that was cut into parts."""
    return _Planner(graph, parts, schedule_of).plan()


class _Planner:
    def __init__(self, graph: Graph, parts: list[Part], schedule_of: Callable[[Segment], Schedule]) -> None:
        self.graph, self.parts, self.schedule_of = graph, parts, schedule_of
        self.names: list[str] = []
        self.number: dict[str, int] = {}
        self.constants: dict[int, Array] = {}
        self.root: dict[int, int] = {}  # of views, the tensor whose memory they share
        self.loose: set[int] = set()  # tensors that are not C-contiguous

    def plan(self) -> Plan:
        """All of it."""
        graph = self.graph
        inputs = [self._tensor(name) for name in graph.inputs]
        steps: list[Step] = []
        for part in self.parts:
            steps += self._segment(part) if isinstance(part, Segment) else [self._host(part)]
        outputs = [self._tensor(name) for name in graph.outputs]
        infos = [graph.infos[name] for name in self.names]
        direct, copied, owned = self._results(steps, outputs)
        buffers, nbytes = self._memory(steps, owned - set(direct), [info.nbytes for info in infos])
        return Plan(
            steps, self.names, [i.shape for i in infos], [i.dtype for i in infos], self.constants, buffers, nbytes,
            inputs, outputs, direct, copied,
        )  # fmt: skip

    def _tensor(self, name: str) -> int:
        if not name:
            return NONE
        if name not in self.number:
            self.number[name] = number = len(self.names)
            self.names.append(name)
            array = self.graph.array(name)
            if array is not None:
                self.constants[number] = array
        return self.number[name]

    # --- steps ---------------------------------------------------------------------------------

    def _segment(self, segment: Segment) -> list[Step]:
        steps = []
        inputs = tuple(self._tensor(name) for name in segment.inputs)
        for position, t in enumerate(inputs):
            if t in self.loose or (t in self.constants and not self.constants[t].flags.c_contiguous):
                copy = self._contiguous(t)
                steps.append(Step("copy", _COPY, None, None, (t,), (copy,)))
                inputs = (*inputs[:position], copy, *inputs[position + 1 :])
        outputs = tuple(self._tensor(name) for name in segment.outputs)
        steps.append(Step(segment.nodes[0].name, None, segment, self.schedule_of(segment), inputs, outputs))
        return steps

    def _contiguous(self, t: int) -> int:
        name = unused(f"{self.names[t]}#contiguous", self.graph.infos)
        self.graph.infos[name] = self.graph.infos[self.names[t]]
        return self._tensor(name)

    def _host(self, node: Node) -> Step:
        inputs = tuple(self._tensor(name) for name in node.inputs)
        outputs = tuple(self._tensor(name) for name in node.outputs)
        operator = OPERATORS[node.op]
        view = operator.view is not None and not set(node.outputs).intersection(self.graph.outputs)
        if view and operator.contiguous and inputs[0] in self.loose:
            view = False
        if view:
            for t in outputs:
                self.root[t] = self.root.get(inputs[0], inputs[0])
            if (node.op != "Identity" and not operator.contiguous) or inputs[0] in self.loose:
                self.loose.update(t for t in outputs if self._is_loose(node, inputs[0], t))
        return Step(node.name, node, None, None, inputs, outputs, view)

    def _is_loose(self, node: Node, source: int, target: int) -> bool:
        """Whether the view may have gaps, or another order than its numbers have in memory."""
        if node.op in ("Identity", "Squeeze", "Unsqueeze", "Dropout"):
            return source in self.loose
        shape = self.graph.infos[self.names[source]].shape
        if node.op == "Transpose" and source not in self.loose:
            order = node.get("perm") or list(range(len(shape)))[::-1]
            moved = [axis for axis in order if shape[axis] != 1]
            return moved != sorted(moved)
        return True

    # --- memory --------------------------------------------------------------------------------

    def _results(self, steps: list[Step], outputs: list[int]) -> tuple[dict[int, int], list[tuple[int, int]], set[int]]:
        """Outputs that are written in place, those that are copied at the end, and all tensors that steps write."""
        owned = {t for step in steps if not step.view for t in step.outputs}
        direct: dict[int, int] = {}
        copied = []
        for position, t in enumerate(outputs):
            if t in owned and t not in direct:
                direct[t] = position
            else:
                copied.append((t, position))
        return direct, copied, owned

    def _memory(self, steps: list[Step], owned: set[int], sizes: list[int]) -> tuple[dict[int, int], int]:
        lives: dict[int, tuple[int, int]] = {}  # first and last step that need a tensor's memory
        for i, step in enumerate(steps):
            if not step.view:
                lives.update((t, (i, i)) for t in step.outputs if t in owned)
            for t in (*step.inputs, *(step.outputs if step.view else ())):
                root = self.root.get(t, t)
                if root in lives:
                    lives[root] = lives[root][0], i
        offsets, nbytes = assign_memory([Buffer(sizes[t], *life) for t, life in lives.items()])
        return dict(zip(lives, offsets)), nbytes


_COPY = Node("Identity", "copy", (), ())
