"""The report, the summary and the JSON of made-up results."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fastsparse.demo.report import render, write_report
from fastsparse.demo.results import NUMPY, OURS, SCIPY, Agreement, Curves, LayerRow, Mistakes, Results, Speed
from fastsparse.demo.summary import summary


def _speed(batch: int) -> Speed:
    return Speed(
        batch=batch,
        times={OURS: 2.0, SCIPY: 20.0, NUMPY: 15.0},
        ratios={SCIPY: 10.0, NUMPY: 7.5},
        product_times={SCIPY: 12.0, NUMPY: 11.0},
        product_ratios={SCIPY: 6.0, NUMPY: 5.5},
    )


@pytest.fixture
def results() -> Results:
    curves = Curves([1.0, 0.1], [0.7, 0.98], [1.1, 0.2], [0.6, 0.97])
    images = np.random.default_rng(0).random((15, 8, 8))
    return Results(
        layers=[LayerRow("conv1", (64, 1, 3, 3), 576), LayerRow("linear<1>", (100, 64), 64)],
        sparse_accuracy=[0.98, 0.99],
        dense_accuracy=[0.985, 0.995],
        sparse_curves=curves,
        dense_curves=curves,
        sparse_train_seconds=[1.0, 3.0],
        dense_train_seconds=[5.0, 6.0],
        compile_seconds=17.25,
        speeds={1: _speed(1), 256: _speed(256)},
        tuned_scipy_ratio=4.0,
        tuned_scipy_chunk=32,
        agreement=Agreement(1e-7, 2e-7, 3e-7, 4e-7, True),
        mistakes=Mistakes(images, np.arange(15) % 10, (np.arange(15) + 1) % 10),
        pattern=images[0] > 0.5,
        pattern_name="conv2",
        train_images=1212,
        validation_images=135,
        test_images=450,
        epochs=2,
        seconds=31.4,
        threads=2,
        blas_threads=2,
        versions={"numpy": "2"},
        machine="a <machine>",
    )


class _Page(HTMLParser):
    """Open tags and the sources a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_stands_alone_and_is_well_formed(results):
    page = _Page(render(results))
    assert page.open == []
    assert len(page.sources) == 4
    for source in page.sources:
        start, _, encoded = source.partition(",")
        assert start == "data:image/png;base64"
        assert base64.b64decode(encoded).startswith(b"\x89PNG")


def test_page_says_the_figures_and_escapes_names(results):
    text = render(results)
    for figure in (
        "10.0×",
        "7.5×",
        "98.50%",
        "99.00%",
        "90.8%",
        "31 s",
        "4.0×",
        "1.0e-07",
        "Mistakes: 15 of 450",
        "2.0 s",
        "17.2 s",
    ):
        assert figure in text, figure
    assert "linear&lt;1&gt;" in text
    assert "<machine>" not in text


def test_page_without_mistakes(results):
    nobody = Mistakes(results.mistakes.images[:0], results.mistakes.labels[:0], results.mistakes.predicted[:0])
    page = render(dataclasses.replace(results, mistakes=nobody))
    assert "every test image is read correctly" in page
    assert len(_Page(page).sources) == 3


def test_page_is_written_whole_or_not_at_all(results, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    broken = dataclasses.replace(results, pattern=None)
    with pytest.raises(AttributeError):
        write_report(broken, path)
    assert path.read_text() == "old"
    write_report(results, path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_json_has_the_figures(results):
    found = json.loads(json.dumps(results.to_json()))
    assert found["sparsity"] == pytest.approx(1 - 640 / 6976)
    assert found["test_accuracy_sparse"] == pytest.approx(0.985)
    assert found["test_accuracy_dense"] == pytest.approx(0.99)
    assert found["speedup_scipy_b256"] == 10.0
    assert found["speedup_numpy_b256"] == 7.5
    assert found["speedup_scipy_products_b256"] == 6.0
    assert found["speedup_scipy_chunked_b256"] == 4.0
    assert found["seconds"] == 31.4
    assert (found["train_seconds_sparse"], found["compile_seconds"]) == ([1.0, 3.0], 17.25)


def test_summary_is_short(results):
    lines = summary(results, Path("r.html")).splitlines()
    assert "training   4.0 s, dense twin 11.0 s; compiling kernels (once): 17.2 s" in lines
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 110
    assert re.search(r"98\.50% on 450 test images \(dense twin 99\.00%\), mean of 2 trainings", "\n".join(lines))
