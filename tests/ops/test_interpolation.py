"""Interpolation: against the oracle, between images amid NaN, and nothing else is written."""

from __future__ import annotations

import numpy as np
import pytest

from fastsparse.ops import interpolation
from fastsparse.ops.layouts import BlockedPlanes
from fastsparse.runtime.buffers import address
from fastsparse_kernels import reference
from fastsparse_kernels.interpolation import MOST
from tests.kernels.support import DTYPES, lanes_of, target_of, unit
from tests.ops.test_depthwise import planes_in_nan


def _check(spatial, scale, rng, dtype, on, activation=None, residual=False):
    out, pads = tuple(n * s for n, s in zip(spatial, scale, strict=True)), ((1, 0), (0, 2))[-len(spatial) :]
    x_memory, x, x_planes = planes_in_nan(2, 3, spatial, pads, dtype)
    memory, y, y_planes = planes_in_nan(2, 3, out, pads[::-1], dtype)
    x[...] = 5 * rng.standard_normal(x.shape)
    added = rng.standard_normal(y.shape).astype(dtype) if residual else 0
    if residual:
        y[...] = added  # in place
    launch = interpolation.prepare(x_planes, y_planes, scale, activation, 2, on)
    end = address(memory.inside)
    launch.run(address(x_memory.inside), end if residual else 0, end)
    assert memory.intact()
    assert np.isnan(memory.inside).sum() == memory.inside.size - y.size
    wanted = reference.interpolate(np.asarray(x, np.float64), scale) + added
    np.testing.assert_allclose(
        y, reference.apply_activation(activation, wanted), rtol=0, atol=12 * unit(dtype) * (abs(x).max() + 4)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_images_of_every_size(dtype, rng):
    lanes = lanes_of(dtype)
    for width in (1, 2, lanes // 2, lanes - 1, lanes, lanes + 1, 2 * lanes + 3):
        for spatial, scale in (((1, width), (2, 2)), ((4, width), (2, 2)), ((3, width), (1, 2)), ((width,), (2,))):
            _check(spatial, scale, rng, dtype, target_of(dtype))


@pytest.mark.parametrize("scale", [1, 3, MOST])
def test_every_factor(scale, rng):
    assert interpolation.serves((2, scale))
    assert not interpolation.serves((2, MOST + 1))
    for width in (2, lanes_of("float32") + 1):
        _check((3, width), (scale, scale), rng, "float32", target_of("float32"))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
def test_epilogues(activation, residual, threads, rng):
    _check((5, 19), (2, 2), rng, "float32", target_of("float32", threads), activation, residual)


def test_a_weight_of_zero_meets_no_number(rng):
    """The middle one of three positions is its own; the edges go on with themselves."""
    x = np.full((1, 1, 3, 3), np.inf, np.float32)
    x[0, 0, 1, 1] = 1.0
    memory, image, planes = planes_in_nan(1, 1, (3, 3), ((0, 0), (0, 0)), "float32")
    image[...] = x
    out, y, y_planes = planes_in_nan(1, 1, (9, 9), ((0, 0), (0, 0)), "float32")
    launch = interpolation.prepare(planes, y_planes, (3, 3), None, 1, target_of("float32"))
    launch.run(address(memory.inside), 0, address(out.inside))
    assert y[0, 0, 4, 4] == 1.0
    assert np.isposinf(np.delete(y.ravel(), 40)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [(2, 2), (3, 1), (1, 4)])
def test_groups_of_samples_have_the_same_bits(scale, dtype, rng):
    """Whatever the layout: rows first, then columns."""
    lanes, spatial = lanes_of(dtype), (3, 5)
    out = tuple(n * s for n, s in zip(spatial, scale, strict=True))
    x = rng.standard_normal((2 * lanes, 3, *spatial)).astype(dtype)

    def blocked(array):
        return np.ascontiguousarray(np.moveaxis(array.reshape(2, lanes, *array.shape[1:]), 1, -1))

    def planes(spatial):
        vector = lanes * np.dtype(dtype).itemsize
        plane, nothing = int(np.prod(spatial)) * vector, np.empty(0, np.int64)
        strides = spatial[1] * vector, vector
        return BlockedPlanes(3, int(np.prod(spatial)), nothing, nothing, plane, 3 * plane, spatial, strides)

    source, added = blocked(x), blocked(rng.standard_normal((2 * lanes, 3, *out)).astype(dtype))
    y = np.full_like(added, np.nan)
    target = target_of(dtype)
    interpolation.prepare_blocked(planes(spatial), planes(out), scale, "relu", 2, target).run(
        address(source), address(added), address(y)
    )
    memory, image, at = planes_in_nan(2 * lanes, 3, spatial, ((0, 0), (0, 0)), dtype)
    result, wanted, y_at = planes_in_nan(2 * lanes, 3, out, ((0, 0), (0, 0)), dtype)
    image[...] = x
    wanted[...] = np.moveaxis(added, -1, 1).reshape(wanted.shape)
    end = address(result.inside)
    interpolation.prepare(at, y_at, scale, "relu", 2 * lanes, target).run(address(memory.inside), end, end)
    np.testing.assert_array_equal(y, blocked(np.asarray(wanted)))
