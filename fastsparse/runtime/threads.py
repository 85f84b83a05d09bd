"""How many threads a call may use: a process-wide default, and a number that holds inside a ``with`` block.

The number is read once per public call and passed down from there; nothing below asks for it again. Numba's and BLAS's
settings are never read for it nor changed by it.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
from collections.abc import Iterator
from contextvars import ContextVar

from fastsparse.runtime import cpu

ENVIRONMENT = "FASTSPARSE_NUM_THREADS"
MOST_THREADS = 1024  # a larger number is taken for this one; files that name a larger one are refused

_process_default: int | None = None  # set_num_threads, once called
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
        raise TypeError(f"{name} is {count!r}, expected a positive integer") from None
    if number < 1:
        raise ValueError(f"{name} is {number}, expected a positive integer")
    return min(number, MOST_THREADS)


def set_num_threads(n: int) -> None:
    """Set the number of threads that fastsparse's calls use, in every Python thread, those to come included.

    Inside a ``with threads(...)`` block the number holds until the end of the block, and for its thread alone.

    Parameters
    ----------
    n : int
        At least 1. More than Numba has threads (``numba.config.NUMBA_NUM_THREADS``, normally the number of CPUs)
        is allowed and does not use more; more than 1024 counts as 1024.

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
    """Return the number of threads that a call made here and now would use at most.

    That of the innermost ``with threads(n)`` block around this code; else what `set_num_threads` said; else
    FASTSPARSE_NUM_THREADS; else the number of CPUs this process may use, with regard to affinity and the quota of its
    control group.

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
    """`threads`, by default the current number, but no more than can run: each worker has its own scratch."""
    from numba import config

    return min(get_num_threads() if threads is None else threads, int(config.NUMBA_NUM_THREADS))


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
