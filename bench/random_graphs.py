"""Random ONNX graphs of what the kernels run and what they leave to the library, for `bench.fuzz_networks`.

Every step of a case (`bench.draws`) adds a few nodes behind one of the last tensors.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import fastsparse as fs
from bench.draws import Case, Steps, groups, transposed_windows, windows, windows_out
from bench.random_networks import Network

Array = NDArray[Any]
Shape = tuple[int, ...]
Made = tuple[str, Shape]  # a tensor and its shape without the batch axis
MOST_STEPS = 9
MOST_NUMBERS = 12_000  # of one sample
KINDS = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16}
_SIMPLE = (
    "Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "HardSigmoid", "Elu", "Selu", "Softplus", "Softsign", "Abs",
    "Neg", "Identity", "Sin", "Erf", "Dropout", "Softmax", "Celu", "Mish", "Gelu", "ThresholdedRelu",
)  # fmt: skip
_SINCE = {"Mish": 18, "Gelu": 20}


def as_float32(model: Any) -> Any:
    """The model in float32, for libraries that have few operators in other types."""
    other = {KINDS["float64"], KINDS["float16"]}
    if model.graph.input[0].type.tensor_type.elem_type not in other:
        return model
    found = type(model)()
    found.CopyFrom(model)

    def cast(tensor: Any) -> None:
        if tensor.data_type in other:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    def cast_graph(graph: Any) -> None:
        for tensor in graph.initializer:
            cast(tensor)
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.elem_type = KINDS["float32"]
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i in other:
                    attribute.i = KINDS["float32"]
                cast(attribute.t)
                if attribute.HasField("g"):
                    cast_graph(attribute.g)

    cast_graph(found.graph)
    return found


def with_odd_names(model: Any) -> Any:
    """The same model with names such as compilers like to make; some of its nodes have one name."""
    found, odd = type(model)(), dict[str, str]()
    found.CopyFrom(model)
    graph = found.graph
    for i, constant in enumerate(graph.initializer):
        odd[constant.name] = constant.name = f"a_{i // 2}#bias" if i % 2 else f"#{i}"
    for i, node in enumerate(graph.node):
        node.name = "a" if i % 2 else f"a_{i + 1}"
        for j, name in enumerate(filter(None, node.output)):
            if name not in {value.name for value in graph.output}:
                odd[name] = f"a_{i}#{'weight' if i % 4 == 0 else j}"
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [odd.get(name, name) for name in names]
    return found


def exported(network: Network, rng: np.random.Generator, *, fixed: bool = False) -> Any:
    """The ONNX model of a network or of its engine, some inner tensors among its results; None where there is none.

    fixed : sizes but the batch are
    """
    fixed = fixed or len(network.shapes) > 1 or rng.random() < 0.3
    sizes = [(1, *shape) for shape in network.shapes]
    source = fs.compile(network.model, sizes if len(sizes) > 1 else sizes[0], tune=False) if fixed else network.model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        try:
            fs.to_onnx(source, path)
        except fs.UnsupportedOperatorError:
            return None
        model = onnx.shape_inference.infer_shapes(onnx.load(path))
    if any(len(x.type.tensor_type.shape.dim) != len(size) for x, size in zip(model.graph.input, sizes, strict=True)):
        return None  # models that begin with a linear layer are written for one row a sample
    inner = [value for value in model.graph.value_info if value.type.tensor_type.elem_type in KINDS.values()]
    chosen = set(rng.integers(0, 12, rng.choice([0, 0, 1, 2])).tolist())
    model.graph.output.extend(inner[i] for i in chosen if i < len(inner))
    del model.graph.value_info[:]
    return model


class Builder(Steps):
    """The model that a case stands for.

    Attributes
    ----------
    model : ModelProto
    shapes : dict of str to tuple of int
        Of one sample of each input.
    open : whether the images' sizes are open, too.
    """

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        d = self.first
        self.dtype = str(d.one(*["float32"] * 8, "float64", "float16"))
        self.opset = int(d.one(20, 20, 21, 18, 17, 14, 13))
        axes = d.one(2, 2, 2, 2, 0, 1, 1, 3)
        most = {0: 1, 1: 24, 2: d.one(8, 20, 40), 3: 7}[axes]
        shape = (d.between(1, 39 if axes == 0 else 8), *(d.between(1, most) for _ in range(axes)))
        self.shapes = {"x": shape, **({"z": shape} if d.chance(0.2) else {})}
        self.open = axes > 0 and d.chance(0.15)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.sparse: list[Any] = []
        self.weights: list[tuple[Shape, str]] = []
        self.tensors: list[Made] = list(self.shapes.items())
        for _ in self.rest(d.between(1, case.get("most_steps", MOST_STEPS))):
            self._grow()
        self.model = self._finished()
        self.tell(case)

    def _finished(self) -> Any:
        d, results = self.first, [self.tensors[-1][0]]
        results += [name for name, _ in self.tensors[:-1] if d.chance(0.1) and name not in (*results, "x", "z")]
        batch = None if d.chance(0.2) else "N"
        sources = []
        for name, shape in self.shapes.items():
            sizes = [shape[0], *(f"size{i}" for i in range(len(shape) - 1))] if self.open else list(shape)
            sources.append(helper.make_tensor_value_info(name, KINDS[self.dtype], [batch, *sizes]))
        targets = [helper.make_tensor_value_info(name, KINDS[self.dtype], None) for name in results]
        graph = helper.make_graph(
            self.nodes, "graph", sources, targets, self.constants, sparse_initializer=self.sparse or None
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = 8 if self.opset < 19 else 9
        if d.chance(0.05):  # constants that a caller could replace
            for constant in self.constants[:2]:
                model.graph.input.append(
                    helper.make_tensor_value_info(constant.name, constant.data_type, list(constant.dims))
                )
        return model

    # ---------------------------------------------------------------- parts

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A node; its output's name, or a list of them."""
        number = len(self.nodes)
        names = [f"t{number}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"n{number}", **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, array: Any, dtype: Any = None) -> str:
        """An initializer, or a node that holds it."""
        array = np.asarray(array, dtype or self.dtype)
        if self.d.chance(0.05):
            return str(self.add("Constant", value=numpy_helper.from_array(array)))
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def integers(self, *numbers: int) -> str:
        return self.constant(np.array(numbers), "int64")

    def numbers(self, shape: Shape, scale: float = 1.0) -> Array:
        return self.d.numbers.standard_normal(shape) * scale

    def weight(self, *shape: int) -> str:
        """A weight in one of the ways that files have them; one of the same shape may be used again."""
        known = [name for size, name in self.weights if size == shape]
        if known and self.d.chance(0.3):
            return self.d.one(*known)
        sparsity = self.d.one(0.0, 0.5, 0.8, 0.8, 0.95, 1.0)
        fan = max(1.0, math.prod(shape[1:]) * (1 - sparsity))
        array = np.where(self.d.numbers.random(shape) < sparsity, 0, self.numbers(shape, fan**-0.5))
        name = self._stored(array, self.d.below(12))
        self.weights.append((shape, name))
        return name

    def _stored(self, array: Array, how: int) -> str:
        if how == 0 and array.ndim == 2:
            return str(self.add("Transpose", self.constant(array.T), perm=[1, 0]))
        if how == 1 and self.dtype == "float32":
            kind = self.d.one("float16", "float64")
            return str(self.add("Cast", self.constant(array, kind), to=KINDS[self.dtype]))
        if how == 2:
            return str(self.add("Reshape", self.constant(array.reshape(-1)), self.integers(*array.shape)))
        if how == 3:
            return str(self.add("Mul", self.constant(array), self.constant(0.5)))
        if how == 4 and self.dtype == "float32" and abs(array).max(initial=0) > 0:
            scale = abs(array).max() / 100
            quantised = self.constant(np.round(array / scale), "int8")
            return str(self.add("DequantizeLinear", quantised, self.constant(scale), self.constant(0, "int8")))
        if how == 5 and self.dtype == "float32":
            array, name = array.astype(self.dtype), f"s{len(self.sparse)}"
            by_axes = array.ndim == 2 and self.d.chance(0.5)
            places = np.argwhere(array) if by_axes else np.flatnonzero(array)
            values = numpy_helper.from_array(array[array != 0], name)
            indices = numpy_helper.from_array(places.astype(np.int64), f"{name}_indices")
            self.sparse.append(helper.make_sparse_tensor(values, indices, list(array.shape)))
            return name
        if how == 6:
            return str(self.add("Identity", self.constant(array)))
        return self.constant(array)

    def bias(self, size: int) -> list[str]:
        return [self.constant(self.numbers((size,)))] if self.d.chance(0.6) else []

    # ---------------------------------------------------------------- steps

    def _grow(self) -> None:
        name, shape = self.tensors[-1 - self.d.below(min(3, len(self.tensors)))]
        kinds: list[Callable[[str, Shape], Made | None]] = [
            self._activation, self._activation, self._scale, self._scale, self._join, self._join, self._concat,
            self._split, self._slice, self._reduce, self._transposed, self._cast, self._branch, self._product,
            self._normalised, self._padded, self._flattened,
        ]  # fmt: skip
        if len(shape) == 1:
            kinds += [self._gemm] * 5
        if len(shape) == 2:
            kinds += [self._attention, self._recurrent, self._recurrent, self._gather, self._product, self._product]
            kinds += [self._left_product]
        if len(shape) > 1:
            kinds += [self._conv] * 6 + [self._deconv, self._batch_norm, self._batch_norm]
        if len(shape) == 3:
            kinds += [self._pool] * 4 + [self._squeeze] * 2 + [self._resize, self._shuffle, self._pixels]
        made = self.d.one(*kinds)(name, shape)
        if made is not None and min(made[1], default=1) >= 1 and math.prod(made[1]) <= MOST_NUMBERS:
            self.tensors.append(made)

    def _activation(self, x: str, shape: Shape) -> Made | None:
        number = self.constant
        kind = self.d.below(10)
        if kind == 8:
            y = self.add("Div", x, self.add("Add", number(1), self.add("Exp", self.add("Neg", x))))
        elif kind == 9:
            line = self.add("Add", self.add("Div", x, number(6)), number(0.5))
            limited = self.add("Min", self.add("Max", line, number(0)), number(1))
            y = self.d.one(limited, self.add("Mul", x, limited))
        elif kind == 0:  # by erf
            root = self.d.one(self.add("Div", x, number(math.sqrt(2))), self.add("Mul", x, number(math.sqrt(0.5))))
            one = self.add("Add", *self.d.either(self.add("Erf", root), number(1)))
            half = self.d.one(self.add("Mul", x, number(0.5)), self.add("Div", x, number(2)))
            y = self.d.one(self.add("Mul", half, one), self.add("Mul", self.add("Mul", one, x), number(0.5)))
        elif kind == 1:  # by tanh
            cube = self.d.one(self.add("Pow", x, number(3)), self.add("Mul", self.add("Mul", x, x), x))
            inner = self.add("Add", *self.d.either(x, self.add("Mul", cube, number(0.044715))))
            tanh = self.add("Tanh", self.add("Mul", inner, number(math.sqrt(2 / math.pi))))
            y = self.add("Mul", self.add("Mul", x, number(0.5)), self.add("Add", tanh, number(1)))
        elif kind == 2:
            scaled = x if self.d.chance(0.7) else self.add("Mul", x, number(1.702))
            y = self.add("Mul", *self.d.either(x, self.add("Sigmoid", scaled)))
        elif kind == 3:
            shifted = self.add("Add", *self.d.either(x, number(3)))
            inner = self.add("Clip", shifted, number(0), number(self.d.one(6, 6, 5)))
            y = self.add("Mul", self.add("Div", inner, number(6)), x)
        elif kind == 4:
            low, high = self.d.one((0, 6), (0, 1), (-1, 1), (0, None), (None, 2), (None, None), (2, 3))
            limits = ["" if n is None else number(n) for n in (low, high)]
            y = self.add("Clip", x, *limits)
        elif kind == 5:
            slope = self.numbers((shape[0], *[1] * (len(shape) - 1))) if self.d.chance(0.5) else self.numbers((1,))
            y = self.add("PRelu", x, self.constant(slope))
        else:
            op = self.d.one(*_SIMPLE)
            more: dict[str, Any] = {}
            if self.opset < _SINCE.get(op, 0) or (op == "Celu" and self.dtype != "float32"):
                op = "Relu"
            if op in ("LeakyRelu", "Elu", "ThresholdedRelu") and self.d.chance(0.7):
                more["alpha"] = self.d.one(0.01, 0.1, 0.3, 1.0)
            if op == "HardSigmoid":
                more = {"alpha": self.d.one(1 / 6, 0.2, 0.3), "beta": self.d.one(0.5, 0.4)}
            if op == "Softmax":
                more["axis"] = self.d.one(-1, 1)
            if op == "Gelu":
                more["approximate"] = self.d.one("none", "tanh")
            y = self.add(op, x, **more)
        return y, shape

    def _scale(self, x: str, shape: Shape) -> Made | None:
        """With constants of every shape that broadcasts."""
        rank = len(shape)
        sizes = self.d.one(
            (), (1,), (1,) * rank, (shape[0], *[1] * (rank - 1)), (1, shape[0], *[1] * (rank - 1)), shape[-1:], shape,
            (1, *shape), (*shape[:-1], 1),
        )  # fmt: skip
        array = self.d.numbers.uniform(0.5, 1.5, sizes) * self.d.one(1, 1, -1)
        op = self.d.one("Add", "Mul", "Sub", "Div", "Pow" if self.dtype == "float32" else "Add", "Max", "Min")
        if op == "Pow":
            return self.add("Pow", x, self.constant(2.0)), shape
        operands = (x, self.constant(array)) if op == "Div" else self.d.either(x, self.constant(array))
        return self.add(op, *operands), shape

    def _same(self, x: str, shape: Shape) -> list[str]:
        return [n for n, s in self.tensors if s == shape and n != x]

    def _join(self, x: str, shape: Shape) -> Made | None:
        others = [*self._same(x, shape), x]
        other = self.d.one(*others)
        op = self.d.one("Add", "Add", "Add", "Mul", "Sub", "Max", "Sum", "Mean", "Where")
        if op in ("Sum", "Mean") and self.d.chance(0.5):
            return self.add(op, x, other, self.d.one(*others)), shape
        if op == "Where":
            return self.add("Where", self.add("Greater", x, other), x, self.constant(0.5)), shape
        y = self.add(op, *self.d.either(x, other))
        return (self.add("Relu", y) if self.d.chance(0.4) else y), shape

    def _concat(self, x: str, shape: Shape) -> Made | None:
        axis = self.d.below(len(shape))
        others = [(n, s) for n, s in self.tensors if (*s[:axis], *s[axis + 1 :]) == (*shape[:axis], *shape[axis + 1 :])
                  and len(s) == len(shape)]  # fmt: skip
        some = [self.d.one(*others) for _ in range(self.d.between(1, 2))]
        y = (*shape[:axis], shape[axis] + sum(s[axis] for _, s in some), *shape[axis + 1 :])
        names = [x, *(n for n, _ in some)]
        return self.add("Concat", *names, axis=axis + 1 - (len(shape) + 1) * int(self.d.chance(0.3))), y

    def _split(self, x: str, shape: Shape) -> Made | None:
        axis = self.d.below(len(shape))
        if shape[axis] < 2:
            return None
        first = self.d.between(1, shape[axis] - 1)
        both = self.add("Split", x, self.integers(first, shape[axis] - first), outputs=2, axis=axis + 1)
        sizes = [(*shape[:axis], n, *shape[axis + 1 :]) for n in (first, shape[axis] - first)]
        self.tensors.append((both[0], sizes[0]))
        return both[1], sizes[1]

    def _slice(self, x: str, shape: Shape) -> Made | None:
        axis = self.d.below(len(shape))
        n, step = shape[axis], self.d.one(1, 1, 2, -1)
        if self.open and axis:
            return None
        start, end = sorted((self.d.below(n + 1), self.d.below(n + 1)))
        if start == end:
            return None
        kept = len(range(start, end, abs(step)))
        bounds = (start, end) if step > 0 else (end - 1, start - 1 if start else -n - 1)
        y = self.add("Slice", x, *(self.integers(v) for v in (*bounds, axis + 1, step)))
        return y, (*shape[:axis], kept, *shape[axis + 1 :])

    def _reduce(self, x: str, shape: Shape) -> Made | None:
        op, axes = self.d.one("ReduceMean", "ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"), [len(shape)]
        if len(shape) == 3 and self.d.chance(0.7):
            axes = [2, 3] if self.d.chance(0.7) else [-1, -2]
        keep = self.d.chance(0.5)
        by_input = self.opset >= 18 or op == "ReduceSum"
        more = [self.integers(*axes)] if by_input else []
        y = self.add(op, x, *more, keepdims=int(keep), **({} if by_input else {"axes": axes}))
        gone = {a % (len(shape) + 1) for a in axes}
        kept = tuple(1 if i + 1 in gone else n for i, n in enumerate(shape) if keep or i + 1 not in gone)
        return (y, kept) if kept else None

    def _transposed(self, x: str, shape: Shape) -> Made | None:
        """And back, or not."""
        if len(shape) < 2:
            return None
        order = list(self.d.one(*itertools.permutations(range(len(shape)))))
        y = self.add("Transpose", x, perm=[0, *(n + 1 for n in order)])
        turned = tuple(shape[n] for n in order)
        if self.d.chance(0.5):
            return None if self.open else (y, turned)
        y = self.add(self.d.one("Relu", "Sigmoid", "Identity"), y)
        return self.add("Transpose", y, perm=[0, *(order.index(n) + 1 for n in range(len(shape)))]), shape

    def _cast(self, x: str, shape: Shape) -> Made | None:
        other = self.d.one(*(kind for kind in ("float32", "float64") if kind != self.dtype))
        y = self.add("Relu", self.add("Cast", x, to=KINDS[other]))
        return self.add("Cast", y, to=KINDS[self.dtype]), shape

    def _branch(self, x: str, shape: Shape) -> Made | None:
        """An If whose branches read what is outside, a weight among it."""
        total = self.add("ReduceSum", x, self.integers(*range(len(shape) + 1)), keepdims=0)
        flag = self.add("Greater", total, self.constant(0))
        graphs = []
        for op in self.d.one(("Neg", "Abs"), ("MatMul", "MatMul"), ("Relu", "MatMul")):
            inputs = [x, self.weight(shape[-1], shape[-1])] if op == "MatMul" else [x]
            value = helper.make_tensor_value_info(f"b{len(self.nodes)}_{len(graphs)}", KINDS[self.dtype], None)
            node = helper.make_node(op, inputs, [value.name])
            graphs.append(helper.make_graph([node], f"{op}{len(graphs)}", [], [value]))
        return self.add("If", flag, then_branch=graphs[0], else_branch=graphs[1]), shape

    def _product(self, x: str, shape: Shape) -> Made | None:
        """A matrix product over the last axis, with what exporters write around it."""
        if self.open and len(shape) > 1:
            return None
        out = self.d.between(1, 29)
        y = self.add("MatMul", x, self.weight(shape[-1], out))
        target = (*shape[:-1], out)
        if self.d.chance(0.6):
            sizes = self.d.one((out,), (1, out), (1,) * len(shape) + (out,), (1,), target)
            y = self.add("Add", *self.d.either(y, self.constant(self.numbers(sizes))))
        return y, target

    def _left_product(self, x: str, shape: Shape) -> Made | None:
        """By a weight on the left, over the axis in front of the last one."""
        if self.open:
            return None
        rows, columns = self.d.between(1, 29), shape[1]
        y = self.add("MatMul", self.weight(rows, shape[0]), x)
        if self.d.chance(0.6):
            sizes = self.d.one((rows, 1), (columns,), (1, rows, 1), (1,))
            y = self.add("Add", *self.d.either(y, self.constant(self.numbers(sizes))))
        return y, (rows, columns)

    def _gemm(self, x: str, shape: Shape) -> Made | None:
        out, by_rows = self.d.between(1, 39), self.d.chance(0.6)
        weight = self.weight(*((out, shape[0]) if by_rows else (shape[0], out)))
        more: dict[str, Any] = {"transB": int(by_rows)}
        if self.d.chance(0.3):
            more |= {"alpha": self.d.one(0.5, 2.0, -1.0), "beta": self.d.one(1.0, 0.0, 0.3)}
        sizes = self.d.one(None, (out,), (out,), (1, out), (1,), ())
        bias = [] if sizes is None else [self.constant(self.numbers(sizes))]
        return self.add("Gemm", x, weight, *bias, **more), (out,)

    def _flattened(self, x: str, shape: Shape) -> Made | None:
        if len(shape) < 2 or self.open:
            return None
        count = math.prod(shape)
        kind = self.d.below(4)
        if kind == 0:
            return self.add("Flatten", x), (count,)
        if kind == 1:
            return self.add("Reshape", x, self.integers(0, -1)), (count,)
        if kind == 2:
            y = self.add("Reshape", x, self.integers(0, shape[0], -1))
            return y, (shape[0], count // shape[0])
        y = self.add("Reshape", x, self.integers(-1, shape[-1]))  # rows of all samples
        y = self.add("MatMul", y, self.weight(shape[-1], 5))
        return self.add("Reshape", y, self.integers(-1, *shape[:-1], 5)), (*shape[:-1], 5)

    def _normalised(self, x: str, shape: Shape) -> Made | None:
        kind = self.d.below(4)
        if self.open and kind != 1:
            return None
        if kind == 0 and self.opset >= 17:
            scale = [self.constant(self.d.numbers.uniform(0.5, 1.5, shape[-1:])), *self.bias(shape[-1])]
            return self.add("LayerNormalization", x, *scale, axis=-1), shape
        if kind == 1 and len(shape) > 1:
            numbers = [
                self.constant(self.d.numbers.uniform(0.5, 1.5, shape[0])),
                self.constant(self.numbers(shape[:1])),
            ]
            return self.add("InstanceNormalization", x, *numbers, epsilon=1e-3), shape
        if kind == 2 and len(shape) == 3:
            return self.add("LRN", x, size=3), shape
        if kind == 3 and self.opset < 18:
            centred = self.add("Sub", x, self.add("ReduceMean", x, axes=[-1]))
            variance = self.add("ReduceMean", self.add("Mul", centred, centred), axes=[-1])
            root = self.add("Sqrt", self.add("Add", variance, self.constant(1e-3)))
            return self.add("Mul", self.add("Div", centred, root), self.constant(self.numbers(shape[-1:]))), shape
        return None

    def _padded(self, x: str, shape: Shape) -> Made | None:
        pads = [(0, 0), *((self.d.below(3), self.d.below(3)) for _ in shape)]
        if self.d.chance(0.7):
            pads[1] = (0, 0)
        mode = self.d.one("constant", "constant", "edge", "reflect")
        if mode == "reflect" and any(max(pair) >= n for pair, n in zip(pads[1:], shape, strict=True)):
            return None
        value = [self.constant(self.d.one(0, 0, 0.5))] if mode == "constant" else []
        y = self.add("Pad", x, self.integers(*(p for side in zip(*pads, strict=True) for p in side)), *value, mode=mode)
        return y, tuple(n + sum(pair) for n, pair in zip(shape, pads[1:], strict=True))

    # ---------------------------------------------------------------- sequences

    def _attention(self, x: str, shape: Shape) -> Made | None:
        """Heads by Reshape and Transpose."""
        tokens, width = shape
        if self.open or width > 64:
            return None
        heads = int(self.d.one(*(n for n in range(1, width + 1) if width % n == 0)))
        parts = []
        for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            part = self.add("MatMul", x, self.weight(width, width))
            if self.d.chance(0.5):
                part = self.add("Add", self.constant(self.numbers((width,))), part)
            part = self.add("Reshape", part, self.integers(0, tokens, heads, width // heads))
            parts.append(self.add("Transpose", part, perm=order))
        scores = self.add("Mul", self.add("MatMul", *parts[:2]), self.constant((width // heads) ** -0.5))
        if self.d.chance(0.4):
            scores = self.add("Add", scores, self.constant(np.where(np.tri(tokens), 0, -1e4)))
        y = self.add("Transpose", self.add("MatMul", self.add("Softmax", scores, axis=-1), parts[2]), perm=[0, 2, 1, 3])
        y = self.add("Reshape", y, self.integers(0, tokens, width))
        return self.add("MatMul", y, self.weight(width, width)), shape

    def _recurrent(self, x: str, shape: Shape) -> Made | None:
        tokens, width = shape
        if self.open or self.dtype == "float16":
            return None
        op, hidden = self.d.one("LSTM", "GRU", "RNN"), self.d.between(1, 19)
        direction, rows = self.d.one("forward", "reverse", "bidirectional"), {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
        ways = 1 + (direction == "bidirectional")
        inputs = [self.add("Transpose", x, perm=[1, 0, 2]), self.weight(ways, rows * hidden, width)]
        inputs.append(self.weight(ways, rows * hidden, hidden))
        bias = [self.constant(self.numbers((ways, 2 * rows * hidden)))] if self.d.chance(0.7) else [""]
        states = [""] * (1 + (op == "LSTM"))
        for i in range(len(states)):
            if self.d.chance(0.3):  # of each sample, from its first token
                first = self.add("Gather", x, self.constant(0, "int64"), axis=1)
                state = self.add("Reshape", self.add("MatMul", first, self.weight(width, ways * hidden)),
                                 self.integers(-1, ways, hidden))  # fmt: skip
                states[i] = self.add("Transpose", state, perm=[1, 0, 2])
        more: dict[str, Any] = {"linear_before_reset": int(self.d.chance(0.8))} if op == "GRU" else {}
        if op == "RNN" and self.d.chance(0.4):
            more["activations"] = ["Relu"] * ways
        if self.d.chance(0.1):
            more["clip"] = 0.5
        names = [*inputs, *bias, "", *states]
        while not names[-1]:
            names.pop()
        made = self.add(op, *names, outputs=1 + len(states), hidden_size=hidden, direction=direction, **more)
        for state in made[1:]:
            if self.d.chance(0.4):
                flat = self.add("Reshape", self.add("Transpose", state, perm=[1, 0, 2]), self.integers(0, -1))
                self.tensors.append((flat, (ways * hidden,)))
        if self.d.chance(0.3):
            return None
        y = self.add("Transpose", made[0], perm=[2, 0, 1, 3])
        return self.add("Reshape", y, self.integers(0, tokens, ways * hidden)), (tokens, ways * hidden)

    def _gather(self, x: str, shape: Shape) -> Made | None:
        axis = self.d.below(2)
        if self.open:
            return None
        chosen = [self.d.below(2 * shape[axis]) - shape[axis] for _ in range(self.d.between(1, 5))]
        y = self.add("Gather", x, self.integers(*chosen), axis=axis + 1)
        return y, (*shape[:axis], len(chosen), *shape[axis + 1 :])

    # ---------------------------------------------------------------- images, signals, volumes

    def _windows(self, spatial: Shape, ceil: bool, *args: Any, **more: Any) -> tuple[list[int], dict[str, Any]]:
        """Sizes behind windows that are drawn, and the attributes that tell of them."""
        w = windows(self.d, spatial, *args, ceil=ceil, **more)
        auto = str(self.d.one(*["NOTSET"] * 6, "SAME_UPPER", "SAME_LOWER", "VALID"))
        how: dict[str, Any] = {"kernel_shape": w.kernel, "strides": w.stride}
        # What SAME means where windows leave gaps, libraries do not agree on.
        if ceil or auto == "NOTSET" or (auto != "VALID" and any(s > k for s, k in zip(w.stride, w.kernel))):
            sizes, how["pads"] = w.out, w.pads
        elif auto == "VALID":
            sizes = [windows_out(*each, (0, 0), d) for *each, d in zip(spatial, w.kernel, w.stride, w.dilation)]
        else:
            sizes = [-(-n // s) for n, s in zip(spatial, w.stride, strict=True)]
            w.dilation[:] = [1] * len(spatial)
        if "pads" not in how:
            how["auto_pad"] = auto
        return sizes, how if set(w.dilation) == {1} else {**how, "dilations": w.dilation}

    def _conv(self, x: str, shape: Shape) -> Made | None:
        channels, *spatial = shape
        sizes, how = self._windows(tuple(spatial), False)
        group = groups(self.d, channels)
        out = group * self.d.between(1, 3 if group > 1 else 12)
        if min(sizes) < 1:
            return None
        weight = self.weight(out, channels // group, *how["kernel_shape"])
        return self.add("Conv", x, weight, *self.bias(out), group=group, **how), (out, *sizes)

    def _deconv(self, x: str, shape: Shape) -> Made:
        w, group, out = transposed_windows(self.d, shape[1:]), groups(self.d, shape[0], 2), self.d.between(1, 4)
        sizes = (
            {"output_shape": w.out} if self.d.chance(0.2) else {}
        )  # from which pads follow, whatever is said of them
        y = self.add(
            "ConvTranspose", x, self.weight(shape[0], out, *w.kernel), *self.bias(out * group), strides=w.stride,
            pads=w.pads, output_padding=w.more, group=group, dilations=w.dilation, **sizes,
        )  # fmt: skip
        return y, (out * group, *w.out)

    def _batch_norm(self, x: str, shape: Shape) -> Made | None:
        gamma, beta, mean = (self.constant(self.numbers(shape[:1])) for _ in range(3))
        variance = self.constant(self.d.numbers.uniform(0.3, 2, shape[0]))
        return self.add("BatchNormalization", x, gamma, beta, mean, variance, epsilon=1e-3), shape

    def _pool(self, x: str, shape: Shape) -> Made | None:
        op, ceil = str(self.d.one("MaxPool", "AveragePool")), self.d.chance(0.2)
        dilations = (1,) if op == "AveragePool" and self.opset < 19 else (1, 1, 1, 1, 2)
        kernels, pads = (1, 2, 2, 3, 3), lambda kernel: kernel // 2
        sizes, how = self._windows(shape[1:], ceil, kernels, pads=pads, dilations=dilations)
        if min(sizes) < 1:
            return None
        if op == "AveragePool":
            how["count_include_pad"] = int(self.d.chance(0.5))
        return self.add(op, x, ceil_mode=int(ceil), **how), (shape[0], *sizes)

    def _squeeze(self, x: str, shape: Shape) -> Made | None:
        """A gate, by convolutions or by matrix products."""
        channels, inner = shape[0], self.d.between(1, 5)
        g = self.add(self.d.one("GlobalAveragePool", "GlobalAveragePool", "GlobalMaxPool"), x)
        if self.d.chance(0.5):
            g = self.add("Relu", self.add("Conv", g, self.weight(inner, channels, 1, 1), *self.bias(inner)))
            g = self.add("Conv", g, self.weight(channels, inner, 1, 1), *self.bias(channels))
        else:
            g = self.add("Relu", self.add("Gemm", self.add("Flatten", g), self.weight(inner, channels), transB=1))
            g = self.add("Gemm", g, self.weight(inner, channels))
            g = self.add("Reshape", g, self.integers(0, channels, 1, 1))
        g = self.add(self.d.one("Sigmoid", "HardSigmoid", "Tanh", "Identity"), g)
        return self.add(self.d.one("Mul", "Mul", "Add"), *self.d.either(x, g)), shape

    def _resize(self, x: str, shape: Shape) -> Made | None:
        mode = self.d.one("nearest", "linear", "cubic")
        where = self.d.one("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        scale = [self.d.one(1, 2, 2, 3, 0.5) for _ in shape[1:]]
        sizes = [int(n * s) for n, s in zip(shape[1:], scale, strict=True)]
        if min(sizes) < 1:
            return None
        more = {"nearest_mode": self.d.one("floor", "round_prefer_floor", "ceil")} if mode == "nearest" else {}
        if self.d.chance(0.5) or self.open:
            sources = ["", self.constant([1, 1, *scale], "float32")]
        else:
            first = self.add("Slice", self.add("Shape", x), self.integers(0), self.integers(2))
            sources = ["", "", self.add("Concat", first, self.integers(*sizes), axis=0)]
        y = self.add("Resize", x, *sources, mode=mode, coordinate_transformation_mode=where, **more)
        return y, (shape[0], *sizes)

    def _shuffle(self, x: str, shape: Shape) -> Made | None:
        """Channels of groups in turn."""
        groups = [g for g in range(2, shape[0] + 1) if shape[0] % g == 0]
        if not groups or self.open:
            return None
        g = self.d.one(*groups)
        y = self.add("Reshape", x, self.integers(0, g, shape[0] // g, *shape[1:]))
        y = self.add("Transpose", y, perm=[0, 2, 1, 3, 4])
        return self.add("Reshape", y, self.integers(0, *shape)), shape

    def _pixels(self, x: str, shape: Shape) -> Made | None:
        n = self.d.one(1, 2, 2, 3)
        if self.d.chance(0.5) and shape[0] % (n * n) == 0:
            y = self.add("DepthToSpace", x, blocksize=n, mode=self.d.one("DCR", "CRD"))
            return y, (shape[0] // (n * n), shape[1] * n, shape[2] * n)
        if not self.open and shape[1] % n == 0 and shape[2] % n == 0:
            return self.add("SpaceToDepth", x, blocksize=n), (shape[0] * n * n, shape[1] // n, shape[2] // n)
        return None
