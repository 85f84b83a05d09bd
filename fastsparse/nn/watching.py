"""Looking at the outputs of all layers while a model runs: for summaries, and to find where NaN begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastsparse.nn.module import Module

Watcher = Callable[["Module", NDArray[Any]], None]

current_watcher: ContextVar[Watcher | None] = ContextVar("fastsparse_watcher", default=None)


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Have `watcher` called with (layer, output) after each layer's call, in this thread."""
    token = current_watcher.set(watcher)
    try:
        yield
    finally:
        current_watcher.reset(token)
