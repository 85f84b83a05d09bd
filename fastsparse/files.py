"""Models in safetensors files: arrays plus JSON metadata, never code.

A file is written under a temporary name and renamed, so that a crash leaves the old file whole. Its metadata holds a
format version, the architecture (types of layers and their constructor arguments) and a digest of everything, so that
damage is found wherever it is. What a file declares is compared with the arrays it really holds before memory is
taken for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from fastsparse.nn.module import Module
from fastsparse.nn.spec import from_spec, to_spec

Arrays = Mapping[str, NDArray[Any]]
PathLike = str | os.PathLike[str]

FORMAT_VERSION = 1
_TYPES = ("float32", "float64", "int32", "int64", "uint8")


class FileFormatError(ValueError):
    """A file is damaged, hostile, or not what it was opened as."""


def save(model: Module, path: PathLike) -> None:
    """Save a model, architecture included, as safetensors.

    Parameters
    ----------
    model : fs.nn.Module
        Made of layers of ``fastsparse.nn``.
    path : path
        Replaced in one step when it exists.

    Raises
    ------
    TypeError
        When the model holds other layers; `path` has not been touched then.
    """
    metadata = {"architecture": to_spec(model)}
    write(path, "model", model.state_dict(), metadata)


def load(path: PathLike) -> Module:
    """Load a model that :func:`save` wrote; it comes in evaluation mode.

    Raises
    ------
    FileFormatError
        When the file is damaged or holds no model.
    OSError
        When it cannot be read.

    Examples
    --------
    >>> import os, tempfile
    >>> import fastsparse as fs
    >>> model = fs.nn.Sequential(fs.nn.SparseLinear(8, 4, rng=0), fs.nn.ReLU())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fs.save(model, os.path.join(folder, "model.safetensors"))
    ...     again = fs.load(os.path.join(folder, "model.safetensors"))
    >>> (again[0].weight.data == model[0].weight.data).all()
    np.True_
    """
    arrays, metadata = read(path, "model")
    with damage(path):
        model = from_spec(metadata.get("architecture"), arrays)
        model.load_state_dict(arrays)
    return model.eval()


def write(path: PathLike, kind: str, arrays: Arrays, metadata: Mapping[str, Any]) -> None:
    """Write arrays and JSON metadata as a safetensors file of a kind, atomically."""
    described = {"format": f"fastsparse {kind}", "format_version": FORMAT_VERSION, **metadata}
    described["digest"] = _digest(arrays, described)
    text = {"fastsparse": json.dumps(described)}  # one entry: safetensors does not keep their order
    with replacing(path) as temporary:
        mode = stat.S_IMODE(temporary.stat().st_mode)  # what the umask allows; save_file is stricter
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, text)
        os.chmod(temporary, mode)


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """Name of a new, empty file that takes the place of `path` in one step, unless an exception comes."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb"):
            pass
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":
        _sync(target.parent)


def read(path: PathLike, kind: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what :func:`write` wrote: arrays and metadata.

    Raises
    ------
    FileFormatError
        When anything in the file is not as it was written, or it is of another kind.
    OSError
        When it cannot be read.
    """
    with open(path, "rb"):  # a missing or unreadable file is an OSError, not a damaged file
        pass
    with damage(path):
        with safe_open(os.fspath(path), framework="numpy") as file:
            described = _described(file.metadata(), kind)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        expected = described.pop("digest", None)
        if expected != _digest(arrays, described):
            raise ValueError("its digest does not fit its contents")
        return arrays, described


def _described(metadata: Mapping[str, str] | None, kind: str) -> dict[str, Any]:
    """Our entry in a file's metadata."""
    if not metadata or set(metadata) != {"fastsparse"}:
        raise ValueError("its metadata is not that of fastsparse")
    described = json.loads(metadata["fastsparse"])
    if not isinstance(described, dict) or described.get("format") != f"fastsparse {kind}":
        found = described.get("format") if isinstance(described, dict) else described
        raise ValueError(f"its format is {found!r}, expected 'fastsparse {kind}'")
    if described.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"its format version is {described.get('format_version')!r}, expected {FORMAT_VERSION}")
    return described


@contextlib.contextmanager
def damage(path: PathLike) -> Any:
    """Turn whatever goes wrong inside into a FileFormatError that names the file."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, FileFormatError):
        raise
    except Exception as error:
        raise FileFormatError(f"{os.fspath(path)} is damaged or not a fastsparse file: {error}") from error


def _digest(arrays: Arrays, described: Mapping[str, Any]) -> str:
    """BLAKE2 of all names, types, shapes, numbers and metadata."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        if array.dtype.name not in _TYPES:
            raise ValueError(f"entry {name!r} has dtype {array.dtype.name}, expected one of {', '.join(_TYPES)}")
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).data)
    digest.update(json.dumps(described).encode())
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Have the operating system write a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
