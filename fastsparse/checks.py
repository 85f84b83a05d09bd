"""Checks of single arguments, for every public function.

Each gives the value in the type that was asked for, or raises ValueError or TypeError in one sentence that names the
argument, what came and what was expected.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy import sparse

from fastsparse.runtime.memo import Memoized

Seed = int | np.random.Generator | None
PathLike = str | os.PathLike[str]

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
INT64_MAX = 2**63 - 1
_LONGEST = 100  # characters of a value in a message


def shown(value: Any) -> str:
    """`value` for a message: its repr where that is short and on one line, its type otherwise."""
    text = repr(value)
    return text if len(text) <= _LONGEST and "\n" not in text else f"a {type(value).__name__}"


def flag(value: Any, name: str) -> bool:
    """A bool of Python or NumPy."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {shown(value)}, expected True or False")
    return bool(value)


def index(value: Any) -> int | None:
    """An integer of any type but bool as an int; None for anything else."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def integer(value: Any, name: str, least: int = 1, most: int = INT64_MAX) -> int:
    """An integer from `least` to `most`."""
    number = index(value)
    if number is None or not least <= number <= most:
        above = number is not None and number > most
        wanted = f"from {least} to {most}" if above else f"of at least {least}"
        raise ValueError(f"{name} is {shown(value)}, expected an integer {wanted}")
    return number


def number(value: Any, name: str, low: float = 0, high: float = math.inf, *, ends: str = "[]") -> float:
    """A finite float from `low` to `high`; `ends` says which of the two belong to the range."""
    if high != math.inf:
        wanted = (
            f"a number from {low:g} to {high:g}" if ends == "[]" else f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}"
        )
    else:
        wanted = f"a number {'of at least' if ends[0] == '[' else 'above'} {low:g}"
    try:
        if isinstance(value, (bool, np.bool_, str, bytes)) or np.ndim(value):
            raise TypeError
        found = float(value)
    except Exception:
        raise TypeError(f"{name} is {shown(value)}, expected {wanted}") from None
    above = found >= low if ends[0] == "[" else found > low
    below = found <= high if ends[1] == "]" else found < high
    if not (above and below and math.isfinite(found)):
        raise ValueError(f"{name} is {shown(value)}, expected {wanted}")
    return found


def choice(value: Any, name: str, options: Collection[str | None]) -> Any:
    """One of a few names, among which None may be."""
    if not (value is None or isinstance(value, str)) or value not in options:
        *others, last = map(repr, options)
        wanted = f"{others[0]} or {last}" if len(others) == 1 else f"one of {', '.join([*others, last])}"
        raise ValueError(f"{name} is {shown(value)}, expected {wanted}")
    return value


def float_dtype(value: DTypeLike, name: str = "dtype") -> np.dtype[Any]:
    """float32 or float64, in native byte order."""
    try:
        found = None if value is None else np.dtype(value)
    except Exception:
        found = None
    # A dtype equals whatever NumPy would make it of, None included.
    native = None if found is None else found.newbyteorder("=")
    if native is None or native not in FLOATS:
        text = shown(value) if found is None or isinstance(value, str) else found.name
        raise TypeError(f"{name} is {text}, expected float32 or float64")
    return native


def generator(rng: Seed, name: str = "rng") -> np.random.Generator:
    """None, a seed or a Generator as a Generator."""
    try:
        return np.random.default_rng(rng)
    except Exception:
        raise TypeError(f"{name} is {shown(rng)}, expected None, an integer seed or a numpy.random.Generator") from None


def axes(value: Any, count: int, name: str, least: int, most: int) -> tuple[int, ...]:
    """An integer for all axes, or one for each."""
    items = value if is_sequence(value) else (value,) * count
    numbers = [index(item) for item in items]
    if len(numbers) != count or not all(n is not None and least <= n <= most for n in numbers):
        wanted = "an integer" if count == 1 else f"an integer or {count} integers, each"
        raise ValueError(f"{name} is {shown(value)}, expected {wanted} from {least} to {most}")
    return tuple(n for n in numbers if n is not None)


def shape(value: Any, name: str) -> tuple[int, ...]:
    """A shape of any number of axes."""
    numbers = [index(size) for size in value] if is_sequence(value) else [None]
    if not all(n is not None and 0 <= n <= INT64_MAX for n in numbers):
        raise ValueError(f"{name} is {shown(value)}, expected a tuple of integers of at least 0")
    return tuple(n for n in numbers if n is not None)


def is_sequence(value: Any) -> bool:
    """A list, tuple or the like, which text is not."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def items(value: Any, name: str, expected: str) -> list[Any]:
    """What an iterable holds that is neither text nor an array, dense or sparse."""
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, np.ndarray)) or sparse.issparse(value):
        raise TypeError(f"{name} is {shown(value)}, expected {expected}")
    return list(value)


def names(value: Any, name: str) -> tuple[str, ...]:
    """One name or several."""
    try:
        found = (value,) if isinstance(value, str) else tuple(value)
    except TypeError:
        found = (None,)
    if not all(isinstance(item, str) for item in found):
        raise TypeError(f"{name} is {shown(value)}, expected names, for example ('0', '2.values')")
    return found


def path(value: Any, name: str = "path") -> str:
    """A path of the file system as text."""
    try:
        found = os.fsdecode(value)
    except TypeError:
        raise TypeError(f"{name} is {shown(value)}, expected a path, text or os.PathLike") from None
    if not found or "\0" in found:
        raise ValueError(f"{name} is {found!r}, expected the name of a file")
    return found


def as_array(value: Any, name: str) -> NDArray[Any]:
    """A dense array of any type."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, expected an array without a mask (fill it first)")
    if isinstance(value, Memoized) or sparse.issparse(value):
        raise TypeError(f"{name} is {type(value).__name__}, expected a dense array")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is no array: {error}") from error
    except Exception as error:  # what arrays of other libraries raise: gradients are recorded, another device, ...
        raise TypeError(f"{name} is no array: {error}") from error


def real_array(value: Any, name: str) -> NDArray[Any]:
    """A dense array of real numbers: of a float, integer or bool type."""
    array = as_array(value, name)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} has dtype {array.dtype}, expected real numbers")
    return array
