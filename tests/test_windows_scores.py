"""Scores of all windows of images: where a defect is, and how abnormal it makes an image."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.datasets import make_spd_matrix
from sklearn.metrics import roc_auc_score

from skdcgmm import ConvGMM, DCGMMOutlierDetector
from skdcgmm.analysis.outliers import Extremes, weighted_quantile
from skdcgmm.estimators import planning
from skdcgmm.model.patches import (
    GaussianMixture,
    Patches,
    Resolution,
    Sums,
    offsets,
    random_windows,
    resolutions,
    windows_at,
)

LAYERS = [ConvGMM(6, 8), ConvGMM(4)]


def textures(rng, n_images, side=16, channels=1):
    """Noise that neighbours share, of any light."""
    noise = rng.normal(size=(n_images, side + 2, side + 2, channels))
    smooth = sum(noise[:, i : i + side, j : j + side] for i in range(3) for j in range(3)) / 3
    return (smooth + rng.normal(size=(n_images, 1, 1, 1))).astype(np.float32)


def scratch(images, rows=slice(5, 9), columns=slice(9, 11)):
    """Images with a scratch of random pixels."""
    damaged = images.copy()
    damaged[:, rows, columns] = np.random.default_rng(1).normal(
        size=damaged[:, rows, columns].shape
    )
    return damaged


def detector(**parameters):
    return DCGMMOutlierDetector(
        **{"layers": LAYERS, "max_epochs": 2, "random_state": 0, "score_method": "windows"}
        | parameters
    )


@pytest.fixture(scope="module")
def good():
    return textures(np.random.default_rng(0), 400)


@pytest.fixture(scope="module")
def fitted(good):
    return detector().fit(good[:300])


def test_log_densities_are_those_of_scipy(rng):
    weights, means = np.array([0.3, 0.7]), rng.normal(size=(2, 4))
    covariances = np.array([make_spd_matrix(4, random_state=k) for k in range(2)])
    second = weights[:, None, None] * (covariances + means[:, :, None] * means[:, None])
    sums = Sums(*(torch.tensor(x) for x in (weights, weights[:, None] * means, second)))
    v = rng.normal(size=(50, 4))
    by_hand = [
        multivariate_normal(mean, covariance + 0.1 * np.eye(4)).pdf(v)
        for mean, covariance in zip(means, covariances, strict=True)
    ]
    mixture = GaussianMixture.of(sums, 0.1)
    np.testing.assert_allclose(mixture.log_prob(torch.tensor(v)), np.log(weights @ by_hand))


def test_steps_of_all_values_are_expectation_maximisation(rng):
    """At a rate of one, and so the likelihood never falls."""
    v = torch.tensor(rng.normal(size=(300, 3)) * [1, 2, 3] + 5 * rng.integers(2, size=(300, 1)))
    part = Resolution.start(v, 3, torch.Generator().manual_seed(0))
    assert float(part.sums.weights.sum()) == pytest.approx(1)
    likelihoods = []
    for _ in range(10):
        likelihoods.append(float(part.mixture.log_prob(v).mean()))
        part = part.learn(v, 1.0)
    assert likelihoods[-1] > likelihoods[0] + 0.01
    assert (np.diff(likelihoods) > -0.01).all()  # but for what the floor adds
    r = part.mixture.scores(v).softmax(1)
    np.testing.assert_allclose(part.learn(v, 1.0).sums.first, r.T @ v / len(v))


@pytest.mark.parametrize(
    ("side", "kernel", "stride"), [(9, 3, 1), (9, 3, 2), (10, 3, 2), (5, 5, 2)]
)
def test_windows_reach_both_borders(side, kernel, stride):
    starts = offsets(side, kernel, stride)
    assert starts[0] == 0
    assert starts[-1] == side - kernel
    assert (torch.diff(starts) <= stride).all()


def test_windows_are_those_of_unfold(rng):
    x = torch.tensor(rng.normal(size=(3, 2, 7, 6)))
    found = windows_at(x, offsets(7, 3, 1), offsets(6, 2, 1), (3, 2))
    expected = x.unfold(2, 3, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).flatten(3)
    np.testing.assert_array_equal(found, expected)
    x[:, :, 3] = torch.nan
    drawn = random_windows(x, (3, 2), 500, torch.Generator().manual_seed(0))
    complete = {tuple(v) for v in expected.flatten(0, 2).tolist()}
    assert 0 < len(drawn) < 500
    assert {tuple(v) for v in drawn.tolist()} <= complete


@pytest.mark.parametrize("size", [(16, 16), (17, 13)])
def test_maps_are_the_lowest_of_the_windows_that_see_a_pixel(rng, size):
    """Against loops over pixels and windows of all resolutions."""
    x = torch.tensor(rng.normal(size=(2, 1, *size)))
    learnt = Patches.of(x, (4, 3), (2, 1))
    for _ in range(2):
        learnt = learnt.learn(x, 10**6, torch.Generator().manual_seed(0))
    x[1, 0, 3, 4] = torch.nan
    values = learnt.log_prob(x)
    found = learnt.lowest(size, values)
    expected = np.full((2, *size), np.inf)
    for level, (some, of_windows) in enumerate(zip(resolutions(x, (4, 3)), values, strict=True)):
        step = 2**level
        height, width = some.shape[2:]
        for n, r, q in np.ndindex(*of_windows.shape):
            value = float(of_windows[n, r, q])
            top = min(2 // step or 1, 2) * r if r < of_windows.shape[1] - 1 else height - 4
            for i, j in np.ndindex(*size):
                row, column = min(i // step, height - 1), min(j // step, width - 1)
                if top <= row < top + 4 and q <= column < q + 3 and not np.isnan(value):
                    expected[n, i, j] = min(expected[n, i, j], value)
    np.testing.assert_array_equal(found, np.where(np.isinf(expected), np.nan, expected))


def test_the_score_of_an_image_begins_with_the_lowest_of_its_map(fitted, good):
    X = np.concatenate([good[300:350], scratch(good[350:])])
    lowest = fitted.score_map(X).reshape(len(X), -1).min(1)
    rows = fitted._measure(fitted._check_fitted_images(X), windows=True)
    np.testing.assert_allclose(lowest, fitted._extremes.worst(rows), rtol=1e-4, atol=1e-4)
    extremes = fitted._extremes
    line, spread = extremes._line, extremes._level_spread
    lowest = np.minimum(lowest, extremes._highest)
    level = np.maximum(0, (rows[:, -1] - line[0] - line[1] * lowest) / spread)
    expected = lowest - 0.75 * level**2
    np.testing.assert_allclose(fitted.score_samples(X), expected, rtol=1e-3, atol=1e-3)


def test_defects_are_found_and_shown(fitted, good):
    normal, damaged = good[300:350], scratch(good[350:])
    scores = fitted.score_samples(np.concatenate([normal, damaged]))
    assert roc_auc_score(np.arange(100) >= 50, -scores) > 0.95
    maps = fitted.score_map(damaged)
    assert maps.shape == (50, 16, 16)
    at_defect, elsewhere = maps[:, 5:9, 9:11].mean((1, 2)), maps[:, :, :2].mean((1, 2))
    assert (at_defect < elsewhere).mean() > 0.9
    assert -1 < np.median(fitted.score_map(normal).min((1, 2))) < 1


def test_smooth_images_are_abnormal_too(fitted, good):
    smooth = good[300:].mean((1, 2), keepdims=True) + 0.2 * (
        good[300:] - good[300:].mean((1, 2), keepdims=True)
    )
    assert (fitted.score_map(smooth).min((1, 2)) > 0).mean() > 0.9  # no window is unlikely
    scores = fitted.score_samples(np.concatenate([good[300:], smooth]))
    assert roc_auc_score(np.arange(200) >= 100, -scores) > 0.95


def test_thresholds_hold_on_new_images():
    X = textures(np.random.default_rng(2), 3000, side=12)
    est = detector(contamination=0.1, max_epochs=1, window_size=4).fit(X[:1500])
    called = (est.predict(X[1500:]) == -1).mean()
    assert 0.1 / 1.5 < called < 0.1 * 1.5
    scores = est.score_samples(X[1500:])
    est.set_params(contamination=0.2)
    more = (est.predict(X[1500:]) == -1).mean()
    assert 0.2 / 1.5 < more < 0.2 * 1.5
    np.testing.assert_array_equal(est.score_samples(X[1500:]), scores)
    est.set_params(contamination=0)
    with pytest.raises(ValueError, match="contamination must be a number > 0"):
        est.predict(X[:2])


def test_missing_pixels_hide_windows_only(fitted, good):
    X = scratch(good[300:320])
    hidden = X.copy()
    hidden[:, :, :4] = np.nan
    found, whole = fitted.score_map(hidden), fitted.score_map(X)
    assert np.isnan(found[:, :, :4]).all()
    assert not np.isnan(found[:, :, 4:]).any()
    assert (found[:, :, 4:] >= whole[:, :, 4:] - 1e-4).all()  # fewer windows see a pixel
    assert np.isfinite(fitted.score_samples(hidden)).all()
    hidden[:] = np.nan
    assert np.isnan(fitted.score_map(hidden)).all()
    np.testing.assert_array_equal(fitted.score_samples(hidden), 0)


def test_training_images_may_miss_pixels(good):
    X = good.copy()
    X[:, 8, 8] = np.nan
    est = detector(score_method="both").fit(X[:300])
    scores = est.score_samples(np.concatenate([good[350:], scratch(good[350:])]))
    assert roc_auc_score(np.arange(100) >= 50, -scores) > 0.9
    X[:, ::2] = np.nan
    with pytest.raises(ValueError, match="no image of fit had one without missing pixels"):
        detector().fit(X[:300])
    est.fit(X[:300])  # the whole alone
    assert np.isfinite(est.score_samples(X)).all()
    with pytest.raises(ValueError, match="images without a window that has all its pixels"):
        est.score_map(X)


def test_colours_tensors_and_strides(rng):
    X = textures(rng, 120, side=12, channels=3)
    est = detector(window_size=(4, 5), window_stride=(1, 2)).fit(X)
    assert est._patches.kernel == (4, 5)
    assert est.score_map(X).shape == (120, 12, 12)
    found = est.score_map(torch.from_numpy(X))
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found, est.score_map(X))


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"window_size": 17}, "window_size must fit the images of height x width 16x16; got 17"),
        ({"window_size": 0}, "window_size must be an integer >= 1"),
        ({"window_stride": (1, 2, 3)}, r"window_stride must be one integer or \(height, width\)"),
    ],
)
def test_windows_that_do_not_fit(good, parameters, match):
    with pytest.raises(ValueError, match=match):
        detector(max_epochs=10**9, **parameters).fit(good)


def test_small_images_and_few():
    rng = np.random.default_rng(0)
    for shape in ((2, 3), (1, 9), (7, 8)):
        X = rng.normal(size=(2, *shape))
        est = detector(layers=[ConvGMM(2), ConvGMM(1)]).fit(X)
        assert est.score_map(X).shape == (2, *shape)
        assert np.isfinite(est.score_samples(X)).all()
    plain = DCGMMOutlierDetector(max_epochs=1, random_state=0).fit(rng.normal(size=(50, 6)))
    with pytest.raises(ValueError, match="fitted to plain features"):
        plain.score_map(np.zeros((2, 6)))
    with pytest.raises(ValueError, match="score_method='windows' looks at windows of images"):
        plain.set_params(score_method="windows").fit(rng.normal(size=(50, 6)))


def test_chunks_go_on_learning(good):
    est = detector(random_state=0)
    for chunk in np.array_split(good[:300], 3):
        est.partial_fit(chunk)
    before = est._patches.n_steps
    scores = est.score_samples(np.concatenate([good[300:], scratch(good[300:])]))
    assert roc_auc_score(np.arange(200) >= 100, -scores) > 0.9
    est.partial_fit(good[:100])
    assert est._patches.n_steps > before
    assert est.fit(good[:300])._patches.n_steps <= before  # anew


def test_images_without_weight_do_not_count(good):
    X = np.concatenate([good[:200], 5 + scratch(good[:200])])
    weight = np.repeat([1.0, 0.0], 200)
    weighted, without = detector().fit(X, sample_weight=weight), detector().fit(X[:200])
    np.testing.assert_allclose(weighted.score_samples(X), without.score_samples(X), rtol=1e-5)
    assert weighted.offset_ == without.offset_
    half = detector(contamination=0.2).fit(good, sample_weight=np.linspace(0.5, 1, 400))
    assert (half.predict(good) == -1).mean() == pytest.approx(0.2, abs=0.1)


def test_both_scores_add_up(digits):
    """By how far images are told from their views, here digits: nearly all."""
    est = detector(image_shape=(8, 8), layers=[ConvGMM(20, 4, shared=False), ConvGMM(20)],
                   window_size=3, max_epochs=20)  # fmt: skip
    X = digits[0]
    est.fit(X)
    whole = est.calibrate(X, "surprise").score_samples(X)
    both = est.calibrate(X, "both").score_samples(X)
    upright = est._calibrated._upright
    assert 0.5 < upright <= 1
    rows = est._measure(est._check_fitted_images(X), windows=True)
    worst = np.minimum(est._extremes.worst(rows), est._extremes._highest)
    low = np.quantile(est._extremes.worst(rows), 0.05)
    windows = est.calibrate(X, "windows").score_samples(X)
    level = windows - worst  # squared, times -0.75
    lowest = (1 - upright) * worst + upright * np.minimum(0, worst - low)
    expected = 2 * upright * whole / whole.std() + lowest + level
    np.testing.assert_allclose(both, expected, rtol=1e-3, atol=1e-3)


def test_weighted_quantiles():
    values, weight = np.array([3.0, 1.0, 2.0, 4.0]), np.array([1.0, 2.0, 1.0, 0.0])
    assert weighted_quantile(values, None, 0.5) == 2.5
    assert [weighted_quantile(values, weight, share) for share in (0.5, 0.6, 1.0)] == [1, 2, 3]


def test_levels_are_judged_beside_the_worst_window(rng):
    """A high mean counts where the lowest value does not explain it, and only a high one."""
    lowest = rng.normal(size=2000)
    rows = np.column_stack([10 + 2 * lowest, lowest + 0.1 * rng.normal(size=2000)])
    extremes = Extremes().fit(rows)
    usual, high, low = np.array([[10.0, 0.0], [10.0, 1.0], [10.0, -1.0]])
    scores = extremes.score(np.array([usual, high, low]))
    assert scores[1] < scores[2] - 3
    assert scores[0] == pytest.approx(scores[2], abs=0.5)
    assert extremes.worst(rows).mean() == pytest.approx(0, abs=0.1)


def test_the_same_stays_the_same(fitted, good):
    other = clone(fitted).fit(good[:300])
    np.testing.assert_array_equal(other.score_map(good[:5]), fitted.score_map(good[:5]))
    alone = np.concatenate([fitted.score_samples(x[None]) for x in good[:5]])
    np.testing.assert_allclose(alone, fitted.score_samples(good[:5]), atol=1e-2)


def test_steps_and_parameters_of_large_images_are_bounded():
    sides = (28, 64, 256)
    stacks = [
        planning.build(DCGMMOutlierDetector(), (1, side, side), 5000, device="meta", pixels="tiles")
        for side in sides
    ]
    assert [stack.layers[0].spec.shared for stack in stacks] == [False, False, True]
    assert stacks[2].n_parameters < 5 * stacks[1].n_parameters
    steps = [
        planning.largest_step(
            planning.build(DCGMMOutlierDetector(), (1, side, side), 5000, pixels="tiles")
        )
        for side in sides[:2]
    ]
    assert steps[0] > 250 > steps[1] > 50
