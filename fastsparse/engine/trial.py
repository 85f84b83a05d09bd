"""Which of two ways of the same call is faster, found by timing both now and then.

Whether several workers gain on a network of small layers depends on whether their cores share a cache. Virtual machines
do not know, and move between both states while a program runs: the same network takes 0.6 or 2 times as long as on one
worker. So neither way is estimated. Calls go the way that was faster last, and a few go the other way where

- calls have become slower, or
- they are as fast as before, but it was half a second ago.

Trials cost a hundredth of the time at most. The first trial is at the first calls.

The first call of each way is not counted, since it fetches what the other way left in other caches. Of the others the
second fastest counts: a program that takes a core away for some milliseconds slows down several calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

CALLS = 5  # of each way in a trial
GAIN = 0.95  # the other way is taken where it takes less than this part of the time
LOST = 1.2  # a trial ends where the second call the other way took this much longer
SLOWER = 1.15  # twice in a row calls took this much longer than in the last trial: time for another
FIRST, LAST = 0.02, 0.5  # seconds of calls between trials: behind a change of ways, and at most
COST = 0.01  # of the time, at most, for trials
MOVED = 0.001  # seconds that a trial costs at least, unless calls take less: data go to other caches and back
LOOK = 0.005  # seconds of calls of which one is timed


class Trial:
    """Runs calls the way that is faster at present. For one call at a time.

    Attributes
    ----------
    way : int
        The way of the next call, 0 or 1.
    decided : bool
        Whether both ways have been timed.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.way, self.decided = 0, False
        self._clock = clock
        self._taken = 0  # the way between trials
        self._untimed = 0  # calls until one is timed
        self._gap, self._least, self._spent, self._slow = FIRST, 0.0, 0.0, 0
        self._seconds = LOOK  # of a call
        self._begin()

    def run(self, ways: Sequence[Callable[[], None]]) -> None:
        """Make one call."""
        if self._untimed > 0:
            self._untimed -= 1
            ways[self.way]()
            return
        begin = self._clock()
        ways[self.way]()
        seconds = self._clock() - begin
        (self._tried if self._turns else self._looked)(seconds)

    def _begin(self) -> None:
        """A trial: calls the way that is taken, then the other way."""
        self._turns = [1 - self._taken] * CALLS + [self._taken] * CALLS  # from the end
        self._times: tuple[list[float], list[float]] = ([], [])

    def _tried(self, seconds: float) -> None:
        way = self._turns[-1]
        times = self._times[way]
        times.append(seconds)
        self._turns.pop()
        if way != self._taken and len(times) == 2 and seconds > LOST * min(self._times[self._taken]):
            self._turns.clear()
        if not self._turns:
            self._decide()
        self.way = self._turns[-1] if self._turns else self._taken

    def _decide(self) -> None:
        own, other = (sorted(self._times[way][1:])[:2][-1] for way in (self._taken, 1 - self._taken))
        lost = min(own, MOVED) + len(self._times[1 - self._taken]) * min(abs(own - other), own)
        self._least = lost / COST  # seconds of calls that pay for a trial
        self._gap = min(2 * self._gap, LAST)
        if other < GAIN * own:
            self._taken, own, self._gap = 1 - self._taken, other, FIRST
        self._seconds = max(own, 1e-7)
        self._spent, self._slow, self.decided = 0.0, 0, True
        self._untimed = self._calls()

    def _looked(self, seconds: float) -> None:
        self._spent += seconds * (1 + self._calls())
        self._slow = self._slow + 1 if seconds > SLOWER * self._seconds else 0
        if self._spent >= self._least and (self._spent >= self._gap or self._slow >= 2):
            self._begin()
        else:
            self._untimed = self._calls()

    def _calls(self) -> int:
        """Calls between two that are timed."""
        return int(LOOK / self._seconds)
