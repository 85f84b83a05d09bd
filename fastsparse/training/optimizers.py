"""Optimizers: they change parameters in place, only where a nonzero is.

An optimizer's arrays live in ``parameter.state``, so that they follow their nonzeros when a pattern changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastsparse.nn.parameter import Parameter
from fastsparse.ops import optimizers as kernels
from fastsparse.training.schedules import Schedule, rate_at

Array = NDArray[Any]

_PART = 1 << 16


class Optimizer:
    """Base of the optimizers.

    Parameters
    ----------
    parameters : iterable of Parameter, or of (name, Parameter)
        ``model.parameters()``.
    lr : float or callable
        Learning rate, or a function of the step's number, for example ``CosineDecay(0.1, steps=1000)``.
    max_norm : float, optional
        When the norm of all gradients together is larger, they are scaled down to it.

    Attributes
    ----------
    steps : int
        Number of steps made.
    """

    # Names of the arrays in parameter.state.
    state_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, parameters: Iterable[Any], lr: float | Schedule, max_norm: float | None = None) -> None:
        self.parameters = [_parameter(item) for item in parameters]
        if not self.parameters:
            raise ValueError("parameters is empty, expected at least one Parameter")
        if not callable(lr):
            _at_least_zero(lr, "lr")
        if max_norm is not None:
            _check_norm(max_norm)
        self.lr = lr
        self.max_norm = max_norm
        self.steps = 0
        for parameter in self.parameters:
            parameter.state = {}

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return rate_at(self.lr, self.steps)

    def step(self) -> None:
        """Update all parameters that have a gradient; the gradients stay, scaled if they were clipped."""
        updated = [parameter for parameter in self.parameters if parameter.grad is not None]
        if self.max_norm is not None:
            clip_gradients(updated, self.max_norm)
        rate = self.rate
        self.steps += 1
        for parameter in updated:
            for name in self.state_names:
                if name not in parameter.state:
                    parameter.state[name] = np.zeros(parameter.value.shape, parameter.value.dtype)
            self._update(parameter, rate)
            parameter.updated()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.zero_grad()

    def _update(self, parameter: Parameter, rate: float) -> None:
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    v = momentum v + g, value -= lr v; with nesterov value -= lr (g + momentum v). g includes weight_decay times value.
    Sutskever et al., On the importance of initialization and momentum, ICML 2013.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float | Schedule,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0,
        *,
        max_norm: float | None = None,
    ) -> None:
        self.momentum = _below_one(momentum, "momentum")
        self.nesterov = bool(nesterov)
        self.weight_decay = _at_least_zero(weight_decay, "weight_decay")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is True and momentum is 0, expected a momentum above 0")
        if self.momentum:
            self.state_names = ("velocity",)  # type: ignore[misc]
        super().__init__(parameters, lr, max_norm)

    def _update(self, parameter: Parameter, rate: float) -> None:
        value, grad, velocity = parameter.value, _gradient(parameter), parameter.state.get("velocity")
        kernels.sgd_step(value, grad, velocity, rate, self.momentum, self.nesterov, self.weight_decay)


class Adam(Optimizer):
    """Adam; weight_decay is added to the gradient. Kingma and Ba, Adam, ICLR 2015."""

    state_names = ("first", "second")
    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        max_norm: float | None = None,
    ) -> None:
        self.betas = (_below_one(betas[0], "betas[0]"), _below_one(betas[1], "betas[1]"))
        self.eps = _at_least_zero(eps, "eps")
        self.weight_decay = _at_least_zero(weight_decay, "weight_decay")
        super().__init__(parameters, lr, max_norm)

    def _update(self, parameter: Parameter, rate: float) -> None:
        value, grad, state = parameter.value, _gradient(parameter), parameter.state
        kernels.adam_step(
            value, grad, state["first"], state["second"], rate, self.betas, self.eps, self.weight_decay,
            self._decoupled, self.steps,
        )  # fmt: skip


class AdamW(Adam):
    """Adam whose weight decay shrinks the values directly.

    Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019.
    """

    _decoupled = True

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        max_norm: float | None = None,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay, max_norm=max_norm)


def clip_gradients(parameters: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients so that their common Euclidean norm is at most `max_norm`; returns the norm before.

    Raises
    ------
    TypeError, ValueError
        When max_norm is not a positive number.
    """
    _check_norm(max_norm)
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = math.sqrt(sum(_squares(grad) for grad in grads))
    if norm > max_norm:
        for grad in grads:
            grad *= max_norm / norm
    return norm


def _squares(grad: Array) -> float:
    """Sum of squares in float64, without a copy of the whole."""
    flat = grad.reshape(-1)
    parts = (flat[start : start + _PART].astype(np.float64) for start in range(0, len(flat), _PART))
    return sum(float(np.dot(part, part)) for part in parts)


def _gradient(parameter: Parameter) -> Array:
    """The gradient as kernels take it: contiguous, of the value's type."""
    grad = np.ascontiguousarray(parameter.grad, parameter.dtype)
    if grad.shape != parameter.value.shape:
        raise ValueError(f"grad has shape {grad.shape}, expected {parameter.value.shape}, the shape of value")
    return grad


def _parameter(item: Any) -> Parameter:
    found = item[1] if isinstance(item, tuple) and len(item) == 2 else item
    if not isinstance(found, Parameter):
        raise TypeError(f"parameters holds a {type(found).__name__}, expected fs.nn.Parameter (model.parameters())")
    return found


def _at_least_zero(value: Any, name: str) -> float:
    if isinstance(value, (bool, str)) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} is {value!r}, expected a number of at least 0")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a number of at least 0")
    return float(value)


def _check_norm(value: Any) -> None:
    if isinstance(value, (bool, str)) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"max_norm is {value!r}, expected a positive number")
    if not value > 0:
        raise ValueError(f"max_norm is {value!r}, expected a positive number")


def _below_one(value: Any, name: str) -> float:
    number = _at_least_zero(value, name)
    if number >= 1:
        raise ValueError(f"{name} is {value!r}, expected a number in [0, 1)")
    return number
