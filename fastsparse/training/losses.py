"""Losses: each gives the mean loss over the batch and its gradient at the model's output.

With `weights`, one for each sample, it is the mean of weight times loss: weights of mean 1 leave the scale as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse.checks import as_array, real_array

Array = NDArray[Any]


def cross_entropy(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, Array]:
    """Mean of -log softmax(logits)[label].

    Parameters
    ----------
    logits : float array (N, classes)
    labels : integer array (N,), each in [0, classes)
    weights : array (N,), optional

    Returns
    -------
    loss : float
    grad : array (N, classes), of the type of logits

    Raises
    ------
    ValueError
        When shapes do not fit or a label is out of range.
    TypeError
        When labels are not integers.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsparse.training import cross_entropy
    >>> loss, grad = cross_entropy(np.array([[0.0, 0.0]]), [1])
    >>> round(loss, 4), grad.tolist()
    (0.6931, [[0.5, -0.5]])
    """
    scores = _output(logits, "logits")
    classes = labels if type(labels) is np.ndarray else as_array(labels, "labels")
    if scores.ndim != 2 or scores.shape[1] < 1 or len(scores) < 1:
        raise ValueError(f"logits has shape {scores.shape}, expected (N, classes), neither of them 0")
    if classes.shape != scores.shape[:1]:
        raise ValueError(f"labels has shape {classes.shape}, expected {scores.shape[:1]} to match logits")
    if classes.dtype.kind not in "iu":
        raise TypeError(f"labels has dtype {classes.dtype.name}, expected integers")
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= scores.shape[1]:
        raise ValueError(f"labels go from {low} to {high}, expected 0 to {scores.shape[1] - 1} to match logits")
    with np.errstate(invalid="ignore"):  # Inf - Inf is the NaN that a diverged model deserves
        shifted = scores - scores.max(axis=1, keepdims=True)
    grad = np.exp(shifted)
    total = grad.sum(axis=1, keepdims=True)
    rows = np.arange(len(scores))
    losses = np.log(total[:, 0]) - shifted[rows, classes]
    grad /= total
    grad[rows, classes] -= 1
    return _mean(losses, grad, weights)


def mse(prediction: ArrayLike, target: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, Array]:
    """Mean of (prediction - target)^2 over all elements.

    Parameters
    ----------
    prediction : float array
    target : array of the same shape
    weights : array (N,), optional

    Returns
    -------
    loss : float
    grad : array like prediction
    """
    y = _output(prediction, "prediction")
    difference = y - _target(target, y)
    return _mean(difference * difference, difference * difference.dtype.type(2), weights)


def binary_cross_entropy(logits: ArrayLike, target: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, Array]:
    """Mean of -target log s - (1 - target) log(1 - s) over all elements, s = sigmoid(logits).

    Parameters
    ----------
    logits : float array
    target : array of the same shape, numbers from 0 to 1
    weights : array (N,), optional

    Returns
    -------
    loss : float
    grad : array like logits
    """
    z = _output(logits, "logits")
    wanted = _target(target, z)
    if not (wanted.min() >= 0 and wanted.max() <= 1):
        raise ValueError(f"target goes from {wanted.min()} to {wanted.max()}, expected numbers from 0 to 1")
    small = np.exp(-np.abs(z))
    return _mean(
        np.maximum(z, 0) - z * wanted + np.log1p(small), np.where(z >= 0, 1, small) / (1 + small) - wanted, weights
    )


def _mean(losses: Array, grad: Array, weights: Any) -> tuple[float, Array]:
    """Mean of the losses, each times its sample's weight, and its gradient; `grad` is taken over."""
    if weights is not None:
        factors = as_array(weights, "weights")
        if factors.shape != losses.shape[:1] or factors.dtype.kind not in "fbiu":
            raise ValueError(
                f"weights has shape {factors.shape} and dtype {factors.dtype}, expected {losses.shape[:1]}, one number "
                "for each sample"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # a weight too large for the type makes the loss infinite
            factors = factors.astype(grad.dtype)
            losses = losses * factors.reshape(-1, *(1,) * (losses.ndim - 1))
            grad *= factors.reshape(-1, *(1,) * (grad.ndim - 1))
    grad /= losses.size
    return float(np.mean(losses, dtype=np.float64)), grad


def _output(value: ArrayLike, name: str) -> Array:
    array = value if type(value) is np.ndarray else as_array(value, name)
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} has dtype {array.dtype.name}, expected float32 or float64")
    return array


def _target(value: ArrayLike, output: Array) -> Array:
    array = real_array(value, "target")
    if array.shape != output.shape or output.size == 0:
        raise ValueError(f"target has shape {array.shape}, expected {output.shape} like the output, not empty")
    return array.astype(output.dtype, copy=False)
