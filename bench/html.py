"""The report: one HTML file that stands alone. Figures first, then pictures, then every measurement."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from bench import pictures, summary, targets
from bench.providers import OURS

Entry = dict[str, Any]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #212529; background: #fff; max-width: 980px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; }
p { margin: .4rem 0 .8rem; } .muted { color: #6c757d; font-size: .88rem; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; } .wide { overflow-x: auto; margin-bottom: 1rem; }
td, th { padding: .2rem .5rem; border-bottom: 1px solid #e3e7ea; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
td:first-child, th:first-child { text-align: left; white-space: normal; min-width: 14rem; }
th { font-weight: 600; vertical-align: bottom; }
.met { color: #2b8a3e; } .missed { color: #c92a2a; } .not { color: #868e96; } td.less { color: #c92a2a; }
svg.chart { width: 100%; height: auto; font-family: system-ui, sans-serif; }
summary { cursor: pointer; margin: .5rem 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
"""


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    body = [
        "<h1>fastsparse: measured</h1>",
        _machine(results),
        _section("Targets", _targets(results)),
        _section("Against others", pictures.means(results), _means(results)),
        _section("The slowest", _slowest(results)),
        _section("Every product", pictures.ratios(results)),
        _section("How near to what the core can do", pictures.roofline(results), _ROOFLINE_NOTE),
        _section("More threads", pictures.threads(results)),
        _section("Over size", _pair(pictures.sizes(results))),
        _section("Failed or wrong, so not measured", _list(results["errors"])),
        _section("All measurements", _NOTE, *_tables(results)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>fastsparse bench</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


_NOTE = (
    '<p class="muted">Median time, minimum in brackets. Ratios are medians of the ratios within one round, in which '
    "everybody ran in turn; below 1 the other one is faster. Every result was held against a float64 reference "
    "before it was timed. User arrays go in and come out, <code>out</code> is preallocated wherever a library takes "
    "one; groups that say so keep activations in the kernels' layouts.</p>"
)
_ROOFLINE_NOTE = (
    '<p class="muted">Operations count at nonzeros only. Bytes are those of operands and result, once each; what fits '
    "the cache can stand above the slope.</p>"
)


def _section(title: str, *parts: str) -> str:
    content = "".join(parts)
    has_more = any(part and part not in (_NOTE, _ROOFLINE_NOTE) for part in parts)
    return f"<h2>{escape(title)}</h2>{content}" if has_more else ""


def _machine(results: dict[str, Any]) -> str:
    return "".join(f'<p class="muted">{escape(line)}</p>' for line in summary.header(results))


def _targets(results: dict[str, Any]) -> str:
    rows = []
    for row in targets.evaluate(results):
        note = f'<br><span class="muted">{escape(row.note)}</span>' if row.note else ""
        rows.append(
            f"<tr><td>{escape(row.what)}{note}</td><td>{escape(row.wanted)}</td><td>{escape(row.found)}</td>"
            f'<td class="{row.verdict.split()[0]}">{escape(row.verdict)}</td></tr>'
        )
    return f"<table><tr><th>target<th>wanted<th>found<th></tr>{''.join(rows)}</table>"


def _means(results: dict[str, Any]) -> str:
    peak = summary.peak(results)
    entries = [e for e in results["workloads"] if e["flops"] and e["seconds"].get(OURS) and e["group"] != "threads"]
    tables = []
    for rivals, sharing in summary.by_rivals(entries).items():
        rows = []
        for name, members in summary.classes(sharing).items():
            rate = summary.mean_rate(members) or 0.0
            cells = [_ratio_cell(summary.geometric_mean(members, rival)) for rival in rivals]
            rows.append([name, len(members), f"{rate:.1f}", f"{rate / peak:.0%}", *cells])
        tables.append(_table(["geometric means: faster than", "count", "GF/s", "of peak", *rivals], rows))
    return "".join(tables)


def _slowest(results: dict[str, Any]) -> str:
    found = summary.worst(summary.races(results), summary.SPARSE_PEERS)
    rows = [
        [f"{entry['group']} {entry['name']}", _ratio_cell(value), rival, f"{summary.rate(entry) or 0:.1f}",
         summary.time(statistics.median(entry["seconds"][OURS]))]
        for value, rival, entry in found
    ]  # fmt: skip
    return _table(["against the fastest of scipy, MKL, torch.sparse", "ratio", "that is", "GF/s", "time"], rows)


def _tables(results: dict[str, Any]) -> Iterable[str]:
    groups = dict.fromkeys((entry["group"], entry["title"]) for entry in results["workloads"])
    for group, title in groups:
        entries = [entry for entry in results["workloads"] if entry["group"] == group]
        table = _all(entries, summary.peak(results, group))
        yield f"<details><summary>{escape(title)}: {len(entries)}</summary>{table}</details>"


def _all(entries: Sequence[Entry], peak: float) -> str:
    names = list(dict.fromkeys(name for entry in entries for name in entry["seconds"] if name != OURS))
    rows = []
    for entry in entries:
        seconds, speed = entry["seconds"].get(OURS), summary.rate(entry)
        facts = ", ".join(f"{key} {value}" for key, value in entry.get("facts", {}).items())
        row = [entry["name"] + (f" ({facts})" if facts else ""), _span(seconds)]
        row += ["", ""] if speed is None else [f"{speed:.1f}", f"{speed / peak:.0%}"]
        for name in names:
            cell = _ratio_cell(summary.ratio(entry, name))
            row.append(f"{cell} {_span(entry['seconds'].get(name))}")
        rows.append(row)
    return _table(["workload", "fastsparse", "GF/s", "of peak", *(f"faster than {name}" for name in names)], rows)


def _span(seconds: Sequence[float] | None) -> str:
    return f"{summary.time(statistics.median(seconds))} ({summary.time(min(seconds))})" if seconds else ""


class _Less(str):
    """A ratio below 1."""


def _ratio_cell(value: float | None) -> str:
    text = "" if value is None else f"{value:.2f}×"
    return _Less(text) if value is not None and value < 1 else text


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{"".join(f"<th>{escape(h)}</th>" for h in head)}</tr>{body}</table></div>'


def _cell(cell: Any) -> str:
    mark = ' class="less"' if isinstance(cell, _Less) else ""
    return f"<td{mark}>{escape(str(cell))}</td>"


def _pair(content: str) -> str:
    return f'<div class="pair">{content}</div>' if content else ""


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
