"""The engine computes what the layers compute: for every network, batch size, dtype and number of threads."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp

import fastsparse as fs
from fastsparse import nn
from fastsparse.engine import choosing, split
from fastsparse.engine.lowering import batch_blocked, padded, spatial_tiles
from fastsparse.engine.workspace import Workspace
from fastsparse.ops import spgemm
from fastsparse.ops.target import target_for, tuned
from fastsparse.runtime.memo import array_bytes
from fastsparse.runtime.threads import usable_threads
from tests.checking import EVERYWHERE, same_bits
from tests.checking import lanes as lanes_of
from tests.engine.networks import NETWORKS, exact, network

BATCHES = (1, 2, 5, 16, 17, 40, 100)
# A network without parameters takes float32.
CASES = [(n, d) for n in NETWORKS for d in ("float32", "float64") if (n, d) != ("nothing", "float64")]


def inputs(shape: tuple[int, ...], batch: int, dtype: str, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, *shape)).astype(dtype)


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    """A network, the input and what it gives in float64 with its error bound."""
    name, dtype = request.param
    model, shape = network(name, dtype)
    x = inputs(shape, max(BATCHES), dtype)
    return model, x, *exact(model, x, dtype)


@pytest.mark.R1
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", BATCHES)
def test_within_the_error_bound(case, batch, threads):
    model, x, value, error = case
    engine = fs.compile(model, (batch, *x.shape[1:]), threads=threads)
    y = engine(x[:batch])
    assert y.dtype == x.dtype
    assert y.shape == engine.output_shape == value[:batch].shape
    assert (abs(y - value[:batch]) <= error[:batch]).all()


@pytest.mark.R8
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_layers_within_both_errors(name):
    model, shape = network(name)
    x = inputs(shape, 24, "float32")
    _, error = exact(model, x, "float32")
    assert (abs(fs.compile(model, x.shape)(x) - model(x)) <= 2 * error).all()


@pytest.mark.R3
@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("name", ["bottlenecks", "sums", "sum of input"])
def test_same_bits_where_activations_are_in_no_cache(name, batch):
    """Non-temporal stores: more than one thread reads what another wrote."""
    model, shape = network(name)
    x = inputs(shape, batch, "float32")
    expected = fs.compile(model, x.shape, threads=1)(x)
    with tuned(far_share=EVERYWHERE):
        for threads in (1, 2):
            assert same_bits(fs.compile(model, x.shape, threads=threads)(x), expected)


@pytest.mark.R3
@pytest.mark.parametrize("name", NETWORKS)
def test_same_bits_on_any_number_of_threads_and_in_any_batch(name):
    """All but SpMV, which sums in another order, sum in ascending columns with the bias last."""
    model, shape = network(name)
    x = inputs(shape, 70, "float32")
    expected = fs.compile(model, x.shape, threads=1)(x)
    for threads, batch in product((1, 2, 3), (2, 3, 16, 33, 70)):
        with tuned(parallel_flops=0):
            engine = fs.compile(model, (batch, *shape), threads=threads)
        for _ in range(3):
            np.testing.assert_array_equal(engine(x[:batch]), expected[:batch])


@pytest.mark.R3
@pytest.mark.parametrize("name", NETWORKS)
def test_same_bits_however_the_batch_is_cut(name):
    model, shape = network(name)
    x = inputs(shape, 90, "float32")
    engine = fs.compile(model, x.shape, threads=1)
    if engine._program.row_wise:  # never batch-blocked
        assert {choice.layout for choice in choosing.choices(engine._program, 90, 2, True)} <= {
            "padded",
            "spatial tiles",
        }
        return
    expected = engine(x)
    groups = -(-len(x) // lanes_of("float32"))
    for threads, alone, (outer, inner) in product((1, 2), (True, False), ((1, 1), (2, 1), (4, 2), (groups, groups))):
        target = target_for(np.dtype("float32"), threads)
        cut = split.Split(alone, outer, inner)
        y = np.full(expected.shape, np.nan, np.float32)
        Workspace(batch_blocked.schedule(engine._program, len(x), target, cut)).run(x, y)
        np.testing.assert_array_equal(y, expected)


@pytest.mark.R3
@pytest.mark.parametrize("name", NETWORKS)
def test_same_bits_however_few_images_are_cut(name):
    model, shape = network(name)
    x = inputs(shape, 6, "float32")
    engine = fs.compile(model, x.shape, threads=1)
    expected = engine(x)
    for threads, alone, (outer, inner) in product((1, 2), (True, False), ((1, 1), (2, 1), (3, 3), (6, 2), (6, 6))):
        target = target_for(np.dtype("float32"), threads)
        y = np.full(expected.shape, np.nan, np.float32)
        h = replace(target.heuristics, group_positions=1, group_overhang=9.0, parallel_flops=1.0)
        grouped = replace(target, heuristics=h)  # workers have groups of tiles of their own, and lend each other edges
        for make, chosen in ((padded, target), (spatial_tiles, target), (spatial_tiles, grouped)):
            y.fill(np.nan)
            Workspace(make.schedule(engine._program, 6, chosen, split.Split(alone, outer, inner))).run(x, y)
            np.testing.assert_array_equal(y, expected)


@pytest.mark.T4
@pytest.mark.parametrize("name", NETWORKS)
def test_long_calls_are_cut_into_slices(name):
    model, shape = network(name)
    x = inputs(shape, 40, "float32")
    engine = fs.compile(model, x.shape)
    expected = {n: engine(x[:n]) for n in (1, 3, 40)}
    with tuned(slice_flops=5000):
        sliced = fs.compile(model, x.shape)
        for n, y in expected.items():
            np.testing.assert_array_equal(sliced(x[:n]), y)
    with tuned(slice_flops=5000, task_flops=5000):
        np.testing.assert_array_equal(fs.compile(model, x.shape)(x), expected[40])


@pytest.mark.T6
@pytest.mark.parametrize("batch", [1, 40])
def test_memory_is_that_of_threads_that_can_run(batch):
    """A number of threads beyond all measure is allowed, and does not use more."""
    model, shape = network("convolutions")
    x = inputs(shape, batch, "float32")
    expected = fs.compile(model, x.shape, threads=1, tune=False)(x)
    with fs.threads(10**9):
        engines = [fs.compile(model, x.shape, threads=threads, tune=False) for threads in (10**9, None)]
        for engine in engines:
            np.testing.assert_array_equal(engine(x), expected)


@pytest.mark.R2
def test_small_integers_are_exact():
    rng = np.random.default_rng(3)
    weight = rng.integers(-2, 3, (6, 4, 3, 3)) * (rng.random((6, 4, 3, 3)) < 0.5)
    matrix = rng.integers(-2, 3, (5, 6 * 16)) * (rng.random((5, 6 * 16)) < 0.5)
    model = nn.Sequential(
        nn.SparseConv2d.from_dense(weight, np.arange(6), padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.SparseLinear.from_dense(matrix, np.arange(5)),
    ).eval()
    for batch in (1, 3, 15, 16, 17, 31, 33, 64, 65):
        x = rng.integers(-3, 4, (batch, 4, 8, 8)).astype(np.float32)
        np.testing.assert_array_equal(fs.compile(model, x.shape)(x), model(x))


@pytest.mark.R5
def test_nan_and_infinity_travel():
    model, shape = network("demo")
    x = inputs(shape, 40, "float32")
    x[7, 1, 2, 3], x[20] = np.nan, np.inf
    y = fs.compile(model, x.shape)(x)
    with np.errstate(invalid="ignore"):
        expected = model(x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    others = np.delete(np.arange(40), [7, 20])
    assert np.isfinite(y[others]).all()
    engine = fs.compile(model, x.shape)
    engine(x)
    clean = inputs(shape, 40, "float32")
    np.testing.assert_array_equal(engine(clean), fs.compile(model, x.shape)(clean))  # nothing is left behind


def test_is_a_snapshot():
    model, shape = network("demo")
    x = inputs(shape, 20, "float32")
    engine = fs.compile(model, x.shape)
    before = engine(x)
    for parameter in model.parameters():
        parameter.value = parameter.value * 2
    np.testing.assert_array_equal(engine(x), before)


@pytest.mark.T1
@pytest.mark.parametrize("batch", [1, 40])
def test_sixteen_threads_on_one_engine(batch):
    model, shape = network("convolutions")
    engine = fs.compile(model, (batch, *shape))
    xs = [inputs(shape, batch, "float32", seed) for seed in range(16)]
    expected = [engine(x) for x in xs]
    wrong: list[int] = []

    def work(index: int) -> None:
        wrong.extend(index for _ in range(30) if not np.array_equal(engine(xs[index]), expected[index]))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    (pool,) = engine._plans.pools
    assert len(pool._free) == pool._made <= 8


@pytest.mark.T1
def test_threads_plan_one_new_batch_size_at_once():
    model, shape = network("demo")
    engine = fs.compile(model, (1, *shape))
    x = inputs(shape, 23, "float32")
    results: list[np.ndarray] = []
    workers = [threading.Thread(target=lambda: results.append(engine(x))) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 8
    assert all(np.array_equal(y, results[0]) for y in results)


def held_by(engine: fs.Engine) -> int:
    """Bytes of all arrays in plans and workspaces, counted anew; of equal operators once."""
    pools = engine._plans.pools
    spaces = [space for pool in pools for space in pool._free]
    return array_bytes([pool.plan for pool in pools]) + sum(space.nbytes for space in spaces)


@pytest.mark.T6
def test_plans_and_workspaces_are_bounded_by_bytes():
    """Contract T6, for ever new batch sizes."""
    model, shape = network("features")
    engine = fs.compile(model, (1, *shape), tune=False)
    engine._plans.limit, most, batches = 2**20, 0, range(1, 150)
    for batch in batches:
        engine(inputs(shape, batch, "float32"))
        assert held_by(engine) <= 2**20
        most = max(most, len(engine._plans))
        assert engine._plans.get((batch, usable_threads())) is engine._plans.pools[-1]
    assert 3 < most < len(batches)
    engine._plans.limit = 1
    engine(inputs(shape, 1, "float32"))
    assert len(engine._plans) == 1, "the one used last stays whatever its size"


def test_workspaces_of_more_threads_push_plans_out():
    model, shape = network("demo")
    engine = fs.compile(model, (1, *shape), tune=False)
    for batch in (1, 2, 3):
        engine(inputs(shape, batch, "float32"))
    assert len(engine._plans) == 3
    pool = engine._plans.pools[-1]
    engine._plans.limit = array_bytes([p.plan for p in engine._plans.pools]) + 6 * pool.nbytes
    with pool.workspace(), pool.workspace(), pool.workspace(), pool.workspace(), pool.workspace(), pool.workspace():
        assert engine._plans.pools == [pool]


def test_an_empty_batch_gives_an_empty_result():
    model, shape = network("demo")
    assert fs.compile(model, (4, *shape))(np.zeros((0, *shape), np.float32)).shape == (0, 7)


def test_out_and_run():
    model, shape = network("demo")
    x = inputs(shape, 20, "float32")
    engine = fs.compile(model, x.shape)
    out = np.full((20, 7), np.nan, np.float32)
    assert engine(x, out=out) is out
    (y,) = engine.run([x])
    np.testing.assert_array_equal(out, y)
    np.testing.assert_array_equal(engine(x.astype(np.float64).astype(np.float32)[::1]), y)
    np.testing.assert_array_equal(engine(np.asfortranarray(x)), y)


def test_other_layouts_of_the_input_are_copied():
    model, shape = network("demo")
    x = inputs(shape, 20, "float32")
    engine = fs.compile(model, x.shape)
    y = engine(x)
    wide = np.full((40, *shape[:-1], 2 * shape[-1]), np.nan, np.float32)
    wide[::2, ..., ::2] = x
    np.testing.assert_array_equal(engine(wide[::2, ..., ::2]), y)
    np.testing.assert_array_equal(engine(x.astype(">f4")), y)
    ints = np.arange(20 * 240).reshape(20, *shape) % 5
    np.testing.assert_array_equal(engine(ints), engine(ints.astype(np.float32)))


# ---------------------------------------------------------------- bad input


class _Strange(nn.Module):
    def forward(self, x):
        return x


def test_unknown_layers_are_named():
    model = nn.Sequential(nn.SparseLinear(4, 3, rng=0), nn.Sequential(nn.ReLU(), _Strange()))
    message = "layer 1.1 is a _Strange, which fs.compile does not support yet"
    with pytest.raises(fs.UnsupportedOperatorError, match=f"^{message}$"):
        fs.compile(model, (2, 4))
    with pytest.raises(fs.UnsupportedOperatorError, match="layer 0 is a _Strange, which"):
        fs.compile(nn.Sequential(_Strange()), (2, 4))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((2, 4, 8, 10),), ValueError, "input_shape gives layer 0 (SparseConv2d) an x of (N, 4, 8, 10), "
                                       "expected (N, 3, H, W)"),
        (((2, 3, 12, 10),), ValueError, "input_shape gives layer 8 (SparseLinear) an x of (N, 510), "
                                        "expected (N, ..., 340)"),
        (((3,),), ValueError, "input_shape is (3,), expected at least (batch, features), all at least 1"),
        (((2, 3, 0, 1),), ValueError, "input_shape is (2, 3, 0, 1), expected at least (batch, features), "
                                      "all at least 1"),
        ((7,), TypeError, "input_shape is 7, expected a tuple of integers, batch first"),
        (((2, 3.5),), TypeError, "input_shape is (2, 3.5), expected a tuple of integers, batch first"),
    ],
)  # fmt: skip
def test_bad_input_shapes(arguments, error, message):
    model, _ = network("demo")
    with pytest.raises(error) as caught:
        fs.compile(model, *arguments)
    assert str(caught.value) == message


@pytest.mark.I4
def test_bad_arguments_of_a_call():
    model, shape = network("demo")
    engine = fs.compile(model, (4, *shape))
    x = inputs(shape, 4, "float32")
    for bad, error, message in (
        (x[:, :2], ValueError, "x has shape (4, 2, 8, 10), expected (N, 3, 8, 10) as compiled"),
        (x[0], ValueError, "x has shape (3, 8, 10), expected (N, 3, 8, 10) as compiled"),
        (x.astype(complex), TypeError, "x has dtype complex128, expected float32, float16, integers or bool"),
    ):
        with pytest.raises(error) as caught:
            engine(bad)
        assert str(caught.value) == message
    with pytest.raises(ValueError, match=r"out has shape \(4, 8\)"):
        engine(x, out=np.empty((4, 8), np.float32))
    with pytest.raises(ValueError, match="inputs has 2 arrays, expected 1"):
        engine.run([x, x])
    for bad in ({"x": x}, {}, 3, None):
        with pytest.raises(TypeError, match=r"inputs is a .*, expected a list of 1: these have no names"):
            engine.run(bad)
    with pytest.raises(TypeError, match=r"model is a ReLU, expected a fastsparse\.nn\.Sequential"):
        fs.compile(nn.ReLU(), (2, 2))
    with pytest.raises(ValueError, match="-1, expected a positive integer"):
        fs.compile(model, (4, *shape), threads=-1)
    for wrong in ("a", None, -1, float("nan"), float("inf")):
        with pytest.raises((TypeError, ValueError), match=r"^seconds is .*, expected a number of at least 0$"):
            engine.benchmark(wrong)
    with pytest.raises(TypeError, match="tune is 'no', expected True or False"):
        fs.compile(model, (4, *shape), tune="no")


def test_one_dtype_per_model():
    model = nn.Sequential(nn.SparseLinear(4, 3, rng=0), nn.SparseLinear(3, 2, dtype="float64", rng=0))
    with pytest.raises(TypeError, match="model has parameters of float32 and float64, expected one dtype"):
        fs.compile(model, (2, 4))


def test_a_planned_batch_is_measured_when_asked_to(monkeypatch):
    model, shape = network("demo")
    engine = fs.compile(model, (20, *shape), threads=1, tune=False)
    offered = choosing.choices(engine._program, 20, 1, True)
    measured = []

    def last(program, candidates, batch, workers):
        measured.append(batch)
        return len(candidates) - 1

    monkeypatch.setattr(choosing, "fastest", last)
    y = engine(inputs(shape, 20, "float32"))
    for _ in range(2):  # the second time there is nothing left to do
        engine.prepare(20, tune=True)
        assert measured == [20]
    assert engine._choices == {(20, 1): offered[-1]}
    made = choosing.scheduled(engine._program, 20, 1, offered[-1]).steps
    assert [step.kernel for step in engine._pool(20).plan.steps] == [step.kernel for step in made]
    assert same_bits(engine(inputs(shape, 20, "float32")), y)


def sparse_samples(count, features, dtype="float32"):
    rng = np.random.default_rng(5)
    return sp.csr_array(rng.normal(size=(count, features)) * (rng.random((count, features)) < 0.1)).astype(dtype)


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
def test_sparse_input_of_a_linear_first_layer(layers, dtype):
    every = [nn.SparseLinear(60, 30, activation="relu", rng=0), nn.Linear(30, 20, rng=1), nn.ReLU(), nn.Linear(20, 4)]
    engine = fs.compile(nn.Sequential(*every[:layers]), (3, 60), tune=False)
    for x in (
        sparse_samples(7, 60, dtype), sparse_samples(1, 60, dtype).tocoo(), sparse_samples(3, 60, dtype).tocsc(),
        fs.csr(sparse_samples(3, 60, dtype)),
    ):  # fmt: skip
        expected = engine(x.toarray())
        y = engine(x)
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
        out = np.empty_like(expected)
        assert engine(x, out=out) is out
        np.testing.assert_array_equal(out, y)
    assert engine(sparse_samples(0, 60)).shape == (0, expected.shape[1])
    with pytest.raises(ValueError, match=r"x has shape \(7, 61\), expected \(batch, 60\)"):
        engine(sparse_samples(7, 61))


@pytest.mark.T3
def test_sparse_input_runs_on_the_engines_threads(monkeypatch):
    seen = []
    run = spgemm.forward
    monkeypatch.setattr(spgemm, "forward", lambda *arguments: (seen.append(usable_threads()), run(*arguments)))
    engine = fs.compile(nn.Sequential(nn.SparseLinear(60, 8, rng=0), nn.ReLU()), (4, 60), threads=1, tune=False)
    with fs.threads(2):
        engine(sparse_samples(7, 60))
    assert seen == [1]


@pytest.mark.I1
@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
def test_sparse_input_is_checked_before_it_is_converted(kind):
    engine = fs.compile(nn.Sequential(nn.SparseLinear(60, 8, rng=0), nn.ReLU()), (4, 60), tune=False)
    x = sparse_samples(7, 60).asformat(kind)
    (x.coords[0] if kind == "coo" else x.indices)[0] = -1
    with pytest.raises(ValueError, match="x is not a valid sparse matrix"):
        engine(x)


@pytest.mark.I4
@pytest.mark.parametrize("batch", [0, -3, 2.5])
def test_batch_sizes_to_prepare_for(batch):
    engine = fs.compile(nn.Sequential(nn.SparseLinear(60, 8, rng=0)), (4, 60), tune=False)
    for call in (engine.prepare, engine.random_inputs):
        with pytest.raises((ValueError, TypeError), match=f"batch is {batch}, expected an integer of at least 1"):
            call(batch)


def test_sparse_input_of_other_first_layers():
    for model, shape in (
        (nn.Sequential(nn.SparseConv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 4)), (1, 1, 6, 6)),
        (nn.Sequential(nn.Residual(nn.SparseLinear(60, 60))), (1, 60)),
    ):
        with pytest.raises(TypeError, match=r"x is sparse, expected a dense array \(x\.toarray\(\)\)"):
            fs.compile(model, shape, tune=False)(sparse_samples(3, 60))


def test_arrays_of_the_other_type_are_cast():
    for dtype, other in (("float32", "float64"), ("float64", "float32")):
        model = nn.Sequential(nn.SparseLinear(60, 30, dtype=dtype, rng=0), nn.Linear(30, 4, dtype=dtype, rng=1))
        x = np.random.default_rng(0).normal(size=(3, 60)).astype("f")
        engine = fs.compile(model, (3, 60), tune=False)
        for run in (engine, model):
            y = run(x.astype(other))
            assert y.dtype == dtype
            np.testing.assert_array_equal(y, run(x.astype(dtype)))


@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy, copy.copy])
def test_engines_pickle_and_copy(copied):
    model, shape = network("demo")
    engine = fs.compile(model, (4, *shape), threads=1)
    again = copied(engine)
    x = inputs(shape, 4, "float32")
    np.testing.assert_array_equal(again(x), engine(x))
    assert again._threads == 1
    with pytest.raises(fs.FileFormatError):
        pickle.loads(pickle.dumps(engine).replace(b"float32", b"float23"))


def test_engines_are_freed_at_once():
    engine = fs.compile(nn.Sequential(nn.SparseLinear(30, 20, rng=0)), (4, 30))
    engine(np.ones((4, 30), np.float32))
    store = weakref.ref(engine._plans)
    gc.collect()
    gc.disable()
    try:
        del engine
        assert store() is None
    finally:
        gc.enable()


def test_an_engine_shows_its_shapes() -> None:
    engine = fs.compile(nn.Sequential(nn.Linear(8, 4, rng=0)), (2, 8), tune=False)
    assert repr(engine) == "<Engine (2, 8) -> (2, 4), float32>"
