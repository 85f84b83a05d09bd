"""Compiling kernels in several processes at once, and saying so when it takes a while.

Kernels are compiled by Python code under its global lock, so only other processes help. Helpers are new interpreters
that run `fastsparse_kernels.worker` and nothing of the program that started them: no fork, and no second run of
``__main__``. What they compile goes into the cache, from which this process loads it when it needs it. This process
compiles what it needs at once and nobody has begun: where no helper can be started, all of it.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

from fastsparse.runtime import cpu, kernel_cache, threading_layer
from fastsparse.runtime.fork import after_fork_in_child, fork_safe_lock
from fastsparse.runtime.switches import switch
from fastsparse_kernels import codegen, compiler
from fastsparse_kernels.compiler import Unit, Variant
from fastsparse_kernels.kernel_cache import source_digest

_SECONDS = 0.04, 0.7e-4  # of compiling: for each unit, and for each byte of its Python code
_WORTH = 0.7  # seconds of compiling for each helper, which takes half a second to start
_MOST_HELPERS = 7
_IDLE = 5.0  # seconds that helpers wait for more
_HELD_UP = 300.0  # seconds after which a helper is given up
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); "
    "from fastsparse_kernels.worker import serve; serve()"
)

SILENT = switch("FASTSPARSE_VERBOSE") is False
_LATE = 2.0  # seconds until something is said
_PAUSE = 60.0  # seconds until it is said again, or until the time begins anew


def compile_ahead(units: Sequence[Unit], asked: Sequence[Unit], done: Callable[[Unit], object]) -> None:
    """Compile units that are not in the cache: those that are asked for, before it returns, calling `done` with each;
    meanwhile, and afterwards, helpers compile the others.

    Helpers are not worth their start for little work; what they leave is left to the caller.
    """
    with _announced() if asked else nullcontext():
        first = _hand_out(units, asked)
        if asked:
            _compile_here(asked, first, done)


def _size(unit: Unit) -> int:
    return unit.bytecodes


# ------------------------------------------------------------------------------------------------- helpers


class _Helper:
    """A process that compiles for this one, see `fastsparse_kernels.worker`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._say(sys.path)
        self._say([source_digest(), codegen.chosen_level()])
        self.started = False

    @property
    def _answers(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def _say(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def wait_for_start(self) -> None:
        """OSError when it ends instead."""
        if not self.started and not self._answers.readline():
            raise BrokenPipeError("the helper has ended")
        self.started = True

    def compile(self, variant: Variant, directory: str) -> None:
        """Compile a variant and keep it in a directory of the cache.

        OSError when the process has ended. What cannot be compiled is not in the cache then.
        """
        self._say(variant)
        answer = self._answers.readline()
        name, size = json.loads(answer) if answer else ("", -1)
        content = self._answers.read(size) if size > 0 else b""
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
_todo: list[Unit] = []  # the largest last
_doing: dict[Unit, threading.Event] = {}  # by helpers
_idle: list[_Helper] = []
_working: list[_Helper] = []
_inherited: list[_Helper] = []  # the parent's, in a child of fork()
_ending: threading.Timer | None = None


def start_early() -> None:
    """Start a helper where nothing is compiled yet: its imports take as long as those that a first call needs."""
    with suppress(OSError):
        found = kernel_cache.cache_directories()
        if _may_help() and found.package is None and not any(map(os.listdir, found.private)):
            _give_back(_Helper())


def _hand_out(units: Sequence[Unit], asked: Sequence[Unit]) -> Unit | None:
    """Give units to as many helpers as are worth it, first those that are asked for; return the one that this process
    is to begin with: the largest while a helper has yet to start, else the largest that is asked for."""
    starting: list[_Helper] = []
    with _lock:
        queued = {*_todo, *_doing}
        _todo.extend(unit for unit in units if unit.variant is not None and unit not in queued)
        _todo.sort(key=lambda unit: (unit in asked, unit.bytecodes))
        with suppress(OSError):
            more = range(_helpers_worth(_todo) - len(_working))
            starting.extend(_idle.pop() if _idle else _Helper() for _ in more)
        _working.extend(starting)
        wanted = asked if all(helper.started for helper in _working) else units
        first = max((unit for unit in wanted if unit not in _doing), key=_size, default=None) if asked else None
        if first in _todo:
            _todo.remove(first)
    for helper in starting:
        threading.Thread(target=_feed, args=[helper], daemon=True, name="fastsparse helper").start()
    return first


def _feed(helper: _Helper) -> None:
    """Have a helper compile what there is to do."""
    directory, broken = kernel_cache.cache_directories().write or "", True
    with suppress(OSError, ValueError):  # ValueError: closed
        helper.wait_for_start()
        while (unit := _next()) is not None:
            try:
                assert unit.variant is not None
                helper.compile(unit.variant, directory)
            finally:
                with _lock:
                    _doing.pop(unit).set()
        broken = False
    with _lock:
        _working.remove(helper)
    if broken:
        helper.close()
    else:
        _give_back(helper)


def _next() -> Unit | None:
    with _lock:
        if not _todo:
            return None
        unit = _todo.pop()
        _doing[unit] = threading.Event()
        return unit


def _compile_here(asked: Sequence[Unit], first: Unit | None, done: Callable[[Unit], object]) -> None:
    """Compile `first`, then what is asked for and no helper has begun; while one compiles the last of it, something
    else."""
    if first is not None:
        _compile(first)
    left = dict.fromkeys(sorted(asked, key=_size, reverse=True))
    while True:
        with _lock:
            finished = [unit for unit in left if unit.is_compiled or (unit.is_cached() and unit not in _doing)]
        for unit in finished:
            del left[unit]
            done(unit)
        if not left:
            return
        with _lock:
            events = [_doing[unit] for unit in left if unit in _doing]
            next_one = next((unit for unit in left if unit not in _doing), _todo[0] if _todo else None)
            if next_one in _todo:
                _todo.remove(next_one)
        if next_one is not None:
            _compile(next_one)
        elif not events[0].wait(_HELD_UP):
            return  # what asked for it compiles it


def _compile(unit: Unit) -> None:
    with _interrupts_held():
        unit.compile()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Answer Ctrl-C after the block: an exception would be lost in Python code that LLVM calls while it compiles."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    held: list[Any] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            handler(signal.SIGINT, held[0])


def _give_back(helper: _Helper) -> None:
    """Keep a helper for a moment: one plan follows another."""
    global _ending
    with _lock:
        _idle.append(helper)
        if _ending is not None:
            _ending.cancel()
        _ending = threading.Timer(_IDLE, _end_idle)
        _ending.daemon = True
        _ending.start()


def _end_idle() -> None:
    with _lock:
        helpers = _idle[:]
        _idle.clear()
    for helper in helpers:
        helper.close()


@atexit.register
def _end_all() -> None:
    with _lock:
        _todo.clear()
        working = _working[:]
    for helper in working:
        helper.process.kill()
    _end_idle()


@after_fork_in_child
def _leave_to_parent() -> None:
    _inherited.extend((*_idle, *_working))
    for own in (_idle, _working, _todo, _doing):
        own.clear()


def _may_help() -> bool:
    """Whether helpers can be started: not in children of other processes, and not by programs that are no plain Python
    interpreter, where starting `sys.executable` would start the program again."""
    plain = Path(sys.executable or "").name.lower().startswith("python") and not getattr(sys, "frozen", False)
    child = threading_layer.forked() or multiprocessing.parent_process() is not None
    return plain and not child and kernel_cache.cache_directories().write is not None and cpu.available_cpus() > 1


def _helpers_worth(units: Sequence[Unit]) -> int:
    """How many helpers to work with: those that run already, and more where there is work for them."""
    if not _may_help():
        return 0
    work = sum(_SECONDS[0] + _SECONDS[1] * unit.bytecodes for unit in units)
    running = len(_idle) + len(_working)
    return min(max(int(work / _WORTH), running), cpu.available_cpus() - 1, len(units) - 1, _MOST_HELPERS)


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
