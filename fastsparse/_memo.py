"""A small bounded store of things that cost time to build: plans on patterns, packed values on matrices."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

# One lock serves all stores: it is held for a dictionary access, never while something is built. Held over fork(),
# so that a child never inherits it locked by a thread that it does not have.
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Memo:
    """Least-recently-used store, safe to use from many threads and over fork().

    Parameters
    ----------
    limit : int
        Number of entries kept; the one not asked for longest goes first.
    """

    __slots__ = ("_entries", "_latest", "_limit")

    def __init__(self, limit: int = 32) -> None:
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()
        self._latest: tuple[Hashable, Any] | None = None  # read without the lock: one tuple, replaced as a whole
        self._limit = limit

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, build: Callable[..., T], *arguments: Any) -> T:
        """Return the entry of `key`, made by `build(*arguments)` when there is none.

        `build` runs outside of the lock. Threads that ask for the same missing key at once may each build it; all of
        them get the one that was stored first. When `build` raises, nothing is stored.
        """
        latest = self._latest
        if latest is not None and latest[0] == key:  # it is last in the order already
            asked_again: T = latest[1]
            return asked_again
        with _lock:
            if key in self._entries:
                return self._moved_to_end(key)
        built = build(*arguments)
        with _lock:
            self._entries.setdefault(key, built)
            stored: T = self._moved_to_end(key)
            while len(self._entries) > self._limit:
                self._entries.popitem(last=False)
        return stored

    def _moved_to_end(self, key: Hashable) -> Any:
        """The entry of `key`, which is now the one asked for last. To be called with the lock held."""
        self._entries.move_to_end(key)
        self._latest = key, self._entries[key]
        return self._latest[1]
