"""Branches of If in place of the node, where it is known which one is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from fastsparse.files import FileFormatError
from fastsparse.onnx.model import Constant, Model, Node
from fastsparse.onnx.reader import add_node, checked, constants_of, node_of


def with_branches(model: Model, taken: Mapping[str, bool]) -> Model:
    """The model with branches in place of nodes, by the names of these; nodes in branches can be named, too."""
    while any(node.op == "If" and node.name in taken for node in model.nodes):
        names = {*model.constants, *(name for node in model.nodes for name in (node.name, *node.writes))}
        names |= {value.name for value in model.inputs}
        nodes, constants = list[Node](), dict(model.constants)
        for node in model.nodes:
            if node.op == "If" and node.name in taken:
                inner, more = _branch(node, taken[node.name], names)
                nodes += inner
                constants |= more
            else:
                nodes.append(node)
        model = checked(replace(model, nodes=tuple(nodes), constants=constants))
    return model


def _branch(node: Node, taken: bool, names: set[str]) -> tuple[list[Node], dict[str, Constant]]:
    """The nodes and constants of a branch of an If, to stand in its place; `names` are those that are in use."""
    (proto,) = node.protos
    name = "then_branch" if taken else "else_branch"
    graph = next((a.g for a in proto.attribute if a.name == name), None)
    if graph is None:
        raise FileFormatError(f"{node} has no {name}")
    own = dict.fromkeys(_own(graph))
    renamed, copies = dict[str, str](), list[tuple[str, str]]()
    for value, result in zip(graph.output, node.outputs):
        if result and value.name in own and value.name not in renamed:
            renamed[value.name] = result
        elif result:
            copies.append((value.name, result))
    renamed |= {name: _free(f"{node.name}/{name}", names) for name in own if name and name not in renamed}
    nodes, constants = list[Node](), {renamed[name]: constant for name, constant in constants_of(graph, {})}
    for i, inner in enumerate(graph.node):
        made = type(inner)()
        made.CopyFrom(inner)
        _rename(made, renamed)
        name = f"{node.name}/{inner.name or f'{inner.op_type}_{i}'}"
        add_node(node_of(made, _free(name, names), node.version), nodes, constants)
    for source, result in copies:
        made = type(proto)(op_type="Identity", input=[renamed.get(source, source)], output=[result])
        nodes.append(node_of(made, _free(f"{node.name}/{result}", names), node.version))
    return nodes, constants


def _free(name: str, names: set[str]) -> str:
    """A name that nothing has, like this one."""
    while name in names:
        name += "_"
    names.add(name)
    return name


def _rename(node: Any, renamed: Mapping[str, str]) -> None:
    """Give tensors their new names, in a node and in the graphs inside it."""
    for names in (node.input, node.output):
        names[:] = [renamed.get(name, name) for name in names]
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            own = set(_own(graph))
            outer = {old: new for old, new in renamed.items() if old not in own}
            for inner in graph.node:
                _rename(inner, outer)
            for value in graph.output:
                value.name = outer.get(value.name, value.name)


def _own(graph: Any) -> Iterator[str]:
    """Names that a graph defines."""
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    yield from (name for node in graph.node for name in node.output)
