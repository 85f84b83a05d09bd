"""The baselines compute what the layers compute, or a comparison with them would mean nothing."""

from __future__ import annotations

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import nn
from fastsparse.demo.baselines import Baseline


def _model(dtype: str = "float32") -> nn.Sequential:
    rng = np.random.default_rng(0)
    options = {"dtype": dtype, "rng": rng}
    model = nn.Sequential(
        nn.SparseConv2d(2, 5, 3, padding=1, bias=False, sparsity=0, **options),
        nn.BatchNorm2d(5, dtype=dtype), nn.ReLU(),
        nn.SparseConv2d(5, 7, 3, padding=1, sparsity=0.7, **options), nn.ReLU(), nn.MaxPool2d(2),
        nn.SparseConv2d(7, 6, 2, sparsity=0.6, **options), nn.Flatten(),
        nn.SparseLinear(54, 4, sparsity=0.8, activation="relu", **options), nn.Linear(4, 3, **options),
    )  # fmt: skip
    model(rng.standard_normal((9, 2, 8, 8)).astype(dtype))  # running statistics
    return model.eval()


def _program(model: nn.Sequential):
    return fs.compile(model, (1, 2, 8, 8), tune=False)._program


@pytest.mark.parametrize("backend", ["scipy", "numpy"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-12)])
def test_baseline_equals_layers(backend, batch, dtype, bound):
    model, x = _model(dtype), np.random.default_rng(batch).standard_normal((batch, 2, 8, 8)).astype(dtype)
    expected, baseline = model(x), Baseline(_program(model), batch, backend)
    for _ in range(2):  # the second call finds the buffers dirty
        got = baseline(x)
        assert got.dtype == dtype
        assert np.abs(got - expected).max() <= bound * np.abs(expected).max()


def test_output_does_not_alias_buffers():
    baseline, x = Baseline(_program(_model()), 2, "numpy"), np.ones((2, 2, 8, 8), np.float32)
    first = baseline(x)
    kept = first.copy()
    baseline(x + 1)
    np.testing.assert_array_equal(first, kept)


def test_products_multiply_every_matrix(monkeypatch):
    baseline, seen = Baseline(_program(_model()), 2, "numpy"), []
    monkeypatch.setattr(np, "matmul", lambda a, b, out: seen.append((a.shape, b.shape)))
    baseline.products()
    assert seen == [
        ((5, 18), (18, 128)), ((7, 45), (45, 128)), ((6, 28), (28, 18)), ((4, 54), (54, 2)), ((3, 4), (4, 2)),
    ]  # fmt: skip


def test_wrong_input_shape():
    with pytest.raises(ValueError, match=r"^x has shape \(1, 2, 8, 8\), expected \(2, 2, 8, 8\)$"):
        Baseline(_program(_model()), 2, "scipy")(np.zeros((1, 2, 8, 8), np.float32))


@pytest.mark.parametrize(
    "layer",
    [
        nn.AvgPool2d(2), nn.MaxPool2d(3), nn.MaxPool2d(2, stride=1), nn.MaxPool2d(3, stride=2, padding=1), nn.Sigmoid(),
        *(nn.SparseConv2d(2, 4, 3, rng=0, **other) for other in ({"stride": 2}, {"dilation": 2}, {"groups": 2})),
    ],
)  # fmt: skip
def test_other_networks_are_refused(layer):
    with pytest.raises(TypeError, match="which the baselines do not know"):
        Baseline(_program(nn.Sequential(layer)), 1, "numpy")
