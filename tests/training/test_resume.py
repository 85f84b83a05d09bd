"""Runs that are killed, stopped early, or given other callbacks: they end as if nothing had happened."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from fastsparse import files, nn
from fastsparse.sparsity import SET, RigL
from fastsparse.training import SGD, Adam, CosineDecay, EarlyStopping, History, checkpoint, cross_entropy, fit
from tests.conftest import ROOT

# Prints a digest of everything there is at the end; writes a checkpoint after each of many short epochs.
RUN = """
import hashlib, sys
import numpy as np
from fastsparse import nn
from fastsparse.sparsity import SET
from fastsparse.training import Adam, CosineDecay, fit

rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 30)).astype("f"), rng.integers(0, 4, 64)
model = nn.Sequential(
    nn.SparseLinear(30, 40, sparsity=0.8, rng=1), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.3, rng=2),
    nn.SparseLinear(40, 4, sparsity=0.5, rng=3),
)
optimizer = Adam(model.parameters(), CosineDecay(0.01, 320), weight_decay=0.01, max_norm=1.0)
history = fit(
    model, (x, y), epochs=40, batch_size=8, optimizer=optimizer, sparsity=SET(model, every=7, rng=4), progress=False,
    checkpoint=sys.argv[1], resume=True, rng=5, validation=(x[:9], y[:9]),
)
digest = hashlib.sha256(repr([(r["loss"], r["val_loss"]) for r in history]).encode())
for name, array in sorted(model.state_dict().items()):
    digest.update(name.encode() + array.tobytes())
for p in model.parameters():
    for name, array in sorted(p.state.items()):
        digest.update(name.encode() + array.tobytes())
print(len(history), digest.hexdigest())
"""


@pytest.mark.F1
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path, run_python: Any) -> None:
    whole = run_python(RUN, str(tmp_path / "whole")).stdout
    path = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "kernels")))}
    moments, kills = random.Random(os.urandom(4)), 0
    for _ in range(20):
        before = path.stat().st_mtime_ns if path.exists() else 0
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(path)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with process:
            while process.poll() is None and (path.stat().st_mtime_ns if path.exists() else 0) == before:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.05))
            killed = process.poll() is None
            process.send_signal(signal.SIGKILL)
        if not killed:  # it was over before: begin anew
            path.unlink(missing_ok=True)
        kills += killed
        if kills == 3:
            break
    assert kills
    assert run_python(RUN, str(path)).stdout == whole
    assert whole.startswith("40 ")


def _data(n: int = 80) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    x = rng.normal(0, 1.5, (n, 12))
    x[:, :3] += 2 * np.eye(3)[y]
    return x.astype("f"), y


def _model() -> nn.Sequential:
    return nn.Sequential(nn.SparseLinear(12, 64, sparsity=0.5, activation="relu", rng=0), nn.Linear(64, 3, rng=1))


def _fit(model: nn.Module, epochs: int = 60, **options: Any) -> History:
    x, y = _data()
    settings: dict[str, Any] = {"batch_size": 8, "progress": False, "rng": 0, "validation": (x[40:], y[40:]), **options}
    return fit(model, (x[:40], y[:40]), epochs=epochs, optimizer=SGD(model.parameters(), 0.1), **settings)


def test_early_stopping_stops_and_gives_back_the_best() -> None:
    stopping = EarlyStopping(patience=4)
    model = _model()
    history = _fit(model, callbacks=[stopping])
    best = stopping.best_epoch(history)
    assert len(history) == best + 4 < 60
    assert history["val_loss"][best - 1] == min(history["val_loss"])
    x, y = _data()
    assert cross_entropy(model(x[40:]), y[40:])[0] == pytest.approx(min(history["val_loss"]), rel=1e-5)
    last = _model()
    _fit(last, callbacks=[EarlyStopping(patience=4, restore_best=False)])
    assert cross_entropy(last(x[40:]), y[40:])[0] == pytest.approx(history["val_loss"][-1], rel=1e-5)


def test_the_best_comes_back_when_the_epochs_end_too() -> None:
    model, stopping = _model(), EarlyStopping(patience=50)
    history = _fit(model, 12, callbacks=[stopping])
    assert len(history) == 12 > stopping.best_epoch(history)
    x, y = _data()
    assert cross_entropy(model(x[40:]), y[40:])[0] == pytest.approx(min(history["val_loss"]), rel=1e-5)


class _Killed(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 3])
def test_early_stopping_survives_a_resume(after: int, tmp_path: Path) -> None:
    """Killed in epoch best + after, before its checkpoint is written."""
    whole = _model()
    history = _fit(whole, callbacks=[EarlyStopping(patience=3)])
    path = tmp_path / "run"

    def kill(progress: Any) -> None:
        if progress.epoch == len(history) - 3 + after:
            raise _Killed

    with pytest.raises(_Killed):
        _fit(_model(), callbacks=[EarlyStopping(patience=3), kill], checkpoint=path)
    model = _model()
    resumed = _fit(model, callbacks=[EarlyStopping(patience=3)], checkpoint=path, resume=True)
    assert resumed["val_loss"] == history["val_loss"]
    again = _model()
    once_more = _fit(again, callbacks=[EarlyStopping(patience=3)], checkpoint=path, resume=True)
    assert len(once_more) == len(history), "a run that has stopped stays stopped"
    for name, array in whole.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], array)
        np.testing.assert_array_equal(again.state_dict()[name], array)


def test_accuracy_shall_rise_and_small_steps_do_not_count() -> None:
    records = [{"val_accuracy": a} for a in (0.5, 0.6, 0.62, 0.61, 0.7)]
    assert EarlyStopping("val_accuracy").best_epoch(History(records)) == 5
    assert EarlyStopping("val_accuracy", min_delta=0.05).best_epoch(History(records)) == 5
    assert EarlyStopping("val_accuracy", min_delta=0.05).best_epoch(History(records[:4])) == 2
    assert EarlyStopping("val_accuracy").best_epoch(History()) == 0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"^patience is 0, expected an integer of at least 1$"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match=r"^min_delta is -1, expected a number of at least 0$"):
        EarlyStopping(min_delta=-1)
    with pytest.raises(
        ValueError, match=r"^monitor is 'val_f1', expected one of accuracy, compile_seconds, density, epoch, loss, lr,"
    ):
        _fit(_model(), 2, callbacks=[EarlyStopping("val_f1")])


def test_text_stays_sparse_from_end_to_end(monkeypatch: Any) -> None:
    """Sparse counts of 40 000 words: a dense copy of the data or of a layer would be found."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    rows, words = np.repeat(np.arange(400), 12), rng.integers(0, 40_000, (400, 12))
    words[:, 0] = y  # one word tells
    x = sparse.csr_matrix((np.ones(4800, "f"), (rows, words.ravel())), shape=(400, 40_000))
    for name in ("toarray", "todense"):
        monkeypatch.setattr(sparse.csr_matrix, name, None)
        monkeypatch.setattr(sparse.csr_array, name, None)
    model = nn.Sequential(
        nn.SparseLinear(40_000, 16, sparsity=0.98, activation="relu", rng=0),
        nn.SparseLinear(16, 2, sparsity=0.2, rng=1),
    )
    algorithm = RigL(model, every=20)
    optimizer = SGD(model.parameters(), CosineDecay(0.5, 200))
    history = fit(
        model, (x, y), epochs=8, batch_size=16, optimizer=optimizer, sparsity=algorithm, validation=(x, y),
        progress=False, rng=0,
    )  # fmt: skip
    assert history["val_accuracy"][-1] == 1.0
    grown = model[0].pattern
    assert grown.nnz == 12_800
    found = np.isin(np.arange(2), grown.indices)
    assert found.all(), "RigL finds the words that tell"


def _everything(run: Any) -> Any:
    """All that a checkpoint restores, for comparison."""
    parameters = run.model.named_parameters()
    return {
        "model": {name: array.tobytes() for name, array in run.model.state_dict().items()},
        "optimizer": {
            name: {key: array.tobytes() for key, array in run.optimizer.state_of(p).items()} for name, p in parameters
        },
        "steps": run.optimizer.steps,
        "history": copy.deepcopy(run.history.records),
        "generators": {name: rng.bit_generator.state for name, rng in run.generators().items()},
        "sparsity": run.sparsity.state_dict(),
        "callbacks": [callback.state_dict() for callback in run.callbacks],
    }


class _Counting:
    """A callback with state that refuses to load on demand."""

    def __init__(self, fails: bool = False) -> None:
        self.count, self.fails = 0, fails

    def __call__(self, progress: Any) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": np.array([self.count])}

    def load_state_dict(self, arrays: Any) -> None:
        self.count = int(arrays["count"][0])
        if self.fails and self.count != 0:
            raise KeyError("count")


def _snapshot(seed: int, *, epochs: int, fails: bool = False) -> checkpoint.Snapshot:
    model = nn.Sequential(
        nn.SparseLinear(12, 20, sparsity=0.5, rng=seed),
        nn.BatchNorm1d(20),
        nn.Dropout(0.2, rng=seed),
        nn.Linear(20, 3, rng=seed),
    )
    optimizer, sparsity, rng = (
        Adam(model.parameters(), 0.01),
        SET(model, every=3, rng=seed),
        np.random.default_rng(seed),
    )
    callbacks = [_Counting(), _Counting(fails)]
    x, y = _data()
    options: dict[str, Any] = {"sparsity": sparsity, "callbacks": callbacks, "progress": False, "rng": rng}
    history = fit(model, (x, y), epochs=epochs, batch_size=8, optimizer=optimizer, **options)
    return checkpoint.Snapshot(model, optimizer, sparsity, rng, history, callbacks)


def _mutations(arrays: dict[str, Any], metadata: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Checkpoints with one thing changed."""
    for name, array in arrays.items():
        changed = {
            "gone": None, "uint8": array.astype(np.uint8), "float64": array.astype(np.float64),
            "float16": array.astype(np.float16), "shorter": array[:-1], "longer": np.concatenate([array, array[:1]]),
            "flat": array[None],
        }  # fmt: skip
        for what, new in changed.items():
            kept = {key: item for key, item in arrays.items() if key != name}
            if new is None or new.dtype != array.dtype or new.shape != array.shape:
                yield f"{name} {what}", kept if new is None else {**kept, name: new}, metadata
    values: list[Any] = [None, -1, 1.5, "x", True, [], {}, [1], {"type": "SET"}, {"type": "SET", "last": 1}]
    for name, item in metadata.items():
        yield f"{name} gone", arrays, {key: value for key, value in metadata.items() if key != name}
        for key in item if isinstance(item, dict) else ():
            rest = {other: value for other, value in item.items() if other != key}
            yield f"{name}.{key} gone", arrays, {**metadata, name: rest}
        for value in values:
            yield f"{name} = {value!r}", arrays, {**metadata, name: value}
            for key in item if isinstance(item, dict) else ():
                yield f"{name}.{key} = {value!r}", arrays, {**metadata, name: {**item, key: value}}


@pytest.mark.F4
def test_restoring_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    whole = _snapshot(0, epochs=2)
    checkpoint.save(path, whole)
    arrays, metadata = files.read(path, "checkpoint")
    metadata = {name: item for name, item in metadata.items() if not name.startswith("format")}  # `read` checks these
    run = _snapshot(1, epochs=1)
    before, refused = _everything(run), 0
    for what, *changed in _mutations(arrays, metadata):
        monkeypatch.setattr(files, "read", lambda *_, changed=changed: copy.deepcopy(changed))
        try:
            checkpoint.restore(path, run)
        except ValueError:
            assert _everything(run) == before, what
            refused += 1
        except (KeyError, IndexError, TypeError):
            assert what.startswith("callback."), what
            assert _everything(run) == before, what
        else:
            harmless = ("callback.", "history = []", "model.0.indptr u", "model.0.indices u")
            harmless += ("architecture = None", "architecture.arguments = {}")
            assert what.startswith(harmless), what
            run = _snapshot(1, epochs=1)
            before = _everything(run)
    assert refused > 200
    monkeypatch.undo()
    failing = _snapshot(1, epochs=1)
    failing.callbacks[1].fails, before = True, _everything(failing)
    with pytest.raises(KeyError):
        checkpoint.restore(path, failing)
    assert _everything(failing) == before
    checkpoint.restore(path, run)
    assert _everything(run) == _everything(whole)


@pytest.mark.F2
@pytest.mark.F4
@pytest.mark.parametrize("change", ["weights missing", "weights of another model", "history"])
def test_weights_of_the_best_epoch_that_do_not_fit_are_refused_before_anything_changes(
    change: str, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    _fit(_model(), 2, callbacks=[EarlyStopping()], checkpoint=path)
    arrays, metadata = files.read(path, "checkpoint")
    if change == "history":
        metadata["history"] = [{"loss": 1.0}] * 2
    elif change == "weights missing":
        del arrays["callback.0.1.bias"]
    else:
        arrays["callback.0.1.bias"] = np.zeros(4, "f")
    metadata = {name: item for name, item in metadata.items() if not name.startswith("format")}
    files.write(path, "checkpoint", arrays, metadata)
    model = _model()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"run does not fit the callback EarlyStopping: "):
        _fit(model, 3, callbacks=[EarlyStopping()], checkpoint=path, resume=True)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.F2
@pytest.mark.F4
def test_steps_that_nobody_makes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    _fit(_model(), 1, checkpoint=path)
    arrays, metadata = files.read(path, "checkpoint")
    metadata = {name: item for name, item in metadata.items() if not name.startswith("format")}
    for steps in (2**53, 2**63, 10**40):
        files.write(path, "checkpoint", arrays, {**metadata, "optimizer": {**metadata["optimizer"], "steps": steps}})
        with pytest.raises(files.FileFormatError, match="steps of the optimizer is"):
            _fit(_model(), 2, checkpoint=path, resume=True)


@pytest.mark.F2
@pytest.mark.parametrize("more", [-1, 1, 1000])
def test_steps_of_optimizer_and_sparsity_algorithm_must_agree(more: int, tmp_path: Path) -> None:
    """RigL prepares for the step that comes next: training would stop at the first one that it did not expect."""
    path = tmp_path / "run"
    checkpoint.save(path, _snapshot(0, epochs=2))
    arrays, metadata = files.read(path, "checkpoint")
    metadata = {name: item for name, item in metadata.items() if not name.startswith("format")}
    metadata["sparsity"]["last"] += more
    files.write(path, "checkpoint", arrays, metadata)
    with pytest.raises(files.FileFormatError, match="damaged"):
        checkpoint.restore(path, _snapshot(1, epochs=1))
