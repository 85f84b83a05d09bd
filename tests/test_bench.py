"""The benchmarks: files, references, baselines that are right before they are timed, rounds, the command."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import bench
import fastsparse as fs
from bench import __main__ as command
from bench import checks, cold_start, dlmc, groups, harness, locality, machine, matrices, tuning, workloads
from bench.baselines import OURS, Baseline, conv, networks, products, steps, training
from fastsparse import nn, timing
from fastsparse_kernels import compiler, reference

ROOT = Path(__file__).resolve().parent.parent

# ------------------------------------------------------------------------------------------------- files and references


@pytest.fixture
def smtx(tmp_path: Path) -> Path:
    path = tmp_path / "bottleneck_2_block_group3_1_1.smtx"
    path.write_text("2, 5, 4\n0 3 4 \n4 0 2 1 \n")
    return path


def test_smtx(smtx):
    indptr, indices, shape = dlmc.read_smtx(smtx)
    assert shape == (2, 5)
    assert indptr.tolist() == [0, 3, 4]
    assert indices.tolist() == [0, 2, 4, 1]  # sorted within each row
    case = workloads.Spmm(2, 5, 3, 0.6, smtx)
    assert case.weight.toarray().astype(bool).tolist() == [
        [True, False, True, False, True],
        [False, True] + [False] * 3,
    ]


@pytest.mark.parametrize(
    "text", ["", "2, 5\n", "2, 5, 4\n0 3 4\n4 0 2\n", "2, 5, 4\n0 4\n4 0 2 1\n", "a, b, c\n0\n0\n"]
)
def test_damaged_smtx(text, tmp_path):
    path = tmp_path / "x.smtx"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.smtx"):
        dlmc.read_smtx(path)


@pytest.mark.parametrize(
    ("stem", "columns"),
    [
        ("initial_conv", [112 * 112, 16 * 112 * 112]),
        ("bottleneck_2_block_group1_1_1", [56 * 56, 16 * 56 * 56]),
        ("bottleneck_1_block_group_projection_block_group1", [56 * 56, 16 * 56 * 56]),
        ("bottleneck_1_block_group_projection_block_group3", [28 * 28, 16 * 28 * 28]),
        ("bottleneck_2_block_group_projection_block_group3", [14 * 14, 16 * 14 * 14]),
        ("bottleneck_projection_block_group_projection_block_group4", [7 * 7, 16 * 7 * 7]),
        ("final_dense", [1, 16]),
        ("body_encoder_layer_0_ffn_conv1_fully_connected", [256, 1024]),
    ],
)
def test_columns_of_layers(stem, columns):
    assert dlmc.columns_of(Path(f"{stem}.smtx")) == columns


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_large_reference_is_the_oracle(kernel, stride):
    case = workloads.ConvStep(2, 3, 7, 5, kernel, 0.5, stride)
    w, sides = case.weight.astype(np.float64), {"kernel_size": (kernel,) * 2, "stride": (stride,) * 2}
    sides |= {"padding": ((case.padding,) * 2,) * 2, "dilation": (1, 1)}
    x, grad = case.x.astype(np.float64), case.grad.astype(np.float64)
    y = reference.conv(w.indptr, w.indices, w.data, w.shape, x, **sides)
    np.testing.assert_allclose(checks.convolve(case, w, x), y, atol=1e-12)
    grad_x, values, _ = reference.conv_backward(grad, w.indptr, w.indices, w.data, w.shape, x, **sides)
    found_x, found = checks.convolve_backward(case, w, x, grad)
    np.testing.assert_allclose(found_x, grad_x, atol=1e-12)
    np.testing.assert_allclose(found[reference.row_of(w.indptr), w.indices], values, atol=1e-12)


def test_pruned_convolutions(tmp_path):
    # columns run (kernel row, kernel column, channel): channel 1 at row 0, column 2; channel 0 at row 2, column 1
    path = tmp_path / "0.9" / "bottleneck_2_block_group_projection_block_group2.smtx"
    path.parent.mkdir()
    path.write_text("1, 18, 2\n0 2\n5 14\n")
    weight = workloads.pruned_convolution(path, 2, np.random.default_rng(0))
    assert weight.indices.tolist() == [0 * 9 + 2 * 3 + 1, 1 * 9 + 0 * 3 + 2]
    options = groups.Options(dlmc=tmp_path)
    assert groups.layers(options) == []  # 89% sparse, not 90%
    path.write_text("10, 18, 18\n0 2 2 2 2 2 2 2 2 2 18\n5 14 " + " ".join(map(str, range(16))) + "\n")
    cases = groups.layers(options)
    assert [(case.batch, case.side, case.stride, case.out_side) for case in cases] == [(1, 56, 2, 28), (16, 56, 2, 28)]
    assert {case.n for case in groups.dlmc_spmm(options)} == {784, 16 * 784}


def test_no_patterns(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.smtx file found below"):
        groups.dlmc_spmm(groups.Options(dlmc=tmp_path))


# ------------------------------------------------------------------------------------------------------------ baselines

SPMM, CONV = checks.expected_spmm, checks.expected_conv
TINY = [
    (workloads.Spmm(20, 30, 17), products.SPMM, SPMM),
    (workloads.Spmm(20, 30, 1), products.SPMM, SPMM),
    (workloads.Spmm(20, 30, 600), products.SPMM, SPMM),
    (workloads.Spmm(20, 30, 40), products.THREADS, checks.expected_any),
    (workloads.Spmm(20, 30, 8), products.SMALL_SPMM, SPMM),
    (workloads.Conv(2, 3, 7, 5, 3), conv.PLAIN, CONV),
    (workloads.Conv(2, 3, 7, 5, 3, stride=2), conv.PLAIN, CONV),
    (workloads.Conv(2, 16, 6, 5, 1), conv.PLAIN, CONV),
    (workloads.Conv(16, 8, 6, 5, 3), conv.LAYERS, CONV),
    (workloads.Conv(1, 8, 6, 5, 3), conv.LAYERS, CONV),
    (workloads.Conv(1, 8, 6, 5, 3, stride=2), conv.LAYERS, CONV),
    (workloads.Conv(16, 8, 6, 5, 1, stride=2), conv.LAYERS, CONV),
    *[
        (matrices.MatrixProduct("tiny", n, dtype, form), products.MATRICES, checks.expected_matrix)
        for n, dtype, form in ((7, "float32", "plain"), (1, "float64", "transposed"), (4, "float32", "column-major"))
    ],
    (matrices.MatrixProduct("tiny", 5, "float32", "sddmm"), products.SDDMM, checks.expected_sddmm),
    (workloads.SparseInput(6, 400, 20, 0.95, 0.9), products.SPARSE_INPUT, checks.expected_sparse_input),
    (workloads.LinearStep(16, 40, 20), steps.LINEAR, checks.expected_linear_step),
    (workloads.ConvStep(16, 3, 8, 5, 3), steps.CONV, checks.expected_conv_step),
    (workloads.TrainingStep("mlp", 0.9, 16), training.TRAINING, training.expected),
]


@pytest.mark.parametrize(("case", "baselines", "expected"), TINY)
def test_baselines_are_right_and_wrong_results_are_seen(case, baselines, expected, monkeypatch):
    monkeypatch.setitem(matrices.MATRICES, "tiny", lambda: matrices.power_law(60, 3))
    right = expected(case)
    weight = getattr(case, "weight", None)
    for baseline in baselines:
        call = None if baseline.missing else baseline.setup(case, 1)
        if call is None:
            continue
        call()
        result = getattr(call, "result", call)()
        checks.check(baseline.name, result, right, weight)
        parts = result if isinstance(result, tuple) else (result,)
        for place in range(len(parts)):
            wrong = [np.array(part) for part in parts]
            wrong[place] *= 1 + 1e-2
            with pytest.raises(AssertionError, match=re.escape(f"result {place} of {baseline.name} is off")):
                checks.check(baseline.name, tuple(wrong), right, weight)


def test_wrong_columns_of_wide_products_are_seen():
    case = workloads.Spmm(20, 30, 2000)
    right = checks.expected_spmm(case)
    exact = (case.weight.astype(np.float64) @ case.x).astype(np.float32)
    checks.check("exact", exact, right, case.weight)
    for change in (lambda y: y[:, 1000:1100].fill(0), lambda y: y[:, 1234].fill(np.nan), lambda y: y[:, :1].fill(1)):
        wrong = exact.copy()
        change(wrong)
        with pytest.raises(AssertionError, match="of wrong is off"):
            checks.check("wrong", wrong, right, case.weight)


def test_engines_give_the_same_outputs(monkeypatch, tmp_path):
    pytest.importorskip("onnx")
    import bench.networks

    monkeypatch.setitem(bench.networks.BUILDERS, "mlp", lambda dlmc, seed=0: bench.networks.mlp(seed, 2, 64))
    network = workloads.Network("mlp", 3, (64,))
    networks._written.cache_clear()
    file = tmp_path / "mlp.onnx"
    file.write_bytes(Path(networks._written(network)[1]).read_bytes())
    options = groups.Options(onnx=tmp_path)
    cases = [network, *next(group for group in groups.GROUPS if group.name == "onnx files").cases(options)]
    assert [case.name for case in cases] == ["mlp batch 3", "mlp", "mlp pruned"]
    for case in cases:
        right = networks.expected(case)
        for baseline in networks.ENGINES[:2]:
            call = None if baseline.missing else baseline.setup(case, 1)
            if call is not None:
                checks.check(baseline.name, call(), right, None)
    networks._written.cache_clear()
    networks._fed.cache_clear()


def test_tuning_is_judged():
    seconds, facts = tuning.measure(workloads.Tuning("quiet", 1), time.perf_counter)
    assert len(seconds) == 1
    assert set(facts) == {"within 5% of the best", "worst"}


def test_missing_baselines_are_named(monkeypatch):
    monkeypatch.setattr(bench.baselines, "version", lambda name: None if name == "torch" else "1")
    missing = {baseline.name: baseline.missing for baseline in products.SPMM if baseline.missing}
    assert missing == {"torch dense": ["torch"], "torch.sparse": ["torch"]}
    assert "torch.sparse (needs torch)" in groups.missing_baselines()


def test_the_table_of_groups():
    labels = [group.label(case) for group in groups.GROUPS for case in group.cases(groups.Options())]
    assert len(set(labels)) == len(labels)
    for group in groups.GROUPS:
        assert bool(group.baselines) is (group.measure is None)
        names = [baseline.name for baseline in group.baselines]
        assert names[:1] == [OURS][: len(names)]
        assert len(set(names)) == len(names)
    usual = groups.chosen("")
    assert {group.section for group in usual} == set(groups.USUAL)
    assert [group.name for group in groups.chosen("training_step,conv")] == ["conv", "training step"]
    with pytest.raises(ValueError, match="got 'wings', expected some of kernels, spmm"):
        groups.chosen("wings")


def test_plans_and_patterns_that_change():
    seconds, facts = cold_start.plan(cold_start.Plan("2048x512-N64-90%"), time.perf_counter)
    assert (len(seconds), facts) == (7, {"layers": 1})
    seconds, facts = training.pattern_change(workloads.PatternChange("mlp", "RigL", batch=16, changes=2))
    assert len(seconds) == 2
    assert set(facts) == {"ordinary step", "share, every 100 steps"}


# -------------------------------------------------------------------------------------------------- interleaved rounds


LINES_AT_A_BORDER = int(compiler.vector_bytes() < 64)  # of two workers' positions: shorter vectors may share a line


@pytest.mark.parametrize("size", [28, 56])
def test_workers_write_nothing_that_another_one_holds(size):
    """Blocks of a ResNet on one image: halos are read from other workers, and every worker writes what is its own."""

    def conv(channels: int, outputs: int, kernel: int) -> nn.SparseConv2d:
        return nn.SparseConv2d(channels, outputs, kernel, padding=kernel // 2, sparsity=0.8, activation="relu", rng=0)

    model = nn.Sequential(conv(3, 64, 3), conv(64, 64, 3), conv(64, 256, 1), conv(256, 64, 1), conv(64, 64, 3)).eval()
    program = fs.compile(model, (1, 3, size, size), threads=2, tune=False)._program
    moved = locality.traffic(program, 1, 2)
    assert moved.choice.startswith("spatial tiles")
    assert moved.read > 0
    assert moved.taken <= LINES_AT_A_BORDER * moved.barriers


def test_workers_that_share_a_batch_take_no_lines_of_each_other():
    """What they read of each other is what is unpacked, half of one side."""
    for moved in locality.convolution(2).values():
        assert moved.taken <= LINES_AT_A_BORDER * 128 * moved.barriers
        assert moved.read <= 128 * 28 * 28 // 2 + 256


def test_rounds_are_interleaved_and_slow_calls_sit_out():
    turns = []

    def slow():
        turns.append("slow")
        end = time.perf_counter() + 0.04
        while time.perf_counter() < end:
            pass

    calls = {"fast": lambda: turns.append("fast"), "slow": slow}
    seconds = timing.interleaved(calls, seconds=0.05, rounds=(3, 8), block=0.0)
    assert len(seconds["slow"]) == 3
    assert 3 <= len(seconds["fast"]) <= 8
    assert min(seconds["slow"]) >= 0.04
    assert max(seconds["fast"]) < 0.04
    rounds = [turn for i, turn in enumerate(turns[:-1]) if turn != turns[i + 1]] + turns[-1:]
    assert rounds[-6:] == ["fast", "slow"] * 3 or rounds[-7:-1] == ["fast", "slow"] * 3
    assert timing.ratio([6.0, 6.0, 12.0], [1.0, 2.0, 4.0]) == 3.0  # the median of ratios, not the ratio of medians


def test_a_first_call_that_compiles_does_not_count():
    """Or every measurement would be one call, on cold caches."""
    now, calls = [0.0], []

    def call():
        now[0] += 0.001 if calls else 1.0
        calls.append(now[0])

    times = timing.interleaved({"a": call}, rounds=(1, 1), block=0.01, clock=lambda: now[0])
    assert times["a"] == [pytest.approx(0.001)]
    assert len(calls) >= 20  # ten of them untimed


def test_calls_that_measure_themselves_are_believed():
    def call():
        raise AssertionError("it was called")

    call.elapsed = lambda count: 2.0 * count
    assert timing.interleaved({"a": call}, rounds=(2, 2)) == {"a": [2.0, 2.0]}


class _Fixture:
    """As much of pytest-benchmark's fixture as is used."""

    name, fullname, disabled, _timer = "test", "bench::test", False, staticmethod(time.perf_counter)

    def __init__(self):
        self.entries = []

    def _make_stats(self, iterations):
        self.entries.append((self, times := []))
        self.update = times.append
        return self


def test_everybody_is_checked_before_being_timed():
    right = products.SPMM[0]
    wrong = Baseline("wrong", lambda case, threads: lambda: np.zeros((20, 7), np.float32))
    absent = Baseline("absent", right.setup, needs=("no-such-distribution",))
    unable = Baseline("unable", lambda case, threads: None)
    group = groups.Group("tiny", "tiny", "Tiny", [], [right, wrong, absent, unable], checks.expected_spmm)
    fixture = _Fixture()
    (problem,) = harness.measure(fixture, group, workloads.Spmm(20, 30, 7), groups.Options(quick=True))
    assert problem.startswith("tiny 20x30-N7-90%: wrong: AssertionError: result 0 of wrong is off by up to")
    ((entry, seconds),) = fixture.entries
    assert (entry.name, entry.group) == ("test-fastsparse", "tiny 20x30-N7-90%")
    assert entry.extra_info["baseline"] == OURS
    assert entry.extra_info["fields"] == {"m": 20, "k": 30, "n": 7, "sparsity": 0.9}
    assert 3 <= len(seconds) <= 5


def test_two_threads_are_told_with_the_round_trip_of_a_cache_line(monkeypatch):
    monkeypatch.setattr(machine, "round_trip", lambda: 63e-9)
    monkeypatch.setattr(harness, "PAUSE", 0.0)
    group = groups.Group("tiny", "tiny", "Tiny", [], products.SPMM[:2], checks.expected_spmm)
    fixture = _Fixture()
    assert harness.measure(fixture, group, workloads.Spmm(20, 30, 7), groups.Options(threads=2, quick=True)) == []
    assert [entry.extra_info["facts"] for entry, _ in fixture.entries] == [{"cache line round trip": "63 ns"}, {}]


def test_the_round_trip_of_a_cache_line_is_plausible():
    found = machine.round_trip(0.01)
    assert found is None or 1e-9 < found < 1


# ---------------------------------------------------------------------------------------------------------- the command


def test_command_measures_checks_and_writes(tmp_path):
    file = tmp_path / "r.json"
    arguments = ["small_spmm", "-k", "N8", "--quick", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| 64x64-N8-90%" in done.stdout
    assert "test session starts" not in done.stdout  # results alone
    found = json.loads(file.read_text(encoding="utf-8"))
    assert {"fastsparse", "fastsparse @", "scipy"} <= {b["extra_info"]["baseline"] for b in found["benchmarks"]}
    assert {len(b["stats"]["data"]) for b in found["benchmarks"]} <= {3, 4, 5}
    assert found["fastsparse"]["peaks"]["fma_gflops"] > 1


def test_interrupted_or_wrong_runs_keep_what_was_measured(tmp_path):
    """A conftest of its own makes the second workload wrong, and interrupts the third."""
    (tmp_path / "patched.py").write_text(
        "import dataclasses\nfrom bench import groups\nfrom bench.baselines import Baseline, products\n"
        "from bench.workloads import Spmm\n"
        "def wrong(case, threads):\n"
        "    call = products.SPMM[1].setup(case, 1)\n"
        "    if case.n == 3:\n        return lambda: 2 * call()\n"
        "    if case.n == 4:\n        raise KeyboardInterrupt\n"
        "    return call\n"
        "group = next(g for g in groups.GROUPS if g.name == 'spmm')\n"
        "groups.GROUPS[:] = [dataclasses.replace(group, workloads=[Spmm(9, 8, n) for n in (2, 3, 4)],\n"
        "    baselines=[products.SPMM[0], Baseline('other', wrong)])]\n"
        "import sys\nfrom bench.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    file = tmp_path / "r.json"
    arguments = [str(tmp_path / "patched.py"), "spmm", "--quick", "--json", str(file)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "spmm 9x8-N3-90%: other: AssertionError: result 0 of other is off" in done.stdout
    found = [b["extra_info"] for b in json.loads(file.read_text(encoding="utf-8"))["benchmarks"]]
    measured = [("9x8-N2-90%", OURS), ("9x8-N2-90%", "other"), ("9x8-N3-90%", OURS)]
    assert [(info["workload"], info["baseline"]) for info in found] == measured


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["wings"], "argument WHAT: got 'wings', expected some of kernels, spmm"),
        (["--threads", "0"], "argument --threads: got '0', expected an integer of at least 1"),
        (["--cpu-time", "--threads", "2"], "argument --cpu-time: got --threads 2, expected 1"),
        (["--json", "/nowhere/r.json"], "argument --json: the directory '/nowhere' does not exist"),
    ],
)
def test_bad_arguments(arguments, complaint, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "code"),
    [(pytest.ExitCode.NO_TESTS_COLLECTED, 1), (pytest.ExitCode.USAGE_ERROR, 2), (pytest.ExitCode.TESTS_FAILED, 1)],
)
def test_exit_status_when_nothing_was_measured(status, code, monkeypatch, capsys):
    monkeypatch.setattr(command, "_run_pytest", lambda *arguments: status)
    assert command.main(["-k", "large"]) == code
    assert ("no workload matches 'large'" in capsys.readouterr().err) is (status == 5)


def test_options_reach_pytest(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(command.pytest, "main", lambda arguments: seen.extend(arguments) or 5)
    options = ["--dlmc", str(tmp_path), "dlmc", "conv", "--quick", "--threads", "2", "-k", "a or b", "--maxfail=1"]
    command.main(options)
    wanted = [f"--dlmc={tmp_path}", "--what=dlmc,conv", "--quick", "--threads=2", "-k", "a or b", "--maxfail=1"]
    assert [option for option in wanted if option not in seen] == []


def test_avx2_is_a_process_of_its_own(monkeypatch):
    seen = {}

    def run(command, env, check):
        seen.update(command=command, env=env)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    assert command.main(["--isa", "avx2", "--quick"]) == 1
    assert seen["command"][1:] == ["-m", "bench", "--isa", "avx2", "--quick"]
    assert machine.AVX2.items() <= seen["env"].items()


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in Path(bench.__file__).parent.glob("*.py") if path.stem != "deepsparse_worker")
)
def test_every_command_can_be_imported(name):
    """What one of them takes from another is there; libraries that are not installed are none of its business."""
    try:
        importlib.import_module(f"bench.{name}")
    except ModuleNotFoundError as error:
        missing = str(error.name)
        assert not missing.startswith(("bench", "fastsparse"))
        pytest.skip(f"{missing} is not installed")
