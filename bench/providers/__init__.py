"""Who is measured. A provider is a name, the module it needs, and `setup(case) -> callable`.

The callable does the work once, from user arrays to a user array, and returns the result (for steps: a tuple of
results). Setup may convert weights, allocate outputs and plan; it is not timed. Where the timed result is not in the
user's layout, the callable has an attribute `result`: a callable that does the same work and gives it in that layout.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Call = Callable[[], Any]

# fastsparse is measured first; everybody else is a rival.
OURS = "fastsparse"


@dataclass(frozen=True)
class Provider:
    """One way to do a kind of work.

    Attributes
    ----------
    name : str
    setup : callable
        `setup(case, threads)` returns the callable to time.
    needs : tuple of str
        Distributions that must be installed.
    """

    name: str
    setup: Callable[[Any, int], Call]
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Distributions this provider needs and this environment lacks."""
        return [name for name in self.needs if not _installed(name)]


def torch_on(threads: int) -> Any:
    """The module torch, told to use so many threads."""
    import torch

    torch.set_num_threads(threads)
    return torch


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
