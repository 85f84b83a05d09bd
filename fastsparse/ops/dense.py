"""Dense products through NumPy's BLAS: for dense layers.

A convolution is lowered to one product per group (im2col). Inside, images come last, (C, H, W, N): the copies into
the column buffer are then long contiguous runs, and no product has to be transposed. The buffer belongs to the
calling thread, is reused, and holds at most about 16 MB: larger batches go through it in parts.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsparse.ops.sums import channel_sums

Array = NDArray[Any]
Pairs = tuple[tuple[int, int], ...]

_BUFFER_BYTES = 16 << 20
_buffers = threading.local()


class Geometry(NamedTuple):
    """How a convolution's window moves, one entry per spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]
    groups: int = 1

    def output(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Output size of every axis; below 1 where the window does not fit."""
        return tuple(
            (n + before + after - d * (k - 1) - 1) // s + 1
            for n, k, s, (before, after), d in zip(spatial, self.kernel, self.stride, self.padding, self.dilation)
        )

    def windows(self, padded: Array, output: Sequence[int]) -> Iterator[tuple[tuple[int, ...], Array]]:
        """Yield (kernel offset, elements of padded (C, *spatial, N) at that offset of the windows)."""
        for offset in itertools.product(*(range(k) for k in self.kernel)):
            index: Any = (
                slice(None),
                *(
                    slice(o * d, o * d + (n - 1) * s + 1, s)
                    for o, d, n, s in zip(offset, self.dilation, output, self.stride)
                ),
            )
            yield offset, padded[index]


def conv(x: Array, weight: Array, bias: Array | None, geometry: Geometry) -> Array:
    """Convolve x (N, C, *spatial) with weight (out, C / groups, *kernel) -> (N, out, *output)."""
    output = geometry.output(x.shape[2:])
    y = np.empty((len(x), len(weight), *output), x.dtype)
    matrices = weight.reshape(geometry.groups, len(weight) // geometry.groups, -1)
    for part in _parts(x, geometry, output):
        columns = _columns(_padded(x[part], geometry), geometry, output)
        product = np.matmul(matrices, columns.reshape(geometry.groups, matrices.shape[2], -1))
        if bias is not None:
            product += bias.reshape(geometry.groups, -1, 1)
        y[part] = np.moveaxis(product.reshape(len(weight), *output, -1), -1, 0)
    return y


def conv_backward(
    dy: Array, x: Array, weight: Array, geometry: Geometry, need_input: bool
) -> tuple[Array | None, Array, Array]:
    """Gradients of :func:`conv`: grad_x or None, grad_weight, grad_bias."""
    output, groups = dy.shape[2:], geometry.groups
    matrices = weight.reshape(groups, len(weight) // groups, -1)
    grad_weight = np.zeros_like(matrices)
    grad_x = np.empty_like(x) if need_input else None
    for part in _parts(x, geometry, output):
        padded = _padded(x[part], geometry)
        columns = _columns(padded, geometry, output)
        flat = columns.reshape(groups, matrices.shape[2], -1)
        grad = np.ascontiguousarray(np.moveaxis(dy[part], 0, -1)).reshape(groups, matrices.shape[1], -1)
        grad_weight += np.matmul(grad, flat.transpose(0, 2, 1))
        if grad_x is not None:
            np.matmul(matrices.transpose(0, 2, 1), grad, out=flat)
            grad_x[part] = _scattered(columns, padded, geometry, x.shape[2:])
    grad_bias = channel_sums(dy)
    return grad_x, grad_weight.reshape(weight.shape), grad_bias


def weight_gradient(dy: Array, x: Array, geometry: Geometry) -> Array:
    """Gradient of :func:`conv` at the weight of a single group: (out, C * prod(kernel))."""
    output = dy.shape[2:]
    total = np.zeros((dy.shape[1], x.shape[1] * int(np.prod(geometry.kernel))), x.dtype)
    for part in _parts(x, geometry, output):
        columns = _columns(_padded(x[part], geometry), geometry, output).reshape(total.shape[1], -1)
        total += np.ascontiguousarray(np.moveaxis(dy[part], 0, -1)).reshape(dy.shape[1], -1) @ columns.T
    return total


def _parts(x: Array, geometry: Geometry, output: Sequence[int]) -> Iterator[slice]:
    """Slices of the batch that fit the column buffer."""
    image_bytes = x.shape[1] * x.itemsize * int(np.prod(geometry.kernel)) * int(np.prod(output))
    step = max(1, _BUFFER_BYTES // max(image_bytes, 1))
    return (slice(start, min(start + step, len(x))) for start in range(0, len(x), step))


def _padded(x: Array, geometry: Geometry) -> Array:
    """x (N, C, *spatial) as (C, *padded spatial, N)."""
    spatial = [n + before + after for n, (before, after) in zip(x.shape[2:], geometry.padding)]
    padded = np.zeros((x.shape[1], *spatial, len(x)), x.dtype)
    padded[_inside(geometry.padding, x.shape[2:])] = np.moveaxis(x, 0, -1)
    return padded


def _inside(padding: Pairs, spatial: Sequence[int]) -> Any:
    return slice(None), *(slice(before, before + n) for (before, _), n in zip(padding, spatial))


def _tap(offset: tuple[int, ...]) -> Any:
    """Index of a kernel offset in columns (C, *kernel, *output, N)."""
    return (slice(None), *offset)


def _columns(padded: Array, geometry: Geometry, output: Sequence[int]) -> Array:
    """The windows of padded (C, *spatial, N), in this thread's buffer: (C, *kernel, *output, N)."""
    shape = (padded.shape[0], *geometry.kernel, *output, padded.shape[-1])
    size = int(np.prod(shape)) * padded.itemsize
    buffer: Array | None = getattr(_buffers, "columns", None)
    if buffer is None or buffer.nbytes < size:
        buffer = np.empty(size, np.uint8)
        if size <= _BUFFER_BYTES:
            _buffers.columns = buffer
    columns = buffer[:size].view(padded.dtype).reshape(shape)
    for offset, window in geometry.windows(padded, output):
        columns[_tap(offset)] = window
    return columns


def _scattered(columns: Array, scratch: Array, geometry: Geometry, spatial: Sequence[int]) -> Array:
    """Add columns (C, *kernel, *output, N) to the inputs of their windows: (N, C, *spatial). Overwrites `scratch`."""
    output = columns.shape[1 + len(spatial) : -1]
    scratch[...] = 0
    for offset, window in geometry.windows(scratch, output):
        window += columns[_tap(offset)]
    return np.moveaxis(scratch[_inside(geometry.padding, spatial)], -1, 0)
