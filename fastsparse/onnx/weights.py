"""Constant weights as the sparse kernels read them, and how dense they are."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np

from fastsparse.csr import CSR, csr
from fastsparse.onnx.model import FLOATS, Array, Constant, SparseWeight, dense

T = TypeVar("T")


def density(weight: Constant) -> float:
    """Share of elements that are not zero."""
    if isinstance(weight, SparseWeight):
        size = weight.matrix.shape[0] * weight.matrix.shape[1]
        return weight.matrix.nnz / max(1, size)
    return float(np.count_nonzero(weight)) / max(1, weight.size)


class Weights:
    """CSR matrices of constant weights, in float32 or float64, made once for all plans of an engine."""

    def __init__(self, densest: float, least: int) -> None:
        self._densest, self._least = densest, least
        self._made: dict[Hashable, tuple[Constant, Any]] = {}

    def rows(self, weight: Constant, factor: float = 1.0) -> CSR:
        """CSR (shape[0], product of the rest), times a factor."""
        return self._once(_matrix, weight, False, factor)

    def columns(self, weight: Constant, factor: float = 1.0) -> CSR:
        """CSR (shape[-1], shape[-2]) of a matrix, times a factor."""
        return self._once(_matrix, weight, True, factor)

    def stack(self, weight: Constant) -> list[CSR]:
        """The matrices of a weight of three axes."""
        return self._once(_matrices, weight)

    def is_sparse(self, weight: Constant) -> bool:
        """Whether the sparse kernels are made for it."""
        return self.density(weight) <= self._densest and int(np.prod(weight.shape)) >= self._least

    def density(self, weight: Constant) -> float:
        """Share of elements that are not zero."""
        return self._once(density, weight)

    def _once(self, make: Callable[..., T], weight: Constant, *how: Any) -> T:
        key = make, id(weight), *how
        if key not in self._made:  # the weight is kept, so that no other one gets its id
            self._made[key] = weight, make(weight, *how)
        found: T = self._made[key][1]
        return found


def _matrices(weight: Constant) -> list[CSR]:
    return [csr(wide(matrix)) for matrix in dense(weight)]


def _matrix(weight: Constant, transposed: bool, factor: float) -> CSR:
    if isinstance(weight, SparseWeight):
        matrix = weight.matrix.T if transposed else weight.matrix
    else:
        flat = weight.reshape(weight.shape[-2:]) if transposed else weight.reshape(len(weight), -1)
        flat = wide(flat)
        matrix = csr(flat).T if transposed else csr(flat)
    return matrix if factor == 1 else matrix.with_data((matrix.data * factor).astype(matrix.dtype))


def wide(array: Array) -> Array:
    """The array in a type that kernels compute with: float16 becomes float32."""
    return array if array.dtype in FLOATS else array.astype(np.float32)
