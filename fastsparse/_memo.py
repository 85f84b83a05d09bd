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

    __slots__ = ("_entries", "_limit")

    def __init__(self, limit: int = 32) -> None:
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, build: Callable[[], T]) -> T:
        """Return the entry of `key`, building it when there is none.

        `build` runs outside of the lock. Threads that ask for the same missing key at once may each build it; all of
        them get the one that was stored first. When `build` raises, nothing is stored.
        """
        with _lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                found: T = self._entries[key]
                return found
        built = build()
        with _lock:
            stored: T = self._entries.setdefault(key, built)
            self._entries.move_to_end(key)
            while len(self._entries) > self._limit:
                self._entries.popitem(last=False)
        return stored
