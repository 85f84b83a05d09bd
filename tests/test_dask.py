"""The recipe of docs/many-machines.md: an engine per worker, blocks that outlive the worker that computed them."""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
import pytest

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

import dask.array as da  # noqa: E402
from distributed import Client, LocalCluster, get_worker, wait  # noqa: E402

import fastsparse as fs  # noqa: E402

LIMIT = 500 * 2**20
BLOCK, FEATURES, CLASSES = 2**16, 64, 4
BLOCKS = 34  # of 16 MB


def infer(block: np.ndarray, path: str) -> np.ndarray:
    """Rows through the engine of this worker, loaded at its first block."""
    import fastsparse

    worker = get_worker()
    if not hasattr(worker, "engine"):
        worker.engine = fastsparse.load_engine(path)
        worker.loaded = getattr(worker, "loaded", 0) + 1
    return worker.engine(np.ascontiguousarray(block))


def numbers(block_info=None) -> np.ndarray:
    """A block of rows, different for each."""
    first = block_info[None]["array-location"][0][0]
    rows = np.arange(first, first + BLOCK, dtype=np.float32)[:, None] / (BLOCK * BLOCKS)
    return rows + np.arange(FEATURES, dtype=np.float32) / FEATURES


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTSPARSE_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    settings = {"distributed.worker.daemon": False, "distributed.scheduler.allowed-failures": 10}
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=LIMIT, dashboard_address=None) as two,
        Client(two) as client,
    ):
        yield client


def test_a_killed_worker_loses_nothing_of_an_array_larger_than_its_memory(cluster, tmp_path):
    layers = fs.nn.SparseLinear(FEATURES, 32, sparsity=0.9, rng=0), fs.nn.SparseLinear(32, CLASSES, rng=1)
    engine = fs.compile(fs.nn.Sequential(*layers), (BLOCK, FEATURES), threads=1, tune=False)
    engine.save(tmp_path / "engine.fsp")
    rows = da.map_blocks(numbers, chunks=((BLOCK,) * BLOCKS, (FEATURES,)), dtype="float32", meta=np.empty((0, 0), "f4"))
    assert rows.nbytes > LIMIT
    answers = rows.map_blocks(
        infer, str(tmp_path / "engine.fsp"), chunks=(BLOCK, CLASSES), dtype="float32", meta=np.empty((0, 0), "f4")
    )
    kept = answers.persist()
    futures = distributed.futures_of(kept)
    wait(futures[:3], return_when="FIRST_COMPLETED")
    before = cluster.run(os.getpid)
    victim = next(iter(before.values()))
    os.kill(victim, signal.SIGKILL)
    found = kept.compute()
    assert victim not in cluster.run(os.getpid).values()
    for number in (0, 1, BLOCKS // 2, BLOCKS - 1):
        block = numbers({None: {"array-location": [(number * BLOCK, 0)]}})
        np.testing.assert_array_equal(found[number * BLOCK : (number + 1) * BLOCK], engine(block))
    loaded = cluster.run(lambda dask_worker: getattr(dask_worker, "loaded", 0))
    assert set(loaded.values()) <= {0, 1}
