"""Activations and their gradients against the oracle: contract R1's 4u, tails, special values, slopes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastsparse_kernels import activations, simd
from fastsparse_kernels import reference as ref
from fastsparse_kernels.compiler import compile_kernel, kernel_arguments
from tests.kernels.support import DTYPES, Guarded, bits_of, lanes_of, run_kernel, unit

Array = NDArray[Any]
NAMES = list(activations.ACTIVATIONS)
CHUNK = activations.CHUNK


def apply(name: str, z: Array, lanes: int | None = None) -> Array:
    kernel = activations.activation_array_kernel(name, bits_of(z.dtype), lanes or lanes_of(z.dtype))
    out = Guarded(z.shape, z.dtype)
    run_kernel(kernel, activations.ACTIVATION, -(-z.size // CHUNK), count=z.size, chunk=CHUNK, x=z, y=out.inside)
    assert out.intact()
    return out.inside


def apply_grad(name: str, dy: Array, kept: Array, lanes: int | None = None) -> Array:
    kernel = activations.activation_grad_kernel(name, bits_of(dy.dtype), lanes or lanes_of(dy.dtype))
    out = Guarded(dy.shape, dy.dtype)
    fields = {"count": dy.size, "chunk": CHUNK, "x": dy, "kept": kept, "y": out.inside}
    run_kernel(kernel, activations.ACTIVATION, -(-dy.size // CHUNK), **fields)
    assert out.intact()
    return out.inside


def inputs(dtype: str, rng: np.random.Generator) -> Array:
    """Numbers of every size, dense where activations bend, and the places where they have kinks."""
    scales = (1e-30, 1e-8, 1e-3, 0.1, 1.0, 3.0, 10.0, 40.0, 1e3, 1e10)
    parts = [rng.normal(size=3000) * scale for scale in scales]
    kinks = np.array([0.0, -0.0, 3, -3, 6, -6, 0.5, -0.5])
    ends = [sign * np.linspace(low, low + 8, 2001) for low in (10, 84, 100, 705, 740) for sign in (1, -1)]
    return np.concatenate([*parts, kinks, np.linspace(-12, 12, 50001), *ends]).astype(dtype)


@pytest.mark.R1
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_an_activation_adds_at_most_4u(name: str, dtype: str, rng: np.random.Generator) -> None:
    z = inputs(dtype, rng)
    error = np.abs(apply(name, z) - ref.activate(name, z))
    assert np.all(error <= 4 * unit(dtype) * np.maximum(1, np.abs(z.astype(np.longdouble))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tanh", "gelu", "gelu_tanh", "silu", "leaky_relu", "hardswish", "hardsigmoid"])
def test_small_numbers_keep_their_digits(name: str, dtype: str, rng: np.random.Generator) -> None:
    z = (rng.normal(size=5000) * 10.0 ** rng.uniform(-30, -2, 5000)).astype(dtype)
    want = ref.activate(name, z)
    assert np.all(np.abs(apply(name, z) - want) <= 8 * unit(dtype) * np.abs(want))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sigmoid", "silu"])
def test_far_tails_keep_their_digits(name: str, dtype: str, rng: np.random.Generator) -> None:
    z = rng.uniform(-80 if dtype == "float32" else -700, 0, 5000).astype(dtype)
    want = ref.activate(name, z)
    assert np.all(np.abs(apply(name, z) - want) <= 8 * unit(dtype) * np.abs(want))


@pytest.mark.R5
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_special_values(name: str, dtype: str) -> None:
    big = float(np.finfo(dtype).max)
    z = np.array([np.nan, -np.nan, np.inf, -np.inf, big, -big, big / 3, -big / 3, 1e-45, -1e-45, 0.0, -0.0], dtype)
    got, want = apply(name, z), ref.activate(name, z)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    number = ~np.isnan(want)
    np.testing.assert_array_equal(np.isinf(got[number]), np.isinf(want[number].astype(dtype)))
    finite = number & np.isfinite(want)
    bound = 4 * unit(dtype) * np.maximum(1, np.abs(z[finite].astype(np.longdouble)))
    assert np.all(np.abs(got[finite] - want[finite]) <= bound)
    if name in ("sigmoid", "tanh"):
        assert got[2] == 1
        assert got[3] == (0 if name == "sigmoid" else -1)


@pytest.mark.R3
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_every_size_gives_the_same_bits(name: str, dtype: str, rng: np.random.Generator) -> None:
    lanes = lanes_of(dtype)
    z = (rng.normal(size=2 * CHUNK + lanes + 1) * 3).astype(dtype)
    dy = rng.normal(size=len(z)).astype(dtype)
    whole, whole_grad = apply(name, z), apply_grad(name, dy, z)
    for size in (0, 1, lanes - 1, lanes, lanes + 1, 2 * lanes + 3, CHUNK - 1, CHUNK, CHUNK + 1, len(z) - 1):
        np.testing.assert_array_equal(apply(name, z[:size]), whole[:size])
        np.testing.assert_array_equal(apply_grad(name, dy[:size], z[:size]), whole_grad[:size])


@pytest.mark.R3
@pytest.mark.C5
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tanh", "gelu", "silu"])  # all functions of simd.math
def test_every_vector_width_gives_the_same_bits(name: str, dtype: str, rng: np.random.Generator) -> None:
    z = (rng.normal(size=1001) * 5).astype(dtype)
    dy = rng.normal(size=1001).astype(dtype)
    half = lanes_of(dtype) // 2
    np.testing.assert_array_equal(apply(name, z, half), apply(name, z))
    np.testing.assert_array_equal(apply_grad(name, dy, z, half), apply_grad(name, dy, z))


_CALL = kernel_arguments("function", "tile", "vectors")
_call = simd.arguments_view(_CALL)


def _call_epilogue(arguments, slot):  # type: ignore[no-untyped-def]
    a = _call(arguments)
    for _task in simd.tasks(arguments):
        simd.call(a.function, a.tile, a.vectors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_tile_function_works_in_place(name: str, dtype: str, rng: np.random.Generator) -> None:
    caller = compile_kernel(_call_epilogue, "call_epilogue")
    lanes = lanes_of(dtype)
    function = activations.activation_kernel(name, bits_of(dtype), lanes)
    for vectors in range(9):
        z = (rng.normal(size=(vectors, lanes)) * 3).astype(dtype)
        tile = Guarded(z.shape, dtype)
        tile.inside[:] = z
        run_kernel(caller, _CALL, 1, function=function.address, tile=tile.inside, vectors=vectors)
        assert tile.intact()
        np.testing.assert_array_equal(tile.inside, apply(name, z))


# --- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_oracles(name: str, dtype: str, rng: np.random.Generator) -> None:
    z = inputs(dtype, rng)
    z = z[np.abs(z) < 1e8]  # the oracle squares z
    dy = rng.normal(size=z.shape).astype(dtype)
    kept = apply(name, z) if name in activations.KEEPS_OUTPUT else z
    error = np.abs(apply_grad(name, dy, kept) - ref.activate_grad(name, dy, z))
    # A kept output is rounded: tanh's 2u, doubled by the square.
    assert np.all(error <= 8 * unit(dtype) * np.abs(dy))


@pytest.mark.R6
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_slopes(name: str, rng: np.random.Generator) -> None:
    z = rng.uniform(-8, 8, 4000)
    kinks = np.array([0.0, 3.0, -3.0, 6.0])
    z = z[np.abs(z[:, None] - kinks).min(axis=1) > 1e-3]
    h = 1e-5
    slope = (apply(name, z + h) - apply(name, z - h)) / (2 * h)
    kept = apply(name, z) if name in activations.KEEPS_OUTPUT else z
    np.testing.assert_allclose(apply_grad(name, np.ones_like(z), kept), slope, rtol=0, atol=2e-9)


@pytest.mark.R5
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_nan_travels_through_gradients(name: str, dtype: str) -> None:
    one, nan = np.ones(3, dtype), np.full(3, np.nan, dtype)
    assert np.isnan(apply_grad(name, nan, one / 2)).all()
    if name not in ("relu", "relu6", "leaky_relu", "hardsigmoid"):  # these ask only on which side of a kink it is
        assert np.isnan(apply_grad(name, one, nan)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_huge_numbers_are_finite(name: str, dtype: str) -> None:
    z = np.array([1e20, -1e20, 1e30, -1e30, np.finfo(dtype).max, np.finfo(dtype).min], dtype)
    kept = apply(name, z) if name in activations.KEEPS_OUTPUT else z
    got = apply_grad(name, np.ones_like(z), kept)
    flat = name in ("relu6", "sigmoid", "tanh", "hardsigmoid")
    np.testing.assert_array_equal(got[::2], 0 if flat else 1)
    np.testing.assert_array_equal(got[1::2], np.array(0.01, dtype) if name == "leaky_relu" else 0)


@pytest.mark.parametrize("name", NAMES)
def test_arrays_may_be_changed_in_place(name: str, rng: np.random.Generator) -> None:
    z = rng.normal(size=1000)
    dy = rng.normal(size=1000)
    want, want_grad = apply(name, z), apply_grad(name, dy, z)
    lanes = lanes_of(z.dtype)
    kernel, grad = (
        activations.activation_array_kernel(name, 64, lanes),
        activations.activation_grad_kernel(name, 64, lanes),
    )
    run_kernel(grad, activations.ACTIVATION, 1, count=1000, chunk=CHUNK, x=dy, kept=z, y=dy)
    run_kernel(kernel, activations.ACTIVATION, 1, count=1000, chunk=CHUNK, x=z, y=z)
    np.testing.assert_array_equal(z, want)
    np.testing.assert_array_equal(dy, want_grad)


def test_the_table_covers_the_oracle() -> None:
    assert set(NAMES) == set(ref.ACTIVATIONS)
