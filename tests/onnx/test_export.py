"""`fs.to_onnx`: onnxruntime computes what the model and the engine compute."""

from __future__ import annotations

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import nn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from tests.engine.networks import NETWORKS, network  # noqa: E402
from tests.onnx.models import Builder  # noqa: E402


def by_onnxruntime(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, np.abs(expected).max(initial=0)), rtol=2e-5)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_engines(tmp_path, name, sparse):
    model, shape = network(name)
    engine = fs.compile(model, (2, *shape), tune=False)
    try:
        fs.to_onnx(engine, tmp_path / "m.onnx", sparse=sparse)
    except fs.UnsupportedOperatorError as error:
        assert "windows of different sizes" in str(error)  # noqa: PT017
        assert not (tmp_path / "m.onnx").exists()
        return
    x = np.random.default_rng(0).normal(size=(5, *shape)).astype("f")
    close(by_onnxruntime(tmp_path / "m.onnx", x), engine(x))


IMAGES = [
    nn.SparseConv2d(3, 8, (3, 2), (2, 1), ((1, 0), (2, 1)), sparsity=0.8, rng=0), nn.BatchNorm2d(8),
    *[kind() for kind in (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Tanh, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.GELU)],
    nn.Hardsigmoid(),
    nn.GELU("tanh"), nn.Conv2d(8, 8, 3, padding=1, groups=2, rng=1), nn.MaxPool2d(2, 1, ((1, 1), (0, 1))),
    nn.Residual(nn.Sequential(nn.SparseConv2d(8, 8, 1, activation="relu", rng=2)), activation="silu"),
    nn.Residual(nn.SparseConv2d(8, 4, 1, rng=2), nn.Conv2d(8, 4, 1, rng=3)), nn.AvgPool2d(3, 2, 1),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.SparseLinear(4, 6, activation="gelu", rng=4),
    nn.LayerNorm(6), nn.BatchNorm1d(6), nn.Linear(6, 3, rng=5), nn.Softmax(),
]  # fmt: skip


@pytest.mark.parametrize("sparse", [False, True])
def test_models_of_every_layer(tmp_path, sparse):
    model = nn.Sequential(*IMAGES)
    rng = np.random.default_rng(0)
    model.train()
    model(rng.normal(size=(6, 3, 12, 11)).astype("f"))  # moves the running statistics
    fs.to_onnx(model, tmp_path / "m.onnx", sparse=sparse)
    model.eval()
    for shape in ((2, 3, 12, 11), (5, 3, 17, 9)):
        x = rng.normal(size=shape).astype("f")
        close(by_onnxruntime(tmp_path / "m.onnx", x), model(x))
        close(fs.compile(tmp_path / "m.onnx", shape, tune=False)(x), model(x))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Sequential(nn.SparseConv1d(2, 4, 3, padding=1, rng=0)), np.ones((2, 2, 9), "f")),
        (nn.Sequential(nn.SparseConv3d(2, 4, 2, rng=0)), np.ones((2, 2, 4, 5, 3), "f")),
        (nn.Sequential(nn.Embedding(9, 4, rng=0), nn.SparseLinear(4, 3, rng=1)), np.array([[1, 2, 8], [0, 0, 3]])),
        (
            nn.Sequential(
                nn.Concat(nn.SparseConvTranspose2d(2, 4, 3, 2, 1, 1, 2, activation="tanh", rng=0), nn.Upsample(2)),
                nn.Upsample((1, 3), "bilinear"),
                nn.Concat(None, nn.ReLU()),
            ),
            np.random.default_rng(1).normal(size=(2, 2, 4, 3)).astype("f"),
        ),
        (
            nn.Sequential(nn.TransformerEncoderLayer(8, 2, 12, rng=0), nn.RMSNorm(8)),
            np.random.default_rng(1).normal(size=(2, 5, 8)).astype("f"),
        ),
        (nn.SparseLinear(6, 4, bias=False, rng=0), np.ones((3, 6), "f")),
        (nn.Sequential(nn.Linear(6, 4, rng=0), nn.SparseConv1d(5, 2, 3, rng=0)), np.ones((3, 5, 6), "f")),
        (nn.Sequential(nn.SparseLinear(6, 4, rng=0, dtype="float64"), nn.LayerNorm(4, dtype="float64")), np.eye(6)),
    ],
)
def test_other_models(tmp_path, model, x):
    fs.to_onnx(model, tmp_path / "m.onnx")
    found = by_onnxruntime(tmp_path / "m.onnx", x)
    assert found.dtype == model.eval()(x).dtype
    close(found, model(x))


@pytest.mark.parametrize("sparse", [False, True])
def test_engines_of_onnx_models(tmp_path, sparse):
    build = Builder()
    x = build.add("Relu", build.add("Conv", "x", build.weight(8, 3, 3, 3), build.vector(8)))
    model = build.model({"x": ["N", 3, 9, 9]}, [build.add("Sigmoid", x)])
    engine = fs.compile(model, tune=False)
    fs.to_onnx(engine, tmp_path / "m.onnx", sparse=sparse)
    x = np.random.default_rng(0).normal(size=(2, 3, 9, 9)).astype("f")
    close(by_onnxruntime(tmp_path / "m.onnx", x), engine(x))


@pytest.mark.parametrize("activation", [name for name in fs.functional.ACTIVATIONS if name])
def test_every_activation(tmp_path, activation):
    model = nn.Sequential(nn.SparseLinear(16, 16, sparsity=0.5, activation=activation, rng=0)).eval()
    x = np.random.default_rng(0).normal(size=(5, 16)).astype("f") * 3
    for written in (model, fs.compile(model, (2, 16), tune=False)):
        fs.to_onnx(written, tmp_path / "m.onnx")
        close(by_onnxruntime(tmp_path / "m.onnx", x), model(x))


def test_sparse_files_are_small(tmp_path):
    model = nn.Sequential(nn.SparseLinear(512, 512, sparsity=0.95, rng=0), nn.Linear(512, 4, rng=1))
    sizes = {}
    for sparse in (False, True):
        fs.to_onnx(model, tmp_path / "m.onnx", sparse=sparse)
        proto = onnx.load(tmp_path / "m.onnx")
        onnx.checker.check_model(proto)
        assert len(proto.graph.sparse_initializer) == int(sparse)
        sizes[sparse] = (tmp_path / "m.onnx").stat().st_size
    assert sizes[True] < sizes[False] / 4


def test_what_cannot_be_written(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(TypeError, match=r"model is a int, expected a model of fastsparse\.nn or an engine"):
        fs.to_onnx(3, path)
    with pytest.raises(fs.UnsupportedOperatorError, match=r"layer 0 is an AdaptiveAvgPool2d to \(2, 3\)"):
        fs.to_onnx(nn.Sequential(nn.AdaptiveAvgPool2d((2, 3))), path)
    with pytest.raises(fs.UnsupportedOperatorError, match="the layers do not fit one input"):
        fs.to_onnx(nn.Sequential(nn.Concat(nn.Embedding(9, 4), nn.Linear(6, 4)), nn.ReLU()), path)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype="float64"))
    with pytest.raises(TypeError, match="model has parameters of float32 and float64"):
        fs.to_onnx(model, path)
    assert not path.exists()
    with pytest.raises(OSError, match="nowhere"):
        fs.to_onnx(nn.Linear(2, 2), tmp_path / "nowhere" / "m.onnx")


def test_engines_that_begin_with_an_embedding(tmp_path):
    model = nn.Sequential(nn.Embedding(9, 4, rng=0), nn.Flatten(), nn.SparseLinear(20, 3, sparsity=0.5, rng=1))
    engine = fs.compile(model, (2, 5), tune=False)
    fs.to_onnx(engine, tmp_path / "m.onnx")
    x = np.random.default_rng(0).integers(0, 9, (4, 5))
    close(by_onnxruntime(tmp_path / "m.onnx", x), engine(x))


def test_engines_of_causal_transformers(tmp_path):
    table = nn.Embedding(9, 8, positions=6, rng=0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, causal=True, sparsity=0.5, rng=0)
    model = nn.Sequential(table, layer, nn.Concat(None, nn.Tanh()))
    engine = fs.compile(model, (2, 5), tune=False)
    fs.to_onnx(engine, tmp_path / "m.onnx")
    x = np.random.default_rng(0).integers(0, 9, (4, 5))
    close(by_onnxruntime(tmp_path / "m.onnx", x), engine(x))
    for part, what in ((table, "Embedding with positions"), (layer, "causal MultiheadAttention")):
        with pytest.raises(fs.UnsupportedOperatorError, match=what):
            fs.to_onnx(nn.Sequential(part), tmp_path / "n.onnx")
    joined = fs.compile(nn.Sequential(nn.Concat(None, nn.SparseLinear(3, 4, rng=0))), [(1, 2), (1, 3)], tune=False)
    fs.to_onnx(joined, tmp_path / "m.onnx")
    inputs = [np.ones((5, 2), "f"), np.ones((5, 3), "f")]
    close(fs.compile(tmp_path / "m.onnx", [(5, 2), (5, 3)], tune=False).run(inputs)[0], joined.run(inputs)[0])
