"""What the kernels are to reach, as data: a name, the least (or most) wanted, and how to find it in results."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench import summary
from bench.providers import OURS
from bench.providers.conv import PLANES
from bench.providers.scaling import ONE

Entry = dict[str, Any]
Results = dict[str, Any]
# A figure, perhaps with a word on where it was found; None when the results do not have it.
Found = float | tuple[float, str] | None
Find = Callable[[Results], Found]

_NEVER_HELD = ("onnxruntime dense",)  # to the instructions that others are held to
_DENSE_CONV = ("torch dense", "torch channels_last", "torch mkldnn", "onnxruntime dense")
_NCHW_CONV = ("torch dense", "onnxruntime dense")
_TRAINERS = ("torch dense", "SparseProp", "SparseProp over batch", "SparseLab")


@dataclass(frozen=True)
class Target:
    """A figure that is wanted.

    Attributes
    ----------
    what : str
    wanted : float
    find : callable
        The figure in some results, None when they do not have it.
    most : bool
        Whether `wanted` is the most allowed instead of the least.
    show : callable
        The figure as text.
    """

    what: str
    wanted: float
    find: Find
    most: bool = False
    show: Callable[[float], str] = lambda value: f"{value:.2f}x"


@dataclass(frozen=True)
class Row:
    """A target beside what was found."""

    what: str
    wanted: str
    found: str
    verdict: str  # "met", "missed" or "not measured"
    note: str = ""


def evaluate(results: Results) -> list[Row]:
    """Every target, met or not."""
    return [_row(target, results) for target in TARGETS]


def _row(target: Target, results: Results) -> Row:
    found = target.find(results)
    value, note = found if isinstance(found, tuple) else (found, "")
    wanted = f"{'at most' if target.most else 'at least'} {target.show(target.wanted)}"
    if value is None:
        return Row(target.what, wanted, "-", "not measured")
    met = value <= target.wanted if target.most else value >= target.wanted
    return Row(target.what, wanted, target.show(value), "met" if met else "missed", note)


def _entries(results: Results, group: str, keep: Callable[[Entry], bool] = lambda entry: True) -> list[Entry]:
    return [e for e in results["workloads"] if e["group"] == group and e["seconds"].get(OURS) and keep(e)]


def _pruned(columns: str | None = None) -> Callable[[Entry], bool]:
    """Of the pruned layers those at 90%, of one class of columns or all."""

    def keep(entry: Entry) -> bool:
        return summary.sparsity_class(entry) == "90%" and columns in (None, summary.columns_class(entry["fields"]["n"]))

    return keep


def _one_thread(find: Find) -> Find:
    return lambda results: find(results) if results["threads"] == 1 else None


def _spmm(columns: str, rival: str) -> Find:
    return _one_thread(lambda results: summary.geometric_mean(_entries(results, "dlmc", _pruned(columns)), rival))


def _best_mean(group: str, rivals: Sequence[str], ours: str = OURS) -> Find:
    """Geometric mean of the ratios to the fastest rival of each workload."""

    def find(results: Results) -> float | None:
        return _mean(summary.best_ratio(entry, rivals, ours) for entry in _entries(results, group))

    return find


def _slowest(rivals: Sequence[str], group: str | None = None) -> Find:
    """The smallest ratio to the fastest of `rivals`, and where that is; in one group, or in all."""

    def find(results: Results) -> Found:
        entries = _entries(results, group) if group else summary.races(results)
        found = summary.worst(entries, rivals, 1)
        return (found[0][0], f"{found[0][2]['group']} {found[0][2]['name']}, {found[0][1]}") if found else None

    return find


def _mean(best: Iterable[tuple[float, str] | None]) -> float | None:
    values = [pair[0] for pair in best if pair is not None]
    return statistics.geometric_mean(values) if values else None


def _share_of_peak(results: Results) -> float | None:
    rate = summary.mean_rate(_entries(results, "panels"))
    return None if rate is None else rate / results["peaks"]["fma_gflops"]


def _seconds(group: str, part: str) -> Find:
    def find(results: Results) -> float | None:
        found = _entries(results, group, lambda entry: part in entry["name"])
        return statistics.median(found[0]["seconds"][OURS]) if found else None

    return find


def _memory(results: Results) -> float | None:
    found = [e["facts"].get("bytes_beyond") for e in results["workloads"] if e["group"] == "memory"]
    return found[0] if found else None


def _on_avx2(group: str, rivals: Sequence[str]) -> Find:
    """Where the CPU has more and libraries are held to AVX2, against those of `rivals` that can be held."""

    def find(results: Results) -> Found:
        if results["machine"]["vector_bits"] != 256 or results["threads"] != 1:
            return None
        held = "NUMBA_CPU_NAME" in results["machine"]["environment"]
        free = [rival for rival in rivals if held and rival in _NEVER_HELD]
        counted = [rival for rival in rivals if rival not in free]
        entries = [e for e in _entries(results, group) if summary.sparsity_class(e) == "90%"]
        ratio = _mean(summary.best_ratio(entry, counted) for entry in entries)
        if ratio is None or not free:
            return ratio
        return ratio, f"nothing holds {' and '.join(free)} to AVX2: not counted"

    return find


def _two_threads(results: Results) -> float | None:
    """Where there are more processors: two threads, not all of them, against one."""
    two = OURS if os.cpu_count() == 2 else f"{OURS}, 2 threads"
    return _mean(summary.best_ratio(entry, (ONE,), two) for entry in _entries(results, "threads"))


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.1f} MB"


def _milliseconds(value: float) -> str:
    return f"{value * 1e3:.1f} ms"


_SPMM_RIVALS = {
    "N <= 1024": {"scipy": 4.5, "MKL sparse": 1.5, "torch.sparse": 3.0, "numpy dense": 4.5},
    "N >= 3136": {"scipy": 5.0, "MKL sparse": 3.0, "torch.sparse": 3.5, "numpy dense": 4.0},
}

TARGETS = [
    *[
        Target(f"SpMM 90%, {columns}, one thread, against {rival}", wanted, _spmm(columns, rival))
        for columns, rivals in _SPMM_RIVALS.items()
        for rival, wanted in rivals.items()
    ],
    Target("share of FMA peak, 90%, in panels", 0.45, _one_thread(_share_of_peak), show=lambda value: f"{value:.0%}"),
    Target("slowest single workload against the best sparse peer", 1.0, _slowest(summary.SPARSE_PEERS)),
    Target("ResNet-50 layers, NCHW, against the faster dense convolution", 3.0, _best_mean("resnet", _NCHW_CONV)),
    Target("ResNet-50 layers, kernel layouts, the same", 4.0, _best_mean("resnet", _DENSE_CONV, PLANES)),
    Target("8 layers 2048x2048, batch 1, against MKL SpMV", 1.6, _best_mean("chain", ("MKL sparse",))),
    Target("8 layers 2048x2048, batch 1, against onnxruntime dense", 10.0, _best_mean("chain", ("onnxruntime dense",))),
    Target("linear forward+backward, slowest, against the fastest trainer", 3.2, _slowest(_TRAINERS, "linear step")),
    Target("conv forward+backward, slowest, against the fastest trainer", 3.2, _slowest(_TRAINERS, "conv step")),
    Target("sparse x through sparse W against scipy", 5.0, _best_mean("sparse input", ("scipy (x @ W.T).toarray()",))),
    Target("the same: memory beyond x, W, output", 50e6, _memory, most=True, show=_megabytes),
    Target("two threads against one", 1.85, _two_threads),
    Target("plan of a 2048x512 layer at 90%", 5e-3, _seconds("plan", "2048x512"), most=True, show=_milliseconds),
    Target("plans of all of ResNet-50", 1.0, _seconds("plan", "ResNet-50"), most=True, show=_milliseconds),
    Target("AVX2: SpMM against dense", 4.0, _on_avx2("dlmc", ("numpy dense",))),
    Target("AVX2: convolution against dense", 4.0, _on_avx2("resnet", _NCHW_CONV)),
]
