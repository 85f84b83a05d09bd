"""Figures from the rounds: ratios, geometric means per class of workloads, the slowest of all, as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.providers import OURS

Entry = dict[str, Any]

# Peers on the same sparse matrix: no workload may be slower than the best of them.
SPARSE_PEERS = ("scipy", "MKL sparse", "torch.sparse")


def ratio(entry: Entry, rival: str, ours: str = OURS) -> float | None:
    """How many times faster fastsparse is: median over the rounds that both took part in."""
    ours, theirs = entry["seconds"].get(ours), entry["seconds"].get(rival)
    return statistics.median(r / o for r, o in zip(theirs, ours)) if ours and theirs else None


def best_ratio(entry: Entry, rivals: Iterable[str], ours: str = OURS) -> tuple[float, str] | None:
    """The smallest ratio, against the fastest of `rivals`, and who that is."""
    found = [(value, rival) for rival in rivals if (value := ratio(entry, rival, ours)) is not None]
    return min(found) if found else None


def rivals_of(entries: Sequence[Entry]) -> list[str]:
    """Other libraries that were measured, in their order."""
    return list(dict.fromkeys(name for entry in entries for name in entry["seconds"] if not name.startswith(OURS)))


def races(results: Mapping[str, Any]) -> list[Entry]:
    """Entries where libraries were raced."""
    return [entry for entry in results["workloads"] if entry["seconds"].get(OURS) and rivals_of([entry])]


def others(results: Mapping[str, Any]) -> list[Entry]:
    """Entries that are about fastsparse alone."""
    return [entry for entry in results["workloads"] if entry["seconds"].get(OURS) and not rivals_of([entry])]


def rate(entry: Entry, ours: str = OURS) -> float | None:
    """Useful GF/s of fastsparse; None where nothing is multiplied."""
    seconds = entry["seconds"].get(ours) if entry["flops"] else None
    return entry["flops"] / statistics.median(seconds) / 1e9 if seconds else None


def sparsity_class(entry: Entry) -> str:
    """Sparsity to the nearest per cent."""
    return f"{entry['fields'].get('sparsity', 0.0):.0%}"


def columns_class(n: int) -> str:
    """The classes that the targets speak of."""
    return "N <= 1024" if n <= 1024 else "N >= 3136" if n >= 3136 else "1024 < N < 3136"


def classes(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Entries whose geometric mean is worth a line: group, sparsity and, for SpMM, columns."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        name = f"{entry['group']} {sparsity_class(entry)}"
        if "n" in entry["fields"]:
            name += f", {columns_class(entry['fields']['n'])}"
        found.setdefault(name, []).append(entry)
    return dict(sorted(found.items()))


def by_rivals(entries: Sequence[Entry]) -> dict[tuple[str, ...], list[Entry]]:
    """Entries that were raced against the same libraries: they share a table."""
    tables: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        tables.setdefault(tuple(rivals_of([entry])), []).append(entry)
    return tables


def geometric_mean(entries: Sequence[Entry], rival: str, ours: str = OURS) -> float | None:
    """Unweighted, over the entries that have both sides."""
    values = [value for entry in entries if (value := ratio(entry, rival, ours)) is not None]
    return statistics.geometric_mean(values) if values else None


def mean_rate(entries: Sequence[Entry]) -> float | None:
    """Geometric mean of useful GF/s."""
    rates = [value for entry in entries if (value := rate(entry)) is not None]
    return statistics.geometric_mean(rates) if rates else None


def peak(results: Mapping[str, Any], group: str = "") -> float:
    """GF/s of multiply-adds of as many cores as fastsparse ran on, in a group of workloads."""
    cores = results["machine"]["cpus"] if group == "threads" else max(1, results["threads"])
    return float(results["peaks"]["fma_gflops"] * cores)


def worst(entries: Sequence[Entry], rivals: Sequence[str], count: int = 10) -> list[tuple[float, str, Entry]]:
    """The workloads with the smallest ratio to the fastest of `rivals`."""
    found = [(*best, entry) for entry in entries if (best := best_ratio(entry, rivals)) is not None]
    return sorted(found, key=lambda item: item[0])[:count]


def text(results: dict[str, Any]) -> str:
    """Header, geometric means, the ten slowest workloads, what is measured alone, targets, failures."""
    sections = [header(results), *_means(races(results)), _slowest(races(results)), _alone(results), _targets(results)]
    if results["errors"]:
        sections.append(["Failed or wrong, so not measured:", *results["errors"]])
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section)))


def header(results: dict[str, Any]) -> Iterator[str]:
    """Lines on machine, versions, peak, bandwidth, and who is missing."""
    m, peaks = results["machine"], results["peaks"]
    yield f"{m['cpu']}, {m['cpus']} processors, {m['vector_bits']}-bit vectors, {m['system']}"
    yield (
        f"one core: {peaks['fma_gflops']:.1f} GF/s of multiply-adds, "
        f"{peaks['bandwidth_gbs']:.1f} GB/s of copying; threads for every provider: {results['threads']}"
    )
    yield f"fastsparse {m['fastsparse']} ({m['commit']}), {results['date']}, Python {m['python']}, " + ", ".join(
        f"{name} {version}" for name, version in m["packages"].items() if version
    )
    if results["clock"] == "process_time":
        yield "processor time, not wall clock: the machine was doing something else as well"
    if m["environment"]:
        yield "held to AVX2: " + ", ".join(f"{name}={value}" for name, value in m["environment"].items())
    if results["missing"]:
        yield f"Not installed, so not measured: {', '.join(results['missing'])}"


def _means(entries: Sequence[Entry]) -> Iterator[Iterable[str]]:
    for rivals, members in by_rivals(entries).items():
        rows = [("geometric means: faster than", "count", "GF/s", *rivals)]
        for name, chosen in classes(members).items():
            mean = mean_rate(chosen)
            cells = [times(geometric_mean(chosen, rival)) for rival in rivals]
            rows.append((name, str(len(chosen)), "-" if mean is None else f"{mean:.1f}", *cells))
        yield aligned(rows)


def _slowest(entries: Sequence[Entry]) -> Iterable[str]:
    """Against sparse peers where there are any, else against everybody."""
    peers = SPARSE_PEERS if set(rivals_of(entries)) & set(SPARSE_PEERS) else rivals_of(entries)
    found = worst(entries, peers)
    if not found:
        return []
    rows = [(f"slowest against the best of {', '.join(peers)}", "ratio", "best", "GF/s", "fastsparse", "minimum")]
    for value, rival, entry in found:
        ours = entry["seconds"][OURS]
        speed = rate(entry) or 0.0
        rows.append(
            (f"{entry['group']} {entry['name']}", times(value), rival, f"{speed:.1f}",
             time(statistics.median(ours)), time(min(ours)))
        )  # fmt: skip
    return aligned(rows)


def _alone(results: Mapping[str, Any]) -> Iterable[str]:
    rows = [("fastsparse alone", "median", "minimum", "GF/s", "of peak")]
    for entry in others(results):
        seconds, speed = entry["seconds"][OURS], rate(entry)
        share = "" if speed is None else f"{speed / peak(results, entry['group']):.0%}"
        cells = ("" if speed is None else f"{speed:.1f}", share)
        name = f"{entry['group']} {entry['name']}"
        rows.append((name, time(statistics.median(seconds)), time(min(seconds)), *cells))
    return aligned(rows) if len(rows) > 1 else []


def _targets(results: dict[str, Any]) -> Iterable[str]:
    from bench import targets

    found = targets.evaluate(results)
    rows = [("target", "wanted", "found", ""), *((row.what, row.wanted, row.found, row.verdict) for row in found)]
    return [f"{line}  {note}".rstrip() for line, note in zip(aligned(rows), ["", *(row.note for row in found)])]


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of text: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *rest in rows:
        yield "  ".join([first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(rest, widths[1:]))])


def time(seconds: float) -> str:
    """Seconds in a fitting unit."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.1f} us"


def times(value: float | None) -> str:
    """A ratio."""
    return "-" if value is None else f"{value:.2f}x"
