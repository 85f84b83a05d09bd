"""Operators on one element at a time, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import special

from fastsparse.onnx.model import Array, Node
from fastsparse.onnx.table import Info, Misfit, Operator, broadcast, like, optional, same
from fastsparse.ops import activations

_KERNEL_TYPES = (np.dtype(np.float32), np.dtype(np.float64))


def activate(name: str, x: Array, out: Array) -> None:
    """One of the kernels' activations."""
    if out.dtype not in _KERNEL_TYPES:
        wide = np.array(x, np.float32, order="C")
        activations.activate(name, wide, wide)
        np.copyto(out, wide, casting="same_kind")
        return
    if not (x.flags.c_contiguous and x.flags.aligned):
        np.copyto(out, x)
        x = out
    activations.activate(name, x, out)


def _by_kernel(name: str) -> Operator:
    return Operator(same, lambda node, inputs, outs: activate(name, inputs[0], outs[0]))


def _unary(function: Callable[..., Any], dtype: Any = None) -> Operator:
    """An operator that is a NumPy function with `out`."""

    def infer(node: Node, inputs: Sequence[Any]) -> list[Info]:
        return [like(inputs[0], dtype=dtype)]

    return Operator(infer, lambda node, inputs, outs: function(inputs[0], out=outs[0]))


def _formula(function: Callable[[Node, Array], Array], dtype: Any = None) -> Operator:
    """An operator that is an expression of its attributes and one array."""

    def run(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
        np.copyto(outs[0], function(node, inputs[0]), casting="unsafe")

    return Operator(lambda node, inputs: [like(inputs[0], dtype=dtype)], run)


# ---------------------------------------------------------------- two and more operands


def _aligned(node: Node, inputs: Sequence[Any]) -> tuple[Any, Any]:
    """Both operands; before opset 7 the second one's axes could begin at any axis of the first."""
    a, b = inputs[0], inputs[1]
    if node.version < 7 and node.get("broadcast") and node.get("axis") is not None and b.ndim:
        axis = int(node.attributes["axis"]) % max(1, a.ndim)
        shape = (*b.shape, *(1,) * (a.ndim - axis - b.ndim))
        b = Info(shape, b.dtype) if isinstance(b, Info) else b.reshape(shape)
    return a, b


def _binary(function: Callable[[Node, Array, Array, Array], Any], dtype: Any = None) -> Operator:
    def infer(node: Node, inputs: Sequence[Any]) -> list[Info]:
        a, b = _aligned(node, inputs)
        return [like(a, broadcast(a.shape, b.shape), dtype)]

    def run(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
        function(node, *_aligned(node, inputs), outs[0])

    return Operator(infer, run)


def _ufunc(function: Any, dtype: Any = None) -> Operator:
    return _binary(lambda node, a, b, out: function(a, b, out=out, casting="unsafe"), dtype)


def _divide(node: Node, a: Array, b: Array, out: Array) -> None:
    if out.dtype.kind == "f":
        np.divide(a, b, out=out)
        return
    # Integers are divided towards zero; floor_divide rounds down.
    np.floor_divide(a, b, out=out)
    if out.dtype.kind == "i":
        out += (np.remainder(a, b) != 0) & ((a < 0) != (b < 0))


def _modulo(node: Node, a: Array, b: Array, out: Array) -> None:
    (np.fmod if node.get("fmod", 0) else np.mod)(a, b, out=out)


def _power(node: Node, a: Array, b: Array, out: Array) -> None:
    if b.size == 1 and b.reshape(-1)[0] == 2:
        np.multiply(a, a, out=out)
    elif out.dtype.kind in "iu" and b.dtype.kind == "f":
        np.copyto(out, np.power(a.astype(np.float64), b), casting="unsafe")
    else:
        np.power(a, b, out=out, casting="unsafe")


def _shift(node: Node, a: Array, b: Array, out: Array) -> None:
    (np.left_shift if node.get("direction") == "LEFT" else np.right_shift)(a, b, out=out)


def _prelu(node: Node, a: Array, slope: Array, out: Array) -> None:
    if slope.ndim == 1 and node.version < 9 and a.ndim > 1 and slope.size > 1:
        slope = slope.reshape(-1, *(1,) * (a.ndim - 2))
    np.copyto(out, np.where(a < 0, a * slope, a), casting="unsafe")


def _prelu_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    return [like(inputs[0])]


def _folded(function: Any, mean: bool = False) -> Operator:
    """Max, Min, Sum and Mean of any number of operands."""

    def infer(node: Node, inputs: Sequence[Any]) -> list[Info]:
        if not inputs:
            raise Misfit("it has no input")
        return [like(inputs[0], broadcast(*(x.shape for x in inputs)))]

    def run(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
        out = outs[0]
        if len(inputs) == 1:
            np.copyto(out, inputs[0])
            return
        function(inputs[0], inputs[1], out=out)
        for x in inputs[2:]:
            function(out, x, out=out)
        if mean:
            np.divide(out, len(inputs), out=out)

    return Operator(infer, run)


def _where_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    return [like(inputs[1], broadcast(*(x.shape for x in inputs)))]


def _where(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    condition, x, y = inputs
    np.copyto(outs[0], y)
    np.copyto(outs[0], x, where=condition)


# ---------------------------------------------------------------- activations


def clip_limits(node: Node, inputs: Sequence[Any]) -> tuple[Any, Any]:
    """Lower and upper limit of a Clip, each None where there is none; some exporters write them with an axis."""
    if node.version < 11:
        return node.get("min"), node.get("max")
    low, high = (optional(inputs, i) for i in (1, 2))
    return low, high


def _clip(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out = inputs[0], outs[0]
    low, high = clip_limits(node, inputs)
    if low is not None:
        np.maximum(x, np.asarray(low, x.dtype).reshape(()), out=out)
        x = out
    if high is not None:
        np.minimum(x, np.asarray(high, x.dtype).reshape(()), out=out)
        x = out
    if x is not out:
        np.copyto(out, x)


def _leaky_relu(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    alpha = node.get("alpha", 0.01)
    if abs(alpha - 0.01) < 1e-9:
        activate("leaky_relu", inputs[0], outs[0])
    else:
        np.copyto(outs[0], np.where(inputs[0] < 0, inputs[0] * outs[0].dtype.type(alpha), inputs[0]))


def _gelu(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    activate("gelu_tanh" if node.get("approximate", "none") == "tanh" else "gelu", inputs[0], outs[0])


def _swish(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    alpha = node.get("alpha", 1.0)
    if alpha == 1:
        activate("silu", inputs[0], outs[0])
        return
    np.multiply(inputs[0], outs[0].dtype.type(alpha), out=outs[0])
    activate("sigmoid", outs[0], outs[0])
    np.multiply(outs[0], inputs[0], out=outs[0])


def _hard_sigmoid(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    out = outs[0]
    alpha, beta = out.dtype.type(node.get("alpha", 0.2)), out.dtype.type(node.get("beta", 0.5))
    np.multiply(inputs[0], alpha, out=out)
    np.add(out, beta, out=out)
    np.maximum(out, out.dtype.type(0), out=out)
    np.minimum(out, out.dtype.type(1), out=out)


def _selu(node: Node, x: Array) -> Array:
    alpha, gamma = node.get("alpha", 1.67326319217681884765625), node.get("gamma", 1.05070102214813232421875)
    return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _elu(node: Node, x: Array) -> Array:
    return np.where(x > 0, x, node.get("alpha", 1.0) * np.expm1(np.minimum(x, 0)))


def _celu(node: Node, x: Array) -> Array:
    alpha = node.get("alpha", 1.0)
    return np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(x / alpha))


def _shrink(node: Node, x: Array) -> Array:
    bias, limit = node.get("bias", 0.0), node.get("lambd", 0.5)
    return np.where(x < -limit, x + bias, np.where(x > limit, x - bias, 0))


def _is_infinite(node: Node, x: Array) -> Array:
    positive, negative = node.get("detect_positive", 1), node.get("detect_negative", 1)
    return (np.isposinf(x) & bool(positive)) | (np.isneginf(x) & bool(negative))


def _erf(x: Array, out: Array) -> None:
    if out.dtype in _KERNEL_TYPES:
        special.erf(x, out=out)
    else:
        np.copyto(out, special.erf(np.asarray(x, np.float64)), casting="unsafe")


def _round(x: Array, out: Array) -> None:
    np.rint(x, out=out)


def _arithmetic_negative(x: Array, out: Array) -> None:
    np.negative(x, out=out)


_UNARY: dict[str, Any] = {
    "Abs": np.abs, "Neg": _arithmetic_negative, "Sqrt": np.sqrt, "Exp": np.exp, "Log": np.log, "Floor": np.floor,
    "Ceil": np.ceil, "Round": _round, "Sign": np.sign, "Sin": np.sin, "Cos": np.cos, "Tan": np.tan,
    "Asin": np.arcsin, "Acos": np.arccos, "Atan": np.arctan, "Sinh": np.sinh, "Cosh": np.cosh, "Asinh": np.arcsinh,
    "Acosh": np.arccosh, "Atanh": np.arctanh, "Reciprocal": np.reciprocal, "BitwiseNot": np.invert, "Erf": _erf,
}  # fmt: skip
_BINARY: dict[str, Any] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "BitwiseAnd": np.bitwise_and, "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
}  # fmt: skip
_COMPARISONS: dict[str, Any] = {
    "Equal": np.equal, "Less": np.less, "LessOrEqual": np.less_equal, "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal, "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor,
}  # fmt: skip

OPERATORS: dict[str, Operator] = {
    **{name: _unary(function) for name, function in _UNARY.items()},
    **{name: _ufunc(function) for name, function in _BINARY.items()},
    **{name: _ufunc(function, np.bool_) for name, function in _COMPARISONS.items()},
    "Not": _unary(np.logical_not, np.bool_),
    "IsNaN": _unary(np.isnan, np.bool_),
    "IsInf": _formula(_is_infinite, np.bool_),
    "Div": _binary(_divide),
    "Mod": _binary(_modulo),
    "Pow": _binary(_power),
    "BitShift": _binary(_shift),
    "PRelu": Operator(_prelu_shape, lambda node, inputs, outs: _prelu(node, inputs[0], inputs[1], outs[0])),
    "Max": _folded(np.maximum),
    "Min": _folded(np.minimum),
    "Sum": _folded(np.add),
    "Mean": _folded(np.add, mean=True),
    "Where": Operator(_where_shape, _where),
    "Relu": _unary(lambda x, out: np.maximum(x, x.dtype.type(0), out=out)),
    "Clip": Operator(same, _clip),
    "LeakyRelu": Operator(same, _leaky_relu),
    "Sigmoid": _by_kernel("sigmoid"),
    "Tanh": _by_kernel("tanh"),
    "HardSwish": _by_kernel("hardswish"),
    "Gelu": Operator(same, _gelu),
    "Swish": Operator(same, _swish),
    "HardSigmoid": Operator(same, _hard_sigmoid),
    "Elu": _formula(_elu),
    "Selu": _formula(_selu),
    "Celu": _formula(_celu),
    "Softplus": _unary(lambda x, out: np.logaddexp(x, x.dtype.type(0), out=out)),
    "Softsign": _formula(lambda node, x: x / (1 + np.abs(x))),
    "Mish": _formula(lambda node, x: x * np.tanh(np.logaddexp(x, x.dtype.type(0)))),
    "ThresholdedRelu": _formula(lambda node, x: np.where(x > node.get("alpha", 1.0), x, 0)),
    "Shrink": _formula(_shrink),
}
