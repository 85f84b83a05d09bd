"""NumPy's BLAS on one thread, while an engine runs.

OpenBLAS's threads wait for more work by spinning, for tens of milliseconds, on the cores that the kernels' threads are
about to take: a network that goes back and forth between both ran no faster on two threads than on one. threadpoolctl
(3.8) does not serve here: of several threads that hold a limit, the last to leave may leave BLAS on one thread.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastsparse.runtime.fork import after_fork_in_child

_NAMES = ("scipy_openblas_{}_num_threads64_", "scipy_openblas_{}_num_threads", "openblas_{}_num_threads64_",
          "openblas_{}_num_threads")  # fmt: skip


@functools.cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], object]] | None:
    """Functions that get and set the number of threads; None where NumPy has another BLAS."""
    module = next((m for name, m in sys.modules.items() if name.endswith("._multiarray_umath")), None)
    path = getattr(module, "__file__", None)
    if path is None:
        return None
    library = ctypes.CDLL(path)  # symbols of the libraries that it needs are found through it
    for name in _NAMES:
        get, put = (getattr(library, name.format(what), None) for what in ("get", "set"))
        if get is not None and put is not None:
            get.restype, put.argtypes, put.restype = ctypes.c_int, [ctypes.c_int], None
            return get, put
    return None


class _Users:
    """The calls that hold BLAS to one thread: the first one sets it, the last one sets it back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.before = 1


_users = _Users()


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold BLAS to one thread, for the whole process, as long as any caller is inside."""
    found = _openblas()
    if found is None:
        yield
        return
    get, put = found
    with _users.lock:
        _users.count += 1
        if _users.count == 1:
            _users.before = get()
            put(1)
    try:
        yield
    finally:
        with _users.lock:
            _users.count -= 1
            if _users.count == 0:
                put(_users.before)


@after_fork_in_child
def _release() -> None:
    """The callers inside are the parent's threads: none of them will come back here."""
    global _users
    held, before = _users.count, _users.before
    _users = _Users()
    if held and (found := _openblas()) is not None:
        found[1](before)
