"""The parallel loop: tasks of a kernel, owned by workers, with work stealing as a last resort.

Every worker slot owns a contiguous part of the tasks and takes them from its own copy of the kernel arguments. As a
rule a core then writes what it wrote in the call before and reads what it wrote: lines modified by another core are
slower than memory, most of all where cores share no cache. So a slot that is done waits for the others as long as they
proceed, and helps one that has taken no task for a while, or has more than half of its tasks left: it takes
half of them. (Help that comes too early lasts: what was taken lies in another cache in the next call, whose owner is
late again. Packing took twice as long so.)

The first words of the arguments are the address of the task counter and the end of the tasks. The counter is on a
cache line of its own, `COUNTER_WORDS` from the end, and behind it are the end again and the first task, for those who
help: only they touch lines of another slot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import simd
from .compiler import host_function, kernel_function
from .numba_internals import called_by_others
from .simd.types import I64

COUNTER_WORDS = 8
PATIENCE = 400  # pauses before helping, about 5 to 20 microseconds: several times what a barrier takes
HELD_UP = 4 * PATIENCE  # pauses in which a slot that is not held up takes a task
BETWEEN_LOOKS = 64  # pauses between looks at another slot's counter, which take its line away
BETWEEN_YIELDS = 64  # pauses of who has waited that long already


@kernel_function
def part_start(tasks, slots, slot):  # type: ignore[no-untyped-def]
    """The first of `tasks` tasks that belongs to the slot; it ends where that of the next slot starts."""
    return tasks * min(slot, slots) // slots


@kernel_function
def split_tasks(arguments, words, copies, slots, first, last):  # type: ignore[no-untyped-def]
    """Fill `copies`, int64 [slots, words], with the arguments, each with a part of the tasks `first` to `last`."""
    for slot in range(slots):
        own = copies + slot * words * 8
        for word in range(words):
            simd.store_i64(simd.load_i64(arguments + word * 8), own + word * 8)
        start, end = part_start(last - first, slots, slot), part_start(last - first, slots, slot + 1)
        set_tasks(own, words, first + start, first + end)


@kernel_function
def set_tasks(arguments, words, first, last):  # type: ignore[no-untyped-def]
    """Set the tasks of kernel arguments: from `first` to `last`."""
    counter = arguments + (words - COUNTER_WORDS) * 8
    simd.store_i64(first, counter)
    simd.store_i64(last, counter + 8)
    simd.store_i64(first, counter + 16)
    take_from(arguments, counter, last)


@kernel_function
def take_from(arguments, counter, last):  # type: ignore[no-untyped-def]
    """Let a kernel with these arguments take tasks at a counter, up to `last`."""
    simd.store_i64(counter, arguments)
    simd.store_i64(last, arguments + 8)


@kernel_function
def help_with(kernel, own, counter, private, slot):  # type: ignore[no-untyped-def]
    """Run half of the tasks that are left at another slot's counter; 0 where there are none.

    own : arguments of this slot, which take these tasks at the counter `private`
    """
    end = simd.load_i64(counter + 8)
    left = end - simd.load_acquire(counter)
    if left <= 0:
        return 0
    piece = (left + 1) // 2
    first = simd.fetch_add(counter, piece)
    if first >= end:
        return 0
    simd.store_i64(first, private)
    take_from(own, private, min(end, first + piece))
    simd.call(kernel, own, slot)
    return 1


@kernel_function
def wait_while_it_proceeds(counter):  # type: ignore[no-untyped-def]
    """Wait until a slot has no tasks left, or needs help."""
    end, first = simd.load_i64(counter + 8), simd.load_i64(counter + 16)
    at, waited, still = simd.load_acquire(counter), 0, 0
    while at < end and still < HELD_UP and (waited < PATIENCE or end - at <= (end - first) // 2):
        pauses = 1 if waited < PATIENCE else BETWEEN_LOOKS
        for _ in range(pauses):
            simd.pause()
        before, at = at, simd.load_acquire(counter)
        waited += pauses
        still = still + pauses if at == before else 0


@kernel_function
def run_tasks(kernel, copies, words, slots, slot):  # type: ignore[no-untyped-def]
    """Run the slot's own tasks, then help slots that are held up."""
    own, private = copies + slot * words * 8, simd.stack_buffer(64)
    simd.call(kernel, own, slot)
    for distance in range(1, slots):
        counter = copies + ((slot + distance) % slots * words + words - COUNTER_WORDS) * 8
        wait_while_it_proceeds(counter)
        while help_with(kernel, own, counter, private, slot):
            pass


def on_threads(function: Callable[[int, int], None]) -> Any:
    """An intrinsic `(parallel_for, data, slots)` that calls the kernel function `(data, slot)` for every slot.

    parallel_for : address of the function of that name in Numba's threading layers. It calls back with parts of the
        slots, in the form of NumPy's inner loops: (pointers to arrays, lengths, strides, data). The one array begins at
        address 0 and has a stride of 1, so the address of an element is a slot.
    """

    @intrinsic
    def run(typing: Any, parallel_for: Any, data: Any, slots: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = I64.as_pointer()
            loop = ir.FunctionType(ir.VoidType(), [pointer] * 4)
            layer = ir.FunctionType(ir.VoidType(), [loop.as_pointer(), *[pointer] * 3, I64, *[I64] * 3])
            part = ir.Function(builder.module, loop, builder.module.get_unique_name("part"))
            part.linkage = "internal"
            inside = ir.IRBuilder(part.append_basic_block())
            first, count = inside.load(part.args[0]), inside.load(part.args[1])
            with cgutils.for_range(inside, count, intp=I64) as each:
                slot = inside.add(first, each.index)
                called_by_others(context, builder, inside, function, [inside.ptrtoint(part.args[3], I64), slot])
            inside.ret_void()
            array, length, stride = (cgutils.alloca_once(builder, I64) for _ in range(3))
            for word, number in ((array, I64(0)), (length, args[2]), (stride, I64(1))):
                builder.store(number, word)
            call = builder.inttoptr(args[0], layer.as_pointer())
            builder.call(call, [part, array, length, stride, args[1], I64(0), I64(1), args[2]])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3), codegen

    run.calls = function
    return run


@kernel_function
def _run_slot(data, slot):  # type: ignore[no-untyped-def]
    kernel, copies = simd.load_i64(data), simd.load_i64(data + 8)
    run_tasks(kernel, copies, simd.load_i64(data + 16), simd.load_i64(data + 24), slot)


_run_slots = on_threads(_run_slot)


@host_function("void(int64, int64, int64, int64, int64, int64, int64, int64)")
def run_parallel(kernel, arguments, words, copies, slots, parallel_for, first, last):  # type: ignore[no-untyped-def]
    """The parallel region: see `split_tasks` and `on_threads`."""
    split_tasks(arguments, words, copies, slots, first, last)
    data = simd.stack_buffer(32)
    simd.store_i64(kernel, data)
    simd.store_i64(copies, data + 8)
    simd.store_i64(words, data + 16)
    simd.store_i64(slots, data + 24)
    _run_slots(parallel_for, data, slots)


@host_function("void(int64, int64, int64, int64, int64)")
def run_serial(kernel, arguments, words, first, last):  # type: ignore[no-untyped-def]
    """The same on the calling thread: slot 0, the GIL released."""
    set_tasks(arguments, words, first, last)
    simd.call(kernel, arguments, 0)
