"""Optimizers against their formulas step by step; schedules as functions of the step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse.nn import Parameter
from fastsparse.training import SGD, Adam, AdamW, CosineDecay, StepDecay, WarmUp, clip_gradients


def _trajectory(make: Any, steps: int = 5) -> tuple[list[Any], list[Any]]:
    """Values before each step, and the gradients that were given."""
    rng = np.random.default_rng(0)
    parameter = Parameter(rng.normal(size=7))
    optimizer = make([parameter])
    values, grads = [parameter.value.copy()], []
    for _ in range(steps):
        optimizer.zero_grad()
        grads.append(rng.normal(size=7))
        parameter.accumulate(grads[-1].copy())
        version = parameter.version
        optimizer.step()
        assert parameter.version > version
        values.append(parameter.value.copy())
    return values, grads


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd(nesterov: bool, decay: float) -> None:
    values, grads = _trajectory(lambda p: SGD(p, 0.1, 0.9, nesterov, decay))
    w, v = values[0], np.zeros(7)
    for given, got in zip(grads, values[1:], strict=True):
        g = given + decay * w
        v = 0.9 * v + g
        w = w - 0.1 * (g + 0.9 * v if nesterov else v)
        np.testing.assert_allclose(got, w, rtol=1e-13)


def test_sgd_without_momentum_keeps_no_state() -> None:
    parameter = Parameter(np.ones(3))
    optimizer = SGD([parameter], 0.5, momentum=0)
    parameter.accumulate(np.array([1.0, 2.0, 3.0]))
    optimizer.step()
    np.testing.assert_array_equal(parameter.value, [0.5, 0.0, -0.5])
    assert not parameter.state


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_adam(kind: Any) -> None:
    values, grads = _trajectory(lambda p: kind(p, 0.01, (0.8, 0.95), 1e-6, weight_decay=0.1))
    w, m, s = values[0], np.zeros(7), np.zeros(7)
    for t, (given, got) in enumerate(zip(grads, values[1:], strict=True), start=1):
        g = given + 0.1 * w if kind is Adam else given
        if kind is AdamW:
            w = w * (1 - 0.01 * 0.1)
        m, s = 0.8 * m + 0.2 * g, 0.95 * s + 0.05 * g * g
        w = w - 0.01 * (m / (1 - 0.8**t)) / (np.sqrt(s / (1 - 0.95**t)) + 1e-6)
        np.testing.assert_allclose(got, w, rtol=1e-12)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_float32_stays_float32(kind: Any) -> None:
    parameter = Parameter(np.ones(3, np.float32))
    optimizer = kind([parameter], 0.1, weight_decay=0.1)
    parameter.accumulate(np.ones(3, np.float32))
    optimizer.step()
    assert parameter.value.dtype == np.float32
    assert {array.dtype for array in parameter.state.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_state_follows_its_nonzeros_to_a_new_pattern(kind: Any) -> None:
    """A nonzero that stays moves as if the pattern had never changed; a new one as if it started today."""
    old, new = fs.Pattern([0, 3], [0, 2, 3], (1, 5)), fs.Pattern([0, 3], [1, 2, 3], (1, 5))
    moved, still = Parameter(np.array([1.0, 2.0, 3.0]), old), Parameter(np.array([1.0, 2.0, 3.0]))
    for parameter in (moved, still):
        optimizer = kind([parameter], 0.1)
        parameter.accumulate(np.array([0.5, -0.5, 0.25]))
        optimizer.step()
        if parameter is moved:
            parameter.replace_pattern(new)
            np.testing.assert_array_equal(parameter.value[:1], [0.0])
        optimizer.zero_grad()
        parameter.accumulate(np.array([0.1, 0.2, -0.3]))
        optimizer.step()
    np.testing.assert_array_equal(moved.value[1:], still.value[1:])
    for name, array in moved.state.items():
        np.testing.assert_array_equal(array[1:], still.state[name][1:])


def test_parameters_without_gradient_stay() -> None:
    a, b = Parameter(np.ones(2)), Parameter(np.ones(2))
    optimizer = SGD([("a", a), ("b", b)], 0.1, weight_decay=0.5)
    a.accumulate(np.ones(2))
    optimizer.step()
    np.testing.assert_array_equal(b.value, [1, 1])
    assert b.version == 0


def test_clipping_scales_all_gradients_together() -> None:
    a, b = Parameter(np.zeros(1)), Parameter(np.zeros(1))
    a.accumulate(np.array([3.0]))
    b.accumulate(np.array([4.0]))
    assert clip_gradients([a, b], 10) == 5
    np.testing.assert_array_equal([a.grad, b.grad], [[3], [4]])
    SGD([a, b], 1.0, momentum=0, max_norm=2.5).step()
    np.testing.assert_allclose([a.value, b.value], [[-1.5], [-2]], rtol=1e-15)


def test_schedules_are_functions_of_the_step() -> None:
    cosine = CosineDecay(0.2, 100, 0.02)
    assert cosine(0) == 0.2
    assert cosine(50) == pytest.approx(0.11)
    assert cosine(25) == pytest.approx(0.02 + 0.18 * (1 + math.cos(math.pi / 4)) / 2)
    assert cosine(100) == cosine(1000) == pytest.approx(0.02)
    step = StepDecay(1.0, 10, 0.5)
    assert [step(i) for i in (0, 9, 10, 19, 20)] == [1, 1, 0.5, 0.5, 0.25]
    warm = WarmUp(CosineDecay(0.4, 10), 4)
    assert [warm(i) for i in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert warm(14) == pytest.approx(0)
    assert [WarmUp(0.3, 3)(i) for i in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])


def test_optimizers_follow_their_schedule() -> None:
    parameter = Parameter(np.zeros(1))
    optimizer = SGD([parameter], StepDecay(1.0, 2, 0.1), momentum=0)
    rates = []
    for _ in range(5):
        rates.append(optimizer.rate)
        before = parameter.value.copy()
        parameter.grad = np.ones(1)
        optimizer.step()
        assert (before - parameter.value)[0] == pytest.approx(rates[-1])
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01])


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda p: SGD([], 0.1), ValueError, "parameters is empty, expected at least one Parameter"),
    (lambda p: SGD([np.ones(2)], 0.1), TypeError, "parameters holds a ndarray, expected fs.nn.Parameter"),
    (lambda p: SGD(p, -0.1), ValueError, "lr is -0.1, expected a number of at least 0"),
    (lambda p: SGD(p, "0.1"), TypeError, "lr is '0.1', expected a number of at least 0"),
    (lambda p: SGD(p, 0.1, 1.0), ValueError, "momentum is 1.0, expected a number in [0, 1)"),
    (lambda p: SGD(p, 0.1, 0, True), ValueError, "nesterov is True and momentum is 0, expected a momentum above 0"),
    (lambda p: Adam(p, betas=(0.9, 1)), ValueError, "betas[1] is 1, expected a number in [0, 1)"),
    (lambda p: SGD(p, 0.1, max_norm=0), ValueError, "max_norm is 0, expected a number above 0"),
    (lambda p: SGD(p, 0.1, max_norm="1"), TypeError, "max_norm is '1', expected a number above 0"),
    (lambda p: clip_gradients(p, -1), ValueError, "max_norm is -1, expected a number above 0"),
    (lambda p: clip_gradients(p, float("nan")), ValueError, "max_norm is nan, expected a number above 0"),
    (lambda p: CosineDecay(-0.1, 9), ValueError, "initial is -0.1, expected a number of at least 0"),
    (lambda p: CosineDecay(0.1, 9, float("nan")), ValueError, "final is nan, expected a number of at least 0"),
    (lambda p: StepDecay("1", 9), TypeError, "initial is '1', expected a number of at least 0"),
    (lambda p: StepDecay(1, 9, -1), ValueError, "factor is -1, expected a number of at least 0"),
    (lambda p: WarmUp(-1, 9), ValueError, "then is -1, expected a number of at least 0"),
    (lambda p: CosineDecay(0.1, 0), ValueError, "steps is 0, expected an integer of at least 1"),
    (lambda p: StepDecay(0.1, 1.5), ValueError, "every is 1.5, expected an integer of at least 1"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_bad_arguments_are_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call([Parameter(np.ones(2))])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("kinds", [(SGD, Adam), (Adam, Adam), (AdamW, SGD)])
def test_optimizers_of_the_same_parameters_keep_their_own_state(kinds: Any) -> None:
    """Steps of a second optimizer, and a pattern that changes, find each one's arrays where its nonzeros are."""
    old, new = fs.Pattern([0, 3], [0, 2, 3], (1, 5)), fs.Pattern([0, 3], [1, 2, 3], (1, 5))
    both = Parameter(np.array([1.0, 2.0, 3.0]), old)
    first, second = kinds[0]([both], 0.1), None
    alone = [Parameter(np.array([1.0, 2.0, 3.0]), old) for _ in kinds]
    others = [kind([parameter], 0.1) for kind, parameter in zip(kinds, alone, strict=True)]

    def step(optimizer: Any, other: Any, grad: list[float]) -> None:
        for one, parameter in ((optimizer, both), (other, other.parameters[0])):
            parameter.zero_grad()
            parameter.accumulate(np.array(grad))
            one.step()

    step(first, others[0], [0.5, -0.5, 0.25])
    second = kinds[1]([both], 0.1)
    step(second, others[1], [0.1, 0.2, 0.3])
    both.replace_pattern(new)
    for parameter in alone:
        parameter.replace_pattern(new)
    step(first, others[0], [1.0, 2.0, 3.0])
    step(second, others[1], [0.3, 0.2, 0.1])
    for optimizer, other in zip((first, second), others, strict=True):
        state = other.state_of(other.parameters[0])
        assert set(state) == set(optimizer.state_names)
        for name, array in state.items():
            np.testing.assert_array_equal(optimizer.state_of(both)[name], array)
    assert both.state is second.state_of(both)


def test_states_of_optimizers_that_are_gone_are_gone() -> None:
    parameter = Parameter(np.ones(3))
    for _ in range(50):
        optimizer = SGD([parameter], 0.1)
        parameter.accumulate(np.ones(3))
        optimizer.step()
    assert len(list(parameter._states())) <= 2


@pytest.mark.parametrize(
    "make",
    [
        lambda p: fs.training.SGD(p, 0.1, 0.9, True),
        lambda p: fs.training.AdamW(p, 0.1),
        lambda p: fs.training.Adam(p, 0.1, max_norm=0.5),
    ],
)
def test_rows_of_a_table_move_as_if_they_were_all_of_it(make, rng):
    start, rows = rng.normal(size=(20, 4)).astype("f"), np.array([2, 7, 11])
    table, alone = fs.nn.Parameter(start.copy()), fs.nn.Parameter(start[rows].copy())
    one, other = make([table]), make([alone])
    for _ in range(3):
        grad = rng.normal(size=(3, 4)).astype("f")
        table.grad, alone.grad = fs.nn.RowGradient(rows, grad, (20, 4)), grad
        one.step()
        other.step()
    np.testing.assert_array_equal(table.value[rows], alone.value)
    others = np.setdiff1d(np.arange(20), rows)
    np.testing.assert_array_equal(table.value[others], start[others])
    for name, array in one.state_of(table).items():
        np.testing.assert_array_equal(array[rows], other.state_of(alone)[name])
        assert not array[others].any()


def test_a_row_gradient_of_another_table_is_refused():
    table = fs.nn.Parameter(np.ones((4, 2), "f"))
    with pytest.raises(ValueError, match=r"grad has shape \(5, 2\), expected \(4, 2\), the shape of value"):
        table.accumulate(fs.nn.RowGradient(np.array([1]), np.ones((1, 2), "f"), (5, 2)))


@pytest.mark.parametrize(("rate", "error"), [(np.nan, ValueError), (-0.1, ValueError), ("fast", TypeError)])
def test_learning_rates_of_a_schedule_are_checked(rate, error):
    parameter = Parameter(np.ones(3, np.float32))
    optimizer = SGD([parameter], lambda step: rate)
    parameter.grad = np.ones(3, np.float32)
    with pytest.raises(error, match=f"^lr is {rate!r}, expected a number of at least 0$"):
        optimizer.step()
    assert (parameter.value == 1).all()
