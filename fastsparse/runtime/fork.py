"""Locks and state that survive a fork.

A child of fork() has one thread, so a lock that another thread held would stay locked forever. Every lock of fastsparse
is made here and is acquired during the fork; registered functions reset state that is wrong in a child.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

Repair = Callable[[], None]

_locks: list[Any] = []  # owned by modules, so the list only grows at import
_repairs: list[Repair] = []


def fork_safe_lock() -> Any:
    """Return a reentrant lock, for a module, that a child of fork() never inherits locked.

    For short work only: never hold it while a kernel runs or compiles, nor wait for it while holding another one.
    """
    lock = threading.RLock()
    _locks.append(lock)
    return lock


def after_fork_in_child(repair: Repair) -> Repair:
    """Decorator: run `repair` in every child of a fork, in the order of registration."""
    _repairs.append(repair)
    return repair


def _before_fork() -> None:
    for lock in _locks:
        lock.acquire()


def _release() -> None:
    for lock in reversed(_locks):
        lock.release()


def _after_fork_in_child() -> None:
    _release()
    for repair in _repairs:
        repair()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_release, after_in_child=_after_fork_in_child)
