"""Models in safetensors files: arrays plus JSON metadata, never code.

A file is replaced in one step, so that a crash leaves the old one whole (`atomic_file`). Its metadata holds a format
version, the architecture (types of layers and their constructor arguments) and a digest of all contents, which reveals
any damage. Declared sizes are compared with the arrays in the file before memory is allocated.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from fastsparse import checks
from fastsparse.nn.module import Module
from fastsparse.nn.spec import from_spec, to_spec
from fastsparse.nn.state import tie, tied_names
from fastsparse.runtime.atomic_file import PathLike, replacing

Arrays = Mapping[str, NDArray[Any]]

FORMAT_VERSION = 1
_TYPES = {"float32": "F32", "float64": "F64", "int32": "I32", "int64": "I64", "uint8": "U8"}
_LONGEST_HEADER = 100_000_000  # bytes; safetensors refuses longer headers


class FileFormatError(ValueError):
    """A file is damaged, hostile, or not what it was opened as."""


class Folder:
    """Where other files of a model, such as external data and shards, may lie.

    In the folder that the model is in by its name, or in the one that its file really is in: links of the model's
    folder may lead there, as those of Hugging Face's cache lead from ``snapshots/`` into ``blobs/``, and nowhere else.
    """

    def __init__(self, model: Path) -> None:
        real = os.path.realpath(model)
        self.folders = list(dict.fromkeys([model.parent, Path(real).parent]))
        self.allowed = {Path(os.path.realpath(folder)) for folder in self.folders}

    def find(self, location: str, what: str) -> Path:
        """The file that a tensor names.

        Raises
        ------
        FileFormatError
            When it is not there, or not where it may be.
        """
        inside = location and not os.path.isabs(location) and ".." not in Path(location).parts
        found = [folder / location for folder in self.folders] if inside and "\0" not in location else []
        real = [Path(os.path.realpath(path)) for path in found if os.path.lexists(path)] or found[:1]
        if not real or not self.allowed.intersection(real[0].parents):
            raise FileFormatError(f"{what} lies in {location!r}, expected a file in the folder of the model")
        if not real[0].is_file():
            raise FileFormatError(f"{what} lies in {location!r}, which is not there")
        return real[0]


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
    if not isinstance(model, Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a fastsparse.nn.Module")
    metadata: dict[str, Any] = {"architecture": to_spec(model)}
    if tied := tied_names(model):
        metadata["tied"] = tied
    write(checks.path(path), "model", model.state_dict(), metadata)


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
    path = checks.path(path)
    arrays, metadata = read(path, "model")
    with damage(path):
        model = from_spec(metadata.get("architecture"), arrays)
        tie(model, metadata.get("tied", {}))
        model.load_state_dict(arrays)
    return model.eval()


def write(path: PathLike, kind: str, arrays: Arrays, metadata: Mapping[str, Any]) -> None:
    """Write arrays and JSON metadata as a safetensors file of kind `kind`, replacing `path` in one step.

    Raises
    ------
    ValueError
        When an array has an unsupported dtype, or the metadata are too large; `path` has not been touched.
    OSError
        When it cannot be written; the old file is whole then.
    """
    described = {"format": f"fastsparse {kind}", "format_version": FORMAT_VERSION, **metadata}
    described["digest"] = _digest(arrays, described)
    text = json.dumps(described)
    # Widest types first, so that every array is aligned; safetensors itself would need memory for a copy of them all.
    ordered = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"fastsparse": text}}
    end = 0
    for name in ordered:
        start, end = end, end + arrays[name].nbytes
        header[name] = {
            "dtype": _TYPES[_name_of(arrays[name].dtype)], "shape": arrays[name].shape, "data_offsets": [start, end],
        }  # fmt: skip
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > _LONGEST_HEADER:
        raise ValueError(
            f"the description of the {kind} takes {len(encoded)} bytes, expected {_LONGEST_HEADER} at most"
        )
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in ordered:
            file.write(_bytes(arrays[name]))


def read(path: PathLike, kind: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what :func:`write` wrote: arrays and metadata.

    Raises
    ------
    FileFormatError
        When the file is damaged or of another kind.
    OSError
        When it cannot be read.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):  # opening a FIFO would wait
        raise FileFormatError(f"{os.fspath(path)} is no regular file")
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
def damage(path: PathLike) -> Iterator[None]:
    """Turn exceptions inside the block into a FileFormatError that names the file.

    OSError, MemoryError and ImportError, which say nothing about the contents, pass through.
    """
    try:
        yield
    except (FileFormatError, OSError, MemoryError, ImportError):
        raise
    except Exception as error:
        raise FileFormatError(f"{os.fspath(path)} is damaged or not a fastsparse file: {error}") from error


def _digest(arrays: Arrays, described: Mapping[str, Any]) -> str:
    """BLAKE2 of all names, types, shapes, numbers and metadata."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        kind = _name_of(array.dtype)
        if kind not in _TYPES:
            raise ValueError(f"entry {name!r} has dtype {kind}, expected one of {', '.join(_TYPES)}")
        digest.update(json.dumps([name, kind, array.shape]).encode())
        digest.update(_bytes(array))
    digest.update(json.dumps(described).encode())
    return digest.hexdigest()


@functools.cache
def _name_of(dtype: np.dtype[Any]) -> str:
    """NumPy's name, which it makes anew each time."""
    return dtype.name


def _bytes(array: NDArray[Any]) -> memoryview:
    """The numbers in row-major, little-endian order; copied only where memory has another order."""
    ordered = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return ordered.reshape(-1).view(np.uint8).data
