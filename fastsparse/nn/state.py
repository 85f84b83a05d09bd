"""Loading saved state into a model: everything is checked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import checks
from fastsparse.csr import Pattern
from fastsparse.nn.parameter import Parameter

if TYPE_CHECKING:
    from fastsparse.nn.module import Module

Array = NDArray[Any]


@dataclass
class Staged:
    """Checked copies, ready to be taken over."""

    parameters: list[tuple[Parameter, Array, Pattern | None]]
    buffers: list[tuple[Module, str, Array]]


def stage(model: Module, state: Mapping[str, Any]) -> Staged:
    """Check `state` against the model and copy it.

    Raises
    ------
    ValueError
        Naming the entry that is missing, unknown, or of another shape, type or structure than expected.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state is {checks.shown(state)}, expected a dict as state_dict gives it")
    staged, used = Staged([], []), set()

    def entry(name: str) -> Array:
        used.add(name)
        if name not in state:
            raise ValueError(f"state has no entry {name!r}, expected one for each parameter, pattern and buffer")
        return checks.as_array(state[name], f"state[{name!r}]")

    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        for name, item in module.members():
            if isinstance(item, Parameter):
                staged.parameters.append(_staged_parameter(dot + name, item, entry))
        for name in module.buffer_names:
            current = getattr(module, name)
            staged.buffers.append((module, name, _checked(dot + name, entry(dot + name), current.shape, current.dtype)))
    unknown = sorted(set(state) - used)
    if unknown:
        raise ValueError(f"state has the entry {unknown[0]!r}, which the model does not have")
    return staged


def commit(staged: Staged) -> None:
    """Take over what :func:`stage` checked."""
    for parameter, value, pattern in staged.parameters:
        parameter._adopt(value, pattern)
    for module, name, array in staged.buffers:
        setattr(module, name, array)


def tied_names(model: Module) -> dict[str, str]:
    """The names of parameters that came before under another name, which is the value."""
    first: dict[int, str] = {}
    names = [(name, first.setdefault(id(parameter), name)) for name, parameter in model.named_parameters()]
    return {name: earlier for name, earlier in names if name != earlier}


def tie(model: Module, tied: Any) -> None:
    """Make parameters one, as :func:`tied_names` found them in the model that was saved.

    Raises
    ------
    ValueError
        When `tied` does not name parameters of the model that are alike.
    """
    if not isinstance(tied, dict):
        raise ValueError(f"tied is {checks.shown(tied)}, expected names of parameters")
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    for name, earlier in tied.items():
        one, other = parameters.get(name), parameters.get(earlier) if isinstance(earlier, str) else None
        if (
            one is None
            or other is None
            or any(getattr(one, what) != getattr(other, what) for what in ("dtype", "pattern"))
            or one.value.shape != other.value.shape
        ):
            raise ValueError(f"{name!r} and {earlier!r} are to be one parameter, expected two of one shape and pattern")
        prefix, _, attribute = name.rpartition(".")
        setattr(modules[prefix], attribute, other)


def pattern_prefix(name: str) -> str:
    """What stands before "indptr" and "indices" in the saved state of the sparse parameter `name`."""
    return name.removesuffix("values") if f".{name}".endswith(".values") else f"{name}."


def _staged_parameter(name: str, parameter: Parameter, entry: Any) -> tuple[Parameter, Array, Pattern | None]:
    if parameter.pattern is None:
        value = _checked(name, entry(name), parameter.value.shape, parameter.dtype)
        return parameter, value, None
    dot = pattern_prefix(name)
    indptr, indices = entry(f"{dot}indptr"), entry(f"{dot}indices")
    try:
        pattern = Pattern(indptr, indices, parameter.pattern.shape)
    except (ValueError, TypeError) as error:
        raise ValueError(f"state entries {dot}indptr and {dot}indices are no pattern: {error}") from error
    if not (np.array_equal(pattern.indptr, indptr) and np.array_equal(pattern.indices, indices)):
        raise ValueError(f"state entry {dot + 'indices'!r} has unsorted or repeated columns, expected rising ones")
    if pattern == parameter.pattern:
        pattern = parameter.pattern  # keeps its plans
    return parameter, _checked(name, entry(name), (pattern.nnz,), parameter.dtype), pattern


def _checked(name: str, array: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An owned copy of `array` when it has the expected shape and type."""
    if array.shape != shape:
        raise ValueError(f"state entry {name!r} has shape {array.shape}, expected {shape}")
    if array.dtype.newbyteorder("=") != dtype:
        raise ValueError(f"state entry {name!r} has dtype {array.dtype.name}, expected {dtype.name}")
    return np.array(array, dtype=dtype, order="C", copy=True)
