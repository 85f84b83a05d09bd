"""Optimizers, which change parameters in place, at nonzeros only.

An optimizer's arrays follow their nonzeros when a pattern changes: each parameter refers to the states of all living
optimizers (``parameter.state`` is that of the last one made).

Kernels write into values and state, so a step first checks all of them: writable, not sharing memory, of one dtype and
size. When it raises, nothing has been changed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from operator import is_not
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastsparse import checks
from fastsparse.nn.parameter import OptimizerState, Parameter, RowGradient
from fastsparse.ops import optimizers as kernels
from fastsparse.runtime import buffers
from fastsparse.runtime.buffers import spans
from fastsparse.training.schedules import Schedule, rate_at

Array = NDArray[Any]
Parameters: TypeAlias = Iterable[Parameter] | Iterable[tuple[str, Parameter]]

_PART = 1 << 16


class Optimizer:
    """Base of the optimizers.

    Parameters
    ----------
    parameters : iterable of Parameter, or of (name, Parameter)
        ``model.parameters()``. One that comes twice is updated once.
    lr : float or callable
        Learning rate, or a function of the step's number, for example ``CosineDecay(0.1, steps=1000)``.
    max_norm : float, optional
        When the norm of all gradients together is larger, they are scaled down to it.

    Attributes
    ----------
    steps : int
        Number of steps made.

    Raises
    ------
    TypeError, ValueError
        When an argument does not fit, or two parameters share memory.
    """

    # Names of the arrays in a parameter's state.
    state_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, parameters: Parameters, lr: float | Schedule, max_norm: float | None = None) -> None:
        self.parameters = _parameters(parameters)
        if not self.parameters:
            raise ValueError("parameters is empty, expected at least one Parameter")
        if not callable(lr):
            checks.number(lr, "lr")
        if max_norm is not None:
            _norm(max_norm)
        self.lr = lr
        self.max_norm = max_norm
        self.steps = 0
        values = [(f"parameters[{i}].value", parameter.value) for i, parameter in enumerate(self.parameters)]
        _spans([(name, value) for name, value in values if value.flags.c_contiguous])
        self._states = [parameter.new_state() for parameter in self.parameters]
        self._known: tuple[list[Array], list[tuple[int, int]]] = [], []  # arrays of the last step, and their spans

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return rate_at(self.lr, self.steps)

    def step(self) -> None:
        """Update all parameters that have a gradient; the gradients stay, scaled if they were clipped.

        State that cannot be written (unpickled into a read-only file) is copied first.

        Raises
        ------
        TypeError, ValueError
            When a value is read-only, a gradient or state has another shape or type than the value, or two of these
            arrays share memory. Nothing has been changed then.
        """
        rate, parameters = self.rate, self.parameters
        updated = [i for i, parameter in enumerate(parameters) if parameter.grad is not None]
        states = [self._ready(i, value) for i, value in zip(updated, [parameters[i].value for i in updated])]
        values = [parameters[i].writable(f"parameters[{i}].value") for i in updated]
        grads = [_gradient(parameters[i].grad, v, f"parameters[{i}].grad") for i, v in zip(updated, values)]
        written = self._checked_spans(updated, values, states)
        if self.max_norm is not None:
            clip_gradients([parameters[i] for i in updated], self.max_norm)
            grads = [_gradient(parameters[i].grad, value, "grad") for i, value in zip(updated, values)]
        grads = _apart(grads, written)
        self.steps += 1
        for i, value, grad, state in zip(updated, values, grads, states, strict=True):
            self._states[i].update(state)
            if isinstance(grad, RowGradient):
                self._update_rows(value, grad, self._states[i], rate)
            else:
                self._update(value, grad, self._states[i], rate)
            parameters[i].updated()

    def state_of(self, parameter: Parameter) -> OptimizerState:
        """This optimizer's arrays for one of its parameters, by name; empty before the first step."""
        return self._states[self.parameters.index(parameter)]

    def _ready(self, i: int, value: Array) -> dict[str, Array]:
        """The state of parameter `i`, of this value, as kernels take it."""
        state, ready = self._states[i], {}
        for name in self.state_names:
            array = state.get(name)
            if array is None:
                array = np.zeros(value.shape, value.dtype)
            elif not isinstance(array, np.ndarray) or array.shape != value.shape or array.dtype != value.dtype:
                found = f"{getattr(array, 'dtype', type(array).__name__)} {np.shape(array)}"
                raise ValueError(
                    f"parameters[{i}].state[{name!r}] is {found}, expected {value.dtype} {value.shape} like value"
                )
            ready[name] = array if array.flags.carray else np.array(array, order="C")
        return ready

    def _checked_spans(
        self, updated: list[int], values: list[Array], states: list[dict[str, Array]]
    ) -> list[tuple[int, int]]:
        """Memory that a step writes, as `_spans`; computed again when arrays have changed since the last step."""
        arrays = [*values, *(array for state in states for array in state.values())]
        known, written = self._known
        if len(known) != len(arrays) or any(map(is_not, known, arrays)):
            names = [f"parameters[{i}].value" for i in updated]
            names += [f"parameters[{i}].state[{name!r}]" for i, state in zip(updated, states) for name in state]
            written = _spans(list(zip(names, arrays, strict=True)))
            self._known = arrays, written
        return written

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": ([], [])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for parameter, own in zip(self.parameters, self._states, strict=True):
            parameter.link_state(own)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.zero_grad()

    def _update_rows(self, value: Array, grad: RowGradient, state: OptimizerState, rate: float) -> None:
        """As `_update`, for the rows that the gradient has; the others stay as they are."""
        rows, some, part = grad.rows, value[grad.rows], OptimizerState()
        part.update({name: array[rows] for name, array in state.items()})
        self._update(some, grad.values, part, rate)
        value[rows] = some
        for name, array in part.items():
            state[name][rows] = array

    def _update(self, value: Array, grad: Array, state: OptimizerState, rate: float) -> None:
        """Change value and state in place; all arrays are contiguous, of one type and shape, and apart."""
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    v = momentum v + g, value -= lr v; with nesterov value -= lr (g + momentum v). g includes weight_decay times value.
    Sutskever et al., On the importance of initialization and momentum, ICML 2013.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0,
        *,
        max_norm: float | None = None,
    ) -> None:
        self.momentum = checks.number(momentum, "momentum", 0, 1, ends="[)")
        self.nesterov = checks.flag(nesterov, "nesterov")
        self.weight_decay = checks.number(weight_decay, "weight_decay")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is True and momentum is 0, expected a momentum above 0")
        if self.momentum:
            self.state_names = ("velocity",)  # type: ignore[misc]
        super().__init__(parameters, lr, max_norm)

    def _update(self, value: Array, grad: Array, state: OptimizerState, rate: float) -> None:
        velocity = state.get("velocity")
        kernels.sgd_step(value, grad, velocity, rate, self.momentum, self.nesterov, self.weight_decay)


class Adam(Optimizer):
    """Adam; weight_decay is added to the gradient. Kingma and Ba, Adam, ICLR 2015."""

    state_names = ("first", "second")
    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        max_norm: float | None = None,
    ) -> None:
        if not checks.is_sequence(betas) or len(betas) != 2:
            raise TypeError(f"betas is {checks.shown(betas)}, expected two numbers in [0, 1)")
        first, second = betas
        self.betas = (
            checks.number(first, "betas[0]", 0, 1, ends="[)"),
            checks.number(second, "betas[1]", 0, 1, ends="[)"),
        )
        self.eps = checks.number(eps, "eps")
        self.weight_decay = checks.number(weight_decay, "weight_decay")
        super().__init__(parameters, lr, max_norm)

    def _update(self, value: Array, grad: Array, state: OptimizerState, rate: float) -> None:
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
        parameters: Parameters,
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

    Scaled gradients are new arrays.

    Raises
    ------
    TypeError, ValueError
        When max_norm is not a positive number.
    """
    _norm(max_norm)
    clipped = [(p, _gradient(p.grad, p.value, "grad")) for p in _parameters(parameters) if p.grad is not None]
    norm = math.sqrt(sum(_squares(_numbers(grad)) for _, grad in clipped))
    if norm > max_norm:
        for parameter, grad in clipped:
            numbers = _numbers(grad)
            scaled = np.multiply(numbers, max_norm / norm, out=buffers.array(numbers.shape, numbers.dtype))
            parameter.grad = replace(grad, values=scaled) if isinstance(grad, RowGradient) else scaled
    return norm


def _squares(grad: Array) -> float:
    """Sum of squares in float64, without a copy of the whole."""
    flat = grad.reshape(-1)
    parts = (flat[start : start + _PART].astype(np.float64) for start in range(0, len(flat), _PART))
    return sum(float(np.dot(part, part)) for part in parts)


def _numbers(grad: Array | RowGradient) -> Array:
    """The numbers of a gradient that may not be zero."""
    return grad.values if isinstance(grad, RowGradient) else grad


def _gradient(grad: Any, value: Array, name: str) -> Any:
    """The gradient, or its rows, as kernels take it: contiguous, aligned, of the value's type."""
    if isinstance(grad, RowGradient):
        if grad.shape != value.shape:
            raise ValueError(f"{name} has shape {grad.shape}, expected {value.shape}, the shape of value")
        return replace(grad, values=np.require(grad.values, value.dtype, ("C", "A")))
    if np.shape(grad) != value.shape:
        raise ValueError(f"{name} has shape {np.shape(grad)}, expected {value.shape}, the shape of value")
    if type(grad) is np.ndarray and grad.dtype == value.dtype and grad.flags.c_contiguous and grad.flags.aligned:
        return grad
    return np.require(grad, value.dtype, ("C", "A"))


def _spans(arrays: Sequence[tuple[str, Array]]) -> list[tuple[int, int]]:
    """First and last byte of contiguous arrays, in rising order.

    Raises
    ------
    ValueError
        Naming two arrays that share memory.
    """
    filled = [(name, array) for name, array in arrays if array.size]
    found = sorted(zip(spans([array for _, array in filled]), [name for name, _ in filled], strict=True))
    for ((_, end), one), ((start, _), other) in pairwise(found):
        if start < end:
            raise ValueError(f"{other} shares memory with {one}, expected arrays of their own")
    return [where for where, _ in found]


def _apart(grads: list[Any], written: list[tuple[int, int]]) -> list[Any]:
    """Gradients, copied where some of their memory will be written to; rows go through copies of their own."""
    found = []
    for grad, (start, end) in zip(grads, spans(list(map(_numbers, grads))), strict=True):
        last = bisect_left(written, (end, 0)) - 1
        shared = last >= 0 and written[last][1] > start and not isinstance(grad, RowGradient)
        found.append(grad.copy() if shared else grad)
    return found


def _parameters(items: Any) -> list[Parameter]:
    """What is to be trained, each once."""
    items = checks.items(items, "parameters", "a list of fs.nn.Parameter (model.parameters())")
    found = [item[1] if isinstance(item, tuple) and len(item) == 2 else item for item in items]
    for item in found:
        if not isinstance(item, Parameter):
            raise TypeError(f"parameters holds a {type(item).__name__}, expected fs.nn.Parameter (model.parameters())")
    return list(dict.fromkeys(found))


def _norm(value: Any) -> None:
    if not (isinstance(value, float) and value == math.inf):  # measured, and nothing scaled
        checks.number(value, "max_norm", ends="(]")
