"""Which nodes the kernels can run, and as which operators of a `Program`.

In a program a tensor is so many samples of a shape. Which, is its *form*: an image (N, C, H, W) is N samples of
(C, H, W), and what a linear layer reads, (..., K), is as many samples of (K,) as there are rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastsparse.csr import CSR
from fastsparse.engine.program import Activate, Add, Conv, Linear, Operator, Pool, Reshape, Scale, Shape
from fastsparse.onnx import weights
from fastsparse.onnx.model import Array, Constant, Node
from fastsparse.onnx.ops.elementwise import clip_limits
from fastsparse.onnx.ops.normalising import batch_norm_scale
from fastsparse.onnx.rewriting import per_channel
from fastsparse.onnx.specialise import Graph
from fastsparse.onnx.windows import Window, kernel_of, window
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.pooling import adaptive_windows, windows

_SMALL = 65536  # weights of a dense linear layer that the sparse kernels take, too, so that no layout changes

_ACTIVATIONS = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "HardSwish": "hardswish"}


@dataclass(frozen=True)
class Form:
    """How many samples a tensor is, and of which shape."""

    samples: int
    shape: Shape


@dataclass(frozen=True, eq=False)
class Lowered:
    """A node as the kernels run it. `operator` is None where nothing is to be done; `key` tells it from others."""

    operator: Operator | None
    source: Form
    target: Form
    key: Hashable
    starts: bool = False  # worth a program of its own


class Weights:
    """CSR matrices of constant weights, made once for all plans of an engine."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, str], tuple[Constant, CSR]] = {}

    def rows(self, weight: Constant) -> CSR:
        """CSR (shape[0], product of the rest)."""
        return self._get(weight, "rows")

    def columns(self, weight: Constant) -> CSR:
        """CSR (shape[1], shape[0])."""
        return self._get(weight, "columns")

    def _get(self, weight: Constant, way: str) -> CSR:
        found = self._made.get((id(weight), way))
        if found is None:  # the weight is kept, so that no other one gets its id
            found = weight, (weights.by_rows if way == "rows" else weights.by_columns)(weight)
            self._made[id(weight), way] = found
        return found[1]


class Lowering:
    """Lowers the nodes of one graph."""

    def __init__(self, graph: Graph, matrices: Weights) -> None:
        self.graph = graph
        self.matrices = matrices

    def lower(self, node: Node, form: Form | None) -> Lowered | None:
        """The node, when the kernels can run it on an input of this form, or, with None, of the form it likes best."""
        if len(node.outputs) != 1 or not node.inputs or not node.inputs[0]:
            return None
        infos = self.graph.infos
        x, y = infos[node.inputs[0]], infos[node.outputs[0]]
        if x.dtype not in weights.FLOATS or y.dtype != x.dtype or not x.size or not y.size:
            return None
        method = getattr(self, "_" + _METHODS[node.op], None) if node.op in _METHODS else None
        return None if method is None else method(node, form)

    # --- products ------------------------------------------------------------------------------

    def _conv(self, node: Node, form: Form | None) -> Lowered | None:
        x, y = self._shapes(node)
        weight, bias = self.graph.constant(node.inputs[1]), self._optional(node, 2)
        source, target = Form(x[0], x[1:]), Form(y[0], y[1:])
        missing = len(node.inputs) > 2 and node.inputs[2] and bias is None
        if weight is None or missing or form not in (None, source) or len(x) not in (3, 4, 5):
            return None
        found = window(node, x[2:], kernel_of(node, weight.shape))
        geometry = ConvGeometry(
            x[1], y[1], x[2:], found.kernel, found.stride, found.pads, found.dilation, int(node.get("group", 1))
        )
        matrix = self.matrices.rows(weight)
        dense = weights.density(weight) > weights.DENSEST
        key = "conv", id(matrix), _token(bias), geometry
        return Lowered(Conv(matrix, bias, geometry, None, dense), source, target, key, starts=True)

    def _gemm(self, node: Node, form: Form | None) -> Lowered | None:
        plain = not node.get("transA", 0) and node.get("alpha", 1.0) == 1 and node.get("beta", 1.0) == 1
        return self._product(node, form, bool(node.get("transB", 0))) if plain else None

    def _linear(self, node: Node, form: Form | None) -> Lowered | None:
        return self._product(node, form, by_rows=False)

    def _product(self, node: Node, form: Form | None, by_rows: bool) -> Lowered | None:
        x, y = self._shapes(node)
        source, target = Form(math.prod(x[:-1]), x[-1:]), Form(math.prod(y[:-1]), y[-1:])
        weight, bias = self.graph.constant(node.inputs[1]), self._optional(node, 2)
        if weight is None or form not in (None, source):
            return None
        if bias is None and len(node.inputs) > 2 and node.inputs[2]:
            return None
        bias = None if bias is None else per_channel(bias, y, len(y) - 1)
        if bias is None and len(node.inputs) > 2 and node.inputs[2]:
            return None
        dense = weights.density(weight) > weights.DENSEST
        if dense and math.prod(weight.shape) > _SMALL:
            return None
        matrix = self.matrices.rows(weight) if by_rows else self.matrices.columns(weight)
        key = "linear", id(matrix), _token(bias)
        return Lowered(Linear(matrix, bias, None, dense), source, target, key, starts=True)

    # --- what follows products -----------------------------------------------------------------

    def _activation(self, node: Node, form: Form | None) -> Lowered | None:
        name = self._activation_name(node)
        return None if name is None or form is None else Lowered(Activate(name), form, form, ("activate", name))

    def _activation_name(self, node: Node) -> str | None:
        if node.op == "LeakyRelu":
            return "leaky_relu" if abs(node.get("alpha", 0.01) - 0.01) < 1e-9 else None
        if node.op == "Gelu":
            return "gelu_tanh" if node.get("approximate", "none") == "tanh" else "gelu"
        if node.op == "Swish":
            return "silu" if node.get("alpha", 1.0) == 1 else None
        if node.op == "Clip":
            arrays = [self.graph.array(name) for name in node.inputs]
            unknown = any(name and array is None for name, array in zip(node.inputs[1:], arrays[1:]))
            if unknown:
                return None
            limits = [None if v is None else np.asarray(v) for v in clip_limits(node, arrays)]
            if any(v is not None and v.size != 1 for v in limits):
                return None
            low, high = (None if v is None else float(v.reshape(-1)[0]) for v in limits)
            if low != 0:
                return None
            return "relu" if high is None or high == np.inf else "relu6" if high == 6 else None
        return _ACTIVATIONS.get(node.op)

    def _batch_norm(self, node: Node, form: Form | None) -> Lowered | None:
        arrays = [None if i == 0 else self.graph.array(name) for i, name in enumerate(node.inputs)]
        x = self._shapes(node)[0]
        if form is None or form != Form(x[0], x[1:]) or any(a is None for a in arrays[1:]):
            return None
        scale, shift = batch_norm_scale(node, arrays)  # type: ignore[arg-type]
        return self._scale(form, scale, shift)

    def _arithmetic(self, node: Node, form: Form | None) -> Lowered | None:
        """Adding, subtracting, multiplying or dividing by a constant per channel."""
        if form is None or len(node.inputs) != 2 or (node.version < 7 and node.get("broadcast")):
            return None
        array = self.graph.array(node.inputs[1]) if self.graph.infos[node.inputs[1]].size <= _SMALL else None
        x, y = self._shapes(node)
        axis = len(x) - 1 if form == Form(math.prod(x[:-1]), x[-1:]) else 1
        if array is None or x != y or form.shape[:1] != x[axis : axis + 1] or form.samples != math.prod(x[:axis]):
            return None
        vector = per_channel(array, x, axis)
        if vector is None or (node.op == "Div" and not vector.all()):
            return None
        wide = vector.astype(np.float64)
        ones, zeros = np.ones_like(wide), np.zeros_like(wide)
        scale, shift = {
            "Add": (ones, wide),
            "Sub": (ones, -wide),
            "Mul": (wide, zeros),
            "Div": (1 / np.where(wide == 0, 1, wide), zeros),
        }[node.op]
        return self._scale(form, scale, shift)

    def _scale(self, form: Form, scale: Array, shift: Array) -> Lowered:
        return Lowered(Scale(scale, shift), form, form, ("scale", _token(scale), _token(shift)))

    def lower_sum(self, node: Node, form: Form) -> Lowered | None:
        """The sum of two tensors of one shape, both of this form."""
        a, b, y = (self.graph.infos[name] for name in (*node.inputs, *node.outputs))
        fits = a.shape == b.shape == y.shape and a.dtype == b.dtype and a.dtype in weights.FLOATS and y.size
        if not fits or node.inputs[0] == node.inputs[1]:
            return None
        return Lowered(Add(), form, form, ("add",))

    # --- pooling -------------------------------------------------------------------------------

    def _pool(self, node: Node, form: Form | None) -> Lowered | None:
        x, y = self._shapes(node)
        if len(x) != 4:
            return None
        source, target = Form(x[0], x[1:]), Form(y[0], y[1:])
        found: Window = window(node, x[2:])
        if form not in (None, source) or set(found.dilation) != {1}:
            return None
        if any(k <= max(pad) for k, pad in zip(found.kernel, found.pads)):
            return None
        counted = node.op == "MaxPool" or bool(node.get("count_include_pad", 0))
        spatial, kernel, stride, pads = x[2:], found.kernel, found.stride, found.pads
        tables = windows(spatial, kernel, stride, pads, count_padding=counted)
        if tables.out_spatial != y[2:]:  # windows over the edge, which ceil_mode makes
            return None
        kind = "max" if node.op == "MaxPool" else "mean"
        return Lowered(Pool(kind, tables), source, target, ("pool", kind, counted, found), starts=True)

    def _global_pool(self, node: Node, form: Form | None) -> Lowered | None:
        x, y = self._shapes(node)
        if len(x) != 4 or len(y) != 4 or form not in (None, Form(x[0], x[1:])):
            return None
        source, target = Form(x[0], x[1:]), Form(y[0], y[1:])
        if node.op == "ReduceMean" and (y != (*x[:2], 1, 1) or math.prod(x[2:]) == 1):
            return None
        tables = adaptive_windows((x[2], x[3]), (1, 1))
        return Lowered(Pool("mean", tables), source, target, ("global mean",), starts=True)

    # --- shapes --------------------------------------------------------------------------------

    def _reshape(self, node: Node, form: Form | None) -> Lowered | None:
        y = self._shapes(node)[1]
        if form is None or not y:
            return None
        if len(form.shape) == 1 and form == Form(math.prod(y[:-1]), y[-1:]):
            return Lowered(None, form, form, ("same",))
        flat = Form(form.samples, (math.prod(form.shape),))
        if len(form.shape) > 1 and y == (flat.samples, *flat.shape):
            return Lowered(Reshape(), form, flat, ("flatten",))
        return None

    def _nothing(self, node: Node, form: Form | None) -> Lowered | None:
        return None if form is None else Lowered(None, form, form, ("same",))

    # --- helpers -------------------------------------------------------------------------------

    def _shapes(self, node: Node) -> tuple[Shape, Shape]:
        return self.graph.infos[node.inputs[0]].shape, self.graph.infos[node.outputs[0]].shape

    def _optional(self, node: Node, position: int) -> Array | None:
        return self.graph.array(node.inputs[position]) if position < len(node.inputs) else None


def _token(array: Array | None) -> Any:
    """What tells the numbers of a small array from others."""
    if array is None:
        return None
    return array.shape, array.dtype.str, hashlib.blake2b(np.ascontiguousarray(array).tobytes()).digest()


_METHODS = {
    "Conv": "conv", "Gemm": "gemm", "fastsparse.Linear": "linear", "BatchNormalization": "batch_norm",
    **dict.fromkeys(
        ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "Gelu", "Swish", "HardSwish"), "activation"
    ),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), "arithmetic"),
    **dict.fromkeys(("MaxPool", "AveragePool"), "pool"),
    **dict.fromkeys(("GlobalAveragePool", "ReduceMean"), "global_pool"),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), "reshape"),
    **dict.fromkeys(("Identity", "Dropout"), "nothing"),
}  # fmt: skip
