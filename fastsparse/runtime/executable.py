"""Memory that holds machine code: written once, then executable and read-only."""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import sys

import numpy as np
from numpy.typing import NDArray

_RETURN = np.array([0xC3], np.uint8)


class ExecutableMemory:
    """A copy of machine code that can be called at `address` while the object lives.

    Parameters
    ----------
    code : uint8 [bytes]

    Raises
    ------
    OSError
        When the system does not allow it.
    """

    __slots__ = ("_held", "address", "nbytes")

    def __init__(self, code: NDArray[np.uint8]) -> None:
        self.nbytes = len(code)
        # Never writable and executable at once: systems that forbid that allow this.
        pages = mmap.mmap(-1, self.nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)
        pages.write(code.data)
        self._held = ctypes.c_char.from_buffer(pages)  # which keeps the pages
        self.address = ctypes.addressof(self._held)
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes, protect.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
        if protect(self.address, self.nbytes, mmap.PROT_READ | mmap.PROT_EXEC):
            raise OSError(ctypes.get_errno(), "memory cannot be made executable")


@functools.cache
def runs_code() -> bool:
    """Whether this process may run x86-64 code of its own that has the calling convention of System V."""
    if platform.machine().lower() not in ("x86_64", "amd64") or sys.platform == "win32" or sys.maxsize < 2**32:
        return False
    try:
        ExecutableMemory(_RETURN)
    except OSError:
        return False
    return True
