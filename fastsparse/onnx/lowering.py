"""Which nodes the kernels can run, as which operators of a `Program`, and regions of them, which are programs.

In a program a tensor is so many samples of a shape. Which, is its *form*: an image (N, C, H, W) is N samples of
(C, H, W), and what a linear layer reads, (..., K), is as many samples of (K,) as there are rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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
from fastsparse.engine.resampling import interpolated, repeated
from fastsparse.onnx.estimates import Costs
from fastsparse.onnx.folding import Info
from fastsparse.onnx.model import FLOATS, HALF, Array, Model, Node, SparseWeight
from fastsparse.onnx.weights import Weights, wide
from fastsparse.onnx.windows import window
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.pooling import adaptive_windows, windows

_LARGEST_VECTOR = 65536  # channels that are scaled one by one, or sizes of an image with windows
_LARGEST_GATHER = 2**23  # numbers of an image whose indices are written down
_SLOPE = 1 / 6  # of the hard sigmoid that the kernels have


Steps = tuple[tuple[Operator, Shape], ...]


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
    shape : of the result, as ONNX has it.
    starts : whether a region may begin with it.
    sparse : whether it multiplies by a sparse weight.
    """

    operator: Operator | None
    source: Form
    target: Form
    shape: Shape
    starts: bool = False
    sparse: bool = False
    others: tuple[Form, ...] = ()  # of further tensors that it reads
    before: Steps = ()  # what is applied to the tensor first, with the shapes of results
    swapped: bool = False  # the operator's first operand is the node's second

    @property
    def sources(self) -> tuple[Form, ...]:
        """Forms of the tensors that it reads, in the node's order."""
        return (self.source, *self.others)


class Lowering:
    """Lowers the nodes of one model, for inputs of any shapes."""

    def __init__(self, model: Model, infos: Mapping[str, Info], costs: Costs) -> None:
        self.model = model
        self.infos = infos  # with open sizes
        self.weights = Weights(costs.densest, costs.least)

    def operand(self, node: Node) -> str:
        """The input that is no constant, of nodes that have only one such."""
        if (
            len(node.inputs) > 1
            and node.op in ("Add", "Mul", "MatMul", "Gemm")
            and node.inputs[0] in self.model.constants
        ):
            return node.inputs[1]
        return node.inputs[0] if node.inputs else ""

    def tensors(self, node: Node) -> tuple[str, ...]:
        """What a node reads that is no constant: several tensors where it joins them, else one."""
        names, others = node.inputs, {*node.inputs} - self.model.constants.keys()
        joins = node.op in _JOINS and node.version >= _JOINS[node.op] and len(others) == len(names)
        if joins and (len(names) == 2 or (node.op == "Concat" and len(names) > 2)):
            return names
        return (self.operand(node),)

    def lowered(self, node: Node, forms: Sequence[Form | None], shapes: Sequence[Shape]) -> Lowered | None:
        """The node, when the kernels can run it on tensors of these shapes and forms.

        Forms are how the region has the tensors; those with None are read from outside, in the form that the others, or
        the node, want.
        """
        names, several = self.tensors(node), len(shapes) > 1
        dtypes = {self._dtype(name) for name in (*names, *node.outputs)}
        if len(node.outputs) != 1 or len(dtypes) != 1 or not dtypes.issubset((*FLOATS, HALF)):
            return None
        if several:
            if not any(forms):
                return None
            return {"Concat": self._concat, "Mul": self._gate}.get(node.op, self._add)(node, forms, shapes)
        method = self._activation if node.activation is not None else getattr(self, _METHODS.get(node.op, ""), None)
        found: Lowered | None = (
            None if method is None or not math.prod(shapes[0]) else method(node, forms[0], shapes[0])
        )
        return found

    def _add(self, node: Node, forms: Sequence[Form | None], shapes: Sequence[Shape]) -> Lowered | None:
        form = next(form for form in forms if form is not None)
        return Lowered(Add(), form, form, shapes[0], others=(form,)) if shapes[0] == shapes[1] else None

    def _concat(self, node: Node, forms: Sequence[Form | None], shapes: Sequence[Shape]) -> Lowered | None:
        """Channels of images, or features of rows."""
        first, rank = shapes[0], len(shapes[0])
        axis = int(node.get("axis", 1)) % rank if rank else 0
        around = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
        if len(around) != 1 or any(len(shape) != rank for shape in shapes) or axis not in (1, rank - 1) or rank < 2:
            return None
        parts = [Form(math.prod(shape[:axis]), shape[axis:]) for shape in shapes]
        y = (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])
        target = Form(parts[0].samples, y[axis:])
        return Lowered(Concat(), parts[0], target, y, others=tuple(parts[1:]))

    def _gate(self, node: Node, forms: Sequence[Form | None], shapes: Sequence[Shape]) -> Lowered | None:
        """A number per channel times an image."""
        rank = len(shapes[0])
        at = next((i for i in (1, 0) if set(shapes[i][2:]) == {1}), None)
        if rank < 3 or at is None or len(shapes[1]) != rank or shapes[0][:2] != shapes[1][:2]:
            return None
        g, x = shapes[at], shapes[1 - at]
        image, flat = Form(x[0], x[1:]), Form(g[0], g[1:2])
        gate = flat if forms[at] == flat else Form(g[0], g[1:])
        both = (gate, image) if at == 0 else (image, gate)
        return Lowered(Gate(), both[0], image, x, others=both[1:], swapped=at == 0)

    def kernel_dtype(self, name: str) -> np.dtype[Any]:
        """The type that kernels compute with, for a tensor: float32 for float16."""
        dtype = self._dtype(name)
        return np.dtype(np.float64) if dtype == np.float64 else np.dtype(np.float32)

    def _dtype(self, name: str) -> Any:
        info = self.infos.get(name)
        return None if info is None else info.dtype

    # --- products ------------------------------------------------------------------------------

    def _conv(self, node: Node, form: Form | None, x: Shape) -> Lowered | None:
        source = Form(x[0], x[1:])
        weight, bias = self.model.constant(node.inputs[1]), self._optional(node, 2)
        if weight is None or bias is False or form not in (None, source) or len(x) not in (3, 4, 5):
            return None
        shape, groups = weight.shape, int(node.get("group", 1))
        if len(shape) != len(x) or groups < 1 or shape[1] * groups != x[1] or shape[0] % groups:
            return None
        if bias is not None and bias.shape != shape[:1]:
            return None
        found = window(node, x[2:], shape)
        if found is None or min(found.outputs) < 1:
            return None
        geometry = ConvGeometry(
            x[1], shape[0], x[2:], found.kernel, found.stride, found.pads, found.dilation, groups
        )  # fmt: skip
        matrix, sparse = self.weights.rows(weight), self.weights.is_sparse(weight)
        bias = None if bias is None else wide(bias)
        y = (x[0], shape[0], *found.outputs)
        operator = Conv(matrix, bias, geometry, None, dense=not sparse)
        return Lowered(operator, source, Form(y[0], y[1:]), y, starts=True, sparse=sparse)

    def _gemm(self, node: Node, form: Form | None, x: Shape) -> Lowered | None:
        alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
        trans_a, trans_b = bool(node.get("transA", 0)), bool(node.get("transB", 0))
        if len(x) != 2:
            return None
        if node.inputs[0] in self.model.constants:
            return None if trans_b else self._product_from_left(node, form, x, not trans_a, alpha, beta)
        return None if trans_a else self._product(node, form, x, trans_b, alpha, beta)

    def _matmul(self, node: Node, form: Form | None, x: Shape) -> Lowered | None:
        if node.inputs[0] in self.model.constants:
            return self._product_from_left(node, form, x)
        return self._product(node, form, x, by_rows=False)

    def _product_from_left(
        self, node: Node, form: Form | None, x: Shape, by_rows: bool = True, alpha: float = 1.0, beta: float = 1.0
    ) -> Lowered | None:
        """W @ x by a sparse W: a 1x1 convolution whose channels are the rows of x."""
        weight, bias = self.model.constant(node.inputs[0]), self._optional(node, 2)
        source = Form(math.prod(x[:-2]), x[-2:])
        if weight is None or bias is False or form not in (None, source) or len(x) < 2 or len(weight.shape) != 2:
            return None
        rows, columns = weight.shape if by_rows else weight.shape[::-1]
        if columns != x[-2] or not self.weights.is_sparse(weight):
            return None
        y = (*x[:-2], rows, x[-1])
        if bias is not None:
            bias = per_channel(bias, y, len(y) - 2)
            if bias is None:
                return None
            bias = wide(bias if beta == 1 else (bias * beta).astype(bias.dtype))
        matrix = (self.weights.rows if by_rows else self.weights.columns)(weight, alpha)
        geometry = ConvGeometry(columns, rows, x[-1:], (1,), (1,), ((0, 0),), (1,), 1)
        operator = Conv(matrix, bias, geometry, None, dense=False)
        return Lowered(operator, source, Form(source.samples, y[-2:]), y, starts=True, sparse=True)

    def _product(
        self, node: Node, form: Form | None, x: Shape, by_rows: bool, alpha: float = 1.0, beta: float = 1.0
    ) -> Lowered | None:
        weight, bias = self.model.constant(node.inputs[1]), self._optional(node, 2)
        source = Form(math.prod(x[:-1]), x[-1:])
        if weight is None or bias is False or form not in (None, source) or len(x) < 2 or len(weight.shape) < 2:
            return None
        rows, columns = weight.shape[-2:] if by_rows else weight.shape[-1:-3:-1]
        if math.prod(weight.shape[:-2]) != 1 or columns != x[-1]:
            return None
        if isinstance(weight, SparseWeight) and len(weight.shape) != 2:
            return None
        y = ((1,) * (len(weight.shape) - len(x)) + x[:-1]) + (rows,)
        if bias is not None:
            bias = per_channel(bias, y, len(y) - 1)
            if bias is None:
                return None
            bias = wide(bias if beta == 1 else (bias * beta).astype(bias.dtype))
        sparse = self.weights.is_sparse(weight)
        matrix = (self.weights.rows if by_rows else self.weights.columns)(weight, alpha)
        operator = Linear(matrix, bias, None, dense=not sparse)
        return Lowered(operator, source, Form(source.samples, (rows,)), y, starts=True, sparse=sparse)

    # --- what follows products -----------------------------------------------------------------

    def _activation(self, node: Node, form: Form | None, x: Shape) -> Lowered | None:
        name = node.activation
        return None if form is None or name is None else Lowered(Activate(name), form, form, x)

    def _hard_sigmoid(self, node: Node, form: Form | None, x: Shape) -> Lowered | None:
        """Of any slope and offset: that of the kernels on a scaled operand."""
        if form is None or form.shape[0] > _LARGEST_VECTOR:
            return None
        slope, offset, ones = node.get("alpha", 0.2), node.get("beta", 0.5), np.ones(form.shape[0])
        scale = Scale(ones * (slope / _SLOPE), ones * ((offset - 0.5) / _SLOPE))
        return Lowered(Activate("hardsigmoid"), form, form, x, before=((scale, form.shape),))

    def _batch_norm(self, node: Node, form: Form | None, x: Shape) -> Lowered | None:
        arrays = [self.model.array(name) for name in node.inputs[1:5]]
        if form is None or form != Form(x[0], x[1:]) or node.get("training_mode", 0) or not node.get("spatial", 1):
            return None
        if len(arrays) != 4 or any(a is None or a.shape != x[1:2] for a in arrays):
            return None
        gamma, beta, mean, variance = (np.asarray(a, np.float64) for a in arrays)
        scale = gamma / np.sqrt(variance + node.get("epsilon", 1e-5))
        return self._scale(form, x, scale, beta - mean * scale)

    def _arithmetic(self, node: Node, form: Form | None, x: Shape) -> Lowered | None:
        """Adding, subtracting, multiplying or dividing by a constant per channel."""
        if form is None or len(node.inputs) != 2 or node.version < 7:
            return None
        name = self.operand(node)
        other = node.inputs[1] if name == node.inputs[0] else node.inputs[0]
        array = self.model.array(other)
        places = (len(x) - len(form.shape), 1)  # of the channels: the second for features as images of one position
        axis = next((a for a in places if x[a : a + 1] == form.shape[:1] and math.prod(x[:a]) == form.samples), None)
        if array is None or axis is None or form.shape[0] > _LARGEST_VECTOR:
            return None
        if node.op in ("Sub", "Div") and name != node.inputs[0]:
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
        return self._scale(form, x, scale, shift)

    def _scale(self, form: Form, x: Shape, scale: Array, shift: Array) -> Lowered:
        return Lowered(Scale(scale, shift), form, form, x)

    # --- pooling -------------------------------------------------------------------------------

    def _pool(self, node: Node, form: Form | None, x: Shape) -> Lowered | None:
        if len(x) != 4 or form not in (None, Form(x[0], x[1:])) or max(x) > _LARGEST_VECTOR:
            return None
        found = window(node, x[2:])
        if (
            found is None
            or set(found.dilation) != {1}
            or any(k <= max(pad) for k, pad in zip(found.kernel, found.pads))
        ):
            return None
        counted = node.op == "MaxPool" or bool(node.get("count_include_pad", 0))
        tables = windows(x[2:], found.kernel, found.stride, found.pads, count_padding=counted)
        if tables.out_spatial != found.outputs:  # windows over the edge, which ceil_mode makes
            return None
        kind = "max" if node.op == "MaxPool" else "mean"
        y = (*x[:2], *found.outputs)
        return Lowered(Pool(kind, tables), Form(x[0], x[1:]), Form(y[0], y[1:]), y)

    def _global_pool(self, node: Node, form: Form | None, x: Shape) -> Lowered | None:
        if len(x) != 4 or form not in (None, Form(x[0], x[1:])):
            return None
        if node.op == "ReduceMean":
            axes = self._axes(node)
            if axes is None or sorted(a % 4 for a in axes) != [2, 3] or not node.get("keepdims", 1):
                return None
        y = (*x[:2], 1, 1)
        tables = adaptive_windows((x[2], x[3]), (1, 1))
        return Lowered(Pool("mean", tables), Form(x[0], x[1:]), Form(y[0], y[1:]), y)

    def _resize(self, node: Node, form: Form | None, x: Shape) -> Lowered | None:
        """To a multiple: every position repeated, or interpolated between them."""
        scales, sizes = self._optional(node, 2), self._optional(node, 3)
        if len(x) < 3 or form not in (None, Form(x[0], x[1:])) or node.version < 11 or node.get("axes") is not None:
            return None
        if scales is False or sizes is False:
            return None
        mode, where = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
        rounded = node.get("nearest_mode", "round_prefer_floor")
        nearest = mode == "nearest" and ((where == "half_pixel" and rounded.startswith("round"))
                                         or (where, rounded) == ("asymmetric", "floor"))  # fmt: skip
        if not nearest and ((mode, where) != ("linear", "half_pixel") or node.get("antialias", 0)):
            return None
        given = sizes is not None and sizes.size > 0
        wanted = np.asarray(sizes, float) / x if given else scales
        if wanted is None or wanted.shape != (len(x),) or (wanted[:2] != 1).any() or (wanted % 1).any():
            return None
        scale = tuple(int(n) for n in wanted[2:])
        image = x[1:]
        if min(scale) < 1 or node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            return None
        if math.prod((*image, *scale)) > _LARGEST_GATHER:
            return None
        dtype = self.kernel_dtype(node.inputs[0])
        *before, (operator, target) = repeated(image, scale) if nearest else interpolated(image, scale, dtype)
        source, y = Form(x[0], x[1:]), (x[0], *target)
        return Lowered(operator, source, Form(x[0], target), y, before=tuple(before))

    def _depth_to_space(self, node: Node, form: Form | None, x: Shape) -> Lowered | None:
        """Channels as positions."""
        n = int(node.get("blocksize", 0))
        if len(x) != 4 or form not in (None, Form(x[0], x[1:])) or n < 1 or x[1] % (n * n):
            return None
        if math.prod(x[1:]) > _LARGEST_GATHER:
            return None
        channels, (height, width) = x[1] // (n * n), x[2:]
        by_channel, target = node.get("mode", "DCR") == "CRD", (channels, height * n, width * n)
        if by_channel:
            index = np.arange(n * n * height * width).reshape(n, n, height, width).transpose(2, 0, 3, 1)
        else:
            index = np.arange(math.prod(x[1:])).reshape(n, n, channels, height, width).transpose(2, 3, 0, 4, 1)
        gather = Gather(index.ravel(), channels if by_channel else 1, target)
        return Lowered(gather, Form(x[0], x[1:]), Form(x[0], target), (x[0], *target))

    # --- shapes --------------------------------------------------------------------------------

    def _reshape(self, node: Node, form: Form | None, x: Shape) -> Lowered | None:
        y = self._reshaped(node, x)
        if form is None or not y or math.prod(y) != math.prod(x):
            return None
        if len(form.shape) == 1 and y[:2] == (form.samples, *form.shape) and math.prod(y[2:]) == 1:
            return Lowered(None, form, form, y)  # features as an image of one position
        if len(form.shape) == 1 and form == Form(math.prod(y[:-1]), y[-1:]):
            return Lowered(None, form, form, y)
        flat = Form(form.samples, (math.prod(form.shape),))
        if len(form.shape) > 1 and y == (flat.samples, *flat.shape):
            return Lowered(Reshape(), form, flat, y)
        return None

    def _reshaped(self, node: Node, x: Shape) -> Shape | None:
        """The shape that a node gives to the same numbers; None where it depends on more than its operand's."""
        if node.op == "Flatten":
            axis = int(node.get("axis", 1))
            axis += len(x) if axis < 0 else 0
            return math.prod(x[:axis]), math.prod(x[axis:])
        if node.op in ("Squeeze", "Unsqueeze"):
            axes = self._axes(node)
            if axes is None or (node.op == "Squeeze" and any(x[a] != 1 for a in axes if -len(x) <= a < len(x))):
                return None
            if node.op == "Squeeze":
                gone = {a % len(x) for a in axes}
                return tuple(n for i, n in enumerate(x) if i not in gone)
            count = len(x) + len(axes)
            places, rest = {a % count for a in axes}, iter(x)
            return tuple(1 if i in places else next(rest) for i in range(count))
        sizes = self.model.array(node.inputs[1]) if len(node.inputs) > 1 else None
        wanted = node.get("shape") if sizes is None and node.version < 5 else sizes
        if wanted is None:
            return None
        y = [int(n) for n in wanted]
        if not node.get("allowzero", 0):
            y = [x[i] if n == 0 and i < len(x) else n for i, n in enumerate(y)]
        known = math.prod(n for n in y if n != -1)
        if y.count(-1) > 1 or (-1 in y and (not known or math.prod(x) % known)):
            return None
        return tuple(math.prod(x) // known if n == -1 else n for n in y)

    def _axes(self, node: Node) -> list[int] | None:
        axes = node.get("axes")
        if axes is None and len(node.inputs) > 1:
            axes = self.model.array(node.inputs[1])
        return None if axes is None else [int(a) for a in np.asarray(axes).reshape(-1)]

    def _nothing(self, node: Node, form: Form | None, x: Shape) -> Lowered | None:
        training = self._optional(node, 2) if node.op == "Dropout" else None
        if form is None or training is False or (training is not None and training.any()):
            return None
        if node.op == "Dropout" and node.version < 7 and not node.get("is_test", 0):
            return None
        return Lowered(None, form, form, x)

    def _optional(self, node: Node, position: int) -> Any:
        """A constant input; None where it is left out, False where it is none."""
        name = node.inputs[position] if position < len(node.inputs) else ""
        if not name:
            return None
        array = self.model.array(name)
        return False if array is None else array


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
        known, forms, made = dict(shapes), dict[str, Form](), dict[str, int]()
        tensors: list[Shape] = []
        sources: dict[tuple[str, Form], int] = {}
        nodes: list[ProgramNode] = []

        def number(shape: Shape) -> int:
            tensors.append(shape)
            return len(tensors) - 1

        for member in self.members:
            node = member.node
            held = [forms[name] if within else None for name, within in zip(member.tensors, member.inside)]
            lowered = self.lowering.lowered(node, held, [known[name] for name in member.tensors])
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
            known[member.output], forms[member.output] = lowered.shape, lowered.target
            if lowered.operator is None:
                made[member.output] = reads[0]
                continue
            name = f"{node.name.replace(' ', '_')} {node.op.rpartition('.')[2]}"
            for operator, shape in lowered.before:
                between = number(shape)
                nodes.append(ProgramNode(name, operator, tuple(reads), between))
                reads = [between]
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


# ---------------------------------------------------------------- constants


def per_channel(array: Array, shape: Shape, axis: int) -> Array | None:
    """`array` as one number per place along `axis` of a tensor of `shape`, when that is what it broadcasts to."""
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
    "Conv": "_conv", "Gemm": "_gemm", "MatMul": "_matmul", "BatchNormalization": "_batch_norm",
    "HardSigmoid": "_hard_sigmoid", "Resize": "_resize", "DepthToSpace": "_depth_to_space",
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), "_arithmetic"),
    **dict.fromkeys(("MaxPool", "AveragePool"), "_pool"),
    **dict.fromkeys(("GlobalAveragePool", "ReduceMean"), "_global_pool"),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), "_reshape"),
    **dict.fromkeys(("Identity", "Dropout"), "_nothing"),
}  # fmt: skip
