"""What the kernels are to reach, as data: a name, the least (or most) wanted, and how to find it in results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.baselines import OURS
from bench.baselines.conv import PLANES
from bench.baselines.products import ONE_THREAD
from bench.results import SPARSE_BASELINES, Results, geometric_mean

# A figure, perhaps with a word on where it was found; None when the results do not have it.
Found = float | tuple[float, str] | None
Find = Callable[[Results], Found]

_NEVER_HELD = ("onnxruntime dense",)  # to the instructions that others are held to
_DENSE_CONV = ("torch dense", "torch channels_last", "torch mkldnn", "onnxruntime dense")
_NCHW_CONV = ("torch dense", "onnxruntime dense")
_TRAINERS = ("torch dense", "SparseProp", "SparseProp over batch", "SparseLab")


class Target(NamedTuple):
    """The least that is wanted of a figure, or the most; `find` gives it, None where results do not have it."""

    what: str
    wanted: float
    find: Find
    most: bool = False
    show: Callable[[float], str] = lambda value: f"{value:.2f}x"


class Row(NamedTuple):
    """A target beside what was found."""

    what: str
    note: str
    wanted: str
    found: str
    verdict: str  # "met", "missed" or "not measured"


def evaluate(results: Results) -> list[Row]:
    """Every target, met or not."""
    return [_row(target, results) for target in TARGETS]


def _row(target: Target, results: Results) -> Row:
    found = target.find(results)
    value, note = found if isinstance(found, tuple) else (found, "")
    wanted = f"{'at most' if target.most else 'at least'} {target.show(target.wanted)}"
    if value is None:
        return Row(target.what, "", wanted, "-", "not measured")
    met = value <= target.wanted if target.most else value >= target.wanted
    return Row(target.what, note, wanted, target.show(value), "met" if met else "missed")


def _one_thread(find: Find) -> Find:
    return lambda results: find(results) if results.machine["threads"] == 1 else None


def _mean(group: str, baselines: Sequence[str], ours: str = OURS, sparsity: str = "", columns: str = "") -> Find:
    """Geometric mean of the ratios to the fastest baseline of each workload, of one sparsity and class of columns."""

    def find(results: Results) -> float | None:
        entries = results.of(group)
        entries = [e for e in entries if sparsity in ("", e.sparsity) and columns in ("", e.columns)]
        return geometric_mean(pair and pair[0] for pair in (entry.best(baselines, ours) for entry in entries))

    return find


def _slowest(baselines: Sequence[str], group: str | None = None) -> Find:
    """The smallest ratio to the fastest of `baselines`, and where that is; in one group, or in all."""

    def find(results: Results) -> Found:
        found = results.slowest(1, baselines, group)
        return (found[0][0], f"{found[0][2].label}, {found[0][1]}") if found else None

    return find


def _share_of_peak(results: Results) -> float | None:
    rate = geometric_mean(entry.rate() for entry in results.of("panels"))
    return None if rate is None else rate / results.peak()


def _seconds(group: str, part: str) -> Find:
    def find(results: Results) -> float | None:
        found = [entry for entry in results.of(group) if part in entry.name]
        return statistics.median(found[0].seconds[OURS]) if found else None

    return find


def _memory(results: Results) -> float | None:
    return next((entry.facts["bytes beyond"] for entry in results.of("memory")), None)


def _on_avx2(group: str, baselines: Sequence[str]) -> Find:
    """Where the CPU has more and libraries are held to AVX2, against those of `baselines` that can be held."""

    def find(results: Results) -> Found:
        machine = results.machine
        if machine["vector_bits"] != 256 or machine["threads"] != 1:
            return None
        held = "NUMBA_CPU_NAME" in machine["environment"]
        free = [name for name in baselines if held and name in _NEVER_HELD]
        ratio = _mean(group, [name for name in baselines if name not in free], sparsity="90%")(results)
        note = f"nothing holds {' and '.join(free)} to AVX2: not counted" if free else ""
        return None if ratio is None else (ratio, note)

    return find


def _two_threads(results: Results) -> Found:
    """Where there are more processors: two threads, not all of them, against one."""
    two = OURS if results.machine["cpus"] == 2 else f"{OURS}, 2 threads"
    ratio = _mean("threads", (ONE_THREAD,), two)(results)
    trips = {e.facts["cache line round trip"] for e in results.of("threads") if "cache line round trip" in e.facts}
    return None if ratio is None else (ratio, f"cache line round trip: {', '.join(sorted(trips))}" if trips else "")


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.1f} MB"


def _milliseconds(value: float) -> str:
    return f"{value * 1e3:.1f} ms"


_SPMM_BASELINES = {
    "N <= 1024": {"scipy": 4.5, "MKL sparse": 1.5, "torch.sparse": 3.0, "numpy dense": 4.5},
    "N >= 3136": {"scipy": 5.0, "MKL sparse": 3.0, "torch.sparse": 3.5, "numpy dense": 4.0},
}

TARGETS = [
    *[
        Target(
            f"SpMM 90%, {columns}, one thread, against {baseline}", wanted,
            _one_thread(_mean("dlmc", (baseline,), sparsity="90%", columns=columns)),
        )
        for columns, baselines in _SPMM_BASELINES.items()
        for baseline, wanted in baselines.items()
    ],
    Target("share of FMA peak, 90%, in panels", 0.45, _one_thread(_share_of_peak), show=lambda value: f"{value:.0%}"),
    Target("slowest single workload against the best sparse baseline", 1.0, _slowest(SPARSE_BASELINES)),
    Target("ResNet-50 layers, NCHW, against the faster dense convolution", 3.0, _mean("resnet", _NCHW_CONV)),
    Target("ResNet-50 layers, kernel layouts, the same", 4.0, _mean("resnet", _DENSE_CONV, PLANES)),
    Target("8 layers 2048x2048, batch 1, against MKL SpMV", 1.6, _mean("mlp stack", ("MKL sparse",))),
    Target(
        "8 layers 2048x2048, batch 1, against onnxruntime dense", 10.0, _mean("mlp stack", ("onnxruntime dense",))
    ),
    Target("linear forward+backward, slowest, against the fastest trainer", 3.2, _slowest(_TRAINERS, "linear step")),
    Target("conv forward+backward, slowest, against the fastest trainer", 3.2, _slowest(_TRAINERS, "conv step")),
    Target("sparse x through sparse W against scipy", 5.0, _mean("sparse input", ("scipy (x @ W.T).toarray()",))),
    Target("the same: memory beyond x, W, output", 50e6, _memory, most=True, show=_megabytes),
    Target("two threads against one", 1.85, _two_threads),
    Target("plan of a 2048x512 layer at 90%", 5e-3, _seconds("plan", "2048x512"), most=True, show=_milliseconds),
    Target("plans of all of ResNet-50", 1.0, _seconds("plan", "ResNet-50"), most=True, show=_milliseconds),
    Target("AVX2: SpMM against dense", 4.0, _on_avx2("dlmc", ("numpy dense",))),
    Target("AVX2: convolution against dense", 4.0, _on_avx2("resnet", _NCHW_CONV)),
]  # fmt: skip
