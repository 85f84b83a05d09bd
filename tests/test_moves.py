"""How often a first call goes from file to file: following it, a reader goes down once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastsparse as fs
import fastsparse_kernels
from fastsparse import nn, training
from fastsparse_kernels import compiler

SOURCES = tuple(str(Path(module.__file__).parent) for module in (fs, fastsparse_kernels))


def moves(call: Callable[[], Any]) -> int:
    """Changes of file from one Python call to the next one of ours."""
    files: list[str] = []

    def note(frame: Any, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(SOURCES):
            files.append(name)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return sum(a != b for a, b in pairwise(files))


def spmm(rng: np.random.Generator) -> Callable[[], Any]:
    W, X = fs.csr((rng.random((64, 128)) < 0.1).astype("f4")), rng.standard_normal((128, 100)).astype("f4")
    return lambda: fs.spmm(W, X)


def conv2d(rng: np.random.Generator) -> Callable[[], Any]:
    W, x = fs.csr((rng.random((16, 72)) < 0.1).astype("f4")), rng.standard_normal((1, 8, 12, 12)).astype("f4")
    return lambda: fs.conv2d(x, W, kernel_size=3, padding=1)


def step(rng: np.random.Generator) -> Callable[[], Any]:
    model = nn.Sequential(nn.Linear(64, 32, rng=0), nn.ReLU(), nn.SparseLinear(32, 10, sparsity=0.8, rng=0))
    optimizer = training.SGD(model.parameters(), 0.1)
    x, labels = rng.standard_normal((32, 64)).astype("f4"), rng.integers(0, 10, 32)

    def once() -> None:
        _, grad = training.cross_entropy(model(x), labels)
        model.backward(grad)
        optimizer.step()

    return once


def compiled(rng: np.random.Generator) -> Callable[[], Any]:
    model = nn.Sequential(nn.SparseConv2d(3, 8, 3, padding=1, sparsity=0.5, rng=0), nn.ReLU())
    x = rng.standard_normal((1, 3, 16, 16)).astype("f4")
    return lambda: fs.compile(model, x.shape, tune=False)(x)


SPMM = 42 if compiler.vector_bytes() == 64 else 44  # tiles of shorter vectors overlap, in `ops/tiles.py`


@pytest.mark.parametrize(("make", "most"), [(spmm, SPMM), (conv2d, 52), (step, 224), (compiled, 131)])
def test_moves_of_a_first_call(monkeypatch: pytest.MonkeyPatch, make: Any, most: int) -> None:
    monkeypatch.undo()  # of the poison, which is Python
    make(np.random.default_rng(0))()  # another one, for kernels and what the process keeps
    assert moves(make(np.random.default_rng(0))) <= most
