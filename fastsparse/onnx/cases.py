"""Models whose branches follow from shapes and from small integers, such as a sampling rate: one engine per case.

Which branches a call takes is found once for its shapes and integers, and looked up from then on. What comes for the
first time, as it may be the last time, is run as the model says, with its branches in the library.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsparse.files import FileFormatError
from fastsparse.onnx.arguments import shape_of
from fastsparse.onnx.folding import folded, with_branches
from fastsparse.onnx.model import Model
from fastsparse.runtime.fork import fork_safe_lock

if TYPE_CHECKING:
    from fastsparse.onnx.engine import GraphEngine

_NUMBERS = 16  # of an input that may decide
_KEPT, _ENGINES = 1024, 8  # cases, and engines for them

_lock = fork_safe_lock()  # for dictionary accesses


class Cases:
    """The engines of one model."""

    def __init__(self, engine: GraphEngine, model: Model) -> None:
        self._engine, self._model = engine, model
        self._numbers = _deciding(model)
        self._known: OrderedDict[Hashable, GraphEngine | None] = OrderedDict()  # None where it came once
        self._engines: OrderedDict[Hashable, GraphEngine] = OrderedDict()
        self.tune = False

    @property
    def by_shapes(self) -> bool:
        """Whether no numbers decide."""
        return not self._numbers

    @property
    def library(self) -> set[str]:
        """What the library runs in any of the engines, of what the kernels could."""
        return {name for engine in list(self._engines.values()) for name in engine._library}

    def engine(self, values: Mapping[str, Any], now: bool = False) -> GraphEngine:
        """The engine for these inputs; `now` finds it even if they come for the first time."""
        key = (*map(shape_of, values.values()), *(values[name].tobytes() for name in self._numbers))
        found = self._known.get(key)
        if found is None:
            if key in self._known or now:
                found = self._found(values)
            with _lock:
                self._known[key] = found
                _shrink(self._known, _KEPT)
        return found or self._engine

    def _found(self, values: Mapping[str, Any]) -> GraphEngine:
        numbers, taken = {name: values[name].copy() for name in self._numbers}, dict[str, bool]()
        inputs = tuple(value for value in self._model.inputs if value.name not in numbers)
        shapes = {value.name: np.shape(values[value.name]) for value in inputs if value.dtype is not None}
        folded(replace(self._model, inputs=inputs, constants={**self._model.constants, **numbers}), shapes, taken)
        if not taken:
            return self._engine
        key = tuple(sorted(taken.items()))
        found = self._engines.get(key)
        if found is None:
            try:
                found = self._engine._case(with_branches(self._model, taken), shapes, self.tune)
            except FileFormatError:  # the library may refuse behind an If what it runs in its branches
                found = self._engine
            with _lock:
                self._engines[key] = found
                _shrink(self._engines, _ENGINES)
        return found


def _shrink(entries: OrderedDict[Hashable, Any], most: int) -> None:
    while len(entries) > most:
        entries.popitem(last=False)


def _deciding(model: Model) -> tuple[str, ...]:
    """Inputs of a few integers, or truth values, from which conditions follow."""
    wanted = {name for node in model.nodes if node.op == "If" for name in node.reads}
    conditions = {node.inputs[0] for node in model.nodes if node.op == "If"}
    for node in reversed(model.nodes):
        if conditions.intersection(node.writes):
            conditions.update(node.reads)
    found = []
    for value in model.inputs:
        sizes = value.shape if value.shape is not None and all(isinstance(n, int) for n in value.shape) else None
        few = value.dtype is not None and value.dtype.kind in "iub" and sizes is not None
        if few and math.prod(sizes or ()) <= _NUMBERS and value.name in conditions | wanted:  # type: ignore[arg-type]
            found.append(value.name)
    return tuple(found)
