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
    if workers is None:  # no more than can run: each has its own scratch
        workers = min(runtime.get_num_threads(), int(config.NUMBA_NUM_THREADS))
    return _machine(dtype.itemsize * 8, workers, _L1_BYTES)


@functools.lru_cache(maxsize=64)
def _machine(bits: int, workers: int, l1_bytes: int) -> Machine:
    return Machine(bits, build.lanes(bits), workers, l1_bytes)


class _ArrayInterface(ctypes.Structure):
    """What `__array_struct__` points to: NumPy's array interface, C-struct access."""

    _fields_ = (
        ("two", ctypes.c_int),
        ("nd", ctypes.c_int),
        ("typekind", ctypes.c_char),
        ("itemsize", ctypes.c_int),
        ("flags", ctypes.c_int),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
    )


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def address(buffer: NDArray[Any]) -> int:
    """Address of the first element: half of what `__array_interface__` and `ctypes.data` take."""
    return _ArrayInterface.from_address(_capsule_pointer(buffer.__array_struct__, None)).data or 0


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


def run_call(call: Call, workers: int) -> None:
    """Run all tasks of a call."""
    run(*call, workers)


def run(kernel: Any, record: Record, tasks: int, flops: float, workers: int) -> None:
    """Run all tasks of a filled record: in parallel when it pays, in slices short enough that Ctrl-C is noticed."""
    if tasks <= 0:
        return
    words = record.words
    arguments = words.buffer_info()[0]
    counter = len(words) - 8
    words[_COUNTER] = arguments + 8 * counter
    slots = 1
    if workers > 1 and tasks > 1 and flops >= policy.PARALLEL_FLOPS:
        slots = min(workers, tasks, runtime.worker_slots())
    slices = max(1, min(tasks, int(flops / (policy.SLICE_FLOPS * slots))))
    for i in range(slices):
        words[counter] = tasks * i // slices
        words[_STOP] = tasks * (i + 1) // slices
        if slots > 1:
            build.run_parallel()(kernel.address, arguments, slots)
        else:
            build.run_serial()(kernel.address, arguments)


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


def run_spmv(
    plan: SpmvPlan,
    indptr: NDArray[np.int64],
    values: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    m: Machine,
    *,
    bias: NDArray[Any] | None = None,
    activation: str | None = None,
) -> None:
    """y (M,) = W @ x (K,); x contiguous, y with any stride."""
    scratch = workspace.take("scratch", m.vector * m.workers)
    call = spmv_call(
        plan, indptr, values, address(x), address(y), m, scratch=address(scratch), y_stride=y.strides[0], bias=bias,
        activation=activation,
    )  # fmt: skip
    run_call(call, m.workers)


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
