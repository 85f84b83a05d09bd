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
    PaddingMask,
    Pool,
    Reshape,
    Scale,
    Softmax,
    UnsupportedOperatorError,
)
from fastsparse.nn.activations import Activation
from fastsparse.onnx.engine import GraphEngine
from fastsparse.onnx.model import FLOATS, Array
from fastsparse.onnx.pruning import write_model
from fastsparse.onnx.reader import import_onnx
from fastsparse.onnx.sessions import extracted
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.pooling import Windows, windows
from fastsparse.runtime.atomic_file import PathLike

_OPSET, _IR = 17, 8
_INFERRED = 2**30  # bytes: the library copies the model to infer shapes
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
    given: Any = model
    if isinstance(given, GraphEngine):
        proto = _of_graph(given, sparse)
    elif isinstance(given, Engine):
        proto = _of_program(given, sparse)
    elif isinstance(given, nn.Module):
        proto = _of_module(given, sparse)
    else:
        kind = type(given).__name__
        raise TypeError(f"model is a {kind}, expected a model of fastsparse.nn or an engine of fastsparse.compile")
    write_model(proto, Path(os.fspath(path)), None)


class _Graph:
    """Nodes and constants of a model, gathered one by one."""

    def __init__(self, dtype: np.dtype[Any], sparse: bool) -> None:
        self.dtype, self.sparse = dtype, sparse
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.sparse_tensors: list[Any] = []

    def constant(self, array: Any, name: str, dtype: Any = None) -> str:
        """Name of a constant; floats get the model's type, or `dtype`."""
        from onnx import numpy_helper

        held = np.asarray(array)
        held = held.astype(dtype or self.dtype) if held.dtype.kind == "f" else held
        name = f"{name}.{len(self.tensors) + len(self.sparse_tensors)}"
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(held).reshape(held.shape), name))
        return name

    def weight(self, weight: CSR, shape: Sequence[int], name: str) -> str:
        """Name of a weight of any shape, whose rows are those of the matrix."""
        if not self.sparse or weight.density > 1 - _SPARSE:
            return self.constant(weight.toarray().reshape(shape), name)
        name = f"{name}.{len(self.tensors) + len(self.sparse_tensors)}"
        places = weight.pattern.rows() * weight.shape[1] + weight.indices
        self.sparse_tensors.append(_sparse_tensor(name, weight.data, places, shape))
        return name

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node's output."""
        from onnx import helper

        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def proto(self, inputs: Sequence[tuple[Any, Any]], output: str, sizes: Sequence[Any] | None) -> Any:
        """The model from inputs, "x" and so on, to "y"; inputs are shapes, and types other than the model's or None.

        Raises
        ------
        onnx.shape_inference.InferenceError
            When `sizes` is None and the nodes do not fit these inputs.
        """
        from onnx import helper, shape_inference

        element = helper.np_dtype_to_tensor_dtype
        kind = element(self.dtype)
        sources = [
            helper.make_tensor_value_info(
                _input(i), helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype)), shape
            )
            for i, (shape, dtype) in enumerate(inputs)
        ]
        y = helper.make_tensor_value_info("y", kind, sizes)
        nodes = [*self.nodes, helper.make_node("Identity", [output], ["y"], "y")]
        graph = helper.make_graph(
            nodes, "fastsparse", sources, [y], self.tensors, sparse_initializer=self.sparse_tensors
        )  # fmt: skip
        made = helper.make_model(graph, producer_name="fastsparse", opset_imports=[helper.make_opsetid("", _OPSET)])
        made.ir_version = _IR
        if sizes is None and made.ByteSize() < _INFERRED:
            held = [(tensor.values.name, tensor.dims) for tensor in self.sparse_tensors]
            dense = type(made)()  # sparse tensors cannot be inferred with
            dense.CopyFrom(made)
            del dense.graph.sparse_initializer[:]
            dense.graph.input.extend(helper.make_tensor_value_info(name, kind, dims) for name, dims in held)
            inferred = shape_inference.infer_shapes(dense, check_type=True, strict_mode=True)
            made.graph.output[0].CopyFrom(inferred.graph.output[0])  # with its shape
        return made

    # ---------------------------------------------------------------- what both kinds of models consist of

    def activation(self, name: str | None, x: str) -> str:
        """An activation by its name."""
        if name is None:
            return x
        if name in _ACTIVATIONS:
            op, attributes = _ACTIVATIONS[name]
            return self.node(op, [x], **attributes)
        number = self.constant
        if name == "relu6":
            return self.node("Clip", [x, number(0.0, "zero"), number(6.0, "six")])
        if name == "silu":
            return self.node("Mul", [x, self.node("Sigmoid", [x])])
        if name == "gelu":
            inner = self.node("Erf", [self.node("Mul", [x, number(math.sqrt(0.5), "factor")])])
        elif name == "gelu_tanh":
            cube = self.node("Mul", [self.node("Mul", [self.node("Mul", [x, x]), x]), number(0.044715, "factor")])
            outer = self.node("Mul", [self.node("Add", [x, cube]), number(math.sqrt(2 / math.pi), "factor")])
            inner = self.node("Tanh", [outer])
        else:
            raise UnsupportedOperatorError(f"activation {name!r} cannot be written to ONNX")
        half = self.node("Mul", [x, number(0.5, "half")])
        return self.node("Mul", [half, self.node("Add", [inner, number(1.0, "one")])])

    def conv(self, x: str, weight: CSR | Array, bias: Array | None, g: Any, name: str) -> str:
        """A convolution of the geometry `g`, or of a layer's."""
        shape = (g.out_channels, g.in_channels // g.groups, *g.kernel_size)
        held = self.weight(weight, shape, f"{name}.weight") if isinstance(weight, CSR) else self.constant(weight, name)
        inputs = [x, held, *([] if bias is None else [self.constant(bias, f"{name}.bias")])]
        pads = [pair[0] for pair in g.padding] + [pair[1] for pair in g.padding]
        window = {"kernel_shape": g.kernel_size, "strides": g.stride, "pads": pads, "dilations": g.dilation}
        return self.node("Conv", inputs, group=g.groups, **window)

    def linear(self, x: str, weight: CSR | Array, bias: Array | None, name: str) -> str:
        """x (..., in) @ weight.T + bias."""
        if isinstance(weight, CSR):
            held = self.weight(weight.T, weight.shape[::-1], f"{name}.weight")
        else:
            held = self.constant(weight.T, f"{name}.weight")
        y = self.node("MatMul", [x, held])
        return y if bias is None else self.node("Add", [y, self.constant(bias, f"{name}.bias")])

    def lookup(self, table: Array, positions: Array | None, x: str) -> str:
        """Rows of a table."""
        y = self.node("Gather", [self.constant(table, "embedding"), x])
        return y if positions is None else self.node("Add", [y, self.constant(positions, "positions")])

    def row_norm(self, x: str, scale: Array, shift: Array | None, eps: float, name: str) -> str:
        """Layer norm, or without a shift the root mean square norm, over the last axes."""
        gamma = self.constant(scale, name)
        if shift is not None:
            return self.node(
                "LayerNormalization", [x, gamma, self.constant(shift, name)], axis=-scale.ndim, epsilon=eps
            )
        square = self.node("ReduceMean", [self.node("Mul", [x, x])], axes=list(range(-scale.ndim, 0)), keepdims=1)
        root = self.node("Sqrt", [self.node("Add", [square, self.constant(eps, "eps")])])
        return self.node("Mul", [self.node("Div", [x, root]), gamma])

    def attention(
        self, q: str, k: str, v: str, heads: int, width: int, causal: Sequence[int] | None = None,
        hidden: str | None = None,
    ) -> str:  # fmt: skip
        """Attention of heads of (N, tokens, width); `causal` are the numbers of queries and keys.

        hidden : booleans (N, keys), True where a key is padding
        """

        def split(x: str, perm: Sequence[int]) -> str:
            sizes = self.constant(np.array([0, 0, heads, width // heads], np.int64), "heads")
            return self.node("Transpose", [self.node("Reshape", [x, sizes])], perm=perm)

        scores = self.node("MatMul", [split(q, (0, 2, 1, 3)), split(k, (0, 2, 3, 1))])
        scores = self.node("Mul", [scores, self.constant((width // heads) ** -0.5, "scale")])
        if causal is not None:
            queries, keys = causal
            unseen = np.arange(keys) > np.maximum(0, np.arange(queries)[:, None] + keys - queries)
            scores = self.node("Add", [scores, self.constant(np.where(unseen, -np.inf, 0.0), "unseen")])
        if hidden is not None:  # a finite number: where a query sees no key, zeros follow and not NaN
            hidden = self.node("Unsqueeze", [hidden, self.constant(np.array([1, 2]), "axes")])
            lowest = self.constant(float(np.finfo(self.dtype).min), "lowest")
            scores = self.node("Where", [hidden, lowest, scores])
        shares = self.node("Softmax", [scores], axis=-1)
        if hidden is not None:
            shares = self.node("Where", [hidden, self.constant(0.0, "zero"), shares])
        mixed = self.node("MatMul", [shares, split(v, (0, 2, 1, 3))])
        flat = self.constant(np.array([0, 0, width], np.int64), "joined")
        return self.node("Reshape", [self.node("Transpose", [mixed], perm=(0, 2, 1, 3)), flat])


_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}), "sigmoid": ("Sigmoid", {}), "tanh": ("Tanh", {}), "hardswish": ("HardSwish", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.01}), "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
}  # fmt: skip


def _sparse_tensor(name: str, values: Array, places: Array, shape: Sequence[int]) -> Any:
    from onnx import helper, numpy_helper

    return helper.make_sparse_tensor(
        numpy_helper.from_array(np.ascontiguousarray(values), name),
        numpy_helper.from_array(np.ascontiguousarray(places, np.int64), f"{name}.indices"),
        list(shape),
    )


# ---------------------------------------------------------------- engines


def _of_graph(engine: GraphEngine, sparse: bool) -> Any:
    """The ONNX model that an engine was compiled from, with what its reading made of it."""
    from onnx import numpy_helper

    model = engine._model
    names = [value.name for value in model.inputs], [value.name for value in model.outputs]
    proto, _ = extracted(model, model.nodes, *names, {})
    if not sparse:
        return proto
    dense = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    for tensor in dense:
        array = numpy_helper.to_array(tensor) if len(tensor.dims) > 1 else np.empty(0)
        if array.dtype not in FLOATS or np.count_nonzero(array) > (1 - _SPARSE) * array.size or not array.size:
            proto.graph.initializer.append(tensor)
            continue
        flat = array.reshape(-1)
        places = np.flatnonzero(flat)
        proto.graph.sparse_initializer.append(_sparse_tensor(tensor.name, flat[places], places, array.shape))
    return proto


def _of_program(engine: Engine, sparse: bool) -> Any:
    program = engine._program
    graph = _Graph(program.dtype, sparse)
    names = {}
    for i, (t, lookup) in enumerate(program.user_inputs()):
        names[t] = _input(i)
        if isinstance(lookup, Lookup):
            positions = lookup.positions
            names[t] = graph.lookup(
                lookup.table, None if positions is None else positions[: program.shapes[t][0]], _input(i)
            )  # fmt: skip
    for node in program.nodes:
        x, shape = names[node.inputs[0]], program.shapes[node.inputs[0]]
        operator, name = node.operator, node.name.partition(" ")[0]
        if isinstance(operator, (Conv, Linear)):
            if isinstance(operator, Conv):
                y = graph.conv(x, operator.weight, operator.bias, _Window(operator.geometry), name)
            else:
                y = graph.linear(x, operator.weight, operator.bias, name)
            if node.residual is not None:
                y = graph.node("Add", [_reshaped(graph, y, program.shapes[node.output]), names[node.residual]])
            y = graph.activation(operator.activation, y)
        elif isinstance(operator, Scale):
            sides = (-1, *(1,) * (len(shape) - 1))
            y = graph.node("Mul", [x, graph.constant(operator.scale.reshape(sides), f"{name}.scale")])
            y = graph.node("Add", [y, graph.constant(operator.shift.reshape(sides), f"{name}.shift")])
        elif isinstance(operator, Activate):
            y = graph.activation(operator.name, x)
        elif isinstance(operator, Pool):
            y = _pool(graph, x, operator, node.name)
        elif isinstance(operator, Add):
            y = graph.activation(operator.activation, graph.node("Add", [names[t] for t in node.inputs]))
        elif isinstance(operator, LayerNorm):
            y = graph.row_norm(x, operator.scale, operator.shift, operator.eps, name)
        elif isinstance(operator, Attention):
            q, k, v, *hidden = (names[t] for t in node.inputs)
            rows = [program.shapes[t][0] for t in node.inputs[:2]]
            y = graph.attention(q, k, v, operator.heads, shape[1], rows if operator.causal else None, *hidden)
        elif isinstance(operator, Interpolate):
            y = _interpolated(graph, x, operator.scale, name)
            if node.residual is not None:
                y = graph.node("Add", [y, names[node.residual]])
            y = graph.activation(operator.activation, y)
        elif isinstance(operator, Gather):
            flat = _reshaped(graph, x, (operator.blocks, math.prod(shape) // operator.blocks))
            y = graph.node("Gather", [flat, graph.constant(operator.index, name)], axis=2)
            y = _reshaped(graph, y, operator.shape)
        elif isinstance(operator, Softmax):
            y = graph.node("Softmax", [x], axis=-1)
        else:
            assert isinstance(operator, Reshape)
            y = _reshaped(graph, x, program.shapes[node.output])
        names[node.output] = y
    shape = program.shapes[program.outputs[0]]
    y = _reshaped(graph, names[program.outputs[0]], shape)
    kinds = {Lookup: np.int64, PaddingMask: np.bool_}
    made = [kinds.get(type(lookup)) for _, lookup in program.user_inputs()]
    inputs = [(("N", *sizes), kind) for sizes, kind in zip(program.user_shapes, made)]
    return graph.proto(inputs, y, ("N", *shape))


def _input(number: int) -> str:
    """Name of an input."""
    return f"x{number + 1}" if number else "x"


def _reshaped(graph: _Graph, x: str, shape: Sequence[int]) -> str:
    return graph.node("Reshape", [x, graph.constant(np.array([0, *shape], np.int64), "shape")])


class _Window:
    """A geometry under the names of layers."""

    def __init__(self, g: ConvGeometry) -> None:
        self.out_channels, self.in_channels, self.groups = g.out_channels, g.channels, g.groups
        self.kernel_size, self.stride, self.padding, self.dilation = g.kernel, g.stride, g.padding, g.dilation


def _pool(graph: _Graph, x: str, operator: Pool, name: str) -> str:
    found = operator.windows
    for counted in (True, False):
        axes = [_axis(found, axis, operator.kind == "max" or counted) for axis in (0, 1)]
        if axes[0] is None or axes[1] is None:
            continue
        kernel, stride, padding = zip(*[axis for axis in axes if axis is not None])
        attributes = {
            "kernel_shape": kernel, "strides": stride,
            "pads": [pair[0] for pair in padding] + [pair[1] for pair in padding],
        }  # fmt: skip
        if operator.kind == "max":
            return graph.node("MaxPool", [x], **attributes)
        return graph.node("AveragePool", [x], count_include_pad=int(counted), **attributes)
    raise UnsupportedOperatorError(f"layer {name} has windows of different sizes, which ONNX has no operator for")


def _axis(found: Windows, axis: int, counted: bool) -> tuple[int, int, tuple[int, int]] | None:
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
        return graph.activation(layer.activation, graph.node("Add", [ends[0], ends[1] if len(ends) > 1 else x]))
    if isinstance(layer, nn.Concat):
        branches = ((f"{name}.{i}" if name else str(i), branch) for i, branch in enumerate(layer.branches))
        ends = [x if branch is None else _layer(graph, branch, x, child) for child, branch in branches]
        return graph.node("Concat", ends, axis=1)
    for kinds, write in _LAYERS:
        if isinstance(layer, kinds):
            return write(graph, layer, x, name or "model")
    raise UnsupportedOperatorError(
        f"layer {name or 'model'} is a {type(layer).__name__}, which ONNX export does not know"
    )


def _bias(layer: Any) -> Array | None:
    return None if layer.bias is None else layer.bias.value


def _conv_layer(graph: _Graph, layer: Any, x: str, name: str) -> str:
    weight = layer.weight.value if isinstance(layer, nn.Conv2d) else layer.weight
    return graph.activation(layer.activation, graph.conv(x, weight, _bias(layer), layer, name))


def _conv_transpose(graph: _Graph, layer: Any, x: str, name: str) -> str:
    shape = (layer.in_channels, layer.out_channels // layer.groups, *layer.kernel_size)
    held = graph.weight(layer.weight, shape, f"{name}.weight")
    bias = _bias(layer)
    y = graph.node(
        "ConvTranspose", [x, held, *([] if bias is None else [graph.constant(bias, f"{name}.bias")])],
        kernel_shape=layer.kernel_size, strides=layer.stride, output_padding=layer.output_padding,
        pads=[pair[0] for pair in layer.padding] + [pair[1] for pair in layer.padding], dilations=layer.dilation,
        group=layer.groups,
    )  # fmt: skip
    return graph.activation(layer.activation, y)


def _upsample(graph: _Graph, layer: Any, x: str, name: str) -> str:
    if layer.mode != "nearest":
        return _interpolated(graph, x, layer.scale_factor, name)
    scales = graph.constant(np.array([1.0, 1.0, *layer.scale_factor]), name, np.float32)
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return graph.node("Resize", [x, "", scales], **how)


def _interpolated(graph: _Graph, x: str, scale: Sequence[int], name: str) -> str:
    scales = graph.constant(np.array([1.0, 1.0, *scale]), name, np.float32)
    return graph.node("Resize", [x, "", scales], mode="linear", coordinate_transformation_mode="half_pixel")


def _linear_layer(graph: _Graph, layer: Any, x: str, name: str) -> str:
    weight = layer.weight.value if isinstance(layer, nn.Linear) else layer.weight
    return graph.activation(layer.activation, graph.linear(x, weight, _bias(layer), name))


def _batch_norm(graph: _Graph, layer: Any, x: str, name: str) -> str:
    parts = (layer.weight.value, layer.bias.value, layer.running_mean, layer.running_var)
    inputs = [x, *(graph.constant(part, name) for part in parts)]
    return graph.node("BatchNormalization", inputs, epsilon=float(layer.eps))


def _layer_norm(graph: _Graph, layer: Any, x: str, name: str) -> str:
    return graph.row_norm(x, layer.weight.value, _bias(layer), layer.eps, name)


def _attention(graph: _Graph, layer: Any, x: str, name: str) -> str:
    if layer.causal:
        raise UnsupportedOperatorError(
            f"layer {name} is a causal MultiheadAttention, whose mask depends on the number of tokens: write the "
            "engine that fs.compile makes for one"
        )
    q, k, v = (_linear_layer(graph, getattr(layer, part), x, f"{name}.{part}") for part in ("query", "key", "value"))
    return _linear_layer(graph, layer.output, graph.attention(q, k, v, layer.num_heads, layer.embed_dim), name)


def _pool_layer(graph: _Graph, layer: Any, x: str, name: str) -> str:
    pads = [pair[0] for pair in layer.padding] + [pair[1] for pair in layer.padding]
    attributes = {"kernel_shape": layer.kernel_size, "strides": layer.stride, "pads": pads}
    if isinstance(layer, nn.MaxPool2d):
        return graph.node("MaxPool", [x], **attributes)
    return graph.node("AveragePool", [x], count_include_pad=1, **attributes)


def _adaptive_pool(graph: _Graph, layer: Any, x: str, name: str) -> str:
    if tuple(layer.output_size) != (1, 1):
        raise UnsupportedOperatorError(
            f"layer {name} is an AdaptiveAvgPool2d to {tuple(layer.output_size)}, which ONNX has for (1, 1) only: "
            "write the engine that fs.compile makes for one input shape"
        )
    return graph.node("GlobalAveragePool", [x])


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
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    ((nn.MultiheadAttention,), _attention),
    ((nn.MaxPool2d, nn.AvgPool2d), _pool_layer),
    ((nn.AdaptiveAvgPool2d,), _adaptive_pool),
    ((Activation,), lambda graph, layer, x, name: graph.activation(layer.activation, x)),
    ((nn.Softmax,), lambda graph, layer, x, name: graph.node("Softmax", [x], axis=-1)),
    ((nn.Flatten,), lambda graph, layer, x, name: graph.node("Flatten", [x])),
    ((nn.Dropout,), lambda graph, layer, x, name: x),
    ((nn.Embedding,), _embedding),
]  # fmt: skip
