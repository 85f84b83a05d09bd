"""What becomes of measurements: ratios, means, targets, the page; and how they are taken, on tiny workloads."""

from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest

from bench import catalog, checks, lowered, pictures, report, rotation, runner, summary, targets, waits, workloads
from bench.providers import OURS, Provider, chain, conv, scaling, sparse_input, spmm
from bench.svg import Chart, Scale, bars, scale_of
from fastsparse_kernels import reference

# ------------------------------------------------------------------------------------------------------------ taking


def _group(providers, cases, expected=checks.expected_spmm):
    return catalog.Group("tiny", "Tiny", lambda chosen: cases, providers, expected)


@pytest.fixture(autouse=True)
def no_peaks(monkeypatch):
    monkeypatch.setattr(runner.machine, "peaks", lambda: {"fma_gflops": 40.0, "bandwidth_gbs": 20.0})


def test_rounds_are_aligned_and_slow_ones_sit_out():
    calls = []
    budget = rotation.Budget(seconds=0.05, fewest=2, most=8, block=0.0)

    def slow():
        calls.append("slow")
        end = rotation.time.perf_counter() + 0.04
        while rotation.time.perf_counter() < end:
            pass

    seconds = rotation.rotate({"fast": lambda: calls.append("fast"), "slow": slow}, 1, budget)
    assert len(seconds["slow"]) == 2
    assert len(seconds["fast"]) >= 2
    assert min(seconds["slow"]) >= 0.04
    assert max(seconds["fast"]) < 0.04


def test_everybody_is_checked_before_being_timed():
    right, wrong = spmm.PROVIDERS[0], Provider("wrong", lambda case, threads: lambda: np.zeros((20, 7), np.float32))
    absent = Provider("absent", right.setup, needs=("no-such-distribution",))
    group = _group([right, wrong, absent], [workloads.Spmm(20, 30, 7)])
    results = runner.run([group], catalog.Chosen(), budget=rotation.Budget(0.01, 2, 2, 0.0), progress=False)
    (entry,) = results["workloads"]
    assert list(entry["seconds"]) == [OURS]
    assert len(entry["seconds"][OURS]) == 2
    (error,) = results["errors"]
    assert error.startswith("tiny 20x30-N7-90%: wrong: AssertionError: result 0 of wrong is off by up to")


@pytest.mark.parametrize(
    ("expression", "matching"),
    [
        (None, ["dlmc a-90%", "conv b", "conv c-s2"]),
        ("DLMC", ["dlmc a-90%"]),
        ("conv and not s2", ["conv b"]),
        ("dlmc or s2", ["dlmc a-90%", "conv c-s2"]),
    ],
)
def test_names(expression, matching):
    wanted = runner.matcher(expression)
    assert [name for name in ("dlmc a-90%", "conv b", "conv c-s2") if wanted(name)] == matching


TINY = [
    (workloads.Spmm(20, 30, 600), spmm.PROVIDERS, checks.expected_spmm),
    (workloads.Spmm(20, 30, 40), spmm.PANEL_PROVIDERS, checks.expected_spmm),
    (workloads.Spmm(20, 30, 40), scaling.PROVIDERS, checks.expected_any),
    (workloads.Conv(16, 8, 6, 5, 3), conv.LAYER_PROVIDERS, checks.expected_conv),
    (workloads.Conv(1, 8, 6, 5, 3), conv.LAYER_PROVIDERS, checks.expected_conv),
    (workloads.Conv(1, 8, 6, 5, 3, stride=2), conv.LAYER_PROVIDERS, checks.expected_conv),
    (workloads.Conv(16, 8, 6, 5, 1, stride=2), conv.LAYER_PROVIDERS, checks.expected_conv),
    (workloads.Chain(3, 50), chain.PROVIDERS, checks.expected_chain),
    (workloads.SparseInput(6, 400, 20, 0.95, 0.9), sparse_input.PROVIDERS, checks.expected_sparse_input),
]


@pytest.mark.parametrize(("case", "providers", "expected"), TINY)
def test_providers_are_right(case, providers, expected):
    right = expected(case)
    for provider in providers:
        if not provider.missing:
            call = provider.setup(case, 1)
            call()
            checks.check(provider.name, getattr(call, "result", call)(), right, case.weight)


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


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_large_reference_is_the_oracle(kernel, stride):
    case = workloads.ConvStep(2, 3, 7, 5, kernel, 0.5, stride)
    w, sides = case.weight.astype(np.float64), {"kernel_size": (kernel,) * 2, "stride": (stride,) * 2}
    sides |= {"padding": ((case.padding,) * 2,) * 2, "dilation": (1, 1)}
    x, grad = case.x.astype(np.float64), case.grad.astype(np.float64)
    y = reference.conv(w.indptr, w.indices, w.data, w.shape, x, **sides)
    np.testing.assert_allclose(lowered.forward(case, w, x), y, atol=1e-12)
    grad_x, values, _ = reference.conv_backward(grad, w.indptr, w.indices, w.data, w.shape, x, **sides)
    found_x, found = lowered.backward(case, w, x, grad)
    np.testing.assert_allclose(found_x, grad_x, atol=1e-12)
    np.testing.assert_allclose(found[reference.row_of(w.indptr), w.indices], values, atol=1e-12)


def test_pruned_convolutions(tmp_path):
    # columns run (kernel row, kernel column, channel): channel 1 at row 0, column 2; channel 0 at row 2, column 1
    path = tmp_path / "0.9" / "bottleneck_2_block_group_projection_block_group2.smtx"
    path.parent.mkdir()
    path.write_text("1, 18, 2\n0 2\n5 14\n")
    weight = workloads.pruned_convolution(path, 2, np.random.default_rng(0))
    assert weight.indices.tolist() == [0 * 9 + 2 * 3 + 1, 1 * 9 + 0 * 3 + 2]
    cases = catalog.layers(catalog.Chosen(tmp_path))
    assert [(case.batch, case.side, case.stride, case.out_side) for case in cases] == []  # 89% sparse, not 90%
    path.write_text("10, 18, 18\n0 2 2 2 2 2 2 2 2 2 18\n5 14 " + " ".join(map(str, range(16))) + "\n")
    cases = catalog.layers(catalog.Chosen(tmp_path))
    assert [(case.batch, case.side, case.stride, case.out_side) for case in cases] == [(1, 56, 2, 28), (16, 56, 2, 28)]
    assert {case.n for case in catalog.dlmc_spmm(catalog.Chosen(tmp_path))} == {784, 16 * 784}
    assert [case.k for case in catalog.panels(catalog.Chosen(tmp_path))] == []  # too narrow to fill panels


def test_catalog():
    groups = [group for groups in catalog.GROUPS.values() for group in groups]
    labels = [group.label(case) for group in groups for case in group.cases(catalog.Chosen())]
    assert len(set(labels)) == len(labels)
    for group in groups:
        assert (group.expected is None) is (group.measure is not None)
        if group.measure is None:
            names = [provider.name for provider in group.providers]
            assert names[0] == OURS
            assert len(set(names)) == len(names)


def test_no_patterns(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.smtx file found below"):
        catalog.dlmc_spmm(catalog.Chosen(tmp_path))


def test_memory_and_plans():
    _, facts = waits.memory(workloads.SparseInput(8, 1000, 30, 0.99, 0.9))
    assert facts["bytes_beyond"] is None or -(2**20) < facts["bytes_beyond"] < 50e6
    seconds, facts = waits.planning(waits.Plan("2048x512-N64-90%"))
    assert len(seconds[OURS]) == 7
    assert facts == {"layers": 1}


# --------------------------------------------------------------------------------------------------------- reporting


def _entry(group, name, seconds, **fields):
    return {
        "group": group, "title": group, "name": name, "fields": {"sparsity": 0.9, **fields}, "nnz": 10,
        "flops": 2_000_000, "bytes": 100_000, "seconds": seconds,
    }  # fmt: skip


@pytest.fixture
def results():
    small, large = {"n": 64, "m": 1024, "k": 1024}, {"n": 4096, "m": 1024, "k": 1024}
    return {
        "format": runner.FORMAT,
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {
            "cpu": "a processor <b>", "cpus": 2, "vector_bits": 512, "system": "Linux", "python": "3.11",
            "fastsparse": "0.1", "commit": "abc", "packages": {"scipy": "1.17", "mkl": None}, "environment": {},
        },
        "peaks": {"fma_gflops": 10.0, "bandwidth_gbs": 5.0},
        "threads": 1,
        "clock": "perf_counter",
        "missing": ["MKL sparse (needs mkl)"],
        "errors": [],
        "workloads": [
            _entry("dlmc", "a", {OURS: [1e-3, 2e-3, 4e-3], "scipy": [6e-3, 6e-3, 8e-3]}, **small),
            _entry("dlmc", "b", {OURS: [1e-3], "scipy": [12e-3], "torch.sparse": [0.5e-3]}, **small),
            _entry("dlmc", "c", {OURS: [1e-3], "scipy": [5e-3]}, **large),
            _entry("panels", "d", {OURS: [0.4e-3]}, **large),
            _entry("sizes", "e", {OURS: [1e-3], "scipy": [3e-3]}, **(small | {"n": 512})),
            _entry("sizes", "f", {OURS: [1e-3], "scipy": [3e-3]}, **(small | {"n": 1024, "m": 1024})),
            _entry("threads", "g", {OURS: [1e-3], scaling.ONE: [1.9e-3]}),
            {**_entry("plan", "2048x512-N64-90%", {OURS: [2e-3]}), "flops": 0, "bytes": 0, "facts": {"layers": 1}},
            {**_entry("memory", "h", {}), "flops": 0, "bytes": 0, "facts": {"bytes_beyond": 60e6}},
        ],
    }  # fmt: skip


def test_ratios_and_means(results):
    a, b, c = results["workloads"][:3]
    assert summary.ratio(a, "scipy") == 3.0  # of the ratios 6, 3 and 2
    assert summary.ratio(a, "torch.sparse") is None
    assert summary.best_ratio(b, summary.SPARSE_PEERS) == (0.5, "torch.sparse")
    assert summary.geometric_mean([a, b], "scipy") == pytest.approx(6.0)
    assert list(summary.classes([a, b, c])) == ["dlmc 90%, N <= 1024", "dlmc 90%, N >= 3136"]
    assert [entry["name"] for _, _, entry in summary.worst([a, b, c], summary.SPARSE_PEERS)] == ["b", "a", "c"]
    assert summary.columns_class(2000) == "1024 < N < 3136"


def test_targets(results):
    rows = {row.what: row for row in targets.evaluate(results)}
    assert len(rows) == len(targets.TARGETS)
    row = rows["SpMM 90%, N <= 1024, one thread, against scipy"]
    assert (row.wanted, row.found, row.verdict) == ("at least 4.50x", "6.00x", "met")
    assert rows["SpMM 90%, N >= 3136, one thread, against MKL sparse"].verdict == "not measured"
    row = rows["slowest single workload against the best sparse peer"]
    assert (row.found, row.verdict, row.note) == ("0.50x", "missed", "dlmc b, torch.sparse")
    assert rows["share of FMA peak, 90%, in panels"].found == "50%"
    assert rows["the same: memory beyond x, W, output"].verdict == "missed"
    assert rows["plan of a 2048x512 layer at 90%"].verdict == "met"
    assert rows["AVX2: SpMM against dense"].verdict == "not measured"  # the machine has wider vectors
    on_two = {row.what: row for row in targets.evaluate(results | {"threads": 2})}
    assert on_two["SpMM 90%, N <= 1024, one thread, against scipy"].verdict == "not measured"


def test_targets_on_avx2_count_whom_they_hold(results):
    entry = _entry("resnet", "a", {OURS: [1e-3], "torch dense": [5e-3], "onnxruntime dense": [2e-3]})
    machine = results["machine"] | {"vector_bits": 256}
    what = "AVX2: convolution against dense"
    for environment, found in (({}, "2.00x"), ({"NUMBA_CPU_NAME": "haswell"}, "5.00x")):
        run = results | {"workloads": [entry], "machine": machine | {"environment": environment}}
        row = {row.what: row for row in targets.evaluate(run)}[what]
        assert row.found == found
        assert ("onnxruntime dense" in row.note) == bool(environment)


def test_text(results):
    text = summary.text(results)
    assert "Not installed, so not measured: MKL sparse (needs mkl)" in text
    assert "dlmc b" in text
    assert "0.50x" in text
    shares = {words[0]: words[-1] for words in map(str.split, text.splitlines()) if words and words[-1].endswith("%")}
    assert (shares["panels"], shares["threads"]) == ("50%", "10%")  # of one core's 10 GF/s, of both processors' 20
    assert "Failed" not in text
    assert "a: wrong" in summary.text(results | {"errors": ["a: wrong"]})


class _Page(HTMLParser):
    """Notes what a page loads from elsewhere, and tags that are closed in the wrong order."""

    def __init__(self):
        super().__init__()
        self.loads, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]


def test_page_stands_alone(results):
    from bench import html

    text = html.page(results)
    parser = _Page()
    parser.feed(text)
    assert parser.loads == []
    assert "url(" not in text
    assert "@import" not in text
    assert parser.tags.count("svg") >= 4
    assert "a processor &lt;b&gt;" in text
    assert "MKL sparse (needs mkl)" in text
    html.page({**results, "workloads": []})  # nothing to draw is no error


def test_pictures_are_svg(results):
    made = [pictures.means(results), pictures.ratios(results), pictures.roofline(results), pictures.threads(results)]
    for picture in [*made, bars("a <title>", {"x": {"y & z": 2.0}}, {})]:
        ET.fromstring(picture)
    assert "dlmc b: 0.50x against torch.sparse" in made[1]
    assert "50% of peak" in made[2]
    assert "1.9" in made[3]
    assert pictures.sizes(results).count("<svg") == 1  # only the columns vary


def test_places_on_axes():
    assert Scale(1, 100, "").place(10) == pytest.approx(0.5)
    assert Scale(0, 4, "", log=False).place(1) == 0.25
    assert Scale(1, 100, "").marks() == (1, 2, 5, 10, 20, 50, 100)
    chart = Chart("t", scale_of([1, 8], "x"), Scale(1, 10, "y"), 400, 300)
    chart.dot((8, 10), "#000", "tip")
    circle = next(element for element in ET.fromstring(chart.svg()) if element.tag == "circle")
    assert float(circle.get("cy")) == 30.0  # the top
    assert float(circle.get("cx")) < 400


def test_report_of_several_runs(results, tmp_path, capsys):
    other = copy.deepcopy(results)
    other["workloads"] = [_entry("dlmc", "a", {OURS: [1e-3], "scipy": [9e-3]}, n=64), *other["workloads"][1:2]]
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path, content in zip(paths, (results, other), strict=True):
        path.write_text(json.dumps(content))
    assert report.main([*map(str, paths), "--html", str(tmp_path / "r.html")]) == 0
    assert "</html>" in (tmp_path / "r.html").read_text()
    joined = report.merged([results, other])
    assert len(joined["workloads"]) == len(results["workloads"])
    assert joined["workloads"][0]["seconds"]["scipy"] == [9e-3]  # measured last
    paths[1].write_text(json.dumps(other | {"threads": 2}))
    assert report.main([*map(str, paths)]) == 1
    assert "the results differ in threads: 1 and 2" in capsys.readouterr().err
    paths[1].write_text("[]")
    assert report.main([str(paths[1])]) == 1
    assert "b.json is not a results file" in capsys.readouterr().err
