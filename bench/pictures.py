"""The report's pictures, as matplotlib Figures; None where there is nothing to show."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter, StrMethodFormatter

from bench.baselines import OURS
from bench.baselines.products import ONE_THREAD, threads_of
from bench.results import DENSE_BASELINES, SPARSE_BASELINES, Entry, Results
from fastsparse.runtime.atomic_file import write_bytes

# What is varied, and the values it is held at elsewhere in the sweep over sizes.
_SWEEPS = {"n": ("columns N", 512), "m": ("rows M", 1024), "k": ("inner size K", 1024), "density": ("density", 0.1)}


def _figure(height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(9.4, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_svg(figure: Figure, path: Path) -> None:
    """Write a picture with text as text; the same figure gives the same file."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, facecolor="white")
    write_bytes(path, file.getvalue())


def roofline(results: Results) -> Figure | None:
    """Useful GF/s over useful operations per byte that must travel once, under the measured roofs."""
    entries = [e for e in results.entries if e.bytes and e.rate() and e.group != "threads"]
    if not entries:
        return None
    figure, ((axes,),) = _figure(4.4)
    for group in dict.fromkeys(entry.group for entry in entries):
        points = [(e.flops / e.bytes, e.rate()) for e in entries if e.group == group]
        axes.plot(*zip(*points), "o", alpha=0.7, label=group)
    peak, bandwidth = results.peak(), results.machine["peaks"]["bandwidth_gbs"]
    knee = peak / bandwidth
    found = [e.flops / e.bytes for e in entries]
    intensity = [min(*found, knee), knee, max(*found, knee)]
    axes.plot(intensity, [min(peak, i * bandwidth) for i in intensity], "--", color="0.4")
    _label(axes, "useful operations per byte of operands and result", "useful GF/s")
    axes.set_title(f"Roofline: {peak:.0f} GF/s of multiply-adds, {bandwidth:.0f} GB/s from memory, measured")
    return figure


def threads(results: Results) -> Figure | None:
    """Speed over threads, one line for each workload."""
    entries = results.of("threads")
    if not entries:
        return None
    figure, ((axes,),) = _figure(3.6)
    for entry in entries:
        points = sorted((threads_of(name), entry.ratio(ONE_THREAD, name) or 1.0) for name in entry.seconds)
        axes.plot(*zip(*points), "o-", label=entry.name)
    most = max(threads_of(name) for entry in entries for name in entry.seconds)
    axes.plot([1, most], [1, most], "--", color="0.6", label="ideal")
    _label(axes, "threads", "times faster than one")
    counts = sorted({1} | {threads_of(name) for entry in entries for name in entry.seconds})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xticks([], minor=True)
    return figure


def sizes(results: Results) -> Figure | None:
    """Useful GF/s of every library while one size changes."""
    sweeps = {varied: found for varied in _SWEEPS if len(found := _sweep(results, varied)) > 1}
    if not sweeps:
        return None
    rows = -(-len(sweeps) // 2)
    figure, grid = _figure(3.2 * rows, 2, rows)
    for axes, (varied, entries) in zip(grid.ravel(), sweeps.items()):
        for name in dict.fromkeys(name for entry in entries for name in entry.seconds):
            points = [(_size(e, varied), e.rate(name)) for e in entries if name in e.seconds]
            axes.plot(*zip(*points), "o-", label=name, lw=2 if name == OURS else 1)
        _label(axes, _SWEEPS[varied][0], "useful GF/s", legend=False)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
    for axes in grid.ravel()[len(sweeps) :]:
        axes.set_axis_off()
    return figure


def crossover(results: Results) -> Figure | None:
    """Who is fastest at each sparsity and number of columns, and by how much fastsparse is, or is not."""
    entries = results.of("crossover")
    if not entries:
        return None
    sparsities = sorted({entry.fields["sparsity"] for entry in entries})
    columns = sorted({entry.fields["n"] for entry in entries})
    figure, ((axes,),) = _figure(0.9 + 0.55 * len(columns))
    colours: dict[str, str] = {}
    for entry in entries:
        value, other = entry.best(entry.baselines) or (1.0, OURS)
        winner = OURS if value >= 1 else other
        colour = colours.setdefault(winner, "#2a9d8f" if winner == OURS else f"C{len(colours) + 1}")
        x, y = sparsities.index(entry.fields["sparsity"]), columns.index(entry.fields["n"])
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", alpha=0.85))
        axes.text(x + 0.5, y + 0.62, f"{value:.2f}x", ha="center", va="center", fontsize=9)
        axes.text(x + 0.5, y + 0.27, f"next: {other}" if value >= 1 else other, ha="center", va="center", fontsize=5.5)
    axes.set(xlim=(0, len(sparsities)), ylim=(0, len(columns)), xlabel="sparsity", ylabel="columns N (batch)")
    axes.set_xticks([i + 0.5 for i in range(len(sparsities))], [f"{s:.0%}" for s in sparsities])
    axes.set_yticks([i + 0.5 for i in range(len(columns))], [str(n) for n in columns])
    axes.tick_params(length=0)
    m, k = entries[0].fields["m"], entries[0].fields["k"]
    axes.set_title(f"SpMM {m}x{k}: fastsparse against the best of all others, dense BLAS included", fontsize=10)
    handles = [Rectangle((0, 0), 1, 1, facecolor=colour, alpha=0.85) for colour in colours.values()]
    figure.legend(handles, [f"fastest: {name}" for name in colours], loc="outside lower center", ncols=4, fontsize=8)
    return figure


def over_sparsity(results: Results) -> Figure | None:
    """Every sparse library over sparsity, relative to the faster of two dense ones; for many columns and for few."""
    entries = results.of("crossover")
    columns = sorted({entry.fields["n"] for entry in entries})[1:]
    if not columns:
        return None
    chosen = (columns[0], columns[-1]) if len(columns) > 1 else (columns[0],)
    figure, (row,) = _figure(3.4, len(chosen))
    for axes, n in zip(row, chosen):
        cases = sorted((e for e in entries if e.fields["n"] == n), key=lambda entry: entry.fields["sparsity"])
        for name in (OURS, *SPARSE_BASELINES):
            points = [(100 * e.fields["sparsity"], _over_dense(e, name)) for e in cases if name in e.seconds]
            if points:
                axes.plot(*zip(*points), "o-", label=name, lw=2.5 if name == OURS else 1.2, ms=4)
        axes.axhline(1, color="0.4", ls="--", label="dense BLAS")
        axes.set(yscale="log", xlabel="sparsity, %", ylabel="times as fast as dense BLAS", title=f"batch {n}")
        axes.set_yticks([0.25, 0.5, 1, 2, 4, 8, 16], ["1/4", "1/2", "1", "2", "4", "8", "16"], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    row[0].legend(fontsize=8, frameon=False)
    m, k = entries[0].fields["m"], entries[0].fields["k"]
    threads = results.machine["threads"]
    figure.suptitle(
        f"Sparse {m}x{k} matrix times dense, float32, {threads} thread{'s' * (threads > 1)}, {results.machine['cpu']}",
        fontsize=10,
    )
    return figure


def _over_dense(entry: Entry, name: str) -> float:
    """How many times faster a library is than the fastest dense one."""
    found = [value for other in DENSE_BASELINES if (value := entry.ratio(other, name)) is not None]
    return min(found)


def _sweep(results: Results, varied: str) -> list[Entry]:
    held = {name: value for name, (_, value) in _SWEEPS.items() if name != varied}
    entries = [
        e
        for e in results.of("sizes")
        if all(abs(_size(e, name) - value) < 1e-6 * value for name, value in held.items())
    ]
    return sorted(entries, key=lambda entry: _size(entry, varied))


def _size(entry: Entry, name: str) -> float:
    return float(1 - entry.fields["sparsity"] if name == "density" else entry.fields[name])


def _label(axes: Any, x: str, y: str, legend: bool = True) -> None:
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    for axis in (axes.xaxis, axes.yaxis):  # 60 in place of 6 x 10^1
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(LogFormatter())
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(fontsize=8, frameon=False)
