"""Scaled dot-product attention: softmax(scale Q K^T) V for every head of every sample.

Q is (queries, heads * length), K and V (keys, heads * length), all contiguous; a head is a range of columns.
A task is a head of a sample. It transposes K once, so that a query's scores are sums over contiguous keys, then goes
query by query: scores, their softmax, and the sum of V's rows. Scores exist for one query at a time. Sums over the
length and over keys ascend, so results do not depend on the number of threads. A causal query sees the keys up to its
own, the last query all of them. A mask is added to the scores: -inf hides a key, and a query from which all keys are
hidden gets zeros.

Source: Vaswani et al., Attention is all you need, NeurIPS 2017, section 3.2. Time: O(queries keys length) per head.
"""

from __future__ import annotations

from typing import Any

from . import simd
from .compiler import compile_kernel, compiled_once, kernel_arguments, kernel_function
from .simd.math import broadcast, multiply
from .softmax import make_softmax_row

# Tasks: samples * heads.
ATTENTION = kernel_arguments(
    "heads",
    "length",  # numbers of a head
    "queries",
    "keys",
    "causal",
    "scale",  # a number of x's type
    "mask",  # (samples, keys) of x's type, 0 or -inf; address 0: every key is seen
    "q",
    "k",
    "v",
    "y",
    "scratch",
    "scratch_stride",  # scratch_bytes(...)
)
TILE = 4  # vectors of scores, or of a result, at a time

_attention = simd.arguments_view(ATTENTION)


def scratch_bytes(length: int, keys: int, bits: int, lanes: int) -> int:
    """Of a worker: K transposed, and the scores of a query."""
    return (length + 1) * (-(-keys // lanes) * lanes) * bits // 8


@compiled_once
def attention_kernel(bits: int, lanes: int) -> Any:
    """Kernel with arguments ATTENTION."""
    size = bits // 8
    softmax_row = make_softmax_row(bits, lanes)

    @kernel_function
    def transpose_keys(k, row, keys, length, to, to_row):  # type: ignore[no-untyped-def]
        """to[c, j] = k[j, c], with zeros behind the last key."""
        square = simd.zeros(lanes, lanes, bits)
        for j in range(0, keys, lanes):
            for c in range(0, length, lanes):
                tile = simd.load_rows(square, k + j * row + c * size, row, min(lanes, keys - j), min(lanes, length - c))
                simd.store_rows(simd.transpose(tile), to + c * to_row + j * size, to_row, min(lanes, length - c), lanes)

    @kernel_function
    def scores(q, kt, kt_row, count, length, scale, to):  # type: ignore[no-untyped-def]
        """to[j] = scale * sum over c of q[c] * kt[c, j], for whole vectors that hold the first `count` keys."""
        j = 0
        while j + TILE * lanes <= count:
            tile = simd.zeros(TILE, lanes, bits)
            for c in range(length):
                tile = simd.axpy(tile, q + c * size, kt + j * size, c * kt_row)
            simd.store(multiply(tile, broadcast(tile, scale)), to + j * size)
            j += TILE * lanes
        while j < count:
            vector = simd.zeros(1, lanes, bits)
            for c in range(length):
                vector = simd.axpy(vector, q + c * size, kt + j * size, c * kt_row)
            simd.store(multiply(vector, broadcast(vector, scale)), to + j * size)
            j += lanes

    @kernel_function
    def mix(p, v, row, count, length, y):  # type: ignore[no-untyped-def]
        """y[c] = sum over j of p[j] * v[j, c]."""
        c = 0
        while c + TILE * lanes <= length:
            tile = simd.zeros(TILE, lanes, bits)
            for j in range(count):
                tile = simd.axpy(tile, p + j * size, v + c * size, j * row)
            simd.store(tile, y + c * size)
            c += TILE * lanes
        while c < length:
            vector, width = simd.zeros(1, lanes, bits), min(lanes, length - c)
            for j in range(count):
                vector = simd.axpy_tile(vector, p + j * size, simd.load_first(vector, v + c * size + j * row, width))
            simd.store_first(vector, y + c * size, width)
            c += lanes

    @kernel_function
    def first_seen(mask, keys):  # type: ignore[no-untyped-def]
        """The first key that is not hidden; `keys` when all are."""
        j = 0
        while j < keys and simd.load_float(bits, mask + j * size) < 0:
            j += 1
        return j

    @kernel_function
    def add_mask(p, mask, count):  # type: ignore[no-untyped-def]
        like = simd.zeros(1, lanes, bits)
        for j in range(0, count, lanes):
            hidden = simd.load_first(like, mask + j * size, min(lanes, count - j))
            simd.store(simd.add(simd.load(like, p + j * size), hidden), p + j * size)

    @kernel_function
    def clear(y, length):  # type: ignore[no-untyped-def]
        like = simd.zeros(1, lanes, bits)
        for c in range(0, length, lanes):
            simd.store_first(like, y + c * size, min(lanes, length - c))

    def attention(arguments, slot):  # type: ignore[no-untyped-def]
        a = _attention(arguments)
        scale = simd.load_float(bits, a.scale)
        kt = a.scratch + slot * a.scratch_stride
        row = a.heads * a.length * size
        kt_row = (a.keys + lanes - 1) // lanes * lanes * size
        p = kt + a.length * kt_row
        for task in simd.tasks(arguments):
            head = task % a.heads * a.length * size
            queries, keys = task // a.heads * a.queries * row + head, task // a.heads * a.keys * row + head
            transpose_keys(a.k + keys, row, a.keys, a.length, kt, kt_row)
            mask, seen = a.mask, 0
            if mask != 0:
                mask += task // a.heads * a.keys * size
                seen = first_seen(mask, a.keys)
            for i in range(a.queries):
                count = a.keys
                if a.causal:
                    count = min(a.keys, max(1, a.keys - a.queries + i + 1))
                if count <= seen:
                    clear(a.y + queries + i * row, a.length)
                    continue
                scores(a.q + queries + i * row, kt, kt_row, count, a.length, scale, p)
                if mask != 0:
                    add_mask(p, mask, count)
                full = count // lanes * lanes
                softmax_row(p, p, full, count - full)
                mix(p, a.v + keys, row, count, a.length, a.y + queries + i * row)

    return compile_kernel(attention, f"attention_f{bits}_v{lanes}")
