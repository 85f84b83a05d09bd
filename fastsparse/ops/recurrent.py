"""Cells of recurrent layers, between the products of two times."""

from __future__ import annotations

from fastsparse.ops.target import Target
from fastsparse.runtime.launch import Arguments, Launch
from fastsparse_kernels import recurrent as kernels

GATES = kernels.GATES  # of every kind of cell
_GATE_FLOPS = 20.0  # of a number, about


def prepare(kind: str, count: int, panels: int, strides: tuple[int, int], target: Target) -> Launch:
    """A cell on panels of `count` hidden numbers each; see `fastsparse_kernels.recurrent`.

    Operands x (sums of the gates), u (of GRU: those of the recurrent product), before and after (c of LSTM; h of GRU
    before), also (a second place for h, 0 for none), h.

    strides : bytes between panels, of sums and of states
    """
    sums, state = strides
    arguments = Arguments(
        kernels.CELL, count=count, x_stride=sums, u_stride=sums, before_stride=state, after_stride=state,
        h_stride=state, also_stride=state,
    )  # fmt: skip
    return Launch(
        kernels.cell_kernel(kind, target.bits, target.lanes), arguments, ("x", "u", "before", "after", "also", "h"),
        target.loop, tasks=panels, flops=_GATE_FLOPS * GATES[kind] * count * panels,
        label=("cell", f"{panels}x{count}", "", kind),
    )  # fmt: skip
