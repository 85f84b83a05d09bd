"""Learning rates as functions of the step, so that a resumed run goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fastsparse import checks

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
        checks.number(self.initial, "initial")
        checks.number(self.final, "final")
        checks.integer(self.steps, "steps")

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
        checks.number(self.initial, "initial")
        checks.number(self.factor, "factor")
        checks.integer(self.every, "every")

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
            checks.number(self.then, "then")
        checks.integer(self.steps, "steps")

    def __call__(self, step: int) -> float:
        """Learning rate of step number `step`, from 0."""
        if step < self.steps:
            return rate_at(self.then, 0) * (step + 1) / self.steps
        return rate_at(self.then, step - self.steps)


def rate_at(lr: float | Schedule, step: int) -> float:
    """The learning rate of a step, whether `lr` is a number or a schedule."""
    rate = lr(step) if callable(lr) else lr
    return rate if type(rate) is float and 0 <= rate < math.inf else checks.number(rate, "lr")
