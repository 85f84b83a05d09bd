"""What networks need beside products: activations, pooling, normalisation, forward and backward.

Arrays are float32 or float64, shapes are (N, C, ...); every function returns new arrays of its input's type and
changes nothing it is given. Sums over a batch are taken in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

Array = NDArray[Any]
Sizes = tuple[int, int]
Pads = tuple[tuple[int, int], tuple[int, int]]

# Activations whose gradient follows from their output; the others need the value before them.
FROM_OUTPUT = frozenset({"relu", "relu6", "leaky_relu", "sigmoid", "tanh"})

_LEAKY_SLOPE = 0.01
_SQRT_2_PI = float(np.sqrt(2 / np.pi))
_GELU_CUBE = 0.044715


# --- activations -------------------------------------------------------------------------------


def activate(name: str, z: Array) -> Array:
    """The activation `name` of every element."""
    if name == "relu":
        return np.maximum(z, 0)
    if name == "relu6":
        return np.clip(z, 0, 6)
    if name == "leaky_relu":
        return np.where(z < 0, z * z.dtype.type(_LEAKY_SLOPE), z)
    if name == "sigmoid":
        return _sigmoid(z)
    if name == "tanh":
        return np.tanh(z)
    if name == "gelu":
        return z * _normal_cdf(z)
    if name == "gelu_tanh":
        return z * (1 + _gelu_inner_tanh(z)) / 2
    if name == "silu":
        return z * _sigmoid(z)
    if name == "hardswish":
        return z * (np.clip(z + 3, 0, 6) / 6)
    raise ValueError(f"activation is {name!r}, which is not known")


def activate_backward(name: str, dy: Array, kept: Array) -> Array:
    """Gradient before the activation, from the gradient `dy` behind it.

    `kept` is the activation's output for the names in ``FROM_OUTPUT``, its input for the others.
    """
    if name == "relu":
        return np.where(kept > 0, dy, 0)
    if name == "relu6":
        return np.where((kept > 0) & (kept < 6), dy, 0)
    if name == "leaky_relu":
        return np.where(kept > 0, dy, dy * dy.dtype.type(_LEAKY_SLOPE))
    if name == "sigmoid":
        return dy * (kept * (1 - kept))
    if name == "tanh":
        return dy * (1 - kept * kept)
    if name == "gelu":
        density = np.exp(kept * kept / -2) * kept.dtype.type(1 / np.sqrt(2 * np.pi))
        return dy * (_normal_cdf(kept) + kept * density)
    if name == "gelu_tanh":
        t = _gelu_inner_tanh(kept)
        inner_slope = _SQRT_2_PI * (1 + 3 * _GELU_CUBE * kept * kept)
        return dy * ((1 + t) / 2 + kept * (1 - t * t) * inner_slope / 2)
    if name == "silu":
        s = _sigmoid(kept)
        return dy * (s + kept * s * (1 - s))
    if name == "hardswish":
        return dy * np.where(kept <= -3, 0, np.where(kept >= 3, 1, kept / 3 + kept.dtype.type(0.5)))
    raise ValueError(f"activation is {name!r}, which is not known")


def _sigmoid(z: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-z)))


def _normal_cdf(z: Array) -> Array:
    return np.asarray(erfc(z * z.dtype.type(-np.sqrt(0.5))) / 2)


def _gelu_inner_tanh(z: Array) -> Array:
    return np.asarray(np.tanh(_SQRT_2_PI * (z + _GELU_CUBE * z * z * z)))


# --- pooling -----------------------------------------------------------------------------------


def pooled_size(spatial: Sizes, kernel: Sizes, stride: Sizes, padding: Pads) -> Sizes:
    """Output height and width of a pooling window."""
    height, width = (
        (n + before + after - k) // s + 1 for n, k, s, (before, after) in zip(spatial, kernel, stride, padding)
    )
    return height, width


def max_pool2d(x: Array, kernel: Sizes, stride: Sizes, padding: Pads) -> Array:
    """Largest value of every window of x (N, C, H, W); padding never wins, NaN always does."""
    first, *others = (tap for _, tap in _taps(_padded(x, padding, -np.inf), x.shape[2:], kernel, stride, padding))
    y = first.copy()
    for tap in others:
        np.maximum(y, tap, out=y)
    return y


def max_pool2d_with_index(x: Array, kernel: Sizes, stride: Sizes, padding: Pads) -> tuple[Array, NDArray[np.int32]]:
    """As :func:`max_pool2d`, with the number (row * width + column inside the window) of the element that won.

    The first of equals wins. The number is int32, of the output's shape.
    """
    taps = list(_taps(_padded(x, padding, -np.inf), x.shape[2:], kernel, stride, padding))
    y = taps[0][1].copy()
    index = np.zeros(y.shape, np.int32)
    for number, (_, tap) in enumerate(taps[1:], start=1):
        wins = ~(tap <= y) & (y == y)  # larger, or the first NaN
        np.copyto(y, tap, where=wins)
        np.copyto(index, number, where=wins)
    return y, index


def max_pool2d_backward(
    dy: Array, index: NDArray[np.int32], spatial: Sizes, kernel: Sizes, stride: Sizes, padding: Pads
) -> Array:
    """Gradient at the input (N, C, *spatial): each dy goes to the element that won."""
    grad = _padded(np.zeros((*dy.shape[:2], *spatial), dy.dtype), padding, 0)
    for number, (_, tap) in enumerate(_taps(grad, spatial, kernel, stride, padding)):
        np.add(tap, dy, out=tap, where=index == number)
    return _cropped(grad, spatial, padding)


def avg_pool2d(x: Array, kernel: Sizes, stride: Sizes, padding: Pads) -> Array:
    """Mean of every window of x (N, C, H, W), the zeros of the padding included."""
    height, width = pooled_size((x.shape[2], x.shape[3]), kernel, stride, padding)
    y = np.zeros((*x.shape[:2], height, width), x.dtype)
    for _, tap in _taps(_padded(x, padding, 0), x.shape[2:], kernel, stride, padding):
        y += tap
    y /= kernel[0] * kernel[1]
    return y


def avg_pool2d_backward(dy: Array, spatial: Sizes, kernel: Sizes, stride: Sizes, padding: Pads) -> Array:
    """Gradient of :func:`avg_pool2d` at its input (N, C, *spatial)."""
    grad = _padded(np.zeros((*dy.shape[:2], *spatial), dy.dtype), padding, 0)
    share = dy / dy.dtype.type(kernel[0] * kernel[1])
    for _, tap in _taps(grad, spatial, kernel, stride, padding):
        tap += share
    return _cropped(grad, spatial, padding)


def adaptive_avg_pool2d(x: Array, output: Sizes) -> Array:
    """Means over windows that split x (N, C, H, W) into `output` rows and columns as evenly as possible."""
    y = np.empty((*x.shape[:2], *output), x.dtype)
    for (i, j), rows, columns in _adaptive_windows((x.shape[2], x.shape[3]), output):
        y[:, :, i, j] = x[:, :, rows, columns].mean(axis=(2, 3))
    return y


def adaptive_avg_pool2d_backward(dy: Array, spatial: Sizes) -> Array:
    """Gradient of :func:`adaptive_avg_pool2d` at its input (N, C, *spatial)."""
    grad = np.zeros((*dy.shape[:2], *spatial), dy.dtype)
    for (i, j), rows, columns in _adaptive_windows(spatial, (dy.shape[2], dy.shape[3])):
        count = (rows.stop - rows.start) * (columns.stop - columns.start)
        grad[:, :, rows, columns] += (dy[:, :, i, j] / dy.dtype.type(count))[:, :, None, None]
    return grad


def _adaptive_windows(spatial: Sizes, output: Sizes) -> Iterator[tuple[tuple[int, int], slice, slice]]:
    """Yield (output position, rows, columns): window i goes from floor(i n / m) to ceil((i + 1) n / m)."""
    for i, j in itertools.product(range(output[0]), range(output[1])):
        rows, columns = (slice(o * n // m, -(-(o + 1) * n // m)) for o, n, m in zip((i, j), spatial, output))
        yield (i, j), rows, columns


def _padded(x: Array, padding: Pads, value: float) -> Array:
    if not any(any(pair) for pair in padding):
        return x
    return np.pad(x, [(0, 0), (0, 0), *padding], constant_values=value)


def _cropped(padded: Array, spatial: Any, padding: Pads) -> Array:
    (top, _), (left, _) = padding
    return np.ascontiguousarray(padded[:, :, top : top + spatial[0], left : left + spatial[1]])


def _taps(
    padded: Array, spatial: Any, kernel: Sizes, stride: Sizes, padding: Pads
) -> Iterator[tuple[tuple[int, int], Array]]:
    """Yield, for every element of the window in C order, its offset and the view of `padded` that it sees."""
    height, width = pooled_size((spatial[0], spatial[1]), kernel, stride, padding)
    for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
        rows = slice(i, i + (height - 1) * stride[0] + 1, stride[0])
        yield (i, j), padded[:, :, rows, j : j + (width - 1) * stride[1] + 1 : stride[1]]


# --- normalisation -----------------------------------------------------------------------------


def batch_norm_train(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array]:
    """Normalise x (N, C, ...) per channel by its own mean and biased variance.

    Returns
    -------
    y (shape of x), mean (C,) float64, variance (C,) float64
    """
    mean = _channel_means(x)
    centred = x - _like_channels(mean.astype(x.dtype), x.ndim)
    variance = _channel_means(centred * centred) - (mean - mean.astype(x.dtype)) ** 2
    return batch_norm_eval(x, gamma, beta, mean, variance, eps), mean, variance


def batch_norm_eval(x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, eps: float) -> Array:
    """gamma (x - mean) / sqrt(variance + eps) + beta per channel, for x (N, C, ...)."""
    near = mean.astype(x.dtype)
    scale = gamma / np.sqrt(variance + eps)
    shift = beta - (mean - near) * scale  # takes the rounding of the mean out again
    y = x - _like_channels(near, x.ndim)
    y *= _like_channels(scale.astype(x.dtype), x.ndim)
    y += _like_channels(shift.astype(x.dtype), x.ndim)
    return y


def batch_norm_backward(
    dy: Array, x: Array, gamma: Array, mean: Array, variance: Array, eps: float
) -> tuple[Array, Array, Array]:
    """Gradients of :func:`batch_norm_train`: grad_x (shape of x), grad_gamma (C,), grad_beta (C,)."""
    n = x.ndim
    count = x.size // x.shape[1]
    inverse = 1 / np.sqrt(variance + eps)
    normal = (x - _like_channels(mean.astype(x.dtype), n)) * _like_channels(inverse.astype(x.dtype), n)
    grad_beta = _channel_means(dy) * count
    grad_gamma = _channel_means(dy * normal) * count
    normal *= _like_channels((grad_gamma / -count).astype(x.dtype), n)
    normal += dy
    normal -= _like_channels((grad_beta / count).astype(x.dtype), n)
    normal *= _like_channels((gamma * inverse).astype(x.dtype), n)
    return normal, grad_gamma.astype(x.dtype), grad_beta.astype(x.dtype)


def _channel_means(x: Array) -> Array:
    """Mean per channel of x (N, C, ...), float64 (C,)."""
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    return np.asarray(flat.sum(axis=2, dtype=np.float64).sum(axis=0) / max(flat.shape[0] * flat.shape[2], 1))


def _like_channels(v: Array, ndim: int) -> Array:
    """v (C,) shaped to meet x (N, C, ...) of `ndim` axes."""
    return v.reshape(1, -1, *(1 for _ in range(ndim - 2)))
