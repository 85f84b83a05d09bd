"""Choosing a schedule by measuring: candidates give the same bits, so only time is at stake."""

from __future__ import annotations

import numpy as np

from fastsparse import launch_engine
from fastsparse.engine.program import Program
from fastsparse.engine.schedule import Schedule
from fastsparse.engine.workspace import Workspace

SECONDS = 0.5  # for all candidates together, about
GAIN = 0.95  # a candidate must take less than this part of the estimate's time, or noise would decide


def fastest(program: Program, candidates: list[Schedule], batch: int) -> Schedule:
    """The candidate that runs fastest; the first one, which is the estimate, unless another is clearly faster."""
    if len(candidates) == 1:
        return candidates[0]
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((batch, *program.shapes[t])).astype(program.dtype) for t in program.inputs]
    y = [np.empty((batch, *program.shapes[t]), program.dtype) for t in program.outputs]
    times = [np.inf] * len(candidates)
    spaces = [Workspace(schedule) for schedule in candidates]
    once = 0.0
    for space in spaces:
        space.run(x, y)
        once += launch_engine.seconds(lambda space=space: space.run(x, y))  # type: ignore[misc]
    # In turn, so that a machine that slows down slows all of them.
    for _ in range(max(2, min(20, int(SECONDS / max(once, 1e-9))))):
        for i, space in enumerate(spaces):
            times[i] = min(times[i], launch_engine.seconds(lambda space=space: space.run(x, y)))  # type: ignore[misc]
    best = int(np.argmin(times))
    return candidates[best if times[best] < GAIN * times[0] else 0]
