"""The one writer of HTML: pages of one file each, without scripts, that load nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from fastsparse import checks
from fastsparse.runtime.atomic_file import write_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #212529; background: #fff; max-width: 72em; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 1.8rem 0 .4rem; }
p { margin: .4rem 0 .8rem; } .muted { color: #6c757d; font-size: .88rem; } img { width: 100%; height: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: .7rem; margin: 1rem 0; }
.tile { background: #f1f5f6; border-radius: 8px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.5rem; color: #0b7285; } .tile span { font-size: .88rem; }
.wide { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { padding: .2rem .6rem; border-bottom: 1px solid #e3e7ea; text-align: left; vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.track { display: inline-block; width: 8em; background: #eee; line-height: 0; }
.bar { display: inline-block; height: .7em; background: #0b7285; }
"""


class Html(str):
    """Markup, as opposed to text that has to be escaped."""

    __slots__ = ()


def page(title: str, *parts: str) -> str:
    """A whole page; empty parts are left out."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        + "\n".join(filter(None, map(_markup, parts)))
        + "</body></html>\n"
    )


def section(title: str, *parts: str) -> Html:
    """A heading with what belongs below it."""
    return Html(f"<h2>{escape(title)}</h2>{''.join(map(_markup, parts))}")


def paragraph(text: str, style: str = "muted") -> Html:
    """A paragraph of text, of a class of the page's style or plain."""
    return Html(f'<p class="{style}">{_markup(text)}</p>' if style else f"<p>{_markup(text)}</p>")


def bullets(lines: Iterable[str]) -> Html:
    """A list of lines; nothing when there are none."""
    items = "".join(f"<li>{_markup(line)}</li>" for line in lines)
    return Html(f"<ul>{items}</ul>" if items else "")


def tiles(pairs: Iterable[tuple[str, str]]) -> Html:
    """Large figures with what they are."""
    each = (f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in pairs)
    return Html(f'<div class="tiles">{"".join(each)}</div>')


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text: int = 1) -> Html:
    """A table whose first `text` columns are text and the others numbers; nothing when it has no rows."""
    body = "".join(f"<tr>{_cells('td', row, text)}</tr>\n" for row in rows)
    if not body:
        return Html()
    return Html(f'<div class="wide"><table>\n<tr>{_cells("th", header, text)}</tr>\n{body}</table></div>')


def bar(part: float) -> Html:
    """A share as a bar with its number."""
    width = 100 * min(1.0, max(0.0, part))
    return Html(
        f'<span class="track"><span class="bar" style="width:{width:.1f}%"></span></span> {escape(f"{part:.0%}")}'
    )


def picture(figure: Any, text: str) -> Html:
    """A matplotlib Figure, within the page; `text` says what it shows."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Html(f'<img src="data:image/png;base64,{data}" alt="{escape(text)}">')


def write(path: str | os.PathLike[str], text: str) -> None:
    """Write a page; a file of that name is replaced in one step."""
    write_text(checks.path(path), text)


def _cells(tag: str, cells: Sequence[str], text: int) -> str:
    numbers = f'{tag} class="n"'
    return "".join(f"<{numbers if i >= text else tag}>{_markup(cell)}</{tag}>" for i, cell in enumerate(cells))


def _markup(text: str) -> str:
    return text if isinstance(text, Html) else escape(text)
