"""Training images that move by a pixel or so, anew in every epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Shifted:
    """Mini-batches of images, each moved at random by at most `by` pixels down or up and to the side; 0 comes in.

    Every iteration has a new order and new places. The last batch holds what is left.

    Parameters
    ----------
    images : array (n, channels, height, width)
    labels : array (n,)
    batch_size : int
    by : int
    rng : None, int or Generator
    """

    def __init__(self, images: NDArray[Any], labels: NDArray[Any], batch_size: int, by: int, rng: Any = None) -> None:
        if images.ndim != 4:
            raise ValueError(f"images has shape {images.shape}, expected (n, channels, height, width)")
        self._labels, self._batch_size, self._by = labels, batch_size, by
        self._rng = np.random.default_rng(rng)
        padded = np.pad(images, ((0, 0), (0, 0), (by, by), (by, by)))
        # (n, channels, places down, places to the side, height, width), a view
        self._windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[2:], axis=(2, 3))

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(self._labels) / self._batch_size)

    def __iter__(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        order = self._rng.permutation(len(self._labels))
        for first in range(0, len(order), self._batch_size):
            chosen = order[first : first + self._batch_size]
            down, aside = self._rng.integers(0, 2 * self._by + 1, (2, len(chosen)))
            yield self._windows[chosen, :, down, aside], self._labels[chosen]
