"""The demo's network, sparse or dense, and what of it the baselines need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fastsparse import nn, sparsity
from fastsparse.demo.baselines import Convolution, MaxPool, Product, Stage, fold_scale, with_relu
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


def build(sparse: bool, seed: int) -> nn.Sequential:
    """A fresh network; its sparse form keeps 10% of all weights, shared out by Erdős–Rényi-Kernel (ERK).

    U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, "Rigging the Lottery", ICML 2020, section 3.
    """
    rng = np.random.default_rng(seed)
    densities = dict(zip(_SHAPES, sparsity.erdos_renyi(list(_SHAPES.values()), SPARSITY, kernel=True)))

    def conv(name: str) -> nn.Module:
        out, channels, kernel, _ = _SHAPES[name]
        options: dict[str, Any] = {"padding": kernel // 2, "bias": False, "rng": rng}
        if not sparse:
            return nn.Conv2d(channels, out, kernel, **options)
        return nn.SparseConv2d(channels, out, kernel, sparsity=1 - densities[name], **options)

    def linear(name: str, activation: str | None = None) -> nn.Linear | nn.SparseLinear:
        out, features = _SHAPES[name]
        if not sparse:
            return nn.Linear(features, out, activation=activation, rng=rng)
        return nn.SparseLinear(features, out, sparsity=1 - densities[name], activation=activation, rng=rng)

    output = linear("linear2")
    values = output.values if isinstance(output, nn.SparseLinear) else output.weight
    values.value = values.value * np.float32(OUTPUT_SCALE)
    return nn.Sequential(
        *[conv("conv1"), nn.BatchNorm2d(64), nn.ReLU()],
        *[conv("conv2"), nn.BatchNorm2d(128), nn.ReLU(), nn.MaxPool2d(2)],
        *[conv("conv3"), nn.BatchNorm2d(128), nn.ReLU(), nn.MaxPool2d(2)],
        *[nn.Flatten(), linear("linear1", "relu"), output],
    )


def layer_rows(model: nn.Sequential) -> list[LayerRow]:
    """How many weights each layer of a sparse network keeps."""
    return [LayerRow(name, _SHAPES[name], layer.pattern.nnz) for name, layer in _sparse_layers(model).items()]


def _sparse_layers(model: nn.Sequential) -> dict[str, nn.SparseConv2d | nn.SparseLinear]:
    return dict(zip(_SHAPES, (layer for layer in model if isinstance(layer, nn.SparseConv2d | nn.SparseLinear))))


def shown_pattern(model: nn.Sequential) -> NDArray[np.bool_]:
    """Where the layer named `SHOWN` keeps its weights, as (out, in * kernel * kernel)."""
    return _sparse_layers(model)[SHOWN].weight.toarray() != 0


def stages_of(model: nn.Sequential) -> list[Stage]:
    """The trained sparse network as plain data in float64, batch norm folded into the layer before it.

    Raises
    ------
    TypeError
        When the network has a layer the baselines do not know.
    """
    stages: list[Stage] = []
    for layer in model:
        if isinstance(layer, nn.SparseConv2d):
            stages.append(_convolution(layer))
        elif isinstance(layer, nn.SparseLinear):
            product = Product(_weight(layer), _bias(layer))
            stages.append(replace(product, relu=layer.activation == "relu"))
        elif isinstance(layer, nn.BatchNorm2d):
            stages[-1] = _folded(stages[-1], layer)
        elif isinstance(layer, nn.ReLU):
            stages[-1] = with_relu(stages[-1])
        elif isinstance(layer, nn.MaxPool2d):
            stages.append(MaxPool(layer.kernel_size[0]))
        elif not isinstance(layer, nn.Flatten):
            raise TypeError(f"the network holds a {type(layer).__name__}, which the baselines do not know")
    return stages


def _convolution(layer: nn.SparseConv2d) -> Convolution:
    (before, _), _ = layer.padding
    return Convolution(_weight(layer), _bias(layer), layer.kernel_size[0], before)


def _weight(layer: nn.SparseConv2d | nn.SparseLinear) -> sp.csr_array:
    return sp.csr_array(layer.weight.to_scipy()).astype(np.float64)


def _bias(layer: nn.SparseConv2d | nn.SparseLinear) -> NDArray[np.floating]:
    return np.zeros(layer.values.shape[0]) if layer.bias is None else layer.bias.value.astype(np.float64)


def _folded(stage: Stage, norm: nn.BatchNorm2d) -> Stage:
    if isinstance(stage, MaxPool) or stage.relu:
        raise TypeError("batch norm can be folded into a convolution or a linear layer right before it only")
    scale = norm.weight.value / np.sqrt(norm.running_var.astype(np.float64) + norm.eps)
    return fold_scale(stage, scale, norm.bias.value - norm.running_mean * scale)
