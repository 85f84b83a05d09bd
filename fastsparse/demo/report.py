"""The demo's page: one HTML file that stands alone, pictures included."""

from __future__ import annotations

from html import escape
from pathlib import Path

from fastsparse.atomic_file import write_text
from fastsparse.demo.pictures import all_pictures
from fastsparse.demo.results import NUMPY, OURS, SCIPY, Results

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #212529; max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 1.8rem 0 .4rem; }
p { margin: .4rem 0 .8rem; } .muted { color: #6c757d; font-size: .88rem; } img { width: 100%; height: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: .7rem; margin: 1rem 0; }
.tile { background: #f1f5f6; border-radius: 8px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.5rem; color: #0b7285; } .tile span { font-size: .88rem; }
table { border-collapse: collapse; width: 100%; } td, th { padding: .25rem .6rem; border-bottom: 1px solid #e3e7ea; }
th { text-align: left; font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
"""


def write_report(results: Results, path: Path) -> None:
    """Write the page; a crash leaves the old one whole."""
    write_text(path, render(results))


def render(results: Results) -> str:
    """The whole page as a string of HTML."""
    pictures = all_pictures(results)
    largest = results.speeds[max(results.speeds)]
    sections = [
        _section("Learning", _image(pictures["curves"], "Loss and accuracy over the epochs"), _learning_note(results)),
        _section("Speed", _image(pictures["speeds"], "Milliseconds per batch"), _speed_note(results)),
        _section("Layers", _layer_table(results)),
        _section(f"What is left of {results.pattern_name}", _image(pictures["pattern"], "Sparsity pattern")),
        _section(f"Mistakes: {len(results.mistakes.labels)} of {results.test_images}", _mistakes(pictures)),
        _section("Do they agree?", _agreement_table(results)),
        _section("Machine", _environment(results)),
    ]
    tiles = [
        (f"{results.sparsity:.1%}", "of the weights are gone"),
        (f"{results.mean_sparse_accuracy:.2%}", f"test accuracy; dense twin {results.mean_dense_accuracy:.2%}"),
        (f"{largest.ratios[SCIPY]:.1f}×", f"faster than SciPy sparse, batch {largest.batch}"),
        (f"{largest.ratios[NUMPY]:.1f}×", f"faster than dense NumPy, batch {largest.batch}"),
    ]
    tile_html = "".join(
        f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>fastsparse demo</title><style>{_STYLE}</style></head><body>"
        "<h1>A sparse network reads handwritten digits</h1>"
        f'<p class="muted">{escape(_headline(results))}</p><div class="tiles">{tile_html}</div>'
        + "".join(sections)
        + "</body></html>\n"
    )


def _headline(results: Results) -> str:
    seeds = len(results.sparse_accuracy)
    trained = "one training" if seeds == 1 else f"means of {seeds} trainings"
    return (
        f"scikit-learn's digits: {results.train_images} images to train on, {results.validation_images} to watch the "
        f"training, {results.test_images} kept for the final figure. {results.epochs} epochs, {trained}, "
        f"{_threads(results)}, {results.seconds:.0f} s for the whole command."
    )


def _learning_note(results: Results) -> str:
    rows = []
    for name, accuracies, seconds in (
        ("sparse", results.sparse_accuracy, results.sparse_train_seconds),
        ("dense", results.dense_accuracy, results.dense_train_seconds),
    ):
        listed = ", ".join(f"{value:.2%}" for value in accuracies)
        rows.append([name, listed, f"{sum(accuracies) / len(accuracies):.2%}", f"{sum(seconds) / len(seconds):.1f} s"])
    note = "The dense twin has the same layers, seeds, optimizer and data. The curves show the first seed."
    return _table(["network", "test accuracy", "mean", "training"], rows) + _muted(note)


def _speed_note(results: Results) -> str:
    rows = []
    for speed in results.speeds.values():
        for name, products in speed.product_times.items():
            rows.append(
                [
                    f"{speed.batch}",
                    name,
                    f"{speed.times[name]:.3f} ms",
                    f"{speed.ratios[name]:.1f}×",
                    f"{products:.3f} ms",
                    f"{speed.product_ratios[name]:.1f}×",
                ]
            )
    header = ["batch", "rival", "whole network", f"{OURS} is faster by", "its products alone", "whole against products"]
    largest = results.speeds[max(results.speeds)]
    note = (
        f"The same trained weights, batch norm folded into them, {_threads(results)} for every side (SciPy's sparse "
        "product uses one thread whatever it is given). Rivals lower convolutions by im2col: sliding_window_view, one "
        "copy into a preallocated buffer, one product; the hatched part is the product alone, and the last column sets "
        f"it against all of {OURS}. Feeding SciPy {results.tuned_scipy_chunk} images at a time, its best here, "
        f"leaves {results.tuned_scipy_ratio:.1f}× at batch {largest.batch}. Medians of interleaved rounds."
    )
    return _table(header, rows) + _muted(note)


def _layer_table(results: Results) -> str:
    rows = [
        [
            row.name,
            " × ".join(map(str, row.shape)),
            f"{row.size:,}",
            f"{row.nonzeros:,}",
            f"{row.sparsity:.1%}",
        ]
        for row in results.layers
    ]
    size, kept = sum(row.size for row in results.layers), sum(row.nonzeros for row in results.layers)
    rows.append(["all", "", f"{size:,}", f"{kept:,}", f"{results.sparsity:.1%}"])
    note = "Densities follow Erdős–Rényi-Kernel: small layers keep more, and a layer may stay whole."
    return _table(["layer", "shape", "weights", "kept", "sparsity"], rows) + _muted(note)


def _mistakes(pictures: dict[str, str]) -> str:
    if "digits" not in pictures:
        return "<p>None: every test image is read correctly.</p>"
    return _image(pictures["digits"], "Misclassified digits")


def _agreement_table(results: Results) -> str:
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
    return _table(["float32 network", "relative error"], [[name, f"{error:.1e}"] for name, error in pairs]) + _muted(
        note
    )


def _environment(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return _muted(f"{results.machine}; {_threads(results)}. {versions}.")


def _threads(results: Results) -> str:
    return "one thread" if results.threads == 1 else f"{results.threads} threads"


def _section(title: str, *parts: str) -> str:
    return f"<h2>{escape(title)}</h2>" + "".join(parts)


def _image(source: str, text: str) -> str:
    return f'<img src="{source}" alt="{escape(text)}">'


def _muted(text: str) -> str:
    return f'<p class="muted">{escape(text)}</p>'


def _table(header: list[str], rows: list[list[str]]) -> str:
    """The first column reads as text, the others as numbers."""

    def cells(tag: str, values: list[str]) -> str:
        return "".join(
            f"<{tag}>{escape(value)}</{tag}>" if i == 0 else f'<{tag} class="n">{escape(value)}</{tag}>'
            for i, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', header)}</tr>{body}</table>"
