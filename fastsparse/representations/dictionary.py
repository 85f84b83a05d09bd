"""Sparse coding: samples as combinations of few atoms of a dictionary, and dictionaries that are learned."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from fastsparse import checks, extras
from fastsparse.arguments import is_sparse
from fastsparse.checks import as_array
from fastsparse.csr import CSR, MatrixLike, as_csr, csr
from fastsparse.functional import matmul
from fastsparse.representations.codes import (
    Codes,
    CodesLike,
    as_count,
    as_matrix,
    as_samples,
    energy,
    soft_threshold,
)

Array = NDArray[Any]

_BLOCK = 2**22  # coefficients that are computed at once: a bound of memory
_FEW_FEATURES = 128  # codes of one iteration are multiplied once: with fewer, as dense ones, without a plan
_CHECK = 10  # iterations between two looks at the duality gap


class Dictionary:
    """Atoms that samples are combined of: x is about codes @ atoms.

    Parameters
    ----------
    atoms : array_like, scipy.sparse matrix or CSR (atoms, features)
        float32 and float64 are kept, other real numbers become float32. No atom is 0. Sparse atoms stay sparse.

    Raises
    ------
    TypeError, ValueError
        When `atoms` is no matrix of finite real numbers, or has a row of zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsparse.representations import Dictionary
    >>> dictionary = Dictionary(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    >>> dictionary.encode([[3.0, 4.0]], keep=1).matrix.toarray()
    array([[0., 0., 5.]])
    """

    def __init__(self, atoms: MatrixLike) -> None:
        self._atoms: Any = as_csr(atoms, "atoms") if is_sparse(atoms) else as_array(atoms, "atoms")
        if self._atoms.ndim != 2 or 0 in self._atoms.shape:
            raise ValueError(f"atoms has shape {self._atoms.shape}, expected (atoms, features), neither of them 0")
        if not isinstance(self._atoms, CSR):
            self._atoms = as_samples(self._atoms, self._atoms.shape[1:], "atoms").copy()
        gram = matmul(self._atoms, self._atoms.T) if isinstance(self._atoms, CSR) else self._atoms @ self._atoms.T
        self._gram = gram.toarray() if isinstance(gram, CSR) else gram
        self._norms = np.sqrt(np.diag(self._gram))
        if not (np.isfinite(self._norms).all() and self._norms.all()):
            raise ValueError("atoms has a row of zeros, or numbers whose squares are not finite or not above 0")
        self._steepest = float(np.linalg.eigvalsh(self._gram)[-1])

    @property
    def atoms(self) -> Any:
        """The atoms (atoms, features): an array, or a CSR."""
        return self._atoms

    @classmethod
    def learn(
        cls,
        x: ArrayLike,
        atoms: int,
        *,
        alpha: float = 1.0,
        epochs: int = 10,
        batch_size: int = 256,
        rng: int | None = None,
    ) -> Dictionary:
        """Learn atoms of norm 1 at most from samples, by scikit-learn's MiniBatchDictionaryLearning.

        Parameters
        ----------
        x : array_like (samples, features)
        atoms : int
        alpha : float
            Weight of the L1 norm while learning: larger, sparser.
        epochs, batch_size : int
            Passes over the samples at most, and samples of a step.
        rng : int, optional

        Raises
        ------
        ImportError
            Without scikit-learn (extra ``sklearn``).

        Notes
        -----
        J. Mairal, F. Bach, J. Ponce, G. Sapiro, Online dictionary learning for sparse coding, ICML 2009.
        """
        extras.require("Dictionary.learn", "sklearn", sklearn="scikit-learn")
        from sklearn.decomposition import MiniBatchDictionaryLearning
        from sklearn.exceptions import ConvergenceWarning

        samples = _as_rows(x)
        atoms, epochs = checks.integer(atoms, "atoms"), checks.integer(epochs, "epochs", 0)
        batch_size, alpha = checks.integer(batch_size, "batch_size"), checks.number(alpha, "alpha")
        seed = None if rng is None else checks.integer(rng, "rng", 0, 2**32 - 1)
        learner = MiniBatchDictionaryLearning(
            atoms, alpha=alpha, max_iter=epochs, batch_size=batch_size, fit_algorithm="cd", random_state=seed
        )
        with warnings.catch_warnings():
            # The codes of one step need not be exact.
            warnings.simplefilter("ignore", ConvergenceWarning)
            learner.fit(samples.astype(np.float64))
        return cls(learner.components_.astype(samples.dtype))

    def encode(
        self,
        x: ArrayLike,
        *,
        keep: float | None = None,
        tolerance: float | None = None,
        alpha: float | None = None,
        known: ArrayLike | None = None,
        accelerated: bool = True,
        iterations: int = 1000,
        gap: float = 1e-4,
    ) -> Codes:
        """Sparse codes: few atoms by orthogonal matching pursuit (OMP), or the lasso by FISTA.

        Parameters
        ----------
        x : array_like (samples, features)
        keep : int or float
            OMP: number of atoms for a sample at most, or their share in (0, 1].
        tolerance : float
            OMP: stop when a sample's squared error is not larger. With `keep`, whichever comes first.
        alpha : float
            Instead: minimise ``0.5 * sum((x - codes @ atoms)**2) + alpha * sum(abs(codes))`` of every sample.
        known : array_like of bool (samples, features), optional
            With `alpha`: the features that count; others are unknown, whatever x holds there (inpainting).
        accelerated : bool
            FISTA with restarts; plain ISTA without.
        iterations, gap : int, float
            FISTA stops when the duality gap of every sample is at most `gap` times its energy / 2.

        Returns
        -------
        Codes
            ``squared_error`` is that of ``decode``, over what is known.

        Raises
        ------
        TypeError, ValueError
            When x does not fit, or `alpha` comes together with `keep` or `tolerance`, or none of them is given.

        Warns
        -----
        RuntimeWarning
            When FISTA did not reach `gap`; the codes are those of the last iteration.

        Notes
        -----
        OMP: Y. Pati, R. Rezaiifar, P. Krishnaprasad, 1993, with the Gram matrix as by R. Rubinstein, M. Zibulevsky,
        M. Elad, Efficient implementation of the K-SVD algorithm using batch OMP, 2008. FISTA: A. Beck, M. Teboulle,
        2009; restarts: B. O'Donoghue, E. Candès, 2015.
        """
        greedy = keep is not None or tolerance is not None
        if greedy == (alpha is not None):
            raise ValueError(
                f"keep is {keep!r}, tolerance is {tolerance!r} and alpha is {alpha!r}, expected alpha alone, or one or "
                "both of the others"
            )
        rows = self._as_samples(x)
        tolerance = None if tolerance is None else checks.number(tolerance, "tolerance")
        alpha = None if alpha is None else checks.number(alpha, "alpha", ends="(]")
        gap, iterations = checks.number(gap, "gap"), checks.integer(iterations, "iterations", 0)
        accelerated = checks.flag(accelerated, "accelerated")
        most, features = self._atoms.shape
        mask = None if known is None else _as_mask(known, rows.shape)
        if greedy:
            if mask is not None:
                raise ValueError("known is given with keep or tolerance, expected alpha")
            count = min(most, features) if keep is None else min(as_count(keep, most), features)
        if mask is not None:
            rows = np.where(mask, rows, 0)
        parts = [np.zeros((0, most), rows.dtype)]
        size = max(1, _BLOCK // most)
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            if greedy:
                parts.append(self._omp(block, count, tolerance or 0.0))
            else:
                part = None if mask is None else mask[start : start + size]
                parts.append(self._lasso(block, alpha or 0.0, part, accelerated, iterations, gap))
        codes = csr(sparse.vstack([csr(part).to_scipy() for part in parts]))
        missing = rows - self._combined(codes)
        return Codes(codes.to_scipy(), energy(missing if mask is None else np.where(mask, missing, 0)))

    def decode(self, codes: CodesLike) -> Array:
        """Samples (samples, features) of codes.

        Parameters
        ----------
        codes : Codes, CSR, scipy.sparse matrix or array_like (samples, atoms)
        """
        return self._combined(as_matrix(codes, self._atoms.shape[0]))

    def _as_samples(self, x: ArrayLike) -> Array:
        """x in the atoms' type, where both are float32 or float64."""
        rows = as_samples(x, self._atoms.shape[1:])
        return rows.astype(self._atoms.dtype, copy=False)

    def _combined(self, codes: Any) -> Array:
        """codes @ atoms, one of them sparse where that pays."""
        if isinstance(codes, np.ndarray) and isinstance(self._atoms, np.ndarray) and len(self._atoms.T) < _FEW_FEATURES:
            return np.asarray(codes.astype(self._atoms.dtype, copy=False) @ self._atoms)
        if codes.dtype != self._atoms.dtype:
            codes = csr(codes, self._atoms.dtype) if isinstance(codes, CSR) else codes.astype(self._atoms.dtype)
        if isinstance(self._atoms, CSR):
            return np.asarray(matmul(codes.toarray() if isinstance(codes, CSR) else codes, self._atoms))
        return np.asarray(matmul(codes if isinstance(codes, CSR) else csr(codes), self._atoms))

    def _correlated(self, rows: Array) -> Array:
        """rows @ atoms.T."""
        return np.asarray(matmul(rows, self._atoms.T) if isinstance(self._atoms, CSR) else rows @ self._atoms.T)

    def _lasso(
        self, x: Array, alpha: float, known: Array | None, accelerated: bool, iterations: int, gap: float
    ) -> Array:
        """Codes (samples, atoms) of x (samples, features), which is 0 where it is unknown."""
        step, wanted = 1 / self._steepest, gap * 0.5 * energy(x)
        result = np.zeros((len(x), self._atoms.shape[0]), x.dtype)
        live, codes, point, momentum = np.arange(len(x)), result, result, np.ones((len(x), 1))

        def missing(at: Array) -> Array:
            rest = x - self._combined(at)
            return rest if known is None else np.where(known, rest, 0)

        for number in range(iterations + 1):
            if number % _CHECK == 0 or number == iterations:
                left = self._duality_gap(x, codes, missing(codes), alpha)
                goes_on = left > wanted[live]
                result[live] = codes
                live, x, known = live[goes_on], x[goes_on], None if known is None else known[goes_on]
                codes, point, momentum = codes[goes_on], point[goes_on], momentum[goes_on]
                if not len(live) or number == iterations:
                    break
            ahead = soft_threshold(point + step * self._correlated(missing(point)), x.dtype.type(alpha * step))
            if accelerated:
                move = ahead - codes
                back = np.einsum("ij,ij->i", point - ahead, move)[:, None] > 0
                after = 0.5 + np.sqrt(0.25 + momentum**2)
                share = np.where(back, 0, (momentum - 1) / after).astype(x.dtype)
                momentum = np.where(back, 1, after)
                point = ahead + share * move
            else:
                point = ahead
            codes = ahead
        if len(live):
            worst = float((2 * left[goes_on] / energy(x)).max())
            warnings.warn(
                f"the duality gap is {worst:.1e} of a sample's energy / 2 after {iterations} iterations, expected at "
                f"most {gap:.1e}",
                RuntimeWarning,
                stacklevel=3,
            )
        return result

    def _duality_gap(self, x: Array, codes: Array, rest: Array, alpha: float) -> Array:
        """Objective minus its dual at the residual, scaled until it is feasible; of every sample."""
        steepest = np.abs(self._correlated(rest)).max(axis=1).astype(np.float64)
        scale = alpha / np.maximum(np.maximum(steepest, alpha), np.finfo(float).tiny)  # at most 1
        norm = np.abs(codes).sum(axis=1, dtype=np.float64)
        inner = np.einsum("ij,ij->i", rest, x, dtype=np.float64)
        return np.asarray(0.5 * (1 + scale**2) * energy(rest) + alpha * norm - scale * inner)

    def _omp(self, x: Array, count: int, tolerance: float) -> Array:
        """Codes (samples, atoms) of x (samples, features), of all samples at once."""
        codes = np.zeros((len(x), self._atoms.shape[0]), x.dtype)
        start, norms = self._correlated(x), energy(x)
        live, rest = np.arange(len(x)), start
        chosen = np.zeros((len(x), 0), np.int64)
        small = np.finfo(x.dtype).eps * 10 * np.sqrt(norms)  # correlations below it are rounding
        left = norms
        for _ in range(count):
            scores = np.abs(rest) / self._norms
            np.put_along_axis(scores, chosen, -1, axis=1)
            best = scores.argmax(axis=1)[:, None]
            goes_on = (left > tolerance) & (np.take_along_axis(scores, best, 1)[:, 0] > small[live])
            live, chosen = live[goes_on], np.hstack([chosen, best])[goes_on]
            if not len(live):
                break
            products = np.take_along_axis(start[live], chosen, 1).astype(np.float64)
            grams = self._gram[chosen[:, :, None], chosen[:, None, :]].astype(np.float64)
            values = np.linalg.solve(grams, products[:, :, None])[:, :, 0]
            found = np.zeros((len(live), codes.shape[1]), x.dtype)
            np.put_along_axis(found, chosen, values.astype(x.dtype), axis=1)
            codes[live] = found
            rest = start[live] - matmul(csr(found), self._gram)
            left = norms[live] - np.einsum("ij,ij->i", values, products)
        return codes


def _as_rows(x: ArrayLike) -> Array:
    array = as_array(x, "x")
    if array.ndim != 2:
        raise ValueError(f"x has shape {array.shape}, expected (samples, features)")
    return as_samples(array, array.shape[1:])


def _as_mask(known: ArrayLike, shape: tuple[int, ...]) -> Array:
    mask = as_array(known, "known")
    if mask.dtype != bool or mask.shape != shape:
        raise ValueError(f"known has dtype {mask.dtype} and shape {mask.shape}, expected bool {shape} as x")
    return mask
