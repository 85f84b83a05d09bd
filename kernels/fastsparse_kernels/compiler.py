"""Compiling kernels: one definition per kernel, variants from a builder over ints, cached on disk.

Compute kernels are C functions `void(int64 arguments, int64 slot)`: `arguments` is the address of the kernel arguments
(a record of int64, one dtype per kernel family), `slot` the number of the calling worker. Workers take tasks from the
atomic counter in the arguments until `stop`; a task's result does not depend on which worker computes it. One parallel
region, in `parallel.py`, serves all kernels: a variant costs one serial compilation, and serial and parallel calls run
the same machine code.

Each variant has a `__qualname__` and one explicit signature of its own: variants that share a name in a cache could
answer one another.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import register_jitable

from .kernel_cache import KernelCache
from .numba_internals import CFunc, global_compiler_lock, set_cache, target_features

_KERNEL_SIGNATURE = ((types.int64, types.int64), types.void)
_lock = threading.RLock()


def _no_directory() -> None:
    """The cache directory until `set_cache_directory` is called."""


_cache_directory: Callable[[], str | os.PathLike[str] | None] = _no_directory


def _before_fork() -> None:
    """Wait for compilations in other threads: a child would inherit locks that no thread of its own releases."""
    _lock.acquire()
    global_compiler_lock.acquire()


def _after_fork() -> None:
    global_compiler_lock.release()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def _write_nothing(path: str, content: bytes) -> None:
    """The writer of the cache until somebody sets one."""


_write_file: Callable[[str, bytes], None] = _write_nothing


def set_cache_directory(
    source: Callable[[], str | os.PathLike[str] | None], write: Callable[[str, bytes], None] = _write_nothing
) -> None:
    """Say where compiled kernels are kept: `source` is called when a kernel is compiled; None means nowhere.

    `write` replaces a file in one step.
    """
    global _cache_directory, _write_file
    _cache_directory, _write_file = source, write


@functools.cache
def vector_bytes() -> int:
    """Width of the widest vector register Numba compiles for: 64 (AVX-512), 32 (AVX2), 16 (NEON, SSE)."""
    features = target_features()
    if "+avx512f" in features and "+avx512vl" in features:
        return 64
    return 32 if "+avx2" in features else 16


def lanes(bits: int) -> int:
    """VL: lanes of one vector for floating-point numbers of `bits` bits."""
    return vector_bytes() * 8 // bits


def half_lanes(bits: int, lanes: int) -> int:
    """Lanes of a vector of half the length; 0 where that would be less than 16 bytes."""
    half = lanes // 2
    return half if half * bits >= 128 else 0


def kernel_arguments(*fields: str) -> np.dtype:
    """Dtype of a kernel's arguments: int64 numbers and byte addresses, the address of the task counter first."""
    return np.dtype([(name, np.int64) for name in ("counter", "stop", *fields)])


def _qualify_names(part: Any, owner: str, counter: Iterator[int]) -> None:
    """Give every function in a kernel's closures a qualified name of its own, derived from the variant's.

    Inner functions of two variants of a builder have the same name and types, and Numba tells them apart by a number
    that counts compilations in this process. Code cached by two processes and loaded into a third can then define one
    symbol twice, and the linker resolves one variant's calls to the other's function (seen, as corrupted memory).
    """
    if isinstance(part, (tuple, list)):
        for item in part:
            _qualify_names(item, owner, counter)
    elif isinstance(part, FunctionType):
        if "<locals>" in part.__qualname__:
            part.__qualname__ = f"{owner}.part{next(counter)}.{part.__name__}"
        elif not part.__qualname__.startswith(owner):
            return
        for cell in part.__closure__ or ():
            _qualify_names(cell.cell_contents, owner, counter)


def kernel_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of functions that kernels call: compiled into each kernel that uses them, callable from Python, too.

    Without the C wrapper that Numba would add, a second copy of the function and an eighth of the compile time.
    """
    wrapped: Callable[..., Any] = register_jitable(no_cfunc_wrapper=True)(function)
    return wrapped


def inlined_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `kernel_function`, always inlined: inside a loop over rows, a call would save and reload vector registers."""
    wrapped: Callable[..., Any] = register_jitable(no_cfunc_wrapper=True, forceinline=True)(function)
    return wrapped


class _Compiling:
    """What compiling has cost so far, and who wants to hear of it."""

    seconds = 0.0
    listeners: tuple[Callable[[], object], ...] = ()
    _depth = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Add the time of the block; one within another counts once."""
        with _lock:
            self._depth += 1
            begin = time.perf_counter()
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - begin


_compiling = _Compiling()


def compile_seconds() -> float:
    """Seconds this process has spent so far on compiling kernels and on loading them from the cache."""
    return _compiling.seconds


@contextlib.contextmanager
def on_compile(listener: Callable[[], object]) -> Iterator[None]:
    """Within the block, call `listener` before a kernel is compiled that is not in the cache."""
    _compiling.listeners += (listener,)
    try:
        yield
    finally:
        _compiling.listeners = tuple(other for other in _compiling.listeners if other is not listener)


class _Cache(KernelCache):
    """A cache that tells of what it does not have."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = super().load_overload(sig, target_context)
        if found is None:
            for listener in _compiling.listeners:
                listener()
        return found


def compile_kernel(function: Callable[..., Any], name: str) -> CFunc:
    """Compile `function(arguments, slot)` under a name of its own, or load it from the cache."""
    function.__name__ = function.__qualname__ = name
    _qualify_names(function, name, itertools.count())
    with _compiling.counted():
        compiled = CFunc(function, _KERNEL_SIGNATURE, {}, {"error_model": "numpy", "boundscheck": False})
        set_cache(compiled, _Cache(function, _cache_directory(), _write_file))
        compiled.compile()
    return compiled


def compile_function(function: Callable[..., Any], signature: Any, **options: Any) -> Callable[..., Any]:
    """Compile a function that Python calls (packing structures, launching) with one explicit signature."""
    with _compiling.counted():
        dispatcher = njit(nogil=True, error_model="numpy", **options)(function)
        set_cache(dispatcher, _Cache(function, _cache_directory(), _write_file))
        dispatcher.compile(signature)
        dispatcher.disable_compile()
    return dispatcher


def compiled_once(build: Callable[..., Any]) -> Callable[..., Any]:
    """Memoise `build(*ints)`: each variant is compiled once per process, by the first thread that needs it."""
    known: dict[tuple[Any, ...], Any] = {}

    def build_once(*key: Any) -> Any:
        with _lock:  # which other threads wait for
            if key not in known:
                known[key] = build(*key)
            return known[key]

    return functools.update_wrapper(functools.cache(build_once), build)  # no Python call for what is known


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array aligned to 64 bytes (np.empty aligns to 16, and a misaligned panel halves the speed)."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count].view(dtype).reshape(shape)
