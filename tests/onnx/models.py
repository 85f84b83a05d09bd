"""Small ONNX models as exporters write them, in any floating-point type, and a float64 reference for them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fastsparse.onnx.engine import compile_onnx
from fastsparse.onnx.estimates import KERNELS_FIRST


def on_kernels(source: Any, input_shape: Any = None, **options: Any) -> Any:
    """An engine whose kernels run whatever they can, however small it is."""
    return compile_onnx(source, input_shape, costs=KERNELS_FIRST, **{"tune": False, **options})


_FLOATS = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16}


class Builder:
    """Nodes and constants of a model, gathered one by one. Weights do not depend on the type of the model."""

    def __init__(self, dtype: str = "float32", seed: int = 0) -> None:
        self.dtype = dtype
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: Any, dtype: str | None = None) -> str:
        """An initializer."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype or self.dtype), name))
        return name

    def weight(self, *shape: int, sparsity: float = 0.8) -> str:
        """An initializer most of whose numbers are zero."""
        numbers = self.rng.standard_normal(shape).astype("float32") / math.sqrt(math.prod(shape[1:]) * (1 - sparsity))
        return self.constant(np.where(self.rng.random(shape) < sparsity, 0, numbers))

    def vector(self, size: int, low: float = -0.5, high: float = 0.5) -> str:
        """An initializer of one axis."""
        return self.constant(self.rng.uniform(low, high, size).astype("float32"))

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A node; its output's name, or a list of them."""
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **{"name": f"n{len(self.nodes)}", **attributes}))
        return names[0] if outputs == 1 else names

    def model(self, inputs: dict[str, Any], outputs: list[str], *, opset: int = 17, dtypes: Any = None) -> Any:
        """The model; sizes of inputs that are strings are left open."""
        kind = _FLOATS[self.dtype]
        sources = [helper.make_tensor_value_info(n, (dtypes or {}).get(n, kind), s) for n, s in inputs.items()]
        results = [helper.make_tensor_value_info(n, kind, None) for n in outputs]
        graph = helper.make_graph(self.nodes, "model", sources, results, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 10
        return model

    # --- parts of networks ----------------------------------------------------------------------

    def conv(self, x: str, channels: int, out: int, kernel: int = 3, groups: int = 1, **attributes: Any) -> str:
        """A convolution that keeps the size, unless it strides."""
        pad = kernel // 2
        weight = self.weight(out, channels // groups, kernel, kernel)
        return self.add("Conv", x, weight, self.vector(out), pads=[pad] * 4, group=groups, **attributes)

    def norm(self, x: str, channels: int) -> str:
        """Batch norm in inference."""
        parameters = [self.vector(channels, 0.5, 1.5), *(self.vector(channels) for _ in range(2))]
        return self.add("BatchNormalization", x, *parameters, self.vector(channels, 0.5, 1.5))

    def linear(self, x: str, features: int, out: int) -> str:
        """x @ W + b in two nodes, as exporters write it for more than two axes."""
        product = self.add("MatMul", x, self.weight(features, out))
        return self.add("Add", self.vector(out), product)

    def gelu(self, x: str) -> str:
        """By erf, in five nodes."""
        root = self.add("Div", x, self.constant(math.sqrt(2)))
        return self.add(
            "Mul", self.add("Mul", x, self.add("Add", self.add("Erf", root), self.constant(1))), self.constant(0.5)
        )

    def layer_norm(self, x: str, width: int) -> str:
        """In nine nodes, as before opset 17."""
        mean = self.add("ReduceMean", x, axes=[-1])
        centred = self.add("Sub", x, mean)
        variance = self.add("ReduceMean", self.add("Pow", centred, self.constant(2)), axes=[-1])
        root = self.add("Sqrt", self.add("Add", variance, self.constant(1e-5)))
        scaled = self.add("Mul", self.add("Div", centred, root), self.vector(width, 0.5, 1.5))
        return self.add("Add", scaled, self.vector(width))


def residual_network(dtype: str = "float32", batch: Any = "N") -> Any:
    """Convolutions, batch norm, residual blocks, one with a convolution in its short cut, pooling, a linear layer."""
    b = Builder(dtype)
    x = b.add("Relu", b.norm(b.conv("x", 3, 16, strides=[2, 2]), 16))
    x = b.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inner = b.norm(b.conv(b.add("Relu", b.norm(b.conv(x, 16, 16), 16)), 16, 16), 16)
    x = b.add("Relu", b.add("Add", inner, x))
    inner = b.norm(b.conv(b.add("Relu", b.conv(x, 16, 24, strides=[2, 2])), 24, 24), 24)
    x = b.add("Relu", b.add("Add", b.norm(b.conv(x, 16, 24, 1, strides=[2, 2]), 24), inner))
    x = b.add("Flatten", b.add("GlobalAveragePool", x))
    y = b.add("Gemm", x, b.weight(10, 24), b.vector(10), transB=1)
    return b.model({"x": [batch, 3, 32, 32]}, [y])


def mobile_network(dtype: str = "float32") -> Any:
    """Depthwise and pointwise convolutions, hard swish in three nodes, relu6, squeeze and excite."""
    b = Builder(dtype, 1)
    x = b.conv("x", 3, 16, strides=[2, 2])
    limited = b.add("Clip", b.add("Add", x, b.constant(3)), b.constant(0), b.constant(6))
    x = b.add("Div", b.add("Mul", x, limited), b.constant(6))
    x = b.add("Clip", b.conv(x, 16, 16, groups=16), b.constant([0]), b.constant([6]))
    gate = b.add("HardSigmoid", b.conv(b.add("GlobalAveragePool", x), 16, 16, 1), alpha=1 / 6)
    x = b.conv(b.add("Mul", x, gate), 16, 24, 1)
    x = b.add("Reshape", b.add("ReduceMean", x, axes=[2, 3]), b.constant([0, -1], "int64"))
    return b.model({"x": ["N", 3, 16, 16]}, [b.add("Softmax", b.linear(x, 24, 5), axis=-1)])


def u_network(dtype: str = "float32") -> Any:
    """Two resolutions: transposed convolution and bilinear resize up, joined with what was kept; two outputs."""
    b = Builder(dtype, 2)
    first = b.add("Relu", b.conv("x", 3, 8))
    low = b.conv(b.add("AveragePool", first, kernel_shape=[2, 2], strides=[2, 2]), 8, 16)
    low = b.add("Mul", low, b.add("Sigmoid", low))
    up = b.add("ConvTranspose", low, b.weight(16, 8, 2, 2, sparsity=0.2), strides=[2, 2])
    scales = b.constant([1, 1, 2, 2], "float32")
    wide = b.add("Resize", low, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    joined = b.add("Concat", first, up, wide, axis=1)
    return b.model({"x": ["N", 3, 16, 16]}, [b.add("Softmax", b.conv(joined, 32, 4), axis=1), low])


def encoder(dtype: str = "float32", heads: int = 4, width: int = 32, layers: int = 2, opset: int = 14) -> Any:
    """Embedding, attention with a mask, residuals, layer norm and gelu written out; open batch and length."""
    b = Builder(dtype, 3)
    table = b.constant(b.rng.standard_normal((50, width)).astype("float32"))
    x = b.layer_norm(b.add("Gather", table, "ids"), width)
    mask = b.add("Sub", b.constant(1), b.add("Cast", "mask", to=_FLOATS[dtype]))
    mask = b.add("Mul", b.add("Unsqueeze", mask, b.constant([1, 2], "int64")), b.constant(-10000))
    for _ in range(layers):
        sizes = b.add("Shape", x)
        batch, length = (b.add("Gather", sizes, b.constant(i, "int64")) for i in (0, 1))
        parts = [b.add("Unsqueeze", n, b.constant([0], "int64")) for n in (batch, length)]
        split = b.add("Concat", *parts, b.constant([heads, width // heads], "int64"), axis=0)
        joined = b.add("Concat", *parts, b.constant([width], "int64"), axis=0)
        q, k, v = (b.add("Reshape", b.linear(x, width, width), split) for _ in range(3))
        q, v = (b.add("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
        scores = b.add("MatMul", q, b.add("Transpose", k, perm=[0, 2, 3, 1]))
        scores = b.add("Add", b.add("Div", scores, b.constant(math.sqrt(width // heads))), mask)
        mixed = b.add("MatMul", b.add("Softmax", scores, axis=-1), v)
        mixed = b.add("Reshape", b.add("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        x = b.layer_norm(b.add("Add", b.linear(mixed, width, width), x), width)
        inner = b.gelu(b.linear(x, width, 2 * width))
        x = b.layer_norm(b.add("Add", b.linear(inner, 2 * width, width), x), width)
    pooled = b.add("Tanh", b.linear(b.add("Gather", x, b.constant(0, "int64"), axis=1), width, width))
    integers = {"ids": TensorProto.INT64, "mask": TensorProto.INT64}
    return b.model({"ids": ["N", "L"], "mask": ["N", "L"]}, [x, pooled], opset=opset, dtypes=integers)


def perceptron(dtype: str = "float32") -> Any:
    """Linear layers with relu."""
    b = Builder(dtype, 4)
    x = b.add("Relu", b.linear("x", 64, 128))
    return b.model({"x": ["N", 64]}, [b.add("Gemm", x, b.weight(128, 8), b.vector(8))])


def reference(model: Any, inputs: list[Any]) -> list[Any]:
    """Outputs by ONNX's own implementation in NumPy."""
    evaluator = ReferenceEvaluator(model)
    return evaluator.run(None, dict(zip(evaluator.input_names, inputs)))


def shares(found: list[Any], wanted: list[Any]) -> list[float]:
    """Largest difference of every output, relative to the largest number in it."""
    assert len(found) == len(wanted)
    assert [f.shape for f in found] == [w.shape for w in wanted]
    return [float(np.abs(f - w).max() / np.abs(w).max()) for f, w in zip(found, wanted)]


def saved(model: Any, path: Any) -> str:
    """The path of the model's file."""
    onnx.save(model, str(path))
    return str(path)
