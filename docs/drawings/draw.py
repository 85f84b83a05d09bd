"""The drawings of docs/concepts.md: `python docs/drawings/draw.py` writes an SVG for each function `draw_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

FOLDER = Path(__file__).parent
INK, FAINT, EMPTY = "#264653", "#b8c4c9", "#f4f6f7"
COLOURS = "#2a9d8f", "#e76f51", "#e9c46a", "#577590"
PATTERN = np.array(
    [[0, 1, 0, 0, 1, 0, 0, 1], [1, 0, 0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0, 0, 1],
     [1, 0, 0, 0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0, 0, 1]]
)  # fmt: skip


def canvas(width: float, height: float) -> tuple[Figure, Any]:
    """A figure whose axes have their origin at the upper left, one unit a cell."""
    figure = Figure(figsize=(width * 0.42, height * 0.42))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_aspect("equal")
    axes.set_axis_off()
    return figure, axes


def cell(axes: Any, x: float, y: float, colour: str = EMPTY, text: str = "", *, width: float = 1, height: float = 1,
         size: float = 9, edge: str = FAINT) -> None:  # fmt: skip
    """A box with a word in it."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor=edge, lw=1))
    if text:
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color=INK)


def grid(axes: Any, x: float, y: float, mask: np.ndarray, colour: str) -> None:
    """A matrix whose nonzeros are coloured."""
    for (i, j), filled in np.ndenumerate(mask):
        cell(axes, x + j, y + i, colour if filled else EMPTY)


def label(axes: Any, x: float, y: float, text: str, size: float = 10, align: str = "center", **more: Any) -> None:
    """Words."""
    axes.text(x, y, text, ha=align, va="center", fontsize=size, color=INK, **more)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], **more: Any) -> None:
    """From one place to another."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=INK, lw=1.2, **more))


def draw_pattern_and_values() -> Figure:
    """W as pattern and values, and what is built from each."""
    figure, axes = canvas(26, 10.4)
    label(axes, 4, 0.6, "pattern: where numbers are", 10)
    grid(axes, 0.3, 1.2, PATTERN, COLOURS[0])
    label(axes, 4.3, 7.9, "never changes; keeps its plans", 8)
    nonzeros = int(PATTERN.sum())
    label(axes, 17.3, 0.6, "values: one number for each nonzero, in the order of W.data", 10)
    for k in range(nonzeros):
        cell(axes, 9.9 + k, 1.2, COLOURS[2], f"w{k}", size=7)
    label(axes, 17.3, 2.8, "training changes them", 8)
    cell(axes, 10, 4.2, "white", "plan: variant, tile width,\ncolumn blocks, offsets", width=7, height=2, edge=INK)
    cell(axes, 18.8, 4.2, "white", "operator: rows of\n(value, byte offset)", width=6.2, height=2, edge=INK)
    cell(axes, 18.8, 8, "white", "kernel", width=6.2, height=1.4, edge=INK)
    arrow(axes, (8.4, 5.2), (9.9, 5.2))
    arrow(axes, (17.1, 5.2), (18.7, 5.2))
    arrow(axes, (21.9, 2.3), (21.9, 4.1))
    arrow(axes, (21.9, 6.3), (21.9, 7.9))
    label(axes, 13.5, 7.3, "built once for a geometry and a CPU,\nkept in bounded memory", 8)
    label(axes, 15.2, 8.7, "X →", 10, align="right")
    arrow(axes, (15.4, 8.7), (18.7, 8.7))
    return figure


def draw_tile_and_epilogue() -> Figure:
    """One row of W against a panel of X: a tile in registers."""
    figure, axes = canvas(27, 12.6)
    label(axes, 4.3, 0.6, "W, sparse", 10)
    grid(axes, 0.3, 1.2, PATTERN, FAINT)
    for j in np.flatnonzero(PATTERN[2]):
        cell(axes, 0.3 + j, 3.2, COLOURS[1])
    axes.add_patch(Rectangle((0.3, 3.2), 8, 1, fill=False, edgecolor=INK, lw=2))
    label(axes, 13.5, 0.6, "X, cut into panels T vectors wide", 10)
    for i in range(8):
        for panel in range(2):
            chosen = panel == 0 and PATTERN[2][i]
            for v in range(2):
                colour = COLOURS[2] if chosen else (EMPTY if panel else "#e8eef0")
                cell(axes, 9.9 + 3.8 * panel + 1.7 * v, 1.2 + i, colour, width=1.7)
    axes.add_patch(Rectangle((9.9, 1.2), 3.4, 8, fill=False, edgecolor=INK, lw=2))
    label(axes, 11.6, 9.7, "panel (T = 2)", 8)
    label(axes, 4.3, 7.9, "row 2: three nonzeros,\neach adds its offset to the tile's address", 8)
    label(axes, 22.6, 0.6, "tile: the row's sums, in T registers", 10)
    for v in range(2):
        cell(axes, 20.6 + 2 * v, 1.2, COLOURS[0], f"acc{v}", width=2)
    label(axes, 22.6, 3.0, "acc += w * x[offset]\nfor each nonzero, columns ascending", 8)
    arrow(axes, (17.6, 3.4), (20.3, 1.9), connectionstyle="arc3,rad=-0.2")
    cell(
        axes,
        19.6,
        5.0,
        "white",
        "epilogue, in registers:\n+ bias, + residual, activation",
        width=6,
        height=1.9,
        edge=INK,
    )
    arrow(axes, (22.6, 3.9), (22.6, 4.9))
    arrow(axes, (22.6, 7.0), (22.6, 8.2))
    for v in range(2):
        cell(axes, 20.6 + 2 * v, 8.3, COLOURS[3], width=2)
    label(axes, 22.6, 9.9, "Y, stored once", 9)
    note = "a column block is a piece of W's columns whose rows of X fit the L1 cache; between blocks, sums are kept"
    label(axes, 13.5, 11.6, note, 8)
    return figure


def draw_three_products() -> Figure:
    """Forward, gradient of the input, gradient of the values."""
    figure, axes = canvas(28, 10)
    mask = PATTERN[:4, :5]

    def dense(x: float, y: float, rows: int, columns: int, colour: str) -> None:
        cell(axes, x, y, colour, width=columns, height=rows)

    label(axes, 4.2, 0.7, "forward:  Y = W X", 11)
    grid(axes, 0.3, 2.2, mask, COLOURS[0])
    dense(5.6, 2.2, 5, 2.4, COLOURS[2])
    label(axes, 2.8, 1.7, "W"), label(axes, 6.8, 1.7, "X")
    label(axes, 4.2, 9.2, "SpMM: sparse times dense", 9)
    label(axes, 14, 0.7, "input:  dX = Wᵀ dY", 11)
    grid(axes, 10.3, 2.2, mask.T, COLOURS[0])
    dense(14.6, 2.2, 4, 2.4, COLOURS[1])
    label(axes, 12.3, 1.7, "Wᵀ"), label(axes, 15.8, 1.7, "dY")
    label(axes, 14, 9.2, "SpMM again, on a transposed\npattern that the pattern keeps", 9)
    label(axes, 23.5, 0.7, "values:  dW = (dY Xᵀ) at the nonzeros", 11)
    dense(18.9, 2.2, 4, 2, COLOURS[1])
    dense(21.3, 2.2, 1.8, 5, COLOURS[2])
    label(axes, 19.9, 1.7, "dY"), label(axes, 23.8, 1.7, "Xᵀ")
    label(axes, 20.5, 7.2, "at the nonzeros:", 8)
    grid(axes, 22.3, 4.3, mask, COLOURS[3])
    label(axes, 23.5, 9.2, "SDDMM: dense times dense,\nonly where W has a number", 9)
    return figure


def draw_layouts() -> Figure:
    """How a batch of small images lies in memory."""
    figure, axes = canvas(28, 14.2)
    tints = "#2a9d8f", "#8ab17d", "#e9c46a", "#f4a261"
    label(axes, 0.3, 0.7, "NCHW, as users pass it: image after image, row after row", 10, align="left")
    for n in range(4):
        for i in range(6):
            cell(axes, 0.3 + 6.4 * n + i, 1.3, tints[n], f"{n}.{i}", size=7)
    label(
        axes, 0.3, 3.6, "batch-blocked (NCHW4n here): one vector has the same position of VL images", 10, align="left"
    )
    for i in range(6):
        for n in range(4):
            cell(axes, 0.3 + 4.4 * i + n, 4.2, tints[n], f"{n}.{i}", size=7)
        axes.add_patch(Rectangle((0.3 + 4.4 * i, 4.2), 4, 1, fill=False, edgecolor=INK, lw=2))
    label(axes, 0.3, 6.0, "every neighbour of a window is a whole, aligned vector: any kernel size, any stride; the "
          "batch fills the lanes", 8, align="left")  # fmt: skip
    label(axes, 0.3, 7.4, "padded NCHW: planes with their zero padding", 10, align="left")
    for y in range(5):
        for x in range(6):
            inside = 0 < y < 4 and 0 < x < 5
            cell(axes, 0.3 + x, 8.0 + y, tints[0] if inside else EMPTY, "" if inside else "0", size=7)
    for x, y, width in ((1.3, 9.0, 4), (5.3, 9.0, 1), (0.3, 10.0, 3)):  # two vectors; the second crosses a row's end
        axes.add_patch(Rectangle((x, y), width, 1, fill=False, edgecolor=INK, lw=2))
    label(axes, 6.8, 9.0, "a tile runs across the ends\nof image rows; the offset of a\nnonzero is its place in the\n"
          "window, so there is no im2col", 8, align="left")  # fmt: skip
    label(axes, 15.0, 7.4, "spatial tiles: one image cut into VL parts, one a lane", 10, align="left")
    for y in range(4):
        for x in range(8):
            cell(axes, 15.3 + x, 8.3 + y, tints[(y // 2) * 2 + x // 4])
    for y in (0, 2):
        for x in (0, 4):
            axes.add_patch(Rectangle((15.3 + x, 8.3 + y), 4, 2, fill=False, edgecolor=INK, lw=2))
    axes.add_patch(Rectangle((14.9, 7.95), 4.9, 2.85, fill=False, edgecolor=INK, lw=1, ls=":"))
    label(
        axes,
        23.6,
        9.6,
        "dotted: a part with its halo,\npositions that belong to\nneighbours or to the\npadding",
        8,
        "left",
    )
    return figure


def main() -> None:
    """Write all drawings."""
    for name, draw in sorted(globals().items()):
        if name.startswith("draw_"):
            path = FOLDER / f"{name.removeprefix('draw_')}.svg"
            with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
                draw().savefig(path, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
