"""The demo in a dozen lines of terminal."""

from __future__ import annotations

from pathlib import Path

from fastsparse.demo.results import NUMPY, SCIPY, Results


def summary(results: Results, report: Path) -> str:
    """What was found, in plain text of at most 100 columns."""
    seeds = len(results.sparse_accuracy)
    of = "one training" if seeds == 1 else f"mean of {seeds} trainings"
    kept = sum(row.nonzeros for row in results.layers)
    size = sum(row.size for row in results.layers)
    lines = [
        f"weights      {kept:,} of {size:,} kept: {results.sparsity:.1%} sparse",
        f"accuracy     {results.mean_sparse_accuracy:.2%} on {results.test_images} test images "
        f"(dense twin {results.mean_dense_accuracy:.2%}), {of}",
    ]
    for speed in results.speeds.values():
        what = "one image" if speed.batch == 1 else f"batch {speed.batch}"
        ours, scipy, numpy = speed.times.values()
        lines.append(
            f"{what:<12} {ours:.3f} ms; SciPy sparse {scipy:.3f} ms ({speed.ratios[SCIPY]:.1f}x), "
            f"dense NumPy {numpy:.3f} ms ({speed.ratios[NUMPY]:.1f}x)"
        )
    largest = results.speeds[max(results.speeds)]
    lines += [
        f"products     the rivals' matrix products alone, batch {largest.batch}: SciPy "
        f"{largest.product_ratios[SCIPY]:.1f}x, NumPy {largest.product_ratios[NUMPY]:.1f}x the whole network's time",
        f"agreement    compiled network against float64: {results.agreement.compiled:.0e}, "
        f"layers: {results.agreement.layers:.0e}",
        f"time         {results.seconds:.1f} s, threads: {results.threads} for every side",
        f"report       {report}",
    ]
    return "\n".join(lines)
