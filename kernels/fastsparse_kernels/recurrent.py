"""Cells of recurrent layers: from the sums of a step's gates to the next state.

Sums are those of the products, W x + R h + biases, gate by gate: `count` numbers each, one behind the other. What the
numbers are, hidden units of one sample or of a panel of samples, does not matter here. Gates in ONNX's order:

    LSTM (i, o, f, g): after = sigmoid(f) before + sigmoid(i) tanh(g),  h = sigmoid(o) tanh(after)
    GRU (z, r, n):     h = sigmoid(x_z + u_z) (before - n) + n,  n = tanh(x_n + sigmoid(x_r + u_r) u_n)
    RNN:               h = tanh(x) or relu(x)

where x are all sums, or of GRU W x + its biases and u = R h + its biases.

Sources: Hochreiter and Schmidhuber, Long Short-Term Memory, Neural Computation 9 (1997); Cho et al., arXiv:1406.1078,
with the reset gate behind the product, as cuDNN has it. Time: O(numbers). Nothing is allocated.
"""

from __future__ import annotations

from typing import Any

from . import simd
from .compiler import compile_kernel, compiled_once, inlined_function, kernel_arguments
from .simd.math import Lanes, fma, lanewise, multiply, multiply_add, sigmoid, tanh, where

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}  # of every kind

# A task is a panel of samples. All strides in bytes.
CELL = kernel_arguments(
    "count",  # numbers of a gate
    "x",  # float [tasks, gates, count]
    "x_stride",
    "u",  # as x, of GRU
    "u_stride",
    "before",  # float [tasks, count]: c of LSTM, h of GRU
    "before_stride",
    "after",  # as before, of LSTM; may be before
    "after_stride",
    "h",  # float [tasks, count]; of GRU not before
    "h_stride",
    "also",  # where h goes, too; 0 for nowhere
    "also_stride",
)
_cell = simd.arguments_view(CELL)

_sigmoid, _tanh = lanewise(sigmoid, 1), lanewise(tanh, 1)
_sigmoid_of_sum = lanewise(lambda a, b: sigmoid(a + b), 2)
_candidate = lanewise(lambda x, r, u: tanh(fma(r, u, x)), 3)
_mixed = lanewise(lambda z, before, n: fma(z, before - n, n), 3)


def _relu(x: Lanes) -> Lanes:
    return where(x < 0.0, 0.0, x)


_relu_of = lanewise(_relu, 1)


@compiled_once
def cell_kernel(kind: str, bits: int, lanes: int) -> Any:
    """Kernel with arguments CELL."""
    size = bits // 8

    if kind == "lstm":

        @inlined_function
        def next_state(like, x, u, before, after, gate, valid):  # type: ignore[no-untyped-def]
            i, g = _sigmoid(simd.load_first(like, x, valid)), _tanh(simd.load_first(like, x + 3 * gate, valid))
            f = _sigmoid(simd.load_first(like, x + 2 * gate, valid))
            c = multiply_add(f, simd.load_first(like, before, valid), multiply(i, g))
            simd.store_first(c, after, valid)
            return multiply(_sigmoid(simd.load_first(like, x + gate, valid)), _tanh(c))

    elif kind == "gru":

        @inlined_function
        def next_state(like, x, u, before, after, gate, valid):  # type: ignore[no-untyped-def]
            z = _sigmoid_of_sum(simd.load_first(like, x, valid), simd.load_first(like, u, valid))
            r = _sigmoid_of_sum(simd.load_first(like, x + gate, valid), simd.load_first(like, u + gate, valid))
            n = _candidate(simd.load_first(like, x + 2 * gate, valid), r, simd.load_first(like, u + 2 * gate, valid))
            return _mixed(z, simd.load_first(like, before, valid), n)

    else:
        activation = _tanh if kind == "rnn_tanh" else _relu_of

        @inlined_function
        def next_state(like, x, u, before, after, gate, valid):  # type: ignore[no-untyped-def]
            return activation(simd.load_first(like, x, valid))

    def cell(arguments, slot):  # type: ignore[no-untyped-def]
        a = _cell(arguments)
        like, gate = simd.zeros(1, lanes, bits), a.count * size
        for task in simd.tasks(arguments):
            x, u = a.x + task * a.x_stride, a.u + task * a.u_stride
            before, after = a.before + task * a.before_stride, a.after + task * a.after_stride
            h, also = a.h + task * a.h_stride, a.also + task * a.also_stride
            for i in range(0, a.count, lanes):
                at, valid = i * size, a.count - i
                state = next_state(like, x + at, u + at, before + at, after + at, gate, valid)
                simd.store_first(state, h + at, valid)
                if a.also != 0:
                    simd.store_first(state, also + at, valid)

    return compile_kernel(cell, f"cell_{kind}_f{bits}_v{lanes}")
