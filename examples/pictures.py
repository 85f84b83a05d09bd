"""Pictures of trained networks, as matplotlib figures."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from examples.experiment import Labels, Outcome, Split, predictions

# Images that a network got wrong, in one row.
_SHOWN = 12
_IMAGE_SIZES = {64: (8, 8), 784: (28, 28)}


def report(split: Split, outcomes: dict[str, Outcome]) -> Figure:
    """Curves of all runs, what the last one mixed up on the test data, and images that it misread if it read images."""
    last = list(outcomes)[-1]
    found = predictions(outcomes[last].model, split.test[0])
    images = _images(split.test[0])
    figure = Figure(figsize=(13, 7.4 if images is not None else 4.8), layout="constrained")
    rows = figure.subfigures(2, 1, height_ratios=[3, 1.15]) if images is not None else [figure]
    left, middle, right = rows[0].subplots(1, 3)
    curves(left, {name: [outcome.history["loss"]] for name, outcome in outcomes.items()}, "training loss")
    left.set_yscale("log")
    validated = {name: [outcome.history["val_accuracy"]] for name, outcome in outcomes.items()}
    curves(middle, validated, "validation accuracy")
    _confusion(right, split, found, f"{last}: test data")
    if images is not None:
        _misread(rows[1], images, split, found)
    return figure


def curves(axes: Any, runs: dict[str, list[list[float]]], quantity: str) -> None:
    """One line per name over the epochs: the mean of its runs, with a band from the lowest to the highest."""
    for name, values in runs.items():
        table = np.array(values)
        epochs = np.arange(1, table.shape[1] + 1)
        (drawn,) = axes.plot(epochs, table.mean(axis=0), label=name)
        if len(table) > 1:
            axes.fill_between(epochs, table.min(axis=0), table.max(axis=0), color=drawn.get_color(), alpha=0.15, lw=0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(quantity)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _confusion(axes: Any, split: Split, found: Labels, title: str) -> None:
    """How often each class was taken for which other one, a row per true class."""
    size = len(split.classes)
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (split.test[1], found), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts)):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=6, color=color)
    axes.set_xticks(range(size), split.classes, rotation=90, fontsize=7)
    axes.set_yticks(range(size), split.classes, fontsize=7)
    axes.set_xlabel("taken for")
    axes.set_title(title, fontsize=10)


def _images(x: Any) -> Any:
    """The samples as pictures (n, height, width), or None when they are none."""
    size = _IMAGE_SIZES.get(int(np.prod(x.shape[1:])))
    return None if size is None else x.reshape(-1, *size)


def _misread(figure: Any, images: Any, split: Split, found: Labels) -> None:
    wrong = np.flatnonzero(found != split.test[1])
    figure.suptitle(
        f"{len(wrong)} of {len(found)} test images misread; the first ones: true class, what it was taken for",
        fontsize=10,
    )
    for axes, place in zip(figure.subplots(1, _SHOWN).flat, [*wrong, *[None] * _SHOWN]):
        axes.axis("off")
        if place is not None:
            axes.imshow(images[place], cmap="gray_r")
            axes.set_title(f"{split.classes[split.test[1][place]]} → {split.classes[found[place]]}", fontsize=9)
