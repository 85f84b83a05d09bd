"""Compiling kernels: one definition per kernel, variants from a builder, cached on disk.

Compute kernels are C functions `void(int64 arguments, int64 slot)`: `arguments` is the address of the kernel arguments
(a record of int64, one dtype per kernel family), `slot` the number of the calling worker. Workers take tasks from the
atomic counter in the arguments until `stop`; a task's result does not depend on which worker computes it. One parallel
region, in `parallel.py`, serves all kernels: a variant costs one serial compilation, and serial and parallel calls run
the same machine code.

A kernel is compiled when its address is first asked for. All that were built until then and are not in the cache are
compiled meanwhile in other processes, where that pays (`set_processes`). Each variant has a
`__qualname__` and one explicit signature of its own, which its file in the cache is named by.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from numba import types

from .codegen import level
from .codegen import vector_bytes as vector_bytes
from .kernel_cache import Directories, KernelCache
from .numba_internals import KernelCFunc, KernelDispatcher, global_compiler_lock, jitable, set_cache

_KERNEL_SIGNATURE = types.void(types.int64, types.int64)
_lock = threading.RLock()


def _nowhere() -> Directories:
    """The cache directories until `set_cache_directories` is called."""
    return Directories()


_cache_directories: Callable[[], Directories] = _nowhere


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


def set_cache_directories(
    source: Callable[[], Directories] = _nowhere, write: Callable[[str, bytes], None] = _write_nothing
) -> None:
    """Say where compiled kernels are kept: `source` is called when a kernel is compiled. Default: nowhere.

    `write` replaces a file in one step.
    """
    global _cache_directories, _write_file
    _cache_directories, _write_file = source, write


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


def kernel_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of functions that kernels call: compiled into each kernel that uses them, callable from Python, too."""
    return jitable(function, forceinline=False)


def inlined_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `kernel_function`, always inlined: inside a loop over rows, a call would save and reload vector registers."""
    return jitable(function, forceinline=True)


# ---------------------------------------------------------------- what is compiled, when, and who hears of it


class Variant(NamedTuple):
    """A variant by name: `getattr(module, builder)(*key)` builds it, in this process or another."""

    module: str
    builder: str
    key: tuple[Any, ...]


class Unit:
    """A function that has yet to be compiled, or loaded.

    Attributes
    ----------
    function : Numba's dispatcher or C callback
    variant : Variant or None
        None for functions that no builder knows: they are compiled in this process.
    bytecodes : int
        Bytes of Python code, with all functions that it calls: seconds of compiling are proportional to it.
    """

    def __init__(
        self, function: Callable[..., Any], compiled: Any, cache: KernelCache, run: Callable[[], None]
    ) -> None:
        set_cache(compiled, cache)
        self.function, self.variant, self._cache, self._run = compiled, _building, cache, run
        self.bytecodes = _bytecodes(function, set())
        self.is_compiled = False

    def is_cached(self) -> bool:
        """Whether there is a file of it in a cache directory."""
        return self._cache.has_file()

    def compile(self) -> None:
        """Compile it, or load it from the cache, unless that was done."""
        if not self.is_compiled:
            with global_compiler_lock, _without_collector():
                self._run()
            self.is_compiled = True


def _bytecodes(function: Any, seen: set[int]) -> int:
    if isinstance(function, (tuple, list)):
        return sum(_bytecodes(item, seen) for item in function)
    if not isinstance(function, FunctionType) or id(function) in seen:
        called = getattr(function, "calls", None)  # of an intrinsic
        return _bytecodes(called, seen) if called is not None else 0
    seen.add(id(function))
    inner = [cell.cell_contents for cell in function.__closure__ or ()]
    named = [function.__globals__.get(name) for name in function.__code__.co_names]
    inner += [item for item in named if hasattr(item, "kernel_options") or hasattr(item, "calls")]
    return len(function.__code__.co_code) + _bytecodes(inner, seen)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Without Python's collector of cycles: a tenth of the time, as Numba makes many objects that live on."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


_building: Variant | None = None  # by the thread that holds the lock
_waiting: dict[Unit, None] = {}  # built, and not compiled yet


class Kernel:
    """A kernel, compiled when its `address` is asked for: that of a C function void(int64, int64)."""

    address: int

    def __init__(self, unit: Unit, name: str) -> None:
        self._unit, self.name = unit, name

    @property
    def compiled(self) -> Any:
        """Numba's C callback."""
        if not self._unit.is_compiled:
            _compile(self._unit)
        return self._unit.function

    def __getattr__(self, name: str) -> int:
        if name != "address":
            raise AttributeError(f"a kernel has no {name!r}")
        self.address = int(self.compiled.address)  # from here on an attribute like others
        return self.address


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


def is_heard() -> bool:
    """Whether anybody listens to compiling."""
    return bool(_compiling.listeners)


Done = Callable[[Unit], object]
_ahead: Callable[[Sequence[Unit], Sequence[Unit], Done], None] | None = None


def set_processes(ahead: Callable[[Sequence[Unit], Sequence[Unit], Done], None] | None) -> None:
    """Say who compiles units that are not in the cache: `ahead(units, asked, done)` may compile those that are asked
    for, here and elsewhere, and the others meanwhile elsewhere.

    It calls `done` with each that is asked for; whatever it leaves is compiled after it.
    """
    global _ahead
    _ahead = ahead


def waiting() -> int:
    """How much was built or expected and is not compiled."""
    return len(_waiting)


def compile_waiting(done: Callable[[], object] | None = None) -> None:
    """Compile, or load, all that waits; call `done` after each of it."""
    with _lock:
        _compile(*_waiting, done=done)


def _missing() -> list[Unit]:
    return [unit for unit in _waiting if not unit.is_compiled and not unit.is_cached()]


def _compile(*asked: Unit, done: Callable[[], object] | None = None) -> None:
    """Compile what is asked for, while others may compile what waits."""
    finished: set[Unit] = set()

    def finish(unit: Unit) -> None:
        if done is not None and unit not in finished:
            finished.add(unit)
            done()

    with _compiling.counted():
        missing = _missing()
        if not set(missing).isdisjoint(asked):
            for listener in _compiling.listeners:
                listener()
            missing = _missing()  # a listener may have more be built
        if missing and _ahead is not None:
            _ahead(missing, [unit for unit in missing if unit in asked], finish)
        for unit in asked:
            unit.compile()
            _waiting.pop(unit, None)
            finish(unit)


def compile_kernel(function: Callable[..., Any], name: str) -> Kernel:
    """A kernel of `function(arguments, slot)` under a name of its own."""
    function.__name__ = function.__qualname__ = name
    compiled = KernelCFunc(function, _KERNEL_SIGNATURE)
    return Kernel(_wait_for(function, _KERNEL_SIGNATURE, compiled, compiled.compile), name)


def compile_function(function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """Compile a function that Python calls (packing structures, launching) with one explicit signature."""
    dispatcher = KernelDispatcher(function, nogil=True, no_cfunc_wrapper=True)

    def compile_one_signature() -> None:
        dispatcher.compile(signature)
        dispatcher.disable_compile()

    dispatcher.unit = _wait_for(function, signature, dispatcher, compile_one_signature)
    if _building is None:
        _compile(dispatcher.unit)
    return dispatcher


_BY_BITS = {"real": "float", "column": "int"}  # of as many bits as a builder's key says, in this order


def host_signature(text: str, *bits: int) -> Any:
    """Numba's signature of a function that Python calls, from one in C's notation.

    Types have NumPy's names, `real` and `column` are floats and integers of `bits` bits. Arrays of one axis have a `*`,
    of two axes `**`; they are C-contiguous, and read-only with `const`.
    """
    known = {name: f"{kind}{n}" for (name, kind), n in zip(_kinds_by_bits(text), bits, strict=True)}

    def kind_of(word: str) -> Any:
        name, axes = word.strip().removeprefix("const ").rstrip("*"), word.count("*")
        kind = getattr(types, known.get(name, name))
        return types.Array(kind, axes, "C", readonly="const" in word) if axes else kind

    result, _, parameters = text.rstrip(")").partition("(")
    return kind_of(result)(*map(kind_of, parameters.split(",")))


def _kinds_by_bits(text: str) -> list[tuple[str, str]]:
    return [(name, kind) for name, kind in _BY_BITS.items() if name in text]


host_functions: list[tuple[Any, int]] = []  # builders, and how many numbers of bits their keys have


def host_function(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Decorator of a function that Python calls: `f(*bits)` of the result is it, compiled for `host_signature`."""

    def decorate(function: Callable[..., Any]) -> Any:
        def build(*bits: int) -> Callable[..., Any]:
            twin = FunctionType(function.__code__, function.__globals__, function.__name__)
            twin.__qualname__ = "_".join([function.__name__, *(f"{symbol[0]}{n}" for symbol, n in zip(kinds, bits))])
            return compile_function(twin, host_signature(signature, *bits))

        kinds = [kind for _, kind in _kinds_by_bits(signature)]
        build.__module__, build.__qualname__, build.__doc__ = function.__module__, function.__name__, function.__doc__
        once = compiled_once(build)
        host_functions.append((once, len(kinds)))
        return once

    return decorate


def _wait_for(function: Callable[..., Any], signature: Any, compiled: Any, run: Callable[[], None]) -> Unit:
    cache = KernelCache(function, signature, _cache_directories(), _write_file)
    with _lock:
        unit = Unit(function, compiled, cache, run)
        _waiting[unit] = None
    return unit


def compiled_once(build: Callable[..., Any]) -> Any:
    """Memoise `build(*key)`: each variant is built once per process, by the first thread that needs it.

    A kernel is compiled when its address is asked for, a function before it is returned. `expect(*key)` of the result
    says that a variant will be needed: other processes may compile it while this one compiles another.

    Builders of kernels call their parameters `bits` and `lanes`. What needs longer vectors than kernels are compiled
    for is not expected, as nothing can run it, and refused with ValueError where it is asked for: LLVM would end the
    process.
    """
    known: dict[tuple[Any, ...], Any] = {}
    names = tuple(inspect.signature(build).parameters)

    def vector(key: tuple[Any, ...]) -> int:
        """Bytes of the vectors of a variant."""
        given = dict(zip(names, key, strict=False))
        return int(given.get("bits", 0) * given.get("lanes", 0)) // 8

    def build_once(*key: Any) -> Any:
        global _building
        with _lock:  # which other threads wait for
            if key not in known:
                if vector(key) > vector_bytes():
                    raise ValueError(
                        f"{build.__name__}{key} has vectors of {vector(key)} bytes, expected at most {vector_bytes()}: "
                        f"kernels are compiled for {level()}"
                    )
                outer, _building = _building, Variant(build.__module__, build.__qualname__, key)
                try:
                    known[key] = build(*key)
                finally:
                    _building = outer
            return known[key]

    def get(*key: Any) -> Any:
        with _lock:
            built = build_once(*key)
            if not isinstance(built, Kernel) and not built.unit.is_compiled:
                _compile(built.unit)
            return built

    def expect(*key: Any) -> None:
        if vector(key) <= vector_bytes():
            build_once(*key)

    once: Any = functools.update_wrapper(functools.cache(get), build)  # no Python call for what is known
    once.expect = functools.cache(expect)
    return once


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array aligned to 64 bytes (np.empty aligns to 16, and a misaligned panel halves the speed)."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count].view(dtype).reshape(shape)
