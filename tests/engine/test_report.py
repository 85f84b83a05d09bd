"""Reports, benchmarks and tuning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import nn
from fastsparse.engine import choosing, tuning
from fastsparse.engine.from_model import program_of
from fastsparse.engine.passes import optimised
from fastsparse.ops.target import target_for, tuned
from fastsparse.runtime import measure
from tests.engine.networks import network


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_report_names_every_layer_once(batch):
    model, shape = network("demo")
    engine = fs.compile(model, (batch, *shape))
    report = engine.report()
    layers = [row for row in report.rows if row.operator]
    assert [row.layer for row in layers] == ["0", "3", "6", "8", "9"]
    assert [row.output for row in layers] == [(10, 8, 10), (17, 8, 10), (17, 4, 5), (20,), (7,)]
    assert layers[0].operator == "SparseConv2d + BatchNorm2d + ReLU"
    for row in layers:
        assert row.milliseconds > 0
        assert (row.gflops is None) == (row.sparsity is None) == (row.operator == "MaxPool2d")
    assert layers[0].sparsity == pytest.approx(0.5, abs=0.01)
    assert 0 < max(row.gflops for row in layers if row.gflops) < report.peak_gflops
    text = str(report)
    assert "MaxPool2d" in text
    assert f"batch: {batch} sample{'s' * (batch > 1)} of 3x8x10, float32" in text
    assert all(len(line) < 200 for line in text.splitlines())


def test_report_of_another_batch_size_and_of_dense_layers():
    model, shape = network("features")
    report = fs.compile(model, (1, *shape)).report(batch=40)
    assert "batch: 40 samples of 40, float32" in str(report)
    assert "dense layers: run on the sparse kernels as full patterns" in str(report)
    with pytest.raises(ValueError, match="batch is 0, expected an integer of at least 1"):
        fs.compile(model, (1, *shape)).report(batch=0)


def test_a_report_leaves_the_engine_as_it_was():
    model, shape = network("convolutions")
    engine = fs.compile(model, (20, *shape))
    x = np.random.default_rng(0).standard_normal((20, *shape)).astype(np.float32)
    y = engine(x)
    engine.report()
    np.testing.assert_array_equal(engine(x), y)


def test_benchmark():
    model, shape = network("demo")
    found = fs.compile(model, (4, *shape)).benchmark(0.05)
    assert found.batch == 4
    assert found.calls >= 3
    assert 0 < found.p50 <= found.p95 <= found.p99
    assert found.throughput > 0
    assert str(found).startswith("batch 4: p50 ")


class _Machine:
    """Stands for workspaces and clock: `times[name]` is what a call takes, with all workers and alone, or a function of
    the number of calls before."""

    def __init__(self, times: dict[str, Any], alone: dict[str, float] | None = None) -> None:
        self.times, self.alone, self.calls = times, alone or {}, 0
        self.last = 0.0

    def space(self, name: str) -> Any:
        machine = self

        class Space:
            def run_on(self, workers: int, x: Any, y: Any) -> None:
                if workers == 1 and name in machine.alone:
                    machine.last = machine.alone[name]
                    return
                machine.calls += 1
                taken = machine.times[name]
                machine.last = taken(machine.calls) if callable(taken) else taken

        return Space()

    def seconds(self, call: Any) -> float:
        call()
        return self.last


@pytest.fixture
def chosen_of(monkeypatch):
    """Which of some candidates is taken on a machine, the estimate first."""
    model, shape = network("demo")
    program = fs.compile(model, (2, *shape), tune=False)._program

    def chosen(machine: _Machine, workers: int = 1) -> str:
        monkeypatch.setattr(tuning, "Workspace", machine.space)
        monkeypatch.setattr(tuning, "seconds", machine.seconds)
        names = list(machine.times)
        return names[tuning.fastest(program, [lambda name=name: name for name in names], 2, workers)]

    return chosen


def test_tuning_takes_the_fastest_and_the_estimate_when_in_doubt(chosen_of, monkeypatch):
    times = {"estimate": 1.0, "slower": 2.0, "faster": 0.5, "second": 0.6}
    assert chosen_of(_Machine(times)) == "faster"
    assert chosen_of(_Machine({**times, "faster": 0.97, "second": 0.97})) == "estimate"
    assert chosen_of(_Machine({"estimate": 1.0})) == "estimate"
    monkeypatch.setattr(tuning, "MOST_SECONDS", 0)
    assert chosen_of(_Machine(times)) == "estimate"


def test_tuning_compares_within_rounds(chosen_of):
    """A machine that becomes three times as fast, or as slow, while it is measured changes no choice."""
    for change in (3.0, 1 / 3):
        for when in range(1, 40):

            def at(cost, change=change, when=when):
                return lambda calls: cost * (change if calls > when else 1.0)

            assert chosen_of(_Machine({"estimate": at(1.0), "slower": at(1.1), "faster": at(0.8)})) == "faster"
            assert chosen_of(_Machine({"estimate": at(1.0), "slower": at(1.1), "equal": at(0.98)})) == "estimate"


def test_tuning_wants_repeated_wins(chosen_of):
    """Faster in two rounds of three is not enough."""
    assert (
        chosen_of(_Machine({"estimate": 1.0, "other": lambda calls: 1.1 if calls // 2 % 3 == 0 else 0.5})) == "estimate"
    )


def test_with_workers_a_choice_must_hold_without_what_they_send(chosen_of):
    """Slow transfers between cores make `flat` win with two workers, but alone it loses."""
    times = {"estimate": 1.0, "flat": 0.8}
    assert chosen_of(_Machine(times, {"estimate": 0.95, "flat": 0.8}), workers=2) == "estimate"  # a core is not there
    assert chosen_of(_Machine(times, {"estimate": 1.5, "flat": 1.7}), workers=2) == "estimate"
    assert chosen_of(_Machine(times, {"estimate": 1.5, "flat": 1.4}), workers=2) == "flat"
    assert chosen_of(_Machine({**times, "third": 0.85}, {"estimate": 1.5, "flat": 1.7, "third": 1.5}), 2) == "third"


def test_the_measured_peak_is_plausible():
    single, double = measure.peak_flops(32), measure.peak_flops(64)
    assert single > 1e9
    assert 1.2 < single / double < 3


def test_pages_show_every_row_and_nothing_of_names_as_markup(tmp_path):
    model, shape = network("bottlenecks")
    report = fs.compile(model, (2, *shape), tune=False).report()
    report = replace(report, rows=[replace(report.rows[0], layer="<script>alert(1)</script>"), *report.rows[1:]])
    path = tmp_path / "report.html"
    path.write_text("old")
    report.to_html(path)
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert text.count("<tr>") == len(report.rows) + 1
    for row in report.rows[1:]:
        assert f"{row.milliseconds:.4f} ms" in text
        assert row.why in text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(OSError, match="nowhere"):
        report.to_html(tmp_path / "nowhere" / "report.html")


def test_reasons_tell_sparse_from_dense():
    model, shape = network("bottlenecks")
    rows = {
        row.layer: row for row in fs.compile(model, (1, *shape), tune=False).report().rows if row.gflops is not None
    }
    assert rows["0"].why.startswith("dense: full rows")
    assert rows["3.body.0"].why.startswith("sparse")
    assert rows["8"].why.startswith("dense")
    model, shape = network("pooled")
    (row, *_) = [r for r in fs.compile(model, (1, *shape), tune=False).report().rows if r.gflops is not None]
    assert row.why.startswith("fits into no other layer")


def test_large_images_run_one_by_one():
    """A group of samples of large images leaves the caches between layers, one of small images does not."""

    def layout(side: int, l3_bytes: int = 32 * 2**20) -> str:
        layers = [nn.SparseConv2d(64, 64, 3, padding=1, sparsity=0.9, rng=i) for i in range(3)]
        program = optimised(program_of(nn.Sequential(*layers).eval(), (64, side, side)))
        with tuned(l3_bytes=l3_bytes):
            lanes = target_for(program.dtype, 1).lanes
            return choosing.choices(program, lanes, 1, tune=False)[0].layout

    assert layout(8) == "batch-blocked"
    assert layout(64) != "batch-blocked"
    assert layout(64, 2**40) == "batch-blocked"
