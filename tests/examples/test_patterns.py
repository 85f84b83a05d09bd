"""Gallery, choosing the pattern: each script's claim, in its reduced setting."""

from __future__ import annotations

import pytest

from tests.examples.running import run_example

pytest.importorskip("sklearn")


def test_choosing(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_example("patterns/plot_choosing.py", monkeypatch)
    assert names["result"]["holds"]
    assert names["accuracy"]["SNIP"][0, 0] > names["accuracy"]["ER"][0, 0]


def test_one_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim does not hold in the full setting, nor here; what moves is better than a pattern that stays."""
    pytest.importorskip("mlxtend")
    names = run_example("patterns/plot_one_percent.py", monkeypatch)
    accuracy = names["accuracy"]
    assert names["result"]["baseline"] == accuracy["dense"]
    assert accuracy["RigL"] > accuracy["static"]
    assert [names["models"][name][0].pattern.nnz for name in ("CHT", "CHTs")] == [1568, 1568]
