"""The gallery's sparse representations, in their reduced setting."""

from __future__ import annotations

import numpy as np
import pytest

from tests.examples.running import run_example

for package in ("sklearn", "skimage", "pywt"):
    pytest.importorskip(package)


def test_thresholding(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_example("representations/plot_thresholding.py", monkeypatch)
    assert names["result"]["holds"]
    error = ((names["decoded"] - names["batch"]) ** 2).sum(axis=(1, 2))
    np.testing.assert_allclose(names["at_5"]["wavelet sym4"].squared_error, error, rtol=1e-9)


def test_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_example("representations/plot_dictionary.py", monkeypatch)
    assert names["result"]["holds"]
    qualities = [names["psnr"](names["learned"][count]) for count in names["counts"]]
    assert qualities == sorted(qualities)
