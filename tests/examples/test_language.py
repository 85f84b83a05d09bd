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


def test_text_classification(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    names = run_example("language/plot_text_classification.py", monkeypatch)
    assert names["result"]["holds"]
    assert names["weights"]["95% sparse network"] < 0.06 * names["weights"]["dense network"]
    assert names["accuracy"]["95% sparse network"] > 0.5  # of four topics


def test_translation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few epochs teach no alphabet; which answers are right, the full setting tells."""
    pytest.importorskip("babel")
    names = run_example("language/plot_translation.py", monkeypatch)
    for history in names["histories"].values():
        assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert names["table"]["\u0431"] == "b"
    assert names["translate"](names["model"], ["\u0431"])[0].isalpha()
