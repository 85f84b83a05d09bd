"""Models as plain data: a description that JSON knows, and arrays by name. See `Model` for what is described.

Constants of types that files do not have stand as bytes. What is read is checked as if it came from a stranger.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastsparse.csr import CSR
from fastsparse.onnx.model import Array, Constant, Model, Node, SparseWeight, Value, check_dense_size
from fastsparse.onnx.ops import OPERATORS

_KEPT = ("float32", "float64", "int32", "int64", "uint8")  # types that files have
_AS_BYTES = ("bool", "int8", "int16", "uint16", "uint32", "uint64", "float16")


def to_plain(model: Model, arrays: dict[str, Array]) -> dict[str, Any]:
    """Describe a model; its arrays are added to `arrays`."""

    def kept(array: Array) -> dict[str, Any]:
        name = f"model.{len(arrays)}"
        array = np.asarray(array)
        flat = np.ascontiguousarray(array).reshape(-1)
        arrays[name] = flat if array.dtype.name in _KEPT else flat.view(np.uint8)
        return {"array": name, "dtype": array.dtype.name, "shape": list(array.shape)}

    def constant(found: Constant) -> dict[str, Any]:
        if not isinstance(found, SparseWeight):
            return kept(found)
        fields = {name: kept(getattr(found.matrix, name)) for name in ("indptr", "indices", "data")}
        shapes = {"matrix": list(found.matrix.shape), "shape": list(found.shape)}
        return {"sparse": fields, **shapes, "transposed": found.transposed}

    def attribute(value: Any) -> Any:
        return kept(value) if isinstance(value, np.ndarray) else value

    return {
        "nodes": [
            {
                "op": n.op, "name": n.name, "inputs": list(n.inputs), "outputs": list(n.outputs),
                "attributes": {key: attribute(value) for key, value in n.attributes.items()}, "version": n.version,
            }
            for n in model.nodes
        ],
        "constants": {name: constant(found) for name, found in model.constants.items()},
        "inputs": [_value(v) for v in model.inputs],
        "outputs": [_value(v) for v in model.outputs],
    }  # fmt: skip


def _value(value: Value) -> dict[str, Any]:
    shape = None if value.shape is None else list(value.shape)
    return {"name": value.name, "dtype": value.dtype.name, "shape": shape}


# ---------------------------------------------------------------- reading


def from_plain(plain: Any, arrays: Mapping[str, Array]) -> Model:
    """The model that `to_plain` described.

    Raises
    ------
    ValueError, TypeError, KeyError
        When `plain` and `arrays` describe no model.
    """
    constants = {str(name): _constant(entry, arrays) for name, entry in plain["constants"].items()}
    inputs, outputs = (tuple(_read_value(v) for v in plain[key]) for key in ("inputs", "outputs"))
    nodes = tuple(_node(entry, arrays) for entry in plain["nodes"])
    written = {v.name for v in inputs} | set(constants)
    if len(written) != len(inputs) + len(constants) or "" in written:
        raise ValueError("inputs and constants have names in common, or none")
    for node in nodes:
        fresh = [name for name in node.outputs if name]
        if not written.issuperset(name for name in node.inputs if name) or len(set(fresh)) != len(fresh):
            raise ValueError(f"{node} reads what nothing wrote before it")
        if written.intersection(fresh):
            raise ValueError(f"{node} writes what is there already")
        written.update(fresh)
    if not outputs or not written.issuperset(v.name for v in outputs):
        raise ValueError("nothing writes the outputs")
    return Model(nodes, constants, inputs, outputs)


def _array(entry: Any, arrays: Mapping[str, Array]) -> Array:
    found, kind = arrays[entry["array"]], entry["dtype"]
    shape = tuple(entry["shape"])
    if kind in _AS_BYTES and found.dtype == np.uint8:
        found = np.frombuffer(found.tobytes(), kind)
        if kind == "bool" and (found.view(np.uint8) > 1).any():
            raise ValueError("a truth value is neither 0 nor 1")
    if found.dtype.name != kind or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"an array of {found.dtype} is said to be {kind!r} of shape {shape}")
    return found.reshape(shape)


def _constant(entry: Any, arrays: Mapping[str, Array]) -> Constant:
    if "sparse" not in entry:
        return _array(entry, arrays)
    indptr, indices, data = (_array(entry["sparse"][name], arrays) for name in ("indptr", "indices", "data"))
    matrix = CSR(indptr, indices, data, tuple(entry["matrix"]))
    shape, transposed = tuple(entry["shape"]), entry["transposed"]
    if type(transposed) is not bool or not shape or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"a weight has the shape {shape}, transposed {transposed!r}")
    rest = int(np.prod(shape[1:], dtype=object))
    expected = shape[::-1] if transposed else (shape[0], rest)
    if matrix.shape != expected:
        raise ValueError(f"a matrix of shape {matrix.shape} is said to be a weight of shape {shape}")
    held = indptr.nbytes + indices.nbytes + data.nbytes
    check_dense_size(shape[0] * rest, matrix.dtype.itemsize, held, f"a weight of shape {shape}")
    return SparseWeight(matrix, shape, transposed)


def _node(entry: Any, arrays: Mapping[str, Array]) -> Node:
    names = [entry["op"], entry["name"], *entry["inputs"], *entry["outputs"], *entry["attributes"]]
    if not all(isinstance(name, str) for name in names) or entry["op"] not in OPERATORS:
        raise ValueError(f"a node has the operator {entry['op']!r}")
    if type(entry["version"]) is not int:
        raise ValueError(f"a node has the version {entry['version']!r}")
    attributes = {key: _attribute(value, arrays) for key, value in entry["attributes"].items()}
    return Node(
        entry["op"], entry["name"], tuple(entry["inputs"]), tuple(entry["outputs"]), attributes, entry["version"]
    )  # fmt: skip


def _attribute(value: Any, arrays: Mapping[str, Array]) -> Any:
    if isinstance(value, dict):
        return _array(value, arrays)
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int | float | str) for item in items):
        raise ValueError(f"an attribute is {value!r}")
    return value


def _read_value(entry: Any) -> Value:
    shape, name = entry["shape"], entry["name"]
    if not isinstance(name, str) or entry["dtype"] not in (*_KEPT, *_AS_BYTES):
        raise ValueError(f"{entry!r} is no input or output")
    sizes = None if shape is None else tuple(shape)
    if sizes is not None and not all(n is None or isinstance(n, str) or (type(n) is int and n >= 0) for n in sizes):
        raise ValueError(f"{entry!r} is no input or output")
    return Value(name, np.dtype(entry["dtype"]), sizes)
