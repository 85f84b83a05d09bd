"""Networks that the engine's tests run, and what they compute, in float64 with an error bound, from the oracles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

import fastsparse as fs
from fastsparse import nn
from fastsparse_kernels import reference as layers
from fastsparse_kernels import reference as ref
from tests.checking import SLOPES

Array = NDArray[Any]


def _convolutions(rng: np.random.Generator, dtype: str) -> nn.Sequential:
    """Every kind of step between layers: padding that differs, strides, groups, pools, what cannot be fused."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, dtype=dtype, rng=rng),
        nn.BatchNorm2d(8, dtype=dtype),
        nn.ReLU(),
        nn.SparseConv2d(8, 12, 3, padding=((2, 0), (1, 2)), sparsity=0.7, bias=False, dtype=dtype, rng=rng),
        nn.BatchNorm2d(12, dtype=dtype),
        nn.MaxPool2d(3, 2, padding=1),
        nn.ReLU6(),
        nn.Sequential(
            nn.SparseConv2d(12, 12, 3, padding=1, groups=12, sparsity=0.3, activation="silu", dtype=dtype, rng=rng),
            nn.SparseConv2d(12, 20, 1, sparsity=0.6, dtype=dtype, rng=rng),
            nn.Dropout(0.5, rng=0),
            nn.Sigmoid(),
        ),
        nn.SparseConv2d(20, 9, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), sparsity=0.8, dtype=dtype, rng=rng),
        nn.BatchNorm2d(9, dtype=dtype),
        nn.GELU(),
        nn.AvgPool2d(2, 1, padding=((1, 0), (0, 1))),
        nn.Flatten(),
        nn.SparseLinear(9 * 3 * 5, 33, sparsity=0.8, activation="leaky_relu", dtype=dtype, rng=rng),
        nn.BatchNorm1d(33, dtype=dtype),
        nn.Tanh(),
        nn.Linear(33, 7, dtype=dtype, rng=rng),
    )


def _demo_like(rng: np.random.Generator, dtype: str) -> nn.Sequential:
    return nn.Sequential(
        nn.SparseConv2d(3, 10, 3, padding=1, bias=False, sparsity=0.5, dtype=dtype, rng=rng),
        nn.BatchNorm2d(10, dtype=dtype),
        nn.ReLU(),
        nn.SparseConv2d(10, 17, 3, padding=1, bias=False, dtype=dtype, rng=rng),
        nn.BatchNorm2d(17, dtype=dtype),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.SparseLinear(17 * 4 * 5, 20, activation="relu", dtype=dtype, rng=rng),
        nn.SparseLinear(20, 7, sparsity=0.5, dtype=dtype, rng=rng),
    )


def _to_one_pixel(rng: np.random.Generator, dtype: str) -> nn.Sequential:
    """Images shrink to one pixel, where tiles go over groups of samples; the output is an image."""
    return nn.Sequential(
        nn.SparseConv2d(3, 16, 3, stride=2, padding=1, sparsity=0.5, activation="relu", dtype=dtype, rng=rng),
        nn.SparseConv2d(16, 16, 3, stride=3, padding=1, sparsity=0.7, activation="relu", dtype=dtype, rng=rng),
        nn.SparseConv2d(16, 24, 2, sparsity=0.7, activation="hardswish", dtype=dtype, rng=rng),
        nn.SparseConv2d(24, 11, 1, sparsity=0.7, dtype=dtype, rng=rng),
    )


def _pooled(rng: np.random.Generator, dtype: str) -> nn.Sequential:
    return nn.Sequential(
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.SparseConv2d(3, 6, 3, padding=1, sparsity=0.5, dtype=dtype, rng=rng),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.Flatten(),
    )


def _features(rng: np.random.Generator, dtype: str) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm1d(40, dtype=dtype),
        nn.SparseLinear(40, 100, dtype=dtype, rng=rng),
        nn.BatchNorm1d(100, dtype=dtype),
        nn.SiLU(),
        nn.SparseLinear(100, 64, bias=False, activation="relu", dtype=dtype, rng=rng),
        nn.GELU("tanh"),
        nn.Linear(64, 5, activation="tanh", dtype=dtype, rng=rng),
    )


def _signals(rng: np.random.Generator, dtype: str) -> nn.Sequential:
    return nn.Sequential(
        nn.SparseConv1d(3, 8, 5, padding=2, sparsity=0.5, activation="relu", dtype=dtype, rng=rng),
        nn.BatchNorm1d(8, dtype=dtype),
        nn.SparseConv1d(8, 6, 3, stride=2, dilation=2, sparsity=0.5, dtype=dtype, rng=rng),
        nn.Flatten(),
        nn.SparseLinear(6 * 8, 4, sparsity=0.5, dtype=dtype, rng=rng),
    )


def _volumes(rng: np.random.Generator, dtype: str) -> nn.Sequential:
    return nn.Sequential(
        nn.SparseConv3d(2, 5, 3, padding=1, sparsity=0.7, activation="relu", dtype=dtype, rng=rng),
        nn.SparseConv3d(5, 4, (1, 2, 2), stride=(1, 2, 1), sparsity=0.5, dtype=dtype, rng=rng),
    )


def _bottleneck(rng: np.random.Generator, dtype: str, channels: tuple[int, int, int], stride: int) -> nn.Residual:
    first, middle, last = channels
    body = nn.Sequential(
        nn.SparseConv2d(first, middle, 1, sparsity=0.6, bias=False, dtype=dtype, rng=rng),
        nn.BatchNorm2d(middle, dtype=dtype),
        nn.ReLU(),
        nn.SparseConv2d(middle, middle, 3, stride=stride, padding=1, sparsity=0.7, dtype=dtype, rng=rng),
        nn.ReLU(),
        nn.SparseConv2d(middle, last, 1, sparsity=0.6, dtype=dtype, rng=rng),
        nn.BatchNorm2d(last, dtype=dtype),
    )
    if first == last and stride == 1:
        return nn.Residual(body, None, "relu")
    shortcut = nn.SparseConv2d(first, last, 1, stride=stride, sparsity=0.6, dtype=dtype, rng=rng)
    return nn.Residual(body, shortcut, "relu")


def _bottlenecks(rng: np.random.Generator, dtype: str) -> nn.Sequential:
    """As in ResNet-50; the sums' planes have no padding."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, dtype=dtype, rng=rng),
        nn.ReLU(),
        nn.MaxPool2d(2, 1, padding=1),
        _bottleneck(rng, dtype, (8, 5, 12), 1),
        _bottleneck(rng, dtype, (12, 4, 12), 1),
        _bottleneck(rng, dtype, (12, 6, 17), 2),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(17, 5, dtype=dtype, rng=rng),
    )


def _sums(rng: np.random.Generator, dtype: str) -> nn.Sequential:
    """Sums of padded planes, of a pool, of what has an activation already, in one another, of features."""

    def conv(padding: Any = 1, kernel: int = 3, activation: str | None = None) -> nn.SparseConv2d:
        return nn.SparseConv2d(
            4, 4, kernel, padding=padding, sparsity=0.5, activation=activation, dtype=dtype, rng=rng
        )  # fmt: skip

    return nn.Sequential(
        nn.SparseConv2d(4, 4, 1, sparsity=0.5, dtype=dtype, rng=rng),
        nn.Residual(nn.Sequential(conv(), nn.ReLU(), conv(((2, 0), (0, 2)))), None, "gelu"),
        nn.Residual(conv(activation="tanh"), nn.Sequential(conv(2, 5), nn.Sigmoid()), "leaky_relu"),
        nn.MaxPool2d(2),
        nn.Residual(nn.Residual(conv(), None, "relu"), conv(0, 1)),
        nn.Residual(nn.AvgPool2d(3, 1, padding=1), nn.MaxPool2d(3, 1, padding=1)),
        nn.Residual(nn.ReLU()),
        nn.Flatten(),
        nn.Residual(nn.SparseLinear(80, 80, sparsity=0.8, dtype=dtype, rng=rng), None, "silu"),
        nn.Residual(
            nn.SparseLinear(80, 30, sparsity=0.8, activation="relu", dtype=dtype, rng=rng),
            nn.SparseLinear(80, 30, sparsity=0.8, dtype=dtype, rng=rng),
        ),
        nn.Residual(nn.Tanh()),
    )


def _sum_of_input(rng: np.random.Generator, dtype: str) -> nn.Sequential:
    """The input and the result are both terms of sums."""
    conv = nn.SparseConv2d(3, 3, 3, padding=1, sparsity=0.4, dtype=dtype, rng=rng)
    return nn.Sequential(nn.Residual(conv, None, "relu"))


def _tokens(rng: np.random.Generator, dtype: str) -> nn.Sequential:
    """Both forms of a Transformer's layer; sums, norms, convolutions and features of tokens."""
    common: dict[str, Any] = {"sparsity": 0.7, "dtype": dtype, "rng": rng}
    return nn.Sequential(
        nn.TransformerEncoderLayer(12, 3, 20, activation="gelu", norm_first=True, causal=True, **common),
        nn.SparseConv1d(7, 5, 3, padding=1, **common),
        nn.RMSNorm(12, dtype=dtype),
        nn.SparseLinear(12, 8, **common),
        nn.BatchNorm1d(5, dtype=dtype),
        nn.Residual(nn.Linear(8, 8, dtype=dtype, rng=rng), nn.SparseLinear(8, 8, **common), "relu"),
        nn.Concat(None, nn.Tanh()),
        nn.Flatten(),
        nn.SparseLinear(80, 6, **common),
    )


def _encoder(rng: np.random.Generator, dtype: str) -> nn.Sequential:
    layer = nn.TransformerEncoderLayer(12, 2, 15, 0.0, sparsity=0.7, dtype=dtype, rng=rng)
    return nn.Sequential(layer, nn.Linear(12, 3, dtype=dtype, rng=rng))


def _decoder(rng: np.random.Generator, dtype: str) -> nn.Sequential:
    """A small U-Net: what gathers, and joins of images, of features, of what cannot be split."""

    def conv(channels: int, out: int, **rest: Any) -> nn.SparseConv2d:
        return nn.SparseConv2d(channels, out, 3, padding=1, sparsity=0.6, dtype=dtype, rng=rng, **rest)

    inner = nn.Sequential(
        nn.MaxPool2d(2),
        conv(6, 10, activation="relu"),
        nn.SparseConvTranspose2d(10, 6, 3, 2, 1, 1, groups=2, sparsity=0.4, bias=False, dtype=dtype, rng=rng),
        nn.BatchNorm2d(6, dtype=dtype),
        nn.ReLU(),
    )
    return nn.Sequential(
        conv(3, 6),
        nn.BatchNorm2d(6, dtype=dtype),
        nn.ReLU(),
        nn.Concat(inner, None),
        conv(12, 5, bias=False),
        nn.BatchNorm2d(5, dtype=dtype),
        nn.ReLU(),
        nn.Concat(nn.Upsample((2, 1)), nn.Upsample((2, 1), "bilinear")),
        nn.BatchNorm2d(10, dtype=dtype),
        nn.SparseConvTranspose2d(10, 4, (2, 3), dilation=(2, 1), sparsity=0.5, dtype=dtype, rng=rng),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.SparseLinear(4 * 6 * 3, 12, sparsity=0.6, dtype=dtype, rng=rng),
        nn.Concat(None, nn.SparseLinear(12, 5, sparsity=0.5, dtype=dtype, rng=rng)),
        nn.Tanh(),
        nn.Concat(None, nn.ReLU(), None),
    )


def _nothing(rng: np.random.Generator, dtype: str) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(0.3, rng=0), nn.Flatten())


def _rows(rng: np.random.Generator, dtype: str) -> nn.Sequential:
    """Layers on rows between, before and behind those on other layouts, and as terms of sums."""
    return nn.Sequential(
        nn.LayerNorm((3, 9, 7), dtype=dtype),
        nn.SparseConv2d(3, 5, 3, padding=1, sparsity=0.5, dtype=dtype, rng=rng),
        nn.LayerNorm(7, dtype=dtype),
        nn.ReLU(),
        nn.SparseConv2d(5, 5, 3, padding=1, sparsity=0.5, dtype=dtype, rng=rng),
        nn.Softmax(),
        nn.Residual(nn.Sequential(nn.LayerNorm((9, 7), dtype=dtype), nn.Softmax()), None, "tanh"),
        nn.Flatten(),
        nn.SparseLinear(5 * 9 * 7, 33, sparsity=0.8, dtype=dtype, rng=rng),
        nn.Residual(
            nn.Sequential(nn.LayerNorm(33, dtype=dtype), nn.Linear(33, 33, dtype=dtype, rng=rng)), None, "gelu"
        ),
        nn.LayerNorm(33, dtype=dtype),
        nn.SparseLinear(33, 6, sparsity=0.5, dtype=dtype, rng=rng),
        nn.Softmax(),
    )


# Name -> (function that builds it, shape of a sample).
NETWORKS: dict[str, tuple[Callable[[np.random.Generator, str], nn.Sequential], tuple[int, ...]]] = {
    "convolutions": (_convolutions, (3, 11, 9)),
    "demo": (_demo_like, (3, 8, 10)),
    "one pixel": (_to_one_pixel, (3, 9, 11)),
    "pooled": (_pooled, (3, 8, 7)),
    "features": (_features, (40,)),
    "signals": (_signals, (3, 19)),
    "volumes": (_volumes, (2, 4, 5, 6)),
    "bottlenecks": (_bottlenecks, (3, 15, 12)),
    "sums": (_sums, (4, 8, 11)),
    "sum of input": (_sum_of_input, (3, 5, 7)),
    "rows": (_rows, (3, 9, 7)),
    "decoder": (_decoder, (3, 8, 8)),
    "tokens": (_tokens, (7, 12)),
    "encoder": (_encoder, (5, 12)),
    "nothing": (_nothing, (3, 4, 5)),
}


def network(name: str, dtype: str = "float32", seed: int = 0) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A network in evaluation mode whose batch norms have been given statistics and parameters, and its input shape."""
    rng = np.random.default_rng(seed)
    build, shape = NETWORKS[name]
    model = build(rng, dtype)
    for _, layer in model.named_modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            count = layer.num_features
            layer.running_mean = rng.standard_normal(count).astype(dtype)
            layer.running_var = rng.uniform(0.3, 2, count).astype(dtype)
            layer.weight.value = rng.uniform(-1.5, 1.5, count).astype(dtype)
            layer.bias.value = rng.standard_normal(count).astype(dtype)
        elif getattr(layer, "bias", None) is not None:
            layer.bias.value = rng.standard_normal(layer.bias.value.shape).astype(dtype)
    return model.eval(), shape


# ---------------------------------------------------------------- the oracle


def exact(model: nn.Sequential, x: Any, dtype: Any) -> tuple[Array, Array]:
    """What the network computes in float64, and the largest error that rounding in `dtype` may cause (contract R1,
    carried from layer to layer)."""
    if isinstance(x, tuple):
        return _run(model, tuple(one.astype(np.float64) for one in x), tuple(np.zeros(one.shape) for one in x), dtype)
    return _run(model, x.astype(np.float64), np.zeros(x.shape), dtype)


def _run(layer: nn.Module, value: Any, error: Any, dtype: Any) -> tuple[Array, Array]:
    u = float(np.finfo(dtype).eps) / 2
    if isinstance(layer, nn.Sequential):
        for inner in layer:
            value, error = _run(inner, value, error, dtype)
    elif isinstance(layer, nn.Residual):
        value, error = _summed(layer, value, error, dtype)
    elif isinstance(layer, nn.Concat):
        sources = _sources(value, error, len(layer.branches))
        ends = [s if b is None else _run(b, *s, dtype) for b, s in zip(layer.branches, sources, strict=True)]
        value, error = (np.concatenate(parts, 1) for parts in zip(*ends, strict=True))
    elif isinstance(layer, nn.Upsample):
        value, error = _upsampled(layer, value, error, u)
    elif isinstance(layer, nn.Flatten):
        value, error = value.reshape(len(value), -1), error.reshape(len(value), -1)
    elif hasattr(layer, "running_mean"):
        value, error = _normalised(layer, value, error, u)
    elif isinstance(layer, nn.Embedding):
        value = layer.weight.value.astype(np.float64)[value.astype(np.int64)]
        error = np.zeros(value.shape)
        if layer.position is not None:
            value = value + layer.position.value[: value.shape[1]]
            error = u * abs(value)
    elif isinstance(layer, nn.MultiheadAttention):
        value, error = _attended(layer, value, error, dtype)
    elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        value, error = _row_normalised(layer, value, error, u)
    elif isinstance(layer, nn.Softmax):
        value, error = _softmax(value, error, u)
    elif isinstance(layer, nn.MaxPool2d):
        window = (layer.kernel_size, layer.stride, layer.padding)
        value, error = layers.max_pool(value, *window), layers.max_pool(error, *window)
    elif isinstance(layer, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
        value, error = _averaged(layer, value, error, u)
    elif hasattr(layer, "bias"):
        value, error = _product(layer, value, error, dtype)
    elif hasattr(layer, "activation"):
        value, error = _activated(layer.activation, value, error, u)
    return value, error


def _sources(value: Any, error: Any, count: int) -> list[tuple[Array, Array]]:
    """What each branch reads, and its error."""
    return list(zip(value, error, strict=True)) if isinstance(value, tuple) else [(value, error)] * count


def _summed(layer: nn.Residual, x: Any, error: Any, dtype: Any) -> tuple[Array, Array]:
    """Batch norm may be folded into a term, which rounds at most as if it stood alone."""
    first, second = _sources(x, error, 2)
    value, own = _run(layer.body, *first, dtype)
    passed = second if layer.shortcut is None else _run(layer.shortcut, *second, dtype)
    u = float(np.finfo(dtype).eps) / 2
    rounded = own + passed[1] + 2 * u * (abs(value) + own + abs(passed[0]) + passed[1])
    return _activated(layer.activation, value + passed[0], rounded, u)


def _activated(name: str | None, value: Array, error: Array, u: float) -> tuple[Array, Array]:
    own = 0.0 if name is None else 4 * u * np.maximum(1, abs(value) + error)
    return layers.apply_activation(name, value), SLOPES.get(name, 1.0) * error + own


def _product(layer: Any, x: Array, error: Array, dtype: Any) -> tuple[Array, Array]:
    if isinstance(layer, (nn.Linear, nn.Conv2d)):
        W = fs.csr(layer.weight.value.reshape(len(layer.weight.value), -1))
    else:
        W = layer.weight
    bias = None if layer.bias is None else layer.bias.value

    wide = np.float64 if np.dtype(dtype) == np.float32 else np.longdouble
    names = ("kernel_size", "stride", "padding", "dilation", "groups")
    geometry = {name: getattr(layer, name) for name in names if hasattr(layer, name)}

    def apply(data: Array, x: Array, bias: Array | None) -> Array:
        if isinstance(layer, nn.SparseConvTranspose2d):
            sizes = layer.eval()(np.zeros(x.shape, layer.values.dtype)).shape
            y, _, _ = ref.conv_backward(x, W.indptr, W.indices, data, W.shape, np.zeros(sizes), **geometry)
            return y if bias is None else y + bias.reshape(-1, 1, 1)
        data, x = data.astype(wide), x.astype(wide)
        if geometry:
            y = _convolved(fs.CSR._trusted(W.pattern, data), x, **geometry)
            return y if bias is None else y + bias.reshape(-1, *(1,) * (x.ndim - 2))
        matrix = sparse.csr_array((data, W.indices, W.indptr), W.shape)
        y = (matrix @ x.reshape(-1, W.shape[1]).T).T.reshape(*x.shape[:-1], W.shape[0])
        return y if bias is None else y + bias

    value = apply(W.data, x, bias)
    size = abs(W.data)
    abs_sum = apply(size, abs(x) + error, None if bias is None else abs(bias))
    # Folding a batch norm rounds values and bias once more.
    terms = W.nnz if isinstance(layer, nn.SparseConvTranspose2d) else int(np.diff(W.indptr).max(initial=0))
    own = ref.bound(terms + 2, abs_sum, dtype)
    return _activated(layer.activation, value, apply(size, error, None) + own, float(np.finfo(dtype).eps) / 2)


def _convolved(W: fs.CSR, x: Array, *, groups: int, kernel_size: Any, padding: Any, **steps: Any) -> Array:
    """As `ref.conv`, in x's type: a product with the windows, which is many times as fast."""
    sizes, taps = ref.output_size(x.shape[2:], kernel_size, padding=padding, **steps), math.prod(kernel_size)
    padded = ref.pad_spatial(x, padding, 0.0)
    at = np.arange(padded[0].size).reshape(padded.shape[1:])
    offsets = itertools.product(*map(range, kernel_size))
    windows = np.stack([at[(slice(None), *ref.window_slices(o, sizes, **steps))] for o in offsets], axis=1)
    columns = padded.reshape(len(x), -1).T[windows.reshape(len(at) * taps, -1)]  # (channels * taps, positions, N)
    group = ref.row_of(W.indptr) // max(1, W.shape[0] // groups)
    shifted = W.indices + group * (len(at) // groups * taps)
    matrix = sparse.csr_array((W.data, shifted, W.indptr), (W.shape[0], len(columns)))
    y = matrix @ columns.reshape(len(columns), -1)
    return np.moveaxis(y.reshape(W.shape[0], -1, len(x)), -1, 0).reshape(len(x), W.shape[0], *sizes)


def _upsampled(layer: nn.Upsample, x: Array, error: Array, u: float) -> tuple[Array, Array]:
    """By matrices of the weights of every pixel, which are not negative."""
    matrices = []
    for n, scale in zip(x.shape[2:], layer.scale_factor, strict=True):
        pixel, part = np.divmod(np.arange(n * scale), scale)
        # Between pixels by itself, for a position in a large image would round it.
        between = (part + 0.5) / scale - 0.5 if layer.mode == "bilinear" else np.zeros(n * scale)
        between[((pixel == 0) & (between < 0)) | ((pixel == n - 1) & (between > 0))] = 0
        matrices.append(np.maximum(0, 1 - abs(np.subtract.outer(pixel, np.arange(n)) + between[:, None])))

    def apply(x: Array) -> Array:
        return np.asarray(matrices[0] @ x @ matrices[1].T)

    own = 0.0 if layer.mode == "nearest" else 8 * u * apply(abs(x) + error)
    return apply(x), apply(error) + own


def _normalised(layer: Any, x: Array, error: Array, u: float) -> tuple[Array, Array]:
    parameters = (layer.weight.value, layer.bias.value, layer.running_mean, layer.running_var)
    gamma, beta, mean, variance = (np.asarray(p, np.float64).reshape(1, -1, *(1,) * (x.ndim - 2)) for p in parameters)
    scale = gamma / np.sqrt(variance + layer.eps)
    value = (x - mean) * scale + beta
    return value, abs(scale) * error + 4 * u * (abs(scale) * (abs(x) + error + abs(mean)) + abs(beta))


_ROUNDINGS = 8  # of a number's own type between what a row-wise layer reads and writes; its sums are float64


def _row_normalised(layer: Any, x: Array, error: Array, u: float) -> tuple[Array, Array]:
    """The deviation of a row is a norm of its centred numbers, and changes by no more than their root mean square."""
    shape, rms = x.shape, isinstance(layer, nn.RMSNorm)
    gamma = layer.weight.value.astype(np.float64).reshape(-1)
    beta = np.zeros_like(gamma) if rms else layer.bias.value.astype(np.float64).reshape(-1)
    x, error = x.reshape(-1, gamma.size), error.reshape(-1, gamma.size)
    value = layers.layer_norm(x, gamma, beta, layer.eps, centred=not rms).astype(np.float64)
    centred = x - (0 if rms else x.mean(axis=1, keepdims=True))
    deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + layer.eps)
    sums = (gamma.size + 2) * 2.0**-53 * (abs(x) + error).mean(axis=1, keepdims=True)
    own = error + error.mean(axis=1, keepdims=True) + sums + 2 * u * (abs(x) + error + abs(x - centred))
    moved = np.sqrt((own**2).mean(axis=1, keepdims=True))
    least = np.maximum(deviation - moved, np.sqrt(layer.eps))
    wrong = abs(gamma) * (own / least + abs(centred) * moved / (deviation * least))
    relative = _ROUNDINGS * u + (gamma.size + 2) * 2.0**-53
    wrong += relative * (abs(gamma) * (abs(centred) + own) / least + abs(beta))
    return value.reshape(shape), wrong.reshape(shape)


def _softmax(x: Array, error: Array, u: float) -> tuple[Array, Array]:
    """A result changes by the factor exp(d), d at most twice the largest change of a number in its row."""
    value = layers.softmax(x).astype(np.float64)
    moved = 2 * error.max(axis=-1, keepdims=True) + 2 * u * (abs(x).max(axis=-1, keepdims=True) + error)
    relative = np.expm1(np.minimum(moved, 1.0)) + _ROUNDINGS * u + (x.shape[-1] + 2) * 2.0**-53
    tiny = float(np.finfo(np.float32 if u > 1e-10 else np.float64).tiny)
    return value, np.where(moved > 1, 1.0, np.minimum(1.0, value * relative + tiny))


def _attended(layer: nn.MultiheadAttention, x: Any, error: Any, dtype: Any) -> tuple[Array, Array]:
    """Each query by itself, with the keys that it sees."""
    u, length = float(np.finfo(dtype).eps) / 2, layer.embed_dim // layer.num_heads
    source, memory = _sources(x, error, 2)
    ends = [
        _product(layer.query, *source, dtype),
        *(_product(part, *memory, dtype) for part in (layer.key, layer.value)),
    ]
    x, keys_after = source[0], memory[0].shape[1] - source[0].shape[1]
    (q, q_error), (k, k_error), (v, v_error) = (
        [a.reshape(*a.shape[:2], layer.num_heads, length).swapaxes(1, 2) for a in pair] for pair in ends
    )
    y, wrong = np.empty(q.shape), np.empty(q.shape)
    for i in range(x.shape[1]):
        seen = slice(0, max(0, i + keys_after) + 1 if layer.causal else memory[0].shape[1])
        one = slice(i, i + 1)
        keys, far = k[:, :, seen].swapaxes(-1, -2), k_error[:, :, seen].swapaxes(-1, -2)
        scores, total = q[:, :, one] @ keys, (abs(q) + q_error)[:, :, one] @ (abs(keys) + far)
        moved = total - abs(q[:, :, one]) @ abs(keys) + ref.bound(length + 3, total, dtype)
        p, p_error = _softmax(scores * length**-0.5, moved * length**-0.5, u)
        y[:, :, one] = p @ v[:, :, seen]
        total = (p + p_error) @ (abs(v) + v_error)[:, :, seen]
        wrong[:, :, one] = total - p @ abs(v[:, :, seen]) + ref.bound(p.shape[-1] + 2, total, dtype)
    joined = (a.swapaxes(1, 2).reshape(x.shape) for a in (y, wrong))
    return _product(layer.output, *joined, dtype)


def _averaged(layer: Any, x: Array, error: Array, u: float) -> tuple[Array, Array]:
    if isinstance(layer, nn.AvgPool2d):
        window = (layer.kernel_size, layer.stride, layer.padding)
        count = layer.kernel_size[0] * layer.kernel_size[1]
        means = [layers.avg_pool(v, *window) for v in (x, error, abs(x) + error)]
    else:
        count = x.shape[2] * x.shape[3]
        means = [_adaptive(v, layer.output_size) for v in (x, error, abs(x) + error)]
    return means[0], means[1] + (count + 2) * u * 1.01 * means[2]


def _adaptive(x: Array, output: tuple[int, int]) -> Array:
    y = np.empty((*x.shape[:2], *output))
    for i, j in np.ndindex(*output):
        rows, columns = (slice(o * n // m, -(-(o + 1) * n // m)) for o, n, m in zip((i, j), x.shape[2:], output))
        y[:, :, i, j] = x[:, :, rows, columns].mean(axis=(2, 3))
    return y
