"""Arrays that no kernel may write to, or read as they are: contract I5."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Array = NDArray[Any]
F32 = np.dtype(np.float32)


def unaligned(array: Array) -> Array:
    """A copy that begins at an odd address."""
    memory = np.zeros(array.nbytes + 1, np.uint8)
    shifted = memory[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    return shifted


def frozen(array: Array) -> Array:
    """A read-only copy."""
    twin = array.copy()
    twin.flags.writeable = False
    return twin


def mapped(array: Array, path: Path) -> Array:
    """A copy in a file that is mapped for reading: writing to it kills the process."""
    path = path.with_stem(f"{path.stem} {len(list(path.parent.iterdir()))}")
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def repeated(array: Array) -> Array:
    """A writable array of this shape that lies on its first element."""
    return as_strided(array.reshape(-1)[:1].copy(), array.shape, (0,) * array.ndim, writeable=True)


def spread(array: Array) -> Array:
    """A copy with gaps between its elements."""
    wide = np.zeros((*array.shape, 2), array.dtype)[..., 0]
    wide[...] = array
    return wide


def wrong_layouts(array: Array) -> dict[str, Array]:
    return {"spread": spread(array), "repeated": repeated(array), "unaligned": unaligned(array)}


def wrong_kinds(array: Array) -> dict[str, Any]:
    """What has another type or size."""
    flat = np.zeros(array.size + 1, array.dtype)
    return {
        "list": array.tolist(),
        "half as wide": array.astype(np.float16),
        "twice as wide": array.astype(np.complex64 if array.dtype == F32 else np.longdouble),
        "bytes": array.astype(np.uint8),
        "other byte order": array.astype(array.dtype.newbyteorder()),
        "one less": flat[2:],
        "one more": flat,
        "empty": flat[:0],
    }


def not_writable(array: Array, folder: Path) -> dict[str, Any]:
    """Every kind of array that no kernel may write to in place of `array`."""
    read_only = {"frozen": frozen(array), "mapped": mapped(array, folder / "array.npy")}
    return {**wrong_layouts(array), **wrong_kinds(array), **read_only}


def bits(value: Any) -> Any:
    return value.tobytes() if isinstance(value, np.ndarray) else copy.deepcopy(value)
