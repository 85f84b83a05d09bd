"""Switches in the environment."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from fastsparse.runtime.switches import switch

WORDS = [
    (None, None), ("", None), (" ", None), ("0", False), ("false", False), ("No", False), (" OFF ", False), ("1", True),
    ("true", True), ("2", True),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), WORDS)
def test_words(value, expected):
    assert switch("A_SWITCH", {} if value is None else {"A_SWITCH": value}) is expected


@pytest.mark.parametrize(("value", "expected"), WORDS)
def test_the_builder_of_wheels_knows_the_same_words(value, expected, monkeypatch):
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", Path(__file__).parents[2] / "hatch_build.py")
    hatch_build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hatch_build)
    monkeypatch.delenv("FASTSPARSE_PREBUILT", raising=False)
    if value is not None:
        monkeypatch.setenv("FASTSPARSE_PREBUILT", value)
    assert hatch_build._wanted() is expected
