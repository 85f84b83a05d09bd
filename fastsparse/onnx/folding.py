"""What follows from constants, from shapes that are known, and from branches that are then decided.

ONNX's inference knows what comes behind a Pad, a Reshape or an If when numbers are there that nodes compute from
constants or from shapes. So both are done in turns, until nothing new is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastsparse.files import FileFormatError
from fastsparse.onnx.inference import Constants, Info, inferred
from fastsparse.onnx.model import Array, Constant, Model, Node, Shape, copied
from fastsparse.onnx.reader import add_node, checked, constants_of, defined, free_name, graphs_of, node_of
from fastsparse.onnx.sessions import Session

_SMALL = 1024  # numbers up to which shapes and conditions may depend on a constant
_MOST_TURNS = 32


def folded(
    model: Model, shapes: Mapping[str, Shape] | None = None, decided: dict[str, bool] | None = None
) -> tuple[Model, dict[str, Info]]:
    """The model with small constants in place of what gives them, and what is known of its tensors.

    Without `shapes` of the inputs it holds for all that the model allows. Branches that are taken are added to
    `decided`, by the names of the nodes.
    """
    given, branches = model, any(node.op == "If" for node in model.nodes)
    for _ in range(_MOST_TURNS):
        infos = inferred(model, shapes)
        found = {**_small(model, infos), **_sizes(model, infos)}
        taken = {n.name: bool(np.all(c)) for n in model.nodes if (c := _condition(n, model, found)) is not None}
        if not found and not taken:
            break
        nodes = tuple(n for n in model.nodes if not n.writes or not found.keys() >= set(n.writes))
        model = with_branches(replace(model, nodes=nodes, constants={**model.constants, **found}), taken)
        if decided is not None:
            decided |= taken
    # More shapes are known where an If was than in its branches: the library may refuse there what it runs here.
    if branches and model is not given and not _is_accepted(model) and _is_accepted(given):
        if decided is not None:
            decided.clear()
        return given, inferred(given, shapes)
    return model, infos


def _is_accepted(model: Model) -> bool:
    """Whether the library takes the model."""
    try:
        Session(model, model.nodes, [v.name for v in model.inputs], [v.name for v in model.outputs], {})
    except (ValueError, NotImplementedError):
        return False
    return True


def _condition(node: Node, model: Model, found: Mapping[str, Constant]) -> Array | None:
    """What decides an If, where it is known."""
    if node.op != "If":
        return None
    condition = found.get(node.inputs[0], model.constants.get(node.inputs[0]))
    return condition if isinstance(condition, np.ndarray) and condition.size == 1 else None


def _small(model: Model, infos: Mapping[str, Info]) -> dict[str, Array]:
    """Small constants, of nodes all of whose results are such."""
    constants = Constants(model, infos)
    outputs = {value.name for value in model.outputs}
    nodes = [
        n
        for n in constants.nodes
        if not outputs.intersection(n.writes) and all(_is_small(infos.get(w)) for w in n.writes)
    ]
    found = constants.computed([name for node in nodes for name in node.writes])
    return found if all(isinstance(array, np.ndarray) for array in found.values()) else {}


def _is_small(info: Info | None) -> bool:
    if info is None or info.dtype is None or info.dtype == object or info.fixed is None:
        return False
    return int(np.prod(info.fixed)) <= _SMALL


def _sizes(model: Model, infos: Mapping[str, Info]) -> dict[str, Array]:
    """Results of Shape and Size, where shapes are known."""
    outputs, found = {value.name for value in model.outputs}, {}
    for node in model.nodes:
        info = infos.get(node.inputs[0]) if node.op in ("Shape", "Size") else None
        if info is None or info.fixed is None or outputs.intersection(node.writes):
            continue
        sizes = np.array(info.fixed, np.int64)
        part = sizes[node.get("start", 0) : node.get("end")]
        found[node.outputs[0]] = np.asarray(sizes.prod(dtype=np.int64)) if node.op == "Size" else part
    return found


# ---------------------------------------------------------------- branches


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
    own = sorted(defined(graph))
    renamed, copies = dict[str, str](), list[tuple[str, str]]()
    for value, result in zip(graph.output, node.outputs):
        if result and value.name in own and value.name not in renamed:
            renamed[value.name] = result
        elif result:
            copies.append((value.name, result))
    renamed |= {name: free_name(f"{node.name}/{name}", names) for name in own if name and name not in renamed}
    nodes, constants = list[Node](), {renamed[name]: constant for name, constant in constants_of(graph, {})}
    for i, inner in enumerate(graph.node):
        made = copied(inner)
        _rename(made, renamed)
        name = f"{node.name}/{inner.name or f'{inner.op_type}_{i}'}"
        add_node(node_of(made, free_name(name, names), node.version), nodes, constants)
    for source, result in copies:
        made = type(proto)(op_type="Identity", input=[renamed.get(source, source)], output=[result])
        nodes.append(node_of(made, free_name(f"{node.name}/{result}", names), node.version))
    return nodes, constants


def _rename(node: Any, renamed: Mapping[str, str]) -> None:
    """Give tensors their new names, in a node and in the graphs inside it."""
    for names in (node.input, node.output):
        names[:] = [renamed.get(name, name) for name in names]
    for graph in graphs_of(node):
        own = defined(graph)
        outer = {old: new for old, new in renamed.items() if old not in own}
        for inner in graph.node:
            _rename(inner, outer)
        for value in graph.output:
            value.name = outer.get(value.name, value.name)
