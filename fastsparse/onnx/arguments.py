"""Checks of what users pass to an engine of an ONNX model: shapes at compiling, arrays at calls."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastsparse.arguments import is_sparse
from fastsparse.checks import as_array
from fastsparse.onnx.model import FLOATS, HALF, Array, Shape, Value
from fastsparse.runtime.buffers import check_out


def checked_shapes(values: Sequence[Value], input_shape: Any) -> dict[str, Shape]:
    """A shape for every tensor: what the user gave, else what the model declares, a batch of no size being 1.

    Parameters
    ----------
    values : inputs of the model
    input_shape : None, a shape (for a single input), a dict by name, or a list of shapes

    Raises
    ------
    TypeError, ValueError
        When something is missing, or does not fit what the model declares.
    """
    given = _given(values, input_shape)
    names: dict[Any, int] = {}  # sizes that names stand for, where inputs that were given say so
    for value in values:
        for n, declared in zip(given.get(value.name, ()), value.shape or ()):
            names.setdefault(declared, n)
    shapes, missing = dict[str, Shape](), list[str]()
    for value in values:
        if value.dtype is None and value.name not in given:
            continue
        shape = given[value.name] if value.name in given else _declared(value, names)
        if shape is None:
            said = "no shape" if value.shape is None else f"shape {_said(value.name, value.shape)}"
            missing.append(f"input {value.name!r} has {said}")
            continue
        check_fit(value, shape)
        shapes[value.name] = shape
    if missing:
        raise ValueError(f"{', '.join(missing)} in the model: give input_shape, or --shape on the command line")
    return shapes


def _given(values: Sequence[Value], input_shape: Any) -> dict[str, Shape]:
    if input_shape is None:
        return {}
    names = [value.name for value in values]
    if isinstance(input_shape, Mapping):
        unknown = [name for name in input_shape if name not in names]
        if unknown:
            raise ValueError(f"input_shape names {unknown[0]!r}, expected some of {', '.join(map(repr, names))}")
        return {name: _shape(shape) for name, shape in input_shape.items()}
    listed = isinstance(input_shape, (list, tuple)) and any(isinstance(s, (list, tuple)) for s in input_shape)
    if not listed and len(names) == 1:
        return {names[0]: _shape(input_shape)}
    if not listed or len(input_shape) != len(names):
        raise ValueError(f"input_shape is {input_shape!r}, expected {len(names)} shapes, for {', '.join(names)}")
    return {name: _shape(shape) for name, shape in zip(names, input_shape)}


def _shape(shape: Any) -> Shape:
    try:
        sizes = tuple(operator.index(n) for n in shape)
    except TypeError:
        raise TypeError(f"input_shape is {shape!r}, expected a tuple of integers") from None
    if min(sizes, default=1) < 1:
        raise ValueError(f"input_shape is {sizes}, expected sizes of at least 1")
    return sizes


def _declared(value: Value, names: Mapping[Any, int]) -> Shape | None:
    """The shape that the model gives an input; None where that is not known."""
    if value.shape is None:
        return None
    batch = value.shape[0] if value.shape else None
    sizes = [n if isinstance(n, int) else names.get(n, 1 if i == 0 or n == batch else None)
             for i, n in enumerate(value.shape)]  # fmt: skip
    return None if None in sizes else tuple(n for n in sizes if n is not None)


def check_fit(value: Value, shape: Shape, what: str = "input_shape") -> None:
    """Hold a shape against the sizes that the model declares; its names of sizes are hints."""
    declared = shape if value.shape is None else value.shape
    if len(shape) != len(declared) or any(n != d for n, d in zip(shape, declared) if isinstance(d, int)):
        said = _said(value.name, declared)
        raise ValueError(f"{what} is {shape} for {value.name!r}, expected {said} as in the model")


def _said(name: str, shape: Sequence[Any]) -> str:
    """A shape for a message; sizes that the model gives no name have got one of their input's."""
    return "(" + ", ".join("?" if size == f"{name}.{i}" else str(size) for i, size in enumerate(shape)) + ")"


def checked_input(value: Value, x: Any) -> Any:
    """An input as a C-contiguous array of the model's dtype; what is no tensor as it comes."""
    if type(x) is np.ndarray and x.dtype == value.dtype and x.flags.carray:
        return x
    if value.dtype is None:
        return x
    array = x.toarray() if is_sparse(x) else as_array(x, value.name)
    if value.dtype == object:
        return np.ascontiguousarray(array.astype(object)).reshape(array.shape)
    if array.dtype != value.dtype or not array.dtype.isnative:
        floats = value.dtype in (*FLOATS, HALF) and array.dtype.kind in "fbiu"
        exact = array.dtype.kind in "biu" and value.dtype.kind in "iu" and np.can_cast(array.dtype, value.dtype)
        if not floats and not exact and array.dtype.newbyteorder("=") != value.dtype:
            raise TypeError(f"{value.name} has dtype {array.dtype}, expected {value.dtype} to match the model")
        with np.errstate(over="ignore"):
            array = array.astype(value.dtype)
    return np.require(array, requirements=["C", "A"])


def shape_of(value: Any) -> Any:
    """The shape of an input; of a sequence those of its members, which may differ."""
    if type(value) is np.ndarray:
        return value.shape
    return tuple(map(shape_of, value)) if isinstance(value, (list, tuple)) else np.shape(value)


def empty_input(value: Value, shapes: Mapping[str, Shape]) -> Any:
    """An input of its shape that takes no memory."""
    return [] if value.dtype is None else np.broadcast_to(np.zeros((), value.dtype), shapes[value.name])


def random_input(value: Value, shapes: Mapping[str, Shape], rng: np.random.Generator) -> Array:
    """Numbers to try an input with."""
    if value.dtype is None or value.dtype == object:
        raise ValueError(f"input {value.name!r} is no tensor of numbers, and random ones cannot be made")
    if value.dtype.kind == "f":
        return rng.standard_normal(shapes[value.name]).astype(value.dtype)
    return rng.integers(0, 2, shapes[value.name]).astype(value.dtype)


def checked_results(
    out: Any, names: Sequence[str], sizes: Sequence[tuple[Shape, np.dtype[Any]]], inputs: Sequence[Any]
) -> list[Array]:
    """The user's arrays to write the results to, which fit."""
    if not isinstance(out, (list, tuple)) or len(out) != len(names):
        raise ValueError(f"out has {np.shape(out)[:1]} arrays, expected {len(names)}, for {', '.join(names)}")
    found = [check_out(o, shape, dtype, *inputs) for o, (shape, dtype) in zip(out, sizes)]
    for i, first in enumerate(found):
        if any(np.may_share_memory(first, other) for other in found[i + 1 :]):
            raise ValueError("out has two arrays that share memory, expected memory of its own for each")
    return found


def written(out: Any, names: Sequence[str], results: Sequence[Any], inputs: Sequence[Any]) -> list[Array]:
    """The results, copied to the user's arrays."""
    sizes = [(np.shape(result), np.asarray(result).dtype) for result in results]
    targets = checked_results(out, names, sizes, inputs)
    for target, result in zip(targets, results):
        np.copyto(target, result)
    return targets
