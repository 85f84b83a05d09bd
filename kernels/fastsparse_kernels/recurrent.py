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

LSTM, GRU, RNN_TANH, RNN_RELU = KINDS = range(4)
GATES = (4, 3, 1, 1)
_NAMES = ("lstm", "gru", "rnn_tanh", "rnn_relu")

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
def cell_kernel(kind: int, bits: int, lanes: int) -> Any:
    """Kernel with arguments CELL."""
    size = bits // 8

    @inlined_function
    def load(like, address, valid):  # type: ignore[no-untyped-def]
        return simd.load(like, address) if valid >= lanes else simd.load_first(like, address, valid)

    @inlined_function
    def store(tile, address, valid):  # type: ignore[no-untyped-def]
        if valid >= lanes:
            simd.store(tile, address)
        else:
            simd.store_first(tile, address, valid)

    if kind == LSTM:

        @inlined_function
        def next_state(like, x, u, before, after, gate, valid):  # type: ignore[no-untyped-def]
            i, g = _sigmoid(load(like, x, valid)), _tanh(load(like, x + 3 * gate, valid))
            f = _sigmoid(load(like, x + 2 * gate, valid))
            c = multiply_add(f, load(like, before, valid), multiply(i, g))
            store(c, after, valid)
            return multiply(_sigmoid(load(like, x + gate, valid)), _tanh(c))

    elif kind == GRU:

        @inlined_function
        def next_state(like, x, u, before, after, gate, valid):  # type: ignore[no-untyped-def]
            z = _sigmoid_of_sum(load(like, x, valid), load(like, u, valid))
            r = _sigmoid_of_sum(load(like, x + gate, valid), load(like, u + gate, valid))
            n = _candidate(load(like, x + 2 * gate, valid), r, load(like, u + 2 * gate, valid))
            return _mixed(z, load(like, before, valid), n)

    else:
        activation = _tanh if kind == RNN_TANH else _relu_of

        @inlined_function
        def next_state(like, x, u, before, after, gate, valid):  # type: ignore[no-untyped-def]
            return activation(load(like, x, valid))

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
                store(state, h + at, valid)
                if a.also != 0:
                    store(state, also + at, valid)

    return compile_kernel(cell, f"cell_{_NAMES[kind]}_f{bits}_v{lanes}")
