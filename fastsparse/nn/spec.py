"""A model's architecture as plain data: types of layers and their constructor arguments, no code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fastsparse import nn
from fastsparse.csr import Pattern
from fastsparse.nn import attention, containers, linear
from fastsparse.nn.initial import shells
from fastsparse.nn.module import Module

# Every layer that files may name. Files never name anything else.
LAYERS: dict[str, type[Module]] = {
    name: layer
    for name, layer in vars(nn).items()
    if name in nn.__all__ and issubclass(layer, Module) and layer is not Module
}

_DEEPEST = 64
_MOST_BRANCHES = 2**16


def to_spec(model: Module) -> dict[str, Any]:
    """Describe `model` in types that JSON knows.

    Raises
    ------
    TypeError
        When a layer is not one of fastsparse's own.
    """
    name = type(model).__name__
    if LAYERS.get(name) is not type(model):
        raise TypeError(f"model holds a {name}, expected layers of fastsparse.nn only (or save model.state_dict())")
    spec: dict[str, Any] = {"type": name, "arguments": model.config()}
    children = {child: to_spec(module) for child, module in model.children()}
    return {**spec, "children": children} if children else spec


def from_spec(spec: Any, arrays: Mapping[str, NDArray[Any]]) -> Module:
    """Rebuild a model's shell, to be filled by ``load_state_dict``.

    Parameters
    ----------
    spec : what :func:`to_spec` gave
    arrays : mapping
        The model's state: patterns are taken from it. No other array is allocated.

    Raises
    ------
    ValueError, TypeError
        When `spec` describes no model, or `arrays` do not hold its patterns.
    """
    with shells():
        return _rebuilt(spec, arrays, "", 0)


def _rebuilt(spec: Any, arrays: Mapping[str, NDArray[Any]], prefix: str, depth: int) -> Module:
    if depth > _DEEPEST:
        raise ValueError(f"the architecture is nested more than {_DEEPEST} layers deep")
    where = f"layer {prefix!r}" if prefix else "the model"
    if not isinstance(spec, dict) or not set(spec) <= {"type", "arguments", "children"}:
        raise ValueError(f"the description of {where} is not an object with type, arguments and children")
    name, arguments, children = spec.get("type"), spec.get("arguments"), spec.get("children", {})
    if not isinstance(name, str) or name not in LAYERS:
        raise ValueError(f"{where} has the type {name!r}, expected a layer of fastsparse.nn")
    if not isinstance(arguments, dict) or not isinstance(children, dict):
        raise ValueError(f"the arguments and children of {where} are not objects")
    dot = f"{prefix}." if prefix else ""
    modules = {child: _rebuilt(inner, arrays, f"{dot}{child}", depth + 1) for child, inner in children.items()}
    layer = _made(LAYERS[name], arguments, modules, arrays, dot)
    if [child for child, _ in layer.children()] != list(modules):
        raise ValueError(f"the children of {where} are {list(modules)}, which do not fit the type {name}")
    return layer


def _made(
    layer: Any,
    arguments: dict[str, Any],
    modules: dict[str, Module],
    arrays: Mapping[str, NDArray[Any]],
    dot: str,
) -> Module:
    """Call the constructor of `layer`, a class of LAYERS; it refuses what does not fit."""
    made: Module
    if layer is attention.MultiheadAttention and set(modules) != set(attention.PROJECTIONS):  # made of any size
        raise ValueError(f"the children of a MultiheadAttention are {list(modules)}, expected its projections")
    if issubclass(layer, containers.Sequential):
        sequence = layer.__new__(layer)
        containers.Sequential.__init__(sequence, *modules.values(), **arguments)
        made = sequence
    elif layer is containers.Concat:
        made = layer(*_branches(arguments, modules))
    elif issubclass(layer, linear.SparseWeight):
        made = layer(**arguments, **modules, pattern=_pattern_maker(arrays, dot))
    else:
        made = layer(**arguments, **modules)
    return made


def _branches(arguments: dict[str, Any], modules: dict[str, Module]) -> list[Module | None]:
    count = arguments.get("count")
    if set(arguments) != {"count"} or type(count) is not int or not len(modules) <= count <= _MOST_BRANCHES:
        raise ValueError(f"the arguments of a Concat are {arguments!r}, expected its count of branches")
    return [modules.get(str(position)) for position in range(count)]


def _pattern_maker(arrays: Mapping[str, NDArray[Any]], dot: str) -> linear.PatternMaker:
    for name in ("indptr", "indices"):
        if dot + name not in arrays:
            raise ValueError(f"there is no entry {dot + name!r}")
    return lambda shape: Pattern(arrays[f"{dot}indptr"], arrays[f"{dot}indices"], shape)
