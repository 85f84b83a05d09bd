"""Text tables: aligned, and never wider than the terminal for the length of a name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fastsparse as fs
from fastsparse.text_table import shortened, text_facts, text_table, wrapped


def test_columns_are_aligned_and_a_total_stands_apart():
    table = text_table(("name", "kind", "n"), [("a", "bb", "1"), ("all", "", "12,345")], text=2, total=True)
    assert table.splitlines() == [
        "name  kind       n",
        "------------------",
        "a     bb         1",
        "------------------",
        "all         12,345",
    ]


def test_tables_fit_whatever_the_names_are():
    rng = np.random.default_rng(0)
    for _ in range(200):
        text, numbers = rng.integers(1, 5), rng.integers(0, 4)
        rows = [
            [*("x" * n for n in rng.integers(0, 400, text)), *("9" * n for n in rng.integers(0, 9, numbers))]
            for _ in range(rng.integers(1, 5))
        ]
        header = [f"h{i}" for i in range(text + numbers)]
        width = int(rng.integers(60, 200))
        lines = text_table(header, rows, text=int(text), width=width).splitlines()
        least = sum(min(12, max(map(len, column))) if i < text else max(map(len, column)) for i, column in
                    enumerate(zip(header, *rows))) + 2 * (len(header) - 1)  # fmt: skip
        assert max(map(len, lines)) <= max(width, least)
        whole = [cell for row in rows for cell in row if cell]
        if all(len(cell) <= 12 for cell in whole):
            assert all(cell in "\n".join(lines) for cell in whole)
        assert all(cell in line for row, line in zip(rows, lines[2:]) for cell in row[text:])


def test_long_names_lose_their_middle():
    assert shortened("model/block_3/conv_17/weight", 15) == "model/...weight"
    assert shortened("short", 5) == "short"
    table = text_table(("layer", "op"), [("first" + "x" * 300 + "last", "Gemm")], text=2, width=40)
    row = table.splitlines()[-1]
    assert row.startswith("first")
    assert "last  Gemm" in row
    assert len(row) == 40


def test_the_terminal_says_how_wide(monkeypatch):
    rows = [("x" * 300, "1")]
    monkeypatch.setenv("COLUMNS", "50")
    assert max(map(len, text_table(("name", "n"), rows, text=1).splitlines())) == 50
    assert max(map(len, wrapped("word " * 100).splitlines())) <= 50
    monkeypatch.setenv("COLUMNS", "120")
    assert max(map(len, text_table(("name", "n"), rows, text=1).splitlines())) == 120


def test_facts_are_aligned():
    assert text_facts([("a", "one"), ("long", "two")]) == "a     one\nlong  two"
    assert text_facts([]) == ""


@pytest.mark.parametrize("columns", ["80", "200"])
def test_reports_and_summaries_of_long_names_fit(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    name = "a" * 400
    layer = fs.nn.SparseLinear(40, 30, sparsity=0.9, rng=0)
    report = fs.compile(fs.nn.Sequential(layer), (1, 40), tune=False).report()
    report = replace(report, rows=[replace(row, layer=name) for row in report.rows], facts={"inputs": f"{name} 1x40"})
    assert max(map(len, str(report).splitlines())) <= max(int(columns), 110)
