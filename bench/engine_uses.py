"""What is done with an engine between two calls, for `bench.fuzz_networks`: each gives the numbers of a plain call."""

from __future__ import annotations

import copy
import os
import pickle
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

import fastsparse as fs
from fastsparse.engine.engine import Engine
from fastsparse.engine.program import Linear

Array = NDArray[Any]
Rng = np.random.Generator


def check_use(model: Any, engine: Engine, x: Any, rng: Rng) -> None:
    """Do something, by lot.

    Raises
    ------
    AssertionError
        When the engine gives other numbers than before.
    """
    USES[int(rng.integers(len(USES)))](model, engine, x, rng)


def _part(x: Any, samples: Any) -> Any:
    return tuple(one[samples] for one in x) if isinstance(x, tuple) else x[samples]


def _samples(x: Any) -> int:
    return len(x[0] if isinstance(x, tuple) else x)


def _assert_same(y: Array, want: Array, label: str) -> None:
    if y.shape != want.shape or y.tobytes() != want.tobytes():
        raise AssertionError(f"{label} gives other bits")


def _changing_batches(model: Any, engine: Engine, x: Any, rng: Rng) -> None:
    """Batches up and down, of none, too: the same batch again gives the same bits, whatever came between."""
    count, seen = _samples(x), dict[int, Array]()
    for batch in rng.integers(0, count + 1, 6).tolist():
        y = engine(_part(x, slice(0, batch)))
        if len(y) != batch:
            raise AssertionError(f"a batch of {batch} gives {len(y)} results")
        _assert_same(y, seen.setdefault(batch, y.copy()), f"a batch of {batch} between others")


def _not_finite(model: Any, engine: Engine, x: Any, rng: Rng) -> None:
    """A sample of NaN or Inf changes no other one, and leaves nothing behind."""
    if _samples(x) < 2 or all(one.dtype.kind != "f" for one in (x if isinstance(x, tuple) else (x,))):
        return
    before, at = engine(x), int(rng.integers(_samples(x)))
    spoilt = copy.deepcopy(x)
    for one in spoilt if isinstance(x, tuple) else (spoilt,):
        if one.dtype.kind == "f":
            flat = one[at].reshape(-1)
            flat[rng.integers(flat.size) :] = rng.choice([np.nan, np.inf, -np.inf])
            one[at] = flat.reshape(one[at].shape)
    with np.errstate(all="ignore"):
        found, eager = engine(spoilt), model(spoilt)
    if not np.array_equal(np.isfinite(found[at]), np.isfinite(eager[at])):
        raise AssertionError("other numbers than those of the eager model are not finite")
    others = np.arange(len(before)) != at
    _assert_same(found[others], before[others], "beside a sample that is not finite, another one")
    _assert_same(engine(x), before, "a call behind one that was not finite")


def _from_two_threads(model: Any, engine: Engine, x: Any, rng: Rng) -> None:
    batches = [slice(0, int(n)) for n in rng.integers(1, _samples(x) + 1, 2)]
    want = [engine(_part(x, samples)) for samples in batches]

    def calls(number: int) -> None:
        for _ in range(3):
            _assert_same(engine(_part(x, batches[number])), want[number], "beside another thread")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(calls, range(2)))


def _training_goes_on(model: Any, engine: Engine, x: Any, rng: Rng) -> None:
    """An engine keeps the weights that it was compiled with."""
    if not model.parameters():
        return
    before, trained = engine(x), copy.deepcopy(model)
    again = fs.compile(trained, [one.shape for one in x] if isinstance(x, tuple) else x.shape, tune=False)
    y = trained.train()(_part(x, np.arange(2 * _samples(x)) % _samples(x)))  # batch norm wants two samples
    trained.backward(np.ones_like(y), need_input=False)
    fs.training.SGD(trained.parameters(), 0.5).step()
    _assert_same(again(x), before, "an engine whose model was trained")
    _assert_same(engine(x), before, "an engine beside a copy of its model")


def _handed_on(model: Any, engine: Engine, x: Any, rng: Rng) -> None:
    want = engine(x)
    _assert_same(pickle.loads(pickle.dumps(engine))(x), want, "an unpickled engine")
    _assert_same(copy.deepcopy(engine)(x), want, "a copied engine")
    with tempfile.TemporaryDirectory() as folder:
        fs.save(model, os.path.join(folder, "model"))
        loaded = fs.load(os.path.join(folder, "model"))
    with np.errstate(all="ignore"):
        _assert_same(loaded(x), model(x), "a loaded model")


def _thread_counts(model: Any, engine: Engine, x: Any, rng: Rng) -> None:
    want = {}
    for threads in rng.integers(1, 3, 4).tolist():
        with fs.threads(threads):
            y = engine(x)
        _assert_same(y, want.setdefault(threads, y), f"a call on {threads} threads between others")


def _sparse_input(model: Any, engine: Engine, x: Any, rng: Rng) -> None:
    program = engine._program
    first = program.nodes[0].operator if program.nodes else None
    if isinstance(x, tuple) or x.ndim != 2 or x.dtype.kind != "f" or not isinstance(first, Linear):
        return
    kept = np.where(rng.random(x.shape) < 0.3, x, 0).astype(x.dtype)
    try:
        y = engine(sparse.csr_array(kept))
    except TypeError:  # more than one node reads it
        return
    want, size = engine(kept), float(abs(engine(kept)).max(initial=1.0))
    if not (abs(y - want) <= 1e-4 * size).all():
        raise AssertionError(f"sparse input gives other numbers, off by {abs(y - want).max()}")


USES: tuple[Callable[[Any, Engine, Any, Rng], None], ...] = (
    _changing_batches, _not_finite, _not_finite, _from_two_threads, _training_goes_on, _handed_on, _thread_counts,
    _sparse_input,
)  # fmt: skip
