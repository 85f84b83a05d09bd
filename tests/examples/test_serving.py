"""Gallery, serving: each script in its reduced setting."""

from __future__ import annotations

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
