"""Memory kept between calls, and addresses of arrays for kernels.

Scratch buffers and memory of results are kept per Python thread, and bounded.

The C library returns large blocks to the system at once, and a new block costs a page fault per 4 KB written: half of
the time of a training step. Therefore memory of large results is reused when nobody holds them any more.

Kernels get bare addresses, so every array that a user can reach is checked once, where it enters: by
`fastsparse.arguments`, or by `read_address` and `write_address` here (contract I5). `address` is for our own arrays.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse_kernels.compiler import aligned_empty

KEEP_BYTES = 64 * 2**20  # larger buffers are returned to the system after their call
POOLED_BYTES = 2**17  # smaller arrays come from the C library's heap, without page faults
POOL_BYTES = 64 * 2**20  # bound of memory kept for results, idle and in use


class _Own(threading.local):
    """Buffers of one thread: scratch by purpose, and memory of results."""

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


@contextlib.contextmanager
def other_buffers() -> Iterator[None]:
    """Within the block, this thread takes other buffers: a call that is interrupted for it keeps what is in its own."""
    held, _own.buffers = _own.buffers, {}
    try:
        yield
    finally:
        _own.buffers = held


def array(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """A new C-contiguous array with unspecified contents, aligned to 64 bytes when it is large.

    Memory of a large array is reused by this thread when no array shares it any more.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if not (_COUNTED and POOLED_BYTES <= size <= POOL_BYTES):
        return np.empty(shape, kind)
    owners = _own.owners
    fitting = [i for i in range(len(owners)) if size <= len(owners[i]) - 64 <= 2 * size and _idle(owners, i)]
    if fitting:
        owner = owners.pop(min(fitting, key=lambda i: len(owners[i])))
        owners.append(owner)  # most recently used last
    else:
        owner = np.empty(size + 64, np.uint8)
        owners.append(owner)
        _shrink(owners)
    start = -address(owner) % 64
    return owner[start : start + size].view(kind).reshape(shape)


def take_numbers(purpose: str, length: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """`take` of so many numbers."""
    return take(purpose, length * dtype.itemsize)[: length * dtype.itemsize].view(dtype)


def _shrink(owners: list[NDArray[np.uint8]]) -> None:
    """Release memory until the bound holds, idle memory first; the last block always stays."""
    excess = sum(map(len, owners)) - POOL_BYTES
    for idle_only in (True, False):
        for i in range(len(owners) - 2, -1, -1):
            if excess > 0 and (not idle_only or _idle(owners, i)):
                excess -= len(owners.pop(i))


def _references(owners: list[NDArray[np.uint8]], i: int) -> int:
    return sys.getrefcount(owners[i])


# Without the GIL, reference counts are updated late by other threads.
_COUNTED: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
# References to a block that only the list holds; every array or view in the block adds one.
_UNUSED = _references([np.empty(1, np.uint8)], 0)


def _idle(owners: list[NDArray[np.uint8]], i: int) -> bool:
    return _references(owners, i) == _UNUSED


_word_at = ctypes.c_size_t.from_address
_HEAD = object.__basicsize__


def address(buffer: NDArray[Any]) -> int:
    """Address of the first element, eight times faster than `ctypes.data`.

    It is the first field of an array in NumPy's binary interface, for which all extensions are compiled.
    """
    return _word_at(id(buffer) + _HEAD).value


if address(_probe := np.empty(3)[1:]) != _probe.ctypes.data:
    raise ImportError(f"NumPy {np.__version__} keeps the address of an array's elements in an unknown place")


def optional_address(buffer: NDArray[Any] | None) -> int:
    """The `address` of an operand that may be missing; 0 for none."""
    return 0 if buffer is None else _word_at(id(buffer) + _HEAD).value


def spans(arrays: Iterable[NDArray[Any]]) -> list[tuple[int, int]]:
    """Addresses of the first byte of each contiguous array and of the one behind its last."""
    return [((start := _word_at(id(array) + _HEAD).value), start + array.nbytes) for array in arrays]


def read_address(array: NDArray[Any], dtype: np.dtype[Any], size: int, name: str) -> int:
    """Address of an array that a kernel reads: `size` numbers of `dtype`, contiguous and aligned.

    Raises
    ------
    TypeError, ValueError
        When it is another array; the message calls it `name`.
    """
    if isinstance(array, np.ndarray) and array.dtype == dtype and array.size == size:
        flags = array.flags
        if flags.c_contiguous and flags.aligned:
            return _word_at(id(array) + _HEAD).value
        raise ValueError(f"{name} is unaligned or not C-contiguous, expected an aligned C-contiguous array")
    raise _misfit(array, dtype, size, name)


def write_address(array: NDArray[Any], dtype: np.dtype[Any], size: int, name: str) -> int:
    """Address of an array that a kernel writes to; as `read_address`, and writable.

    A C-contiguous array does not overlap itself.
    """
    if isinstance(array, np.ndarray) and array.dtype == dtype and array.size == size:
        return check_writable(array, name)
    raise _misfit(array, dtype, size, name)


def check_writable(array: NDArray[Any], name: str) -> int:
    """As `write_address`, for an array whose dtype and size are known to be right."""
    if array.flags.carray:
        return _word_at(id(array) + _HEAD).value
    raise ValueError(f"{name} is read-only, unaligned or not C-contiguous, expected a writable C-contiguous array")


def _misfit(array: Any, dtype: np.dtype[Any], size: int, name: str) -> Exception:
    if not isinstance(array, np.ndarray):
        return TypeError(f"{name} is {type(array).__name__}, expected a NumPy array")
    if array.dtype != dtype:
        return TypeError(f"{name} has dtype {array.dtype}, expected {dtype}")
    return ValueError(f"{name} has {array.size} elements (shape {array.shape}), expected {size}")


_EXACT_WORK = 10_000  # bound of the work of an exact comparison of two layouts


_bounds_overlap = np.may_share_memory


def share_memory(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays share a byte; True as well where an exact answer would take too long."""
    if not _bounds_overlap(a, b):
        return False
    try:
        return bool(np.shares_memory(a, b, max_work=_EXACT_WORK))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def readable(array: NDArray[Any], dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    """The array itself when it is contiguous, aligned and of `dtype` (by default its own), a copy otherwise."""
    array = np.ascontiguousarray(array, dtype)
    return array if array.flags.aligned else array.copy()


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], *inputs: Any) -> NDArray[Any]:
    """`out`, when the result can be written into it; a new array when it is None."""
    if out is None:
        return array(shape, dtype)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is {type(out).__name__}, expected a NumPy array")
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"out has shape {out.shape} and dtype {out.dtype}, expected {shape} and {dtype}")
    if not out.flags.carray:
        check_writable(out, "out")
    for given in inputs:
        if isinstance(given, np.ndarray) and _bounds_overlap(out, given) and share_memory(out, given):
            raise ValueError("out shares memory with an input, expected memory of its own")
    return out


def in_place_out(out: Any, x: NDArray[Any], *inputs: Any) -> NDArray[Any]:
    """`out` of an elementwise function, which may be x itself; a new array when it is None.

    Raises
    ------
    TypeError, ValueError
        When the result cannot be written into it.
    """
    y = check_out(out, x.shape, x.dtype, *inputs)
    if out is not None and share_memory(y, x) and address(y) != address(x):
        raise ValueError("out shares memory with a part of x, expected x itself or memory of its own")
    return y
