"""Scratch memory that is kept between calls: per Python thread, one growing buffer per purpose, bounded."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from fastsparse_kernels.build import aligned_empty

KEEP_BYTES = 64 * 2**20  # a larger buffer is given back to the system after its call

_own = threading.local()


def take(purpose: str, size: int) -> NDArray[np.uint8]:
    """A 64-byte-aligned buffer of at least `size` bytes with unspecified contents.

    The next call with the same purpose in the same thread gives the same memory again, unless it is large: hold the
    array, and not its address alone, for as long as the memory is in use.
    """
    buffers: dict[str, NDArray[np.uint8]] = _own.__dict__.setdefault("buffers", {})
    buffer = buffers.get(purpose)
    if buffer is None or len(buffer) < size:
        buffer = aligned_empty((max(size, 64),), np.uint8)
        if len(buffer) <= KEEP_BYTES:
            buffers[purpose] = buffer
    return buffer
