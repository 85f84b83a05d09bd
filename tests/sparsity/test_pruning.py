"""Magnitude pruning: exactly the smallest go, for good."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import nn
from fastsparse.sparsity import magnitude_prune, snip_prune
from fastsparse.training import SGD


def _model() -> nn.Sequential:
    return nn.Sequential(
        nn.SparseLinear(20, 30, sparsity=0.0, rng=0),
        nn.ReLU(),
        nn.SparseLinear(30, 10, sparsity=0.0, rng=1),
        nn.Linear(10, 4, rng=2),
    )


def _matrices(model: nn.Sequential) -> list[Any]:
    return [model[0].weight.toarray(), model[2].weight.toarray()]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.987])
def test_each_layer_keeps_its_largest(sparsity: float) -> None:
    model = _model()
    before = _matrices(model)
    magnitude_prune(model, sparsity)
    for old, new, layer in zip(before, _matrices(model), (model[0], model[2]), strict=True):
        count = math.floor(old.size * (1 - sparsity) + 0.5)
        assert layer.weight.nnz == count
        np.testing.assert_array_equal(np.sort(abs(new[new != 0])), np.sort(abs(old).ravel())[old.size - count :])
        np.testing.assert_array_equal(new[new != 0], old[new != 0])


def test_global_scope_compares_all_layers() -> None:
    model = _model()
    model[0].values.value *= 10
    before = np.concatenate([matrix.ravel() for matrix in _matrices(model)])
    magnitude_prune(model, 0.5, scope="global")
    after = np.concatenate([matrix.ravel() for matrix in _matrices(model)])
    count = math.floor(before.size * 0.5 + 0.5)
    assert np.count_nonzero(after) == count
    assert model[0].weight.density > 0.6 > 0.4 > model[2].weight.density
    np.testing.assert_array_equal(np.sort(abs(after[after != 0])), np.sort(abs(before))[before.size - count :])


def test_what_is_excluded_or_sparser_already_stays() -> None:
    model = _model()
    patterns = model[0].pattern, model[2].pattern
    magnitude_prune(model, 0.5, exclude=["0"])
    assert model[0].pattern is patterns[0]
    assert model[2].pattern.nnz == 150
    magnitude_prune(model, 0.25, exclude=("0.values",))
    assert model[2].pattern.nnz == 150


def test_of_equals_the_first_stay() -> None:
    layer = nn.SparseLinear.from_dense(np.array([[1.0, -1.0, 2.0, 1.0]]))
    magnitude_prune(layer, 0.5)
    np.testing.assert_array_equal(layer.weight.toarray(), [[1.0, 0.0, 2.0, 0.0]])


def test_pruned_weights_do_not_come_back_by_momentum(rng: Any) -> None:
    model = nn.Sequential(nn.SparseLinear(20, 30, sparsity=0.0, rng=0))
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    x = rng.normal(size=(8, 20)).astype("f")

    def step() -> None:
        optimizer.zero_grad()
        model.backward(model(x))
        optimizer.step()

    step()
    magnitude_prune(model, 0.9)
    pattern, velocity = model[0].pattern, model[0].values.state["velocity"]
    assert velocity.shape == (60,)
    assert velocity.any()
    for _ in range(3):
        step()
    assert model[0].pattern is pattern
    assert np.count_nonzero(model[0].weight.toarray()) <= 60


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_snip_keeps_the_most_sensitive(scope: str, rng: Any) -> None:
    """Sensitivity is what the loss loses, to first order, with a weight: checked by taking each one away."""
    model = _model()
    x = rng.normal(size=(16, 20)).astype("f")
    with pytest.raises(ValueError, match=r"^0.values has no gradient, expected that of a backward pass over a batch$"):
        snip_prune(model, 0.9, scope=scope)
    for part in (x[:8], x[8:]):  # gradients are gathered over batches
        model.backward(np.ones_like(model(part)), need_input=False)
    effect = [abs(layer.values.value * layer.values.grad) for layer in (model[0], model[2])]
    i = int(effect[0].argmax())
    before = model(x).sum(dtype="f8")
    weight, model[0].values.value[i] = model[0].values.value[i], 0.99 * model[0].values.value[i]
    model[0].values.updated()
    assert abs(abs(model(x).sum(dtype="f8") - before) / 0.01 / effect[0][i] - 1) < 0.3
    model[0].values.value[i] = weight
    model[0].values.updated()
    old = _matrices(model)
    snip_prune(model, 0.9, scope=scope)
    kept = [m[m != 0] for m in _matrices(model)]
    assert sum(map(len, kept)) == 90
    chosen = [np.isin(m.ravel(), k) for m, k in zip(old, kept)]
    if scope == "layer":
        assert [c.sum() for c in chosen] == [60, 30]
        groups = list(zip(effect, chosen))
    else:
        groups = [(np.concatenate(effect), np.concatenate(chosen))]
    for scores, choice in groups:
        assert scores[choice].min() >= scores[~choice].max()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sparsity": 1.0}, "sparsity is 1.0, expected a number in [0, 1)"),
    ({"sparsity": 0.5, "scope": "model"}, "scope is 'model', expected 'layer' or 'global'"),
    ({"sparsity": 0.5, "exclude": ["7"]}, "exclude names '7', expected layers or parameters of the model"),
    (
        {"sparsity": 0.5, "exclude": ["0", "2"]},
        "exclude covers every sparse layer of the model, expected at least one to change",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_arguments_change_nothing(arguments: dict[str, Any], message: str) -> None:
    model = _model()
    before = model.state_dict()
    with pytest.raises(ValueError, match=r"expected") as caught:
        magnitude_prune(model, **arguments)
    assert str(caught.value) == message
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_nan_and_models_without_sparse_layers_are_refused() -> None:
    model = _model()
    model[2].values.value[3] = np.nan
    with pytest.raises(ValueError, match=r"^2\.values holds NaN, expected numbers$"):
        magnitude_prune(model, 0.5)
    assert model[0].weight.density == 1
    with pytest.raises(ValueError, match=r"^model has no sparse layer"):
        magnitude_prune(nn.Sequential(nn.Linear(3, 3)), 0.5)


def test_a_pruned_model_computes_with_what_is_left(rng: Any) -> None:
    model = _model().eval()
    x = rng.normal(size=(6, 20)).astype("f")
    magnitude_prune(model, 0.8)
    first, second = _matrices(model)
    hidden = np.maximum(x @ first.T + model[0].bias.value, 0)
    want = (hidden @ second.T + model[2].bias.value) @ model[3].weight.value.T + model[3].bias.value
    np.testing.assert_allclose(model(x), want, rtol=1e-4, atol=1e-4)
    assert isinstance(model[0].weight, fs.CSR)
