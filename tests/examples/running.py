"""Runs one script of the gallery in its reduced setting."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

GALLERY = Path(__file__).parents[2] / "examples" / "gallery"


def run_example(script: str, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> dict[str, Any]:
    """The names that the script `section/plot_name.py` leaves behind, `result` among them.

    `result` holds `claim` (a sentence), `measured`, `baseline`, `unit` and `holds`.
    """
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.setenv("FASTSPARSE_EXAMPLES", "small")
    monkeypatch.setenv("FASTSPARSE_EXAMPLES_SEED", str(seed))
    names = runpy.run_path(str(GALLERY / script), run_name="__main__")
    matplotlib.pyplot.close("all")
    assert {"claim", "measured", "baseline", "unit", "holds"} <= names["result"].keys()
    return names
