"""Which of two ways an engine's calls go, on a simulated machine: clock and speeds are values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fastsparse.engine.trial import COST, LOOK, Trial

Speeds = Callable[[float], tuple[float, float]]


class Machine:
    """Two ways of a call that take so many seconds, and nothing else that takes time.

    speeds : seconds of both ways at a time
    moved : seconds more of the first call behind one that went the other way, whose caches hold the data, at most half
        as much again
    """

    def __init__(self, speeds: Speeds, moved: float = 5e-4, noise: Callable[[], float] = lambda: 1.0) -> None:
        self.now, self.readings, self.made = 0.0, 0, list[tuple[float, int]]()
        self._speeds, self._moved, self._noise = speeds, moved, noise
        self.ways = (lambda: self._call(0), lambda: self._call(1))
        self.trial = Trial(self._clock)

    def _clock(self) -> float:
        self.readings += 1
        return self.now

    def _call(self, way: int) -> None:
        seconds = self._speeds(self.now)[way]
        moved = min(self._moved, seconds / 2) if self.made and self.made[-1][1] != way else 0.0
        self.now += seconds * self._noise() + moved
        self.made.append((self.now, way))

    def run(self, until: float) -> list[int]:
        """Calls up to a time; the ways that they went."""
        before = len(self.made)
        while self.now < until:
            self.trial.run(self.ways)
        return [way for _, way in self.made[before:]]


@pytest.mark.parametrize("seconds", [2e-6, 1e-4, 1e-3, 8e-3])
@pytest.mark.parametrize("other", [0.4, 0.9, 1.0, 1.05, 1.8])
def test_takes_the_faster_way_at_a_hundredth_of_the_time(seconds, other):
    machine = Machine(lambda now: (seconds, seconds * other))
    machine.run(min(20.0, 1e4 * seconds))
    best = seconds * min(1.0, other)
    first = 10 * seconds  # of the first trial
    assert machine.now - first <= 1.02 * best * len(machine.made)
    faster = int(other < 1)
    assert abs(other - 1) < 0.05 or np.mean([way == faster for _, way in machine.made[10:]]) > 0.9


@pytest.mark.parametrize("seconds", [1e-3, 2e-2])
def test_follows_a_machine_that_changes_its_state_within_a_second(seconds):
    """Cores share a cache for ten seconds, then they do not."""
    machine = Machine(lambda now: (seconds, seconds * (0.6 if now % 20 < 10 else 1.6)))
    for begin, faster in ((0, 1), (10, 0), (20, 1)):
        machine.run(begin + 1.5)
        assert np.mean([way == faster for way in machine.run(begin + 10)]) > 0.97


def test_holds_to_the_faster_way_in_noise():
    rng = np.random.default_rng(0)
    noise = lambda: rng.uniform(0.95, 1.05) * (4 if rng.random() < 0.05 else 1)  # noqa: E731
    assert np.mean(Machine(lambda now: (1e-3, 8e-4), noise=noise).run(10.0)) > 0.95


def test_a_wrong_beginning_is_put_right():
    """The second way was held up when it was timed first."""
    machine = Machine(lambda now: (1e-3, 5e-3 if now < 0.03 else 5e-4))
    machine.run(2.0)
    assert np.mean(machine.run(4.0)) > 0.97


def test_a_call_that_fails_counts_for_nothing():
    machine = Machine(lambda now: (1e-3, 5e-4))
    for _ in range(20):
        with pytest.raises(KeyboardInterrupt):
            machine.trial.run((_interrupted, _interrupted))
    assert not machine.trial.decided
    machine.run(0.1)
    assert machine.trial.decided
    assert machine.trial.way == 1


def _interrupted() -> None:
    raise KeyboardInterrupt


def test_hardly_reads_the_clock():
    machine = Machine(lambda now: (1e-5, 2e-5))
    machine.run(2.0)
    assert machine.readings < 2 * (1.5 * 2.0 / LOOK)
    assert len(machine.made) > (1 - COST) * 2.0 / 1e-5 - 100
