"""Sparsity as a function of the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fastsparse import checks


class SparsitySchedule(Protocol):
    """Interface of a schedule to gradual pruning."""

    def due(self, step: int) -> bool:
        """Whether to prune after step number `step`, counted from 1."""

    def __call__(self, step: int) -> float:
        """The sparsity wanted after step number `step`."""


@dataclass(frozen=True)
class PolynomialDecay:
    """From `initial_sparsity` to `final_sparsity` along a polynomial: fast at first, slower near the end.

    final + (initial - final) (1 - (step - begin) / (end - begin))^power
    (Zhu and Gupta, To prune, or not to prune, 2017, section 3).

    Parameters
    ----------
    initial_sparsity, final_sparsity : float in [0, 1)
    begin_step, end_step : int
        First and last step of pruning.
    power : float
    frequency : int
        Prune at every so many steps, and at the last one.

    Examples
    --------
    >>> from fastsparse.sparsity import PolynomialDecay
    >>> schedule = PolynomialDecay(0.0, 0.9, begin_step=0, end_step=1000)
    >>> [round(schedule(step), 3) for step in (0, 100, 500, 1000)]
    [0.0, 0.244, 0.787, 0.9]
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    power: float = 3
    frequency: int = 100

    def __post_init__(self) -> None:
        checks.number(self.initial_sparsity, "initial_sparsity", 0, 1, ends="[)")
        checks.number(self.final_sparsity, "final_sparsity", 0, 1, ends="[)")
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                f"initial_sparsity is {self.initial_sparsity}, expected at most final_sparsity = {self.final_sparsity}"
            )
        checks.integer(self.begin_step, "begin_step", 0)
        checks.integer(self.end_step, "end_step", self.begin_step + 1)
        checks.integer(self.frequency, "frequency", 1)
        checks.number(self.power, "power", ends="(]")

    def due(self, step: int) -> bool:
        """Whether to prune after step number `step`."""
        inside = self.begin_step <= step <= self.end_step
        return inside and ((step - self.begin_step) % self.frequency == 0 or step == self.end_step)

    def __call__(self, step: int) -> float:
        """The sparsity wanted after step number `step`."""
        done = (step - self.begin_step) / (self.end_step - self.begin_step)
        left = (1 - min(max(done, 0.0), 1.0)) ** self.power
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * left


@dataclass(frozen=True)
class ConstantSparsity:
    """`sparsity` from `begin_step` on; what has become denser meanwhile is pruned at every `frequency` steps.

    Parameters
    ----------
    sparsity : float in [0, 1)
    begin_step : int
    end_step : int, optional
        Last step of pruning.
    frequency : int
    """

    sparsity: float
    begin_step: int = 0
    end_step: int | None = None
    frequency: int = 100

    def __post_init__(self) -> None:
        checks.number(self.sparsity, "sparsity", 0, 1, ends="[)")
        checks.integer(self.begin_step, "begin_step", 0)
        if self.end_step is not None:
            checks.integer(self.end_step, "end_step", self.begin_step)
        checks.integer(self.frequency, "frequency", 1)

    def due(self, step: int) -> bool:
        """Whether to prune after step number `step`."""
        first = max(self.begin_step, 1)
        inside = first <= step and (self.end_step is None or step <= max(self.end_step, first))
        return inside and (step == first or (step - self.begin_step) % self.frequency == 0)

    def __call__(self, step: int) -> float:
        """The sparsity wanted."""
        return self.sparsity
