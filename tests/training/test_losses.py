"""Losses against their formulas and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastsparse.training import binary_cross_entropy, cross_entropy, mse


def _slopes(loss: Any, y: Any) -> Any:
    h, out = 1e-4, np.zeros(y.shape)
    for i in np.ndindex(y.shape):
        values = []
        for step in (-2, -1, 1, 2):
            moved = y.copy()
            moved[i] += step * h
            values.append(loss(moved)[0])
        out[i] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
    return out


def test_cross_entropy(rng: Any) -> None:
    logits, labels = rng.normal(0, 3, (6, 4)), rng.integers(0, 4, 6)
    loss, grad = cross_entropy(logits, labels)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert loss == pytest.approx(-np.log(probabilities[np.arange(6), labels]).mean(), rel=1e-13)
    np.testing.assert_allclose(grad, _slopes(lambda y: cross_entropy(y, labels), logits), rtol=1e-9, atol=1e-11)


def test_cross_entropy_of_huge_logits_is_finite() -> None:
    loss, grad = cross_entropy(np.array([[1e30, -1e30, 0.0]], np.float32), [0])
    assert loss == 0.0
    np.testing.assert_array_equal(grad, [[0, 0, 0]])
    assert grad.dtype == np.float32
    assert np.isnan(cross_entropy(np.array([[np.inf, 0.0]]), [0])[0])


def test_mse(rng: Any) -> None:
    y, target = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    loss, grad = mse(y, target)
    assert loss == pytest.approx(((y - target) ** 2).mean(), rel=1e-13)
    np.testing.assert_allclose(grad, _slopes(lambda v: mse(v, target), y), rtol=1e-9, atol=1e-11)


def test_binary_cross_entropy(rng: Any) -> None:
    z, target = rng.normal(0, 3, (5, 2)), rng.random((5, 2))
    loss, grad = binary_cross_entropy(z, target)
    s = 1 / (1 + np.exp(-z))
    assert loss == pytest.approx(-(target * np.log(s) + (1 - target) * np.log(1 - s)).mean(), rel=1e-12)
    np.testing.assert_allclose(grad, _slopes(lambda v: binary_cross_entropy(v, target), z), rtol=1e-9, atol=1e-11)
    loss, grad = binary_cross_entropy(np.array([1e5, -1e5], np.float32), [1, 0])
    assert loss == 0.0
    np.testing.assert_array_equal(grad, [0, 0])


REFUSED: list[tuple[Any, tuple[Any, Any], type[Exception], str]] = [
    (
        cross_entropy,
        (np.zeros((3, 2)), [0, 1, 2]),
        ValueError,
        "labels go from 0 to 2, expected 0 to 1 to match logits",
    ),
    (cross_entropy, (np.zeros((3, 2)), [0, -1, 1]), ValueError, "labels go from -1 to 1, expected 0 to 1 to match"),
    (cross_entropy, (np.zeros((3, 2)), [0, 1]), ValueError, "labels has shape (2,), expected (3,) to match logits"),
    (cross_entropy, (np.zeros((3, 2)), [0.0, 1, 1]), TypeError, "labels has dtype float64, expected integers"),
    (cross_entropy, (np.zeros(3), [0, 1, 1]), ValueError, "logits has shape (3,), expected (N, classes), neither"),
    (cross_entropy, (np.zeros((1, 2), int), [0]), TypeError, "logits has dtype int64, expected float32 or float64"),
    (mse, (np.zeros((3, 1)), np.zeros(3)), ValueError, "target has shape (3,), expected (3, 1) like the output"),
    (binary_cross_entropy, (np.zeros(2), [0, 2]), ValueError, "target goes from 0.0 to 2.0, expected numbers from 0"),
]


@pytest.mark.parametrize(("loss", "arguments", "error", "message"), REFUSED)
def test_bad_arguments_are_named(loss: Any, arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        loss(*arguments)
    assert str(caught.value).startswith(message)


WEIGHTED = {
    "cross_entropy": (cross_entropy, (5, 3), np.array([0, 2, 1, 1, 0])),
    "mse": (mse, (5, 3), np.linspace(0, 1, 15).reshape(5, 3)),
    "binary_cross_entropy": (binary_cross_entropy, (5,), np.array([0, 1, 1, 0, 1.0])),
}


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_are_repetitions(name, dtype):
    loss, shape, target = WEIGHTED[name]
    output = np.random.default_rng(0).normal(size=shape).astype(dtype)
    counts = np.array([1, 0, 3, 2, 4])
    value, grad = loss(output, target, counts / 2)  # 10 samples of mean weight 1
    chosen = np.repeat(np.arange(5), counts)
    expected, grads = loss(output[chosen], target[chosen])
    assert value == pytest.approx(expected, rel=1e-6)
    assert grad.dtype == dtype
    summed = np.zeros(shape)
    np.add.at(summed, chosen, grads)
    np.testing.assert_allclose(grad, summed, rtol=1e-5)
    for wrong in (np.ones(4), np.ones((5, 1)), np.array(["a"] * 5)):
        with pytest.raises(ValueError, match="weights has shape"):
            loss(output, target, wrong)
