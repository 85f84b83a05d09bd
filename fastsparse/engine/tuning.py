"""Choosing a schedule by measuring: candidates give the same bits, so only time is at stake."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from fastsparse.engine.program import Program
from fastsparse.engine.schedule import Schedule
from fastsparse.engine.workspace import Workspace
from fastsparse.runtime.measure import seconds

SECONDS = 0.5  # for comparing the best candidates, about
MOST_SECONDS = 10.0  # after this no other candidate is tried
GAIN = 0.95  # a candidate must take less than this part of the estimate's time, or noise would decide
CLOSE = 1.15  # candidates this near to the best one are compared again
KEPT = 3  # candidates that are compared again, at most


def fastest(program: Program, candidates: Sequence[Callable[[], Schedule]], batch: int) -> int:
    """The candidate that runs fastest, by its position; the first one, which is the estimate, unless another is
    clearly faster. Progress is shown on a terminal when it takes more than a second."""
    if len(candidates) == 1:
        return 0
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((batch, *program.shapes[t])).astype(program.dtype) for t in program.inputs]
    y = [np.empty((batch, *program.shapes[t]), program.dtype) for t in program.outputs]
    begin = time.perf_counter()
    times: dict[int, float] = {}
    spaces: dict[int, Any] = {}
    for i, make in enumerate(tqdm(candidates, "tune", delay=1, disable=None, leave=False)):
        if i and time.perf_counter() - begin > MOST_SECONDS:
            break
        spaces[i] = Workspace(make())
        spaces[i].run(x, y)
        times[i] = seconds(partial(spaces[i].run, x, y))
        # The estimate stays: it is what others are measured against.
        near = sorted((j for j in spaces if times[j] < CLOSE * min(times.values())), key=times.__getitem__)[:KEPT]
        spaces = {j: spaces[j] for j in sorted({0, *near})}
    once = sum(times[i] for i in spaces)
    # In turn, so that a machine that slows down slows all of them.
    for _ in range(max(2, min(20, int(SECONDS / max(once, 1e-9))))):
        for i, space in spaces.items():
            times[i] = min(times[i], seconds(partial(space.run, x, y)))
    best = min(spaces, key=times.__getitem__)
    return best if times[best] < GAIN * times[0] else 0
