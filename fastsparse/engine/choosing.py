"""Which schedules can run a program on a batch size, and which of them is taken.

All choices for a batch give the same bits, so the choice is one of time alone.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from fastsparse.engine import split
from fastsparse.engine.lowering import batch_blocked, padded, recurrent, spatial_tiles
from fastsparse.engine.lowering.padded import work_of_images
from fastsparse.engine.program import Conv, Gather, Interpolate, Linear, Pool, Program, Recurrent
from fastsparse.engine.schedule import Schedule
from fastsparse.engine.tuning import fastest
from fastsparse.ops.geometry import Ints
from fastsparse.ops.heuristics import Heuristics
from fastsparse.ops.spatial_tiles import SPATIAL_TILES_LIMIT, Partition, partition
from fastsparse.ops.target import Target, narrowed, target_for
from fastsparse.runtime.fork import fork_safe_lock
from fastsparse.runtime.sequence import expect_sequence

_KEPT = 256
# One lock serves the choices of all engines: held for a dictionary access, never while something is measured.
_lock = fork_safe_lock()


class Choice(NamedTuple):
    """A layout, "batch-blocked", "padded" or "spatial tiles", and how the batch is cut; "recurrent" has a way of its
    own."""

    layout: str
    cut: split.Split


def choices(program: Program, batch: int, workers: int, tune: bool) -> list[Choice]:
    """What can be taken, the one by estimate first; that one alone without `tune`."""
    if any(isinstance(node.operator, Recurrent) for node in program.nodes):
        return [Choice("recurrent", split.Split(False, 1, 1))]
    target, on_images = _target(program, batch, workers), _on_images(program)
    if (
        batch == 1
        or program.row_wise
        or (on_images and not target.heuristics.prefers_batch_blocks(batch, target.lanes))
    ):
        return _by_image(program, batch, target)[: None if tune else 1]
    groups, work = -(-batch // target.lanes), batch_blocked.work_of(program, target)
    if not on_images:
        cuts = split.candidates(work, groups, target) if tune else [split.choose(work, groups, target)]
        return [Choice("batch-blocked", cut) for cut in cuts]
    by_image = _by_image(program, batch, target)
    first = [Choice("batch-blocked", split.choose(work, groups, target)), by_image[0]]
    if min(_costs(program, target)) < _blocked_cost(program, target):
        first.reverse()
    if not tune:
        return first[:1]
    rest = [*by_image, *(Choice("batch-blocked", c) for c in split.candidates(work, groups, target))]
    return list(dict.fromkeys([*first, *rest]))


def scheduled(program: Program, batch: int, workers: int, choice: Choice) -> Schedule:
    """The schedule of a choice."""
    expect_sequence(shared=workers > 1)
    make = {
        "padded": padded.schedule,
        "spatial tiles": spatial_tiles.schedule,
        "batch-blocked": batch_blocked.schedule,
        "recurrent": recurrent.schedule,
    }
    return make[choice.layout](program, batch, _target(program, batch, workers), choice.cut)


def _on_images(program: Program) -> bool:
    return any(len(shape) > 1 for shape in program.shapes)


def _target(program: Program, batch: int, workers: int) -> Target:
    """With vectors of half the length where a batch of features fits them: an image or a row fills them by itself."""
    target = target_for(program.dtype, workers)
    return target if batch == 1 or program.row_wise or _on_images(program) else narrowed(target, batch)


def chosen(program: Program, batch: int, workers: int, tune: bool, known: Choice | None = None) -> Choice:
    """The choice that is taken: `known` where it can be, else by estimate or, with `tune`, by measuring.

    A known choice is measured against the estimate alone, which takes its place where it is clearly faster.
    """
    found = choices(program, batch, workers, tune or known is not None)
    if known in found:
        assert known is not None
        found = [known] if known == found[0] else [known, found[0]]
    if not tune or len(found) == 1:
        return found[0]
    candidates = [partial(scheduled, program, batch, workers, choice) for choice in found]
    return found[fastest(program, candidates, batch, workers)]


class Choices(OrderedDict[Any, Choice]):
    """What an engine chose by measuring, or has from a file, by keys; the oldest go when there are many."""

    def __init__(self) -> None:
        super().__init__()
        self.measured: set[Any] = set()  # here, and not only read from a file

    def schedule(
        self, program: Program, batch: int, workers: int, tune: bool, rest: tuple[Any, ...] = ()
    ) -> Schedule:  # fmt: skip
        """What runs a batch: a schedule for these workers, for one of them, or both, of which the faster is taken.

        All or one: where cores share no cache, a worker that runs a step now and then costs as much as one that runs
        half of each.

        rest : of the keys, behind batch and workers
        """
        used = workers if batch * program.useful_flops() >= Heuristics.alone_flops else 1
        made = scheduled(program, batch, used, self._taken((batch, workers, *rest), program, batch, used, tune))
        if used == 1:
            return made
        flops = sum(step.launch.flops for step in made.steps)
        flops = flops * made.tasks if made.per_worker else flops / len(made.steps)
        if flops >= made.heuristics.certain_flops * used:
            return made
        alone = self._taken((batch, 1, *rest), program, batch, 1, tune)
        return replace(made, alone=scheduled(program, batch, 1, alone))

    def _taken(self, key: Any, program: Program, batch: int, workers: int, tune: bool) -> Choice:
        """The choice for a program, kept where it was measured."""
        with _lock:
            known = self.get(key)
        choice = chosen(program, batch, workers, tune, known)
        with _lock:
            if tune:
                self[key] = choice
                self.measured.add(key)
            while len(self) > _KEPT:
                self.measured.discard(self.popitem(last=False)[0])
        return choice


def to_json(choice: Choice) -> list[Any]:
    """In types that JSON knows."""
    return [choice.layout, *choice.cut]


def from_json(data: Any) -> Choice:
    """The inverse of `to_json`.

    Raises
    ------
    ValueError
        When `data` is no choice.
    """
    if not isinstance(data, list) or [type(part) for part in data] != [str, bool, int, int]:
        raise ValueError(f"{data!r} is no choice of a schedule")
    return Choice(data[0], split.Split(*data[1:]))


def _by_image(program: Program, batch: int, target: Target) -> list[Choice]:
    """Choices that run images one by one, the best by estimate first."""
    cuts = [split.choose_images(work_of_images(program), batch, target)]
    if batch > 1 and target.threads > 1:
        cuts.append(split.Split(False, batch, 1))
    layouts = ["padded"]
    if any(isinstance(node.operator, Conv) for node in program.nodes) and _tiles_can_be_addressed(program):
        shared = target.threads > 1 and cuts[0].inner == 1 and not cuts[0].per_worker
        layouts = (
            ["spatial tiles", "padded"] if _prefers_tiles(program, target, shared) else ["padded", "spatial tiles"]
        )
    return [Choice(layout, cut) for cut in dict.fromkeys(cuts) for layout in layouts]


def _tiles_can_be_addressed(program: Program) -> bool:
    """Whether 31 bits reach all of a channel in spatial tiles, halo and overhang included."""
    return all(2 * math.prod(shape[1:]) * program.dtype.itemsize < SPATIAL_TILES_LIMIT for shape in program.shapes)


def _prefers_tiles(program: Program, target: Target, shared: bool = False) -> bool:
    """Whether spatial tiles cost less than padded planes, with their halo, overhang and gathers.

    shared : whether workers share every image
    """
    padded_cost, tiles_cost = _costs(program, target)
    return tiles_cost < padded_cost * (target.heuristics.shared_planes_cost if shared else 1.0)


def _costs(program: Program, target: Target) -> tuple[float, float]:
    """What one image costs in padded planes and in spatial tiles, in multiplications and additions."""
    h, lanes, padded_cost, tiles_cost = target.heuristics, target.lanes, 0.0, 0.0
    gathered: dict[tuple[int, str], float] = {}  # numbers, by tensor and what for

    def gather(t: int, what: str, numbers: float) -> None:
        gathered[t, what] = max(gathered.get((t, what), 0.0), numbers)

    roots = program.roots()
    for t in (*program.inputs, *program.outputs):
        gather(roots[t], "user", math.prod(program.shapes[t]))
    for node in program.nodes:
        op, t = node.operator, roots[node.inputs[0]]
        channels, *spatial = program.shapes[node.inputs[0]]
        if isinstance(op, Conv):
            g, flops = op.geometry, op.useful_flops
            windows, strided = math.prod(g.kernel) > 1, math.prod(g.stride) > 1
            tiles = _Tiled(
                tuple(spatial), g.out_spatial, g.kernel, g.stride if windows else (1,) * len(g.stride), lanes
            )
            padded_cost += flops * (h.planes_cost if windows else 1.0)
            padded_cost += h.planes_store_flops * g.out_channels * g.positions
            padded_cost += h.phase_flops * channels * math.prod(spatial) if strided else 0.0
            tiles_cost += flops * lanes * tiles.outputs / max(1, g.positions)
            tiles_cost += h.tiles_store_flops * g.out_channels * lanes * tiles.outputs
            gather(t, tiles.name, channels * lanes * tiles.gathered)
        elif isinstance(op, Pool):
            if math.prod(op.windows.out_spatial) < lanes:
                gather(t, "plain", channels * math.prod(spatial))
            else:
                stride = tuple(-(-n // max(1, o)) for n, o in zip(spatial, op.windows.out_spatial, strict=True))
                tiles = _Tiled(tuple(spatial), op.windows.out_spatial, stride, stride, lanes)
                gather(t, tiles.name, channels * lanes * tiles.gathered)
        elif isinstance(op, Linear | Gather | Interpolate):
            gather(t, "plain", channels * math.prod(spatial) if spatial else 0)
    return padded_cost, tiles_cost + h.gathered_flops * sum(gathered.values())


class _Tiled:
    """How a layer of windows reads spatial tiles: numbers of a tile that it writes, and of one that are gathered."""

    def __init__(self, spatial: Ints, out_spatial: Ints, kernel: Ints, stride: Ints, lanes: int) -> None:
        y = partition(out_spatial, lanes)
        size = tuple(n * s for n, s in zip(y.size, stride, strict=True))
        self.outputs, inner = math.prod(y.size), math.prod(size)
        whole = math.prod(n + max(0, k - s) for n, k, s in zip(size, kernel, stride, strict=True))
        self.own = partition(spatial, lanes) == Partition(y.counts, size)  # its input lies like this, but for the halo
        self.gathered = whole - inner if self.own else whole
        self.name = "halo" if self.own else f"tiles of {y.counts}, {size}"


def _blocked_cost(program: Program, target: Target) -> float:
    """What one image costs batch-blocked, in multiplications and additions.

    Vectors are aligned and hold no halo, but a group of samples is processed layer by layer: what most layers of large
    images write has left the caches when the next one reads it, where single images run from first layer to last.
    """
    h, planes, cost = target.heuristics, batch_blocked.assign_planes(program, target), 0.0
    for node in program.nodes:
        op = node.operator
        if isinstance(op, Conv | Linear):
            live = sum(planes[t].group_stride for t in (*node.inputs, node.output))
            cost += op.useful_flops + h.tiles_store_flops * math.prod(program.shapes[node.output])
            cost += h.far_flops * live / target.lanes if h.leaves_cache(live) else 0.0
    return cost
