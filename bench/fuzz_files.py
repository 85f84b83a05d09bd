"""Damage model files at random and load them, in a process with limited memory (contract F2).

    python bench/fuzz_files.py --rounds 10000

Every file must either load as the same model or raise `fastsparse.FileFormatError`; no crash, no hang, no memory beyond
what the file's size justifies. Half of the files are damaged bytes (flips, cuts, pieces moved); the other half are
hostile: well-formed, with a valid digest, and a changed architecture, metadata or array.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import fastsparse as fs
from fastsparse import files, nn

Arrays = dict[str, Any]
MEMORY = 256 << 20  # bytes above what the process has when the fuzzing starts
HUGE = (2**31, 2**40, 2**62, 2**63, 2**64, 10**30)
ODD: tuple[Any, ...] = (*HUGE, -1, 0, 1.5, None, True, "x", [], {}, [1] * 9, {"a": [{}]})


def model() -> nn.Sequential:
    """A small model with most kinds of layers."""
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.SparseConv2d(2, 4, 3, padding=1, bias=False, sparsity=0.5, rng=rng),
        nn.BatchNorm2d(4),
        nn.Residual(nn.Conv2d(4, 4, 1, rng=rng), nn.SparseConv2d(4, 4, 1, rng=rng), "relu"),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1, rng=rng),
        nn.SparseLinear(16, 8, activation="gelu", rng=rng),
        nn.LayerNorm(8),
        nn.Linear(8, 3, rng=rng),
    )


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """A copy of `data` with flipped bits, a cut, a repeated, removed or overwritten piece, or another header length."""
    array = bytearray(data)
    kind = rng.integers(6)
    start, stop = sorted(int(n) for n in rng.integers(0, len(array) + 1, 2))
    if kind == 0:
        for place in rng.integers(0, len(array), int(rng.integers(1, 5))):
            array[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del array[start:]
    elif kind == 2:
        del array[start : min(stop, start + 64)]
    elif kind == 3:
        array[start:start] = array[start : min(stop, start + 64)]
    elif kind == 4:
        array[start : start + 8] = rng.bytes(8)
    else:
        array[:8] = struct.pack("<Q", int(rng.choice(np.array([0, 1, 7, 100_000_000, 2**40, 2**63 - 1]))))
    return bytes(array)


def hostile(arrays: Arrays, metadata: dict[str, Any], rng: np.random.Generator) -> tuple[Arrays, dict[str, Any]]:
    """Copies of both with one thing changed that a digest does not reveal."""
    arrays, metadata = {name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(metadata))
    kind = rng.integers(5)
    if kind == 0:
        places = list(_places(metadata, "architecture"))
        holder, key = places[rng.integers(len(places))]
        holder[key] = ODD[rng.integers(len(ODD))]
        return arrays, metadata
    name = sorted(arrays)[rng.integers(len(arrays))]
    if kind == 1:
        del arrays[name]
    elif kind == 2:
        arrays[name] = np.zeros((0, 2**50), arrays[name].dtype)
    elif kind == 3:
        arrays[name] = arrays[name].astype(["float32", "float64", "int64", "uint8"][rng.integers(4)])
    else:
        flat = arrays[name].reshape(-1)
        if flat.size:
            flat[rng.integers(flat.size)] = np.asarray(rng.integers(-(2**63), 2**63)).astype(flat.dtype)
    return arrays, metadata


def _places(holder: Any, key: Any) -> Any:
    """Yield (holder, key) of every value inside holder[key], itself included."""
    yield holder, key
    value = holder[key]
    if isinstance(value, dict):
        for inner in value:
            yield from _places(value, inner)
    elif isinstance(value, list):
        for position in range(len(value)):
            yield from _places(value, position)


def outcome(path: Path) -> str:
    """ "refused" or "loaded"; anything but FileFormatError passes through."""
    try:
        fs.load(path)
    except fs.FileFormatError:
        return "refused"
    return "loaded"


def fuzz(rounds: int, seed: int, folder: Path) -> dict[str, int]:
    """Damage and load `rounds` files; counts of the outcomes.

    Raises
    ------
    AssertionError
        When a file whose bytes were damaged loads as another model.
    """
    rng = np.random.default_rng(seed)
    original, target = folder / "original.safetensors", folder / "fuzzed.safetensors"
    fs.save(model(), original)
    data = original.read_bytes()
    arrays, metadata = files.read(original, "model")
    counts = {"refused": 0, "loaded": 0}
    for i in range(rounds):
        if i % 2:
            files.write(target, "model", *hostile(arrays, metadata, rng))
            counts[outcome(target)] += 1
            continue
        target.write_bytes(damaged(data, rng))
        result = outcome(target)
        counts[result] += 1
        if result == "loaded":  # only damage to nothing, such as white space, may pass
            again, _ = files.read(target, "model")
            assert all(np.array_equal(again[name], array) for name, array in arrays.items()), "other numbers loaded"
    return counts


def limit_memory(extra: int) -> None:
    """Let this process have at most `extra` bytes of address space more than now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Damage model files at random and load them.")
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fuzz(4, 0, Path(folder))  # loads whatever is loaded on first use
        with contextlib.suppress(OSError):  # no such file: no such limit on this system
            limit_memory(MEMORY)
        counts = fuzz(arguments.rounds, arguments.seed, Path(folder))
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
