"""The networks of the end-to-end benchmarks: sane, and pruned as they say."""

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
from bench.networks.resnet import resnet50  # noqa: E402

MODELS = {
    "resnet50": lambda: (resnet50(width=8, size=32), (3, 32, 32)),
    "mobilenet": lambda: (mobilenet(size=32), (3, 32, 32)),
    "bert": lambda: (bert(layers=1, width=32, heads=4, hidden=64), (5, 32)),
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


def test_weights_are_pruned_to_ninety_per_cent():
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in resnet50(width=8, size=32).graph.initializer}
    assert weights.pop("stem.weight").all()
    pruned = [weight for name, weight in weights.items() if name.endswith(".weight")]
    assert len(pruned) == 16 * 3 + 4 + 1
    for weight in pruned:
        assert abs(np.count_nonzero(weight) / weight.size - 0.1) <= 1 / weight.size


def test_columns_of_real_patterns_run_over_the_kernel_first(tmp_path):
    from bench.networks import resnet

    # Row 1's column 7 is kernel row 1, kernel column 0, channel 1 of a 2x2 kernel over 3 channels.
    (tmp_path / "w.smtx").write_text("2, 12, 1\n0 0 1\n7\n")
    mask = resnet._pattern(tmp_path / "w.smtx", (2, 3, 2, 2))
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
