"""Sparse multi-layer perceptrons with scikit-learn's interface. Needs the extra ``sklearn``.

Estimators can be cloned, searched over, put in pipelines and pickled as scikit-learn's own. To keep a trained network
without pickle, save ``estimator.model_`` with ``fs.save``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import log_softmax

from fastsparse import extras
from fastsparse.arguments import Samples

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state, column_or_1d
    from sklearn.utils._param_validation import Interval, StrOptions
    from sklearn.utils.class_weight import compute_sample_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(extras.needs("fastsparse.sklearn", "sklearn", "scikit-learn 1.6 or later")) from error

from fastsparse import checks, nn, sparsity, training
from fastsparse.functional import ACTIVATIONS

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing from Python 3.11 on

Array = NDArray[Any]

__all__ = ["SparseMLPClassifier", "SparseMLPRegressor"]

_DENSE_RATE = 2e-3  # of a network without zeros
_EVOLVE = {"rigl": sparsity.RigL, "set": sparsity.SET}


class _Steps:
    """A sparsity algorithm that is not told when training ends, because nobody knows."""

    def __init__(self, algorithm: Any) -> None:
        self.step = algorithm.step


_FROM_ONE = Interval(Integral, 1, None, closed="left")
_FROM_ZERO = Interval(Real, 0, None, closed="left")


class _SparseMLP(BaseEstimator):
    """What classifier and regressor share."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "hidden_layer_sizes": ["array-like", _FROM_ONE],
        "sparsity": [Interval(Real, 0, 1, closed="left")],
        "evolve": [StrOptions(set(_EVOLVE)), None],
        "every": [_FROM_ONE],
        "activation": [StrOptions({name for name in ACTIVATIONS if name is not None}), None],
        "alpha": [_FROM_ZERO],
        "batch_size": [StrOptions({"auto"}), _FROM_ONE],
        "learning_rate_init": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "max_iter": [_FROM_ONE],
        "tol": [_FROM_ZERO],
        "n_iter_no_change": [_FROM_ONE],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (256,),
        *,
        sparsity: float = 0.9,
        evolve: str | None = "rigl",
        every: int = 100,
        activation: str = "relu",
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        learning_rate_init: float | str = "auto",
        max_iter: int = 200,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.sparsity = sparsity
        self.evolve = evolve
        self.every = every
        self.activation = activation
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train a new network.

        Parameters
        ----------
        X : array or scipy.sparse matrix (samples, features)
            A sparse matrix stays sparse. float32 trains in float32, everything else in float64.
        y : array (samples,)
            Classes, or numbers; for the regressor also (samples, outputs).
        sample_weight : array (samples,), optional
            Numbers of at least 0, relative to each other: how much the samples' losses count.

        Returns
        -------
        self

        Warns
        -----
        ConvergenceWarning
            When the loss was still falling after `max_iter` epochs.
        """
        self._check_parameters()
        X, values = self._checked(X, y)
        target = self._started(values, None)
        X, target, weights = self._weighted(X, values, target, sample_weight)
        if weights is not None:
            weights = weights / weights.max()  # whose sum is finite
            weights = weights * (len(weights) / weights.sum())  # of mean 1, so that the learning rate means the same
        self._build(X, target)
        self.history_ = training.History()
        stops: list[bool] = []
        callbacks = [*self._callbacks(), lambda progress: stops.append(progress.stop)]
        self._train(X, target, weights, int(self.max_iter), self._algorithm, callbacks)
        if not stops[-1]:
            warnings.warn(
                f"training ended at max_iter = {self.max_iter} epochs, before the loss stopped falling",
                ConvergenceWarning, stacklevel=2,
            )  # fmt: skip
        return self

    def _partial_fit(self, X: Any, y: Any, classes: Any, sample_weight: Any) -> Self:
        first = not hasattr(self, "model_")
        self._check_parameters()
        X, y = self._checked(X, y, None if first else self.model_.parameters()[0].dtype)
        target = self._started(y, classes) if first else self._encoded(y, classes)
        X, target, weights = self._weighted(X, y, target, sample_weight)
        if first:
            self._build(X, target)
            self.history_ = training.History()
        self._train(X, target, weights, 1, None if self._algorithm is None else _Steps(self._algorithm), [])
        return self

    def _weighted(self, X: Any, y: Any, target: Array, sample_weight: Any) -> tuple[Any, Array, Array | None]:
        """The samples whose weight is not 0, and their weights."""
        weights = self._class_weights(y)
        if sample_weight is not None:
            given = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            if not np.isfinite(given).all():
                raise ValueError("sample_weight holds NaN or infinity, expected finite numbers of at least 0")
            weights = given if weights is None else given * weights
        if weights is None:
            return X, target, None
        kept = np.flatnonzero(weights)
        if not len(kept):
            raise ValueError("all weights of samples times those of their classes are 0, expected a non-zero one")
        return (X, target, weights) if len(kept) == len(weights) else (X[kept], target[kept], weights[kept])

    def _check_parameters(self) -> None:
        self._validate_params()
        sizes = self.hidden_layer_sizes
        self._sizes = [checks.integer(n, "hidden_layer_sizes") for n in ([sizes] if np.ndim(sizes) == 0 else sizes)]

    def _checked(self, X: Any, y: Any, dtype: np.dtype[Any] | None = None) -> tuple[Any, Any]:
        """X and y as arrays, X in the type of the network that there is."""
        if sparse.issparse(y):
            raise TypeError("y is a sparse matrix, expected an array: use y.toarray()")
        dtypes = [np.float64, np.float32] if dtype is None else dtype
        return validate_data(self, X, y, reset=dtype is None, accept_sparse="csr", dtype=dtypes, multi_output=True)

    def _build(self, X: Any, target: Array) -> None:
        """A new network and optimizer for these shapes."""
        self._rng = np.random.default_rng(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        layers: list[nn.Module] = []
        features, dtype = X.shape[1], X.dtype
        for size in self._sizes:
            layers.append(
                nn.SparseLinear(
                    features, size, sparsity=self.sparsity, activation=self.activation, dtype=dtype, rng=self._rng
                )
            )
            features = size
        output = nn.Linear(features, self._outputs(target), dtype=dtype, rng=self._rng)
        output.weight.value *= dtype.type(0.5)  # a calm first loss
        self.model_ = nn.Sequential(*layers, output)
        self._optimizer = training.Adam(self.model_.parameters(), self._rate(), weight_decay=self.alpha)
        self._algorithm: Any = None
        if self.evolve is not None and layers:
            options = {"rng": self._rng} if self.evolve == "set" else {}
            self._algorithm = _EVOLVE[self.evolve](self.model_, every=self.every, **options)

    def _rate(self) -> float:
        """The learning rate."""
        rate = self.learning_rate_init
        return _DENSE_RATE / np.sqrt(1 - self.sparsity) if isinstance(rate, str) else rate

    def _callbacks(self) -> list[Any]:
        patience, tol = int(self.n_iter_no_change), self.tol
        if self.early_stopping:
            return [training.EarlyStopping(self._monitor, patience, tol)]
        return [training.EarlyStopping("loss", patience, tol, restore_best=False)]

    def _train(
        self, X: Any, target: Array, weights: Array | None, epochs: int, algorithm: Any, callbacks: list[Any]
    ) -> None:
        data = (X, target) if weights is None else (X, target, weights)
        validation = None
        if self.early_stopping and callbacks:
            parts = train_test_split(
                *data, test_size=self.validation_fraction, stratify=self._stratify(target),
                random_state=int(self._rng.integers(2**31)),
            )  # fmt: skip
            data, validation = tuple(parts[::2]), tuple(parts[1::2])
        samples, size = data[0].shape[0], self.batch_size
        history = training.fit(
            self.model_,
            data,
            epochs=epochs,
            batch_size=min(200 if isinstance(size, str) else size, samples),
            optimizer=self._optimizer,
            loss=self._loss,
            sparsity=algorithm,
            validation=validation,
            callbacks=callbacks,
            progress=bool(self.verbose),
            rng=self._rng,
        )
        self.history_.records.extend(history.records)
        self.n_iter_ = len(self.history_)
        self.loss_curve_ = self.history_["loss"]
        self.loss_ = self.loss_curve_[-1]

    def _output(self, X: Samples) -> Array:
        """The network's output (samples, outputs)."""
        check_is_fitted(self)
        dtype = self.model_.parameters()[0].dtype
        return self.model_(validate_data(self, X, reset=False, accept_sparse="csr", dtype=dtype))

    # --- what the two differ in ----------------------------------------------------------------

    _loss: Any

    @property
    def _monitor(self) -> str:
        """What early stopping watches."""
        return "val_loss"

    def _started(self, y: Array, classes: Any) -> Array:
        """Targets of a first call, in the form the loss takes."""
        raise NotImplementedError

    def _encoded(self, y: Array, classes: Any) -> Array:
        """Targets of a later call."""
        raise NotImplementedError

    def _outputs(self, target: Array) -> int:
        raise NotImplementedError

    def _class_weights(self, y: Array) -> Array | None:
        """Weights of the samples by their classes."""
        return None

    def _stratify(self, target: Array) -> Array | None:
        return None


def _distinct(labels: ArrayLike, name: str) -> Array:
    """The different ones of labels, in rising order."""
    try:
        return np.unique(labels)
    except TypeError as error:
        raise TypeError(f"{name} holds labels of several types, expected numbers alone or strings alone") from error


_PARAMETERS = """
    Parameters
    ----------
    hidden_layer_sizes : sequence of int
        Sizes of the hidden layers, all of them sparse; the output layer is dense.
    sparsity : float in [0, 1)
        Share of the weights of the hidden layers that do not exist.
    evolve : {"rigl", "set"} or None
        How their patterns change while training: `fastsparse.sparsity.RigL`, `SET`, or not at all.
    every : int
        Steps between changes.
    activation : str
        One of ``fastsparse.functional.ACTIVATIONS``.
    alpha : float
        L2 penalty.
    batch_size : int or "auto"
        "auto" is min(200, samples).
    learning_rate_init : float or "auto"
        Of Adam. "auto" is 0.002 / sqrt(1 - sparsity): the fewer weights a unit has, the larger is the step of each that
        moves its output by as much.
    max_iter : int
        Epochs, at most.
    tol : float
    n_iter_no_change : int
        Training ends when the loss, or with `early_stopping` the validation score, has not improved by more than `tol`
        for this many epochs.
    early_stopping : bool
        Hold out a share of the data, and end with the weights that did best on it.
    validation_fraction : float
        That share.
    random_state : None, int or RandomState
        For patterns, initial values, the order of samples and the held-out share.
    verbose : bool
        Show a progress bar.
"""


class SparseMLPClassifier(ClassifierMixin, _SparseMLP):
    __doc__ = f"""Classifier: a multi-layer perceptron with sparse hidden layers.
{_PARAMETERS}    class_weight : dict, "balanced" or None
        Weights of the classes, times those of the samples.

    Attributes
    ----------
    classes_ : array
    model_ : fs.nn.Sequential
    history_ : fs.training.History
    n_iter_, loss_, loss_curve_, n_features_in_

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from fastsparse.sklearn import SparseMLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), SparseMLPClassifier(sparsity=0.5, random_state=0))
    >>> model.fit(X, y).score(X, y) > 0.95
    True
    """

    _loss = staticmethod(training.cross_entropy)
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_SparseMLP._parameter_constraints,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (256,),
        *,
        sparsity: float = 0.9,
        evolve: str | None = "rigl",
        every: int = 100,
        activation: str = "relu",
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        learning_rate_init: float | str = "auto",
        max_iter: int = 200,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        class_weight: dict[Any, float] | str | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            sparsity=sparsity,
            evolve=evolve,
            every=every,
            activation=activation,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate_init=learning_rate_init,
            max_iter=max_iter,
            tol=tol,
            n_iter_no_change=n_iter_no_change,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def partial_fit(
        self, X: Samples, y: ArrayLike, classes: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Train for one epoch on this part of the data, from where the last call left.

        Parameters
        ----------
        X, y
            As for :meth:`fit`.
        classes : array, optional
            All classes there will be; needed in the first call unless `y` holds them all.
        sample_weight : array (samples,), optional
            Numbers of at least 0; of mean 1 over all calls, the learning rate means the same as without.

        Returns
        -------
        self
        """
        if self.class_weight == "balanced":
            raise ValueError("class_weight is 'balanced', which partial_fit cannot know: expected a dict of weights")
        return self._partial_fit(X, y, classes, sample_weight)

    def predict_proba(self, X: Samples) -> Array:
        """Probability of every class, (samples, classes)."""
        return np.asarray(nn.Softmax().eval()(self._output(X)))

    def predict_log_proba(self, X: Samples) -> Array:
        """Logarithm of the probability of every class, (samples, classes)."""
        return np.asarray(log_softmax(self._output(X), axis=1))

    def predict(self, X: Samples) -> Array:
        """The most likely class of every sample, (samples,)."""
        chosen = self._output(X).argmax(axis=1)
        return self.classes_[chosen]

    def _started(self, y: Array, classes: Any) -> Array:
        y = column_or_1d(y, warn=True)
        labels = _distinct(y, "y")
        check_classification_targets(y)
        self.classes_ = labels if classes is None else _distinct(classes, "classes")
        return self._encoded(y, None)

    def _encoded(self, y: Array, classes: Any) -> Array:
        y = column_or_1d(y, warn=True)
        if classes is not None and not np.array_equal(_distinct(classes, "classes"), self.classes_):
            raise ValueError(f"classes is {classes!r}, expected {self.classes_!r} as in the first call of partial_fit")
        unknown = np.setdiff1d(_distinct(y, "y"), self.classes_)
        if len(unknown):
            raise ValueError(f"y holds {unknown[0]}, expected one of the classes {self.classes_}")
        return np.searchsorted(self.classes_, y)

    def _outputs(self, target: Array) -> int:
        return len(self.classes_)

    @property
    def _monitor(self) -> str:
        return "val_accuracy" if len(self.classes_) > 1 else "val_loss"  # one class is always right

    def _stratify(self, target: Array) -> Array | None:
        return target

    def _class_weights(self, y: Array) -> Array | None:
        if self.class_weight is None:
            return None
        weights = compute_sample_weight(self.class_weight, y)
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError(f"class_weight is {self.class_weight!r}, expected finite numbers of at least 0")
        return np.asarray(weights)


class SparseMLPRegressor(RegressorMixin, _SparseMLP):
    __doc__ = f"""Regressor: a multi-layer perceptron with sparse hidden layers, trained on the mean squared error.
{_PARAMETERS}
    Attributes
    ----------
    model_ : fs.nn.Sequential
    history_ : fs.training.History
    n_iter_, loss_, loss_curve_, n_features_in_

    Examples
    --------
    >>> import numpy as np
    >>> from fastsparse.sklearn import SparseMLPRegressor
    >>> X = np.random.default_rng(0).normal(size=(200, 10))
    >>> model = SparseMLPRegressor((64,), sparsity=0.5, max_iter=300, random_state=0)
    >>> model.fit(X, X[:, 0] - 2 * X[:, 1]).score(X, X[:, 0] - 2 * X[:, 1]) > 0.9
    True
    """

    _loss = staticmethod(training.mse)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def partial_fit(self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train for one epoch on this part of the data, from where the last call left.

        Parameters
        ----------
        X, y
            As for :meth:`fit`.
        sample_weight : array (samples,), optional
            Numbers of at least 0; of mean 1 over all calls, the learning rate means the same as without.

        Returns
        -------
        self
        """
        return self._partial_fit(X, y, None, sample_weight)

    def predict(self, X: Samples) -> Array:
        """Values for every sample, (samples,) or (samples, outputs)."""
        y = self._output(X)
        return y if self._columns else y[:, 0]

    def _started(self, y: Array, classes: Any) -> Array:
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        self._columns = y.shape[1] if y.ndim == 2 else 0
        return self._encoded(y, None)

    def _encoded(self, y: Array, classes: Any) -> Array:
        expected = (len(y), self._columns) if self._columns else (len(y),)
        if y.shape != expected and y.shape != (len(y), 1):
            raise ValueError(f"y has shape {y.shape}, expected {expected} as in the first call of partial_fit")
        return np.asarray(y, np.float64).reshape(len(y), -1)

    def _outputs(self, target: Array) -> int:
        return target.shape[1]
