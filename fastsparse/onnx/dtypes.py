"""ONNX's types of elements as NumPy's."""

from __future__ import annotations

from typing import Any

import numpy as np

# The types that NumPy has; strings are objects to it.
TYPES: dict[int, np.dtype[Any]] = {
    code: np.dtype(kind)
    for code, kind in {
        1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 8: object,
        9: np.bool_, 10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64, 14: np.complex64, 15: np.complex128,
    }.items()
}  # fmt: skip
BFLOAT16 = 16
# Bits of an element of the other ones.
_BITS = {BFLOAT16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
HALF = np.dtype(np.float16)


def code_of(dtype: np.dtype[Any]) -> int:
    """ONNX's number of a NumPy type."""
    return next(code for code, kind in TYPES.items() if kind == dtype)


def bits_of(code: int) -> int:
    """Bits of an element, 0 where that is not known or has no bound."""
    if code == 8 or code not in (*TYPES, *_BITS):
        return 0
    return TYPES[code].itemsize * 8 if code in TYPES else _BITS[code]
