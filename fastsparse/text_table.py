"""The one writer of text tables: aligned columns that fit the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence

_GAP = 2
_LEAST = 12  # characters that a column of text keeps, however narrow the terminal is
# Where there is no terminal to ask: wide enough for every column of a report with names of usual length.
_FALLBACK = (160, 24)


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, text: int, total: bool = False, width: int | None = None
) -> str:
    """A table with its first `text` columns aligned left and the others right.

    Parameters
    ----------
    header, rows : sequences of str
        Every row has as many cells as the header.
    text : int
        How many columns hold text. Their longest cells are shortened in the middle until the table fits; numbers are
        never cut.
    total : bool
        Whether a rule separates the last row from those above it.
    width : int, optional
        Characters of a line; those of the terminal by default.

    Returns
    -------
    str
        Lines without trailing spaces and without a newline at the end.
    """
    width = terminal_width() if width is None else width
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    room = width - _GAP * (len(widths) - 1) - sum(widths[text:])
    caps = range(max(widths), _LEAST, -1)
    cap = next((cap for cap in caps if sum(min(w, cap) for w in widths[:text]) <= room), _LEAST)
    widths[:text] = [min(w, cap) for w in widths[:text]]

    def line(cells: Sequence[str]) -> str:
        padded = (
            shortened(cell, w).ljust(w) if i < text else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths))
        )
        return (" " * _GAP).join(padded).rstrip()

    lines = [line(header), *map(line, rows)]
    rule = "-" * max(map(len, lines))
    lines.insert(1, rule)
    if total:
        lines.insert(-1, rule)
    return "\n".join(lines)


def text_facts(facts: Iterable[tuple[str, str]]) -> str:
    """Names and what they stand for, one line each, in two columns."""
    pairs = list(facts)
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{name:<{width}}{' ' * _GAP}{value}".rstrip() for name, value in pairs)


def text_bytes(count: float) -> str:
    """So many bytes, in the unit that fits them."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def shortened(text: str, width: int) -> str:
    """The text, without its middle where it is longer than `width`: names differ at both ends."""
    if len(text) <= width:
        return text
    front = (width - 3) // 2
    return f"{text[:front]}...{text[len(text) - (width - 3 - front) :]}"


def wrapped(text: str) -> str:
    """A line of text broken where it would leave the terminal; what follows is indented."""
    return textwrap.fill(text, terminal_width(), subsequent_indent="  ")


def terminal_width() -> int:
    """Characters of a line."""
    return shutil.get_terminal_size(_FALLBACK).columns
