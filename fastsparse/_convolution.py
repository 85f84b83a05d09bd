"""Convolution over any number of axes: checked arrays -> plan -> pack -> kernel -> unpack.

Large batches go through lanes layout (VL images innermost), small ones through flat planes, and small 1x1 convolutions
straight through row-major SpMM. All sum in the same order, so the choice does not show in the result.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import elementwise, launch_layout, launch_products, workspace
from fastsparse._arguments import (
    as_array,
    as_bias,
    as_float,
    check_activation,
    check_matrix,
    check_out,
    padding_pairs,
    per_axis,
)
from fastsparse._linear import chunks, leads_of, packed_values, row_major_plan
from fastsparse.csr import CSR
from fastsparse.launch import address, machine
from fastsparse.plan import conv as plans
from fastsparse.plan import policy
from fastsparse.plan.conv import Geometry
from fastsparse.plan.linear import Machine

Array = NDArray[Any]
_MOST_NUMBERS = 2**53  # in the planes of an image: their bytes, for a vector of images, stay below 2**63


def _conv(
    axes: int,
    x: Any,
    W: CSR,
    bias: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: str | None,
    out: Array | None,
) -> Array:
    check_activation(activation)
    x, geometry = checked(axes, x, W, kernel_size, stride, padding, dilation, groups)
    bias = as_bias(bias, W.dtype, W.shape[0])
    y = check_out(out, (len(x), W.shape[0], *geometry.out_spatial), W.dtype, x, bias, W.data)
    if y.size:
        forward(x, W, geometry, bias, activation, y)
    return y


def conv1d(
    x: Any,
    W: CSR,
    bias: Any = None,
    *,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """Sparse convolution of x (N, C, L); see `conv2d`. W is CSR (out, in/groups * k)."""
    return _conv(1, x, W, bias, kernel_size, stride, padding, dilation, groups, activation, out)


def conv2d(
    x: Any,
    W: CSR,
    bias: Any = None,
    *,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """Sparse convolution: activation(conv(x, W) + bias), cross-correlation as in torch.

    Parameters
    ----------
    x : array_like (N, C, H, W)
    W : CSR (out, C/groups * kh * kw)
        Columns in the order of an OIHW weight's rows: input channel, kernel row, kernel column.
    bias : array_like (out,), optional
    kernel_size, stride, dilation : int or (int, int)
    padding : int, (int, int) or ((top, bottom), (left, right))
        Zeros around the image. Stored weights do multiply them (Inf weights give NaN at borders).
    groups : int
        Output channels in group g see input channels in group g only; groups=C is depthwise.
    activation : str, optional
    out : ndarray (N, out, OH, OW), optional
        Where to write the result: C-contiguous, of W's dtype, apart from x.

    Returns
    -------
    ndarray (N, out, OH, OW)

    Raises
    ------
    TypeError, ValueError
        When a shape, dtype or size does not fit; nothing has been computed or changed then.
    """
    return _conv(2, x, W, bias, kernel_size, stride, padding, dilation, groups, activation, out)


def conv3d(
    x: Any,
    W: CSR,
    bias: Any = None,
    *,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """Sparse convolution of x (N, C, D, H, W); see `conv2d`. W is CSR (out, in/groups * kd * kh * kw)."""
    return _conv(3, x, W, bias, kernel_size, stride, padding, dilation, groups, activation, out)


def conv_backward(
    grad: Any,
    x: Any,
    W: CSR,
    *,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    need_input: bool = True,
) -> tuple[Array | None, Array, Array]:
    """Gradients of `conv1d`, `conv2d` and `conv3d` (by the number of axes of x); see `conv2d_backward`."""
    shape = as_array(x, "x").shape
    if len(shape) not in (3, 4, 5):
        raise ValueError(f"x has shape {shape}, expected (N, C, ...) with one, two or three spatial axes")
    x, geometry = checked(len(shape) - 2, x, W, kernel_size, stride, padding, dilation, groups)
    grad = as_float(grad, W.dtype, "grad")
    expected = (len(x), W.shape[0], *geometry.out_spatial)
    if grad.shape != expected:
        raise ValueError(f"grad has shape {grad.shape}, expected {expected} to match x and W")
    grad = np.ascontiguousarray(grad)
    grad_bias = elementwise.channel_sums(grad)
    if grad.size == 0 or x.size == 0:
        return np.zeros(x.shape, x.dtype) if need_input else None, np.zeros(W.nnz, W.dtype), grad_bias
    grad_x, grad_values = backward(grad, x, W, geometry, need_input)
    return grad_x, grad_values, grad_bias


def conv2d_backward(
    grad: Any,
    x: Any,
    W: CSR,
    *,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    need_input: bool = True,
) -> tuple[Array | None, Array, Array]:
    """Gradients of `conv2d`, given the gradient `grad` (N, out, OH, OW) before the activation.

    Returns
    -------
    grad_x : ndarray (N, C, H, W), or None without `need_input`
        Inputs that no window saw get 0. Weights do multiply zeros around `grad` (Inf weights give NaN at borders).
    grad_values : ndarray (nnz,)
        In the order of W.data: gradients exist at the nonzeros only.
    grad_bias : ndarray (out,)

    Raises
    ------
    TypeError, ValueError
        When a shape, dtype or size does not fit.
    """
    x = as_array(x, "x")
    if x.ndim != 4:
        raise ValueError(f"x has shape {x.shape}, expected (N, C, H, W)")
    return conv_backward(
        grad, x, W, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation, groups=groups,
        need_input=need_input,
    )  # fmt: skip


def checked(
    axes: int, x: Any, W: CSR, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> tuple[Array, Geometry]:
    """x as a contiguous array, and the convolution's sizes.

    Raises
    ------
    TypeError, ValueError
        When something does not fit; the message names it.
    """
    check_matrix(W)
    x = as_float(x, W.dtype, "x")
    if x.ndim != axes + 2:
        names = {1: "(N, C, L)", 2: "(N, C, H, W)", 3: "(N, C, D, H, W)"}[axes]
        raise ValueError(f"x has shape {x.shape}, expected {names}")
    kernel = per_axis(kernel_size, axes, "kernel_size", 1)
    (groups,) = per_axis(groups, 1, "groups", 1)
    channels, rows = x.shape[1], W.shape[0]
    for name, count in (("input channels of x", channels), ("rows of W", rows)):
        if count % groups:
            raise ValueError(f"groups is {groups}, expected a divisor of the {count} {name}")
    columns = channels // groups * math.prod(kernel)
    if W.shape[1] != columns:
        raise ValueError(
            f"W has shape {W.shape}, expected (out, {columns}) = (out, C / groups * kernel) "
            f"to match x of shape {x.shape}, kernel_size {kernel} and groups {groups}"
        )
    geometry = Geometry(
        channels, rows, x.shape[2:], kernel,
        per_axis(stride, axes, "stride", 1),
        padding_pairs(padding, axes),
        per_axis(dilation, axes, "dilation", 1),
        groups,
    )  # fmt: skip
    if min(geometry.out_spatial) < 1:
        raise ValueError(
            f"x has shape {x.shape}, expected at least the window of kernel_size {kernel} "
            f"with dilation {geometry.dilation} inside the padding {geometry.padding}"
        )
    largest = max(channels * math.prod(geometry.padded), rows * geometry.positions)
    if largest >= _MOST_NUMBERS:
        raise ValueError(
            f"x has shape {x.shape}, expected fewer than {_MOST_NUMBERS} numbers per image with the padding "
            f"{geometry.padding} and in the result"
        )
    return np.ascontiguousarray(x), geometry


def forward(x: Array, W: CSR, geometry: Geometry, bias: Array | None, activation: str | None, y: Array) -> None:
    """y = activation(conv(x) + bias), all contiguous."""
    m = machine(W.dtype)
    by_image = set(geometry.kernel) == {1} and policy.fills_vectors(geometry.positions, m.lanes)
    if policy.prefers_lanes(len(x), m.lanes) and not by_image:
        _forward_lanes(x, W, geometry, bias, activation, y, m)
    elif geometry.pointwise:
        _forward_pointwise(x, W, geometry, bias, activation, y, m)
    else:
        _forward_flat(x, W, geometry, bias, activation, y, m)


def _groups_at_once(samples: int, geometry: Geometry, m: Machine) -> int:
    """Groups of VL images of a batch that are packed, multiplied and unpacked together."""
    numbers = geometry.channels * math.prod(geometry.padded) + geometry.out_channels * geometry.positions
    return policy.chunk_groups(-(-samples // m.lanes), numbers * m.vector, m.l3_bytes)


def _forward_lanes(
    x: Array, W: CSR, geometry: Geometry, bias: Array | None, activation: str | None, y: Array, m: Machine
) -> None:
    pattern = W.pattern
    sample_groups = _groups_at_once(len(x), geometry, m)
    plan = pattern.cached(
        ("conv lanes", geometry, m, sample_groups), lambda: plans.conv_lanes(pattern, geometry, m, sample_groups)
    )
    values = packed_values(W, plan.spmm.operator)
    for start, stop in chunks(len(x), sample_groups * m.lanes):
        samples = stop - start
        groups = -(-samples // m.lanes)
        x_lanes = workspace.take("x", groups * plan.x.group_stride)
        y_lanes = workspace.take("y", groups * plan.y.group_stride)
        launch_layout.pack_lanes(address(x[start:]), x.strides[0], x.strides[1], plan.x, address(x_lanes), samples, m)
        launch_products.run_spmm(
            plan.spmm, values, address(x_lanes), address(y_lanes), m, y_row_stride=plan.y.channel_stride,
            batches=groups, x_batch_stride=plan.x.group_stride, y_batch_stride=plan.y.group_stride, bias=bias,
            activation=activation,
        )  # fmt: skip
        launch_layout.unpack_lanes(address(y_lanes), plan.y, address(y[start:]), y.strides[0], y.strides[1], samples, m)


def _forward_pointwise(
    x: Array, W: CSR, geometry: Geometry, bias: Array | None, activation: str | None, y: Array, m: Machine
) -> None:
    pattern, positions = W.pattern, geometry.positions
    if geometry.groups > 1:
        _forward_flat(x, W, geometry, bias, activation, y, m)
        return
    leads = leads_of(address(x), x.strides[1], y.reshape(len(y), y.shape[1], positions), m)
    plan = row_major_plan(pattern, positions, x.strides[1], m, leads, len(x))
    launch_products.run_spmm(
        plan, packed_values(W, plan.operator), address(x), address(y), m, y_row_stride=y.strides[1], batches=len(x),
        x_batch_stride=x.strides[0], y_batch_stride=y.strides[0], bias=bias, activation=activation,
    )  # fmt: skip


def _forward_flat(
    x: Array, W: CSR, geometry: Geometry, bias: Array | None, activation: str | None, y: Array, m: Machine
) -> None:
    pattern = W.pattern
    image_bytes = geometry.channels * math.prod(geometry.padded) * m.size
    most = policy.chunk_groups(len(x), image_bytes, m.l3_bytes)
    plan = pattern.cached(("conv flat", geometry, m, most), lambda: plans.conv_flat(pattern, geometry, m, most))
    values = packed_values(W, plan.spmm.operator)
    image_stride = geometry.channels * plan.channel_stride
    for start, stop in chunks(len(x), most):
        flat = workspace.take("x", (stop - start) * image_stride + plan.slack)
        launch_layout.pack_flat(
            address(x[start:]), x.strides[0], x.strides[1], plan, geometry.channels, address(flat), stop - start, m
        )
        launch_products.run_spmm(
            plan.spmm, values, address(flat), address(y[start:]), m, y_row_stride=y.strides[1], batches=stop - start,
            x_batch_stride=image_stride, y_batch_stride=y.strides[0], bias=bias, activation=activation,
        )  # fmt: skip


def backward(grad: Array, x: Array, W: CSR, geometry: Geometry, need_input: bool) -> tuple[Array | None, Array]:
    """dX, when asked for, and the values' gradient, always through lanes layout."""
    m, pattern = machine(W.dtype), W.pattern
    sample_groups = _groups_at_once(len(x), geometry, m)
    plan = pattern.cached(
        ("conv backward", geometry, m, sample_groups),
        lambda: plans.conv_backward_lanes(pattern, geometry, m, sample_groups),
    )
    grad_x = workspace.array(x.shape, x.dtype) if need_input else None
    gradients: Array = np.zeros(plan.dw.order.size, W.dtype)
    for start, stop in chunks(len(x), sample_groups * m.lanes):
        samples = stop - start
        groups = -(-samples // m.lanes)
        y_buffer = workspace.take("y", groups * plan.dy.group_stride)
        x_buffer = workspace.take("x", groups * max(plan.x.group_stride, plan.dx.group_stride))
        dy_lanes, x_lanes = address(y_buffer), address(x_buffer)
        launch_layout.pack_lanes(address(grad[start:]), grad.strides[0], grad.strides[1], plan.dy, dy_lanes, samples, m)
        launch_layout.pack_lanes(address(x[start:]), x.strides[0], x.strides[1], plan.x, x_lanes, samples, m)
        launch_products.run_sddmm(
            plan.dw, gradients, x_lanes, dy_lanes, m, y_row_stride=plan.dy.channel_stride, batches=groups,
            x_batch_stride=plan.x.group_stride, y_batch_stride=plan.dy.group_stride,
        )  # fmt: skip
        if grad_x is None:
            continue
        for phase in plan.dx_phases:
            launch_products.run_spmm(
                phase, packed_values(W, phase.operator), dy_lanes, x_lanes, m, y_row_stride=plan.dx.channel_stride,
                batches=groups, x_batch_stride=plan.dy.group_stride, y_batch_stride=plan.dx.group_stride,
            )  # fmt: skip
        target, strides = address(grad_x[start:]), grad_x.strides
        launch_layout.unpack_lanes(x_lanes, plan.dx, target, strides[0], strides[1], samples, m)
    return grad_x, plan.dw.order.unpack(gradients)
