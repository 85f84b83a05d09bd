"""The parallel loop: tasks of a kernel, shared by workers with work stealing.

Every worker slot takes the tasks of its own copy of the kernel arguments, a contiguous part, from the first to the
last; then it steals from the other slots' parts. A worker that is held up is helped, and as a rule a core writes what
it wrote in the call before and reads what it wrote: lines modified by another core are slower than memory. (With one
counter for all, packing on two cores took longer than on one.)

The first words of the arguments are the address of the task counter and the end of the tasks; the counter is on a
cache line of its own, `COUNTER_WORDS` from the end.
"""

from __future__ import annotations

from collections.abc import Callable

from numba import prange, types

from . import simd
from .compiler import compile_function, compiled_once, inlined_function, kernel_function

COUNTER_WORDS = 8


@kernel_function
def split_tasks(arguments, words, copies, slots, first, last):  # type: ignore[no-untyped-def]
    """Fill `copies`, int64 [slots, words], with the arguments, each with a part of the tasks `first` to `last`."""
    for slot in range(slots):
        own = copies + slot * words * 8
        for word in range(words):
            simd.store_i64(simd.load_i64(arguments + word * 8), own + word * 8)
        set_tasks(own, words, first + (last - first) * slot // slots, first + (last - first) * (slot + 1) // slots)


@kernel_function
def set_tasks(arguments, words, first, last):  # type: ignore[no-untyped-def]
    """Set the tasks of kernel arguments: from `first` to `last`."""
    counter = arguments + (words - COUNTER_WORDS) * 8
    simd.store_i64(counter, arguments)
    simd.store_i64(last, arguments + 8)
    simd.store_i64(first, counter)


@inlined_function
def run_tasks(kernel, copies, words, slots, slot):  # type: ignore[no-untyped-def]
    """Run the slot's own tasks, then steal those left in other slots."""
    for other in range(slots):
        simd.call(kernel, copies + (slot + other) % slots * words * 8, slot)


@compiled_once
def run_parallel() -> Callable[[int, int, int, int, int, int, int], None]:
    """The parallel region `(kernel, arguments, words, copies, slots, first, last)`, see `split_tasks`."""

    def run_parallel(kernel, arguments, words, copies, slots, first, last):  # type: ignore[no-untyped-def]
        split_tasks(arguments, words, copies, slots, first, last)
        for slot in prange(slots):
            run_tasks(kernel, copies, words, slots, slot)

    return compile_function(run_parallel, types.void(*[types.int64] * 7), parallel=True)


@compiled_once
def run_serial() -> Callable[[int, int, int, int, int], None]:
    """The same on the calling thread `(kernel, arguments, words, first, last)`: slot 0, the GIL released."""

    def run_serial(kernel, arguments, words, first, last):  # type: ignore[no-untyped-def]
        set_tasks(arguments, words, first, last)
        simd.call(kernel, arguments, 0)

    return compile_function(run_serial, types.void(*[types.int64] * 5))
