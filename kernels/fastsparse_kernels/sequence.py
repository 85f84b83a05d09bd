"""Sequences: a whole network's kernels, one after the other, in one call from Python.

`sequence` is itself a kernel. Its tasks are parts of a batch; a worker that takes one runs all steps of the network on
it, with arguments, buffers and scratch of its own. Workers synchronise once per batch instead of once per layer, and a
layer's output is read by the same core while it is in that core's cache. `run_steps` is for batches with too few parts:
the workers share the tasks of each step.

Steps are int64 [steps, 6]: kernel, arguments, their words, tasks; and for `run_steps` the number of slots, and memory
for as many copies of the arguments, see `parallel.py`. Before a task, the arguments that depend on the call or on the
part are patched, int64 [patches, 4]: field = variables[index] + offset + task * step, as address of the field, index,
offset and step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import prange, types

from . import simd
from .compiler import compile_function, compile_kernel, compiled_once, kernel_arguments, kernel_function
from .parallel import run_tasks, set_tasks, split_tasks

STEP_WORDS = 6
STEP_BYTES = 8 * STEP_WORDS

ARGUMENTS = kernel_arguments(
    "steps",
    "step_table",  # int64 [slots, steps, STEP_WORDS]
    "patches",
    "patch_table",  # int64 [slots, patches, 4]
    "variables",  # int64 [variables]
)
_arguments = simd.arguments_view(ARGUMENTS)


@kernel_function
def _patch(table, patches, variables, task):  # type: ignore[no-untyped-def]
    for i in range(patches):
        row = table + i * 32
        value = simd.load_i64(variables + simd.load_i64(row + 8) * 8)
        simd.store_i64(value + simd.load_i64(row + 16) + task * simd.load_i64(row + 24), simd.load_i64(row))


@kernel_function
def _run_step(step):  # type: ignore[no-untyped-def]
    """Run all tasks of a step on this worker."""
    arguments = simd.load_i64(step + 8)
    set_tasks(arguments, simd.load_i64(step + 16), 0, simd.load_i64(step + 24))
    simd.call(simd.load_i64(step), arguments, 0)


def make_sequence() -> Callable[..., None]:
    """Kernel with arguments ARGUMENTS."""

    def sequence(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        steps = a.step_table + slot * a.steps * STEP_BYTES
        patches = a.patch_table + slot * a.patches * 32
        task = simd.fetch_add(a.counter, 1)
        while task < a.stop:
            _patch(patches, a.patches, a.variables, task)
            for i in range(a.steps):
                _run_step(steps + i * STEP_BYTES)
            task = simd.fetch_add(a.counter, 1)

    return sequence


@compiled_once
def sequence_kernel() -> Any:
    """The compiled kernel."""
    return compile_kernel(make_sequence(), "sequence")


def make_run_steps(parallel: int) -> Callable[..., None]:
    """(step table, first, last, patch table, patches, variables, task): patch for the task, then run the steps.

    parallel : 1: the workers share a step's tasks; 0: slot 0 runs all of them on the calling thread
    """

    def run_steps_serial(table, first, last, patch_table, patches, variables, task):  # type: ignore[no-untyped-def]
        _patch(patch_table, patches, variables, task)
        for i in range(first, last):
            _run_step(table + i * STEP_BYTES)

    def run_steps(table, first, last, patch_table, patches, variables, task):  # type: ignore[no-untyped-def]
        _patch(patch_table, patches, variables, task)
        for i in range(first, last):
            step = table + i * STEP_BYTES
            slots = simd.load_i64(step + 32)
            if slots == 1:
                _run_step(step)
            else:
                kernel, arguments, words = simd.load_i64(step), simd.load_i64(step + 8), simd.load_i64(step + 16)
                copies = simd.load_i64(step + 40)
                split_tasks(arguments, words, copies, slots, 0, simd.load_i64(step + 24))
                for slot in prange(slots):
                    run_tasks(kernel, copies, words, slots, slot)

    return run_steps if parallel else run_steps_serial


def _compiled_run_steps(parallel: int) -> Callable[..., None]:
    signature = types.void(*[types.int64] * 7)
    return compile_function(make_run_steps(parallel), signature, parallel=bool(parallel))


@compiled_once
def run_steps() -> Callable[..., None]:
    """Steps of a table, shared by workers; see `make_run_steps`."""
    return _compiled_run_steps(1)


@compiled_once
def run_steps_serial() -> Callable[..., None]:
    """Steps of a table, all on the calling thread."""
    return _compiled_run_steps(0)
