"""Every argument of public callables is refused by name, whatever comes in its place."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import fastsparse as fs
from fastsparse import checks, nn, representations, sparsity, training

pytestmark = pytest.mark.I4


class Foreign:
    """An array of another library that does not become one of NumPy's: on another device, or with a gradient."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("call detach() first")

    def __repr__(self) -> str:
        return "<Foreign>"


def model() -> nn.Sequential:
    return nn.Sequential(nn.SparseLinear(9, 6, sparsity=0.5, rng=0), nn.Linear(6, 3, rng=0))


X, Y = np.ones((10, 9), np.float32), np.arange(10) % 3
W = fs.csr(np.eye(4, 9))
LAYER: dict[str, Any] = {"bias": True, "sparsity": 0.5, "pattern": None, "activation": None, "dtype": "f4", "rng": 0}
CONV = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
ADAM = {"parameters": model().parameters(), "lr": 0.1, "betas": (0.9, 0.99), "eps": 0.1, "weight_decay": 0}
EVOLVING = {"model": model(), "drop_fraction": 0.3, "every": 10, "stop": 1.0, "steps": None, "exclude": ()}
DCT, ATOMS = representations.DCT(9), representations.Dictionary(np.eye(9))


def fitted(**options: Any) -> None:
    network = model()
    usual = {"model": network, "data": (X, Y), "optimizer": training.SGD(network.parameters(), 0.01)}
    training.fit(**{**usual, "epochs": 0, "batch_size": 5, "progress": False, **options})


CALLS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (fs.csr, {"obj": np.eye(3), "dtype": "f4"}),
    (fs.CSR, {"indptr": [0, 1], "indices": [0], "data": [1.0], "shape": (1, 2)}),
    (fs.Pattern, {"indptr": [0, 1], "indices": [0], "shape": (1, 2)}),
    (W.with_data, {"values": np.ones(4)}),
    (fs.linear_backward, {"grad": np.ones((2, 4)), "x": np.ones((2, 9)), "W": W, "need_input": True}),
    (fs.conv1d_backward, {"grad": np.ones((1, 4, 1)), "x": np.ones((1, 9, 1)), "W": W, "need_input": True}),
    (nn.SparseLinear, {"in_features": 9, "out_features": 4, **LAYER}),
    (nn.SparseLinear.from_dense, {"weight": np.eye(3), "bias": np.ones(3)}),
    *((layer, {**CONV, **LAYER}) for layer in (nn.SparseConv1d, nn.SparseConv2d, nn.SparseConv3d)),
    (nn.SparseConv2d.from_dense, {"weight": np.ones((2, 2, 3, 3)), "bias": np.ones(2)}),
    (nn.Linear, {"in_features": 9, "out_features": 4, "bias": True, "activation": None, "dtype": "f4", "rng": 0}),
    (nn.Embedding, {"num_embeddings": 5, "embedding_dim": 3, "positions": 0, "sparse": False, "dtype": "f4"}),
    (nn.BatchNorm1d, {"num_features": 4, "eps": 1e-5, "momentum": 0.1, "dtype": "f4"}),
    (nn.LayerNorm, {"normalized_shape": 4, "eps": 1e-5, "dtype": "f4"}),
    (nn.MultiheadAttention, {"embed_dim": 8, "num_heads": 2, "bias": True, "causal": False, "sparsity": 0.5}),
    (
        nn.TransformerEncoderLayer,
        {"d_model": 8, "nhead": 2, "dim_feedforward": 9, "dropout": 0.1, "layer_norm_eps": 0.1, "norm_first": False},
    ),
    (nn.GELU, {"approximate": "tanh"}),
    (nn.Softmax, {"axis": 1}),
    (nn.Dropout, {"p": 0.5, "rng": 0}),
    (nn.MaxPool2d, {"kernel_size": 2, "stride": 2, "padding": 0}),
    (nn.Upsample, {"scale_factor": 2, "mode": "nearest"}),
    (nn.Parameter, {"value": np.ones(4), "pattern": None}),
    (model().load_state_dict, {"state": model().state_dict()}),
    (training.SGD, {"parameters": model().parameters(), "lr": 0.1, "momentum": 0.5, "nesterov": True}),
    (training.Adam, ADAM),
    (training.clip_gradients, {"parameters": model().parameters(), "max_norm": 1.0}),
    (training.CosineDecay, {"initial": 0.1, "steps": 9, "final": 0.0}),
    (training.EarlyStopping, {"monitor": "loss", "patience": 1, "min_delta": 0.0, "restore_best": True}),
    (training.cross_entropy, {"logits": np.ones((4, 3)), "labels": [0, 1, 2, 0], "weights": np.ones(4)}),
    (training.mse, {"target": np.ones((4, 3)), "weights": np.ones(4)}),
    (fitted, {"data": (X, Y), "epochs": 0, "batch_size": 5, "callbacks": (), "progress": False, "rng": 0}),
    (fitted, {"checkpoint": None, "resume": False, "sparsity": None, "validation": None}),
    (sparsity.random_pattern, {"shape": (3, 4), "sparsity": 0.5, "rng": 0}),
    (sparsity.nm_pattern, {"shape": (3, 4), "n": 2, "m": 4, "scores": None, "rng": 0}),
    (sparsity.mask_pattern, {"mask": np.eye(3)}),
    (sparsity.erdos_renyi, {"shapes": [(3, 4)], "sparsity": 0.5, "kernel": True}),
    (sparsity.PolynomialDecay, {"initial_sparsity": 0.1, "final_sparsity": 0.5, "begin_step": 0, "end_step": 9}),
    (sparsity.magnitude_prune, {"model": model(), "sparsity": 0.1, "scope": "layer", "exclude": ()}),
    (sparsity.SET, {**EVOLVING, "rng": 0}),
    (sparsity.CHT, {**EVOLVING, "soft": False}),
    (sparsity.SET(model()).step, {"step": 1}),
    (representations.DCT, {"shape": 8, "block": None}),
    (DCT.encode, {"x": np.ones((2, 9)), "threshold": 0.5, "soft": False}),
    (DCT.decode, {"codes": np.ones((2, 9))}),
    (representations.Dictionary, {"atoms": np.eye(3)}),
    (ATOMS.encode, {"x": np.ones((2, 9)), "alpha": 0.1, "known": None, "accelerated": True, "gap": 0.1}),
    (ATOMS.encode, {"x": np.ones((2, 9)), "keep": 3, "tolerance": None, "iterations": 9}),
    (fs.save, {"path": 1}),
    (fs.load, {"path": 1}),
    (fs.load_weights, {"path": 1}),
    (fs.load_engine, {"path": 1}),
]
FIXED: dict[Any, dict[str, Any]] = {
    fs.conv1d_backward: {"kernel_size": 1},
    fs.save: {"model": model()},
    training.mse: {"prediction": np.ones((4, 3))},
}
STRANGE = (
    Foreign(), "strange", b"ab", [[1.0], [1.0, 2.0]], [None], {"a": 1}, 2**70, float("nan"), -0.5, 1 + 2j, len,
    np.ones((1,) * 6), np.array([1, None]), np.zeros(3, "datetime64[s]"), np.ma.masked_array(np.ones((2, 3))),
    sparse.dok_array((2, 9)), sparse.coo_array(np.ones(3)), np.random.RandomState(0), nn.ReLU,
)  # fmt: skip


def error_of(call: Callable[..., Any], arguments: dict[str, Any]) -> Exception | None:
    try:
        call(**arguments)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize(
    ("function", "good"),
    [pytest.param(call, good, id=f"{getattr(call, '__qualname__', call)}-{i}") for i, (call, good) in enumerate(CALLS)],
)
def test_whatever_comes_is_refused_by_name(function, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixed = FIXED.get(function, {})
    refused = 0
    for name, value in [(name, value) for name in good for value in STRANGE]:
        error = error_of(function, {**good, **fixed, name: value})
        if error is not None and not (isinstance(error, OSError) and name in ("path", "checkpoint")):
            said = f"{name}={value!r}: {error!r}"
            assert isinstance(error, (TypeError, ValueError)), said
            assert name in str(error), said
            assert "\n" not in str(error), said
            refused += 1
    assert refused >= 2 * len(good)


def test_a_dtype_that_numpy_does_not_know_is_refused():
    """NumPy's float64 equals None, which an unknown name used to become."""
    for value in ("strange", "int8", None, [], len):
        with pytest.raises(TypeError, match=r"^dtype is "):
            nn.SparseLinear(3, 2, dtype=value)
    assert nn.SparseLinear(3, 2, dtype=">f4").values.dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((-1, "p", 0, 1), "p is -1, expected a number from 0 to 1"),
        ((1, "p", 0, 1), None),
        ((0, "p"), None),
        ((np.inf, "p"), "p is inf, expected a number of at least 0"),
    ],
)
def test_numbers(arguments, sentence):
    if sentence is None:
        assert checks.number(*arguments) == arguments[0]
    else:
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            checks.number(*arguments)


def test_ends_of_ranges():
    with pytest.raises(ValueError, match=r"^p is 1, expected a number in \[0, 1\)$"):
        checks.number(1, "p", 0, 1, ends="[)")
    with pytest.raises(ValueError, match=r"^p is 0, expected a number above 0$"):
        checks.number(0, "p", ends="(]")
