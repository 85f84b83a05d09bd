"""What an engine did with an ONNX model: the rows of every region's program, and one row per group of the library's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastsparse.engine import report as programs
from fastsparse.engine.report import Report, Row
from fastsparse.onnx import sessions
from fastsparse.onnx.executor import Kernels, Plan
from fastsparse.onnx.model import Node
from fastsparse.runtime import measure
from fastsparse.text_table import text_bytes

_NAMED = 4  # operators of a group that its row names


def measured(plan: Plan, values: dict[str, Any], workers: int, reasons: Mapping[str, str]) -> Report:
    """Run the steps one by one, in their order, each repeated on the same data."""
    inputs = {name: values[name] for name in plan.inputs}
    plan.run(values, workers)
    rows: list[Row] = []
    peak, flops, memory, kernels = 0.0, 0.0, 0, 0
    used: dict[str, None] = {}  # workers of programs
    for step in plan.steps:
        found = step.plan([values[n].shape for n in step.inputs], workers) if isinstance(step, Kernels) else None
        if found is None:
            host = step.twin if isinstance(step, Kernels) else step
            rows.append(_host_row(host, values, workers, isinstance(step, Kernels)))
            continue
        assert isinstance(step, Kernels)
        specialised, pool = found
        program, samples = specialised.program, specialised.samples
        dtype = program.dtype
        x = [np.ascontiguousarray(values[n], dtype).reshape(samples, -1) for n in specialised.inputs]
        y = [np.empty((samples, int(np.prod(shape)) // samples), dtype) for shape in specialised.outputs]
        with pool.workspace() as workspace:
            report = programs.measured(program, workspace, x, y)
            memory += workspace.nbytes
        used[report.facts["workers"]] = None
        first, why = step.nodes[0].name, reasons.get(step.outputs[0], "estimated to be faster than the library")
        rows += [_program_row(first, row, why) for row in report.rows]
        peak, flops, kernels = report.peak_gflops, flops + program.useful_flops() * samples, kernels + 1
    if not peak:
        peak = measure.peak_flops(32) / 1e9
    shapes = ", ".join(f"{n} {'x'.join(map(str, np.shape(v)))} {getattr(v, 'dtype', '')}" for n, v in inputs.items())
    facts = {
        "inputs": shapes,
        "steps": f"{kernels} on the kernels, {len(plan.steps) - kernels} in {sessions.library(sessions.onnxruntime())}",
        "workers": " / ".join(used) or str(workers),
        "memory": f"{text_bytes(memory)} of the kernels' activations and scratch per call in flight",
        "work": f"{flops / 1e6:.2f} MFLOP per call at the nonzeros of what the kernels run",
        "peak": f"{peak:.0f} GF/s per core, measured",
    }
    if "" in reasons:
        facts["choice"] = reasons[""]
    elif not kernels:
        facts["choice"] = "all of it is the library's: nothing is sparse enough for the kernels to be faster"
    return Report(rows, peak, facts)


def _program_row(first: str, row: Row, why: str) -> Row:
    """A program's row, with the names of operators alone, and of packing and unpacking by the region."""
    words = [part.split(" ")[-1] for part in row.operator.split(" + ")]
    layer = first if row.layer in ("input", "output") else row.layer
    return replace(row, layer=layer, operator=" + ".join(words), why=f"{row.why}; {why}".strip("; "))


def _host_row(host: Any, values: dict[str, Any], workers: int, unfit: bool) -> Row:
    session = host.session(workers)
    feeds = {name: values[name] for name in session.inputs}
    spent = programs.fastest_seconds(lambda: session.run(feeds))
    last = values[host.outputs[-1]]
    shape = last.shape if isinstance(last, np.ndarray) else None
    why = "shapes that the kernels do not take" if unfit else "dense, or nothing that the kernels are faster at"
    name = host.nodes[0].name if host.nodes else host.outputs[0]
    return Row(name, _operators(host.nodes), shape, None, sessions.library(session.library), spent * 1e3, None, why)


def _operators(nodes: list[Node]) -> str:
    """The operators of a group, the most frequent ones by name."""
    counts = Counter(node.op.rpartition(".")[2] for node in nodes)
    words = [op if n == 1 else f"{n} {op}" for op, n in counts.most_common(_NAMED)]
    rest = sum(n for _, n in counts.most_common()[_NAMED:])
    return ", ".join(words) + (f" and {rest} more" if rest else "")
