"""A small store on an object, bounded by bytes, of what costs time to build: plans on patterns, packed values on
matrices."""

from __future__ import annotations

import dataclasses
import functools
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np

from fastsparse.runtime.fork import fork_safe_lock

T = TypeVar("T")

LEAST_BYTES = 64 * 2**20  # what a store may hold at least, whatever its owner's size
MOST_ENTRIES = 256  # small ones, such as launches bound to a layout, are bounded by number

# One lock serves all stores: it is held for a dictionary access, never while something is built.
_lock = fork_safe_lock()


class Memoized:
    """Base of objects that keep what is built for them: a least-recently-used store, safe over threads and fork().

    The store is bounded by the bytes of its arrays: the entry not asked for longest goes first, the one asked for last
    stays whatever its size.
    """

    __slots__ = ("_bytes", "_entries", "_latest", "_limit")

    def _start(self, limit_bytes: int) -> None:
        """Begin with an empty store. limit_bytes : what the entries hold in arrays, at most."""
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._latest: tuple[Hashable, Any] | None = None  # read without the lock: one tuple, replaced as a whole
        self._limit = max(LEAST_BYTES, limit_bytes)
        self._bytes = 0

    def cached(self, key: Hashable, build: Callable[..., T], *arguments: Any) -> T:
        """Return what was built under `key`, by `build(*arguments)` when there is nothing yet.

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
        """The entry of `key`, which is now the one asked for last. To be called with the lock held."""
        self._entries.move_to_end(key)
        self._latest = key, self._entries[key][0]
        return self._latest[1]


def held_arrays(value: Any) -> dict[int, int]:
    """Bytes of all arrays that a value holds, in dataclasses, tuples, lists and dictionaries, by the arrays' ids."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    items = [value]
    while items:
        item = items.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, np.ndarray):
            while isinstance(item.base, np.ndarray):
                item = item.base
            found[id(item)] = item.nbytes
        elif isinstance(item, array):
            found[id(item)] = item.itemsize * len(item)
        elif isinstance(item, tuple | list):
            items.extend(item)
        elif isinstance(item, dict):
            items.extend(item.values())
        elif dataclasses.is_dataclass(item):
            items.extend([getattr(item, name) for name in item.__dataclass_fields__])
        elif not isinstance(item, _PLAIN):
            items.append(getattr(item, "keep", None))  # launches say what they keep alive
    return found


_PLAIN = (int, float, str, type(None))


def array_bytes(value: Any) -> int:
    """Bytes of all arrays that a value holds, each counted once."""
    return sum(held_arrays(value).values())


def bounded_cache(build: Callable[..., T]) -> Callable[..., T]:
    """Decorator as `functools.lru_cache`, bounded by the bytes of arrays, too: emptied when they are too many."""
    held = 0

    @functools.lru_cache(maxsize=MOST_ENTRIES)
    def cached(*arguments: Any, **keywords: Any) -> T:
        nonlocal held
        built = build(*arguments, **keywords)
        size = array_bytes(built)
        with _lock:
            if held + size > LEAST_BYTES:
                cached.cache_clear()
                held = 0
            held += size
        return built

    return functools.update_wrapper(cached, build)
