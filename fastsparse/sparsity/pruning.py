"""Pruning: weights leave the pattern, the smallest, the least sensitive or random ones, and cannot come back."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from fastsparse import checks
from fastsparse.checks import Seed
from fastsparse.csr import Pattern
from fastsparse.sparsity._model import Array, Model, SparseParameter, chosen_parameters, pattern_of
from fastsparse.sparsity.patterns import count_nonzeros
from fastsparse.sparsity.selection import largest

SCOPES = ("layer", "global")


def magnitude_prune(model: Model, sparsity: float, *, scope: str = "layer", exclude: Iterable[str] = ()) -> None:
    """Remove the weights of smallest magnitude from the sparse layers of `model`.

    Values that stay keep their optimizer state; removed ones leave the pattern, so that no momentum brings them back.
    Dense layers are left alone.

    Parameters
    ----------
    model : fs.nn.Module, or torch.nn.Module with layers of fastsparse.torch
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
    _prune(model, sparsity, scope, exclude, lambda name, parameter: magnitudes_of(name, parameter.value))


def random_prune(
    model: Model, sparsity: float, *, scope: str = "layer", exclude: Iterable[str] = (), rng: Seed = None
) -> None:
    """Remove weights drawn at random from the sparse layers of `model`: what other criteria have to beat.

    Parameters
    ----------
    model, sparsity, scope, exclude
        As for :func:`magnitude_prune`.
    rng : None, int or Generator

    Raises
    ------
    ValueError
        As :func:`magnitude_prune`. Nothing has been changed then.
    """
    generator = checks.generator(rng)
    _prune(model, sparsity, scope, exclude, lambda name, parameter: generator.random(len(parameter.value)))


def snip_prune(model: Model, sparsity: float, *, scope: str = "global", exclude: Iterable[str] = ()) -> None:
    """Remove the weights to which the loss is least sensitive, by the gradients that `model` holds: before training.

    Lee, Ajanthan, Torr, SNIP: Single-shot network pruning based on connection sensitivity, ICLR 2019: the sensitivity
    is |gradient * weight|, the change of the loss, to first order, when the weight is removed. Start from layers with
    ``sparsity=0.0`` and one backward pass over a batch or several.

    Parameters
    ----------
    model, sparsity, scope, exclude
        As for :func:`magnitude_prune`, but that all layers together are compared by default.

    Raises
    ------
    ValueError
        As :func:`magnitude_prune`, and when a layer has no gradient. Nothing has been changed then.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsparse as fs
    >>> model = fs.nn.Sequential(fs.nn.SparseLinear(100, 50, sparsity=0.0, rng=0))
    >>> x, labels = np.ones((8, 100), np.float32), np.arange(8)
    >>> loss, grad = fs.training.cross_entropy(model(x), labels)
    >>> model.backward(grad, need_input=False)
    >>> fs.sparsity.snip_prune(model, 0.9)
    >>> model[0].pattern.nnz
    500
    """
    _prune(model, sparsity, scope, exclude, _sensitivities)


def _sensitivities(name: str, parameter: SparseParameter) -> Array:
    grad = parameter.grad
    if grad is None:
        raise ValueError(f"{name} has no gradient, expected that of a backward pass over a batch")
    return magnitudes_of(f"{name} or its gradient", parameter.value * grad)


def magnitudes_of(name: str, value: Array) -> Array:
    """Magnitudes of a parameter's values, none of which may be NaN: no order has a place for it."""
    magnitude = np.abs(value)
    if np.isnan(magnitude).any():
        raise ValueError(f"{name} holds NaN, expected numbers")
    return np.asarray(magnitude)


def _prune(
    model: Model, sparsity: float, scope: str, exclude: Iterable[str], score: Callable[[str, SparseParameter], Array]
) -> None:
    """Keep the weights of highest score."""
    checks.choice(scope, "scope", SCOPES)
    count_nonzeros(1, sparsity)
    chosen = chosen_parameters(model, exclude)
    scores = [score(name, parameter) for name, parameter in chosen]
    sizes = [pattern.shape[0] * pattern.shape[1] for pattern in (pattern_of(p) for _, p in chosen)]
    if scope == "layer":
        masks = [largest(s, count_nonzeros(size, sparsity)) for s, size in zip(scores, sizes)]
    else:
        together = largest(np.concatenate(scores), count_nonzeros(sum(sizes), sparsity))
        masks = np.split(together, np.cumsum([len(s) for s in scores])[:-1])
    for (_, parameter), mask in zip(chosen, masks):
        if not mask.all():
            keep(parameter, mask)


def keep(parameter: SparseParameter, mask: NDArray[np.bool_]) -> None:
    """Drop the nonzeros of `parameter` for which `mask` (nnz,) is False."""
    pattern = pattern_of(parameter)
    kept = np.flatnonzero(mask)
    before = np.concatenate([[0], np.cumsum(mask)])
    indptr = before[pattern.indptr].astype(np.int64)
    parameter.replace_pattern(Pattern._trusted(indptr, pattern.indices[kept], pattern.shape), kept)
