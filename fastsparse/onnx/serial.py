"""Models in files: the message without its constants, and these as arrays by name.

What is read is checked as if it came from a stranger: it goes through all that a model from an ONNX file goes through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np

from fastsparse.csr import CSR, csr
from fastsparse.onnx.model import FLOATS, TYPES, Array, Constant, Model, SparseWeight, density
from fastsparse.onnx.reader import model_of, parsed
from fastsparse.onnx.sessions import message, serialised

_KEPT = ("float32", "float64", "int32", "int64", "uint8")  # types that files have; others stand as bytes
_LEAST, _DENSEST = 4096, 0.4  # matrices of so many numbers are kept as their nonzeros where so few are there


def to_plain(model: Model, arrays: dict[str, Array]) -> dict[str, Any]:
    """Describe a model; its arrays are added to `arrays`."""

    def kept(array: Array) -> dict[str, Any]:
        name = f"model.{len(arrays)}"
        flat = np.ascontiguousarray(array).reshape(-1)
        arrays[name] = flat if array.dtype.name in _KEPT else flat.view(np.uint8)
        return {"array": name, "dtype": array.dtype.name, "shape": list(array.shape)}

    constants = {}
    for name, found in model.constants.items():
        if _is_sparse(found):
            found = SparseWeight(csr(found.reshape(len(found), -1)), found.shape)
        if isinstance(found, SparseWeight):
            fields = {field: kept(getattr(found.matrix, field)) for field in ("indptr", "indices", "data")}
            constants[name] = {"sparse": fields, "matrix": list(found.matrix.shape), "shape": list(found.shape)}
        elif isinstance(found, np.ndarray):
            constants[name] = kept(found)
    rest = {n: c for n, c in model.constants.items() if n not in constants}
    content = serialised(message(replace(model, constants=rest))[0])
    arrays["model"] = np.frombuffer(content, np.uint8)
    arrays["messages"] = np.frombuffer(model.header.DESCRIPTOR.file.serialized_pb, np.uint8)
    return {"constants": constants}


def _is_sparse(constant: Constant) -> TypeGuard[Array]:
    if not isinstance(constant, np.ndarray) or constant.dtype not in FLOATS or constant.ndim < 2:
        return False
    return constant.size >= _LEAST and density(constant) <= _DENSEST


def from_plain(plain: Any, arrays: Mapping[str, Array]) -> Model:
    """The model that `to_plain` described.

    Raises
    ------
    ValueError, TypeError, KeyError
        When `plain` and `arrays` describe no model.
    """
    constants = {str(name): _constant(entry, arrays) for name, entry in plain["constants"].items()}
    messages = arrays.get("messages", np.empty(0, np.uint8)).tobytes()  # files of earlier versions have none
    return model_of(parsed(np.asarray(arrays["model"], np.uint8).tobytes(), "the model", messages), None, constants)


def _constant(entry: Any, arrays: Mapping[str, Array]) -> Constant:
    if "sparse" not in entry:
        return _array(entry, arrays)
    indptr, indices, data = (_array(entry["sparse"][name], arrays) for name in ("indptr", "indices", "data"))
    shape, sizes = tuple(entry["shape"]), tuple(entry["matrix"])
    if any(type(n) is not int or n < 0 for n in (*shape, *sizes)) or len(shape) < 2 or data.dtype not in FLOATS:
        raise ValueError(f"a matrix of shape {sizes} is said to be a weight of shape {shape}")
    rest = int(np.prod(shape[1:], dtype=object))
    if sizes != (shape[0], rest):
        raise ValueError(f"a matrix of shape {sizes} is said to be a weight of shape {shape}")
    return SparseWeight(CSR(indptr, indices, data, sizes), shape)


def _array(entry: Any, arrays: Mapping[str, Array]) -> Array:
    found, kind, shape = arrays[entry["array"]], entry["dtype"], tuple(entry["shape"])
    known = {dtype.name for dtype in TYPES.values()} - {"object"}
    if kind not in known or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"an array is said to be {kind!r} of shape {shape}")
    if kind not in _KEPT and found.dtype == np.uint8:
        found = np.frombuffer(found.tobytes(), kind)
        if kind == "bool" and (found.view(np.uint8) > 1).any():
            raise ValueError("a truth value is neither 0 nor 1")
    if found.dtype.name != kind:
        raise ValueError(f"an array of {found.dtype} is said to be {kind!r}")
    return found.reshape(shape)
