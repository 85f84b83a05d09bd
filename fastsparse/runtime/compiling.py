"""Compiling kernels in several processes at once, and saying so when it takes a while.

Kernels are compiled by Python code under its global lock, so only other processes help. Helpers are new interpreters
that run `fastsparse_kernels.worker` and nothing of the program that started them: no fork, and no second run of
``__main__``. What they compile goes into the cache, from which this process loads it. This process compiles, too, and
whatever helpers leave: where none can be started, all of it.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastsparse.runtime import cpu, kernel_cache, threading_layer
from fastsparse.runtime.fork import after_fork_in_child, fork_safe_lock
from fastsparse_kernels import codegen, compiler
from fastsparse_kernels.compiler import Unit, Variant
from fastsparse_kernels.kernel_cache import source_digest

_SECONDS = 0.04, 0.7e-4  # of compiling: for each unit, and for each byte of its Python code
_WORTH = 0.9  # seconds of compiling for each helper, which takes half a second to start
_MOST_HELPERS = 7
_IDLE = 5.0  # seconds that helpers wait for more
_HELD_UP = 300.0  # seconds after which a helper is given up
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); "
    "from fastsparse_kernels.worker import serve; serve()"
)

SILENT = os.environ.get("FASTSPARSE_VERBOSE", "").strip() == "0"
_LATE = 2.0  # seconds until something is said
_PAUSE = 60.0  # seconds until it is said again, or until the time begins anew


def compile_ahead(units: Sequence[Unit], done: Callable[[Unit], object]) -> None:
    """Compile units that are not in the cache, here and in helpers; call `done` with each, from any thread.

    Helpers are not worth their start for little work; some units may be left to the caller.
    """
    with _announced():
        _share(units, done)


# ------------------------------------------------------------------------------------------------- helpers


class _Helper:
    """A process that compiles for this one, see `fastsparse_kernels.worker`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._say(sys.path)
        self._say([source_digest(), codegen.chosen_level()])

    def _say(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def compile(self, variant: Variant, directory: str) -> None:
        """Compile a variant and keep it in a directory of the cache.

        OSError when the process has ended. What cannot be compiled is not in the cache then.
        """
        answers = self.process.stdout
        assert answers is not None
        self._say(variant)
        answer = answers.readline()
        name, size = json.loads(answer) if answer else ("", -1)
        content = answers.read(size) if size > 0 else b""
        if size < 0 or len(content) < size:
            raise BrokenPipeError("the helper has ended")
        if content:
            kernel_cache.write_cached(os.path.join(directory, os.path.basename(name)), content)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        with suppress(OSError):
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self.process.wait()


_lock = fork_safe_lock()
_idle: list[_Helper] = []
_inherited: list[_Helper] = []  # the parent's, in a child of fork()
_ending: threading.Timer | None = None


def _take() -> _Helper:
    with _lock:
        if _idle:
            return _idle.pop()
    return _Helper()


def _give_back(helpers: list[_Helper]) -> None:
    """Keep helpers for a moment: one plan follows another."""
    global _ending
    if not helpers:
        return
    with _lock:
        _idle.extend(helpers)
        if _ending is not None:
            _ending.cancel()
        _ending = threading.Timer(_IDLE, _end_idle)
        _ending.daemon = True
        _ending.start()


@atexit.register
def _end_idle() -> None:
    with _lock:
        helpers = _idle[:]
        _idle.clear()
    for helper in helpers:
        helper.close()


@after_fork_in_child
def _leave_to_parent() -> None:
    _inherited.extend(_idle)
    _idle.clear()


def _helpers_worth(units: Sequence[Unit]) -> int:
    """How many helpers to work with: those that run already, and more where there is work for them; none in children of
    other processes, and in programs that are no plain Python interpreter, where starting `sys.executable` would start
    the program again."""
    plain = Path(sys.executable or "").name.lower().startswith("python") and not getattr(sys, "frozen", False)
    child = threading_layer.forked() or multiprocessing.parent_process() is not None
    if not plain or child or kernel_cache.cache_directories().write is None:
        return 0
    work = sum(_SECONDS[0] + _SECONDS[1] * unit.bytecodes for unit in units)
    return min(max(int(work / _WORTH), len(_idle)), cpu.available_cpus() - 1, len(units) - 1, _MOST_HELPERS)


def _share(units: Sequence[Unit], done: Callable[[Unit], object]) -> None:
    todo = deque(sorted(units, key=lambda unit: -unit.bytecodes))
    alone = deque(unit for unit in todo if unit.variant is None)
    todo = deque(unit for unit in todo if unit.variant is not None)
    directory = kernel_cache.cache_directories().write or ""
    working: list[_Helper] = []
    back: list[_Helper] = []

    def feed() -> None:
        helper = None
        with suppress(OSError, ValueError):  # ValueError: closed
            helper = _take()
            working.append(helper)
            while todo:
                try:
                    unit = todo.popleft()
                except IndexError:
                    break
                assert unit.variant is not None
                helper.compile(unit.variant, directory)
                done(unit)
            back.append(helper)

    threads = [threading.Thread(target=feed, daemon=True) for _ in range(_helpers_worth(units))]
    try:
        for thread in threads:
            thread.start()
        for queue in (todo, alone):
            while queue:
                try:
                    unit = queue.popleft()
                except IndexError:
                    break
                unit.compile()
                done(unit)
        until = time.monotonic() + _HELD_UP
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
    finally:
        for helper in working:
            if helper not in back:
                helper.close()
        _give_back(back)


# ------------------------------------------------------------------------------------------------- saying so


class _Said:
    """Seconds of compiling of late, and when they ended; when something was said."""

    spent, ended, said = 0.0, -_PAUSE, -_PAUSE


@contextmanager
def _announced() -> Iterator[None]:
    """Say on stderr that kernels are compiled when that takes long, unless somebody shows it already."""
    if SILENT or compiler.is_heard():
        yield
        return
    begin = time.monotonic()
    if begin - _Said.ended > _PAUSE:
        _Said.spent = 0.0
    timer = None
    if begin - _Said.said > _PAUSE:
        timer = threading.Timer(max(0.0, _LATE - _Said.spent), _say_so)
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        _Said.ended = time.monotonic()
        _Said.spent += _Said.ended - begin


def _say_so() -> None:
    _Said.said = time.monotonic()
    kept = "once per machine" if kernel_cache.cache_directories().write else "in every process: they cannot be kept"
    with suppress(AttributeError, OSError, ValueError):  # no stderr, or one that is closed
        sys.stderr.write(f"fastsparse: compiling kernels ({kept})\n")
        sys.stderr.flush()
