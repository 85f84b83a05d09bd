"""Thresholded transforms: they invert, tell their error, and keep what they should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import fft, sparse

import fastsparse as fs
from fastsparse.representations import DCT, Codes, Fourier, Wavelet

pywt = pytest.importorskip("pywt")

ORTHOGONAL: list[Any] = [
    Wavelet(64, "db4"),
    Wavelet((16, 24), "haar", levels=2),
    Wavelet((8, 8, 8), "sym2"),
    Wavelet((12, 20), "coif1"),
    DCT(7),
    DCT((5, 6, 4)),
    DCT((16, 24), block=8),
    DCT((16, 24), block=(4, 24)),
    Fourier(9),
    Fourier((6, 5)),
    Fourier((4, 3, 2)),
]
BIORTHOGONAL: list[Any] = [Wavelet((20, 24), "bior4.4"), Wavelet(64, "rbio3.3"), Wavelet((16, 16), "bior2.2")]
TRANSFORMS = ORTHOGONAL + BIORTHOGONAL


def _named(transform: Any) -> str:
    return f"{type(transform).__name__}{transform.shape}"


each = pytest.mark.parametrize("transform", TRANSFORMS, ids=_named)


def _samples(transform: Any, seed: int, dtype: str = "d", count: int = 3) -> Any:
    x = np.random.default_rng(seed).standard_normal((count, *transform.shape)).cumsum(axis=-1)
    return x.astype(dtype)


def _squares(x: Any) -> Any:
    return (np.asarray(x, float) ** 2).reshape(len(x), -1).sum(axis=1)


@each
@pytest.mark.parametrize("dtype", ["f", "d"])
def test_synthesis_inverts_analysis(transform: Any, dtype: str) -> None:
    x = _samples(transform, 0, dtype)
    coefficients = transform.analyze(x)
    assert (coefficients.shape, coefficients.dtype) == (x.shape, x.dtype)
    back = transform.synthesize(coefficients)
    assert back.dtype == x.dtype
    np.testing.assert_allclose(back, x, atol=(1e-5 if dtype == "f" else 1e-10) * np.abs(x).max())
    assert transform.encode(x, keep=1.0).squared_error.max() == 0
    assert transform.analyze(x[:0]).shape == (0, *transform.shape)


@each
def test_the_bound_of_energy_is_the_norm_of_the_synthesis(transform: Any) -> None:
    size = int(np.prod(transform.shape))
    matrix = transform.synthesize(np.eye(size).reshape(size, *transform.shape)).reshape(size, size)
    norm = np.linalg.norm(matrix, 2) ** 2
    assert transform.orthogonal == (transform not in BIORTHOGONAL)
    if transform.orthogonal:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-11)
        assert transform.energy_bound == 1
    else:
        assert 1.1 < norm <= transform.energy_bound * (1 + 1e-12)


@pytest.mark.parametrize("name", ["db1", "sym5", "bior1.1", "bior4.4", "rbio2.4", "bior3.1"])
def test_the_bound_of_one_level_is_met(name: str) -> None:
    transform = Wavelet(64, name, levels=1)
    assert np.linalg.norm(transform.synthesize(np.eye(64)), 2) ** 2 == pytest.approx(transform.energy_bound, rel=1e-9)


@given(st.sampled_from(TRANSFORMS), st.integers(0, 2**32), st.floats(0.01, 1.0), st.sampled_from("fd"), st.data())
def test_errors_are_told(transform: Any, seed: int, share: float, dtype: str, data: Any) -> None:
    x = _samples(transform, seed, dtype)
    level = float(np.quantile(np.abs(transform.analyze(x)), share))
    chosen = data.draw(st.sampled_from([{"keep": share}, {"threshold": level}, {"threshold": level, "soft": True}]))
    codes = transform.encode(x, **chosen)
    assert isinstance(codes, Codes)
    assert codes.matrix.dtype == x.dtype
    error = _squares(transform.decode(codes) - x)
    # Each side is off by rounding of the coefficients: the squared distance of points that are eps * |x| apart.
    eps = max(50 * float(np.finfo(dtype).eps), 1e-10)  # taps of filters are tabulated to about 11 digits
    rounding = eps**2 * _squares(x) + 2 * eps * np.sqrt(_squares(x) * error)
    if transform.orthogonal:
        np.testing.assert_array_less(np.abs(error - codes.squared_error), rounding)
    else:
        np.testing.assert_array_less(error, codes.squared_error + rounding)


@given(st.sampled_from(TRANSFORMS), st.integers(0, 2**32), st.integers(1, 20))
def test_what_is_kept(transform: Any, seed: int, count: int) -> None:
    x = _samples(transform, seed)
    rows = transform.analyze(x).reshape(len(x), -1)
    count = min(count, rows.shape[1])
    matrix = transform.encode(x, keep=count).matrix
    assert (np.diff(matrix.indptr) == count).all()
    level = np.sort(np.abs(rows), axis=1)[:, -count, None]
    np.testing.assert_array_equal(matrix.toarray(), np.where(np.abs(rows) >= level, rows, 0))
    hard = transform.encode(x, threshold=level).matrix.toarray()
    np.testing.assert_array_equal(hard, np.where(np.abs(rows) > level, rows, 0))
    soft = transform.encode(x, threshold=level, soft=True).matrix.toarray()
    np.testing.assert_allclose(soft, np.sign(rows) * np.maximum(np.abs(rows) - level, 0), rtol=0, atol=1e-12)


def test_coefficients_are_those_of_the_libraries() -> None:
    image = _samples(DCT((16, 32)), 1)
    np.testing.assert_allclose(DCT((16, 32)).analyze(image), fft.dctn(image, axes=(1, 2), norm="ortho"), atol=1e-12)
    blocks = DCT((16, 32), block=8).analyze(image)
    np.testing.assert_allclose(blocks[1, 8:, 16:24], fft.dctn(image[1, 8:, 16:24], norm="ortho"), atol=1e-12)
    bands = pywt.wavedecn(image[2], "db2", "periodization", Wavelet((16, 32), "db2").levels)
    expected = pywt.coeffs_to_array(bands)[0]
    np.testing.assert_allclose(Wavelet((16, 32), "db2").analyze(image)[2], expected, atol=1e-12)
    found = Fourier(31).analyze(image[0, :, :31])
    spectrum = fft.fft(image[0, :, :31], norm="ortho")
    np.testing.assert_allclose(found**2 + found[:, -np.arange(31)] ** 2, 2 * np.abs(spectrum) ** 2, atol=1e-10)


def test_ties_go_to_the_first_and_keep_means_number_or_share() -> None:
    x = np.ones((2, 4))
    transform = DCT(4, block=1)
    assert transform.encode(x, keep=2).matrix.indices.tolist() == [0, 1, 0, 1]
    assert transform.encode(x, keep=0.5).matrix.nnz == 4
    assert transform.encode(x, keep=1e-9).matrix.nnz == 2, "one at least"
    assert transform.encode(np.zeros((2, 4)), keep=3).matrix.nnz == 0
    assert transform.encode(x.astype(np.uint8), keep=1).matrix.dtype == np.float32


def test_all_forms_of_codes_are_decoded() -> None:
    transform = Wavelet((8, 8), "haar")
    codes = transform.encode(_samples(transform, 3), keep=0.2)
    wanted = transform.decode(codes)
    for form in (codes.matrix, fs.csr(codes.matrix), codes.matrix.toarray(), sparse.csc_matrix(codes.matrix)):
        np.testing.assert_array_equal(transform.decode(form), wanted)


def test_codes_feed_functions_and_training() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = rng.standard_normal((60, 64)) + np.where(y, 2, -2)[:, None] * np.sin(np.arange(64) / 3)
    codes = Wavelet(64, "sym4").encode(x.astype("f"), keep=8)
    W = fs.csr(rng.standard_normal((5, 64)), "f")
    np.testing.assert_allclose(fs.linear(codes.matrix, W), codes.matrix @ W.toarray().T, rtol=1e-4, atol=1e-4)
    model = fs.nn.Sequential(fs.nn.SparseLinear(64, 2, sparsity=0.5, rng=0))
    optimizer = fs.training.Adam(model.parameters(), 0.02)
    data = (codes.matrix, y)
    history = fs.training.fit(
        model, data, epochs=30, batch_size=20, optimizer=optimizer, loss=fs.training.cross_entropy, progress=False
    )
    assert history["accuracy"][-1] > 0.95


WRONG: list[tuple[Any, str]] = [
    (lambda: DCT(0), r"shape is 0, expected an integer from 1"),
    (lambda: DCT(()), r"shape is \(\)"),
    (lambda: DCT((8, "a")), "shape is"),  # type: ignore[arg-type]
    (lambda: DCT((8, 8), block=3), r"block is 3, expected divisors of the sizes in shape \(8, 8\)"),
    (lambda: Wavelet(64, "nonsense"), "nonsense"),
    (lambda: Wavelet(64, "dmey"), "'dmey' does not reconstruct"),
    (lambda: Wavelet(63), r"shape \(63,\) and levels None do not fit wavelet 'db4', expected even sizes"),
    (lambda: Wavelet(4), "even sizes that are longer than its filter"),
    (lambda: Wavelet((64, 8), "haar", levels=4), "expected levels from 1 to 3"),
    (lambda: Wavelet(64, "haar", levels=0), "expected levels from 1 to 6"),
    (lambda: DCT(8).encode(np.ones((2, 7)), keep=1), r"x has shape \(2, 7\), expected \(samples, 8\)"),
    (lambda: DCT(8).encode(np.ones(8), keep=1), r"x has shape \(8,\), expected \(samples, 8\)"),
    (lambda: DCT(2).encode([[1.0, np.nan]], keep=1), "x holds NaN or infinity"),
    (lambda: DCT(2).encode([[1.0, np.inf]], keep=1), "x holds NaN or infinity"),
    (lambda: DCT(2).encode([[1.0, 2.0]]), "keep is None and threshold is None, expected one of them"),
    (lambda: DCT(2).encode([[1.0, 2.0]], keep=1, threshold=1), "keep is 1 and threshold is 1, expected one of them"),
    (lambda: DCT(2).encode([[1.0, 2.0]], keep=1, soft=True), "soft is for a threshold"),
    (lambda: DCT(2).encode([[1.0, 2.0]], threshold=-1), "threshold holds negative"),
    (lambda: DCT(2).encode([[1.0, 2.0]], threshold=np.nan), "threshold holds negative numbers or NaN"),
    (lambda: DCT(2).encode([[1.0, 2.0]], threshold=[1, 2, 3]), r"threshold has shape \(3,\)"),
    (lambda: DCT(2).encode([[1.0, 2.0]], threshold=[[1], [2]]), r"threshold has shape \(2, 1\)"),
    (lambda: DCT(2).decode(np.ones((1, 3))), r"codes has shape \(1, 3\), expected \(samples, 2\)"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_wrong_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("keep", [0, 9, -1, 0.0, 1.5, np.nan, True, "3"])
def test_wrong_keep(keep: Any) -> None:
    with pytest.raises(ValueError, match=r"keep is .* expected an integer from 1 to 8 or a share"):
        DCT(8).encode(np.ones((1, 8)), keep=keep)


def test_wrong_types() -> None:
    for x in (np.ones((1, 2), complex), np.array([["a", "b"]]), np.ma.ones((1, 2)), fs.csr(np.ones((1, 2)))):
        with pytest.raises(TypeError, match="x"):
            DCT(2).encode(x, keep=1)
