"""Random graphs of what the kernels run and what they do not, against onnxruntime itself."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("onnxruntime")
bench = pytest.importorskip("bench.fuzz_networks")

SEED = 3


@pytest.mark.R7
@pytest.mark.R8
@pytest.mark.parametrize("first", range(0, 300, 50))
def test_random_graphs(first):
    """Contracts R7 and R8; a longer run is `python -m bench.fuzz_networks --kind graphs`."""
    for number in range(first, first + 50):
        case = bench.new_case("graphs", SEED, number)
        wrong = bench.failure(case)
        assert not wrong, f"{wrong}\npython -m bench.fuzz_networks --replay '{json.dumps(case)}'"


def test_a_case_is_made_smaller_step_by_step_and_draw_by_draw():
    def fails(case):
        return "wrong" if any(step[:2] == [3, 7] for step in case["steps"]) else ""

    case = {"seed": [5], "steps": [[0, 1, 2], [1, 4], [3, 7, 2], [4]]}
    assert bench.shrunk(case, fails) == {"seed": [5], "steps": [[0, 0, 0], [3, 7, 0]]}
