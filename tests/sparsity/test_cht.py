"""CHT: the CH3-L3 score against a count of all paths, exchanges against a restatement, the soft rule's chances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import nn
from fastsparse.sparsity import CHT, mask_pattern
from fastsparse.sparsity.growth import PathScores, offered
from fastsparse.sparsity.selection import TopK
from fastsparse.training import SGD, fit


def counted(links: Any) -> Any:
    """CH3-L3 as the paper states it: paths and the local community of every pair of nodes, one by one."""
    size = sum(links.shape)
    graph = np.zeros((size, size), bool)
    graph[: len(links), len(links) :] = links
    graph |= graph.T
    scores = np.zeros((size, size))
    for u in range(size):
        for v in np.flatnonzero(~graph[u]):
            paths = [(a, b) for a in np.flatnonzero(graph[u]) for b in np.flatnonzero(graph[v]) if graph[a, b]]
            community = {node for path in paths for node in path if node not in (u, v)}
            outside = {
                z: sum(n not in community and n not in (u, v) for n in np.flatnonzero(graph[z])) for z in community
            }
            scores[u, v] = sum(1 / np.sqrt((1 + outside[a]) * (1 + outside[b])) for a, b in paths if a != v and b != u)
    return scores[: len(links), len(links) :]


@pytest.mark.parametrize("density", [0.0, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("shape", [(7, 11), (12, 5), (1, 4)])
def test_scores_are_those_of_all_paths_counted(shape: Any, density: float, rng: Any) -> None:
    links = rng.random(shape) < density
    found = PathScores(mask_pattern(links))
    want = counted(links)
    for first, stop in ((0, len(links)), (len(links) // 2, len(links))):  # blocks leave nothing behind
        got = found.rows(first, stop)
        np.testing.assert_allclose(got[~links[first:stop]], want[first:stop][~links[first:stop]], rtol=1e-12)


def test_an_exchange_takes_what_the_rest_of_the_pattern_predicts(rng: Any) -> None:
    layer = nn.SparseLinear(20, 15, sparsity=0.8, dtype="float64", rng=0)
    model = nn.Sequential(layer)
    optimizer = SGD(model.parameters(), 0.1, 0.9)
    layer.backward(layer(rng.normal(size=(4, 20))))
    optimizer.step()
    before, mask, momentum = layer.weight.toarray(), _mask(layer), dict(layer.values.state)
    CHT(model, drop_fraction=0.25, every=1).step(1)
    count = layer.pattern.nnz // 4
    rest = mask & (abs(before) > np.sort(abs(before[mask]))[count - 1])
    scores = np.where(rest, -1, counted(rest))
    new, after = _mask(layer), layer.weight.toarray()
    assert new.sum() == mask.sum()
    assert new[rest].all()
    grown = new & ~rest
    assert grown.sum() == count
    assert scores[grown].min() >= scores[~new & ~rest].max() > 0
    assert (grown & mask).any(), "of what was dropped some is predicted"
    np.testing.assert_array_equal(after[new & mask], before[new & mask])
    assert not after[new & ~mask].any()
    state = layer.values.state
    assert state.keys() == momentum.keys()
    for name in state:
        old = np.zeros(mask.shape)
        old[mask] = momentum[name]
        np.testing.assert_array_equal(state[name], np.where(mask, old, 0)[new])


@pytest.mark.parametrize("soft", [False, True])
def test_where_no_paths_lead_the_rest_is_random(soft: bool) -> None:
    layer = nn.SparseLinear(40, 40, pattern=mask_pattern(np.eye(40)), rng=0)
    CHT(nn.Sequential(layer), drop_fraction=0.5, every=1, soft=soft, rng=0).step(1)
    assert layer.pattern.nnz == 40
    assert _mask(layer)[~np.eye(40, dtype=bool)].sum() >= 15


def test_soft_chances_are_in_proportion_to_scores() -> None:
    links = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 1, 0]], bool)
    pattern, rng = mask_pattern(links), np.random.default_rng(0)
    want = np.where(links, 0, counted(links)).ravel()
    drawn = [offered(TopK(pattern, 1, above=0.0), pattern, [PathScores(pattern, rng)]).result()[0] for _ in range(4000)]
    shares = np.bincount(np.concatenate(drawn), minlength=16) / 4000
    np.testing.assert_allclose(shares, want / want.sum(), atol=0.03)
    assert not shares[want == 0].any()


def test_soft_strengths_sharpen_in_the_course_of_training() -> None:
    model = nn.Sequential(nn.SparseLinear(10, 10, rng=0))
    algorithm = CHT(model, soft=True, steps=100, rng=0)
    magnitudes = np.array([1.0, 2.0])
    for step, odds in ((0, 2.0), (50, 4.0), (100, 8.0)):
        wins = np.mean([np.argmax(algorithm._softened(magnitudes, step)) for _ in range(4000)])
        assert abs(wins - odds / (1 + odds)) < 0.03
    with pytest.raises(TypeError, match=r"^soft is 1, expected True or False$"):
        CHT(model, soft=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("soft", [False, True])
def test_training_at_any_density_keeps_the_number_of_nonzeros(soft: bool, rng: Any) -> None:
    model = nn.Sequential(
        nn.SparseConv1d(3, 8, 3, sparsity=0.5, rng=0), nn.Flatten(), nn.SparseLinear(64, 5, sparsity=0.95, rng=1)
    )
    before = [layer.pattern for layer in (model[0], model[2])]
    data = rng.normal(size=(32, 3, 10)).astype(np.float32), rng.integers(0, 5, 32)
    optimizer = SGD(model.parameters(), 0.05)
    fit(model, data, epochs=4, optimizer=optimizer, sparsity=CHT(model, every=1, soft=soft, rng=0), progress=False)
    for layer, pattern in zip((model[0], model[2]), before):
        assert layer.pattern != pattern
        assert layer.pattern.nnz == pattern.nnz
        fs.csr(layer.weight.toarray())  # a valid matrix


def _mask(layer: Any) -> Any:
    mask = np.zeros(layer.pattern.shape, bool)
    mask[layer.pattern.rows(), layer.pattern.indices] = True
    return mask
