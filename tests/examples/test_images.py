"""The gallery's images and video, in their reduced setting."""

from __future__ import annotations

import pytest

from tests.examples.running import run_example

for package in ("sklearn", "skimage", "pywt"):
    pytest.importorskip(package)


def test_denoising_by_coding(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_example("images/plot_denoising_coding.py", monkeypatch)
    assert names["result"]["holds"]
    assert names["quality"]["learned"] > names["quality"]["noisy"] + 5
