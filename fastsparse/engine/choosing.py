"""Which schedules can run a program on a batch size, and which of them is taken.

All choices for a batch give the same bits, so the choice is one of time alone.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fastsparse import launch
from fastsparse.engine import split
from fastsparse.engine.by_image import work_of_images
from fastsparse.engine.flat import flat_schedule
from fastsparse.engine.lanes import assign_planes, lanes_schedule, work_of
from fastsparse.engine.parts import parts_schedule
from fastsparse.engine.program import Conv, Linear, Program
from fastsparse.engine.schedule import Schedule
from fastsparse.engine.tuning import fastest
from fastsparse.plan import policy
from fastsparse.plan.linear import Machine, narrowed
from fastsparse.plan.parts import PARTS_LIMIT, partition

# In multiplications and additions: on flat planes vectors of windows are unaligned, and many are stored in pieces; what
# one number of a part's border costs.
FLAT_COST = 1.3
FLAT_STORE_FLOPS = 10
GATHER_FLOPS = 12


class Choice(NamedTuple):
    """A layout, "flat", "parts" or "lanes", and how the batch is cut."""

    layout: str
    cut: split.Split


def choices(program: Program, batch: int, workers: int, tune: bool) -> list[Choice]:
    """What can be taken, the one by estimate first; that one alone without `tune`."""
    machine, on_images = _machine(program, batch, workers), _on_images(program)
    if batch == 1 or (on_images and not policy.prefers_lanes(batch, machine.lanes)):
        return _by_image(program, batch, machine)[: None if tune else 1]
    groups, work = -(-batch // machine.lanes), work_of(program, machine)
    if not on_images:
        cuts = split.candidates(work, groups, workers) if tune else [split.choose(work, groups, workers)]
        return [Choice("lanes", cut) for cut in cuts]
    by_image = _by_image(program, batch, machine)
    first = [Choice("lanes", split.choose(work, groups, workers)), by_image[0]]
    if _leaves_caches(program, machine):
        first.reverse()
    if not tune:
        return first[:1]
    rest = [*by_image, *(Choice("lanes", c) for c in split.candidates(work, groups, workers))]
    return list(dict.fromkeys([*first, *rest]))


def scheduled(program: Program, batch: int, workers: int, choice: Choice) -> Schedule:
    """The schedule of a choice."""
    make = {"flat": flat_schedule, "parts": parts_schedule, "lanes": lanes_schedule}
    return make[choice.layout](program, batch, _machine(program, batch, workers), choice.cut)


def _on_images(program: Program) -> bool:
    return any(len(shape) > 1 for shape in program.shapes)


def _machine(program: Program, batch: int, workers: int) -> Machine:
    """With vectors of half the length where a batch of features fits them. (One image fills vectors by itself.)"""
    machine = launch.machine(program.dtype, workers)
    return machine if batch == 1 or _on_images(program) else narrowed(machine, batch)


def chosen(program: Program, batch: int, workers: int, tune: bool, known: Choice | None = None) -> Choice:
    """The choice that is taken: `known` where it can be, else by estimate or, with `tune`, by measuring."""
    found = choices(program, batch, workers, tune or known is not None)
    if known in found:
        assert known is not None
        return known
    if not tune or len(found) == 1:
        return found[0]
    return found[fastest(program, [lambda c=c: scheduled(program, batch, workers, c) for c in found], batch)]  # type: ignore[misc]


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


def _by_image(program: Program, batch: int, machine: Machine) -> list[Choice]:
    """Choices that run images one by one, the best by estimate first."""
    cuts = [split.choose_images(work_of_images(program), batch, machine.workers)]
    if batch > 1 and machine.workers > 1:
        cuts.append(split.Split(False, batch, 1))
    layouts = ["flat"]
    if any(isinstance(node.operator, Conv) for node in program.nodes) and _parts_can_be_addressed(program):
        layouts = ["parts", "flat"] if _prefers_parts(program, machine) else ["flat", "parts"]
    return [Choice(layout, cut) for cut in dict.fromkeys(cuts) for layout in layouts]


def _parts_can_be_addressed(program: Program) -> bool:
    """Whether 31 bits reach all of a channel in parts, borders and what hangs over included."""
    return all(2 * math.prod(shape[1:]) * program.dtype.itemsize < PARTS_LIMIT for shape in program.shapes)


def _prefers_parts(program: Program, machine: Machine) -> bool:
    """Whether parts cost less than flat planes, with their borders and with what hangs over the ends of images."""
    flat = parts = 0.0
    for node in program.nodes:
        if isinstance(node.operator, Conv):
            g, flops = node.operator.geometry, node.operator.useful_flops
            size = partition(g.out_spatial, machine.lanes).size
            windows = math.prod(g.kernel) > 1
            flat += flops * (FLAT_COST if windows else 1.0) + FLAT_STORE_FLOPS * g.out_channels * g.positions
            parts += flops * machine.lanes * math.prod(size) / max(1, g.positions)
            if windows:
                border = math.prod(n * s + k - 1 for n, s, k in zip(size, g.stride, g.kernel, strict=True))
                parts += machine.lanes * GATHER_FLOPS * g.channels * (border - math.prod(size))
    return parts < flat


def _leaves_caches(program: Program, machine: Machine) -> bool:
    """Whether most of the work is in layers that read and write more than the L3 cache holds for a vector of samples.

    In those, an image at a time is faster, though its vectors are unaligned.
    """
    planes, within, beyond = assign_planes(program, machine), 0.0, 0.0
    for node in program.nodes:
        if isinstance(node.operator, Conv | Linear):
            live = sum(planes[t].group_stride for t in (*node.inputs, node.output))
            if live > machine.l3_bytes:
                beyond += node.operator.useful_flops
            else:
                within += node.operator.useful_flops
    return beyond > within
