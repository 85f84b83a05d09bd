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
from fastsparse.ops import spmm
from fastsparse.ops.sparse_operator import SparseOperator
from fastsparse.ops.spmm import SpmmPlan
from fastsparse.ops.target import Target
from fastsparse.runtime.fork import fork_safe_lock
from fastsparse.runtime.launch import Launch


@dataclass(frozen=True, eq=False)
class _SharedValues:
    """A weight in a kernel's order. The weight is kept, so that no other one gets its id."""

    weight: CSR
    operator: SparseOperator
    values: NDArray[Any]


class PackedWeight(NamedTuple):
    """A plan and the packed weight, which is shared as long as somebody keeps it."""

    plan: SpmmPlan
    packed: _SharedValues


# Equal operators of one weight are kept once, as long as a schedule uses them: those of many batch sizes are equal.
_known: WeakValueDictionary[tuple[int, bytes], _SharedValues] = WeakValueDictionary()
_lock = fork_safe_lock()


def planned(weight: CSR, make: Callable[..., SpmmPlan], *how: Any) -> PackedWeight:
    """The plan that `make` gives for the weight's pattern, planned so, and the values in its order.

    Nothing is cached on the pattern, as layers in training do, so what an engine no longer uses is freed.
    """
    pattern = weight.pattern
    return packed(weight, make(Pattern._trusted(pattern.indptr, pattern.indices, pattern.shape), *how))


def packed(weight: CSR, plan: SpmmPlan) -> PackedWeight:
    """The plan without the permutation, and the values in its order."""
    operator = plan.operator
    key = id(weight), _digest(operator)
    with _lock:
        found = _known.get(key)
    if found is None:
        lean = replace(operator, permutation=np.empty(0, operator.permutation.dtype))
        made = _SharedValues(weight, lean, operator.pack(weight.data))
        with _lock:
            found = _known.setdefault(key, made)
    return PackedWeight(replace(plan, operator=found.operator), found)


def prepared(product: PackedWeight, op: Conv | Linear, target: Target, *, residual: bool, **strides: Any) -> Launch:
    """The launch of a weighted layer, with its values and bias; operands x, y, residual.

    strides : keywords of `spmm.prepare`
    """
    plan, packed = product
    launch = spmm.prepare(plan, target, residual=residual, activation=op.activation, **strides)
    launch = launch.fixed(values=packed.values, bias=op.bias)
    launch.keep["plan"] = product  # packed values are shared while a launch holds them
    return launch


def _digest(operator: SparseOperator) -> bytes:
    digest = hashlib.blake2b(bytes([operator.interleaved]), digest_size=16)
    for array in (operator.group_starts, operator.segments, operator.entries, operator.offsets):
        digest.update(np.ascontiguousarray(array).data)
    digest.update(np.ascontiguousarray(operator.columns.bases).data)
    return digest.digest()
