"""Learning rates as functions of the step, so that a resumed run goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class CosineDecay:
    """From `initial` to `final` along half a cosine over `steps` steps, then `final`.

    Loshchilov and Hutter, SGDR, ICLR 2017.
    """

    initial: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_rate(self.initial, "initial")
        _check_rate(self.final, "final")
        _check_steps(self.steps, "steps")

    def __call__(self, step: int) -> float:
        """Learning rate of step number `step`, from 0."""
        done = min(step / self.steps, 1.0)
        return self.final + (self.initial - self.final) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class StepDecay:
    """`initial` times `factor` to the number of times that `every` steps have passed."""

    initial: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _check_rate(self.initial, "initial")
        _check_rate(self.factor, "factor")
        _check_steps(self.every, "every")

    def __call__(self, step: int) -> float:
        """Learning rate of step number `step`, from 0."""
        return self.initial * self.factor ** (step // self.every)


@dataclass(frozen=True)
class WarmUp:
    """Rises in a straight line to `then` over `steps` steps; then `then`, a rate or a schedule, takes over from 0."""

    then: float | Schedule
    steps: int

    def __post_init__(self) -> None:
        if not callable(self.then):
            _check_rate(self.then, "then")
        _check_steps(self.steps, "steps")

    def __call__(self, step: int) -> float:
        """Learning rate of step number `step`, from 0."""
        if step < self.steps:
            return rate_at(self.then, 0) * (step + 1) / self.steps
        return rate_at(self.then, step - self.steps)


def rate_at(lr: float | Schedule, step: int) -> float:
    """The learning rate of a step, whether `lr` is a number or a schedule."""
    return float(lr(step)) if callable(lr) else float(lr)


def _check_steps(steps: int, name: str) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"{name} is {steps!r}, expected an integer of at least 1")


def _check_rate(value: Any, name: str) -> None:
    if isinstance(value, (bool, str)) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} is {value!r}, expected a number of at least 0")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a number of at least 0")
