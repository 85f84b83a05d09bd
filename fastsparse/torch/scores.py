"""Which weights of dense torch layers to keep: magnitude, Wanda, SparseGPT, random; by layer, over all layers, or by
ERK."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastsparse.sparsity.patterns import count_nonzeros, erdos_renyi
from fastsparse.sparsity.selection import largest, largest_of_each

Array = NDArray[Any]
METHODS = "magnitude", "wanda", "sparsegpt", "random"
CALIBRATED = {"wanda": "Wanda", "sparsegpt": "SparseGPT"}  # methods that see inputs
SCOPES = "layer", "global", "erk"
BLOCK_COLUMNS = 128  # of SparseGPT: what is kept is chosen, and weights are updated, so many columns at a time
DAMPING = 0.01  # of SparseGPT, relative to the average square of an input


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
    method : one of METHODS but SparseGPT, for which see `sparsegpt`
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
        densities = chosen_densities(weights, sparsity, scope)
        chosen = [_kept(s, density, method == "wanda") for s, density in zip(scores, densities)]
    return [c & m for c, m in zip(chosen, masks)]


def chosen_densities(weights: list[Tensor], sparsity: float, scope: str) -> list[float]:
    """Density of every layer, for the scopes "layer" and "erk"."""
    if scope == "erk":
        return erdos_renyi([tuple(w.shape) for w in weights], sparsity)
    return [1 - sparsity] * len(weights)


def sparsegpt(weight: Array, mask: Array, products: Array, density: float) -> tuple[Array, Array]:
    """What to keep of the weight of a linear layer, and the weight that makes up for the rest.

    Column by column, weights that go are paid for by those to the right of them, so that outputs on the inputs seen
    change least. Elias Frantar, Dan Alistarh: SparseGPT, ICML 2023 (algorithm 1, masks of 128 columns at a time).

    Parameters
    ----------
    weight : float array (out, in)
    mask : bool array (out, in)
        What is pruned already is kept last.
    products : array (in, in)
        x.T @ x of the inputs.
    density : float
        Share to keep.

    Returns
    -------
    mask : bool array (out, in)
    weight : float32 array (out, in)
        0 outside of the mask.
    """
    w, hessian = weight.astype(np.float64), products.astype(np.float64)
    squares = np.diag(hessian)
    dead = squares == 0
    w[:, dead] = 0
    hessian[np.diag_indices_from(hessian)] += np.where(dead, 1.0, DAMPING * squares.mean())
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    kept = np.zeros(w.shape, np.bool_)
    for first in range(0, w.shape[1], BLOCK_COLUMNS):
        columns = slice(first, min(first + BLOCK_COLUMNS, w.shape[1]))
        block, u = w[:, columns], upper[columns, columns]  # a view: weights of the block are updated in place
        score = np.where(mask[:, columns], (block / np.diag(u)) ** 2, -1.0)
        keep = largest(score.ravel(), round(score.size * density)).reshape(score.shape) & mask[:, columns]
        errors = np.empty_like(block)
        for j in range(block.shape[1]):
            errors[:, j] = np.where(keep[:, j], 0.0, block[:, j]) / u[j, j]
            block[:, j:] -= np.outer(errors[:, j], u[j, j:])
        w[:, columns.stop :] -= errors @ upper[columns, columns.stop :]
        kept[:, columns] = keep
    return kept, np.where(kept, w, 0.0).astype(np.float32)


def _kept(scores: Array, density: float, by_row: bool) -> Array:
    if by_row:
        return largest_of_each(scores, max(1, round(scores.shape[1] * density)))
    return largest(scores.ravel(), round(scores.size * density)).reshape(scores.shape)
