"""Dask's `map_blocks` through an engine, by workers of one thread: the recipe of docs/many-machines.md.

Each worker loads the engine once, and reads blocks of rows from files where they are computed. Blocks that wait in the
workers' memory (`persist`) are computed where they happen to be: 13 of 32 on one worker and 19 on the other, which is
1.6 times as fast as one worker.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.baselines import OURS, Baseline, Call
from bench.workloads import DaskInference

SIZES = (1024, 2048, 2048, 10)  # features, of three layers at 90%
BLOCK = 2048  # rows


def infer(block: NDArray[np.float32], path: str) -> NDArray[np.float32]:
    """Rows through the engine of this worker, loaded at its first block."""
    from distributed import get_worker

    import fastsparse as fs

    worker: Any = get_worker()
    if not hasattr(worker, "engine"):
        worker.engine = fs.load_engine(path)
    answers: NDArray[np.float32] = worker.engine(np.ascontiguousarray(block))
    return answers


@functools.lru_cache(maxsize=1)
def _files(blocks: int) -> tuple[Any, Any]:
    """A folder that lives as long as this module, with rows and the engine, and the engine."""
    import dask
    import dask.array as da

    import fastsparse as fs

    folder = tempfile.TemporaryDirectory()
    *pairs, last = itertools.pairwise(SIZES)
    layers: list[Any] = [fs.nn.SparseLinear(*pair, sparsity=0.9, activation="relu", rng=0) for pair in pairs]
    model = fs.nn.Sequential(*layers, fs.nn.SparseLinear(*last, sparsity=0.9, rng=1))
    engine = fs.compile(model, (BLOCK, SIZES[0]), threads=1)
    engine.save(Path(folder.name) / "engine.fsp")
    shape, chunks = (BLOCK * blocks, SIZES[0]), (BLOCK, SIZES[0])
    with dask.config.set(scheduler="synchronous"):
        da.to_npy_stack(folder.name, da.random.default_rng(0).random(shape, chunks=chunks, dtype="float32"), axis=0)
    return folder, engine


class _Workers:
    """Answers to all blocks by a cluster that lives as long as this object."""

    def __init__(self, case: DaskInference, workers: int) -> None:
        from distributed import Client, LocalCluster

        self._folder = _files(case.blocks)[0].name
        self._open = contextlib.ExitStack()
        os.environ["FASTSPARSE_NUM_THREADS"] = "1"
        cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0", memory_limit=0)
        self._client = self._open.enter_context(Client(self._open.enter_context(cluster), set_as_default=False))
        self._client.wait_for_workers(workers)

    def __call__(self) -> Any:
        import dask.array as da

        rows, meta = da.from_npy_stack(self._folder), np.empty((0, 0), np.float32)
        path = str(Path(self._folder) / "engine.fsp")
        found = rows.map_blocks(infer, path, chunks=(BLOCK, SIZES[-1]), dtype="float32", meta=meta)
        return self._client.compute(found, sync=True)

    def __del__(self) -> None:
        self._open.close()


def expected(case: DaskInference) -> list[tuple[Any, ...]]:
    """The engine's own answers, to the bit."""
    return [(_alone(case, 1)(), 0.0)]


def _alone(case: DaskInference, threads: int) -> Call:
    folder, engine = _files(case.blocks)
    rows = [np.load(Path(folder.name) / f"{i}.npy") for i in range(case.blocks)]
    return lambda: np.concatenate([engine(x) for x in rows])


_NEEDS = ("dask", "distributed")
DASK = [
    Baseline(OURS, lambda case, threads: _Workers(case, 2), needs=_NEEDS),
    Baseline("1 worker", lambda case, threads: _Workers(case, 1), needs=_NEEDS),
    Baseline("engine without Dask", _alone, needs=_NEEDS),
]
