"""Batch normalisation against the oracle: statistics, outputs and gradients for every shape of line and block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastsparse.ops import norm as ops
from fastsparse.runtime.buffers import address
from fastsparse.runtime.launch import Launch
from fastsparse_kernels import norm
from fastsparse_kernels import reference as ref
from tests.kernels.support import DTYPES, Guarded, lanes_of, target_of, unit

Array = NDArray[Any]
EPS = 1e-5

# Lines shorter than a vector, of a vector, beyond; a single image; blocks of several lines with a rest.
SHAPES: list[Any] = [
    (4, 3, 5, 5),
    (7, 37, 2, 2),
    (9, 17),
    (40, 3, 1, 1),
    (3, 20, 8, 8),
    (5, 70, 7, 7),
    (2, 3, 100, 41),
    (1, 5, 6, 6),
    (2, 1),
    (33, 2, 16),
]


class Case:
    """Data of one layer, its statistics and what the kernels make of it."""

    def __init__(self, x: Array, rng: np.random.Generator) -> None:
        channels = x.shape[1]
        self.x, self.dy = x, rng.normal(size=x.shape).astype(x.dtype)
        self.gamma, self.beta = (rng.normal(size=channels).astype(x.dtype) for _ in range(2))
        self.mean, self.variance = np.full(channels, np.nan), np.full(channels, np.nan)

    def like_x(self, per_channel: Array) -> Array:
        return per_channel.reshape(1, -1, *(1 for _ in self.x.shape[2:]))

    def forward(self, threads: int = 1, training: bool = True) -> Array:
        y = Guarded(self.x.shape, self.x.dtype)
        self.run(ops._forward(self.x.shape, EPS, training, target_of(self.x.dtype, threads)), self.x, y.inside)
        assert y.intact()
        return y.inside

    def run(self, launch: Launch, x: Array, y: Array) -> None:
        arrays = x, y, self.gamma.astype(float), self.beta.astype(float), self.mean, self.variance
        launch.run(*map(address, arrays))

    def backward(self, threads: int = 1) -> tuple[Array, Array, Array]:
        dx = Guarded(self.x.shape, self.x.dtype)
        gradients = [np.full(len(self.gamma), np.nan) for _ in range(2)]
        arrays = (self.dy, dx.inside, self.x, self.gamma.astype(float), self.mean, self.variance, *gradients)
        ops._backward(self.x.shape, EPS, target_of(self.x.dtype, threads)).run(*map(address, arrays))
        assert dx.intact()
        return dx.inside, gradients[0], gradients[1]

    def rounding(self) -> Array:
        """How exactly x - mean can be known, in units of the deviation: float64 sums cannot resolve more."""
        deviation = np.sqrt(self.variance + EPS)
        lost = 0.0 if self.x.dtype == np.float32 else np.abs(self.mean) / deviation
        return self.like_x(16 * unit(self.x.dtype) * (1 + np.asarray(lost)))


def numbers(shape: Any, dtype: str, offset: float, rng: np.random.Generator) -> Array:
    scale = np.exp(rng.normal(size=(1, shape[1], *(1 for _ in shape[2:]))))
    return (rng.normal(size=shape) * scale + offset).astype(dtype)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_training(shape: Any, dtype: str, offset: float, rng: np.random.Generator) -> None:
    case = Case(numbers(shape, dtype, offset, rng), rng)
    y = case.forward()
    want, mean, variance = ref.batch_norm(case.x, case.gamma, case.beta, EPS)
    np.testing.assert_allclose(case.mean, mean.astype(float), rtol=4e-16, atol=1e-14)
    np.testing.assert_allclose(case.variance, variance.astype(float), rtol=1e-13, atol=0)
    size = np.abs(want) + case.like_x(np.abs(case.gamma) + np.abs(case.beta))
    assert np.all(np.abs(y - want) <= case.rounding() * size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation(shape: Any, dtype: str, rng: np.random.Generator) -> None:
    case = Case(numbers(shape, dtype, 3.0, rng), rng)
    case.mean, case.variance = rng.normal(size=shape[1]) + 3, np.exp(rng.normal(size=shape[1]))
    given = case.mean.copy(), case.variance.copy()
    y = case.forward(training=False)
    want = ref.batch_norm_eval(case.x, case.gamma, case.beta, *given, EPS)
    size = np.abs(want) + case.like_x(np.abs(case.gamma) + np.abs(case.beta))
    assert np.all(np.abs(y - want) <= case.rounding() * size)
    np.testing.assert_array_equal(case.mean, given[0])
    np.testing.assert_array_equal(case.variance, given[1])


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape: Any, dtype: str, offset: float, rng: np.random.Generator) -> None:
    case = Case(numbers(shape, dtype, offset, rng), rng)
    case.forward()
    dx, grad_gamma, grad_beta = case.backward()
    want, want_gamma, want_beta = ref.batch_norm_backward(case.dy, case.x, case.gamma, EPS)
    axes = (0, *range(2, case.x.ndim))
    normal = (case.x - case.like_x(case.mean)) / case.like_x(np.sqrt(case.variance + EPS))
    size = np.abs(case.dy) + (1 + np.abs(normal)) * np.abs(case.dy).mean(axis=axes, keepdims=True)
    slope = case.like_x(np.abs(case.gamma) / np.sqrt(case.variance + EPS))
    assert np.all(np.abs(dx - want) <= case.rounding() * slope * size * (1 + np.abs(normal).max()))
    exactness = case.rounding().max() if dtype == "float64" else 1e-12
    sums = np.abs(case.dy).sum(axis=axes) * (1 + np.abs(normal).max())
    assert np.all(np.abs(grad_gamma - want_gamma) <= exactness * sums)
    assert np.all(np.abs(grad_beta - want_beta) <= 1e-13 * sums)


@pytest.mark.R6
def test_gradients_are_slopes(rng: np.random.Generator) -> None:
    case = Case(rng.normal(size=(3, 4, 3, 5)), rng)
    case.forward()
    dx, grad_gamma, grad_beta = case.backward()

    def loss() -> float:
        return float(np.sum(case.dy * case.forward()))

    for array, gradient in ((case.x, dx), (case.gamma, grad_gamma), (case.beta, grad_beta)):
        for at in range(0, array.size, 3):
            value, sides = array.flat[at], []
            for step in (1e-5, -1e-5):
                array.flat[at] = value + step
                sides.append(loss())
            array.flat[at] = value
            assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(gradient.flat[at], abs=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(16, 200), (64, 5, 9), (48, 3, 4, 4)])
def test_unlike_first_images_cost_no_accuracy(shape: Any, dtype: str, rng: np.random.Generator) -> None:
    """The sums are centred on the mean of the first images: those may lie anywhere."""
    x = rng.normal(size=shape)
    first = max(1, shape[0] // norm.PARTS)
    x[:first] = x[:first] * 1e-3 + 1e5
    case = Case(x.astype(dtype), rng)
    case.forward()
    _, mean, variance = ref.batch_norm(case.x, case.gamma, case.beta, EPS)
    np.testing.assert_allclose(case.mean, mean.astype(float), rtol=1e-13)
    np.testing.assert_allclose(case.variance, variance.astype(float), rtol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 300), (6, 300, 7, 7)])
def test_constant_channels_have_no_variance(shape: Any, dtype: str, rng: np.random.Generator) -> None:
    constants = rng.uniform(1, 2, shape[1]).astype(dtype)
    case = Case(np.ascontiguousarray(np.broadcast_to(constants.reshape(1, -1, *(1 for _ in shape[2:])), shape)), rng)
    y = case.forward()
    assert np.all(case.variance >= 0)
    assert np.all(case.variance <= (64 * unit("float64")) ** 2)
    error = np.abs(y - case.like_x(case.beta))
    assert np.all(error <= 64 * unit("float64") / np.sqrt(EPS) * case.like_x(np.abs(case.gamma)) + 4 * unit(dtype))


@pytest.mark.R5
@pytest.mark.parametrize("image", [0, 1])  # 0 is one of the first images
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 40), (5, 6, 3, 3), (2, 3, 9, 9)])
def test_what_is_not_finite_stays_in_its_channel(
    shape: Any, dtype: str, value: float, image: int, rng: np.random.Generator
) -> None:
    x = rng.normal(size=shape).astype(dtype)
    spoilt = Case(x.copy(), rng)
    spoilt.x[image, 1] = value
    clean = Case(x, rng)
    clean.gamma, clean.beta, clean.dy = spoilt.gamma, spoilt.beta, spoilt.dy
    others = np.arange(shape[1]) != 1
    got, want = spoilt.forward(), clean.forward()
    assert np.isnan(got[:, 1]).all()
    np.testing.assert_array_equal(got[:, others], want[:, others])
    np.testing.assert_equal(spoilt.mean[1], value)
    got, want = spoilt.backward()[0], clean.backward()[0]
    assert np.isnan(got[:, 1]).all()
    np.testing.assert_array_equal(got[:, others], want[:, others])


@pytest.mark.R3
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 130), (20, 70, 7, 7), (8, 6, 30, 30)])
def test_threads_do_not_change_a_bit(shape: Any, dtype: str, rng: np.random.Generator) -> None:
    case = Case(rng.normal(size=shape).astype(dtype), rng)
    first = (case.forward(), case.mean.copy(), case.variance.copy(), *case.backward())
    for threads in (2, 7):  # blocks of other sizes, too
        again = (case.forward(threads), case.mean, case.variance, *case.backward(threads))
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("channels", ["lanes - 1", "lanes", "lanes + 1", "3 lanes"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_of_channels(channels: str, dtype: str, rng: np.random.Generator) -> None:
    lanes = lanes_of(dtype)
    count = {"lanes - 1": lanes - 1, "lanes": lanes, "lanes + 1": lanes + 1, "3 lanes": 3 * lanes}[channels]
    test_training((6, count), dtype, 0.0, rng)
    test_gradients((6, count), dtype, 0.0, rng)


def test_x_may_be_overwritten(rng: np.random.Generator) -> None:
    case = Case(rng.normal(size=(4, 5, 6, 6)), rng)
    want = case.forward()
    y = case.x.copy()
    case.run(ops._forward(y.shape, EPS, False, target_of(y.dtype)), y, y)
    np.testing.assert_array_equal(y, want)


def test_empty_shapes(rng: np.random.Generator) -> None:
    for shape in ((0, 3, 2, 2), (2, 0, 3), (2, 3, 0), (0, 4)):
        case = Case(np.empty(shape), rng)
        assert case.forward().shape == case.backward()[0].shape == shape


# --- functions of arrays


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 5), (4, 5, 3), (8, 5, 6, 7)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_batch_norm_is_the_oracle(shape: Any, dtype: str, offset: float, rng: np.random.Generator) -> None:
    x = (rng.normal(size=shape) + offset).astype(dtype)
    gamma, beta, dy = (rng.normal(size=size).astype(dtype) for size in (5, 5, shape))
    eps, u = 1e-5, unit(dtype)
    y, mean, variance = ops.batch_norm_train(x, gamma, beta, eps)
    want, want_mean, want_variance = ref.batch_norm(x, gamma, beta, eps)
    assert y.dtype == dtype
    np.testing.assert_allclose(mean, want_mean.astype(float), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(variance, want_variance.astype(float), rtol=8 * u, atol=1e-13)
    # A float64 mean of float64 numbers is itself rounded.
    assert np.all(abs(y - want) <= 16 * u * (abs(want) + 8 + (offset if dtype == "float64" else 0)))
    grads = ops.batch_norm_backward(dy, x, gamma, mean, variance, eps)
    wanted = ref.batch_norm_backward(dy, x, gamma, eps)
    # The centred x carries the rounding of its own subtraction: u * offset.
    scales = 8 + np.abs(wanted[0]).max(), np.abs(dy).sum(), np.abs(dy).sum()
    for got, right, scale in zip(grads, wanted, scales, strict=True):
        assert got.dtype == dtype
        assert np.all(abs(got - right) <= 16 * u * (1 + offset) * scale)
    running = ops.batch_norm_eval(x, gamma, beta, beta, np.abs(gamma) + 1, eps)
    right = ref.batch_norm_eval(x, gamma, beta, beta, np.abs(gamma) + 1, eps)
    assert np.all(abs(running - right) <= 16 * u * (abs(x) + 8))


def test_inputs_are_left_alone(rng: np.random.Generator) -> None:
    x, ones = rng.normal(size=(2, 3, 4, 4)), np.ones(3)
    x.flags.writeable = False
    ops.batch_norm_train(x, ones, ones, 1e-5)
    ops.batch_norm_backward(x, x, ones, ones, ones, 1e-5)
