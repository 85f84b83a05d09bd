"""How a batch is cut: pure functions of sizes.

Figures are of an AVX-512 core with 1 MB of L2 cache; a wrong guess costs some per cent, never a result: all cuts give
the same bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from fastsparse.plan.policy import PARALLEL_FLOPS, TILE_RATE, tile_width

FEW_POSITIONS = 4  # images smaller than this make their tiles over groups of samples
LIVE_BYTES = 1 << 20  # what two neighbouring layers of the first stage may hold: about the L2 cache
LATE_BYTES = 1 << 20  # the same of the second stage
TASK_FLOPS = 10e9  # of a worker's task at most, so that Ctrl-C is noticed
MOST_GROUPS = 16  # of a task
STEP_COST = 2e5  # of a meeting of all workers, in multiplications and additions (2 us)
SHARED_RATE = 0.85  # of shared steps: a core reads what others wrote


class Work(NamedTuple):
    """Of one group of VL samples: flops of both stages, bytes of activations live at once in both, and steps."""

    early_flops: float
    late_flops: float
    early_bytes: int
    late_bytes: int
    steps: int


class Split(NamedTuple):
    """per_worker as in `Schedule`; groups of a task; groups of the first stage's steps."""

    per_worker: bool
    outer: int
    inner: int


def rate(vectors: int) -> float:
    """Useful rate of tiles over a line of `vectors` vectors."""
    width = tile_width(vectors)
    return TILE_RATE[width] * vectors / (-(-vectors // width) * width)


def tile_groups(positions: int, groups: int) -> int:
    """Groups that one line of tiles goes over: all where positions alone fill their tiles badly."""
    return groups if groups > 1 and rate(positions) < 0.9 * rate(positions * groups) else 1


def choose(work: Work, groups: int, workers: int) -> Split:
    """The cut that costs least by a rough count."""
    per_group = work.early_flops + work.late_flops
    inner = max(1, LIVE_BYTES // max(1, work.early_bytes))
    cap = inner
    if work.late_flops > 0:
        cap = max(4, min(16, LATE_BYTES // max(1, work.late_bytes)))
    if workers > 1:  # two tasks for each worker, so that a core that comes late still helps
        cap = min(cap, max(4, math.ceil(groups / (2 * workers))))
    cap = max(1, min(cap, groups, int(TASK_FLOPS // max(1.0, per_group))))
    rounds = math.ceil(groups / cap / workers)
    outer = math.ceil(groups / (rounds * workers))
    alone = rounds * outer * (work.early_flops + work.late_flops / rate(outer))
    tasks = math.ceil(groups / cap)
    shared_outer = math.ceil(groups / tasks)
    total = groups * (work.early_flops + work.late_flops / rate(shared_outer))
    shared = total / workers / SHARED_RATE + tasks * work.steps * STEP_COST
    if per_group <= TASK_FLOPS and (workers == 1 or alone <= shared):
        return Split(True, outer, _divisor(outer, inner))
    return Split(False, shared_outer, _divisor(shared_outer, inner * workers))


def choose_images(work: Work, batch: int, workers: int) -> Split:
    """The cut of a batch of single images: `work` and the sizes of the result are in samples.

    Parts are equal. Workers get images of their own where that keeps them evenly busy, and where linear layers, which
    would rather have the whole batch, are not most of the work.
    """
    inner = LIVE_BYTES // max(1, work.early_bytes)
    total = batch * (work.early_flops + work.late_flops)
    for tasks in range(workers, batch + 1):
        balance = tasks / (math.ceil(tasks / workers) * workers)
        whole = batch % tasks == 0 and total / tasks <= TASK_FLOPS
        if workers > 1 and whole and balance >= SHARED_RATE and work.late_flops <= work.early_flops:
            return Split(total >= PARALLEL_FLOPS, batch // tasks, _divisor(batch // tasks, inner))
    return Split(False, batch, _divisor(batch, inner * workers))


def candidates(work: Work, groups: int, workers: int) -> list[Split]:
    """Cuts worth measuring, the one by estimate first."""
    first = choose(work, groups, workers)
    found = [first]
    per_group = max(1.0, work.early_flops + work.late_flops)
    for per_worker in (True, False) if workers > 1 else (first.per_worker,):
        for tasks in {1, 2, 4, 8}:
            outer = math.ceil(groups / (tasks * (workers if per_worker else 1)))
            if per_worker and outer * per_group > TASK_FLOPS:
                continue
            found += [Split(per_worker, outer, _divisor(outer, most)) for most in (1, first.inner, 4 * first.inner)]
    return list(dict.fromkeys(cut for cut in found if cut.outer <= MOST_GROUPS or cut == first))


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return max(i for i in range(1, number + 1) if number % i == 0 and i <= max(1, most))
