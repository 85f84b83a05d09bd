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


def decoder() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(
        nn.ConvTranspose2d(4, 6, (3, 2), (2, 1), padding=1, output_padding=(1, 0), groups=2), nn.GELU(),
        nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=(1, 3), mode="bilinear"),
        nn.ConvTranspose2d(6, 2, 3, bias=False, dilation=2), nn.RMSNorm(28), nn.RMSNorm(28, 1e-3),
    ), (3, 4, 5, 5)  # fmt: skip


def encoder(**options) -> tuple[nn.Module, tuple[int, ...]]:
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, **options)
    return nn.Sequential(nn.Linear(8, 12), layer), (3, 5, 8)


def sparse_encoder() -> tuple[nn.Module, tuple[int, ...]]:
    module, shape = encoder(activation="gelu")
    fst.sparsify(module, 0.6, measure=False)
    return module, shape


@pytest.mark.parametrize("make", [
    decoder, encoder, lambda: encoder(norm_first=True, bias=False, activation=nn.SiLU()), sparse_encoder,
])  # fmt: skip
def test_decoders_and_encoders_become_models_and_come_back(make, rng):
    torch.manual_seed(0)
    module, shape = make()
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    module.eval()
    x = rng.standard_normal(shape, np.float32)
    model = fst.from_torch(module)
    assert_same(model, module, x)
    back = fst.to_torch(model)
    assert_same(model, back, x)
    again = fst.from_torch(back)
    np.testing.assert_array_equal(again(x), model(x))
    assert sum(p.value.size for p in again.parameters()) == sum(p.value.size for p in model.parameters())
    np.testing.assert_allclose(fs.compile(again, shape, tune=False)(x), model(x), rtol=1e-4, atol=1e-5)


def test_padding_of_encoders():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=True)
    module = nn.TransformerEncoder(layer, 2, nn.LayerNorm(12), enable_nested_tensor=False).eval()
    x, padding = torch.randn(2, 5, 12), torch.arange(5) >= torch.tensor([[5], [2]])
    with torch.no_grad():
        want = module(x, src_key_padding_mask=padding).numpy()
    found = fst.from_torch(module)((x.numpy(), padding.numpy()))
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_attention_and_positions(sparsity, rng):
    dense = {name: fs.nn.Linear(12, 12, rng=i) for i, name in enumerate(("query", "key", "value", "output"))}
    attention = fs.nn.MultiheadAttention(12, 2, causal=True, sparsity=sparsity, rng=0, **({} if sparsity else dense))
    x, memory = rng.standard_normal((3, 5, 12), np.float32), rng.standard_normal((3, 8, 12), np.float32)
    hidden = np.arange(8) >= np.array([8, 6, 5])[:, None]
    module = fst.to_torch(attention.eval())
    with torch.no_grad():
        found = module(*map(torch.from_numpy, (x, memory, hidden))).numpy()
    np.testing.assert_allclose(found, attention((x, memory, hidden)), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(fst.from_torch(module)((x, memory)), attention((x, memory)))
    assert type(fst.from_torch(module).query) is type(attention.query)
    theirs = nn.MultiheadAttention(12, 2, batch_first=True)
    with torch.no_grad():
        want, _ = theirs(*map(torch.from_numpy, (x, memory, memory)))
    np.testing.assert_allclose(fst.from_torch(theirs.eval())((x, memory)), want, rtol=1e-5, atol=1e-5)
    tokens = rng.integers(0, 10, (2, 3))
    for positions in (0, 4):
        embedding = fs.nn.Embedding(10, 4, positions=positions, sparse=True, rng=0)
        back = fst.to_torch(embedding)
        assert_same(embedding, back, tokens)
        again = fst.from_torch(back)
        assert again.sparse
        np.testing.assert_array_equal(again(tokens), embedding(tokens))


@pytest.mark.parametrize(("module", "text"), [
    (nn.MultiheadAttention(4, 2), "MultiheadAttention: batch_first is False, expected True"),
    (nn.MultiheadAttention(4, 2, batch_first=True, kdim=3), "keys or values have a size of their own"),
    (nn.Upsample(size=(3, 3)), "Upsample: .*size"),
    (nn.Upsample(scale_factor=1.5), "scale_factor is 1.5, expected whole numbers"),
    (nn.Upsample(scale_factor=2, mode="bicubic"), "mode is 'bicubic'"),
    (nn.Embedding(3, 2, max_norm=1.0), "max_norm is 1.0, expected None"),
    (
        nn.TransformerEncoderLayer(4, 2, 8, activation=torch.tanh, batch_first=True),
        "expected relu, gelu or a module",
    ),
    (nn.Sequential(nn.ReLU(), nn.Sequential(nn.PReLU())), r"^1\.0 is a PReLU, which fastsparse\.nn does not have"),
    (nn.PReLU(), "^module is a PReLU, which fastsparse.nn does not have .fastsparse.torch.compile takes any.$"),
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


class _Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def test_what_the_exporter_leaves_out_is_noticed():
    pytest.importorskip("onnxscript")
    x = torch.randn(2, 4, 6, 6)
    with pytest.raises(
        RuntimeError, match=r"ONNX exporter wrote gives numbers that are off by .* arguments of some op"
    ):
        fst.compile(nn.AvgPool2d(2, divisor_override=3), x, tune=False)
    y = fst.compile(_Noisy(), x, tune=False)(x.numpy())  # never the same twice, and so not compared
    assert np.isfinite(y).all()
