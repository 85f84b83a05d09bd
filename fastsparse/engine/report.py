"""What an engine did with a network: one row per kernel call, measured; and latencies of whole calls."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastsparse import checks, html_page
from fastsparse.engine.program import Conv, Linear, Program, Recurrent
from fastsparse.engine.schedule import Step
from fastsparse.engine.workspace import Workspace
from fastsparse.runtime import measure
from fastsparse.text_table import text_bytes, text_table, wrapped
from fastsparse.timing import latencies

_STEP_SECONDS = 0.002  # a step is repeated for about this long
_REPEATS = (3, 50)
_COLUMNS = ("layer", "operator", "output", "sparsity", "kernel", "time", "share", "GF/s", "of peak")
_TEXT = 5  # columns of text


@dataclass(frozen=True)
class Row:
    """A step of the network, for one call with the whole batch.

    Attributes
    ----------
    layer, operator, kernel : str
    output : tuple of int, or None
        Shape of one sample.
    sparsity : float or None
        Share of weights that are zero and not stored.
    milliseconds : float
        Part of a call's time.
    gflops : float or None
        Useful multiplications and additions per second and core, in 1e9.
    why : str
        Why the layer is sparse or dense.
    """

    layer: str
    operator: str
    output: tuple[int, ...] | None
    sparsity: float | None
    kernel: str
    milliseconds: float
    gflops: float | None
    why: str = ""


@dataclass(frozen=True)
class Report:
    """Table of an engine's steps; `print` it.

    Attributes
    ----------
    rows : list of Row
    peak_gflops : float
        What one core reaches with multiply-adds on registers alone, measured.
    facts : dict of str to str
    """

    rows: list[Row]
    peak_gflops: float
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def milliseconds(self) -> float:
        """Sum over the rows."""
        return sum(row.milliseconds for row in self.rows)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as a page with bars, and with the reason why each layer is sparse or dense.

        Parameters
        ----------
        path : path
            Replaced in one step when it exists.
        """
        rows = [
            (*self._words(row), _milliseconds(row), html_page.bar(self._share(row)), *self._speed(row, html_page.bar),
             row.why)
            for row in self.rows
        ]  # fmt: skip
        page = html_page.page(
            "What the engine does",
            html_page.bullets(map(_fact, self.facts.items())),
            html_page.paragraph(f"{self.milliseconds:.3f} ms for all steps."),
            html_page.table([*_COLUMNS, "why"], rows, text=_TEXT),
        )
        html_page.write(path, page)

    def __str__(self) -> str:
        rows = [
            (*self._words(row), _milliseconds(row), f"{self._share(row):.0%}", *self._speed(row, "{:.0%}".format))
            for row in self.rows
        ]
        return "\n".join(
            [*(wrapped(_fact(fact)) for fact in self.facts.items()), text_table(_COLUMNS, rows, text=_TEXT)]
        )

    def _words(self, row: Row) -> tuple[str, ...]:
        shape = "" if row.output is None else "x".join(map(str, row.output))
        return row.layer, row.operator, shape, "" if row.sparsity is None else f"{row.sparsity:.1%}", row.kernel

    def _share(self, row: Row) -> float:
        """Of the time of all steps."""
        return row.milliseconds / max(self.milliseconds, 1e-12)

    def _speed(self, row: Row, show: Callable[[float], str]) -> tuple[str, str]:
        return ("", "") if row.gflops is None else (f"{row.gflops:.1f}", show(row.gflops / self.peak_gflops))


def _milliseconds(row: Row) -> str:
    return f"{row.milliseconds:.4f} ms"


def _fact(fact: tuple[str, str]) -> str:
    return ": ".join(fact)


def measured(program: Program, workspace: Workspace, x: Any, y: Any) -> Report:
    """Run a workspace's steps one by one, in their order, each repeated on the same data.

    x and y are arrays, or lists of them for programs of several inputs or outputs.
    """
    peak = measure.peak_flops(program.dtype.itemsize * 8) / 1e9
    workspace.run(x, y)
    while workspace.trial is not None and not workspace.trial.decided:
        workspace.run(x, y)
    taken = workspace.taken
    schedule = taken.schedule
    # A task's time counts as often as tasks follow one another.
    turns = math.ceil(schedule.tasks / schedule.slots) if schedule.per_worker else schedule.tasks
    found: dict[tuple[str, str], list[Any]] = {}
    for index, step in enumerate(schedule.steps):
        spent = fastest_seconds(lambda index=index: taken.run_step(index))  # type: ignore[misc]
        entry = found.setdefault((step.name, step.kernel), [step, 0.0])
        entry[1] += spent * turns
    cores = schedule.slots if schedule.per_worker else schedule.workers
    batch = len(x if isinstance(x, np.ndarray) else x[0])
    rows = [_row(program, step, spent, batch, cores) for step, spent in found.values()]
    return Report(rows, peak, _facts(program, workspace, taken, batch, peak))


def _row(program: Program, step: Step, spent: float, batch: int, cores: int) -> Row:
    node, name = step.node, step.name
    if node is None:
        return Row(name, "", None, None, step.kernel, spent * 1e3, None)
    op, layer = node.operator, name.partition(" ")[0]
    words = " ".join(word for word in name.split(" ") if not word.partition(".")[0].isdigit())
    sparsity, gflops, kernel, why = None, None, step.kernel, ""
    if isinstance(op, Recurrent):
        weights = [w for d in op.directions for w in (d.W, d.R)]
        sparsity = 1 - sum(w.nnz for w in weights) / max(1, sum(math.prod(w.shape) for w in weights))
    elif isinstance(op, Conv | Linear):
        rows, columns = op.weight.shape
        sparsity = 1 - op.weight.nnz / max(1, rows * columns)
        gflops = op.useful_flops * batch / max(spent, 1e-12) / cores / 1e9
        kernel += ", dense layer" if op.dense else ""
        why = _reason(op)
    return Row(layer, words, program.shapes[node.output], sparsity, kernel, spent * 1e3, gflops, why)


def _reason(op: Conv | Linear) -> str:
    """Why a product runs as it does."""
    rows, columns = op.weight.shape
    if op.weight.nnz == rows == columns:
        return "fits into no other layer: a product with a diagonal, which keeps the activations' layout"
    if op.weight.nnz == rows * columns and (isinstance(op, Linear) or op.geometry.groups == 1):
        return "dense: full rows share what they read, four at a time, and activations keep their layout"
    if op.dense:
        return "dense in the model: as a full pattern, so that activations keep their layout"
    return "sparse: only the weights that are there are multiplied"


def _facts(program: Program, workspace: Workspace, taken: Workspace, batch: int, peak: float) -> dict[str, str]:
    schedule = taken.schedule
    each = "each worker runs whole tasks" if schedule.per_worker else "workers share every step"
    tried = "" if workspace.alone is None else f"; the faster at the moment of 1 and {workspace.schedule.workers}"
    sizes = "x".join(map(str, program.shapes[program.inputs[0]]))
    facts = {
        "batch": f"{batch} sample{'s' * (batch > 1)} of {sizes}, {program.dtype}",
        "workers": f"{schedule.workers}; {schedule.tasks} task{'s' * (schedule.tasks > 1)}, {each}{tried}",
        "memory": f"{text_bytes(workspace.nbytes)} of activations and scratch per call in flight",
        "work": f"{program.useful_flops() / 1e6:.2f} MFLOP per sample at the nonzeros",
        "peak": f"{peak:.0f} GF/s per core, measured",
    }
    if any(isinstance(n.operator, Conv | Linear) and n.operator.dense for n in program.nodes):
        facts["dense layers"] = "run on the sparse kernels as full patterns, so that activations keep their layout"
    return facts


def fastest_seconds(call: Callable[[], object]) -> float:
    """Least of some calls' times, about as many as fit a few milliseconds."""
    once = measure.seconds(call)
    repeats = max(_REPEATS[0], min(_REPEATS[1], int(_STEP_SECONDS / max(once, 1e-9))))
    return min(measure.seconds(call) for _ in range(repeats))


# ---------------------------------------------------------------- whole calls


@dataclass(frozen=True)
class Benchmark:
    """Latencies of an engine's calls, in milliseconds, and samples per second; `print` it."""

    batch: int
    calls: int
    p50: float
    p95: float
    p99: float
    throughput: float

    def __str__(self) -> str:
        return (
            f"batch {self.batch}: p50 {self.p50:.3f} ms, p95 {self.p95:.3f} ms, p99 {self.p99:.3f} ms, "
            f"{self.throughput:,.0f} samples/s ({self.calls} calls)"
        )


def timed_calls(call: Callable[[], object], batch: int, duration: float) -> Benchmark:
    """Call for about `duration` seconds, at least three times, after calls that are not counted."""
    rounds = latencies({"": call}, checks.number(duration, "seconds"))[""]
    return summed_up([seconds for taken in rounds for seconds in taken], batch)


def summed_up(taken: Sequence[float], batch: int) -> Benchmark:
    """Percentiles of calls that took so many seconds."""
    p50, p95, p99 = (float(p) * 1e3 for p in np.percentile(taken, (50, 95, 99)))
    return Benchmark(batch, len(taken), p50, p95, p99, batch * len(taken) / sum(taken))
