"""Scripts of the gallery's section on language, in their reduced setting."""

from __future__ import annotations

import pytest

from tests.examples.running import run_example


def test_summarization(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    names = run_example("language/plot_summarization.py", monkeypatch)
    assert names["result"]["holds"]
    assert len(names["texts"]) > 20
    assert len(names["changes"]) < 100  # it converged


def test_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    names = run_example("language/plot_characters.py", monkeypatch)
    assert names["result"]["holds"]
    dense, sparse = (sum(p.numel() for p in names["models"][n].blocks.parameters()) for n in ("dense", "90% sparse"))
    assert sparse < 0.12 * dense
    assert names["final"]["90% sparse"] < 3.0  # from log(103) = 4.6
