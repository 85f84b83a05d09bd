"""Weighted layers of a program as kernels run them: packed structure and values, nothing that only packing needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR, Pattern
from fastsparse.engine.program import Conv, Linear
from fastsparse.ops import pattern_code, spmm
from fastsparse.ops.activations import CLAMPS
from fastsparse.ops.pattern_code import CODE_LANES, PatternCode
from fastsparse.ops.sparse_operator import SparseOperator
from fastsparse.ops.spmm import SpmmPlan
from fastsparse.ops.target import Target
from fastsparse.runtime.executable import runs_code
from fastsparse.runtime.fork import fork_safe_lock
from fastsparse.runtime.launch import Launch


@dataclass(frozen=True, eq=False)
class _SharedValues:
    """A weight in a kernel's order, or in that of code for it. The weight is kept, so that no other one gets its id."""

    weight: CSR
    operator: SparseOperator
    values: NDArray[Any]
    code: PatternCode | None = None


class PlannedWeight(NamedTuple):
    """A weight, and how products with it run."""

    weight: CSR
    plan: SpmmPlan


class PackedWeight(NamedTuple):
    """A plan and the packed weight, which is shared as long as somebody keeps it."""

    plan: SpmmPlan
    packed: _SharedValues


# Equal operators of one weight are kept once, as long as a schedule uses them: those of many batch sizes are equal.
_known: WeakValueDictionary[tuple[Any, ...], _SharedValues] = WeakValueDictionary()
_lock = fork_safe_lock()
_FARTHEST = 2**31 - 2**16  # bytes that addresses in code reach


def planned(weight: CSR, make: Callable[..., SpmmPlan], *how: Any) -> PlannedWeight:
    """The weight with the plan that `make` gives for its pattern, planned so.

    Nothing is cached on the pattern, as layers in training do, so what an engine no longer uses is freed.
    """
    pattern = weight.pattern
    return PlannedWeight(weight, make(Pattern._trusted(pattern.indptr, pattern.indices, pattern.shape), *how))


def packed(weight: CSR, plan: SpmmPlan, target: Target | None = None, *how: Any) -> PackedWeight:
    """The plan without the permutation, and the values in its order; with a target in that of code.

    how : further arguments of `pattern_code.write`
    """
    key = id(weight), _digest(plan.operator), target, *how
    with _lock:
        found = _known.get(key)
    if found is None:
        lean = replace(plan.operator, permutation=np.empty(0, plan.operator.permutation.dtype))
        if target is None:
            made = _SharedValues(weight, lean, plan.operator.pack(weight.data))
        else:
            code = pattern_code.write(plan, weight, target, *how)
            made = _SharedValues(weight, lean, code.values, code)
        with _lock:
            found = _known.setdefault(key, made)
    return PackedWeight(replace(plan, operator=found.operator), found)


def prepared(
    product: PlannedWeight, op: Conv | Linear, target: Target, *, residual: bool, y_row_stride: int, batches: int = 1,
    **strides: Any,
) -> Launch:  # fmt: skip
    """The launch of a weighted layer, with its values and bias; operands x, y, residual.

    y_row_stride, batches, strides : keywords of `spmm.prepare`
    """
    (weight, plan), activation = product, op.activation
    if runs_by_code(plan, target, y_row_stride, activation, batches, residual):
        stages = pattern_code.BIAS * (op.bias is not None) | pattern_code.RESIDUAL * residual
        held = packed(weight, plan, target, y_row_stride, stages, activation)
        assert held.packed.code is not None
        launch = pattern_code.prepare(
            held.plan, held.packed.code, target, batches=batches, activation=activation, **strides
        )
    else:
        held = packed(weight, plan)
        launch = spmm.prepare(
            held.plan, target, residual=residual, y_row_stride=y_row_stride, batches=batches, activation=activation,
            **strides,
        )  # fmt: skip
    launch = launch.fixed(values=held.packed.values, bias=op.bias)
    launch.keep["plan"] = held  # packed values are shared while a launch holds them
    return launch


def way(launch: Launch, plan: SpmmPlan) -> str:
    """How a `prepared` launch runs, in words of a report."""
    return "by code" if launch.label[0] == pattern_code.LABEL else f"tile {plan.tiles.width}"


def runs_by_code(
    plan: SpmmPlan, target: Target, y_row_stride: int, activation: str | None = None, batches: int = 1,
    residual: bool = False,
) -> bool:  # fmt: skip
    """Whether a plan can run by code, and gains by it; vectors that are stored in part cannot.

    residual : whether the launch adds an array, which may be y itself
    """
    operator, tiles = plan.operator, plan.tiles
    if (target.bits, target.lanes) != (32, CODE_LANES) or activation not in CLAMPS or not operator.nnz:
        return False
    if operator.dense or plan.nontemporal or plan.by_rows or tiles.columns is not None:
        return False
    reach = int(operator.columns.bases.max()) + int(operator.offsets.max())
    if max(reach, int(operator.group_starts[-1]) * y_row_stride) >= _FARTHEST:
        return False
    if tiles.count * tiles.width * batches < target.heuristics.code_vectors or not runs_code():
        return False
    begins, _, counts = tiles.pieces.T
    if (counts < target.lanes).any() or (begins % target.vector).any():
        return False
    rest = counts % target.lanes != 0  # whose last vector computes some numbers again: not where y is added to
    return not rest.any() or (not residual and pattern_code.whole_vectors(tiles, target) is not None)


def _digest(operator: SparseOperator) -> bytes:
    digest = hashlib.blake2b(bytes([operator.interleaved]), digest_size=16)
    for array in (operator.group_starts, operator.segments, operator.entries, operator.offsets):
        digest.update(np.ascontiguousarray(array).data)
    digest.update(np.ascontiguousarray(operator.columns.bases).data)
    return digest.digest()
