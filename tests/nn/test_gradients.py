"""Every layer's backward against finite differences in float64 (contract R6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

import fastsparse as fs
from fastsparse import nn
from fastsparse.nn.spec import LAYERS

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A layer, the shape of its input, and whether the input is integers."""

    name: str
    make: Callable[[np.random.Generator], nn.Module]
    shape: tuple[int, ...]
    integers: int = 0


def _activated(name: str) -> Case:
    return Case(
        f"SparseLinear {name}",
        lambda rng: nn.SparseLinear(7, 5, sparsity=0.5, activation=name, dtype="float64", rng=rng),
        (4, 7),
    )


F64: dict[str, Any] = {"dtype": "float64"}
CASES = [
    Case("SparseLinear", lambda rng: nn.SparseLinear(9, 6, sparsity=0.6, **F64, rng=rng), (5, 9)),
    Case("SparseLinear 3-d", lambda rng: nn.SparseLinear(9, 6, False, sparsity=0.6, **F64, rng=rng), (2, 3, 9)),
    *[_activated(name) for name in fs.functional.ACTIVATIONS if name],
    Case("SparseConv1d", lambda rng: nn.SparseConv1d(4, 6, 3, 2, 1, sparsity=0.5, **F64, rng=rng), (2, 4, 9)),
    Case("SparseConv2d", lambda rng: nn.SparseConv2d(3, 4, 3, padding=1, sparsity=0.5, **F64, rng=rng), (2, 3, 5, 4)),
    Case(
        "SparseConv2d geometry",
        lambda rng: nn.SparseConv2d(
            4, 6, (3, 2), (2, 1), ((1, 0), (0, 2)), (1, 2), 2, False, sparsity=0.4, activation="silu", **F64, rng=rng
        ),
        (2, 4, 6, 5),
    ),
    Case(
        "SparseConv2d depthwise",
        lambda rng: nn.SparseConv2d(4, 4, 3, padding=1, groups=4, sparsity=0.3, activation="tanh", **F64, rng=rng),
        (2, 4, 4, 5),
    ),
    Case("SparseConv3d", lambda rng: nn.SparseConv3d(2, 3, 2, sparsity=0.5, **F64, rng=rng), (2, 2, 3, 4, 3)),
    Case(
        "SparseConvTranspose2d",
        lambda rng: nn.SparseConvTranspose2d(3, 4, 3, 2, 1, 1, sparsity=0.5, **F64, rng=rng),
        (2, 3, 3, 4),
    ),
    Case(
        "SparseConvTranspose2d geometry",
        lambda rng: nn.SparseConvTranspose2d(
            4,
            6,
            (3, 2),
            (1, 3),
            ((1, 0), (0, 1)),
            (0, 2),
            2,
            False,
            (2, 1),
            sparsity=0.3,
            activation="tanh",
            **F64,
            rng=rng,
        ),
        (2, 4, 3, 3),
    ),
    Case("Upsample", lambda rng: nn.Upsample((2, 3)), (2, 2, 3, 2)),
    Case("Upsample bilinear", lambda rng: nn.Upsample((3, 2), "bilinear"), (2, 2, 3, 2)),
    Case(
        "Concat",
        lambda rng: nn.Concat(nn.SparseLinear(4, 3, sparsity=0.4, **F64, rng=rng), None, nn.Tanh()),
        (3, 4),
    ),
    Case("Concat of images", lambda rng: nn.Concat(None, nn.SparseConv2d(2, 3, 1, **F64, rng=rng)), (2, 2, 3, 2)),
    Case("Linear", lambda rng: nn.Linear(6, 4, **F64, rng=rng), (3, 6)),
    Case("Linear 3-d", lambda rng: nn.Linear(6, 4, False, activation="gelu", **F64, rng=rng), (2, 3, 6)),
    Case("Conv2d", lambda rng: nn.Conv2d(3, 4, 3, padding=1, **F64, rng=rng), (2, 3, 4, 5)),
    Case("Conv2d of many samples", lambda rng: nn.Conv2d(2, 4, 2, 1, 1, 1, 2, **F64, rng=rng), (17, 2, 3, 2)),
    Case(
        "Conv2d geometry",
        lambda rng: nn.Conv2d(4, 6, (3, 2), (2, 1), ((1, 0), (0, 2)), (1, 2), 2, activation="tanh", **F64, rng=rng),
        (3, 4, 6, 5),
    ),
    Case("Embedding", lambda rng: nn.Embedding(6, 3, **F64, rng=rng), (4, 2), integers=6),
    Case("BatchNorm1d", lambda rng: nn.BatchNorm1d(3, **F64), (6, 3)),
    Case("BatchNorm1d 3-d", lambda rng: nn.BatchNorm1d(3, **F64), (4, 3, 5)),
    Case("BatchNorm2d", lambda rng: nn.BatchNorm2d(3, **F64), (3, 3, 2, 4)),
    Case("LayerNorm", lambda rng: nn.LayerNorm(6, **F64), (4, 6)),
    Case("LayerNorm 2 axes", lambda rng: nn.LayerNorm((3, 4), **F64), (2, 5, 3, 4)),
    Case("RMSNorm", lambda rng: nn.RMSNorm(6, **F64), (4, 6)),
    Case("RMSNorm 2 axes", lambda rng: nn.RMSNorm((3, 2), **F64), (2, 3, 2)),
    Case("MultiheadAttention", lambda rng: nn.MultiheadAttention(6, 2, sparsity=0.3, **F64, rng=rng), (2, 3, 6)),
    Case(
        "MultiheadAttention causal",
        lambda rng: nn.MultiheadAttention(4, 2, False, causal=True, sparsity=0.3, **F64, rng=rng),
        (2, 4, 4),
    ),
    Case(
        "TransformerEncoderLayer norms last",
        lambda rng: nn.Sequential(
            nn.LayerNorm(4, **F64), nn.TransformerEncoderLayer(4, 2, 5, 0.0, "tanh", sparsity=0.3, **F64, rng=rng)
        ),
        (2, 3, 4),
    ),
    Case(
        "TransformerEncoderLayer norms first",
        lambda rng: nn.TransformerEncoderLayer(
            4, 1, 5, 0.0, "silu", norm_first=True, causal=True, sparsity=0.3, **F64, rng=rng
        ),
        (2, 3, 4),
    ),
    Case("Embedding with positions", lambda rng: nn.Embedding(5, 3, positions=4, **F64, rng=rng), (3, 2), 5),
    Case("Embedding with sparse gradients", lambda rng: nn.Embedding(9, 3, sparse=True, **F64, rng=rng), (2, 4), 9),
    Case("MaxPool2d", lambda rng: nn.MaxPool2d(2), (2, 3, 4, 6)),
    Case("MaxPool2d overlapping", lambda rng: nn.MaxPool2d((3, 2), (2, 1), ((1, 1), (0, 1))), (2, 2, 6, 5)),
    Case("AvgPool2d", lambda rng: nn.AvgPool2d((3, 2), (2, 1), 1), (2, 2, 6, 5)),
    Case("AdaptiveAvgPool2d", lambda rng: nn.AdaptiveAvgPool2d((3, 2)), (2, 2, 5, 6)),
    Case("Flatten", lambda rng: nn.Flatten(), (2, 3, 2)),
    Case("Dropout", lambda rng: nn.Dropout(0.4, rng=3), (4, 5)),
    Case("Softmax", lambda rng: nn.Softmax(), (3, 5)),
    *[
        Case(f"{layer.__name__}", lambda rng, layer=layer: layer(), (3, 7))
        for layer in (
            nn.ReLU,
            nn.ReLU6,
            nn.LeakyReLU,
            nn.Sigmoid,
            nn.Tanh,
            nn.SiLU,
            nn.Hardswish,
            nn.Hardsigmoid,
            nn.GELU,
        )
    ],
    Case("GELU tanh", lambda rng: nn.GELU("tanh"), (3, 7)),
    Case("Residual", lambda rng: nn.Residual(nn.Linear(4, 4, **F64, rng=rng), activation="relu"), (3, 4)),
    Case(
        "Residual shortcut",
        lambda rng: nn.Residual(
            nn.SparseLinear(4, 5, sparsity=0.3, **F64, rng=rng), nn.Linear(4, 5, **F64, rng=rng), "silu"
        ),
        (3, 4),
    ),
    Case(
        "Sequential",
        lambda rng: nn.Sequential(
            nn.SparseConv2d(2, 4, 3, padding=1, bias=False, sparsity=0.4, **F64, rng=rng),
            nn.BatchNorm2d(4, **F64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.SparseLinear(16, 5, sparsity=0.4, **F64, rng=rng),
        ),
        (4, 2, 4, 4),
    ),
]


@pytest.mark.R6
def test_every_layer_has_a_case() -> None:
    assert {type(case.make(np.random.default_rng(0))).__name__ for case in CASES} == set(LAYERS)


def _slopes(loss: Callable[[], float], array: Array, changed: Callable[[], None]) -> Array:
    """Derivative of `loss` by every element of `array`: five points, error of order h^4."""
    h = 1e-3
    slopes = np.zeros(array.shape)
    for i in np.ndindex(array.shape):
        kept, values = array[i], []
        for step in (-2, -1, 1, 2):
            array[i] = kept + step * h
            changed()
            values.append(loss())
        array[i] = kept
        changed()
        slopes[i] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
    return slopes


@pytest.mark.R6
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_backward_is_the_derivative(case: Case, rng: np.random.Generator) -> None:
    layer = case.make(rng).train()
    x: Array
    if case.integers:
        x = rng.integers(0, case.integers, case.shape)
    else:  # distinct values from -4.8 to 7, away from the kinks at -3, 0, 3 and 6
        size = int(np.prod(case.shape))
        x = (rng.permutation(size).reshape(case.shape) - 0.4 * size) * (12 / size) + 0.031
    for parameter in layer.parameters():
        parameter.value += 0.1 * rng.normal(size=parameter.value.shape)
    generators = [m for _, m in layer.named_modules() if isinstance(m, nn.Dropout)]
    seeds = [m.rng.bit_generator.state for m in generators]

    def forward() -> Array:
        for module, seed in zip(generators, seeds, strict=True):
            module.rng.bit_generator.state = seed
        return layer(x)

    weights = rng.normal(size=forward().shape)
    layer.zero_grad()
    layer.train(layer.training)  # forgets the forward call above
    forward()
    grad_x = layer.backward(weights)

    def loss() -> float:
        return float(np.sum(forward() * weights))

    scale = 1 + abs(loss())
    if case.integers:
        assert grad_x is None
    else:
        assert grad_x is not None
        np.testing.assert_allclose(grad_x, _slopes(loss, x, lambda: None), rtol=1e-7, atol=1e-9 * scale)
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.shape == parameter.value.shape
        want = _slopes(loss, parameter.value, parameter.updated)
        np.testing.assert_allclose(parameter.grad, want, rtol=1e-7, atol=1e-9 * scale, err_msg=name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_gradient_at_the_input_can_be_left_out(case: Case, rng: np.random.Generator) -> None:
    layer = case.make(rng).train()
    x = rng.integers(0, case.integers, case.shape) if case.integers else rng.normal(size=case.shape)
    y = layer(x)
    layer.backward(np.ones_like(y))
    wanted = {name: parameter.grad for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    for _, module in layer.named_modules():
        if isinstance(module, nn.Dropout):
            module.rng = np.random.default_rng(3)
    layer(x)
    layer.backward(np.ones_like(y), need_input=False)
    for name, parameter in layer.named_parameters():
        np.testing.assert_array_equal(parameter.grad, wanted[name])


@pytest.mark.parametrize("layer_type", [nn.SparseLinear, nn.Linear])
def test_sparse_input_gives_the_gradients_of_dense_input(layer_type: Any, rng: np.random.Generator) -> None:
    layer = layer_type(30, 8, **F64, rng=rng)
    x = rng.normal(size=(12, 30)) * (rng.random((12, 30)) < 0.3)
    dy = rng.normal(size=(12, 8))
    grads = []
    for given in (x, sparse.csr_array(x), sparse.coo_matrix(x)):
        layer.zero_grad()
        y = layer(given)
        grad_x = layer.backward(dy)
        grads.append((y, *(p.grad for p in layer.parameters())))
        assert (grad_x is None) == sparse.issparse(given)
    for other in grads[1:]:
        for got, want in zip(other, grads[0], strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_gradients_add_up_until_they_are_forgotten(rng: np.random.Generator) -> None:
    layer = nn.SparseLinear(6, 4, sparsity=0.5, rng=rng)
    x, dy = rng.normal(size=(3, 6)).astype("f"), rng.normal(size=(3, 4)).astype("f")
    layer(x)
    layer.backward(dy)
    once = layer.values.grad.copy()
    layer(x)
    layer.backward(dy)
    np.testing.assert_array_equal(layer.values.grad, 2 * once)
    layer.zero_grad()
    assert layer.values.grad is None


def test_frozen_batch_norm_passes_scaled_gradients(rng: np.random.Generator) -> None:
    layer = nn.BatchNorm2d(3, dtype="float64")
    layer.running_mean, layer.running_var = rng.normal(size=3), rng.random(3) + 0.5
    layer.weight.value = rng.normal(size=3)
    layer.eval()
    x, dy = rng.normal(size=(2, 3, 2, 2)), rng.normal(size=(2, 3, 2, 2))
    slopes = _slopes(lambda: float(np.sum(layer(x) * dy)), x, lambda: None)
    np.testing.assert_allclose(layer.backward(dy), slopes, rtol=1e-9, atol=1e-10)
    assert layer.weight.grad is None


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.SparseLinear(4, 3, rng=0), (0, 5, 4)),
        (nn.SparseConv2d(2, 3, 3, rng=0), (0, 2, 4, 4)),
        (nn.SparseConvTranspose2d(2, 3, 2, rng=0), (0, 2, 4, 4)),
        (nn.MultiheadAttention(8, 2, rng=0), (0, 4, 8)),
        (nn.TransformerEncoderLayer(8, 2, 16, rng=0), (0, 4, 8)),
        (nn.LayerNorm(4), (0, 4)),
        (nn.Softmax(), (0, 4)),
        (nn.MaxPool2d(2), (0, 2, 4, 4)),
        (nn.Upsample(2, "bilinear"), (0, 2, 4, 4)),
    ],
)
def test_a_batch_of_no_samples(layer, shape):
    x = np.zeros(shape, np.float32)
    assert len(layer.eval()(x)) == 0
    y = layer.train()(x)
    assert layer.backward(np.zeros_like(y)).shape == shape
