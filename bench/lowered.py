"""Convolutions in float64 by im2col and whole products: what large workloads are checked against, in a second.

The kernels' oracle (`fastsparse_kernels.reference`) is plainer and would take ten times as long; a test holds the two
together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from bench.workloads import Conv

Array = NDArray[np.float64]


def forward(case: Conv, weight: Any, x: Array) -> Array:
    """conv(x, weight); weight is float64 CSR."""
    return np.stack([weight @ columns for columns in map(_columns_of(case), x)]).reshape(case.out_shape)


def backward(case: Conv, weight: Any, x: Array, grad: Array) -> tuple[Array, Array]:
    """grad_x, and the weight's whole gradient as a dense matrix."""
    grad_x, grad_weight = np.zeros_like(x), np.zeros(weight.shape)
    transposed, lower = weight.T.tocsr(), _columns_of(case)
    for image, dy, dx in zip(x, grad.reshape(case.batch, case.out, -1), grad_x):
        grad_weight += dy @ lower(image).T
        _add_columns(case, transposed @ dy, dx)
    return grad_x, grad_weight


def _columns_of(case: Conv) -> Any:
    """A function from an image (channels, side, side) to its columns (channels * kernel^2, positions)."""
    pad, kernel, step = case.padding, case.kernel, case.stride

    def lower(image: Array) -> Array:
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
        windows = sliding_window_view(padded, (kernel, kernel), axis=(1, 2))[:, ::step, ::step]
        return windows.transpose(0, 3, 4, 1, 2).reshape(case.channels * kernel**2, -1)

    return lower


def _add_columns(case: Conv, columns: Array, image: Array) -> None:
    """Add every column to the places it was taken from."""
    pad, side, size = case.padding, case.side, case.out_side
    padded = np.zeros((case.channels, side + 2 * pad, side + 2 * pad))
    parts = columns.reshape(case.channels, case.kernel, case.kernel, size, size)
    reach = case.stride * (size - 1) + 1
    for row in range(case.kernel):
        for column in range(case.kernel):
            place = (slice(row, row + reach, case.stride), slice(column, column + reach, case.stride))
            padded[(slice(None), *place)] += parts[:, row, column]
    image += padded[:, pad : pad + side, pad : pad + side]
