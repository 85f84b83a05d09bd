"""The training loop."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

import numpy as np

from fastsparse import checks
from fastsparse.checks import Seed
from fastsparse.nn.module import Array, Module
from fastsparse.runtime.atomic_file import check_writable
from fastsparse.runtime.launch import rehearsal
from fastsparse.runtime.progress import progress_bar
from fastsparse.training import checkpoint as checkpoints
from fastsparse.training.data import Arrays, Batch, Data, Stream, batches
from fastsparse.training.diagnosis import check_parameters, find_not_finite
from fastsparse.training.history import History
from fastsparse.training.losses import cross_entropy
from fastsparse.training.optimizers import Optimizer
from fastsparse_kernels import compiler

Loss = Callable[..., tuple[float, Array]]
_BATCH = 32  # samples, where nobody says how many


class SparsityAlgorithm(Protocol):
    """Changes patterns while a model trains; `begin`, `state_dict` and `load_state_dict` are used where it has them."""

    def step(self, step: int) -> object:
        """Called after each step of the optimizer, with the number of steps made."""


@dataclass
class Progress:
    """What callbacks see after each epoch; setting `stop` ends the training.

    Attributes
    ----------
    model, optimizer, history
        ``history.records[-1]`` is the epoch's record.
    epoch : int
        Number of epochs done.
    epochs : int
        Number of epochs wanted.
    stop : bool
    """

    model: Module
    optimizer: Optimizer
    history: History
    epoch: int = 0
    epochs: int = 0
    stop: bool = False


def fit(
    model: Module,
    data: Data,
    *,
    epochs: int,
    batch_size: int | None = None,
    optimizer: Optimizer,
    loss: Loss = cross_entropy,
    sparsity: SparsityAlgorithm | None = None,
    validation: Data | None = None,
    callbacks: Iterable[Callable[[Progress], object]] = (),
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    rng: Seed = None,
) -> History:
    """Train a model; it is in evaluation mode afterwards, ready to be used, also where an exception ends the training.

    Parameters
    ----------
    model : fs.nn.Module
    data : (x, y) arrays, or an iterable of batches (x, y)
        x may be a scipy.sparse matrix, or a tuple of arrays for a model of several inputs. Arrays are shuffled for each
        epoch; an iterable is iterated over anew. A third member is one weight for each sample, which the loss is given.
    epochs : int
    batch_size : int, optional
        Of arrays; iterables bring their own. Default: 32, or all samples where there are fewer.
    optimizer : Optimizer
    loss : callable
        (output, y) -> (loss, gradient at the output); (output, y, weights) where the data have weights.
    sparsity : object with a method ``step(step)``, optional
        Changes the patterns, for example ``fs.sparsity.RigL(model)``; called after each step of the optimizer with
        the number of steps made. ``begin(steps, made)``, when it has that, is called first with the number of the last
        step and that of the steps which the optimizer has made.
    validation : like data, optional
        Evaluated after each epoch.
    callbacks : iterable of callables
        Each is called with a `Progress` after each epoch, for example `EarlyStopping`.
    progress : bool
        Show a progress bar on stderr; where that is no terminal, a line every ten seconds.
    checkpoint : path, optional
        Where model, optimizer, random state and history are saved after each epoch, in one atomic step.
    resume : bool
        Continue from `checkpoint` when the file exists; the run ends with the same bits as one never interrupted.
    rng : None, int or Generator
        For the order of samples.

    Returns
    -------
    History

    Raises
    ------
    ValueError, TypeError
        When an argument does not fit; nothing has been changed then.
    FloatingPointError
        When the loss, or at the end of an epoch a parameter that was trained, is NaN or infinite; the message names the
        layer where that began.
    """
    epochs, generator = checks.integer(epochs, "epochs", 0), checks.generator(rng)
    progress, resume = checks.flag(progress, "progress"), checks.flag(resume, "resume")
    callbacks = _checked(model, optimizer, loss, sparsity, callbacks)
    if resume and checkpoint is None:
        raise ValueError("resume is True and checkpoint is None, expected the path of a checkpoint")
    if checkpoint is not None:
        checkpoint = checks.path(checkpoint, "checkpoint")
        check_writable(checkpoint)
    batch_size = _capped(data, _BATCH) if batch_size is None else batch_size
    source = batches(data, batch_size)
    held_out = None if validation is None else batches(validation, _capped(validation, batch_size), "validation")
    run = _Run(model, optimizer, loss, sparsity, generator, callbacks)
    if resume and checkpoint is not None and os.path.exists(checkpoint):
        checkpoints.restore(checkpoint, run.snapshot())
    return run.train(source, held_out, epochs, progress, checkpoint)


def _checked(
    model: Module, optimizer: Optimizer, loss: Loss, sparsity: Any, callbacks: Iterable[Callable[[Progress], object]]
) -> list[Callable[[Progress], object]]:
    """The callbacks, when what `fit` was given is of the right kind and made for `model`."""
    if not isinstance(model, Module):
        raise TypeError(f"model is {_kind(model)}, expected a fastsparse.nn.Module")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is {_kind(optimizer)}, expected a fastsparse.training.Optimizer")
    if not callable(loss) or isinstance(loss, (type, Module)):
        raise TypeError(f"loss is {loss!r}, expected a function of (output, y)")
    if sparsity is not None and (isinstance(sparsity, type) or not callable(getattr(sparsity, "step", None))):
        raise TypeError(f"sparsity is {_kind(sparsity)}, expected an object with a method step(step)")
    callbacks = checks.items(callbacks, "callbacks", "a list of callables")
    for i, callback in enumerate(callbacks):
        if isinstance(callback, type) or not callable(callback):
            raise TypeError(f"callbacks[{i}] is {_kind(callback)}, expected an object that can be called")
    own = set(map(id, model.parameters()))
    other = getattr(sparsity, "model", None)
    changed = other.parameters() if isinstance(other, Module) else []
    for name, parameters in (("optimizer", optimizer.parameters), ("sparsity", changed)):
        if parameters and own.isdisjoint(map(id, parameters)):
            raise ValueError(f"{name} was made for another model: it has none of the parameters of model")
    return callbacks


def _kind(item: Any) -> str:
    return f"the class {item.__name__}" if isinstance(item, type) else f"a {type(item).__name__}"


def _value_and_gradient(result: Any) -> tuple[float, Array]:
    """What a loss returned."""
    if not isinstance(result, (tuple, list)) or len(result) != 2 or np.ndim(result[0]):
        items = result if isinstance(result, (tuple, list)) else (result,)
        found = " and ".join(f"{_kind(item)} of shape {np.shape(item)}" for item in items) or "nothing"
        raise TypeError(f"loss returned {found}, expected the mean loss, a number, and its gradient at the output")
    if not isinstance(result[0], (Real, np.ndarray)) or result[1] is None:
        raise TypeError(f"loss returned {result[0]!r} and {_kind(result[1])}, expected a number and the gradient")
    return float(result[0]), result[1]


def _capped(data: Any, batch_size: int) -> int:
    """The batch size, or the number of samples when there are fewer."""
    if isinstance(data, tuple) and len(data) in (2, 3) and np.ndim(data[1]):
        return max(1, min(batch_size, len(data[1])))
    return batch_size


@dataclass
class _Totals:
    """Sums over the samples of an epoch."""

    samples: int = 0
    loss: float = 0.0
    right: int | None = None

    def add(self, loss: float, output: Array, y: Any) -> None:
        """Count one batch."""
        count = len(output)
        self.samples += count
        self.loss += float(loss) * count
        labels = np.asarray(y)
        if labels.ndim == 1 and labels.dtype.kind in "iu" and output.ndim == 2 and output.shape[1] > 1:
            self.right = (self.right or 0) + int(np.count_nonzero(output.argmax(axis=1) == labels))

    def record(self, prefix: str = "") -> dict[str, float]:
        """Means, by name."""
        result = {f"{prefix}loss": self.loss / max(self.samples, 1)}
        if self.right is not None:
            result[f"{prefix}accuracy"] = self.right / max(self.samples, 1)
        return result


class _Clock:
    """Seconds since its creation: those of compiling or loading kernels, and all others."""

    def __init__(self) -> None:
        self._begin, self._compiled = time.perf_counter(), compiler.compile_seconds()

    @property
    def compile_seconds(self) -> float:
        return compiler.compile_seconds() - self._compiled

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begin - self.compile_seconds


@dataclass
class _Run:
    """One training run."""

    model: Module
    optimizer: Optimizer
    loss: Loss
    sparsity: Any
    rng: np.random.Generator
    callbacks: list[Callable[[Progress], object]]
    history: History = field(default_factory=History)
    _rehearsed: bool = False

    def snapshot(self) -> checkpoints.Snapshot:
        """What a checkpoint holds."""
        return checkpoints.Snapshot(self.model, self.optimizer, self.sparsity, self.rng, self.history, self.callbacks)

    def train(
        self,
        source: Arrays | Stream,
        held_out: Arrays | Stream | None,
        epochs: int,
        progress: bool,
        checkpoint: str | os.PathLike[str] | None,
    ) -> History:
        """Run the epochs that the history does not have yet."""
        state = Progress(self.model, self.optimizer, self.history, len(self.history), epochs)
        total = len(source) * epochs or None
        if callable(getattr(self.sparsity, "begin", None)):
            before = self.optimizer.steps - len(source) * state.epoch  # steps of other runs
            self.sparsity.begin(None if total is None else before + total, self.optimizer.steps)
        for callback in self.callbacks:
            if callable(getattr(callback, "begin", None)):
                callback.begin(state)  # type: ignore[attr-defined]
        try:
            with (
                progress_bar(total=total, initial=len(source) * state.epoch, disable=not progress, unit="batch") as bar,
                compiler.on_compile(lambda: self._compiling(source, held_out, bar)),
            ):
                while state.epoch < epochs and not state.stop:
                    self.history.records.append(self._epoch(source, held_out, state, bar))
                    state.epoch += 1
                    for callback in self.callbacks:
                        callback(state)
                    if checkpoint is not None:
                        checkpoints.save(checkpoint, self.snapshot())
        finally:
            self.model.eval()
        return self.history

    def _compiling(self, source: Arrays | Stream, held_out: Arrays | Stream | None, bar: Any) -> None:
        """A kernel is missing: say so, and have a copy of the model find out at once which others will be."""
        if not getattr(bar, "desc", "").startswith("compiling"):  # not for each kernel: a log has a line each time
            bar.set_description("compiling kernels (once)")
        if self._rehearsed:
            return
        self._rehearsed = True
        with suppress(Exception), np.errstate(all="ignore"), rehearsal():
            model, optimizer = copy.deepcopy((self.model, self.optimizer))
            for x in source.of_each_size():
                model.backward(np.zeros_like(model(x)), need_input=False)
                optimizer.step()
            for x in [] if held_out is None else held_out.of_each_size():
                model.eval()(x)

    def _epoch(
        self, source: Arrays | Stream, held_out: Arrays | Stream | None, state: Progress, bar: Any
    ) -> dict[str, float]:
        totals, clock, shown, epoch = _Totals(), _Clock(), 0.0, state.epoch + 1
        rate = self.optimizer.rate
        self.model.train()
        for batch in source.shuffled(self.rng):
            self._step(batch, epoch, totals, [] if totals.samples or epoch > 1 else [source, held_out])
            now = time.perf_counter()
            if now - shown > 0.2:
                shown = now
                bar.set_description(f"epoch {epoch}/{state.epochs}", refresh=False)
                bar.set_postfix(self._postfix(totals, clock.seconds), refresh=False)
            bar.update()
        check_parameters(self.model, set(self.optimizer.parameters), f"after epoch {epoch}")
        seconds = clock.seconds
        record = {"epoch": epoch, **totals.record(), "density": self._density(), "lr": rate}
        record["seconds"] = seconds
        if held_out is not None:
            record.update(evaluate(self.model, held_out, self.loss).record("val_"))
        record["compile_seconds"] = clock.compile_seconds
        bar.set_description(f"epoch {epoch}/{state.epochs}", refresh=False)
        bar.set_postfix({**self._postfix(totals, seconds), **_shown(record)}, refresh=False)
        return record

    def _step(self, batch: Batch, epoch: int, totals: _Totals, unseen: list[Arrays | Stream | None]) -> None:
        x, *wanted = batch
        self.optimizer.zero_grad()
        output = self.model(x)
        for source in unseen:
            if isinstance(source, Arrays) and self.loss is cross_entropy:
                source.check_labels(output.shape)
        value, grad = _value_and_gradient(self.loss(output, *wanted))
        if not math.isfinite(value):
            where = find_not_finite(self.model, x)
            raise FloatingPointError(f"the loss is {value} in epoch {epoch}, step {self.optimizer.steps + 1}: {where}")
        self.model.backward(grad, need_input=False)
        self.optimizer.step()
        if self.sparsity is not None:
            self.sparsity.step(self.optimizer.steps)
        totals.add(value, output, wanted[0])

    def _postfix(self, totals: _Totals, seconds: float) -> dict[str, str]:
        result = {name: f"{value:.4g}" for name, value in totals.record().items()}
        result["samples/s"] = f"{totals.samples / max(seconds, 1e-9):,.0f}"
        result["density"] = f"{self._density():.1%}"
        return result

    def _density(self) -> float:
        """Stored weights over all elements, of the sparse layers; 1.0 when there are none."""
        patterns = [parameter.pattern for parameter in self.model.parameters() if parameter.pattern is not None]
        full = sum(pattern.shape[0] * pattern.shape[1] for pattern in patterns)
        return sum(pattern.nnz for pattern in patterns) / full if full else 1.0


def evaluate(model: Module, source: Arrays | Stream, loss: Loss) -> _Totals:
    """Sums of loss and correct answers over all batches; leaves the model in evaluation mode."""
    model.eval()
    totals = _Totals()
    for x, *wanted in source.in_order():
        output = model(x)
        totals.add(_value_and_gradient(loss(output, *wanted))[0], output, wanted[0])
    return totals


def _shown(record: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.4g}" for name, value in record.items() if name.startswith("val_")}
