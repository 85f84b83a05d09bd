"""Sequences: bound launches of a whole network, run one after the other without Python between them.

See `fastsparse_kernels.sequence` for the tables.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fastsparse.runtime.buffers import address
from fastsparse.runtime.launch import Arguments, BoundLaunch
from fastsparse.runtime.threading_layer import parallel_for
from fastsparse_kernels import sequence
from fastsparse_kernels.compiler import aligned_empty

Table = NDArray[np.int64]
Field = tuple[str, int, int, int]  # of arguments, depends on the call: name, index of the variable, offset, step


def step_table(launches: Sequence[BoundLaunch]) -> Table:
    """Table of launches for the sequence kernels, each on the calling thread."""
    table = np.zeros((len(launches), sequence.STEP_WORDS), np.int64)
    for row, bound in zip(table, launches, strict=True):
        row[:4] = bound.kernel, *bound.arguments.words.buffer_info(), bound.tasks
    return table


def patch_table(launches: Sequence[BoundLaunch], fields: Sequence[Sequence[Field]], records: Table) -> Table:
    """Patches of the launches' argument records at these addresses."""
    rows = [
        (record + 8 * bound.arguments.index[name], *rest)
        for record, bound, of_launch in zip(records.tolist(), launches, fields, strict=True)
        for name, *rest in of_launch
    ]
    return np.array(rows, np.int64).reshape(-1, 4)


def tables(launches: Sequence[Sequence[BoundLaunch]], fields: Sequence[Sequence[Field]]) -> tuple[Table, Table]:
    """Step tables and patch tables [slots, ...] of launches with memory of their own for every slot."""
    steps = [step_table(of_slot) for of_slot in launches]
    patches = [patch_table(of_slot, fields, table[:, 1]) for of_slot, table in zip(launches, steps, strict=True)]
    return np.stack(steps), np.stack(patches)


@functools.cache  # no Python call when it is known
def expect_sequence(shared: bool) -> None:
    """Have what runs steps, shared by workers or not, compiled while they are planned."""
    sequence.sequence_kernel.expect()
    (sequence.run_steps if shared else sequence.run_steps_serial).expect()


def sequence_launch(steps: Table, patches: Table, variables: Table, tasks: int, flops: float) -> BoundLaunch:
    """Launch of the sequence kernel on its tables [slots, ...]: a worker runs all steps of a task."""
    arguments = Arguments(
        sequence.ARGUMENTS,
        steps=steps.shape[1],
        step_table=steps,
        patches=patches.shape[1],
        patch_table=patches,
        variables=variables,
    )
    kernel = sequence.sequence_kernel()
    return BoundLaunch(kernel.address, arguments, tasks, flops, (kernel, steps, patches, variables))


class SerialSteps:
    """Steps of a table on the calling thread, whose tables the caller keeps alive."""

    def __init__(self, steps: Table, patches: Table, variables: Table) -> None:
        self._addresses = address(steps), address(patches), len(patches), address(variables)

    def bound(self, first: int, last: int, task: int = 0) -> Callable[[], None]:
        """A call that patches arguments for a task, then runs steps `first` to `last`."""
        steps, *rest = self._addresses
        return functools.partial(sequence.run_steps_serial(), steps, first, last, *rest, task)


class SharedSteps:
    """Launches that workers share, each worker the same part of the tasks in every call. For one call at a time.

    Launches of less work than `parallel_flops` are the first worker's.
    """

    def __init__(
        self, launches: Sequence[BoundLaunch], fields: Sequence[Sequence[Field]], workers: int, parallel_flops: float
    ) -> None:
        self._workers, self._calls = workers, 0
        words = np.array([len(bound.arguments.words) + sequence.SLOT_WORDS for bound in launches], np.int64)
        starts = np.cumsum(words * workers) - words * workers  # of each launch's records
        flags = workers * sequence.FLAG_WORDS
        memory = aligned_empty((flags + workers * int(words.sum()),), np.int64)
        self._flags, records, first = memory[:flags], memory[flags:], address(memory) + 8 * flags
        self._flags.fill(0)
        self._steps = step_table(launches)
        self._steps[:, 5] = first + 8 * starts
        for row, bound, start, count in zip(self._steps, launches, starts, words, strict=True):
            row[4] = min(workers, max(1, bound.tasks)) if bound.flops >= parallel_flops else 1
            _fill(records[start : start + workers * count].reshape(workers, count), bound, int(row[4]))
        self._shared = [0, *np.cumsum(self._steps[:, 4] > 1).tolist()]  # steps before each that workers share
        self._patches = np.stack([
            patch_table(launches, fields, self._steps[:, 5] + 8 * slot * words) for slot in range(workers)
        ])  # fmt: skip

    def any_shared(self, first: int, last: int) -> bool:
        """Whether workers share any of these steps."""
        return self._shared[last] > self._shared[first]

    def run(self, first: int, last: int, variables: Table, task: int) -> None:
        """Patch arguments for a task, then run steps `first` to `last` in order."""
        self._calls += 1
        data = array("q", (
            address(self._steps), first, last, address(self._patches), self._patches.shape[1], address(variables),
            task, self._workers, address(self._flags), self._calls,
        ))  # fmt: skip
        sequence.run_steps()(parallel_for(), data.buffer_info()[0], self._workers)


def _fill(records: Table, bound: BoundLaunch, slots: int) -> None:
    """Fill all workers' records of a launch that `slots` of them share."""
    workers, words = len(records), len(bound.arguments.words)
    records[:, :words] = bound.arguments.words
    records[:, words] = 0
    bounds = bound.tasks * np.minimum(np.arange(workers + 1), slots) // slots
    for counter in (words + 8, words + 16):
        records[:, counter], records[:, counter + 1] = bounds[:-1], bounds[1:]
