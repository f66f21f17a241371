import pickle

import numpy as np
import pytest
from sklearn.base import clone, is_outlier_detector
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from skdcgmm import ConvGMM, DCGMMEstimator, DCGMMOutlierDetector
from skdcgmm._outliers import Surprise, Typicality

METHODS = ["surprise", "typicality", "density", "contrast", "layer"]


@pytest.fixture(scope="module")
def fitted(digits):
    X, y = digits
    return DCGMMOutlierDetector(image_shape=(8, 8), max_epochs=30, random_state=0).fit(X[y != 8])


@pytest.mark.parametrize("method", METHODS)
def test_outliers_are_a_share_of_the_training_images(fitted, digits, method):
    X, y = digits
    X = X[y != 8]
    est = clone(fitted).set_params(contamination=0.2, max_epochs=2, score_method=method)
    labels = est.fit_predict(X)
    assert set(labels) == {-1, 1}
    assert (labels == -1).mean() == pytest.approx(0.2, abs=2e-3)
    np.testing.assert_array_equal(est.predict(X), labels)
    np.testing.assert_array_equal(est.decision_function(X) < 0, labels == -1)
    np.testing.assert_allclose(est.score_samples(X) - est.offset_, est.decision_function(X))
    assert is_outlier_detector(est)


def test_a_class_left_out_is_found(fitted, digits):
    X, y = digits
    assert roc_auc_score(y == 8, -fitted.score_samples(X)) > 0.85
    noise = np.random.default_rng(0).uniform(0, 1, size=(100, 64))
    assert (fitted.predict(noise) == -1).all()


def test_statistics_are_sums_over_windows(fitted, digits):
    """Against loops over windows, and the log densities that other methods report."""
    X = digits[0][:20]
    network = fitted._network
    images = fitted._check_fitted_images(X)
    found = fitted._statistics(images)
    assert found.shape == (20, 7)
    x = images.tensor(slice(None), network.scale)
    (name, _, log_prob), (_, top, whole) = network.climb(x)
    log_prob = log_prob.detach().cpu().double().numpy()  # (N, J, 2, 2)
    posterior = (whole + top.log_weights).flatten(1).softmax(1).detach().cpu().double().numpy()
    tables = fitted.means_["convgmm2"].astype(float).reshape(len(posterior[0]), 4, -1)
    weights = fitted.weights_[name].astype(float)
    for n in range(20):
        rows = []
        for cell in range(4):
            z, marginal = log_prob[n, :, cell // 2, cell % 2], weights[cell // 2, cell % 2]
            expected = posterior[n] @ tables[:, cell]
            rows.append([
                np.log(marginal @ np.exp(z - z.max())) + z.max(),
                np.log(expected @ np.exp(z - z.max())) + z.max(),
                expected @ z,
                z.max(),
            ])  # fmt: skip
        rows = np.array(rows)
        short = rows[:, 3] - rows[:, 1]
        by_hand = [*rows.sum(0), np.sqrt((short**2).mean()), short.max()]
        np.testing.assert_allclose(found[n, :6], by_hand, rtol=1e-4, atol=1e-3)
    jacobian = 64 * float(network.scale.log())
    log_density = fitted._score_images(images, "density", -1)
    np.testing.assert_allclose(found[:, 6] - jacobian, log_density, rtol=1e-4)


def test_surprise_is_standardised_by_training_images(rng):
    statistics = rng.normal(size=(500, 13)) * np.arange(1, 14)
    score = Surprise().fit(statistics, None).score(statistics)
    assert score.mean() == pytest.approx(0, abs=1e-9)
    worse = statistics.copy()
    worse[:, 4] += 1  # a larger shortfall in the first layer
    assert (Surprise().fit(statistics, None).score(worse) < score).all()
    better = statistics.copy()
    better[:, -1] += 1  # the whole gains on its parts
    assert (Surprise().fit(statistics, None).score(better) > score).all()


def test_typicality_is_low_on_both_sides(rng):
    statistics = rng.normal(size=(500, 7))
    est = Typicality().fit(statistics, np.random.RandomState(0))
    typical, low, high = est.score(np.array([[0.0] * 7, [-6.0] * 7, [6.0] * 7]))
    assert typical > low
    assert typical > high


def test_uncalibrated_scores_are_the_estimators(fitted, digits):
    X, _ = digits
    parameters = {"layers": [ConvGMM(20, 4, shared=False), ConvGMM(10)], "image_shape": (8, 8),
                  "max_epochs": 5, "random_state": 0}  # fmt: skip
    for method in ("density", "contrast", "layer"):
        detector = DCGMMOutlierDetector(score_method=method, **parameters).fit(X)
        est = DCGMMEstimator(score_method=method, **parameters).fit(X)
        np.testing.assert_array_equal(detector.score_samples(X), est.score_samples(X))


def test_auto_takes_what_the_stack_has(digits):
    X = digits[0][:300]
    flat = DCGMMOutlierDetector(layers="dcgmm-a", image_shape=(8, 8), max_epochs=1).fit(X)
    np.testing.assert_array_equal(
        flat.score_samples(X), flat.calibrate(X, "density").score_samples(X)
    )
    for method in ("surprise", "typicality", "contrast"):
        with pytest.raises(ValueError, match=f"score_method='{method}' compares"):
            flat.calibrate(X, method)
    assert flat.score_method == "density"  # as before the failure
    layerwise = DCGMMOutlierDetector(objective="layerwise", image_shape=(8, 8), max_epochs=1)
    assert np.isfinite(layerwise.fit(X).score_samples(X)).all()
    with pytest.raises(ValueError, match="score_method='surprise' needs one density"):
        layerwise.calibrate(X, "surprise")


def test_calibrate_keeps_the_stack(fitted, digits):
    X, y = digits
    est = pickle.loads(pickle.dumps(fitted))
    assert est.calibrate(X[y != 8]).offset_ == pytest.approx(fitted.offset_)
    np.testing.assert_allclose(est.score_samples(X), fitted.score_samples(X))
    est.calibrate(X[:200], "density")
    assert (est.predict(X[:200]) == -1).mean() == pytest.approx(0.1, abs=0.01)


def test_missing_pixels_say_nothing(fitted, digits):
    """A window without pixels has no log density, and falls short of nothing."""
    X = digits[0][:50].reshape(-1, 8, 8).copy()
    X[:, :4, :4] = np.nan
    statistics = fitted._statistics(fitted._check_fitted_images(X.reshape(-1, 64)))
    x = fitted._check_fitted_images(X.reshape(-1, 64)).tensor(slice(None), fitted._network.scale)
    windows = next(fitted._network.climb(x))[2].detach().cpu()  # (N, K, 2, 2)
    np.testing.assert_array_equal(windows[:, :, 0, 0], 0)
    assert np.isfinite(statistics).all()
    X[:] = np.nan
    nothing = fitted._statistics(fitted._check_fitted_images(X.reshape(-1, 64)))
    np.testing.assert_allclose(nothing, 0, atol=1e-4)


def test_calibration_needs_images(fitted, digits):
    est = pickle.loads(pickle.dumps(fitted))
    with pytest.raises(ValueError, match="X must hold at least two images"):
        est.calibrate(digits[0][:1])
    for method in METHODS:
        assert np.isfinite(est.calibrate(digits[0][:5], method).score_samples(digits[0])).all()


def test_a_stack_of_one_window_is_scored(digits):
    X = digits[0][:300]
    est = DCGMMOutlierDetector(
        layers=[ConvGMM(10), ConvGMM(5)], image_shape=(8, 8), max_epochs=2, random_state=0
    ).fit(X)
    for method in METHODS:
        scores = est.calibrate(X, method).score_samples(X)
        alone = np.concatenate([est.score_samples(x[None]) for x in X[:20]])
        # Rounding must not be blown up to a statistic.
        assert np.abs(alone - scores[:20]).max() <= max(1e-3 * np.ptp(scores), 1e-4)


def test_impossible_scores_are_found_before_training(digits):
    est = DCGMMOutlierDetector(
        layers="dcgmm-a", image_shape=(8, 8), score_method="surprise", max_epochs=10**9
    )
    with pytest.raises(ValueError, match="score_method='surprise' compares"):
        est.fit(digits[0])


def test_precision_is_kept(fitted, digits):
    X = digits[0]
    assert fitted.score_samples(X[:5].astype(np.float32)).dtype == np.float32
    assert fitted.score_samples(X[:5].astype(np.float64)).dtype == np.float64


@pytest.mark.parametrize("value", [0, 0.6, -1])
def test_contamination_is_checked(digits, value):
    with pytest.raises(ValueError, match=r"contamination must be a number > 0 and <= 0\.5"):
        DCGMMOutlierDetector(contamination=value, max_epochs=1).fit(digits[0])


def test_grid_search_by_roc_auc(digits):
    X, y = digits
    normal = y != 8
    fold = np.where(np.arange(len(X)) % 2, -1, 0)
    kept = normal | (fold == 0)  # outliers only where it is scored
    X, labels, fold = X[kept], np.where(normal, 1, -1)[kept], fold[kept]
    detector = DCGMMOutlierDetector(image_shape=(8, 8), max_epochs=5, random_state=0)
    search = GridSearchCV(
        make_pipeline(MinMaxScaler(), detector),
        {"dcgmmoutlierdetector__score_method": ["surprise", "density"]},
        scoring="roc_auc", cv=PredefinedSplit(fold), error_score="raise",
    ).fit(X, labels)  # fmt: skip
    assert search.best_score_ > 0.6
    assert set(search.predict(X)) == {-1, 1}
