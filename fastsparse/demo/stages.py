"""What a trained network computes at inference, as plain data: weights, biases, geometry, nothing else.

The baselines run these stages, so they share every trained number with the compiled network: batch norm is folded
into the weights and biases before them, as the compiler does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Convolution:
    """Stride-1 convolution with bias and optional relu.

    Attributes
    ----------
    weight : csr_array of shape (out, in * kernel * kernel)
        Columns run (input channel, row, column), as in OIHW.
    bias : ndarray of shape (out,)
    kernel, padding : int
    relu : bool
    """

    weight: sp.csr_array
    bias: Floats
    kernel: int
    padding: int
    relu: bool = False

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self.weight.shape[1]) // self.kernel**2


@dataclass(frozen=True)
class Product:
    """Linear layer `weight @ x + bias` with optional relu; `weight` is (out, in)."""

    weight: sp.csr_array
    bias: Floats
    relu: bool = False


@dataclass(frozen=True)
class MaxPool:
    """Maximum over squares of `size`, stride `size`."""

    size: int


Stage = Convolution | Product | MaxPool


def fold_scale(stage: Convolution | Product, scale: Floats, shift: Floats) -> Convolution | Product:
    """The stage followed by `y * scale + shift` for each output row; the pattern stays as it is."""
    old = stage.weight
    data = old.data * np.repeat(scale, np.diff(old.indptr)).astype(old.dtype)
    weight = sp.csr_array((data, old.indices, old.indptr), shape=old.shape)
    return replace(stage, weight=weight, bias=(stage.bias * scale + shift).astype(old.dtype))


def with_relu(stage: Stage) -> Stage:
    """The stage with a relu at its end; a maximum of rectified values needs no second relu."""
    if isinstance(stage, MaxPool):
        raise ValueError("relu after a pooling stage is not supported: put it before the pooling")
    return replace(stage, relu=True)
