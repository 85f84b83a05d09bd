"""Softmax and layer norm of rows against their oracles: every length, in place, on several threads, specials."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastsparse as fs
from fastsparse.ops import norm
from fastsparse.ops import softmax as ops
from fastsparse.ops.target import tuned
from fastsparse_kernels import reference as ref
from tests.kernels.support import DTYPES, Guarded, unit

Array = NDArray[Any]
EPS = 1e-5
SHAPES = [(5, columns) for columns in (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 65)] + [
    (1, 769),
    (300, 128),
    (70, 1000),
]

pytestmark = [pytest.mark.parametrize("dtype", DTYPES)]
shapes = pytest.mark.parametrize("shape", SHAPES)


def softmax(x: Array, threads: int = 1) -> Array:
    y = Guarded(x.shape, x.dtype)
    with tuned(parallel_flops=0), fs.threads(threads):
        assert ops.softmax(x, y.inside) is y.inside
    assert y.intact()
    return y.inside


def layer_norm(x: Array, gamma: Array, beta: Array | None, threads: int = 1, **rest: Any) -> Array:
    y = Guarded(x.shape, x.dtype)
    with tuned(parallel_flops=0), fs.threads(threads):
        assert norm.layer_norm(x, gamma, beta, EPS, y.inside, **rest) is y.inside
    assert y.intact()
    return y.inside


@shapes
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_softmax(rng, shape, dtype, spread):
    x = (rng.normal(size=shape) * spread + 5).astype(dtype)
    y, want = softmax(x), ref.softmax(x)
    below = x.max(axis=1, keepdims=True) - x  # rounding the difference is an error of the exponent
    tiny = np.finfo(dtype).tiny
    assert np.all(np.abs(y - want) <= unit(dtype) * (8 + 2 * below) * want + tiny)
    np.testing.assert_array_equal(softmax(x, threads=2), y)
    ops.softmax(x, x)
    np.testing.assert_array_equal(x, y)


def test_softmax_of_extremes(dtype):
    big = np.finfo(dtype).max
    rows = [
        [big, -big, 0, 1], [-np.inf, 0, 0, -np.inf], [-big, -big, -big, -big], [-1e4, -1e4, -np.inf, -2e4],
    ]  # fmt: skip
    want = [[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0.25] * 4, [0.5, 0.5, 0, 0]]
    for repeated in (1, 2, 5):  # shorter than a vector, and longer
        x = np.tile(np.array(rows, dtype), (1, repeated))
        np.testing.assert_allclose(softmax(x), np.tile(want, (1, repeated)) / repeated, rtol=1e-6)
    x = np.zeros((4, 19), dtype)
    x[0, 18], x[1, 3], x[2] = np.nan, np.inf, -np.inf
    y = softmax(x)
    assert np.isnan(y[0]).all()
    assert np.isnan(y[1]).any()
    assert np.isnan(y[2]).all()
    np.testing.assert_allclose(y[3], 1 / 19, rtol=1e-6)


@shapes
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("with_beta", [True, False])
def test_layer_norm(rng, shape, dtype, offset, with_beta):
    x = (rng.normal(size=shape) + offset).astype(dtype)
    gamma, beta = rng.normal(size=(2, shape[1])).astype(dtype)
    shift = beta if with_beta else None
    y, want = layer_norm(x, gamma, shift), ref.layer_norm(x, gamma, shift, EPS)
    size = np.abs(want) + np.abs(gamma) + (np.abs(beta) if with_beta else 0)
    lost = 0.0 if dtype == "float32" else offset  # what float64 sums cannot resolve
    deviation = np.sqrt(x.astype(float).var(axis=1, keepdims=True) + EPS)
    assert np.all(np.abs(y - want) <= 16 * unit(dtype) * (1 + lost / deviation) * size)
    np.testing.assert_array_equal(layer_norm(x, gamma, shift, threads=2), y)
    norm.layer_norm(x, gamma, shift, EPS, x)
    np.testing.assert_array_equal(x, y)


@shapes
def test_root_mean_square_norm(rng, shape, dtype):
    x = (rng.normal(size=shape) + 3).astype(dtype)
    gamma = rng.normal(size=shape[1]).astype(dtype)
    want = ref.layer_norm(x, gamma, None, EPS, centred=False)
    y = layer_norm(x, gamma, None, centred=False)
    assert np.all(np.abs(y - want) <= 8 * unit(dtype) * np.abs(want))


def test_rows_of_any_layout(rng, dtype):
    """New arrays, or `out`, of the input's type; the input stays, whatever its strides."""
    whole = rng.standard_normal((6, 5, 14)).astype(dtype)
    x, gamma, beta = whole[::2, :, ::2], *rng.standard_normal((2, 7))
    kept, tolerance = whole.copy(), 1e-5 if dtype == "float32" else 1e-13
    for function, want in (
        (ops.softmax, ref.softmax(x)),
        (lambda x, out=None: norm.layer_norm(x, gamma, beta, 1e-3, out), ref.layer_norm(x, gamma, beta, 1e-3)),
        (
            lambda x, out=None: norm.layer_norm(x, gamma, None, 1e-3, out, centred=False),
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
        assert function(x[..., :0] if function is ops.softmax else x[:, :0]).size == 0
