"""The whole state of a training run in one file: saved atomically, restored all or nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import files
from fastsparse.nn.module import Module
from fastsparse.nn.parameter import Parameter
from fastsparse.nn.spec import to_spec
from fastsparse.nn.state import commit, stage
from fastsparse.training.history import History
from fastsparse.training.optimizers import Optimizer

Array = NDArray[Any]
PathLike = str | os.PathLike[str]


@dataclass
class Snapshot:
    """What a training run consists of.

    `sparsity` may have state_dict() and load_state_dict() in JSON types, callbacks may have them for arrays.
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
            for key, item in vars(module).items()
            if isinstance(item, np.random.Generator)
        }
        return {"": self.rng, **inside}


def save(path: PathLike, run: Snapshot) -> None:
    """Write a checkpoint."""
    arrays = {f"model.{name}": array for name, array in run.model.state_dict().items()}
    for name, parameter in _optimized(run):
        arrays.update((f"optimizer.{name}.{key}", array) for key, array in parameter.state.items())
    for place, callback in _stateful(run):
        arrays.update((f"callback.{place}.{name}", array) for name, array in callback.state_dict().items())
    metadata = {
        "architecture": _architecture(run.model),
        "optimizer": {"type": type(run.optimizer).__name__, "steps": run.optimizer.steps},
        "generators": {name: rng.bit_generator.state for name, rng in run.generators().items()},
        "history": run.history.records,
        "sparsity": run.sparsity.state_dict() if hasattr(run.sparsity, "state_dict") else None,
    }
    files.write(path, "checkpoint", arrays, metadata)


def restore(path: PathLike, run: Snapshot) -> None:
    """Bring a run back to where the checkpoint was written.

    Raises
    ------
    FileFormatError
        When the file is damaged or no checkpoint.
    ValueError
        When it belongs to another model, optimizer or kind of run. Nothing has been changed then.
    """
    arrays, metadata = files.read(path, "checkpoint")
    try:
        staged = stage(run.model, _within("model.", arrays))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is a checkpoint of another model: {error}") from error
    difference = _difference(metadata.get("architecture"), _architecture(run.model))
    if difference:
        raise ValueError(f"{os.fspath(path)} is a checkpoint of another model: {difference}")
    sizes = {id(parameter): value.shape for parameter, value, _ in staged.parameters}
    states = _optimizer_states(path, run, arrays, metadata["optimizer"], sizes)
    generators = run.generators()
    if set(metadata["generators"]) != set(generators):
        raise ValueError(f"{os.fspath(path)} holds other random generators than this run")
    _check_sparsity(path, run.sparsity, metadata["sparsity"])
    if hasattr(run.sparsity, "load_state_dict"):
        run.sparsity.load_state_dict(metadata["sparsity"])
    for name, rng in generators.items():
        rng.bit_generator.state = metadata["generators"][name]
    commit(staged)
    for parameter, state in states:
        parameter.state = state
    run.optimizer.steps = metadata["optimizer"]["steps"]
    run.history.records[:] = metadata["history"]
    for place, callback in _stateful(run):
        callback.load_state_dict(_within(f"callback.{place}.", arrays))


def _stateful(run: Snapshot) -> list[tuple[int, Any]]:
    """Callbacks that keep something in checkpoints, with their places."""
    return [(i, callback) for i, callback in enumerate(run.callbacks) if hasattr(callback, "load_state_dict")]


def _architecture(model: Module) -> Any:
    """The model's description; None when it holds layers that have none."""
    try:
        return to_spec(model)
    except TypeError:
        return None


def _difference(written: Any, own: Any, prefix: str = "") -> str:
    """Where two descriptions first differ, in words; empty when they do not or one is missing."""
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
    """Raise unless `state` is of an algorithm of the same type, or there is none on both sides."""
    own = algorithm.state_dict() if hasattr(algorithm, "state_dict") else None
    written, expected = (s.get("type") if isinstance(s, dict) else None for s in (state, own))
    if written != expected:
        raise ValueError(f"{os.fspath(path)} was written with the sparsity algorithm {written}, expected {expected}")


def _optimizer_states(
    path: PathLike, run: Snapshot, arrays: dict[str, Array], described: dict[str, Any], sizes: dict[int, Any]
) -> list[tuple[Parameter, dict[str, Array]]]:
    """The optimizer's arrays for each of its parameters, checked."""
    found = type(run.optimizer).__name__
    if described["type"] != found:
        raise ValueError(f"{os.fspath(path)} was written by the optimizer {described['type']}, expected {found}")
    states = []
    for name, parameter in _optimized(run):
        state = {key: np.array(array) for key, array in _within(f"optimizer.{name}.", arrays).items()}
        for key, array in state.items():
            if key not in run.optimizer.state_names or array.shape != sizes[id(parameter)]:
                raise ValueError(f"{os.fspath(path)} does not fit: optimizer entry {key!r} of {name!r}")
        states.append((parameter, state))
    return states


def _optimized(run: Snapshot) -> list[tuple[str, Parameter]]:
    """Names and parameters of the model that the optimizer updates."""
    own = {id(parameter) for parameter in run.optimizer.parameters}
    return [(name, parameter) for name, parameter in run.model.named_parameters() if id(parameter) in own]


def _within(prefix: str, arrays: dict[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
