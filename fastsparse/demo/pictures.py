"""The report's pictures, drawn with Matplotlib's object interface: no window, no global state."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastsparse.demo.results import NUMPY, OURS, SCIPY, Curves, Mistakes, Speed

SPARSE_COLOUR, DENSE_COLOUR = "#0b7285", "#adb5bd"
COLOURS = {OURS: SPARSE_COLOUR, SCIPY: "#e8a33d", NUMPY: DENSE_COLOUR}
_TEXT = "#343a40"
_MOST_DIGITS = 12


def curves(sparse: Curves, dense: Curves) -> Figure:
    """Loss and accuracy over the epochs, on training and validation images, of both networks."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, curve, colour in (("dense", dense, "#868e96"), ("sparse", sparse, SPARSE_COLOUR)):
        epochs = np.arange(1, len(curve.loss) + 1)
        left.plot(epochs, curve.loss, color=colour, lw=1.2, ls="--", label=f"{name}, training")
        left.plot(epochs, curve.validation_loss, color=colour, lw=2, label=f"{name}, validation")
        right.plot(epochs, 100 * np.array(curve.accuracy), color=colour, lw=1.2, ls="--")
        right.plot(epochs, 100 * np.array(curve.validation_accuracy), color=colour, lw=2)
    left.set_yscale("log")
    left.set_title("Loss")
    right.set_title("Accuracy, %")
    right.set_ylim(top=100.5)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _tidy(axes)
    return figure


def speed_bars(speeds: dict[int, Speed]) -> Figure:
    """Milliseconds per batch, one panel for each batch size; the baselines' products alone are hatched."""
    figure = Figure(figsize=(9, 0.4 + 1.9 * len(speeds)), layout="constrained")
    for axes, speed in zip(figure.subplots(len(speeds), 1, squeeze=False).ravel(), speeds.values()):
        _speed_panel(axes, speed)
    return figure


def pattern(mask: np.ndarray) -> Figure:
    """One pixel for every weight of a layer, dark where it is kept."""
    rows, columns = mask.shape
    figure = Figure(figsize=(9, max(1.2, 9 * rows / columns)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(mask, cmap="GnBu", aspect="auto", interpolation="nearest", vmin=0, vmax=1)
    axes.set_ylabel("output channel")
    axes.set_xlabel("input channel × row × column")
    return figure


def digits(mistakes: Mistakes) -> Figure:
    """The first misclassified digits, what they are and what they were taken for."""
    shown = min(_MOST_DIGITS, len(mistakes.labels))
    columns = 6
    rows = max(1, -(-shown // columns))
    figure = Figure(figsize=(9, 1.75 * rows), layout="constrained")
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).ravel()):
        axes.set_axis_off()
        if i < shown:
            axes.imshow(mistakes.images[i], cmap="gray_r", interpolation="nearest")
            axes.set_title(f"{mistakes.labels[i]}, taken for {mistakes.predicted[i]}", fontsize=10, color=_TEXT)
    return figure


def _speed_panel(axes: Axes, speed: Speed) -> None:
    names = list(speed.times)
    heights = np.arange(len(names))
    axes.barh(heights, [speed.times[name] for name in names], color=[COLOURS[name] for name in names], height=0.7)
    widest = max(speed.times.values())
    for at, name in zip(heights, names):
        if name in speed.product_times:
            axes.barh(at, speed.product_times[name], color="none", hatch="///", edgecolor="white", height=0.7, lw=0)
        ratio = "" if name == OURS else f"   {speed.ratios[name]:.1f}× slower"
        label = f" {_milliseconds(speed.times[name])}{ratio}"
        axes.text(speed.times[name] + 0.004 * widest, at, label, va="center", fontsize=10, color=_TEXT)
    axes.set_yticks(heights, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * widest)
    axes.set_title(f"Batch of {speed.batch}: milliseconds" if speed.batch > 1 else "One image: milliseconds")
    _tidy(axes)


def _milliseconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def _tidy(axes: Axes) -> None:
    axes.title.set_fontsize(11)
    axes.title.set_color(_TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_TEXT, labelsize=9)
