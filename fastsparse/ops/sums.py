"""Accurate sums over a batch, for bias gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_BLOCK_ROWS = 128


def batch_sum(x: Array) -> Array:
    """Sum of x (N, ...) over N, in blocks of 128 rows that are added in float64.

    NumPy adds rows sequentially: in float32, the sum of a million positive numbers is 1% off.
    """
    if len(x) <= _BLOCK_ROWS:
        return np.asarray(x.sum(axis=0))
    count = len(x) // _BLOCK_ROWS
    whole = count * _BLOCK_ROWS
    blocks = x[:whole].reshape(count, _BLOCK_ROWS, *x.shape[1:]).sum(axis=1)
    total = blocks.sum(axis=0, dtype=np.float64) + x[whole:].sum(axis=0)
    return np.asarray(total, x.dtype)


def channel_sums(x: Array) -> Array:
    """Sum of x (N, C, ...) over all axes but the second, (C,): pairwise inside an image, over N as `batch_sum`."""
    return batch_sum(np.reshape(x, (*x.shape[:2], math.prod(x.shape[2:]))).sum(axis=2))
