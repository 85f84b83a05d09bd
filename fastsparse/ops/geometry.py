"""Sizes of convolutions and of the arrays they read: one entry per spatial axis."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Ints = tuple[int, ...]
Padding = tuple[tuple[int, int], ...]  # (before, after) per axis


@dataclass(frozen=True)
class ConvGeometry:
    """Sizes of a convolution, one entry per spatial axis; derived sizes are computed once.

    Attributes
    ----------
    padded : sizes of the input with its padding
    out_spatial : sizes of the output
    positions : output positions of one channel
    pointwise : whether it is a 1x1 convolution that reads its input as it is
    """

    channels: int
    out_channels: int
    spatial: Ints
    kernel: Ints
    stride: Ints
    padding: Padding
    dilation: Ints
    groups: int
    padded: Ints = field(init=False, compare=False, repr=False)
    out_spatial: Ints = field(init=False, compare=False, repr=False)
    positions: int = field(init=False, compare=False, repr=False)
    pointwise: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        padded = tuple(n + before + after for n, (before, after) in zip(self.spatial, self.padding, strict=True))
        axes = zip(padded, self.kernel, self.stride, self.dilation, strict=True)
        out_spatial = tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in axes)
        pointwise = set(self.kernel) == {1} and set(self.stride) == {1} and not any(map(any, self.padding))
        object.__setattr__(self, "padded", padded)
        object.__setattr__(self, "out_spatial", out_spatial)
        object.__setattr__(self, "positions", math.prod(out_spatial))
        object.__setattr__(self, "pointwise", pointwise)

    @property
    def unpadded(self) -> Padding:
        """No padding."""
        return ((0, 0),) * len(self.kernel)
