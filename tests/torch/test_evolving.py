"""SET, RigL and pruning of fastsparse.sparsity on torch modules: as on models of fs.nn."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse.sparsity import CHT, SET, ConstantSparsity, GradualPruning, PolynomialDecay, RigL
from fastsparse.torch import pruning
from fastsparse.training import SGD, Adam, cross_entropy


def model(dtype: str = "float64") -> fs.nn.Sequential:
    return fs.nn.Sequential(
        fs.nn.SparseConv2d(2, 6, 3, stride=2, padding=1, groups=2, sparsity=0.6, activation="relu", dtype=dtype, rng=0),
        fs.nn.Flatten(),
        fs.nn.SparseLinear(54, 20, sparsity=0.8, activation="tanh", dtype=dtype, rng=1),
        fs.nn.SparseLinear(20, 4, sparsity=0.5, dtype=dtype, rng=2),
    )


def patterns(network) -> list[fs.Pattern]:
    if isinstance(network, nn.Module):
        return [layer.pattern for layer in network.modules() if isinstance(layer, fst.layers.SparseLayer)]
    return [p.pattern for _, p in network.named_parameters() if p.pattern is not None]


ALGORITHMS = {
    "SET": lambda m: SET(m, every=2, drop_fraction=0.4, steps=12, rng=5),
    "RigL": lambda m: RigL(m, every=2, drop_fraction=0.4, steps=12),
    "CHT": lambda m: CHT(m, every=2, drop_fraction=0.4, steps=12, soft=True, rng=5),
    "gradual": lambda m: GradualPruning(m, PolynomialDecay(0.5, 0.95, 0, 8, frequency=2)),
    "global": lambda m: GradualPruning(m, ConstantSparsity(0.9, frequency=3), scope="global"),
}
OPTIMIZERS = {
    "SGD": (lambda p: SGD(p, 0.05, 0.9), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)),
    "Adam": (lambda p: Adam(p, 0.01), lambda p: torch.optim.Adam(p, 0.01)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_torch_modules_evolve_as_models_do(algorithm, optimizer, rng):
    """The same patterns and values after each step: state of the optimizer has followed its nonzeros, too."""
    ours = model()
    theirs = fst.to_torch(ours)
    step_ours, step_theirs = ALGORITHMS[algorithm](ours), ALGORITHMS[algorithm](theirs)
    make_ours, make_theirs = OPTIMIZERS[optimizer]
    optimizer_ours, optimizer_theirs = make_ours(ours.parameters()), make_theirs(theirs.parameters())
    parameters = list(theirs.parameters())
    before = patterns(ours)
    for step in range(1, 9):
        optimizer_ours.zero_grad()
        optimizer_theirs.zero_grad()
        for _ in range(2):  # accumulated
            x, y = rng.standard_normal((8, 2, 6, 6)), rng.integers(0, 4, 8)
            loss, grad = cross_entropy(ours(x), y)
            ours.backward(grad, need_input=False)
            out = nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(y))
            out.backward()
            assert out.item() == pytest.approx(loss, rel=1e-9)
        for network, taken in ((ours, optimizer_ours), (theirs, optimizer_theirs)):
            taken.step()
            (step_ours if network is ours else step_theirs).step(step)
        assert patterns(ours) == patterns(theirs)
    assert patterns(ours) != before
    assert all(a is b for a, b in zip(theirs.parameters(), parameters)), "optimizers hold them"
    np.testing.assert_allclose(theirs[-1].values.detach(), ours[-1].values.value, rtol=1e-6)
    for parameter in theirs.parameters():
        state = optimizer_theirs.state[parameter]
        assert all(t.shape == parameter.shape for t in state.values() if isinstance(t, torch.Tensor) and t.ndim)


def test_magnitude_pruning_of_a_module():
    layers = nn.Sequential(fst.SparseLinear(30, 20, sparsity=0.0), nn.Linear(20, 20), fst.SparseLinear(20, 5))
    largest = layers[0].to_dense().weight.detach().abs().flatten().topk(60).indices.sort().values
    fs.sparsity.magnitude_prune(layers, 0.9, exclude="2")
    pattern = layers[0].pattern
    assert pattern.rows() * 30 + pattern.indices == pytest.approx(largest.numpy())
    assert layers[2].pattern.nnz == 10
    assert layers[1].weight.count_nonzero() == 400
    with pytest.raises(ValueError, match="exclude names 'x'"):
        fs.sparsity.magnitude_prune(layers, 0.9, exclude="x")
    with pytest.raises(ValueError, match="model has no sparse layer"):
        fs.sparsity.magnitude_prune(nn.Linear(3, 3), 0.9)


def test_layers_that_share_values_evolve_together():
    first = fst.SparseLinear(16, 16, sparsity=0.5)
    second = copy.deepcopy(first)
    pruning._share(first, second)
    module = nn.Sequential(first, nn.Tanh(), second)
    steps = RigL(module, every=1)
    assert len(steps.parameters) == 1
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    before = first.pattern
    for step in range(1, 3):
        module(torch.randn(5, 16)).sum().backward()
        optimizer.step()
        steps.step(step)
        assert first.pattern == second.pattern
    assert first.pattern != before
    assert first.values is second.values


def test_layers_that_share_values_alone_are_refused():
    first = fst.SparseLinear(16, 16, sparsity=0.5)
    second = fst.SparseLinear(16, 16, pattern=first.pattern)
    second.values = first.values
    with pytest.raises(ValueError, match=r"0\.values and 1\.values are one parameter, expected layers that"):
        fs.sparsity.magnitude_prune(nn.Sequential(first, second), 0.9)


def test_growing_in_compiled_modules():
    module = nn.Sequential(fst.SparseLinear(24, 12, sparsity=0.7), nn.ReLU(), fst.SparseLinear(12, 4, sparsity=0.7))
    twin = copy.deepcopy(module)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 24)
    for network, run in ((module, module), (twin, compiled)):
        steps = RigL(network, every=2)
        for step in range(1, 5):
            run(x).square().sum().backward()
            steps.step(step)
    assert patterns(module) == patterns(twin)


def test_an_algorithm_that_begins_in_the_midst_of_a_training():
    layer = fst.SparseLinear(24, 12, sparsity=0.7)
    before, algorithm = layer.pattern, RigL(layer, every=8)
    algorithm.begin(None, made=7)
    layer(torch.randn(6, 24)).square().sum().backward()
    algorithm.step(8)
    assert layer.pattern != before


def test_growing_without_a_backward_pass_says_so():
    layer = fst.SparseLinear(24, 12, sparsity=0.7)
    with pytest.raises(RuntimeError, match="values: no backward pass was kept for growing"):
        RigL(layer, every=1).step(1)


def test_what_is_kept_for_growing_is_a_copy_and_is_dropped():
    layer = fst.SparseLinear(24, 12, sparsity=0.7)
    steps = RigL(layer, every=2)
    x = torch.randn(6, 24)
    structure = fst.operators.structure_of(layer.indptr, layer.indices, 24)
    layer(x).sum().backward()
    assert not structure.gradients
    steps.step(1)
    layer(x).sum().backward()
    assert not np.shares_memory(structure.gradients[0]._x, x.numpy())
    steps.step(2)
    assert not structure.gradients
    assert layer.values.grad is None
