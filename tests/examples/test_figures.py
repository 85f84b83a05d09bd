"""The command that runs the gallery and writes its table."""

from __future__ import annotations

import json

import pytest

from examples import figures

SCRIPT = """
import os
seed = int(os.environ["FASTSPARSE_EXAMPLES_SEED"])
small = os.environ["FASTSPARSE_EXAMPLES"] == "small"
print("words on the way")
result = {"claim": "a | b", "measured": 90.0 + seed, "baseline": 88.0, "unit": "%", "holds": seed > 0 or not small}
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "plot_some.py"
    path.write_text(SCRIPT, "utf-8")
    return path


def _main(script, tmp_path, *options):
    return figures.main(
        [str(script), "--json", str(tmp_path / "runs.json"), "--page", str(tmp_path / "page.md"), *options]
    )


def _rows(tmp_path):
    lines = (tmp_path / "page.md").read_text("utf-8").splitlines()
    return [
        [cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")]
        for line in lines
        if "plot_some" in line
    ]


def test_seeds_are_summed_up_and_runs_are_kept(script, tmp_path, capsys):
    assert _main(script, tmp_path, "--setting", "small", "--seeds", "2") == 0
    [[_, setting, _, _, claim, measured, baseline, holds]] = _rows(tmp_path)
    assert (setting, claim, baseline, holds) == ("small, 2 seeds", "a / b", "88 ± 0 %", "1 of 2")
    assert measured == "90.5 ± 0.71 %"
    assert _main(script, tmp_path, "--setting", "full") == 0
    assert [row[1] for row in _rows(tmp_path)] == ["small, 2 seeds", "full, 1 seed"]
    before = json.loads((tmp_path / "runs.json").read_text("utf-8"))
    assert sorted(before["plot_some.py"]["small"]) == ["0", "1"]
    capsys.readouterr()
    _main(script, tmp_path, "--setting", "small", "--seeds", "2")
    assert "seed" not in capsys.readouterr().err  # nothing is run twice


def test_runs_of_other_code_do_not_count(script, tmp_path):
    _main(script, tmp_path)
    script.write_text(f'"""Prose."""\n\n# More prose.\n{SCRIPT}', "utf-8")
    assert figures.fresh(figures.read(tmp_path / "runs.json")[script.name], script)["full"]
    script.write_text(SCRIPT.replace("90.0", "70.0"), "utf-8")
    assert _main(script, tmp_path) == 0
    assert [row[5] for row in _rows(tmp_path)] == ["70 %"]


def test_a_script_that_fails_is_named(script, tmp_path, capsys):
    script.write_text("import no_such_package", "utf-8")
    assert _main(script, tmp_path) == 1
    assert "plot_some.py: ModuleNotFoundError: No module named 'no_such_package'" in capsys.readouterr().err
