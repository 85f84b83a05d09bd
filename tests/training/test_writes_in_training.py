"""Contract I5 in training: values, gradients, optimizer state and statistics that kernels must not write to."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import nn, training
from tests.layouts import (
    Array,
    bits,
    frozen,
    mapped,
    repeated,
    spread,
    unaligned,
    wrong_kinds,
)

pytestmark = pytest.mark.I5

# ---------------------------------------------------------------- parameters, gradients, optimizer state

OPTIMIZERS: dict[str, Callable[..., training.Optimizer]] = {
    "SGD": lambda p, **options: training.SGD(p, 0.1, **options),
    "Adam": lambda p, **options: training.Adam(p, 0.1, **options),
    "AdamW": lambda p, **options: training.AdamW(p, 0.1, **options),
}
optimizers = pytest.mark.parametrize("kind", OPTIMIZERS)
SIZE = 37


def test_the_table_of_optimizers_is_complete() -> None:
    found, classes = set(), [training.Optimizer]
    while classes:
        classes += (inside := [c for c in classes.pop().__subclasses__() if c.__module__.startswith("fastsparse.")])
        found |= {c.__name__ for c in inside}
    assert found == set(OPTIMIZERS)


def _values(seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=SIZE).astype("f")


def _pair(kind: str, second: Array, **options: Any) -> tuple[list[nn.Parameter], training.Optimizer]:
    """Two parameters with gradients, and their optimizer, which has made no step."""
    parameters = [nn.Parameter(_values(1)), nn.Parameter(second)]
    optimizer = OPTIMIZERS[kind](parameters, **options)
    for seed, parameter in enumerate(parameters, start=2):
        parameter.accumulate(_values(seed))
    return parameters, optimizer


def _trained(kind: str) -> list[bytes]:
    """Both values after two steps with the same gradient."""
    parameters, optimizer = _pair(kind, _values())
    optimizer.step()
    optimizer.step()
    return [p.value.tobytes() for p in parameters]


@optimizers
def test_a_frozen_value_is_not_changed(kind: str) -> None:
    given = frozen(_values())
    parameters, optimizer = _pair(kind, given, max_norm=0.1)
    before = [p.value.tobytes() for p in parameters]
    with pytest.raises(ValueError, match=r"^parameters\[1\]\.value is read-only, expected a writable array"):
        optimizer.step()
    assert [p.value.tobytes() for p in parameters] == before
    assert (optimizer.steps, parameters[0].state, parameters[0].version) == (0, {}, 0)
    np.testing.assert_array_equal(parameters[0].grad, _values(2))
    with pytest.raises(ValueError, match=r"^value is read-only"):
        parameters[1].value = np.zeros(SIZE)
    view = given[:]
    with pytest.raises(ValueError, match=r"^value is read-only"):
        nn.Parameter(view).writable()
    assert given.tobytes() == before[1]


@optimizers
def test_values_in_read_only_memory_are_copied_before_the_first_change(kind: str, tmp_path: Path) -> None:
    read_only = {
        "mapped": mapped(_values(), tmp_path / "value.npy"),
        "bytes": np.frombuffer(_values().tobytes(), np.float32),
        "view": np.frombuffer(memoryview(bytearray(_values().tobytes())).toreadonly(), np.float32)[:],
    }
    for given in read_only.values():
        parameters, optimizer = _pair(kind, given)
        assert parameters[1].value is given
        for _ in range(2):
            optimizer.step()
        assert [p.value.tobytes() for p in parameters] == _trained(kind)
        assert given.tobytes() == _values().tobytes()
        another = nn.Parameter(given)
        another.value = np.ones(SIZE)
        assert (another.value == 1).all()


@optimizers
def test_values_of_odd_layouts_are_copied(kind: str) -> None:
    for given in (unaligned(_values()), spread(_values()), _values().astype(">f4"), _values()[::-1]):
        parameters, optimizer = _pair(kind, given)
        expected, other = _pair(kind, np.array(given, np.float32))
        optimizer.step()
        other.step()
        assert [p.value.tobytes() for p in parameters] == [p.value.tobytes() for p in expected]
    one_number = np.broadcast_to(np.float32(2), (SIZE,))
    parameters, optimizer = _pair(kind, one_number)
    expected, other = _pair(kind, np.full(SIZE, 2, np.float32))
    optimizer.step()
    other.step()
    assert parameters[1].value.tobytes() == expected[1].value.tobytes()
    pattern = fs.csr(np.ones((1, SIZE))).pattern
    np.testing.assert_array_equal(nn.Parameter(one_number, pattern).matrix() @ np.ones(SIZE, np.float32), [2 * SIZE])


@pytest.mark.parametrize("value", [[1.0, 2.0], np.ones(3, int), np.ones(3, np.float16), np.ones(3, complex), None])
def test_values_of_other_types_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^value (has dtype|is) .*, expected an array of float32 or float64$"):
        nn.Parameter(value)


@optimizers
def test_gradients_of_any_kind_are_read_and_not_changed(kind: str, tmp_path: Path) -> None:
    grad = np.round(4 * _values(3))
    for given in (
        frozen(grad), mapped(grad, tmp_path / "grad.npy"), spread(grad), unaligned(grad), grad.astype(">f4"),
        grad.astype(np.float16), grad.astype(np.int64), grad.astype(np.float64), grad.tolist(), repeated(grad),
    ):  # fmt: skip
        results, before = [], bits(given)
        for g in (given, np.array(given, np.float32)):
            parameters, optimizer = _pair(kind, _values(), max_norm=1.5)
            parameters[1].grad = g
            optimizer.step()
            results.append([p.value.tobytes() for p in parameters])
        assert results[0] == results[1]
        assert bits(given) == before
    for wrong in (grad[:-1], grad[None], np.float32(1), np.ones(SIZE + 1, np.float32)):
        parameters, optimizer = _pair(kind, _values())
        with pytest.raises(ValueError, match=r"^grad has shape"):
            parameters[1].accumulate(wrong)
        parameters[1].grad = wrong
        with pytest.raises(ValueError, match=r"^parameters\[1\]\.grad has shape"):
            optimizer.step()
        assert parameters[0].value.tobytes() == _values(1).tobytes()


def test_a_sum_of_gradients_leaves_them_as_they_were(tmp_path: Path) -> None:
    first, second = frozen(_values(1)), mapped(_values(2), tmp_path / "grad.npy")
    for one, other in ((first, second), (second, first)):
        parameter = nn.Parameter(_values())
        parameter.accumulate(one)
        parameter.accumulate(other)
        np.testing.assert_array_equal(parameter.grad, _values(1) + _values(2))


@optimizers
def test_a_gradient_that_lies_on_a_value_is_copied(kind: str) -> None:
    memory = np.zeros(2 * SIZE, np.float32)
    memory[:SIZE], memory[SIZE:] = _values(), _values(1)
    for start in (0, 1, SIZE - 1):
        expected, other = _pair(kind, _values())
        shared = memory.copy()
        parameters = [nn.Parameter(_values(1)), nn.Parameter(shared[:SIZE])]
        optimizer = OPTIMIZERS[kind](parameters)
        parameters[0].grad, parameters[1].grad = _values(2), shared[start : start + SIZE]
        expected[1].grad = memory[start : start + SIZE].copy()
        for each in (optimizer, other):
            each.step()
        assert [p.value.tobytes() for p in parameters] == [p.value.tobytes() for p in expected]


@optimizers
def test_parameters_that_share_memory_are_refused(kind: str) -> None:
    memory = np.zeros(2 * SIZE, np.float32)
    for start in (0, 1, SIZE - 1):
        parameters = [nn.Parameter(memory[:SIZE]), nn.Parameter(memory[start : start + SIZE])]
        with pytest.raises(ValueError, match=r"^parameters\[1\]\.value shares memory with parameters\[0\]\.value"):
            OPTIMIZERS[kind](parameters)
    OPTIMIZERS[kind]([nn.Parameter(memory[:SIZE]), nn.Parameter(memory[SIZE:])])
    one = nn.Parameter(_values())
    twice = OPTIMIZERS[kind]([one, one])
    assert twice.parameters == [one], "a parameter of two layers is updated once"


@optimizers
def test_state_is_what_kernels_write_or_nothing_happens(kind: str, tmp_path: Path) -> None:
    parameters, optimizer = _pair(kind, _values())
    optimizer.step()
    after = [p.value.tobytes() for p in parameters]
    for name, array in list(parameters[1].state.items()):
        good = array.copy()
        for found, given in wrong_kinds(good).items():
            parameters[1].state[name] = given
            with pytest.raises(ValueError, match=rf"^parameters\[1\]\.state\['{name}'\] is "):
                optimizer.step()
            assert [p.value.tobytes() for p in parameters] == after, found
            assert optimizer.steps == 1
        parameters[1].state[name] = parameters[0].state[name]
        with pytest.raises(ValueError, match=r"\.state.* shares memory with parameters\[.\]\.state"):
            optimizer.step()
        parameters[1].state[name] = parameters[1].value
        with pytest.raises(ValueError, match=r"shares memory with parameters\[1\]\.(value|state)"):
            optimizer.step()
        parameters[1].state[name] = good
    for change in (frozen, unaligned, spread, lambda array: mapped(array, tmp_path / "state.npy")):
        parameters, optimizer = _pair(kind, _values())
        optimizer.step()
        given = {name: change(array) for name, array in parameters[1].state.items()}
        before = {name: array.tobytes() for name, array in given.items()}
        parameters[1].state = given
        optimizer.step()
        assert [p.value.tobytes() for p in parameters] == _trained(kind)
        assert {name: array.tobytes() for name, array in given.items()} == before


# ---------------------------------------------------------------- running statistics


def test_running_statistics_are_read_and_replaced(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("f")
    for change in (frozen, unaligned, spread, lambda array: mapped(array, tmp_path / "mean.npy")):
        layer, plain = nn.BatchNorm1d(5), nn.BatchNorm1d(5)
        given = change(np.arange(5, dtype=np.float32))
        layer.running_mean, plain.running_mean = given, np.arange(5, dtype=np.float32)
        for mode in (False, True, False):
            np.testing.assert_array_equal(layer.train(mode)(x), plain.train(mode)(x))
        np.testing.assert_array_equal(layer.running_mean, plain.running_mean)
        np.testing.assert_array_equal(given, np.arange(5))
        assert layer.running_mean.dtype == np.float32
    for name in nn.BatchNorm1d.buffer_names:
        for wrong in (np.ones(4), np.ones(6), np.float32(1), np.ones((5, 1)), np.array(list("abcde"))):
            layer = nn.BatchNorm1d(5)
            setattr(layer, name, wrong)
            for mode in (False, True):
                with pytest.raises(ValueError, match=rf"^{name} is "):
                    layer.train(mode)(x)
            assert getattr(layer, name) is wrong


# ---------------------------------------------------------------- pickled, mapped and copied objects


def _model() -> nn.Sequential:
    return nn.Sequential(
        nn.SparseLinear(30, 40, sparsity=0.5, activation="relu", rng=0), nn.BatchNorm1d(40), nn.Linear(40, 3, rng=1)
    )


def _one_epoch(model: nn.Module, optimizer: training.Optimizer | None = None) -> list[bytes]:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(32, 30)).astype("f"), rng.integers(0, 3, 32)
    optimizer = optimizer or training.Adam(model.parameters(), 0.01)
    sparsity = fs.sparsity.SET(model, every=3, rng=0)
    training.fit(model, data, epochs=1, batch_size=8, optimizer=optimizer, sparsity=sparsity, progress=False, rng=0)
    return [array.tobytes() for array in model.state_dict().values()]


def test_objects_from_read_only_buffers_work_and_leave_them_alone() -> None:
    buffers: list[pickle.PickleBuffer] = []
    matrix = fs.csr(np.eye(5))
    text = pickle.dumps((_model(), matrix), protocol=5, buffer_callback=buffers.append)
    assert buffers
    given = [bytes(buffer.raw()) for buffer in buffers]
    before = [bytes(bytearray(buffer)) for buffer in given]
    model, again = pickle.loads(text, buffers=given)
    assert not model.parameters()[0].value.flags.writeable
    assert _one_epoch(model) == _one_epoch(_model())
    assert given == before
    memory = [bytearray(buffer) for buffer in given]
    _, again = pickle.loads(text, buffers=memory)
    for buffer in memory:
        buffer[:] = bytes(len(buffer))
    np.testing.assert_array_equal(again.toarray(), np.eye(5))


def test_models_mapped_by_joblib_predict_and_train(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    path, x = tmp_path / "model", np.ones((4, 30), np.float32)
    model = _model().eval()
    joblib.dump(model, path)
    before = path.read_bytes()
    again = joblib.load(path, mmap_mode="r")
    np.testing.assert_array_equal(again(x), model(x))
    assert isinstance(again[2].weight.value, np.memmap), "reading does not copy"
    assert _one_epoch(again) == _one_epoch(_model())
    del again
    assert path.read_bytes() == before


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "joblib"])
def test_copies_of_model_and_optimizer_go_on_together(how: str, tmp_path: Path) -> None:
    """State follows its nonzeros in a copy, too: `_one_epoch` changes patterns."""
    model = _model()
    optimizer = training.Adam(model.parameters(), 0.01)
    other = training.SGD(model.parameters(), 0.01)
    _one_epoch(model, optimizer)
    if how == "pickle":
        twin, twin_optimizer, _ = pickle.loads(pickle.dumps((model, optimizer, other)))
    elif how == "deepcopy":
        twin, twin_optimizer, _ = copy.deepcopy((model, optimizer, other))
    else:
        joblib = pytest.importorskip("joblib")
        joblib.dump((model, optimizer, other), tmp_path / "all")
        twin, twin_optimizer, _ = joblib.load(tmp_path / "all", mmap_mode="r")
    assert not any(np.shares_memory(p.value, q.value) for p, q in zip(model.parameters(), twin.parameters()))
    assert _one_epoch(twin, twin_optimizer) == _one_epoch(model, optimizer)
    assert optimizer.steps == twin_optimizer.steps == 8
