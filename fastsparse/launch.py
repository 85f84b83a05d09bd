"""Plan + buffers -> kernel calls. Validates nothing; serves `functional` and the engine.

Buffers are NumPy arrays that the caller keeps alive, or addresses inside such arrays.
"""

from __future__ import annotations

import ctypes
import functools
import math
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import config
from numpy.typing import NDArray

from fastsparse import runtime, workspace
from fastsparse._cpus import l1_bytes
from fastsparse.plan import policy
from fastsparse.plan.linear import Machine, SddmmPlan, SpmvPlan
from fastsparse.plan.tiles import SpmmPlan
from fastsparse_kernels import build, epilogue, sddmm, spmm, spmv

build.set_cache_directory(runtime.cache_directory)

CLAMPS = {None: (-np.inf, np.inf), "relu": (0.0, np.inf), "relu6": (0.0, 6.0)}
ACTIVATIONS = (*CLAMPS, *(name for name in epilogue.ACTIVATION_CODES if name not in CLAMPS))
_COUNTER, _STOP = 0, 1  # the first fields of every record
_L1_BYTES = l1_bytes()


def machine(dtype: np.dtype[Any], workers: int | None = None) -> Machine:
    """The machine as plans see it, for numbers of `dtype` and the current number of threads."""
    if workers is None:
        workers, most = runtime.get_num_threads(), config.NUMBA_NUM_THREADS
        if workers > most:  # no more than can run: each has its own scratch
            workers = int(most)
    return _machine(dtype.itemsize * 8, workers, _L1_BYTES)


@functools.lru_cache(maxsize=64)
def _machine(bits: int, workers: int, l1_bytes: int) -> Machine:
    return Machine(bits, build.lanes(bits), workers, l1_bytes)


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
        self.words = array("q", bytes(8 * (len(self._places) + 16)))
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
    arguments = words.buffer_info()[0]
    counter = len(words) - 8
    words[_COUNTER] = arguments + 8 * counter
    slots = slices = 1
    if workers > 1 and tasks > 1 and flops >= policy.PARALLEL_FLOPS:
        slots = min(workers, tasks, runtime.worker_slots())
    if flops > policy.SLICE_FLOPS:
        slices = max(1, min(tasks, int(flops / (policy.SLICE_FLOPS * slots))))
    for i in range(slices):
        words[counter] = tasks * i // slices
        words[_STOP] = tasks * (i + 1) // slices
        if slots > 1:
            build.run_parallel()(kernel, arguments, slots)
        else:
            build.run_serial()(kernel, arguments)


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


def _prepare_spmm(plan: SpmmPlan, m: Machine) -> tuple[Record, Any, int, float]:
    """What all calls of a plan share: the record's fixed fields, the kernel, scratch per worker, work per batch."""
    operator, tiles = plan.operator, plan.tiles
    width = tiles.width * m.vector
    partial = operator.widest_group * width if operator.blocks > 1 else 0
    packed = tiles.columns is not None
    panel = int(np.diff(operator.columns.starts).max(initial=0)) * width if packed else 0
    together = 0
    if operator.alike and tiles.width in policy.alike_rates(m.vector):
        together = spmm.ALIKE
    elif tiles.width <= policy.LOCKSTEP_WIDTH:
        together = spmm.LOCKSTEP
    finished = width * (1 + policy.ROWS_TOGETHER if together else 1)
    scratch = -(-(partial + finished + panel) // 64) * 64
    record = Record(
        spmm.ARGUMENTS,
        tiles=tiles.count,
        groups=operator.groups,
        blocks=operator.blocks,
        group_starts=address(operator.group_starts),
        segments=address(operator.segments),
        row_ends=address(operator.row_ends),
        rows=address(operator.rows),
        offsets=address(operator.offsets),
        block_bases=address(operator.columns.bases),
        block_rows=address(operator.columns.starts),
        x_positions=address(tiles.x_positions),
        packed=packed,
        tile_columns=0 if tiles.columns is None else address(tiles.columns),
        ahead=m.workers if plan.asks_ahead else 0,
        passes=tiles.passes,
        y_positions=address(tiles.y_positions),
        masks=address(tiles.masks),
        full=address(tiles.full),
        scratch_stride=scratch,
        scratch_tile=partial,
        scratch_panel=partial + finished,
    )
    flops = 2.0 * operator.nnz * tiles.count * tiles.width * m.lanes
    kernel = spmm.spmm_kernel(m.bits, m.lanes, tiles.width, int(tiles.in_a_row(m.vector)), together)
    return record, kernel, scratch, flops


def _prepared_spmm(plan: SpmmPlan, m: Machine) -> tuple[Record, Any, int, float]:
    prepared = plan.prepared.get("launch")
    if prepared is None:
        prepared = plan.prepared["launch"] = _prepare_spmm(plan, m)
    return prepared


def spmm_scratch(plan: SpmmPlan, m: Machine) -> int:
    """Bytes of scratch that one worker needs."""
    return _prepared_spmm(plan, m)[2]


def spmm_call(
    plan: SpmmPlan,
    values: NDArray[Any],
    x: int,
    y: int,
    m: Machine,
    *,
    scratch: int,
    y_row_stride: int,
    x_row_stride: int = 0,
    batches: int = 1,
    x_batch_stride: int = 0,
    y_batch_stride: int = 0,
    bias: NDArray[Any] | None = None,
    residual: int = 0,
    activation: str | None = None,
) -> Call:
    """See `run_spmm`; scratch is the address of `spmm_scratch` bytes per worker."""
    template, kernel, _, flops = _prepared_spmm(plan, m)
    record = template.copy()
    record.set(
        values=address(values),
        x=x,
        x_batch_stride=x_batch_stride,
        x_row_stride=x_row_stride,
        y=y,
        y_batch_stride=y_batch_stride,
        y_row_stride=y_row_stride,
        residual=residual,
        scratch=scratch,
    )
    set_epilogue(record, bias, activation, m)
    return Call(kernel, record, plan.tiles.count * batches * plan.operator.groups, flops * batches)


def run_spmm(plan: SpmmPlan, values: NDArray[Any], x: int, y: int, m: Machine, **rest: Any) -> None:
    """SpMM over the plan's tiles, in each of `batches` batches. x and y are addresses, strides are in bytes.

    values : packed by `plan.operator.pack`
    residual : address of what is added before the activation, laid out as y is; y itself is allowed
    rest : keywords of `spmm_call`, without scratch
    """
    scratch = workspace.take("scratch", spmm_scratch(plan, m) * m.workers)
    run_call(spmm_call(plan, values, x, y, m, scratch=address(scratch), **rest), m.workers)


def spmm_template(
    plan: SpmmPlan, values: NDArray[Any], m: Machine, *, y_row_stride: int, x_row_stride: int = 0,
    activation: str | None = None,
) -> Template:  # fmt: skip
    """SpMM over the plan's tiles, to be run with the addresses of x, y and the bias (0 for none); as `run_spmm`."""
    call = spmm_call(
        plan, values, 0, 0, m, scratch=0, y_row_stride=y_row_stride, x_row_stride=x_row_stride, activation=activation
    )
    scratch = spmm_scratch(plan, m) * m.workers
    return Template(call, "x", "y", m.workers, scratch=scratch, keep=(plan, values))


def spmv_call(
    plan: SpmvPlan,
    indptr: NDArray[np.int64],
    values: NDArray[Any],
    x: int,
    y: int,
    m: Machine,
    *,
    scratch: int,
    y_stride: int,
    bias: NDArray[Any] | None = None,
    activation: str | None = None,
) -> Call:
    """y (M,) = W @ x (K,); x contiguous. scratch is the address of one vector per worker."""
    prepared = plan.prepared.get("launch")
    if prepared is None:
        template = Record(
            spmv.ARGUMENTS,
            group_starts=address(plan.group_starts),
            indptr=address(indptr),
            columns=address(plan.columns),
            scratch_stride=m.vector,
        )
        prepared = plan.prepared["launch"] = template, spmv.spmv_kernel(m.bits, m.lanes, plan.column_bits)
    record, kernel = prepared[0].copy(), prepared[1]
    record.set(values=address(values), x=x, y=y, y_stride=y_stride, scratch=scratch)
    set_epilogue(record, bias, activation, m)
    return Call(kernel, record, len(plan.group_starts) - 1, 2.0 * len(values))


def spmv_template(
    plan: SpmvPlan, indptr: NDArray[np.int64], values: NDArray[Any], m: Machine, *, activation: str | None = None
) -> Template:
    """y (M,) = W @ x (K,), both contiguous, to be run with the addresses of x, y and the bias (0 for none)."""
    call = spmv_call(plan, indptr, values, 0, 0, m, scratch=0, y_stride=m.size, activation=activation)
    scratch = m.vector * m.workers
    return Template(call, "x", "y", m.workers, scratch=scratch, keep=(plan, indptr, values))


def run_sddmm(
    plan: SddmmPlan,
    gradients: NDArray[Any],
    x: int,
    y: int,
    m: Machine,
    *,
    y_row_stride: int,
    batches: int = 1,
    x_batch_stride: int = 0,
    y_batch_stride: int = 0,
) -> None:
    """gradients (in the operator's order) += y x^T at the nonzeros, over all positions of `batches` batches."""
    operator = plan.operator
    record = Record(
        sddmm.ARGUMENTS,
        blocks=operator.blocks,
        segments=address(operator.segments),
        row_ends=address(operator.row_ends),
        rows=address(operator.rows),
        offsets=address(operator.offsets),
        gradients=address(gradients),
        block_bases=address(operator.columns.bases),
        run_length=plan.run_length,
        runs_per_block=plan.runs_per_block,
        x_batch_stride=x_batch_stride,
        x_step=plan.x_step,
        y_batch_stride=y_batch_stride,
        y_row_stride=y_row_stride,
        y_step=plan.y_step,
    )
    kernel = sddmm.sddmm_kernel(m.bits, m.lanes, min(8, m.lanes))
    flops = 2.0 * operator.nnz * m.lanes
    for batch, count, first, positions in _sddmm_parts(plan, batches, flops * plan.positions * batches):
        record.set(
            batches=count,
            positions=positions,
            x=x + batch * x_batch_stride,
            x_runs=address(plan.x_runs) + 8 * first,
            y=y + batch * y_batch_stride,
            y_runs=address(plan.y_runs) + 8 * first,
        )
        run(kernel, record, operator.groups, flops * positions * count, m.workers)


def _sddmm_parts(plan: SddmmPlan, batches: int, flops: float) -> Iterator[tuple[int, int, int, int]]:
    """Pieces of an SDDMM that row groups alone would not cut short enough, in the order of the whole.

    First batch and number of batches, first run and number of positions of every piece.
    """
    pieces = math.ceil(flops / (policy.SLICE_FLOPS * max(1, plan.operator.groups)))
    batch_step = max(1, batches // max(1, pieces))
    blocks = -(-len(plan.x_runs) // plan.runs_per_block)
    run_step = plan.runs_per_block * max(1, blocks // max(1, -(-pieces // max(1, batches))))
    for batch in range(0, batches, batch_step):
        for first in range(0, len(plan.x_runs), run_step):
            positions = min(run_step * plan.run_length, plan.positions - first * plan.run_length)
            yield batch, min(batch_step, batches - batch), first, positions
