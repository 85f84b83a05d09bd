"""What an engine did with a network: one row per kernel call, measured; and latencies of whole calls."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastsparse.engine.program import Conv, Linear, Program
from fastsparse.engine.report_page import write_page
from fastsparse.engine.schedule import Step
from fastsparse.engine.workspace import Workspace
from fastsparse.runtime import measure

_STEP_SECONDS = 0.002  # a step is repeated for about this long
_REPEATS = (3, 50)
_HEADER = ("layer", "operator", "output", "sparsity", "kernel", "time", "share", "GF/s", "of peak")
_LEFT = 5  # columns of text


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
        write_page(self, path)

    def __str__(self) -> str:
        total = max(self.milliseconds, 1e-12)
        table = [_HEADER]
        for row in self.rows:
            shape = "" if row.output is None else "x".join(map(str, row.output))
            sparsity = "" if row.sparsity is None else f"{row.sparsity:.1%}"
            rate, share = "", ""
            if row.gflops is not None:
                rate, share = f"{row.gflops:.1f}", f"{row.gflops / self.peak_gflops:.0%}"
            cost = f"{row.milliseconds:.4f} ms", f"{row.milliseconds / total:.0%}"
            table.append((row.layer, row.operator, shape, sparsity, row.kernel, *cost, rate, share))
        widths = [max(len(line[i]) for line in table) for i in range(len(_HEADER))]
        lines = [
            "  ".join(
                cell.ljust(w) if i < _LEFT else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))
            ).rstrip()
            for line in table
        ]
        rule = "-" * max(map(len, lines))
        facts = [f"{name}: {text}" for name, text in self.facts.items()]
        return "\n".join([*facts, lines[0], rule, *lines[1:]])


def measured(program: Program, workspace: Workspace, x: Any, y: Any) -> Report:
    """Run a workspace's steps one by one, in their order, each repeated on the same data.

    x and y are arrays, or lists of them for programs of several inputs or outputs.
    """
    schedule, machine_bits = workspace.schedule, program.dtype.itemsize * 8
    peak = measure.peak_flops(machine_bits) / 1e9
    workspace.set_arrays(x, y)
    workspace.run(x, y)
    # A task's time counts as often as tasks follow one another.
    turns = math.ceil(schedule.tasks / schedule.slots) if schedule.per_worker else schedule.tasks
    found: dict[tuple[str, str], list[Any]] = {}
    for index, step in enumerate(schedule.steps):
        spent = fastest_seconds(lambda index=index: workspace.run_step(index))  # type: ignore[misc]
        entry = found.setdefault((step.name, step.kernel), [step, 0.0])
        entry[1] += spent * turns
    cores = schedule.slots if schedule.per_worker else schedule.workers
    batch = len(x if isinstance(x, np.ndarray) else x[0])
    rows = [_row(program, step, spent, batch, cores) for step, spent in found.values()]
    return Report(rows, peak, _facts(program, workspace, batch, peak))


def _row(program: Program, step: Step, spent: float, batch: int, cores: int) -> Row:
    node, name = step.node, step.name
    if node is None:
        return Row(name, "", None, None, step.kernel, spent * 1e3, None)
    op, layer = node.operator, name.partition(" ")[0]
    words = " ".join(word for word in name.split(" ") if not word.replace(".", "").isdigit())
    sparsity, gflops, kernel, why = None, None, step.kernel, ""
    if isinstance(op, Conv | Linear):
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


def _facts(program: Program, workspace: Workspace, batch: int, peak: float) -> dict[str, str]:
    schedule = workspace.schedule
    each = "each worker runs whole tasks" if schedule.per_worker else "workers share every step"
    facts = {
        "batch": f"{batch} samples of {'x'.join(map(str, program.shapes[program.inputs[0]]))}, {program.dtype}",
        "workers": f"{schedule.workers}; {schedule.tasks} task(s), {each}",
        "memory": f"{workspace.nbytes / 1e6:.1f} MB of activations and scratch per call in flight",
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
    """Call for about `duration` seconds, at least three times, after two calls that are not counted."""
    call()
    call()
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - begin < duration:
        taken.append(measure.seconds(call))
    p50, p95, p99 = (float(p) * 1e3 for p in np.percentile(taken, (50, 95, 99)))
    return Benchmark(batch, len(taken), p50, p95, p99, batch * len(taken) / sum(taken))
