"""What is known before a model runs: types and shapes, numbers that follow from constants, branches that are decided.

ONNX's inference knows what comes behind a Pad, a Reshape or an If when numbers are there that nodes compute from
constants or from shapes. So all of it is done in turns, until nothing new is found.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastsparse.files import FileFormatError
from fastsparse.onnx.model import TYPES, Array, Constant, Model, Node, Shape, SparseWeight, code_of, copied
from fastsparse.onnx.reader import add_node, checked, constants_of, defined, free_name, graphs_of, node_of
from fastsparse.onnx.sessions import Session, declare, has_onnx, message, onnxruntime

_INLINE = 1024  # numbers up to which shapes may depend on a constant
_LARGEST = 2**28  # bytes of all that is computed before a model runs
_MOST_TURNS = 32
_POOLS, _CORRECTED = ("MaxPool", "AveragePool", "LpPool"), "corrected"
# What is not computed beforehand: random numbers, and weights that the library has kernels for as they are.
_KEPT = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli",
         "DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "com.microsoft.DequantizeLinear")  # fmt: skip


@dataclass(frozen=True)
class Info:
    """Type and shape of a tensor; sizes that are not known are names or None, and so is what is no tensor."""

    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None
    proto: Any = None

    @property
    def fixed(self) -> Shape | None:
        """The shape, where all sizes are numbers."""
        if self.shape is None or not all(isinstance(n, int) for n in self.shape):
            return None
        return self.shape  # type: ignore[return-value]

    @property
    def is_array(self) -> bool:
        """Whether it is an array of numbers of a known shape."""
        return self.fixed is not None and self.dtype is not None and self.dtype != object

    @property
    def nbytes(self) -> int:
        """Where the shape is known."""
        return math.prod(self.fixed or ()) * (self.dtype.itemsize if self.dtype is not None else 1)


def folded(
    model: Model, shapes: Mapping[str, Shape] | None = None, decided: dict[str, bool] | None = None
) -> tuple[Model, dict[str, Info]]:
    """The model with constants in place of what gives them, and what is known of its tensors.

    Without `shapes` of the inputs it holds for all that the model allows. Branches that are taken are added to
    `decided`, by the names of the nodes.
    """
    given, branches = model, any(node.op == "If" for node in model.nodes)
    left = min(_LARGEST, _memory())
    for _ in range(_MOST_TURNS):
        infos = inferred(model, shapes)
        computed, done = _computed(model, infos, left)
        left -= sum(array.nbytes for array in computed.values())
        found = {**computed, **_sizes(model, infos)}
        taken = {n.name: bool(np.all(c)) for n in model.nodes if (c := _condition(n, model, found)) is not None}
        if not found and not taken:
            break
        nodes = tuple(node for node in model.nodes if not done & {*node.writes} and not found.keys() & {*node.writes})
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
        Session(model)
    except (ValueError, NotImplementedError):
        return False
    return True


def _condition(node: Node, model: Model, found: Mapping[str, Constant]) -> Array | None:
    """What decides an If, where it is known."""
    if node.op != "If":
        return None
    condition = found.get(node.inputs[0], model.constants.get(node.inputs[0]))
    return condition if isinstance(condition, np.ndarray) and condition.size == 1 else None


# ---------------------------------------------------------------- constants


def from_constants(model: Model) -> list[Node]:
    """Nodes that read nothing but constants, or what such nodes make."""
    known, found = set(model.constants), list[Node]()
    for node in model.nodes:
        if known.issuperset(node.reads) and not node.captured and node.op not in _KEPT:
            known.update(node.writes)
            found.append(node)
    return found


def _computed(model: Model, infos: Mapping[str, Info], left: int) -> tuple[dict[str, Array], set[str]]:
    """What nodes compute from constants, and others read, in so many bytes; and all that these nodes write.

    Raises
    ------
    FileFormatError
        When it cannot be computed.
    """
    known, nodes = set(model.constants), list[Node]()
    for node in from_constants(model):
        results = [info for name in node.writes if (info := infos.get(name)) is not None and info.is_array]
        if not known.issuperset(node.reads) or len(results) < len(node.writes):
            continue
        left -= sum(info.nbytes for info in results)
        if left < 0:
            break
        known.update(node.writes)
        nodes.append(node)
    inside = {id(node) for node in nodes}
    needed = {name for node in model.nodes if id(node) not in inside for name in node.reads}
    needed |= {value.name for value in model.outputs}
    names = [name for node in nodes for name in node.writes if name in needed]
    if not names:
        return {}, set()
    try:
        session = Session(model.part(nodes, [], names), optimised=False)
    except (ValueError, NotImplementedError):  # which is said again when the model is cut
        return {}, set()
    try:
        found = session.run({})
    except ValueError as error:
        raise FileFormatError(f"{', '.join(map(repr, names[:3]))} follows from constants, and {error}") from error
    if not all(isinstance(array, np.ndarray) for array in found):
        return {}, set()
    return dict(zip(names, found)), {name for node in nodes for name in node.writes}


def _sizes(model: Model, infos: Mapping[str, Info]) -> dict[str, Array]:
    """Results of Shape and Size, where shapes are known."""
    found = {}
    for node in model.nodes:
        info = infos.get(node.inputs[0]) if node.op in ("Shape", "Size") else None
        if info is None or info.fixed is None:
            continue
        sizes = np.array(info.fixed, np.int64)
        part = sizes[node.get("start", 0) : node.get("end")]
        found[node.outputs[0]] = np.asarray(sizes.prod(dtype=np.int64)) if node.op == "Size" else part
    return found


# ---------------------------------------------------------------- inference


def inferred(model: Model, shapes: Mapping[str, Shape] | None = None) -> dict[str, Info]:
    """What ONNX's rules say of every tensor, for inputs of these shapes, or with open sizes as the model names them.

    Without the package onnx, as engines that are loaded may do, onnxruntime says it.
    """
    small: dict[str, Constant] = {
        n: c for n, c in model.constants.items() if isinstance(c, np.ndarray) and c.size <= _INLINE
    }
    outputs = tuple(v for v in model.outputs if v.name not in model.constants)  # others hide what they are from ONNX
    proto, _ = message(replace(model, constants=small, outputs=outputs))
    for name in model.constants.keys() - small:
        constant: Any = model.constants[name]
        tensor = isinstance(constant, np.ndarray | SparseWeight)
        code, sizes = (code_of(constant.dtype), constant.shape) if tensor else (constant.data_type, constant.dims)
        declare(proto.graph.input.add(name=name), code, sizes)
    for value, found in zip(model.inputs, proto.graph.input):
        sizes = (shapes or {}).get(value.name, value.shape)
        if value.dtype is not None and sizes is not None:
            declare(found, code_of(value.dtype), sizes)
    for found in proto.graph.output:
        if found.type.HasField("tensor_type"):
            found.type.tensor_type.ClearField("shape")  # what exporters say there is not always so
    sized = replace(model, inputs=tuple(replace(v, proto=p) for v, p in zip(model.inputs, proto.graph.input)))
    with contextlib.suppress(Exception):  # the library that runs the model says what is wrong with it
        import onnx.shape_inference

        _correct_pools(proto)
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    graph = proto.graph
    infos = {v.name: _info(v.type) for v in (*graph.output, *graph.value_info, *graph.input)}
    for name, constant in small.items():
        infos[name] = Info(constant.dtype, constant.shape)
    written = [name for node in model.nodes for name in node.writes]
    unknown = [name for name in written if not has_onnx() or _unknown(infos.get(name))]
    if unknown and onnxruntime() is not None:
        infos.update(_by_session(sized, unknown))
    return infos


def _correct_pools(proto: Any) -> None:
    """Let pools with ceil_mode follow the rules of opset 22, as functions.

    The inference of those before counts windows that would begin behind the image.
    """
    import onnx

    pools = set()
    for node in proto.graph.node:
        ceil = any(a.name == "ceil_mode" and a.i for a in node.attribute)
        if node.op_type in _POOLS and not node.domain and len(node.output) == 1 and ceil:
            pools.add(node.op_type)
            node.domain = _CORRECTED
    for op in sorted(pools):
        attributes = onnx.defs.get_schema(op, 22).attributes
        function = proto.functions.add(name=op, domain=_CORRECTED, input=["x"], output=["y"], attribute=attributes)
        function.opset_import.add(domain="", version=22)
        inner = function.node.add(op_type=op, input=["x"], output=["y"])
        for name, attribute in attributes.items():
            inner.attribute.add(name=name, ref_attr_name=name, type=int(attribute.type))
    if pools:
        proto.opset_import.add(domain=_CORRECTED, version=1)


def _unknown(info: Info | None) -> bool:
    return info is None or info.proto is None or info.proto.WhichOneof("value") is None


def _by_session(model: Model, names: Sequence[str]) -> dict[str, Info]:
    """Types as onnxruntime finds them: it knows operators that ONNX does not have."""
    try:
        native = Session(model.part(model.nodes, [v.name for v in model.inputs], names), optimised=False).native
    except Exception:  # the model itself says why when it is compiled
        return {}
    found = {}
    for output in native.get_outputs():
        kind = output.type.removeprefix("tensor(").removesuffix(")")
        code = _KINDS.get(kind)
        if code is not None:
            value = type(model.header)().graph.output.add()
            declare(value, code, output.shape or None)  # [] is any rank
            found[output.name] = _info(value.type)
    return found


_KINDS = {"float": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "string": 8, "bool": 9,
          "float16": 10, "double": 11, "uint32": 12, "uint64": 13, "bfloat16": 16}  # fmt: skip


def _info(kind: Any) -> Info:
    if kind.WhichOneof("value") != "tensor_type":
        return Info(None, None, kind)
    tensor = kind.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param or None
            for d in tensor.shape.dim
        )
    return Info(TYPES.get(tensor.elem_type), shape, kind)


def check_sizes(model: Model, infos: Mapping[str, Info]) -> None:
    """Refuse tensors that this machine's memory does not hold, before any of it is taken; and pools that leave nothing
    of their image, which onnxruntime may die of.

    Raises
    ------
    FileFormatError
        Naming the node.
    """
    most, beforehand = _memory(), 0  # the library, too, computes what follows from constants before the model runs
    constants = {id(node) for node in from_constants(model)}
    for node in model.nodes:
        for info in filter(None, map(infos.get, node.writes)):
            shape = info.fixed
            if shape is None:
                continue
            if node.op in _POOLS and 0 in shape[2:]:
                raise FileFormatError(f"{node} makes an image of shape {shape}")
            beforehand += info.nbytes if id(node) in constants else 0
            if max(info.nbytes, beforehand) > most:
                raise FileFormatError(f"{node} makes a tensor of shape {shape}, which takes more than {most} bytes")


def _memory() -> int:
    """Bytes of this machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**36


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
