"""Interpolation of images to a multiple of their size, from planes to planes of any layout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.ops.activations import CLAMPS, epilogue
from fastsparse.ops.geometry import Ints
from fastsparse.ops.layouts import BlockedPlanes, PaddedPlanes, Planes
from fastsparse.ops.target import Target, narrowed
from fastsparse.runtime.launch import Arguments, Launch
from fastsparse_kernels import interpolation as kernels


def interpolation_weights(scale: int) -> NDArray[np.float64]:
    """Weights of the position before, the own one and the next for each of the `scale` positions made of one,
    (scale, 3)."""
    shift = (np.arange(scale) + 0.5) / scale - 0.5
    return np.stack([np.maximum(-shift, 0), 1 - abs(shift), np.maximum(shift, 0)], 1)


def serves(scale: Ints) -> bool:
    """Whether the kernel interpolates images of so many axes by these factors."""
    return len(scale) in (1, 2) and max(scale) <= kernels.MOST


def takes(activation: str | None) -> bool:
    """Whether the kernel applies the activation."""
    return activation in CLAMPS


def prepare(
    x: PaddedPlanes, y: PaddedPlanes, scale: Ints, activation: str | None, images: int, target: Target
) -> Launch:
    """y = activation(interpolated x + residual); operands x, y, and residual where there is one."""
    target = narrowed(target, x.row_length)
    kernel = kernels.interpolation_kernel(scale[-1], target.bits, target.lanes)
    return _prepare(kernel, x, y, scale, activation, images, target, "padded NCHW")


def prepare_blocked(
    x: BlockedPlanes, y: BlockedPlanes, scale: Ints, activation: str | None, groups: int, target: Target
) -> Launch:
    """The same of groups of VL samples, on batch-blocked planes."""
    kernel = kernels.interpolation_batch_blocked_kernel(target.bits, target.lanes)
    return _prepare(kernel, x, y, scale, activation, groups, target, "batch-blocked")


def _prepare(
    kernel: Any, x: Planes, y: Planes, scale: Ints, activation: str | None, images: int, target: Target, layout: str
) -> Launch:  # fmt: skip
    spatial, of_signals = x.spatial, len(scale) == 1  # an image of one row

    def weights(scale: int) -> NDArray[np.floating]:
        before, own, after = interpolation_weights(scale).T
        return np.stack([own, before + after], 1).astype(target.dtype)

    fields: dict[str, int] = {}
    for name, planes in zip("xy", (x, y), strict=True):
        row, column = (0, *planes.strides) if of_signals else planes.strides
        fields |= {
            f"{name}_corner": planes.corner,
            f"{name}_image_stride": planes.image_stride,
            f"{name}_channel_stride": planes.channel_stride,
            f"{name}_row_stride": row,
            f"{name}_column_stride": column,
        }
    rows, row_scale = (1, 1) if of_signals else (spatial[0], scale[0])
    arguments = Arguments(
        kernels.INTERPOLATION,
        channels=x.channels,
        rows=rows,
        columns=spatial[-1],
        row_scale=row_scale,
        row_weights=weights(row_scale),
        column_scale=scale[-1],
        column_weights=weights(scale[-1]),
        **fields,
        **epilogue(activation, target),
    )
    positions, lanes = math.prod(spatial) * math.prod(scale), target.lanes if layout == "batch-blocked" else 1
    return Launch(
        kernel, arguments, ("x", "residual", "y"), target.loop, tasks=images * x.channels,
        flops=target.heuristics.interpolation_flops * images * x.channels * positions * lanes,
        label=("interpolation", f"{images * lanes}x{x.channels}x{positions}", "", layout, f"{scale}", activation),
    )  # fmt: skip
