"""Callbacks of `fit`: objects called after each epoch.

Besides being called, a callback may have ``begin(progress)``, called before the first epoch of a call of `fit` (also of
a resumed one), and ``state_dict()`` and ``load_state_dict(arrays)``, whose arrays go into checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fastsparse import checks
from fastsparse.nn.module import Module
from fastsparse.nn.state import stage
from fastsparse.training.history import History

if TYPE_CHECKING:
    from fastsparse.training.fit import Progress

Array = NDArray[Any]


class EarlyStopping:
    """Stop when a figure of the history has not improved for a while.

    What has been seen is read from the history, so a resumed run stops where an uninterrupted one would.

    Parameters
    ----------
    monitor : str
        A name in the history's records. Names that end in "accuracy" shall rise, all others fall.
    patience : int
        Epochs without improvement before the training stops.
    min_delta : float
        What counts as an improvement.
    restore_best : bool
        At the end, give the model the weights of the best epoch; they are kept in checkpoints too.

    Examples
    --------
    >>> from fastsparse.training import EarlyStopping
    >>> stopping = EarlyStopping("val_loss", patience=3)  # fit(..., callbacks=[stopping])
    """

    def __init__(
        self, monitor: str = "val_loss", patience: int = 5, min_delta: float = 0.0, restore_best: bool = True
    ) -> None:
        if not isinstance(monitor, str):
            raise TypeError(f"monitor is {checks.shown(monitor)}, expected a name, for example 'val_loss'")
        self.monitor, self.patience = monitor, checks.integer(patience, "patience")
        self.min_delta = checks.number(min_delta, "min_delta")
        self.restore_best = checks.flag(restore_best, "restore_best")
        self._best: dict[str, Array] = {}

    def best_epoch(self, history: History) -> int:
        """Number of the best epoch, from 1; 0 when there is none yet."""
        sign = -1.0 if self.monitor.endswith("accuracy") else 1.0
        best, least = 0, math.inf
        for epoch, record in enumerate(history, start=1):
            if self.monitor not in record:
                raise ValueError(f"monitor is {self.monitor!r}, expected one of {', '.join(sorted(record))}")
            if sign * record[self.monitor] < least - (self.min_delta if best else 0.0):
                best, least = epoch, sign * record[self.monitor]
        return best

    def begin(self, progress: Progress) -> None:
        """Stop at once when the history says that an earlier call stopped."""
        if not progress.epoch:
            self._best = {}
        progress.stop = progress.stop or self._over(progress)

    def __call__(self, progress: Progress) -> None:
        """Look at the last epoch."""
        best = self.best_epoch(progress.history)
        if self.restore_best and best == progress.epoch:
            self._best = progress.model.state_dict()
        progress.stop = progress.stop or self._over(progress)
        if self._best and (progress.stop or progress.epoch == progress.epochs):
            progress.model.load_state_dict(self._best)

    def _over(self, progress: Progress) -> bool:
        return progress.epoch - self.best_epoch(progress.history) >= self.patience

    def state_dict(self) -> dict[str, Array]:
        """Weights of the best epoch."""
        return self._best

    def check_state(self, arrays: Mapping[str, Array], model: Module, history: History) -> None:
        """Raise ValueError unless :meth:`state_dict` gave `arrays` in a training of the model with this history."""
        self.best_epoch(history)
        if arrays:
            stage(model, arrays)

    def load_state_dict(self, arrays: Mapping[str, Array]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._best = dict(arrays)
