"""Linear layers: y = activation(x W^T + b)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy import sparse

from fastsparse import checks, functional
from fastsparse.arguments import Samples, as_cast, is_sparse
from fastsparse.checks import Seed
from fastsparse.csr import CSR, MatrixLike, Pattern, as_csr
from fastsparse.nn import initial
from fastsparse.nn.module import Module, check_gradient
from fastsparse.nn.parameter import Parameter
from fastsparse.ops import activations
from fastsparse.ops.sums import batch_sum
from fastsparse.scipy_matrices import compressed_rows
from fastsparse.sparsity.growth import LinearGradient
from fastsparse.sparsity.patterns import random_pattern

Array = NDArray[Any]
PatternMaker = Callable[[tuple[int, int]], Pattern]
SparseLayer = TypeVar("SparseLayer", bound="SparseWeight")


def _cast(x: Any, dtype: np.dtype[Any]) -> Any:
    """x as an array of the layer's type, or as compressed rows where it is sparse."""
    if not is_sparse(x):
        return as_cast(x, dtype, "x", "the layer")
    rows = compressed_rows(x, "x")
    return rows.astype(dtype, copy=False) if rows.dtype in (np.float32, np.float64) else rows


class Weighted(Module):
    """What layers with a weight, a bias and an activation share.

    Attributes
    ----------
    bias : Parameter or None
    activation : str or None
    """

    bias: Parameter | None
    activation: str | None

    def _set_activation(self, activation: str | None) -> None:
        functional.check_activation(activation)
        self.activation = activation

    def _set_bias(self, bias: bool, size: int, dtype: np.dtype[Any]) -> None:
        self.bias = Parameter(initial.constant(size, 0.0, dtype)) if checks.flag(bias, "bias") else None

    def _bias(self) -> Array | None:
        return None if self.bias is None else self.bias.value

    def _activated(self, x: Any, product: Callable[[str | None], Array]) -> Array:
        """The output for x: `product` takes the activation to apply at its end. What backward needs is kept."""
        activation, before = self.activation, None
        if activation is None or not self.training:
            y = product(activation)
        elif activation in activations.FROM_OUTPUT:
            y = before = product(activation)
        else:
            before = product(None)
            y = activations.activate(activation, before)
        self._keep((x, before, y.shape, y.dtype))
        return y

    def _gradient(self, dy: ArrayLike) -> tuple[Any, Array]:
        """The x of the forward call, and the gradient before the activation."""
        x, kept, shape, dtype = self._taken()
        grad = check_gradient(dy, shape, dtype)
        if self.activation is None or kept is None:
            return x, grad
        return x, activations.activate_backward(self.activation, grad, kept)


class SparseWeight(Weighted):
    """What layers with a sparse weight share.

    Attributes
    ----------
    values : Parameter
        One value per nonzero; ``values.pattern`` says where they stand.
    """

    values: Parameter

    def _set_weight(
        self,
        shape: tuple[int, int],
        bias: bool,
        sparsity: float,
        pattern: Pattern | PatternMaker | None,
        activation: str | None,
        dtype: DTypeLike,
        rng: Seed,
        outputs: int | None = None,
    ) -> None:
        """outputs : size of the bias, by default the rows of the weight."""
        self._set_activation(activation)
        kind = checks.float_dtype(dtype)
        generator = checks.generator(rng)
        if pattern is None:
            pattern = random_pattern(shape, sparsity, rng=generator)
        elif callable(pattern) and not isinstance(pattern, type):
            pattern = pattern(shape)
        if not isinstance(pattern, Pattern):
            raise TypeError(f"pattern is a {type(pattern).__name__}, expected a fastsparse.Pattern")
        if pattern.shape != shape:
            raise ValueError(f"pattern has shape {pattern.shape}, expected {shape} to match the layer")
        self.values = Parameter(initial.sparse_kaiming(pattern, kind, generator), pattern)
        self._set_bias(bias, shape[0] if outputs is None else outputs, kind)

    @classmethod
    def _with_weight(
        cls: type[SparseLayer], matrix: CSR, bias: ArrayLike | None, *sizes: Any, **options: Any
    ) -> SparseLayer:
        """A layer of these sizes and a given weight; float64 stays, anything else is float32."""
        make: Any = cls  # each with sizes of its own
        layer: SparseLayer = make(*sizes, bias=bias is not None, pattern=matrix.pattern, dtype=matrix.dtype, **options)
        layer.values.value = matrix.data
        if layer.bias is not None:
            given = checks.real_array(bias, "bias")
            if given.shape != layer.bias.value.shape:
                raise ValueError(f"bias has shape {given.shape}, expected {layer.bias.value.shape} to match weight")
            layer.bias.value = given
        return layer

    def _gather(self, grad_values: Array, grad_bias: Array) -> None:
        self.values.accumulate(grad_values)
        if self.bias is not None:
            self.bias.accumulate(grad_bias)

    @property
    def weight(self) -> CSR:
        """A copy of the current weight; its ``pattern`` is shared, its values stay as they are now."""
        return self.values.matrix().with_data(self.values.value)

    @property
    def pattern(self) -> Pattern:
        """Where the nonzeros are."""
        return self.values.matrix().pattern

    @property
    def sparsity(self) -> float:
        """Share of weights that do not exist."""
        return 1.0 - self.pattern.density

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, sparsity={self.sparsity:.3g})"


class SparseLinear(SparseWeight):
    """Linear layer whose weight is sparse: time and memory follow its nonzeros.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    sparsity : float in [0, 1)
        Share of weights that do not exist; they are chosen at random.
    pattern : Pattern (out_features, in_features), or a function of that shape that makes one, optional
        Where the weights are, instead of `sparsity`.
    activation : str, optional
        Applied while the output is still in registers; see ``fastsparse.functional.ACTIVATIONS``.
    dtype : float32 or float64
    rng : None, int or Generator
        For the pattern and the initial values, which are normal with variance 2 / (nonzeros of the row).

    Examples
    --------
    >>> import fastsparse as fs
    >>> layer = fs.nn.SparseLinear(100, 10, sparsity=0.9, rng=0)
    >>> layer.weight
    <CSR 10x100, 100 nonzeros, density 0.1, float32>
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sparsity: float = 0.9,
        pattern: Pattern | PatternMaker | None = None,
        activation: str | None = None,
        dtype: DTypeLike = "float32",
        rng: Seed = None,
    ) -> None:
        self.in_features = checks.integer(in_features, "in_features")
        self.out_features = checks.integer(out_features, "out_features")
        shape = (self.out_features, self.in_features)
        self._set_weight(shape, bias, sparsity, pattern, activation, dtype, rng)

    @classmethod
    def from_dense(
        cls, weight: MatrixLike, bias: ArrayLike | None = None, *, activation: str | None = None
    ) -> SparseLinear:
        """Make a layer of the nonzeros of `weight`.

        Parameters
        ----------
        weight : array (out, in), scipy.sparse matrix or CSR
            float64 stays, other types become float32.
        bias : array (out,), optional
        activation : str, optional
        """
        matrix = as_csr(weight, "weight")
        return cls._with_weight(matrix, bias, *matrix.shape[::-1], activation=activation)

    def forward(self, x: Samples) -> Array:
        """x (..., in_features), or a scipy.sparse matrix (batch, in_features) -> (..., out_features)."""
        matrix = self.values.matrix()
        x, bias = _cast(x, matrix.dtype), self._bias()
        return self._activated(x, lambda activation: functional.linear(x, matrix, bias, activation=activation))

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        """As ``Module.backward``; there is no gradient at a sparse input."""
        x, grad = self._gradient(dy)
        need_input = need_input and not sparse.issparse(x)
        if self.values.watched:
            self.values.keep(LinearGradient(grad, x))
        grad_x, grad_values, grad_bias = functional.linear_backward(
            grad, x, self.values.matrix(), need_input=need_input
        )
        self._gather(grad_values, grad_bias)
        return grad_x


class Linear(Weighted):
    """Dense linear layer.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    activation : str, optional
    dtype : float32 or float64
    rng : None, int or Generator
        For the initial values, which are normal with variance 2 / in_features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        activation: str | None = None,
        dtype: DTypeLike = "float32",
        rng: Seed = None,
    ) -> None:
        self.in_features = checks.integer(in_features, "in_features")
        self.out_features = checks.integer(out_features, "out_features")
        self._set_activation(activation)
        kind, shape = checks.float_dtype(dtype), (self.out_features, self.in_features)
        self.weight = Parameter(initial.kaiming(shape, kind, checks.generator(rng)))
        self._set_bias(bias, self.out_features, kind)

    def forward(self, x: Samples) -> Array:
        """x (..., in_features), or a scipy.sparse matrix (batch, in_features) -> (..., out_features)."""
        x = self._checked(x)
        return self._activated(x, lambda activation: self._product(x, activation))

    def _checked(self, x: Any) -> Any:
        array = _cast(x, self.weight.dtype)
        if array.ndim == 0 or array.shape[-1] != self.in_features:
            raise ValueError(f"x has shape {array.shape}, expected (..., {self.in_features}) to match the layer")
        return array

    def _product(self, x: Any, activation: str | None) -> Array:
        y = np.asarray(x @ self.weight.value.T, self.weight.dtype)
        if self.bias is not None:
            y += self.bias.value
        return y if activation is None else activations.activate(activation, y)

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        """As ``Module.backward``; there is no gradient at a sparse input."""
        x, grad = self._gradient(dy)
        flat = grad.reshape(-1, self.out_features)
        if sparse.issparse(x):
            self.weight.accumulate(np.ascontiguousarray((x.T @ flat).T, grad.dtype))
        else:
            self.weight.accumulate(flat.T @ x.reshape(-1, self.in_features))
        if self.bias is not None:
            self.bias.accumulate(batch_sum(flat))
        return grad @ self.weight.value if need_input and not sparse.issparse(x) else None
