"""What a fork does to locks and to state that only the parent's threads keep up.

A child of fork() has one thread, so a lock that another thread held would stay locked in it for good. Every lock of
fastsparse is made here and held over the fork; state that is wrong in a child is mended by a registered function.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

Repair = Callable[[], None]

_locks: WeakSet[Any] = WeakSet()
_held: list[Any] = []
_repairs: list[Repair] = []
_registry = threading.RLock()


class _ForkSafeLock:
    """A reentrant lock that fork() waits for. Held for short work only, never while a kernel runs or compiles."""

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def acquire(self) -> None:
        self._lock.acquire()

    def release(self) -> None:
        self._lock.release()


def fork_safe_lock() -> _ForkSafeLock:
    """Return a reentrant lock that a child of fork() never inherits locked."""
    lock = _ForkSafeLock()
    with _registry:
        _locks.add(lock)
    return lock


def after_fork_in_child(repair: Repair) -> Repair:
    """Decorator: run `repair` in every child of a fork, in the order of registration."""
    _repairs.append(repair)
    return repair


def _before_fork() -> None:
    _registry.acquire()
    _held[:] = list(_locks)
    for lock in _held:
        lock.acquire()


def _release() -> None:
    for lock in reversed(_held):
        lock.release()
    _held.clear()
    _registry.release()


def _after_fork_in_child() -> None:
    _release()
    for repair in _repairs:
        repair()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_release, after_in_child=_after_fork_in_child)
