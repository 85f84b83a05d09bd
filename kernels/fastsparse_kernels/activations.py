"""Activations and their gradients: on a finished tile, and on whole arrays.

A tile's epilogue clamps to (low, high), which serves no activation, relu and relu6; the others run here, on the tile
while it is still in L1, through one function `void(address, vectors)` per activation. `activation_kernel(...).address`
goes into `activation` of the SpMM arguments. The same formulas run on arrays for layers that stand alone and in
training.

Each activation adds an error of at most 4 u max(1, abs(z)); NaN gives NaN. Formulas are evaluated as IEEE 754 says, so
gelu, gelu_tanh, silu and hardswish of -inf are NaN (-inf times 0), as in the oracle and in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from . import simd
from .compiler import compile_kernel, compiled_once, inlined_function, kernel_arguments
from .simd.math import Lanes, clip, exp, fma, lanewise, normal_cdf_pdf, sigmoid, sigmoid_pair, tanh, where

LEAKY_SLOPE = 0.01
_TANH_LINEAR = 2 * math.sqrt(2 / math.pi)
_TANH_CUBIC = _TANH_LINEAR * 0.044715

# ---------------------------------------------------------------- formulas


def _relu(z: Lanes) -> Lanes:
    return where(z < 0.0, 0.0, z)


def _relu6(z: Lanes) -> Lanes:
    return clip(z, 0.0, 6.0)


def _leaky_relu(z: Lanes) -> Lanes:
    return where(z < 0.0, LEAKY_SLOPE * z, z)


def _gelu(z: Lanes) -> Lanes:
    return z * normal_cdf_pdf(z)[0]


def _gelu_tanh(z: Lanes) -> Lanes:
    """z (1 + tanh(inner)) / 2 = z sigmoid(2 inner)."""
    return z * sigmoid(z * fma(z * z, _TANH_CUBIC, _TANH_LINEAR))


def _silu(z: Lanes) -> Lanes:
    return z / (1.0 + exp(-z))


def _hardswish(z: Lanes) -> Lanes:
    return z * _hardsigmoid(z)


def _hardsigmoid(z: Lanes) -> Lanes:
    return clip(fma(z, 1 / 6, 0.5), 0.0, 1.0)


def _relu_grad(dy: Lanes, y: Lanes) -> Lanes:
    return dy * where(y > 0.0, y.broadcast(1.0), 0.0)


def _relu6_grad(dy: Lanes, y: Lanes) -> Lanes:
    return dy * where((y > 0.0) & (y < 6.0), y.broadcast(1.0), 0.0)


def _leaky_relu_grad(dy: Lanes, y: Lanes) -> Lanes:
    return dy * where(y > 0.0, y.broadcast(1.0), LEAKY_SLOPE)


def _sigmoid_grad(dy: Lanes, y: Lanes) -> Lanes:
    return dy * (y * (1.0 - y))


def _hardsigmoid_grad(dy: Lanes, z: Lanes) -> Lanes:
    return dy * where((z > -3.0) & (z < 3.0), z.broadcast(1 / 6), 0.0)


def _tanh_grad(dy: Lanes, y: Lanes) -> Lanes:
    return dy * fma(-y, y, 1.0)


def _gelu_grad(dy: Lanes, z: Lanes) -> Lanes:
    law, density = normal_cdf_pdf(z)
    return dy * fma(z, density, law)


def _gelu_tanh_grad(dy: Lanes, z: Lanes) -> Lanes:
    s, rest = sigmoid_pair(z * fma(z * z, _TANH_CUBIC, _TANH_LINEAR))
    held = clip(z, -100.0, 100.0)  # the square must not overflow where s * rest is 0
    return dy * fma(z * (s * rest), fma(held * held, 3 * _TANH_CUBIC, _TANH_LINEAR), s)


def _silu_grad(dy: Lanes, z: Lanes) -> Lanes:
    s, rest = sigmoid_pair(z)
    return dy * fma(z * s, rest, s)


def _hardswish_grad(dy: Lanes, z: Lanes) -> Lanes:
    slope = where(z >= 3.0, 1.0, fma(z, 1 / 3, 0.5))
    return dy * where(z <= -3.0, 0.0, slope)


# One table: name -> (activation of z, gradient from dy and what training keeps, True if it keeps the output).
_TABLE: dict[str, tuple[Callable[[Lanes], Lanes], Callable[[Lanes, Lanes], Lanes], bool]] = {
    "relu": (_relu, _relu_grad, True),
    "relu6": (_relu6, _relu6_grad, True),
    "leaky_relu": (_leaky_relu, _leaky_relu_grad, True),
    "sigmoid": (sigmoid, _sigmoid_grad, True),
    "tanh": (tanh, _tanh_grad, True),
    "gelu": (_gelu, _gelu_grad, False),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_grad, False),
    "silu": (_silu, _silu_grad, False),
    "hardswish": (_hardswish, _hardswish_grad, False),
    "hardsigmoid": (_hardsigmoid, _hardsigmoid_grad, False),
}
ACTIVATIONS = tuple(_TABLE)
KEEPS_OUTPUT = frozenset(name for name, row in _TABLE.items() if row[2])

# ---------------------------------------------------------------- kernels

# Contiguous arrays of `count` elements: y = activation(x), or slope(kept) x, the gradient before the activation from
# the one after it, where `kept` is the activation's output for the names in KEEPS_OUTPUT, its input for the others.
# y may be x. A task is `chunk` elements, a multiple of VL. Tasks: ceil(count / chunk).
ACTIVATION = kernel_arguments("count", "chunk", "x", "kept", "y")
CHUNK = 8192

_activation = simd.arguments_view(ACTIVATION)


@compiled_once
def activation_kernel(name: str, bits: int, lanes: int) -> Any:
    """The epilogue function: in place over `vectors` vectors of `lanes` numbers at `address`."""
    apply = lanewise(_TABLE[name][0], 1)
    vector = lanes * bits // 8

    def activation(address, vectors):  # type: ignore[no-untyped-def]
        like = simd.zeros(1, lanes, bits)
        for i in range(vectors):
            at = address + i * vector
            simd.store(apply(simd.load(like, at)), at)

    return compile_kernel(activation, f"activation_{name}_f{bits}_v{lanes}")


def make_finish(bits: int, lanes: int, sums: int = 0) -> Callable[..., None]:
    """finish(a, acc, at, count, y, low, high, scratch): epilogue of one vector of sums, whose first `count` lanes are y
    from number `at` on, and the store. `a` has the bias, the activation, or 0; the scratch has room for the sums, in
    whole vectors of `lanes`.

    sums : lanes of acc, where it has not as many as the activation's vectors
    """
    size, sums = bits // 8, sums or lanes
    held = max(sums, lanes)

    @inlined_function
    def finish(a, acc, at, count, y, low, high, scratch):  # type: ignore[no-untyped-def]
        if a.bias != 0:
            acc = simd.add(acc, simd.load_first(acc, a.bias + at * size, count))
        acc = simd.clamp(acc, low, high)
        if a.activation != 0:
            for i in range(0, held, sums):
                simd.store(acc, scratch + i * size)
            simd.call(a.activation, scratch, held // lanes)
            acc = simd.load(acc, scratch)
        simd.store_first(acc, y + at * size, count)

    return finish


@compiled_once
def activation_array_kernel(name: str, bits: int, lanes: int) -> Any:
    """Kernel with arguments ACTIVATION: the activation; `kept` is not read."""
    formula = _TABLE[name][0]
    array = _make_array(lambda z, _: formula(z), bits, lanes)
    return compile_kernel(array, f"activation_array_{name}_f{bits}_v{lanes}")


@compiled_once
def activation_grad_kernel(name: str, bits: int, lanes: int) -> Any:
    """Kernel with arguments ACTIVATION: the gradient."""
    gradient = _make_array(_TABLE[name][1], bits, lanes)
    return compile_kernel(gradient, f"activation_grad_{name}_f{bits}_v{lanes}")


def _make_array(formula: Callable[[Lanes, Lanes], Lanes], bits: int, lanes: int) -> Callable[..., None]:
    """y = formula(x, kept) for whole arrays."""
    apply, size = lanewise(formula, 2), bits // 8

    def array(arguments, slot):  # type: ignore[no-untyped-def]
        a = _activation(arguments)
        like = simd.zeros(1, lanes, bits)
        for task in simd.tasks(arguments):
            start = task * a.chunk
            count = min(a.chunk, a.count - start)
            x, kept, y = a.x + start * size, a.kept + start * size, a.y + start * size
            for i in range(0, count, lanes):
                at, left = i * size, count - i
                out = apply(simd.load_first(like, x + at, left), simd.load_first(like, kept + at, left))
                simd.store_first(out, y + at, left)

    return array
