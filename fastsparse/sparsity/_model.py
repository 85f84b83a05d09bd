"""Interface of models to sparsity algorithms: parameters with patterns, found by name."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastsparse import checks
from fastsparse.csr import Pattern

Array = NDArray[Any]


class SparseParameter(Protocol):
    """Interface of a parameter to sparsity algorithms."""

    @property
    def value(self) -> Array:
        """Values, (nnz,)."""

    @property
    def pattern(self) -> Pattern | None:
        """Structure of the matrix; None for a dense parameter."""

    @property
    def grad(self) -> Array | None:
        """Gradient at the nonzeros, (nnz,)."""

    def watch(self, wanted: bool) -> None:
        """Tell the next backward passes whether to keep data for `grow_scores`."""

    def grow_scores(self, k: int) -> tuple[NDArray[np.int64], Array]:
        """Elements outside the pattern with the largest gradients, and their magnitudes."""

    def replace_pattern(self, pattern: Pattern, source: NDArray[np.integer[Any]] | None = None) -> None:
        """Move to another pattern, values and optimizer state with it."""


class Model(Protocol):
    """What algorithms see of a model: fs.nn's, or of another library that has told `named_parameters` its way."""

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        """Yield (name, parameter)."""


@functools.singledispatch
def named_parameters(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, parameter), the sparse ones as `SparseParameter`; `fastsparse.torch` registers torch's modules."""
    if isinstance(model, type) or not callable(getattr(model, "named_parameters", None)):
        kind = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(
            f"model is {kind}, expected a fastsparse.nn.Module, or a torch.nn.Module after importing fastsparse.torch"
        )
    found: Iterator[tuple[str, Any]] = model.named_parameters()
    return found


def pattern_of(parameter: SparseParameter) -> Pattern:
    pattern = parameter.pattern
    if pattern is None:
        raise TypeError("a dense parameter has no pattern to change")
    return pattern


def chosen_parameters(model: Model, exclude: Iterable[str]) -> list[tuple[str, SparseParameter]]:
    """The sparse parameters that no name in `exclude` covers; tied ones once, under their first name."""
    unwanted = checks.names(exclude, "exclude")
    named = list(named_parameters(model))
    for name in unwanted:
        if not any(_covers(name, parameter) for parameter, _ in named):
            raise ValueError(f"exclude names {name!r}, expected layers or parameters of the model")
    first: dict[int, tuple[str, SparseParameter]] = {}
    for name, parameter in named:
        if parameter.pattern is not None:
            first.setdefault(id(parameter), (name, parameter))
    if not first:
        raise ValueError("model has no sparse layer, expected at least one (fs.nn.SparseLinear.from_dense makes one)")
    left_alone = {id(parameter) for name, parameter in named if any(_covers(out, name) for out in unwanted)}
    chosen = [item for key, item in first.items() if key not in left_alone]
    if not chosen:
        raise ValueError("exclude covers every sparse layer of the model, expected at least one to change")
    return chosen


def _covers(excluded: str, name: str) -> bool:
    return name == excluded or name.startswith(f"{excluded}.")
