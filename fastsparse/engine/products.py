"""Products of a program as kernels run them: the packed structure and values, and nothing that only packing needs."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from fastsparse import launch_products
from fastsparse.csr import CSR, Pattern
from fastsparse.engine.program import Conv, Linear
from fastsparse.engine.schedule import MakeCall
from fastsparse.launch import Call
from fastsparse.plan.linear import Machine
from fastsparse.plan.operator import Operator
from fastsparse.plan.tiles import SpmmPlan


@dataclass(frozen=True, eq=False)
class _Packed:
    """A weight in a kernel's order. The weight is kept, so that no other one gets its id."""

    weight: CSR
    operator: Operator
    values: NDArray[Any]


Product = tuple[SpmmPlan, NDArray[Any]]  # a plan and its values

# Equal operators of one weight are kept once, as long as a schedule uses them: those of many batch sizes are equal.
_known: WeakValueDictionary[tuple[int, bytes], _Packed] = WeakValueDictionary()
_lock = threading.Lock()


def planned(weight: CSR, make: Callable[[Pattern], SpmmPlan]) -> Product:
    """The plan that `make` gives for the weight's pattern, and the values in its order.

    Nothing is cached on the pattern, as layers in training do, so what an engine no longer uses is freed.
    """
    pattern = weight.pattern
    return packed(weight, make(Pattern._trusted(pattern.indptr, pattern.indices, pattern.shape)))


def packed(weight: CSR, plan: SpmmPlan) -> Product:
    """The plan without the permutation, and the values in its order."""
    operator = plan.operator
    key = id(weight), _digest(operator)
    with _lock:
        found = _known.get(key)
    if found is None:
        lean = replace(operator, permutation=np.empty(0, operator.permutation.dtype))
        made = _Packed(weight, lean, operator.pack(weight.data))
        with _lock:
            found = _known.setdefault(key, made)
    return replace(plan, operator=found.operator, prepared={"packed": found}), found.values


def product_call(plan: SpmmPlan, values: NDArray[Any], op: Conv | Linear, m: Machine, **strides: int) -> MakeCall:
    """What makes the call of a product, from the addresses of x, a residual if there is one, y and scratch.

    strides : keywords of `launch_products.spmm_call`
    """

    def make(x: int, *rest: int) -> Call:
        *residual, y, scratch = rest
        return launch_products.spmm_call(
            plan, values, x, y, m, scratch=scratch, bias=op.bias, residual=residual[0] if residual else 0,
            activation=op.activation, **strides,
        )  # fmt: skip

    return make


def _digest(operator: Operator) -> bytes:
    digest = hashlib.blake2b(bytes([operator.lockstep]), digest_size=16)
    for array in (operator.group_starts, operator.segments, operator.entries, operator.offsets):
        digest.update(np.ascontiguousarray(array).data)
    digest.update(np.ascontiguousarray(operator.columns.bases).data)
    return digest.digest()
