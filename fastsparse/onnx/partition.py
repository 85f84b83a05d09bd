"""Cutting a graph into regions, which the kernels run as programs, and groups of nodes that the library runs.

Every node that the kernels can run gets a level: that of the producers whose results it takes as they are in the
kernels' layouts, one more than that of all else it reads. Nodes of one level that hang together, or read the same
tensor, make a region. A way from a region to the library and back raises the level, so a region can run in one go.
Regions are then trimmed to what the kernels are estimated to run faster, packing and unpacking included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fastsparse.onnx.lowering import Form, Lowering, Member, Region
from fastsparse.onnx.model import Node
from fastsparse.onnx.recurrent import recurrent_region

Part = Region | list[Node]


class Cut:
    """Regions of a model, as it is lowered for the shapes that it is compiled for."""

    def __init__(self, lowering: Lowering) -> None:
        self.lowering, self.shapes, self.costs = lowering, lowering.shapes, lowering.costs
        self.nodes, self.readers = lowering.model.nodes, lowering.model.readers()
        self.outputs = {value.name for value in lowering.model.outputs}

    def regions(self, excluded: set[int] | None = None) -> list[Region]:
        """Regions that are worth it by estimate; nodes whose ids are `excluded` are the library's."""
        excluded = set(excluded or ())
        while True:
            found = self._groups(excluded)
            losers = [member for group in found for member in self._lost(group)]
            if not losers:
                return [*map(self._region, found), *self._recurrent(excluded)]
            excluded.update(id(member.node) for member in losers)

    def _recurrent(self, excluded: set[int]) -> list[Region]:
        """Recurrent layers, each a region."""
        found: list[Region] = []
        densest = 1.0 if self.costs.always else self.costs.densest
        for node in self.nodes:
            region = None if id(node) in excluded else recurrent_region(node, self.lowering, densest)
            if region is None or any(name not in self.shapes for name in region.inputs):
                continue
            specialised = region.specialised({name: self.shapes[name] for name in region.inputs})
            if specialised is None:
                continue
            (layer,), shapes = specialised.program.nodes, specialised.program.shapes
            ends = sum(map(self.costs.crossed, shapes)) + self.costs.region
            if self.costs.saving(layer.operator, shapes[0], 1, True) > ends:
                found.append(region)
        return found

    # --- levels ----------------------------------------------------------------------------------

    def _groups(self, excluded: set[int]) -> list[list[Member]]:
        maker: dict[str, Member] = {}  # of tensors that the kernels write
        available: dict[str, int] = {}  # level behind which others than the kernels can read a tensor
        members: dict[int, Member] = {}
        for node in self.nodes:
            member = None if id(node) in excluded else self._member(node, maker, available)
            if member is None:
                level = max((available.get(name, 0) for name in node.reads), default=0)
            else:
                level = member.level
                members[id(node)] = maker[member.output] = member
            available.update((name, level) for name in node.writes)
        groups = _connected(members, maker)
        return [group for group in groups if self.costs.always or any(member.lowered.sparse for member in group)]

    def _member(self, node: Node, maker: Mapping[str, Member], available: Mapping[str, int]) -> Member | None:
        names = self.lowering.tensors(node)
        makers = [maker.get(name) for name in names]
        first = max(filter(None, makers), key=lambda above: above.level, default=None)
        every = node.op in ("Mul", "Concat")
        forms = [above.lowered.target if above and (above is first or every) else None for above in makers]
        for held in (forms, [None] * len(names)):
            lowered = self.lowering.lowered(node, held, self.shapes)
            if lowered is None:
                continue
            # A term of another form, or of the library, is read from outside.
            inside = [
                above is not None and above.lowered.target == form for above, form in zip(makers, lowered.sources)
            ]
            level = max(available.get(name, 0) + (not within) for name, within in zip(names, inside))
            within = tuple(maker[name].level == level if known else False for name, known in zip(names, inside))
            if any(within) or lowered.starts:
                return Member(node, lowered, names, within, level)
        return None

    # --- what is worth it ------------------------------------------------------------------------

    def _lost(self, group: list[Member]) -> list[Member]:
        """Members that the library runs faster: some within, all behind or before one of them, or all of them."""
        within = [m for m in group if self._saving(m) < -2 * self.costs.region - self._elements([m])]
        if within:
            return within
        lost: list[Member] = []
        left = list(group)
        while True:
            whole, best, gain = self._worth(left), list[Member](), 0.0
            for member in left:
                if self._saving(member) >= 0:
                    continue
                for some in (_with_all(left, member, before) for before in (False, True)):
                    rest = [m for m in left if m not in some]
                    more = self._worth(rest) - whole
                    if rest and more > gain:
                        best, gain = some, more
            if not best:
                break
            lost += best
            left = [m for m in left if m not in best]
        if self._worth(left) <= 0:
            return group
        return lost

    def _saving(self, member: Member) -> float:
        lowered = member.lowered
        first = lowered.sources[lowered.swapped]
        return self.costs.saving(lowered.product, first.shape, first.samples, lowered.sparse)

    def _worth(self, group: list[Member]) -> float:
        return sum(map(self._saving, group)) - self._elements(group) - self.costs.region

    def _elements(self, group: list[Member]) -> float:
        """What it costs to bring the tensors in and out."""
        read = {name for m in group for name, within in zip(m.tensors, m.inside) if not within}
        made = {m.output for m in group}
        read |= {name for m in group for name in m.tensors if name not in made}
        ends = read | self._wanted(group)
        return sum(self.costs.crossed(self.shapes.get(name, ())) for name in ends)

    def _wanted(self, group: Sequence[Member]) -> set[str]:
        """Tensors of the group that others read, or that are results."""
        made = {m.output for m in group}
        reads = {(id(m.node), name) for m in group for name, within in zip(m.tensors, m.inside) if within}
        wanted = made & self.outputs
        for name in made:
            if any((id(reader), name) not in reads for reader in self.readers.get(name, [])):
                wanted.add(name)
        return wanted

    def _region(self, group: list[Member]) -> Region:
        wanted = self._wanted(group)
        outside = [name for m in group for name, within in zip(m.tensors, m.inside) if not within]
        outputs = tuple(m.output for m in group if m.output in wanted)
        return Region(group, tuple(dict.fromkeys(outside)), outputs, self.lowering)


def _connected(members: Mapping[int, Member], maker: Mapping[str, Member]) -> list[list[Member]]:
    """Members that make a region each."""
    leader = {key: key for key in members}

    def find(key: int) -> int:
        while leader[key] != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    readers: dict[tuple[int, str, Form], int] = {}
    for key, member in members.items():
        for name, inside, form in zip(member.tensors, member.inside, member.lowered.sources):
            read = member.level, name, form
            other = id(maker[name].node) if inside else readers.setdefault(read, key)
            leader[find(key)] = find(other)
    found: dict[int, list[Member]] = {}
    for key, member in members.items():
        found.setdefault(find(key), []).append(member)
    return list(found.values())


def _with_all(group: list[Member], member: Member, before: bool) -> list[Member]:
    """The member and all that need it, or all that it needs."""

    def inner(one: Member) -> set[str]:
        return {name for name, within in zip(one.tensors, one.inside) if within}

    at, found, names = group.index(member), [member], inner(member) if before else {member.output}
    for other in reversed(group[:at]) if before else group[at + 1 :]:
        if other.output in names if before else inner(other) & names:
            names |= inner(other) if before else {other.output}
            found.append(other)
    return found


def arranged(nodes: Sequence[Node], regions: Sequence[Region]) -> list[Part]:
    """Regions and groups of the other nodes, as large as can be, in an order in which they can run."""
    inside = {id(node) for region in regions for node in region.nodes}
    hosts, waiting = [node for node in nodes if id(node) not in inside], list(regions)
    pending = {name for node in nodes for name in node.writes}
    parts: list[Part] = []
    while hosts or waiting:
        group, later = list[Node](), list[Node]()
        for node in hosts:
            ready = pending.isdisjoint(node.reads)
            (group if ready else later).append(node)
            if ready:
                pending.difference_update(node.writes)
        if group:
            parts.append(group)
        ready_regions = [region for region in waiting if pending.isdisjoint(region.inputs)]
        for region in ready_regions:
            pending.difference_update(name for node in region.nodes for name in node.writes)
        if not group and not ready_regions:
            raise AssertionError("regions wait for one another")
        parts += ready_regions
        hosts, waiting = later, [region for region in waiting if region not in ready_regions]
    return parts


def host_outputs(group: Sequence[Node], nodes: Sequence[Node], outputs: Iterable[str]) -> list[str]:
    """What others need of a group, in its order."""
    inside = {id(node) for node in group}
    wanted = {name for node in nodes if id(node) not in inside for name in node.reads} | set(outputs)
    return [name for node in group for name in node.writes if name in wanted]
