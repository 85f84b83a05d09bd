"""Gallery, biology: each script's claim, in its reduced setting."""

from __future__ import annotations

import importlib.util

import pytest

from tests.examples.running import run_example

pytest.importorskip("sklearn")


def test_peptides(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("modlamp")
    names = run_example("biology/plot_peptides.py", monkeypatch)
    assert names["result"]["holds"]
    assert [layer.weight.density for layer in (names["model"][0], names["model"][1])] == pytest.approx([0.1, 0.1], 0.01)


def test_genes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")
    if importlib.util.find_spec("scanpy") is None:
        pytest.skip("the data come with scanpy, which is not installed")
    names = run_example("biology/plot_genes.py", monkeypatch)
    assert names["result"]["holds"]
    assert names["model"][0].pattern.nnz == 1958
