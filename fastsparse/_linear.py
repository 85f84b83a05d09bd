"""Matrices and linear layers behind `functional`: checked arrays -> plan -> pack -> kernel -> unpack."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import launch, workspace
from fastsparse.csr import CSR, Pattern
from fastsparse.launch import address, machine
from fastsparse.plan import linear as plans
from fastsparse.plan import policy
from fastsparse.plan.lanes import LanesPlanes
from fastsparse.plan.linear import Machine
from fastsparse.plan.operator import Operator
from fastsparse.plan.tiles import SpmmPlan

Array = NDArray[Any]


def packed_values(W: CSR, operator: Operator) -> Array:
    """W's values in the operator's order, kept with W: a layer packs once per optimizer step, never per call."""
    # The operator is kept along with its id, so that the id is not given to another one.
    return W.cached(("values", id(operator)), lambda: (operator, operator.pack(W.data)))[1]


def chunks(samples: int, group_bytes: int, m: Machine) -> Iterator[tuple[int, int]]:
    """Parts of a batch, in whole vectors of samples, whose workspace stays bounded."""
    per_chunk = max(policy.MIN_CHUNK_GROUPS, policy.CHUNK_BYTES // max(1, group_bytes)) * m.lanes
    for start in range(0, samples, per_chunk):
        yield start, min(samples, start + per_chunk)


def as_rows(x: Array) -> Array:
    """(..., features) as (samples, features) with contiguous rows; no copy where there need be none."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) if x.ndim != 2 else x
    itemsize = rows.itemsize
    if rows.shape[1] and (rows.strides[1] != itemsize or rows.strides[0] < 0) and rows.size:
        rows = np.ascontiguousarray(rows)
    return rows


def planes(features: int, m: Machine) -> LanesPlanes:
    """Lanes layout of (samples, features): one plane whose positions are the features."""
    none = np.empty(0, np.int64)
    return LanesPlanes(1, features, none, none, 0, plans.lanes_group_stride(features, m))


def _groups(samples: int, m: Machine) -> int:
    return -(-samples // m.lanes)


def _packed(x: Array, start: int, stop: int, purpose: str, m: Machine) -> Array:
    """Samples start..stop of x (samples, features) in lanes layout, in a workspace buffer."""
    layout = planes(x.shape[1], m)
    lanes = workspace.take(purpose, _groups(stop - start, m) * layout.group_stride)
    launch.pack_lanes(address(x) + start * x.strides[0], x.strides[0], 0, layout, address(lanes), stop - start, m)
    return lanes


def spmv(W: CSR, x: Array, y: Array, bias: Array | None, activation: str | None) -> None:
    """y (M,) = activation(W @ x + bias) for one x (K,)."""
    m, pattern = machine(W.dtype), W.pattern
    plan = pattern.cached(("spmv", m.workers), lambda: plans.spmv(pattern, m.workers))
    launch.run_spmv(plan, pattern.indptr, W.data, np.ascontiguousarray(x), y, m, bias=bias, activation=activation)


def spmm_row_major(W: CSR, X: Array, Y: Array, bias: Array | None, activation: str | None) -> None:
    """Y (M, N) = activation(W @ X + bias), both row-major."""
    if X.strides[1] != X.itemsize or X.strides[0] < 0:
        X = np.ascontiguousarray(X)
    m, pattern, columns = machine(W.dtype), W.pattern, X.shape[1]
    plan = pattern.cached(("spmm", columns, m), lambda: plans.spmm_row_major(pattern, columns, m))
    launch.run_spmm(
        plan, packed_values(W, plan.operator), address(X), address(Y), m,
        x_row_stride=X.strides[0], y_row_stride=Y.strides[0], bias=bias, activation=activation,
    )  # fmt: skip


def _lanes_plan(pattern: Pattern, samples: int, m: Machine, y_row_major: bool = False) -> SpmmPlan:
    return pattern.cached(
        ("spmm lanes", samples if y_row_major else _groups(samples, m), m, y_row_major),
        lambda: plans.spmm_lanes(pattern, samples, m, y_row_major),
    )


def spmm_column_major(W: CSR, X: Array, Y: Array, bias: Array | None, activation: str | None) -> None:
    """Y (M, N) = activation(W @ X + bias) for X (K, N) with contiguous columns and row-major Y."""
    m, x = machine(W.dtype), X.T
    for start, stop in chunks(len(x), plans.lanes_group_stride(x.shape[1], m), m):
        plan = _lanes_plan(W.pattern, stop - start, m, y_row_major=True)
        x_lanes = _packed(x, start, stop, "x", m)
        launch.run_spmm(
            plan, packed_values(W, plan.operator), address(x_lanes), address(Y) + start * m.size, m,
            y_row_stride=Y.strides[0], bias=bias, activation=activation,
        )  # fmt: skip


def linear(W: CSR, x: Array, y: Array, bias: Array | None, activation: str | None) -> None:
    """y (samples, out) = activation(x @ W.T + bias) for x (samples, in) with contiguous rows."""
    m = machine(W.dtype)
    layout = planes(W.shape[0], m)
    for start, stop in chunks(len(x), plans.lanes_group_stride(x.shape[1], m) + layout.group_stride, m):
        plan = _lanes_plan(W.pattern, stop - start, m)
        x_lanes = _packed(x, start, stop, "x", m)
        y_lanes = workspace.take("y", _groups(stop - start, m) * layout.group_stride)
        launch.run_spmm(
            plan, packed_values(W, plan.operator), address(x_lanes), address(y_lanes), m,
            y_row_stride=m.vector, bias=bias, activation=activation,
        )  # fmt: skip
        target = address(y) + start * y.strides[0]
        launch.unpack_lanes(address(y_lanes), layout, target, y.strides[0], 0, stop - start, m)


def sddmm(pattern: Pattern, A: Array, B: Array) -> Array:
    """(A @ B) at the pattern's nonzeros, in the CSR's order; A (M, N), B (N, K)."""
    _, gradients = _weight_gradient(pattern, as_rows(A.T), as_rows(B), None)
    return gradients


def backward(grad: Array, x: Array, W: CSR, need_input: bool) -> tuple[Array | None, Array]:
    """dX (samples, in), when asked for, and the values' gradient (nnz,)."""
    return _weight_gradient(W.pattern, grad, x, W.T if need_input else None)


def input_gradient(grad: Array, W: CSR) -> Array:
    """dX (samples, in) = grad @ W."""
    grad_x = workspace.array((len(grad), W.shape[1]), W.dtype)
    if grad_x.size:
        linear(W.T, grad, grad_x, None, None)
    return grad_x


def _weight_gradient(pattern: Pattern, grad: Array, x: Array, W_T: CSR | None) -> tuple[Array | None, Array]:
    """grad^T x at the pattern, and grad @ W from the same packed gradient when W_T is given."""
    m = machine(grad.dtype)
    samples, features = x.shape
    grad_x = None if W_T is None else workspace.array((samples, features), grad.dtype)
    gradients: Array = np.zeros(pattern.nnz, grad.dtype)
    operator: Operator | None = None
    y_stride, x_stride = plans.lanes_group_stride(pattern.shape[0], m), plans.lanes_group_stride(features, m)
    for start, stop in chunks(samples, y_stride + x_stride, m):
        groups = _groups(stop - start, m)
        y_lanes = _packed(grad, start, stop, "y", m)
        if pattern.nnz:
            plan = pattern.cached(("sddmm", groups, m), partial(plans.sddmm_lanes, pattern, groups, m))
            if plan.operator is not operator:
                if operator is not None:  # another operator, another order
                    gradients = operator.unpack(gradients)[plan.operator.permutation]
                operator = plan.operator
            x_lanes = _packed(x, start, stop, "x", m)
            launch.run_sddmm(plan, gradients, address(x_lanes), address(y_lanes), m, y_row_stride=m.vector)
        if grad_x is not None and W_T is not None and features:
            layout = planes(features, m)
            spmm_plan = _lanes_plan(W_T.pattern, stop - start, m)
            x_lanes = workspace.take("x", groups * x_stride)
            values = packed_values(W_T, spmm_plan.operator)
            launch.run_spmm(spmm_plan, values, address(y_lanes), address(x_lanes), m, y_row_stride=m.vector)
            target = address(grad_x) + start * grad_x.strides[0]
            launch.unpack_lanes(address(x_lanes), layout, target, grad_x.strides[0], 0, stop - start, m)
    return grad_x, gradients if operator is None else operator.unpack(gradients)
