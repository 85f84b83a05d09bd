"""Which nodes the kernels can run, as which operators of a `Program`, and regions of them, which are programs.

In a program a tensor is so many samples of a shape. Which, is its *form*: an image (N, C, H, W) is N samples of
(C, H, W), and what a linear layer reads, (..., K), is as many samples of (K,) as there are rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastsparse.csr import CSR, csr
from fastsparse.engine.program import (
    Activate,
    Add,
    Concat,
    Conv,
    Gate,
    Gather,
    Linear,
    Operator,
    Pool,
    Program,
    Reshape,
    Scale,
    Shape,
)
from fastsparse.engine.program import Node as ProgramNode
from fastsparse.engine.resampling import interpolated, repeated, transposed
from fastsparse.onnx.estimates import Costs
from fastsparse.onnx.folding import Info, inferred
from fastsparse.onnx.model import FLOATS, HALF, Array, Constant, Model, Node, SparseWeight, Value, dense, density
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.pooling import adaptive_windows, windows

SAME = ("SAME_UPPER", "SAME_LOWER")  # of auto_pad
_LARGEST = 2**31 - 1
_LARGEST_VECTOR = 65536  # channels that are scaled one by one, or sizes of an image with windows
_LARGEST_GATHER = 2**23  # numbers of an image whose indices are written down
_SLOPE = 1 / 6  # of the hard sigmoid that the kernels have


@dataclass(frozen=True)
class Form:
    """How many samples a tensor is, and of which shape."""

    samples: int
    shape: Shape


@dataclass(frozen=True, eq=False)
class Lowered:
    """A node as the kernels run it.

    operator : None where nothing is to be done.
    source : of the tensor it reads, the first of several.
    sparse : whether it multiplies by a sparse weight.
    """

    operator: Operator | None
    source: Form
    target: Form
    sparse: bool = False
    others: tuple[Form, ...] = ()  # of further tensors that it reads
    before: tuple[tuple[Operator, Shape], ...] = ()  # what is applied to the tensor first, with the shapes of results
    beside: tuple[tuple[Operator, Shape], ...] = ()  # what else is applied to it: the operator reads both results
    swapped: bool = False  # the operator's first operand is the node's second

    @property
    def sources(self) -> tuple[Form, ...]:
        """Forms of the tensors that it reads, in the node's order."""
        return (self.source, *self.others)

    @property
    def product(self) -> Operator | None:
        """What multiplies by a sparse weight, or else the operator."""
        return self.before[0][0] if self.sparse and self.before else self.operator

    @property
    def starts(self) -> bool:
        """Whether a region may begin with it."""
        return isinstance(self.product, Conv | Linear)


class Lowering:
    """Lowers the nodes of one model, for inputs of any shapes.

    infos : with open sizes
    shapes : of tensors for the shapes that the model is compiled for, as far as they are known
    """

    def __init__(self, model: Model, infos: Mapping[str, Info], shapes: Mapping[str, Shape], costs: Costs) -> None:
        self.model, self.infos, self.shapes, self.costs = model, infos, shapes, costs
        self._made: dict[Hashable, Any] = {}  # of constants, which the model keeps: for all plans of an engine

    def operand(self, node: Node) -> str:
        """The input that is no constant, of nodes that have only one such."""
        either = len(node.inputs) > 1 and node.op in ("Add", "Mul", "MatMul", "Gemm", "Einsum")
        return node.inputs[either and node.inputs[0] in self.model.constants] if node.inputs else ""

    def tensors(self, node: Node) -> tuple[str, ...]:
        """What a node reads that is no constant: several tensors where it joins them, else one."""
        names, others = node.inputs, {*node.inputs} - self.model.constants.keys()
        joins = node.op in _JOINS and node.version >= _JOINS[node.op] and len(others) == len(names)
        if joins and (len(names) == 2 or (node.op == "Concat" and len(names) > 2)):
            return names
        return (self.operand(node),)

    def shapes_behind(self, nodes: Sequence[Node], shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
        """Shapes of what nodes read and make, for their inputs' shapes."""
        if all(self.shapes.get(name) == shape for name, shape in shapes.items()):
            return self.shapes
        constants = {name: self.model.constants[name] for node in nodes for name in node.reads
                     if name in self.model.constants}  # fmt: skip
        inputs = tuple(Value(name, self._dtype(name), shape) for name, shape in shapes.items())
        outputs = tuple(Value(name, None, None) for name in nodes[-1].outputs)
        infos = inferred(Model(tuple(nodes), constants, inputs, outputs, self.model.header))
        return {name: info.fixed for name, info in infos.items() if info.fixed is not None}

    def lowered(self, node: Node, forms: Sequence[Form | None], shapes: Mapping[str, Shape]) -> Lowered | None:
        """The node, when the kernels can run it on tensors of these shapes and forms.

        Forms are how the region has the tensors; those with None are read from outside, in the form that the others, or
        the node, want.
        """
        names = self.tensors(node)
        dtypes = {self._dtype(name) for name in (*names, *node.outputs)}
        if len(node.outputs) != 1 or len(dtypes) != 1 or not dtypes.issubset((*FLOATS, HALF)):
            return None
        if not all(name in shapes for name in (*names, *node.outputs)):
            return None
        y, several = shapes[node.outputs[0]], [shapes[name] for name in names]
        if len(names) > 1:
            join = {"Concat": self._concat, "Mul": self._gate}.get(node.op, self._add)
            return join(node, forms, several, y) if any(forms) else None
        method: Callable[..., Lowered | None] | None = getattr(self, _METHODS.get(node.op, ""), None)
        if node.activation is not None:
            method = self._activation
        elif any(name and self.model.constant(name) is None for name in node.inputs if name != names[0]):
            return None
        return method(node, forms[0], several[0], y) if method and math.prod(several[0]) and math.prod(y) else None

    def kernel_dtype(self, name: str) -> np.dtype[Any]:
        """The type that kernels compute with, for a tensor: float32 for float16."""
        dtype = self._dtype(name)
        return np.dtype(np.float64) if dtype == np.float64 else np.dtype(np.float32)

    def _dtype(self, name: str) -> Any:
        info = self.infos.get(name)
        return None if info is None else info.dtype

    def _optional(self, node: Node, position: int) -> Array | None:
        """A constant input that may be left out."""
        return self.model.array(node.inputs[position]) if len(node.inputs) > position else None

    # --- weights -------------------------------------------------------------------------------

    def matrix(self, weight: Constant, transposed: bool = False, factor: float = 1.0) -> CSR:
        """CSR (shape[0], product of the rest) times a factor, or of the last two axes (shape[-1], shape[-2])."""
        return self._once(_matrix, weight, transposed, factor)

    def matrices(self, weight: Constant) -> list[CSR]:
        """Those of a weight of three axes."""
        return self._once(lambda weight: [csr(wide(matrix)) for matrix in dense(weight)], weight)

    def density(self, weight: Constant) -> float:
        """Share of elements that are not zero."""
        return self._once(density, weight)

    def is_sparse(self, weight: Constant) -> bool:
        """Whether the sparse kernels are made for it."""
        return self.density(weight) <= self.costs.densest and math.prod(weight.shape) >= self.costs.least

    def _once(self, make: Callable[..., Any], weight: Constant, *how: Any) -> Any:
        key = make.__qualname__, id(weight), *how
        if key not in self._made:
            self._made[key] = make(weight, *how)
        return self._made[key]

    # --- what joins tensors --------------------------------------------------------------------

    def _add(self, node: Node, forms: Sequence[Form | None], shapes: Sequence[Shape], y: Shape) -> Lowered | None:
        form = next(form for form in forms if form is not None)
        return Lowered(Add(), form, form, others=(form,)) if shapes[0] == shapes[1] else None

    def _concat(self, node: Node, forms: Sequence[Form | None], shapes: Sequence[Shape], y: Shape) -> Lowered | None:
        """Channels of images, or features of rows."""
        axis = int(node.get("axis", 1)) % len(y) if y else 0
        if axis not in (1, len(y) - 1) or len(y) < 2:
            return None
        parts = [Form(math.prod(shape[:axis]), shape[axis:]) for shape in shapes]
        return Lowered(Concat(), parts[0], Form(parts[0].samples, y[axis:]), others=tuple(parts[1:]))

    def _gate(self, node: Node, forms: Sequence[Form | None], shapes: Sequence[Shape], y: Shape) -> Lowered | None:
        """A number per channel times an image."""
        rank = len(shapes[0])
        at = next((i for i in (1, 0) if set(shapes[i][2:]) == {1}), None)
        if rank < 3 or at is None or len(shapes[1]) != rank or shapes[0][:2] != shapes[1][:2]:
            return None
        g, x = shapes[at], shapes[1 - at]
        image, flat = Form(x[0], x[1:]), Form(g[0], g[1:2])
        gate = flat if forms[at] == flat else Form(g[0], g[1:])
        both = (gate, image) if at == 0 else (image, gate)
        return Lowered(Gate(), both[0], image, others=both[1:], swapped=at == 0)

    # --- products ------------------------------------------------------------------------------

    def _conv(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        source, weight, bias = Form(x[0], x[1:]), self.model.constant(node.inputs[1]), self._optional(node, 2)
        if weight is None or form not in (None, source) or len(x) not in (3, 4, 5):
            return None
        shape, groups = weight.shape, int(node.get("group", 1))
        if len(shape) != len(x) or groups < 1 or shape[1] * groups != x[1] or shape[0] % groups:
            return None
        found = window(node, x[2:], shape)
        if found is None or (bias is not None and bias.shape != shape[:1]):
            return None
        geometry = ConvGeometry(
            x[1], shape[0], x[2:], found.kernel, found.stride, found.pads, found.dilation, groups
        )  # fmt: skip
        if (x[0], shape[0], *geometry.out_spatial) != y:
            return None
        sparse = self.is_sparse(weight)
        operator = Conv(self.matrix(weight), None if bias is None else wide(bias), geometry, None, dense=not sparse)
        return Lowered(operator, source, Form(y[0], y[1:]), sparse)

    def _conv_transpose(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        source, weight, bias = Form(x[0], x[1:]), self.model.constant(node.inputs[1]), self._optional(node, 2)
        if weight is None or form not in (None, source) or len(x) not in (3, 4, 5) or len(weight.shape) != len(x):
            return None
        found, groups = window(node, y[2:], weight.shape), int(node.get("group", 1))
        if found is None or not self.is_sparse(weight):
            return None
        if node.get("auto_pad", "NOTSET") != "NOTSET" or node.get("output_shape"):  # pads follow from sizes
            return None
        if groups < 1 or x[1] % groups or weight.shape[0] != x[1] or y[:2] != (x[0], weight.shape[1] * groups):
            return None
        if (bias is not None and bias.shape != y[1:2]) or math.prod(y[1:]) > _LARGEST_GATHER:
            return None
        geometry = ConvGeometry(y[1], x[1], y[2:], found.kernel, found.stride, found.pads, found.dilation, groups)
        if geometry.out_spatial != x[2:]:
            return None
        bias = None if bias is None else wide(bias)
        *before, (operator, target) = transposed(self.matrix(weight), bias, geometry, None)
        return Lowered(operator, source, Form(x[0], target), True, before=tuple(before))

    def _gemm(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        from_left = node.inputs[0] in self.model.constants
        of_x, of_weight = ("transB", "transA") if from_left else ("transA", "transB")
        if len(x) != 2 or node.get(of_x, 0):
            return None
        return self._product(node, form, x, y, from_left != bool(node.get(of_weight, 0)))

    def _matmul(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        return self._product(node, form, x, y, node.inputs[0] in self.model.constants)

    def _product(self, node: Node, form: Form | None, x: Shape, y: Shape, by_rows: bool) -> Lowered | None:
        """x @ W, or W @ x by a sparse W: a 1x1 convolution whose channels are the rows of x.

        by_rows : whether a row of the weight is for an output
        """
        from_left = node.inputs[0] in self.model.constants
        weight, bias = self.model.constant(node.inputs[not from_left]), self._optional(node, 2)
        axis = -2 if from_left else -1  # of x and y, along which the weight is
        if weight is None or min(len(x), len(weight.shape)) < 2 or math.prod(weight.shape[:-2]) != 1:
            return None
        source, (rows, columns) = Form(math.prod(x[:axis]), x[axis:]), weight.shape[-2:][:: 1 if by_rows else -1]
        sparse, plain = self.is_sparse(weight), len(weight.shape) == 2
        if form not in (None, source) or columns != x[axis] or not (plain or isinstance(weight, np.ndarray)):
            return None
        if from_left and not (sparse and plain):
            return None
        if bias is not None:
            bias = per_channel(bias, y, len(y) + axis)
            if bias is None:
                return None
            bias = wide((bias * float(node.get("beta", 1.0))).astype(bias.dtype))
        matrix = self.matrix(weight, not by_rows, float(node.get("alpha", 1.0)))
        operator: Operator = Linear(matrix, bias, None, dense=not sparse)
        if from_left:
            geometry = ConvGeometry(columns, rows, x[-1:], (1,), (1,), ((0, 0),), (1,), 1)
            operator = Conv(matrix, bias, geometry, None, dense=False)
        return Lowered(operator, source, Form(source.samples, y[axis:]), sparse)

    def _einsum(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        """x @ W whose last axes are summed, for W of any axes in any order."""
        from_left = node.inputs[0] in self.model.constants
        if len(node.inputs) != 2:
            return None
        weight, found = self.model.constant(node.inputs[not from_left]), contraction(node.get("equation"), from_left)
        if weight is None or found is None or len(found.order) != len(weight.shape):
            return None
        outputs, inputs = y[len(y) - found.outputs :], x[len(x) - found.inputs :]
        if tuple(weight.shape[i] for i in found.order) != (*outputs, *inputs) or len(x) < found.inputs:
            return None
        source = Form(math.prod(x[: -found.inputs]), (math.prod(inputs),))
        if form not in (None, source) or x[: -found.inputs] != y[: -found.outputs]:
            return None
        sparse, target = self.is_sparse(weight), Form(source.samples, (math.prod(outputs),))
        matrix = self._once(_contracted, weight, found.order, target.shape[0])
        return Lowered(Linear(matrix, None, None, dense=not sparse), source, target, sparse)

    # --- what follows products -----------------------------------------------------------------

    def _activation(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        name = node.activation
        return None if form is None or name is None else Lowered(Activate(name), form, form)

    def _leaky(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        """relu(x) - slope * relu(-x), exactly; slopes are numbers per channel."""
        if form is None or (node.op == "PRelu" and (len(node.inputs) != 2 or node.version < 7)):
            return None
        slopes = self.model.array(node.inputs[1]) if node.op == "PRelu" else np.array(node.get("alpha", 0.01))
        axis = self._channel_axis(form, x)
        slope = None if slopes is None or axis is None else per_channel(slopes, x, axis)
        if slope is None or not np.isfinite(slope).all():
            return None
        none, relu = np.zeros(len(slope)), Activate("relu")
        negative = (Scale(none - 1, none), relu, Scale(-slope.astype(np.float64), none))
        beside = tuple((operator, form.shape) for operator in negative)
        return Lowered(Add(), form, form, before=((relu, form.shape),), beside=beside)

    def _hard_sigmoid(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        """Of any slope and offset: that of the kernels on a scaled operand."""
        if form is None or form.shape[0] > _LARGEST_VECTOR:
            return None
        slope, offset, ones = node.get("alpha", 0.2), node.get("beta", 0.5), np.ones(form.shape[0])
        scale = Scale(ones * (slope / _SLOPE), ones * ((offset - 0.5) / _SLOPE))
        return Lowered(Activate("hardsigmoid"), form, form, before=((scale, form.shape),))

    def _batch_norm(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        arrays = [self.model.array(name) for name in node.inputs[1:5]]
        if form is None or form != Form(x[0], x[1:]) or node.get("training_mode", 0) or not node.get("spatial", 1):
            return None
        if len(arrays) != 4 or any(a is None or a.shape != x[1:2] for a in arrays):
            return None
        gamma, beta, mean, variance = (np.asarray(a, np.float64) for a in arrays)
        scale = gamma / np.sqrt(variance + node.get("epsilon", 1e-5))
        return Lowered(Scale(scale, beta - mean * scale), form, form)

    def _arithmetic(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        """Adding, subtracting, multiplying or dividing by a constant per channel."""
        if form is None or len(node.inputs) != 2 or node.version < 7:
            return None
        name = self.operand(node)
        array = self.model.array(node.inputs[name == node.inputs[0]])
        axis = self._channel_axis(form, x)
        if array is None:
            return None
        vector = _per_feature(array, form, x) if axis is None else per_channel(array, x, axis)
        if vector is None or (node.op in ("Sub", "Div") and name != node.inputs[0]):
            return None
        if node.op == "Div" and not vector.all():
            return None
        wide = vector.astype(np.float64)
        if node.op in ("Add", "Sub"):
            return Lowered(Scale(np.ones_like(wide), wide if node.op == "Add" else -wide), form, form)
        return Lowered(Scale(wide if node.op == "Mul" else 1 / wide, np.zeros_like(wide)), form, form)

    def _channel_axis(self, form: Form, x: Shape) -> int | None:
        """The axis of a tensor along which a form has its channels."""
        if form.shape[0] > _LARGEST_VECTOR:
            return None
        axes = (len(x) - len(form.shape), 1)  # the second for features as images of one position
        return next((a for a in axes if x[a : a + 1] == form.shape[:1] and math.prod(x[:a]) == form.samples), None)

    # --- pooling -------------------------------------------------------------------------------

    def _pool(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        if len(x) != 4 or form not in (None, Form(x[0], x[1:])) or max(x) > _LARGEST_VECTOR:
            return None
        found = window(node, x[2:])
        if found is None or {*found.dilation} != {1} or any(k <= max(pad) for k, pad in zip(found.kernel, found.pads)):
            return None
        counted = node.op == "MaxPool" or bool(node.get("count_include_pad", 0))
        tables = windows(x[2:], found.kernel, found.stride, found.pads, count_padding=counted)
        if tables.out_spatial != y[2:]:  # windows over the edge, which ceil_mode makes
            return None
        kind = "max" if node.op == "MaxPool" else "mean"
        return Lowered(Pool(kind, tables), Form(x[0], x[1:]), Form(y[0], y[1:]))

    def _global_pool(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        if len(x) != 4 or form not in (None, Form(x[0], x[1:])) or y != (*x[:2], 1, 1):
            return None
        tables = adaptive_windows((x[2], x[3]), (1, 1))
        return Lowered(Pool("mean", tables), Form(x[0], x[1:]), Form(y[0], y[1:]))

    def _resize(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        """To a multiple: every position repeated, or interpolated between them."""
        scales, sizes = self._optional(node, 2), self._optional(node, 3)
        if len(x) < 3 or form not in (None, Form(x[0], x[1:])) or node.version < 11 or node.get("axes") is not None:
            return None
        mode, where = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
        rounded = node.get("nearest_mode", "round_prefer_floor")
        nearest = mode == "nearest" and ((where == "half_pixel" and rounded.startswith("round"))
                                         or (where, rounded) == ("asymmetric", "floor"))  # fmt: skip
        if not nearest and ((mode, where) != ("linear", "half_pixel") or node.get("antialias", 0)):
            return None
        wanted = np.divide(y, x) if sizes is not None and sizes.size else scales
        if wanted is None or wanted.shape != (len(x),) or (wanted[:2] != 1).any() or (wanted % 1).any():
            return None
        scale = tuple(int(n) for n in wanted[2:])
        if min(scale) < 1 or node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            return None
        if math.prod(y[1:]) > _LARGEST_GATHER:
            return None
        dtype = self.kernel_dtype(node.inputs[0])
        *before, (operator, target) = repeated(x[1:], scale) if nearest else interpolated(x[1:], scale, dtype)
        return Lowered(operator, Form(x[0], x[1:]), Form(x[0], target), before=tuple(before))

    def _depth_to_space(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        """Channels as positions."""
        n = int(node.get("blocksize", 0))
        if len(x) != 4 or form not in (None, Form(x[0], x[1:])) or n < 1 or math.prod(x[1:]) > _LARGEST_GATHER:
            return None
        channels, (height, width), by_channel = y[1], x[2:], node.get("mode", "DCR") == "CRD"
        if x[1] != n * n * channels:
            return None  # which the library refuses
        if by_channel:
            index = np.arange(n * n * height * width).reshape(n, n, height, width).transpose(2, 0, 3, 1)
        else:
            index = np.arange(math.prod(x[1:])).reshape(n, n, channels, height, width).transpose(2, 3, 0, 4, 1)
        gather = Gather(index.ravel(), channels if by_channel else 1, y[1:])
        return Lowered(gather, Form(x[0], x[1:]), Form(x[0], y[1:]))

    # --- shapes --------------------------------------------------------------------------------

    def _reshape(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        if form is None or not y:
            return None
        if len(form.shape) == 1 and y[:2] == (form.samples, *form.shape) and math.prod(y[2:]) == 1:
            return Lowered(None, form, form)  # features as an image of one position
        if len(form.shape) == 1 and form == Form(math.prod(y[:-1]), y[-1:]):
            return Lowered(None, form, form)
        flat = Form(form.samples, (math.prod(form.shape),))
        if len(form.shape) > 1 and y == (flat.samples, *flat.shape):
            return Lowered(Reshape(), form, flat)
        return None

    def _nothing(self, node: Node, form: Form | None, x: Shape, y: Shape) -> Lowered | None:
        training = self._optional(node, 2) if node.op == "Dropout" else None
        if form is None or (training is not None and training.any()):
            return None
        if node.op == "Dropout" and node.version < 7 and not node.get("is_test", 0):
            return None
        return Lowered(None, form, form)


# ---------------------------------------------------------------- regions


@dataclass(eq=False)
class Member:
    """A node of a region; `inside` are those of the tensors it reads that the region makes itself."""

    node: Node
    lowered: Lowered
    tensors: tuple[str, ...]
    inside: tuple[bool, ...]
    level: int

    @property
    def output(self) -> str:
        return self.node.outputs[0]


@dataclass(eq=False)
class Region:
    """Nodes that run as one program: tensors that it reads and writes."""

    members: list[Member]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    lowering: Lowering

    @property
    def nodes(self) -> list[Node]:
        return [member.node for member in self.members]

    @property
    def key(self) -> object:
        """What tells it from other regions of the graph."""
        return self.inputs, self.outputs, tuple(id(member.node) for member in self.members)

    def specialised(self, shapes: Mapping[str, Shape]) -> Specialised | None:
        """The program for inputs of these shapes; None where they do not fit what the kernels can run."""
        known, forms, made = self.lowering.shapes_behind(self.nodes, shapes), dict[str, Form](), dict[str, int]()
        tensors: list[Shape] = []
        sources: dict[tuple[str, Form], int] = {}
        nodes: list[ProgramNode] = []

        def number(shape: Shape) -> int:
            tensors.append(shape)
            return len(tensors) - 1

        def applied(name: str, way: Sequence[tuple[Operator, Shape]], x: int) -> int:
            for operator, shape in way:
                nodes.append(ProgramNode(name, operator, (x,), number(shape)))
                x = nodes[-1].output
            return x

        for member in self.members:
            node = member.node
            held = [forms[name] if within else None for name, within in zip(member.tensors, member.inside)]
            lowered = self.lowering.lowered(node, held, known)
            if lowered is None or any(h not in (None, form) for h, form in zip(held, lowered.sources)):
                return None
            reads = []
            for name, within, form in zip(member.tensors, member.inside, lowered.sources):
                if math.prod(known[name]) != form.samples * math.prod(form.shape):
                    return None
                key = name, form
                if not within and key not in sources:
                    sources[key] = number(form.shape)
                reads.append(made[name] if within else sources[key])
            forms[member.output] = lowered.target
            if lowered.operator is None:
                made[member.output] = reads[0]
                continue
            name = f"{node.name.replace(' ', '_')} {node.op.rpartition('.')[2]}"
            ways = [way for way in (lowered.before, lowered.beside) if way]
            reads = [applied(name, way, reads[0]) for way in ways] or reads
            made[member.output] = target = number(lowered.target.shape)
            nodes.append(ProgramNode(name, lowered.operator, tuple(reads[::-1] if lowered.swapped else reads), target))
        samples = {form.samples for _, form in sources} | {forms[name].samples for name in self.outputs}
        if len(samples) != 1:
            return None
        ends = tuple(sources.values()), tuple(made[name] for name in self.outputs)
        dtype = self.lowering.kernel_dtype(self.inputs[0])
        program = Program(tuple(tensors), *ends, tuple(nodes), dtype)
        results = [known[name] for name in self.outputs]
        return Specialised(program, samples.pop(), [name for name, _ in sources], results)


@dataclass(eq=False)
class Specialised:
    """A region's program for certain shapes: `inputs` are the names that it reads, `outputs` the results' shapes."""

    program: Program
    samples: int
    inputs: list[str]
    outputs: list[Shape]

    @property
    def key(self) -> object:
        """What tells the program from those of other shapes of the same region."""
        program = self.program
        nodes = tuple((type(node.operator), node.inputs, node.output) for node in program.nodes)
        return program.shapes, program.inputs, program.outputs, nodes


# ---------------------------------------------------------------- windows and constants


@dataclass(frozen=True)
class Window:
    """How a window moves, one entry per spatial axis."""

    kernel: Shape
    stride: Shape
    dilation: Shape
    pads: tuple[tuple[int, int], ...]


def window(node: Node, spatial: Sequence[int], weight: Sequence[int] | None = None) -> Window | None:
    """The window of a pooling, or of a convolution with a weight of this shape, on images of this size.

    None where the attributes describe none: the library says so in its own words.
    """
    axes = len(spatial)

    def numbers(name: str, count: int, default: int) -> Shape:
        return tuple(int(n) for n in node.get(name) or (default,) * count)

    named = numbers("kernel_shape", 0, 1)
    kernel = named if weight is None else tuple(weight[2:])
    stride, dilation, given = numbers("strides", axes, 1), numbers("dilations", axes, 1), numbers("pads", 2 * axes, 0)
    lengths = [*map(len, (kernel, stride, dilation, given))]
    if not axes or named not in ((), kernel) or lengths != [axes, axes, axes, 2 * axes]:
        return None
    if min(*kernel, *stride, *dilation) < 1 or min(given) < 0 or max(*kernel, *stride, *dilation, *given) > _LARGEST:
        return None
    auto, pads = node.get("auto_pad", "NOTSET"), []
    for n, k, d, s, pair in zip(spatial, kernel, dilation, stride, zip(given, given[axes:])):
        if auto in SAME:
            total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
            small, large = total // 2, total - total // 2
            pair = (small, large) if auto == "SAME_UPPER" else (large, small)
        pads.append((0, 0) if auto == "VALID" else pair)
    return Window(kernel, stride, dilation, tuple(pads))


def wide(array: Array) -> Array:
    """The array in a type that kernels compute with: float16 becomes float32."""
    return array if array.dtype in FLOATS else array.astype(np.float32)


def _matrix(weight: Constant, transposed: bool, factor: float) -> CSR:
    if isinstance(weight, SparseWeight):
        matrix = weight.matrix
    else:
        matrix = csr(wide(weight.reshape(weight.shape[-2:] if transposed else (len(weight), -1))))
    matrix = matrix.T if transposed else matrix
    return matrix if factor == 1 else matrix.with_data((matrix.data * factor).astype(matrix.dtype))


def _contracted(weight: Constant, order: Sequence[int], rows: int) -> CSR:
    """The weight with its axes in another order, as so many rows."""
    return csr(wide(dense(weight).transpose(order).reshape(rows, -1)))


@dataclass(frozen=True)
class Contraction:
    """How Einsum multiplies x (..., summed axes) by a weight.

    outputs, inputs : axes that y has from the weight, and axes that are summed
    order : axes of the weight, those of y first
    """

    outputs: int
    inputs: int
    order: tuple[int, ...]


def contraction(equation: Any, from_left: bool) -> Contraction | None:
    """What an equation of Einsum says of a weight, which may be the first operand; None where it is no x @ W."""
    operands, arrow, y = str(equation).replace(" ", "").partition("->")
    terms = operands.split(",")
    if not arrow or len(terms) != 2:
        return None
    weight, x = terms if from_left else terms[::-1]
    if x.startswith("...") and y.startswith("..."):
        x, y = x[3:], y[3:]
    if any(not term.isalpha() or len({*term}) != len(term) for term in (weight, x, y)):
        return None
    inputs, outputs = "".join(a for a in x if a in weight), "".join(a for a in y if a in weight)
    before = x[: len(x) - len(inputs)]
    if not inputs or not outputs or x != before + inputs or y != before + outputs:
        return None
    if sorted(inputs + outputs) != sorted(weight):
        return None
    return Contraction(len(outputs), len(inputs), tuple(weight.index(a) for a in outputs + inputs))


def _per_feature(array: Array, form: Form, shape: Shape) -> Array | None:
    """`array` as one number per feature of rows that are the last axes of a tensor of `shape`."""
    axes = next((a for a in range(1, len(shape)) if form == Form(math.prod(shape[:a]), (math.prod(shape[a:]),))), None)
    if axes is None or array.ndim > len(shape) or array.dtype.kind != "f" or form.shape[0] > _LARGEST_VECTOR:
        return None
    sizes = (1,) * (len(shape) - array.ndim) + array.shape
    if any(n != 1 for n in sizes[:axes]) or any(n not in (1, m) for n, m in zip(sizes, shape)):
        return None
    return np.ascontiguousarray(np.broadcast_to(array.reshape(sizes[axes:]), shape[axes:]).reshape(-1))


def per_channel(array: Array, shape: Shape, axis: int) -> Array | None:
    """`array` as one number per index along `axis` of a tensor of `shape`, when that is what it broadcasts to."""
    if array.ndim > len(shape) or array.dtype.kind != "f":
        return None
    sizes = (1,) * (len(shape) - array.ndim) + array.shape
    if any(n != 1 for i, n in enumerate(sizes) if i != axis) or sizes[axis] not in (1, shape[axis]):
        return None
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (shape[axis],)))


# Operators of several tensors, and the opset from which on they are as the kernels have them.
_JOINS = {"Concat": 4, "Add": 7, "Mul": 7, "Sum": 1}
# Names of the methods above; activations that the kernels have are known by what they compute.
_METHODS = {
    "Conv": "_conv", "ConvTranspose": "_conv_transpose", "Gemm": "_gemm", "MatMul": "_matmul", "Einsum": "_einsum",
    "BatchNormalization": "_batch_norm", "HardSigmoid": "_hard_sigmoid", "PRelu": "_leaky", "LeakyRelu": "_leaky",
    "Resize": "_resize", "DepthToSpace": "_depth_to_space",
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), "_arithmetic"),
    **dict.fromkeys(("MaxPool", "AveragePool"), "_pool"),
    **dict.fromkeys(("GlobalAveragePool", "ReduceMean"), "_global_pool"),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), "_reshape"),
    **dict.fromkeys(("Identity", "Dropout"), "_nothing"),
}  # fmt: skip
