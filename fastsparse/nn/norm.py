"""Normalisation layers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastsparse import checks
from fastsparse.arguments import Axes, as_cast, per_axis
from fastsparse.nn import initial
from fastsparse.nn.module import Module, check_gradient
from fastsparse.nn.parameter import Parameter
from fastsparse.ops import norm as norm_ops

Array = NDArray[Any]


class _BatchNorm(Module):
    """Batch normalisation: per channel, (x - mean) / sqrt(variance + eps) * weight + bias.

    In training mode mean and (biased) variance are those of the batch, and the running ones, used in evaluation mode,
    move towards them: running = (1 - momentum) running + momentum batch, with the unbiased variance. In evaluation
    mode ``backward`` takes the statistics and the parameters as constants, for fine-tuning with frozen statistics.

    Ioffe and Szegedy, Batch Normalization, ICML 2015.

    Parameters
    ----------
    num_features : int
        Number of channels.
    eps : float
    momentum : float in [0, 1]
    dtype : float32 or float64
    """

    buffer_names = ("running_mean", "running_var")
    _dims: ClassVar[tuple[int, ...]]
    _shape_text: ClassVar[str]

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, *, dtype: DTypeLike = "float32"
    ) -> None:
        self.num_features = checks.integer(num_features, "num_features")
        self.eps = checks.number(eps, "eps", 0.0)
        self.momentum = checks.number(momentum, "momentum", 0.0, 1.0)
        kind = checks.float_dtype(dtype)
        self.weight = Parameter(initial.constant(self.num_features, 1.0, kind))
        self.bias = Parameter(initial.constant(self.num_features, 0.0, kind))
        self.running_mean = initial.constant(self.num_features, 0.0, kind)
        self.running_var = initial.constant(self.num_features, 1.0, kind)

    def forward(self, x: ArrayLike) -> Array:
        """x (N, num_features, ...) -> the same shape."""
        array = as_cast(x, self.weight.dtype, "x", "the layer")
        if array.ndim not in self._dims or array.shape[1] != self.num_features:
            expected = self._shape_text.format(self.num_features)
            raise ValueError(f"x has shape {array.shape}, expected {expected} to match the layer")
        gamma, beta = self.weight.value, self.bias.value
        if not self.training:
            return norm_ops.batch_norm_eval(array, gamma, beta, *self._statistics(), self.eps)
        count = array.size // self.num_features
        if count < 2:
            raise ValueError(f"x has shape {array.shape}, expected at least 2 values per channel in training mode")
        running = self._statistics()
        y, mean, variance = norm_ops.batch_norm_train(array, gamma, beta, self.eps)
        self._move(running, (mean, variance * (count / (count - 1))))
        self._keep((array, mean, variance))
        return y

    def _statistics(self) -> tuple[Array, Array]:
        """The running mean and variance, which users may have replaced: one number per channel."""
        running = []
        for name in self.buffer_names:
            array = checks.as_array(getattr(self, name), name)
            if array.shape != (self.num_features,) or array.dtype.kind not in "fiu":
                raise ValueError(f"{name} is {array.dtype} {array.shape}, expected numbers ({self.num_features},)")
            running.append(array)
        return running[0], running[1]

    def _move(self, running: tuple[Array, Array], batch: tuple[Array, Array]) -> None:
        """Move the running statistics towards the batch's; new arrays, so that threads in evaluation are not torn."""
        momentum = self.momentum
        self.running_mean, self.running_var = (
            (old * (1 - momentum) + new * momentum).astype(self.weight.dtype) for old, new in zip(running, batch)
        )

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        dtype = self.weight.dtype
        if not self.training:
            scale = (self.weight.value / np.sqrt(self._statistics()[1] + self.eps)).astype(dtype)
            grad = as_cast(dy, dtype, "dy", "the layer")
            if grad.ndim < 2 or grad.shape[1] != self.num_features:
                raise ValueError(f"dy has shape {grad.shape}, expected (N, {self.num_features}, ...), the output's")
            return grad * scale.reshape(1, -1, *(1 for _ in grad.shape[2:])) if need_input else None
        x, mean, variance = self._taken()
        grad = check_gradient(dy, x.shape, dtype)
        grad_x, grad_weight, grad_bias = norm_ops.batch_norm_backward(
            grad, x, self.weight.value, mean, variance, self.eps
        )
        self.weight.accumulate(grad_weight)
        self.bias.accumulate(grad_bias)
        return grad_x if need_input else None


class BatchNorm1d(_BatchNorm):
    __doc__ = _BatchNorm.__doc__
    _dims = (2, 3)
    _shape_text = "(N, {0}) or (N, {0}, length)"


class BatchNorm2d(_BatchNorm):
    __doc__ = _BatchNorm.__doc__
    _dims = (4,)
    _shape_text = "(N, {0}, H, W)"


class _RowNorm(Module):
    """Normalisation over the last axes."""

    bias: Parameter | None
    _centred: ClassVar[bool]

    def __init__(self, normalized_shape: Axes, eps: float = 1e-5, *, dtype: DTypeLike = "float32") -> None:
        axes = len(normalized_shape) if isinstance(normalized_shape, (tuple, list)) else 1
        self.normalized_shape = per_axis(normalized_shape, max(axes, 1), "normalized_shape", 1)
        self.eps = checks.number(eps, "eps", 0.0)
        kind = checks.float_dtype(dtype)
        self.weight = Parameter(initial.constant(self.normalized_shape, 1.0, kind))
        self.bias = Parameter(initial.constant(self.normalized_shape, 0.0, kind)) if self._centred else None

    def forward(self, x: ArrayLike) -> Array:
        """x (..., *normalized_shape) -> the same shape."""
        array = as_cast(x, self.weight.dtype, "x", "the layer")
        axes = len(self.normalized_shape)
        if array.shape[-axes:] != self.normalized_shape:
            expected = ", ".join(map(str, ("...", *self.normalized_shape)))
            raise ValueError(f"x has shape {array.shape}, expected ({expected}) to match the layer")
        self._keep(array)
        gamma, beta = self.weight.value.reshape(-1), None if self.bias is None else self.bias.value.reshape(-1)
        rows = array.reshape(-1, gamma.size)
        return norm_ops.layer_norm(rows, gamma, beta, self.eps, centred=self._centred).reshape(array.shape)

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        x = self._taken()
        grad = check_gradient(dy, x.shape, self.weight.dtype)
        gamma, sizes = self.weight.value.reshape(-1), self.normalized_shape
        rows = -1, gamma.size
        grad_x, grad_weight, grad_bias = norm_ops.layer_norm_backward(
            grad.reshape(rows), x.reshape(rows), gamma, self.eps, centred=self._centred
        )
        self.weight.accumulate(grad_weight.reshape(sizes))
        if self.bias is not None:
            self.bias.accumulate(grad_bias.reshape(sizes))
        return grad_x.reshape(x.shape) if need_input else None


class LayerNorm(_RowNorm):
    """Normalisation over the last axes: (x - mean) / sqrt(variance + eps) * weight + bias.

    Ba, Kiros and Hinton, Layer Normalization, arXiv:1607.06450.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        Sizes of the last axes, over which mean and (biased) variance are taken.
    eps : float
    dtype : float32 or float64
    """

    _centred = True


class RMSNorm(_RowNorm):
    """Normalisation over the last axes by the root mean square: x / sqrt(mean of squares + eps) * weight.

    Zhang and Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        Sizes of the last axes, over which the mean is taken.
    eps : float
    dtype : float32 or float64
    """

    _centred = False
