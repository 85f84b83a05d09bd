"""Where compiled kernels are kept: directories that nobody but a trusted owner can write (contract C3).

Cached kernels are machine code, loaded by unpickling, so whoever can write to a cache runs code as its readers. This
user's own directories are read and written, root's are read: one cache in an image, or on a cluster's file system,
serves everybody. A directory that is a link or can be written by others is refused. There is no fallback to a shared
temporary folder: without a directory, every process compiles its kernels.

A wheel brings kernels inside the package, for the versions of Numba, llvmlite and Python it was built with.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from fastsparse.runtime import atomic_file
from fastsparse_kernels.kernel_cache import PACKAGE, Directories, cache_digest

_DAY = 86_400.0
_KEPT_DAYS = 30.0  # unused caches of other kernel sources are removed after this time,
_KEPT_NEWEST = 8  # or after a day where there are more than this many
_NAME = re.compile(r"[0-9a-f]{20}")


class UnusableDirectory(OSError):
    """A directory is not to be used; the message says why."""


def named_directories(environment: Mapping[str, str] = os.environ) -> list[str]:
    """What FASTSPARSE_CACHE_DIR names; several are separated as in PATH."""
    return [name for name in environment.get("FASTSPARSE_CACHE_DIR", "").split(os.pathsep) if name.strip()]


def base_directories(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Directories that hold the caches of all versions; they may not exist, nor may the home directory of a "~".

    Those of FASTSPARSE_CACHE_DIR, or ``fastsparse`` in the user's cache directory ($XDG_CACHE_HOME, ~/.cache;
    %LOCALAPPDATA% on Windows).
    """
    if given := named_directories(environment):
        return [Path(os.path.expanduser(name)) for name in given]
    if sys.platform == "win32":
        return [Path(environment.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "fastsparse" / "cache"]
    xdg = environment.get("XDG_CACHE_HOME", "")
    return [(Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "fastsparse"]


def kernel_digest() -> str:
    """`cache_digest` of the kernels, whose caches have it as their name.

    Raises
    ------
    UnusableDirectory
        When the kernel sources cannot be read.
    """
    digest = cache_digest()
    if not digest:
        raise UnusableDirectory("the kernel sources cannot be read, so nothing can be told about their age")
    return digest


def open_directory(base: Path, digest: str, named: bool = False) -> tuple[Path, bool]:
    """Directory `base`/`digest`, and whether new kernels can be written to it.

    This user's is made where there is none, and then old ones beside it are removed. Another owner's is only read.

    named : whether a user named `base`: it is made readable for all, and may belong to another user than root if
        nobody but that user, and root, could have put it there

    Raises
    ------
    OSError
        When there is none, or it is not trusted.
    """
    directory, mode = base / digest, 0o755 if named else 0o700
    base.parent.mkdir(parents=True, exist_ok=True)
    _make(base, mode)
    _check(base, named)
    own = sys.platform == "win32" or base.stat().st_uid == os.geteuid()
    if not own or not os.access(base, os.W_OK):
        _check(directory, named)
        return directory, False
    created = _make(directory, mode)
    _check(directory, named)
    if created:
        _remove_old(base, digest)
    else:
        _mark_used(directory)
    return directory, os.access(directory, os.W_OK)


def find_directories(environment: Mapping[str, str] = os.environ) -> Directories:
    """The directories of this process: all that can be read, and the first that can be written."""
    read, write, reasons = [], None, []
    package = None
    try:
        digest = kernel_digest()
        package = str(PACKAGE / digest) if (PACKAGE / digest).is_dir() else None
        named = bool(named_directories(environment))
        for base in base_directories(environment):
            try:
                directory, writable = open_directory(base.expanduser().absolute(), digest, named)
            except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
                reasons.append(_reason(error))
                continue
            read.append(str(directory))
            if writable:
                write = write or str(directory)
            else:
                reasons.append(f"{directory} is read-only")
    except (OSError, RuntimeError) as error:
        reasons.append(_reason(error))
    why = f"compiled kernels are not kept: {'; '.join(reasons)}; set FASTSPARSE_CACHE_DIR to a directory of your own"
    return Directories(tuple(read), write, package, "" if write else why)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UnusableDirectory) else f"{type(error).__name__}: {error}"


def _make(directory: Path, mode: int) -> bool:
    """Make the directory, unless something has its name; True when it is new."""
    try:
        directory.mkdir(mode=mode)
    except FileExistsError:
        return False
    except OSError:
        if not directory.exists():
            raise
        return False  # in a read-only file system, say
    return True


def _check(directory: Path, named: bool) -> None:
    """Raise unless nobody but a trusted owner can write the directory: this user, root, or the owner of a named one."""
    found = directory.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise UnusableDirectory(f"{directory} is a symbolic link")
    if not stat.S_ISDIR(found.st_mode):
        raise UnusableDirectory(f"{directory} is not a directory")
    if sys.platform == "win32":
        return
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnusableDirectory(f"{directory} can be written by others (mode {stat.S_IMODE(found.st_mode):04o})")
    me = os.geteuid()
    if found.st_uid in (0, me) or (named and me != 0 and _only_by(found.st_uid, directory)):
        return
    raise UnusableDirectory(f"{directory} belongs to user {found.st_uid}, not to user {me}")


def _only_by(user: int, directory: Path) -> bool:
    """Whether nobody but the user and root could have put the directory where it is."""
    above = [parent.stat() for parent in directory.parents]
    return all(at.st_uid in (0, user) and not at.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for at in above)


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
def cache_directories() -> Directories:
    """The directories of compiled kernels of this process, found once.

    Below each of `base_directories` there is one directory for each state of the kernel sources and each version of
    Numba, llvmlite and Python. Directories of other states are removed when nothing has used them for 30 days.
    """
    return find_directories()


def write_cached(path: str, content: bytes) -> None:
    """Write a file of the kernel cache, readable by those who can read its directory; its checksum reveals damage by a
    system failure."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    open_to_all = os.stat(directory).st_mode & stat.S_IROTH
    atomic_file.write_bytes(path, content, durable=False, mode=0o644 if open_to_all else 0o600)
