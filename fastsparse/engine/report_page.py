"""An engine's report as a page of its own: one file, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import os
from html import escape
from typing import TYPE_CHECKING

from fastsparse.atomic_file import write_text

if TYPE_CHECKING:
    from fastsparse.engine.report import Report, Row

_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .2em .6em; text-align: left; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.why { color: #666; font-size: 12px; }
.bar { display: inline-block; height: .7em; background: #4878a8; } .peak { background: #6a9a5b; }
.track { display: inline-block; width: 8em; background: #eee; line-height: 0; }
"""
_COLUMNS = (
    ("layer", ""), ("operator", ""), ("output", ""), ("sparsity", "number"), ("kernel", ""), ("time", "number"),
    ("share of the call", ""), ("GF/s", "number"), ("of a core's peak", ""), ("why", ""),
)  # fmt: skip


def write_page(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the page; a crash leaves the old one whole."""
    write_text(path, page(report))


def page(report: Report) -> str:
    """The page's text."""
    head = "".join(f'<th class="{kind}">{name}</th>' for name, kind in _COLUMNS)
    body = "\n".join(_row(report, row) for row in report.rows)
    facts = "".join(f"<li>{escape(name)}: {escape(text)}</li>" for name, text in report.facts.items())
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>fastsparse engine</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>What the engine does</h1>\n<ul>{facts}</ul>\n"
        f"<p>{report.milliseconds:.3f} ms for all steps.</p>\n"
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></body></html>\n"
    )


def _row(report: Report, row: Row) -> str:
    share = row.milliseconds / max(report.milliseconds, 1e-12)
    rate, of_peak = "", ""
    if row.gflops is not None:
        rate, of_peak = f"{row.gflops:.1f}", _bar(row.gflops / report.peak_gflops, "peak")
    cells = (
        escape(row.layer), escape(row.operator), "" if row.output is None else "x".join(map(str, row.output)),
        "" if row.sparsity is None else f"{row.sparsity:.1%}", escape(row.kernel), f"{row.milliseconds:.4f} ms",
        _bar(share), rate, of_peak, escape(row.why),
    )  # fmt: skip
    kinds = [kind or ("why" if name == "why" else "") for name, kind in _COLUMNS]
    return "<tr>" + "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, cells)) + "</tr>"


def _bar(part: float, kind: str = "") -> str:
    width = 100 * min(1.0, max(0.0, part))
    return f'<span class="track"><span class="bar {kind}" style="width:{width:.1f}%"></span></span> {part:.0%}'
