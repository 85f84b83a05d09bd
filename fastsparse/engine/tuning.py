"""Choosing a schedule by measuring: candidates give the same bits, so only time is at stake.

A machine changes its state while it is measured: clocks, other programs, cores that share a cache or do not. So all
candidates are compared with one incumbent, the estimate, within rounds, and the incumbent stays unless it is beaten
clearly and repeatedly. Where workers share the work, what they send each other counts, which changes most from state to
state: who wins with several workers must not lose on one, either. And where the incumbent itself gains nothing by them
(another program has a core, cores share no cache), times tell how candidates run on one worker: the incumbent stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from fastsparse.engine.program import Program
from fastsparse.engine.schedule import Schedule
from fastsparse.engine.workspace import Workspace
from fastsparse.runtime.measure import seconds

SECONDS = 0.5  # for comparing the best candidates, about
MOST_SECONDS = 10.0  # after this no other candidate is tried
SHARED = 0.9  # several workers must take less than this part of the time of one
GAIN = 0.97  # a candidate must take less than this part of the incumbent's time
WINS = 0.8  # in this share of the rounds it must be faster
ALONE = 1.03  # and on one worker it may take this part of the incumbent's time at most
CLOSE = 1.15  # candidates this near to the best one are compared again
KEPT = 3  # candidates that are compared again, at most
ROUNDS = 4, 20  # least and most
# A measurement is the least of some calls, since the first ones fetch what other candidates left elsewhere: of so many,
# and of one where they take more than so many seconds.
CALLS, BLOCK = 8, 0.005


def fastest(program: Program, candidates: Sequence[Callable[[], Schedule]], batch: int, workers: int = 1) -> int:
    """The candidate that runs fastest, by its position; the first one, the incumbent, unless another beats it clearly
    and repeatedly. Progress is shown on a terminal when it takes more than a second."""
    if len(candidates) == 1:
        return 0
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((batch, *program.shapes[t])).astype(program.dtype) for t in program.inputs]
    y = [np.empty((batch, *program.shapes[t]), program.dtype) for t in program.outputs]
    begin = time.perf_counter()

    def measured(space: Any, workers: int = workers) -> float:
        call = partial(space.run_on, workers, x, y)
        once = seconds(call)
        more = min(CALLS, int(BLOCK / max(once, 1e-9))) - 1
        return min([once, *(seconds(call) for _ in range(more))])

    def alone(space: Any) -> float:
        return min(measured(space, 1) for _ in range(ROUNDS[0]))

    def compared(space: Any) -> float:
        incumbent = measured(first)
        return measured(space) / incumbent

    first = Workspace(candidates[0]())
    measured(first)
    if workers > 1 and median(measured(first) / measured(first, 1) for _ in range(2 * ROUNDS[0])) >= SHARED:
        return 0
    spaces: dict[int, Any] = {}
    ratios: dict[int, list[float]] = {}
    for i, make in enumerate(tqdm(candidates[1:], "tune", delay=1, disable=None, leave=False), 1):
        if time.perf_counter() - begin > MOST_SECONDS:
            break
        spaces[i] = Workspace(make())
        measured(spaces[i])
        ratios[i] = [compared(spaces[i]), compared(spaces[i])]  # two, in case the machine changes during one of them
        limit = CLOSE * min(1.0, *(max(ratios[j]) for j in spaces))
        near = sorted((j for j in spaces if min(ratios[j]) < limit), key=lambda j: min(ratios[j]))[:KEPT]
        spaces = {j: spaces[j] for j in near}
    least, most = ROUNDS
    once = measured(first) * (1 + len(spaces))
    for _ in range(max(least, min(most, int(SECONDS / max(once, 1e-9))))):
        incumbent = measured(first)
        for i, space in spaces.items():
            ratios[i].append(measured(space) / incumbent)
    for i in sorted(spaces, key=lambda i: median(ratios[i])):
        wins = sum(ratio < 1 for ratio in ratios[i]) / len(ratios[i])
        if median(ratios[i]) >= GAIN or wins < WINS:
            continue
        if workers == 1 or alone(spaces[i]) <= ALONE * alone(first):
            return i
    return 0
