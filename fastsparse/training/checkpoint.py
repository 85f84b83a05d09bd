"""The whole state of a training run in one file: saved atomically, restored all or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import files
from fastsparse.nn.module import Module
from fastsparse.nn.parameter import Parameter
from fastsparse.nn.spec import to_spec
from fastsparse.nn.state import Staged, commit, stage
from fastsparse.training.history import History
from fastsparse.training.optimizers import Optimizer

Array = NDArray[Any]
PathLike = str | os.PathLike[str]
_MOST_STEPS = 2**53  # which float64 counts


@dataclass
class Snapshot:
    """Everything that a checkpoint saves of a training run.

    `sparsity` may have state_dict() and load_state_dict() in JSON types, and check_steps(state, steps), which raises
    ValueError when the state does not belong to so many steps of the optimizer; callbacks may have the first two for
    arrays, and check_state(arrays, model, history), which raises ValueError when they do not belong to those.
    """

    model: Module
    optimizer: Optimizer
    sparsity: Any
    rng: np.random.Generator
    history: History
    callbacks: Sequence[Any] = ()

    def generators(self) -> dict[str, np.random.Generator]:
        """All sources of randomness: the order of samples, and those inside layers."""
        inside = {
            f"{name}.{key}": item
            for name, module in self.model.named_modules()
            for key, item in module.members()
            if isinstance(item, np.random.Generator)
        }
        return {"": self.rng, **inside}


def save(path: PathLike, run: Snapshot) -> None:
    """Write a checkpoint."""
    arrays = {f"model.{name}": array for name, array in run.model.state_dict().items()}
    for name, parameter in _optimized(run):
        state = run.optimizer.state_of(parameter)
        arrays.update((f"optimizer.{name}.{key}", array) for key, array in state.items())
    for i, callback in _stateful(run):
        arrays.update((f"callback.{i}.{name}", array) for name, array in callback.state_dict().items())
    metadata = {
        "architecture": _architecture(run.model),
        "optimizer": {"type": type(run.optimizer).__name__, "steps": run.optimizer.steps},
        "generators": {name: rng.bit_generator.state for name, rng in run.generators().items()},
        "history": run.history.records,
        "sparsity": run.sparsity.state_dict() if hasattr(run.sparsity, "state_dict") else None,
    }
    files.write(path, "checkpoint", arrays, metadata)


def restore(path: PathLike, run: Snapshot) -> None:
    """Restore a run to the state of the checkpoint.

    Raises
    ------
    FileFormatError
        When the file is damaged or no checkpoint.
    ValueError
        When it belongs to another model, optimizer or kind of run.

    When an exception is raised, also by a callback's ``load_state_dict``, nothing has been changed.
    """
    arrays, metadata = files.read(path, "checkpoint")
    with files.damage(path):
        _check_metadata(metadata)
    try:
        staged = stage(run.model, _within("model.", arrays))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is a checkpoint of another model: {error}") from error
    with files.damage(path):
        difference = _difference(metadata["architecture"], _architecture(run.model))
    if difference:
        raise ValueError(f"{os.fspath(path)} is a checkpoint of another model: {difference}")
    values = {id(parameter): value for parameter, value, _ in staged.parameters}
    states = _optimizer_states(path, run, arrays, metadata["optimizer"], values)
    generators = run.generators()
    _check_generators(path, generators, metadata["generators"])
    _check_sparsity(path, run.sparsity, metadata["sparsity"])
    _check_callbacks(path, run, arrays, History(metadata["history"]))
    with ExitStack() as undo:
        for take_back in _as_it_is(run, staged):
            undo.callback(take_back)
        if hasattr(run.sparsity, "load_state_dict"):
            with files.damage(path):
                if hasattr(run.sparsity, "check_steps"):
                    run.sparsity.check_steps(metadata["sparsity"], metadata["optimizer"]["steps"])
                run.sparsity.load_state_dict(metadata["sparsity"])
        for name, rng in generators.items():
            rng.bit_generator.state = metadata["generators"][name]
        commit(staged)
        for parameter, arrays_of in states:
            state = run.optimizer.state_of(parameter)
            state.clear()
            state.update(arrays_of)
        run.optimizer.steps = metadata["optimizer"]["steps"]
        run.history.records[:] = metadata["history"]
        for i, callback in _stateful(run):
            callback.load_state_dict(_within(f"callback.{i}.", arrays))
        undo.pop_all()


def _as_it_is(run: Snapshot, staged: Staged) -> Iterator[Callable[[], object]]:
    """Functions that restore each part of a run to its present state."""
    for parameter, _, _ in staged.parameters:
        yield parameter._snapshot()
    for module, name, _ in staged.buffers:
        yield partial(setattr, module, name, getattr(module, name))
    for rng in run.generators().values():
        yield partial(setattr, rng.bit_generator, "state", rng.bit_generator.state)
    yield partial(setattr, run.optimizer, "steps", run.optimizer.steps)
    yield partial(run.history.records.__setitem__, slice(None), list(run.history.records))
    for part in (run.sparsity, *(callback for _, callback in _stateful(run))):
        if hasattr(part, "load_state_dict"):
            yield partial(part.load_state_dict, part.state_dict())


def _check_metadata(metadata: dict[str, Any]) -> None:
    """Raise unless the metadata has the form that :func:`save` writes."""
    optimizer, generators, history = metadata["optimizer"], metadata["generators"], metadata["history"]
    steps = optimizer["steps"]
    if not isinstance(steps, int) or isinstance(steps, bool) or not 0 <= steps < _MOST_STEPS:
        raise ValueError(f"steps of the optimizer is {steps!r}, expected an integer from 0 to {_MOST_STEPS - 1}")
    if not isinstance(optimizer.get("type"), str):
        raise ValueError(f"the optimizer's type is {optimizer.get('type')!r}, expected its name")
    if not isinstance(generators, dict) or not all(isinstance(state, dict) for state in generators.values()):
        raise ValueError("generators are no states by name")
    if not isinstance(history, list) or not all(map(_is_record, history)):
        raise ValueError("history is no list of records of numbers")
    for name in ("architecture", "sparsity"):
        if not isinstance(metadata[name], (dict, type(None))):
            raise ValueError(f"{name} is {metadata[name]!r}, expected a description or nothing")


def _is_record(record: Any) -> bool:
    return isinstance(record, dict) and all(isinstance(item, (int, float)) for item in record.values())


def _check_generators(path: PathLike, generators: dict[str, np.random.Generator], states: dict[str, Any]) -> None:
    """Raise unless there is a valid state for each generator."""
    kinds = {name: type(rng.bit_generator).__name__ for name, rng in generators.items()}
    if {name: state.get("bit_generator") for name, state in states.items()} != kinds:
        raise ValueError(f"{os.fspath(path)} holds other random generators than this run")
    with files.damage(path):
        for name, rng in generators.items():
            type(rng.bit_generator)().state = states[name]


def _stateful(run: Snapshot) -> list[tuple[int, Any]]:
    """Callbacks that keep state in checkpoints, with their indices."""
    return [(i, callback) for i, callback in enumerate(run.callbacks) if hasattr(callback, "load_state_dict")]


def _architecture(model: Module) -> Any:
    """The model's description; None when it holds layers that have none."""
    try:
        return to_spec(model)
    except TypeError:
        return None


def _difference(written: Any, own: Any, prefix: str = "") -> str:
    """First difference of two descriptions, in words; empty when there is none or one is missing."""
    if written is None or own is None or written == own:
        return ""
    where = f"layer {prefix!r}" if prefix else "the model"
    if written["type"] != own["type"]:
        return f"{where} was a {written['type']}, expected {own['type']}"
    for name, value in own["arguments"].items():
        if written["arguments"].get(name) != value:
            return f"{where} had {name} = {written['arguments'].get(name)!r}, expected {value!r}"
    children, others = own.get("children", {}), written.get("children", {})
    for name in children:
        difference = _difference(others.get(name), children[name], f"{prefix}.{name}" if prefix else name)
        if difference:
            return difference
    return f"{where} had {len(others)} layers inside, expected {len(children)}"


def _check_sparsity(path: PathLike, algorithm: Any, state: Any) -> None:
    """Raise unless `state` belongs to an algorithm of the same type, or both are None."""
    own = algorithm.state_dict() if hasattr(algorithm, "state_dict") else None
    written, expected = (s.get("type") if isinstance(s, dict) else None for s in (state, own))
    if written != expected:
        raise ValueError(f"{os.fspath(path)} was written with the sparsity algorithm {written}, expected {expected}")


def _check_callbacks(path: PathLike, run: Snapshot, arrays: dict[str, Array], history: History) -> None:
    for i, callback in _stateful(run):
        if hasattr(callback, "check_state"):
            try:
                callback.check_state(_within(f"callback.{i}.", arrays), run.model, history)
            except ValueError as error:
                name = type(callback).__name__
                raise ValueError(f"{os.fspath(path)} does not fit the callback {name}: {error}") from error


def _optimizer_states(
    path: PathLike, run: Snapshot, arrays: dict[str, Array], described: dict[str, Any], values: dict[int, Array]
) -> list[tuple[Parameter, dict[str, Array]]]:
    """The optimizer's arrays for each of its parameters: all of them, or none before a first gradient.

    `values` are the parameters' values after restoring, by id: kernels write arrays of their shape and type.
    """
    found = type(run.optimizer).__name__
    if described["type"] != found:
        raise ValueError(f"{os.fspath(path)} was written by the optimizer {described['type']}, expected {found}")
    states = []
    for name, parameter in _optimized(run):
        state = {key: np.array(array) for key, array in _within(f"optimizer.{name}.", arrays).items()}
        if state and set(state) != set(run.optimizer.state_names):
            expected = ", ".join(run.optimizer.state_names) or "none"
            raise ValueError(f"{os.fspath(path)} has optimizer entries {', '.join(state)} of {name!r}, not {expected}")
        value = values[id(parameter)]
        for key, array in state.items():
            if array.shape != value.shape or array.dtype != value.dtype:
                raise ValueError(
                    f"{os.fspath(path)} does not fit: optimizer entry {key!r} of {name!r} is {array.dtype} "
                    f"{array.shape}, expected {value.dtype} {value.shape}"
                )
        states.append((parameter, state))
    return states


def _optimized(run: Snapshot) -> list[tuple[str, Parameter]]:
    """Names and parameters of the model that the optimizer updates."""
    own = {id(parameter) for parameter in run.optimizer.parameters}
    return [(name, parameter) for name, parameter in run.model.named_parameters() if id(parameter) in own]


def _within(prefix: str, arrays: dict[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
