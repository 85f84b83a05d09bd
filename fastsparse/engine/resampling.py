"""Transposed convolutions, and interpolation where it has no kernel, as convolutions of stride 1 whose channels are the
phases of the stride, followed by a gather that interleaves them.

An output at o + padding = s * q + r, with s the stride, reads inputs around q with weights that depend on r alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR
from fastsparse.engine.program import Conv, Gather, Interpolate, Operator, Shape
from fastsparse.ops.conv import absolute_columns
from fastsparse.ops.geometry import ConvGeometry, Ints
from fastsparse.ops.interpolation import interpolation_weights, serves
from fastsparse.ops.layouts import row_major_strides

Array = NDArray[Any]
Index = NDArray[np.int64]
Steps = list[tuple[Operator, Shape]]


def transposed(W: CSR, bias: Array | None, g: ConvGeometry, activation: str | None) -> Steps:
    """The transposed convolution of `g`, whose input has the sizes of g's output.

    Tap k reaches phase r = k d mod s and reads the input q - k d // s.
    """
    axes, phases = len(g.kernel), math.prod(g.stride)
    reach = tuple((k - 1) * d // s for k, s, d in zip(g.kernel, g.stride, g.dilation))
    first, padding = [], []
    for n, out, s, t, (before, _) in zip(g.out_spatial, g.spatial, g.stride, reach, g.padding):
        first.append(min(before // s, t))
        padding.append((t - first[-1], max(0, (before + out - 1) // s - (n - 1))))
    window = tuple(t + 1 for t in reach)
    geometry = ConvGeometry(
        g.out_channels, g.channels * phases, g.out_spatial, window, (1,) * axes, tuple(padding), (1,) * axes, g.groups
    )  # fmt: skip
    columns, taps = absolute_columns(W.pattern, g), math.prod(g.kernel)
    phase, index = np.zeros(1, np.int64), np.zeros(1, np.int64)
    for k, s, d, t in zip(g.kernel, g.stride, g.dilation, reach):
        at = np.arange(k) * d
        phase = np.add.outer(phase * s, at % s).ravel()
        index = np.add.outer(index * (t + 1), t - at // s).ravel()
    inputs = g.out_channels // g.groups
    rows = columns // taps * phases + phase[columns % taps]
    weight = _matrix(
        rows, W.pattern.rows() % inputs * math.prod(window) + index[columns % taps], W.data,
        (g.channels * phases, inputs * math.prod(window)),
    )  # fmt: skip
    bias = None if bias is None else np.repeat(bias, phases)
    conv = Conv(weight, bias, geometry, activation), (geometry.out_channels, *geometry.out_spatial)
    y = (g.channels, *g.spatial)
    if y == conv[1]:
        return [conv]
    starts = tuple(before - f * s for (before, _), f, s in zip(g.padding, first, g.stride))
    return [conv, (_interleaved(y, g.stride, starts, geometry.out_spatial), y)]


def repeated(shape: Shape, scale: Ints) -> Steps:
    """Every position of an image (C, H, W) repeated."""
    channels, *spatial = shape
    y = (channels, *(n * s for n, s in zip(spatial, scale)))
    axes = [np.repeat(np.arange(n), s) for n, s in zip(spatial, scale)]
    return [(Gather(_grid(axes, tuple(spatial)), channels, y), y)]


def interpolated(shape: Shape, scale: Ints, dtype: Any = np.float64) -> Steps:
    """An image (C, H, W) interpolated between its positions, continued by its edges; by weights of this type."""
    if serves(scale):
        return [(Interpolate(scale), (shape[0], *(n * s for n, s in zip(shape[1:], scale, strict=True))))]
    channels, *spatial = shape
    padded = tuple(n + 2 for n in spatial)
    edges = _grid([np.arange(-1, n + 1).clip(0, n - 1) for n in spatial], tuple(spatial))
    weights = np.ones((1, 1))
    for s in scale:
        weights = np.einsum("pt,qu->pqtu", weights, interpolation_weights(s)).reshape(len(weights) * s, -1)
    phase, tap = np.nonzero(weights)
    rows = np.add.outer(np.arange(channels) * len(weights), phase).ravel()
    weight = _matrix(
        rows, np.tile(tap, channels), np.tile(weights[phase, tap], channels).astype(dtype),
        (channels * len(weights), weights.shape[1]),
    )  # fmt: skip
    ones = (1,) * len(spatial)
    geometry = ConvGeometry(
        channels, channels * len(weights), padded, (3,) * len(spatial), ones, ((0, 0),) * len(spatial), ones, channels
    )
    y = (channels, *(n * s for n, s in zip(spatial, scale)))
    return [
        (Gather(edges, channels, (channels, *padded)), (channels, *padded)),
        (Conv(weight, None, geometry), (geometry.out_channels, *geometry.out_spatial)),
        (_interleaved(y, scale, (0,) * len(spatial), tuple(spatial)), y),
    ]


def _interleaved(y: Shape, stride: Ints, starts: Ints, grid: Ints) -> Gather:
    """Positions of y from blocks (phases, *grid): position o is at o + start = stride * q + phase."""
    index = np.zeros((), np.int64)
    phase_strides = row_major_strides(stride)
    for n, s, start, p, position in zip(y[1:], stride, starts, phase_strides, row_major_strides(grid)):
        at = np.arange(n) + start
        index = np.add.outer(index, at % s * p * math.prod(grid) + at // s * position)
    return Gather(index.ravel(), y[0], y)


def _grid(axes: list[Index], spatial: Ints) -> Index:
    """Numbers of all combinations of indices in an image of size `spatial`."""
    total = np.zeros((), np.int64)
    for index, stride in zip(axes, row_major_strides(spatial)):
        total = np.add.outer(total, index * stride)
    return total.ravel()


def _matrix(rows: Index, columns: Index, values: Array, shape: tuple[int, int]) -> CSR:
    """A matrix of its nonzeros, stored zeros included, in any order."""
    order = np.lexsort((columns, rows))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))]).astype(np.int64)
    return CSR(indptr, columns[order], values[order], shape)
