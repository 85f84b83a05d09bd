"""What an engine did with an ONNX model: the rows of every segment's program, and one row per host step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastsparse.engine import report as programs
from fastsparse.engine.report import Report, Row
from fastsparse.onnx.executor import Workspace
from fastsparse.onnx.model import Array
from fastsparse.onnx.ops.normalising import runs_in_kernel
from fastsparse.onnx.planning import NONE, Plan, Step
from fastsparse.onnx.weights import DENSEST, density
from fastsparse.runtime import measure


def measured(workspace: Workspace, inputs: Sequence[Array]) -> Report:
    """Run a workspace's steps one by one, in their order, each repeated on the same data."""
    plan = workspace.plan
    outputs = [np.empty(plan.shapes[t], plan.dtypes[t]) for t in plan.outputs]
    workspace.run(inputs, outputs)
    workspace.set_arrays(inputs, outputs)
    rows: list[Row] = []
    peak, flops = 0.0, 0.0
    for index, step in enumerate(plan.steps):
        if step.segment is not None:
            samples, program = step.segment.samples, step.segment.program
            x, y = (
                [np.reshape(workspace.arrays[t], (samples, -1)) for t in tensors]  # type: ignore[arg-type]
                for tensors in (step.inputs, step.outputs)
            )
            found = programs.measured(program, workspace.programs[index], x, y)
            rows += [_program_row(step, row) for row in found.rows]
            peak, flops = found.peak_gflops, flops + program.useful_flops() * samples
        elif not step.view:
            rows.append(_host_row(workspace, step))
        elif any(t in workspace.late for t in step.inputs):
            workspace.call(step)
    if not peak:
        peak = measure.peak_flops(32) / 1e9
    return Report(rows, peak, _facts(workspace, flops, peak))


def _program_row(step: Step, row: Row) -> Row:
    """A program's row, with the names of operators alone, and of packing and unpacking by the segment."""
    words = [part.split(" ")[-1] for part in row.operator.split(" + ")]
    layer = step.name if row.layer in ("input", "output") else row.layer
    return replace(row, layer=layer, operator=" + ".join(words))


def _host_row(workspace: Workspace, step: Step) -> Row:
    plan, node = workspace.plan, step.node
    assert node is not None
    with np.errstate(all="ignore"), workspace.blas():
        spent = programs.fastest_seconds(lambda: workspace.call(step))
    shape = plan.shapes[step.outputs[0]] if step.outputs else None
    inputs = [None if t == NONE else workspace.arrays[t] for t in step.inputs]
    sparsity, why = None, "row kernel" if runs_in_kernel(node, inputs, len(step.outputs)) else "NumPy"
    weight = plan.constants.get(step.inputs[1]) if len(step.inputs) > 1 else None
    if node.op == "fastsparse.SparseMatMul":
        sparsity, why = 1 - node.attributes["matrix"].density, "spmm"
    elif node.op in ("fastsparse.Linear", "Gemm", "Conv", "MatMul") and weight is not None:
        sparsity = 1 - density(weight)
        why = f"BLAS: denser than {DENSEST:.0%}" if 1 - sparsity > DENSEST else "BLAS"
    return Row(step.name, node.op.rpartition(".")[2], shape, sparsity, why, spent * 1e3, None)


def _facts(workspace: Workspace, flops: float, peak: float) -> dict[str, str]:
    plan: Plan = workspace.plan
    shapes = ", ".join(f"{plan.names[t]} {'x'.join(map(str, plan.shapes[t]))} {plan.dtypes[t]}" for t in plan.inputs)
    segments = sum(step.segment is not None for step in plan.steps)
    hosts = sum(step.node is not None and not step.view for step in plan.steps)
    return {
        "inputs": shapes,
        "steps": f"{segments} segments on the kernels, {hosts} host steps",
        "memory": f"{workspace.nbytes / 1e6:.1f} MB of activations and scratch per call in flight",
        "work": f"{flops / 1e6:.2f} MFLOP per call at the nonzeros of the segments",
        "peak": f"{peak:.0f} GF/s per core, measured",
    }
