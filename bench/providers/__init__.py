"""Who is measured. A provider is a name, the module it needs, and `setup(case) -> callable`.

The callable does the work once, from user arrays to a user array, and returns the result (for steps: a tuple of
results). Setup may convert weights, allocate outputs and plan; it is not timed.
"""

from __future__ import annotations

import importlib.util
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
        Modules that must be importable.
    """

    name: str
    setup: Callable[[Any, int], Call]
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Modules this provider needs and this environment lacks."""
        return [module for module in self.needs if importlib.util.find_spec(module) is None]
