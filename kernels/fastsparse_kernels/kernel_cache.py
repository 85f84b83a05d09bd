"""Compiled kernels on disk: one file per kernel variant, signature and level of CPUs.

Numba's own cache keeps an index file per function name. Variants built by one factory share it without a lock, which
was seen to answer one variant with another's code; it also trusts whatever it unpickles. Here a kernel's whole
identity is hashed into its file name, so there is no index, and two processes that write the same file write the same
thing. A checksum in front of the payload turns any damage into a miss.

The source of a kernel is not part of the file name: the caller keys the *directory* by `source_digest`, which
covers every file of this package but the oracle, so that an edited helper never leaves a stale caller.

Files are unpickled, so nobody but a trusted owner may be able to write them; `fastsparse/runtime/kernel_cache.py`
chooses the directories.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import re
import stat
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from numba import types

from .codegen import target_identity
from .numba_internals import Cache, code_identity, dumps, rebuild

PACKAGE = Path(__file__).parent / "prebuilt"  # in wheels; a directory for each digest
_MAGIC = b"fastsparse kernel 1\n"
_warned = threading.Event()


def _digest_of_sources() -> str:
    """Hash the names and contents of all Python files of this package but the oracle, as they are on disk now."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(set(root.rglob("*.py")) - {root / "reference.py"}):  # which no kernel may import
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
        64 hexadecimal digits over all ``.py`` files of ``fastsparse_kernels``, without its oracle, as they were at
        import, or the empty string when they could not be read (then nothing may be cached).
    """
    return _DIGEST_AT_IMPORT


def cache_digest() -> str:
    """Digest, 20 hexadecimal digits, of what compiled kernels depend on except the level: sources, versions.

    Empty when the sources could not be read.
    """
    import llvmlite
    import numba

    versions = (numba.__version__, llvmlite.__version__, sys.implementation.cache_tag, sys.version_info[:2])
    sources = source_digest()
    return hashlib.sha256(repr((sources, versions)).encode()).hexdigest()[:20] if sources else ""


def _sources_unchanged() -> bool:
    """Tell whether the files on disk still are the ones this process imported."""
    try:
        return _digest_of_sources() == _DIGEST_AT_IMPORT
    except OSError:
        return False


_ANEW = "; kernels are compiled anew instead"


def _warn_once(message: str) -> None:
    """Warn at most once per process, whatever is wrong with how many files."""
    if not _warned.is_set():
        _warned.set()
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def _describe(value: object) -> str:
    """Name what a kernel's closure holds, the same in every process (addresses do not count)."""
    if value is None or isinstance(value, (bool, int, float, str, types.Type)):
        return f"{type(value).__name__}:{value!s}"
    if isinstance(value, (tuple, list)):
        return f"({','.join(map(_describe, value))})"
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', '')}.{name}"


class Directories(NamedTuple):
    """Where compiled kernels are.

    Attributes
    ----------
    private : directories in which nobody but a trusted owner can write; their files are checked, too
    write : the one of them that new kernels go to; None for none
    package : directory inside this package, trusted as its sources are; None for none
    unwritable : why nothing can be written, to be said when something is compiled
    """

    private: tuple[str, ...] = ()
    write: str | None = None
    package: str | None = None
    unwritable: str = ""


class KernelCache(Cache):
    """Load and save one function's compiled code, in a form that Numba's dispatchers and C callbacks accept.

    Install it before compiling, by `numba_internals.set_cache`.

    Parameters
    ----------
    pyfunc : function
        The Python function to be compiled. Its ``__qualname__`` must be its own: variants of one factory need
        different names.
    signature : Numba signature
        The only one that is compiled.
    directories : Directories
    write : function of a path and bytes
        Replaces a file in one step, so that any number of processes may start at once.

    Notes
    -----
    Nothing raises: a file that is missing, truncated, damaged or not readable is a miss, a directory that cannot be
    written is no cache. The first such trouble in a process gives one `RuntimeWarning`.
    """

    def __init__(
        self,
        pyfunc: Callable[..., Any],
        signature: Any,
        directories: Directories,
        write: Callable[[str, bytes], None],
    ) -> None:
        self._pyfunc, self._signature, self._write = pyfunc, signature, write
        self._directories = directories

    @property
    def cache_path(self) -> str | None:
        return self._directories.write

    def enable(self) -> None:
        """Nothing to do: it is enabled from the beginning."""

    def disable(self) -> None:
        self._directories = Directories()

    def flush(self) -> None:
        """Forget nothing: files of other processes are never removed."""

    def has_file(self) -> bool:
        """Whether there is a file, which may yet turn out to be damaged."""
        private, _, package, _ = self._directories
        return any(os.path.exists(self._path(directory)) for directory in (*private, package) if directory)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compile result for `sig`, or None when it is not in the cache."""
        private, _, package, _ = self._directories
        for directory in (*private, package):
            found = directory and self._load(self._path(directory), target_context, checked=directory != package)
            if found:
                return found
        return None

    def _load(self, path: str, target_context: Any, checked: bool) -> Any:
        try:
            with open(path, "rb", opener=_open_no_link if checked else None) as file:
                refusal = _refusal(os.fstat(file.fileno()), os.path.dirname(path)) if checked else ""
                content = b"" if refusal else file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            _warn_once(f"the kernel cache file {path} cannot be read ({error.strerror}){_ANEW}")
            return None
        if refusal:
            _warn_once(f"the kernel cache file {path} {refusal}{_ANEW}")
            return None
        head = len(_MAGIC) + hashlib.sha256().digest_size
        payload = content[head:]
        if content[:head] != _MAGIC + hashlib.sha256(payload).digest():
            _warn_once(f"the kernel cache file {path} is damaged{_ANEW}")
            return None
        try:
            return rebuild(target_context, pickle.loads(payload))
        except Exception as error:
            _warn_once(f"the kernel cache file {path} cannot be loaded ({type(error).__name__}: {error}){_ANEW}")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the compile result `data` for `sig`."""
        if self._directories.write is None:
            if self._directories.unwritable:
                _warn_once(self._directories.unwritable)
            return
        if data.lifted or data.library.has_dynamic_globals:
            name = self._pyfunc.__qualname__
            warnings.warn(f"kernel {name} cannot be cached: it holds addresses of this process", stacklevel=2)
            return
        if not _sources_unchanged():
            return
        path = self._path(self._directories.write)
        try:
            payload = dumps(data._reduce())
            self._write(path, _MAGIC + hashlib.sha256(payload).digest() + payload)
        except Exception as error:
            _warn_once(f"the kernel cache file {path} cannot be written ({type(error).__name__}: {error}){_ANEW}")

    def _path(self, directory: str) -> str:
        return os.path.join(directory, self._name)

    @functools.cached_property
    def _name(self) -> str:
        """File of one variant: readable name, then a hash of everything the machine code depends on."""
        cells = self._pyfunc.__closure__ or ()
        identity = (
            self._pyfunc.__module__,
            self._pyfunc.__qualname__,
            self._pyfunc.__code__.co_code.hex(),
            [_describe(cell.cell_contents) for cell in cells],
            *code_identity(self._signature),
            *target_identity(),
        )
        digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
        name = re.sub(r"[^A-Za-z0-9_]+", "-", self._pyfunc.__qualname__)[-80:].strip("-")
        return f"{name}.{digest}.kernel"


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))


def _refusal(found: os.stat_result, directory: str) -> str:
    """Why a file of a private directory is not to be trusted, or nothing."""
    if os.name != "posix":
        return ""
    if found.st_uid not in (0, os.geteuid(), os.stat(directory).st_uid):
        return f"belongs to user {found.st_uid}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""
