"""The oracle: what every kernel must compute, written to be obviously right and not to be fast.

Inputs may have any real dtype. Everything is computed in a wider type than the inputs: float64 for
float32 and smaller, ``numpy.longdouble`` for float64 (80 bits on x86; where longdouble is no wider
than float64, the oracle is float64). Results come back in that wide type, so that they can be held
against a kernel's result with :func:`bound` and no further allowance.

Only stored nonzeros are multiplied: an absent weight never meets an Inf. The zeros of a
convolution's padding are multiplied by every stored weight that sees them, as IEEE 754 says.

Notation: W is the sparse matrix (indptr, indices, data) of shape (M, K), nnz = len(data).
Activations are their textbook formulas evaluated under IEEE 754, so ``silu(-inf)``, ``gelu(-inf)``
and ``hardswish(-inf)`` are NaN (-inf times 0), as in torch.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erfc

Array = NDArray[Any]
Pairs = Sequence[tuple[int, int]]

LEAKY_SLOPE = 0.01
_GELU_TANH = 0.044715


def wide(*arrays: Array) -> tuple[Array, ...]:
    """Copies of `arrays` in one wider type: longdouble if any is float64 (or wider), else float64."""
    kinds = [np.asarray(a).dtype for a in arrays]
    is_double = any(k.kind == "f" and k.itemsize >= 8 for k in kinds)
    return tuple(np.array(a, np.longdouble if is_double else np.float64) for a in arrays)


# --- activations -------------------------------------------------------------------------------


def _sigmoid(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-z)))


def _normal_cdf(z: Array) -> Array:
    """Distribution function of the normal law, to float64 accuracy whatever the type of z."""
    return np.asarray(erfc(-np.asarray(z, np.float64) / np.sqrt(2.0)) / 2, z.dtype)


def _gelu_tanh_inner(z: Array) -> Array:
    return np.asarray(np.sqrt(z.dtype.type(2) / z.dtype.type(np.pi)) * (z + _GELU_TANH * z**3))


def activate(name: str | None, z: Array) -> Array:
    """The activation `name` of every element of z; None is the identity."""
    return apply_activation(name, wide(z)[0])


@np.errstate(invalid="ignore", over="ignore")
def apply_activation(name: str | None, z: Array) -> Array:
    """Like :func:`activate` for a z that is wide already; the result has z's type."""
    return z if name is None else _ACTIVATIONS[name][0](z)


def activate_grad(name: str | None, dy: Array, z: Array) -> Array:
    """Gradient at z, the value before the activation, when dy is the gradient after it.

    At a kink the slope is that of the flatter side for relu, relu6 and hardsigmoid (0), of the negative side for
    leaky_relu, as in torch.
    """
    dy, z = wide(dy, z)
    return dy * _slope(name, z)


@np.errstate(invalid="ignore", over="ignore")
def _slope(name: str | None, z: Array) -> Array:
    return np.ones_like(z) if name is None else _ACTIVATIONS[name][1](z)


def _relu6(z: Array) -> Array:
    return np.where(z < 0, 0, np.where(z > 6, 6, z))


def _gelu_slope(z: Array) -> Array:
    return _normal_cdf(z) + z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def _gelu_tanh_slope(z: Array) -> Array:
    t = np.tanh(_gelu_tanh_inner(z))
    inner_slope = np.sqrt(2 / np.pi) * (1 + 3 * _GELU_TANH * z**2)
    return (1 + t) / 2 + z * (1 - t**2) * inner_slope / 2


def _between(z: Array, low: float, high: float, slope: Array) -> Array:
    return np.where((z > low) & (z < high), slope, 0)


# One table: name -> (activation of z, slope at z).
_ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "relu": (lambda z: np.where(z < 0, 0, z), lambda z: np.where(z > 0, np.ones_like(z), 0)),
    "relu6": (_relu6, lambda z: _between(z, 0, 6, np.ones_like(z))),
    "leaky_relu": (
        lambda z: np.where(z < 0, LEAKY_SLOPE * z, z), lambda z: np.where(z > 0, np.ones_like(z), LEAKY_SLOPE),
    ),
    "sigmoid": (_sigmoid, lambda z: _sigmoid(z) * (1 - _sigmoid(z))),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "gelu": (lambda z: z * _normal_cdf(z), _gelu_slope),
    "gelu_tanh": (lambda z: z * (1 + np.tanh(_gelu_tanh_inner(z))) / 2, _gelu_tanh_slope),
    "silu": (lambda z: z * _sigmoid(z), lambda z: _sigmoid(z) + z * _sigmoid(z) * (1 - _sigmoid(z))),
    "hardswish": (
        lambda z: z * _relu6(z + 3) / 6,
        lambda z: np.where(z <= -3, 0, np.where(z >= 3, np.ones_like(z), z / 3 + 0.5)),
    ),
    "hardsigmoid": (lambda z: _relu6(z + 3) / 6, lambda z: _between(z, -3, 3, np.ones_like(z) / 6)),
}  # fmt: skip
ACTIVATIONS = tuple(_ACTIVATIONS)


# --- windows -----------------------------------------------------------------------------------


def output_size(
    spatial: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Output length of every axis: floor((n + before + after - d (k - 1) - 1) / s) + 1, at least 0."""
    return tuple(
        max(0, (n + before + after - d * (k - 1) - 1) // s + 1)
        for n, k, s, (before, after), d in zip(spatial, kernel_size, stride, padding, dilation, strict=True)
    )


def pad_spatial(x: Array, padding: Pairs, value: float) -> Array:
    """x (N, C, *spatial) with `padding` pairs of `value` around its spatial axes."""
    return np.pad(x, [(0, 0), (0, 0), *padding], constant_values=value)


def crop_spatial(padded: Array, padding: Pairs, spatial: Sequence[int]) -> Array:
    """The part of `padded` inside its padding: undoes :func:`pad_spatial`."""
    inside: Any = (..., *(slice(before, before + n) for (before, _), n in zip(padding, spatial, strict=True)))
    return np.asarray(padded[inside])


def window_slices(
    offset: Sequence[int], sizes: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[slice, ...]:
    """Per axis, the padded positions that kernel offset `offset` meets, one for each output position."""
    return tuple(
        slice(o * d, o * d + max(n - 1, 0) * s + min(n, 1), s)
        for o, n, s, d in zip(offset, sizes, stride, dilation, strict=True)
    )


# --- pooling -----------------------------------------------------------------------------------


def _pool_slices(
    spatial: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int], padding: Pairs
) -> list[tuple[Any, ...]]:
    """For every element of a window, in C order, the index of what it is in all windows of the padded input."""
    once = [1] * len(spatial)
    sizes = output_size(spatial, kernel_size, stride, padding, once)
    offsets = itertools.product(*(range(k) for k in kernel_size))
    return [(..., *window_slices(offset, sizes, stride, once)) for offset in offsets]


def max_pool(x: Array, kernel_size: Sequence[int], stride: Sequence[int], padding: Pairs) -> Array:
    """Largest value of every window of x (N, C, *spatial), padding never chosen; NaN if it holds a NaN."""
    padded = pad_spatial(wide(x)[0], padding, -np.inf)
    slices = _pool_slices(x.shape[2:], kernel_size, stride, padding)
    return np.asarray(functools.reduce(np.maximum, [padded[each] for each in slices]))


def max_pool_backward(dy: Array, x: Array, kernel_size: Sequence[int], stride: Sequence[int], padding: Pairs) -> Array:
    """Gradient at x: dy goes to the first largest element of each window, in C order of the window.

    A NaN counts as larger than any number; padding gets nothing, even beside -inf.
    """
    dy, x = wide(dy, x)
    padded, real = pad_spatial(x, padding, -np.inf), pad_spatial(np.ones_like(x, bool), padding, False)
    slices = _pool_slices(x.shape[2:], kernel_size, stride, padding)
    best, winner = np.full_like(dy, -np.inf), np.full(dy.shape, -1)  # -1: nobody yet
    for number, each in enumerate(slices):
        value = padded[each]
        larger = (value > best) | (np.isnan(value) & ~np.isnan(best))
        wins = real[each] & (larger | (winner < 0))
        best, winner = np.where(wins, value, best), np.where(wins, number, winner)
    grad = np.zeros_like(padded)
    for number, each in enumerate(slices):
        grad[each] += np.where(winner == number, dy, 0)
    return crop_spatial(grad, padding, x.shape[2:])


def _pool_counts(
    spatial: Sequence[int], slices: list[tuple[Any, ...]], padding: Pairs, count_include_pad: bool
) -> Array:
    """Elements of every window, with those of the padding or without."""
    real = pad_spatial(np.ones((1, 1, *spatial)), padding, float(count_include_pad))
    return np.asarray(sum(real[each] for each in slices))


def avg_pool(
    x: Array, kernel_size: Sequence[int], stride: Sequence[int], padding: Pairs, count_include_pad: bool = True
) -> Array:
    """Mean of every window of x (N, C, *spatial); padding counts as zeros unless told otherwise."""
    padded = pad_spatial(wide(x)[0], padding, 0.0)
    slices = _pool_slices(x.shape[2:], kernel_size, stride, padding)
    total = sum(padded[each] for each in slices)
    return np.asarray(total / _pool_counts(x.shape[2:], slices, padding, count_include_pad))


def avg_pool_backward(
    dy: Array, x: Array, kernel_size: Sequence[int], stride: Sequence[int], padding: Pairs,
    count_include_pad: bool = True,
) -> Array:  # fmt: skip
    """Gradient of :func:`avg_pool` at x."""
    dy, x = wide(dy, x)
    grad, slices = np.zeros_like(pad_spatial(x, padding, 0.0)), _pool_slices(x.shape[2:], kernel_size, stride, padding)
    share = dy / _pool_counts(x.shape[2:], slices, padding, count_include_pad)
    for each in slices:
        grad[each] += share
    return crop_spatial(grad, padding, x.shape[2:])


# --- batch normalisation ------------------------------------------------------------------------


def interpolate(x: Array, scale: Sequence[int]) -> Array:
    """x (N, C, *spatial) linearly interpolated to a multiple of its size, as if the edges went on."""
    for axis, (n, s) in enumerate(zip(x.shape[2:], scale, strict=True), 2):
        at = (np.arange(n * s) + 0.5) / s - 0.5
        low = np.floor(at).astype(int)
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        after = (at - low).reshape(shape)
        before, behind = (x.take(i.clip(0, n - 1), axis) for i in (low, low + 1))
        x = np.where(after > 0, (1 - after) * before + after * behind, before)
    return x


def _per_channel(v: Array, ndim: int) -> Array:
    """v (C,) shaped to meet x (N, C, ...) of `ndim` axes."""
    return v.reshape(1, -1, *(1 for _ in range(ndim - 2)))


def batch_norm(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array]:
    """Training mode: x (N, C, ...) normalised per channel by its own mean and biased variance.

    Returns
    -------
    y (shape of x), mean (C,), variance (C,) (biased)
    """
    x, gamma, beta = wide(x, gamma, beta)
    axes = (0, *range(2, x.ndim))
    mean = x.mean(axis=axes)
    variance = ((x - _per_channel(mean, x.ndim)) ** 2).mean(axis=axes)
    return _normalise(x, gamma, beta, mean, variance, eps), mean, variance


def batch_norm_eval(x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, eps: float) -> Array:
    """gamma (x - mean) / sqrt(variance + eps) + beta, per channel."""
    x, gamma, beta, mean, variance = wide(x, gamma, beta, mean, variance)
    return _normalise(x, gamma, beta, mean, variance, eps)


def _normalise(x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, eps: float) -> Array:
    n = x.ndim
    normal = (x - _per_channel(mean, n)) / np.sqrt(_per_channel(variance, n) + eps)
    return normal * _per_channel(gamma, n) + _per_channel(beta, n)


def batch_norm_backward(dy: Array, x: Array, gamma: Array, eps: float) -> tuple[Array, Array, Array]:
    """Gradients of :func:`batch_norm`: grad_x (shape of x), grad_gamma (C,), grad_beta (C,)."""
    dy, x, gamma = wide(dy, x, gamma)
    axes, n = (0, *range(2, x.ndim)), x.ndim
    centred = x - _per_channel(x.mean(axis=axes), n)
    scale = 1 / np.sqrt((centred**2).mean(axis=axes) + eps)
    normal = centred * _per_channel(scale, n)
    grad_beta = dy.sum(axis=axes)
    grad_gamma = (dy * normal).sum(axis=axes)
    mean_dy = _per_channel(dy.mean(axis=axes), n)
    mean_dy_normal = _per_channel((dy * normal).mean(axis=axes), n)
    grad_x = _per_channel(gamma * scale, n) * (dy - mean_dy - normal * mean_dy_normal)
    return grad_x, grad_gamma, grad_beta


# --- rows --------------------------------------------------------------------------------------


def softmax(x: Array) -> Array:
    """exp(x) over its sum along the last axis."""
    (x,) = wide(x)
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def attention(q: Array, k: Array, v: Array, heads: int, *, causal: bool = False, hidden: Array | None = None) -> Array:
    """softmax(Q K^T / sqrt(length)) V per head: q (N, queries, heads * length), k and v (N, keys, heads * length).

    hidden : bool (N, keys), keys that no query sees; a query that sees none gets zeros
    """
    scores = attention_scores(q, k, heads)
    (v,) = wide(v)
    v = v.reshape(*v.shape[:2], heads, -1).transpose(0, 2, 1, 3)
    if causal:
        queries, keys = scores.shape[2:]
        unseen = np.arange(keys) > np.maximum(0, np.arange(queries)[:, None] + keys - queries)
        scores[..., unseen] = -np.inf
    if hidden is not None:
        scores[np.broadcast_to(hidden[:, None, None], scores.shape)] = -np.inf
    blind = np.isneginf(scores).all(axis=-1, keepdims=True)
    y = np.where(blind, 0.0, softmax(np.where(blind, 0.0, scores))) @ v
    return np.asarray(y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1))


def attention_scores(q: Array, k: Array, heads: int) -> Array:
    """Q K^T / sqrt(length) per head, (N, heads, queries, keys)."""
    q, k = (a.reshape(*a.shape[:2], heads, -1).transpose(0, 2, 1, 3) for a in wide(q, k))
    return np.asarray(q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1]))


def layer_norm(x: Array, gamma: Array, beta: Array | None, eps: float, *, centred: bool = True) -> Array:
    """x normalised along its last axis by its own mean (0 when not centred) and biased variance."""
    x, gamma, shift = wide(x, gamma, np.zeros_like(gamma) if beta is None else beta)
    if centred:
        x = x - x.mean(axis=-1, keepdims=True)
    return np.asarray(x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * gamma + shift)


# NaN and Inf are legitimate inputs here: no warning about them.
_quiet = np.errstate(invalid="ignore", over="ignore")


def bound(k: ArrayLike, abs_sum: ArrayLike, dtype: Any) -> Array:
    """Largest error that a sum of `k` products and a bias may have in `dtype` (contract R1).

    Parameters
    ----------
    k : int or array of ints
        Number of products summed, per element or for all.
    abs_sum : array
        sum(abs(w) * abs(x)) + abs(b) per element, computed in a wide type.
    dtype : float32 or float64
        The type the kernel computed in.

    Returns
    -------
    array of float64
        ``gamma(k + 1) * abs_sum + (k + 1) * eta`` with gamma(n) = n u / (1 - n u), u the unit
        round-off and eta the smallest normal number (Higham, Accuracy and Stability of Numerical
        Algorithms, chapter 3). Holds for any order of summation, with or without FMA.
    """
    info = np.finfo(dtype)
    u = float(info.eps) / 2
    n = np.asarray(k, np.float64) + 1
    gamma = n * u / (1 - n * u)
    return np.asarray(gamma * np.asarray(abs_sum, np.float64) + n * float(info.tiny))


def row_of(indptr: Array) -> Array:
    """Row index of every nonzero: int64 array of length nnz."""
    counts = np.diff(indptr)
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


@_quiet
def spmm(
    indptr: Array,
    indices: Array,
    data: Array,
    shape: tuple[int, int],
    X: Array,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
) -> Array:
    """activation(W @ X + bias + residual): W (M, K), X (K, N) or (K,), bias (M,), residual as the result
    -> (M, N) or (M,)."""
    if X.ndim == 1:
        column = None if residual is None else residual[:, None]
        return spmm(indptr, indices, data, shape, X[:, None], bias, activation, column)[:, 0]
    values, dense = wide(data, X)
    out = np.zeros((shape[0], dense.shape[1]), dense.dtype)
    for row in range(shape[0]):
        for p in range(indptr[row], indptr[row + 1]):
            out[row] += values[p] * dense[indices[p]]
    return _finished(out[None], bias, residual, activation)[0]


def _finished(sums: Array, bias: Array | None, residual: Array | None, activation: str | None) -> Array:
    """activation(sums + bias + residual) of sums (N, channels, ...) and a bias for each channel."""
    if bias is not None:
        sums = sums + _per_channel(bias.astype(sums.dtype), sums.ndim)
    return apply_activation(activation, sums if residual is None else sums + residual)


def spmv(
    indptr: Array,
    indices: Array,
    data: Array,
    shape: tuple[int, int],
    x: Array,
    bias: Array | None = None,
    activation: str | None = None,
) -> Array:
    """activation(W @ x + bias): W (M, K), x (K,), bias (M,) -> (M,)."""
    return spmm(indptr, indices, data, shape, x, bias, activation)


@_quiet
def sddmm(indptr: Array, indices: Array, A: Array, B: Array) -> Array:
    """(A @ B) at the pattern's nonzeros: A (M, N), B (N, K) -> (nnz,) in the order of the nonzeros."""
    left, right = wide(A, B)
    rows = row_of(indptr)
    out = np.zeros(len(indices), left.dtype)
    for p in range(len(indices)):
        out[p] = np.sum(left[rows[p]] * right[:, indices[p]])
    return out


def _as_rows(x: Array) -> Array:
    """(..., features) -> (samples, features), also when there is no feature."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def linear(
    x: Array,
    indptr: Array,
    indices: Array,
    data: Array,
    shape: tuple[int, int],
    bias: Array | None = None,
    activation: str | None = None,
) -> Array:
    """activation(x @ W.T + bias): x (..., in), W (out, in), bias (out,) -> (..., out)."""
    out = spmm(indptr, indices, data, shape, _as_rows(x).T, bias, activation)
    return out.T.reshape(*x.shape[:-1], shape[0])


@_quiet
def linear_backward(
    grad: Array, x: Array, indptr: Array, indices: Array, data: Array, shape: tuple[int, int]
) -> tuple[Array, Array, Array]:
    """Gradients of x @ W.T + bias.

    grad (..., out) is the gradient of the loss at the output, before the activation.

    Returns
    -------
    grad_x (..., in), grad_values (nnz,), grad_bias (out,)
    """
    values, dy = wide(data, _as_rows(grad))
    grad_x = np.zeros((dy.shape[0], shape[1]), dy.dtype)
    rows = row_of(indptr)
    for p in range(len(indices)):
        grad_x[:, indices[p]] += values[p] * dy[:, rows[p]]
    grad_values = sddmm(indptr, indices, _as_rows(grad).T, _as_rows(x))
    return grad_x.reshape(x.shape), grad_values, dy.sum(axis=0)


def _taps(
    indptr: Array,
    indices: Array,
    shape: tuple[int, int],
    kernel_size: Sequence[int],
    groups: int,
    channels: int,
) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
    """Yield (position in data, output channel, input channel, kernel offset) of every nonzero.

    Column c of W's row m stands for (channel inside m's group, kernel offsets) in C order.
    """
    offsets = list(itertools.product(*(range(k) for k in kernel_size)))
    rows = row_of(indptr)
    rows_per_group = max(shape[0] // groups, 1)
    channels_per_group = channels // groups
    for p, column in enumerate(np.asarray(indices).tolist()):
        row = int(rows[p])
        inside, offset = divmod(column, len(offsets))
        yield p, row, row // rows_per_group * channels_per_group + inside, offsets[offset]


@_quiet
def conv(
    indptr: Array,
    indices: Array,
    data: Array,
    shape: tuple[int, int],
    x: Array,
    *,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
    groups: int = 1,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
) -> Array:
    """Sparse convolution over any number of axes (cross-correlation, as torch and ONNX say conv).

    Parameters
    ----------
    indptr, indices, data, shape
        W of shape (out, channels / groups * prod(kernel_size)), rows laid out as in OIHW.
    x : array (N, channels, *spatial)
    kernel_size, stride, dilation : one int per spatial axis
    padding : one (before, after) pair per spatial axis, zeros
    groups : int that divides both channel counts
    bias : array (out,) or None
    activation : name or None
    residual : array of the result's shape, added before the activation, or None

    Returns
    -------
    array (N, out, *output spatial)
    """
    values, dense = wide(data, x)
    padded = pad_spatial(dense, padding, 0.0)
    sizes = output_size(x.shape[2:], kernel_size, stride, padding, dilation)
    out = np.zeros((x.shape[0], shape[0], *sizes), dense.dtype)
    for p, row, channel, offset in _taps(indptr, indices, shape, kernel_size, groups, x.shape[1]):
        window: Any = (slice(None), channel, *window_slices(offset, sizes, stride, dilation))
        out[:, row] += values[p] * padded[window]
    return _finished(out, bias, residual, activation)


@_quiet
def cell(kind: str, x: Array, u: Array, before: Array) -> tuple[Array, Array]:
    """A step of a recurrent layer: h, and what "lstm" has as c, from sums of gates (gates, count).

    u : of "gru", the sums of the recurrent product
    before : c of "lstm", h of "gru" (count,)
    """

    def sigmoid(z: Array) -> Array:
        return apply_activation("sigmoid", z)

    x, u, state = wide(x, u, before)
    if kind == "lstm":
        i, o, f, g = x
        state = sigmoid(f) * state + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(state), state
    if kind == "gru":
        z, r = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])
        return z * state + (1 - z) * np.tanh(x[2] + r * u[2]), state
    return np.tanh(x[0]) if kind == "rnn_tanh" else apply_activation("relu", x[0]), state


@_quiet
def conv_backward(
    grad: Array,
    indptr: Array,
    indices: Array,
    data: Array,
    shape: tuple[int, int],
    x: Array,
    *,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
    groups: int = 1,
) -> tuple[Array, Array, Array]:
    """Gradients of :func:`conv` before its activation.

    grad has the shape of the convolution's output.

    Returns
    -------
    grad_x (shape of x; 0 at inputs no window saw), grad_values (nnz,), grad_bias (out,)
    """
    values, dense, dy = wide(data, x, grad)
    padded = pad_spatial(dense, padding, 0.0)
    grad_padded = np.zeros_like(padded)
    grad_values = np.zeros(len(values), dense.dtype)
    sizes = grad.shape[2:]
    for p, row, channel, offset in _taps(indptr, indices, shape, kernel_size, groups, x.shape[1]):
        window: Any = (slice(None), channel, *window_slices(offset, sizes, stride, dilation))
        grad_padded[window] += values[p] * dy[:, row]
        grad_values[p] = np.sum(dy[:, row] * padded[window])
    grad_bias = dy.sum(axis=(0, *range(2, dy.ndim)))
    return crop_spatial(grad_padded, padding, x.shape[2:]), grad_values, grad_bias
