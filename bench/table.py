"""The README's tables from the JSON of pytest-benchmark: `python -m bench.table results.json`.

Ratios are medians of ratios within one round (rival and fastsparse ran in turn); times are medians, with the minimum
in brackets.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.providers import OURS

Entry = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables of one results file as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=main.__doc__)
    parser.add_argument("results", type=Path, help="what pytest --benchmark-json wrote")
    args = parser.parse_args(argv)
    try:
        data = json.loads(args.results.read_text(encoding="utf-8"))
        text = render(data)
    except (OSError, ValueError, KeyError) as error:
        print(f"bench.table: {args.results} is not a results file of these benchmarks: {error!r}", file=sys.stderr)
        return 1
    print(text)
    return 0


def render(data: dict[str, Any]) -> str:
    """Header and tables: races, scaling, startup; each only when it was measured."""
    entries = [{**entry["extra_info"], **entry} for entry in data["benchmarks"]]
    races = [entry for entry in entries if "fastsparse_seconds" in entry]
    scaling = [entry for entry in entries if "one_thread_seconds" in entry]
    startup = [entry for entry in entries if entry.get("waits")]
    parts = [_header(data)]
    kinds = dict.fromkeys(_kind(entry) for entry in races)
    parts += [_races(kind, [entry for entry in races if _kind(entry) == kind]) for kind in kinds]
    if scaling:
        parts.append(_scaling(scaling))
    if startup:
        parts.append(_startup(startup))
    return "\n\n".join(parts)


def _header(data: dict[str, Any]) -> str:
    machine = data["machine_info"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    cpu = machine["cpu"].get("brand_raw") or machine["processor"] or machine["machine"]
    lines = [
        f"{cpu}, {machine['cpu'].get('count', '?')} processors; Python {machine['python_version']}, {versions}; "
        f"fastsparse {machine['fastsparse']} ({machine['commit']}), {data['datetime'][:10]}."
    ]
    if machine["missing_providers"]:
        lines.append(f"Not installed, so not measured: {', '.join(machine['missing_providers'])}.")
    return " ".join(lines)


def _kind(entry: Entry) -> str:
    """What heads a table: the kind of work and the number of threads."""
    kind = entry["group"].removesuffix(entry["workload"]).strip()
    return f"{kind}, {_threads(entry['threads'])}"


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"


def _races(kind: str, entries: list[Entry]) -> str:
    rivals = list(dict.fromkeys(entry["provider"] for entry in entries if entry["provider"] != OURS))
    rows = []
    ratios: dict[str, list[float]] = {rival: [] for rival in rivals}
    for workload in dict.fromkeys(entry["workload"] for entry in entries):
        found = {entry["provider"]: entry for entry in entries if entry["workload"] == workload}
        row = [workload, *_own_cells(found)]
        for rival in rivals:
            if rival in found:
                ratio = _ratio(found[rival]["stats"]["data"], found[rival]["fastsparse_seconds"])
                ratios[rival].append(ratio)
                row.append(f"{ratio:.2f}x ({_time(found[rival]['stats']['median'])})")
            else:
                row.append("")
        rows.append(row)
    rows.append(["geometric mean", "", "", *(f"{statistics.geometric_mean(ratios[rival]):.2f}x" for rival in rivals)])
    head = [kind, "fastsparse: median (minimum)", "useful GF/s", *(f"faster than {rival} by" for rival in rivals)]
    return _markdown(head, rows)


def _own_cells(found: dict[str, Entry]) -> list[str]:
    """Time and speed of fastsparse: its own entry, or the rounds beside some rival."""
    own = found.get(OURS)
    some = next(iter(found.values()))
    seconds = own["stats"]["data"] if own else some["fastsparse_seconds"]
    median = statistics.median(seconds)
    return [f"{_time(median)} ({_time(min(seconds))})", f"{some['flops'] / median / 1e9:.0f}"]


def _scaling(entries: list[Entry]) -> str:
    rows = []
    for entry in entries:
        one, two = entry["one_thread_seconds"], entry["stats"]["data"]
        times = [_time(statistics.median(seconds)) for seconds in (one, two)]
        rows.append([entry["workload"], *times, f"{_ratio(one, two):.2f}x"])
    return _markdown(["two threads against one", "one", "two", "ratio"], rows)


def _startup(entries: list[Entry]) -> str:
    rows = [[e["workload"], _time(statistics.median(e["waits"])), _time(min(e["waits"]))] for e in entries]
    return _markdown(["waited for once", "median", "minimum"], rows)


def _ratio(rival: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(r / o for r, o in zip(rival, ours))


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.0f} us"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join([line(head), line(rule), *map(line, rows)])


if __name__ == "__main__":
    sys.exit(main())
