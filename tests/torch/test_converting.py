"""Models between torch and fs.nn, and torch modules compiled by the engine."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

import fastsparse as fs
import fastsparse.torch as fst


def assert_same(ours: fs.nn.Module, theirs: nn.Module, x: np.ndarray) -> None:
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    assert np.abs(ours(x) - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def torch_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding="same", bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Sequential(fst.SparseConv2d(8, 8, (3, 2), (1, 2), padding=1, groups=2, sparsity=0.5), nn.GELU("tanh")),
        nn.AvgPool2d(2, padding=1), nn.Hardswish(), nn.Dropout(0.3), nn.Identity(), nn.AdaptiveAvgPool2d((2, 2)),
        nn.Flatten(), nn.LayerNorm(32), nn.SiLU(), fst.SparseLinear(32, 16), nn.BatchNorm1d(16), nn.Tanh(),
        nn.Linear(16, 5), nn.LeakyReLU(), nn.Softmax(-1),
    ).eval()  # fmt: skip


def test_torch_modules_become_models_and_come_back(rng):
    module = torch_network()
    for layer in module:
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    x = rng.standard_normal((3, 2, 12, 10), np.float32)
    model = fst.from_torch(module)
    assert isinstance(model, fs.nn.Sequential)
    assert not model.training
    assert_same(model, module, x)
    assert_same(model, fst.to_torch(model), x)
    module[-3].weight.data.zero_()
    assert np.ptp(model(x)) > 0, "weights are copies"


def test_models_become_torch_modules(rng):
    body = fs.nn.Sequential(fs.nn.SparseConv2d(4, 4, 3, padding=1, activation="relu6", sparsity=0.5, rng=0))
    model = fs.nn.Sequential(
        fs.nn.Conv2d(2, 4, 3, stride=2, padding=((0, 1), (2, 0)), activation="leaky_relu", rng=1),
        fs.nn.Residual(body, activation="relu"),
        fs.nn.Residual(body=fs.nn.SparseConv2d(4, 4, 1, sparsity=0.5, rng=2), shortcut=fs.nn.BatchNorm2d(4)),
        fs.nn.Flatten(),
        fs.nn.Linear(120, 6, activation="gelu_tanh", rng=3),
        fs.nn.SparseLinear(6, 3, bias=False, activation="sigmoid", sparsity=0.5, rng=4),
    )
    model.eval()
    x = rng.standard_normal((3, 2, 12, 10), np.float32)
    module = fst.to_torch(model)
    assert not module.training
    assert_same(model, module, x)
    tokens = fs.nn.Sequential(fs.nn.Embedding(10, 4, rng=0), fs.nn.LayerNorm(4), fs.nn.Softmax(1))
    assert_same(fst.from_torch(fst.to_torch(tokens)), fst.to_torch(tokens), rng.integers(0, 10, (2, 3)))


@pytest.mark.parametrize("axes", [1, 3])
def test_dense_convolutions_of_other_axes_become_sparse_ones(axes, rng):
    kind = {1: nn.Conv1d, 3: nn.Conv3d}[axes]
    module = nn.Sequential(kind(2, 3, 3, padding=1))
    x = rng.standard_normal((2, 2, 6, 5, 4)[: axes + 2], np.float32)
    model = fst.from_torch(module)
    assert_same(model, module, x)
    assert_same(model, fst.to_torch(model), x)


@pytest.mark.parametrize(("module", "text"), [
    (nn.Sequential(nn.ReLU(), nn.Sequential(nn.PReLU())), "1.0 is PReLU, which fastsparse.nn does not have"),
    (nn.LeakyReLU(0.2), "LeakyReLU: negative_slope is 0.2, expected 0.01"),
    (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), "0: "),
    (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "padding_mode is 'reflect', expected 'zeros'"),
])  # fmt: skip
def test_what_has_no_counterpart_is_named(module, text):
    with pytest.raises(TypeError, match=text):
        fst.from_torch(module)


def test_to_torch_refuses_what_is_no_model():
    with pytest.raises(TypeError, match=r"model is int, expected a model of fastsparse\.nn"):
        fst.to_torch(3)


def test_modules_are_compiled_by_the_engine():
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    module = nn.Sequential(nn.Linear(8, 16), layer, nn.Flatten(), nn.Linear(80, 3)).eval()
    fst.sparsify(module, 0.8, measure=False)
    x = torch.randn(2, 5, 8)
    engine = fst.compile(module, x)
    assert isinstance(module[0], fst.SparseLinear), "the module itself is not changed"
    for batch in (x, torch.randn(7, 5, 8)):
        expected = module(batch).detach().numpy()
        assert np.abs(engine(batch.numpy()) - expected).max() <= 1e-5 * np.abs(expected).max()
