"""The runs of a comparison: kept in a file, summed up in a table, drawn as curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastsparse.runtime.atomic_file import write_text


@dataclass(frozen=True)
class Case:
    """One way to train one task; `within` is how many points it may lose to the dense twin."""

    task: str
    method: str
    sparsity: float = 0.0
    within: float | None = None

    @property
    def label(self) -> str:
        """Method and sparsity."""
        return self.method if self.method == "dense" else f"{self.method} {self.sparsity:.0%}"


@dataclass(frozen=True)
class Run:
    """What one training gave: accuracy on test data, and per epoch the loss and the validation accuracy."""

    accuracy: float
    seconds: float
    loss: list[float]
    validation: list[float]
    nonzeros: int


class Store:
    """Runs in a JSON file that is replaced whole after each new one.

    Raises
    ------
    ValueError
        When the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, Any] = {}
        if path.exists():
            try:
                self._entries = json.loads(path.read_text(encoding="utf-8"))["runs"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path} does not hold the runs of a comparison, expected JSON with 'runs'") from None

    def find(self, case: Case, seed: int, key: dict[str, object]) -> Run | None:
        """The run, when there is one made with this `key`."""
        entry = self._entries.get(_name(case, seed))
        return Run(**entry["run"]) if entry and entry["key"] == key else None

    def runs(self, case: Case, seeds: int, key: dict[str, object]) -> list[Run]:
        """The runs of seeds 0, 1, ..., as far as there are any."""
        found = (self.find(case, seed, key) for seed in range(seeds))
        return [run for run in found if run is not None]

    def add(self, case: Case, seed: int, key: dict[str, object], run: Run) -> None:
        """Keep a run, in place of one of the same name."""
        self._entries[_name(case, seed)] = {"key": key, "run": asdict(run)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps({"runs": self._entries}, indent=1))


def _name(case: Case, seed: int) -> str:
    return f"{case.task} {case.method} {case.sparsity:g} seed {seed}"


def accuracies(runs: Mapping[Case, Sequence[Run]]) -> str:
    """The table, in Markdown: mean and standard deviation, and the mean of the paired differences to the dense twin."""
    from tabulate import tabulate

    rows = []
    for case, own in runs.items():
        dense = next((r for c, r in runs.items() if c.task == case.task and c.method == "dense"), None)
        points = [100 * run.accuracy for run in own]
        difference, wanted, met = "", "", ""
        if dense is not None and case.method != "dense":
            mean, error = mean_and_error([p - 100 * run.accuracy for p, run in zip(points, dense)])
            difference = f"{mean:+.2f} ± {error:.2f}"
            if case.within is not None:
                wanted, met = f"at least -{case.within:g}", "yes" if mean >= -case.within else "no"
        seconds = np.mean([run.seconds for run in own])
        accuracy = f"{np.mean(points):.2f}% (sd {_deviation(points):.2f})"
        rows.append(
            (case.task, case.label, accuracy, difference, wanted, met, f"{own[0].nonzeros:,}", f"{seconds:.0f}")
        )
    header = (
        "data",
        "method",
        "test accuracy",
        "difference to dense, points",
        "wanted",
        "met",
        "numbers stored",
        "seconds",
    )
    note = f"{len(next(iter(runs.values())))} seeds; sd: standard deviation over seeds, ±: standard error of the mean."
    return f"{tabulate(rows, header, 'github', disable_numparse=True)}\n\n{note}"


def paired(pair: tuple[Case, Case], runs: Mapping[Case, Sequence[Run]]) -> str:
    """One sentence: how much better the first case is, seed by seed."""
    first, second = pair
    mean, error = mean_and_error([100 * (a.accuracy - b.accuracy) for a, b in zip(runs[first], runs[second])])
    met = "yes" if mean > 2 * error else "no"
    return (
        f"{first.task}, {first.label} over {second.label}, paired by seed: {mean:+.2f} points, standard error "
        f"{error:.2f}; wanted: more than two standard errors; met: {met}"
    )


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (0 for a single value)."""
    return float(np.mean(values)), _deviation(values) / np.sqrt(len(values))


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def learning_curves(title: str, runs: Mapping[Case, Sequence[Run]]) -> Any:
    """Training loss and validation accuracy over the epochs, means and ranges over the seeds; a matplotlib Figure."""
    from matplotlib.figure import Figure

    from examples.pictures import curves

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    left, right = figure.subplots(1, 2)
    curves(left, {case.label: [run.loss for run in own] for case, own in runs.items()}, "training loss")
    left.set_yscale("log")
    curves(right, {case.label: [run.validation for run in own] for case, own in runs.items()}, "validation accuracy")
    best = max(max(run.validation) for own in runs.values() for run in own)
    worst = min(run.validation[-1] for own in runs.values() for run in own)
    right.set_ylim(worst - max(0.03, 3 * (best - worst)), min(1.0, best + 0.01))
    return figure
