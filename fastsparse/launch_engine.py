"""Launching whole networks: calls made once, then run in a row without Python between them.

A part of `launch`: nothing is validated here.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastsparse import runtime
from fastsparse.launch import Call, Record, address, run_slices
from fastsparse.launch_layers import planes_call, planes_scratch
from fastsparse.plan import policy
from fastsparse.plan.lanes import LanesPlanes
from fastsparse.plan.linear import Machine
from fastsparse.plan.pooling import Bands, Windows
from fastsparse_kernels import compiler, diagnostics, pooling, sequence

Table = NDArray[np.int64]
_KINDS = {"max": pooling.MAX, "mean": pooling.MEAN}
_POOL_FLOPS = 4.0  # per element of x


# ---------------------------------------------------------------- pooling


def pool_lanes_call(
    kind: str, w: Windows, bands: Bands, x: int, planes: LanesPlanes, y: int, out: LanesPlanes, groups: int, m: Machine
) -> Call:
    """Pool `groups` groups of planes at address x into planes at y; the border around y is left alone."""
    record = Record(
        pooling.BATCH_BLOCKED,
        channels=planes.channels,
        bands=len(bands.table),
        band_rows=address(bands.table),
        width=w.spatial[1],
        out_width=len(w.columns),
        rows=address(w.rows),
        columns=address(w.columns),
        x=x,
        x_group_stride=planes.group_stride,
        x_channel_stride=planes.channel_stride,
        x_offsets=address(planes.places) if len(planes.places) else 0,
        y=y,
        y_group_stride=out.group_stride,
        y_channel_stride=out.channel_stride,
        y_offsets=address(out.places) if len(out.places) else 0,
    )
    tasks = groups * planes.channels * len(bands.table)
    flops = _POOL_FLOPS * groups * planes.channels * planes.positions * m.lanes
    return Call(pooling.pool_batch_blocked_kernel(_KINDS[kind], m.bits, m.lanes), record, tasks, flops)


def pool_scratch(w: Windows, bands: Bands, m: Machine) -> int:
    """Bytes of scratch that one worker needs for `pool_call`."""
    return planes_scratch(w, bands, m)[0]


def pool_call(kind: str, w: Windows, bands: Bands, x: int, y: int, planes: int, m: Machine, *, scratch: int) -> Call:
    """Pool `planes` contiguous planes at address x into those at y."""
    return planes_call(pooling.pool_kernel(_KINDS[kind], m.bits, m.lanes), w, bands, x, y, planes, m, scratch=scratch)


# ---------------------------------------------------------------- sequences


def available_slots(workers: int) -> int:
    """How many of `workers` may really run at once, here and now."""
    if workers == 1 or not runtime.parallel_allowed():
        return 1
    from numba import config

    return min(workers, int(config.NUMBA_NUM_THREADS))


def step_table(calls: list[Call], workers: int) -> tuple[Table, Table]:
    """Calls as the rows that `sequence` reads, and memory that these point to; small calls are not shared."""
    table = np.zeros((len(calls), sequence.STEP_WORDS), np.int64)
    copies = np.zeros((len(calls), workers, max((len(call.record.words) for call in calls), default=0)), np.int64)
    for row, call, copy in zip(table, calls, copies, strict=True):
        start, length = call.record.words.buffer_info()
        slots = min(workers, max(1, call.tasks)) if call.flops >= policy.PARALLEL_FLOPS else 1
        row[:] = call.kernel.address, start, length, call.tasks, slots, address(copy)
    return table, copies


def sequence_call(steps: Table, patches: Table, variables: Table, tasks: int, flops: float) -> Call:
    """Call of the sequence kernel, its tables [slots, ...] as in the kernel; flops in all."""
    record = Record(
        sequence.ARGUMENTS,
        steps=steps.shape[1],
        step_table=address(steps),
        patches=patches.shape[1],
        patch_table=address(patches),
        variables=address(variables),
    )
    return Call(sequence.sequence_kernel(), record, tasks, flops)


def run_tasks(call: Call, workers: int) -> None:
    """Run a call by up to `workers` workers, in slices short enough that Ctrl-C is noticed."""
    tasks = call.tasks
    slots = min(tasks, available_slots(workers))
    # A slice has a task for every worker at least.
    slices = max(1, min(tasks // slots, int(call.flops / (policy.SLICE_FLOPS * slots))))
    run_slices(call.kernel.address, call.record.words, tasks, slots, slices)


def run_rows(
    steps: int, first: int, last: int, patches: int, count: int, variables: int, task: int, slots: int
) -> None:
    """Patch records for a task, then run the steps `first` to `last` one after the other, on `slots` workers.

    steps, patches, variables : addresses of a step table, of a table of `count` patches, and of the variables
    """
    run = sequence.run_steps() if slots > 1 else sequence.run_steps_serial()
    run(steps, first, last, patches, count, variables, task)


# ---------------------------------------------------------------- measuring


@functools.cache
def peak_flops(bits: int) -> float:
    """Multiplications and additions per second that one core does at most, measured once per process."""
    return measured_peak(bits)


def measured_peak(bits: int) -> float:
    """The same as it is now: clocks rise and fall."""
    lanes, rounds = compiler.lanes(bits), 50_000
    sink = compiler.aligned_empty((diagnostics.ACCUMULATORS * lanes * bits // 8,), np.uint8)
    record = Record(diagnostics.PEAK, rounds=rounds, sink=address(sink))
    call = Call(diagnostics.peak_kernel(bits, lanes), record, 1, 2.0 * diagnostics.ACCUMULATORS * lanes * rounds)
    return call.flops / min(seconds(lambda: run_tasks(call, 1)) for _ in range(20))


def seconds(call: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
