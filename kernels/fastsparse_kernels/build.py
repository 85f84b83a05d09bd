"""Compiling kernels: one definition per kernel, variants from a builder over ints, cached on disk.

Compute kernels are C functions `void(int64 arguments, int64 slot)`: `arguments` is the address of a record (a NumPy
structured scalar, one dtype per kernel family), `slot` the number of the worker that calls. Workers take tasks from
the record's atomic counter until `stop`; a task's result does not depend on who computes it. One parallel region, in
`sharing.py`, serves all kernels: a variant costs one serial compilation, and its serial twin is the same machine code.

Each variant has a `__qualname__` and one explicit signature of its own: variants that share a name in a cache could
answer one another.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import numpy as np
from numba import njit, types
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import register_jitable

from .cache import KernelCache

_KERNEL_SIGNATURE = ((types.int64, types.int64), types.void)
_lock = threading.RLock()


def _nowhere() -> None:
    """The cache directory until somebody sets one."""


def _write_nothing(path: str, content: bytes) -> None:
    """The writer of the cache until somebody sets one."""


_cache_directory: Callable[[], str | os.PathLike[str] | None] = _nowhere
_write_file: Callable[[str, bytes], None] = _write_nothing


def _before_fork() -> None:
    """Wait for compilations in other threads: a child would inherit their locks and nobody to release them."""
    _lock.acquire()
    global_compiler_lock.acquire()


def _after_fork() -> None:
    global_compiler_lock.release()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


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
    features = cpu_target.target_context.codegen()._tm_features.split(",")
    if "+avx512f" in features and "+avx512vl" in features:
        return 64
    return 32 if "+avx2" in features else 16


def lanes(bits: int) -> int:
    """VL: lanes of one vector for floating-point numbers of `bits` bits."""
    return vector_bytes() * 8 // bits


def half_lanes(bits: int, lanes: int) -> int:
    """Lanes of vectors half as long as those of so many lanes; 0 where they would have less than 16 bytes."""
    half = lanes // 2
    return half if half * bits >= 128 else 0


def kernel_record(*fields: str) -> np.dtype:
    """Dtype of a kernel's argument record: int64 numbers and byte addresses, the task counter first."""
    return np.dtype([(name, np.int64) for name in ("counter", "stop", *fields)])


def _name_parts(part: Any, owner: str, counter: Iterator[int]) -> None:
    """Give every function that a kernel's closures hold a name of its own.

    A builder's variants have inner functions of the same name and types, which Numba tells apart by a number that
    counts compilations in this process. Code of two processes, loaded from the cache into a third, may then define
    one symbol twice, and the linker answers one variant with the other's part: seen, as corrupted memory.
    """
    if isinstance(part, (tuple, list)):
        for item in part:
            _name_parts(item, owner, counter)
    elif isinstance(part, FunctionType):
        if "<locals>" in part.__qualname__:
            part.__qualname__ = f"{owner}.part{next(counter)}.{part.__name__}"
        elif not part.__qualname__.startswith(owner):
            return
        for cell in part.__closure__ or ():
            _name_parts(cell.cell_contents, owner, counter)


def kernel_part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of functions that kernels call, compiled anew into each kernel; Python can call them, too.

    Numba would add a wrapper that C code can call, with a second copy of the function: an eighth of the time that a
    kernel takes to compile.
    """
    wrapped: Callable[..., Any] = register_jitable(no_cfunc_wrapper=True)(function)
    return wrapped


def inlined_part(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a part that would be called in a loop over rows: a call with vectors saves and clears registers."""
    wrapped: Callable[..., Any] = register_jitable(no_cfunc_wrapper=True, forceinline=True)(function)
    return wrapped


def compile_kernel(function: Callable[..., Any], name: str) -> CFunc:
    """Compile `function(arguments, slot)` under a name of its own, or load it from the cache."""
    function.__name__ = function.__qualname__ = name
    _name_parts(function, name, itertools.count())
    compiled = CFunc(function, _KERNEL_SIGNATURE, {}, {"error_model": "numpy", "boundscheck": False})
    compiled._cache = KernelCache(function, _cache_directory(), _write_file)
    compiled.compile()
    return compiled


def compile_function(function: Callable[..., Any], signature: Any, **options: Any) -> Callable[..., Any]:
    """Compile a function that Python calls (building structures, launching) with one explicit signature."""
    dispatcher = njit(nogil=True, error_model="numpy", **options)(function)
    dispatcher._cache = KernelCache(function, _cache_directory(), _write_file)
    dispatcher.compile(signature)
    dispatcher.disable_compile()
    return dispatcher


def compiled_once(build: Callable[..., Any]) -> Callable[..., Any]:
    """Memoise `build(*ints)` by its arguments: each variant is compiled once per process, whoever asks first."""
    known: dict[tuple[Any, ...], Any] = {}

    @functools.wraps(build)
    def get(*key: Any) -> Any:
        found = known.get(key)
        if found is None:
            with _lock:
                found = known.get(key)
                if found is None:
                    found = known[key] = build(*key)
        return found

    return get


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array that starts on a 64-byte line (np.empty aligns to 16: a misaligned panel halves speed)."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count].view(dtype).reshape(shape)
