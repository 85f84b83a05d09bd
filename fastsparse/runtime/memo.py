"""A cache on an object, bounded by bytes: plans on patterns, packed values on matrices."""

from __future__ import annotations

import dataclasses
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np

from fastsparse.runtime.fork import fork_safe_lock

T = TypeVar("T")

LEAST_BYTES = 64 * 2**20  # least bound of a store, for small owners
MOST_ENTRIES = 256  # bound for small entries, such as launches

# One lock serves all stores: it is held for a dictionary access, never while something is built.
_lock = fork_safe_lock()


class Memoized:
    """Base of objects that keep what is built for them: a least-recently-used store, safe over threads and fork().

    The store is bounded by the bytes of its arrays: the least recently used entry is removed first, and the most recent
    one always stays.
    """

    __slots__ = ("_bytes", "_entries", "_latest", "_limit")

    def _start(self, limit_bytes: int) -> None:
        """Begin with an empty store. limit_bytes : bound of the bytes of all arrays in its entries."""
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._latest: tuple[Hashable, Any] | None = None  # read without the lock: one tuple, replaced as a whole
        self._limit = max(LEAST_BYTES, limit_bytes)
        self._bytes = 0

    def cached(self, key: Hashable, build: Callable[..., T], *arguments: Any) -> T:
        """Return the entry of `key`, made by `build(*arguments)` when there is none.

        `build` runs outside of the lock. Threads that miss the same key at once may each build an entry; all of them
        get the one that was stored first. When `build` raises, nothing is stored.
        """
        latest = self._latest
        if latest is not None and latest[0] == key:  # already last in the order
            asked_again: T = latest[1]
            return asked_again
        with _lock:
            if key in self._entries:
                return self._moved_to_end(key)
        built = build(*arguments)
        size = array_bytes(built)
        with _lock:
            if key not in self._entries:
                self._entries[key] = built, size
                self._bytes += size
            stored: T = self._moved_to_end(key)
            while len(self._entries) > 1 and (self._bytes > self._limit or len(self._entries) > MOST_ENTRIES):
                _, (_, freed) = self._entries.popitem(last=False)
                self._bytes -= freed
        return stored

    def _moved_to_end(self, key: Hashable) -> Any:
        """The entry of `key`, made the most recent one. Call with the lock held."""
        self._entries.move_to_end(key)
        self._latest = key, self._entries[key][0]
        return self._latest[1]


def array_bytes(value: Any) -> int:
    """Bytes of all arrays in a value (dataclasses, tuples, lists, dictionaries), each array counted once."""
    seen: set[int] = set()

    def count(item: Any) -> int:
        if id(item) in seen:
            return 0
        seen.add(id(item))
        if isinstance(item, np.ndarray):
            return count(item.base) if isinstance(item.base, np.ndarray) else item.nbytes
        if isinstance(item, array):
            return item.itemsize * len(item)
        if isinstance(item, tuple | list):
            return sum(map(count, item))
        if isinstance(item, dict):
            return sum(map(count, item.values()))
        if dataclasses.is_dataclass(item):
            return sum(count(getattr(item, field.name)) for field in dataclasses.fields(item))
        held = getattr(item, "keep", None)  # launches count the objects they keep alive
        return 0 if held is None else count(held)

    return count(value)
