"""Products of a program as kernels run them: sparse or dense, with their values in the kernel's order."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from fastsparse._linear import packed_values
from fastsparse.engine.program import Conv, Linear
from fastsparse.plan.dense import DensePlan, suits
from fastsparse.plan.tiles import SpmmPlan

Plan = SpmmPlan | DensePlan


def is_full(op: Conv | Linear) -> bool:
    """Whether the dense kernel runs a product: it is a dense layer in the model, and few of its weights are zero.

    In a layer that the model calls sparse, an absent weight never meets an Inf, so it stays with the sparse kernels,
    however many weights it has.
    """
    groups = op.geometry.groups if isinstance(op, Conv) else 1
    return op.dense and suits(*op.weight.shape, op.weight.nnz, groups)


def values_of(op: Conv | Linear, plan: Plan) -> NDArray[Any]:
    """The weight's values in the order of the plan's kernel, kept with the weight."""
    if isinstance(plan, SpmmPlan):
        return packed_values(op.weight, plan.operator)
    key = "dense values", plan.block_rows, op.geometry.groups if isinstance(op, Conv) else 1
    packed: NDArray[Any] = op.weight.cached(key, lambda: plan.pack(op.weight.toarray()))
    return packed


def kernel_of(plan: Plan) -> str:
    """What the report calls the kernel."""
    if isinstance(plan, SpmmPlan):
        return f"spmm, tile {plan.tiles.width}"
    return f"dense, tile {plan.block_rows} x {plan.tiles.width}"
