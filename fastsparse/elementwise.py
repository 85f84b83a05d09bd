"""What networks need beside products: activations, pooling, normalisation, forward and backward.

Arrays are float32 or float64, shapes are (N, C, ...); every function returns new arrays of its input's type and
changes nothing it is given but `out`. Sums over a batch, or a row, are taken in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import launch_layers, workspace
from fastsparse._arguments import check_out
from fastsparse.launch import address, machine, share_memory
from fastsparse.plan.linear import Machine
from fastsparse.plan.pooling import Pads, Sizes, Windows, adaptive_windows, windows

Array = NDArray[Any]
Index = NDArray[np.signedinteger[Any]]

# Activations whose gradient follows from their output; the others need the value before them.
FROM_OUTPUT = launch_layers.KEEPS_OUTPUT


# --- activations -------------------------------------------------------------------------------


def activate(name: str, z: Array) -> Array:
    """The activation `name` of every element."""
    _check_name(name)
    z = _readable(z)
    y = workspace.array(z.shape, z.dtype)
    launch_layers.run_activation(name, z, y, machine(z.dtype))
    return y


def activate_backward(name: str, dy: Array, kept: Array) -> Array:
    """Gradient before the activation, from the gradient `dy` behind it.

    `kept` is the activation's output for the names in ``FROM_OUTPUT``, its input for the others.
    """
    _check_name(name)
    dy = _readable(dy)
    kept = _readable(kept, dy.dtype)
    dz = workspace.array(dy.shape, dy.dtype)
    launch_layers.run_activation_grad(name, dy, kept, dz, machine(dy.dtype))
    return dz


def _check_name(name: str) -> None:
    if name not in launch_layers.NAMES:
        raise ValueError(f"activation is {name!r}, which is not known")


# --- pooling -----------------------------------------------------------------------------------


def pooled_size(spatial: Sizes, kernel: Sizes, stride: Sizes, padding: Pads) -> Sizes:
    """Output height and width of a pooling window."""
    height, width = (
        (n + before + after - k) // s + 1 for n, k, s, (before, after) in zip(spatial, kernel, stride, padding)
    )
    return height, width


def max_pool2d(x: Array, kernel: Sizes, stride: Sizes, padding: Pads) -> Array:
    """Largest value of every window of x (N, C, H, W); padding never wins, NaN always does."""
    return _pooled(launch_layers.MAX, x, windows(_spatial(x), kernel, stride, padding))


def max_pool2d_with_index(x: Array, kernel: Sizes, stride: Sizes, padding: Pads) -> tuple[Array, Index]:
    """As :func:`max_pool2d`, with the place (row * W + column in the image) of the element that won.

    The first of equals wins. The index has the output's shape; its integers are as long as x's numbers.
    """
    w = windows(_spatial(x), kernel, stride, padding)
    index = workspace.array((*x.shape[:2], *w.out_spatial), np.int32 if x.dtype.itemsize == 4 else np.int64)
    return _pooled(launch_layers.MAX_INDEX, x, w, index), index


def max_pool2d_backward(dy: Array, index: Index, spatial: Sizes, kernel: Sizes, stride: Sizes, padding: Pads) -> Array:
    """Gradient at the input (N, C, *spatial): each dy goes to the element that won."""
    return _pooled_backward(launch_layers.MAX_INDEX, dy, windows(spatial, kernel, stride, padding), index)


def avg_pool2d(x: Array, kernel: Sizes, stride: Sizes, padding: Pads) -> Array:
    """Mean of every window of x (N, C, H, W), the zeros of the padding included."""
    return _pooled(launch_layers.MEAN, x, windows(_spatial(x), kernel, stride, padding))


def avg_pool2d_backward(dy: Array, spatial: Sizes, kernel: Sizes, stride: Sizes, padding: Pads) -> Array:
    """Gradient of :func:`avg_pool2d` at its input (N, C, *spatial)."""
    return _pooled_backward(launch_layers.MEAN, dy, windows(spatial, kernel, stride, padding))


def adaptive_avg_pool2d(x: Array, output: Sizes) -> Array:
    """Means over windows that split x (N, C, H, W) into `output` rows and columns as evenly as possible."""
    return _pooled(launch_layers.MEAN, x, adaptive_windows(_spatial(x), output))


def adaptive_avg_pool2d_backward(dy: Array, spatial: Sizes) -> Array:
    """Gradient of :func:`adaptive_avg_pool2d` at its input (N, C, *spatial)."""
    return _pooled_backward(launch_layers.MEAN, dy, adaptive_windows(spatial, _spatial(dy)))


def _spatial(x: Array) -> Sizes:
    return x.shape[2], x.shape[3]


def _pooled(kind: int, x: Array, w: Windows, index: Index | None = None) -> Array:
    x = _readable(x)
    y = workspace.array((*x.shape[:2], *w.out_spatial), x.dtype)
    launch_layers.run_pool(kind, w, x, y, index, machine(x.dtype))
    return y


def _pooled_backward(kind: int, dy: Array, w: Windows, index: Index | None = None) -> Array:
    dy = _readable(dy)
    index = None if index is None else _readable(index)
    dx = workspace.array((*dy.shape[:2], *w.spatial), dy.dtype)
    launch_layers.run_pool_grad(kind, w, dy, index, dx, machine(dy.dtype))
    return dx


# --- normalisation -----------------------------------------------------------------------------


def batch_norm_train(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array]:
    """Normalise x (N, C, ...) per channel by its own mean and biased variance.

    Returns
    -------
    y (shape of x), mean (C,) float64, variance (C,) float64
    """
    mean, variance = np.empty(x.shape[1]), np.empty(x.shape[1])
    return _normalised(x, gamma, beta, mean, variance, eps, training=True), mean, variance


def batch_norm_eval(x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, eps: float) -> Array:
    """gamma (x - mean) / sqrt(variance + eps) + beta per channel, for x (N, C, ...)."""
    return _normalised(x, gamma, beta, _wide(mean), _wide(variance), eps, training=False)


def batch_norm_backward(
    dy: Array, x: Array, gamma: Array, mean: Array, variance: Array, eps: float
) -> tuple[Array, Array, Array]:
    """Gradients of :func:`batch_norm_train`: grad_x (shape of x), grad_gamma (C,), grad_beta (C,)."""
    x = _readable(x)
    dy = _readable(dy, x.dtype)
    grad_x, grad_gamma, grad_beta = workspace.array(x.shape, x.dtype), np.empty(x.shape[1]), np.empty(x.shape[1])
    parameters = _wide(gamma), _wide(mean), _wide(variance)
    launch_layers.run_batch_norm_grad(dy, x, grad_x, *parameters, grad_gamma, grad_beta, eps, machine(x.dtype))
    return grad_x, grad_gamma.astype(x.dtype), grad_beta.astype(x.dtype)


def _normalised(
    x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, eps: float, *, training: bool
) -> Array:
    x = _readable(x)
    y, m = workspace.array(x.shape, x.dtype), machine(x.dtype)
    launch_layers.run_batch_norm(x, y, _wide(gamma), _wide(beta), mean, variance, eps, m, training=training)
    return y


# --- rows --------------------------------------------------------------------------------------


def softmax(x: Array, out: Array | None = None) -> Array:
    """exp(x) over its sum along the last axis; `out`, contiguous, may be x."""
    return _by_rows(launch_layers.run_softmax, x, out)


def layer_norm(
    x: Array, gamma: Array, beta: Array | None, eps: float, out: Array | None = None, *, centred: bool = True
) -> Array:
    """gamma (x - mean) / sqrt(variance + eps) + beta along the last axis, for gamma and beta of its size.

    centred : False takes the mean for 0
    out : contiguous, may be x
    """
    gamma = _readable(gamma, x.dtype)
    beta = None if beta is None else _readable(beta, x.dtype)

    def run(x: Array, y: Array, m: Machine) -> None:
        launch_layers.run_layer_norm(x, y, gamma, beta, eps, m, centred=centred)

    return _by_rows(run, x, out, gamma, beta)


def _by_rows(run: Callable[[Array, Array, Machine], None], x: Array, out: Array | None, *rest: Array | None) -> Array:
    x = _readable(x)
    y = check_out(out, x.shape, x.dtype, *rest)
    if out is not None and share_memory(y, x) and address(y) != address(x):
        raise ValueError("out shares memory with a part of x, expected x itself or memory of its own")
    if x.size:
        run(x, y, machine(x.dtype))
    return y


def _wide(per_channel: Array) -> NDArray[np.float64]:
    """An array (C,) as the kernels take it."""
    return _readable(per_channel, np.dtype(np.float64))


def _readable(x: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """x itself when it is contiguous, aligned and of `dtype` (by default its own), a copy otherwise."""
    x = np.ascontiguousarray(x, dtype)
    return x if x.flags.aligned else x.copy()


# --- sums --------------------------------------------------------------------------------------

_BLOCK_ROWS = 128


def batch_sum(x: Array) -> Array:
    """Sum of x (N, ...) over N, in blocks of 128 rows that are added up in float64.

    NumPy adds the rows up one after the other: in float32 the sum of a million positive numbers is 1% off.
    """
    if len(x) <= _BLOCK_ROWS:
        return np.asarray(x.sum(axis=0))
    count = len(x) // _BLOCK_ROWS
    whole = count * _BLOCK_ROWS
    blocks = x[:whole].reshape(count, _BLOCK_ROWS, *x.shape[1:]).sum(axis=1)
    total = blocks.sum(axis=0, dtype=np.float64) + x[whole:].sum(axis=0)
    return np.asarray(total, x.dtype)


def channel_sums(x: Array) -> Array:
    """Sum of x (N, C, ...) over all axes but the second, (C,): pairwise inside an image, over N as `batch_sum`."""
    return batch_sum(np.reshape(x, (*x.shape[:2], math.prod(x.shape[2:]))).sum(axis=2))
