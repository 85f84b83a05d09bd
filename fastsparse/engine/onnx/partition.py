"""Cutting a graph into segments, which the kernels run as programs, and single nodes, which run on the host.

A segment is grown from a product or a pooling to all that follows and fits. With `branches` one, a segment is any
part of the graph that can run in one go; without, it is a chain.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from fastsparse.engine.onnx.lowering import Lowered, Lowering, Weights
from fastsparse.engine.onnx.model import Node
from fastsparse.engine.onnx.specialise import Graph
from fastsparse.engine.passes import optimised
from fastsparse.engine.program import Node as ProgramNode
from fastsparse.engine.program import Program, Shape


@dataclass(eq=False)
class Segment:
    """Nodes that run as one program on `samples` samples."""

    nodes: list[Node]
    lowered: list[Lowered]
    program: Program | None = None
    key: Hashable = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.nodes[0].inputs[:1]

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.nodes[-1].outputs

    @property
    def samples(self) -> int:
        return self.lowered[0].source.samples


Part = Segment | Node


@dataclass
class Partitioner:
    """Cuts graphs; programs are made once for all graphs that have the same ones."""

    matrices: Weights = field(default_factory=Weights)
    programs: dict[Hashable, Program] = field(default_factory=dict)

    def parts(self, graph: Graph) -> list[Part]:
        """Segments and host nodes, in an order in which they can run."""
        lowering, uses = Lowering(graph, self.matrices), graph.uses()
        of_tensor: dict[str, Segment] = {}
        segment_of: dict[int, Segment] = {}
        for node in graph.nodes:
            segment = of_tensor.get(node.inputs[0]) if node.inputs else None
            form = segment.lowered[-1].target if segment is not None else None
            # A chain goes on where nobody else reads what it gives.
            lowered = lowering.lower(node, form) if segment is not None and uses[node.inputs[0]] == 1 else None
            if segment is not None and lowered is not None:
                segment.nodes.append(node)
                segment.lowered.append(lowered)
                del of_tensor[node.inputs[0]]
            else:
                lowered = lowering.lower(node, None)
                if lowered is None or not lowered.starts:
                    continue
                segment = Segment([node], [lowered])
            segment_of[id(node)] = of_tensor[node.outputs[0]] = segment
        return self._ordered(graph, segment_of)

    def _ordered(self, graph: Graph, segment_of: dict[int, Segment]) -> list[Part]:
        """A chain runs where its first node stands: all it reads is there."""
        parts: list[Part] = []
        seen: set[int] = set()
        for node in graph.nodes:
            segment = segment_of.get(id(node))
            if segment is None:
                parts.append(node)
            elif id(segment) not in seen:
                seen.add(id(segment))
                parts.append(self._finished(graph, segment))
        return parts

    def _finished(self, graph: Graph, segment: Segment) -> Segment:
        dtype = graph.infos[segment.inputs[0]].dtype
        segment.key = (dtype.str, segment.lowered[0].source.shape, *(part.key for part in segment.lowered))
        program = self.programs.get(segment.key)
        if program is None:
            shapes: list[Shape] = [segment.lowered[0].source.shape]
            nodes = []
            for node, part in zip(segment.nodes, segment.lowered):
                if part.operator is not None:
                    shapes.append(part.target.shape)
                    last = len(shapes) - 1
                    nodes.append(ProgramNode(f"{node.name} {node.op}", part.operator, (last - 1,), last))
            program = Program(tuple(shapes), (0,), (len(shapes) - 1,), tuple(nodes), dtype)
            program = self.programs[segment.key] = optimised(program)
        segment.program = program
        return segment
