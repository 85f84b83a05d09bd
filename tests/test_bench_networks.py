"""The networks of the end-to-end benchmarks: sane, pruned as they say, and the same as ONNX and as layers."""

from __future__ import annotations

import numpy as np
import pytest

import fastsparse as fs

onnx = pytest.importorskip("onnx")

from onnx.reference import ReferenceEvaluator  # noqa: E402

from bench.networks import BUILDERS  # noqa: E402
from bench.networks.__main__ import main  # noqa: E402
from bench.networks.bert import bert  # noqa: E402
from bench.networks.mlp import mlp  # noqa: E402
from bench.networks.mobilenet import mobilenet  # noqa: E402
from bench.networks.resnet import resnet50, resnet50_model, weights  # noqa: E402

MODELS = {
    "resnet50": lambda: (resnet50(width=8, size=32), (3, 32, 32)),
    "mobilenet": lambda: (mobilenet(size=32), (3, 32, 32)),
    "bert": lambda: (bert(layers=1, width=32, heads=4, hidden=64), (5, 32)),
    "bert with layer norms": lambda: (bert(layers=1, width=32, heads=4, hidden=64, decomposed=False), (5, 32)),
    "mlp": lambda: (mlp(layers=3, width=64), (64,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_networks_run_and_give_what_onnx_says(name, rng, tmp_path):
    model, shape = MODELS[name]()
    onnx.save(model, tmp_path / "model.onnx")
    x = rng.standard_normal((2, *shape)).astype(np.float32)
    engine = fs.compile(tmp_path / "model.onnx", x.shape, tune=False)
    (expected,) = ReferenceEvaluator(model).run(None, {engine.input_names[0]: x})
    y = engine(x)
    assert np.isfinite(y).all()
    assert 1e-3 < y.std() < 1e3
    assert abs(y - expected).max() <= 1e-5 * abs(expected).max()


def test_ids_are_embedded(rng):
    model = bert(layers=1, width=32, heads=4, hidden=64, ids=True, vocabulary=50)
    ids = rng.integers(0, 50, (2, 7))
    (expected,) = ReferenceEvaluator(model).run(None, {"ids": ids})
    (y,) = fs.compile(model, (2, 7), tune=False).run([ids])
    assert abs(y - expected).max() <= 1e-5 * abs(expected).max()


def test_layers_are_the_same_network_as_the_onnx_model(rng):
    x = rng.standard_normal((2, 3, 32, 32)).astype(np.float32)
    layers = resnet50_model(width=8)
    (expected,) = ReferenceEvaluator(resnet50(width=8, size=32)).run(None, {"images": x})
    for y in (layers(x), fs.compile(layers, x.shape, tune=False)(x)):
        assert abs(y - expected).max() <= 1e-5 * abs(expected).max()


def test_weights_are_pruned_to_ninety_per_cent():
    net = weights(None, width=8)
    assert len(net.blocks) == 16
    assert net.stem.weight.all()
    for block in net.blocks:
        for c in (*block.body, *([block.shortcut] if block.shortcut else [])):
            assert abs(np.count_nonzero(c.weight) / c.weight.size - 0.1) <= 1 / c.weight.size


def test_columns_of_real_patterns_run_over_the_kernel_first(tmp_path):
    from bench.networks import resnet

    folder = tmp_path / resnet._FOLDER
    folder.mkdir(parents=True)
    # Row 1's column 7 is kernel row 1, kernel column 0, channel 1 of a 2x2 kernel over 3 channels.
    (folder / "w.smtx").write_text("2, 12, 1\n0 0 1\n7\n")
    mask = resnet._pattern(tmp_path, "w.smtx", (2, 3, 2, 2), np.random.default_rng(0))
    assert np.argwhere(mask).tolist() == [[1, 1, 1, 0]]


def test_the_command_writes_a_model_and_says_what_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(BUILDERS, "mlp", lambda dlmc, seed: mlp(seed, layers=2, width=32))
    assert main(["mlp", "-o", str(tmp_path / "mlp.onnx")]) == 0
    assert "90.0% zeros" in capsys.readouterr().out
    assert main(["mlp", "-o", str(tmp_path / "nowhere" / "mlp.onnx")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit) as caught:
        main(["vgg", "-o", "x"])
    assert caught.value.code == 2
