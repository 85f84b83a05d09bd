"""DistributedDataParallel with two processes on this machine: as one process with both batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or sys.platform == "win32":
    pytest.skip("needs gloo", allow_module_level=True)

from tests.torch import two_processes

ROOT = Path(__file__).parents[2]


class Ranks(NamedTuple):
    """What two processes found, and how the first one ended when the second was killed."""

    found: list[dict]
    returncode: int
    errors: str


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Ranks:
    directory = tmp_path_factory.mktemp("ranks")
    files = [directory / f"{rank}.json" for rank in range(2)]
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "FASTSPARSE_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    arguments = [sys.executable, two_processes.__file__, str(directory)]
    survivor, victim = (
        subprocess.Popen([*arguments, str(rank), "2"], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    )
    try:
        limit = time.monotonic() + 300
        while not all(file.exists() for file in files):
            assert survivor.poll() is None, survivor.stderr.read()
            assert time.monotonic() < limit, "the processes take too long"
            time.sleep(0.05)
        victim.kill()
        _, errors = survivor.communicate(timeout=60)
    finally:
        for process in (survivor, victim):
            process.kill()
            process.communicate()
    return Ranks([json.loads(file.read_text()) for file in files], survivor.returncode, errors)


def test_losses_and_patterns_are_those_of_one_process(ranks):
    module = two_processes.make()
    alone = two_processes.train(module, 0, 1)
    together = np.mean([rank["losses"] for rank in ranks.found], axis=0)
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert alone[0] != alone[-1]
    for name, found, expected in zip(module.state_dict(), ranks.found[0]["state"], two_processes.described(module)):
        if name.endswith(("indptr", "indices")):
            assert found == expected, name
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_ranks_stay_the_same_to_the_bit_though_patterns_change(ranks):
    assert ranks.found[0]["state"] == ranks.found[1]["state"]
    before = two_processes.described(two_processes.make())
    assert ranks.found[0]["state"][2] != before[2], "no pattern has changed"


def test_only_values_and_biases_travel(ranks):
    module = two_processes.make()
    assert ranks.found[0]["sent"] == sum(p.numel() for p in module.parameters()) == 120 + 30 + 60 + 10


def test_training_continues_from_a_checkpoint_with_the_same_bits(ranks):
    for rank in ranks.found:
        assert rank["resumed"] == rank["losses"][two_processes.SAVED :]
        assert rank["resumed state"] == rank["state"]


def test_different_decisions_are_noticed(ranks):
    for rank in ranks.found:
        assert rank["different"].startswith("the ranks decided on different patterns")


def test_a_killed_rank_ends_the_others_within_a_minute(ranks):
    assert ranks.returncode not in (0, None)
    assert "Connection closed by peer" in ranks.errors or "Connection reset by peer" in ranks.errors, ranks.errors
