"""What becomes of measurements: ratios, means, text, tables and pictures, from pytest-benchmark's JSON."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bench import pictures, report
from bench.baselines import OURS
from bench.baselines.products import ONE_THREAD
from bench.results import SPARSE_BASELINES, Results, compact, geometric_mean, read


def _entries(group: str, name: str, seconds: dict[str, list[float]], **more: Any) -> list[dict[str, Any]]:
    info = {
        "kind": group, "title": f"Title of {group}", "workload": name, "threads": 1, "flops": 2_000_000,
        "bytes": 100_000, "facts": {}, **more, "fields": {"sparsity": 0.9, **more.get("fields", {})},
    }  # fmt: skip
    return [
        {"name": f"{name}-{who}", "extra_info": {**info, "baseline": who}, "stats": {"data": data},
         "options": {"timer": "perf_counter"}}
        for who, data in seconds.items()
    ]  # fmt: skip


SMALL, LARGE = {"fields": {"n": 64, "m": 1024, "k": 1024}}, {"fields": {"n": 4096, "m": 1024, "k": 1024}}


@pytest.fixture
def data() -> dict[str, Any]:
    machine = {
        "cpu": "a processor <b>", "cpus": 2, "vector_bits": 512, "system": "Linux", "python": "3.11", "version": "0.1",
        "commit": "abc", "packages": {"scipy": "1.17", "mkl": None}, "environment": {}, "threads": 1,
        "peaks": {"fma_gflops": 10.0, "bandwidth_gbs": 5.0}, "missing": ["MKL sparse (needs mkl)"], "problems": [],
    }  # fmt: skip
    benchmarks = [
        *_entries("dlmc", "a", {OURS: [1e-3, 2e-3, 4e-3], "scipy": [6e-3, 6e-3, 8e-3]}, **SMALL),
        *_entries("dlmc", "b", {OURS: [1e-3], "scipy": [12e-3], "torch.sparse": [0.5e-3]}, **SMALL),
        *_entries("dlmc", "c", {OURS: [1e-3], "scipy": [5e-3]}, **LARGE),
        *_entries("alone", "d", {OURS: [0.4e-3]}, **LARGE),
        *_entries("sizes", "e", {OURS: [1e-3], "scipy": [3e-3]}, fields={"n": 512, "m": 1024, "k": 1024}),
        *_entries("sizes", "f", {OURS: [1e-3], "scipy": [3e-3]}, fields={"n": 1024, "m": 1024, "k": 1024}),
        *_entries(
            "threads", "g", {OURS: [1e-3], ONE_THREAD: [1.9e-3]}, facts={"cache line round trip": "63 ns"}
        ),
        *_entries("small spmm", "i", {OURS: [2e-6], "scipy": [1e-6]}, **SMALL),
        *_entries("plan", "2048x512-N64-90%", {OURS: [2e-3]}, flops=0, bytes=0, facts={"layers": 1}),
        *_entries("memory", "h", {OURS: [1.0]}, flops=0, bytes=0, facts={"bytes beyond": 60e6}),
    ]  # fmt: skip
    return {"datetime": "2026-01-02T03:04:05+00:00", "fastsparse": machine, "benchmarks": benchmarks}


@pytest.fixture
def results(data, tmp_path) -> Results:
    return _read(data, tmp_path)


def _read(data: dict[str, Any], folder: Any) -> Results:
    path = folder / "results.json"
    path.write_text(json.dumps(data))
    return read([path])


def test_ratios_and_means(results):
    a, b, c = results.of("dlmc")
    assert a.ratio("scipy") == 3.0  # of the ratios 6, 3 and 2
    assert a.ratio("torch.sparse") is None
    assert b.best(SPARSE_BASELINES) == (0.5, "torch.sparse")
    assert geometric_mean([a.ratio("scipy"), b.ratio("scipy"), None]) == pytest.approx(6.0)
    assert geometric_mean([None]) is None
    assert list(report.classes([a, b, c])) == ["dlmc 90%, N <= 1024", "dlmc 90%, N >= 3136"]
    # Calls with next to no work are no evidence of slow kernels.
    assert [e.name for _, _, e in results.slowest(10, SPARSE_BASELINES)] == ["b", "a", "e", "f", "c"]
    c.fields["n"] = 2000
    assert c.columns == "1024 < N < 3136"


def test_text(results):
    text = report.text(results)
    assert "Not installed, so not measured: MKL sparse (needs mkl)" in text
    assert "a cache line from one core to another and back, beside the workloads on two threads: 63 ns" in text
    rows = {cells[0]: cells for line in text.splitlines() if line.startswith("|") for cells in [_cells(line)]}
    assert rows["b"][1:] == [
        "1.00 ms (1.00 ms)",
        "2.0",
        "20%",
        "12.00x 12.00 ms (12.00 ms)",
        "0.50x 500.0 us (500.0 us)",
    ]
    assert rows["d"][3] == "50%"  # of one core's 10 GF/s
    assert rows["g (cache line round trip 63 ns)"][3] == "10%"  # of both processors' 20
    assert rows["dlmc 90%, N <= 1024"][1] == "1"  # those that met the same baselines share a table
    assert rows["h (bytes beyond 60000000.0)"][1] == "1.00 s (1.00 s)"
    assert "Failed" not in text
    results.machine["problems"] = ["a: wrong"]
    assert "Failed or wrong, so not measured:\na: wrong" in report.text(results)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_pictures_show_the_figures(results):
    (axes,) = pictures.threads(results).axes
    assert axes.lines[0].get_xydata().tolist()[0] == [1, 1.0]
    assert axes.lines[0].get_xydata()[-1][1] == pytest.approx(1.9)
    (axes,) = pictures.roofline(results).axes
    assert [20.0, 5.0] in [point for line in axes.lines for point in line.get_xydata().round(3).tolist()]
    assert sum(axes.axison for axes in pictures.sizes(results).axes) == 1  # only the columns vary


def test_report_of_several_runs(data, tmp_path, capsys):
    other = copy.deepcopy(data)
    other["benchmarks"] = _entries("dlmc", "a", {OURS: [1e-3], "scipy": [9e-3]}, **SMALL)
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path, content in zip(paths, (data, other), strict=True):
        path.write_text(json.dumps(content))
    assert report.main([*map(str, paths), "--docs", str(tmp_path / "docs")]) == 0
    assert "## Geometric means" in (tmp_path / "docs" / "measured.md").read_text()
    joined = read(paths)
    assert len(joined.entries) == len(read(paths[:1]).entries)
    assert joined.entries[0].seconds["scipy"] == [9e-3]  # measured last
    other["fastsparse"]["threads"] = 2
    paths[1].write_text(json.dumps(other))
    assert report.main([*map(str, paths)]) == 1
    assert "the results differ in threads: 1 and 2" in capsys.readouterr().err
    for text in ("[]", "{}", "not JSON"):
        paths[1].write_text(text)
        assert report.main([str(paths[1])]) == 1
        assert "b.json is not a results file of python -m bench" in capsys.readouterr().err


def test_pictures_of_sparsity_name_the_winner(data, tmp_path):
    for n in (1, 8, 64):
        for sparsity, ours in ((0.5, 4e-3), (0.9, 1e-3)):
            data["benchmarks"] += _entries(
                "crossover", f"{n}-{sparsity}", {OURS: [ours], "scipy": [3e-3], "numpy dense": [2e-3]},
                fields={"n": n, "m": 1024, "k": 1024, "sparsity": sparsity},
            )  # fmt: skip
    found = _read(data, tmp_path)
    grid = pictures.crossover(found)
    words = [text.get_text() for text in grid.axes[0].texts]
    assert words == 3 * ["0.50x", "numpy dense", "2.00x", "next: numpy dense"]
    left, right = pictures.over_sparsity(found).axes
    assert (left.get_title(), right.get_title()) == ("batch 8", "batch 64")
    lines = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert lines[OURS] == pytest.approx([0.5, 2.0])
    assert lines["scipy"] == pytest.approx([2 / 3, 2 / 3])


def test_compact_files_say_the_same(results, tmp_path):
    path = tmp_path / "compact.json"
    path.write_text(compact(results), "utf-8")
    again = read([path])
    assert again.machine == results.machine
    assert report.text(again) == report.text(results)


def test_the_documentation_shows_its_measurements():
    folder = Path(__file__).parents[1] / "docs" / "performance"
    assert (folder / "measured.md").read_text("utf-8") == report.markdown(read([folder / "measured.json"]))


def test_losses_are_listed_with_the_winner(results):
    text = report.markdown(results)
    table = text[text.index("## Where another library is faster") :].split("\n## ")[1]
    assert "torch.sparse" in table
    assert "0.50x" in table
