"""What is known of tensors before a model runs: types, shapes, and the numbers of all that follows from constants."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastsparse.files import FileFormatError
from fastsparse.onnx.model import TYPES, Array, Constant, Model, Node, Shape, SparseWeight, code_of, dense
from fastsparse.onnx.sessions import Session, declare, extracted, has_onnx, onnxruntime

_INLINE = 1024  # numbers up to which shapes may depend on a constant
LARGEST = 2**28  # bytes of a tensor that is computed before a model runs
_POOLS, _CORRECTED = ("MaxPool", "AveragePool", "LpPool"), "corrected"
_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
# Weights behind these stay as they are: the library has kernels for them.
_QUANTISED = ("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "com.microsoft.DequantizeLinear")


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


def inferred(model: Model, shapes: Mapping[str, Shape] | None = None) -> dict[str, Info]:
    """What ONNX's rules say of every tensor, for inputs of these shapes, or with open sizes as the model names them.

    Without the package onnx, as engines that are loaded may do, onnxruntime says it.
    """
    small: dict[str, Constant] = {
        n: c for n, c in model.constants.items() if isinstance(c, np.ndarray) and c.size <= _INLINE
    }
    lean = Model(model.nodes, small, model.inputs, model.outputs, model.header)
    large = [n for n in model.constants if n not in small]
    outputs = [v.name for v in model.outputs if v.name not in model.constants]  # others hide what they are from ONNX
    proto, _ = extracted(lean, model.nodes, [v.name for v in model.inputs], outputs, {})
    for name in large:
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
        inputs = [v.name for v in model.inputs]
        native = Session(model, model.nodes, inputs, list(dict.fromkeys(names)), {}, optimised=False).native
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


class Constants:
    """The numbers of constants, and of all that nodes compute from constants alone."""

    def __init__(self, model: Model, infos: Mapping[str, Info]) -> None:
        self.model, self.infos = model, infos
        self.nodes: list[Node] = []  # that read constants alone
        names = set(model.constants)
        for node in model.nodes:
            if names.issuperset(node.reads) and _foldable(node):
                names.update(node.writes)
                self.nodes.append(node)
        self.names = names
        self._folded: dict[str, Array] | None = None

    def get(self, name: str) -> Constant | None:
        """A constant as it is kept; None where the tensor is none, or of a type that NumPy does not have."""
        if not name or name not in self.names:
            return None
        found = self.model.constants.get(name)
        if found is None:
            if self._folded is None:
                self._folded = self._evaluated()
            found = self._folded.get(name)
        return found if isinstance(found, np.ndarray | SparseWeight) else None

    def array(self, name: str) -> Array | None:
        """A constant with its zeros."""
        found = self.get(name)
        return None if found is None else dense(found)

    def number(self, name: str) -> Any:
        """A constant of any type, computed now if need be."""
        found = self.array(name)
        if found is not None:
            return found
        constant = self.model.constants.get(name)
        if constant is not None:
            from onnx import numpy_helper

            return numpy_helper.to_array(constant)
        try:
            return Session(self.model, self.before([], [name]), [], [name], {}).run({})[0]
        except ValueError as error:
            raise FileFormatError(f"{name!r} follows from constants, and {error}") from error

    def before(self, nodes: Sequence[Node], outputs: Sequence[str] = ()) -> list[Node]:
        """The nodes that compute what these nodes read of constants."""
        wanted = {name for node in nodes for name in node.reads} | set(outputs)
        chosen = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.writes):
                chosen.append(node)
                wanted.update(node.reads)
        return chosen[::-1]

    def _evaluated(self) -> dict[str, Array]:
        inside = {id(node) for node in self.nodes}
        others = [node for node in self.model.nodes if id(node) not in inside]
        wanted = {name for node in others for name in node.reads} | {v.name for v in self.model.outputs}
        names = [n for node in self.nodes for n in node.writes if n in wanted and self._is_bounded(n)]
        every = [n for node in self.before([], names) for n in node.writes]
        if not all(map(self._is_bounded, every)) or sum(map(self._size, every)) > LARGEST:
            return {}
        return {name: a for name, a in self.computed(names).items() if isinstance(a, np.ndarray)}

    def computed(self, names: Sequence[str]) -> dict[str, Any]:
        """What follows from constants; nothing where it cannot be computed, which is said when the model runs."""
        try:
            session = Session(self.model, self.before([], names), [], names, {}, optimised=False)
            return dict(zip(names, session.run({}))) if names else {}
        except (ValueError, NotImplementedError):
            return {}

    def _is_bounded(self, name: str) -> bool:
        info = self.infos.get(name)
        if info is None or info.dtype is None or info.fixed is None or info.dtype == object:
            return False
        return self._size(name) <= LARGEST

    def _size(self, name: str) -> int:
        info = self.infos[name]
        return math.prod(info.fixed or ()) * (info.dtype.itemsize if info.dtype is not None else 1)


def _foldable(node: Node) -> bool:
    return not node.captured and node.op not in (*_RANDOM, *_QUANTISED)


def check_sizes(model: Model, infos: Mapping[str, Info]) -> None:
    """Refuse tensors that this machine's memory does not hold, before any of it is taken; and pools that leave nothing
    of their image, which onnxruntime may die of.

    Raises
    ------
    FileFormatError
        Naming the node.
    """
    most, folded = _memory(), 0
    constants = {id(node) for node in Constants(model, infos).nodes}
    for node in model.nodes:
        for name in node.writes:
            info = infos.get(name)
            shape = info.fixed if info is not None else None
            if node.op in _POOLS and shape is not None and 0 in shape[2:]:
                raise FileFormatError(f"{node} makes an image of shape {shape}")
            if info is not None and shape is not None:
                size = math.prod(shape) * (info.dtype.itemsize if info.dtype is not None else 1)
                folded += size if id(node) in constants else 0
                if max(size, folded) > most:
                    raise FileFormatError(f"{node} makes a tensor of shape {shape}, which takes more than {most} bytes")


def _memory() -> int:
    """Bytes of this machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**36
