"""A few charts as inline SVG: axes with ticks, lines, dots, bars, a legend. Nothing is loaded from anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

Point = tuple[float, float]

_INK, _GRID = "#495057", "#e9ecef"
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 30, 44


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`, linear or logarithmic, with ticks and their texts."""

    low: float
    high: float
    label: str
    log: bool = True
    ticks: tuple[float, ...] = ()

    def place(self, value: float) -> float:
        """Position between 0 and 1."""
        if self.log:
            value, low, high = math.log(max(value, 1e-12)), math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return (value - low) / (high - low)

    def marks(self) -> tuple[float, ...]:
        """Ticks: those given, or 1, 2, 5 of every decade, or fifths."""
        if self.ticks:
            return tuple(t for t in self.ticks if self.low <= t <= self.high)
        if not self.log:
            return tuple(self.low + (self.high - self.low) * i / 5 for i in range(6))
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if len(decades) <= 4 else (1,)
        return tuple(v for d in decades for s in steps if self.low <= (v := s * 10.0**d) <= self.high)


def scale_of(values: Sequence[float], label: str, *, log: bool = True, low: float | None = None) -> Scale:
    """An axis with some air around the values."""
    smallest, largest = (min(values), max(values)) if values else (1.0, 1.0)
    if log:
        return Scale((low or smallest) / 1.25, max(largest, smallest * 1.01) * 1.25, label)
    return Scale(0.0 if low is None else low, largest * 1.08 or 1.0, label, log=False)


@dataclass
class Chart:
    """Collects marks, then gives the SVG."""

    title: str
    x: Scale
    y: Scale
    width: int = 460
    height: int = 300
    _marks: list[str] = field(default_factory=list)
    _legend: dict[str, str] = field(default_factory=dict)

    def _at(self, point: Point) -> Point:
        across = self.width - _LEFT - _RIGHT
        up = self.height - _TOP - _BOTTOM
        return _LEFT + across * self.x.place(point[0]), _TOP + up * (1 - self.y.place(point[1]))

    def line(self, points: Sequence[Point], colour: str, name: str = "", *, dashed: bool = False) -> None:
        """A line through points, with a dot at each unless it is dashed."""
        places = [self._at(point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>')
        if not dashed:
            for point in points:
                self.dot(point, colour, f"{name}: {number(point[0])}, {number(point[1])}")
        if name:
            self._legend[name] = colour

    def dot(self, point: Point, colour: str, tip: str, name: str = "") -> None:
        """A dot that says `tip` when it is pointed at."""
        x, y = self._at(point)
        self._marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" fill="{colour}" fill-opacity=".75">'
            f"<title>{escape(tip)}</title></circle>"
        )
        if name:
            self._legend[name] = colour

    def text(self, point: Point, words: str) -> None:
        """Words above a point."""
        x, y = self._at(point)
        self._marks.append(f'<text x="{x:.1f}" y="{y - 5:.1f}" fill="{_INK}" font-size="11">{escape(words)}</text>')

    def svg(self) -> str:
        """The picture."""
        parts = [
            f'<svg viewBox="0 0 {self.width} {self.height + self._legend_height()}" role="img" class="chart" '
            f'aria-label="{escape(self.title)}" style="max-width:{self.width}px">',
            f'<text x="{_LEFT}" y="17" font-size="13" font-weight="600">{escape(self.title)}</text>',
            *self._axes(),
            *self._marks,
            *self._legend_marks(),
            "</svg>",
        ]
        return "".join(parts)

    def _axes(self) -> list[str]:
        left, right, top, bottom = _LEFT, self.width - _RIGHT, _TOP, self.height - _BOTTOM
        parts = []
        for value in self.x.marks():
            x, _ = self._at((value, self.y.low))
            parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="{_GRID}"/>')
            parts.append(_label(x, bottom + 15, number(value), "middle"))
        for value in self.y.marks():
            _, y = self._at((self.x.low, value))
            parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{_GRID}"/>')
            parts.append(_label(left - 6, y + 4, number(value), "end"))
        parts.append(f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="{_INK}"/>')
        parts.append(_label((left + right) / 2, bottom + 33, self.x.label, "middle"))
        turn = f'transform="rotate(-90 14 {(top + bottom) / 2})"'
        parts.append(_label(14, (top + bottom) / 2, self.y.label, "middle", turn))
        return parts

    def _rows(self) -> list[list[tuple[str, str]]]:
        """The legend's entries, as many in a row as fit."""
        rows: list[list[tuple[str, str]]] = [[]]
        used = 0
        for entry in self._legend.items():
            need = 26 + 6.6 * len(entry[0])
            if used + need > self.width - _LEFT and rows[-1]:
                rows.append([])
                used = 0
            rows[-1].append(entry)
            used += need
        return rows if self._legend else []

    def _legend_height(self) -> int:
        return 18 * len(self._rows())

    def _legend_marks(self) -> list[str]:
        parts = []
        for i, row in enumerate(self._rows()):
            x, y = float(_LEFT), self.height + 18 * i + 6
            for name, colour in row:
                parts.append(f'<rect x="{x:.1f}" y="{y - 8}" width="10" height="10" rx="2" fill="{colour}"/>')
                parts.append(_label(x + 15, y + 1, name, "start"))
                x += 26 + 6.6 * len(name)
        return parts


def bars(title: str, groups: Mapping[str, Mapping[str, float]], colours: Mapping[str, str], width: int = 940) -> str:
    """Horizontal bars: a block for each group, a bar for each name in it, and a line where the value is 1."""
    bar, gap, left, top = 15, 12, 240, 30
    rows = sum(len(members) for members in groups.values())
    height = top + rows * bar + (len(groups) + 1) * gap
    most = max((value for members in groups.values() for value in members.values()), default=1.0)
    unit = (width - left - 150) / max(most, 1.0)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" class="chart" aria-label="{escape(title)}">',
        f'<text x="8" y="17" font-size="13" font-weight="600">{escape(title)}</text>',
    ]
    y = top
    for name, members in groups.items():
        parts.append(_label(left - 10, y + len(members) * bar / 2 + 4, name, "end"))
        for member, value in members.items():
            colour = colours.get(member, _INK)
            parts.append(
                f'<rect x="{left}" y="{y + 2}" width="{max(1.0, unit * value):.1f}" height="{bar - 4}" rx="2" '
                f'fill="{colour}" fill-opacity=".85"/>'
            )
            parts.append(_label(left + unit * value + 6, y + 11, f"{value:.2f}× {member}", "start"))
            y += bar
        y += gap
    parts.append(
        f'<line x1="{left + unit:.1f}" y1="{top - 4}" x2="{left + unit:.1f}" y2="{y - gap}" stroke="{_INK}" '
        'stroke-dasharray="3 3"/></svg>'
    )
    return "".join(parts)


def number(value: float) -> str:
    """Short text of a tick."""
    if value >= 1000 and value % 1000 == 0:
        return f"{value / 1000:.0f}k"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _label(x: float, y: float, words: str, anchor: str, more: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_INK}" font-size="11" {more}>'
        f"{escape(words)}</text>"
    )
