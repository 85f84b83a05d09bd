"""Which weights of dense torch layers to keep: magnitude, Wanda, random; by layer, over all layers, or by ERK."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastsparse.sparsity.patterns import count_nonzeros, erdos_renyi
from fastsparse.sparsity.selection import largest, largest_of_each

Array = NDArray[Any]
METHODS = "magnitude", "wanda", "random"
SCOPES = "layer", "global", "erk"


def chosen_masks(
    weights: list[Tensor], masks: list[Array], norms: list[Array | None], sparsity: float, method: str, scope: str,
    rng: np.random.Generator,
) -> list[Array]:  # fmt: skip
    """Masks (out, columns) of the weights to keep.

    Parameters
    ----------
    weights : tensors (out, ...)
    masks : bool arrays (out, columns)
        What is pruned already is kept last.
    norms : arrays (columns,)
        Of the layers' inputs, for Wanda.
    sparsity : float in [0, 1)
    method : one of METHODS
        "wanda" keeps the largest magnitude times norm of the input of every row: Sun et al., A Simple and Effective
        Pruning Approach for Large Language Models, ICLR 2024.
    scope : one of SCOPES
    rng : Generator
    """
    scores = []
    for weight, mask, norm in zip(weights, masks, norms):
        flat = weight.reshape(len(weight), -1).float().numpy()
        score = rng.random(flat.shape, np.float32) if method == "random" else np.abs(flat)
        if method == "wanda" and norm is not None:
            score = score * norm
        scores.append(np.where(mask, score, np.float32(-1)))
    if scope == "global":
        together = largest(
            np.concatenate([s.ravel() for s in scores]), count_nonzeros(sum(map(np.size, scores)), sparsity)
        )
        parts = np.split(together, np.cumsum([s.size for s in scores])[:-1])
        chosen = [part.reshape(s.shape) for part, s in zip(parts, scores)]
    else:
        densities = [1 - sparsity] * len(scores)
        if scope == "erk":
            densities = erdos_renyi([tuple(w.shape) for w in weights], sparsity)
        chosen = [_kept(s, density, method == "wanda") for s, density in zip(scores, densities)]
    return [c & m for c, m in zip(chosen, masks)]


def _kept(scores: Array, density: float, by_row: bool) -> Array:
    if by_row:
        return largest_of_each(scores, max(1, round(scores.shape[1] * density)))
    return largest(scores.ravel(), round(scores.size * density)).reshape(scores.shape)
