"""Measurements as the report reads them, from the JSON of pytest-benchmark."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.baselines import OURS
from fastsparse.timing import ratio

# Baselines on the same sparse matrix: no workload may be slower than the best of them.
SPARSE_BASELINES = ("scipy", "MKL sparse", "torch.sparse")
DENSE_BASELINES = ("numpy dense", "torch dense")


@dataclass
class Entry:
    """A workload: what it is, and the seconds of each round, by baseline."""

    group: str
    title: str
    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    flops: int = 0
    bytes: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Group and name."""
        return f"{self.group} {self.name}"

    @property
    def baselines(self) -> list[str]:
        """Other libraries that were measured."""
        return [name for name in self.seconds if not name.startswith((OURS, "bound"))]

    def ratio(self, baseline: str, ours: str = OURS) -> float | None:
        """How many times faster fastsparse is, when both were measured."""
        theirs, own = self.seconds.get(baseline), self.seconds.get(ours)
        return ratio(theirs, own) if theirs and own else None

    def best(self, baselines: Iterable[str], ours: str = OURS) -> tuple[float, str] | None:
        """The smallest ratio, against the fastest of `baselines`, and who that is."""
        found = [(value, name) for name in baselines if (value := self.ratio(name, ours)) is not None]
        return min(found) if found else None

    def rate(self, name: str = OURS) -> float | None:
        """Useful GF/s; None where nothing is multiplied."""
        seconds = self.seconds.get(name) if self.flops else None
        return self.flops / statistics.median(seconds) / 1e9 if seconds else None

    @property
    def sparsity(self) -> str:
        """To the nearest per cent; nothing where there is none."""
        return f"{self.fields['sparsity']:.0%}" if "sparsity" in self.fields else ""

    @property
    def columns(self) -> str:
        """The class of N that targets speak of; nothing where there is no N."""
        n = self.fields.get("n")
        return "" if n is None else "N <= 1024" if n <= 1024 else "N >= 3136" if n >= 3136 else "1024 < N < 3136"


@dataclass
class Results:
    """The measurements of a run, or of several on the same machine; `machine` is what `bench.machine` says of it."""

    entries: list[Entry]
    machine: dict[str, Any]
    date: str = ""
    clock: str = "perf_counter"

    def of(self, group: str) -> list[Entry]:
        """Entries of a group that fastsparse ran."""
        return [entry for entry in self.entries if entry.group == group and entry.seconds.get(OURS)]

    def compared(self) -> list[Entry]:
        """Entries with baselines."""
        return [entry for entry in self.entries if entry.seconds.get(OURS) and entry.baselines]

    def slowest(self, count: int, baselines: Sequence[str], group: str | None = None) -> list[tuple[float, str, Entry]]:
        """The entries with the smallest ratio to the fastest of `baselines`; of a group, or of all with real work."""
        entries = self.of(group) if group else [e for e in self.compared() if not e.group.startswith("small")]
        found = [(*best, entry) for entry in entries if (best := entry.best(baselines)) is not None]
        return sorted(found, key=lambda item: item[0])[:count]

    def peak(self, group: str = "") -> float:
        """GF/s of multiply-adds of as many cores as fastsparse ran on, in a group of workloads."""
        cores = self.machine["cpus"] if group == "threads" else self.machine["threads"]
        return float(self.machine["peaks"]["fma_gflops"] * cores)


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there."""
    found = [value for value in values if value is not None]
    return statistics.geometric_mean(found) if found else None


def read(paths: Sequence[Path]) -> Results:
    """Results of several files together; a workload measured twice counts as it was measured last.

    Raises
    ------
    ValueError
        When a file is none of `python -m bench --json`, or they are of different machines or numbers of threads.
    """
    runs = [_one(path) for path in paths]
    first, latest = runs[0], dict[str, Entry]()
    for run in runs:
        for what in ("cpu", "vector_bits", "threads"):
            if run.machine[what] != first.machine[what]:
                raise ValueError(f"the results differ in {what}: {first.machine[what]} and {run.machine[what]}")
        if run.clock != first.clock:
            raise ValueError(f"the results differ in the clock: {first.clock} and {run.clock}")
        latest |= {entry.label: entry for entry in run.entries}
    problems = list(dict.fromkeys(problem for run in runs for problem in run.machine["problems"]))
    return Results(list(latest.values()), {**first.machine, "problems": problems}, first.date, first.clock)


def compact(results: Results) -> str:
    """JSON that `read` takes: what it reads of pytest-benchmark's, and no more; times to four digits."""
    measured = [
        {
            "extra_info": {
                "kind": entry.group, "title": entry.title, "workload": entry.name, "fields": entry.fields,
                "flops": entry.flops, "bytes": entry.bytes, "facts": entry.facts, "baseline": name,
            },
            "stats": {"data": [float(f"{value:.4g}") for value in seconds]},
            "options": {"timer": results.clock},
        }
        for entry in results.entries
        for name, seconds in entry.seconds.items()
    ]  # fmt: skip
    head = json.dumps({"fastsparse": results.machine, "datetime": results.date})[:-1]
    return f'{head}, "benchmarks": [\n' + ",\n".join(map(json.dumps, measured)) + "\n]}\n"


def _one(path: Path) -> Results:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        machine, measured = data["fastsparse"], data["benchmarks"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a results file of python -m bench ({error!r})") from None
    entries: dict[str, Entry] = {}
    for item in measured:
        info = item["extra_info"]
        new = Entry(*(info[name] for name in ("kind", "title", "workload", "fields", "flops", "bytes")))
        entry = entries.setdefault(new.label, new)
        entry.seconds[info["baseline"]] = item["stats"]["data"]
        entry.facts |= info["facts"]
    clock = measured[0]["options"]["timer"] if measured else "perf_counter"
    return Results(list(entries.values()), machine, data["datetime"], clock)
