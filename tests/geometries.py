"""Convolutions to be tested: a table of geometries, a strategy that draws them, and contract R1 for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse.ops.geometry import ConvGeometry
from fastsparse_kernels import reference as ref
from tests.checking import PATTERNS, Array, assert_within, matrix, numbers, parts

FUNCTIONS = {1: fs.conv1d, 2: fs.conv2d, 3: fs.conv3d}
GRADIENTS = {1: fs.conv1d_backward, 2: fs.conv2d_backward, 3: fs.conv3d_backward}


@dataclass(frozen=True)
class Sizes:
    """A convolution: channels and outputs are those of one group."""

    channels: int
    outputs: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...] | None = None
    padding: tuple[tuple[int, int], ...] | None = None
    dilation: tuple[int, ...] | None = None
    groups: int = 1

    @property
    def keywords(self) -> dict[str, Any]:
        """As the oracle takes them; `fs.conv*` takes them too."""
        ones = (1,) * len(self.kernel)
        return {
            "kernel_size": self.kernel,
            "stride": self.stride or ones,
            "padding": self.padding or ((0, 0),) * len(ones),
            "dilation": self.dilation or ones,
            "groups": self.groups,
        }

    @property
    def shape(self) -> tuple[int, int]:
        return self.outputs * self.groups, self.channels * math.prod(self.kernel)

    @property
    def out_spatial(self) -> tuple[int, ...]:
        k = self.keywords
        return ref.output_size(self.spatial, self.kernel, k["stride"], k["padding"], k["dilation"])

    def drawn(
        self, rng: np.random.Generator, samples: int, dtype: Any, pattern: str = "scattered", integers: bool = False
    ) -> tuple[Array, fs.CSR, Array, Array]:
        """x, W, bias and a gradient."""
        x = numbers(rng, (samples, self.channels * self.groups, *self.spatial), dtype, integers)
        W = matrix(rng, PATTERNS[pattern](rng, self.shape), dtype, integers)
        grad = numbers(rng, (samples, self.shape[0], *self.out_spatial), dtype, integers)
        return x, W, numbers(rng, self.shape[0], dtype, integers), grad

    def forward(self, x: Array, W: fs.CSR, bias: Array | None = None, **rest: Any) -> Array:
        return FUNCTIONS[len(self.kernel)](x, W, bias, **self.keywords, **rest)

    def backward(self, grad: Array, x: Array, W: fs.CSR, **rest: Any) -> tuple[Array, Array, Array]:
        return GRADIENTS[len(self.kernel)](grad, x, W, **self.keywords, **rest)


TABLE = {
    "pointwise": Sizes(9, 5, (6, 7), (1, 1)),
    "pointwise in groups": Sizes(4, 3, (6, 7), (1, 1), groups=2),
    "3x3": Sizes(3, 4, (6, 7), (3, 3), padding=((1, 1), (1, 1))),
    "3x3 without padding": Sizes(3, 4, (6, 7), (3, 3)),
    "one position": Sizes(3, 4, (3, 3), (3, 3)),
    "even kernel": Sizes(3, 4, (5, 6), (2, 4), padding=((0, 1), (2, 1))),
    "stride 2": Sizes(3, 4, (8, 9), (3, 3), stride=(2, 2), padding=((1, 1), (1, 1))),
    "stride 2 without padding": Sizes(2, 3, (8, 9), (2, 3), stride=(2, 2)),
    "stride above kernel": Sizes(3, 2, (11, 13), (2, 1), stride=(3, 4)),
    "stride above kernel, padded": Sizes(3, 2, (7, 9), (1, 2), stride=(4, 5), padding=((2, 0), (1, 3))),
    "stride above image": Sizes(2, 3, (3, 4), (2, 2), stride=(9, 7), padding=((1, 1), (0, 1))),
    "dilation": Sizes(3, 4, (9, 10), (3, 2), dilation=(2, 4), padding=((2, 1), (0, 3))),
    "dilation and stride": Sizes(3, 4, (11, 12), (3, 3), stride=(2, 3), dilation=(2, 3), padding=((2, 2), (3, 1))),
    "dilation divides stride": Sizes(2, 3, (12, 12), (3, 3), stride=(4, 2), dilation=(2, 2), padding=((1, 1), (0, 2))),
    "padding above kernel": Sizes(2, 3, (4, 3), (2, 2), padding=((3, 4), (5, 2))),
    "padding only": Sizes(2, 3, (1, 1), (3, 3), padding=((4, 1), (0, 3))),
    "groups": Sizes(2, 3, (6, 7), (3, 3), padding=((1, 1), (1, 1)), groups=3),
    "depthwise": Sizes(1, 1, (6, 7), (3, 3), padding=((1, 1), (1, 1)), groups=7),
    "depthwise, two each, stride 2": Sizes(1, 2, (7, 8), (3, 3), stride=(2, 2), padding=((1, 1), (1, 1)), groups=5),
    "rows wider than a vector": Sizes(2, 3, (3, 41), (1, 3), padding=((0, 0), (1, 1))),
    "1-D": Sizes(4, 5, (37,), (5,), padding=((2, 2),)),
    "1-D, strided, dilated": Sizes(4, 5, (37,), (3,), stride=(3,), dilation=(4,), padding=((0, 5),)),
    "3-D": Sizes(2, 3, (3, 4, 5), (2, 3, 3), padding=((0, 1), (1, 1), (1, 1))),
    "3-D, strided, grouped": Sizes(
        2, 2, (4, 5, 6), (3, 2, 3), stride=(2, 1, 2), padding=((1, 1), (0, 1), (1, 0)), groups=2
    ),
}


@st.composite
def geometries(draw: st.DrawFn) -> Sizes:
    """Any convolution that has an output, over one to three axes; images may be smaller than the window."""
    axes = draw(st.integers(1, 3))

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes)))

    kernel, stride, dilation = per_axis(1, 4 - axes // 2), per_axis(1, 4), per_axis(1, 3)
    padding = tuple(zip(per_axis(0, 3), per_axis(0, 3), strict=True))
    windows = (d * (k - 1) + 1 - sum(p) for d, k, p in zip(dilation, kernel, padding, strict=True))
    spatial = tuple(max(0, w) + e for w, e in zip(windows, per_axis(0, (40, 6, 3)[axes - 1]), strict=True))
    groups, channels, outputs = draw(st.sampled_from([(1, 3, 4), (1, 1, 1), (2, 2, 1), (3, 1, 2), (4, 1, 1)]))
    return Sizes(channels, outputs, spatial, kernel, stride, padding, dilation, groups)


def assert_forward(y: Array, sizes: Sizes, x: Array, W: fs.CSR, bias: Array | None, activation: str | None) -> None:
    """y is the convolution within R1's bound."""
    indptr, indices, values, shape = parts(W)
    rest: Any = sizes.keywords
    exact = ref.conv(indptr, indices, values, shape, x, bias=bias, **rest)
    absolute = None if bias is None else abs(bias)
    total = ref.conv(indptr, indices, abs(values), shape, abs(x), bias=absolute, **rest)
    products = np.diff(indptr).reshape(-1, *(1,) * len(sizes.spatial))
    assert_within(y, exact, products, total, activation, sizes)


def assert_backward(found: tuple[Array, Array, Array], sizes: Sizes, grad: Array, x: Array, W: fs.CSR) -> None:
    """Gradients within R1's bound; the number of products is counted by a gradient of ones."""
    indptr, indices, values, shape = parts(W)
    rest: Any = sizes.keywords
    exact = ref.conv_backward(grad, indptr, indices, values, shape, x, **rest)
    total = ref.conv_backward(abs(grad), indptr, indices, abs(values), shape, abs(x), **rest)
    ones = np.ones_like(grad), np.ones_like(values), np.ones_like(x)
    count = ref.conv_backward(ones[0], indptr, indices, ones[1], shape, ones[2], **rest)
    positions = len(x) * math.prod(sizes.out_spatial)
    for part, actual, wanted, k, bound in zip(
        ("x", "values", "bias"), found, exact, (count[0], positions, positions), total, strict=True
    ):
        assert actual.dtype == W.dtype
        assert_within(actual, wanted, k, bound, None, (part, sizes))


def geometry_of(sizes: Sizes) -> ConvGeometry:
    k = sizes.keywords
    return ConvGeometry(
        sizes.channels * sizes.groups, sizes.shape[0], sizes.spatial, sizes.kernel, k["stride"], k["padding"],
        k["dilation"], sizes.groups,
    )  # fmt: skip
