"""Pruning by magnitude: the smallest weights leave the pattern and cannot come back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import Pattern
from fastsparse.sparsity.patterns import count_nonzeros

Array = NDArray[Any]


class SparseParameter(Protocol):
    """What pruning sees of a parameter."""

    @property
    def value(self) -> Array:
        """Values, (nnz,)."""

    @property
    def pattern(self) -> Pattern | None:
        """Where they are; None for a dense parameter."""

    def replace_pattern(self, pattern: Pattern, source: Any = None) -> None:
        """Move to another pattern, values and optimizer state with it."""


class Model(Protocol):
    """What pruning sees of a model."""

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        """Yield (name, parameter)."""


def magnitude_prune(model: Model, sparsity: float, *, scope: str = "layer", exclude: Iterable[str] = ()) -> None:
    """Remove the weights of smallest magnitude from the sparse layers of `model`.

    Values that stay keep their optimizer state; removed ones leave the pattern, so that no momentum brings them back.
    Dense layers are left alone.

    Parameters
    ----------
    model : fs.nn.Module
    sparsity : float in [0, 1)
        Share of elements that are not in the pattern afterwards: of each layer, or of all pruned layers together.
        What is sparser already stays as it is. The number of nonzeros is exact; of equal magnitudes the first stay.
    scope : {"layer", "global"}
    exclude : names of layers or parameters
        For example ("0",), a name of ``model.named_modules()``, or ("0.values",).

    Raises
    ------
    ValueError
        When sparsity or scope is out of range, a name in `exclude` fits nothing, the model has no sparse layer, or
        a value is NaN. Nothing has been changed then.
    """
    if scope not in ("layer", "global"):
        raise ValueError(f"scope is {scope!r}, expected 'layer' or 'global'")
    count_nonzeros(1, sparsity)
    chosen = _chosen(model, exclude)
    magnitudes = [np.abs(parameter.value) for _, parameter in chosen]
    for (name, _), magnitude in zip(chosen, magnitudes):
        if np.isnan(magnitude).any():
            raise ValueError(f"{name} holds NaN, expected numbers")
    sizes = [pattern.shape[0] * pattern.shape[1] for pattern in (_pattern(p) for _, p in chosen)]
    if scope == "layer":
        masks = [_largest(m, count_nonzeros(size, sparsity)) for m, size in zip(magnitudes, sizes)]
    else:
        together = _largest(np.concatenate(magnitudes), count_nonzeros(sum(sizes), sparsity))
        masks = np.split(together, np.cumsum([len(m) for m in magnitudes])[:-1])
    for (_, parameter), mask in zip(chosen, masks):
        if not mask.all():
            keep(parameter, mask)


def keep(parameter: SparseParameter, mask: NDArray[np.bool_]) -> None:
    """Drop the nonzeros of `parameter` for which `mask` (nnz,) is False."""
    pattern = _pattern(parameter)
    kept = np.flatnonzero(mask)
    before = np.concatenate([[0], np.cumsum(mask)])
    indptr = before[pattern.indptr].astype(np.int64)
    parameter.replace_pattern(Pattern._trusted(indptr, pattern.indices[kept], pattern.shape), kept)


def _pattern(parameter: SparseParameter) -> Pattern:
    pattern = parameter.pattern
    if pattern is None:
        raise TypeError("a dense parameter has no pattern to prune")
    return pattern


def _chosen(model: Model, exclude: Iterable[str]) -> list[tuple[str, SparseParameter]]:
    """The sparse parameters that no name in `exclude` covers."""
    unwanted = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    named = list(model.named_parameters())
    for name in unwanted:
        if not any(_covers(name, parameter) for parameter, _ in named):
            raise ValueError(f"exclude names {name!r}, expected layers or parameters of the model")
    sparse = [(name, parameter) for name, parameter in named if parameter.pattern is not None]
    if not sparse:
        raise ValueError("model has no sparse layer, expected at least one (fs.nn.SparseLinear.from_dense makes one)")
    chosen = [(name, p) for name, p in sparse if not any(_covers(out, name) for out in unwanted)]
    if not chosen:
        raise ValueError("exclude covers every sparse layer of the model, expected at least one to prune")
    return chosen


def _covers(excluded: str, name: str) -> bool:
    return name == excluded or name.startswith(f"{excluded}.")


def _largest(magnitude: Array, count: int) -> NDArray[np.bool_]:
    """Mask of the `count` largest, the first of equals; all when there are not more."""
    if count >= len(magnitude):
        return np.ones(len(magnitude), np.bool_)
    if count == 0:
        return np.zeros(len(magnitude), np.bool_)
    threshold = np.partition(magnitude, len(magnitude) - count)[len(magnitude) - count]
    mask = magnitude > threshold
    ties = np.flatnonzero(magnitude == threshold)
    mask[ties[: count - int(mask.sum())]] = True
    return mask
