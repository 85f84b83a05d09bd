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
from collections.abc import Mapping
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
    text = {
        "format": f"fastsparse {kind}",
        "format_version": str(FORMAT_VERSION),
        **{name: json.dumps(value, allow_nan=False, sort_keys=True) for name, value in metadata.items()},
    }
    text["digest"] = _digest(arrays, text)
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, text)
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
            text = dict(file.metadata() or {})
            if text.get("format") != f"fastsparse {kind}":
                raise ValueError(f"its format is {text.get('format')!r}, expected 'fastsparse {kind}'")
            if text.get("format_version") != str(FORMAT_VERSION):
                raise ValueError(f"its format version is {text.get('format_version')!r}, expected '{FORMAT_VERSION}'")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        expected = text.pop("digest", None)
        if expected != _digest(arrays, text):
            raise ValueError("its digest does not fit its contents")
        ours = ("format", "format_version")
        return arrays, {name: json.loads(value) for name, value in text.items() if name not in ours}


@contextlib.contextmanager
def damage(path: PathLike) -> Any:
    """Turn whatever goes wrong inside into a FileFormatError that names the file."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, FileFormatError):
        raise
    except Exception as error:
        raise FileFormatError(f"{os.fspath(path)} is damaged or not a fastsparse file: {error}") from error


def _digest(arrays: Arrays, text: Mapping[str, str]) -> str:
    """BLAKE2 of all names, types, shapes, numbers and metadata."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        if array.dtype.name not in _TYPES:
            raise ValueError(f"entry {name!r} has dtype {array.dtype.name}, expected one of {', '.join(_TYPES)}")
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).data)
    digest.update(json.dumps(sorted(text.items())).encode())
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Have the operating system write a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
