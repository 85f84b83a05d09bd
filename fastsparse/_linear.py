"""Matrices and linear layers behind `functional`: checked arrays -> plan -> pack -> kernel -> unpack."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsparse import launch_layout, launch_products, workspace
from fastsparse.csr import CSR, Pattern
from fastsparse.launch import Template, address, machine
from fastsparse.plan import linear as plans
from fastsparse.plan import policy
from fastsparse.plan.lanes import LanesPlanes
from fastsparse.plan.linear import Machine
from fastsparse.plan.operator import Operator
from fastsparse.plan.sddmm import SddmmPlan, sddmm_panels
from fastsparse.plan.tiles import SpmmPlan

Array = NDArray[Any]


def packed_values(W: CSR, operator: Operator) -> Array:
    """W's values in the operator's order, kept with W: a layer packs once per optimizer step, never per call."""
    # The operator is kept along with its id, so that the id is not given to another one.
    return W.cached(("values", id(operator)), lambda: (operator, operator.pack(W.data)))[1]


def chunks(samples: int, most: int) -> Iterator[tuple[int, int]]:
    """Parts of a batch, of `most` samples and a rest."""
    for start in range(0, samples, most):
        yield start, min(samples, start + most)


def _chunks(samples: int, group_bytes: int, m: Machine) -> Iterator[tuple[int, int]]:
    """Parts of a batch of a linear layer, in whole vectors of samples, whose workspace stays in a cache."""
    groups = -(-samples // m.lanes)
    return chunks(samples, m.lanes * policy.chunk_groups(groups, group_bytes, m.l3_bytes, policy.LINEAR_CHUNK_GROUPS))


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


class _Packing(NamedTuple):
    """Samples of x (samples, features), from their rows into panels."""

    copy: Template
    panel_bytes: int

    def run(self, x: int, purpose: str) -> Array:
        """Panels of the samples at address x, in a workspace buffer."""
        panels = workspace.take(purpose, self.panel_bytes)
        self.copy.run(x, address(panels))
        return panels


@functools.lru_cache(maxsize=64)
def _packing(samples: int, features: int, row_stride: int, width: int, m: Machine) -> _Packing:
    layout = _panels(features, width, m)
    copy = launch_layout.pack_lanes_template(row_stride, layout, samples, m)
    return _Packing(copy, _panel_bytes(samples, layout, m))


class _PanelsProduct(NamedTuple):
    """y (samples, out) = activation(x @ W.T + bias), from x in panels by way of panels of y."""

    multiply: Template
    copy: Template
    panel_bytes: int

    def run(self, x: int, y: int, bias: int, purpose: str) -> None:
        """Compute y at its address from panels at address x, through the workspace buffer `purpose`."""
        panels = workspace.take(purpose, self.panel_bytes)
        self.multiply.run(x, address(panels), bias)
        self.copy.run(address(panels), y)


def _panels_product(W: CSR, samples: int, width: int, activation: str | None, m: Machine) -> _PanelsProduct:
    rows = W.shape[0]
    layout, plan = _panels(rows, width, m), _panels_plan(W.pattern, samples, width, m)
    multiply = launch_products.spmm_template(
        plan,
        packed_values(W, plan.operator),
        m,
        y_row_stride=width * m.vector,
        activation=activation,
    )
    copy = launch_layout.unpack_lanes_template(rows * m.size, layout, samples, m)
    return _PanelsProduct(multiply, copy, _panel_bytes(samples, layout, m))


def _panel_bytes(samples: int, layout: LanesPlanes, m: Machine) -> int:
    return -(-samples // (layout.panel_groups * m.lanes)) * layout.panel_stride


def _panels_plan(pattern: Pattern, samples: int, width: int, m: Machine, y_row_major: bool = False) -> SpmmPlan:
    return pattern.cached(
        ("spmm panels", samples if y_row_major else -(-samples // m.lanes), width, m, y_row_major),
        lambda: plans.spmm_panels(pattern, samples, width, m, y_row_major),
    )


def _bias_address(bias: Array | None) -> int:
    return 0 if bias is None else address(bias)


def spmv(W: CSR, x: Array, y: Array, bias: Array | None, activation: str | None) -> None:
    """y = activation(W @ x + bias) for one x; both may have further dimensions of size 1, y is contiguous."""
    m = machine(W.dtype)
    if not x.flags.c_contiguous:
        x = np.ascontiguousarray(x)
    product = W.cached(("spmv", activation, m), _spmv, W, activation, m)
    product.run(address(x), address(y), _bias_address(bias))


def _spmv(W: CSR, activation: str | None, m: Machine) -> Template:
    pattern = W.pattern
    plan = pattern.cached(("spmv", m), lambda: plans.spmv(pattern, m))
    return launch_products.spmv_template(plan, plan.pack(W.data), m, activation=activation)


def spmm_row_major(W: CSR, X: Array, Y: Array, bias: Array | None, activation: str | None) -> None:
    """Y (M, N) = activation(W @ X + bias), both row-major, Y contiguous."""
    if X.strides[1] != X.itemsize or X.strides[0] < 0:
        X = np.ascontiguousarray(X)
    m = plans.narrowed(machine(W.dtype), X.shape[1])
    key = X.shape[1], X.strides[0], activation, m, leads_of(address(X), X.strides[0], Y, m)
    product = W.cached(("row-major", *key), _row_major, W, *key)
    product.run(address(X), address(Y), _bias_address(bias))


def leads_of(x: int, x_row_stride: int, Y: Array, m: Machine) -> plans.Leads:
    """What a plan has to know of where X, at address x, and contiguous Y (..., M, N) begin."""
    if not plans.minds_leads(Y.shape[-1], Y.nbytes, m):
        return plans.ANYWHERE
    return plans.Leads(plans.lead_columns(x, x_row_stride, m), plans.lead_columns(address(Y), Y.strides[-2], m))


def row_major_plan(
    pattern: Pattern, columns: int, row_stride: int, m: Machine, leads: plans.Leads, batches: int = 1
) -> SpmmPlan:
    """The plan of `spmm_row_major` for a pattern, kept with it."""
    key = columns, row_stride, m, leads, batches
    return pattern.cached(("spmm", *key), plans.spmm_row_major, pattern, *key)


def _row_major(
    W: CSR, columns: int, row_stride: int, activation: str | None, m: Machine, leads: plans.Leads
) -> Template:
    pattern = W.pattern
    plan = row_major_plan(pattern, columns, row_stride, m, leads)
    values = packed_values(W, plan.operator)
    return launch_products.spmm_template(plan, values, m, y_row_stride=columns * m.size, activation=activation)


def spmm_column_major(W: CSR, X: Array, Y: Array, bias: Array | None, activation: str | None) -> None:
    """Y (M, N) = activation(W @ X + bias) for X (K, N) with contiguous columns and contiguous row-major Y."""
    stride, (features, columns) = X.strides[1], X.shape
    m = plans.narrowed(machine(W.dtype), columns)
    for start, stop in _chunks(columns, plans.lanes_group_stride(features, m), m):
        key = stop - start, stride, columns, activation, m
        packing, product = W.cached(("column-major", *key), _column_major, W, *key)
        panels = packing.run(address(X) + start * stride, "x")
        product.run(address(panels), address(Y) + start * m.size, _bias_address(bias))


def _column_major(
    W: CSR, samples: int, stride: int, columns: int, activation: str | None, m: Machine
) -> tuple[_Packing, Template]:
    width = plans.panel_width(W.pattern, samples, m)
    plan = _panels_plan(W.pattern, samples, width, m, y_row_major=True)
    values = packed_values(W, plan.operator)
    product = launch_products.spmm_template(plan, values, m, y_row_stride=columns * m.size, activation=activation)
    return _packing(samples, W.shape[1], stride, width, m), product


def linear(W: CSR, x: Array, y: Array, bias: Array | None, activation: str | None) -> None:
    """y (samples, out) = activation(x @ W.T + bias) for x (samples, in) with contiguous rows, contiguous y."""
    m, stride, (rows, features) = plans.narrowed(machine(W.dtype), len(x)), x.strides[0], W.shape
    group_bytes = plans.lanes_group_stride(features, m) + plans.lanes_group_stride(rows, m)
    for start, stop in _chunks(len(x), group_bytes, m):
        key = stop - start, stride, activation, m
        packing, product = W.cached(("linear", *key), _linear, W, *key)
        panels = packing.run(address(x) + start * stride, "x")
        product.run(address(panels), address(y) + start * rows * m.size, _bias_address(bias), "y")


def _linear(W: CSR, samples: int, stride: int, activation: str | None, m: Machine) -> tuple[_Packing, _PanelsProduct]:
    width = plans.panel_width(W.pattern, samples, m)
    return _packing(samples, W.shape[1], stride, width, m), _panels_product(W, samples, width, activation, m)


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
    last: SddmmPlan | None = None
    y_stride, x_stride = plans.lanes_group_stride(pattern.shape[0], m), plans.lanes_group_stride(features, m)
    for start, stop in _chunks(samples, y_stride + x_stride, m):
        count = stop - start
        width = plans.panel_width(pattern, count, m, backward=True)
        packing = _packing(count, pattern.shape[0], grad.strides[0], width, m)
        y_panels = packing.run(address(grad) + start * grad.strides[0], "y")
        if pattern.nnz:
            plan = pattern.cached(("sddmm", -(-count // m.lanes), m), sddmm_panels, pattern, count, m)
            if last is None:
                gradients = np.zeros(plan.order.size, grad.dtype)
            elif plan.operator is not last.operator or plan.in_fours != last.in_fours:  # another order
                gradients = plan.order.pack(last.order.unpack(gradients))
            last = plan
            packing = _packing(count, features, x.strides[0], width, m)
            x_panels = packing.run(address(x) + start * x.strides[0], "x")
            launch_products.run_sddmm(
                plan, gradients, address(x_panels), address(y_panels), m, y_row_stride=width * m.vector
            )
        if grad_x is not None and W_T is not None and features:
            product = W_T.cached(("panels", count, width, m), _panels_product, W_T, count, width, None, m)
            product.run(address(y_panels), address(grad_x) + start * grad_x.strides[0], 0, "x")
    return grad_x, gradients if last is None else last.order.unpack(gradients)
