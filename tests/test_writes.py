"""Contract I5: arrays that kernels write to are asked for where they enter; nothing changes when one is refused.

Functions are found by their signatures, so that a new one that writes has to be put into a table here.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from scipy import sparse

import fastsparse as fs
from fastsparse import elementwise, functional, launch_layers, launch_optimizers, nn, training
from fastsparse.launch import machine, share_memory
from fastsparse.plan.pooling import windows

Array = NDArray[Any]
F32 = np.dtype(np.float32)


def unaligned(array: Array) -> Array:
    """A copy that begins at an odd address."""
    memory = np.zeros(array.nbytes + 1, np.uint8)
    shifted = memory[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    return shifted


def frozen(array: Array) -> Array:
    """A read-only copy."""
    twin = array.copy()
    twin.flags.writeable = False
    return twin


def mapped(array: Array, path: Path) -> Array:
    """A copy in a file that is mapped for reading: writing to it kills the process."""
    path = path.with_stem(f"{path.stem} {len(list(path.parent.iterdir()))}")
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def repeated(array: Array) -> Array:
    """A writable array of this shape that lies on its first element."""
    return as_strided(array.reshape(-1)[:1].copy(), array.shape, (0,) * array.ndim, writeable=True)


def spread(array: Array) -> Array:
    """A copy with gaps between its elements."""
    wide = np.zeros((*array.shape, 2), array.dtype)[..., 0]
    wide[...] = array
    return wide


def wrong_layouts(array: Array) -> dict[str, Array]:
    return {"spread": spread(array), "repeated": repeated(array), "unaligned": unaligned(array)}


def wrong_kinds(array: Array) -> dict[str, Any]:
    """What has another type or size."""
    flat = np.zeros(array.size + 1, array.dtype)
    return {
        "list": array.tolist(),
        "half as wide": array.astype(np.float16),
        "twice as wide": array.astype(np.complex64 if array.dtype == F32 else np.longdouble),
        "bytes": array.astype(np.uint8),
        "other byte order": array.astype(array.dtype.newbyteorder()),
        "one less": flat[2:],
        "one more": flat,
        "empty": flat[:0],
    }


def not_writable(array: Array, folder: Path) -> dict[str, Any]:
    """Every kind of array that no kernel may write to in place of `array`."""
    read_only = {"frozen": frozen(array), "mapped": mapped(array, folder / "array.npy")}
    return {**wrong_layouts(array), **wrong_kinds(array), **read_only}


def bits(value: Any) -> Any:
    return value.tobytes() if isinstance(value, np.ndarray) else copy.deepcopy(value)


# ---------------------------------------------------------------- out=

W = fs.csr(np.eye(4, 18, dtype=np.float32))
X = np.ones((3, 2, 5, 5), np.float32)
ENGINE_INPUT = np.ones((3, 18), np.float32)
WITH_OUT: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "functional.spmm": (fs.spmm, (W, np.ones((18, 5), np.float32)), {"bias": np.ones(4, np.float32)}),
    "functional.linear": (fs.linear, (np.ones((3, 18), np.float32), W), {"bias": np.ones(4, np.float32)}),
    "functional.conv1d": (fs.conv1d, (np.ones((3, 2, 12), np.float32), W), {"kernel_size": 9}),
    "functional.conv2d": (fs.conv2d, (X, W), {"kernel_size": 3}),
    "functional.conv3d": (fs.conv3d, (X[:, :, None], W), {"kernel_size": (1, 3, 3)}),
    "elementwise.softmax": (elementwise.softmax, (np.ones((3, 18), np.float32),), {}),
    "elementwise.layer_norm": (
        elementwise.layer_norm, (np.ones((3, 4), np.float32), np.ones(4, np.float32), np.ones(4, np.float32), 1e-5), {},
    ),
}  # fmt: skip
MORE_WITH_OUT: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "spmv": (fs.spmm, (W, np.ones(18, np.float32)), {}),
    "sparse linear": (fs.linear, (sparse.csr_array(np.ones((3, 18), np.float32)), W), {}),
}


def test_the_table_of_out_is_complete() -> None:
    found = {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module in (functional, elementwise)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and "out" in inspect.signature(function).parameters and name != "check_out"
    }
    assert found == set(WITH_OUT)


@pytest.mark.parametrize("name", [*WITH_OUT, *MORE_WITH_OUT, "engine"])
def test_out_that_cannot_be_written_is_refused(name: str, tmp_path: Path) -> None:
    if name == "engine":
        engine = fs.compile(nn.Sequential(nn.SparseLinear(18, 4, rng=0)), ENGINE_INPUT.shape, threads=1, tune=False)
        function, arguments, keywords = engine, (ENGINE_INPUT,), {}
    else:
        function, arguments, keywords = {**WITH_OUT, **MORE_WITH_OUT}[name]
    expected = function(*arguments, **keywords)
    out = np.full_like(expected, 7)
    assert function(*arguments, **keywords, out=out) is out
    np.testing.assert_array_equal(out, expected)
    for kind, given in not_writable(out, tmp_path).items():
        before = bits(given)
        with pytest.raises((TypeError, ValueError), match=r"^out "):
            function(*arguments, **keywords, out=given)
        assert bits(given) == before, kind


@pytest.mark.parametrize("name", [*WITH_OUT, *MORE_WITH_OUT])
def test_out_that_lies_on_an_input_is_refused(name: str) -> None:
    function, arguments, keywords = {**WITH_OUT, **MORE_WITH_OUT}[name]
    shape = function(*arguments, **keywords).shape
    inputs = {
        i: a.data if sparse.issparse(a) else a for i, a in enumerate(arguments) if not isinstance(a, (float, fs.CSR))
    }
    for i, array in inputs.items():
        memory = np.ones(array.size + int(np.prod(shape)), np.float32)
        inside = memory[: array.size].reshape(array.shape)
        given = arguments[i].copy() if sparse.issparse(arguments[i]) else inside
        if sparse.issparse(given):
            given.data = inside
        out = memory[array.size - 1 :][: int(np.prod(shape))].reshape(shape)
        with pytest.raises(ValueError, match=r"^out shares memory"):
            function(*arguments[:i], given, *arguments[i + 1 :], **keywords, out=out)
        assert (memory == 1).all()


def test_out_between_the_rows_of_an_input_is_taken() -> None:
    """The bounds of both overlap, their elements do not."""
    memory = np.ones((18, 8), np.float32)
    product, out = fs.spmm(fs.csr(np.ones((1, 18), np.float32)), memory[:, :4]), memory[2:3, 4:]
    assert fs.spmm(fs.csr(np.ones((1, 18), np.float32)), memory[:, :4], out=out) is out
    np.testing.assert_array_equal(out, product)
    memory[...] = 1
    x, out = memory[:, :4].T, memory[3, 4:].reshape(4, 1)
    assert fs.linear(x, fs.csr(np.ones((1, 18), np.float32)), out=out) is out
    np.testing.assert_array_equal(out, np.full((4, 1), 18))


def test_layouts_too_hard_to_compare_count_as_shared() -> None:
    memory = np.zeros(1 << 20, np.uint8)
    shape, a = (5, 7, 11, 13, 3), (3 * 17 * 19, 5 * 23 * 3, 7 * 29, 11 * 2, 2)
    one = as_strided(memory, shape, a)
    other = as_strided(memory[1:], shape, tuple(2 * s for s in reversed(a)))
    assert share_memory(one, one)
    assert share_memory(one, other)
    assert not share_memory(memory[::2], memory[1::2])
    assert not share_memory(memory[:9], memory[9:])


def test_softmax_may_be_written_over_x() -> None:
    x = np.random.default_rng(0).normal(size=(3, 9)).astype("f")
    expected = elementwise.softmax(x)
    assert elementwise.softmax(x, out=x) is x
    np.testing.assert_array_equal(x, expected)


# ---------------------------------------------------------------- arrays that kernels get

WINDOWS = windows((6, 6), (2, 2), (2, 2), ((0, 0), (0, 0)))


def _array(*shape: int, dtype: Any = np.float32) -> Array:
    return np.ones(shape, dtype)


# For each function of these modules: names of the arrays, those that it writes behind a star, and the arguments.
KERNEL_CALLS: dict[str, dict[str, Any]] = {
    "run_activation": {"name": "gelu", "z": _array(3, 9), "y*": _array(3, 9)},
    "run_activation_grad": {"name": "gelu", "dy": _array(3, 9), "kept": _array(3, 9), "dz*": _array(3, 9)},
    "run_pool": {
        "kind": launch_layers.MAX_INDEX, "w": WINDOWS, "x": _array(2, 3, 6, 6), "y*": _array(2, 3, 3, 3),
        "index*": _array(2, 3, 3, 3, dtype=np.int32),
    },
    "run_pool_grad": {
        "kind": launch_layers.MAX_INDEX, "w": WINDOWS, "dy": _array(2, 3, 3, 3),
        "index": _array(2, 3, 3, 3, dtype=np.int32), "dx*": _array(2, 3, 6, 6),
    },
    "run_softmax": {"x": _array(3, 9), "y*": _array(3, 9)},
    "run_layer_norm": {"x": _array(3, 9), "y*": _array(3, 9), "gamma": _array(9), "beta": _array(9), "eps": 1e-5},
    "run_batch_norm": {
        "x": _array(4, 3, 5), "y*": _array(4, 3, 5), "gamma": _array(3, dtype=float), "beta": _array(3, dtype=float),
        "mean*": _array(3, dtype=float), "variance*": _array(3, dtype=float), "eps": 1e-5, "training": True,
    },
    "run_batch_norm_grad": {
        "dy": _array(4, 3, 5), "x": _array(4, 3, 5), "dx*": _array(4, 3, 5), "gamma": _array(3, dtype=float),
        "mean": _array(3, dtype=float), "variance": _array(3, dtype=float), "grad_gamma*": _array(3, dtype=float),
        "grad_beta*": _array(3, dtype=float), "eps": 1e-5,
    },
    "run_sgd": {
        "value*": _array(9), "grad": _array(9), "velocity*": _array(9), "rate": 0.1, "momentum": 0.9, "nesterov": False,
        "weight_decay": 0.1,
    },
    "run_adam": {
        "value*": _array(9), "grad": _array(9), "first*": _array(9), "second*": _array(9), "rate": 0.1,
        "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "decoupled": False, "steps": 1,
    },
}  # fmt: skip


def test_the_table_of_kernel_calls_is_complete() -> None:
    modules = (launch_layers, launch_optimizers)
    found = {
        name
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name.startswith("run_") and function.__module__ == module.__name__
    }
    assert found == set(KERNEL_CALLS)


def _wrong_arguments(name: str, folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for starred, array in KERNEL_CALLS[name].items():
        argument = starred.rstrip("*")
        if not isinstance(array, np.ndarray) or argument in ("x", "dy", "z", "value", "dx"):
            continue  # the others are measured by these
        kinds = not_writable(array, folder) if starred != argument else {**wrong_layouts(array), **wrong_kinds(array)}
        for kind, given in kinds.items():
            arguments = {key.rstrip("*"): copy.deepcopy(value) for key, value in KERNEL_CALLS[name].items()}
            yield argument, kind, {**arguments, argument: given}


@pytest.mark.parametrize("name", KERNEL_CALLS)
def test_kernels_get_what_they_write_and_read_or_nothing_happens(name: str, tmp_path: Path) -> None:
    function = getattr(launch_layers, name, None) or getattr(launch_optimizers, name)
    for argument, kind, arguments in _wrong_arguments(name, tmp_path):
        before = {key: bits(value) for key, value in arguments.items() if isinstance(value, np.ndarray)}
        with pytest.raises((TypeError, ValueError), match=f"^{argument} "):
            function(**arguments, m=machine(F32, 1))
        for key, value in before.items():
            assert arguments[key].tobytes() == value, (argument, kind, key)
    for argument in ("z", "x", "dy", "value", "dx"):
        array = KERNEL_CALLS[name].get(argument, KERNEL_CALLS[name].get(f"{argument}*"))
        if array is not None:
            arguments = {key.rstrip("*"): copy.deepcopy(value) for key, value in KERNEL_CALLS[name].items()}
            with pytest.raises(ValueError, match=f"^{argument} is .*C-contiguous"):
                function(**{**arguments, argument: spread(array)}, m=machine(F32, 1))


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
