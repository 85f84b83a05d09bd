"""Plans of SDDMM: weight gradients at the pattern's nonzeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import Pattern
from fastsparse_kernels import sparse_operator as kernels
from fastsparse_kernels.sparse_operator import RUN_VECTORS

from . import policy
from .linear import Machine, linear_operator, panel_stride, panel_width
from .operator import INDEX_LIMIT, Operator, pack_entries, with_room


@dataclass(frozen=True, eq=False)
class Order:
    """Where the kernel keeps gradients: those of an operator's entry in a row, in the entry's order.

    `entries` as in `Operator`, where each one's nonzeros end: it may begin behind a gap. `places[i]` is the place of
    gradient i of the CSR among `size` of the kernel; `longest` nonzeros has an entry.
    """

    entries: NDArray[np.uint32]
    offsets: NDArray[np.uint32]
    places: NDArray[np.uint32]
    size: int
    longest: int

    def unpack(self, gradients: NDArray[Any]) -> NDArray[Any]:
        """From the kernel's order into the CSR's."""
        values = np.empty(len(self.places), gradients.dtype)
        kernels.gather(gradients.itemsize * 8)(gradients, self.places, values)
        return values

    def pack(self, values: NDArray[Any]) -> NDArray[Any]:
        """From the CSR's order into the kernel's."""
        gradients = np.zeros(self.size, values.dtype)
        kernels.scatter(values.itemsize * 8)(values, self.places, gradients)
        return gradients


def order_of(operator: Operator, in_fours: bool) -> Order:
    """The operator's nonzeros as they lie, or with gaps, so that every entry begins at a multiple of four."""
    multiple = RUN_VECTORS if in_fours else 1
    ends = operator.row_ends.astype(np.int64)
    lengths = np.diff(ends)
    begins = np.cumsum(-(-lengths // multiple) * multiple)
    size = int(begins[-1]) if len(begins) else 0
    if size >= INDEX_LIMIT:
        raise ValueError(f"W has {operator.nnz} nonzeros, {size} with gaps, expected fewer than {INDEX_LIMIT}")
    begins = np.concatenate([[0], begins[:-1]])
    moved = np.arange(operator.nnz) + np.repeat(begins - ends[:-1], lengths)
    offsets = with_room(size)
    offsets[moved] = operator.offsets
    entries = pack_entries(np.concatenate([[0], begins + lengths]), operator.rows)
    places = np.empty(operator.nnz, np.uint32)
    places[operator.permutation] = moved
    return Order(entries, offsets, places, size, int(lengths.max(initial=0)))


@dataclass(frozen=True, eq=False)
class SddmmPlan:
    """SDDMM over runs of equally spaced positions; see the record in `fastsparse_kernels.sddmm`. Strides in bytes."""

    operator: Operator
    positions: int
    run_length: int
    runs_per_block: int
    x_runs: NDArray[np.int64]
    x_step: int
    y_runs: NDArray[np.int64]
    y_step: int
    in_fours: bool  # runs are of four vectors in a row: for the kernel of `fastsparse_kernels.sddmm`
    order: Order


def sddmm_panels(pattern: Pattern, samples: int, machine: Machine) -> SddmmPlan:
    """Plan of dW = y x^T at the pattern, x (panels, K, T, VL) and y (panels, M, T, VL): a panel is a run.

    Panels of four vectors hold zeros behind the samples.
    """
    rows, columns = pattern.shape
    sample_groups, width = -(-samples // machine.lanes), panel_width(pattern, samples, machine, backward=True)
    run = np.arange(-(-sample_groups // width), dtype=np.int64)
    together = max(1, policy.sddmm_positions(machine.vector) // width)
    block_rows = policy.sddmm_block_rows(together * width * machine.vector, machine.l1_bytes)
    groups = policy.row_groups(rows, 1, machine.workers, 0)
    operator = linear_operator(pattern, width * machine.vector, block_rows, groups)
    x_runs, y_runs = (run * panel_stride(features, width, machine) for features in (columns, rows))
    positions = len(run) * width if width == RUN_VECTORS else sample_groups
    step, in_fours = machine.vector, width == RUN_VECTORS
    return SddmmPlan(
        operator, positions, width, together, x_runs, step, y_runs, step, in_fours, order_of(operator, in_fours)
    )
