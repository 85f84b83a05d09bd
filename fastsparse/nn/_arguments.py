"""Checks of layers' arguments, beside those of ``fastsparse.arguments``: sentences that name the argument."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastsparse.arguments import Seed

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def integer(value: Any, name: str, least: int = 1) -> int:
    """`value` as an int of at least `least`."""
    number = _index(value)
    if number is None or number < least:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}")
    return number


def number(value: Any, name: str, low: float, high: float = math.inf) -> float:
    """`value` as a finite float in [low, high]."""
    wanted = f"a number of at least {low}" if high == math.inf else f"a number from {low} to {high}"
    if isinstance(value, (bool, str)):
        raise TypeError(f"{name} is {value!r}, expected {wanted}")
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}, expected {wanted}") from None
    if not (low <= found <= high and math.isfinite(found)):
        raise ValueError(f"{name} is {value!r}, expected {wanted}")
    return found


def flag(value: Any, name: str) -> bool:
    """`value` as a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r}, expected True or False")
    return bool(value)


def dtype(value: DTypeLike) -> np.dtype[Any]:
    """`value` as float32 or float64."""
    try:
        found = np.dtype(value)
    except TypeError:
        found = None
    if value is None or found not in _FLOATS:
        raise TypeError(f"dtype is {value!r}, expected float32 or float64")
    return found


def generator(rng: Seed) -> np.random.Generator:
    """`rng`, None, a seed or a Generator, as a Generator."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError):
        raise TypeError(f"rng is {rng!r}, expected None, an integer seed or a numpy.random.Generator") from None


def _index(value: Any) -> int | None:
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
