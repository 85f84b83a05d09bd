"""Packages that extras bring: what is said where they are missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def require(what: str, extra: str, **packages: str) -> None:
    """Raise when a package is missing.

    Parameters
    ----------
    what : str
        What needs the packages.
    extra : str
        The extra that brings them.
    **packages : str
        The names that people know, by the names of the modules.

    Raises
    ------
    ModuleNotFoundError
        Naming all that are missing, and the extra.
    """
    missing = [module for module in packages if not installed(module)]
    if missing:
        raise ModuleNotFoundError(needs(what, extra, *(packages[module] for module in missing)), name=missing[0])


def installed(module: str) -> bool:
    """Whether a top-level module can be imported, without importing it."""
    return sys.modules[module] is not None if module in sys.modules else find_spec(module) is not None


def needs(what: str, extra: str, *packages: str) -> str:
    """The sentence that says what is missing and how it is had."""
    checkout = (Path(__file__).parents[1] / "pyproject.toml").exists()
    # pip leaves an installed fastsparse as it is and installs what its extra names.
    command = f"pip install -e '.[{extra}]' in the checkout" if checkout else f"pip install 'fastsparse[{extra}]'"
    return f"{what} needs {', '.join(packages)}: {command}"
