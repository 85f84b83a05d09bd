"""Inference on Dask: two workers of one thread against one: ``python -m bench.dask_inference``.

The recipe of docs/many-machines.md on one machine: each worker loads the engine once, blocks of rows are read from
files where they are computed, and ``map_blocks`` runs them. Blocks that wait in the workers' memory (``persist``) are
computed where they happen to be: 13 of 32 on one worker and 19 on the other, which is 1.6 times as fast as one worker.
Both clusters compute the same answers first; then they take turns. Needs ``pip install "dask[array]" distributed`` (the
extra `dask`), and two CPUs that do nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastsparse as fs
from bench import machine
from fastsparse.text_table import text_table
from fastsparse.timing import interleaved, ratio

SIZES = (1024, 2048, 2048, 10)  # features, of three layers at 90%
BLOCK = 2048  # rows


def infer(block: NDArray[np.float32], path: str) -> NDArray[np.float32]:
    """Rows through the engine of this worker, loaded at its first block."""
    from distributed import get_worker

    worker: Any = get_worker()
    if not hasattr(worker, "engine"):
        worker.engine = fs.load_engine(path)
    answers: NDArray[np.float32] = worker.engine(np.ascontiguousarray(block))
    return answers


def save_engine(path: Path) -> Any:
    """An engine of one thread for blocks of rows, saved."""
    *pairs, last = itertools.pairwise(SIZES)
    layers: list[Any] = [fs.nn.SparseLinear(*pair, sparsity=0.9, activation="relu", rng=0) for pair in pairs]
    model = fs.nn.Sequential(*layers, fs.nn.SparseLinear(*last, sparsity=0.9, rng=1))
    engine = fs.compile(model, (BLOCK, SIZES[0]), threads=1)
    engine.save(path)
    return engine


def save_rows(folder: Path, blocks: int) -> NDArray[np.float32]:
    """Blocks of rows in a file each; returns the first one."""
    import dask
    import dask.array as da

    shape, chunks = (BLOCK * blocks, SIZES[0]), (BLOCK, SIZES[0])
    rows = da.random.default_rng(0).random(shape, chunks=chunks, dtype="float32")
    with dask.config.set(scheduler="synchronous"):
        da.to_npy_stack(str(folder), rows, axis=0)
    first: NDArray[np.float32] = np.load(folder / "0.npy")
    return first


@contextlib.contextmanager
def answering(workers: int, path: Path, folder: Path) -> Iterator[Any]:
    """A function without arguments that computes the answers to all blocks on so many workers of one thread."""
    import dask.array as da
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0", memory_limit=0) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(workers)
        rows, meta = da.from_npy_stack(str(folder)), np.empty((0, 0), np.float32)

        def answers() -> Any:
            found = rows.map_blocks(infer, str(path), chunks=(BLOCK, SIZES[-1]), dtype="float32", meta=meta)
            return client.compute(found, sync=True)

        yield answers


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.dask_inference", description=__doc__)
    parser.add_argument("--blocks", type=int, default=32, help=f"of {BLOCK} rows (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="for all rounds (default: %(default)s)")
    options = parser.parse_args(arguments)
    os.environ["FASTSPARSE_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engine.fsp"
        engine, x = save_engine(path), save_rows(Path(folder), options.blocks)
        with answering(1, path, Path(folder)) as one, answering(2, path, Path(folder)) as two:
            expected = one()
            if not np.array_equal(expected[:BLOCK], engine(x)) or not np.array_equal(two(), expected):
                raise SystemExit("answers differ between workers, expected the same bits")
            times = interleaved(
                {"1 worker": one, "2 workers": two, "engine alone": lambda: [engine(x) for _ in range(options.blocks)]},
                rounds=(3, 15), seconds=options.seconds,
            )  # fmt: skip
    rows = [
        (name, f"{statistics.median(found) * 1e3:.4g}", f"{ratio(times['1 worker'], found):.2f}x")
        for name, found in times.items()
    ]
    trip = machine.round_trip() * 1e9
    print(f"{options.blocks} blocks of {BLOCK} x {SIZES[0]}, round trip of a cache line: {trip:.0f} ns")
    print(text_table(("workers of one thread", "ms", "of one worker"), rows, text=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
