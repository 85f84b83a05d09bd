"""Memory that is kept between calls, per Python thread and bounded: scratch buffers, and memory of results.

The C library gives large blocks back to the system at once, and a fresh one costs a page fault for every 4 KB that is
written: in training, half of the time of a step. So the memory of large results is used again when nobody holds them.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse_kernels.compiler import aligned_empty

KEEP_BYTES = 64 * 2**20  # a larger buffer is given back to the system after its call
POOLED_BYTES = 2**17  # smaller arrays come from the C library's heap, without page faults
POOL_BYTES = 64 * 2**20  # most that is kept for results, idle and in use together


class _Own(threading.local):
    """What one thread has: scratch buffers by purpose, and memory of results."""

    def __init__(self) -> None:
        self.buffers: dict[str, NDArray[np.uint8]] = {}
        self.owners: list[NDArray[np.uint8]] = []


_own = _Own()


def take(purpose: str, size: int) -> NDArray[np.uint8]:
    """A 64-byte-aligned buffer of at least `size` bytes with unspecified contents.

    The next call with the same purpose in the same thread gives the same memory again, unless it is large: hold the
    array, and not its address alone, for as long as the memory is in use.
    """
    buffers = _own.buffers
    buffer = buffers.get(purpose)
    if buffer is None or len(buffer) < size:
        buffer = aligned_empty((max(size, 64),), np.uint8)
        if len(buffer) <= KEEP_BYTES:
            buffers[purpose] = buffer
    return buffer


def array(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """A new C-contiguous array with unspecified contents, aligned to 64 bytes when it is large.

    A large one lies in memory that this thread gets back, for another array, when no array shares it any more.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if not (_COUNTED and POOLED_BYTES <= size <= POOL_BYTES):
        return np.empty(shape, kind)
    owners = _own.owners
    fitting = [i for i in range(len(owners)) if size <= len(owners[i]) - 64 <= 2 * size and _idle(owners, i)]
    if fitting:
        owner = owners.pop(min(fitting, key=lambda i: len(owners[i])))
    else:
        owner = np.empty(size + 64, np.uint8)
    owners.append(owner)  # the one used last comes last
    _shrink(owners)
    start = -owner.ctypes.data % 64
    return owner[start : start + size].view(kind).reshape(shape)


def _shrink(owners: list[NDArray[np.uint8]]) -> None:
    """Give up memory until the bound holds: what is idle first; all but the last may go."""
    excess = sum(map(len, owners)) - POOL_BYTES
    for idle_only in (True, False):
        for i in range(len(owners) - 2, -1, -1):
            if excess > 0 and (not idle_only or _idle(owners, i)):
                excess -= len(owners.pop(i))


def _references(owners: list[NDArray[np.uint8]], i: int) -> int:
    return sys.getrefcount(owners[i])


# Without the GIL, reference counts of other threads come late.
_COUNTED: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
# References to memory that only the list holds; every array in it, view or view of a view, is one more.
_UNUSED = _references([np.empty(1, np.uint8)], 0)


def _idle(owners: list[NDArray[np.uint8]], i: int) -> bool:
    return _references(owners, i) == _UNUSED
