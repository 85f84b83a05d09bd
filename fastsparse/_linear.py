"""Matrices and linear layers behind `functional`: checked arrays -> plan -> pack -> kernel -> unpack."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import launch, launch_layout, workspace
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


@functools.lru_cache(maxsize=64)
def _panels(features: int, width: int, m: Machine) -> LanesPlanes:
    """(samples, features) in panels of `width` groups of samples: positions are the features."""
    places = np.arange(-(-features // m.lanes) * m.lanes, dtype=np.int64) * (width * m.vector)
    stride = plans.panel_stride(features, width, m)
    return LanesPlanes(1, features, places, np.empty(0, np.int64), 0, m.vector, panel_groups=width, panel_stride=stride)


def _panel_bytes(samples: int, layout: LanesPlanes, m: Machine) -> int:
    return -(-samples // (layout.panel_groups * m.lanes)) * layout.panel_stride


def _packed(x: Array, start: int, stop: int, width: int, purpose: str, m: Machine) -> Array:
    """Samples start..stop of x (samples, features) in panels, in a workspace buffer."""
    layout = _panels(x.shape[1], width, m)
    panels = workspace.take(purpose, _panel_bytes(stop - start, layout, m))
    source = address(x) + start * x.strides[0]
    launch_layout.pack_lanes(source, x.strides[0], 0, layout, address(panels), stop - start, m)
    return panels


def _spmm_unpacked(
    W: CSR, x: Array, y: Array, start: int, stop: int, width: int, m: Machine, purpose: str, bias: Array | None = None,
    activation: str | None = None,
) -> None:  # fmt: skip
    """Samples start..stop of y (samples, out), from those of x in panels, by way of the workspace buffer `purpose`."""
    samples = stop - start
    plan, layout = _panels_plan(W.pattern, samples, width, m), _panels(W.shape[0], width, m)
    panels = workspace.take(purpose, _panel_bytes(samples, layout, m))
    launch.run_spmm(
        plan, packed_values(W, plan.operator), address(x), address(panels), m,
        y_row_stride=layout.panel_groups * m.vector, bias=bias, activation=activation,
    )  # fmt: skip
    target = address(y) + start * y.strides[0]
    launch_layout.unpack_lanes(address(panels), layout, target, y.strides[0], 0, samples, m)


def spmv(W: CSR, x: Array, y: Array, bias: Array | None, activation: str | None) -> None:
    """y (M,) = activation(W @ x + bias) for one x (K,)."""
    m, pattern = machine(W.dtype), W.pattern
    plan = pattern.cached(("spmv", m), lambda: plans.spmv(pattern, m.workers))
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


def _panels_plan(pattern: Pattern, samples: int, width: int, m: Machine, y_row_major: bool = False) -> SpmmPlan:
    return pattern.cached(
        ("spmm panels", samples if y_row_major else -(-samples // m.lanes), width, m, y_row_major),
        lambda: plans.spmm_panels(pattern, samples, width, m, y_row_major),
    )


def spmm_column_major(W: CSR, X: Array, Y: Array, bias: Array | None, activation: str | None) -> None:
    """Y (M, N) = activation(W @ X + bias) for X (K, N) with contiguous columns and row-major Y."""
    m, x = machine(W.dtype), X.T
    for start, stop in chunks(len(x), plans.lanes_group_stride(x.shape[1], m), m):
        width = plans.panel_width(W.pattern, stop - start, m)
        plan = _panels_plan(W.pattern, stop - start, width, m, y_row_major=True)
        x_panels = _packed(x, start, stop, width, "x", m)
        launch.run_spmm(
            plan, packed_values(W, plan.operator), address(x_panels), address(Y) + start * m.size, m,
            y_row_stride=Y.strides[0], bias=bias, activation=activation,
        )  # fmt: skip


def linear(W: CSR, x: Array, y: Array, bias: Array | None, activation: str | None) -> None:
    """y (samples, out) = activation(x @ W.T + bias) for x (samples, in) with contiguous rows."""
    m = machine(W.dtype)
    out_bytes, in_bytes = (plans.lanes_group_stride(features, m) for features in W.shape)
    for start, stop in chunks(len(x), in_bytes + out_bytes, m):
        width = plans.panel_width(W.pattern, stop - start, m)
        x_panels = _packed(x, start, stop, width, "x", m)
        _spmm_unpacked(W, x_panels, y, start, stop, width, m, "y", bias, activation)


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
        count = stop - start
        width = plans.panel_width(pattern, count, m, backward=True)
        y_panels = _packed(grad, start, stop, width, "y", m)
        if pattern.nnz:
            plan = pattern.cached(("sddmm", -(-count // m.lanes), m), partial(plans.sddmm_panels, pattern, count, m))
            if plan.operator is not operator:
                if operator is not None:  # another operator, another order
                    gradients = operator.unpack(gradients)[plan.operator.permutation]
                operator = plan.operator
            x_panels = _packed(x, start, stop, width, "x", m)
            launch.run_sddmm(plan, gradients, address(x_panels), address(y_panels), m, y_row_stride=width * m.vector)
        if grad_x is not None and W_T is not None and features:
            _spmm_unpacked(W_T, y_panels, grad_x, start, stop, width, m, "x")
    return grad_x, gradients if operator is None else operator.unpack(gradients)
