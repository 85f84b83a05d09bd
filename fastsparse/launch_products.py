"""Launching products: SpMM, SpMV and SDDMM. A part of `launch`: nothing is validated here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import workspace
from fastsparse.launch import (
    CLAMPS,
    Call,
    Record,
    Template,
    address,
    numbers,
    run,
    run_call,
    set_epilogue,
    write_address,
)
from fastsparse.plan import policy
from fastsparse.plan.linear import Machine, SpmvPlan
from fastsparse.plan.lookup import LookupPlan
from fastsparse.plan.sddmm import SddmmPlan
from fastsparse.plan.tiles import SpmmPlan
from fastsparse_kernels import lookup, row_sums, sddmm, sddmm_runs, spmm, spmv
from fastsparse_kernels.operators import ROWS, TOGETHER


def _prepare_spmm(plan: SpmmPlan, m: Machine) -> tuple[Record, tuple[int, ...], int, float]:
    """What all calls of a plan share: the record's fixed fields, the kernel's arguments, scratch per worker, work."""
    operator, tiles = plan.operator, plan.tiles
    width = tiles.width * m.vector
    partial = operator.widest_group * width if operator.blocks > 1 else 0
    packed, in_a_row = tiles.columns is not None, tiles.in_a_row(m.vector)
    assert in_a_row or not packed
    panel = int(np.diff(operator.columns.starts).max(initial=0)) * width if packed else 0
    together = 0
    if operator.alike and tiles.width in policy.alike_rates(m.vector):
        together = row_sums.ALIKE
    elif operator.lockstep:
        together = row_sums.LOCKSTEP
    finished = width * (2 + TOGETHER if together else 2)
    scratch = -(-(partial + finished + panel) // 64) * 64
    record = Record(
        spmm.ARGUMENTS,
        tiles=tiles.count,
        groups=operator.groups,
        blocks=operator.blocks,
        group_starts=address(operator.group_starts),
        segments=address(operator.segments),
        entries=address(operator.entries),
        offsets=address(operator.offsets),
        block_bases=address(operator.columns.bases),
        block_rows=address(operator.columns.starts),
        x_positions=address(tiles.x_positions),
        x_row_stride=plan.x_row_stride,
        packed=packed,
        tile_columns=0 if tiles.columns is None else address(tiles.columns),
        ahead=plan.asks != 0,
        y_positions=address(tiles.y_positions),
        past_caches=plan.past_caches,
        tile_pieces=address(tiles.tile_pieces),
        pieces=address(tiles.pieces),
        scratch_stride=scratch,
        scratch_tile=partial,
        scratch_panel=partial + finished,
    )
    flops = 2.0 * operator.nnz * tiles.count * tiles.width * m.lanes
    variant = m.bits, m.lanes, tiles.width, int(in_a_row), together
    return record, variant, scratch, flops


def _prepared_spmm(plan: SpmmPlan, m: Machine) -> tuple[Record, tuple[int, ...], int, float]:
    prepared = plan.prepared.get("launch")
    if prepared is None:
        prepared = plan.prepared["launch"] = _prepare_spmm(plan, m)
    return prepared


def spmm_scratch(plan: SpmmPlan, m: Machine) -> int:
    """Bytes of scratch that one worker needs."""
    return _prepared_spmm(plan, m)[2]


def spmm_call(
    plan: SpmmPlan,
    values: NDArray[Any],
    x: int,
    y: int,
    m: Machine,
    *,
    scratch: int,
    y_row_stride: int,
    batches: int = 1,
    x_batch_stride: int = 0,
    y_batch_stride: int = 0,
    bias: NDArray[Any] | None = None,
    residual: int = 0,
    activation: str | None = None,
) -> Call:
    """See `run_spmm`; scratch is the address of `spmm_scratch` bytes per worker."""
    template, variant, _, flops = _prepared_spmm(plan, m)
    record = template.copy()
    record.set(
        values=address(values),
        x=x,
        x_batch_stride=x_batch_stride,
        y=y,
        y_batch_stride=y_batch_stride,
        y_row_stride=y_row_stride,
        residual=residual,
        scratch=scratch,
    )
    set_epilogue(record, bias, activation, m)
    y_bytes = int(plan.operator.group_starts[-1]) * y_row_stride * batches
    far_residual = residual != 0 and policy.is_far(y_bytes, m.l3_bytes)
    kernel = spmm.spmm_kernel(*variant, plan.asks or (ROWS if far_residual else 0))
    return Call(kernel, record, plan.tiles.count * batches * plan.operator.groups, flops * batches)


def run_spmm(plan: SpmmPlan, values: NDArray[Any], x: int, y: int, m: Machine, **rest: Any) -> None:
    """SpMM over the plan's tiles, in each of `batches` batches. x and y are addresses, strides are in bytes.

    values : packed by `plan.operator.pack`
    residual : address of what is added before the activation, laid out as y is; y itself is allowed
    rest : keywords of `spmm_call`, without scratch
    """
    scratch = workspace.take("scratch", spmm_scratch(plan, m) * m.workers)
    run_call(spmm_call(plan, values, x, y, m, scratch=address(scratch), **rest), m.workers)


def spmm_template(
    plan: SpmmPlan, values: NDArray[Any], m: Machine, *, y_row_stride: int, activation: str | None = None
) -> Template:
    """SpMM over the plan's tiles, to be run with the addresses of x, y and the bias (0 for none); as `run_spmm`."""
    call = spmm_call(plan, values, 0, 0, m, scratch=0, y_row_stride=y_row_stride, activation=activation)
    scratch = spmm_scratch(plan, m) * m.workers
    return Template(call, "x", "y", m.workers, scratch=scratch, keep=(plan, values))


def spmv_scratch(plan: SpmvPlan | LookupPlan, activation: str | None, m: Machine) -> int:
    """Bytes of scratch that one worker needs: none for what runs on registers."""
    if isinstance(plan, LookupPlan):
        return (plan.widest_group * plan.chunks + 1) * m.vector
    return 0 if activation in CLAMPS else spmv.scratch_bytes(m.bits, m.lanes)


def _prepare_spmv(plan: SpmvPlan | LookupPlan, m: Machine) -> tuple[Record, Any]:
    """The record's fixed fields, and the kernel."""
    if isinstance(plan, LookupPlan):
        scratch = spmv_scratch(plan, None, m)
        record = Record(
            lookup.ARGUMENTS,
            group_starts=address(plan.group_starts),
            chunks=plan.chunks,
            inputs=plan.inputs,
            slice_starts=address(plan.slice_starts),
            vector_starts=address(plan.vector_starts),
            vectors=address(plan.vectors),
            places=address(plan.places),
            positions=address(plan.positions),
            scratch_stride=scratch,
            scratch_vector=scratch - m.vector,
        )
        return record, lookup.lookup_kernel()
    record = Record(
        spmv.ARGUMENTS,
        group_starts=address(plan.group_starts),
        indptr=address(plan.indptr),
        columns=address(plan.columns),
        nonzeros=plan.nonzeros,
        scratch_stride=spmv.scratch_bytes(m.bits, m.lanes),
    )
    return record, spmv.spmv_kernel(m.bits, m.lanes, plan.column_bits)


def spmv_call(
    plan: SpmvPlan | LookupPlan,
    values: NDArray[Any],
    x: int,
    y: int,
    m: Machine,
    *,
    scratch: int,
    bias: NDArray[Any] | None = None,
    activation: str | None = None,
) -> Call:
    """y (M,) = W @ x (K,), both contiguous. scratch is the address of `spmv_scratch` bytes a worker.

    values : packed by `plan.pack`
    """
    prepared = plan.prepared.get("launch")
    if prepared is None:
        prepared = plan.prepared["launch"] = _prepare_spmv(plan, m)
    record, kernel = prepared[0].copy(), prepared[1]
    record.set(values=address(values), x=x, y=y, scratch=scratch)
    set_epilogue(record, bias, activation, m)
    return Call(kernel, record, len(plan.group_starts) - 1, 2.0 * plan.nonzeros)


def spmv_template(
    plan: SpmvPlan | LookupPlan, values: NDArray[Any], m: Machine, *, activation: str | None = None
) -> Template:
    """y (M,) = W @ x (K,), both contiguous, to be run with the addresses of x, y and the bias (0 for none)."""
    call = spmv_call(plan, values, 0, 0, m, scratch=0, activation=activation)
    scratch = spmv_scratch(plan, activation, m) * m.workers
    return Template(call, "x", "y", m.workers, scratch=scratch, keep=(plan, values))


def run_sddmm(
    plan: SddmmPlan,
    gradients: NDArray[Any],
    x: int,
    y: int,
    m: Machine,
    *,
    y_row_stride: int,
    batches: int = 1,
    x_batch_stride: int = 0,
    y_batch_stride: int = 0,
) -> None:
    """gradients (in the plan's order) += y x^T at the nonzeros, over all positions of `batches` batches."""
    operator, order = plan.operator, plan.order
    kernel, scratch_stride = sddmm.sddmm_kernel, 0
    if plan.in_fours:
        kernel, scratch_stride = sddmm_runs.sddmm_runs_kernel, sddmm_runs.scratch_bytes(m.lanes, m.bits, order.longest)
    scratch = workspace.take("scratch", scratch_stride * m.workers)
    record = Record(
        sddmm.ARGUMENTS,
        blocks=operator.blocks,
        segments=address(operator.segments),
        entries=address(order.entries),
        offsets=address(order.offsets),
        gradients=write_address(gradients, numbers(m), order.size, "gradients"),
        block_bases=address(operator.columns.bases),
        run_length=plan.run_length,
        runs_per_block=plan.runs_per_block,
        x_batch_stride=x_batch_stride,
        x_step=plan.x_step,
        y_batch_stride=y_batch_stride,
        y_row_stride=y_row_stride,
        y_step=plan.y_step,
        scratch=address(scratch),
        scratch_stride=scratch_stride,
    )
    flops = 2.0 * operator.nnz * m.lanes
    for batch, count, first, positions in _sddmm_parts(plan, batches, flops * plan.positions * batches):
        record.set(
            batches=count,
            positions=positions,
            x=x + batch * x_batch_stride,
            x_runs=address(plan.x_runs) + 8 * first,
            y=y + batch * y_batch_stride,
            y_runs=address(plan.y_runs) + 8 * first,
        )
        run(kernel(m.bits, m.lanes), record, operator.groups, flops * positions * count, m.workers)


def _sddmm_parts(plan: SddmmPlan, batches: int, flops: float) -> Iterator[tuple[int, int, int, int]]:
    """Pieces of an SDDMM that row groups alone would not cut short enough, in the order of the whole.

    First batch and number of batches, first run and number of positions of every piece.
    """
    pieces = math.ceil(flops / (policy.SLICE_FLOPS * max(1, plan.operator.groups)))
    batch_step = max(1, batches // max(1, pieces))
    blocks = -(-len(plan.x_runs) // plan.runs_per_block)
    run_step = plan.runs_per_block * max(1, blocks // max(1, -(-pieces // max(1, batches))))
    for batch in range(0, batches, batch_step):
        for first in range(0, len(plan.x_runs), run_step):
            positions = min(run_step * plan.run_length, plan.positions - first * plan.run_length)
            yield batch, min(batch_step, batches - batch), first, positions
