"""Reading ONNX files: protocol buffers to a `Model`, checked, with every weight read once.

Files may be damaged or hostile. Numbers of nodes and tensors' sizes are bounded, names must be written once before
they are read, external data are refused unless asked for, and nothing in a file is executed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastsparse.engine.program import UnsupportedOperatorError
from fastsparse.files import FileFormatError
from fastsparse.onnx.dtypes import dtype_of
from fastsparse.onnx.model import Array, Constant, Model, Node, Value
from fastsparse.onnx.ops import OPERATORS
from fastsparse.onnx.tensors import array_of, sizes_of, sparse_of
from fastsparse.onnx.weights import kept_sparse

MOST_NODES = 100_000
_OLDEST, _NEWEST = 1, 28  # opsets
_DOMAINS = ("", "ai.onnx")
_ATTRIBUTES = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings", 9: "tensors"}


def import_onnx() -> Any:
    """The onnx package, or a sentence that says where it comes from."""
    try:
        import onnx
    except ImportError:
        raise ImportError(
            'ONNX models need the package onnx; the extra "onnx" brings it: pip install -e ".[onnx]" in the checkout'
        ) from None
    return onnx


def load_proto(source: Any) -> Any:
    """The ModelProto that a path names, or `source` itself where it is one.

    Raises
    ------
    FileFormatError
        When the file is no ONNX model.
    OSError
        When it cannot be read.
    """
    onnx = import_onnx()
    if isinstance(source, onnx.ModelProto):
        return source
    from google.protobuf.message import DecodeError

    content = Path(source).read_bytes()
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except (DecodeError, ValueError, RuntimeError):
        raise FileFormatError(f"{os.fspath(source)} is not an ONNX model, or damaged") from None
    if not proto.HasField("graph"):
        raise FileFormatError(f"{os.fspath(source)} is not an ONNX model, or damaged: it has no graph")
    return proto


def read(source: Any, *, allow_external_data: bool = False) -> Model:
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
    UnsupportedOperatorError
        Naming the first node whose operator is not supported.
    """
    proto = load_proto(source)
    folder = None
    if allow_external_data:
        folder = Path.cwd() if proto is source else Path(source).parent
    proto = _inlined(proto)
    if len(proto.graph.node) > MOST_NODES:
        raise FileFormatError(f"the model has {len(proto.graph.node)} nodes, expected at most {MOST_NODES}")
    version = _opset(proto)
    nodes = _ordered([_node(n, i, version, folder) for i, n in enumerate(proto.graph.node)])
    constants = dict(_constants(proto.graph, nodes, folder))
    inputs = tuple(_value(v) for v in proto.graph.input if v.name not in constants)
    outputs = tuple(_value(v, output=True) for v in proto.graph.output)
    model = Model(tuple(nodes), constants, inputs, outputs)
    _check_names(model)
    return Model(tuple(_sorted(model)), constants, inputs, outputs)


def _opset(proto: Any) -> int:
    versions = [entry.version for entry in proto.opset_import if entry.domain in _DOMAINS]
    version = int(versions[0]) if versions else 1
    if not _OLDEST <= version <= _NEWEST:
        raise UnsupportedOperatorError(f"the model is of opset {version}, expected {_OLDEST} to {_NEWEST}")
    return version


# ---------------------------------------------------------------- functions


def _inlined(proto: Any) -> Any:
    """The model with the functions that it defines put in place of their calls."""
    if not proto.functions:
        return proto
    bodies = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size_of(nodes: Any, inside: tuple[tuple[str, str], ...]) -> int:
        """Nodes after inlining, counted before they are made."""
        total = 0
        for node in nodes:
            key = node.domain, node.op_type
            if key in inside or len(inside) > len(bodies):
                raise FileFormatError(f"function {node.op_type!r} calls itself")
            if key in bodies and key not in sizes:
                sizes[key] = size_of(bodies[key].node, (*inside, key))
            total += sizes.get(key, 1)
            if total > MOST_NODES:
                raise FileFormatError(f"the model's functions make more than {MOST_NODES} nodes")
        return total

    if len(bodies) > 500:
        raise FileFormatError(f"the model has {len(bodies)} functions, expected at most 500")
    size_of(proto.graph.node, ())
    import onnx.inliner

    try:
        return onnx.inliner.inline_local_functions(proto)
    except Exception as error:
        raise FileFormatError(f"the model's functions cannot be put in place: {error}") from error


# ---------------------------------------------------------------- nodes


def _node(proto: Any, position: int, version: int, folder: Path | None) -> Node:
    name = proto.name or f"{proto.op_type}_{position}"
    if proto.domain not in _DOMAINS or proto.op_type not in OPERATORS or proto.op_type.startswith("fastsparse"):
        domain = "" if proto.domain in _DOMAINS else f"{proto.domain}."
        raise UnsupportedOperatorError(f"node {name!r} is a {domain}{proto.op_type}, which is not supported")
    attributes = {}
    for attribute in proto.attribute:
        what = f"attribute {attribute.name!r} of node {name!r}"
        if attribute.type not in _ATTRIBUTES or attribute.ref_attr_name:
            raise UnsupportedOperatorError(f"{what} is a graph, a sparse tensor or a reference, which is not supported")
        attributes[attribute.name] = _attribute(attribute, what, folder)
    return Node(proto.op_type, name, tuple(proto.input), tuple(proto.output), attributes, version)


def _attribute(attribute: Any, what: str, folder: Path | None) -> Any:
    found = getattr(attribute, _ATTRIBUTES[attribute.type])
    if attribute.type == 3:
        return found.decode("utf-8", "replace")
    if attribute.type == 4:
        return array_of(found, what, folder)
    if attribute.type == 8:
        return [text.decode("utf-8", "replace") for text in found]
    if attribute.type == 9:
        raise UnsupportedOperatorError(f"{what} is a list of tensors, which is not supported")
    return list(found) if attribute.type in (6, 7) else found


def _ordered(nodes: list[Node]) -> list[Node]:
    """Nodes with names of their own: messages and the report tell them apart."""
    counts = Counter(node.name for node in nodes)
    if len(counts) == len(nodes):
        return nodes
    return [
        node if counts[node.name] == 1 else Node(
            node.op, f"{node.name}_{i}", node.inputs, node.outputs, node.attributes, node.version
        )
        for i, node in enumerate(nodes)
    ]  # fmt: skip


# ---------------------------------------------------------------- tensors


def _constants(graph: Any, nodes: list[Node], folder: Path | None) -> Iterator[tuple[str, Constant]]:
    uses: dict[str, list[tuple[Node, int]]] = {}
    for node in nodes:
        for position, name in enumerate(node.inputs):
            uses.setdefault(name, []).append((node, position))
    seen = set()
    for tensor in graph.initializer:
        if tensor.name in seen:
            raise FileFormatError(f"initializer {tensor.name!r} is there twice")
        seen.add(tensor.name)
        array: Array = array_of(tensor, f"initializer {tensor.name!r}", folder)
        yield tensor.name, kept_sparse(array, uses.get(tensor.name, []))
    for tensor in graph.sparse_initializer:
        name = tensor.values.name
        if name in seen:
            raise FileFormatError(f"initializer {name!r} is there twice")
        seen.add(name)
        yield name, sparse_of(tensor, f"sparse_initializer {name!r}", folder)


def _value(proto: Any, output: bool = False) -> Value:
    what = f"{'output' if output else 'input'} {proto.name!r}"
    if not proto.type.HasField("tensor_type"):
        if output and proto.type.WhichOneof("value") is None:  # types of outputs follow from the nodes
            return Value(proto.name, np.dtype(np.float32), None)
        raise UnsupportedOperatorError(f"{what} is not a tensor, which is not supported")
    kind = proto.type.tensor_type
    dtype = np.dtype(np.float32) if output and kind.elem_type == 0 else dtype_of(kind.elem_type, what)
    if not kind.HasField("shape"):
        return Value(proto.name, dtype, None)
    sizes: list[int | str | None] = []
    for i, dim in enumerate(kind.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:  # some exporters write -1 for an open size
            sizes.extend(sizes_of([dim.dim_value], what))
        else:
            sizes.append(dim.dim_param or (f"{proto.name}.{i}" if not output else None))
    return Value(proto.name, dtype, tuple(sizes))


# ---------------------------------------------------------------- structure


def _check_names(model: Model) -> None:
    written = Counter([v.name for v in model.inputs] + list(model.constants))
    for node in model.nodes:
        written.update(filter(None, node.outputs))
    twice = [name for name, count in written.items() if count > 1]
    if twice:
        raise FileFormatError(f"tensor {twice[0]!r} is written twice")
    for node in model.nodes:
        for name in node.inputs:
            if name and name not in written:
                raise FileFormatError(f"{node} reads {name!r}, which nothing writes")
    if not model.outputs:
        raise FileFormatError("the model has no outputs")
    for value in model.outputs:
        if value.name not in written:
            raise FileFormatError(f"output {value.name!r} is written by nothing")


def _sorted(model: Model) -> Iterator[Node]:
    """Nodes in an order in which they can run, which is the file's where that is one."""
    producer = {name: node for node in model.nodes for name in node.outputs if name}
    waiting = {id(node): sum(1 for name in {*node.inputs} if name in producer) for node in model.nodes}
    readers: dict[str, list[Node]] = {}
    for node in model.nodes:
        for name in {*node.inputs}:
            readers.setdefault(name, []).append(node)
    position = {id(node): i for i, node in enumerate(model.nodes)}
    import heapq

    ready = [position[i] for i, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    done = 0
    while ready:
        node = model.nodes[heapq.heappop(ready)]
        done += 1
        yield node
        for name in filter(None, node.outputs):
            for reader in readers.get(name, []):
                waiting[id(reader)] -= 1
                if waiting[id(reader)] == 0:
                    heapq.heappush(ready, position[id(reader)])
    if done < len(model.nodes):
        stuck = next(node for node in model.nodes if waiting[id(node)])
        raise FileFormatError(f"{stuck} waits for itself: the graph has a cycle")
