"""The compiled network against its baselines: do they agree, and how fast is each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

import numpy as np

from fastsparse import nn
from fastsparse.demo.baselines import Baseline
from fastsparse.demo.learning import Images
from fastsparse.demo.network import in_float64
from fastsparse.demo.results import NUMPY, OURS, SCIPY, Agreement, Speed
from fastsparse.engine import Engine
from fastsparse.timing import PAUSE, interleaved, ratio

BATCHES = (1, 256)
# Images SciPy may be fed at a time: its product is faster while a row of its output stays in the first cache.
CHUNKS = (16, 32, 64)
# A float32 network of this depth rounds to about 1e-6 of its largest output.
TOLERANCE = 1e-5
_ROUNDS = 5
_BLOCK = 0.02  # seconds of calls that make one measurement

Run = Callable[[Images], np.ndarray]


def agreement(model: nn.Sequential, reloaded: nn.Module, engine: Engine, x: Images) -> Agreement:
    """Hold every float32 form of the network against the float64 one on the images `x`.

    Raises
    ------
    RuntimeError
        When one of them is off by more than `TOLERANCE` of the largest output.
    """
    exact = in_float64(model)(x.astype(np.float64))
    scale = float(np.abs(exact).max())

    def error(run: Run) -> float:
        return float(np.abs(run(x) - exact).max()) / scale

    found = Agreement(
        layers=error(model.eval()),
        compiled=error(engine),
        scipy=error(Baseline(engine._program, len(x), "scipy")),
        numpy=error(Baseline(engine._program, len(x), "numpy")),
        reloaded_is_identical=bool(np.array_equal(reloaded.eval()(x), model(x))),
    )
    for name in ("layers", "compiled", "scipy", "numpy"):
        if not getattr(found, name) <= TOLERANCE:
            raise RuntimeError(
                f"{name}: outputs are off by {getattr(found, name):.1e} of the largest, at most {TOLERANCE}"
            )
    if not found.reloaded_is_identical:
        raise RuntimeError("the network that was saved and loaded again gives other outputs")
    return found


def race(engine: Engine, x: Images, threads: int) -> Speed:
    """Time one batch size in interleaved rounds."""
    scipy, numpy = Baseline(engine._program, len(x), "scipy"), Baseline(engine._program, len(x), "numpy")
    calls: dict[str, Callable[[], object]] = {
        OURS: lambda: engine(x),
        SCIPY: lambda: scipy(x),
        _products(SCIPY): scipy.products,
        NUMPY: lambda: numpy(x),
        _products(NUMPY): numpy.products,
    }
    # Only NumPy's BLAS has workers that wait for work on busy cores, and only ours, which come next, need both cores.
    times = _interleaved(calls, {OURS: PAUSE} if threads > 1 else {})
    baselines = (SCIPY, NUMPY)
    return Speed(
        batch=len(x),
        times={name: 1e3 * median(times[name]) for name in (OURS, *baselines)},
        ratios={name: ratio(times[name], times[OURS]) for name in baselines},
        product_times={name: 1e3 * median(times[_products(name)]) for name in baselines},
        product_ratios={name: ratio(times[_products(name)], times[OURS]) for name in baselines},
    )


def race_in_chunks(engine: Engine, x: Images) -> tuple[int, float]:
    """SciPy at its best: (images at a time, how many times faster the compiled network still is on the whole batch)."""
    calls: dict[str, Callable[[], object]] = {OURS: lambda: engine(x)}
    calls |= {str(chunk): _in_chunks(engine, x, chunk) for chunk in CHUNKS}
    times = _interleaved(calls, {})  # no BLAS here
    best = min(CHUNKS, key=lambda chunk: median(times[str(chunk)]))
    return best, ratio(times[str(best)], times[OURS])


def _interleaved(calls: dict[str, Callable[[], object]], pause: Mapping[str, float]) -> dict[str, list[float]]:
    return interleaved(calls, rounds=(_ROUNDS, _ROUNDS), block=_BLOCK, pause=pause)


def _in_chunks(engine: Engine, x: Images, chunk: int) -> Callable[[], object]:
    baseline = Baseline(engine._program, chunk, "scipy")
    parts = [x[start : start + chunk] for start in range(0, len(x), chunk)]
    return lambda: [baseline(part) for part in parts]


def _products(name: str) -> str:
    return f"{name}, products alone"
