"""Targets of plans: dtype, vector length, number of threads, and the heuristics of this CPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastsparse.ops.heuristics import Heuristics, heuristics_for
from fastsparse.runtime.cpu import cache_bytes
from fastsparse.runtime.launch import ParallelLoop
from fastsparse.runtime.threads import usable_threads
from fastsparse_kernels import compiler

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_CACHES = cache_bytes(1), cache_bytes(3)


@dataclass(frozen=True, eq=False)
class Target:
    """Everything a plan depends on besides pattern and geometry. Made once, and compared by identity.

    Attributes
    ----------
    bits : of one number, 32 or 64
    lanes : numbers per vector
    threads : most workers that share a call
    heuristics : Heuristics
    size, vector : bytes of one number and of one vector
    loop : how workers share the tasks of a launch
    """

    bits: int
    lanes: int
    threads: int
    heuristics: Heuristics
    size: int = field(init=False)
    vector: int = field(init=False)
    loop: ParallelLoop = field(init=False)

    def __post_init__(self) -> None:
        # No cached properties: before Python 3.12 they hold a lock, which a child would inherit from a fork.
        object.__setattr__(self, "size", self.bits // 8)
        object.__setattr__(self, "vector", self.lanes * self.size)
        loop = ParallelLoop(self.threads, self.heuristics.parallel_flops, self.heuristics.slice_flops)
        object.__setattr__(self, "loop", loop)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return _FLOAT32 if self.bits == 32 else _FLOAT64

    @property
    def serial(self) -> Target:
        """The same for one thread."""
        return _serial(self)


@functools.lru_cache(maxsize=256)
def _serial(target: Target) -> Target:
    return replace(target, threads=1)


def target_for(dtype: np.dtype[Any], threads: int | None = None, heuristics: Heuristics | None = None) -> Target:
    """The target of calls made here and now, for numbers of `dtype`.

    threads : default: the current number; never more than can run
    heuristics : default: those of the surrounding `tuned` block, else this CPU's

    Raises
    ------
    TypeError
        When there are no kernels for the type.
    """
    if dtype not in (_FLOAT32, _FLOAT64):
        raise TypeError(f"there are no kernels for {dtype}, expected float32 or float64")
    return _target(dtype.itemsize * 8, usable_threads(threads), heuristics or _block.get())


_block: ContextVar[Heuristics | None] = ContextVar("fastsparse heuristics", default=None)


def tuned_heuristics() -> Heuristics | None:
    """Heuristics of the surrounding `tuned` block."""
    return _block.get()


@contextlib.contextmanager
def tuned(**changes: Any) -> Iterator[Heuristics]:
    """Plan with some fields of this CPU's heuristics changed, inside a ``with`` block.

    For tests and measurements: every choice gives the same bits.
    """
    token = _block.set(replace(heuristics_here(), **changes))
    try:
        yield _block.get()  # type: ignore[misc]
    finally:
        _block.reset(token)


def heuristics_here() -> Heuristics:
    """The record of the `tuned` block around the caller, else this CPU's."""
    return _block.get() or heuristics_for(compiler.vector_bytes(), *_CACHES)


@functools.lru_cache(maxsize=256)
def _target(bits: int, threads: int, heuristics: Heuristics | None) -> Target:
    return Target(bits, compiler.lanes(bits), threads, heuristics or heuristics_for(compiler.vector_bytes(), *_CACHES))


@functools.lru_cache(maxsize=256)
def narrowed(target: Target, columns: int) -> Target:
    """The target with half-length vectors where `columns` fit them: L1 then holds more of X (a quarter less time)."""
    half = compiler.half_lanes(target.bits, target.lanes)
    return _halved(target, half) if half and columns <= half else target


@functools.lru_cache(maxsize=64)
def _halved(target: Target, lanes: int) -> Target:
    """The one target with vectors of `lanes`, half as long: targets are compared by identity."""
    h = target.heuristics
    caches = h.l1_bytes, h.l3_bytes
    narrow = heuristics_for(h.vector_bytes // 2, *caches)
    if h is not heuristics_for(h.vector_bytes, *caches):  # a record that the caller chose: keep its choices
        narrow = replace(h, vector_bytes=h.vector_bytes // 2)
    return replace(target, lanes=lanes, heuristics=narrow)
