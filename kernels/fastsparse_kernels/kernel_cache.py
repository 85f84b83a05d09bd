"""Compiled kernels on disk: one file per kernel variant, signature and CPU.

Numba's own cache keeps an index file per function name. Variants built by one factory share it without a lock, which
was seen to answer one variant with another's code; it also trusts whatever it unpickles. Here a kernel's whole
identity is hashed into its file name, so there is no index, and two processes that write the same file write the same
thing. A checksum in front of the payload turns any damage into a miss.

The source of a kernel is not part of the file name: the caller keys the *directory* by `source_digest`, which
covers every file of this package, so that an edited helper never leaves a stale caller.

Files are unpickled, so the directory must belong to the user alone; `fastsparse/runtime.py` sees to that.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import types

from .numba_internals import Cache, code_identity, dumps, rebuild

_MAGIC = b"fastsparse kernel 1\n"
_warned = threading.Event()


def _digest_of_sources() -> str:
    """Hash the names and contents of all Python files of this package, as they are on disk now."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


try:
    _DIGEST_AT_IMPORT = _digest_of_sources()
except OSError:  # imported from somewhere that is no directory, or sources are unreadable
    _DIGEST_AT_IMPORT = ""


def source_digest() -> str:
    """Digest of the kernel sources this process runs.

    Returns
    -------
    str
        64 hexadecimal digits over all ``.py`` files of ``fastsparse_kernels`` as they were at import, or the empty
        string when they could not be read (then nothing may be cached).
    """
    return _DIGEST_AT_IMPORT


def _sources_unchanged() -> bool:
    """Tell whether the files on disk still are the ones this process imported."""
    try:
        return _digest_of_sources() == _DIGEST_AT_IMPORT
    except OSError:
        return False


def _warn_once(message: str) -> None:
    """Warn at most once per process, whatever is wrong with how many files."""
    if not _warned.is_set():
        _warned.set()
        warnings.warn(f"{message}; kernels are compiled anew instead", RuntimeWarning, stacklevel=2)


def _describe(value: object) -> str:
    """Name what a kernel's closure holds, the same in every process (addresses do not count)."""
    if value is None or isinstance(value, (bool, int, float, str, types.Type)):
        return f"{type(value).__name__}:{value!s}"
    if isinstance(value, (tuple, list)):
        return f"({','.join(map(_describe, value))})"
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', '')}.{name}"


class KernelCache(Cache):
    """Load and save one function's compiled code, in a form that Numba's dispatchers and C callbacks accept.

    Install it before compiling, by `numba_internals.set_cache`.

    Parameters
    ----------
    pyfunc : function
        The Python function to be compiled. Its ``__qualname__`` must be its own: variants of one factory need
        different names.
    directory : str or None
        Where the files are; made (0700) when the first one is saved. None switches caching off.
    write : function of a path and bytes
        Replaces a file in one step, so that any number of processes may start at once.

    Notes
    -----
    Nothing raises: a file that is missing, truncated, damaged or not readable is a miss, a directory that cannot be
    written is no cache. The first such trouble in a process gives one `RuntimeWarning`.
    """

    def __init__(
        self, pyfunc: Callable[..., Any], directory: str | os.PathLike[str] | None, write: Callable[[str, bytes], None]
    ) -> None:
        self._pyfunc = pyfunc
        self._write = write
        self._directory = None if directory is None else os.fspath(directory)
        self._enabled = self._directory is not None

    @property
    def cache_path(self) -> str | None:
        return self._directory

    def enable(self) -> None:
        self._enabled = self._directory is not None

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        """Forget nothing: files of other processes are never removed."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compile result for `sig`, or None when it is not in the cache."""
        if not self._enabled:
            return None
        path = self._path(sig, target_context.codegen())
        try:
            with open(path, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            _warn_once(f"the kernel cache file {path} cannot be read ({error.strerror})")
            return None
        head = len(_MAGIC) + hashlib.sha256().digest_size
        payload = content[head:]
        if content[:head] != _MAGIC + hashlib.sha256(payload).digest():
            _warn_once(f"the kernel cache file {path} is damaged")
            return None
        try:
            return rebuild(target_context, pickle.loads(payload))
        except Exception as error:
            _warn_once(f"the kernel cache file {path} cannot be loaded ({type(error).__name__}: {error})")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the compile result `data` for `sig`."""
        if not self._enabled:
            return
        if data.lifted or data.library.has_dynamic_globals:
            name = self._pyfunc.__qualname__
            warnings.warn(f"kernel {name} cannot be cached: it holds addresses of this process", stacklevel=2)
            return
        if not _sources_unchanged():
            return
        path = self._path(sig, data.codegen)
        try:
            payload = dumps(data._reduce())
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            self._write(path, _MAGIC + hashlib.sha256(payload).digest() + payload)
        except Exception as error:
            _warn_once(f"the kernel cache file {path} cannot be written ({type(error).__name__}: {error})")

    def _path(self, sig: Any, codegen: Any) -> str:
        """File of one variant: readable name, then a hash of everything the machine code depends on."""
        cells = self._pyfunc.__closure__ or ()
        identity = (
            self._pyfunc.__module__,
            self._pyfunc.__qualname__,
            self._pyfunc.__code__.co_code.hex(),
            [_describe(cell.cell_contents) for cell in cells],
            *code_identity(sig, codegen),
        )
        digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
        name = re.sub(r"[^A-Za-z0-9_]+", "-", self._pyfunc.__qualname__)[-80:].strip("-")
        return os.path.join(self._directory or "", f"{name}.{digest}.kernel")
