"""Gallery, images: detection. Each script's claim, in its reduced setting."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.examples.running import run_example

pytest.importorskip("skimage")


def test_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_example("images/plot_detection.py", monkeypatch)
    assert names["result"]["holds"]
    boxes = np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 4.0], [9.0, 9.0, 1.0], [1.0, 2.0, 2.0]])
    np.testing.assert_allclose(names["overlap"](boxes[0], boxes), [1, 8 / 24, 0, 4 / 16])


def test_tflite_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tflite")
    if "FASTSPARSE_MEDIAPIPE" not in os.environ:
        pytest.skip("FASTSPARSE_MEDIAPIPE names no folder with the files")
    assert run_example("images/plot_tflite_detectors.py", monkeypatch)["result"]["holds"]
