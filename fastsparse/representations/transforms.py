"""Wavelet, cosine and Fourier analysis of signals, images and volumes, thresholded into sparse matrices.

The transforms are critically sampled: a sample has as many coefficients as numbers, in an array of the same shape.
Wavelets have periodic edges, without which an orthogonal wavelet transform is not orthogonal. (Symmetric extension, the
default of PyWavelets, makes more coefficients than numbers and does not preserve energy.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from fastsparse import checks, extras
from fastsparse.arguments import Axes, per_axis
from fastsparse.csr import CSR, csr
from fastsparse.representations.codes import (
    Codes,
    CodesLike,
    as_count,
    as_matrix,
    as_samples,
    energy,
    soft_threshold,
)
from fastsparse.runtime.threads import get_num_threads
from fastsparse.sparsity.selection import largest_of_each

Array = NDArray[Any]

_INVERTIBLE = 1e-6  # largest error of the reconstruction of an impulse
_ORTHOGONAL = 1e-9  # a synthesis whose norm differs by less from 1 preserves energy


class _Transform:
    """What all transforms share: thresholding between `analyze` and `synthesize`."""

    def __init__(self, shape: int | Sequence[int]) -> None:
        axes = max(1, len(shape)) if isinstance(shape, Sequence) else 1
        self._shape = per_axis(shape, axes, "shape", 1)
        self._size = math.prod(self._shape)
        self._bound = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, and of its coefficients."""
        return self._shape

    @property
    def energy_bound(self) -> float:
        """What the energy of coefficients grows by at most in synthesis; 1.0 for orthogonal transforms."""
        return self._bound

    @property
    def orthogonal(self) -> bool:
        """Whether energy is preserved (Parseval), so that errors of `encode` are exact and not a bound."""
        return self._bound == 1.0

    def analyze(self, x: ArrayLike) -> Array:
        """All coefficients.

        Parameters
        ----------
        x : array_like (samples, *shape)
            float32 and float64 are kept, other real numbers become float32.

        Returns
        -------
        ndarray (samples, *shape)

        Raises
        ------
        TypeError, ValueError
            When x has another shape, or holds anything but finite real numbers.
        """
        return self._analyze(as_samples(x, self._shape))

    def synthesize(self, coefficients: ArrayLike) -> Array:
        """Samples (samples, *shape) of coefficients (samples, *shape): the inverse of `analyze`."""
        return self._synthesize(as_samples(coefficients, self._shape, "coefficients"))

    def encode(
        self, x: ArrayLike, *, keep: float | None = None, threshold: ArrayLike | None = None, soft: bool = False
    ) -> Codes:
        """Large coefficients as a sparse matrix, one row for each sample.

        Parameters
        ----------
        x : array_like (samples, *shape)
        keep : int or float
            Keep the largest of each sample: an integer is their number, a float in (0, 1] their share.
        threshold : float or array_like (samples, 1), (samples, coefficients) or (coefficients,)
            Instead of `keep`: keep what is larger in magnitude.
        soft : bool
            Draw what stays towards 0 by `threshold` (Donoho, De-noising by soft-thresholding, 1995).

        Returns
        -------
        Codes
            ``matrix`` (samples, coefficients) in the order of ``analyze(x).reshape(samples, -1)``, without zeros.
            ``squared_error`` is the energy of what was dropped or drawn in, times `energy_bound`: the error of
            ``decode``, to rounding, where the transform is `orthogonal`, else an upper bound of it.

        Raises
        ------
        TypeError, ValueError
            When x does not fit, or not exactly one of `keep` and `threshold` is given.

        Examples
        --------
        >>> import numpy as np
        >>> from fastsparse.representations import DCT
        >>> ramp = np.arange(8.0)[None]
        >>> matrix, error = DCT(8).encode(ramp, keep=2)
        >>> matrix.nnz, bool(error[0] < 0.01 * np.sum(ramp**2))
        (2, True)
        """
        if (keep is None) == (threshold is None):
            raise ValueError(f"keep is {keep!r} and threshold is {threshold!r}, expected one of them")
        if checks.flag(soft, "soft") and keep is not None:
            raise ValueError("soft is for a threshold, expected threshold in place of keep")
        rows = self.analyze(x)
        rows = rows.reshape(len(rows), self._size)
        if keep is not None:
            kept = np.where(largest_of_each(np.abs(rows), as_count(keep, self._size)), rows, 0)
        else:
            level = self._as_threshold(threshold, rows)
            kept = soft_threshold(rows, level) if soft else np.where(np.abs(rows) > level, rows, 0)
        return Codes(csr(kept).to_scipy(), self._bound * energy(rows - kept))

    def decode(self, codes: CodesLike) -> Array:
        """Samples (samples, *shape) of coefficients in the order of `encode`.

        Parameters
        ----------
        codes : Codes, CSR, scipy.sparse matrix or array_like (samples, coefficients)
        """
        matrix = as_matrix(codes, self._size)
        rows = matrix.toarray() if isinstance(matrix, CSR) else matrix
        return self.synthesize(rows.reshape(len(rows), *self._shape))

    def _as_threshold(self, threshold: Any, rows: Array) -> Array:
        level = checks.real_array(threshold, "threshold").astype(rows.dtype)
        sizes = zip(level.shape[::-1], rows.shape[::-1])
        if level.ndim > 2 or not all(size in (1, whole) for size, whole in sizes):
            raise ValueError(
                f"threshold has shape {level.shape}, expected one that fits (samples, coefficients), {rows.shape}"
            )
        if not (level >= 0).all():
            raise ValueError("threshold holds negative numbers or NaN, expected numbers of at least 0")
        return level

    def _analyze(self, x: Array) -> Array:
        raise NotImplementedError

    def _synthesize(self, coefficients: Array) -> Array:
        raise NotImplementedError

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(1, len(self._shape) + 1))


class Wavelet(_Transform):
    """Discrete wavelet transform (Mallat, 1989) by PyWavelets, with periodic edges. Needs the extra ``wavelets``.

    Parameters
    ----------
    shape : int or sequence of int
        Shape of one sample; every axis is transformed.
    wavelet : str
        A discrete wavelet of PyWavelets: "haar", "db4", "sym4", "coif2" (orthogonal), "bior4.4" (JPEG 2000's), ...
    levels : int, optional
        Decompositions of the low-pass band; the most that `shape` allows by default. 2**levels divides every size, and
        the last band is not shorter than the filter.

    Raises
    ------
    ImportError
        Without PyWavelets.
    ValueError
        When `shape` does not allow `levels`, or the wavelet is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsparse.representations import Wavelet
    >>> step = np.repeat([[1.0, 3.0]], 8, axis=1)
    >>> Wavelet(16, "haar").encode(step, threshold=1e-9).matrix.nnz
    2
    """

    def __init__(self, shape: int | Sequence[int], wavelet: str = "db4", levels: int | None = None) -> None:
        super().__init__(shape)
        self._pywt = _pywavelets()
        self._wavelet = self._pywt.Wavelet(checks.choice(wavelet, "wavelet", self._pywt.wavelist(kind="discrete")))
        longest = self._pywt.dwt_max_level(min(self._shape), self._wavelet)
        most = min(longest, *((size & -size).bit_length() - 1 for size in self._shape))
        impulse = np.eye(1, 2 * self._wavelet.dec_len)[0]
        pair = self._pywt.dwt(impulse, self._wavelet, "periodization")
        if np.abs(self._pywt.idwt(*pair, self._wavelet, "periodization") - impulse).max() > _INVERTIBLE:
            raise ValueError(f"wavelet {wavelet!r} does not reconstruct what it analyses, expected one that does")
        self._levels = most if levels is None else checks.integer(levels, "levels", 0)
        if not 1 <= self._levels <= most:
            wanted = f"levels from 1 to {most}" if most else "even sizes that are longer than its filter"
            raise ValueError(
                f"shape {self._shape} and levels {levels} do not fit wavelet {wavelet!r}, expected {wanted} "
                "(2**levels divides every size): crop or pad the samples"
            )
        one = np.zeros((1, *self._shape))
        lowest, *others = self._pywt.coeffs_to_array(self._decompose(one), axes=self._axes)[1]
        samples = (slice(None),)
        self._slices = [samples + lowest[1:], *({k: samples + v[1:] for k, v in level.items()} for level in others)]
        bound = math.prod(
            max(1.0, self._synthesis_norm(size >> level)) for level in range(self._levels) for size in self._shape
        )
        self._bound = 1.0 if bound < 1 + _ORTHOGONAL else bound

    @property
    def levels(self) -> int:
        """Number of decompositions."""
        return self._levels

    def _decompose(self, x: Array) -> Any:
        return self._pywt.wavedecn(x, self._wavelet, "periodization", self._levels, axes=self._axes)

    def _analyze(self, x: Array) -> Array:
        return np.asarray(self._pywt.coeffs_to_array(self._decompose(x), axes=self._axes)[0])

    def _synthesize(self, coefficients: Array) -> Array:
        bands = [coefficients[part] for part in self._slices[:1]]
        bands += [{name: coefficients[part] for name, part in level.items()} for level in self._slices[1:]]
        return np.asarray(self._pywt.waverecn(bands, self._wavelet, "periodization", axes=self._axes))

    def _synthesis_norm(self, size: int) -> float:
        """Squared norm of one level's synthesis along an axis: the largest of its 2 x 2 matrices, one per frequency."""
        responses = []
        for taps in (self._wavelet.rec_lo, self._wavelet.rec_hi):
            periodic = np.bincount(np.arange(len(taps)) % size, taps, size)
            responses.append(np.fft.fft(periodic).reshape(2, size // 2) / math.sqrt(2))  # frequencies f and f + 1/2
        return float(np.linalg.norm(np.array(responses).transpose(2, 0, 1), 2, axis=(1, 2)).max()) ** 2


def _pywavelets() -> Any:
    extras.require("Wavelet", "wavelets", pywt="PyWavelets")
    import pywt

    return pywt


class DCT(_Transform):
    """Discrete cosine transform of type II, orthonormal, by scipy.fft (Ahmed, Natarajan and Rao, 1974).

    Parameters
    ----------
    shape : int or sequence of int
        Shape of one sample; every axis is transformed.
    block : int or sequence of int, optional
        Transform blocks of this size apart from each other, as JPEG does with 8; the whole sample by default.

    Raises
    ------
    ValueError
        When `block` does not divide `shape`.
    """

    def __init__(self, shape: int | Sequence[int], block: Axes | None = None) -> None:
        super().__init__(shape)
        self._block = self._shape if block is None else per_axis(block, len(self._shape), "block", 1)
        if any(size % own for size, own in zip(self._shape, self._block)):
            raise ValueError(f"block is {block!r}, expected divisors of the sizes in shape {self._shape}")

    def _analyze(self, x: Array) -> Array:
        return self._blockwise(fft.dctn, x)

    def _synthesize(self, coefficients: Array) -> Array:
        return self._blockwise(fft.idctn, coefficients)

    def _blockwise(self, transform: Any, x: Array) -> Array:
        pairs = [part for size, own in zip(self._shape, self._block) for part in (size // own, own)]
        axes = [2 * axis for axis in self._axes]
        blocks = transform(x.reshape(len(x), *pairs), axes=axes, norm="ortho", workers=get_num_threads())
        return np.asarray(blocks.reshape(x.shape))


class Fourier(_Transform):
    """Discrete Fourier transform of real samples in its real orthogonal form, by scipy.fft.

    With F the unitary transform, coefficients are F.real - F.imag (Hartley, 1942): as many real numbers as the sample
    has. The energy at a frequency k, that of F at k and -k, is that of the coefficients at k and -k.

    Parameters
    ----------
    shape : int or sequence of int
        Shape of one sample; every axis is transformed.
    """

    def _analyze(self, x: Array) -> Array:
        transformed = fft.fftn(x, axes=self._axes, norm="ortho", workers=get_num_threads())
        return np.asarray(transformed.real - transformed.imag)

    def _synthesize(self, coefficients: Array) -> Array:
        return self._analyze(coefficients)  # the transform is its own inverse
