"""The demo's network, sparse or dense."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import nn, sparsity
from fastsparse.demo.results import LayerRow

SPARSITY, CLASSES = 0.9, 10
# Initial values of the output layer are scaled by this: the first loss is that of a guess, and training is calmer.
OUTPUT_SCALE = 0.1
# The layer whose pattern the report shows.
SHOWN = "conv2"


# Shapes of the weights, (out, in, ...). 8 x 8 pixels, halved by two poolings: 2 x 2 positions of 128 channels reach the
# linear layers.
_SHAPES = {
    "conv1": (64, 1, 3, 3),
    "conv2": (128, 64, 3, 3),
    "conv3": (128, 128, 3, 3),
    "linear1": (128, 128 * 2 * 2),
    "linear2": (CLASSES, 128),
}


def build(sparse: bool, seed: int, dtype: str = "float32") -> nn.Sequential:
    """A fresh network; its sparse form keeps 10% of all weights, shared out by Erdős–Rényi-Kernel (ERK).

    U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, "Rigging the Lottery", ICML 2020, section 3.
    """
    rng = np.random.default_rng(seed)
    densities = dict(zip(_SHAPES, sparsity.erdos_renyi(list(_SHAPES.values()), SPARSITY, kernel=True)))

    def conv(name: str) -> nn.Module:
        out, channels, kernel, _ = _SHAPES[name]
        options: dict[str, Any] = {"padding": kernel // 2, "bias": False, "dtype": dtype, "rng": rng}
        if not sparse:
            return nn.Conv2d(channels, out, kernel, **options)
        return nn.SparseConv2d(channels, out, kernel, sparsity=1 - densities[name], **options)

    def linear(name: str, activation: str | None = None) -> nn.Linear | nn.SparseLinear:
        out, features = _SHAPES[name]
        if not sparse:
            return nn.Linear(features, out, activation=activation, dtype=dtype, rng=rng)
        return nn.SparseLinear(features, out, sparsity=1 - densities[name], activation=activation, dtype=dtype, rng=rng)

    output = linear("linear2")
    values = output.values if isinstance(output, nn.SparseLinear) else output.weight
    values.value = values.value * values.dtype.type(OUTPUT_SCALE)
    return nn.Sequential(
        *[conv("conv1"), nn.BatchNorm2d(64, dtype=dtype), nn.ReLU()],
        *[conv("conv2"), nn.BatchNorm2d(128, dtype=dtype), nn.ReLU(), nn.MaxPool2d(2)],
        *[conv("conv3"), nn.BatchNorm2d(128, dtype=dtype), nn.ReLU(), nn.MaxPool2d(2)],
        *[nn.Flatten(), linear("linear1", "relu"), output],
    )


def in_float64(model: nn.Sequential) -> nn.Sequential:
    """A sparse network of the same numbers, which computes in float64."""
    state = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in model.state_dict().items()}
    wide = build(True, 0, "float64")
    wide.load_state_dict(state)
    return wide.eval()


def layer_rows(model: nn.Sequential) -> list[LayerRow]:
    """How many weights each layer of a sparse network keeps."""
    return [LayerRow(name, _SHAPES[name], layer.pattern.nnz) for name, layer in _sparse_layers(model).items()]


def _sparse_layers(model: nn.Sequential) -> dict[str, nn.SparseConv2d | nn.SparseLinear]:
    return dict(zip(_SHAPES, (layer for layer in model if isinstance(layer, nn.SparseConv2d | nn.SparseLinear))))


def shown_pattern(model: nn.Sequential) -> NDArray[np.bool_]:
    """Where the layer named `SHOWN` keeps its weights, as (out, in * kernel * kernel)."""
    return _sparse_layers(model)[SHOWN].weight.toarray() != 0
