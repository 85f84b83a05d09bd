"""Gallery, serving: each script in its reduced setting."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from tests.examples.running import run_example


def test_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client checks its answers; which way is faster depends on what else the machine does."""
    for name in ("fastapi", "uvicorn", "httpx"):
        pytest.importorskip(name)
    names = run_example("serving/plot_server.py", monkeypatch)
    assert names["result"]["holds"]
    (alone, _, batch), (several, _, batches) = names["measured"]["batches"]
    assert batch == 1 < batches
    assert (alone > 0).all()
    assert (several > 0).all()
    assert [row[2] for row in names["measured"]["one by one"]] == [1, 1]


def test_notebook_from_torch_to_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells run; what the server answers is as right as what the dense model says. Times are shown alone."""
    for name in ("torch", "onnx", "sklearn", "matplotlib", "fastapi", "httpx", "ipykernel"):
        pytest.importorskip(name)
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (root, root / "kernels"))))
    notebook = nbformat.read(root / "examples" / "notebooks" / "torch_to_server.ipynb", as_version=4)
    kept = [output["output_type"] for cell in notebook.cells for output in cell.get("outputs", [])]
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=600, startup_timeout=600).execute()
    assert [output["output_type"] for cell in notebook.cells for output in cell.get("outputs", [])] == kept
    result = ast.literal_eval(notebook.cells[-1].outputs[0].data["text/plain"])
    assert result["measured"] > result["baseline"] - 0.02 > 0.93
    assert result["holds"]
