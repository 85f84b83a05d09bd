"""The report of one run or several: `python -m bench.report A.json B.json --docs DIR`.

Figures as text on standard output; for the documentation all tables as Markdown, and pictures.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from bench.baselines import OURS
from bench.results import SPARSE_BASELINES, Entry, Results, compact, geometric_mean, read
from fastsparse.runtime.atomic_file import write_text

_SHORT = 24  # groups of at most so many workloads are printed whole
_NOTE = (
    "Median time, minimum in brackets. Ratios are medians of the ratios within a round, in which all libraries ran one "
    "after the other; below 1 the other one is faster. Every result was held against a float64 reference before it was "
    "timed. User arrays go in and come out, preallocated wherever a library takes them; groups that say so keep "
    "activations in the kernels' layouts."
)
_PICTURES = "over_sparsity", "crossover", "roofline", "threads", "sizes"  # of the documentation


@dataclass(frozen=True)
class Table:
    """A title, a header and rows; text comes before numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: int = 1

    def plain(self) -> str:
        """As Markdown."""
        align = ["left" if i < self.text else "right" for i in range(len(self.header))]
        return f"{self.title}\n\n{tabulate(self.rows, self.header, 'github', colalign=align, disable_numparse=True)}"


def text(results: Results) -> str:
    """Machine, geometric means, the slowest workloads, short groups, what failed."""
    tables = [*_means(results), *_slowest(results), *(t for t in _groups(results) if len(t.rows) <= _SHORT)]
    parts = ["\n".join(_header(results)), *(table.plain() for table in tables if table.rows)]
    if results.machine["problems"]:
        parts.append("\n".join(["Failed or wrong, so not measured:", *results.machine["problems"]]))
    return "\n\n".join(parts)


def markdown(results: Results) -> str:
    """A page of the documentation: the machine, and every table."""
    tables = [*_means(results), *_losses(results), *(t for t in _groups(results) if len(t.rows) <= 2 * _SHORT)]
    head = "\n".join(f"- {line}" for line in _header(results))
    texts = ["## " + table.plain() for table in tables if table.rows]
    command = "python -m bench.report docs/performance/measured.json --docs docs/performance"
    return "\n\n".join(["# Measurements", f"Written by `{command}`.", head, _NOTE, *texts]) + "\n"


def write_docs(results: Results, folder: Path) -> None:
    """Write the page of the documentation and its pictures."""
    from bench import pictures

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "measured.md", markdown(results))
    for name in _PICTURES:
        figure = getattr(pictures, name)(results)
        if figure is not None:
            pictures.save_svg(figure, folder / f"{name}.svg")


def _header(results: Results) -> Iterator[str]:
    m = results.machine
    yield f"{m['cpu']}, {m['cpus']} processors, {m['vector_bits']}-bit vectors, {m['system']}"
    yield (
        f"one core: {m['peaks']['fma_gflops']:.1f} GF/s of multiply-adds, {m['peaks']['bandwidth_gbs']:.1f} GB/s of "
        f"copying; threads for every baseline: {m['threads']}"
    )
    trips = [e.facts["cache line round trip"] for e in results.entries if "cache line round trip" in e.facts]
    if trips:
        yield f"a cache line from one core to another and back, beside the workloads on two threads: {', '.join(trips)}"
    versions = ", ".join(f"{name} {version}" for name, version in m["packages"].items() if version)
    yield f"fastsparse {m['version']} ({m['commit']}), {results.date}, Python {m['python']}, {versions}"
    if m.get("omp_wait_policy"):  # decides about baselines on more than one thread
        yield f"OMP_WAIT_POLICY={m['omp_wait_policy']}"
    if results.clock == "process_time":
        yield "processor time, not wall clock: the machine was doing something else as well"
    if m["environment"]:
        yield "held to AVX2: " + ", ".join(f"{name}={value}" for name, value in m["environment"].items())
    if m["missing"]:
        yield f"Not installed, so not measured: {', '.join(m['missing'])}"


def classes(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Entries whose geometric mean is worth a line: group, sparsity and, for SpMM, columns."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        name = ", ".join(filter(None, [f"{entry.group} {entry.sparsity}".rstrip(), entry.columns]))
        found.setdefault(name, []).append(entry)
    return dict(sorted(found.items()))


def _means(results: Results) -> Iterator[Table]:
    tables: dict[tuple[str, ...], list[Entry]] = {}
    for entry in results.compared():
        tables.setdefault(tuple(entry.baselines), []).append(entry)
    for baselines, entries in tables.items():
        rows = []
        for name, members in classes(entries).items():
            rate = geometric_mean(entry.rate() for entry in members)
            cells = [_ratio(geometric_mean(entry.ratio(other) for entry in members)) for other in baselines]
            rows.append([name, str(len(members)), *_speed(rate, results.peak()), *cells])
        header = ["class", "count", "GF/s", "of peak", *(f"faster than {name}" for name in baselines)]
        groups = ", ".join(dict.fromkeys(entry.group for entry in entries))
        yield Table(f"Geometric means: {groups}", header, rows)


def _slowest(results: Results) -> Iterator[Table]:
    """Against sparse baselines where there are any, else against all."""
    others = list(dict.fromkeys(name for entry in results.compared() for name in entry.baselines))
    baselines = [name for name in others if name in SPARSE_BASELINES] or others
    rows = [
        (entry.label, name, _ratio(value), _speed(entry.rate(), 1)[0], _span(entry.seconds[OURS]))
        for value, name, entry in results.slowest(10, baselines)
    ]
    if rows:
        header = ["workload", "fastest baseline", "faster than it", "GF/s", OURS]
        yield Table(f"The slowest against the best of {', '.join(baselines)}", header, rows, 2)


def _losses(results: Results) -> Iterator[Table]:
    """Where another library is faster, dense ones included, the largest difference first."""
    others = list(dict.fromkeys(name for entry in results.compared() for name in entry.baselines))
    rows = [
        (entry.label, name, _ratio(value), _span(entry.seconds[name]), _span(entry.seconds[OURS]))
        for value, name, entry in results.slowest(len(results.entries), others)
        if value < 1
    ]
    yield Table("Where another library is faster", ["workload", "fastest", "fastsparse is", "its time", OURS], rows, 2)


def _groups(results: Results) -> Iterator[Table]:
    """All measurements, group by group."""
    for group, title in dict.fromkeys((entry.group, entry.title) for entry in results.entries):
        entries = [entry for entry in results.entries if entry.group == group]
        names = list(dict.fromkeys(name for entry in entries for name in entry.seconds if name != OURS))
        rows = []
        for entry in entries:
            facts = ", ".join(f"{name} {value}" for name, value in entry.facts.items())
            row = [f"{entry.name} ({facts})" if facts else entry.name]
            row += [_span(entry.seconds.get(OURS)), *_speed(entry.rate(), results.peak(group))]
            for name in names:
                row.append(f"{_ratio(entry.ratio(name))} {_span(entry.seconds.get(name))}".strip())
            rows.append(row)
        yield Table(title, ["workload", OURS, "GF/s", "of peak", *(f"faster than {name}" for name in names)], rows)


def _speed(rate: float | None, peak: float) -> tuple[str, str]:
    return ("", "") if rate is None else (f"{rate:.1f}", f"{rate / peak:.0%}")


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _span(seconds: Sequence[float] | None) -> str:
    return f"{_time(statistics.median(seconds))} ({_time(min(seconds))})" if seconds else ""


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.1f} us"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures of results files, and write tables and pictures."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=main.__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="what python -m bench --json wrote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to one small file")
    parser.add_argument("--docs", type=Path, metavar="DIR", help="write tables (measured.md) and pictures (SVG)")
    args = parser.parse_args(argv)
    try:
        found = read(args.results)
        print(text(found))
        if args.json:
            write_text(args.json, compact(found))
            found = read([args.json])  # rounded, so that the documentation shows what the file holds
        if args.docs:
            write_docs(found, args.docs)
    except (OSError, ValueError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
