"""ONNX's types of elements as NumPy's."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastsparse.engine.program import UnsupportedOperatorError

_TYPES: dict[int, type[Any]] = {
    1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_,
    10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64,
}  # fmt: skip
_NAMES = {
    0: "undefined", 8: "string", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8e4m3fn",
    18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4e2m1",
}  # fmt: skip


def dtype_of(code: int, where: str) -> np.dtype[Any]:
    """NumPy's type for the number of an ONNX type.

    Raises
    ------
    UnsupportedOperatorError
        For types that NumPy does not have; `where` says what has it.
    """
    if code not in _TYPES:
        known = ", ".join(np.dtype(kind).name for kind in _TYPES.values())
        raise UnsupportedOperatorError(
            f"{where} has elements of type {_NAMES.get(code, code)}, expected one of {known}"
        )
    return np.dtype(_TYPES[code])
