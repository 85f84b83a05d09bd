"""Launching what networks need beside products: activations, pooling, batch normalisation.

A part of `launch`: contiguous arrays in, kernel calls out. Arrays are checked to be what the kernels read and write;
calls made from addresses are not.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import workspace
from fastsparse.launch import Call, Record, address, numbers, read_address, run, run_call, write_address
from fastsparse.plan.linear import Machine
from fastsparse.plan.pooling import Bands, Windows, backward_bands, forward_bands
from fastsparse_kernels import epilogue, norm, pooling, rowwise

Array = NDArray[Any]


# ---------------------------------------------------------------- activations

NAMES = tuple(epilogue.ACTIVATION_CODES)
KEEPS_OUTPUT = epilogue.KEEPS_OUTPUT

# What an activation costs per element, in units of launch's estimates.
_ACTIVATION_FLOPS = 4.0


def run_activation(name: str, z: Array, y: Array, m: Machine) -> None:
    """y = activation(z), contiguous arrays of one shape; y may be z."""
    chunk = epilogue.CHUNK
    dtype = numbers(m)
    x_address, y_address = read_address(z, dtype, z.size, "z"), write_address(y, dtype, z.size, "y")
    record = Record(epilogue.ACTIVATION, count=z.size, chunk=chunk, x=x_address, y=y_address)
    kernel = epilogue.activation_array_kernel(epilogue.ACTIVATION_CODES[name], m.bits, m.lanes)
    run(kernel, record, -(-z.size // chunk), _ACTIVATION_FLOPS * z.size, m.workers)


def run_activation_grad(name: str, dy: Array, kept: Array, dz: Array, m: Machine) -> None:
    """dz = slope * dy, contiguous arrays of one shape; dz may be dy."""
    chunk = epilogue.CHUNK
    dtype, size = numbers(m), dy.size
    record = Record(
        epilogue.ACTIVATION_GRAD,
        count=size,
        chunk=chunk,
        dy=read_address(dy, dtype, size, "dy"),
        kept=read_address(kept, dtype, size, "kept"),
        dz=write_address(dz, dtype, size, "dz"),
    )
    kernel = epilogue.activation_grad_kernel(epilogue.ACTIVATION_CODES[name], m.bits, m.lanes)
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
        pooling.PLANES,
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


def _run_planes(kernel: Any, w: Windows, bands: Bands, x: int, y: int, index: int, planes: int, m: Machine) -> None:
    scratch = workspace.take("scratch", planes_scratch(w, bands, m)[0] * m.workers)
    run_call(planes_call(kernel, w, bands, x, y, planes, m, scratch=address(scratch), index=index), m.workers)


def _index_dtype(m: Machine) -> np.dtype[Any]:
    return np.dtype(np.int32 if m.bits == 32 else np.int64)


def run_pool(kind: int, w: Windows, x: Array, y: Array, index: Array | None, m: Machine) -> None:
    """Pool x (N, C, *w.spatial) into y (N, C, *w.out_spatial); kind and index as in the kernels."""
    planes, dtype = math.prod(x.shape[:2]), numbers(m)
    bands = forward_bands(w, m.vector, -(-planes // m.lanes), m.workers)
    size = planes * math.prod(w.out_spatial)
    x_address = read_address(x, dtype, planes * math.prod(w.spatial), "x")
    y_address = write_address(y, dtype, size, "y")
    index_address = 0 if index is None else write_address(index, _index_dtype(m), size, "index")
    kernel = pooling.pool_kernel(kind, m.bits, m.lanes)
    _run_planes(kernel, w, bands, x_address, y_address, index_address, planes, m)


def run_pool_grad(kind: int, w: Windows, dy: Array, index: Array | None, dx: Array, m: Machine) -> None:
    """Gradient dx (N, C, *w.spatial) from dy (N, C, *w.out_spatial)."""
    planes, dtype = math.prod(dx.shape[:2]), numbers(m)
    bands = backward_bands(w, m.vector, -(-planes // m.lanes), m.workers)
    size = planes * math.prod(w.out_spatial)
    dx_address = write_address(dx, dtype, planes * math.prod(w.spatial), "dx")
    dy_address = read_address(dy, dtype, size, "dy")
    index_address = 0 if index is None else read_address(index, _index_dtype(m), size, "index")
    kernel = pooling.pool_grad_kernel(kind, m.bits, m.lanes)
    _run_planes(kernel, w, bands, dx_address, dy_address, index_address, planes, m)


# ---------------------------------------------------------------- rows

_ROW_FLOPS = 8.0  # per element
_CHUNK_NUMBERS = 8192  # of the rows of one task


def _run_rows(kernel: Any, dtype: Any, x: Array, y: Array, m: Machine, **fields: int) -> None:
    columns = x.shape[-1]
    rows = x.size // columns
    chunk = max(1, _CHUNK_NUMBERS // columns)
    fields["x"] = read_address(x, numbers(m), x.size, "x")
    fields["y"] = write_address(y, numbers(m), x.size, "y")
    record = Record(dtype, rows=rows, columns=columns, chunk=chunk, **fields)
    run(kernel, record, -(-rows // chunk), _ROW_FLOPS * x.size, m.workers)


def run_softmax(x: Array, y: Array, m: Machine) -> None:
    """y = softmax of the rows of x (..., columns), contiguous arrays of one shape that is not empty; y may be x."""
    _run_rows(rowwise.softmax_kernel(m.bits, m.lanes), rowwise.SOFTMAX, x, y, m)


def run_layer_norm(
    x: Array, y: Array, gamma: Array, beta: Array | None, eps: float, m: Machine, *, centred: bool = True
) -> None:
    """Layer norm of the rows of x (..., columns), contiguous as y, which may be x; gamma, beta (columns,) of x's type.

    centred : False for the root mean square norm, which takes the mean for 0
    """
    number, dtype, columns = np.array([eps], np.float64), numbers(m), x.shape[-1]
    _run_rows(
        rowwise.layer_norm_kernel(m.bits, m.lanes), rowwise.LAYER_NORM, x, y, m,
        gamma=read_address(gamma, dtype, columns, "gamma"),
        beta=0 if beta is None else read_address(beta, dtype, columns, "beta"),
        eps=address(number), centred=int(centred),
    )  # fmt: skip


# ---------------------------------------------------------------- batch normalisation

_NORM_FLOPS = 6.0  # per element of x
_BLOCK_BYTES = 1024  # of x that a task reads in a row
_BLOCKS_PER_WORKER = 3
_WIDE = np.dtype(np.float64)  # of what there is once per channel


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
        x=read_address(x, numbers(m), x.size, "x"),
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
    channels, statistics = x.shape[1], write_address if training else read_address
    _run_norm(
        norm.batch_norm_kernel,
        norm.FORWARD,
        x,
        eps,
        m,
        training=int(training),
        first_images=min(first, x.shape[0]),
        y=write_address(y, numbers(m), x.size, "y"),
        gamma=read_address(gamma, _WIDE, channels, "gamma"),
        beta=read_address(beta, _WIDE, channels, "beta"),
        mean=statistics(mean, _WIDE, channels, "mean"),
        variance=statistics(variance, _WIDE, channels, "variance"),
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
    channels = x.shape[1]
    _run_norm(
        norm.batch_norm_grad_kernel,
        norm.BACKWARD,
        x,
        eps,
        m,
        dy=read_address(dy, numbers(m), x.size, "dy"),
        dx=write_address(dx, numbers(m), x.size, "dx"),
        gamma=read_address(gamma, _WIDE, channels, "gamma"),
        mean=read_address(mean, _WIDE, channels, "mean"),
        variance=read_address(variance, _WIDE, channels, "variance"),
        grad_gamma=write_address(grad_gamma, _WIDE, channels, "grad_gamma"),
        grad_beta=write_address(grad_beta, _WIDE, channels, "grad_beta"),
    )
