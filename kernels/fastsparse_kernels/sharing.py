"""Sharing a kernel's tasks among workers.

Every worker slot takes the tasks of a record of its own, a contiguous part, from the first to the last; then it helps
with those of the others. So a worker that is held up is helped, and as a rule one core writes what it wrote in the call
before, and reads what it wrote: lines that another core has changed come slower than from memory. (With one counter for
all, packing on two cores took longer than on one.)

A record's first words are the address of its task counter, and where its tasks end; the counter lies on a line of its
own, `COUNTER_WORDS` from the end.
"""

from __future__ import annotations

from collections.abc import Callable

from numba import prange, types

from . import simd
from .build import compile_function, compiled_once, inlined_part, kernel_part

COUNTER_WORDS = 8


@kernel_part
def share_tasks(record, words, copies, slots, first, last):  # type: ignore[no-untyped-def]
    """Fill `copies`, int64 [slots, words], with the record, each with a part of the tasks from `first` to `last`."""
    for slot in range(slots):
        own = copies + slot * words * 8
        for word in range(words):
            simd.store_i64(simd.load_i64(record + word * 8), own + word * 8)
        set_tasks(own, words, first + (last - first) * slot // slots, first + (last - first) * (slot + 1) // slots)


@kernel_part
def set_tasks(record, words, first, last):  # type: ignore[no-untyped-def]
    """Let the record have the tasks from `first` to `last`."""
    counter = record + (words - COUNTER_WORDS) * 8
    simd.store_i64(counter, record)
    simd.store_i64(last, record + 8)
    simd.store_i64(first, counter)


@inlined_part
def take_tasks(kernel, copies, words, slots, slot):  # type: ignore[no-untyped-def]
    """Run the slot's own tasks, then what is left of others'."""
    for other in range(slots):
        simd.call(kernel, copies + (slot + other) % slots * words * 8, slot)


@compiled_once
def run_parallel() -> Callable[[int, int, int, int, int, int, int], None]:
    """The parallel region `(kernel, record, words, copies, slots, first, last)`, see `share_tasks`."""

    def run_parallel(kernel, record, words, copies, slots, first, last):  # type: ignore[no-untyped-def]
        share_tasks(record, words, copies, slots, first, last)
        for slot in prange(slots):
            take_tasks(kernel, copies, words, slots, slot)

    return compile_function(run_parallel, types.void(*[types.int64] * 7), parallel=True)


@compiled_once
def run_serial() -> Callable[[int, int, int, int, int], None]:
    """The serial twin `(kernel, record, words, first, last)`: slot 0 on the calling thread, the GIL released."""

    def run_serial(kernel, record, words, first, last):  # type: ignore[no-untyped-def]
        set_tasks(record, words, first, last)
        simd.call(kernel, record, 0)

    return compile_function(run_serial, types.void(*[types.int64] * 5))
