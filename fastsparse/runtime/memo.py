"""A cache on an object, bounded by bytes: plans on patterns, packed values on matrices."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np

from fastsparse.runtime.fork import fork_safe_lock

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing from Python 3.11 on

T = TypeVar("T")

LEAST_BYTES = 64 * 2**20  # least bound of a store, for small owners
MOST_ENTRIES = 256  # bound for small entries, such as launches

# One lock serves all stores: it is held for a dictionary access, never while something is built.
_lock = fork_safe_lock()


class _Once(NamedTuple):
    value: Any


def once(value: T) -> T:
    """Returned by a build function, has `value` used once and not kept: next time something better is built."""
    return cast(T, _Once(value))


class Memoized:
    """Base of objects that keep what is built for them: a least-recently-used store, safe over threads and fork().

    Copying such an object gives the object itself.

    The store is bounded by the bytes of its arrays: the least recently used entry is removed first, and the most recent
    one always stays. It begins with its first entry. An owner whose entries may take more than `LEAST_BYTES` sets
    `_limit` when it is made.
    """

    __slots__ = ("_bytes", "_entries", "_latest", "_limit")
    _limit: int

    def _start(self) -> None:
        """Begin with an empty store. Call with the lock held."""
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._latest: tuple[Hashable, Any] | None = None  # read without the lock: one tuple, replaced as a whole
        self._limit = max(LEAST_BYTES, getattr(self, "_limit", 0))
        self._bytes = 0

    def kept(self, build: Callable[..., T], *key: Hashable) -> T:
        """What `build(self, *key)` returns, made when there is none yet for this function and key: see `cached`."""
        latest, whole = getattr(self, "_latest", None), (build, *key)
        if latest is not None and latest[0] == whole:  # already last in the order
            asked_again: T = latest[1]
            return asked_again
        return self._entry(whole, build, self, *key)

    def cached(self, key: Hashable, build: Callable[..., T], *arguments: Any) -> T:
        """Return the entry of `key`, made by `build(*arguments)` when there is none, and kept unless it is for `once`.

        `build` runs outside of the lock. Threads that miss the same key at once may each build an entry; all of them
        get the one that was stored first. When `build` raises, nothing is stored.
        """
        latest = getattr(self, "_latest", None)
        if latest is not None and latest[0] == key:
            asked_again: T = latest[1]
            return asked_again
        return self._entry(key, build, *arguments)

    def _entry(self, key: Hashable, build: Callable[..., T], *arguments: Any) -> T:
        with _lock:
            if not hasattr(self, "_entries"):
                self._start()
            if key in self._entries:
                return self._moved_to_end(key)
        built = build(*arguments)
        if isinstance(built, _Once):
            return cast(T, built.value)
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

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def held_arrays(value: Any) -> dict[int, int]:
    """Bytes of all arrays that a value holds, in dataclasses, tuples, lists and dictionaries, by the arrays' ids."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    items = [value]
    while items:
        item = items.pop()
        if isinstance(item, _PLAIN) or id(item) in seen:
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
            if type(item).__hash__ is object.__hash__:  # a plan, which many entries share
                found.update(_arrays_of_plan(item))
            else:
                items.extend(_fields(item))
        elif not isinstance(item, Memoized):  # which belongs to somebody else
            items.append(getattr(item, "keep", None))  # launches say what they keep alive
    return found


def _arrays_of_plan(plan: Any) -> dict[int, int]:
    """`held_arrays` of a frozen dataclass, walked once in its life: matrices with new values share their plans."""
    known = _walked.get(plan)
    if known is None:
        known = _walked[plan] = held_arrays(_fields(plan))
    return known


def _fields(item: Any) -> list[Any]:
    return [getattr(item, name) for name in item.__dataclass_fields__]


_walked: weakref.WeakKeyDictionary[Any, dict[int, int]] = weakref.WeakKeyDictionary()
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
