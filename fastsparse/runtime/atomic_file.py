"""Atomic replacement of files, used by everything that writes files (contracts F1 and F4).

Contents go to a temporary file beside the target, which is renamed when it is complete and on the disk. A reader of the
target finds the old contents or the new, never a part of them, even when the writer is killed.

A writer holds a lock on its temporary file as long as it lives. The next writer of the same target removes temporary
files without a lock: those of killed writers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, BinaryIO

PathLike = str | os.PathLike[str]

# Windows has no fcntl and needs no lock: open files cannot be removed there.
fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None
_LONGEST_NAME = 200  # bytes of the target's name kept in the temporary file's name; names have at most 255 bytes
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.ENOSYS)


@contextlib.contextmanager
def replacing(path: PathLike, *, durable: bool = True, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a file whose contents take the place of `path` when the block ends, unless by an exception.

    A file that is replaced keeps its mode, and its owner where the process may say so; a new one gets `mode`. Of a
    symbolic link, the target is replaced. A character device or a FIFO that somebody reads is written to as it stands;
    anything else that is no regular file is refused.

    Parameters
    ----------
    path : path
    durable : bool
        Wait until the contents are on the disk, so that they survive a failure of the system, too.
    mode : int
        Of a new file, as far as the umask allows it.

    Yields
    ------
    binary file, open for writing

    Raises
    ------
    OSError
        Naming `path`, when it cannot be written. The old file is whole then.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        found = None
    if found is not None and not stat.S_ISREG(found.st_mode):
        with _naming(path), _open_special(path, found.st_mode) as file:
            yield file
            file.flush()
        return
    target = os.path.realpath(path)
    _remove_abandoned(target)
    with _naming(path), _temporary(target, mode if found is None else 0o600) as (file, temporary):
        yield file
        file.flush()
        if found is not None:
            _keep_owner_and_mode(temporary, found)
        if durable:
            os.fsync(file.fileno())
        if os.name == "nt":
            file.close()  # Windows cannot rename an open file; elsewhere the lock is held until it is renamed
        os.replace(temporary, target)
    if durable and os.name == "posix":
        _sync_folder(os.path.dirname(target))


def write_bytes(path: PathLike, content: bytes, *, durable: bool = True, mode: int = 0o666) -> None:
    """Write a whole file as :func:`replacing` does."""
    with replacing(path, durable=durable, mode=mode) as file:
        file.write(content)


def write_text(path: PathLike, text: str) -> None:
    """Write a whole file of UTF-8 as :func:`replacing` does."""
    write_bytes(path, text.encode())


def check_writable(path: PathLike) -> None:
    """Raise, before long work whose result goes to `path`, the OSError that writing it would raise."""
    folder = os.path.dirname(os.path.realpath(path))
    special = os.path.exists(path) and not os.path.isfile(path)  # a device or a FIFO, which is written to as it stands
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, f"{os.fspath(path)!r} is a directory, expected a file name")
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, f"the directory {folder!r} does not exist")
    if not os.access(path if special else folder, os.W_OK):
        what = os.fspath(path) if special else f"the directory {folder!r}"
        raise PermissionError(errno.EACCES, f"{what} cannot be written to")


# ---------------------------------------------------------------- temporary files


@contextlib.contextmanager
def _temporary(target: str, mode: int) -> Iterator[tuple[BinaryIO, str]]:
    """A new file beside `target`, locked while it is open, and removed unless it was renamed."""
    file, temporary = _created(target, mode)
    try:
        with file:
            yield file, temporary
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _created(target: str, mode: int) -> tuple[BinaryIO, str]:
    while True:
        temporary = f"{_prefix(target)}{secrets.token_hex(6)}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(temporary, flags, mode), "wb")
        # Before it was locked, another writer may have removed the file as an abandoned one.
        if _lock(file.fileno()) is not False and os.fstat(file.fileno()).st_nlink:
            return file, temporary
        file.close()


def _prefix(target: str) -> str:
    """Path of a target's temporary files up to their random part."""
    folder, name = os.path.split(target)
    shortened = os.fsdecode(os.fsencode(name)[:_LONGEST_NAME])
    return os.path.join(folder, f".{shortened}.")


def _lock(descriptor: int) -> bool | None:
    """Lock an open file; False when somebody else has it locked, None where files cannot be locked."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return True


def _remove_abandoned(target: str) -> None:
    """Remove temporary files that killed writers of `target` left; errors are ignored."""
    folder, prefix = os.path.split(_prefix(target))
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and re.fullmatch(r"[0-9a-f]{12}\.tmp", entry.name[len(prefix) :]):
                with contextlib.suppress(OSError):
                    _remove_unheld(entry)


def _remove_unheld(entry: os.DirEntry[str]) -> None:
    if not entry.is_file(follow_symlinks=False):
        return
    if fcntl is None:
        os.unlink(entry.path)
        return
    descriptor = os.open(entry.path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        if _lock(descriptor):
            os.unlink(entry.path)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- details of the file system


def _open_special(path: PathLike, mode: int) -> BinaryIO:
    """Open a device or FIFO for writing, which replaces nothing; refuse other special files."""
    if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        raise OSError(errno.EINVAL, "is no file, character device or FIFO", os.fspath(path))
    waiting = os.O_NONBLOCK if stat.S_ISFIFO(mode) else 0  # a FIFO without a reader raises instead of waiting
    descriptor = os.open(path, os.O_WRONLY | waiting | getattr(os, "O_NOCTTY", 0))
    if waiting:
        os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "wb")


def _keep_owner_and_mode(temporary: str, found: os.stat_result) -> None:
    """Give the temporary file the owner, where that is allowed, and the mode of the file that it replaces."""
    if os.name == "posix":
        own = os.stat(temporary)
        if (own.st_uid, own.st_gid) != (found.st_uid, found.st_gid):
            with contextlib.suppress(OSError):
                os.chown(temporary, found.st_uid, found.st_gid)
    os.chmod(temporary, stat.S_IMODE(found.st_mode))


@contextlib.contextmanager
def _naming(path: PathLike) -> Iterator[None]:
    """Make OSErrors name the target instead of the temporary file, or of no file (full disk)."""
    try:
        yield
    except OSError as error:
        temporary = isinstance(error.filename, str) and error.filename.startswith(_prefix(os.path.realpath(path)))
        if error.errno is None or not (error.filename is None or temporary):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _sync_folder(folder: str) -> None:
    """Write the renaming itself to the disk, where the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
