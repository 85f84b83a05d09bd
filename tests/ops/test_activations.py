"""Activations, pooling and normalisation against the oracles, within rounding; NaN and Inf; nothing overwritten."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastsparse.ops import activations, norm, pooling, softmax
from fastsparse_kernels import reference as ref

Array = NDArray[Any]
DTYPES = ["float32", "float64"]
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3.0, -3.0, 6.0, 1e-30, -1e-30, 88.0, -88.0, 700.0, -700.0])


def _unit(dtype: str) -> float:
    return float(np.finfo(dtype).eps) / 2


def _numbers(rng: np.random.Generator, dtype: str) -> Array:
    return np.concatenate([rng.normal(0, 3, 500), SPECIAL]).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ref.ACTIVATIONS)
def test_activations_are_the_oracle(name: str, dtype: str, rng: np.random.Generator) -> None:
    z = _numbers(rng, dtype)
    with np.errstate(all="ignore"):
        got, want = elementwise.activate(name, z), ref.activate(name, z)
        close = abs(got - want) <= 8 * _unit(dtype) * np.maximum(1, abs(z.astype(float)))
    assert got.dtype == dtype
    assert np.all(close | (got == want) | (np.isnan(got) & np.isnan(want)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ref.ACTIVATIONS)
def test_activation_slopes_are_the_oracle(name: str, dtype: str, rng: np.random.Generator) -> None:
    z = rng.normal(0, 3, 500).astype(dtype)
    dy = rng.normal(size=500).astype(dtype)
    kept = elementwise.activate(name, z) if name in elementwise.FROM_OUTPUT else z
    got, want = elementwise.activate_backward(name, dy, kept), ref.activate_grad(name, dy, z)
    assert got.dtype == dtype
    assert np.all(abs(got - want) <= 16 * _unit(dtype) * abs(dy) * np.maximum(1, abs(z)))


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
    y, index = elementwise.max_pool2d_with_index(x, *pool)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(elementwise.max_pool2d(x, *pool), want)
    dy = rng.integers(-8, 9, y.shape).astype(dtype)
    dy[0, 0, 0, 0] = np.inf
    got = elementwise.max_pool2d_backward(dy, index, (7, 6), *pool)
    np.testing.assert_array_equal(got, ref.max_pool_backward(dy, x, *pool))
    assert y.dtype == got.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", POOLS)
def test_average_pooling_is_the_oracle(pool: Any, dtype: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 7, 6)).astype(dtype)
    y = elementwise.avg_pool2d(x, *pool)
    taps = int(np.prod(pool[0]))
    assert np.all(abs(y - ref.avg_pool(x, *pool)) <= ref.bound(taps, ref.avg_pool(abs(x), *pool), dtype))
    dy = rng.normal(size=y.shape).astype(dtype)
    got, want = elementwise.avg_pool2d_backward(dy, (7, 6), *pool), ref.avg_pool_backward(dy, x, *pool)
    assert np.all(abs(got - want) <= ref.bound(taps, ref.avg_pool_backward(abs(dy), x, *pool), dtype))


@pytest.mark.parametrize("output", [(1, 1), (2, 3), (3, 4), (7, 6), (9, 8)])
def test_adaptive_average_pooling_covers_everything(output: Any, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 7, 6))
    y = elementwise.adaptive_avg_pool2d(x, output)
    for i in range(output[0]):
        for j in range(output[1]):
            rows = slice(int(np.floor(i * 7 / output[0])), int(np.ceil((i + 1) * 7 / output[0])))
            columns = slice(int(np.floor(j * 6 / output[1])), int(np.ceil((j + 1) * 6 / output[1])))
            np.testing.assert_allclose(y[:, :, i, j], x[:, :, rows, columns].mean((2, 3)), rtol=1e-13, atol=1e-15)
    dy = rng.normal(size=y.shape)
    back = elementwise.adaptive_avg_pool2d_backward(dy, (7, 6))
    assert np.sum(back * x) == pytest.approx(np.sum(dy * y), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 5), (4, 5, 3), (8, 5, 6, 7)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_batch_norm_is_the_oracle(shape: Any, dtype: str, offset: float, rng: np.random.Generator) -> None:
    x = (rng.normal(size=shape) + offset).astype(dtype)
    gamma, beta, dy = (rng.normal(size=size).astype(dtype) for size in (5, 5, shape))
    eps, u = 1e-5, _unit(dtype)
    y, mean, variance = elementwise.batch_norm_train(x, gamma, beta, eps)
    want, want_mean, want_variance = ref.batch_norm(x, gamma, beta, eps)
    assert y.dtype == dtype
    np.testing.assert_allclose(mean, want_mean.astype(float), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(variance, want_variance.astype(float), rtol=8 * u, atol=1e-13)
    # A float64 mean of float64 numbers is itself rounded.
    assert np.all(abs(y - want) <= 16 * u * (abs(want) + 8 + (offset if dtype == "float64" else 0)))
    grads = elementwise.batch_norm_backward(dy, x, gamma, mean, variance, eps)
    wanted = ref.batch_norm_backward(dy, x, gamma, eps)
    # The centred x carries the rounding of its own subtraction: u * offset.
    scales = 8 + np.abs(wanted[0]).max(), np.abs(dy).sum(), np.abs(dy).sum()
    for got, right, scale in zip(grads, wanted, scales, strict=True):
        assert got.dtype == dtype
        assert np.all(abs(got - right) <= 16 * u * (1 + offset) * scale)
    running = elementwise.batch_norm_eval(x, gamma, beta, beta, np.abs(gamma) + 1, eps)
    right = ref.batch_norm_eval(x, gamma, beta, beta, np.abs(gamma) + 1, eps)
    assert np.all(abs(running - right) <= 16 * u * (abs(x) + 8))


def test_inputs_are_left_alone(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 4))
    x.flags.writeable = False
    ones = np.ones(3)
    for name in ref.ACTIVATIONS:
        elementwise.activate(name, x)
        elementwise.activate_backward(name, x, x)
    window: Any = ((2, 2), (2, 2), ((0, 0), (0, 0)))
    y, index = elementwise.max_pool2d_with_index(x, *window)
    elementwise.max_pool2d_backward(y, index, (4, 4), *window)
    elementwise.avg_pool2d(x, *window)
    elementwise.batch_norm_train(x, ones, ones, 1e-5)
    elementwise.batch_norm_backward(x, x, ones, ones, ones, 1e-5)


def test_unknown_activations_are_named() -> None:
    with pytest.raises(ValueError, match="activation is 'swosh'"):
        elementwise.activate("swosh", np.zeros(1))
    with pytest.raises(ValueError, match="activation is 'swosh'"):
        elementwise.activate_backward("swosh", np.zeros(1), np.zeros(1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_any_layout(rng, dtype):
    """New arrays, or `out`, of the input's type; the input stays, whatever its strides."""
    whole = rng.standard_normal((6, 5, 14)).astype(dtype)
    x, gamma, beta = whole[::2, :, ::2], *rng.standard_normal((2, 7))
    kept, tolerance = whole.copy(), 1e-5 if dtype == "float32" else 1e-13
    for function, want in (
        (elementwise.softmax, ref.softmax(x)),
        (lambda x, out=None: elementwise.layer_norm(x, gamma, beta, 1e-3, out), ref.layer_norm(x, gamma, beta, 1e-3)),
        (
            lambda x, out=None: elementwise.layer_norm(x, gamma, None, 1e-3, out, centred=False),
            ref.layer_norm(x, gamma, None, 1e-3, centred=False),
        ),
    ):
        y, out = function(x), np.full(x.shape, np.nan, dtype)
        assert y.dtype == dtype
        assert function(x, out) is out
        np.testing.assert_array_equal(out, y)
        np.testing.assert_allclose(y, want.astype(float), rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(whole, kept)
        assert function(x[:0]).shape == (0, 5, 7)
        assert function(x[..., :0] if function is elementwise.softmax else x[:, :0]).size == 0
