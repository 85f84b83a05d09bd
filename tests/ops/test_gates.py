"""Gates: channels times a number each, between images with and without padding, which stays as it is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastsparse.ops.gates import prepare
from fastsparse.ops.layouts import BlockedPlanes, row_major_strides
from fastsparse.runtime.buffers import address
from tests.kernels.support import DTYPES, Guarded, lanes_of, target_of


def _image(images, channels, spatial, pads, inner, dtype):
    """Memory of NaN, its padded shape, and the image in it; `inner` numbers are a position."""
    padded = tuple(n + before + after for n, (before, after) in zip(spatial, pads, strict=True))
    size = np.dtype(dtype).itemsize
    memory = Guarded((images, channels, *padded, inner), dtype)
    strides, nothing = row_major_strides(padded, inner * size), np.empty(0, np.int64)
    corner = sum(before * s for (before, _), s in zip(pads, strides, strict=True))
    plane = math.prod(padded) * inner * size
    inside = (slice(None), slice(None), *(slice(b, b + n) for n, (b, _) in zip(spatial, pads, strict=True)))
    planes = BlockedPlanes(
        channels, math.prod(spatial), nothing, nothing, plane, channels * plane, spatial, strides, corner
    )
    return memory, memory.inside[inside], planes


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("by_lane", [False, True])
@pytest.mark.parametrize("spatial", [(1,), (7,), (33,), (4, 5), (3, 16), (2, 3, 17)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_multiply_the_image_and_touch_nothing_else(dtype, spatial, by_lane, threads, rng):
    inner = lanes_of(dtype) if by_lane else 1
    none, some = ((0, 0),) * len(spatial), ((1, 2), (0, 1), (3, 0))[-len(spatial) :]
    for x_pads, y_pads in ((none, none), (none, some), (some, none), (some, some[::-1])):
        x_memory, x_inside, x = _image(2, 3, spatial, x_pads, inner, dtype)
        memory, y_inside, y = _image(2, 3, spatial, y_pads, inner, dtype)
        x_inside[...] = rng.standard_normal(x_inside.shape)
        gate = rng.standard_normal((2, 3, inner)).astype(dtype)
        gate[0, 1] = np.inf
        launch = prepare(x, gate.strides[:2], y, 3, 2, target_of(dtype, threads), by_lane=by_lane)
        launch.run(address(x_memory.inside), address(gate), address(memory.inside))
        assert memory.intact()
        np.testing.assert_array_equal(y_inside, x_inside * gate.reshape(2, 3, *(1,) * len(spatial), inner))
        around = np.isnan(memory.inside).sum()
        assert around == memory.inside.size - y_inside.size


@pytest.mark.parametrize("by_lane", [False, True])
def test_a_gate_of_negative_zero_keeps_its_sign(by_lane):
    """The sign of a result does not depend on the layout."""
    inner = lanes_of("float32") if by_lane else 1
    _, x_inside, planes = _image(1, 1, (3,), ((0, 0),), inner, "float32")
    x_inside[...] = 1
    gate = np.full((1, 1, inner), -0.0, np.float32)
    launch = prepare(planes, (0, 0), planes, 1, 1, target_of("float32", 1), by_lane=by_lane)
    launch.run(address(x_inside), address(gate), address(x_inside))
    assert np.signbit(x_inside).all()
