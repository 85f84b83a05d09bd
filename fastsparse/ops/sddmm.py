"""SDDMM: sampled products of dense matrices, weight gradients at a pattern's nonzeros."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import Pattern
from fastsparse.ops.layouts import panel_stride
from fastsparse.ops.sparse_operator import (
    INDEX_LIMIT,
    Reordering,
    SparseOperator,
    linear_operator,
    pack_entries,
    with_read_ahead,
)
from fastsparse.ops.spmm import panel_width
from fastsparse.ops.target import Target
from fastsparse.runtime import buffers
from fastsparse.runtime.launch import Arguments, Launch, expect_launcher
from fastsparse_kernels import sddmm
from fastsparse_kernels import sparse_operator as kernels
from fastsparse_kernels.sparse_operator import RUN_VECTORS

# ------------------------------------------------------------------------------------------------- plans


@dataclass(frozen=True, eq=False)
class GradientOrder:
    """Order of gradients in the kernel: contiguous per entry of the operator.

    `entries` as in `SparseOperator`, but giving the end of each entry's nonzeros, which may begin after a gap.
    `csr` reorders gradients from it into the CSR's order; `size` is their number with gaps, `longest` the longest
    entry's length.
    """

    entries: NDArray[np.uint32]
    offsets: NDArray[np.uint32]
    csr: Reordering
    size: int
    longest: int

    def pack(self, values: NDArray[Any]) -> NDArray[Any]:
        """From the CSR's order into the kernel's."""
        gradients = np.zeros(self.size, values.dtype)
        kernels.scatter(values.itemsize * 8)(values, self.csr.indices, gradients)
        return gradients


def gradient_order(operator: SparseOperator, by_fours: bool) -> GradientOrder:
    """The operator's own order, or one with gaps, so that every entry begins at a multiple of four."""
    multiple = RUN_VECTORS if by_fours else 1
    ends = operator.row_ends.astype(np.int64)
    lengths = np.diff(ends)
    begins = np.cumsum(-(-lengths // multiple) * multiple)
    size = int(begins[-1]) if len(begins) else 0
    if size >= INDEX_LIMIT:
        raise ValueError(f"W has {operator.nnz} nonzeros, {size} with gaps, expected fewer than {INDEX_LIMIT}")
    begins = np.concatenate([[0], begins[:-1]])
    moved = np.arange(operator.nnz) + np.repeat(begins - ends[:-1], lengths)
    offsets = with_read_ahead(size)
    offsets[moved] = operator.offsets
    entries = pack_entries(np.concatenate([[0], begins + lengths]), operator.rows)
    index = np.empty(operator.nnz, np.uint32)
    index[operator.permutation] = moved
    return GradientOrder(entries, offsets, Reordering(index), size, int(lengths.max(initial=0)))


@dataclass(frozen=True, eq=False)
class SddmmPlan:
    """SDDMM over runs of equally spaced positions; see `fastsparse_kernels.sddmm`. Strides in bytes.

    parts : of the positions of all batches, which have gradients of their own
    """

    operator: SparseOperator
    positions: int
    run_length: int
    runs_per_block: int
    x_runs: NDArray[np.int64]
    x_step: int
    y_runs: NDArray[np.int64]
    y_step: int
    by_fours: bool  # whether runs are of four contiguous vectors, which have a kernel of their own
    order: GradientOrder
    parts: int = 1

    def gradients(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """A buffer of this thread for the gradients of all parts, one after the other."""
        return buffers.take_numbers("gradients", self.parts * self.order.size, dtype)

    def summed(self, gradients: NDArray[Any]) -> NDArray[Any]:
        """The gradients in the CSR's order."""
        if self.parts > 1:
            with np.errstate(all="ignore"):  # Inf and NaN travel in silence, as in kernels
                gradients = np.add.reduce(gradients.reshape(self.parts, -1))  # row by row
        return self.order.csr.take(gradients)


def plan_panels(pattern: Pattern, samples: int, target: Target) -> SddmmPlan:
    """Plan of dW = y x^T at the pattern, x (panels, K, T, VL) and y (panels, M, T, VL): a panel is a run.

    Panels of four vectors hold zeros after the samples.
    """
    h, (rows, columns) = target.heuristics, pattern.shape
    sample_groups, width = -(-samples // target.lanes), panel_width(pattern, samples, target, backward=True)
    run = np.arange(-(-sample_groups // width), dtype=np.int64)
    runs_per_block = max(1, h.sddmm_positions(sample_groups) // width)
    block_rows = h.sddmm_block_rows(runs_per_block * width * target.vector, panels=True)
    groups = h.row_groups(rows, 1, target.threads, 0)
    expect_kernel(width == RUN_VECTORS, target)
    operator = linear_operator(pattern, width * target.vector, block_rows, groups, h)
    x_runs, y_runs = (run * panel_stride(features, width, target) for features in (columns, rows))
    positions = len(run) * width if width == RUN_VECTORS else sample_groups
    step, by_fours = target.vector, width == RUN_VECTORS
    order = gradient_order(operator, by_fours)
    return SddmmPlan(operator, positions, width, runs_per_block, x_runs, step, y_runs, step, by_fours, order)


# ------------------------------------------------------------------------------------------------- launch


class Sddmm(NamedTuple):
    """Launches of one SDDMM, whose results add up."""

    launches: list[Launch]

    def run(self, x: int, y: int, gradients: int, from_zero: bool) -> None:
        """gradients (in the plan's order) += y x^T at the nonzeros, on arrays at these addresses.

        from_zero : whether what the gradients hold counts as 0
        """
        for launch in self.launches:
            launch.run(x, y, gradients, from_zero)
            from_zero = False


def expect_kernel(by_fours: bool, target: Target) -> None:
    """Have a plan's kernel, and what moves its gradients, compiled while its operator is built."""
    (sddmm.sddmm_runs_kernel if by_fours else sddmm.sddmm_kernel).expect(target.bits, target.lanes)
    kernels.find_runs.expect()
    kernels.copy_runs.expect(target.bits)
    expect_launcher(target.threads > 1)


def prepare(
    plan: SddmmPlan, target: Target, *, y_row_stride: int, batches: int = 1, x_batch_stride: int = 0,
    y_batch_stride: int = 0,
) -> Sddmm:  # fmt: skip
    """SDDMM over all positions of `batches` batches. Strides in bytes."""
    operator, order = plan.operator, plan.order
    if plan.by_fours:
        kernel = sddmm.sddmm_runs_kernel(target.bits, target.lanes)
        scratch = sddmm.scratch_bytes(target.lanes, target.bits, order.longest)
    else:
        kernel, scratch = sddmm.sddmm_kernel(target.bits, target.lanes), 0
    shared = Arguments(
        sddmm.ARGUMENTS,
        plan,
        operator,
        order,
        gradients_stride=order.size * target.size,
        block_bases=operator.columns.bases,
        x_batch_stride=x_batch_stride,
        y_batch_stride=y_batch_stride,
        y_row_stride=y_row_stride,
    )
    tasks, flops = plan.parts * operator.groups, 2.0 * operator.nnz * target.lanes * plan.positions * batches
    passes, starts = _passes(plan, batches)
    pieces = math.ceil(flops / (target.heuristics.slice_flops * max(1, tasks)))
    pieces = max(1, min(pieces, int(np.diff(starts).min())))
    launches = []
    for piece in range(pieces):
        first, end = (starts[:-1] + np.diff(starts) * edge // pieces for edge in (piece, piece + 1))
        arguments = shared.copy()
        arguments.set(passes=passes, part_passes=np.ascontiguousarray(np.stack([first, end], 1)))
        launches.append(
            Launch(
                kernel, arguments, ("x", "y", "gradients", "from_zero"), target.loop,
                tasks=tasks, flops=flops / pieces, scratch=scratch, plan=plan,
                label=(
                    "sddmm",
                    f"{operator.group_starts[-1]}x{len(operator.columns.block)} by "
                    f"{plan.positions * batches * target.lanes // pieces}",
                    f"nnz {operator.nnz}", "", f"run {plan.run_length}",
                ),
            )
        )  # fmt: skip
    return Sddmm(launches)


def _passes(plan: SddmmPlan, batches: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Passes over the nonzeros, (batch, first run, the run behind the last), and the first pass of every part.

    A pass is within one batch. Contiguous runs are taken two at once, so that parts begin with even ones.
    """
    runs, passes, starts, multiple = len(plan.x_runs), [], [0], 2 if plan.by_fours else 1
    edges = [batches * runs * part // plan.parts // multiple * multiple for part in range(plan.parts)]
    edges.append(batches * runs)
    for at, end in itertools.pairwise(edges):
        while at < end:
            batch, run = divmod(at, runs)
            more = min(plan.runs_per_block, runs - run, end - at)
            passes.append((batch, run, run + more))
            at += more
        starts.append(len(passes))
    return np.array(passes, np.int64).reshape(-1, 3), np.array(starts, np.int64)
