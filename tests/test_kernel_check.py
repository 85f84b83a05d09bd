"""`fastsparse info --check`: every family of the registry runs, and a wrong one is named."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from fastsparse import cli, kernel_check
from fastsparse.kernel_check import CHECKS, DTYPES, Case, check_kernels
from fastsparse.ops import softmax
from fastsparse.ops.heuristics import Heuristics
from fastsparse.ops.target import target_for
from fastsparse.runtime import sequence
from fastsparse.runtime.executable import runs_code
from fastsparse_kernels import compiler
from fastsparse_kernels.registry import FAMILIES
from tests.checking import watch_launches


def test_every_family_has_a_check_and_all_are_right() -> None:
    assert list(CHECKS) == [family.name for family in FAMILIES]
    found = list(check_kernels())
    variants = [family.arguments(bits, compiler.lanes(bits)) for family in FAMILIES for bits in (32, 64)]
    assert len(found) == len(list(filter(None, variants)))
    assert not [problem for _, problem in found if problem]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_check_runs_kernels_of_its_family(monkeypatch: pytest.MonkeyPatch, family: Any, dtype: str) -> None:
    case, target = Case(dtype), target_for(np.dtype(dtype), 1)
    addresses = {family.get(*key).address for key in family.arguments(target.bits, target.lanes)}
    if not addresses or (family.name == "spmm by code" and not runs_code()):
        return  # no kernel of this CPU
    run: list[int] = []

    watch_launches(monkeypatch, lambda kernel, words: run.extend([kernel, *words]))  # epilogues are among the words
    table = sequence.step_table
    monkeypatch.setattr(
        sequence, "step_table", lambda bound, *rest: run.extend(b.kernel for b in bound) or table(bound, *rest)
    )
    assert all((abs(got - want) <= bound).all() for got, want, bound in CHECKS[family.name](case))
    assert addresses & set(run)


def test_a_wrong_kernel_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = softmax.softmax
    monkeypatch.setattr(softmax, "softmax", lambda x: right(x) * 1.001)
    monkeypatch.setattr(kernel_check, "FAMILIES", [f for f in FAMILIES if f.name in ("softmax", "layer norm")])
    assert cli.main(["info", "--check"]) == 1
    error = capsys.readouterr().err
    assert "2 of 4 kernel families are wrong here: softmax (float32): " in error
    assert "layer norm" not in error


def test_info_prints_the_heuristics(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kernel_check, "FAMILIES", [f for f in FAMILIES if f.name == "softmax"])
    assert cli.main(["info", "--check"]) == 0
    assert "tile_rate" not in capsys.readouterr().out
    assert cli.main(["info", "--check", "--heuristics"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0] for line in out.splitlines() if line}
    assert {field.name for field in dataclasses.fields(Heuristics)} <= lines
    assert "all 2 kernel families are right" in out
