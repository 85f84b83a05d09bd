"""The report's charts: geometric means, ratios over columns, roofline, scaling over threads and over size."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from bench import summary
from bench.providers import OURS
from bench.providers.scaling import threads_of
from bench.svg import Chart, Scale, bars, scale_of

Entry = dict[str, Any]

COLOURS = {
    OURS: "#0b7285",
    "fastsparse in planes": "#0ca678",
    "scipy": "#e8590c",
    "MKL sparse": "#1971c2",
    "torch.sparse": "#9c36b5",
    "numpy dense": "#868e96",
    "torch dense": "#c2255c",
    "torch channels_last": "#f06595",
    "torch mkldnn": "#e599f7",
    "onnxruntime dense": "#2f9e44",
    "SparseProp": "#f08c00",
    "SparseProp over batch": "#fab005",
    "SparseLab": "#5f3dc4",
}
_GROUP_COLOURS = (
    "#0b7285",
    "#e8590c",
    "#1971c2",
    "#9c36b5",
    "#2f9e44",
    "#c2255c",
    "#f08c00",
    "#5f3dc4",
    "#868e96",
    "#846358",
)
# What is varied, and the values it is held at elsewhere in the sweep over sizes.
_SWEEPS = {"n": ("columns N", 512), "m": ("rows M", 1024), "k": ("inner size K", 1024), "density": ("density", 0.1)}


def means(results: dict[str, Any]) -> str:
    """Bars of geometric means for every class of workloads."""
    groups = {}
    for name, members in summary.classes(summary.races(results)).items():
        if members[0]["group"] == "sizes":
            continue
        rivals = summary.rivals_of(members)
        values = {rival: summary.geometric_mean(members, rival) for rival in rivals}
        groups[f"{name} ({len(members)})"] = {rival: value for rival, value in values.items() if value is not None}
    return bars("fastsparse is faster by (geometric means; dashed: equal)", groups, COLOURS) if groups else ""


def ratios(results: dict[str, Any]) -> str:
    """Every product's ratio to the fastest sparse peer, over its columns."""
    entries = [entry for entry in summary.races(results) if "n" in entry["fields"]]
    found = [(entry, best) for entry in entries if (best := summary.best_ratio(entry, summary.SPARSE_PEERS))]
    if not found:
        return ""
    columns = [entry["fields"]["n"] for entry, _ in found]
    y = scale_of([1.0, *(best[0] for _, best in found)], "faster than the best of them by")
    chart = Chart(
        "Each SpMM against the fastest of scipy, MKL, torch.sparse", scale_of(columns, "columns N"), y, 940, 340
    )
    chart.line([(chart.x.low, 1.0), (chart.x.high, 1.0)], "#495057", dashed=True)
    for entry, (value, rival) in found:
        tip = f"{entry['group']} {entry['name']}: {value:.2f}x against {rival}"
        chart.dot((entry["fields"]["n"], value), COLOURS[rival], tip, f"fastest peer: {rival}")
    return chart.svg()


def roofline(results: dict[str, Any]) -> str:
    """Useful GF/s over useful operations per byte that must travel once, under the measured roofs of one core."""
    entries = [e for e in results["workloads"] if e["bytes"] and summary.rate(e) and e["group"] != "threads"]
    if not entries:
        return ""
    peak, bandwidth = summary.peak(results), results["peaks"]["bandwidth_gbs"]
    points = [(entry["flops"] / entry["bytes"], summary.rate(entry) or 0.0) for entry in entries]
    x = scale_of([p[0] for p in points], "useful operations per byte of operands and result")
    y = scale_of([peak, *(p[1] for p in points)], "useful GF/s")
    chart = Chart("Roofline", x, y, 940, 400)
    knee = peak / bandwidth
    start = max(x.low, y.low / bandwidth)
    corner = min(max(knee, start), x.high)
    chart.line([(start, start * bandwidth), (corner, corner * bandwidth)], "#495057", dashed=True)
    chart.line([(corner, peak), (x.high, peak)], "#495057", dashed=True)
    chart.text((corner, peak), f"{peak:.0f} GF/s of multiply-adds; {bandwidth:.0f} GB/s from memory, measured")
    colours = dict(zip(dict.fromkeys(entry["group"] for entry in entries), cycle(_GROUP_COLOURS)))
    for entry, point in zip(entries, points):
        tip = f"{entry['group']} {entry['name']}: {point[1]:.1f} GF/s, {point[1] / peak:.0%} of peak"
        chart.dot(point, colours[entry["group"]], tip, entry["group"])
    return chart.svg()


def threads(results: dict[str, Any]) -> str:
    """Speed over threads, one line for each workload."""
    entries = [entry for entry in results["workloads"] if entry["group"] == "threads" and entry["seconds"].get(OURS)]
    if not entries:
        return ""
    most = max(threads_of(name) for entry in entries for name in entry["seconds"])
    axis = Scale(1 / 1.1, most * 1.1, "threads", ticks=tuple(float(2**i) for i in range(12)))
    chart = Chart("Threads", axis, Scale(1 / 1.1, most * 1.1, "times faster than one", ticks=axis.ticks))
    chart.line([(1, 1), (most, most)], "#adb5bd", "ideal", dashed=True)
    for entry, colour in zip(entries, cycle(_GROUP_COLOURS)):
        one = next(name for name in entry["seconds"] if threads_of(name) == 1)
        points = [(threads_of(name), _speedup(entry, one, name)) for name in entry["seconds"]]
        chart.line(sorted(points), colour, entry["name"])
    return chart.svg()


def _speedup(entry: Entry, one: str, name: str) -> float:
    return 1.0 if one == name else summary.ratio(entry, one, name) or 1.0


def sizes(results: dict[str, Any]) -> str:
    """Useful GF/s of everybody while one size changes."""
    entries = [entry for entry in results["workloads"] if entry["group"] == "sizes" and entry["seconds"]]
    return "".join(_sweep(entries, varied) for varied in _SWEEPS)


def _sweep(entries: Sequence[Entry], varied: str) -> str:
    label, _ = _SWEEPS[varied]
    held = {name: value for name, (_, value) in _SWEEPS.items() if name != varied}
    chosen = [e for e in entries if all(abs(_size(e, name) - value) < 1e-6 * value for name, value in held.items())]
    chosen.sort(key=lambda entry: _size(entry, varied))
    if len(chosen) < 2:
        return ""
    lines: dict[str, list[tuple[float, float]]] = {}
    for entry in chosen:
        for name, seconds in entry["seconds"].items():
            speed = entry["flops"] / statistics.median(seconds) / 1e9
            lines.setdefault(name, []).append((_size(entry, varied), speed))
    rates = [speed for points in lines.values() for _, speed in points]
    chart = Chart(
        f"SpMM over {label}", scale_of([_size(e, varied) for e in chosen], label), scale_of(rates, "useful GF/s")
    )
    for name, points in lines.items():
        chart.line(points, COLOURS.get(name, "#495057"), name)
    return chart.svg()


def _size(entry: Entry, name: str) -> float:
    fields = entry["fields"]
    return 1 - fields["sparsity"] if name == "density" else fields[name]
