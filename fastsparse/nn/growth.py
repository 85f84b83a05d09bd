"""Full gradients of a weight, at all its elements, in blocks of rows, from data kept by a backward pass.

Only RigL needs them, on the steps on which it changes patterns. A block is one BLAS product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from fastsparse.ops import dense

Array = NDArray[Any]


class LinearGradient:
    """dW = dy^T x of a linear layer.

    Parameters
    ----------
    dy : array (..., out)
        Gradient before the activation.
    x : array (..., in), or scipy.sparse (batch, in)
    """

    def __init__(self, dy: Array, x: Any) -> None:
        self._dy = dy.reshape(-1, dy.shape[-1])
        self._x = x if sparse.issparse(x) else np.asarray(x, dy.dtype).reshape(-1, x.shape[-1])

    def rows(self, first: int, stop: int) -> Array:
        """Rows `first` to `stop` of dW, (stop - first, in)."""
        part = self._dy[:, first:stop]
        if sparse.issparse(self._x):
            return np.ascontiguousarray((self._x.T @ part).T, self._dy.dtype)
        return np.ascontiguousarray(part.T @ self._x)


class ConvolutionGradient:
    """dW of a convolution, (out, in / groups * prod(kernel)).

    Parameters
    ----------
    dy : array (N, out, *output)
        Gradient before the activation.
    x : array (N, in, *spatial)
    geometry : dense.Geometry
    """

    def __init__(self, dy: Array, x: Array, geometry: dense.Geometry) -> None:
        self._dy, self._x, self._geometry = dy, np.asarray(x, dy.dtype), geometry

    def rows(self, first: int, stop: int) -> Array:
        """Rows `first` to `stop` of dW, (stop - first, in / groups * prod(kernel))."""
        groups = self._geometry.groups
        inside, outside = self._x.shape[1] // groups, self._dy.shape[1] // groups
        parts = []
        for group in range(first // outside, -(-stop // outside)):
            low, high = max(first, group * outside), min(stop, (group + 1) * outside)
            x = self._x[:, group * inside : (group + 1) * inside]
            parts.append(dense.weight_gradient(self._dy[:, low:high], x, self._geometry))
        return np.concatenate(parts) if len(parts) != 1 else parts[0]
