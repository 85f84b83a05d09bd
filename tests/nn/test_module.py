"""Names, modes, saved state and the summary of models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import nn
from fastsparse.nn.summary import summary_table


def _model(seed: int = 0, sparsity: float = 0.5) -> nn.Sequential:
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.SparseConv2d(1, 4, 3, padding=1, bias=False, sparsity=sparsity, rng=rng),
        nn.BatchNorm2d(4),
        nn.Residual(nn.SparseConv2d(4, 4, 1, sparsity=sparsity, rng=rng), activation="relu"),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3, rng=rng),
    )


def test_parameters_are_named_by_their_place() -> None:
    names = [name for name, _ in _model().named_parameters()]
    assert names == ["0.values", "1.weight", "1.bias", "2.body.values", "2.body.bias", "5.weight", "5.bias"]
    assert [name for name, _ in _model().named_buffers()] == ["1.running_mean", "1.running_var"]
    assert [name for name, _ in _model().named_modules()] == ["", "0", "1", "2", "2.body", "3", "4", "5"]


def test_modes_reach_every_layer() -> None:
    model = _model()
    assert model.eval() is model
    assert not any(module.training for _, module in model.named_modules())
    assert all(module.training for _, module in model.train().named_modules())


def test_state_moves_a_model_into_another_one(rng: Any) -> None:
    source, target = _model(0), _model(1, sparsity=0.7)
    x = rng.normal(size=(6, 1, 4, 4)).astype("f")
    source(x)  # moves the running statistics
    state = source.state_dict()
    assert {"0.values", "0.indptr", "0.indices", "2.body.indptr", "1.running_var", "5.bias"} <= set(state)
    target.load_state_dict(state)
    np.testing.assert_array_equal(source.eval()(x), target.eval()(x))
    assert target[0].pattern == source[0].pattern
    want = source.state_dict()
    for array in state.values():
        array[...] = 0
    for model in (source, target):
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(array, want[name])


def test_loading_an_equal_pattern_keeps_its_plans() -> None:
    model = _model()
    pattern = model[0].pattern
    model.load_state_dict(_model().state_dict())
    assert model[0].pattern is pattern


def _broken_states() -> list[tuple[str, Any, str]]:
    def without(name: str) -> Any:
        return lambda state: state.pop(name)

    def with_entry(name: str, value: Any) -> Any:
        return lambda state: state.update({name: value})

    return [
        ("missing", without("5.bias"), "state has no entry '5.bias', expected one for each parameter, pattern and"),
        ("missing pattern", without("0.indptr"), "state has no entry '0.indptr'"),
        ("unknown", with_entry("9.x", np.ones(1)), "state has the entry '9.x', which the model does not have"),
        ("shape", with_entry("5.weight", np.ones((3, 15), "f")), "state entry '5.weight' has shape (3, 15), expected"),
        ("type", with_entry("5.bias", np.ones(3)), "state entry '5.bias' has dtype float64, expected float32"),
        ("buffer", with_entry("1.running_mean", np.ones(5, "f")), "state entry '1.running_mean' has shape (5,)"),
        ("values", with_entry("0.values", np.ones(1, "f")), "state entry '0.values' has shape (1,), expected (18,)"),
        (
            "indptr",
            with_entry("0.indptr", np.zeros(5, np.int64)),
            "state entries 0.indptr and 0.indices are no pattern: indptr[4] is 0, expected 18, the length of indices",
        ),
        (
            "indices",
            lambda state: state.update({"0.indices": state["0.indices"][::-1]}),
            "state entry '0.indices' has unsorted or repeated columns, expected rising ones",
        ),
    ]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in _broken_states()], ids=[c[0] for c in _broken_states()])
def test_a_state_that_does_not_fit_changes_nothing(change: Any, message: str) -> None:
    model = _model(0)
    before = model.state_dict()
    state = _model(1).state_dict()
    change(state)
    with pytest.raises(ValueError, match=r"^state ") as caught:
        model.load_state_dict(state)
    assert str(caught.value).startswith(message)
    after = model.state_dict()
    assert list(after) == list(before)
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])


def test_summary_counts_nonzeros_and_bytes(capsys: Any) -> None:
    model = _model()
    model.summary((2, 1, 4, 4))
    lines = capsys.readouterr().out.splitlines()
    conv = next(line for line in lines if line.startswith("0 "))
    nonzeros, columns = 18, 9
    size = nonzeros * 4 + nonzeros * 4 + (4 + 1) * 8  # values, indices, indptr
    assert conv.split() == [
        "0",
        "SparseConv2d",
        "(2,",
        "4,",
        "4,",
        "4)",
        "18",
        str(4 * columns),
        "50.00%",
        str(size),
        "B",
    ]
    body = next(line for line in lines if line.startswith("2.body"))
    assert body.split()[1:] == ["SparseConv2d", "(2,", "4,", "4,", "4)", "12", "20", "60.00%", "120", "B"]
    total = sum(p.value.size for p in model.parameters())
    assert lines[-1].split()[:2] == ["total", str(total)]
    assert all(module.training for _, module in model.named_modules())
    assert "(2," not in summary_table(model)


def test_summary_of_a_model_that_takes_integers(capsys: Any) -> None:
    model = nn.Sequential(nn.Embedding(9, 4, rng=0), nn.Flatten(), nn.Linear(12, 2, rng=1))
    model.summary((2, 3))
    lines = capsys.readouterr().out.splitlines()
    (embedding,) = [line for line in lines if line.startswith("0 ")]
    assert embedding.split()[1:5] == ["Embedding", "(2,", "3,", "4)"]
    double = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, dtype="float64", rng=0))
    double.summary((2, 3))
    assert "(2, 2)" in capsys.readouterr().out


def test_repr_shows_every_layer() -> None:
    text = repr(_model())
    assert text.splitlines()[0] == "Sequential("
    assert "  0: SparseConv2d(in_channels=1, out_channels=4, kernel_size=[3, 3]" in text
    assert f"sparsity={_model()[0].sparsity:.3g})" in text.splitlines()[1]


def test_own_layers_work_and_say_that_they_cannot_be_saved(tmp_path: Any) -> None:
    class Double(nn.Module):
        def forward(self, x: Any) -> Any:
            return 2 * x

        def backward(self, dy: Any, *, need_input: bool = True) -> Any:
            return 2 * dy

    model = nn.Sequential(nn.Linear(3, 2, rng=0), Double())
    y = model(np.ones((4, 3), "f"))
    grad = model.backward(np.ones_like(y))
    np.testing.assert_array_equal(grad, 2 * np.ones((4, 2), "f") @ model[0].weight.value)
    with pytest.raises(TypeError, match=r"^model holds a Double, expected layers of fastsparse\.nn only"):
        fs.save(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


class _Blocks(nn.Module):
    """A layer of one's own: layers in a list, and two sparse parameters."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.blocks = [nn.SparseLinear(4, 4, sparsity=0.5, rng=rng), nn.Dropout(0.5, rng=seed)]
        patterns = [fs.csr(rng.random((3, 4)) * (rng.random((3, 4)) < 0.5)).pattern for _ in range(2)]
        self.left, self.right = (nn.Parameter(rng.random(p.nnz), p) for p in patterns)


def test_layers_in_lists_are_found_and_patterns_saved_for_each_parameter() -> None:
    source, target = _Blocks(0), _Blocks(1)
    assert [name for name, _ in source.named_parameters()] == ["left", "right", "blocks.0.values", "blocks.0.bias"]
    assert not any(module.training for _, module in source.eval().named_modules())
    target.load_state_dict(source.state_dict())
    for (name, got), want in zip(target.named_parameters(), source.parameters()):
        assert got.pattern == want.pattern, name
        np.testing.assert_array_equal(got.value, want.value)
    rows = summary_table(source).splitlines()
    assert [line.split()[0] for line in rows[2:] if line[0].isalpha()] == ["model", "blocks.0", "blocks.1", "total"]


def test_layers_without_config_can_be_shown() -> None:
    assert repr(nn.Sequential(_Blocks(0))) == "Sequential(\n  0: _Blocks()\n)"
