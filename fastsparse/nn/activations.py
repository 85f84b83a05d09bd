"""Activations as layers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse import checks
from fastsparse.checks import as_array
from fastsparse.nn.module import Module, check_gradient
from fastsparse.ops import activations as activation_ops
from fastsparse.ops import softmax as softmax_ops

Array = NDArray[Any]


def floating(x: ArrayLike) -> Array:
    """`x` as a float32 or float64 array; float16, integers and bool become float32."""
    array = x if type(x) is np.ndarray else as_array(x, "x")
    if array.dtype in (np.float32, np.float64):
        return array
    if array.dtype.kind in "biu" or array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind == "f" and array.dtype.itemsize <= 8:
        return array.astype(array.dtype.newbyteorder("="))
    raise TypeError(f"x has dtype {array.dtype.name}, expected float32 or float64")


class Activation(Module):
    """A layer of one activation."""

    _name: ClassVar[str]

    def forward(self, x: ArrayLike) -> Array:
        array = floating(x)
        y = activation_ops.activate(self._name, array)
        self._keep(y if self._name in activation_ops.FROM_OUTPUT else array)
        return y

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        kept = self._taken()
        grad = check_gradient(dy, kept.shape, kept.dtype)
        return activation_ops.activate_backward(self._name, grad, kept) if need_input else None

    @property
    def activation(self) -> str:
        """Name of the activation, as functions and sparse layers take it."""
        return self._name


class ReLU(Activation):
    """max(x, 0)."""

    _name = "relu"


class ReLU6(Activation):
    """min(max(x, 0), 6)."""

    _name = "relu6"


class LeakyReLU(Activation):
    """x where it is positive, 0.01 x elsewhere."""

    _name = "leaky_relu"


class Sigmoid(Activation):
    """1 / (1 + exp(-x))."""

    _name = "sigmoid"


class Tanh(Activation):
    """Hyperbolic tangent."""

    _name = "tanh"


class SiLU(Activation):
    """x * sigmoid(x)."""

    _name = "silu"


class Hardswish(Activation):
    """x * min(max(x + 3, 0), 6) / 6."""

    _name = "hardswish"


class Hardsigmoid(Activation):
    """min(max(x + 3, 0), 6) / 6."""

    _name = "hardsigmoid"


class GELU(Activation):
    """x times the normal distribution function of x.

    Parameters
    ----------
    approximate : {"none", "tanh"}
        "tanh" takes the approximation by tanh (Hendrycks and Gimpel, arXiv:1606.08415, section 2).
    """

    _name = "gelu"

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = checks.choice(approximate, "approximate", ("none", "tanh"))
        if approximate == "tanh":
            self._name = "gelu_tanh"  # type: ignore[misc]


class Softmax(Module):
    """exp(x) over its sum along `axis`."""

    def __init__(self, axis: int = -1) -> None:
        self.axis = checks.integer(axis, "axis", -checks.INT64_MAX)

    def forward(self, x: ArrayLike) -> Array:
        array = floating(x)
        if not -array.ndim <= self.axis < array.ndim or not array.shape[self.axis]:
            raise ValueError(f"x has shape {array.shape}, expected at least one number along axis {self.axis}")
        if self.axis in (-1, array.ndim - 1):
            y = softmax_ops.softmax(array)
        else:
            y = np.exp(array - array.max(axis=self.axis, keepdims=True))
            y /= y.sum(axis=self.axis, keepdims=True)
        self._keep(y)
        return y

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        y = self._taken()
        grad = check_gradient(dy, y.shape, y.dtype)
        return y * (grad - (grad * y).sum(axis=self.axis, keepdims=True)) if need_input else None
