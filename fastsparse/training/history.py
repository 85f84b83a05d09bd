"""What happened in each epoch of a training run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastsparse import extras
from fastsparse.checks import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class History:
    """One record per epoch.

    A record holds ``epoch``, ``loss``, ``density``, ``lr`` (at the epoch's start), ``seconds`` of training and, apart
    from them, ``compile_seconds`` that compiling or loading kernels took; ``accuracy`` when labels are classes;
    ``val_loss`` and ``val_accuracy`` with validation data. ``history["loss"]`` is the list over the epochs.

    Attributes
    ----------
    records : list of dict of str to float
    """

    def __init__(self, records: list[dict[str, float]] | None = None) -> None:
        if not (records is None or (isinstance(records, list) and all(isinstance(r, dict) for r in records))):
            raise TypeError(f"records is {shown(records)}, expected a list of dictionaries")
        self.records: list[dict[str, float]] = [] if records is None else records

    def __getitem__(self, name: str) -> list[float]:
        if not any(name in record for record in self.records):
            raise KeyError(f"history has no {name!r}, only {sorted({key for r in self.records for key in r})}")
        return [record[name] for record in self.records if name in record]

    def __contains__(self, name: str) -> bool:
        return any(name in record for record in self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, float]]:
        return iter(self.records)

    def plot(self) -> Figure:
        """Draw loss and accuracy over the epochs; returns a matplotlib Figure.

        Raises
        ------
        ImportError
            Without matplotlib, which the extra ``plot`` installs.
        """
        extras.require("history.plot", "plot", matplotlib="Matplotlib")
        from matplotlib.figure import Figure

        panels = [name for name in ("loss", "accuracy") if name in self]
        figure = Figure(figsize=(5 * max(len(panels), 1), 3.5), layout="constrained")
        for i, name in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), i + 1)
            for key, label in ((name, "training"), (f"val_{name}", "validation")):
                if key in self:
                    axes.plot([r["epoch"] for r in self.records if key in r], self[key], label=label)
            axes.set_xlabel("epoch")
            axes.set_ylabel(name)
            axes.legend(frameon=False)
        return figure

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {value:.4g}" for name, value in self.records[-1].items()) if self.records else ""
        return f"<History of {len(self.records)} epochs{': ' * bool(last)}{last}>"
