"""PyTorch modules in the benchmarks: everybody computes the same before being timed."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from bench import checks, groups, workloads


@pytest.mark.parametrize("group", ["torch call", "torch step"])
def test_modules_agree_before_they_are_timed(group):
    (group,) = groups.chosen(group.replace(" ", "_"))
    for case in (workloads.TorchModule("mlp", 16),) if group.name == "torch step" else group.cases(groups.Options()):
        expected = group.expected(case)
        for baseline in group.baselines:
            call = None if baseline.missing else baseline.setup(case, 1)
            if call is not None:
                result = getattr(call, "result", call)()
                if baseline.checked:
                    checks.check(baseline.name, result, expected, None)
                    with pytest.raises(AssertionError, match="is off by"):
                        checks.check(baseline.name, 1.01 * result, expected, None)
