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
        graph = bench.drawn(SEED, number, "graphs")
        wrong = bench.failure(graph, SEED, number, "graphs")
        assert not wrong, f"{wrong}\npython -m bench.fuzz_networks --replay '{json.dumps(graph)}'"


def test_a_graph_that_fails_is_made_smaller():
    def fails(graph):
        return "wrong" if 3 in graph["steps"] else ""

    assert bench.shrunk({"seed": 5, "steps": list(range(8))}, fails) == {"seed": 5, "steps": [3]}
