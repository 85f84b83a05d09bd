"""Optimizer steps, in place over values: one pass that reads and writes each array once.

NumPy needs five to twelve passes and as many temporary arrays for the same formulas; these updates are bound by memory,
so passes are what they cost. Rates and factors come at run time: one variant serves all of them.
"""

from __future__ import annotations

from typing import Any

from . import simd
from .compiler import compile_kernel, compiled_once, kernel_arguments
from .simd.math import Lanes, fma, lanewise, multiply, multiply_add, sqrt

CHUNK = 8192  # elements of a task, a multiple of VL
SGD_KINDS = "plain", "momentum", "nesterov"

# Contiguous arrays of `count` elements; a task is `chunk` elements. `numbers` are floats of the same size.
SGD = kernel_arguments("count", "chunk", "value", "grad", "velocity", "numbers")  # numbers: -rate, momentum, decay
ADAM = kernel_arguments(
    "count",
    "chunk",
    "value",
    "grad",
    "first",
    "second",
    # beta1, 1 - beta1, beta2, 1 - beta2, 1 / sqrt(1 - beta2^t), eps, -rate / (1 - beta1^t), decay, shrink
    "numbers",
)
_sgd = simd.arguments_view(SGD)
_adam = simd.arguments_view(ADAM)


def _root(second: Lanes, scale: Lanes, eps: Lanes) -> Lanes:
    return fma(sqrt(second), scale, eps)


@compiled_once
def sgd_kernel(kind: str, bits: int, lanes: int) -> Any:
    """g = grad + decay value; v = momentum v + g; value -= rate (g + momentum v | v | g) by `kind`."""
    size = bits // 8

    def sgd(arguments, slot):  # type: ignore[no-untyped-def]
        a = _sgd(arguments)
        like = simd.zeros(1, lanes, bits)
        rate, momentum = simd.filled(like, a.numbers), simd.filled(like, a.numbers + size)
        decay = simd.filled(like, a.numbers + 2 * size)
        for task in simd.tasks(arguments):
            for i in range(task * a.chunk, min(a.count, (task + 1) * a.chunk), lanes):
                at, rest = i * size, a.count - i
                value = simd.load_first(like, a.value + at, rest)
                step = multiply_add(decay, value, simd.load_first(like, a.grad + at, rest))
                if kind != "plain":
                    velocity = multiply_add(momentum, simd.load_first(like, a.velocity + at, rest), step)
                    simd.store_first(velocity, a.velocity + at, rest)
                    step = multiply_add(momentum, velocity, step) if kind == "nesterov" else velocity
                simd.store_first(multiply_add(rate, step, value), a.value + at, rest)

    return compile_kernel(sgd, f"sgd_{kind}_f{bits}_v{lanes}")


@compiled_once
def adam_kernel(bits: int, lanes: int) -> Any:
    """Both moments and value, which is shrunk first (AdamW); decay is added to the gradient (Adam)."""
    size = bits // 8
    root = lanewise(_root, 3)
    quotient = lanewise(lambda x, y: x / y, 2)

    def adam(arguments, slot):  # type: ignore[no-untyped-def]
        a = _adam(arguments)
        like = simd.zeros(1, lanes, bits)
        beta1, rest1 = simd.filled(like, a.numbers), simd.filled(like, a.numbers + size)
        beta2, rest2 = simd.filled(like, a.numbers + 2 * size), simd.filled(like, a.numbers + 3 * size)
        scale, eps = simd.filled(like, a.numbers + 4 * size), simd.filled(like, a.numbers + 5 * size)
        rate, decay = simd.filled(like, a.numbers + 6 * size), simd.filled(like, a.numbers + 7 * size)
        shrink = simd.filled(like, a.numbers + 8 * size)
        for task in simd.tasks(arguments):
            for i in range(task * a.chunk, min(a.count, (task + 1) * a.chunk), lanes):
                at, rest = i * size, a.count - i
                value = simd.load_first(like, a.value + at, rest)
                grad = multiply_add(decay, value, simd.load_first(like, a.grad + at, rest))
                first = multiply_add(beta1, simd.load_first(like, a.first + at, rest), multiply(rest1, grad))
                squares = multiply(rest2, multiply(grad, grad))
                second = multiply_add(beta2, simd.load_first(like, a.second + at, rest), squares)
                simd.store_first(first, a.first + at, rest)
                simd.store_first(second, a.second + at, rest)
                step = quotient(first, root(second, scale, eps))
                simd.store_first(multiply_add(rate, step, multiply(value, shrink)), a.value + at, rest)

    return compile_kernel(adam, f"adam_f{bits}_v{lanes}")
