"""The demo in a dozen lines of terminal."""

from __future__ import annotations

from pathlib import Path

from fastsparse.demo.results import NUMPY, SCIPY, Results
from fastsparse.text_table import text_facts


def summary(results: Results, report: Path) -> str:
    """What was found, in plain text of at most 100 columns."""
    seeds = len(results.sparse_accuracy)
    of = "one training" if seeds == 1 else f"mean of {seeds} trainings"
    kept = sum(row.nonzeros for row in results.layers)
    size = sum(row.size for row in results.layers)
    facts = [
        ("weights", f"{kept:,} of {size:,} kept: {results.sparsity:.1%} sparse"),
        ("accuracy", f"{results.mean_sparse_accuracy:.2%} on {results.test_images} test images "
                     f"(dense twin {results.mean_dense_accuracy:.2%}), {of}"),
    ]  # fmt: skip
    for speed in results.speeds.values():
        ours, scipy, numpy = speed.times.values()
        text = (
            f"{ours:.3f} ms; SciPy sparse {scipy:.3f} ms ({speed.ratios[SCIPY]:.1f}x), "
            f"dense NumPy {numpy:.3f} ms ({speed.ratios[NUMPY]:.1f}x)"
        )
        facts.append(("one image" if speed.batch == 1 else f"batch {speed.batch}", text))
    largest = results.speeds[max(results.speeds)]
    products = (
        f"the baselines' matrix products alone, batch {largest.batch}: SciPy {largest.product_ratios[SCIPY]:.1f}x, "
        f"NumPy {largest.product_ratios[NUMPY]:.1f}x the whole network's time"
    )
    training = sum(results.sparse_train_seconds), sum(results.dense_train_seconds)
    facts += [
        ("products", products),
        ("agreement", f"compiled network against float64: {results.agreement.compiled:.0e}, "
                      f"layers: {results.agreement.layers:.0e}"),
        ("training", f"{training[0]:.1f} s, dense twin {training[1]:.1f} s; "
                     f"compiling kernels (once): {results.compile_seconds:.1f} s"),
        ("time", f"{results.seconds:.1f} s in all, threads: {results.threads} for every side"),
        ("report", str(report)),
    ]  # fmt: skip
    return text_facts(facts)
