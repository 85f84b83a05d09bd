"""Sparse input times sparse weights: work follows the matching nonzeros, nothing sparse is made dense.

Forward, row by row (Gustavson, 1978): y[b] = sum over x's nonzeros k of row b, ascending, of x[b, k] * W^T[k], added
into the one dense row y[b]. Gradient at W's nonzeros, column by column: dW^T[k] = sum over the samples b that have
column k, ascending, of x[b, k] * dy[b]. One writer per row of y and per column of W.
"""

from __future__ import annotations

from typing import Any

from . import simd
from .activations import make_finish
from .compiler import compile_kernel, compiled_once, kernel_arguments, kernel_function

FORWARD = kernel_arguments(
    # tasks are chunks of samples
    "samples",
    "chunk",
    "x_indptr",  # int64 [samples + 1]
    "x_indices",  # uint32
    "x_values",
    "w_indptr",  # W^T: int64 [in + 1]
    "w_indices",  # uint32, outputs
    "w_values",
    "outputs",
    "y",  # [samples, outputs]
    "y_row_stride",
    "bias",  # float [outputs] or 0
    "limits",  # float [2]
    "activation",  # as in spmm
    "scratch",  # one vector per worker
    "scratch_stride",
)
_forward = simd.arguments_view(FORWARD)

GRADIENT = kernel_arguments(
    # tasks are chunks of inputs
    "inputs",
    "chunk",
    "x_indptr",  # x by columns: int64 [inputs + 1]
    "x_indices",  # uint32, samples
    "x_values",
    "w_indptr",  # W^T: int64 [inputs + 1]
    "w_indices",  # uint32, outputs
    "gradients",  # float [nnz] in the order of W^T, zeroed by the caller
    "dy",  # [samples, outputs]
    "dy_row_stride",
)
_gradient = simd.arguments_view(GRADIENT)


@compiled_once
def forward_kernel(bits: int, lanes: int) -> Any:
    """y = epilogue(x @ W^T)."""
    size, finish = bits // 8, make_finish(bits, lanes)

    @kernel_function
    def clear(y, count):  # type: ignore[no-untyped-def]
        for i in range(0, count, lanes):
            simd.store_first(simd.zeros(1, lanes, bits), y + i * size, count - i)

    @kernel_function
    def add_row(a, column, value, y):  # type: ignore[no-untyped-def]
        p, end = simd.load_i64(a.w_indptr + column * 8), simd.load_i64(a.w_indptr + column * 8 + 8)
        w_indices, w_values = a.w_indices, a.w_values
        while p < end:
            at = y + simd.load_u32(w_indices + p * 4) * size
            weight = simd.load_float(bits, w_values + p * size)
            simd.store_float(simd.fma(value, weight, simd.load_float(bits, at)), at)
            p += 1

    @kernel_function
    def finish_row(a, y, count, low, high, scratch):  # type: ignore[no-untyped-def]
        for i in range(0, count, lanes):
            acc = simd.load_first(simd.zeros(1, lanes, bits), y + i * size, count - i)
            finish(a, acc, i, count - i, y, low, high, scratch)

    def forward(arguments, slot):  # type: ignore[no-untyped-def]
        a = _forward(arguments)
        low, high = simd.load_float(bits, a.limits), simd.load_float(bits, a.limits + size)
        for task in simd.tasks(arguments):
            for sample in range(task * a.chunk, min(a.samples, (task + 1) * a.chunk)):
                y = a.y + sample * a.y_row_stride
                clear(y, a.outputs)
                for p in range(simd.load_i64(a.x_indptr + sample * 8), simd.load_i64(a.x_indptr + sample * 8 + 8)):
                    add_row(a, simd.load_u32(a.x_indices + p * 4), simd.load_float(bits, a.x_values + p * size), y)
                finish_row(a, y, a.outputs, low, high, a.scratch + slot * a.scratch_stride)

    return compile_kernel(forward, f"spgemm_forward_f{bits}_v{lanes}")


@compiled_once
def gradient_kernel(bits: int) -> Any:
    """dW^T at its nonzeros."""
    size = bits // 8

    @kernel_function
    def add_sample(a, first, last, value, dy):  # type: ignore[no-untyped-def]
        p = first
        w_indices, gradients = a.w_indices, a.gradients
        while p < last:
            at = gradients + p * size
            slope = simd.load_float(bits, dy + simd.load_u32(w_indices + p * 4) * size)
            simd.store_float(simd.fma(value, slope, simd.load_float(bits, at)), at)
            p += 1

    def gradient(arguments, slot):  # type: ignore[no-untyped-def]
        a = _gradient(arguments)
        for task in simd.tasks(arguments):
            for column in range(task * a.chunk, min(a.inputs, (task + 1) * a.chunk)):
                first, last = simd.load_i64(a.w_indptr + column * 8), simd.load_i64(a.w_indptr + column * 8 + 8)
                for p in range(simd.load_i64(a.x_indptr + column * 8), simd.load_i64(a.x_indptr + column * 8 + 8)):
                    value = simd.load_float(bits, a.x_values + p * size)
                    add_sample(a, first, last, value, a.dy + simd.load_u32(a.x_indices + p * 4) * a.dy_row_stride)

    return compile_kernel(gradient, f"spgemm_gradient_f{bits}")
