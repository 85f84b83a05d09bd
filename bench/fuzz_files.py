"""Damage files of every format at random, load them and run what was loaded (contracts F2 and F4).

    python -m bench.fuzz_files --count 100000

Half of the files are damaged bytes: flips, cuts, pieces moved. The others are well-formed, with a valid digest, and
have fields dropped, repeated, exchanged, or set to what is out of range, of another type or somebody else's. Every file
must load as something that runs within its memory and gives results of the right shape, or be refused with
`fastsparse.FileFormatError`. Anything else ends the worker that loads it, and the case's number is told; `--only`
repeats it. Files of other libraries (ONNX, TFLite, safetensors, torch.save) are damaged in the same two ways.

Workers have limited memory, so that what a file declares cannot be allocated unless its size justifies it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fastsparse as fs
from bench import foreign_files as foreign
from bench import guarded
from bench import own_files as own
from bench.damage import damaged, hostile, rewired, with_other_header
from fastsparse import files
from fastsparse.engine.program import UnsupportedOperatorError

LOADING = 256 << 20  # bytes that loading may take beyond what the process has when the fuzzing starts
RUNNING = 1 << 30  # the same for running what was loaded
LITTER = 100  # files that are made of one, before another one is drawn
Rng = np.random.Generator


# ---------------------------------------------------------------- formats


def _compile(path: Path, _: Any) -> Any:
    """An engine of a model of another library."""
    try:
        return fs.compile(path, tune=False, threads=1)
    except UnsupportedOperatorError as error:
        raise fs.FileFormatError(str(error)) from error
    except ValueError as error:
        if type(error) is not ValueError or "give input_shape" not in str(error):
            raise
        raise fs.FileFormatError(str(error)) from error


def _weights(path: Path, _: Any) -> Any:
    return fs.load_weights(path)


def _run_weights(weights: Any, *_: Any) -> None:
    for name, array in weights.items():
        assert isinstance(name, str)
        assert isinstance(array, np.ndarray | fs.CSR), type(array)
        if isinstance(array, fs.CSR) and max(array.shape) < own.LARGEST_RUN:
            fs.CSR(array.indptr, array.indices, array.data, array.shape)  # checked once more
            array @ np.ones(array.shape[1], array.dtype)


@dataclass(frozen=True)
class Format:
    """A kind of file.

    save : writes one, drawn by lot, and gives what `load` and `run` need to know of it
    changed : for files of another library, their contents changed
    """

    kind: str
    save: Callable[[Path, Rng], Any]
    load: Callable[[Path, Any], Any]
    run: Callable[[Any, Any, Rng], None]
    changed: Callable[[bytes, Rng], bytes] | None = None


FORMATS = {
    "model": Format("model", own.save_model, lambda path, _: fs.load(path), own.run_model),
    "engine": Format("engine", own.save_engine, lambda path, _: fs.load_engine(path), own.run_engine),
    "graph": Format("engine", own.save_graph, lambda path, _: fs.load_engine(path), own.run_graph),
    "checkpoint": Format("checkpoint", own.save_checkpoint, own.load_checkpoint, lambda *_: None),
    "safetensors": Format("weights", foreign.save_safetensors, _weights, _run_weights, foreign.changed_safetensors),
    "shards": Format("weights", foreign.save_shards, _weights, _run_weights, foreign.changed_json),
    "torch": Format("weights", foreign.save_torch, _weights, _run_weights, foreign.changed_torch),
    "onnx": Format("model", foreign.save_onnx, _compile, own.run_graph, foreign.changed_onnx),
    "tflite": Format("model", foreign.save_tflite, _compile, own.run_graph, foreign.changed_words),
}


# ---------------------------------------------------------------- workers


class Fuzz:
    """Files of one format, damaged one by one; case `number` is the same whenever it is made."""

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        self.format, self.seed, self.folder = FORMATS[name], seed, folder
        self.target, self.litter = folder / f"fuzzed.{name}", -1

    def _draw(self, litter: int) -> None:
        """Write the file that so many cases damage."""
        self.litter = litter
        for path in self.folder.iterdir():  # of the last one
            path.unlink()
        self.known = self.format.save(self.target, np.random.default_rng([self.seed, litter, 1]))
        self.data = self.target.read_bytes()
        if self.format.changed is None:
            self.arrays, metadata = files.read(self.target, self.format.kind)
            metadata = {key: value for key, value in metadata.items() if key not in ("format", "format_version")}
            self.metadata, self.nodes = json.dumps(metadata), metadata.get("program", {}).get("nodes")

    def write(self, number: int) -> None:
        """Write the file of a case."""
        if number // LITTER != self.litter:
            self._draw(number // LITTER)
        rng = np.random.default_rng([self.seed, number])
        if self.format.changed is not None:
            self.target.write_bytes((self.format.changed if number % 4 else damaged)(self.data, rng))
        elif number % 8 == 0:
            self.target.write_bytes(damaged(self.data, rng))
        elif number % 8 == 4:
            self.target.write_bytes(with_other_header(self.data, rng))
        else:
            change = rewired if number % 4 == 1 and self.nodes else hostile
            files.write(self.target, self.format.kind, *change(self.arrays, json.loads(self.metadata), rng))

    def outcome(self, number: int, loading: Any = contextlib.nullcontext, running: Any = contextlib.nullcontext) -> str:
        """ "refused" or "ran"; anything but FileFormatError passes through."""
        self.write(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with loading():
                    loaded = self.format.load(self.target, self.known)
            except fs.FileFormatError:
                return "refused"
            if number % 4 == 0 and self.format.changed is None:  # only damage to nothing, such as white space, may pass
                arrays, _ = files.read(self.target, self.format.kind)
                if self.format.kind != "checkpoint":  # which the training that went on has written anew
                    same = (np.array_equal(arrays[name], array) for name, array in self.arrays.items())
                    assert all(same), "other numbers were loaded"
            with running():
                self.format.run(loaded, self.known, np.random.default_rng([self.seed, number, 2]))
        return "ran"


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")


def limit_memory(extra: int) -> None:
    """Let this process have at most `extra` bytes of address space more than now."""
    limit = _address_space() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@contextlib.contextmanager
def _limited(extra: int) -> Iterator[None]:
    """Let what happens inside take at most `extra` bytes of address space more than there is."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    with contextlib.suppress(OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


@contextlib.contextmanager
def opened(name: str, seed: int) -> Iterator[guarded.Outcome]:
    """What runs a case of a format, with limited memory."""
    fast = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=fast) as folder:
        cases = Fuzz(name, seed, Path(folder))
        yield lambda number: cases.outcome(number, lambda: _limited(LOADING), lambda: _limited(RUNNING))


if __name__ == "__main__":
    sys.exit(guarded.main("fuzz_files", __doc__.partition("\n")[0], FORMATS, opened))
