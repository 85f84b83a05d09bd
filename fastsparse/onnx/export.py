"""Models and engines as ONNX files, for every runtime that reads them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastsparse import checks, nn
from fastsparse.csr import CSR
from fastsparse.engine.engine import Engine
from fastsparse.engine.program import (
    Activate,
    Add,
    Attention,
    Conv,
    Gather,
    Interpolate,
    LayerNorm,
    Linear,
    Lookup,
    Node,
    PaddingMask,
    Pool,
    Program,
    Reshape,
    Scale,
    Softmax,
    UnsupportedOperatorError,
)
from fastsparse.nn.activations import Activation
from fastsparse.onnx.engine import GraphEngine
from fastsparse.onnx.model import FLOATS, Array, copied
from fastsparse.onnx.pruning import write_model
from fastsparse.onnx.reader import import_onnx
from fastsparse.onnx.sessions import message
from fastsparse.onnx.writer import GraphWriter
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.pooling import Windows, windows
from fastsparse.runtime.atomic_file import PathLike

_INFERRED = 2**30  # bytes: the library copies the model to infer shapes
_NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
_LINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
_SPARSE = 0.5  # share of zeros from which on a weight is written as a sparse_initializer


def to_onnx(model: nn.Module | Engine | GraphEngine, path: PathLike, *, sparse: bool = False) -> None:
    """Write a model or an engine as an ONNX file (opset 17).

    Parameters
    ----------
    model : fs.nn.Module, or an engine that `fastsparse.compile` made
        A module is written as it runs in evaluation mode on one input, with sizes of images and batches left open; an
        engine as it is, with all its inputs, batch norm folded and activations fused. The first axis of inputs is
        called "N".
    path : path
        Replaced in one step when it exists. Weights go into a file beside it where they are too large for one.
    sparse : bool
        Write weights that are zero for at least one half as ``sparse_initializer``; otherwise with their zeros. Readers
        that do not know it refuse the file (onnxruntime reads it).

    Raises
    ------
    UnsupportedOperatorError
        Naming a layer that ONNX has no operator for, or when a module's layers do not fit one input; nothing has been
        written then.
    TypeError
        When `model` is something else.
    OSError
        When the file cannot be written; the old one is whole then.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np, fastsparse as fs
    >>> model = fs.nn.Sequential(fs.nn.SparseLinear(64, 32, activation="relu", rng=0), fs.nn.Linear(32, 10, rng=1))
    >>> x = np.ones((3, 64), np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fs.to_onnx(model, os.path.join(folder, "model.onnx"))
    ...     engine = fs.compile(os.path.join(folder, "model.onnx"))
    >>> np.allclose(engine(x), model.eval()(x), atol=1e-5)
    True
    """
    import_onnx()
    path, sparse = checks.path(path), checks.flag(sparse, "sparse")
    makers: list[tuple[type, Callable[[Any, bool], Any]]]
    makers = [(GraphEngine, _of_graph), (Engine, _of_program), (nn.Module, _of_module)]
    for kind, make in makers:
        if isinstance(model, kind):
            write_model(make(model, sparse), Path(os.fspath(path)), None)
            return
    found = type(model).__name__
    raise TypeError(f"model is a {found}, expected a model of fastsparse.nn or an engine of fastsparse.compile")


class _Graph(GraphWriter):
    """Writes layers and operators."""

    def __init__(self, dtype: np.dtype[Any], sparse: bool) -> None:
        super().__init__(dtype)
        self.sparse = sparse

    def weight(self, weight: CSR, shape: Sequence[int], name: str) -> str:
        """Name of a weight of any shape, whose rows are those of the matrix."""
        if not self.sparse or weight.density > 1 - _SPARSE:
            return self.constant(weight.toarray().reshape(shape), name)
        name = self.name(name)
        flat = weight.pattern.rows() * weight.shape[1] + weight.indices
        self.sparse_tensors.append(_sparse_tensor(name, weight.data, flat, shape))
        return name

    def proto(self, inputs: Sequence[tuple[Any, Any]], output: str, sizes: Sequence[Any] | None) -> Any:
        """The model from inputs, "x" and so on, to "y"; inputs are shapes, and types other than the model's or None.

        Raises
        ------
        onnx.shape_inference.InferenceError
            When `sizes` is None and the nodes do not fit these inputs.
        """
        from onnx import helper, shape_inference

        sources = [self.value(_input(i), shape, dtype or self.dtype) for i, (shape, dtype) in enumerate(inputs)]
        made = self.model(sources, [self.value("y", sizes, self.dtype)])
        made.graph.node.append(helper.make_node("Identity", [output], ["y"], "y"))
        if sizes is None and made.ByteSize() < _INFERRED:
            dense = copied(made)  # sparse tensors cannot be inferred with
            del dense.graph.sparse_initializer[:]
            dense.graph.input.extend(self.value(t.values.name, t.dims, self.dtype) for t in self.sparse_tensors)
            inferred = shape_inference.infer_shapes(dense, check_type=True, strict_mode=True)
            made.graph.output[0].CopyFrom(inferred.graph.output[0])  # with its shape
        return made

    # ---------------------------------------------------------------- what both kinds of models consist of

    def activation(self, name: str | None, x: str) -> str:
        """An activation by its name."""
        node = self.node
        if name is None:
            return x
        if name in _ACTIVATIONS:
            op, attributes = _ACTIVATIONS[name]
            return node(op, x, **attributes)
        if name == "relu6":
            return node("Clip", x, 0.0, 6.0)
        if name == "silu":
            return node("Mul", x, node("Sigmoid", x))
        if name == "gelu":
            inner = node("Erf", node("Mul", x, math.sqrt(0.5)))
        elif name == "gelu_tanh":
            cube = node("Mul", node("Mul", node("Mul", x, x), x), 0.044715)
            inner = node("Tanh", node("Mul", node("Add", x, cube), math.sqrt(2 / math.pi)))
        else:
            raise UnsupportedOperatorError(f"activation {name!r} cannot be written to ONNX")
        return node("Mul", node("Mul", x, 0.5), node("Add", inner, 1.0))

    def conv(self, x: str, weight: CSR | Array, bias: Array | None, g: Any, name: str) -> str:
        """A convolution of the geometry `g`, or of a layer's."""
        shape = (g.out_channels, g.in_channels // g.groups, *g.kernel_size)
        held = self.weight(weight, shape, f"{name}.weight") if isinstance(weight, CSR) else self.constant(weight, name)
        bias_name = None if bias is None else self.constant(bias, f"{name}.bias")
        window = _window(g.kernel_size, g.stride, g.padding)
        return self.node("Conv", x, held, bias_name, group=g.groups, dilations=g.dilation, **window)

    def linear(self, x: str, weight: CSR | Array, bias: Array | None, name: str) -> str:
        """x (..., in) @ weight.T + bias."""
        if isinstance(weight, CSR):
            held = self.weight(weight.T, weight.shape[::-1], f"{name}.weight")
        else:
            held = self.constant(weight.T, f"{name}.weight")
        y = self.node("MatMul", x, held)
        return y if bias is None else self.node("Add", y, self.constant(bias, f"{name}.bias"))

    def lookup(self, table: Array, positions: Array | None, x: str) -> str:
        """Rows of a table."""
        y = self.node("Gather", table, x)
        return y if positions is None else self.node("Add", y, positions)

    def row_norm(self, x: str, scale: Array, shift: Array | None, eps: float) -> str:
        """Layer norm, or without a shift the root mean square norm, over the last axes."""
        if shift is not None:
            return self.node("LayerNormalization", x, scale, shift, axis=-scale.ndim, epsilon=eps)
        square = self.node("ReduceMean", self.node("Mul", x, x), axes=list(range(-scale.ndim, 0)), keepdims=1)
        return self.node("Mul", self.node("Div", x, self.node("Sqrt", self.node("Add", square, eps))), scale)

    def interpolated(self, x: str, scale: Sequence[int], **how: str) -> str:
        """An image of a multiple of its size."""
        return self.node("Resize", x, "", self.constant([1.0, 1.0, *scale], "scale", np.float32), **how)

    def reshaped(self, x: str, shape: Sequence[int]) -> str:
        """The same numbers in another shape, behind the first axis."""
        return self.node("Reshape", x, np.array([0, *shape]))

    def attention(
        self, q: str, k: str, v: str, heads: int, width: int, causal: Sequence[int] | None = None,
        hidden: str | None = None,
    ) -> str:  # fmt: skip
        """Attention of heads of (N, tokens, width); `causal` are the numbers of queries and keys.

        hidden : booleans (N, keys), True where a key is padding
        """

        def split(x: str, perm: Sequence[int]) -> str:
            return self.node("Transpose", self.reshaped(x, (0, heads, width // heads)), perm=perm)

        scores = self.node("MatMul", split(q, (0, 2, 1, 3)), split(k, (0, 2, 3, 1)))
        scores = self.node("Mul", scores, (width // heads) ** -0.5)
        if causal is not None:
            queries, keys = causal
            unseen = np.arange(keys) > np.maximum(0, np.arange(queries)[:, None] + keys - queries)
            scores = self.node("Add", scores, np.where(unseen, -np.inf, 0.0))
        if hidden is not None:  # a finite number: where a query sees no key, zeros follow and not NaN
            hidden = self.node("Unsqueeze", hidden, np.array([1, 2]))
            scores = self.node("Where", hidden, float(np.finfo(self.dtype).min), scores)
        shares = self.node("Softmax", scores, axis=-1)
        if hidden is not None:
            shares = self.node("Where", hidden, 0.0, shares)
        mixed = self.node("MatMul", shares, split(v, (0, 2, 1, 3)))
        return self.reshaped(self.node("Transpose", mixed, perm=(0, 2, 1, 3)), (0, width))


_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}), "sigmoid": ("Sigmoid", {}), "tanh": ("Tanh", {}), "hardswish": ("HardSwish", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.01}), "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
}  # fmt: skip


def _sparse_tensor(name: str, values: Array, flat: Array, shape: Sequence[int]) -> Any:
    from onnx import helper, numpy_helper

    return helper.make_sparse_tensor(
        numpy_helper.from_array(np.ascontiguousarray(values), name),
        numpy_helper.from_array(np.ascontiguousarray(flat, np.int64), f"{name}.indices"),
        list(shape),
    )


def _window(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Attributes of windows."""
    pads = [pair[0] for pair in padding] + [pair[1] for pair in padding]
    return {"kernel_shape": kernel, "strides": stride, "pads": pads}


def _input(number: int) -> str:
    """Name of an input."""
    return f"x{number + 1}" if number else "x"


# ---------------------------------------------------------------- engines


def _of_graph(engine: GraphEngine, sparse: bool) -> Any:
    """The ONNX model that an engine was compiled from, with what its reading made of it."""
    from onnx import numpy_helper

    proto, _ = message(engine._model)
    if not sparse:
        return proto
    dense = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    for tensor in dense:
        array = numpy_helper.to_array(tensor) if len(tensor.dims) > 1 else np.empty(0)
        if array.dtype not in FLOATS or np.count_nonzero(array) > (1 - _SPARSE) * array.size or not array.size:
            proto.graph.initializer.append(tensor)
            continue
        flat = np.flatnonzero(array)
        proto.graph.sparse_initializer.append(_sparse_tensor(tensor.name, array.flat[flat], flat, array.shape))
    return proto


def _of_program(engine: Engine, sparse: bool) -> Any:
    program = engine._program
    graph, names, kinds = _Graph(program.dtype, sparse), dict[int, str](), list[Any]()
    for i, (t, lookup) in enumerate(program.user_inputs()):
        names[t] = _input(i)
        kinds.append({Lookup: np.int64, PaddingMask: np.bool_}.get(type(lookup)))
        if isinstance(lookup, Lookup):
            positions = None if lookup.positions is None else lookup.positions[: program.shapes[t][0]]
            names[t] = graph.lookup(lookup.table, positions, _input(i))
    for node in program.nodes:
        names[node.output] = _operator(graph, program, node, names)
    shape = program.shapes[program.outputs[0]]
    inputs = [(("N", *sizes), kind) for sizes, kind in zip(program.user_shapes, kinds)]
    return graph.proto(inputs, graph.reshaped(names[program.outputs[0]], shape), ("N", *shape))


def _operator(graph: _Graph, program: Program, node: Node, names: dict[int, str]) -> str:
    """The output of a program's node."""
    op, name, shape = node.operator, node.name.partition(" ")[0], program.shapes[node.inputs[0]]
    x, *others = (names[t] for t in node.inputs)
    if isinstance(op, Conv | Linear | Interpolate):
        if isinstance(op, Conv):
            y = graph.conv(x, op.weight, op.bias, _Geometry(op.geometry), name)
        elif isinstance(op, Linear):
            y = graph.linear(x, op.weight, op.bias, name)
        else:
            y = graph.interpolated(x, op.scale, **_LINEAR)
        if others:
            y = graph.node("Add", graph.reshaped(y, program.shapes[node.output]), *others)
        return graph.activation(op.activation, y)
    if isinstance(op, Scale):
        sides = (-1, *(1,) * (len(shape) - 1))
        return graph.node("Add", graph.node("Mul", x, op.scale.reshape(sides)), op.shift.reshape(sides))
    if isinstance(op, Activate):
        return graph.activation(op.name, x)
    if isinstance(op, Pool):
        return _pool(graph, x, op, node.name)
    if isinstance(op, Add):
        return graph.activation(op.activation, graph.node("Add", x, *others))
    if isinstance(op, LayerNorm):
        return graph.row_norm(x, op.scale, op.shift, op.eps)
    if isinstance(op, Attention):
        k, v, *hidden = others
        rows = [program.shapes[t][0] for t in node.inputs[:2]]
        return graph.attention(x, k, v, op.heads, shape[1], rows if op.causal else None, *hidden)
    if isinstance(op, Gather):
        flat = graph.reshaped(x, (op.blocks, math.prod(shape) // op.blocks))
        return graph.reshaped(graph.node("Gather", flat, op.index, axis=2), op.shape)
    if isinstance(op, Softmax):
        return graph.node("Softmax", x, axis=-1)
    assert isinstance(op, Reshape)
    return graph.reshaped(x, program.shapes[node.output])


class _Geometry:
    """A geometry under the names of layers."""

    def __init__(self, g: ConvGeometry) -> None:
        self.out_channels, self.in_channels, self.groups = g.out_channels, g.channels, g.groups
        self.kernel_size, self.stride, self.padding, self.dilation = g.kernel, g.stride, g.padding, g.dilation


def _pool(graph: _Graph, x: str, operator: Pool, name: str) -> str:
    """The pool of kernel, stride and padding that make an operator's windows."""
    found = operator.windows
    for counted in (True, False):
        axes = [_axis(found, axis, operator.kind == "max" or counted) for axis in (0, 1)]
        if None not in axes:
            window = _window(*zip(*axes))
            if operator.kind == "max":
                return graph.node("MaxPool", x, **window)
            return graph.node("AveragePool", x, count_include_pad=int(counted), **window)
    raise UnsupportedOperatorError(f"layer {name} has windows of different sizes, which ONNX has no operator for")


def _axis(found: Windows, axis: int, counted: bool) -> tuple[int, int, tuple[int, int]] | Any:
    """Kernel, stride and padding that make an axis' windows; None where there are none."""
    table, size = (found.rows, found.columns)[axis], found.spatial[axis]
    outputs, kernel = len(table), int(max((table[:, 1] - table[:, 0]).max(), table[:, 2].max() if counted else 0))
    strides = sorted({*np.diff(table[:, 0]).tolist(), *np.diff(table[:, 1]).tolist(), 1} - {0})
    for stride in strides:
        for before in range(kernel // 2 + 1):
            after = max(0, (outputs - 1) * stride + kernel - size - before)
            if after > kernel // 2:
                continue
            whole = ((0, 0), (before, after))
            made = windows((1, size), (1, kernel), (1, stride), whole, count_padding=counted).columns
            if np.array_equal(made, table):
                return kernel, stride, (before, after)
    return None


# ---------------------------------------------------------------- models


def _of_module(model: nn.Module, sparse: bool) -> Any:
    from onnx import shape_inference

    graph = _Graph(model.common_dtype(), sparse)
    output = _layer(graph, model, "x", "")
    first = _first(model)
    kind = np.int64 if isinstance(first, nn.Embedding) else None

    def proto(shape: Any) -> Any:
        try:
            return graph.proto([(shape, kind)], output, None)
        except shape_inference.InferenceError as error:
            return error

    made = proto(_open_shape(first))
    if isinstance(made, Exception):
        made = proto(None)  # linear layers take rows of more axes, too
    if isinstance(made, Exception):
        reason = " ".join(str(made).split())[:200]
        raise UnsupportedOperatorError(
            f"the layers do not fit one input ({reason}): of a model of several, write the engine that fs.compile makes"
        )
    return made


def _first(layer: nn.Module) -> nn.Module:
    """The layer that reads the input first."""
    while isinstance(layer, (nn.Sequential, nn.Residual)):
        children = [child for _, child in layer.children()]
        if not children:
            break
        layer = children[0]
    return layer


def _open_shape(layer: Any) -> list[Any] | None:
    """The shape that a first layer wants; None where it takes several."""
    if isinstance(layer, (nn.SparseConv1d, nn.SparseConv2d, nn.SparseConv3d, nn.Conv2d)):
        axes = len(layer.kernel_size)
        return ["N", layer.in_channels, *(("L",) if axes == 1 else tuple("DHW"[-axes:]))]
    if isinstance(layer, (nn.SparseLinear, nn.Linear)):
        return ["N", layer.in_features]
    if isinstance(layer, nn.BatchNorm2d):
        return ["N", layer.num_features, "H", "W"]
    if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
        return ["N", "C", "H", "W"]
    return None


def _layer(graph: _Graph, layer: Any, x: str, name: str) -> str:
    if isinstance(layer, nn.Sequential):
        for child, inner in layer.children():
            x = _layer(graph, inner, x, f"{name}.{child}" if name else child)
        return x
    if isinstance(layer, nn.Residual):
        children = dict(layer.children())
        ends = [_layer(graph, inner, x, f"{name}.{child}" if name else child) for child, inner in children.items()]
        return graph.activation(layer.activation, graph.node("Add", ends[0], ends[1] if len(ends) > 1 else x))
    if isinstance(layer, nn.Concat):
        branches = ((f"{name}.{i}" if name else str(i), branch) for i, branch in enumerate(layer.branches))
        ends = [x if branch is None else _layer(graph, branch, x, child) for child, branch in branches]
        return graph.node("Concat", *ends, axis=1)
    for kinds, write in _LAYERS:
        if isinstance(layer, kinds):
            return write(graph, layer, x, name or "model")
    raise UnsupportedOperatorError(
        f"layer {name or 'model'} is a {type(layer).__name__}, which ONNX export does not know"
    )


def _layer_window(layer: Any) -> dict[str, Any]:
    return _window(layer.kernel_size, layer.stride, layer.padding)


def _bias(layer: Any) -> Array | None:
    return None if layer.bias is None else layer.bias.value


def _conv_layer(graph: _Graph, layer: Any, x: str, name: str) -> str:
    weight = layer.weight.value if isinstance(layer, nn.Conv2d) else layer.weight
    return graph.activation(layer.activation, graph.conv(x, weight, _bias(layer), layer, name))


def _conv_transpose(graph: _Graph, layer: Any, x: str, name: str) -> str:
    shape = (layer.in_channels, layer.out_channels // layer.groups, *layer.kernel_size)
    y = graph.node(
        "ConvTranspose", x, graph.weight(layer.weight, shape, f"{name}.weight"), _bias(layer), group=layer.groups,
        output_padding=layer.output_padding, dilations=layer.dilation, **_layer_window(layer),
    )  # fmt: skip
    return graph.activation(layer.activation, y)


def _upsample(graph: _Graph, layer: Any, x: str, name: str) -> str:
    return graph.interpolated(x, layer.scale_factor, **(_NEAREST if layer.mode == "nearest" else _LINEAR))


def _linear_layer(graph: _Graph, layer: Any, x: str, name: str) -> str:
    weight = layer.weight.value if isinstance(layer, nn.Linear) else layer.weight
    return graph.activation(layer.activation, graph.linear(x, weight, _bias(layer), name))


def _batch_norm(graph: _Graph, layer: Any, x: str, name: str) -> str:
    parts = (layer.weight.value, layer.bias.value, layer.running_mean, layer.running_var)
    return graph.node("BatchNormalization", x, *parts, epsilon=float(layer.eps))


def _row_norm(graph: _Graph, layer: Any, x: str, name: str) -> str:
    return graph.row_norm(x, layer.weight.value, _bias(layer), layer.eps)


def _attention(graph: _Graph, layer: Any, x: str, name: str) -> str:
    if layer.causal:
        raise UnsupportedOperatorError(
            f"layer {name} is a causal MultiheadAttention, whose mask depends on the number of tokens: write the "
            "engine that fs.compile makes for one"
        )
    q, k, v = (_linear_layer(graph, getattr(layer, part), x, f"{name}.{part}") for part in ("query", "key", "value"))
    return _linear_layer(graph, layer.output, graph.attention(q, k, v, layer.num_heads, layer.embed_dim), name)


def _pool_layer(graph: _Graph, layer: Any, x: str, name: str) -> str:
    if isinstance(layer, nn.MaxPool2d):
        return graph.node("MaxPool", x, **_layer_window(layer))
    return graph.node("AveragePool", x, count_include_pad=1, **_layer_window(layer))


def _adaptive_pool(graph: _Graph, layer: Any, x: str, name: str) -> str:
    if tuple(layer.output_size) != (1, 1):
        raise UnsupportedOperatorError(
            f"layer {name} is an AdaptiveAvgPool2d to {tuple(layer.output_size)}, which ONNX has for (1, 1) only: "
            "write the engine that fs.compile makes for one input shape"
        )
    return graph.node("GlobalAveragePool", x)


def _embedding(graph: _Graph, layer: Any, x: str, name: str) -> str:
    if layer.position is not None:
        raise UnsupportedOperatorError(
            f"layer {name} is an Embedding with positions, which depend on the number of tokens: write the engine that "
            "fs.compile makes for one"
        )
    return graph.lookup(layer.weight.value, None, x)


_Write = Callable[[_Graph, Any, str, str], str]
_LAYERS: list[tuple[tuple[type[nn.Module], ...], _Write]] = [
    ((nn.SparseLinear, nn.Linear), _linear_layer),
    ((nn.SparseConv1d, nn.SparseConv2d, nn.SparseConv3d, nn.Conv2d), _conv_layer),
    ((nn.SparseConvTranspose2d,), _conv_transpose),
    ((nn.Upsample,), _upsample),
    ((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    ((nn.LayerNorm, nn.RMSNorm), _row_norm),
    ((nn.MultiheadAttention,), _attention),
    ((nn.MaxPool2d, nn.AvgPool2d), _pool_layer),
    ((nn.AdaptiveAvgPool2d,), _adaptive_pool),
    ((Activation,), lambda graph, layer, x, name: graph.activation(layer.activation, x)),
    ((nn.Softmax,), lambda graph, layer, x, name: graph.node("Softmax", x, axis=-1)),
    ((nn.Flatten,), lambda graph, layer, x, name: graph.node("Flatten", x)),
    ((nn.Dropout,), lambda graph, layer, x, name: x),
    ((nn.Embedding,), _embedding),
]  # fmt: skip
