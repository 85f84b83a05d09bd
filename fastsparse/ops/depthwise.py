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
    activation: str | None, images: int, target: Target,
) -> Launch:  # fmt: skip
    """y = activation(conv(x, weight) + bias + residual); operands x, y, and residual where there is one."""
    values = weight.toarray().astype(target.dtype, copy=False)
    zeros = np.zeros(g.spatial[1], target.dtype)
    rows, columns = g.out_spatial
    target = narrowed(target, columns)
    by_channels = target.heuristics.owns_channels(y.channel_stride, images, target.threads)
    bands = 1 if by_channels else min(target.threads, -(-rows // kernels.ROWS))
    row = -(-columns // target.lanes) * target.vector
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
        x_row_stride=x.strides[0] * target.size,
        y_corner=y.corner,
        y_image_stride=y.image_stride,
        y_channel_stride=y.channel_stride,
        y_row_stride=y.strides[0] * target.size,
        values=values,
        bias=bias,
        scratch_stride=kernels.ROWS * row,
        scratch_row_stride=row,
        **epilogue(activation, target),
    )
    kernel = kernels.depthwise_kernel(g.kernel[0], g.stride[0], target.bits, target.lanes)
    flops = 2.0 * np.size(values) * g.positions * images
    return Launch(
        kernel, arguments, ("x", "residual", "y"), target.sharing, tasks=images * bands * g.channels, flops=flops,
        scratch=kernels.ROWS * row,
        label=("depthwise", f"{images}x{g.channels}x{rows}x{columns}", "", f"{g.kernel}", "", activation),
    )  # fmt: skip
