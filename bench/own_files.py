"""Files of fastsparse itself for `bench.fuzz_files`: what is saved, by lot, and how what was loaded is run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import fastsparse as fs
from bench.random_networks import Network, random_network
from fastsparse import nn
from fastsparse.engine.program import UnsupportedOperatorError

Rng = np.random.Generator
LARGEST_RUN = 1 << 24  # numbers in the inputs of what is run; larger networks are only loaded
LARGEST_WEIGHTS = 6000  # bytes, of random networks
_MOST_LAYERS = 3


def model(rng: Rng | None = None) -> nn.Sequential:
    """A small model of images with most kinds of layers."""
    rng = np.random.default_rng(0) if rng is None else rng
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


def random_layers(rng: Rng) -> Network:
    """A random network of a few layers, for batches of three samples."""
    while True:
        drawn = random_network({"seed": [int(rng.integers(2**31))]}, "float32", _MOST_LAYERS)
        weights = sum(array.nbytes for array in drawn.model.state_dict().values())
        if sum(map(math.prod, drawn.shapes)) < 600 and weights < LARGEST_WEIGHTS:
            return replace(drawn, batch=3)


def random_onnx(rng: Rng) -> Any:
    """A random ONNX model, of layers that the kernels run or of any operators; sizes but the batch are fixed."""
    from bench.random_graphs import Builder, exported

    while True:
        if rng.random() < 0.7:
            built = Builder({"seed": [int(rng.integers(2**31))], "most_steps": 3})
            made = None if built.open else built.model
        else:
            made = exported(random_layers(rng), rng, fixed=True)
        if made is not None and made.ByteSize() < LARGEST_WEIGHTS:
            return made


# ---------------------------------------------------------------- models


def save_model(path: Path, rng: Rng) -> Any:
    """Save a model; an input of three samples."""
    drawn = random_layers(rng)
    if rng.random() < 0.2:
        drawn = Network(model(rng), ((2, 4, 4),), batch=3)
    fs.save(drawn.model, path)
    return drawn.inputs()


def run_model(loaded: Any, x: Any, rng: Rng) -> None:
    """Run it, also compiled."""
    try:
        y = loaded(x)
    except (ValueError, TypeError):  # another network than the one that was saved, which takes another input
        return
    assert isinstance(y, np.ndarray), type(y)
    assert len(y) == 3, y.shape
    if rng.random() < 0.5:
        return
    try:
        engine = fs.compile(loaded, _shape_of(x), tune=False)
    except (ValueError, TypeError, UnsupportedOperatorError):
        return
    found = engine(x)
    assert found.shape == y.shape, (found.shape, y.shape)
    if np.isfinite(y).all() and abs(y).max(initial=0) < 1e3:
        assert np.allclose(found, y, rtol=1e-2, atol=1e-2 * abs(y).max(initial=1.0)), "compiled it gives other numbers"


def _shape_of(x: Any) -> Any:
    return [one.shape for one in x] if isinstance(x, tuple) else x.shape


# ---------------------------------------------------------------- engines


def save_engine(path: Path, rng: Rng) -> None:
    """Save an engine of layers."""
    drawn = random_layers(rng)
    engine = fs.compile(drawn.model, _shape_of(drawn.inputs()), tune=False)
    if rng.random() < 0.5:
        engine.prepare(3, tune=True)
    engine.save(path)


def _guarded(shape: tuple[int, ...], dtype: Any) -> tuple[Any, Callable[[], bool]]:
    """An array among others, and whether those still hold what they held."""
    size, margin = int(np.prod(shape)), 1 << 12
    whole = np.full(size + 2 * margin, -77, dtype)
    inner = whole[margin : margin + size]
    return inner.reshape(shape), lambda: bool((whole[:margin] == -77).all() and (whole[margin + size :] == -77).all())


def run_engine(engine: Any, _: Any, rng: Rng) -> None:
    """Run an engine of layers for the batch that it was saved for, or for others."""
    for batch in rng.permutation([1, 3, 33])[: rng.integers(1, 3)].tolist():
        shapes = [(batch, *shape[1:]) for shape in (*engine.input_shapes, engine.output_shape)]
        if max(np.prod(shape, dtype=object) for shape in shapes) > LARGEST_RUN:
            return
        inputs = engine.random_inputs(batch)
        before = [x.copy() for x in inputs]
        out, whole = _guarded(shapes[-1], engine.dtype)
        (y,) = engine.run(inputs, out=[out])
        assert y is out, "the result is not where it was asked for"
        assert whole(), "it wrote beside the result"
        same = all(np.array_equal(x, x0, equal_nan=x.dtype.kind == "f") for x, x0 in zip(inputs, before, strict=True))
        assert same, "it wrote to its input"


def save_graph(path: Path, rng: Rng) -> None:
    """Save an engine of an ONNX model."""
    engine = fs.compile(random_onnx(rng), tune=False)
    if rng.random() < 0.3:
        engine.prepare(tune=True)
    engine.save(path)


_NO_NUMBERS = "cannot be computed", "random ones cannot be made"


def run_graph(engine: Any, _: Any, rng: Rng) -> None:
    """Run an engine of a graph."""
    sizes = [np.prod(shape, dtype=object) for shape in (*engine.input_shapes.values(), *engine._shapes.values())]
    if max(sizes, default=0) > LARGEST_RUN:
        return
    try:
        outputs = engine.run(engine.random_inputs())
    except (fs.FileFormatError, UnsupportedOperatorError):  # what onnxruntime says of nodes when it gets them
        return
    except ValueError as error:  # numbers in an input that an operator does not take
        if engine.output_shapes is not None and not any(words in str(error) for words in _NO_NUMBERS):
            raise
        return
    if engine.output_shapes is not None and engine._plan().whole is None:  # onnxruntime takes wrong permutations
        assert [y.shape for y in outputs] == [engine.output_shapes[name] for name in engine.output_names]


# ---------------------------------------------------------------- checkpoints

_OPTIMIZERS: tuple[Callable[[Any], Any], ...] = (
    lambda p: fs.training.Adam(p, 0.01), lambda p: fs.training.SGD(p, 0.01, momentum=0.9),
    lambda p: fs.training.AdamW(p, fs.training.CosineDecay(0.01, 9)), lambda p: fs.training.SGD(p, 0.01),
)  # fmt: skip
_ALGORITHMS: tuple[Callable[[Any], Any], ...] = (
    lambda m: fs.sparsity.RigL(m, every=1, steps=8), lambda m: fs.sparsity.SET(m, every=1, rng=0), lambda m: None,
    lambda m: fs.sparsity.GradualPruning(m, fs.sparsity.PolynomialDecay(0.5, 0.8, begin_step=1, end_step=9)),
)  # fmt: skip
Training = tuple[int, int, bool]  # numbers of the optimizer and the algorithm, whether it may stop early


def save_checkpoint(path: Path, rng: Rng) -> Training:
    """Save a training after one epoch, and say which."""
    training = int(rng.integers(4)), int(rng.integers(4)), bool(rng.integers(2))
    _train(path, training, resume=False, epochs=1)
    return training


def _train(path: Path, training: Training, *, resume: bool, epochs: int) -> None:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((12, 10)).astype(np.float32), rng.integers(0, 3, 12)
    trained = nn.Sequential(
        nn.SparseLinear(10, 8, sparsity=0.5, activation="relu", rng=rng), nn.BatchNorm1d(8), nn.Dropout(0.1, rng=rng),
        nn.Linear(8, 3, rng=rng),
    )  # fmt: skip
    fs.training.fit(
        trained, data, epochs=epochs, batch_size=6, optimizer=_OPTIMIZERS[training[0]](trained.parameters()),
        sparsity=_ALGORITHMS[training[1]](trained), checkpoint=path, resume=resume, progress=False, rng=1,
        callbacks=[fs.training.EarlyStopping("loss")] if training[2] else [],
    )  # fmt: skip


def load_checkpoint(path: Path, training: Training) -> None:
    """Continue a training by one epoch."""
    try:
        _train(path, training, resume=True, epochs=2)
    except ValueError as error:
        if str(error).endswith("holds NaN, expected numbers"):  # a whole file, of weights that no score can order
            return
        if type(error) is not ValueError or str(path) not in str(error):
            raise
        raise fs.FileFormatError(str(error)) from None  # a whole file, of another model or training
    except FloatingPointError:  # parameters that are infinite, or will be
        return
