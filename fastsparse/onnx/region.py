"""Regions: nodes of a graph that the kernels run as one program, which is made anew for other shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fastsparse.engine.program import Node as ProgramNode
from fastsparse.engine.program import Program, Shape
from fastsparse.onnx.lowering import Form, Lowered, Lowering
from fastsparse.onnx.model import Node


@dataclass(eq=False)
class Member:
    """A node of a region; `inside` are those of the tensors it reads that the region makes itself."""

    node: Node
    lowered: Lowered
    tensors: tuple[str, ...]
    inside: tuple[bool, ...]
    level: int

    @property
    def output(self) -> str:
        return self.node.outputs[0]


@dataclass(eq=False)
class Region:
    """Nodes that run as one program: tensors that it reads and writes."""

    members: list[Member]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    lowering: Lowering

    @property
    def nodes(self) -> list[Node]:
        return [member.node for member in self.members]

    @property
    def key(self) -> object:
        """What tells it from other regions of the graph."""
        return self.inputs, self.outputs, tuple(id(member.node) for member in self.members)

    def specialised(self, shapes: Mapping[str, Shape]) -> Specialised | None:
        """The program for inputs of these shapes; None where they do not fit what the kernels can run."""
        known, forms, made = dict(shapes), dict[str, Form](), dict[str, int]()
        tensors: list[Shape] = []
        sources: dict[tuple[str, Form], int] = {}
        nodes: list[ProgramNode] = []
        keys: list[object] = []

        def number(shape: Shape) -> int:
            tensors.append(shape)
            return len(tensors) - 1

        for member in self.members:
            node = member.node
            held = [forms[name] if within else None for name, within in zip(member.tensors, member.inside)]
            lowered = self.lowering.lowered(node, held, [known[name] for name in member.tensors])
            if lowered is None or any(h not in (None, form) for h, form in zip(held, lowered.sources)):
                return None
            reads = []
            for name, within, form in zip(member.tensors, member.inside, lowered.sources):
                if math.prod(known[name]) != form.samples * math.prod(form.shape):
                    return None
                key = name, form
                if not within and key not in sources:
                    sources[key] = number(form.shape)
                reads.append(made[name] if within else sources[key])
            known[member.output], forms[member.output] = lowered.shape, lowered.target
            if lowered.operator is None:
                made[member.output] = reads[0]
                continue
            name = f"{node.name.replace(' ', '_')} {node.op.rpartition('.')[2]}"
            for operator, shape in lowered.before:
                between = number(shape)
                nodes.append(ProgramNode(name, operator, tuple(reads), between))
                reads = [between]
            made[member.output] = target = number(lowered.target.shape)
            nodes.append(ProgramNode(name, lowered.operator, tuple(reads[::-1] if lowered.swapped else reads), target))
            keys.append((lowered.key, tuple(form.shape for form in lowered.sources), tuple(reads)))
        samples = {form.samples for _, form in sources} | {forms[name].samples for name in self.outputs}
        if len(samples) != 1:
            return None
        ends = tuple(sources.values()), tuple(made[name] for name in self.outputs)
        dtype = self.lowering.kernel_dtype(self.inputs[0])
        program = Program(tuple(tensors), *ends, tuple(nodes), dtype)
        results = [known[name] for name in self.outputs]
        return Specialised(program, samples.pop(), [name for name, _ in sources], results, (dtype.str, *ends, *keys))


@dataclass(eq=False)
class Specialised:
    """A region's program for certain shapes: `inputs` are the names that it reads, `outputs` the results' shapes."""

    program: Program
    samples: int
    inputs: list[str]
    outputs: list[Shape]
    key: object
