"""Number of threads of a call: a process-wide default, overridden inside ``with`` blocks.

The number is read once per public call and passed down. Numba's and BLAS's settings are neither read nor changed.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import reprlib
from collections.abc import Iterator
from contextvars import ContextVar

from numba import config

from fastsparse.runtime import cpu

ENVIRONMENT = "FASTSPARSE_NUM_THREADS"
MOST_THREADS = 1024  # larger numbers are capped to this one; files with a larger one are refused

_process_default: int | None = None  # set by set_num_threads
_block: ContextVar[int | None] = ContextVar("fastsparse threads", default=None)


def checked_threads(count: int, name: str = "threads") -> int:
    """`count` as a number of threads from 1 to `MOST_THREADS`.

    Raises
    ------
    TypeError, ValueError
        When it is not a positive integer; the message begins with `name`.
    """
    try:
        number = operator.index(count)
    except TypeError:
        number = None
    if number is None or isinstance(count, bool):
        raise TypeError(f"{name} is {' '.join(reprlib.repr(count).split())}, expected a positive integer")
    if number < 1:
        raise ValueError(f"{name} is {number}, expected a positive integer")
    return min(number, MOST_THREADS)


def set_num_threads(n: int) -> None:
    """Set the number of threads that fastsparse's calls use, in all present and future Python threads.

    Inside a ``with threads(...)`` block the setting ends with the block and affects its thread only.

    Parameters
    ----------
    n : int
        At least 1. No more threads are used than Numba has (``numba.config.NUMBA_NUM_THREADS``, normally the
        number of CPUs); numbers above 1024 count as 1024.

    Raises
    ------
    TypeError, ValueError
        When `n` is not a positive integer.
    """
    global _process_default
    count = checked_threads(n, "n")
    if _block.get() is not None:
        _block.set(count)
    else:
        _process_default = count


def get_num_threads() -> int:
    """Return the largest number of threads that a call at this place would use.

    It is, in this order: that of the innermost ``with threads(n)`` block; that of `set_num_threads`;
    FASTSPARSE_NUM_THREADS; the number of CPUs this process may use by affinity and control group quota.

    Raises
    ------
    ValueError
        When FASTSPARSE_NUM_THREADS is needed and is not a positive integer.
    """
    count = _block.get()
    if count is None:
        count = _process_default
    return _initial_threads() if count is None else count


def usable_threads(threads: int | None = None) -> int:
    """`threads` (default: the current number), limited to those that can run, since every worker has scratch memory."""
    count, most = get_num_threads() if threads is None else threads, config.NUMBA_NUM_THREADS
    return count if count <= most else int(most)


@functools.cache
def _initial_threads() -> int:
    given = os.environ.get(ENVIRONMENT, "").strip()
    if not given:
        return cpu.available_cpus()
    try:
        return checked_threads(int(given), ENVIRONMENT)
    except ValueError:
        raise ValueError(f"{ENVIRONMENT} is {given!r}, expected a positive integer") from None


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Use `n` threads inside a ``with`` block.

    The block holds for the code inside it: for its Python thread or asyncio task, as `contextvars` does. Other
    threads use what `set_num_threads` or the environment says.

    Parameters
    ----------
    n : int
        At least 1, as for `set_num_threads`.

    Examples
    --------
    >>> import fastsparse as fs
    >>> with fs.threads(1):
    ...     fs.get_num_threads()
    1
    """
    token = _block.set(checked_threads(n, "n"))
    try:
        yield
    finally:
        _block.reset(token)
