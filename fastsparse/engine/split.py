"""How a batch is cut: pure functions of sizes.

A wrong guess costs some per cent, never a result: all cuts give the same bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from fastsparse.ops.heuristics import Heuristics
from fastsparse.ops.target import Target

_MOST_TASKS = 2**12  # numbers of tasks that are tried: any batch is cut in no time


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


def tile_groups(positions: int, groups: int, h: Heuristics) -> int:
    """Groups that one line of tiles goes over: all where positions alone fill their tiles badly."""
    return groups if groups > 1 and h.useful_rate(positions) < 0.9 * h.useful_rate(positions * groups) else 1


def choose(work: Work, groups: int, target: Target) -> Split:
    """The cut that costs least by a rough count."""
    h, workers = target.heuristics, target.threads
    per_group = work.early_flops + work.late_flops
    inner = max(1, h.live_bytes // max(1, work.early_bytes))
    cap = inner
    if work.late_flops > 0:
        cap = max(4, min(16, h.late_bytes // max(1, work.late_bytes)))
    if workers > 1:  # two tasks for each worker, so that a core that comes late still helps
        cap = min(cap, max(4, math.ceil(groups / (2 * workers))))
    cap = max(1, min(cap, groups, int(h.task_flops // max(1.0, per_group))))
    rounds = math.ceil(groups / cap / workers)
    outer = math.ceil(groups / (rounds * workers))
    alone = rounds * outer * (work.early_flops + work.late_flops / h.useful_rate(outer))
    tasks = math.ceil(groups / cap)
    shared_outer = math.ceil(groups / tasks)
    total = groups * (work.early_flops + work.late_flops / h.useful_rate(shared_outer))
    shared = total / workers / h.shared_rate + tasks * work.steps * h.step_cost
    if per_group <= h.task_flops and (workers == 1 or alone <= shared):
        return Split(True, outer, _divisor(outer, inner))
    return Split(False, shared_outer, _divisor(shared_outer, inner * workers))


def choose_images(work: Work, batch: int, target: Target) -> Split:
    """The cut of a batch of single images: `work` and the sizes of the result are in samples.

    Parts are equal. Workers get images of their own where that keeps them evenly busy, and where linear layers, which
    would rather have the whole batch, are not most of the work.
    """
    h, workers = target.heuristics, target.threads
    inner = h.live_bytes // max(1, work.early_bytes)
    total = batch * (work.early_flops + work.late_flops)
    if workers > 1 and work.late_flops <= work.early_flops:
        fewest = max(workers, math.ceil(total / h.task_flops))
        for tasks in range(fewest, min(batch, fewest + _MOST_TASKS) + 1):
            if batch % tasks == 0 and tasks / (math.ceil(tasks / workers) * workers) >= h.shared_rate:
                return Split(total >= h.parallel_flops, batch // tasks, _divisor(batch // tasks, inner))
    return Split(False, batch, _divisor(batch, inner * workers))


def candidates(work: Work, groups: int, target: Target) -> list[Split]:
    """Cuts worth measuring, the one by estimate first."""
    h, workers = target.heuristics, target.threads
    first = choose(work, groups, target)
    found = [first]
    per_group = max(1.0, work.early_flops + work.late_flops)
    for per_worker in (True, False) if workers > 1 else (first.per_worker,):
        for tasks in {1, 2, 4, 8}:
            outer = math.ceil(groups / (tasks * (workers if per_worker else 1)))
            if per_worker and outer * per_group > h.task_flops:
                continue
            found += [Split(per_worker, outer, _divisor(outer, most)) for most in (1, first.inner, 4 * first.inner)]
    return list(dict.fromkeys(cut for cut in found if cut.outer <= h.most_groups or cut == first))


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return next(i for i in range(max(1, min(number, most)), 0, -1) if number % i == 0)
