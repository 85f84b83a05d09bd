"""Linear layers on one sample without gradients, whose products are prepared: as decoding calls them."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastsparse.torch as fst
from tests.torch.test_layers import CHANGES, integers, whole


def decoded(dtype: torch.dtype = torch.float32, bias: bool = True) -> tuple[fst.SparseLinear, torch.Tensor]:
    """A layer after calls with one sample, whose next one is prepared, and such a sample."""
    layer, x = whole(fst.SparseLinear(30, 20, bias, sparsity=0.5, dtype=dtype)), integers(1, 30, dtype=dtype)
    with torch.no_grad():
        for _ in range(3):
            layer(x)
    assert layer._prepared is not None
    return layer, x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(30,), (1, 30), (1, 1, 30), (2, 30), (0, 30)])
def test_prepared_calls_give_what_others_give(shape, dtype, bias):
    layer, _ = decoded(dtype, bias)
    other = torch.bfloat16 if dtype is torch.float32 else dtype
    for x in (
        integers(*shape, dtype=dtype),
        integers(*shape[:-1], 60, dtype=dtype)[..., ::2],
        integers(*shape).to(other),
    ):
        expected = copy.deepcopy(layer)(x)
        with torch.no_grad():
            for _ in range(2):
                y = layer(x)
                assert torch.equal(y, expected)
                assert (y.dtype, y.shape, y.requires_grad) == (x.dtype, expected.shape, False)


OWN_CHANGES = "bias", "bias in other memory", "pattern", "parameter"


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        *((change, torch.float32) for change in (*CHANGES, *OWN_CHANGES)),
        *((change, torch.bfloat16) for change in OWN_CHANGES),  # whose bias is converted
    ],
)
def test_prepared_calls_notice_changes(change, dtype):
    layer, x = decoded(dtype)
    changes = CHANGES | {
        "bias": lambda layer: layer.bias.data.add_(1),
        "bias in other memory": lambda layer: setattr(layer.bias, "data", layer.bias.data + 1),
        "pattern": lambda layer: layer.load_state_dict(
            whole(fst.SparseLinear(30, 20, sparsity=0.8, dtype=dtype)).state_dict()
        ),
        "parameter": lambda layer: setattr(layer, "values", nn.Parameter(layer.values.detach() + 1)),
    }
    for _ in range(3):
        changes[change](layer)
        with torch.no_grad():
            for _ in range(3):
                assert torch.equal(layer(x), layer.to_dense()(x))


def test_prepared_calls_are_for_the_threads_of_then(monkeypatch):
    layer, x = decoded()
    before, prepared = torch.get_num_threads(), layer._prepared
    try:
        with torch.no_grad():
            layer(x)
            assert layer._prepared is prepared
            torch.set_num_threads(before + 1)
            layer(x)
            assert layer._prepared is not prepared
    finally:
        torch.set_num_threads(before)


def test_prepared_calls_are_seen_and_refused_as_others():
    layer, x = decoded()
    seen = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        with Names():
            layer(x)
        assert seen == ["fastsparse.linear.default"]
        for wrong, kind in (
            (x.double(), TypeError),
            (x[:, 1:], ValueError),
            (x.numpy(), TypeError),
            (x.int(), TypeError),
        ):
            with pytest.raises(kind):
                layer(wrong)


@pytest.mark.usefixtures("no_collector")
def test_what_is_prepared_goes_with_the_layer():
    layer, x = decoded()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin._prepared is None
        assert torch.equal(twin(x), layer(x))
    values, product = weakref.ref(layer.values), weakref.ref(layer._prepared._values)
    del layer
    assert values() is None
    assert product() is None
