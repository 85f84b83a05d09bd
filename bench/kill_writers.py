"""Kill every writer of files again and again while it writes (contracts F1 and F4).

    python -m bench.kill_writers --count 200

Each writer replaces one file by two contents in turn, in a forked process that is killed (SIGKILL) after a random time.
Whenever that is, the file must hold one of the two as a whole; and after one more write nothing may lie beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastsparse as fs
from bench.own_files import model
from fastsparse import nn
from fastsparse.engine.report import Report
from fastsparse.runtime import atomic_file, kernel_cache
from fastsparse.training import checkpoint
from fastsparse.training.history import History

Write = Callable[[Path], Any]
NAMES = ("model", "engine", "graph engine", "checkpoint", "report", "pruned ONNX", "kernel cache", "JSON")
LONGEST = 0.02  # seconds until a writer is killed, at most


def writers(folder: Path) -> dict[str, tuple[Write, Write]]:
    """Everything that writes files, each with two contents."""
    seeds = 1, 2
    models = [nn.Sequential(nn.Linear(256, 256, rng=seed)) for seed in seeds]
    source = folder / "source.onnx"
    fs.to_onnx(model(), source)
    engines, graphs = (
        [fs.compile(what, (batch, 2, 4, 4), threads=1, tune=False) for batch in seeds] for what in (model(), source)
    )
    runs = [
        checkpoint.Snapshot(
            model, fs.training.Adam(model.parameters(), 0.1), None, np.random.default_rng(seed), History([])
        )
        for model, seed in zip(models, seeds, strict=True)
    ]
    reports = [Report([], 1.0, {"layers": "x" * size}) for size in (10, 100_000)]
    contents = [os.urandom(size) for size in (1000, 1_000_000)]

    def both(write: Callable[[Any, Path], Any], what: list[Any]) -> tuple[Write, Write]:
        return lambda path: write(what[0], path), lambda path: write(what[1], path)

    found = (
        both(fs.save, models),
        both(lambda engine, path: engine.save(path), engines),
        both(lambda engine, path: engine.save(path), graphs),
        both(lambda run, path: checkpoint.save(path, run), runs),
        both(lambda report, path: report.to_html(path), reports),
        both(lambda share, path: _prune(source, path, share), [0.5, 0.95]),
        both(lambda content, path: kernel_cache.write_cached(str(path), content), contents),
        both(lambda size, path: atomic_file.write_text(path, json.dumps(list(range(size)))), [10, 50_000]),
    )
    return dict(zip(NAMES, found, strict=True))


def _prune(source: Path, target: Path, sparsity: float) -> None:
    from fastsparse.onnx.pruning import prune_onnx

    prune_onnx(source, target, sparsity)


def kill(write: tuple[Write, Write], count: int, folder: Path, rng: np.random.Generator) -> int:
    """Kill the writer `count` times; how often that left a temporary file.

    Raises
    ------
    AssertionError
        When the file is neither of the two contents, or something is left beside it after the next write.
    """
    target = folder / "target"
    contents = set()
    for one in write:
        one(target)
        contents.add(target.read_bytes())
    assert len(contents) == 2, "both contents are the same"
    interrupted = 0
    for _ in range(count):
        _killed_writer(write, target, float(rng.uniform(0, LONGEST)))
        assert target.read_bytes() in contents, "the file is neither what it was nor what it should become"
        left = [path.name for path in folder.iterdir() if path != target]
        assert len(left) <= 1, f"several temporary files are left: {left}"
        interrupted += len(left)
    write[0](target)
    assert list(folder.iterdir()) == [target], "the next writer leaves what killed ones left"
    return interrupted


def _killed_writer(write: tuple[Write, Write], target: Path, seconds: float) -> None:
    """Write in a forked process, and kill that."""
    reader, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(sender, b"x")
            while True:
                for one in write:
                    one(target)
        finally:
            os._exit(3)
    try:
        os.close(sender)
        assert select.select([reader], [], [], 60)[0], "the writer does not start"
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(reader)
    assert os.WIFSIGNALED(status), "the writer ended by itself"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.kill_writers", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="kills of each writer (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, failed = np.random.default_rng(arguments.seed), False
    with tempfile.TemporaryDirectory() as name:
        for what, write in writers(Path(name)).items():
            folder = Path(name) / what
            folder.mkdir()
            try:
                interrupted = kill(write, arguments.count, folder, rng)
            except AssertionError as error:
                print(f"{what}: {error}", flush=True)
                failed = True
            else:
                print(f"{what}: {arguments.count} kills, {interrupted} of them inside a write", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
