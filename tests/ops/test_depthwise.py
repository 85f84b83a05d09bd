"""Depthwise convolutions with full windows: against the oracle, from images amid NaN, and nothing else is written."""

from __future__ import annotations

import numpy as np
import pytest

from fastsparse.csr import CSR
from fastsparse.ops import depthwise
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.layouts import PaddedPlanes, row_major_strides
from fastsparse.runtime.buffers import address
from fastsparse_kernels import reference
from fastsparse_kernels.depthwise import ROWS, WINDOWS
from tests.checking import target
from tests.kernels.support import Guarded, lanes_of, target_of, unit


def planes_in_nan(images, channels, spatial, pads, dtype):
    """Memory of NaN, the images in it, and where they are."""
    padded = tuple(n + before + after for n, (before, after) in zip(spatial, pads, strict=True))
    memory, size = Guarded((images, channels, *padded), dtype), np.dtype(dtype).itemsize
    strides = row_major_strides(padded, size)
    corner = sum(before * n for (before, _), n in zip(pads, strides, strict=True))
    plane, nothing = int(np.prod(padded)) * size, np.empty((0, 0), np.int64)
    inside = (slice(None), slice(None), *(slice(b, b + n) for n, (b, _) in zip(spatial, pads, strict=True)))
    planes = PaddedPlanes(channels, spatial, pads, strides, corner, plane, 0, nothing, nothing, contiguous=False)
    return memory, memory.inside[inside], planes


def _check(side, stride, spatial, pads, rng, dtype, on, activation=None, bias=True, residual=False):
    images, channels, taps = 2, 3, side * side
    out = tuple((n + sum(pad) - side) // stride + 1 for n, pad in zip(spatial, pads, strict=True))
    g = ConvGeometry(
        channels, channels, spatial, (side, side), (stride, stride), pads, (1, 1), channels
    )  # fmt: skip
    assert min(out) > 0
    assert g.out_spatial == out
    W = CSR(
        np.arange(channels + 1) * taps, np.tile(np.arange(taps), channels),
        rng.standard_normal(channels * taps).astype(dtype), (channels, taps),
    )  # fmt: skip
    assert depthwise.serves(g, W)
    b = rng.standard_normal(channels).astype(dtype) if bias else None
    x_memory, x, x_planes = planes_in_nan(images, channels, spatial, ((1, 0), (0, 2)), dtype)
    memory, y, y_planes = planes_in_nan(images, channels, out, ((0, 1), (2, 1)), dtype)
    x[...] = rng.standard_normal(x.shape)
    added = rng.standard_normal(y.shape).astype(dtype) if residual else None
    if added is not None:
        y[...] = added  # in place
    launch = depthwise.prepare(x_planes, y_planes, g, W, b, activation, images, on, residual)
    end = address(memory.inside)
    launch.run(address(x_memory.inside), end if residual else 0, end)
    assert memory.intact()
    assert np.isnan(memory.inside).sum() == memory.inside.size - y.size
    wanted = reference.conv(
        W.indptr, W.indices, W.data, W.shape, np.asarray(x, np.float64), kernel_size=(side, side),
        stride=(stride, stride), padding=pads, dilation=(1, 1), groups=channels, bias=b, activation=activation,
        residual=added,
    )  # fmt: skip
    most = float(np.abs(W.data).max()) * float(np.abs(x).max()) * taps + 8
    np.testing.assert_allclose(y, wanted, rtol=0, atol=2 * (taps + 6) * unit(dtype) * most)


@pytest.mark.parametrize(
    ("side", "stride", "dtype"), [*((*window, "float32") for window in WINDOWS), (3, 2, "float64")]
)
def test_images_of_every_size(side, stride, dtype, rng):
    lanes = lanes_of(dtype)
    sizes = (1, 2, side, lanes // 2, lanes - 1, lanes, lanes + 1, 2 * lanes + 3, 4 * lanes + 1)
    pads = ((0, 0), (side // 2, side // 2), (0, side - 1), (1, 0))
    for i, width in enumerate(sizes):
        for height in (1, side, stride * ROWS, stride * ROWS + 1, 3 * ROWS - 1):
            vertical, horizontal = pads[(i + height) % 4], pads[i % 4]
            if min(height + sum(vertical), width + sum(horizontal)) >= side:
                _check(side, stride, (height, width), (vertical, horizontal), rng, dtype, target_of(dtype))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("activation", [None, "relu6", "silu"])
@pytest.mark.parametrize(("bias", "residual"), [(True, True), (False, False)])
def test_epilogue(activation, bias, residual, threads, rng):
    for side, stride in WINDOWS:
        pads = ((side // 2, side // 2),) * 2
        on = target_of("float32", threads)
        for width in (37, 14, 7):
            _check(side, stride, (19, width), pads, rng, "float32", on, activation, bias, residual)


@pytest.mark.parametrize("stride", [1, 2])
def test_short_vectors(stride, rng):
    """Of 16 bytes, which read whole vectors inside an image."""
    _check(3, stride, (9, 23), ((1, 1), (1, 0)), rng, "float32", target(32, 4))


def test_other_convolutions_are_not_taken():
    def taken(channels=4, out=4, kernel=(3, 3), stride=(1, 1), dilation=(1, 1), groups=4, less=0):
        spatial = (9,) * len(kernel)
        pads = ((0, 0),) * len(kernel)
        g = ConvGeometry(channels, out, spatial, kernel, stride, pads, dilation, groups)
        columns = channels // groups * int(np.prod(kernel))
        full = np.tile(np.arange(columns), out)[less:]
        indptr = np.maximum(np.arange(out + 1) * columns - less, 0)
        return depthwise.serves(g, CSR(indptr, full, np.ones(len(full), np.float32), (out, columns)))

    assert taken()
    assert taken(stride=(2, 2))
    others: list[dict[str, object]] = [
        {"less": 1}, {"out": 8}, {"groups": 2}, {"kernel": (3, 5)}, {"kernel": (7, 7)}, {"stride": (1, 2)},
        {"dilation": (2, 2)}, {"stride": (3, 3)}, {"kernel": (3,), "stride": (1,), "dilation": (1,)},
    ]  # fmt: skip
    assert not any(taken(**other) for other in others)
