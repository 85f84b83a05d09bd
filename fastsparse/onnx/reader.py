"""Reading ONNX files: protocol buffers to a `Model`, checked, with every weight read once.

Files may be damaged or hostile. Numbers of nodes and tensors' sizes are bounded, names must be written once before
they are read, external data are read from the model's own folder alone (see `files.Folder`), and nothing in a file
is executed but operators.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from fastsparse.files import FileFormatError, Folder
from fastsparse.onnx.model import TYPES, Constant, Model, Node, Value, copied
from fastsparse.onnx.sessions import has_onnx
from fastsparse.onnx.tensors import (
    check_size,
    constant_of,
    external,
    inline,
    sizes_of,
    sparse_of,
    tensors_inside,
)

MOST_NODES = 100_000
DOMAINS = ("", "ai.onnx")
_EXTERNAL = 1  # TensorProto.DataLocation
_ATTRIBUTES = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints", 8: "strings"}
# Constant nodes: the attribute that holds their numbers.
_VALUES = {"value_float": (1, "f"), "value_int": (7, "i"), "value_floats": (1, "floats"), "value_ints": (7, "ints")}


def import_onnx() -> Any:
    """The onnx package, or a sentence that says where it comes from."""
    try:
        import onnx
    except ImportError:
        raise ImportError(
            'ONNX models need the package onnx; the extra "onnx" brings it: pip install -e ".[onnx]" in the checkout'
        ) from None
    return onnx


def parsed(content: bytes, what: str, messages: bytes = b"") -> Any:
    """The ModelProto of some bytes; `messages` describes it where the package onnx, which does, is not there.

    Raises
    ------
    FileFormatError
        When they are none.
    """
    if content[8:].startswith(b'{"__metadata__": {"fastsparse"'):
        raise FileFormatError(f"{what} is no ONNX model but a file of fastsparse, for fs.load or fs.load_engine")
    if messages and not has_onnx():
        from google.protobuf import descriptor_pool, message_factory

        pool = descriptor_pool.DescriptorPool()
        pool.AddSerializedFile(messages)
        proto = message_factory.GetMessageClass(pool.FindMessageTypeByName("onnx.ModelProto"))()
    else:
        proto = import_onnx().ModelProto()
    from google.protobuf.message import DecodeError

    try:
        proto.ParseFromString(content)
    except (DecodeError, ValueError, RuntimeError):
        raise FileFormatError(f"{what} is not an ONNX model, or damaged") from None
    if not proto.HasField("graph"):
        raise FileFormatError(f"{what} is not an ONNX model, or damaged: it has no graph")
    return proto


def load_proto(source: Any, external_data: bool = True) -> tuple[Any, Folder | None]:
    """The ModelProto that a path names, or `source` itself where it is one; and where its external data may be.

    Raises
    ------
    FileFormatError
        When the file is no ONNX model.
    OSError
        When it cannot be read.
    """
    onnx = import_onnx()
    if isinstance(source, onnx.ModelProto):
        return source, None
    path = Path(source)
    return parsed(path.read_bytes(), os.fspath(source)), Folder(path) if external_data else None


def read(source: Any, *, allow_external_data: bool = True) -> Model:
    """Read a model.

    Parameters
    ----------
    source : path or onnx.ModelProto
    allow_external_data : bool
        Read tensors from other files in the model's folder, too.

    Raises
    ------
    FileFormatError
        When the file is damaged, or breaks the rules of ONNX.
    """
    return model_of(*load_proto(source, allow_external_data))


def model_of(proto: Any, folder: Folder | None = None, known: dict[str, Constant] | None = None) -> Model:
    """The model of a message; `known` are constants that are not in it."""
    try:
        return _model_of(proto, folder, known)
    except UnicodeError as error:  # names that are no text
        raise FileFormatError(f"the model is damaged: {error}") from error


def _model_of(proto: Any, folder: Folder | None, known: dict[str, Constant] | None) -> Model:
    proto = _inlined(proto)
    graph = proto.graph
    constants = {**(known or {}), **dict(constants_of(graph, known or {}, folder))}
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    version = int(versions.get("", versions.get("ai.onnx", 1)))
    nodes, names = list[Node](), _unique_names(graph.node)
    for found, name in zip(graph.node, names):
        add_node(node_of(found, name, version, folder), nodes, constants)
    inputs = tuple(_value(v) for v in graph.input if v.name not in constants)
    outputs = tuple(_value(v, output=True) for v in graph.output)
    header = type(proto)()
    header.CopyFrom(proto)
    header.ClearField("graph")
    return checked(Model(tuple(nodes), constants, inputs, outputs, header))


def checked(model: Model) -> Model:
    """The model with its nodes in an order in which they can run.

    Raises
    ------
    FileFormatError
        When there is none, or a name is written twice or never.
    """
    _check_names(model)
    return replace(model, nodes=_sorted(model))


# ---------------------------------------------------------------- functions


def _inlined(proto: Any) -> Any:
    """The model with the functions that it defines put in place of their calls: counted before they are."""
    bodies = {(f.domain, f.name): f for f in proto.functions}
    if len(bodies) > 500:
        raise FileFormatError(f"the model has {len(bodies)} functions, expected at most 500")
    sizes: dict[tuple[str, str], int] = {}

    def size_of(nodes: Any, inside: tuple[tuple[str, str], ...]) -> int:
        """Nodes after inlining, those in graphs inside of nodes, too."""
        total, waiting = 0, list(nodes)
        while waiting:
            node = waiting.pop()
            key = node.domain, node.op_type
            if key in inside:
                raise FileFormatError(f"function {node.op_type!r} calls itself")
            if key in bodies and key not in sizes:
                sizes[key] = size_of(bodies[key].node, (*inside, key))
            total += sizes.get(key, 1)
            waiting += [inner for graph in graphs_of(node) for inner in graph.node]
            most = max(total, len(waiting))
            if most > MOST_NODES and bodies:
                raise FileFormatError(f"the model's functions make more than {MOST_NODES} nodes")
            if most > MOST_NODES:
                raise FileFormatError(f"the model has {most} nodes, expected at most {MOST_NODES}")
        return total

    size_of(proto.graph.node, ())
    if not bodies:
        return proto
    import onnx.inliner

    try:
        return onnx.inliner.inline_local_functions(proto)
    except Exception as error:
        raise FileFormatError(f"the model's functions cannot be put in place: {error}") from error


# ---------------------------------------------------------------- nodes


def _unique_names(nodes: Any) -> list[str]:
    """A name for every node that no other one has: files may have names twice, or none."""
    counts = Counter(node.name for node in nodes)
    taken = set(counts)
    return [
        node.name if node.name and counts[node.name] == 1 else free_name(f"{node.name or node.op_type}_{i}", taken)
        for i, node in enumerate(nodes)
    ]


def free_name(name: str, taken: set[str]) -> str:
    """A name that nothing has, like this one; it is taken from now on."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def add_node(node: Node, nodes: list[Node], constants: dict[str, Constant]) -> None:
    """Put a node to the others, or its numbers to the constants."""
    constant = _constant_of(node)
    if constant is None:
        nodes.append(node)
        return
    if node.outputs[0] in constants:
        raise FileFormatError(f"tensor {node.outputs[0]!r} is written twice")
    constants[node.outputs[0]] = constant


def node_of(source: Any, name: str, version: int, folder: Folder | None = None) -> Node:
    """The node of a message."""
    proto = copied(source)  # which is the user's
    proto.name = name
    op = proto.op_type if proto.domain in DOMAINS else f"{proto.domain}.{proto.op_type}"
    attributes = {}
    fewest, kinds = _rules(proto.op_type, version) if proto.domain in DOMAINS else (0, {})
    if len(proto.input) < fewest:
        raise FileFormatError(f"node {name!r} ({op}) has {len(proto.input)} inputs, expected at least {fewest}")
    for tensor in tensors_inside(proto):
        what = f"a tensor in node {name!r}"
        check_size(tensor, what)
        if tensor.data_location == _EXTERNAL:
            tensor.CopyFrom(inline(tensor, external(tensor, what, folder)))
    for attribute in proto.attribute:
        if attribute.type != kinds.get(attribute.name, attribute.type):
            raise FileFormatError(f"node {name!r} ({op}) has the attribute {attribute.name!r} in another type")
        if attribute.type in _ATTRIBUTES:
            found = getattr(attribute, _ATTRIBUTES[attribute.type])
            if attribute.type == 3:
                found = found.decode("utf-8", "replace")
            if attribute.type == 8:
                found = [text.decode("utf-8", "replace") for text in found]
            attributes[attribute.name] = list(found) if attribute.type in (6, 7, 8) else found
    captured = [name for graph in graphs_of(proto) for name in _captured(graph)]
    return Node(
        op, name, tuple(proto.input), tuple(proto.output), attributes, version, (proto,), tuple(dict.fromkeys(captured))
    )  # fmt: skip


@functools.cache
def _rules(op: str, version: int) -> tuple[int, dict[str, int]]:
    """The number of inputs that an operator of ONNX must have, and types of its attributes, where they are known."""
    if not has_onnx():
        return 0, {}
    defs = import_onnx().defs
    try:
        schema = defs.get_schema(op, max_inclusive_version=version)
    except (defs.SchemaError, TypeError):  # a name that is no text
        return 0, {}
    return int(schema.min_input), {name: int(kind.type) for name, kind in schema.attributes.items()}


def graphs_of(node: Any) -> list[Any]:
    """The graphs in a node's attributes."""
    return [g for a in node.attribute for g in (*([a.g] if a.HasField("g") else []), *a.graphs)]


def defined(graph: Any) -> set[str]:
    """Names that a graph defines."""
    named = [*graph.input, *graph.initializer, *(tensor.values for tensor in graph.sparse_initializer)]
    return {value.name for value in named} | {name for node in graph.node for name in node.output}


def _captured(graph: Any) -> list[str]:
    """Names that a graph reads and does not define."""
    own, found = defined(graph), [name for node in graph.node for name in node.input]
    found += [name for node in graph.node for inner in graphs_of(node) for name in _captured(inner)]
    found += [v.name for v in graph.output]
    return [name for name in found if name and name not in own]


def _constant_of(node: Node) -> Constant | None:
    """The numbers of a Constant node; None for others."""
    if node.op != "Constant" or len(node.outputs) != 1 or len(node.protos[0].attribute) != 1:
        return None
    attribute = node.protos[0].attribute[0]
    if attribute.name == "value" and attribute.HasField("t"):
        return constant_of(attribute.t, f"the value of {node}", None)
    if attribute.name in _VALUES:
        import numpy as np

        code, field = _VALUES[attribute.name]
        return np.asarray(getattr(attribute, field), TYPES[code])
    return None


# ---------------------------------------------------------------- tensors


def constants_of(
    graph: Any, known: Mapping[str, Constant], folder: Folder | None = None
) -> Iterator[tuple[str, Constant]]:
    """The initializers of a graph."""
    seen = set(known)
    named = [(t.name, t, "initializer", constant_of) for t in graph.initializer]
    named += [(t.values.name, t, "sparse_initializer", sparse_of) for t in graph.sparse_initializer]
    for name, tensor, kind, make in named:
        if name in seen or not name:
            raise FileFormatError(f"initializer {name!r} is there twice" if name else "an initializer has no name")
        seen.add(name)
        yield name, make(tensor, f"{kind} {name!r}", folder)


def _value(proto: Any, output: bool = False) -> Value:
    what = f"{'output' if output else 'input'} {proto.name!r}"
    kind = proto.type.tensor_type
    dtype = TYPES.get(kind.elem_type) if proto.type.HasField("tensor_type") else None
    if dtype is None or not kind.HasField("shape"):
        return Value(proto.name, dtype, None, proto)
    sizes: list[int | str | None] = []
    for i, dim in enumerate(kind.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:  # which some exporters write for "open"
            sizes.extend(sizes_of([dim.dim_value], what))
        else:
            named = dim.dim_param if dim.dim_param not in ("", "?") else f"{proto.name}.{i}"
            sizes.append(None if output and not dim.dim_param else named)
    return Value(proto.name, dtype, tuple(sizes), proto)


# ---------------------------------------------------------------- structure


def _check_names(model: Model) -> None:
    written = Counter([v.name for v in model.inputs] + list(model.constants))
    for node in model.nodes:
        written.update(node.writes)
    twice = [name for name, count in written.items() if count > 1]
    if twice:
        raise FileFormatError(f"tensor {twice[0]!r} is written twice")
    for node in model.nodes:
        for name in node.reads:
            if name not in written:
                raise FileFormatError(f"{node} reads {name!r}, which nothing writes")
    if not model.outputs:
        raise FileFormatError("the model has no outputs")
    for value in model.outputs:
        if value.name not in written:
            raise FileFormatError(f"output {value.name!r} is written by nothing")


def _sorted(model: Model) -> tuple[Node, ...]:
    """Nodes in an order in which they can run, which is the file's where that is one."""
    producer, known = model.producers(), set[str]()
    for node in model.nodes:
        if any(name in producer and name not in known for name in node.reads):
            break
        known.update(node.writes)
    else:
        return model.nodes
    try:
        needs = {node: [producer[name] for name in node.reads if name in producer] for node in model.nodes}
        return tuple(TopologicalSorter(needs).static_order())
    except CycleError as error:
        raise FileFormatError(f"{error.args[1][0]} waits for itself: the graph has a cycle") from None
