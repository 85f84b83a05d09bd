"""Depthwise convolutions with a full window for every channel, from planes to planes, with padding or without."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR
from fastsparse.ops.activations import epilogue
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.layouts import PaddedPlanes
from fastsparse.ops.target import Target, narrowed
from fastsparse.runtime.launch import Arguments, Launch
from fastsparse_kernels import depthwise as kernels

WINDOWS = kernels.WINDOWS  # (side, stride) that the kernel runs


def serves(g: ConvGeometry, weight: CSR) -> bool:
    """Whether the kernel runs such a convolution."""
    window = len(g.kernel) == 2 and (g.kernel[0], g.stride[0]) in WINDOWS
    square = len({*g.kernel}) == len({*g.stride}) == len({1, *g.dilation}) == 1
    each = g.groups == g.channels == g.out_channels
    return window and square and each and weight.nnz == math.prod(weight.shape)


def prepare(
    x: PaddedPlanes, y: PaddedPlanes, g: ConvGeometry, weight: CSR, bias: NDArray[Any] | None,
    activation: str | None, images: int, target: Target, residual: bool = False,
) -> Launch:  # fmt: skip
    """y = activation(conv(x, weight) + bias + residual); operands x, y, and with `residual` that, too."""
    values = weight.toarray().astype(target.dtype, copy=False)
    zeros = np.zeros(g.spatial[1], target.dtype)
    rows, columns = g.out_spatial
    parts = 0 if residual else _narrow_parts(g, target)
    target = target if parts else narrowed(target, columns)
    by_channels = target.heuristics.owns_channels(y.channel_stride, images, target.threads)
    bands = 1 if by_channels else min(target.threads, -(-rows // kernels.ROWS))
    row = -(-columns // target.lanes) * target.vector
    scratch = (rows if parts else kernels.ROWS) * row
    arguments = Arguments(
        kernels.DEPTHWISE,
        channels=g.channels,
        bands=bands,
        rows=rows,
        columns=columns,
        x_rows=g.spatial[0],
        x_columns=g.spatial[1],
        top=g.padding[0][0],
        left=g.padding[1][0],
        zeros=zeros,
        x_corner=x.corner,
        x_image_stride=x.image_stride,
        x_channel_stride=x.channel_stride,
        x_row_stride=x.strides[0],
        y_corner=y.corner,
        y_image_stride=y.image_stride,
        y_channel_stride=y.channel_stride,
        y_row_stride=y.strides[0],
        values=values,
        bias=bias,
        scratch_row_stride=row,
        **epilogue(activation, target),
    )
    if parts:
        window = g.kernel[0], g.stride[0], g.padding[1][0]
        kernel = kernels.narrow_kernel(*window, parts, target.bits, target.lanes)
    else:
        kernel = kernels.depthwise_kernel(g.kernel[0], g.stride[0], target.bits, target.lanes)
    flops = 2.0 * np.size(values) * g.positions * images
    return Launch(
        kernel, arguments, ("x", "residual", "y"), target.loop,
        tasks=images * bands * -(-g.channels // max(1, parts)), flops=flops,
        scratch=scratch,
        label=("depthwise", f"{images}x{g.channels}x{rows}x{columns}", "", f"{g.kernel}", "", activation),
    )  # fmt: skip


def _narrow_parts(g: ConvGeometry, target: Target) -> int:
    """Channels of an image so narrow that their rows share a vector, 1 or 2; 0 of wider ones."""
    side, stride, left = g.kernel[0], g.stride[0], g.padding[1][0]
    usual = left in (side // 2, (side - stride) // 2)  # of "same" padding; each has a kernel of its own
    if target.vector != 64 or not usual:
        return 0
    columns = max(g.out_spatial[1], -(-g.spatial[1] // stride))
    return 2 if columns <= target.lanes // 2 else int(columns <= target.lanes)
