"""Launches: kernels with their arguments, prepared once per plan, bound to addresses, run.

A kernel is a compiled function of an argument record, a block of int64 words. A `Launch` fills the record once with
everything that a plan fixes. Only the addresses of operands differ from call to call; `run` writes them into a copy of
the record. An engine binds its launches once to the addresses of a workspace and runs them as a sequence.

Nothing is validated here. Buffers are NumPy arrays that the caller keeps alive, or addresses inside such arrays.
"""

from __future__ import annotations

import functools
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsparse.runtime import buffers, compiling, kernel_cache
from fastsparse.runtime.buffers import address
from fastsparse.runtime.switches import switch
from fastsparse.runtime.threading_layer import available_workers, parallel_for
from fastsparse_kernels import compiler, parallel

compiler.set_cache_directories(kernel_cache.cache_directories, kernel_cache.write_cached)
compiler.set_processes(compiling.compile_ahead)
compiling.start_early()

_rehearsing: list[int] = []  # threads


@contextmanager
def rehearsal() -> Iterator[None]:
    """Within the block, launches of this thread compute nothing: their results are whatever was in memory. Plans are
    made, so that all kernels are known before one is needed, and compiled by several processes.

    It may interrupt a call that waits for a kernel.
    """
    _rehearsing.append(get_ident())
    try:
        with buffers.other_buffers():
            yield
    finally:
        _rehearsing.remove(get_ident())


# The scratch of workers lies a multiple of so many bytes apart: as a rule each has the same memory in all launches, and
# what a core fetches ahead, up to the end of a page, is never another's.
SCRATCH_STEP = 2**16

Field = int | NDArray[Any] | None
Label = tuple[str | None, ...]  # operation, sizes, nonzeros, layout, kernel, activation: what FASTSPARSE_VERBOSE prints
VERBOSE = bool(switch("FASTSPARSE_VERBOSE"))


@functools.cache
def _words_of(dtype: np.dtype[Any]) -> dict[str, int]:
    return {name: i for i, name in enumerate(dtype.names or ())}


@functools.cache  # no Python call when it is known
def expect_launcher(shared: bool) -> None:
    """Have what runs kernels, shared by workers or not, compiled while they are planned; small ones never are."""
    parallel.run_serial.expect()
    if shared and available_workers(2) > 1:
        parallel.run_parallel.expect()


class Arguments:
    """A kernel's argument record, filled by name: int64 words, then the task counter on a cache line of its own.

    The record fills whole cache lines. A field is a number, or an array, whose address is written and which the record
    keeps alive; None is address 0. Fields that a plan, a dataclass or named tuple, has under the same name are taken
    from it.

    index : the word of every field

    It is an `array.array`, because setting a field takes 50 ns and its address 60, but microseconds in a NumPy record.
    """

    __slots__ = ("index", "keep", "words")

    def __init__(self, dtype: np.dtype[Any], *plans: Any, **fields: Field) -> None:
        self.index = _words_of(dtype)
        self.words = array("q", bytes(8 * (-(-(len(self.index) + 8) // 8) * 8 + parallel.COUNTER_WORDS)))
        self.keep: dict[str, Any] = {}  # by field
        for plan in plans:
            names = getattr(plan, "_fields", None) or plan.__dataclass_fields__
            self.set(**{name: getattr(plan, name) for name in names if name in self.index})
        self.set(**fields)

    def set(self, **fields: Field) -> None:
        """Set fields by name."""
        for name, value in fields.items():
            if isinstance(value, np.ndarray):
                self.keep[name] = value
                value = value.ctypes.data
            self.words[self.index[name]] = value or 0

    def word(self, name: str) -> int:
        """Index of the field's word; that of a spare word when the record has no such field."""
        return self.index.get(name, len(self.index))

    def copy(self) -> Arguments:
        """An independent copy."""
        twin = object.__new__(Arguments)
        twin.index, twin.words, twin.keep = self.index, self.words[:], self.keep.copy()
        return twin


class ParallelLoop(NamedTuple):
    """How workers share the tasks of a launch."""

    threads: int  # most workers
    parallel_flops: float  # least work that is shared
    slice_flops: float  # most work between two checks for signals, so that Ctrl-C is noticed


class BoundLaunch(NamedTuple):
    """A kernel with a complete record. It does not keep alive the memory that the record points to."""

    kernel: int  # address of the compiled function
    arguments: Arguments
    tasks: int
    flops: float  # estimate of the work
    keep: Any = None

    def run(self, threads: int, slice_flops: float) -> None:
        """Run all tasks on up to `threads` workers, in slices of at most about `slice_flops`."""
        _run(self.kernel, self.arguments.words, self.tasks, self.flops, threads, slice_flops)


class Launch:
    """A kernel with its arguments, to be run repeatedly with other addresses, from any thread.

    It exists because filling a whole record takes longer than a small kernel.

    Parameters
    ----------
    kernel : Kernel
        Compiled when the launch first runs, or is bound.
    arguments : Arguments
        With all fields set but the operands, `scratch` and `scratch_stride`.
    operands : names of the fields whose addresses `run` and `bind` take, in this order; omitted ones stay as prepared
    loop : of the target
    tasks : int
    flops : float
        Estimate of the work.
    scratch : int
        Bytes of scratch that a worker needs. Each run takes it from its thread's buffers, see `SCRATCH_STEP`.
    plan : what the record was filled from, kept as ``keep["plan"]``
    label : printed by FASTSPARSE_VERBOSE=1: operation, sizes, layout, kernel
    """

    __slots__ = (
        "_at_once", "_scratch_word", "_words", "arguments", "before", "flops", "keep", "kernel", "label",
        "operands", "scratch", "slice_flops", "tasks", "threads",
    )  # fmt: skip

    def __init__(
        self, kernel: Any, arguments: Arguments, operands: tuple[str, ...], loop: ParallelLoop, *, tasks: int,
        flops: float, scratch: int = 0, plan: Any = None, label: Label = (),
    ) -> None:  # fmt: skip
        self.kernel, self.arguments, self.tasks, self.flops = kernel, arguments, tasks, flops
        self.threads = threads = loop.threads if flops >= loop.parallel_flops else 1
        self.scratch = scratch if threads == 1 else -(-scratch // SCRATCH_STEP) * SCRATCH_STEP
        self.label = label
        if scratch:
            arguments.set(scratch_stride=self.scratch)
        self.slice_flops = slice_flops = loop.slice_flops
        self.keep = arguments.keep
        if plan is not None:
            self.keep["plan"] = plan
        expect_launcher(threads > 1)
        self.operands, self._words = operands, tuple(map(arguments.word, operands))
        self._scratch_word = arguments.word("scratch")
        self.before: Callable[[Launch], None] | None = None  # called before each run, to bring operands up to date
        # One worker takes all tasks in one slice: small launches, whose time is mostly that of the call.
        self._at_once = tasks > 0 and (threads == 1 or tasks == 1) and flops <= slice_flops and not VERBOSE

    def run(self, *addresses: int) -> None:
        """Run all tasks on operands at these addresses; omitted operands stay as prepared."""
        if _rehearsing and get_ident() in _rehearsing:
            return
        if self.before is not None:
            self.before(self)
        words, indices = self.arguments.words[:], self._words
        for i, operand in enumerate(addresses):  # faster than zip
            words[indices[i]] = operand
        if self.scratch:
            held = buffers.take("scratch", self.scratch * self.threads)
            words[self._scratch_word] = address(held)
        if self._at_once:
            record, length = words.buffer_info()
            parallel.run_serial()(self.kernel.address, record, length, 0, self.tasks)
        elif VERBOSE:
            _run_and_report(self, words)
        else:
            _run(self.kernel.address, words, self.tasks, self.flops, self.threads, self.slice_flops)

    def fixed(self, **operands: Field) -> Launch:
        """A launch with some operands fixed, which `run` no longer takes."""
        twin = object.__new__(Launch)  # a tenth of copy.copy's time
        for name in Launch.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.arguments = self.arguments.copy()
        twin.arguments.set(**operands)
        twin.operands = tuple(name for name in self.operands if name not in operands)
        twin._words = tuple(map(twin.arguments.word, twin.operands))
        twin.keep = twin.arguments.keep
        return twin

    def bind(self, scratch: int = 0, stride: int = 0, **operands: int) -> BoundLaunch:
        """The launch on operands at these addresses, with scratch of workers at another, `stride` bytes apart."""
        bound = self.arguments.copy()
        bound.set(**operands)
        if self.scratch:
            bound.set(scratch=scratch, scratch_stride=stride)
        return BoundLaunch(self.kernel.address, bound, self.tasks, self.flops, self)


def _run(kernel: int, words: array[int], tasks: int, flops: float, threads: int, slice_flops: float) -> None:
    if tasks <= 0:
        return
    workers = 1 if threads == 1 or tasks == 1 else min(tasks, available_workers(threads))
    slices = 1
    if flops > slice_flops:  # every slice has at least one task per worker
        slices = max(1, min(tasks // workers, int(flops / (slice_flops * workers))))
    run_slices(kernel, words, tasks, workers, slices)


def run_slices(kernel: int, words: array[int], tasks: int, workers: int, slices: int) -> None:
    """Run the tasks of a record in slices, each shared by the workers."""
    record, length = words.buffer_info()
    if workers == 1:
        serial = parallel.run_serial()
        for i in range(slices):
            serial(kernel, record, length, tasks * i // slices, tasks * (i + 1) // slices)
        return
    shared, copies, threads = parallel.run_parallel(), words * workers, parallel_for()
    for i in range(slices):
        first, last = tasks * i // slices, tasks * (i + 1) // slices
        shared(kernel, record, length, copies.buffer_info()[0], workers, threads, first, last)


def _run_and_report(launch: Launch, words: array[int]) -> None:
    start = time.perf_counter()
    _run(launch.kernel.address, words, launch.tasks, launch.flops, launch.threads, launch.slice_flops)
    report(launch.label, launch.threads, time.perf_counter() - start)


def report(label: Label, threads: int, seconds: float) -> None:
    """Print a line of FASTSPARSE_VERBOSE=1."""
    fields = filter(None, ("fastsparse", *label, f"threads {threads}", f"{seconds * 1e3:.4g} ms"))
    print(",".join(fields), file=sys.stderr)
