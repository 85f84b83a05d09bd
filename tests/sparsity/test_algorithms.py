"""Gradual pruning, SET and RigL: who leaves, who enters, what follows whom, how many there are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import fastsparse as fs
from fastsparse import nn
from fastsparse.sparsity import CHT, SET, ConstantSparsity, GradualPruning, PolynomialDecay, RigL, growth, random_prune
from fastsparse.training import SGD, Adam, fit


def _model(sparsity: float = 0.8) -> nn.Sequential:
    return nn.Sequential(
        nn.SparseLinear(20, 30, sparsity=sparsity, activation="relu", dtype="float64", rng=0),
        nn.SparseLinear(30, 10, sparsity=sparsity, dtype="float64", rng=1),
    )


def _step(model: nn.Module, optimizer: Any, rng: Any, x: Any = None) -> None:
    optimizer.zero_grad()
    y = model(rng.normal(size=(8, 20)) if x is None else x)
    model.backward(y - rng.normal(size=y.shape), need_input=False)
    optimizer.step()


# --- schedules and pruning ---------------------------------------------------------------------


def test_the_polynomial_goes_from_first_to_last_step() -> None:
    schedule = PolynomialDecay(0.2, 0.9, 100, 350, power=3, frequency=100)
    assert [step for step in range(1000) if schedule.due(step)] == [100, 200, 300, 350]
    assert [schedule(step) for step in (0, 100, 350, 999)] == pytest.approx([0.2, 0.2, 0.9, 0.9])
    assert schedule(200) == pytest.approx(0.9 - 0.7 * 0.6**3)
    constant = ConstantSparsity(0.5, 10, 40, 15)
    assert [step for step in range(100) if constant.due(step)] == [10, 25, 40]
    assert constant(25) == 0.5
    assert ConstantSparsity(0.5).due(100_000)
    assert [step for step in range(250) if ConstantSparsity(0.5).due(step)] == [1, 100, 200]
    assert [step for step in range(250) if ConstantSparsity(0.5, end_step=0).due(step)] == [1]


@pytest.mark.parametrize("begin", [0, 1, 10])
def test_short_trainings_are_pruned(begin):
    model = fs.nn.Sequential(fs.nn.SparseLinear(20, 10, sparsity=0.0, rng=0))
    pruning = GradualPruning(model, ConstantSparsity(0.8, begin_step=begin))
    for step in range(1, 13):
        pruning.step(step)
    assert model[0].pattern.nnz == 40


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_gradual_pruning_follows_its_schedule_for_good(scope: str, rng: Any) -> None:
    model = _model(0.0)
    optimizer = SGD(model.parameters(), 0.001)
    schedule = PolynomialDecay(0.3, 0.9, 2, 10, frequency=3)
    pruning = GradualPruning(model, schedule, scope=scope)
    alive = [np.ones(layer.pattern.shape, bool) for layer in model]
    for step in range(1, 14):
        _step(model, optimizer, rng)
        pruning.step(step)
        masks = [mask.reshape(layer.pattern.shape) for mask, layer in zip(map(_mask, model), model, strict=True)]
        assert all(not np.any(new & ~old) for new, old in zip(masks, alive, strict=True))
        alive = masks
        if schedule.due(step):
            total = sum(mask.sum() for mask in masks)
            assert total == pytest.approx(900 * (1 - schedule(step)), abs=1)
    assert sum(layer.pattern.nnz for layer in model) == 90


def _mask(layer: Any) -> Any:
    mask = np.zeros(layer.pattern.shape, bool)
    mask[layer.pattern.rows(), layer.pattern.indices] = True
    return mask


def test_random_pruning_is_random_and_exact() -> None:
    first, second, third = _model(0.0), _model(0.0), _model(0.0)
    random_prune(first, 0.9, rng=0)
    random_prune(second, 0.9, rng=0)
    random_prune(third, 0.9, rng=1)
    assert [layer.pattern.nnz for layer in first] == [60, 30]
    assert first[0].pattern == second[0].pattern != third[0].pattern
    dense = _model(0.0)[0].weight.toarray()
    kept = first[0].weight.toarray()
    np.testing.assert_array_equal(kept[_mask(first[0])], dense[_mask(first[0])])
    smallest = np.sort(abs(dense).ravel())[:540]
    assert np.isin(abs(kept[kept != 0]), smallest).sum() > 30, "small ones stay too"
    random_prune(third, 0.95, scope="global", exclude=["0"], rng=1)
    assert [layer.pattern.nnz for layer in third] == [60, 15]


# --- the full gradient -------------------------------------------------------------------------


def _grown(parameter: Any, full: Any, count: int) -> None:
    """grow_scores gives the largest of `full` outside the pattern."""
    scores = abs(full.reshape(parameter.shape))
    scores[parameter.pattern.rows(), parameter.pattern.indices] = -1
    elements, found = parameter.grow_scores(count)
    assert len(elements) == len(np.unique(elements)) == count
    assert np.all(np.diff(elements) > 0)
    flat = scores.ravel()
    want = np.sort(flat)[len(flat) - count :]
    np.testing.assert_allclose(np.sort(found), want, rtol=1e-10)
    np.testing.assert_allclose(found, flat[elements], rtol=1e-10)


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
@pytest.mark.parametrize("kind", ["dense", "3-d", "sparse"])
def test_growth_of_linear_layers(kind: str, block: int, rng: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(growth, "_BLOCK", block)
    layer = nn.SparseLinear(20, 12, sparsity=0.8, activation="tanh", dtype="float64", rng=0)
    layer.values.watch(True)
    full = np.zeros((12, 20))
    for _ in range(2):  # gradients are gathered over backward passes
        x = rng.normal(size=(2, 3, 20) if kind == "3-d" else (6, 20)) * (rng.random(20) < 0.7)
        y = layer(sparse.csr_array(x) if kind == "sparse" else x)
        dy = rng.normal(size=y.shape)
        layer.backward(dy)
        full += (dy * (1 - y**2)).reshape(-1, 12).T @ x.reshape(-1, 20)
    np.testing.assert_allclose(layer.values.grad, full[layer.pattern.rows(), layer.pattern.indices], rtol=1e-10)
    _grown(layer.values, full, 17)


CONVOLUTIONS: list[tuple[Any, tuple[int, ...]]] = [
    (lambda: nn.SparseConv1d(4, 6, 3, 2, 1, sparsity=0.7, dtype="float64", rng=0), (3, 4, 11)),
    (lambda: nn.SparseConv2d(4, 6, 3, padding=1, sparsity=0.7, dtype="float64", rng=0), (3, 4, 5, 6)),
    (
        lambda: nn.SparseConv2d(
            4, 6, (3, 2), (2, 1), ((1, 0), (0, 2)), (1, 2), 2, sparsity=0.5, dtype="float64", rng=0
        ),
        (3, 4, 7, 6),
    ),
    (lambda: nn.SparseConv3d(2, 4, 2, groups=2, sparsity=0.5, dtype="float64", rng=0), (2, 2, 3, 4, 3)),
]


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize(("make", "shape"), CONVOLUTIONS)
def test_growth_of_convolutions(make: Any, shape: Any, block: int, rng: Any, monkeypatch: Any) -> None:
    """The same layer with every weight stored gives the full gradient."""
    monkeypatch.setattr(growth, "_BLOCK", block)
    layer = make()
    whole = make()
    whole.values = nn.Parameter(np.zeros(math.prod(layer.pattern.shape)), fs.csr(np.ones(layer.pattern.shape)).pattern)
    x = rng.normal(size=shape)
    layer.values.watch(True)
    dy = rng.normal(size=layer(x).shape)
    layer.backward(dy)
    whole(x)
    whole.backward(dy)
    _grown(layer.values, whole.values.grad.copy(), 9)


def test_nothing_is_kept_unless_watched(rng: Any) -> None:
    layer = nn.SparseLinear(20, 12, dtype="float64", rng=0)
    x = rng.normal(size=(4, 20))
    for ending in (lambda: layer.values.watch(False), layer.zero_grad):
        layer.values.watch(True)
        layer.backward(layer(x))
        layer.values.grow_scores(3)
        ending()
        with pytest.raises(RuntimeError, match=r"^no backward pass was kept for growing"):
            layer.values.grow_scores(3)
    with pytest.raises(TypeError, match=r"^a dense parameter has no pattern to grow$"):
        nn.Linear(3, 3).weight.grow_scores(1)


# --- SET and RigL ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SET, RigL])
@pytest.mark.parametrize("optimizer_kind", [SGD, Adam])
def test_an_exchange(kind: Any, optimizer_kind: Any, rng: Any) -> None:
    model = _model()
    optimizer = optimizer_kind(model.parameters(), 0.01)
    algorithm = kind(model, drop_fraction=0.25, every=2)
    _step(model, optimizer, rng)
    algorithm.step(1)
    _step(model, optimizer, rng)
    before = [(layer.weight.toarray(), _mask(layer), _dense_state(layer.values)) for layer in model]
    expected = None if kind is SET else [layer.values.grow_scores(layer.pattern.nnz // 4)[0] for layer in model]
    algorithm.step(2)
    for i, (layer, (weight, mask, state)) in enumerate(zip(model, before, strict=True)):
        count = int(mask.sum()) // 4
        after, new = layer.weight.toarray(), _mask(layer)
        assert new.sum() == mask.sum()
        dropped, grown = mask & ~new, new & ~mask
        assert dropped.sum() == grown.sum() == count
        assert abs(weight[dropped]).max() <= abs(weight[mask & new]).min()
        np.testing.assert_array_equal(after[mask & new], weight[mask & new])
        assert not after[grown].any()
        for name, array in _dense_state(layer.values).items():
            np.testing.assert_array_equal(array[mask & new], state[name][mask & new])
            assert not array[grown].any()
        if expected is not None:
            np.testing.assert_array_equal(np.flatnonzero(grown), expected[i])
    _step(model, optimizer, rng)  # and it goes on
    assert all(np.isfinite(p.value).all() for p in model.parameters())


def _dense_state(parameter: Any) -> dict[str, Any]:
    result = {}
    for name, array in parameter.state.items():
        full = np.zeros(parameter.shape)
        full[parameter.pattern.rows(), parameter.pattern.indices] = array
        result[name] = full
    return result


@pytest.mark.parametrize("kind", [SET, RigL, CHT])
def test_the_drop_fraction_falls_along_a_cosine(kind: Any, rng: Any) -> None:
    algorithm = kind(_model(), drop_fraction=0.4, every=10, stop=0.5, steps=200)
    assert algorithm.fraction(0) == pytest.approx(0.4)
    assert algorithm.fraction(50) == pytest.approx(0.2)
    assert algorithm.fraction(25) == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))
    assert [step for step in range(300) if algorithm.due(step)] == list(range(10, 100, 10))
    forever = kind(_model(), drop_fraction=0.4)
    assert forever.fraction(10**6) == 0.4
    forever.begin(100)
    assert not forever.due(100)
    algorithm.begin(10**6)
    assert algorithm.steps == 200, "what the user says goes first"


def test_rigl_holds_inputs_only_before_a_change(rng: Any) -> None:
    model = _model()
    algorithm = RigL(model, every=3)
    watched = []
    optimizer = SGD(model.parameters(), 0.01)
    for step in range(1, 8):
        watched.append(model[0].values.watched)
        _step(model, optimizer, rng)
        assert bool(model[0].values._full) == watched[-1]
        algorithm.step(step)
        assert not model[0].values._full
    assert watched == [step % 3 == 0 for step in range(1, 8)]
    with pytest.raises(RuntimeError, match=r"^0\.values: no backward pass was kept for growing"):
        algorithm.step(9)


@pytest.mark.parametrize("algorithm", [RigL, SET])
def test_a_new_algorithm_beside_an_optimizer_that_has_made_steps(algorithm: Any, rng: Any) -> None:
    """The first step of the second training is due."""
    model, data = _model(), (rng.normal(size=(16, 20)), rng.integers(0, 10, 16))
    optimizer = SGD(model.parameters(), 0.01)
    fit(model, data, epochs=3, batch_size=16, optimizer=optimizer, progress=False)
    before = model[0].pattern
    changing = algorithm(model, every=4, drop_fraction=0.5)
    fit(model, data, epochs=4, batch_size=16, optimizer=optimizer, sparsity=changing, progress=False)
    assert optimizer.steps == 7
    assert model[0].pattern != before
    assert changing.state_dict()["last"] == 7


def test_excluded_and_full_layers_stay(rng: Any) -> None:
    model = nn.Sequential(*_model().layers, nn.SparseLinear(10, 4, sparsity=0.0, dtype="float64", rng=2))
    patterns = [layer.pattern for layer in model]
    SET(model, every=1, exclude=["0"], rng=0).step(1)
    assert model[0].pattern is patterns[0]
    assert model[1].pattern != patterns[1]
    assert model[2].pattern is patterns[2]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("kind", ["rigl", "set", "cht", "gradual", "magnitude", "random", "snip"])
def test_parameters_that_layers_share_change_once(kind: str, scope: str, rng: Any) -> None:
    model = nn.Sequential(*(nn.SparseLinear(20, 20, sparsity=0.5, rng=i) for i in range(3)))
    model[1].values = model[0].values
    optimizer, before = SGD(model.parameters(), 0.01), model[0].pattern
    evolving = {"rigl": RigL, "set": SET, "cht": CHT}.get(kind)
    algorithm = evolving(model, every=1) if evolving else GradualPruning(model, ConstantSparsity(0.8), scope=scope)
    _step(model, optimizer, rng)
    if kind in ("magnitude", "random", "snip"):
        getattr(fs.sparsity, f"{kind}_prune")(model, 0.8, scope=scope)
    else:
        algorithm.step(1)
    assert model[0].values is model[1].values
    assert model[0].pattern != before
    assert sum(model[i].pattern.nnz for i in (0, 2)) == (400 if evolving else 160)  # of 800 elements
    fs.sparsity.random_prune(model, 0.9, exclude=("1",))  # and with it all its names
    assert model[0].pattern.nnz > 40 == model[2].pattern.nnz


def test_a_nearly_full_layer_exchanges_what_there_is_room_for() -> None:
    layer = nn.SparseLinear(10, 10, sparsity=0.05, rng=0)
    SET(layer, every=1, drop_fraction=0.5, rng=0).step(1)
    assert layer.pattern.nnz == 95


@pytest.mark.parametrize("kind", [SET, RigL, CHT])
def test_checkpoints_keep_the_algorithm(kind: Any, tmp_path: Any) -> None:
    """A run stopped between two epochs ends with the same bits, patterns included."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(64, 20)), rng.integers(0, 10, 64)

    def run(epochs_of_first: int | None, path: Any) -> Any:
        model = _model()
        for epochs, seed in ((epochs_of_first, 3), (6, 4)):
            if epochs is not None:
                algorithm = kind(model, every=3, steps=48, **({} if kind is RigL else {"rng": seed}))
                optimizer = SGD(model.parameters(), 0.05)
                fit(
                    model, data, epochs=epochs, batch_size=8, optimizer=optimizer, sparsity=algorithm, progress=False,
                    checkpoint=path, resume=True, rng=seed if epochs_of_first else 3,
                )  # fmt: skip
        return model

    whole = _model()
    algorithm = kind(whole, every=3, **({} if kind is RigL else {"rng": 3}))
    fit(
        whole, data, epochs=6, batch_size=8, optimizer=SGD(whole.parameters(), 0.05), sparsity=algorithm,
        progress=False, rng=3,
    )  # fmt: skip
    assert algorithm.steps == 48, "fit tells the number of steps"
    resumed = run(2, tmp_path / "run")
    for name, array in whole.state_dict().items():
        np.testing.assert_array_equal(resumed.state_dict()[name], array)
    start = _model()
    assert whole[0].pattern != start[0].pattern


def test_a_checkpoint_of_another_algorithm_is_refused(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(16, 20)), rng.integers(0, 10, 16)

    def run(make: Any, epochs: int) -> None:
        model = _model()
        fit(
            model, data, epochs=epochs, batch_size=8, optimizer=SGD(model.parameters(), 0.05), sparsity=make(model),
            progress=False, checkpoint=tmp_path / "run", resume=True, rng=0,
        )  # fmt: skip

    run(RigL, 1)
    with pytest.raises(ValueError, match=r"was written with the sparsity algorithm RigL, expected SET$"):
        run(SET, 2)
    with pytest.raises(ValueError, match=r"was written with the sparsity algorithm RigL, expected None$"):
        run(lambda model: None, 2)


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda m: SET(m, drop_fraction=1.2), ValueError, "drop_fraction is 1.2, expected a number from 0 to 1"),
    (lambda m: RigL(m, stop=-0.1), ValueError, "stop is -0.1, expected a number from 0 to 1"),
    (lambda m: RigL(m, every=0), ValueError, "every is 0, expected an integer of at least 1"),
    (lambda m: SET(m, exclude=["9"]), ValueError, "exclude names '9', expected layers or parameters of the model"),
    (lambda m: SET(nn.Linear(3, 3)), ValueError, "model has no sparse layer, expected at least one (fs.nn."),
    (lambda m: GradualPruning(m, 0.9), TypeError, "schedule is a float, expected PolynomialDecay or ConstantSparsity"),
    (
        lambda m: GradualPruning(m, ConstantSparsity(0.5), scope="x"),
        ValueError,
        "scope is 'x', expected 'layer' or 'global'",
    ),
    (lambda m: PolynomialDecay(0, 1.0, 0, 9), ValueError, "final_sparsity is 1.0, expected a number in [0, 1)"),
    (lambda m: PolynomialDecay(0.5, 0.4, 0, 9), ValueError, "initial_sparsity is 0.5, expected at most final_sparsity"),
    (lambda m: PolynomialDecay(0, 0.9, 5, 5), ValueError, "end_step is 5, expected an integer of at least 6"),
    (lambda m: PolynomialDecay(0, 0.9, 0, 5, power=0), ValueError, "power is 0, expected a number above 0"),
    (lambda m: ConstantSparsity("a"), TypeError, "sparsity is 'a', expected a number in [0, 1)"),
    (lambda m: random_prune(m, -0.1), ValueError, "sparsity is -0.1, expected a number in [0, 1)"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_bad_arguments_are_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call(_model())
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("kind", [SET, RigL, fs.sparsity.CHT])
def test_patterns_stay_where_a_weight_is_nan(kind: Any) -> None:
    model = nn.Sequential(nn.SparseLinear(8, 8, sparsity=0.5, rng=0), nn.SparseLinear(8, 4, sparsity=0.5, rng=0))
    algorithm = kind(model, every=1)
    model.backward(np.ones_like(model(np.ones((3, 8), np.float32))))
    model[1].values.value[0] = np.nan
    before = [layer.pattern for layer in model]
    with pytest.raises(ValueError, match=r"^1\.values holds NaN"):
        algorithm.step(1)
    assert [layer.pattern for layer in model] == before


class _Diagonal(fs.sparsity.Evolving):
    """An algorithm of one's own: new weights on the diagonals, and those of the lowest columns are the weakest."""

    def __init__(self, model: Any, change: Any = lambda elements: elements) -> None:
        super().__init__(model, drop_fraction=0.5, every=1)
        self.change = change

    def strengths(self, name: str, parameter: Any) -> Any:
        return parameter.pattern.indices.astype(float)

    def grow(self, name: str, parameter: Any, count: int) -> Any:
        columns = parameter.pattern.shape[1]
        diagonal = np.arange(min(parameter.pattern.shape))[::-1] * (columns + 1)
        free = np.setdiff1d(diagonal, parameter.pattern.rows() * columns + parameter.pattern.indices)[::-1]
        return self.change(free[:count])


def test_algorithms_of_ones_own_grow_where_they_say() -> None:
    layer = nn.SparseLinear(8, 8, sparsity=0.75, rng=0)
    before = _mask(layer)
    _Diagonal(nn.Sequential(layer)).step(1)
    after = _mask(layer)
    assert layer.pattern.nnz == before.sum()
    assert (after & ~before).sum() == np.trace(after & ~before) > 3
    dropped = np.nonzero(before & ~after)[1]
    assert dropped.max() <= np.nonzero(before & after & ~np.eye(8, dtype=bool))[1].min()
    for change, error, message in (
        (lambda elements: elements * 1.5, TypeError, "_Diagonal.grow gave an array of float64"),
        (lambda elements: elements + 64, ValueError, "expected at most 8 different ones from 0 to 63"),
        (lambda elements: np.append(elements, elements[:1]), ValueError, "different ones"),
        (lambda elements: np.arange(9), ValueError, "gave 9 elements, expected at most 8"),
        (lambda elements: np.flatnonzero(before)[:1], ValueError, "where there is a weight"),
    ):  # fmt: skip
        layer = nn.SparseLinear(8, 8, sparsity=0.75, rng=0)
        with pytest.raises(error, match=message):
            _Diagonal(nn.Sequential(layer), change).step(1)
        np.testing.assert_array_equal(_mask(layer), before)
