"""The training loop: it learns, repeats to the bit, resumes to the bit, and names what is wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import types
from scipy import sparse

import fastsparse as fs
from fastsparse import nn
from fastsparse.ops import linear
from fastsparse.sparsity import SET
from fastsparse.training import SGD, Adam, CosineDecay, EarlyStopping, History, Progress, cross_entropy, fit, mse
from fastsparse_kernels import compiler
from fastsparse_kernels.kernel_cache import Directories


def _data(n: int = 120) -> tuple[Any, Any]:
    """Three classes in the plane, far apart, with 18 columns of noise."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    x = rng.normal(0, 0.4, (n, 20))
    x[:, :2] += 2 * np.array([[0, 1], [1, -1], [-1, -1]])[y]
    return x.astype("f"), y


def _model(seed: int = 0) -> nn.Sequential:
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.SparseLinear(20, 32, sparsity=0.5, rng=rng),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Dropout(0.2, rng=seed),
        nn.SparseLinear(32, 3, sparsity=0.5, rng=rng),
    )


def _run(epochs: int = 3, model: nn.Module | None = None, **options: Any) -> tuple[nn.Module, History]:
    model = model or _model()
    settings: dict[str, Any] = {
        "optimizer": SGD(model.parameters(), CosineDecay(0.1, 36)),
        "batch_size": 16,
        "rng": 5,
        "progress": False,
        **options,
    }
    return model, fit(model, settings.pop("data", _data()), epochs=epochs, **settings)


def _same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(np.array_equal(first[name], second[name]) for name in first)


def test_it_learns_and_tells_how() -> None:
    model, history = _run(10, validation=_data(60))
    assert history["val_accuracy"][-1] > 0.95
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert history["epoch"] == list(range(1, 11))
    assert history["density"] == [0.5] * 10
    assert history["lr"][0] == 0.1
    assert not any(module.training for _, module in model.named_modules())
    x, y = _data(60)
    assert history["val_accuracy"][-1] == np.mean(model(x).argmax(1) == y)
    assert history["val_loss"][-1] == pytest.approx(fs.training.cross_entropy(model(x), y)[0], rel=1e-5)


def test_a_seed_repeats_a_run_to_the_bit() -> None:
    first, history = _run()
    second, again = _run()
    third, _ = _run(rng=6)
    assert _same(first, second)
    assert history["loss"] == again["loss"]
    assert not _same(first, third)


def test_sparse_input_and_other_losses() -> None:
    x, y = _data()
    x[abs(x) < 0.5] = 0
    model = nn.Sequential(nn.SparseLinear(20, 8, activation="relu", rng=0), nn.Linear(8, 1, rng=0))
    target = (y == 1).astype("f")[:, None]
    optimizer = Adam(model.parameters(), 0.01)
    _, history = _run(5, model, data=(sparse.csr_matrix(x), target), loss=mse, optimizer=optimizer)
    assert history["loss"][-1] < history["loss"][0]
    assert "accuracy" not in history


def test_batches_of_an_iterable() -> None:
    x, y = _data()
    parts = [(x[i : i + 30], y[i : i + 30]) for i in range(0, 120, 30)]
    _, history = _run(4, data=parts)
    assert len(history) == 4
    with pytest.raises(
        ValueError, match=r"^data gives no batch, expected an iterable that starts anew for every epoch$"
    ):
        _run(2, data=iter(parts))
    with pytest.raises(ValueError, match=r"^data gives a ndarray, expected pairs \(x, y\)$"):
        _run(1, data=[x])


def test_few_samples_are_one_batch() -> None:
    x, y = _data()
    model, given = _model(), _model()
    for each, size in ((model, {}), (given, {"batch_size": 20})):
        fit(each, (x[:20], y[:20]), epochs=1, optimizer=Adam(each.parameters()), progress=False, rng=0, **size)
    np.testing.assert_array_equal(model(x), given(x))


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    sizes: list[int] = []

    class Watch(nn.Flatten):
        def forward(self, x: Any) -> Any:
            sizes.append(len(x))
            return super().forward(x)

    x, y = _data(33)
    model = nn.Sequential(Watch(), *_model().layers)
    _run(1, model, data=(x, y))
    assert sizes == [16, 17]


def test_callbacks_see_each_epoch_and_may_stop() -> None:
    seen = []

    def callback(progress: Any) -> None:
        seen.append((progress.epoch, len(progress.history), progress.model.training))
        progress.stop = progress.epoch == 2

    _, history = _run(5, callbacks=[callback])
    assert seen == [(1, 1, True), (2, 2, True)]
    assert len(history) == 2


def test_sparsity_algorithms_are_called_after_each_step() -> None:
    steps = []

    class Algorithm:
        def step(self, step: int) -> None:
            steps.append(step)

    _run(2, sparsity=Algorithm())
    assert steps == list(range(1, 17))


def test_compiling_is_no_training(capsys: Any, monkeypatch: Any) -> None:
    """A loss that has functions compiled: that time stands apart, and the bar says once what one waits for."""
    monkeypatch.setattr(compiler, "_cache_directories", Directories)
    compiled: list[float] = []

    def loss(output: Any, y: Any) -> tuple[float, Any]:
        if not compiled:
            before = compiler.compile_seconds()
            for _ in range(2):
                compiler.compile_function(lambda x: x + 1, types.int64(types.int64))
            compiled.append(compiler.compile_seconds() - before)
        return cross_entropy(output, y)

    _run(1)  # whatever else has to be compiled
    begin = time.perf_counter()
    _, history = _run(2, loss=loss, progress=True)
    whole = time.perf_counter() - begin
    assert compiled[0] > 0
    assert history["compile_seconds"] == [pytest.approx(compiled[0]), 0.0]
    assert sum(history["seconds"]) + compiled[0] <= whole
    shown = capsys.readouterr().err
    assert shown.count("compiling kernels (once)") == 1
    assert "epoch 2/2" in shown.splitlines()[-1].split("\r")[-1]
    assert "compiling" not in shown.splitlines()[-1].split("\r")[-1]


def test_a_missing_kernel_has_a_copy_plan_all_batches_and_changes_nothing(monkeypatch: Any) -> None:
    @contextmanager
    def missing(listener: Callable[[], object]) -> Iterator[None]:
        listener()
        yield

    expected, model = _run(epochs=2)[0], _model()
    patterns = [parameter.pattern for parameter in model.parameters() if parameter.pattern is not None]
    before = [len(getattr(pattern, "_entries", ())) for pattern in patterns]
    monkeypatch.setattr(compiler, "on_compile", missing)
    _run(epochs=0, model=model)  # batches of 16, the last of 8
    assert _same(model, _model())
    planned = [{key for key in pattern._entries if key[0] is linear._panels_launch} for pattern in patterns]
    assert all(len(pattern._entries) > count for pattern, count in zip(patterns, before))
    assert all({key[1] * key[4].lanes for key in keys} >= {16, 8} for keys in planned), "batches of each size"
    assert _same(_run(epochs=2)[0], expected), "launches compute again"


def test_progress_goes_to_stderr(capsys: Any) -> None:
    _run(2, progress=True, validation=_data(30))
    captured = capsys.readouterr()
    assert captured.out == ""
    for word in ("epoch 2/2", "loss=", "accuracy=", "samples/s=", "density=50.0%", "val_accuracy="):
        assert word in captured.err
    assert len(captured.err.splitlines()) <= 5, "no terminal: a line at the start, one at the end, one on compiling"


class _Interrupted(Exception):
    pass


def _stop_after(epoch: int) -> Callable[[Any], None]:
    def callback(progress: Any) -> None:
        if progress.epoch == epoch + 1:
            raise _Interrupted  # after this epoch's work, before its checkpoint

    return callback


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_run_that_was_killed_ends_with_the_same_bits(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    whole = _model()
    _, history = _run(4, whole, optimizer=kind(whole.parameters(), CosineDecay(0.05, 32)))
    for killed_at in (1, 3):
        path.unlink(missing_ok=True)
        model = _model()
        optimizer = kind(model.parameters(), CosineDecay(0.05, 32))
        with pytest.raises(_Interrupted):
            _run(4, model, optimizer=optimizer, checkpoint=path, callbacks=[_stop_after(killed_at)])
        model = _model(seed=9)  # other values, pattern and dropout
        optimizer = kind(model.parameters(), CosineDecay(0.05, 32))
        _, resumed = _run(4, model, optimizer=optimizer, checkpoint=path, resume=True, rng=99)
        assert _same(model, whole)
        assert resumed["loss"] == history["loss"]
        assert resumed["epoch"] == [1, 2, 3, 4]
    assert os.listdir(tmp_path) == ["run.safetensors"]


def test_resume_without_a_file_starts_anew(tmp_path: Path) -> None:
    model, _ = _run(2, checkpoint=tmp_path / "run", resume=True)
    assert _same(model, _run(2)[0])
    assert (tmp_path / "run").exists()


@pytest.mark.F4
def test_a_checkpoint_of_another_run_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    _run(1, checkpoint=path)
    other = nn.Sequential(nn.Linear(20, 3, rng=0))
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"is a checkpoint of another model: state has no entry '0\.weight'"):
        _run(2, other, checkpoint=path, resume=True)
    for name, array in other.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    model = _model(3)
    before = model.state_dict()
    with pytest.raises(ValueError, match=r"was written by the optimizer SGD, expected Adam$"):
        _run(2, model, optimizer=Adam(model.parameters()), checkpoint=path, resume=True)
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())
    fs.save(model, path)
    with pytest.raises(fs.FileFormatError, match="its format is 'fastsparse model', expected 'fastsparse checkpoint'"):
        _run(2, model, checkpoint=path, resume=True)


def test_a_checkpoint_of_a_model_that_only_computes_otherwise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    _run(1, checkpoint=path)
    model = _model()
    model.layers = (*model.layers[:2], nn.Sigmoid(), *model.layers[3:])
    with pytest.raises(ValueError, match=r"another model: layer '2' was a ReLU, expected Sigmoid$"):
        _run(2, model, checkpoint=path, resume=True)
    model = _model()
    model[3].p = 0.3
    with pytest.raises(ValueError, match=r"another model: layer '3' had p = 0\.2, expected 0\.3$"):
        _run(2, model, checkpoint=path, resume=True)


def test_a_loss_that_is_not_finite_names_the_layer() -> None:
    class Poison(nn.ReLU):
        def forward(self, x: Any) -> Any:
            return super().forward(x) * np.float32(np.nan)

    model = nn.Sequential(nn.Linear(20, 8, rng=0), Poison(), nn.Linear(8, 3, rng=0))
    with pytest.raises(FloatingPointError) as caught:
        _run(1, model)
    assert str(caught.value) == (
        "the loss is nan in epoch 1, step 1: layer '1' (Poison) gives an output that is not finite"
    )
    model = _model()
    model[4].values.value[2] = np.inf
    with pytest.raises(FloatingPointError, match=r"parameter '4\.values' is not finite$"):
        _run(1, model)
    x, y = _data()
    x[3, 3] = np.inf
    with pytest.raises(FloatingPointError, match=r"the batch's x is not finite$"):
        _run(1, data=(x, y))


def test_steps_that_overflow_are_found_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    x, y = _data()
    path = tmp_path / "run.safetensors"
    for arrays, rate, what in (
        ((x, y), 1e39, "parameter '0.weight' is not finite after epoch 1, its gradient or the step was too large"),
        ((x, y, np.full(len(y), 1e200)), 0.1, "the loss is inf in epoch 1, step 1: the outputs of all layers are"),
    ):
        model = nn.Sequential(nn.Linear(20, 3, rng=0))
        options: dict[str, Any] = {"epochs": 1, "batch_size": len(y), "checkpoint": path, "progress": False}
        with pytest.raises(FloatingPointError, match=f"^{what}"), np.errstate(over="ignore"):
            fit(model, arrays, optimizer=SGD(model.parameters(), rate), **options)
    assert not path.exists()


@pytest.mark.parametrize("form", ["several", "CSR"])
def test_a_loss_that_is_not_finite_names_the_layer_for_any_form_of_samples(form: str) -> None:
    x, y = _data()
    layers = nn.Concat(nn.SparseLinear(20, 4, rng=0), nn.SparseLinear(7, 4, sparsity=0.5, rng=0))
    model = nn.Sequential(layers if form == "several" else layers.branches[0], nn.ReLU())
    layers.branches[0].bias.value = np.full(4, np.inf)
    batch = ((x, x[:, :7]), y) if form == "several" else (fs.csr(x), y)
    with pytest.raises(FloatingPointError, match=r"parameter '0\.(0\.)?bias' is not finite$"):
        fit(model, [batch], epochs=1, optimizer=SGD(model.parameters(), 0.1), progress=False)


def test_divergence_is_found_without_touching_running_statistics() -> None:
    model = _model()
    model[1].running_mean = np.full(32, 7, np.float32)
    model[4].values.value[:] = np.nan
    from fastsparse.training.diagnosis import find_not_finite

    assert find_not_finite(model, _data()[0]) == "parameter '4.values' is not finite"
    model = _model()
    assert find_not_finite(model, _data()[0]).startswith("the outputs of all layers are finite")
    np.testing.assert_array_equal(model[1].running_mean, np.zeros(32))


X, Y = _data()
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"epochs": -1}, ValueError, "epochs is -1, expected an integer of at least 0"),
    ({"batch_size": 0}, ValueError, "batch_size is 0, expected an integer of at least 1"),
    ({"batch_size": 121}, ValueError, "batch_size is 121, expected at most 120, the samples in data"),
    ({"data": (X, Y[:9])}, ValueError, "data has x of shape (120, 20) and y of shape (9,), expected first sizes that"),
    ({"data": (np.full((20, 20), np.nan), Y[:20])}, ValueError, "data holds NaN in x, expected numbers"),
    ({"validation": (X[:5], Y[:4])}, ValueError, "validation has x of shape (5, 20) and y of shape (4,)"),
    ({"data": 7}, TypeError, "data is a int, expected (x, y) or an iterable of batches (x, y)"),
    ({"data": (X, np.full(120, 3))}, ValueError, "data has labels from 3 to 3, expected 0 to 2 to match the model's"),
    ({"data": (X, np.append(Y[:-1], -1))}, ValueError, "data has labels from -1 to 2, expected 0 to 2 to match the"),
    ({"validation": (X, Y + 1)}, ValueError, "validation has labels from 1 to 3, expected 0 to 2 to match the model"),
    ({"data": [(X, Y + 1)]}, ValueError, "labels go from 1 to 3, expected 0 to 2 to match logits"),
    ({"data": (sparse.csr_array(X * np.nan), Y)}, ValueError, "data holds NaN in x, expected numbers"),
    ({"sparsity": 0.9}, TypeError, "sparsity is a float, expected an object with a method step(step)"),
    ({"sparsity": SET}, TypeError, "sparsity is the class SET, expected an object with a method step(step)"),
    ({"sparsity": SET(_model())}, ValueError, "sparsity was made for another model: it has none of the parameters of"),
    ({"optimizer": SGD(_model().parameters(), 0.1)}, ValueError, "optimizer was made for another model: it has none"),
    ({"optimizer": SGD}, TypeError, "optimizer is the class SGD, expected a fastsparse.training.Optimizer"),
    ({"optimizer": "adam"}, TypeError, "optimizer is a str, expected a fastsparse.training.Optimizer"),
    ({"loss": "mse"}, TypeError, "loss is 'mse', expected a function of (output, y)"),
    ({"loss": lambda output, y: 1.0}, TypeError, "loss returned a float of shape (), expected the mean loss, a number"),
    ({"loss": lambda output, y: (y, output)}, TypeError, "loss returned a ndarray of shape (16,) and a ndarray of"),
    ({"callbacks": print}, TypeError, "callbacks is <built-in function print>, expected a list of callables"),
    ({"callbacks": [1]}, TypeError, "callbacks[0] is a int, expected an object that can be called"),
    ({"callbacks": [EarlyStopping]}, TypeError, "callbacks[0] is the class EarlyStopping, expected an object that"),
    ({"checkpoint": "/"}, IsADirectoryError, "[Errno 21] '/' is a directory, expected a file name"),
    ({"checkpoint": "/no/where.c"}, FileNotFoundError, "[Errno 2] the directory '/no' does not exist"),
    ({"resume": True}, ValueError, "resume is True and checkpoint is None, expected the path of a checkpoint"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_bad_arguments_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = _model()
    before = model.parameters()[0].value.copy()
    with pytest.raises(error) as caught:
        _run(model=model, **options)
    assert str(caught.value).startswith(message)
    np.testing.assert_array_equal(model.parameters()[0].value, before)


def test_ctrl_c_leaves_a_model_that_can_be_used() -> None:
    def interrupted(progress: Progress) -> None:
        raise KeyboardInterrupt

    model = _model()
    with pytest.raises(KeyboardInterrupt):
        _run(model=model, callbacks=[interrupted])
    assert not any(module.training for _, module in model.named_modules())


def test_history_draws_what_it_has() -> None:
    pytest.importorskip("matplotlib")
    _, history = _run(3, validation=_data(30))
    figure = history.plot()
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    lines = figure.axes[0].get_lines()
    np.testing.assert_array_equal(lines[1].get_ydata(), history["val_loss"])
    assert "epoch 3, loss" in repr(history)
    with pytest.raises(KeyError, match="history has no 'f1', only"):
        history["f1"]


@pytest.mark.parametrize("stream", [False, True])
def test_weights_reach_the_loss(stream):
    seen = []

    def loss(output, y, weights):
        seen.append((y, weights))
        return mse(output, y, weights)

    x, y = np.arange(6, dtype="f").reshape(6, 1), np.arange(6.0).reshape(6, 1)
    weights = np.arange(6.0)
    data = [(x, y, weights)] if stream else (x, y, weights)
    model = fs.nn.Sequential(fs.nn.Linear(1, 1, rng=0))
    options = {"epochs": 1, "batch_size": 3, "optimizer": SGD(model.parameters(), 1e-3), "progress": False}
    fit(model, data, loss=loss, validation=(x, y, weights), **options)
    assert all((part[:, 0] == given).all() for part, given in seen)
    assert len(seen) == (1 if stream else 2) + 2
    for wrong in (weights[1:], -weights, weights * np.nan, np.ones((6, 2))):
        with pytest.raises(ValueError, match=r"data has weights of shape .* expected \(6,\) numbers of at least 0"):
            fit(model, (x, y, wrong), loss=loss, **options)
