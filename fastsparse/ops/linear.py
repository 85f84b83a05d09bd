"""Linear layers: y = activation(x @ W.T + bias) on rows of samples, and their gradients.

Samples are packed into panels for SpMM and SDDMM, in parts of a batch whose workspace stays in a cache. One sample is
an SpMV. What is prepared serves all batches of as many groups of VL samples: texts that grow by a token, the last batch
of an epoch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR, Pattern
from fastsparse.ops import layouts, sddmm, spmm, stream
from fastsparse.ops.spmm import Packing, panel_packing, panel_width
from fastsparse.ops.target import Target, narrowed, target_for
from fastsparse.runtime import buffers
from fastsparse.runtime.buffers import address, optional_address
from fastsparse.runtime.launch import Launch

Array = NDArray[Any]


def as_rows(x: Array) -> Array:
    """(..., features) as (samples, features) with contiguous rows, copied only where necessary."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) if x.ndim != 2 else x
    itemsize = rows.itemsize
    if rows.shape[1] and (rows.strides[1] != itemsize or rows.strides[0] < 0) and rows.size:
        rows = np.ascontiguousarray(rows)
    return rows


# ------------------------------------------------------------------------------------------------- forward


def forward(
    W: CSR, x: Array, y: Array, bias: Array | None, activation: str | None, target: Target | None = None
) -> None:
    """y (samples, out) = activation(x @ W.T + bias) for x (samples, in) with contiguous rows, contiguous y."""
    target = narrowed(target or target_for(W.dtype), len(x))
    key = -(-len(x) // target.lanes), x.strides[0], activation, target
    row = W.shape[0] * target.size
    for part in W.kept(_forward, *key):
        samples = min(part.stop, len(x)) - part.start
        _panels, packed_x = part.packing.run(x, part.start * x.strides[0], "x", samples)
        part.product.run(packed_x, address(y) + part.start * row, optional_address(bias), "y", samples)


class _Part(NamedTuple):
    """A part of a batch, samples `start` to `stop` up to whole groups: how it is packed and multiplied."""

    start: int
    stop: int
    packing: Packing
    product: _PanelsProduct


class _PanelsProduct(NamedTuple):
    """y (samples, out) = activation(x @ W.T + bias), from x in panels by way of panels of y."""

    launch: Launch
    unpack: Launch
    panel_bytes: int

    def run(self, x: int, y: int, bias: int, purpose: str, samples: int) -> None:
        """Compute y at its address from panels at address x, through the buffer `purpose`."""
        panels = buffers.take(purpose, self.panel_bytes)
        packed_y = address(panels)
        self.launch.run(x, packed_y, bias)
        self.unpack.run(packed_y, y, samples)


def _forward(W: CSR, groups: int, stride: int, activation: str | None, target: Target) -> list[_Part]:
    (rows, features), parts = W.shape, []
    group_bytes = layouts.panel_stride(rows, 1, target) + layouts.panel_stride(features, 1, target)
    for start, stop in spmm.sample_chunks(groups * target.lanes, group_bytes, target):
        width, count = panel_width(W.pattern, stop - start, target), (stop - start) // target.lanes
        packing = panel_packing(count, features, stride, width, target)
        product = _panels_product(W, count, width, activation, target)
        parts.append(_Part(start, stop, packing, product))
    return parts


def _panels_product(W: CSR, groups: int, width: int, activation: str | None, target: Target) -> _PanelsProduct:
    plan, launch, unpack, size = W.pattern.kept(_panels_launch, groups, width, activation, target)
    return _PanelsProduct(plan.values(W).fixed(launch), unpack, size)


def _transposed_product(W: CSR, groups: int, width: int, target: Target) -> _PanelsProduct:
    """y = x @ W; W.T itself is not made."""
    plan, launch, unpack, size = W.pattern.transpose()[0].kept(_panels_launch, groups, width, None, target)
    return _PanelsProduct(plan.transposed_values(W).fixed(launch), unpack, size)


def _panels_launch(
    pattern: Pattern, groups: int, width: int, activation: str | None, target: Target
) -> tuple[spmm.SpmmPlan | stream.StreamPlan, Launch, Launch, int]:
    (rows, features), samples = pattern.shape, groups * target.lanes
    panels, row_bytes = layouts.feature_panels(rows, width, target), width * target.vector
    x_stride, size = layouts.panel_stride(features, width, target), layouts.panel_bytes(samples, panels, target)
    plan: spmm.SpmmPlan | stream.StreamPlan
    if stream.pays(pattern, samples, target):  # a panel is row-major
        batches = -(-groups // width)
        plan = pattern.kept(stream.plan_rows, width * target.lanes, target, 0, batches)
        launch = stream.prepare(
            plan, target, x_row_stride=row_bytes, y_row_stride=row_bytes, batches=batches,
            x_batch_stride=x_stride, y_batch_stride=panels.panel_stride, activation=activation, label="linear",
        )  # fmt: skip
    else:
        plan = pattern.kept(spmm.plan_panels, samples, width, target)
        launch = spmm.prepare(
            plan, target, y_row_stride=row_bytes, activation=activation, label="linear", layout="batch-blocked"
        )
    unpack = layouts.unpack_blocked(panels, samples, target)
    return plan, launch, unpack, size


# ------------------------------------------------------------------------------------------------- gradients


def sampled_product(pattern: Pattern, A: Array, B: Array, target: Target | None = None) -> Array:
    """(A @ B) at the pattern's nonzeros, in the CSR's order; A (M, N), B (N, K)."""
    target, columns = target or target_for(A.dtype), A.shape[1]
    if not stream.pays(pattern, columns, target):
        return _weight_gradient(pattern, as_rows(A.T), as_rows(B), None, target)[1]
    gradients: Array = np.zeros(pattern.nnz, A.dtype)
    if pattern.nnz:
        y, y_row_stride, _y = _row_major(A, "y", target)
        x, x_row_stride, _x = _row_major(B.T, "x", target)
        launch = pattern.kept(stream.prepare_sddmm, target, columns, x_row_stride, y_row_stride)
        launch.run(x, y, gradients.ctypes.data)
    return gradients


def _row_major(X: Array, purpose: str, target: Target) -> tuple[int, int, Array]:
    """Address and row stride of X, or of a copy with contiguous rows in the buffer `purpose`; and what holds it."""
    if X.shape[1] == 1 or (X.strides[1] == target.size and X.strides[0] >= 0):
        return address(X), X.strides[0], X
    if X.strides[0] != target.size or X.strides[1] < 0:
        X = np.ascontiguousarray(X)
        return address(X), X.strides[0], X
    features, columns = X.shape
    width = -(-columns // target.lanes)  # one panel: its rows are those of a row-major array
    panels, packed = panel_packing(width, features, X.strides[1], width, target).run(X, 0, purpose, columns)
    return packed, width * target.vector, panels


def backward(
    grad: Array, x: Array, W: CSR, need_input: bool, target: Target | None = None
) -> tuple[Array | None, Array]:
    """dX (samples, in), when asked for, and the values' gradient (nnz,)."""
    return _weight_gradient(W.pattern, grad, x, W if need_input else None, target)


def input_gradient(grad: Array, W: CSR, target: Target | None = None) -> Array:
    """dX (samples, in) = grad @ W."""
    grad_x = buffers.array((len(grad), W.shape[1]), W.dtype)
    if grad_x.size:
        forward(W.T, grad, grad_x, None, None, target)
    return grad_x


def _weight_gradient(
    pattern: Pattern, grad: Array, x: Array, W: CSR | None, target: Target | None
) -> tuple[Array | None, Array]:
    """grad^T x at the pattern, and grad @ W from the same packed gradient when W is given."""
    target = target or target_for(grad.dtype)
    samples, features = x.shape
    grad_x = None if W is None else buffers.array((samples, features), grad.dtype)
    key = -(-samples // target.lanes), grad.strides[0], x.strides[0], target
    parts = pattern.kept(_backward, *key)
    plan = parts[0].plan if parts else None
    if plan is None:  # streamed, or no samples or no nonzeros
        gradients = np.zeros(pattern.nnz, grad.dtype)
    else:
        gradients = buffers.take_numbers("gradients", plan.order.size, grad.dtype)
    for i, part in enumerate(parts):
        count = min(part.stop, samples) - part.start
        _y_panels, packed_y = part.grad_packing.run(grad, part.start * grad.strides[0], "y", count)
        if part.product is not None:
            _x_panels, packed_x = part.x_packing.run(x, part.start * x.strides[0], "x", count)
            if part.plan is None or plan is None:
                part.product.run(packed_x, packed_y, gradients.ctypes.data)
            else:
                if part.plan.operator is not plan.operator or part.plan.by_fours != plan.by_fours:
                    gradients = part.plan.order.pack(plan.order.csr.take(gradients))  # from the other one's order
                plan = part.plan
                part.product.run(packed_x, packed_y, gradients.ctypes.data, i == 0)
        if grad_x is not None and W is not None and features:
            W.kept(_transposed_product, part.groups, part.width, target).run(
                packed_y, address(grad_x) + part.start * grad_x.strides[0], 0, "x", count
            )
    return grad_x, gradients if plan is None else plan.order.csr.take(gradients)


class _BackwardPart(NamedTuple):
    """As `_Part`, of the gradients."""

    start: int
    stop: int
    groups: int
    width: int
    grad_packing: Packing
    x_packing: Packing
    product: Any  # the launch of x^T grad; None without nonzeros
    plan: sddmm.SddmmPlan | None  # None where W is streamed


def _backward(pattern: Pattern, groups: int, grad_stride: int, x_stride: int, target: Target) -> list[_BackwardPart]:
    (rows, features), parts, samples = pattern.shape, [], groups * target.lanes
    group_bytes = layouts.panel_stride(rows, 1, target) + layouts.panel_stride(features, 1, target)
    streamed = stream.pays(pattern, samples, target)
    for start, stop in spmm.sample_chunks(samples, group_bytes, target):
        count = (stop - start) // target.lanes
        width = panel_width(pattern, stop - start, target, backward=True)
        plan: sddmm.SddmmPlan | None = None
        product: Launch | sddmm.Sddmm | None = None
        if pattern.nnz and streamed:
            row_bytes = width * target.vector
            product = stream.prepare_sddmm(
                pattern, target, columns=width * target.lanes, x_row_stride=row_bytes, y_row_stride=row_bytes,
                batches=-(-count // width),
                x_batch_stride=layouts.panel_stride(features, width, target),
                y_batch_stride=layouts.panel_stride(rows, width, target),
            )  # fmt: skip
        elif pattern.nnz:
            plan = pattern.kept(sddmm.plan_panels, stop - start, target)
            product = sddmm.prepare(plan, target, y_row_stride=plan.run_length * target.vector)
        parts.append(
            _BackwardPart(
                start, stop, count, width,
                panel_packing(count, rows, grad_stride, width, target),
                panel_packing(count, features, x_stride, width, target), product, plan,
            )
        )  # fmt: skip
    return parts
