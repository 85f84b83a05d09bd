"""Cutting a graph into segments, which the kernels run as programs, and single nodes, which run on the host.

Every node that the kernels can run gets a level: that of the producers whose results it takes as they lie in the
kernels' layouts, one more than that of all else it reads. Nodes of one level that hang together, or read the same
tensor, make a segment. A way from a segment to the host and back raises the level, so a segment can run in one go.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from fastsparse.engine.passes import optimised
from fastsparse.engine.program import Node as ProgramNode
from fastsparse.engine.program import Program, Reshape, Shape
from fastsparse.onnx.lowering import Form, Lowered, Lowering, Weights
from fastsparse.onnx.model import Node
from fastsparse.onnx.specialise import Graph

_KEPT_PROGRAMS = 4096


@dataclass(eq=False)
class Member:
    """A node of a segment; `forms` are those of the tensors that it reads."""

    node: Node
    lowered: Lowered
    tensors: tuple[str, ...]
    forms: tuple[Form, ...]
    inside: tuple[bool, ...]  # which of them the segment makes itself
    level: int


@dataclass(eq=False)
class Segment:
    """Nodes that run as one program on `samples` samples: tensors that it reads and writes, in the program's order."""

    nodes: list[Node]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    program: Program
    samples: int


Part = Segment | Node


@dataclass
class Partitioner:
    """Cuts graphs; programs are made once for all graphs that have the same ones."""

    matrices: Weights = field(default_factory=Weights)
    programs: dict[Hashable, Program] = field(default_factory=dict)

    def parts(self, graph: Graph) -> list[Part]:
        """Segments and host nodes, in an order in which they can run."""
        cut = _Cut(graph, Lowering(graph, self.matrices))
        cut.find_members()
        parts: list[Part] = []
        hosts = {id(node): node for node in graph.nodes if id(node) not in cut.members}
        for group in cut.groups():
            kept, freed = _without_loose_ends(group, cut.wanted_outside(group))
            hosts.update((id(member.node), member.node) for member in freed)
            if kept:
                parts.append(self._segment(kept, cut.wanted_outside(kept, freed), graph))
        return _ordered([*parts, *hosts.values()], graph)

    def _segment(self, group: list[Member], wanted: set[str], graph: Graph) -> Segment:
        shapes: list[Shape] = []
        number: dict[tuple[str, Form], int] = {}  # of tensors as they are read and written
        inputs: list[str] = []
        nodes: list[ProgramNode] = []
        keys: list[Hashable] = []
        made: dict[str, int] = {}

        def tensor(shape: Shape) -> int:
            shapes.append(shape)
            return len(shapes) - 1

        for member in group:
            sources = []
            for name, form, inside in zip(member.tensors, member.forms, member.inside):
                if not inside and (name, form) not in number:
                    number[name, form] = tensor(form.shape)
                    inputs.append(name)
                sources.append(made[name] if inside else number[name, form])
            lowered, output = member.lowered, member.node.outputs[0]
            if lowered.operator is None:
                made[output] = sources[0]
                continue
            made[output] = target = tensor(lowered.target.shape)
            name = f"{member.node.name.replace(' ', '_')} {member.node.op.rpartition('.')[2]}"
            nodes.append(ProgramNode(name, lowered.operator, tuple(sources), target))
            keys.append((lowered.key, lowered.source.shape, tuple(sources)))
        outputs = tuple(m.node.outputs[0] for m in group if m.node.outputs[0] in wanted)
        dtype = graph.infos[inputs[0]].dtype
        ends = tuple(number.values()), tuple(made[name] for name in outputs)
        program = self._program((dtype.str, *ends, *keys), Program(tuple(shapes), *ends, tuple(nodes), dtype))
        return Segment([m.node for m in group], tuple(inputs), outputs, program, group[0].lowered.source.samples)

    def _program(self, key: Hashable, plain: Program) -> Program:
        found = self.programs.get(key)
        if found is None:
            found = self.programs[key] = optimised(plain)
            while len(self.programs) > _KEPT_PROGRAMS:
                del self.programs[next(iter(self.programs))]
        return found


class _Cut:
    """Levels, and what of them follows."""

    def __init__(self, graph: Graph, lowering: Lowering) -> None:
        self.graph, self.lowering = graph, lowering
        self.members: dict[int, Member] = {}
        self.maker: dict[str, Member] = {}  # of tensors that the kernels write
        self.available: dict[str, int] = {}  # level behind which others than the kernels can read a tensor

    def find_members(self) -> None:
        """Go through the nodes in their order."""
        for node in self.graph.nodes:
            member = self._member(node)
            if member is None:
                level = max((self.available.get(name, 0) for name in node.inputs), default=0)
            else:
                level = member.level
                self.members[id(node)] = member
                self.maker[node.outputs[0]] = member
            self.available.update((name, level) for name in node.outputs)

    def _member(self, node: Node) -> Member | None:
        if not node.inputs:
            return None
        if node.op == "Add" and len(node.inputs) == 2 and self.graph.constant(node.inputs[1]) is None:
            return self._sum(node)
        name = node.inputs[0]
        maker = self.maker.get(name)
        if maker is not None:
            lowered = self.lowering.lower(node, maker.lowered.target)
            if lowered is not None:
                return Member(node, lowered, (name,), (lowered.source,), (True,), maker.level)
        lowered = self.lowering.lower(node, None)
        if lowered is None or not lowered.starts:
            return None
        return Member(node, lowered, (name,), (lowered.source,), (False,), self.available.get(name, 0) + 1)

    def _sum(self, node: Node) -> Member | None:
        makers = [self.maker.get(name) for name in node.inputs]
        found = [maker for maker in makers if maker is not None]
        if not found or node.version < 7:
            return None
        first = max(found, key=lambda maker: maker.level)
        form = first.lowered.target
        lowered = self.lowering.lower_sum(node, form)
        if lowered is None:
            return None
        # A term of another form, or of the host, is read from outside.
        inside = [maker is not None and maker.lowered.target == form for maker in makers]
        level = first.level
        for name, within in zip(node.inputs, inside):
            level = max(level, self.available.get(name, 0) + (not within))
        inside = [within and self.maker[name].level == level for name, within in zip(node.inputs, inside)]
        if not any(inside):
            return None
        return Member(node, lowered, node.inputs, (form, form), tuple(inside), level)

    def groups(self) -> list[list[Member]]:
        """Members that make a segment each."""
        leader = {key: key for key in self.members}

        def find(key: int) -> int:
            while leader[key] != key:
                leader[key] = leader[leader[key]]
                key = leader[key]
            return key

        readers: dict[tuple[int, str, Form], int] = {}
        for key, member in self.members.items():
            for name, form, inside in zip(member.tensors, member.forms, member.inside):
                other = id(self.maker[name].node) if inside else readers.setdefault((member.level, name, form), key)
                leader[find(key)] = find(other)
        found: dict[int, list[Member]] = {}
        for key, member in self.members.items():
            found.setdefault(find(key), []).append(member)
        return list(found.values())

    def wanted_outside(self, group: list[Member], freed: Iterable[Member] = ()) -> set[str]:
        """Tensors of the group that others read: outputs of the model, and what nodes outside or of `freed` need."""
        made = {m.node.outputs[0] for m in group}
        inside = {(id(m.node), name) for m in group for name, within in zip(m.tensors, m.inside) if within}
        wanted = made.intersection(self.graph.outputs)
        for node in self.graph.nodes:
            wanted.update(name for name in node.inputs if name in made and (id(node), name) not in inside)
        for member in freed:
            wanted.update(made.intersection(member.node.inputs))
        return wanted


def _without_loose_ends(group: list[Member], wanted: set[str]) -> tuple[list[Member], list[Member]]:
    """Members that stay, and those that the host does as well: new shapes that others want, which are views."""
    kept, freed = list(group), []
    for member in reversed(group):
        if member.lowered.operator is not None and not isinstance(member.lowered.operator, Reshape):
            continue
        output = member.node.outputs[0]
        read = any(output in m.tensors for m in kept if m is not member)
        if output in wanted:
            freed.append(member)
            wanted.discard(output)
            wanted.add(member.node.inputs[0])
        if not read:
            kept.remove(member)
    return kept, freed


def _ordered(parts: list[Part], graph: Graph) -> list[Part]:
    """Parts in an order in which they can run."""
    position = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs}
    maker = {name: part for part in parts for name in part.outputs}
    left = sorted(parts, key=lambda part: position[part.outputs[0]])
    done: set[int] = set()
    ordered: list[Part] = []

    def visit(part: Part) -> None:
        waiting = [part]
        while waiting:
            current = waiting[-1]
            if id(current) in done:
                waiting.pop()
                continue
            needed = [maker[name] for name in current.inputs if name in maker and id(maker[name]) not in done]
            if needed:
                waiting.extend(needed)
            else:
                done.add(id(current))
                ordered.append(current)
                waiting.pop()

    for part in left:
        visit(part)
    return ordered
