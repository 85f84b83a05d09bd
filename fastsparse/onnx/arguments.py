"""Checks of what users pass to an engine of an ONNX model: shapes at compiling, arrays at calls."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastsparse.arguments import as_array, as_float
from fastsparse.onnx.model import Array, Shape, Value
from fastsparse.onnx.weights import FLOATS
from fastsparse.runtime.buffers import check_out


def checked_shapes(values: Sequence[Value], input_shape: Any) -> dict[str, Shape]:
    """A shape for every input: what the user gave, else what the model declares, a batch of no size being 1.

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
    names: dict[str, tuple[int, str]] = {}  # sizes that names stand for, and the input that says so
    shapes = {}
    for value in values:
        shape = given.get(value.name)
        if shape is None:
            shape = _declared(value, names)
        check_fit(value, shape, names)
        shapes[value.name] = shape
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


def _declared(value: Value, names: Mapping[str, tuple[int, str]]) -> Shape:
    if value.shape is None:
        raise ValueError(f"input {value.name!r} has no shape in the model: give its input_shape")
    sizes = []
    batch = value.shape[0] if value.shape else None
    for i, size in enumerate(value.shape):
        if isinstance(size, int):
            sizes.append(size)
        elif size in names:
            sizes.append(names[size][0])  # type: ignore[index]
        elif i == 0 or size == batch:
            sizes.append(1)
        else:
            raise ValueError(f"input {value.name!r} has shape {value.shape} in the model: give its input_shape")
    return tuple(sizes)


def check_fit(value: Value, shape: Shape, names: dict[str, tuple[int, str]], what: str = "input_shape") -> None:
    """Hold a shape against what the model declares; sizes of one name must be equal."""
    declared = value.shape
    if declared is None:
        return
    said = "(" + ", ".join(map(str, declared)) + ")"
    fits = len(shape) == len(declared) and all(n == d for n, d in zip(shape, declared) if isinstance(d, int))
    if not fits:
        raise ValueError(f"{what} is {shape} for {value.name!r}, expected {said} as in the model")
    for n, d in zip(shape, declared):
        if isinstance(d, str):
            size, other = names.setdefault(d, (n, value.name))
            if size != n:
                raise ValueError(f"{what} is {shape} for {value.name!r}, but {d} is {size} in {other!r}")


def checked_input(value: Value, x: Any) -> Array:
    """An input as a C-contiguous array of the model's dtype and number of axes."""
    if value.dtype in FLOATS:
        array = as_float(x, value.dtype, value.name, "the model")
    else:
        array = as_array(x, value.name)
        if array.dtype != value.dtype:
            exact = array.dtype.kind in "biu" and value.dtype.kind in "iu" and np.can_cast(array.dtype, value.dtype)
            if not exact:
                raise TypeError(f"{value.name} has dtype {array.dtype}, expected {value.dtype} to match the model")
            array = array.astype(value.dtype)
    return np.require(array, requirements=["C", "A"])


def checked_outputs(
    out: Any, names: Sequence[str], shapes: Sequence[Shape], dtypes: Sequence[np.dtype[Any]], inputs: Sequence[Array]
) -> list[Array]:
    """Arrays to write the outputs to: those of the user's that fit, or new ones."""
    if out is None:
        return [check_out(None, shape, dtype) for shape, dtype in zip(shapes, dtypes)]
    if not isinstance(out, (list, tuple)) or len(out) != len(names):
        raise ValueError(f"out has {np.shape(out)[:1]} arrays, expected {len(names)}, for {', '.join(names)}")
    found = [check_out(o, shape, dtype, *inputs) for o, shape, dtype in zip(out, shapes, dtypes)]
    for i, first in enumerate(found):
        if any(np.may_share_memory(first, other) for other in found[i + 1 :]):
            raise ValueError("out has two arrays that share memory, expected memory of its own for each")
    return found
