"""The gallery's signals, in their reduced setting."""

from __future__ import annotations

import pytest

from tests.examples.running import run_example

pytest.importorskip("pywt")


def test_ecg(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_example("signals/plot_ecg.py", monkeypatch)
    assert names["result"]["holds"]
    assert names["quality"]["noisy"] < names["quality"]["wavelets"]
