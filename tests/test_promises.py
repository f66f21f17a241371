"""What may never happen without a word, in any estimator: a table of promises by estimator."""

import copy
import inspect
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skdcgmm import (
    ConvGMM,
    DCGMMClassifier,
    DCGMMEstimator,
    DCGMMImputer,
    DCGMMOutlierDetector,
)

IMAGES = {"image_shape": (8, 8), "max_epochs": 2, "random_state": 0}
STACK = [ConvGMM(6, 4), ConvGMM(5)]
ESTIMATORS = {
    "pyramid": DCGMMEstimator(4, **IMAGES),
    "tiles": DCGMMEstimator(4, layers=STACK, **IMAGES),
    "atoms": DCGMMEstimator(layers=STACK, pixels="atoms", **IMAGES),
    "features": DCGMMEstimator(layers=[ConvGMM(3)], max_epochs=2, random_state=0),
    "layerwise": DCGMMEstimator(
        layers=STACK, objective="layerwise", score_method="layer", **IMAGES
    ),
    "detector": DCGMMOutlierDetector(**IMAGES),
    "classifier": DCGMMClassifier(**IMAGES),
    "imputer": DCGMMImputer(method="sample", **IMAGES),
}
# Methods that answer about images, and how they are called.
METHODS = {
    "predict": {},
    "predict_proba": {},
    "predict_log_proba": {},
    "transform": {},
    "score_samples": {},
    "score_map": {},
    "decision_function": {},
    "impute": {"method": "sample"},
    "sample_like": {"random_state": 0},
    "sharpen": {"n_steps": 2},
}
# Whose answers depend on the place of an image among others: they are drawn.
DRAWN = {"sample_like", "impute"}
BAD_ARGUMENTS = {
    "fit": [{"X": None}, {"X": np.ones((1, 64))}, {"X_val": np.ones((3, 5))}],
    "partial_fit": [{"X": np.ones((9, 5))}, {"sample_weight": [1.0]}],
    "impute": [{"mask": np.ones(3, bool)}, {"method": "x"}, {"temperature": -1}, {"y": 99}],
    "sample_like": [{"layer": 9}, {"n_samples": 0}, {"y": "x"}],
    "sharpen": [{"layer": "x"}, {"n_steps": -1}, {"pull": "a"}],
    "score": [
        {"sample_weight": [-1.0] * 60},
        {"sample_weight": np.zeros(60)},
        {"sample_weight": torch.ones(60, device="meta")},
        {"X": np.ones((2, 3))},
    ],
    "score_samples": [{"X": np.ones((2, 3))}, {"X": "text"}],
    "predict": [{"X": np.full((2, 64), np.inf)}, {"X": torch.ones(2, 64).to_sparse()}],
    "transform": [{"X": torch.ones(2, 64, device="meta")}],
    "calibrate": [{"X": np.ones((1, 64))}, {"score_method": "x"}],
    "sample": [{"n_samples": 0}, {"temperature": np.nan}, {"random_state": "a"}],
    "reset_annealing": [{"fraction": 2}],
    "save": [{"path": "/no/folder/here"}],
}
PROMISES = []


def promise(check):
    PROMISES.append(check)
    return check


@pytest.fixture(scope="module")
def images(digits):
    return digits[0][:60], digits[1][:60] % 3


@pytest.fixture(scope="module")
def fitted(images):
    return {name: clone(est).fit(*images) for name, est in ESTIMATORS.items()}


def answers(est, X, only=()):
    """What the methods answer that an estimator has, by name."""
    names = [name for name in METHODS if hasattr(est, name) and name not in only]
    return {name: getattr(est, name)(X, **METHODS[name]) for name in names}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def state(est):
    """All that an estimator is, as bytes."""
    return pickle.dumps(pickle.loads(pickle.dumps(est)))


@promise
def images_stay_as_they_are(est, X, y):
    for given in (X.copy(), torch.from_numpy(X.copy())):
        if isinstance(given, np.ndarray):
            given.flags.writeable = False
        answers(est, given)
        clone(est).fit(given, y)
        np.testing.assert_array_equal(given, X)


@promise
def parameters_stay_as_they_are(est, X, y):
    new = clone(est)
    before = repr(new.get_params())
    new.fit(X, y)
    assert repr(new.get_params()) == before


@promise
def to_ask_changes_nothing(est, X, y):
    before = state(est)
    answers(est, X)
    if hasattr(est, "sample"):
        est.sample(2)
    est.summary(), est.means_, est.weights_, est.covariances_, repr(est), est._html_repr()
    assert state(est) == before


@promise
def a_call_that_fails_changes_nothing(est, X, y):
    before, n_failed = state(est), 0
    for method, arguments in BAD_ARGUMENTS.items():
        call = getattr(est, method, None)
        if call is None:
            continue
        names = inspect.signature(call).parameters
        needed = {"X": X, "y": y} if method in ("fit", "score") else {"X": X}
        needed = {name: value for name, value in needed.items() if name in names}
        for bad in arguments:
            if bad.keys() <= names.keys():
                with pytest.raises((ValueError, TypeError, FileNotFoundError)) as error:
                    call(**needed | bad)
                assert len(str(error.value)) > 20
                n_failed += 1
                assert state(est) == before, (method, bad)
    assert n_failed > 8


@promise
def the_same_seed_gives_the_same_model(est, X, y):
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    found = clone(est).fit(X, y)
    numbers = np.random.rand(), torch.rand(()).item()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    assert numbers == (np.random.rand(), torch.rand(()).item())  # noqa: NPY002
    assert_same(answers(found, X), answers(est, X))


@promise
def copies_and_files_answer_the_same(est, X, y):
    expected = answers(est, X)
    assert_same(answers(copy.deepcopy(est), X), expected)
    assert_same(answers(pickle.loads(pickle.dumps(est)), X), expected)


@promise
def each_image_is_judged_alone(est, X, y):
    """Rounding apart, whatever other images there are, and in whatever order."""
    whole = answers(est, X[:8], only=DRAWN)
    alone = [answers(est, X[i : i + 1], only=DRAWN) for i in range(8)]
    backwards = answers(est, X[:8][::-1], only=DRAWN)
    for name, values in whole.items():
        singly = np.concatenate([each[name] for each in alone])
        np.testing.assert_allclose(singly, values, rtol=1e-3, atol=1e-3, err_msg=name)
        np.testing.assert_allclose(backwards[name][::-1], values, rtol=1e-3, atol=1e-3)


@promise
def labels_of_fit_are_those_of_predict(est, X, y):
    if hasattr(est, "fit_predict"):
        np.testing.assert_array_equal(clone(est).fit_predict(X), est.predict(X))
    if hasattr(est, "labels_"):
        np.testing.assert_array_equal(est.labels_, est.predict(X))


@promise
def precision_is_kept_and_answers_are_finite(est, X, y):
    double = clone(est).fit(X.astype(np.float64), y)
    for fit, given in ((est, X), (double, X.astype(np.float64))):
        for name, values in answers(fit, given, only={"predict"}).items():
            assert values.dtype == given.dtype, name
            # Logarithms of probabilities may be those of zero.
            assert np.isfinite(values).all() or name == "predict_log_proba", name


@promise
def tensors_are_answered_by_tensors(est, X, y):
    found = answers(est, torch.from_numpy(X))
    assert all(isinstance(values, torch.Tensor) for values in found.values())
    assert_same({name: values.numpy() for name, values in found.items()}, answers(est, X))


@promise
def what_is_observed_stays(est, X, y):
    holes = np.where(np.arange(64) % 5 == 0, np.nan, X[:6]).astype(np.float32)
    for name in ("impute", "transform"):
        if hasattr(est, name) and (name == "impute" or isinstance(est, DCGMMImputer)):
            filled = getattr(est, name)(holes)
            assert np.isfinite(filled).all()
            np.testing.assert_array_equal(filled[~np.isnan(holes)], holes[~np.isnan(holes)])


@promise
def nothing_ordinary_warns(est, X, y):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers(clone(est).fit(X, y), X)


@pytest.mark.parametrize("kept", PROMISES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_promise(fitted, images, name, kept):
    kept(fitted[name], *images)


def test_the_table_knows_all_methods():
    """So that a new one is promised for, too."""
    others = {
        "fit", "fit_predict", "fit_transform", "get_feature_names_out", "get_metadata_routing",
        "get_params", "set_params", "set_output", "set_callbacks", "load", "summary", "bic", "aic",
        "bits_per_dim",  # of whole numbers only
    }  # fmt: skip
    for est in ESTIMATORS.values():
        methods = {
            name
            for name, value in inspect.getmembers(type(est), callable)
            if not name.startswith(("_", "set_")) and inspect.isfunction(value)
        }
        assert methods <= {*METHODS, *BAD_ARGUMENTS, *others}
