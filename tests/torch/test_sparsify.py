"""sparsify and densify: which layers of which modules become sparse, and that what they compute stays."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn.utils import parametrize, prune

import fastsparse.torch as fst
from fastsparse.torch import pruning, scores
from fastsparse.torch.layers import SparseLayer


def masked(module: nn.Module, sparsity: float = 0.9) -> nn.Module:
    """The module with zeros in all its weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter[torch.rand(parameter.shape) < sparsity] = 0
    return module


def kinds(module: nn.Module) -> dict[str, str]:
    return {name: type(layer).__name__ for name, layer in module.named_modules() if not list(layer.children())}


def assert_close(y: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    y, expected = y.detach(), expected.detach()
    assert float((y - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.fixture
def timed(monkeypatch):
    """Have all dense layers measured as so many times slower than sparse ones."""

    def times(factor: float) -> None:
        def measured(calls, **_):
            for call in calls.values():
                call()
            return {"dense": [factor], "sparse": [1.0]}

        monkeypatch.setattr(pruning, "interleaved", measured)

    return times


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2, stride=2, padding_mode="reflect", padding=1),
        nn.Flatten(2), nn.Conv1d(8, 6, 3), nn.Flatten(), nn.Linear(84, 20), nn.Linear(20, 5, bias=False),
    )  # fmt: skip


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_pruned_layers_become_sparse_and_back():
    module = masked(network()).eval()
    expected = module(X)
    dense = copy.deepcopy(module)
    report = fst.sparsify(module, example_inputs=X, measure=False, threshold=0.5)
    assert set(kinds(module).values()) >= {"SparseConv1d", "SparseConv2d", "SparseLinear"}
    assert len(report.replaced) == len(report.layers) == 5
    assert_close(module(X), expected)
    assert not any(layer.training for layer in module.modules())
    assert fst.densify(module) is module
    assert kinds(module) == kinds(dense)
    for name, parameter in dense.named_parameters():
        assert torch.equal(module.get_parameter(name), parameter)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_layers_are_freed_at_once(method):
    gc.collect()
    gc.disable()
    try:
        module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        dense, x = weakref.ref(module[0]), torch.randn(8, 64)
        report = fst.sparsify(module, 0.9, method=method, example_inputs=x, measure=False)
        assert len(report.replaced) == 2
        assert dense() is None
        module(x).sum().backward()
        sparse = weakref.ref(module[0].values)
        del module
        assert sparse() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("training", [True, False])
def test_measuring_decides(timed, training):
    timed(0.9)
    module = masked(network()).train(training)
    report = fst.sparsify(module, threshold=0.5, example_inputs=X)
    assert not report.replaced
    assert {layer.note for layer in report.layers} == {"not faster"}
    timed(1.1)
    report = fst.sparsify(module, threshold=0.5, example_inputs=X)
    assert len(report.replaced) == 5
    assert all(parameter.grad is None for parameter in module.parameters())
    assert [r.dense_seconds / r.sparse_seconds for r in report.layers] == pytest.approx([1.1] * 5)
    assert "1.10x" in str(report)
    assert str(report).endswith("5 of 5 layers are sparse now")


def test_layers_below_the_threshold_stay():
    module = nn.Sequential(masked(nn.Linear(50, 50), 0.9), masked(nn.Linear(50, 50), 0.5)).eval()
    report = fst.sparsify(module, measure=False)
    assert kinds(module) == {"0": "SparseLinear", "1": "Linear"}
    assert report.layers[1].note == "below the threshold of 80%"
    assert report.layers[1].sparsity == pytest.approx(0.5, abs=0.05)


def test_layers_of_which_half_is_zero_are_measured(timed):
    timed(2.0)
    layers = [masked(nn.Linear(50, 50), share) for share in (0.4, 0.7)] + [masked(nn.Conv1d(50, 50, 3), 0.7)]
    report = fst.sparsify(nn.Sequential(*layers).eval())
    assert [layer.sparse for layer in report.layers] == [False, True, False]
    assert [layer.note for layer in report.layers] == ["below the threshold of 50%", "", "below the threshold of 80%"]


def test_without_inputs_linear_layers_are_measured_on_a_sample(timed):
    timed(2.0)
    module = masked(network()).eval()
    report = fst.sparsify(module, threshold=0.5)
    notes = {layer.kind: layer.note for layer in report.layers}
    assert notes == {
        "Conv2d": "not measured: no example_inputs",
        "Conv1d": "not measured: no example_inputs",
        "Linear": "",
    }


@pytest.mark.parametrize("method", ["magnitude", "wanda", "random"])  # SparseGPT: linear layers only
@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
def test_pruning_to_a_sparsity(method, scope):
    if (method, scope) == ("wanda", "global"):
        with pytest.raises(ValueError, match="scope is 'global'"):
            fst.sparsify(network(), 0.8, method=method, scope=scope, example_inputs=X)
        return
    module = network()
    sizes = {name: m.weight.numel() for name, m in module.named_modules() if hasattr(m, "weight")}
    report = fst.sparsify(module, 0.8, method=method, scope=scope, example_inputs=X, measure=False)
    found = {r.name: r.sparsity for r in report.layers}
    if scope == "layer":
        assert all(s == pytest.approx(0.8, abs=0.05) for s in found.values())
    else:
        assert max(found.values()) - min(found.values()) > 0.02 or method == "random"
        assert sum(s * sizes[n] for n, s in found.items()) / sum(sizes.values()) == pytest.approx(0.8, abs=0.02)
    assert module(X).shape == (4, 5)


def test_magnitude_keeps_the_largest_and_wanda_minds_the_input():
    linear = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [-5.0, 4.0, 3.0, 2.0]]))
    x = torch.tensor([[100.0, 100.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    module = nn.Sequential(copy.deepcopy(linear))
    fst.sparsify(module, 0.5, measure=False)
    assert module[0].to_dense().weight.tolist() == [[0, 0, 3, 4], [-5, 4, 0, 0]]
    module = nn.Sequential(copy.deepcopy(linear))
    fst.sparsify(module, 0.5, method="wanda", example_inputs=x, measure=False)
    assert module[0].to_dense().weight.tolist() == [[1, 2, 0, 0], [-5, 4, 0, 0]]


def correlated(features: int, samples: int = 400) -> torch.Tensor:
    """Samples whose features follow few common causes."""
    return torch.randn(samples, features // 8) @ torch.randn(features // 8, features) + 0.1 * torch.randn(
        samples, features
    )


def test_sparsegpt_changes_outputs_least():
    """On inputs whose features are correlated, also on inputs that it has not seen; in two blocks of columns."""
    torch.manual_seed(0)
    dense, x = nn.Linear(160, 48), correlated(160, 800)
    seen, unseen = x[:400], x[400:]
    errors = {}
    for method in ("magnitude", "wanda", "sparsegpt"):
        module = nn.Sequential(copy.deepcopy(dense))
        report = fst.sparsify(module, 0.75, method=method, example_inputs=seen, measure=False)
        assert report.layers[0].sparsity == pytest.approx(0.75, abs=0.01)
        with torch.no_grad():
            errors[method] = float((module(unseen) - dense(unseen)).norm() / dense(unseen).norm())
    assert errors["sparsegpt"] < 0.75 * min(errors["magnitude"], errors["wanda"]), errors


def test_sparsegpt_solves_a_least_squares_problem():
    """Where the first inputs go, the weights of the others are what least squares fits to the old outputs."""
    torch.manual_seed(0)
    x, weight = correlated(16).double().numpy(), np.random.default_rng(0).standard_normal((3, 16))
    mask = np.arange(16) >= 5
    kept, found = scores.sparsegpt(weight, np.tile(mask, (3, 1)), x.T @ x, 11 / 16)
    assert (kept == mask).all()
    damped = x.T @ x + np.eye(16) * scores.DAMPING * np.square(x).sum(axis=0).mean()
    change = np.linalg.solve(damped[np.ix_(mask, mask)], damped[np.ix_(mask, ~mask)] @ weight[:, ~mask].T)
    np.testing.assert_allclose(found[:, mask], weight[:, mask] + change.T, rtol=1e-5)


def test_sparsegpt_keeps_what_is_pruned_and_leaves_dead_inputs(timed):
    """Layers that stay dense get the new weights, too; columns of inputs that are always 0 go first."""
    timed(0.5)
    torch.manual_seed(0)
    prune.l1_unstructured(layer := nn.Linear(20, 30), "weight", 0.3)
    module, x = nn.Sequential(layer).eval(), correlated(20)
    x[:, 3] = 0
    before, old_mask = layer.weight.detach().clone(), layer.weight_mask.bool()
    report = fst.sparsify(module, 0.5, method="sparsegpt", example_inputs=x)
    assert not report.layers[0].sparse
    module(x)  # makes the weight
    kept = layer.weight.detach() != 0
    assert int(kept.count_nonzero()) == 300
    assert not kept[~old_mask].any()
    assert not kept[:, 3].any()
    assert not torch.isclose(layer.weight.detach(), before)[kept].all()


def test_wanda_on_convolutions_sees_channels_of_the_group():
    conv = nn.Conv2d(4, 2, 2, groups=2, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.ones(2, 4, 3, 3) * torch.tensor([1.0, 9.0, 9.0, 1.0]).reshape(1, 4, 1, 1)
    module = nn.Sequential(conv)
    fst.sparsify(module, 0.5, method="wanda", example_inputs=x, measure=False)
    kept = module[0].to_dense().weight.detach()
    assert kept[0, 1].all()
    assert kept[1, 0].all()
    assert kept.count_nonzero() == 8


def test_slow_layers_stay_dense_with_zeros(timed):
    timed(0.5)
    module = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 5)).eval()
    report = fst.sparsify(module, 0.9)
    assert kinds(module)["0"] == "Linear"
    assert int(module[0].weight.count_nonzero()) == 40
    assert report.layers[0].sparsity == pytest.approx(0.9)


def test_a_filter_chooses():
    module = network()
    fst.sparsify(module, 0.9, filter_fn=lambda name, layer: name == "6", measure=False)
    assert [n for n, k in kinds(module).items() if k.startswith("Sparse")] == ["6"]


# ------------------------------------------------------------------------------------------------- ways of pruning


@pytest.mark.parametrize("removed", [True, False])
def test_masks_of_torch_prune(removed):
    module = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 8)).eval()
    for layer in (module[0], module[2]):
        prune.l1_unstructured(layer, "weight", 0.9)
        if removed:
            prune.remove(layer, "weight")
    x = torch.randn(5, 40)
    expected = module(x)
    report = fst.sparsify(module, measure=False)
    assert len(report.replaced) == 2
    assert_close(module(x), expected)
    assert module[0].pattern.nnz == 120
    assert not module[0]._forward_pre_hooks


def test_a_mask_keeps_weights_that_happen_to_be_zero():
    layer = nn.Linear(10, 10)
    mask = torch.zeros(10, 10)
    mask[0] = 1
    prune.custom_from_mask(layer, "weight", mask)
    with torch.no_grad():
        layer.weight_orig[0, :5] = 0
    module = nn.Sequential(layer)
    fst.sparsify(module, measure=False)
    assert module[0].pattern.nnz == 10


def test_pruning_further_what_is_being_pruned(timed):
    timed(0.5)
    layer = nn.Linear(10, 10)
    prune.random_unstructured(layer, "weight", 0.5)
    module = nn.Sequential(layer).eval()
    before = layer.weight.detach().clone()
    fst.sparsify(module, 0.8)
    y = module(torch.eye(10)) - layer.bias
    assert int((y != 0).sum()) == 20
    assert torch.allclose(y.T[y.T != 0], before[y.T != 0], atol=1e-6)


class Mask(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


def test_parametrizations_with_a_mask_and_others():
    module = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)).eval()
    mask = (torch.rand(20, 20) > 0.9).float()
    parametrize.register_parametrization(module[0], "weight", Mask(mask))
    nn.utils.parametrizations.weight_norm(module[1])
    x = torch.randn(3, 20)
    expected = module(x)
    report = fst.sparsify(module, measure=False, threshold=0.5)
    assert type(module[0]) is fst.SparseLinear
    assert module[0].pattern.nnz == int(mask.sum())
    assert "parametrization (_WeightNorm)" in report.layers[1].note
    assert_close(module(x), expected)


def test_frozen_weights_stay_frozen():
    module = nn.Sequential(nn.Linear(20, 20))
    module[0].weight.requires_grad_(False)
    fst.sparsify(module, 0.8, measure=False)
    assert not module[0].values.requires_grad
    assert module[0].bias.requires_grad
    module(torch.randn(2, 20)).sum().backward()
    assert module[0].values.grad is None
    fst.densify(module)
    assert not module[0].weight.requires_grad


def test_hooks_go_with_the_layer():
    module, seen = nn.Sequential(nn.Linear(20, 20)), []
    handle = module[0].register_forward_hook(lambda layer, x, y: seen.append(type(layer).__name__))
    fst.sparsify(module, 0.8, measure=False)
    module(torch.randn(2, 20))
    assert seen == ["SparseLinear"]
    handle.remove()
    module(torch.randn(2, 20))
    assert len(seen) == 1


# ------------------------------------------------------------------------------------------------- shared weights


def test_layers_that_share_a_weight_are_replaced_together():
    module = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20)).eval()
    module[2].weight = module[0].weight
    masked(module)
    x = torch.randn(3, 20)
    expected = module(x)
    report = fst.sparsify(module, measure=False, threshold=0.5)
    assert len(report.replaced) == 2
    assert module[0].values is module[2].values
    assert module[0].indices is module[2].indices
    assert module[0].bias is not module[2].bias
    assert_close(module(x), expected)
    fst.densify(module)
    assert module[0].weight is module[2].weight
    assert_close(module(x), expected)


def test_a_weight_that_an_embedding_shares_stays():
    module = nn.ModuleDict({"embedding": nn.Embedding(20, 8), "head": nn.Linear(8, 20, bias=False)})
    module["head"].weight = module["embedding"].weight
    report = fst.sparsify(module, 0.9, measure=False)
    assert kinds(module) == {"embedding": "Embedding", "head": "Linear"}
    assert report.layers[0].note == "shares its weight with embedding"
    assert module["embedding"].weight.count_nonzero() == 160


def test_a_layer_at_several_places_stays_one():
    layer = nn.Linear(20, 20)
    module = nn.Sequential(layer, nn.Sequential(layer, nn.ReLU()))
    fst.sparsify(module, 0.9, measure=False)
    assert type(module[0]) is fst.SparseLinear
    assert module[0] is module[1][0]


# ------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_as_torch_computes_it(batch_first):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    nn.init.normal_(attention.in_proj_bias)
    ours = fst.MultiheadAttention.from_dense(attention)
    x, memory = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    if not batch_first:
        x, memory = x.transpose(0, 1), memory.transpose(0, 1)
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[:, 5:] = True
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    calls = [
        ((x, x, x), {}),
        ((x, memory, memory), {"key_padding_mask": padding}),
        ((x, memory, memory), {"key_padding_mask": padding, "need_weights": False}),
        ((x, x, x), {"attn_mask": causal, "average_attn_weights": False}),
        ((x, x, x), {"attn_mask": causal.float() * -5, "need_weights": False}),
        ((x, x, x), {"attn_mask": causal, "is_causal": True, "need_weights": False}),
        ((x, x, x), {"attn_mask": torch.randn(12, 5, 5)}),
        ((x[0], memory[0], memory[0]), {}),
    ]
    for arguments, keywords in calls:
        (y, weights), (expected, expected_weights) = ours(*arguments, **keywords), attention(*arguments, **keywords)
        assert_close(y, expected)
        assert (weights is None) == (expected_weights is None)
        if weights is not None:
            assert_close(weights, expected_weights)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("only", ["", "self_attn", "linear1"])
def test_encoders_of_torch(mode, only):
    """In evaluation mode they read their layers' dense weights, unless told otherwise."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    module = masked(nn.TransformerEncoder(layer, 2, enable_nested_tensor=True))
    getattr(module, mode)()
    x, padding = torch.randn(3, 5, 16), torch.zeros(3, 5, dtype=torch.bool)
    padding[:, 3:] = True
    with torch.no_grad():
        expected = module(x, src_key_padding_mask=padding)[:, :3]
        report = fst.sparsify(
            module, measure=False, threshold=0.5, example_inputs=x, filter_fn=lambda name, layer: only in name
        )
        assert report.replaced
        assert any(isinstance(m, SparseLayer) for m in module.modules())
        assert_close(module(x, src_key_padding_mask=padding)[:, :3], expected)
        fst.densify(module)
        assert type(module.layers[0].self_attn) is nn.MultiheadAttention
        assert_close(module(x, src_key_padding_mask=padding)[:, :3], expected)


def test_attention_that_stays_dense_is_torchs_own(timed):
    timed(0.5)
    attention = nn.MultiheadAttention(16, 4)
    module = nn.ModuleDict({"a": attention})
    fst.sparsify(module, 0.9)
    assert module["a"] is attention
    assert int(attention.in_proj_weight.count_nonzero()) == pytest.approx(77, abs=1)


def test_attention_of_other_kinds_is_left_alone():
    module = nn.ModuleDict(
        {"other": nn.MultiheadAttention(16, 4, kdim=8), "more": nn.MultiheadAttention(16, 4, add_bias_kv=True)}
    )
    report = fst.sparsify(module, 0.9, measure=False)
    assert {r.name: r.note for r in report.layers} == {
        "other": "keys or values have a size of their own", "more": "it adds keys",
    }  # fmt: skip


class Conv1D(nn.Module):
    """Hugging Face's linear layer of GPT-2, which keeps its weight transposed."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.weight, self.bias = nf, nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_linear_layer_of_gpt2(timed, factor):
    timed(factor)
    module = nn.Sequential(Conv1D(12, 20)).eval()
    x = torch.randn(3, 20)
    weight = module[0].weight.detach().clone()
    fst.sparsify(module, 0.75, example_inputs=x)
    y = module(x) - module[0].bias
    threshold = weight.abs().flatten().topk(60).values[-1]
    assert_close(y, x @ (weight * (weight.abs() >= threshold)))


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("keywords", "kind", "text"), [
    ({"sparsity": 1.0}, ValueError, "sparsity is 1.0"),
    ({"sparsity": "0.9"}, TypeError, "sparsity is '0.9'"),
    ({"threshold": 2}, ValueError, "threshold is 2, expected a number from 0 to 1"),
    ({"sparsity": 0.9, "method": "best"}, ValueError, "method is 'best', expected one of 'magnitude'"),
    ({"sparsity": 0.9, "scope": "all"}, ValueError, "scope is 'all', expected one of 'layer', 'global', 'erk'"),
    ({"sparsity": 0.9, "method": "wanda"}, ValueError, "example_inputs is None, expected inputs"),
    ({"sparsity": 0.9, "method": "sparsegpt"}, ValueError, "example_inputs is None, expected inputs"),
    ({"filter_fn": 3}, TypeError, "filter_fn is 3"),
    ({"sparsity": 0.9, "example_inputs": torch.zeros(2, 7)}, RuntimeError, "shapes cannot be multiplied"),
])  # fmt: skip
def test_bad_arguments_change_nothing(keywords, kind, text):
    module = nn.Sequential(nn.Linear(20, 20), nn.ModuleDict({"a": nn.MultiheadAttention(16, 4)}))
    before, state = kinds(module), copy.deepcopy(module.state_dict())
    with pytest.raises(kind, match=text):
        fst.sparsify(module, **keywords)
    assert kinds(module) == before
    assert all(torch.equal(a, state[name]) for name, a in module.state_dict().items())


def test_sparsegpt_is_for_linear_layers():
    with pytest.raises(ValueError, match=r"0 is a Conv2d, expected linear layers for SparseGPT"):
        fst.sparsify(nn.Sequential(nn.Conv2d(3, 4, 3)), 0.5, method="sparsegpt", example_inputs=torch.zeros(1, 3, 5, 5))
    with pytest.raises(ValueError, match="expected 'layer' or 'erk': SparseGPT compares weights of one layer"):
        fst.sparsify(network(), 0.5, method="sparsegpt", scope="global", example_inputs=X)


def test_nan_and_devices_are_refused():
    module = nn.Sequential(nn.Linear(20, 20))
    with torch.no_grad():
        module[0].weight[3, 4] = np.nan
    with pytest.raises(ValueError, match="0: a weight is NaN"):
        fst.sparsify(module, 0.9)
    with pytest.raises(ValueError, match=r"0.weight is on meta, expected the CPU"):
        fst.sparsify(nn.Sequential(nn.Linear(3, 3, device="meta")))
    with pytest.raises(ValueError, match="module is itself a Linear, expected a module around it"):
        fst.sparsify(nn.Linear(3, 3))
    with pytest.raises(TypeError, match="module is int"):
        fst.sparsify(3)


class Named(nn.Linear):
    """With a state of its own that its product does not read."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.init = "normal"


class Spelled(nn.Linear):
    """As Falcon's, which transformers mark."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self._is_initialized = True

    def forward(self, x):
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Dropping(nn.Linear):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


class Scaled(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale = 1.0

    def forward(self, x):
        return super().forward(x) * self.scale


class Adapted(nn.Linear):
    """An adapter that begins at zero."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.more = nn.Linear(*sizes)
        nn.init.zeros_(self.more.weight)
        nn.init.zeros_(self.more.bias)

    def forward(self, x):
        return super().forward(x) + self.more(x)


class Paired(nn.Linear):
    def forward(self, x, y):
        return super().forward(x) + y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [Named, Spelled])
def test_subclasses_that_compute_what_linear_does_take_part(kind, training, dtype):
    module = nn.Sequential(kind(20, 20)).to(dtype).train(training)
    report = fst.sparsify(module, 0.9, measure=False)
    assert kinds(module) == {"0": "SparseLinear"}
    assert [line.kind for line in report.layers] == [kind.__name__]
    assert module.training == training


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [Doubled, Dropping, Scaled, Adapted, Paired])
def test_other_subclasses_are_left_alone(kind, training):
    module = nn.Sequential(kind(20, 20), nn.Linear(20, 20)).train(training)
    report = fst.sparsify(module, 0.9, measure=False)
    assert [type(layer).__name__ for layer in module] == [kind.__name__, "SparseLinear"]
    assert report.layers[0].note == "a class of its own"
    assert module[0].training == training


class Tied(nn.Module):
    """Two layers of one weight, of which the first is pruned alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight
        prune.random_unstructured(self.first, "weight", 0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("both", [False, True])
def test_layers_of_one_weight_under_different_masks_stay(both):
    module, x = Tied(), torch.randn(3, 16)
    if both:
        prune.random_unstructured(module.second, "weight", 0.9)
    expected = module(x)
    report = fst.sparsify(module, threshold=0, measure=False)
    assert not report.replaced
    assert all("shares its weight" in line.note for line in report.layers)
    assert_close(module(x), expected)


def test_a_pruned_bias_stays_pruned():
    module = nn.Sequential(nn.Linear(16, 8))
    nn.init.normal_(module[0].bias)
    prune.random_unstructured(module[0], "weight", 0.9)
    prune.random_unstructured(module[0], "bias", 0.5)
    zeros = module[0].bias_mask == 0
    x, expected = torch.randn(3, 16), module(torch.zeros(3, 16))
    assert fst.sparsify(module, measure=False).replaced
    assert_close(module(torch.zeros(3, 16)), expected)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module(x).sum().backward()
    optimizer.step()
    assert not module(torch.zeros(1, 16))[:, zeros].any()
    assert module(torch.zeros(1, 16))[:, ~zeros].all()


def test_a_bias_that_a_parametrization_makes_keeps_its_layer():
    module = nn.Sequential(nn.Linear(16, 8))
    parametrize.register_parametrization(module[0], "bias", nn.Tanh())
    assert fst.sparsify(module, 0.9, measure=False).layers[0].note.startswith("beside a bias that a parametrization")
