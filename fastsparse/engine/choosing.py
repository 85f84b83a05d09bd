"""Which schedules can run a program on a batch size, and which of them is taken."""

from __future__ import annotations

from fastsparse import launch
from fastsparse.engine import split
from fastsparse.engine.flat import flat_schedule
from fastsparse.engine.lanes import lanes_schedule, work_of
from fastsparse.engine.program import Program
from fastsparse.engine.schedule import Schedule
from fastsparse.plan import policy


def candidates(program: Program, batch: int, workers: int, tune: bool) -> list[Schedule]:
    """Schedules that give the same bits, the one by estimate first; that one alone without `tune`."""
    machine = launch.machine(program.dtype, workers)
    on_images = any(len(shape) > 1 for shape in program.shapes)
    if not policy.prefers_lanes(batch, machine.lanes) and (batch == 1 or on_images):
        return [flat_schedule(program, batch, machine)]
    if not tune:
        return [lanes_schedule(program, batch, machine)]
    cuts = split.candidates(work_of(program, machine), -(-batch // machine.lanes), workers)
    return [lanes_schedule(program, batch, machine, cut) for cut in cuts]
