"""Where compiled kernels are kept: a directory that belongs to this user alone (contract C3).

Cached kernels are machine code, loaded by unpickling, so whoever can write to the cache runs code as this user. A
directory that is a link, belongs to somebody else or can be written by others is refused. There is no fallback to a
shared temporary folder: without a private directory, every process compiles its kernels.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import stat
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

from fastsparse.runtime import atomic_file

_DAY = 86_400.0
_KEPT_DAYS = 30.0  # unused caches of other kernel sources are removed after this time,
_KEPT_NEWEST = 8  # or after a day where there are more than this many
_NAME = re.compile(r"[0-9a-f]{20}")


class UnusableDirectory(OSError):
    """There is no private directory; the message says why."""


def base_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Directory that holds the caches of all versions; it may not exist.

    FASTSPARSE_CACHE_DIR, or ``fastsparse`` in the user's cache directory ($XDG_CACHE_HOME, ~/.cache; %LOCALAPPDATA%
    on Windows).
    """
    given = environment.get("FASTSPARSE_CACHE_DIR")
    if given:
        return Path(given).expanduser().absolute()
    if sys.platform == "win32":
        return Path(environment.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "fastsparse" / "cache"
    xdg = environment.get("XDG_CACHE_HOME", "")
    return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "fastsparse"


def kernel_digest() -> str:
    """Digest, 20 hexadecimal digits, of everything that compiled kernels depend on except the CPU.

    Raises
    ------
    UnusableDirectory
        When the kernel sources cannot be read.
    """
    import llvmlite
    import numba

    from fastsparse_kernels.kernel_cache import source_digest

    sources = source_digest()
    if not sources:
        raise UnusableDirectory("the kernel sources cannot be read, so nothing can be told about their age")
    versions = (numba.__version__, llvmlite.__version__, sys.implementation.cache_tag, sys.version_info[:3])
    return hashlib.sha256(repr((sources, versions)).encode()).hexdigest()[:20]


def open_directory(base: Path, digest: str) -> Path:
    """Make or check the private directory `base`/`digest`; when it is new, remove old ones beside it.

    Raises
    ------
    OSError
        When it cannot be made or is not private.
    """
    directory = base / digest
    base.parent.mkdir(parents=True, exist_ok=True)
    _make_private(base)
    if _make_private(directory):
        _remove_old(base, digest)
    else:
        _mark_used(directory)
    return directory


def find_directory(environment: Mapping[str, str] = os.environ) -> Path | None:
    """As `open_directory` for this process; None, with a warning that tells why, when there is none."""
    try:
        return open_directory(base_directory(environment), kernel_digest())
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
        reason = error if isinstance(error, UnusableDirectory) else f"{type(error).__name__}: {error}"
        warnings.warn(
            f"compiled kernels are not kept: {reason}; set FASTSPARSE_CACHE_DIR to a directory of your own",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _make_private(directory: Path) -> bool:
    """Make the directory (0700) or check it; True when it is new."""
    try:
        directory.mkdir(mode=0o700)
        created = True
    except FileExistsError:
        created = False
    found = directory.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise UnusableDirectory(f"{directory} is a symbolic link")
    if not stat.S_ISDIR(found.st_mode):
        raise UnusableDirectory(f"{directory} is not a directory")
    if sys.platform != "win32":
        if found.st_uid != os.geteuid():
            raise UnusableDirectory(f"{directory} belongs to user {found.st_uid}, not to user {os.geteuid()}")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UnusableDirectory(f"{directory} can be written by others (mode {stat.S_IMODE(found.st_mode):04o})")
    return created


def _mark_used(directory: Path) -> None:
    """Record, at most once a day, that the directory is in use."""
    try:
        if time.time() - directory.stat().st_mtime > _DAY:
            os.utime(directory)
    except OSError:
        pass


def _remove_old(base: Path, digest: str) -> None:
    """Remove caches of other kernel sources that have long been unused; errors are ignored."""
    try:
        others = [
            (time.time() - path.stat().st_mtime, path)
            for path in base.iterdir()
            if _NAME.fullmatch(path.name) and path.name != digest and not path.is_symlink()
        ]
    except OSError:
        return
    for rank, (age, path) in enumerate(sorted(others)):
        if age > _KEPT_DAYS * _DAY or (rank >= _KEPT_NEWEST and age > _DAY):
            shutil.rmtree(path, ignore_errors=True)


@functools.cache
def cache_directory() -> str | None:
    """Return the private directory of compiled kernels, made when there is none yet.

    ``fastsparse`` in the user's cache directory, or FASTSPARSE_CACHE_DIR; below that, one directory for each state
    of the kernel sources and each version of Numba, llvmlite and Python. Directories of other states are removed
    when nothing has used them for 30 days.

    Returns
    -------
    str or None
        None, after one warning, when it cannot be made or is not private: a link, somebody else's, or writable by
        others. Kernels are then compiled in every process.
    """
    directory = find_directory()
    return None if directory is None else str(directory)


def write_cached(path: str, content: bytes) -> None:
    """Write a private file of the kernel cache; its checksum reveals damage by a system failure."""
    atomic_file.write_bytes(path, content, durable=False, mode=0o600)
