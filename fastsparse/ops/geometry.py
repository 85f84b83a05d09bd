"""Sizes of convolutions and of the arrays they read: one entry per spatial axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = tuple[int, ...]
Padding = tuple[tuple[int, int], ...]  # (before, after) per axis


def grid(sizes: Ints, steps: Ints, strides: Ints) -> NDArray[np.int64]:
    """sum of index * step * stride over all index tuples below `sizes`, in row-major order."""
    total = np.zeros((), np.int64)
    for size, step, stride in zip(sizes, steps, strides, strict=True):
        total = np.add.outer(total, np.arange(size, dtype=np.int64) * step * stride)
    return total.ravel()


def row_major_strides(sizes: Ints) -> Ints:
    """Strides of a contiguous row-major array, in elements."""
    return tuple(math.prod(sizes[i + 1 :]) for i in range(len(sizes)))


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution's sizes, one entry per spatial axis."""

    channels: int
    out_channels: int
    spatial: Ints
    kernel: Ints
    stride: Ints
    padding: Padding
    dilation: Ints
    groups: int

    @property
    def padded(self) -> Ints:
        return tuple(n + before + after for n, (before, after) in zip(self.spatial, self.padding, strict=True))

    @property
    def out_spatial(self) -> Ints:
        return tuple(
            (n - d * (k - 1) - 1) // s + 1
            for n, k, s, d in zip(self.padded, self.kernel, self.stride, self.dilation, strict=True)
        )

    @property
    def positions(self) -> int:
        """Output positions of one channel."""
        return math.prod(self.out_spatial)

    @property
    def unpadded(self) -> Padding:
        """Padding of none."""
        return ((0, 0),) * len(self.kernel)

    @property
    def pointwise(self) -> bool:
        """A 1x1 convolution that reads its input as it is."""
        return set(self.kernel) == {1} and set(self.stride) == {1} and not any(map(any, self.padding))
