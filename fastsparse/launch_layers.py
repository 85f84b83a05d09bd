"""Launching what networks need beside products: activations, pooling, batch normalisation.

A part of `launch`: contiguous buffers in, kernel calls out, nothing validated.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import workspace
from fastsparse.launch import Call, Record, address, run, run_call
from fastsparse.plan.linear import Machine
from fastsparse.plan.pooling import Bands, Windows, backward_bands, forward_bands
from fastsparse_kernels import activations, norm, pooling
from fastsparse_kernels import softmax as softmax_kernels

Array = NDArray[Any]


# ---------------------------------------------------------------- activations

NAMES = tuple(activations.ACTIVATION_CODES)
KEEPS_OUTPUT = activations.KEEPS_OUTPUT

# What an activation costs per element, in units of launch's estimates.
_ACTIVATION_FLOPS = 4.0


def run_activation(name: str, z: Array, y: Array, m: Machine) -> None:
    """y = activation(z), contiguous arrays of one shape; y may be z."""
    chunk = activations.CHUNK
    record = Record(activations.ACTIVATION, count=z.size, chunk=chunk, x=address(z), y=address(y))
    kernel = activations.activation_array_kernel(activations.ACTIVATION_CODES[name], m.bits, m.lanes)
    run(kernel, record, -(-z.size // chunk), _ACTIVATION_FLOPS * z.size, m.workers)


def run_activation_grad(name: str, dy: Array, kept: Array, dz: Array, m: Machine) -> None:
    """dz = slope * dy, contiguous arrays of one shape; dz may be dy."""
    chunk = activations.CHUNK
    record = Record(
        activations.ACTIVATION_GRAD, count=dy.size, chunk=chunk, dy=address(dy), kept=address(kept), dz=address(dz)
    )
    kernel = activations.activation_grad_kernel(activations.ACTIVATION_CODES[name], m.bits, m.lanes)
    run(kernel, record, -(-dy.size // chunk), _ACTIVATION_FLOPS * dy.size, m.workers)


# ---------------------------------------------------------------- pooling

MAX, MAX_INDEX, MEAN = pooling.MAX, pooling.MAX_INDEX, pooling.MEAN
_POOL_FLOPS = 4.0  # per element of x, transposing included


def planes_scratch(w: Windows, bands: Bands, m: Machine) -> tuple[int, int, int]:
    """Bytes of scratch that one worker needs, and where a band of y and of the index begin in it."""
    x_bytes = (bands.input_rows * w.spatial[1] + m.lanes) * m.vector
    y_bytes = (bands.output_rows * len(w.columns) + m.lanes) * m.vector
    return x_bytes + 2 * y_bytes, x_bytes, x_bytes + y_bytes


def planes_call(
    kernel: Any, w: Windows, bands: Bands, x: int, y: int, planes: int, m: Machine, *, scratch: int, index: int = 0
) -> Call:
    """Pooling of `planes` contiguous planes, all by address; `kernel` says in which direction."""
    stride, scratch_y, scratch_index = planes_scratch(w, bands, m)
    record = Record(
        pooling.NCHW,
        planes=planes,
        bands=len(bands.table),
        band_rows=address(bands.table),
        width=w.spatial[1],
        out_width=len(w.columns),
        rows=address(w.rows),
        columns=address(w.columns),
        x=x,
        x_stride=math.prod(w.spatial) * m.size,
        y=y,
        y_stride=math.prod(w.out_spatial) * m.size,
        index=index,
        scratch=scratch,
        scratch_stride=stride,
        scratch_y=scratch_y,
        scratch_index=scratch_index,
    )
    tasks = -(-planes // m.lanes) * len(bands.table)
    return Call(kernel, record, tasks, _POOL_FLOPS * planes * math.prod(w.spatial))


def _run_planes(kernel: Any, w: Windows, bands: Bands, x: Array, y: Array, index: Array | None, m: Machine) -> None:
    scratch = workspace.take("scratch", planes_scratch(w, bands, m)[0] * m.workers)
    call = planes_call(
        kernel, w, bands, address(x), address(y), math.prod(x.shape[:2]), m, scratch=address(scratch),
        index=0 if index is None else address(index),
    )  # fmt: skip
    run_call(call, m.workers)


def run_pool(kind: int, w: Windows, x: Array, y: Array, index: Array | None, m: Machine) -> None:
    """Pool x (N, C, *w.spatial) into y (N, C, *w.out_spatial); kind and index as in the kernels."""
    bands = forward_bands(w, m.vector, -(-math.prod(x.shape[:2]) // m.lanes), m.workers)
    _run_planes(pooling.pool_kernel(kind, m.bits, m.lanes), w, bands, x, y, index, m)


def run_pool_grad(kind: int, w: Windows, dy: Array, index: Array | None, dx: Array, m: Machine) -> None:
    """Gradient dx (N, C, *w.spatial) from dy (N, C, *w.out_spatial)."""
    bands = backward_bands(w, m.vector, -(-math.prod(dx.shape[:2]) // m.lanes), m.workers)
    _run_planes(pooling.pool_grad_kernel(kind, m.bits, m.lanes), w, bands, dx, dy, index, m)


# ---------------------------------------------------------------- rows

_ROW_FLOPS = 8.0  # per element
_CHUNK_NUMBERS = 8192  # of the rows of one task


def _run_rows(kernel: Any, dtype: Any, x: Array, y: Array, m: Machine, **fields: int) -> None:
    columns = x.shape[-1]
    rows = x.size // columns
    chunk = max(1, _CHUNK_NUMBERS // columns)
    record = Record(dtype, rows=rows, columns=columns, chunk=chunk, x=address(x), y=address(y), **fields)
    run(kernel, record, -(-rows // chunk), _ROW_FLOPS * x.size, m.workers)


def run_softmax(x: Array, y: Array, m: Machine) -> None:
    """y = softmax of the rows of x (..., columns), contiguous arrays of one shape that is not empty; y may be x."""
    _run_rows(softmax_kernels.softmax_kernel(m.bits, m.lanes), softmax_kernels.SOFTMAX, x, y, m)


def run_layer_norm(
    x: Array, y: Array, gamma: Array, beta: Array | None, eps: float, m: Machine, *, centred: bool = True
) -> None:
    """Layer norm of the rows of x (..., columns), contiguous as y, which may be x; gamma, beta (columns,) of x's type.

    centred : False for the root mean square norm, which takes the mean for 0
    """
    number = np.array([eps], np.float64)
    _run_rows(
        norm.layer_norm_kernel(m.bits, m.lanes), norm.LAYER_NORM, x, y, m, gamma=address(gamma),
        beta=0 if beta is None else address(beta), eps=address(number), centred=int(centred),
    )  # fmt: skip


# ---------------------------------------------------------------- batch normalisation

_NORM_FLOPS = 6.0  # per element of x
_BLOCK_BYTES = 1024  # of x that a task reads in a row
_BLOCKS_PER_WORKER = 3


def _run_norm(kernel: Any, dtype: Any, x: Array, eps: float, m: Machine, **fields: int) -> None:
    images, channels, positions = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    columns = positions == 1
    lines = -(-channels // m.lanes) if columns else channels
    line_bytes = (m.lanes if columns else max(1, positions)) * m.size
    share = -(-lines // (_BLOCKS_PER_WORKER * m.workers)) if m.workers > 1 else lines
    block = max(1, min(_BLOCK_BYTES // line_bytes, share))
    stride = block * norm.scratch_line(m.bits, m.lanes)
    scratch, number = workspace.take("scratch", stride * m.workers), np.array([eps], np.float64)
    record = Record(
        dtype,
        images=images,
        lines=lines,
        block=block,
        channels=channels,
        positions=positions,
        image_stride=channels * positions * m.size,
        eps=address(number),
        scratch=address(scratch),
        scratch_stride=stride,
        x=address(x),
        **fields,
    )
    run(kernel(m.bits, m.lanes, int(columns)), record, -(-lines // block), _NORM_FLOPS * x.size, m.workers)


def run_batch_norm(
    x: Array,
    y: Array,
    gamma: Array,
    beta: Array,
    mean: Array,
    variance: Array,
    eps: float,
    m: Machine,
    *,
    training: bool,
) -> None:
    """Normalise contiguous x (N, C, ...) into y (which may be x).

    gamma, beta, mean, variance : float64 (C,); training writes the last two, otherwise they are read.
    """
    first = max(1, min(-(-x.shape[0] // norm.PARTS), norm.FIRST_NUMBERS // max(1, math.prod(x.shape[2:]))))
    _run_norm(
        norm.batch_norm_kernel,
        norm.BATCH_NORM,
        x,
        eps,
        m,
        training=int(training),
        first_images=min(first, x.shape[0]),
        y=address(y),
        gamma=address(gamma),
        beta=address(beta),
        mean=address(mean),
        variance=address(variance),
    )


def run_batch_norm_grad(
    dy: Array,
    x: Array,
    dx: Array,
    gamma: Array,
    mean: Array,
    variance: Array,
    grad_gamma: Array,
    grad_beta: Array,
    eps: float,
    m: Machine,
) -> None:
    """Gradients of `run_batch_norm` in training; arrays per channel are float64 (C,), two gradients are written."""
    _run_norm(
        norm.batch_norm_grad_kernel,
        norm.BATCH_NORM_GRAD,
        x,
        eps,
        m,
        dy=address(dy),
        dx=address(dx),
        gamma=address(gamma),
        mean=address(mean),
        variance=address(variance),
        grad_gamma=address(grad_gamma),
        grad_beta=address(grad_beta),
    )
