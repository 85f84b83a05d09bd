"""`fastsparse prune` and `fastsparse bench MODEL.onnx`."""

from __future__ import annotations

import io
import itertools
import json
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import fastsparse as fs
from fastsparse import cli
from fastsparse.onnx import pruning, racing
from fastsparse.onnx.engine import GraphEngine
from tests.onnx import models


@pytest.fixture
def path(tmp_path):
    """A perceptron, a dense one."""
    b = models.Builder()
    x = b.add("Relu", b.add("Gemm", "x", b.weight(48, 32, sparsity=0), b.vector(48), transB=1, name="first"))
    y = b.add("MatMul", x, b.weight(48, 8, sparsity=0))
    return models.saved(b.model({"x": ["N", 32]}, [y]), tmp_path / "model.onnx")


def _weights(path):
    found = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    return {name: array for name, array in found.items() if array.ndim == 2}


def _status(arguments):
    try:
        return cli.main(arguments)
    except SystemExit as stop:
        return stop.code


def test_prune_keeps_the_largest_of_each_layer(path, tmp_path, capsys):
    out = str(tmp_path / "out.onnx")
    assert _status(["prune", path, "--sparsity", "0.75", "-o", out]) == 0
    before, after = _weights(path), _weights(out)
    for name, pruned in after.items():
        kept = pruned != 0
        assert kept.sum() == pruned.size // 4
        np.testing.assert_array_equal(pruned[kept], before[name][kept])
        assert np.abs(before[name][kept]).min() >= np.abs(before[name][~kept]).max()
    printed = capsys.readouterr()
    assert "75.0%" in printed.out
    assert printed.out.splitlines()[-1].split() == ["all", "480", "1,920", "75.0%"]
    x = np.random.default_rng(0).standard_normal((3, 32)).astype("float32")
    assert max(models.shares(fs.compile(out).run([x]), models.reference(onnx.load(out), [x]))) < 2e-6


def test_prune_scopes(path, tmp_path):
    out = tmp_path / "out.onnx"
    results = pruning.prune_onnx(path, out, 0.9, scope="global").weights
    assert sum(r.after for r in results) == 192
    before, after = _weights(path), _weights(out)
    kept, lost = (np.concatenate([np.abs(before[n][(after[n] != 0) == flag]) for n in after]) for flag in (True, False))
    assert kept.min() >= lost.max()
    results = {r.weight: r for r in pruning.prune_onnx(path, out, 0.9, erk=True).weights}
    shares = {name: r.after / r.size for name, r in results.items()}
    assert sum(r.after for r in results.values()) == 192
    assert shares[min(results, key=lambda n: results[n].size)] > shares[max(results, key=lambda n: results[n].size)]


def test_prune_leaves_out_what_is_excluded(path, tmp_path):
    out = tmp_path / "out.onnx"
    (result,) = pruning.prune_onnx(path, out, 0.9, exclude=["first"]).weights
    untouched = [n for n in _weights(path) if n != result.weight]
    for name in untouched:
        np.testing.assert_array_equal(_weights(out)[name], _weights(path)[name])


def test_prune_finds_weights_behind_nodes(tmp_path):
    """Converted, turned and shared ones, of all products; and says what it leaves alone."""
    b = models.Builder()
    embedding = b.weight(40, 24, sparsity=0)
    half = b.constant(b.rng.standard_normal((24, 24)), "float16")
    x = b.add("MatMul", b.add("Gather", embedding, "ids"), b.add("Unsqueeze", b.weight(24, 24, sparsity=0), axes=[0]))
    x = b.add("MatMul", x, b.add("Cast", half, to=1))
    head = b.add("MatMul", x, b.add("Transpose", embedding, perm=[1, 0]))
    recurrent = [b.weight(1, 4 * 8, 24, sparsity=0), b.weight(1, 4 * 8, 8, sparsity=0)]
    parts = [
        b.add("Slice", recurrent[1], *(b.constant(n, "int64") for n in ([i], [i + 8], [1]))) for i in (0, 24, 8, 16)
    ]
    state = b.add("LSTM", x, recurrent[0], b.add("Concat", *parts, axis=1), hidden_size=8)
    image = b.add("Reshape", head, b.constant([1, 4, 5, -1], "int64"))
    up = b.add("ConvTranspose", image, up_weight := b.weight(4, 4, 2, 2, sparsity=0))
    quantised = b.constant(np.arange(64).reshape(8, 8), "int8")
    scaled = b.add("DequantizeLinear", quantised, b.constant(0.1))
    y = b.add("MatMul", b.add("Reshape", state, b.constant([-1, 8], "int64")), scaled)
    model = b.model({"ids": [2, 4]}, [head, up, y], opset=11, dtypes={"ids": onnx.TensorProto.INT64})
    path = models.saved(model, tmp_path / "m.onnx")
    found = pruning.prune_onnx(path, tmp_path / "o.onnx", 0.9)
    assert {w.weight for w in found.weights} == {embedding, half, *recurrent, "c2", up_weight}
    assert [s.weight for s in found.skipped] == [quantised]
    arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "o.onnx").graph.initializer}
    for weight in found.weights:
        assert (arrays[weight.weight] != 0).sum() == weight.after
        assert weight.after == pytest.approx(0.1 * weight.size, abs=1)
    assert f"left alone: {quantised}" in pruning.summary(found)


def test_prune_reads_external_data(path, tmp_path):
    onnx.save(onnx.load(path), tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    assert _status(["prune", str(tmp_path / "e.onnx"), "--sparsity", "0.5", "-o", str(tmp_path / "o.onnx")]) == 0
    for name, array in _weights(path).items():
        assert (_weights(tmp_path / "o.onnx")[name] != 0).sum() == array.size // 2


def test_prune_writes_large_models_to_two_files(path, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "_FILE_LIMIT", 1000)
    pruning.prune_onnx(path, tmp_path / "o.onnx", 0.5)
    assert (tmp_path / "o.onnx.data").stat().st_size == 4 * (32 * 48 + 48 * 8)
    x = np.random.default_rng(0).standard_normal((3, 32)).astype("float32")
    wanted = models.reference(onnx.load(tmp_path / "o.onnx"), [x])
    assert max(models.shares(fs.compile(tmp_path / "o.onnx", tune=False).run([x]), wanted)) < 2e-6


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--sparsity", "1"], 2, "argument --sparsity: got '1', expected a number in [0, 1)"),
        (["--sparsity", "much"], 2, "argument --sparsity: got 'much'"),
        (["--sparsity", "0.5", "--scope", "row"], 2, "argument --scope: invalid choice: 'row'"),
        ([], 2, "the following arguments are required: --sparsity"),
        (["--sparsity", "0.5", "--exclude", "nobody"], 1, "exclude names 'nobody', which is no node with a weight"),
        (["--sparsity", "0.5", "--scope", "global", "--erk"], 1, "erk is for scope 'layer', got 'global'"),
    ],
)
def test_prune_errors_are_one_line_and_touch_nothing(path, tmp_path, arguments, status, message, capsys):
    out = tmp_path / "out.onnx"
    out.write_text("before")
    assert _status(["prune", path, "-o", str(out), *arguments]) == status
    printed = capsys.readouterr()
    assert not printed.out
    assert message in printed.err
    assert out.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "out.onnx"]


def test_prune_of_no_model(tmp_path, capsys):
    for name, message in (("none.onnx", "No such file"), ("text.onnx", "is not an ONNX model, or damaged")):
        (tmp_path / "text.onnx").write_text("text")
        assert _status(["prune", str(tmp_path / name), "--sparsity", "0.5", "-o", str(tmp_path / "o.onnx")]) == 1
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1


def test_prune_into_the_same_file(path):
    before = _weights(path)
    assert _status(["prune", path, "--sparsity", "0.5", "-o", path]) == 0
    assert all((w != 0).sum() == before[name].size / 2 for name, w in _weights(path).items())


def test_bench_prints_a_row_per_batch(path, capsys):
    assert _status(["bench", path, "-b", "1", "-b", "3", "--seconds", "0.01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["batch", "engine"]
    assert [line.split()[:2] for line in lines[2:]] == [["1", "fastsparse"], ["3", "fastsparse"]]


def test_bench_takes_the_batch_of_the_model_or_of_shape(path, tmp_path, capsys):
    model = onnx.load(path)
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0]
    fixed.dim_value = 6
    onnx.save(model, tmp_path / "fixed.onnx")
    assert _status(["bench", str(tmp_path / "fixed.onnx"), "--seconds", "0.01"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["6", "fastsparse"]
    assert _status(["bench", path, "--shape", "x=5x32", "--seconds", "0.01"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["5", "fastsparse"]


def test_bench_compares_with_a_baseline(path, monkeypatch):
    """A baseline whose results are off by 1%: the difference is told, relative to its largest number."""
    turns, plain = [], GraphEngine.run

    def baseline(path, threads):
        def run(engine, inputs):
            turns.append("baseline")
            return [y * np.float32(1.01) for y in plain(engine, inputs)]

        return run

    monkeypatch.setitem(racing._BASELINES, "onnxruntime", baseline)
    monkeypatch.setattr(GraphEngine, "run", lambda self, x: (turns.append("ours"), plain(self, x))[1])
    ours, theirs = racing.race(path, [2], ["onnxruntime"], 0.01, 1, progress=False)
    assert (ours.difference, ours.faster) == (None, None)
    assert theirs.difference == pytest.approx(0.01 / 1.01, rel=1e-3)
    assert ours.times.p50 <= ours.times.p95 <= ours.times.p99
    assert theirs.faster > 0
    table = racing.table([ours, theirs]).splitlines()
    assert table[-1].split()[1] == "onnxruntime"
    assert table[-1].split()[-1] == "9.9e-03"
    assert f"{theirs.faster:.2f}x" in table[-1]
    # The baseline's calls are among ours, not behind them: at least three rounds.
    assert sum(a != b for a, b in itertools.pairwise(turns)) >= 6


def test_bench_writes_what_it_is_asked_for(path, tmp_path, capsys):
    files = [tmp_path / "r.json", tmp_path / "r.html"]
    files[0].write_text("old")
    assert _status(["bench", path, "--seconds", "0.01", "--json", str(files[0]), "--html", str(files[1])]) == 0
    found = json.loads(files[0].read_text())
    assert (found["model"], found["threads"]) == (path, 1)
    (result,) = found["results"]
    assert (result["batch"], result["engine"], result["difference"]) == (1, "fastsparse", None)
    assert result["times"]["p50"] > 0
    assert f"{result['times']['p50']:.3f} ms" in files[1].read_text()
    assert f"{result['times']['p50']:.3f} ms" in capsys.readouterr().out


@pytest.mark.parametrize("option", [["-k", "conv"], ["--quick"], ["--dlmc", "."], ["--isa", "avx2"], ["--cpu-time"]])
def test_bench_refuses_options_that_say_nothing_about_a_model(path, option, capsys):
    assert _status(["bench", path, *option]) == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_bench_against_onnxruntime(path, capsys):
    pytest.importorskip("onnxruntime")
    assert _status(["bench", path, "--against", "onnxruntime", "--seconds", "0.01"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[1] == "onnxruntime"
    assert float(row[-1]) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["-b", "0"], 2, "argument -b/--batch: got '0', expected an integer of at least 1"),
        (["--against", "torch"], 2, "argument --against: invalid choice: 'torch'"),
        (["--seconds", "-1"], 2, "argument --seconds: got '-1', expected a positive number"),
        (["--shape", "x"], 2, "argument --shape: got 'x', expected NAME=SIZExSIZE..."),
        (["--shape", "z=1x32"], 1, "input_shape names 'z', expected some of 'x'"),
    ],
)
def test_bench_errors(path, arguments, status, message, capsys):
    assert _status(["bench", path, "--seconds", "0.01", *arguments]) == status
    printed = capsys.readouterr()
    assert message in printed.err
    assert not printed.out


def test_bench_without_the_baseline(path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert _status(["bench", path, "--against", "onnxruntime"]) == 1
    assert "--against onnxruntime needs onnxruntime: pip install onnxruntime\n" in capsys.readouterr().err


def test_names_that_the_terminal_cannot_show_are_escaped(path, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    model = onnx.load(path)
    model.graph.node[0].name = "\u0441\u043b\u043e\u0439"
    onnx.save(model, path)
    assert _status(["prune", path, "--sparsity", "0.75", "-o", str(tmp_path / "out.onnx")]) == 0
    assert rb"\u0441\u043b\u043e\u0439" in sys.stdout.buffer.getvalue()


def test_bench_measures_one_model_alone(path, capsys):
    assert _status(["bench", path, "other.onnx"]) == 2
    assert "unrecognized arguments: other.onnx" in capsys.readouterr().err
