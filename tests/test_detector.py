import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_outlier_detector
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from torch.utils.data import DataLoader

from skdcgmm import ConvGMM, DCGMMEstimator, DCGMMOutlierDetector
from skdcgmm.analysis.outliers import Surprise, views
from skdcgmm.data import Images
from skdcgmm.model.tree import SHORTFALL

METHODS = ["both", "windows", "surprise", "density", "layer"]
# Columns of what the scores of a stack of two layers measure: statistics, log densities of views,
# and their shortfalls.
STATISTICS, VIEWS, SHORTFALLS = np.split(np.arange(11), [7, 9])


@pytest.fixture(scope="module")
def fitted(digits):
    X, y = digits
    detector = DCGMMOutlierDetector(
        image_shape=(8, 8), max_epochs=30, validation_fraction=None, random_state=0
    )
    return detector.fit(X[y != 8])


def measured(detector, X):
    """What the scores of a detector, which has a stack of two layers, are made of."""
    return detector._measure(detector._check_fitted_images(X), whole=True)


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
    tree = fitted._stack()
    found = measured(fitted, X)
    assert found.shape == (20, 11)
    found = found[:, STATISTICS]
    x = fitted._check_fitted_images(X).tensor(slice(None), tree.log_weights)
    (name, log_prob), (_, whole) = tree.climb(x)
    log_prob = log_prob.detach().cpu().double().numpy()  # (N, J, 2, 2)
    posterior = (whole.flatten(1) + tree.log_weights).softmax(1).detach().cpu().double().numpy()
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
    jacobian = 64 * float(tree.pixels.scale.log())
    log_density = pickle.loads(pickle.dumps(fitted)).calibrate(X, "density").score_samples(X)
    np.testing.assert_allclose(found[:, 6] - jacobian, log_density, rtol=1e-4)


def test_views_are_turned_by_a_quarter_and_a_half(fitted, digits):
    x = torch.arange(9.0).view(1, 1, 3, 3)
    expected = [x.rot90(n, (2, 3)).flatten().tolist() for n in range(3)]
    assert [view.flatten().tolist() for view in views(x)] == expected
    oblong = views(torch.arange(6.0).view(1, 1, 2, 3))
    assert [view.flatten().tolist() for view in oblong] == [[*range(6)], [*range(5, -1, -1)]]
    # The figures of a view are those of an image that looks so.
    X = digits[0][:10].reshape(-1, 8, 8)
    found = measured(fitted, X.reshape(-1, 64))
    turned = measured(fitted, np.rot90(X, axes=(1, 2)).reshape(-1, 64))[:, STATISTICS]
    np.testing.assert_allclose(found[:, VIEWS[0]], turned[:, -1], rtol=1e-5)
    np.testing.assert_allclose(found[:, SHORTFALLS[0]], turned[:, SHORTFALL], rtol=1e-5)


def typical_statistics(rng, n_images=500):
    """Of a stack of three layers, and three views."""
    return rng.normal(size=(n_images, 3, 13)) * np.arange(1, 14)


def rows_of(statistics):
    """What a score asks of images, from the statistics of all their views, (N, V, 13)."""
    return np.hstack([
        statistics[:, 0], statistics[:, 1:, -1], statistics[:, 1:, SHORTFALL:-1:6].sum(2),
    ])  # fmt: skip


def test_calibrated_scores_are_sums_of_standardised_terms(rng):
    statistics = typical_statistics(rng)
    rows = rows_of(statistics)
    est = Surprise(3).fit(rows, np.random.RandomState(0))
    score = est.score(rows)
    assert score.mean() == pytest.approx(0, abs=1e-9)
    terms = est._terms(rows)
    by_hand = ((terms - terms.mean(0)) / terms.std(0)).sum(1)
    np.testing.assert_allclose(score, by_hand, atol=1e-9)
    # The order of the views does not matter.
    rows = rows_of(statistics[:, [0, 2, 1]])
    other = Surprise(3).fit(rows, np.random.RandomState(0))
    np.testing.assert_allclose(other._terms(rows)[:, 1:], terms[:, 1:], atol=1e-9)


def test_what_lowers_a_score(rng):
    statistics = typical_statistics(rng)
    est = Surprise(3).fit(rows_of(statistics), np.random.RandomState(0))

    def change(index, view, step):
        changed = statistics.copy()
        changed[:, view, index] += step
        return np.delete(est._terms(rows_of(changed)) - est._terms(rows_of(statistics)), 0, axis=1)

    likelier_views = change(-1, slice(1, None), 5.0)
    assert (likelier_views[:, 0] < 0).all()
    worse_parts = change(4, 0, 1.0)  # a larger shortfall in the first layer
    assert (worse_parts[:, 1] < 0).all()
    assert (change(4, slice(1, None), 1.0)[:, 1] > 0).all()
    together = change(-1, 0, 1.0)  # the whole gains on its parts
    assert (together[:, 2] > 0).all()


def test_the_whole_counts_as_far_as_images_are_told_from_their_views(rng):
    statistics = typical_statistics(rng)
    est = Surprise(3).fit(rows_of(statistics), np.random.RandomState(0))
    assert est.upright(rows_of(statistics)) == 0  # no image is likelier than all its views
    statistics[:, 0, -1] += 1000
    assert est.upright(rows_of(statistics)) == 1
    statistics[:200, 0, -1] -= 2000
    assert est.upright(rows_of(statistics)) == pytest.approx(2 * 0.6 - 1)


def test_typicality_is_low_on_both_sides(rng):
    est = Surprise(3).fit(rows_of(typical_statistics(rng)), np.random.RandomState(0))
    values = np.full((3, 3, 13), [[[0.0]], [[-6.0]], [[6.0]]]) * np.arange(1, 14)
    typical, low, high = est._terms(rows_of(values))[:, 0]
    assert typical > low
    assert typical > high


def test_uncalibrated_scores_are_the_estimators(fitted, digits):
    X, _ = digits
    parameters = {"layers": [ConvGMM(20, 4, shared=False), ConvGMM(10)], "image_shape": (8, 8),
                  "max_epochs": 5, "validation_fraction": None, "random_state": 0}  # fmt: skip
    for method in ("density", "layer"):
        detector = DCGMMOutlierDetector(score_method=method, **parameters).fit(X)
        est = DCGMMEstimator(score_method=method, **parameters).fit(X)
        np.testing.assert_array_equal(detector.score_samples(X), est.score_samples(X))


def test_auto_takes_what_the_stack_has(digits):
    X = digits[0][:300]
    flat = DCGMMOutlierDetector(layers="dcgmm-a", image_shape=(8, 8), max_epochs=1).fit(X)
    np.testing.assert_array_equal(
        flat.score_samples(X), flat.calibrate(X, "density").score_samples(X)
    )
    for method in ("surprise", "both"):
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
    assert est.calibrate(X[y != 8]).offset_ < fitted.offset_  # as if it had not learnt from them
    np.testing.assert_allclose(est.score_samples(X), fitted.score_samples(X))
    est.calibrate(X[:200], "density")
    assert (est.predict(X[:200]) == -1).mean() == pytest.approx(0.1, abs=0.01)


def test_missing_pixels_say_nothing(fitted, digits):
    """A window without pixels has no log density, and falls short of nothing."""
    X = digits[0][:50].reshape(-1, 8, 8).copy()
    X[:, :4, :4] = np.nan
    tree = fitted._stack()
    x = fitted._check_fitted_images(X.reshape(-1, 64)).tensor(slice(None), tree.log_weights)
    windows = next(tree.climb(x))[1].detach().cpu()  # (N, K, 2, 2)
    np.testing.assert_array_equal(windows[:, :, 0, 0], 0)
    assert np.isfinite(measured(fitted, X.reshape(-1, 64))).all()
    X[:] = np.nan
    nothing = measured(fitted, X.reshape(-1, 64))
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
        {"dcgmmoutlierdetector__score_method": ["both", "windows"]},
        scoring="roc_auc", cv=PredefinedSplit(fold), error_score="raise",
    ).fit(X, labels)  # fmt: skip
    assert search.best_score_ > 0.6
    assert set(search.predict(X)) == {-1, 1}


def test_images_held_out_set_the_threshold(digits):
    X, y = digits
    normal = np.random.default_rng(0).permutation(X[y != 0])  # writers come one after the other
    detector = DCGMMOutlierDetector(
        contamination=0.05, image_shape=(8, 8), max_epochs=25, random_state=0
    )
    called = {}
    for fraction in (None, 0.2):
        detector.set_params(validation_fraction=fraction).fit(normal[:1000])
        called[fraction] = (detector.predict(normal[1000:]) == -1).mean()
    assert abs(called[0.2] - 0.05) < abs(called[None] - 0.05) / 2


def test_of_images_all_alike_any_other_is_an_outlier():
    rng = np.random.default_rng(0)
    X = np.repeat(rng.random((1, 8, 8)), 100, axis=0)
    for images in (X, np.zeros((100, 8, 8))):
        for method in ("both", "windows", "surprise", "density"):
            detector = DCGMMOutlierDetector(score_method=method, max_epochs=2, random_state=0)
            detector.fit(images)
            assert (detector.predict(rng.random((5, 8, 8))) == -1).all(), method


def test_what_is_held_out_by_default(digits):
    X = digits[0]

    def n_held_out(X, **parameters):
        detector = DCGMMOutlierDetector(max_epochs=1, random_state=0, **parameters).fit(X)
        return "validation_loss" in detector.history_[0]

    assert n_held_out(X[:50], image_shape=(8, 8))
    assert not n_held_out(X[:49], image_shape=(8, 8))
    assert not n_held_out(X)  # plain features
    assert not n_held_out(DataLoader(X, 500), image_shape=(8, 8))
    with pytest.raises(ValueError, match="validation_fraction must be 'auto'"):
        n_held_out(X, validation_fraction="all")


@pytest.mark.parametrize("n_images", [50, 60, 80, 200])
def test_few_images_tell_how_new_ones_score(n_images, digits):
    X = digits[0][np.random.RandomState(0).permutation(len(digits[0]))]
    detector = DCGMMOutlierDetector(image_shape=(8, 8), max_epochs=20, random_state=0)
    called = detector.fit(X[:n_images]).predict(X[n_images:]) == -1
    assert 0.01 < called.mean() < 0.3  # a tenth is asked for


def test_images_held_out_are_not_started_from(digits):
    """Whatever they are, but for the units, which are those of all."""
    images = Images(digits[0], (1, 8, 8), (64,)).hold_out(np.random.RandomState(0), 0.2)
    assert len(np.intersect1d(images.kept, images.held_out)) == 0
    assert len(images.kept) + len(images.held_out) == len(images)
    rng = np.random.RandomState(1)
    sampled = images.sample(10**6, rng).rows
    assert sorted(map(tuple, sampled)) == sorted(map(tuple, images.rows[images.kept]))
    # In another order, the images held out leave the units as they are, and all else.
    turned = digits[0].copy()
    turned[images.held_out] = turned[images.held_out[::-1]]
    make = {"image_shape": (8, 8), "validation_fraction": 0.2, "max_epochs": 1, "random_state": 0}
    one, other = (DCGMMEstimator(pixels="tiles", **make).fit(X) for X in (digits[0], turned))
    for name, means in one.means_.items():
        np.testing.assert_allclose(means, other.means_[name], atol=1e-3)


def test_what_a_stack_knows_by_heart_does_not_count_beside_windows(digits):
    X = digits[0]
    detector = DCGMMOutlierDetector(image_shape=(8, 8), max_epochs=5, random_state=0).fit(X[:40])
    both = detector.score_samples(X)
    windows = clone(detector).set_params(score_method="windows").fit(X[:40]).score_samples(X)
    np.testing.assert_allclose(both, windows)


def test_a_fit_stopped_in_calibration_keeps_its_stack(digits, monkeypatch):
    X = digits[0][:500]
    detector = DCGMMOutlierDetector(image_shape=(8, 8), max_epochs=2, random_state=0)
    expected = clone(detector).fit(X)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Surprise, "fit", stop)
        with pytest.raises(KeyboardInterrupt):
            detector.fit(X)
    assert detector.n_iter_ == 2
    assert not hasattr(detector, "offset_")
    with pytest.raises(NotFittedError, match=r"stopped before.*calibrate"):
        detector.predict(X)
    found = detector.calibrate(X, "surprise").score_samples(X)
    np.testing.assert_array_equal(found, expected.calibrate(X, "surprise").score_samples(X))
    assert np.isfinite(detector.calibrate(X, "both").score_samples(X)).all()  # windows, too
