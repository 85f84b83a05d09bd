"""The scikit-learn bridge: its own checks, sparse X, partial_fit, searches, pickles."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn", "1.6")

from scipy import sparse  # noqa: E402
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer  # noqa: E402
from sklearn.metrics import accuracy_score, make_scorer  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

import fastsparse as fs  # noqa: E402
from fastsparse.runtime.cpu import available_cpus  # noqa: E402
from fastsparse.runtime.threads import usable_threads  # noqa: E402
from fastsparse.sklearn import SparseMLPClassifier, SparseMLPRegressor  # noqa: E402

# Trainings here are short on purpose; the tests of the warning ask for it.
pytestmark = pytest.mark.filterwarnings("ignore:training ended at max_iter")

ESTIMATORS = [
    SparseMLPClassifier((32,), sparsity=0.5, learning_rate_init=0.02, max_iter=60),
    SparseMLPRegressor((32,), sparsity=0.5, learning_rate_init=0.02, max_iter=60),
]


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def _cancer() -> tuple[Any, Any]:
    X, y = load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(X).astype("f"), y


def test_classification_in_a_pipeline_and_over_folds() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    network = SparseMLPClassifier((64, 32), sparsity=0.8, max_iter=30, learning_rate_init=0.01, random_state=0)
    model = make_pipeline(StandardScaler(), network)
    assert cross_val_score(model, X, y, cv=3).min() > 0.93
    model.fit(X, y)
    network = model[-1].model_
    assert [layer.weight.density for layer in network[:2]] == [0.2, pytest.approx(0.2, abs=1e-3)]
    probabilities = model.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(model.predict(X), probabilities.argmax(axis=1))


def test_regression_with_one_and_several_outputs() -> None:
    X, y = load_diabetes(return_X_y=True)
    X, y = StandardScaler().fit_transform(X), (y - y.mean()) / y.std()
    model = SparseMLPRegressor((64,), sparsity=0.5, max_iter=60, random_state=0)
    assert model.fit(X, y).score(X, y) > 0.4
    both = np.stack([y, -2 * y], axis=1)
    model.fit(X, both)
    assert model.predict(X).shape == both.shape
    assert model.score(X, both) > 0.4


def test_sparse_input_stays_sparse_and_gives_what_dense_input_gives() -> None:
    texts = ["sparse matrix product", "matrix of zeros", "soup with carrots", "boil the soup", "carrots and zeros"] * 4
    y = np.array(["maths", "maths", "food", "food", "food"] * 4)
    X = CountVectorizer(dtype=np.float64).fit_transform(texts)
    assert sparse.issparse(X)
    model = SparseMLPClassifier((32,), sparsity=0.5, max_iter=80, learning_rate_init=0.01, random_state=0)
    model.fit(X, y)
    assert model.score(X, y) == 1.0
    dense = SparseMLPClassifier(**model.get_params()).fit(X.toarray(), y)
    np.testing.assert_allclose(model.predict_proba(X), dense.predict_proba(X.toarray()), rtol=1e-6)
    assert list(model.classes_) == ["food", "maths"]


def test_random_state_repeats_to_the_bit_and_orders_samples() -> None:
    X, y = _cancer()
    options: dict[str, Any] = {"hidden_layer_sizes": (32,), "max_iter": 4, "batch_size": 64}
    first, second, third = (SparseMLPClassifier(**options, random_state=seed).fit(X, y) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))
    assert first.loss_curve_ == second.loss_curve_ != third.loss_curve_


def test_partial_fit_goes_on_where_it_stopped() -> None:
    X, y = _cancer()
    model = SparseMLPClassifier((32,), sparsity=0.8, evolve="set", every=5, batch_size=32, random_state=0)
    pattern = None
    for _ in range(8):
        for part in range(0, len(X), 150):
            model.partial_fit(X[part : part + 150], y[part : part + 150], classes=[0, 1])
        pattern = pattern or model.model_[0].pattern
    assert model.score(X, y) > 0.93
    assert model.model_[0].pattern != pattern, "patterns go on evolving"
    assert model.model_[0].pattern.nnz == pattern.nnz
    assert model.n_iter_ == 8 * 4
    with pytest.raises(ValueError, match=r"^y holds .*2.*, expected one of the classes \[0 1\]$"):
        model.partial_fit(X, y + 1)
    with pytest.raises(ValueError, match=r"^classes is \[0, 1, 2\], expected array\(\[0, 1\]\) as in the first call"):
        model.partial_fit(X, y, classes=[0, 1, 2])
    regressor = SparseMLPRegressor((8,), random_state=0).partial_fit(X, np.stack([y, y], axis=1))
    with pytest.raises(ValueError, match=r"^y has shape \(569,\), expected \(569, 2\) as in the first call"):
        regressor.partial_fit(X, y)


def test_numbers_too_large_for_the_type_are_refused_and_log_probabilities_are_exact() -> None:
    X, y = _cancer()
    model = SparseMLPClassifier((8,), sparsity=0.5, max_iter=3, random_state=0).fit(X.astype(np.float32), y)
    for samples in (X * 1e300, sparse.csr_array(X * 1e300)):
        with pytest.raises(ValueError, match="infinity or a value too large for dtype"):
            model.predict(samples)
        with pytest.raises(ValueError, match="infinity or a value too large for dtype"):
            model.partial_fit(samples, y)
    assert np.allclose(np.exp(model.predict_log_proba(X)), model.predict_proba(X), atol=1e-6)
    assert np.isfinite(model.predict_log_proba(X * 1e4)).all()


def test_early_stopping_holds_data_out() -> None:
    X, y = _cancer()
    model = SparseMLPClassifier(
        (64,), learning_rate_init=0.02, early_stopping=True, n_iter_no_change=3, validation_fraction=0.3, random_state=0
    ).fit(X, y)
    assert model.n_iter_ < 200
    accuracy = model.history_["val_accuracy"]
    assert max(accuracy[-3:]) <= max(accuracy[:-3]) + 1e-4
    assert model.score(X, y) > 0.95


def test_one_class_is_learnt_with_and_without_early_stopping() -> None:
    X, _ = _cancer()
    for early_stopping in (False, True):
        model = SparseMLPClassifier((8,), max_iter=3, early_stopping=early_stopping).fit(X, np.full(len(X), "only"))
        assert set(model.predict(X)) == {"only"}
        np.testing.assert_array_equal(model.predict_proba(X), np.ones((len(X), 1)))


def test_grid_search_and_pickle(tmp_path: Any) -> None:
    X, y = load_iris(return_X_y=True)
    search = GridSearchCV(
        make_pipeline(
            StandardScaler(), SparseMLPClassifier((32,), learning_rate_init=0.01, max_iter=40, random_state=0)
        ),
        {"sparsemlpclassifier__sparsity": [0.5, 0.8], "sparsemlpclassifier__evolve": [None, "rigl"]},
        cv=3,
    ).fit(X, y)
    assert search.best_score_ > 0.9
    again = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(again.predict_proba(X), search.predict_proba(X))
    model = search.best_estimator_[-1]
    fs.save(model.model_, tmp_path / "model.safetensors")
    loaded = fs.load(tmp_path / "model.safetensors")
    scaled = StandardScaler().fit_transform(X)
    np.testing.assert_array_equal(loaded(scaled), model.model_(scaled))
    copy = pickle.loads(pickle.dumps(model)).partial_fit(scaled, y)
    assert copy.n_iter_ == model.n_iter_ + 1, "training goes on after a pickle"


REFUSED: list[dict[str, Any]] = [
    {"sparsity": 1.0}, {"evolve": "magic"}, {"max_iter": 0}, {"batch_size": "all"}, {"activation": "step"},
    {"hidden_layer_sizes": None}, {"every": 1.5}, {"alpha": -1}, {"learning_rate_init": "adaptive"}, {"tol": "small"},
    {"n_iter_no_change": 0}, {"early_stopping": "yes"}, {"validation_fraction": 0}, {"class_weight": "even"},
    {"random_state": "seed"}, {"verbose": None},
]  # fmt: skip


@pytest.mark.parametrize("options", REFUSED)
def test_bad_parameters_are_named(options: dict[str, Any]) -> None:
    X, y = load_iris(return_X_y=True)
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"The '{name}' parameter of .* must be .* Got {value!r} instead"):
        SparseMLPClassifier(**options).fit(X, y)


def test_targets_that_are_none_are_named() -> None:
    X, y = load_iris(return_X_y=True)
    for kind in (SparseMLPClassifier, SparseMLPRegressor):
        for call in (kind((4,)).fit, kind((4,)).partial_fit):
            with pytest.raises(TypeError, match=r"^y is a sparse matrix, expected an array: use y.toarray\(\)$"):
                call(X, sparse.csr_array(np.stack([y, y], 1)))
    mixed = np.array(["a", 1, 2], object)[y]
    said = "holds labels of several types, expected numbers alone or strings alone"
    model = SparseMLPClassifier((4,), max_iter=1)
    for call in (model.fit, model.partial_fit):
        with pytest.raises(TypeError, match=f"^y {said}$"):
            call(X, mixed)
    with pytest.raises(TypeError, match=f"^classes {said}$"):
        model.partial_fit(X, y, classes=np.array([0, "1", 2], object))
    model.partial_fit(X, y)
    with pytest.raises(TypeError, match=f"^y {said}$"):
        model.partial_fit(X, mixed)


def test_layers_of_no_units() -> None:
    with pytest.raises(ValueError, match="hidden_layer_sizes is 0, expected an integer of at least 1"):
        SparseMLPClassifier((8, 0)).fit(*load_iris(return_X_y=True))


@pytest.mark.parametrize("kind", [SparseMLPClassifier, SparseMLPRegressor])
def test_weights_of_samples_are_repetitions(kind: Any) -> None:
    X, y = load_iris(return_X_y=True)
    counts = np.random.default_rng(0).integers(0, 3, len(X))
    chosen = np.repeat(np.arange(len(X)), counts)
    options: dict[str, Any] = {"sparsity": 0.5, "evolve": None, "max_iter": 25, "batch_size": 500, "random_state": 0}
    weighted = kind((16,), **options).fit(X, y, sample_weight=counts * 7)  # every batch is all there is
    repeated = kind((16,), **options).fit(X[chosen], y[chosen])
    np.testing.assert_allclose(weighted._output(X), repeated._output(X), rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="non-zero"):
        kind((16,), **options).fit(X, y, sample_weight=np.zeros(len(X)))
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        kind((16,), **options).partial_fit(X, y, sample_weight=-np.ones(len(X)))
    for scale in (1e-320, 1e305):  # whose sums are too small or too large
        scaled = kind((16,), **options).fit(X, y, sample_weight=np.full(len(X), scale))
        np.testing.assert_allclose(scaled._output(X), kind((16,), **options).fit(X, y)._output(X), rtol=1e-6)


def test_weights_of_classes() -> None:
    X, y = _cancer()
    kept = np.flatnonzero((y == 1) | (np.arange(len(y)) % 12 == 0))  # few of class 0
    X, y = X[kept], y[kept]
    options: dict[str, Any] = {"sparsity": 0.5, "max_iter": 10, "random_state": 0}
    factors = len(y) / (2 * np.bincount(y))
    by_name = SparseMLPClassifier(class_weight="balanced", **options).fit(X, y)
    by_class = SparseMLPClassifier(class_weight=dict(enumerate(factors)), **options).fit(X, y)
    by_sample = SparseMLPClassifier(**options).fit(X, y, sample_weight=factors[y])
    for other in (by_class, by_sample):
        np.testing.assert_allclose(other.predict_proba(X), by_name.predict_proba(X), rtol=1e-6)
    without = SparseMLPClassifier(**options).fit(X, y)
    assert without.predict_proba(X)[:, 0].mean() < by_name.predict_proba(X)[:, 0].mean()
    with pytest.raises(ValueError, match="class_weight is 'balanced', which partial_fit cannot know"):
        by_name.partial_fit(X, y)
    for weight in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"class_weight is {{0: {weight}, 1: 1}}, expected finite num"):
            SparseMLPClassifier(class_weight={0: weight, 1: 1}).fit(X, y)
    early = SparseMLPClassifier(class_weight="balanced", early_stopping=True, **options).fit(X, y)
    assert early.history_["val_accuracy"][-1] > 0.8


@pytest.mark.parametrize("sparsity", [0.9, 0.95])
def test_defaults_learn_as_fast_as_those_of_dense_networks(sparsity: float) -> None:
    X, y = load_digits(return_X_y=True)
    X, held_X, y, held_y = train_test_split(X / 16, y, test_size=0.3, random_state=0)
    with pytest.warns(ConvergenceWarning):
        dense = MLPClassifier(max_iter=15, random_state=0).fit(X, y)
    with pytest.warns(ConvergenceWarning, match="training ended at max_iter = 15 epochs"):
        model = SparseMLPClassifier(sparsity=sparsity, max_iter=15, random_state=0).fit(X, y)
    assert model.score(held_X, held_y) > dense.score(held_X, held_y)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        SparseMLPClassifier(sparsity=sparsity, max_iter=200, tol=1e-2, random_state=0).fit(X, y)


def threads_here(estimator: Any, X: Any, y: Any) -> float:
    """A score: threads that a call in this process uses."""
    return float(usable_threads())


def test_a_search_over_texts_in_two_processes_shares_the_cores(monkeypatch):
    for name in ("NUMBA_NUM_THREADS", "FASTSPARSE_NUM_THREADS"):  # joblib sets the first, where nobody has
        monkeypatch.delenv(name, raising=False)
    texts = ["sun and rain", "rain and snow", "goal and match", "match and team"] * 4
    pipeline = make_pipeline(TfidfVectorizer(), SparseMLPClassifier((8,), sparsity=0.5, max_iter=2, random_state=0))
    search = GridSearchCV(pipeline, {"sparsemlpclassifier__sparsity": [0.5, 0.8]}, cv=2, n_jobs=2, scoring=threads_here)
    search.fit(texts, [0, 0, 1, 1] * 4)
    assert max(search.cv_results_["mean_test_score"]) <= max(1, available_cpus() // 2)


def test_weights_are_routed_through_pipelines_and_searches(rng):
    X, y, weights = rng.normal(size=(40, 6)), rng.integers(0, 2, 40), rng.random(40) + 0.5
    with sklearn.config_context(enable_metadata_routing=True):
        asked = SparseMLPClassifier((8,), max_iter=2, random_state=0).set_fit_request(sample_weight=True)
        asked.set_score_request(sample_weight=False)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        scorer = make_scorer(accuracy_score).set_score_request(sample_weight=False)
        grid = {"sparsemlpclassifier__alpha": [0.1]}
        search = GridSearchCV(make_pipeline(scaler, asked), grid, cv=2, scoring=scorer)
        routed = search.fit(X, y, sample_weight=weights).best_estimator_[-1]
        scaled = StandardScaler().fit_transform(X)
        expected = SparseMLPClassifier((8,), alpha=0.1, max_iter=2, random_state=0).fit(scaled, y, weights)
        np.testing.assert_array_equal(routed.predict_proba(scaled), expected.predict_proba(scaled))
        with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError):
            GridSearchCV(SparseMLPClassifier((8,)), {"alpha": [0.1]}, cv=2).fit(X, y, sample_weight=weights)
