"""Activations on arrays against the oracle, within rounding; NaN and Inf; nothing overwritten."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastsparse.ops import activations
from fastsparse_kernels import reference as ref
from tests.kernels.support import DTYPES, unit

Array = NDArray[Any]
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3.0, -3.0, 6.0, 1e-30, -1e-30, 88.0, -88.0, 700.0, -700.0])


def _numbers(rng: np.random.Generator, dtype: str) -> Array:
    return np.concatenate([rng.normal(0, 3, 500), SPECIAL]).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ref.ACTIVATIONS)
def test_activations_are_the_oracle(name: str, dtype: str, rng: np.random.Generator) -> None:
    z = _numbers(rng, dtype)
    with np.errstate(all="ignore"):
        got, want = activations.activate(name, z), ref.activate(name, z)
        close = abs(got - want) <= 8 * unit(dtype) * np.maximum(1, abs(z.astype(float)))
    assert got.dtype == dtype
    assert np.all(close | (got == want) | (np.isnan(got) & np.isnan(want)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ref.ACTIVATIONS)
def test_activation_slopes_are_the_oracle(name: str, dtype: str, rng: np.random.Generator) -> None:
    z = rng.normal(0, 3, 500).astype(dtype)
    dy = rng.normal(size=500).astype(dtype)
    kept = activations.activate(name, z) if name in activations.FROM_OUTPUT else z
    got, want = activations.activate_backward(name, dy, kept), ref.activate_grad(name, dy, z)
    assert got.dtype == dtype
    assert np.all(abs(got - want) <= 16 * unit(dtype) * abs(dy) * np.maximum(1, abs(z)))


def test_unknown_activations_are_named() -> None:
    with pytest.raises(ValueError, match="activation is 'swosh'"):
        activations.activate("swosh", np.zeros(1))
    with pytest.raises(ValueError, match="activation is 'swosh'"):
        activations.activate_backward("swosh", np.zeros(1), np.zeros(1))


def test_inputs_are_left_alone(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 4))
    x.flags.writeable = False
    for name in ref.ACTIVATIONS:
        activations.activate(name, x)
        activations.activate_backward(name, x, x)
