"""Optimizer kernels against their formulas in float64, at every kind of length, without a write outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse.ops import optimizers
from fastsparse.ops.target import tuned
from tests.kernels.support import DTYPES, Guarded, lanes_of, unit


def _sizes(dtype: Any) -> list[int]:
    lanes = lanes_of(dtype)
    return [0, 1, lanes - 1, lanes, lanes + 1, 8192, 8192 + lanes + 3, 20_000]


def _guarded(rng: Any, size: int, dtype: Any, positive: bool = False) -> Guarded:
    array = Guarded((size,), dtype)
    numbers = rng.standard_normal(size) * 2.0 ** rng.integers(-6, 7, size)
    array.inside[...] = abs(numbers) if positive else numbers
    return array


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("threads", [1, 2])
def test_sgd(dtype: Any, momentum: float, nesterov: bool, threads: int, rng: Any) -> None:
    rate, decay = np.dtype(dtype).type(0.1), np.dtype(dtype).type(0.01)
    momentum = np.dtype(dtype).type(momentum)
    for size in _sizes(dtype):
        value, grad, velocity = (_guarded(rng, size, dtype) for _ in range(3))
        w, g, v = (array.inside.astype(np.longdouble) for array in (value, grad, velocity))
        with tuned(parallel_flops=0), fs.threads(threads):
            optimizers.sgd_step(
                value.inside, grad.inside, velocity.inside if momentum else None, float(rate), float(momentum),
                nesterov, float(decay),
            )  # fmt: skip
        full, size_g = g + decay * w, abs(g) + decay * abs(w)
        new, size_v = (momentum * v + full, momentum * abs(v) + size_g) if momentum else (full, size_g)
        step, size_step = (full + momentum * new, size_g + momentum * size_v) if nesterov else (new, size_v)
        u = unit(dtype)
        if momentum:
            assert np.all(abs(velocity.inside - new) <= 3 * u * size_v)
        assert np.all(abs(value.inside - (w - rate * step)) <= 6 * u * (abs(w) + rate * size_step))
        np.testing.assert_array_equal(grad.inside, g)
        assert all(array.intact() for array in (value, grad, velocity))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_adam(dtype: Any, decoupled: bool, threads: int, rng: Any) -> None:
    kind = np.dtype(dtype).type
    rate, eps, decay, steps = 0.01, 1e-6, 0.1, 7
    for size in _sizes(dtype):
        value, grad, first = (_guarded(rng, size, dtype) for _ in range(3))
        second = _guarded(rng, size, dtype, positive=True)
        w, g, m, s = (array.inside.astype(np.longdouble) for array in (value, grad, first, second))
        with tuned(parallel_flops=0), fs.threads(threads):
            optimizers.adam_step(
                value.inside, grad.inside, first.inside, second.inside, rate, (0.9, 0.99), eps, decay, decoupled, steps
            )
        b1, r1, b2, r2 = (np.longdouble(kind(number)) for number in (0.9, 1 - 0.9, 0.99, 1 - 0.99))
        full, size_g = (g, abs(g)) if decoupled else (g + kind(decay) * w, abs(g) + kind(decay) * abs(w))
        m, size_m = b1 * m + r1 * full, b1 * abs(m) + r1 * size_g
        s, size_s = b2 * s + r2 * full**2, b2 * s + r2 * size_g**2
        shrunk = w * kind(1 - rate * decay) if decoupled else w
        root = np.sqrt(s) * kind(1 / np.sqrt(1 - 0.99**steps)) + kind(eps)
        speed = np.longdouble(kind(rate / (1 - 0.9**steps)))
        u = unit(dtype)
        assert np.all(abs(first.inside - m) <= 5 * u * size_m)
        assert np.all(abs(second.inside - s) <= 8 * u * size_s)
        limit = 6 * u * abs(shrunk) + speed / root * size_m * u * (12 + 8 * size_s / s)
        assert np.all(abs(value.inside - (shrunk - speed * m / root)) <= limit)
        assert all(array.intact() for array in (value, grad, first, second))


def test_nan_and_inf_stay_where_they_are() -> None:
    value, grad, velocity = np.ones(40, "f"), np.ones(40, "f"), np.zeros(40, "f")
    grad[3], grad[21] = np.nan, np.inf
    optimizers.sgd_step(value, grad, velocity, 0.1, 0.9, False, 0.0)
    assert np.isnan(value[3])
    assert value[21] == -np.inf
    assert np.isfinite(np.delete(value, [3, 21])).all()
