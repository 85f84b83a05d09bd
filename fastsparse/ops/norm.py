"""Batch norm, forward and backward, and layer norm. Sums over a batch, or a row, are taken in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.ops.target import Target, target_for
from fastsparse.runtime import buffers
from fastsparse.runtime.buffers import address, in_place_out, read_address, readable
from fastsparse.runtime.launch import Arguments, Field, Launch
from fastsparse.runtime.memo import bounded_cache
from fastsparse_kernels import norm as kernels

Array = NDArray[Any]
_BLOCK_NUMBERS = 2**15  # of a layer norm's backward pass at a time, in float64


# ------------------------------------------------------------------------------------------------- batch norm


def batch_norm_train(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array]:
    """Normalise x (N, C, ...) per channel by its own mean and biased variance.

    Returns
    -------
    y (shape of x), mean (C,) float64, variance (C,) float64
    """
    mean, variance = np.empty(x.shape[1]), np.empty(x.shape[1])
    return _batch_norm(x, gamma, beta, mean, variance, eps, training=True), mean, variance


def batch_norm_eval(x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, eps: float) -> Array:
    """gamma (x - mean) / sqrt(variance + eps) + beta per channel, for x (N, C, ...)."""
    return _batch_norm(x, gamma, beta, mean, variance, eps, training=False)


def batch_norm_backward(
    dy: Array, x: Array, gamma: Array, mean: Array, variance: Array, eps: float
) -> tuple[Array, Array, Array]:
    """Gradients of :func:`batch_norm_train`: grad_x (shape of x), grad_gamma (C,), grad_beta (C,)."""
    x = readable(x)
    dy, channels = readable(dy, x.dtype), x.shape[1]
    grad_x, grad_gamma, grad_beta = buffers.array(x.shape, x.dtype), np.empty(channels), np.empty(channels)
    statistics = [_per_channel(a, channels, n) for a, n in ((gamma, "gamma"), (mean, "mean"), (variance, "variance"))]
    dy_address = read_address(dy, x.dtype, x.size, "dy")
    launch = _backward(x.shape, eps, target_for(x.dtype))
    launch.run(dy_address, *map(address, (grad_x, x, *statistics, grad_gamma, grad_beta)))
    return grad_x, grad_gamma.astype(x.dtype), grad_beta.astype(x.dtype)


def _batch_norm(
    x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, eps: float, *, training: bool
) -> Array:
    """gamma, beta, mean, variance : (C,); training writes the last two, float64, otherwise they are read."""
    x = readable(x)
    y, channels = buffers.array(x.shape, x.dtype), x.shape[1]
    scale, shift = _per_channel(gamma, channels, "gamma"), _per_channel(beta, channels, "beta")
    if not training:
        mean, variance = _per_channel(mean, channels, "mean"), _per_channel(variance, channels, "variance")
    launch = _forward(x.shape, eps, training, target_for(x.dtype))
    launch.run(*map(address, (x, y, scale, shift, mean, variance)))
    return y


def _per_channel(array: Array, channels: int, name: str) -> NDArray[np.float64]:
    """An array (C,) as the kernels read it."""
    wide = readable(array, np.dtype(np.float64))
    read_address(wide, wide.dtype, channels, name)
    return wide


@bounded_cache
def _forward(shape: tuple[int, ...], eps: float, training: bool, target: Target) -> Launch:
    parts = -(-shape[0] // kernels.PARTS)
    first = max(1, min(parts, kernels.FIRST_NUMBERS // max(1, math.prod(shape[2:]))))
    return _prepare(
        kernels.batch_norm_kernel, kernels.BATCH_NORM, ("x", "y", "gamma", "beta", "mean", "variance"), shape, eps,
        target, training=int(training), first_images=min(first, shape[0]),
    )  # fmt: skip


@bounded_cache
def _backward(shape: tuple[int, ...], eps: float, target: Target) -> Launch:
    operands = ("dy", "dx", "x", "gamma", "mean", "variance", "grad_gamma", "grad_beta")
    return _prepare(kernels.batch_norm_grad_kernel, kernels.BATCH_NORM_GRAD, operands, shape, eps, target)


def _prepare(
    kernel: Any, dtype: Any, operands: tuple[str, ...], shape: tuple[int, ...], eps: float, target: Target,
    **fields: int,
) -> Launch:  # fmt: skip
    h, (images, channels), positions = target.heuristics, shape[:2], math.prod(shape[2:])
    columns = positions == 1
    lines = -(-channels // target.lanes) if columns else channels
    line_bytes = (target.lanes if columns else max(1, positions)) * target.size
    share = -(-lines // (h.norm_blocks_per_worker * target.threads)) if target.threads > 1 else lines
    block = max(1, min(h.norm_block_bytes // line_bytes, share))
    scratch = block * kernels.scratch_line(target.bits, target.lanes)
    arguments = Arguments(
        dtype,
        images=images,
        lines=lines,
        block=block,
        channels=channels,
        positions=positions,
        image_stride=channels * positions * target.size,
        eps=np.array([eps], np.float64),
        **fields,
    )
    return Launch(
        kernel(target.bits, target.lanes, int(columns)), arguments, operands, target.loop,
        tasks=-(-lines // block), flops=h.norm_flops * math.prod(shape), scratch=scratch,
        label=("batch norm", "x".join(map(str, shape)), "", "NCHW"),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- layer norm


def layer_norm(
    x: Array, gamma: Array, beta: Array | None, eps: float, out: Array | None = None, *, centred: bool = True
) -> Array:
    """gamma (x - mean) / sqrt(variance + eps) + beta along the last axis, for gamma and beta of its size.

    centred : False takes the mean for 0: the root mean square norm
    out : contiguous, may be x
    """
    x = readable(x)
    columns, scale, shift = x.shape[-1], readable(gamma, x.dtype), None if beta is None else readable(beta, x.dtype)
    y = in_place_out(out, x, scale, shift)
    if x.size:
        launch = prepare_layer_norm(x.size // columns, columns, eps, centred, target_for(x.dtype))
        shift_address = 0 if shift is None else read_address(shift, x.dtype, columns, "beta")
        launch.run(address(x), address(y), read_address(scale, x.dtype, columns, "gamma"), shift_address)
    return y


@bounded_cache
def prepare_layer_norm(rows: int, columns: int, eps: float, centred: bool, target: Target) -> Launch:
    """Layer norm of contiguous rows; operands x, y, gamma, beta (0 for none)."""
    kernel, operands = kernels.layer_norm_kernel(target.bits, target.lanes), ("x", "y", "gamma", "beta")
    fields: dict[str, Field] = {"eps": np.array([eps], np.float64), "centred": int(centred)}
    return prepare_rows(kernel, kernels.LAYER_NORM, operands, rows, columns, target, "layer norm", **fields)


def layer_norm_backward(
    dy: Array, x: Array, gamma: Array, eps: float, *, centred: bool = True
) -> tuple[Array, Array, Array]:
    """Gradients of :func:`layer_norm` with x and dy (rows, columns): grad_x, grad_gamma and grad_beta (columns,).

    Statistics, means and sums are float64, in blocks of rows that stay in a cache.
    """
    rows, columns = x.shape
    grad_x, wide = buffers.array(x.shape, x.dtype), gamma.astype(np.float64)
    grad_gamma, grad_beta = np.zeros(columns), np.zeros(columns)
    block = max(1, _BLOCK_NUMBERS // max(1, columns))
    for start in range(0, rows, block):
        part = slice(start, start + block)
        normal, grad = x[part].astype(np.float64), dy[part].astype(np.float64)
        if centred:
            normal -= normal.mean(axis=1, keepdims=True)
        inverse = 1 / np.sqrt((normal * normal).mean(axis=1, keepdims=True) + eps)
        normal *= inverse
        grad_beta += grad.sum(axis=0)
        grad_gamma += (grad * normal).sum(axis=0)
        grad *= wide
        normal *= (grad * normal).mean(axis=1, keepdims=True)
        if centred:
            grad -= grad.mean(axis=1, keepdims=True)
        grad_x[part] = inverse * (grad - normal)
    return grad_x, grad_gamma.astype(x.dtype), grad_beta.astype(x.dtype)


def prepare_rows(
    kernel: Any, dtype: Any, operands: tuple[str, ...], rows: int, columns: int, target: Target, label: str,
    **fields: Field,
) -> Launch:  # fmt: skip
    """Launch of a kernel on contiguous rows, several rows per task."""
    h = target.heuristics
    chunk = max(1, h.row_chunk // columns)
    arguments = Arguments(dtype, rows=rows, columns=columns, chunk=chunk, **fields)
    return Launch(
        kernel, arguments, operands, target.loop,
        tasks=-(-rows // chunk), flops=h.row_flops * rows * columns,
        label=(label, f"{rows}x{columns}", "", "row-major"),
    )  # fmt: skip
