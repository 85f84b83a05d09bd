"""Plan + buffers -> kernel calls. Validates nothing; serves `functional` and the engine.

Buffers are NumPy arrays that the caller keeps alive, or addresses inside such arrays.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from typing import Any, NamedTuple

import numpy as np
from numba import config
from numpy.typing import NDArray

from fastsparse import runtime, workspace
from fastsparse._cpus import cache_bytes
from fastsparse.plan import policy
from fastsparse.plan.linear import Machine
from fastsparse_kernels import build, epilogue, sharing

build.set_cache_directory(runtime.cache_directory, runtime.write_cached)

CLAMPS = {None: (-np.inf, np.inf), "relu": (0.0, np.inf), "relu6": (0.0, 6.0)}
ACTIVATIONS = (*CLAMPS, *(name for name in epilogue.ACTIVATION_CODES if name not in CLAMPS))
_CACHES = cache_bytes(1), cache_bytes(3)


def machine(dtype: np.dtype[Any], workers: int | None = None) -> Machine:
    """The machine as plans see it, for numbers of `dtype` and the current number of threads."""
    return _machine(dtype.itemsize * 8, workers_for(None) if workers is None else workers, *_CACHES)


def workers_for(threads: int | None) -> int:
    """Workers that calls on so many threads are planned for, by default on the current number.

    No more than can run, since each has its own scratch.
    """
    count, most = runtime.get_num_threads() if threads is None else threads, config.NUMBA_NUM_THREADS
    return count if count <= most else int(most)


@functools.lru_cache(maxsize=64)
def _machine(bits: int, workers: int, l1_bytes: int, l3_bytes: int) -> Machine:
    return Machine(bits, build.lanes(bits), workers, l1_bytes, l3_bytes)


_word_at = ctypes.c_size_t.from_address
_HEAD = object.__basicsize__


def address(buffer: NDArray[Any]) -> int:
    """Address of the first element, in an eighth of the time that `ctypes.data` takes.

    NumPy's binary interface, which all extensions are compiled for, has it in front of an array's other fields.
    """
    return _word_at(id(buffer) + _HEAD).value


if address(_probe := np.empty(3)[1:]) != _probe.ctypes.data:
    raise ImportError(f"NumPy {np.__version__} keeps the address of an array's elements in an unknown place")


@functools.cache
def _places(dtype: np.dtype[Any]) -> dict[str, int]:
    return {name: i for i, name in enumerate(dtype.names or ())}


class Record:
    """A kernel's argument record, filled by name: int64 words, and behind them the task counter on a line of its own.

    An `array` and not a NumPy record: setting a field costs 50 ns and its address 60, where NumPy's cost microseconds.
    """

    __slots__ = ("_places", "words")

    def __init__(self, dtype: np.dtype[Any], **fields: int) -> None:
        self._places = _places(dtype)
        self.words = array("q", bytes(8 * (len(self._places) + 8 + sharing.COUNTER_WORDS)))
        self.set(**fields)

    def set(self, **fields: int) -> None:
        """Set fields by name."""
        for name, value in fields.items():
            self.words[self._places[name]] = value

    def field_address(self, name: str) -> int:
        """Where a field lies; it stays there as long as the record lives."""
        return self.words.buffer_info()[0] + 8 * self._places[name]

    def place(self, name: str) -> int:
        """Number of the word where a field lies; a spare one when the record has no such field."""
        return self._places.get(name, len(self._places))

    def copy(self) -> Record:
        """A record of its own for one call: calls of other threads have theirs."""
        twin = object.__new__(Record)
        twin._places, twin.words = self._places, self.words[:]
        return twin


class Call(NamedTuple):
    """A kernel with a filled record. Whoever keeps a call keeps alive what its record points to."""

    kernel: Any
    record: Record
    tasks: int
    flops: float  # estimate of the work


class Template:
    """A call to be run again and again, from any thread: each time on a copy of its record, with other addresses.

    Filling a whole record takes longer than a small kernel.

    Parameters
    ----------
    call : Call
    source, target : names of the fields that a run gives an address to, besides "bias"
    workers : int
    scratch : bytes of scratch for all workers, which each run takes from its thread's workspace
    keep : whatever else the record points to
    """

    __slots__ = (
        "_bias", "_flops", "_keep", "_kernel", "_scratch", "_scratch_bytes", "_source", "_target", "_tasks", "_words",
        "_workers",
    )  # fmt: skip

    def __init__(
        self, call: Call, source: str, target: str, workers: int, *, scratch: int = 0, keep: Any = None
    ) -> None:
        self._words, self._kernel = call.record.words, call.kernel.address
        self._tasks, self._flops, self._workers = call.tasks, call.flops, workers
        self._source, self._target, self._bias, self._scratch = map(
            call.record.place, (source, target, "bias", "scratch")
        )
        self._scratch_bytes, self._keep = scratch, (call, keep)

    def run(self, source: int, target: int, bias: int = 0) -> None:
        """Run all tasks from the address `source` to the address `target`."""
        words = self._words[:]
        words[self._source] = source
        words[self._target] = target
        if bias:
            words[self._bias] = bias
        if self._scratch_bytes:
            scratch = workspace.take("scratch", self._scratch_bytes)
            words[self._scratch] = address(scratch)
        run_words(self._kernel, words, self._tasks, self._flops, self._workers)


def run_call(call: Call, workers: int) -> None:
    """Run all tasks of a call."""
    run(*call, workers)


def run(kernel: Any, record: Record, tasks: int, flops: float, workers: int) -> None:
    """Run all tasks of a filled record."""
    run_words(kernel.address, record.words, tasks, flops, workers)


def run_words(kernel: int, words: array[int], tasks: int, flops: float, workers: int) -> None:
    """Run all tasks of a record's words, with the kernel at an address.

    In parallel when it pays, in slices short enough that Ctrl-C is noticed.
    """
    if tasks <= 0:
        return
    slots = slices = 1
    if workers > 1 and tasks > 1 and flops >= policy.PARALLEL_FLOPS:
        slots = min(workers, tasks, runtime.worker_slots())
    if flops > policy.SLICE_FLOPS:
        slices = max(1, min(tasks, int(flops / (policy.SLICE_FLOPS * slots))))
    run_slices(kernel, words, tasks, slots, slices)


def run_slices(kernel: int, words: array[int], tasks: int, slots: int, slices: int) -> None:
    """Run the tasks of a record's words in so many slices, each shared by so many workers."""
    record, length = words.buffer_info()
    if slots == 1:
        for i in range(slices):
            sharing.run_serial()(kernel, record, length, tasks * i // slices, tasks * (i + 1) // slices)
        return
    copies = words * slots
    for i in range(slices):
        first, last = tasks * i // slices, tasks * (i + 1) // slices
        sharing.run_parallel()(kernel, record, length, copies.buffer_info()[0], slots, first, last)


@functools.cache
def _limits(activation: str | None, bits: int) -> tuple[int, NDArray[Any]]:
    """Address of the clamp (low, high), and the array that lives there."""
    limits = np.array(CLAMPS.get(activation, CLAMPS[None]), np.float32 if bits == 32 else np.float64)
    return address(limits), limits


def set_epilogue(record: Record, bias: NDArray[Any] | None, activation: str | None, m: Machine) -> None:
    """Fill the fields of bias and activation, which several records have."""
    record.set(limits=_limits(activation, m.bits)[0], bias=0 if bias is None else address(bias))
    if activation is not None and activation not in CLAMPS:
        code = epilogue.ACTIVATION_CODES[activation]
        record.set(activation=epilogue.activation_kernel(code, m.bits, m.lanes).address)
