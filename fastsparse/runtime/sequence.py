"""Sequences: bound launches of a whole network, run one after the other without Python between them.

See `fastsparse_kernels.sequence` for the tables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastsparse.runtime.buffers import address
from fastsparse.runtime.launch import Arguments, BoundLaunch
from fastsparse_kernels import sequence

Table = NDArray[np.int64]


def step_table(launches: list[BoundLaunch], workers: int, parallel_flops: float) -> tuple[Table, Table]:
    """Table of launches for the sequence kernel, and the memory it points to; small launches are not shared."""
    table = np.zeros((len(launches), sequence.STEP_WORDS), np.int64)
    words = max((len(bound.arguments.words) for bound in launches), default=0)
    copies = np.zeros((len(launches), workers, words), np.int64)
    for row, bound, copy in zip(table, launches, copies, strict=True):
        start, length = bound.arguments.words.buffer_info()
        slots = min(workers, max(1, bound.tasks)) if bound.flops >= parallel_flops else 1
        row[:] = bound.kernel, start, length, bound.tasks, slots, address(copy)
    return table, copies


def sequence_launch(steps: Table, patches: Table, variables: Table, tasks: int, flops: float) -> BoundLaunch:
    """Launch of the sequence kernel on its tables [slots, ...]: a worker runs all steps of a task."""
    arguments = Arguments(
        sequence.ARGUMENTS,
        steps=steps.shape[1],
        step_table=address(steps),
        patches=patches.shape[1],
        patch_table=address(patches),
        variables=address(variables),
    )
    kernel = sequence.sequence_kernel()
    return BoundLaunch(kernel.address, arguments, tasks, flops, (kernel, steps, patches, variables))


def run_steps(
    steps: int, first: int, last: int, patches: int, count: int, variables: int, task: int, workers: int
) -> None:
    """Patch arguments for a task, then run steps `first` to `last` in order, each shared by the workers.

    steps, patches, variables : addresses of a step table, of a table of `count` patches, and of the variables
    """
    run = sequence.run_steps() if workers > 1 else sequence.run_steps_serial()
    run(steps, first, last, patches, count, variables, task)


def serial_run(steps: int, count: int, patches: int, patched: int, variables: int) -> Callable[[], None]:
    """A call of `run_steps` that runs all `count` steps of the first task on the calling thread."""
    return functools.partial(sequence.run_steps_serial(), steps, 0, count, patches, patched, variables, 0)
