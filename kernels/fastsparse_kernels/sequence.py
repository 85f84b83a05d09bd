"""Sequences: a whole network's kernels, one after the other, in one call from Python.

`sequence` is itself a kernel. Its tasks are parts of a batch; a worker that takes one runs all steps of the network on
it, with arguments, buffers and scratch of its own. Workers synchronise once per batch instead of once per layer, and a
layer's output is read by the same core while it is in that core's cache. `run_steps` is for batches with too few parts:
the workers share the tasks of each step.

Steps are int64 [steps, 6]: kernel, arguments, their words, tasks; and for `run_steps` the number of slots that have
tasks of the step, and the records of all slots. Before a task, the arguments that depend on the call or on the
part are patched, int64 [patches, 4]: field = variables[index] + offset + task * step, as address of the field, index,
offset and step.

In `run_steps` all steps of a call are one parallel region. Every slot has a record for each step, which it alone writes
unless it is helped: the arguments, a line with the number of the counter of this call, and two counters with the end of
the slot's tasks, used in turn, so that one is reset while the other counts.
"""

from __future__ import annotations

from typing import Any

from . import simd
from .compiler import compile_kernel, compiled_once, host_function, kernel_arguments, kernel_function
from .parallel import BETWEEN_YIELDS, PATIENCE, help_with, on_threads, part_start, set_tasks, take_from

STEP_WORDS = 6
STEP_BYTES = 8 * STEP_WORDS
# Pauses before a slot that works on a step gets help: where cores share no cache, a task that another core takes over
# costs both as much as ten of their own, and in the next call again.
HELP_AFTER = 5 * PATIENCE
SLOT_WORDS = 24  # of a slot's record, behind the arguments
FLAG_WORDS = 8  # of each slot

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


@compiled_once
def sequence_kernel() -> Any:
    """Kernel with arguments ARGUMENTS."""

    def sequence(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        steps = a.step_table + slot * a.steps * STEP_BYTES
        patches = a.patch_table + slot * a.patches * 32
        for task in simd.tasks(arguments):
            _patch(patches, a.patches, a.variables, task)
            for i in range(a.steps):
                _run_step(steps + i * STEP_BYTES)

    return compile_kernel(sequence, "sequence")


@kernel_function
def share_steps(  # type: ignore[no-untyped-def]
    table, first, last, patch_table, patches, variables, task, slots, flags, call, slot
):
    """A slot's part of the steps. All slots of a call run this, at once or one after the other.

    A step begins when all tasks of the one before are done, whoever ran them. Nobody waits for a slot that has not
    begun a step, because it has not come or because the operating system runs another thread: its tasks are run by
    others, and it finds none when it begins. `flags` has a cache line for each slot, which it alone writes: how far it
    has come (`call` * 2^32, plus 2 for every step whose own tasks it has done, plus 1 where it has begun another), and
    the step in which it helps another slot.
    """
    _patch(patch_table + slot * patches * 32, patches, variables, task)
    flag, done, private = flags + slot * 64, call << 32, simd.stack_buffer(64)
    for i in range(first, last):
        begun, done = done + 1, done + 2
        simd.store_release(begun, flag)
        step = table + i * STEP_BYTES
        kernel, words = simd.load_i64(step), simd.load_i64(step + 16)
        tasks, workers = simd.load_i64(step + 24), simd.load_i64(step + 32)
        records, stride = simd.load_i64(step + 40), (words + SLOT_WORDS) * 8
        own = records + slot * stride
        parity = simd.load_i64(own + words * 8)
        _reset_counter(own, words, 1 - parity, part_start(tasks, workers, slot))
        counter, end = own + (words + 8 + parity * 8) * 8, part_start(tasks, workers, slot + 1)
        if simd.load_acquire(counter) < end:
            take_from(own, counter, end)
            simd.call(kernel, own, slot)
        simd.store_release(done, flag)
        # Wait until all tasks are taken; help who is held up.
        for distance in range(1, slots):
            other = (slot + distance) % slots
            if other >= workers:
                continue  # it has no tasks
            theirs, waited = records + other * stride + (words + 8 + parity * 8) * 8, 0
            near = i == first or simd.load_acquire(flags + other * 64) >= begun - 2  # at most a step behind
            at = simd.load_acquire(flags + other * 64)
            while at < done:
                if waited >= (HELP_AFTER if at >= begun else PATIENCE) or not near:
                    simd.store_release(done, flag + 8)
                    helped = help_with(kernel, own, theirs, private, slot)
                    simd.store_release(0, flag + 8)
                    if helped:
                        continue
                    if simd.load_acquire(flags + other * 64) < begun:
                        break
                _wait(waited)
                waited += 1
                at = simd.load_acquire(flags + other * 64)
        # Wait until what others took to help is done.
        for distance in range(1, slots):
            waited = 0
            while simd.load_acquire(flags + (slot + distance) % slots * 64 + 8) == done:
                _wait(waited)
                waited += 1


@kernel_function
def _wait(waited):  # type: ignore[no-untyped-def]
    """Pause; who has waited for long lets others use the core."""
    if waited > HELP_AFTER and waited % BETWEEN_YIELDS == 0:
        simd.yield_core()
    simd.pause()


@kernel_function
def _reset_counter(own, words, parity, start):  # type: ignore[no-untyped-def]
    """Prepare the counter for the next call, which nobody looks at in this one, and say that it is its turn then."""
    simd.store_i64(start, own + (words + 8 + parity * 8) * 8)
    simd.store_i64(parity, own + words * 8)


@kernel_function
def _share(data, slot):  # type: ignore[no-untyped-def]
    table, first, last = simd.load_i64(data), simd.load_i64(data + 8), simd.load_i64(data + 16)
    patch_tables, patches, variables = simd.load_i64(data + 24), simd.load_i64(data + 32), simd.load_i64(data + 40)
    task, slots, flags = simd.load_i64(data + 48), simd.load_i64(data + 56), simd.load_i64(data + 64)
    call = simd.load_i64(data + 72)
    share_steps(table, first, last, patch_tables, patches, variables, task, slots, flags, call, slot)


_share_slots = on_threads(_share)


@host_function("void(int64, int64, int64)")
def run_steps(parallel_for, data, slots):  # type: ignore[no-untyped-def]
    """Steps of a table, shared by workers. See `parallel.on_threads`; data is int64 [10]: step table, first, last,
    patch tables, patches, variables, task, slots, flags, number of the call, see `share_steps`."""
    _share_slots(parallel_for, data, slots)


@host_function("void(int64, int64, int64, int64, int64, int64, int64)")
def run_steps_serial(table, first, last, patch_table, patches, variables, task):  # type: ignore[no-untyped-def]
    """Steps of a table, all on the calling thread."""
    _patch(patch_table, patches, variables, task)
    for i in range(first, last):
        _run_step(table + i * STEP_BYTES)
