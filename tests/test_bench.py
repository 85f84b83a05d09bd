"""The benchmarks' own parts: the .smtx reader, the tables, the checks that stop a wrong result from being timed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

import bench
from bench import checks, dlmc, table, workloads
from bench.providers import OURS, conv, spmm, steps


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


SMALL = [
    (workloads.Spmm(20, 30, 17), spmm.PROVIDERS, checks.expected_spmm),
    (workloads.Spmm(20, 30, 1), spmm.PROVIDERS, checks.expected_spmm),
    (workloads.Conv(2, 3, 7, 5, 3), conv.PROVIDERS, checks.expected_conv),
    (workloads.Conv(2, 3, 7, 5, 3, stride=2), conv.PROVIDERS, checks.expected_conv),
    (workloads.Conv(2, 16, 6, 5, 1), conv.PROVIDERS, checks.expected_conv),
    (workloads.LinearStep(16, 40, 20), steps.LINEAR_PROVIDERS, checks.expected_linear_step),
    (workloads.ConvStep(16, 3, 8, 5, 3), steps.CONV_PROVIDERS, checks.expected_conv_step),
]


@pytest.mark.parametrize(("case", "providers", "expected"), SMALL, ids=[case.name for case, _, _ in SMALL])
def test_providers_are_right_and_wrong_results_are_seen(case, providers, expected):
    right = expected(case)
    for provider in providers:
        if provider.missing:
            continue
        call = provider.setup(case, 1)
        result = getattr(call, "result", call)()
        checks.check(provider.name, result, right, case.weight)
        for place in range(len(right)):
            parts = [np.array(part) for part in (result if isinstance(result, tuple) else (result,))]
            parts[place] *= 1 + 1e-2
            with pytest.raises(AssertionError, match=f"result {place} of {provider.name} is off"):
                checks.check(provider.name, tuple(parts), right, case.weight)


def test_missing_providers_are_named(monkeypatch):
    import bench.providers as providers

    monkeypatch.setattr(providers, "_installed", lambda name: name != "torch")
    missing = {provider.name: provider.missing for provider in spmm.PROVIDERS if provider.missing}
    assert missing == {"torch dense": ["torch"], "torch.sparse": ["torch"]}


def _entry(group: str, stats: list[float], **extra: object) -> dict[str, object]:
    data = sorted(stats)
    return {"group": group, "stats": {"data": stats, "median": data[len(data) // 2]}, "extra_info": extra}


def _results() -> dict[str, object]:
    race = {"workload": "8x8-N4-90%", "threads": 1, "flops": 4_000_000}
    machine = {
        "cpu": {"brand_raw": "a processor", "count": 2},
        "python_version": "3.11",
        "packages": {"scipy": "1.17", "mkl": None},
        "missing_providers": ["MKL sparse (needs mkl)"],
        "fastsparse": "0.1.0",
        "commit": "abc",
    }
    entries = [
        _entry("spmm 8x8-N4-90%", [1e-3, 2e-3, 4e-3], **race, provider=OURS, fastsparse_seconds=[]),
        # rounds of 6, 3 and 3 times: the median of ratios, not the ratio of medians
        _entry("spmm 8x8-N4-90%", [6e-3, 6e-3, 12e-3], **race, provider="scipy", fastsparse_seconds=[1e-3, 2e-3, 4e-3]),
        _entry("two threads against one a", [1e-3] * 3, workload="a", threads=2, one_thread_seconds=[1.9e-3] * 3),
        _entry("startup", [0.0], workload="import", waits=[0.1, 0.3, 0.2], target=0.2),
    ]
    return {"machine_info": machine, "datetime": "2026-01-02T03:04:05", "benchmarks": entries}


def test_table(tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(_results()))
    assert table.main([str(path)]) == 0
    text = capsys.readouterr().out
    assert "a processor, 2 processors; Python 3.11, scipy 1.17; fastsparse 0.1.0 (abc), 2026-01-02." in text
    assert "Not installed, so not measured: MKL sparse (needs mkl)." in text
    assert "| 8x8-N4-90% | 2.00 ms (1.00 ms) | 2 | 3.00x (6.00 ms) |" in text
    assert "| geometric mean |  |  | 3.00x |" in text
    assert "| a | 1.90 ms | 1.00 ms | 1.90x |" in text
    assert "| import | 200.00 ms | 100.00 ms |" in text


def test_table_of_something_else(tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text("{}")
    assert table.main([str(path)]) == 1
    assert "not a results file" in capsys.readouterr().err


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
