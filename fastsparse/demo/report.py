"""The demo's page: one HTML file that stands alone, pictures included."""

from __future__ import annotations

from pathlib import Path

from fastsparse.demo import pictures
from fastsparse.demo.results import NUMPY, OURS, SCIPY, Results
from fastsparse.html_page import Html, page, paragraph, picture, section, table, tiles, write


def write_report(results: Results, path: Path) -> None:
    """Write the page in one step: a crash leaves the old page whole."""
    write(path, render(results))


def render(results: Results) -> str:
    """The whole page as a string of HTML."""
    largest = results.speeds[max(results.speeds)]
    learned = pictures.curves(results.sparse_curves, results.dense_curves)
    mistakes, shape = results.mistakes, pictures.pattern(results.pattern)
    return page(
        "A sparse network reads handwritten digits",
        paragraph(_headline(results)),
        tiles([
            (f"{results.sparsity:.1%}", "of the weights are gone"),
            (f"{results.mean_sparse_accuracy:.2%}", f"test accuracy; dense twin {results.mean_dense_accuracy:.2%}"),
            (f"{largest.ratios[SCIPY]:.1f}×", f"faster than SciPy sparse, batch {largest.batch}"),
            (f"{largest.ratios[NUMPY]:.1f}×", f"faster than dense NumPy, batch {largest.batch}"),
        ]),
        section("Learning", picture(learned, "Loss and accuracy over the epochs"), *_learning(results)),
        section("Speed", picture(pictures.speed_bars(results.speeds), "Milliseconds per batch"), *_speed(results)),
        section("Layers", *_layers(results)),
        section(f"What is left of {results.pattern_name}", picture(shape, "Sparsity pattern")),
        section(
            f"Mistakes: {len(mistakes.labels)} of {results.test_images}",
            picture(pictures.digits(mistakes), "Misclassified digits")
            if len(mistakes.labels) else paragraph("None: every test image is read correctly.", ""),
        ),
        section("Do they agree?", *_agreement(results)),
        section("Machine", paragraph(_environment(results))),
    )  # fmt: skip


def _headline(results: Results) -> str:
    seeds = len(results.sparse_accuracy)
    trained = "one training" if seeds == 1 else f"means of {seeds} trainings"
    return (
        f"scikit-learn's digits: {results.train_images} images to train on, {results.validation_images} to watch the "
        f"training, {results.test_images} kept for the final figure. {results.epochs} epochs, {trained}, "
        f"{_threads(results)}, {results.seconds:.0f} s for the whole command."
    )


def _learning(results: Results) -> tuple[Html, Html]:
    rows = []
    for name, accuracies, seconds in (
        ("sparse", results.sparse_accuracy, results.sparse_train_seconds),
        ("dense", results.dense_accuracy, results.dense_train_seconds),
    ):
        listed = ", ".join(f"{value:.2%}" for value in accuracies)
        rows.append([name, listed, f"{sum(accuracies) / len(accuracies):.2%}", f"{sum(seconds) / len(seconds):.1f} s"])
    note = "The dense twin has the same layers, seeds, optimizer and data. The curves show the first seed."
    note += f" Compiling kernels, done once and kept, took {results.compile_seconds:.1f} s more."
    return table(["network", "test accuracy", "mean", "training"], rows), paragraph(note)


def _speed(results: Results) -> tuple[Html, Html]:
    rows = [
        [f"{speed.batch}", name, f"{speed.times[name]:.3f} ms", f"{speed.ratios[name]:.1f}×", f"{products:.3f} ms",
         f"{speed.product_ratios[name]:.1f}×"]
        for speed in results.speeds.values() for name, products in speed.product_times.items()
    ]  # fmt: skip
    faster = f"{OURS} is faster by"
    header = ["batch", "baseline", "whole network", faster, "its products alone", "whole against products"]
    largest = results.speeds[max(results.speeds)]
    note = (
        f"The same trained weights, batch norm folded into them, {_threads(results)} for every side (SciPy's sparse "
        "product uses one thread whatever it is given). Baselines lower convolutions by im2col: sliding_window_view, "
        "one copy into a preallocated buffer, one product; the hatched part is the product alone, and the last column "
        f"sets it against all of {OURS}. Feeding SciPy {results.tuned_scipy_chunk} images at a time, its best here, "
        f"leaves {results.tuned_scipy_ratio:.1f}× at batch {largest.batch}. Medians of interleaved rounds."
    )
    return table(header, rows, text=2), paragraph(note)


def _layers(results: Results) -> tuple[Html, Html]:
    rows = [
        [row.name, " × ".join(map(str, row.shape)), f"{row.size:,}", f"{row.nonzeros:,}", f"{row.sparsity:.1%}"]
        for row in results.layers
    ]
    size, kept = sum(row.size for row in results.layers), sum(row.nonzeros for row in results.layers)
    rows.append(["all", "", f"{size:,}", f"{kept:,}", f"{results.sparsity:.1%}"])
    note = "Densities follow Erdős–Rényi-Kernel: small layers keep more, and a layer may stay whole."
    return table(["layer", "shape", "weights", "kept", "sparsity"], rows), paragraph(note)


def _agreement(results: Results) -> tuple[Html, Html]:
    found = results.agreement
    pairs = [
        ("layers of fastsparse.nn", found.layers),
        ("compiled network", found.compiled),
        (SCIPY, found.scipy),
        (NUMPY, found.numpy),
    ]
    note = (
        "Largest difference from the same network in float64 over all test images, relative to its largest output. "
        "Saved, loaded again and run, the network gives the same bits."
    )
    rows = [[name, f"{error:.1e}"] for name, error in pairs]
    return table(["float32 network", "relative error"], rows), paragraph(note)


def _environment(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return f"{results.machine}; {_threads(results)}. {versions}."


def _threads(results: Results) -> str:
    return "one thread" if results.threads == 1 else f"{results.threads} threads"
