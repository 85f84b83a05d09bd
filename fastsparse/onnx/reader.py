"""Reading ONNX files: protocol buffers to a `Model`, checked, with every weight read once.

Files may be damaged or hostile. Numbers of nodes and tensors' sizes are bounded, what a tensor declares is compared
with what it holds before memory is taken, names must be written once before they are read, external data are read from
the model's own folder alone (see `files.Folder`), and nothing in a file is executed but operators.
"""

from __future__ import annotations

import functools
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np

from fastsparse import extras
from fastsparse.csr import CSR
from fastsparse.files import FileFormatError, Folder
from fastsparse.onnx.model import (
    EXTERNAL,
    FLOATS,
    TYPES,
    Array,
    Constant,
    Model,
    Node,
    Shape,
    SparseWeight,
    Value,
    bits_of,
    copied,
)
from fastsparse.onnx.sessions import has_onnx

MOST_NODES = 100_000
DOMAINS = ("", "ai.onnx")
_ATTRIBUTES = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints", 8: "strings"}
_FIELDS = {1: "float_data", 8: "string_data", 11: "double_data", 7: "int64_data", 12: "uint64_data", 13: "uint64_data",
           14: "float_data", 15: "double_data"}  # fmt: skip
_LARGEST = 2**62  # bytes: what 64-bit sizes can say
# A sparse tensor may take this many times what the file holds of it, and this many bytes in any case.
_BLOW_UP, _SMALL = 4096, 2**26


def import_onnx() -> Any:
    """The onnx package, or a sentence that says where it comes from."""
    extras.require("an ONNX model", "onnx", onnx="onnx")
    import onnx

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


def model_of(proto: Any, folder: Folder | None = None, known: Mapping[str, Constant] | None = None) -> Model:
    """The model of a message; `known` are constants that are not in it."""
    try:
        proto = _inlined(proto)
        graph, known = proto.graph, known or {}
        constants = {**known, **dict(constants_of(graph, known, folder))}
        versions = {entry.domain: entry.version for entry in proto.opset_import}
        version = int(versions.get("", versions.get("ai.onnx", 1)))
        nodes = list[Node]()
        for found, name in zip(graph.node, _unique_names(graph.node)):
            add_node(node_of(found, name, version, folder), nodes, constants)
        inputs = tuple(_value(v) for v in graph.input if v.name not in constants)
        outputs = tuple(_value(v, output=True) for v in graph.output)
    except UnicodeError as error:  # names that are no text
        raise FileFormatError(f"the model is damaged: {error}") from error
    header = type(proto)()
    header.CopyFrom(proto)
    header.ClearField("graph")
    return checked(Model(tuple(nodes), constants, inputs, outputs, header))


def checked(model: Model) -> Model:
    """The model with its nodes in an order in which they can run, which is the file's where that is one.

    Raises
    ------
    FileFormatError
        When there is none, or a name is written twice or never.
    """
    written = Counter([v.name for v in model.inputs] + list(model.constants))
    for node in model.nodes:
        written.update(node.writes)
    ends = (end for node in model.nodes for end in (node.op, *node.outputs, *node.reads))
    for name in (*written, *ends, *(value.name for value in model.outputs)):
        if not isinstance(name, str):
            raise FileFormatError(f"the model is damaged: the name {name!r} is no text")
    twice = [name for name, count in written.items() if count > 1]
    if twice:
        raise FileFormatError(f"tensor {twice[0]!r} is written twice")
    producer, known, in_order = model.producers(), set[str](), True
    for node in model.nodes:
        for name in node.reads:
            if name not in written:
                raise FileFormatError(f"{node} reads {name!r}, which nothing writes")
            in_order = in_order and (name not in producer or name in known)
        known.update(node.writes)
    if not model.outputs:
        raise FileFormatError("the model has no outputs")
    for value in model.outputs:
        if value.name not in written:
            raise FileFormatError(f"output {value.name!r} is written by nothing")
    if in_order:
        return model
    try:
        needs = {node: [producer[name] for name in node.reads if name in producer] for node in model.nodes}
        return replace(model, nodes=tuple(TopologicalSorter(needs).static_order()))
    except CycleError as error:
        raise FileFormatError(f"{error.args[1][0]} waits for itself: the graph has a cycle") from None


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
    """Put a node to the others, or the tensor of a Constant to the constants."""
    tensors = [a.t for a in node.protos[0].attribute if a.name == "value" and a.HasField("t")]
    if node.op != "Constant" or not len(node.outputs) == len(tensors) == len(node.protos[0].attribute) == 1:
        nodes.append(node)
        return
    if node.outputs[0] in constants:
        raise FileFormatError(f"tensor {node.outputs[0]!r} is written twice")
    constants[node.outputs[0]] = constant_of(tensors[0], f"the value of {node}", None)


def node_of(source: Any, name: str, version: int, folder: Folder | None = None) -> Node:
    """The node of a message."""
    proto = copied(source)  # which is the user's
    proto.name = name
    op = proto.op_type if proto.domain in DOMAINS else f"{proto.domain}.{proto.op_type}"
    attributes = {}
    fewest, kinds = _rules(proto.op_type, version) if proto.domain in DOMAINS else (0, {})
    if len(proto.input) < fewest:
        raise FileFormatError(f"node {name!r} ({op}) has {len(proto.input)} inputs, expected at least {fewest}")
    _drop_missing_inputs(proto, version)
    for tensor in tensors_inside(proto):
        tensor.CopyFrom(whole(tensor, f"a tensor in node {name!r}", folder))
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
    ends = tuple(proto.input), tuple(proto.output)
    return Node(op, name, *ends, attributes, version, (proto,), tuple(dict.fromkeys(captured)))


def _drop_missing_inputs(proto: Any, version: int) -> None:
    """Drop empty names at the end of the inputs, in graphs inside, too: onnxruntime may end the process over them."""
    fewest, _ = _rules(proto.op_type, version) if proto.domain in DOMAINS else (0, {})
    while len(proto.input) > fewest and not proto.input[-1]:
        del proto.input[-1]
    for graph in graphs_of(proto):
        for node in graph.node:
            _drop_missing_inputs(node, version)


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
        if not isinstance(dim.dim_param, str):
            raise FileFormatError(f"{what} has a size of the name {dim.dim_param!r}, which is no text")
        if dim.HasField("dim_value") and dim.dim_value >= 0:  # which some exporters write for "open"
            sizes.extend(sizes_of([dim.dim_value], what))
        else:
            named = dim.dim_param if dim.dim_param not in ("", "?") else f"{proto.name}.{i}"
            sizes.append(None if output and not dim.dim_param else named)
    return Value(proto.name, dtype, tuple(sizes), proto)


def sizes_of(dims: Any, what: str) -> Shape:
    """A declared shape; 64-bit sizes whose product cannot be wrong."""
    shape = tuple(int(n) for n in dims)
    if any(n < 0 for n in shape):
        raise FileFormatError(f"{what} has shape {shape}, expected sizes of at least 0")
    if len(shape) > 64:
        raise FileFormatError(f"{what} has {len(shape)} axes, expected at most 64")
    if math.prod(shape) >= _LARGEST:
        raise FileFormatError(f"{what} of shape {shape} takes more than {_LARGEST} bytes")
    return shape


def check_size(tensor: Any, what: str) -> None:
    """Hold the numbers that a TensorProto brings against what it declares."""
    shape, bits = sizes_of(tensor.dims, what), bits_of(tensor.data_type)
    count = math.prod(shape)
    if tensor.data_location == EXTERNAL:
        return
    if tensor.HasField("raw_data"):
        if bits and len(tensor.raw_data) != -(-count * bits // 8):
            raise FileFormatError(
                f"{what} of shape {shape} has {len(tensor.raw_data)} bytes, expected {-(-count * bits // 8)}"
            )
        return
    found = len(getattr(tensor, _FIELDS.get(tensor.data_type, "int32_data")))
    if tensor.data_type in (14, 15):
        found //= 2
    if (found != count and bits >= 8) or (tensor.data_type == 8 and found != count):
        raise FileFormatError(f"{what} of shape {shape} has {found} numbers, expected {count}")


def constant_of(tensor: Any, what: str, folder: Folder | None) -> Constant:
    """The numbers of a TensorProto, or the message itself where NumPy does not have the type.

    Raises
    ------
    FileFormatError
        When the data do not have the declared size, or are outside of the file and may not.
    """
    if tensor.data_type not in TYPES or tensor.data_type == 8:
        return whole(tensor, what, folder)
    check_size(tensor, what)
    if tensor.data_location == EXTERNAL:
        raw: Any = _external(tensor, what, folder)
    elif tensor.HasField("raw_data"):
        raw = tensor.raw_data
    else:
        from onnx import numpy_helper

        return numpy_helper.to_array(tensor)
    dtype = TYPES[tensor.data_type]
    array = np.frombuffer(raw, np.uint8) != 0 if dtype == np.bool_ else np.frombuffer(raw, dtype.newbyteorder("<"))
    return array.astype(dtype, copy=False).reshape(tuple(tensor.dims))


def whole(tensor: Any, what: str, folder: Folder | None) -> Any:
    """A TensorProto that holds its numbers itself, as many as it declares."""
    check_size(tensor, what)
    if tensor.data_location != EXTERNAL:
        return tensor
    raw = _external(tensor, what, folder).tobytes()
    return type(tensor)(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=raw)


def _external(tensor: Any, what: str, folder: Folder | None) -> Array:
    """Bytes of another file."""
    if folder is None:
        raise FileFormatError(
            f"{what} lies in another file; it is read when the model is given as a path, with allow_external_data=True"
        )
    entries = {entry.key: entry.value for entry in tensor.external_data}
    size = -(-math.prod(tensor.dims) * bits_of(tensor.data_type) // 8)
    location = entries.get("location", "")
    if not isinstance(location, str):
        raise FileFormatError(f"{what} lies in {location!r}, which is no text")
    path = folder.find(location, what)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
    except ValueError:
        raise FileFormatError(f"{what} has an offset or a length that is no integer") from None
    if offset < 0 or length != size or offset + size > path.stat().st_size:
        raise FileFormatError(f"{what}: {path.name!r} does not hold {size} bytes from {offset} on")
    return np.fromfile(path, np.uint8, size, offset=offset)


def tensors_inside(node: Any) -> Iterator[Any]:
    """All TensorProtos in the attributes of a node, those of graphs in them included."""
    sparse = []
    for a in node.attribute:
        yield from (*([a.t] if a.HasField("t") else []), *a.tensors)
        sparse += [*([a.sparse_tensor] if a.HasField("sparse_tensor") else []), *a.sparse_tensors]
    for graph in graphs_of(node):
        yield from graph.initializer
        sparse += graph.sparse_initializer
        for inner in graph.node:
            yield from tensors_inside(inner)
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)


def sparse_of(tensor: Any, what: str, folder: Folder | None) -> Constant:
    """A SparseTensorProto: kept sparse where it is a large matrix of floating-point numbers."""
    values, indices = (constant_of(t, what, folder) for t in (tensor.values, tensor.indices))
    if not isinstance(values, np.ndarray) or not isinstance(indices, np.ndarray):
        raise FileFormatError(f"{what} has values of a type that sparse tensors cannot have")
    shape = sizes_of(tensor.dims, what)
    count = math.prod(shape)
    flat = _flat_indices(indices, values, shape, what)
    if len(flat) and (flat[0] < 0 or flat[-1] >= count or (np.diff(flat) <= 0).any()):
        raise FileFormatError(f"{what} has indices that are not ascending within shape {shape}")
    most = max(_SMALL, _BLOW_UP * (values.nbytes + indices.nbytes))
    if count * values.itemsize > most:
        raise FileFormatError(f"{what} of shape {shape} takes more than {most} bytes, for {len(values)} numbers")
    if len(shape) >= 2 and values.dtype in FLOATS and count:
        columns = math.prod(shape[1:])
        indptr = np.searchsorted(flat, np.arange(shape[0] + 1, dtype=np.int64) * columns)
        return SparseWeight(CSR(indptr, flat % columns, values, (shape[0], columns)), shape)
    dense = np.zeros(count, values.dtype)
    dense[flat] = values
    return dense.reshape(shape)


def _flat_indices(indices: Array, values: Array, shape: Shape, what: str) -> Array:
    """Where the values are in row-major order."""
    if values.ndim != 1 or indices.dtype != np.int64:
        raise FileFormatError(f"{what} has values of shape {values.shape} and indices of {indices.dtype}")
    if indices.shape == values.shape:
        return indices
    if indices.shape != (len(values), len(shape)):
        raise FileFormatError(f"{what} has {indices.shape} indices for {len(values)} values of {len(shape)} axes")
    if (indices < 0).any() or (indices >= np.asarray(shape, np.int64)).any():
        raise FileFormatError(f"{what} has indices outside of shape {shape}")
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return indices @ np.asarray(strides, np.int64)
