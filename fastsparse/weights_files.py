"""Weights from files of other libraries: safetensors, PyTorch's state_dict, compressed-tensors, Hugging Face's shards.

Files may be damaged or hostile. What they declare is compared with what they hold before memory is taken, pickled
files are read as data (no code of theirs or of PyTorch's runs), and shards lie in the index's own folder alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pickletools
import reprlib
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from fastsparse import checks
from fastsparse.csr import CSR, Pattern, csr, frozen
from fastsparse.files import FileFormatError, Folder
from fastsparse.runtime.atomic_file import PathLike

Array = NDArray[Any]
Weights = dict[str, Array | CSR]

_LONGEST_HEADER = 100_000_000  # bytes of JSON or pickle; what describes tensors is far smaller
_MOST_AXES = 64
_EXPANDED = 2**26  # bytes that a tensor of PyTorch's may take beyond those of its storage
_SHARED = 16  # times the file that all of them may take, which is more where they share storages
_MOST_EMPTY_ROWS = 2**20  # rows without a byte in the file, of a matrix without columns
_SPARSE = 0.5  # share of zeros from which on a matrix comes as a CSR
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_CHECKPOINTS = ("state_dict", "model_state_dict", "model")  # where training scripts keep weights beside other things
# NumPy's names of types; BF16 is read as 16 bits.
_SAFETENSORS = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bf16", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1",
    "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "bf16", "LongStorage": "i8",
    "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip


def load_weights(path: PathLike) -> Weights:
    """Read the weights of a model that another library saved.

    Parameters
    ----------
    path : path
        Of a safetensors file; of a file that ``torch.save`` wrote of a ``state_dict`` (or of a dict with one under
        "state_dict", "model_state_dict" or "model"); of an index of shards (``*.index.json``); or of a folder with
        one of them under the names that Hugging Face gives them. Links are followed as Hugging Face's cache has them.

    Returns
    -------
    dict of str to ndarray or CSR
        float16 and bfloat16 become float32, other types stay. Matrices of floats of which at least half is zero come
        as `CSR`, and so do those that the file keeps sparse: PyTorch's sparse tensors, and bitmasks of
        compressed-tensors (``X.compressed``, ``X.bitmask``, ``X.shape`` give ``X.weight``, as in that library). Masks
        of ``torch.nn.utils.prune`` (``X_orig`` and ``X_mask``) and of parametrizations
        (``parametrizations.X.original`` and ``parametrizations.X.0.mask``) are applied, and give ``X``. What is no
        tensor is left out.

    Raises
    ------
    FileFormatError
        When the file is damaged, or none of these.
    OSError
        When it cannot be read.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np, fastsparse as fs
    >>> from safetensors.numpy import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"weight": np.eye(4, dtype="f"), "bias": np.ones(4)}, os.path.join(folder, "a.safetensors"))
    ...     fs.load_weights(os.path.join(folder, "a.safetensors"))
    {'bias': array([1., 1., 1., 1.]), 'weight': <CSR 4x4, 4 nonzeros, density 0.25, float32>}
    """
    file = _found(Path(checks.path(path)))
    tensors = _read(file, shards=True)
    with _damage(file):
        return {name: _as_kept(array) for name, array in _combined(tensors).items()}


def _found(path: Path) -> Path:
    """The file that a folder stands for."""
    if not path.is_dir():
        return path
    inside = [path / name for name in (*_INDEXES, *_SINGLE) if (path / name).exists()]
    if not inside:
        raise FileFormatError(f"{path} is a folder without {', '.join((*_INDEXES, *_SINGLE))}")
    return inside[0]


def _read(path: Path, shards: bool) -> dict[str, Any]:
    """All tensors of a file, as they stand in it."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait
        raise FileFormatError(f"{path} is no regular file")
    with open(path, "rb") as file, _damage(path):
        start = file.read(9)
        file.seek(0)
        if start[:4] == b"PK\x03\x04":
            return _torch(file)
        if start[8:] == b"{":
            return _safetensors(file)
        if start[:1] == b"{" and shards:
            return _sharded(file, path)
        kind = "PyTorch's format before 1.6, or a pickle" if start[:1] == b"\x80" else "none of them"
        raise FileFormatError(
            f"{path} is {kind}, expected a safetensors file, a state_dict that torch.save wrote, or an index of shards"
        )


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into a FileFormatError that names the file."""
    try:
        yield
    except (FileFormatError, MemoryError):
        raise
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # of the disk, not of contents that point before the file
            raise
        raise FileFormatError(f"{path} is damaged: {error}") from error
    except Exception as error:
        raise FileFormatError(f"{path} is damaged: {error}") from error


def _sharded(file: IO[bytes], path: Path) -> dict[str, Any]:
    """The tensors of all shards of an index."""
    index = json.loads(_bounded(file, os.fstat(file.fileno()).st_size, "the index"))
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError("it has no weight_map of names to files")
    folder, tensors = Folder(path), dict[str, Any]()
    for shard in sorted(set(shards.values())):
        held = _read(folder.find(shard, f"shard {shard!r}"), shards=False)
        for name, where in shards.items():
            if where == shard and name not in held:
                raise ValueError(f"shard {shard!r} does not hold {name!r}")
        tensors.update((name, tensor) for name, tensor in held.items() if shards.get(name, shard) == shard)
    return tensors


def _bounded(file: IO[bytes], size: int, what: str) -> bytes:
    if size > _LONGEST_HEADER:
        raise ValueError(f"{what} takes {size} bytes, expected {_LONGEST_HEADER} at most")
    found = file.read(size)
    if len(found) != size:
        raise ValueError(f"{what} takes {size} bytes, the file holds {len(found)} of them")
    return found


# ---------------------------------------------------------------- arrays


def _bits(dtype: str) -> np.dtype[Any]:
    """The type in which numbers are read."""
    return np.dtype("<u2" if dtype == "bf16" else f"<{dtype}")


def _numbers(stored: Array, dtype: str) -> Array:
    """Numbers of a type that NumPy has."""
    if dtype == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32 if dtype == "f2" else stored.dtype.newbyteorder("="), copy=False)


def _sizes(shape: Any, what: str) -> tuple[int, ...]:
    """A declared shape, whose product cannot be wrong."""
    if isinstance(shape, (list, tuple)) and len(shape) > _MOST_AXES:
        raise ValueError(f"{what} has {len(shape)} axes, expected at most {_MOST_AXES}")
    sizes = tuple(shape) if isinstance(shape, (list, tuple)) else (-1,)
    if any(type(n) is not int or not 0 <= n < 2**62 for n in sizes) or math.prod(sizes) >= 2**62:
        raise ValueError(f"{what} has shape {reprlib.repr(shape)}, expected sizes of at least 0")
    return sizes


def _safetensors(file: IO[bytes]) -> dict[str, Any]:
    size = os.fstat(file.fileno()).st_size
    (length,) = struct.unpack("<Q", file.read(8))
    header = json.loads(_bounded(file, length, "the header"), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    header.pop("__metadata__", None)
    start, tensors, left = 8 + length, dict[str, Any](), size - 8 - length
    for name, entry in header.items():
        what, known = f"tensor {name!r}", _SAFETENSORS.get(entry["dtype"])
        if known is None:
            raise ValueError(f"{what} has dtype {entry['dtype']!r}, expected one of {', '.join(_SAFETENSORS)}")
        shape, (first, last) = _sizes(entry["shape"], what), entry["data_offsets"]
        count, dtype = math.prod(shape), _bits(known)
        whole = type(first) is int and type(last) is int and first >= 0 and start + last <= size
        if not whole or last - first != count * dtype.itemsize:
            raise ValueError(
                f"{what} of shape {shape} lies in bytes {first} to {last}, expected {count * dtype.itemsize} of the "
                f"{size - start} that there are"
            )
        left -= last - first
        if left < 0:
            raise ValueError(f"{what} lies in bytes of others")
        file.seek(start + first)
        tensors[name] = _numbers(_from_bytes(file.read(last - first), dtype), known).reshape(shape)
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _from_bytes(content: bytes, dtype: np.dtype[Any]) -> Array:
    """An array of its own memory; any byte but 0 is True."""
    if dtype == np.bool_:
        return np.frombuffer(content, np.uint8) != 0
    return np.frombuffer(content, dtype).copy()


# ---------------------------------------------------------------- torch.save


@dataclass(frozen=True)
class _Global:
    """The name of a class or function in a pickle; never looked up."""

    name: str


@dataclass(frozen=True)
class _Unknown:
    """An object that a pickle makes, and that is no tensor."""

    kind: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    size: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _SparseTensor:
    layout: str
    parts: tuple[Any, ...]


def _torch(file: IO[bytes]) -> dict[str, Any]:
    """The tensors of a state_dict, from the archive that torch.save makes."""
    whole = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise ValueError("it is an archive without data.pkl, which torch.save writes")
        root = pickles[0].rpartition("/")[0]

        def content(name: str, size: int | None = None) -> bytes:
            info = entries[f"{root}/{name}"]
            if info.compress_type != zipfile.ZIP_STORED or (size is not None and info.file_size != size):
                raise ValueError(f"{name!r} has {info.file_size} bytes, expected {size}, not compressed")
            most = min(whole, _LONGEST_HEADER) if size is None else whole
            if info.file_size > most or info.compress_size != info.file_size:  # what `read` makes room for
                held = f"{info.file_size} bytes, in {info.compress_size}"
                raise ValueError(f"{name!r} has {held}, expected {most} at most, not compressed")
            return archive.read(info)

        order = content("byteorder") if f"{root}/byteorder" in entries else b"little"
        if order != b"little":
            raise ValueError(f"its byte order is {order!r}, expected b'little'")
        found = _state_dict(_unpickled(content("data.pkl")))
        storages: dict[str, tuple[_Storage, Array]] = {}
        left = _EXPANDED + _SHARED * whole

        def array(tensor: Any, name: str) -> Any:
            nonlocal left
            if isinstance(tensor, _SparseTensor):
                return _sparse(tensor, [array(part, name) for part in tensor.parts if isinstance(part, _Tensor)], name)
            storage = tensor.storage
            known = storages.get(storage.key)
            if known is None:
                dtype = _bits(storage.dtype)
                held = _from_bytes(content(f"data/{storage.key}", storage.size * dtype.itemsize), dtype)
                known = storages[storage.key] = storage, held
            if known[0] != storage:
                raise ValueError(f"storage {storage.key!r} has two sizes or types")
            elements = _strided(known[1], tensor, name)
            left -= elements.nbytes
            if left < 0:
                raise ValueError(f"tensors up to {name!r} take far more memory than the storages that they share")
            return _numbers(elements, storage.dtype)

        return {name: array(tensor, name) for name, tensor in found.items()}


def _strided(held: Array, tensor: _Tensor, name: str) -> Array:
    """A tensor's own copy of its elements of a storage."""
    what = f"tensor {name!r}"
    shape, strides = _sizes(tensor.shape, what), _sizes(tensor.strides, what)
    if len(strides) != len(shape) or type(tensor.offset) is not int or tensor.offset < 0:
        raise ValueError(f"{what} has shape {shape}, strides {strides} and offset {reprlib.repr(tensor.offset)}")
    count = math.prod(shape)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, strides)) if count else 0
    if count and last >= held.size:
        raise ValueError(f"{what} reaches to element {last} of a storage of {held.size}")
    if count * held.itemsize > held.nbytes + _EXPANDED:
        raise ValueError(f"{what} of shape {shape} repeats the elements of a storage of {held.size}")
    if not count:
        return np.empty(shape, held.dtype)
    steps = tuple(step * held.itemsize if n > 1 else 0 for n, step in zip(shape, strides))
    return np.lib.stride_tricks.as_strided(held[tensor.offset :], shape, steps, writeable=False).copy()


def _sparse(tensor: _SparseTensor, arrays: list[Array], name: str) -> Any:
    """A sparse matrix of PyTorch's; other sparse tensors are refused."""
    shape = next((_sizes(part, name) for part in tensor.parts if isinstance(part, tuple)), ())
    if len(shape) == 2 and tensor.layout == "torch.sparse_coo" and len(arrays) == 2:
        from scipy import sparse

        indices, values = arrays
        if shape[0] > max(indices.size, _MOST_EMPTY_ROWS):
            raise ValueError(f"tensor {name!r} has shape {shape} and {values.size} values, expected fewer rows")
        if indices.ndim == 2 and len(indices) == 2 and ((indices >= 0) & (indices < np.reshape(shape, (2, 1)))).all():
            return csr(sparse.coo_array((values, (indices[0], indices[1])), shape=shape))
    if len(shape) == 2 and tensor.layout == "torch.sparse_csr" and len(arrays) == 3:
        return CSR(arrays[0], arrays[1], arrays[2], shape)
    raise ValueError(f"tensor {name!r} is sparse ({tensor.layout}, shape {shape}), expected a COO or CSR matrix")


def _state_dict(found: Any) -> dict[str, Any]:
    """The tensors by name, of a state_dict or of a checkpoint with one."""
    if isinstance(found, _Unknown):
        raise ValueError(
            f"it holds an object of {found.kind}, expected a state_dict: torch.save(model.state_dict(), path)"
        )
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, expected a state_dict")
    inner = next((found[name] for name in _CHECKPOINTS if isinstance(found.get(name), dict)), found)
    tensors = {str(name): item for name, item in inner.items() if isinstance(item, (_Tensor, _SparseTensor))}
    if not tensors:
        raise ValueError("it holds no tensors by name, expected a state_dict")
    return tensors


def _unpickled(content: bytes) -> Any:
    """What a pickle describes: dicts, lists, tuples, numbers, text, and tensors without their elements.

    Opcodes are read as data: names of classes stay names, and calls of all but those that rebuild tensors give
    `_Unknown` objects.
    """
    stack: list[Any] = []
    marks: list[int] = []  # where the members of tuples, lists and dicts begin on the stack
    memo: dict[int, Any] = {}
    left = len(content)  # members that calls may repeat: each of them took a byte once

    def members() -> list[Any]:
        at = marks.pop()
        found = stack[at:]
        del stack[at:]
        return found

    def made(function: Any, arguments: Any) -> Any:
        nonlocal left
        first = arguments[0] if isinstance(arguments, tuple) and arguments else None
        left -= len(first) if isinstance(first, list) else 0
        if left < 0:
            raise ValueError("its pickle repeats more than it holds")
        return _made(function, arguments)

    for opcode, found_argument, _ in pickletools.genops(content):
        name, argument = opcode.name, cast(Any, found_argument)
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            break
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}[name]())
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name in ("TUPLE", "LIST", "FROZENSET"):
            stack.append(members() if name == "LIST" else tuple(members()))
        elif name == "DICT":
            found = members()
            stack.append(_filled({}, found))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(_last(stack, count))]
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            found = [stack.pop()] if name == "APPEND" else members()
            if isinstance(stack[-1], list):
                stack[-1].extend(found)
        elif name in ("SETITEM", "SETITEMS"):
            found = members() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            if isinstance(stack[-1], dict):
                _filled(stack[-1], found)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif name in ("POP", "POP_MARK"):
            members() if name == "POP_MARK" or (marks and marks[-1] == len(stack)) else stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "GLOBAL":
            stack.append(_Global(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [_Global(".".join(_last(stack, 2)))]
        elif name in ("REDUCE", "NEWOBJ"):
            stack[-2:] = [made(*_last(stack, 2))]
        elif name == "NEWOBJ_EX":
            stack[-3:] = [made(*_last(stack, 3)[:2])]
        elif name == "BUILD":  # attributes of what stands below
            stack.pop()
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif argument is not None and opcode.stack_after and isinstance(argument, (int, float, str, bytes, bytearray)):
            stack.append(argument)
        else:
            raise ValueError(f"its pickle has the opcode {name}, which no state_dict needs")
    (result,) = stack
    return result


def _last(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise ValueError("its pickle takes more from the stack than is there")
    return stack[-count:]


def _filled(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    """The dict with keys and values that stand in turn; keys that are no names or numbers are left out."""
    pairs = zip(items[::2], items[1::2])
    target.update((key, value) for key, value in pairs if isinstance(key, (str, int, float, bytes)))
    return target


def _made(function: Any, arguments: Any) -> Any:
    """What a call in a pickle stands for."""
    name = function.name if isinstance(function, _Global) else type(function).__name__
    if name == "collections.OrderedDict":
        pairs = arguments[0] if arguments else []
        if not isinstance(pairs, list) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
            raise ValueError("an OrderedDict is made of something else than pairs")
        return _filled({}, [part for pair in pairs for part in pair])
    if name == "torch._utils._rebuild_tensor_v2":
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor has no storage")
        return _Tensor(storage, offset, shape, strides)
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return arguments[0]
    if name == "torch._utils._rebuild_sparse_tensor":
        layout, parts = arguments
        if not isinstance(layout, str) or not isinstance(parts, tuple):
            raise ValueError("a sparse tensor has no layout and parts")
        return _SparseTensor(layout, parts)
    if name in ("torch.Size", "torch.serialization._get_layout"):
        return arguments[0]
    return _Unknown(name)


def _storage(identity: Any) -> Any:
    """The storage that a persistent id of torch.save names."""
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        raise ValueError("its pickle refers to something else than a storage")
    kind, key, size = identity[1], identity[2], identity[4]
    name = kind.name.rpartition(".")[2] if isinstance(kind, _Global) else ""
    if name not in _STORAGES or not isinstance(key, str) or type(size) is not int or not 0 <= size < 2**60:
        raise ValueError(f"a storage is {reprlib.repr(identity)}, expected one of {', '.join(_STORAGES)}")
    return _Storage(_STORAGES[name], key, size)


# ---------------------------------------------------------------- what belongs together


def _combined(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Bitmasks unpacked and masks applied."""
    found = dict(tensors)
    for name in tensors:
        stem, _, last = name.rpartition(".")
        parts = [f"{stem}.{part}" for part in ("compressed", "bitmask", "shape")]
        if last == "compressed" and all(part in found for part in parts):
            weight = stem if stem.rpartition(".")[2] == "weight" else f"{stem}.weight"
            if weight in found:
                raise ValueError(f"tensor {weight!r} is stored twice, as a bitmask and dense")
            found[weight] = _unpacked(stem, *(found.pop(part) for part in parts))
            found.pop(f"{stem}.row_offsets", None)
        elif name.endswith("_orig") and f"{name[:-5]}_mask" in found:
            _mask(found, name, f"{name[:-5]}_mask", name[:-5])
        elif last == "original" and "parametrizations." in stem and f"{stem}.0.mask" in found:
            outer, _, inner = stem.rpartition("parametrizations.")
            _mask(found, name, f"{stem}.0.mask", outer + inner)
    return found


def _mask(found: dict[str, Any], weight: str, mask: str, name: str) -> None:
    values, kept = found.pop(weight), found.pop(mask)
    if not isinstance(values, np.ndarray) or not isinstance(kept, np.ndarray) or values.shape != kept.shape:
        raise ValueError(f"{mask!r} has shape {kept.shape}, expected {values.shape} to match {weight!r}")
    found[name] = np.where(kept != 0, values, values.dtype.type(0)) * kept.astype(values.dtype)


def _unpacked(name: str, values: Any, mask: Any, shape: Any) -> Any:
    """A matrix of compressed-tensors: bit j of byte b of a row says whether column 8 b + j is stored."""
    sizes = _sizes(np.asarray(shape).reshape(-1).tolist(), f"tensor {name!r}") if np.size(shape) <= _MOST_AXES else ()
    rows, columns = (*sizes, -1, -1)[:2]
    expected = (rows, -(-columns // 8))
    if (
        len(sizes) != 2
        or rows > max(mask.size, _MOST_EMPTY_ROWS)
        or mask.dtype != np.uint8
        or mask.shape != expected
        or values.dtype.kind != "f"
    ):
        raise ValueError(
            f"tensor {name!r} has shape {sizes}, a bitmask of {mask.dtype} {mask.shape} and values of {values.dtype}, "
            f"expected two sizes, uint8 {expected} and floats"
        )
    if mask[:, -1:].size and columns % 8 and (mask[:, -1] >> (columns % 8)).any():
        raise ValueError(f"tensor {name!r} has a bitmask that points outside of shape {sizes}")
    kept = np.unpackbits(mask, axis=1, count=columns, bitorder="little").view(bool)
    indptr = np.zeros(rows + 1, np.int64)
    np.cumsum(np.count_nonzero(kept, axis=1), out=indptr[1:])
    if indptr[-1] != values.size:
        raise ValueError(f"tensor {name!r} has {values.size} values, its bitmask has {indptr[-1]}")
    pattern = Pattern._trusted(indptr, np.nonzero(kept)[1], (rows, columns))
    return CSR._trusted(pattern, frozen(values.reshape(-1).copy()))


def _as_kept(array: Any) -> Array | CSR:
    """A matrix of floats as a CSR where it is sparse, all else as it is."""
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        return array
    zeros = array.size - np.count_nonzero(array)
    return csr(array) if zeros >= _SPARSE * array.size else array
