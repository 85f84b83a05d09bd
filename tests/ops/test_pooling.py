"""Pooling against the oracle: every geometry, cut into bands, with NaN and Inf; gradients; the batch-blocked layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastsparse.ops import pooling as ops
from fastsparse.ops.pooling import Windows, adaptive_windows, windows
from fastsparse.ops.target import Target
from fastsparse.runtime.buffers import address
from fastsparse_kernels import pooling
from fastsparse_kernels import reference as ref
from tests.checking import target
from tests.kernels.support import DTYPES, Guarded, bits_of, lanes_of, run_kernel

Array = NDArray[Any]
NO_PADDING = ((0, 0), (0, 0))

# shape, kernel, stride, padding
GEOMETRIES: list[Any] = [
    ((2, 3, 4, 6), (2, 2), (2, 2), NO_PADDING),
    ((3, 11, 8, 8), (2, 2), (2, 2), NO_PADDING),
    ((1, 1, 1, 1), (1, 1), (1, 1), NO_PADDING),
    ((1, 17, 9, 7), (3, 3), (1, 1), ((1, 1), (1, 1))),
    ((2, 9, 10, 11), (3, 2), (2, 3), ((1, 0), (0, 1))),
    ((5, 3, 7, 7), (7, 7), (1, 1), NO_PADDING),
    ((1, 2, 13, 5), (2, 1), (3, 2), NO_PADDING),  # inputs that no window sees
    ((1, 33, 3, 35), (3, 5), (1, 4), ((1, 1), (2, 2))),
]


def target_of(dtype: Any, threads: int = 1, **changes: Any) -> Target:
    return target(bits_of(dtype), lanes_of(dtype), threads, parallel_flops=0, **changes)


@pytest.fixture(params=["planned bands", "a band per row"])
def bands(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Changes of heuristics: none, and those that give the smallest bands."""
    return {"band_bytes": 1} if request.param == "a band per row" else {}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_smallest_bands_are_rows(geometry: Any) -> None:
    """With the rows on the other side that the windows connect them to."""
    (_, _, *spatial), *window = geometry
    w, t = windows(tuple(spatial), *window), target_of("float32", band_bytes=1)
    forward, backward = ops.forward_bands(w, 1, t).table, ops.backward_bands(w, 1, t).table
    np.testing.assert_array_equal(forward[:, 2:], [(row, row + 1) for row in range(len(w.rows))])
    np.testing.assert_array_equal(forward[:, :2], w.rows[:, :2])
    np.testing.assert_array_equal(backward[:, :2], [(row, row + 1) for row in range(spatial[0])])
    for row, (first, end) in enumerate(backward[:, 2:]):
        met = np.flatnonzero((w.rows[:, 0] <= row) & (w.rows[:, 1] > row))
        assert list(range(first, end)) == met.tolist()


def forward(kind: str, w: Windows, x: Array, threads: int = 1, **changes: Any) -> tuple[Array, Array]:
    y = Guarded((*x.shape[:2], *w.out_spatial), x.dtype)
    index = np.full(y.inside.shape, -1, np.int32 if x.itemsize == 4 else np.int64)
    launch = ops.prepare(kind, w, x.shape[0] * x.shape[1], target_of(x.dtype, threads, **changes))
    launch.run(address(x), address(y.inside), address(index))
    assert y.intact()
    return y.inside, index


def backward(kind: str, w: Windows, dy: Array, index: Array | None, threads: int = 1, **changes: Any) -> Array:
    dx = Guarded((*dy.shape[:2], *w.spatial), dy.dtype)
    launch = ops.prepare_backward(kind, w, dy.shape[0] * dy.shape[1], target_of(dy.dtype, threads, **changes))
    launch.run(address(dx.inside), address(dy), 0 if index is None else address(index))
    assert dx.intact()
    return dx.inside


def check_max(x: Array, kernel: Any, stride: Any, padding: Any, rng: np.random.Generator, **changes: Any) -> None:
    w = windows(x.shape[2:], kernel, stride, padding)
    want = ref.max_pool(x, kernel, stride, padding)
    np.testing.assert_array_equal(forward("max", w, x, **changes)[0], want)
    y, index = forward("max_index", w, x, **changes)
    np.testing.assert_array_equal(y, want)
    for plane, winners, values in zip(
        *(v.reshape(v.shape[0] * v.shape[1], *v.shape[2:]) for v in (x, index, y)), strict=True
    ):
        np.testing.assert_array_equal(plane.ravel()[winners], values)
    dy = rng.integers(-8, 9, y.shape).astype(x.dtype)
    got = backward("max_index", w, dy, index, **changes)
    np.testing.assert_array_equal(got, ref.max_pool_backward(dy, x, kernel, stride, padding))


@pytest.mark.R4
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_max_is_the_oracle(geometry: Any, dtype: str, special: bool, bands: Any, rng: np.random.Generator) -> None:
    shape, *window = geometry
    x = rng.integers(-3, 4, shape).astype(dtype)  # many ties
    if special:
        for value in (np.nan, np.inf, -np.inf):
            x[rng.random(shape) < 0.2] = value
    check_max(x, *window, rng, **bands)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_of_equals_wins(dtype: str, value: float, rng: np.random.Generator) -> None:
    check_max(np.full((2, 3, 6, 6), value, dtype), (3, 3), (2, 2), ((1, 1), (1, 1)), rng)


def test_negative_zero_ties_with_zero() -> None:
    x = np.zeros((1, 1, 1, 2), np.float32)
    x[..., 0] = -0.0
    index = forward("max_index", windows((1, 2), (1, 2), (1, 1), NO_PADDING), x)[1]
    assert index.item() == 0


@pytest.mark.R1
@pytest.mark.parametrize("count_padding", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_mean_is_within_the_bound(
    geometry: Any, dtype: str, count_padding: bool, bands: Any, rng: np.random.Generator
) -> None:
    shape, *window = geometry
    x = rng.normal(size=shape).astype(dtype)
    w = windows(shape[2:], *window, count_padding=count_padding)
    y = forward("mean", w, x, **bands)[0]
    taps = int(np.prod(window[0]))
    bound = ref.bound(taps, ref.avg_pool(abs(x), *window, count_padding), dtype)
    assert np.all(abs(y - ref.avg_pool(x, *window, count_padding)) <= bound)
    dy = rng.normal(size=y.shape).astype(dtype)
    error = abs(backward("mean", w, dy, None, **bands) - ref.avg_pool_backward(dy, x, *window, count_padding))
    assert np.all(error <= ref.bound(taps, ref.avg_pool_backward(abs(dy), x, *window, count_padding), dtype))


@pytest.mark.parametrize("output", [(1, 1), (2, 3), (7, 6), (9, 8), (1, 6)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_adaptive_means_of_integers_are_exact(output: Any, dtype: str, bands: Any, rng: np.random.Generator) -> None:
    w = adaptive_windows((7, 6), output)
    x = rng.integers(-9, 10, (3, 7, 7, 6)).astype(dtype)
    y = forward("mean", w, x, **bands)[0]
    areas = np.zeros(output, dtype)
    for i in range(output[0]):
        for j in range(output[1]):
            rows = slice(i * 7 // output[0], -(-(i + 1) * 7 // output[0]))
            columns = slice(j * 6 // output[1], -(-(j + 1) * 6 // output[1]))
            part = x[:, :, rows, columns]
            areas[i, j] = part.shape[2] * part.shape[3]
            np.testing.assert_array_equal(y[:, :, i, j], part.sum((2, 3)) / areas[i, j])
    dy = rng.integers(-9, 10, y.shape) * areas  # the quotients are integers
    dx = backward("mean", w, dy.astype(dtype), None, **bands)
    assert np.sum(dx * x) == np.sum(dy / areas * (y * areas).round())


@pytest.mark.R5
@pytest.mark.parametrize("spatial", [(1, 100_003), (100_003, 1), (317, 316)])
def test_means_of_large_windows_are_sums_of_parts(spatial: Any) -> None:
    """One of as many equal numbers, added one after the other, is off by 1e-3."""
    x = np.full((3, 2, *spatial), 1.1, np.float32)
    mean = ops.adaptive_avg_pool2d(x, (1, 1))
    assert abs(mean.astype(np.float64) / x[0, 0, 0, 0] - 1).max() < 2e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_travel_through_means(dtype: str) -> None:
    x = np.ones((1, 1, 2, 8), dtype)
    x[0, 0, 0, ::2] = [np.nan, np.inf, -np.inf, 0]
    w = windows((2, 8), (2, 2), (2, 2), NO_PADDING)
    np.testing.assert_array_equal(forward("mean", w, x)[0].ravel(), [np.nan, np.inf, -np.inf, 0.75])
    dy = np.array([np.nan, np.inf, 4, 8], dtype).reshape(1, 1, 1, 4)
    dx = backward("mean", w, dy, None)
    np.testing.assert_array_equal(dx[0, 0], np.repeat(np.array([[np.nan, np.inf, 1, 2]] * 2, dtype), 2, axis=1))


@pytest.mark.parametrize("planes", [0, 1, "lanes - 1", "lanes", "lanes + 1", "2 lanes + 1"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_of_planes(planes: Any, dtype: str, rng: np.random.Generator) -> None:
    lanes = lanes_of(dtype)
    known = {"lanes - 1": lanes - 1, "lanes": lanes, "lanes + 1": lanes + 1, "2 lanes + 1": 2 * lanes + 1}
    check_max(rng.integers(-5, 6, (1, known.get(planes, planes), 5, 5)).astype(dtype), (2, 2), (1, 1), NO_PADDING, rng)


axis = st.tuples(st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.integers(0, 2)).filter(
    lambda a: a[0] + a[3] + a[4] >= a[1] and max(a[3:]) < a[1]
)


@given(st.integers(1, 3), st.integers(1, 12), axis, axis, st.integers(0, 2**32 - 1))
def test_drawn_geometries(images: int, channels: int, rows: Any, columns: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    (height, *down), (width, *across) = rows, columns
    kernel, stride = zip(down[:2], across[:2], strict=True)
    padding = (tuple(down[2:]), tuple(across[2:]))
    x = rng.integers(-3, 4, (images, channels, height, width)).astype(np.float32)
    check_max(x, kernel, stride, padding, rng)


@pytest.mark.R6
def test_gradients_are_slopes(rng: np.random.Generator) -> None:
    w = windows((6, 7), (3, 2), (2, 2), ((1, 1), (0, 1)))
    x = rng.permutation(2 * 3 * 6 * 7).reshape(2, 3, 6, 7).astype(np.float64)  # no ties within the step
    dy = rng.normal(size=(2, 3, *w.out_spatial))
    for kind in ("max_index", "mean"):
        _, index = forward(kind, w, x)
        dx = backward(kind, w, dy, index)
        for at in rng.permutation(x.size)[:40]:
            step = np.zeros(x.size)
            step[at] = 0.25
            moved = [forward(kind, w, x + sign * step.reshape(x.shape))[0] for sign in (1, -1)]
            assert np.sum(dy * (moved[0] - moved[1])) / 0.5 == pytest.approx(dx.ravel()[at], abs=1e-10)


@pytest.mark.R3
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_a_bit(dtype: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 40, 14, 14)).astype(dtype)
    w = windows((14, 14), (3, 3), (2, 2), ((1, 1), (1, 1)))
    for kind in ("max_index", "mean"):
        y, index = forward(kind, w, x)
        dx = backward(kind, w, y, index)
        for threads in (2, 7):
            again, index_again = forward(kind, w, x, threads)
            np.testing.assert_array_equal(again, y)
            np.testing.assert_array_equal(index_again, index)
            np.testing.assert_array_equal(backward(kind, w, y, index, threads), dx)


# --- batch-blocked layout ----------------------------------------------------------------------


def _offsets(spatial: Any, pad: int, vector: int) -> Array:
    """Offsets of the positions of a padded plane, in bytes."""
    height, width = (n + 2 * pad for n in spatial)
    inside = np.zeros((height, width), bool)
    inside[pad : height - pad, pad : width - pad] = True
    return np.flatnonzero(inside) * vector


@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_batch_blocked_layout(geometry: Any, dtype: str, pad: int, rng: np.random.Generator) -> None:
    (groups, channels, *spatial), *window = geometry
    lanes, size = lanes_of(dtype), np.dtype(dtype).itemsize
    vector = lanes * size
    w = windows(tuple(spatial), *window)
    bands = ops.forward_bands(w, 1, target_of(dtype, 3))
    x = rng.integers(-9, 10, (groups * lanes, channels, *spatial)).astype(dtype)
    x[rng.random(x.shape) < 0.1] = np.nan

    def padded(spatial: Any) -> tuple[Guarded, Array]:
        positions = (spatial[0] + 2 * pad) * (spatial[1] + 2 * pad)
        return Guarded((groups, channels, positions, lanes), dtype), _offsets(spatial, pad, vector)

    source, x_offsets = padded(spatial)
    by_lane = x.reshape(groups, lanes, channels, -1).transpose(0, 2, 3, 1)
    source.inside[:, :, x_offsets // vector] = by_lane
    makers: list[tuple[str, Callable[..., Array]]] = [("max", ref.max_pool), ("mean", ref.avg_pool)]
    for kind, oracle in makers:
        result, y_offsets = padded(w.out_spatial)
        run_kernel(
            pooling.pool_batch_blocked_kernel(kind, bits_of(dtype), lanes),
            pooling.BATCH_BLOCKED,
            groups * channels * len(bands.table),
            channels=channels,
            bands=len(bands.table),
            band_rows=bands.table,
            width=spatial[1],
            out_width=len(w.columns),
            rows=w.rows,
            columns=w.columns,
            x=source.inside,
            x_group_stride=source.inside.strides[0],
            x_channel_stride=source.inside.strides[1],
            x_offsets=x_offsets if pad else 0,
            y=result.inside,
            y_group_stride=result.inside.strides[0],
            y_channel_stride=result.inside.strides[1],
            y_offsets=y_offsets if pad else 0,
        )
        assert result.intact()
        between = np.delete(result.inside, y_offsets // vector, axis=2)
        assert np.isnan(between).all()
        got = result.inside[:, :, y_offsets // vector].transpose(0, 3, 1, 2)
        want = oracle(x, *window).reshape(got.shape)
        np.testing.assert_array_equal(got, want.astype(dtype))


# --- functions of arrays -----------------------------------------------------------------------

POOLS: list[Any] = [
    ((2, 2), (2, 2), ((0, 0), (0, 0))),
    ((3, 2), (1, 2), ((1, 1), (0, 1))),
    ((3, 3), (2, 2), ((1, 1), (1, 1))),
    ((1, 4), (3, 1), ((0, 0), (2, 2))),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("special", [False, True])
def test_max_pooling_is_exact(pool: Any, dtype: str, special: bool, rng: np.random.Generator) -> None:
    x = rng.integers(-3, 4, (2, 3, 7, 6)).astype(dtype)  # many ties
    if special:
        x[rng.random(x.shape) < 0.2] = np.nan
        x[rng.random(x.shape) < 0.2] = -np.inf
    want = ref.max_pool(x, *pool)
    y, index = ops.max_pool2d_with_index(x, *pool)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(ops.max_pool2d(x, *pool), want)
    dy = rng.integers(-8, 9, y.shape).astype(dtype)
    dy[0, 0, 0, 0] = np.inf
    got = ops.max_pool2d_backward(dy, index, (7, 6), *pool)
    np.testing.assert_array_equal(got, ref.max_pool_backward(dy, x, *pool))
    assert y.dtype == got.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", POOLS)
def test_average_pooling_is_the_oracle(pool: Any, dtype: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 7, 6)).astype(dtype)
    y = ops.avg_pool2d(x, *pool)
    taps = int(np.prod(pool[0]))
    assert np.all(abs(y - ref.avg_pool(x, *pool)) <= ref.bound(taps, ref.avg_pool(abs(x), *pool), dtype))
    dy = rng.normal(size=y.shape).astype(dtype)
    got, want = ops.avg_pool2d_backward(dy, (7, 6), *pool), ref.avg_pool_backward(dy, x, *pool)
    assert np.all(abs(got - want) <= ref.bound(taps, ref.avg_pool_backward(abs(dy), x, *pool), dtype))


@pytest.mark.parametrize("output", [(1, 1), (2, 3), (3, 4), (7, 6), (9, 8)])
def test_adaptive_average_pooling_covers_everything(output: Any, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 7, 6))
    y = ops.adaptive_avg_pool2d(x, output)
    for i in range(output[0]):
        for j in range(output[1]):
            rows = slice(int(np.floor(i * 7 / output[0])), int(np.ceil((i + 1) * 7 / output[0])))
            columns = slice(int(np.floor(j * 6 / output[1])), int(np.ceil((j + 1) * 6 / output[1])))
            np.testing.assert_allclose(y[:, :, i, j], x[:, :, rows, columns].mean((2, 3)), rtol=1e-13, atol=1e-15)
    dy = rng.normal(size=y.shape)
    back = ops.adaptive_avg_pool2d_backward(dy, (7, 6))
    assert np.sum(back * x) == pytest.approx(np.sum(dy * y), rel=1e-12)


def test_inputs_are_left_alone(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 4))
    x.flags.writeable = False
    window: Any = ((2, 2), (2, 2), ((0, 0), (0, 0)))
    y, index = ops.max_pool2d_with_index(x, *window)
    ops.max_pool2d_backward(y, index, (4, 4), *window)
    ops.avg_pool2d(x, *window)
