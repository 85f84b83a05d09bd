"""Pooling: largest values and means of windows of images, forward and backward.

Windows are tables per axis, which cover fixed, adaptive and padded windows alike. Images are cut into bands of rows
that fit the cache. Arrays are (N, C, H, W); engines also pool batch-blocked planes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.ops.layouts import BlockedPlanes
from fastsparse.ops.target import Target, target_for
from fastsparse.runtime import buffers
from fastsparse.runtime.buffers import address, optional_address, read_address, readable
from fastsparse.runtime.launch import Arguments, Launch
from fastsparse.runtime.memo import bounded_cache
from fastsparse_kernels import pooling as kernels

Array = NDArray[Any]
Index = NDArray[np.signedinteger[Any]]
Sizes = tuple[int, int]
Padding2d = tuple[tuple[int, int], tuple[int, int]]
Table = NDArray[np.int64]


# ------------------------------------------------------------------------------------------------- on arrays


def pooled_size(spatial: Sizes, kernel: Sizes, stride: Sizes, padding: Padding2d) -> Sizes:
    """Output height and width of a pooling window."""
    height, width = (
        (n + before + after - k) // s + 1 for n, k, s, (before, after) in zip(spatial, kernel, stride, padding)
    )
    return height, width


def max_pool2d(x: Array, kernel: Sizes, stride: Sizes, padding: Padding2d) -> Array:
    """Largest value of every window of x (N, C, H, W); padding never wins, NaN always does."""
    return _pooled("max", x, windows(_spatial(x), kernel, stride, padding))


def max_pool2d_with_index(x: Array, kernel: Sizes, stride: Sizes, padding: Padding2d) -> tuple[Array, Index]:
    """As :func:`max_pool2d`, with the index (row * W + column in the image) of the element that won.

    The first of equal elements wins. The index array has the output's shape; its integers have the size of x's numbers.
    """
    w = windows(_spatial(x), kernel, stride, padding)
    index = buffers.array((*x.shape[:2], *w.out_spatial), np.int32 if x.dtype.itemsize == 4 else np.int64)
    return _pooled("max_index", x, w, index), index


def max_pool2d_backward(
    dy: Array, index: Index, spatial: Sizes, kernel: Sizes, stride: Sizes, padding: Padding2d
) -> Array:
    """Gradient at the input (N, C, *spatial): each dy goes to the element that won."""
    return _pooled_backward("max_index", dy, windows(spatial, kernel, stride, padding), index)


def avg_pool2d(x: Array, kernel: Sizes, stride: Sizes, padding: Padding2d) -> Array:
    """Mean of every window of x (N, C, H, W), the zeros of the padding included."""
    return _pooled("mean", x, windows(_spatial(x), kernel, stride, padding))


def avg_pool2d_backward(dy: Array, spatial: Sizes, kernel: Sizes, stride: Sizes, padding: Padding2d) -> Array:
    """Gradient of :func:`avg_pool2d` at its input (N, C, *spatial)."""
    return _pooled_backward("mean", dy, windows(spatial, kernel, stride, padding))


def adaptive_avg_pool2d(x: Array, output: Sizes) -> Array:
    """Means over windows that split x (N, C, H, W) into `output` rows and columns as evenly as possible."""
    return _pooled("mean", x, adaptive_windows(_spatial(x), output))


def adaptive_avg_pool2d_backward(dy: Array, spatial: Sizes) -> Array:
    """Gradient of :func:`adaptive_avg_pool2d` at its input (N, C, *spatial)."""
    return _pooled_backward("mean", dy, adaptive_windows(spatial, _spatial(dy)))


def _spatial(x: Array) -> Sizes:
    return x.shape[2], x.shape[3]


def _pooled(kind: str, x: Array, w: Windows, index: Index | None = None) -> Array:
    x = readable(x)
    y = buffers.array((*x.shape[:2], *w.out_spatial), x.dtype)
    launch = prepare(kind, w, math.prod(x.shape[:2]), target_for(x.dtype))
    launch.run(address(x), address(y), optional_address(index))
    return y


def _pooled_backward(kind: str, dy: Array, w: Windows, index: Index | None = None) -> Array:
    dy = readable(dy)
    dx = buffers.array((*dy.shape[:2], *w.spatial), dy.dtype)
    planes = math.prod(dy.shape[:2])
    numbers = planes * math.prod(w.out_spatial)
    dy_address = read_address(dy, dy.dtype, numbers, "dy")
    index_address = 0
    if index is not None:
        index = readable(index)
        index_address = read_address(index, np.dtype(f"i{dy.itemsize}"), numbers, "index")
    prepare_backward(kind, w, planes, target_for(dy.dtype)).run(address(dx), dy_address, index_address)
    return dx


# ------------------------------------------------------------------------------------------------- plans


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a pooling layer, int64 [outputs, 3] per axis: first input, end, weight (see the kernels)."""

    spatial: Sizes
    rows: Table
    columns: Table

    @property
    def out_spatial(self) -> Sizes:
        return len(self.rows), len(self.columns)


@dataclass(frozen=True, eq=False)
class Bands:
    """int64 [bands, 4]: input rows from, to; output rows from, to. With the largest counts of rows."""

    table: Table
    input_rows: int
    output_rows: int


def _axis(size: int, kernel: int, stride: int, padding: tuple[int, int], count_padding: bool) -> Table:
    outputs = max(0, (size + sum(padding) - kernel) // stride + 1)
    corner = np.arange(outputs, dtype=np.int64) * stride - padding[0]
    first, end = np.clip(corner, 0, size), np.clip(corner + kernel, 0, size)
    weight = np.full_like(first, kernel) if count_padding else end - first
    return np.ascontiguousarray(np.stack([first, end, weight], 1))


@bounded_cache
def windows(spatial: Sizes, kernel: Sizes, stride: Sizes, padding: Padding2d, *, count_padding: bool = True) -> Windows:
    """Windows of fixed size; their weights count the padding or leave it out."""
    rows, columns = (_axis(n, k, s, p, count_padding) for n, k, s, p in zip(spatial, kernel, stride, padding))
    return Windows(spatial, rows, columns)


@bounded_cache
def adaptive_windows(spatial: Sizes, output: Sizes) -> Windows:
    """Windows that split the image as evenly as possible: i goes from floor(i n / m) to ceil((i + 1) n / m)."""

    def axis(size: int, outputs: int) -> Table:
        i = np.arange(outputs, dtype=np.int64)
        first, end = i * size // outputs, -(-(i + 1) * size // outputs)
        return np.ascontiguousarray(np.stack([first, end, end - first], 1))

    return Windows(spatial, axis(spatial[0], output[0]), axis(spatial[1], output[1]))


def _band_count(rows: int, row_bytes: int, tasks: int, target: Target) -> int:
    """Number of bands: small enough for the cache, and enough for all workers."""
    h, threads = target.heuristics, target.threads
    fitting = -(-rows * row_bytes // h.band_bytes)
    wanted = -(-h.bands_per_worker * threads // max(1, tasks)) if threads > 1 else 1
    return max(1, min(rows, max(fitting, wanted)))


def forward_bands(w: Windows, tasks: int, target: Target) -> Bands:
    """Bands of output rows, for `tasks` tasks per band."""
    outputs = len(w.rows)
    row_bytes = (w.spatial[0] * w.spatial[1] // max(1, outputs) + len(w.columns)) * target.vector
    count = _band_count(outputs, row_bytes, tasks, target)
    cuts = np.arange(count + 1, dtype=np.int64) * outputs // count
    if not outputs:
        return _bands(np.zeros((count, 4), np.int64))
    table = np.stack([w.rows[cuts[:-1], 0], w.rows[cuts[1:] - 1, 1], cuts[:-1], cuts[1:]], 1)
    return _bands(table)


def backward_bands(w: Windows, tasks: int, target: Target) -> Bands:
    """Bands of input rows, with the output rows whose windows meet them."""
    height = w.spatial[0]
    row_bytes = (w.spatial[1] + 2 * len(w.rows) * len(w.columns) // max(1, height)) * target.vector
    count = _band_count(height, row_bytes, tasks, target)
    cuts = np.arange(count + 1, dtype=np.int64) * height // count
    first = np.searchsorted(w.rows[:, 1], cuts[:-1], side="right")
    last = np.maximum(first, np.searchsorted(w.rows[:, 0], cuts[1:], side="left"))
    return _bands(np.stack([cuts[:-1], cuts[1:], first, last], 1))


def _bands(table: Table) -> Bands:
    table = np.ascontiguousarray(table, np.int64)
    return Bands(table, int((table[:, 1] - table[:, 0]).max()), int((table[:, 3] - table[:, 2]).max()))


# ------------------------------------------------------------------------------------------------- launch


@bounded_cache
def prepare(
    kind: str, w: Windows, planes: int, target: Target, x_stride: int | None = None, y_stride: int | None = None
) -> Launch:
    """Launch of pooling over `planes` planes, contiguous or at these strides in bytes; operands x, y, index."""
    bands = forward_bands(w, -(-planes // target.lanes), target)
    kernel = kernels.pool_kernel(kind, target.bits, target.lanes)
    return _planes(kernel, w, bands, planes, target, f"{kind} pool", x_stride, y_stride)


@bounded_cache
def prepare_backward(kind: str, w: Windows, planes: int, target: Target) -> Launch:
    """Launch of the gradient of pooling over contiguous planes; operands dx, dy, index."""
    bands = backward_bands(w, -(-planes // target.lanes), target)
    kernel = kernels.pool_grad_kernel(kind, target.bits, target.lanes)
    return _planes(kernel, w, bands, planes, target, f"{kind} pool gradient")


def _planes(
    kernel: Any, w: Windows, bands: Bands, planes: int, target: Target, label: str, x_stride: int | None = None,
    y_stride: int | None = None,
) -> Launch:  # fmt: skip
    # Scratch of a worker: a band of x, one of y and one of the index, transposed.
    x_bytes = (bands.input_rows * w.spatial[1] + target.lanes) * target.vector
    y_bytes = (bands.output_rows * len(w.columns) + target.lanes) * target.vector
    arguments = Arguments(
        kernels.NCHW,
        w,
        planes=planes,
        bands=len(bands.table),
        band_rows=bands.table,
        width=w.spatial[1],
        out_width=len(w.columns),
        x_stride=math.prod(w.spatial) * target.size if x_stride is None else x_stride,
        y_stride=math.prod(w.out_spatial) * target.size if y_stride is None else y_stride,
        scratch_y=x_bytes,
        scratch_index=x_bytes + y_bytes,
    )
    return Launch(
        kernel, arguments, ("x", "y", "index"), target.loop,
        tasks=-(-planes // target.lanes) * len(bands.table),
        flops=target.heuristics.pool_flops * planes * math.prod(w.spatial), scratch=x_bytes + 2 * y_bytes,
        label=(label, f"{planes}x{w.spatial[0]}x{w.spatial[1]}", "", "NCHW"),
    )  # fmt: skip


def prepare_blocked(kind: str, w: Windows, x: BlockedPlanes, y: BlockedPlanes, groups: int, target: Target) -> Launch:
    """Launch of pooling over `groups` groups of batch-blocked planes; does not write y's padding. Operands x, y."""
    bands = forward_bands(w, groups * x.channels, target)
    arguments = Arguments(
        kernels.BATCH_BLOCKED,
        w,
        channels=x.channels,
        bands=len(bands.table),
        band_rows=bands.table,
        width=w.spatial[1],
        out_width=len(w.columns),
        x_group_stride=x.group_stride,
        x_channel_stride=x.channel_stride,
        x_offsets=x.offsets if len(x.offsets) else None,
        y_group_stride=y.group_stride,
        y_channel_stride=y.channel_stride,
        y_offsets=y.offsets if len(y.offsets) else None,
    )
    return Launch(
        kernels.pool_batch_blocked_kernel(kind, target.bits, target.lanes), arguments, ("x", "y"),
        target.loop, tasks=groups * x.channels * len(bands.table),
        flops=target.heuristics.pool_flops * groups * x.channels * x.positions * target.lanes,
        label=(
            f"{kind} pool", f"{groups * target.lanes}x{x.channels}x{w.spatial[0]}x{w.spatial[1]}", "", "batch-blocked",
        ),
    )  # fmt: skip
