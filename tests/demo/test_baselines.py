"""The baselines compute what the oracle computes, or a comparison with them would mean nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.sparse as sp

from fastsparse.demo.baselines import Baseline, Convolution, MaxPool, Product, Stage, fold_scale, with_relu
from fastsparse_kernels import reference


def _matrix(rng: np.random.Generator, rows: int, columns: int, density: float) -> sp.csr_array:
    dense = rng.standard_normal((rows, columns)) * (rng.random((rows, columns)) < density)
    return sp.csr_array(dense.astype(np.float64))


def _stages(rng: np.random.Generator) -> list[Stage]:
    return [
        Convolution(_matrix(rng, 5, 2 * 9, 1.0), rng.standard_normal(5), kernel=3, padding=1, relu=True),
        Convolution(_matrix(rng, 7, 5 * 9, 0.3), rng.standard_normal(7), kernel=3, padding=1, relu=True),
        MaxPool(2),
        Convolution(_matrix(rng, 6, 7 * 4, 0.4), rng.standard_normal(6), kernel=2, padding=0),
        Product(_matrix(rng, 4, 6 * 3 * 3, 0.2), rng.standard_normal(4), relu=True),
        Product(_matrix(rng, 3, 4, 1.0), rng.standard_normal(3)),
    ]


def _oracle(stages: Sequence[Stage], x: np.ndarray) -> np.ndarray:
    """The stages by the kernels' float64 oracles, in NCHW."""
    for stage in stages:
        if isinstance(stage, MaxPool):
            n, c, h, w = x.shape
            s = stage.size
            x = x.reshape(n, c, h // s, s, w // s, s).max(axis=(3, 5))
            continue
        weight = stage.weight
        if isinstance(stage, Convolution):
            x = reference.conv(
                weight.indptr,
                weight.indices,
                weight.data,
                weight.shape,
                x,
                kernel_size=(stage.kernel,) * 2,
                stride=(1, 1),
                padding=((stage.padding, stage.padding),) * 2,
                dilation=(1, 1),
                bias=stage.bias,
            )
        else:
            x = x.reshape(len(x), -1) @ weight.toarray().T + stage.bias
        x = np.maximum(x, 0) if stage.relu else x
    return x


@pytest.mark.parametrize("backend", ["scipy", "numpy"])
@pytest.mark.parametrize("batch", [1, 3])
def test_baseline_equals_oracle(backend, batch):
    rng = np.random.default_rng(batch)
    stages, x = _stages(rng), rng.standard_normal((batch, 2, 8, 8))
    expected = _oracle(stages, x)
    baseline = Baseline(stages, x.shape, backend, np.float64)
    for _ in range(2):  # the second call finds the buffers dirty
        np.testing.assert_allclose(baseline(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["scipy", "numpy"])
def test_baseline_in_float32(backend):
    rng = np.random.default_rng(7)
    stages, x = _stages(rng), rng.standard_normal((4, 2, 8, 8))
    got = Baseline(stages, x.shape, backend)(x.astype(np.float32))
    expected = _oracle(stages, x)
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_output_does_not_alias_buffers():
    rng = np.random.default_rng(1)
    stages, x = _stages(rng), rng.standard_normal((2, 2, 8, 8))
    baseline = Baseline(stages, x.shape, "numpy", np.float64)
    first = baseline(x)
    kept = first.copy()
    baseline(x + 1)
    np.testing.assert_array_equal(first, kept)


def test_products_multiply_every_matrix(monkeypatch):
    rng = np.random.default_rng(2)
    baseline = Baseline(_stages(rng), (2, 2, 8, 8), "numpy", np.float64)
    seen = []
    monkeypatch.setattr(np, "matmul", lambda a, b, out: seen.append((a.shape, b.shape)))
    baseline.products()
    assert seen == [
        ((5, 18), (18, 128)),
        ((7, 45), (45, 128)),
        ((6, 28), (28, 18)),
        ((4, 54), (54, 2)),
        ((3, 4), (4, 2)),
    ]


def test_wrong_input_shape():
    baseline = Baseline(_stages(np.random.default_rng(0)), (2, 2, 8, 8), "scipy")
    with pytest.raises(ValueError, match=r"^x has shape \(3, 2, 8, 8\), expected \(2, 2, 8, 8\)$"):
        baseline(np.zeros((3, 2, 8, 8), np.float32))


def test_pool_that_does_not_divide():
    with pytest.raises(ValueError, match="pooling of size 3 does not divide"):
        Baseline([MaxPool(3)], (1, 2, 8, 8), "numpy")


def test_fold_scale_keeps_the_pattern_and_scales_rows():
    rng = np.random.default_rng(3)
    stage = Product(_matrix(rng, 4, 9, 0.5), rng.standard_normal(4))
    scale, shift = np.array([2.0, 0.0, -1.0, 0.5]), rng.standard_normal(4)
    folded = fold_scale(stage, scale, shift)
    np.testing.assert_array_equal(folded.weight.indptr, stage.weight.indptr)
    np.testing.assert_array_equal(folded.weight.toarray(), stage.weight.toarray() * scale[:, None])
    np.testing.assert_array_equal(folded.bias, stage.bias * scale + shift)


def test_relu_after_pooling_is_refused():
    with pytest.raises(ValueError, match="relu after a pooling stage"):
        with_relu(MaxPool(2))
