"""Extreme data, long use, threads and processes."""

import copy
import hashlib
import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from skdcgmm import ConvGMM, DCGMMClassifier, DCGMMEstimator, DCGMMOutlierDetector

SIDE, N = 8, 60
RNG = np.random.default_rng(0)
NOISE = RNG.random((N, SIDE * SIDE)).astype(np.float32)
ONE_PIXEL = np.zeros_like(NOISE)
ONE_PIXEL[:, 27] = NOISE[:, 27]
EXTREME = {
    "all equal": np.full_like(NOISE, 0.3),
    "all zero": np.zeros_like(NOISE),
    "two images": NOISE[:2][np.arange(N) % 2],
    "tiny scale": 1e-6 * NOISE,
    "huge scale": 1e6 * NOISE,
    "far from zero": 1e4 + NOISE,
    "heavy tails": RNG.standard_cauchy(NOISE.shape).astype(np.float32),
    "one outlier": np.where(np.arange(N)[:, None] == 0, 1e12, NOISE).astype(np.float64),
    "one pixel": ONE_PIXEL,
    "one feature seen": np.where(np.arange(SIDE * SIDE) == 5, NOISE, np.nan),
    "an image without pixels": np.where(np.arange(N)[:, None] == 0, np.nan, NOISE),
    "integers": (255 * NOISE).astype(np.uint8),
    "booleans": NOISE > 0.5,
}
IMAGES = {"image_shape": (SIDE, SIDE), "max_epochs": 3, "random_state": 0}
STACK = [ConvGMM(5, 4), ConvGMM(3)]
ESTIMATORS = {
    "joint": DCGMMEstimator(2, **IMAGES),
    "flat": DCGMMEstimator(layers=[ConvGMM(2)], max_epochs=3, random_state=0),
    "layerwise": DCGMMEstimator(
        layers=STACK, objective="layerwise", score_method="layer", **IMAGES
    ),
    "detector": DCGMMOutlierDetector(**IMAGES),
    "classifier": DCGMMClassifier(**IMAGES),
}


def fit(est, X):
    with warnings.catch_warnings():
        # Of the mixture of statistics that the detector fits to very few different images.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return est.fit(X, np.arange(len(X)) % 2)


@pytest.mark.parametrize("kind", EXTREME)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_extreme_data_give_finite_answers(name, kind):
    X = EXTREME[kind]
    est = fit(ESTIMATORS[name], X)
    assert np.isfinite(est.score_samples(X)).all()
    assert len(est.predict(X)) == N
    assert np.isfinite([row["loss"] for row in est.history_]).all()
    for means in est.means_.values():
        assert np.isfinite(means).all()
    if hasattr(est, "predict_proba"):
        np.testing.assert_allclose(est.predict_proba(X).sum(1), 1, atol=1e-5)
    if hasattr(est, "sample"):
        assert np.isfinite(est.sample(3)[0]).all()
        assert np.isfinite(est.impute(X)).all()


@pytest.mark.parametrize("exponent", [-85, 75])
@pytest.mark.parametrize("name", [*ESTIMATORS, "pyramid"])
def test_units_whose_squares_are_beyond_single_precision(name, exponent, digits):
    """A power of two changes no digit: neither of answers nor of parameters."""
    X, y = digits[0][:100], np.where(np.arange(100) < 60, digits[1][:100] % 3, -1)
    est = DCGMMEstimator(3, **IMAGES) if name == "pyramid" else clone(ESTIMATORS[name])
    est.set_params(**{"pixels": "tiles"} if name == "joint" else {})
    unit = np.float32(2) ** exponent
    answers = []
    for scale in (1, unit):
        fitted = est.fit(X * scale, y)
        found = [fitted.predict(X * scale), np.diff(fitted.score_samples(X * scale))]
        if hasattr(fitted, "sample"):
            holes = np.where(np.arange(64) < 20, np.nan, X[:9]) * scale
            made = fitted.sample(3)[0], fitted.sharpen(X[:5] * scale, n_steps=3, pull=0.1)
            found += [images / scale for images in (*made, fitted.impute(holes.astype("f4")))]
        parameters = fitted.covariances_, fitted.precisions_
        assert all(np.isfinite(values).all() for p in parameters for values in p.values())
        fitted.covariances_, fitted.means_ = fitted.covariances_, fitted.means_
        fitted.precisions_ = fitted.precisions_
        answers.append([*found, np.diff(fitted.score_samples(X * scale))])
    for expected, found in zip(*answers, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-3)


FAR = NOISE[:4].copy()
FAR[1, 27] = 1e20


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_image_beyond_all_has_the_lowest_score(name):
    # Of a layer-wise stack, the first layer's: for upper ones, a part is like any other.
    est = fit(clone(ESTIMATORS[name]).set_params(score_layer=0), NOISE)
    scores = est.score_samples(FAR)
    assert scores[1] == -np.inf
    # Standard deviations of a detector's terms may add up to nearly zero.
    expected = est.score_samples(NOISE[[0, 2, 3]])
    np.testing.assert_allclose(np.delete(scores, 1), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", ["both", "windows", "surprise", "density", "layer"])
def test_an_image_beyond_all_is_an_outlier(method):
    est = DCGMMOutlierDetector(score_method=method, layers=STACK, score_layer=0, **IMAGES)
    fit(est, NOISE)
    assert est.score_samples(FAR)[1] == est.decision_function(FAR)[1] == -np.inf
    assert est.predict(FAR)[1] == -1
    with pytest.raises(ValueError, match="values so far from those of fit"):
        est.calibrate(FAR)


@pytest.mark.parametrize("name", ["joint", "flat", "classifier"])
@pytest.mark.parametrize(
    "method", ["predict", "predict_proba", "transform", "sample_like", "impute", "draw"]
)
def test_an_image_beyond_all_is_of_no_cluster(name, method):
    est = fit(clone(ESTIMATORS[name]), NOISE)
    if method == "transform":
        if name == "classifier":
            return
        est.set_params(transform_layers=0)
    call = (lambda X: est.impute(X, method="sample")) if method == "draw" else getattr(est, method)
    with pytest.raises(ValueError, match=r"so far from those of fit.* is row 1"):
        call(FAR)
    if method == "sample_like":
        with pytest.raises(ValueError, match="the first such image is row 1"):
            est.sample_like(FAR, n_samples=3)


def test_a_part_beyond_all_tells_a_layerwise_stack_nothing():
    est = fit(clone(ESTIMATORS["layerwise"]), NOISE).set_params(transform_layers=[0, 1])
    parts = est.transform(FAR)[:, :20].reshape(4, 4, 5)
    np.testing.assert_allclose(parts[1, 0], 0.2, rtol=1e-6)
    assert np.isfinite(est.predict_proba(FAR)).all()
    assert np.isfinite(est.sample_like(FAR, layer=0)).all()


@pytest.mark.parametrize("name", ["joint", "flat", "layerwise"])
@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_units_do_not_matter(name, scale):
    X = NOISE.astype(np.float64)
    est = clone(ESTIMATORS[name]).fit(X)
    ours = est.predict_proba(X), est.score_samples(X)
    est.fit(scale * X)
    np.testing.assert_allclose(est.predict_proba(scale * X), ours[0], atol=1e-6)
    if name != "layerwise":
        shifted = ours[1] - X.shape[1] * np.log(scale)
        np.testing.assert_allclose(est.score_samples(scale * X), shifted, rtol=1e-6)


def test_one_feature():
    X = np.r_[RNG.normal(-5, 1, 200), RNG.normal(5, 1, 200)][:, None]
    labels = DCGMMEstimator(2, random_state=0).fit_predict(X)
    assert len(set(labels[:200])) == len(set(labels[200:])) == 1
    assert labels[0] != labels[-1]


def test_a_hundred_thousand_features():
    X = np.repeat([[0.0], [1.0]], 10, axis=0) + 0.1 * RNG.standard_normal((20, 100_000))
    est = DCGMMEstimator(2, max_epochs=5, random_state=0).fit(X.astype(np.float32))
    assert np.isfinite(est.score(X))
    assert est.means_["convgmm1"].shape == (2, 100_000)


def test_more_components_than_images():
    with pytest.raises(ValueError, match="must be at most 5"):
        DCGMMEstimator(6).fit(NOISE[:5])


AFTER_TRAINING = {
    "merging": "skdcgmm.estimators.clusterer.merge",
    "labels": "skdcgmm.estimators.clusterer.DCGMMEstimator._predict_images",
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("place", AFTER_TRAINING)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("objective", ["joint", "layerwise"])
def test_what_stops_after_the_last_epoch_leaves_the_new_model(
    monkeypatch, objective, earlier, method, place, error
):
    est = DCGMMEstimator(2, layers=STACK, objective=objective, score_method="layer", **IMAGES)
    if earlier:
        est.fit(NOISE)
    X = NOISE[:40, ::-1].copy()
    undisturbed = getattr(copy.deepcopy(est), method)(X)

    def stop(*args, **kwargs):
        raise error("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(AFTER_TRAINING[place], stop)
        with pytest.raises(error, match="stopped"):
            getattr(est, method)(X)
    for name in ("means_", "weights_", "covariances_"):
        for ours, theirs in zip(
            getattr(est, name).values(), getattr(undisturbed, name).values(), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(est.score_samples(X), undisturbed.score_samples(X))
    assert est.history_ == undisturbed.history_
    absent = set(vars(undisturbed)) - set(vars(est))
    assert {"labels_"} <= absent <= {"labels_", "children_", "distances_"}
    if place == "merging":
        assert {"children_", "distances_"} <= absent
    if "children_" in absent:
        with pytest.raises(ValueError, match="n_clusters=2 needs a tree of mergers"):
            est.predict(X)
        est.set_params(n_clusters=None)  # its components are known
        undisturbed.set_params(n_clusters=None)
    np.testing.assert_array_equal(est.predict_proba(X), undisturbed.predict_proba(X))
    # It can be kept, and goes on.
    est = pickle.loads(pickle.dumps(est)).partial_fit(X)
    np.testing.assert_array_equal(est.score_samples(X), undisturbed.partial_fit(X).score_samples(X))
    np.testing.assert_array_equal(est.children_, undisturbed.children_)
    np.testing.assert_array_equal(est.labels_, undisturbed.labels_)


class Batches:
    """Batches of which a later one, in the first epoch of a training, is not to be had."""

    def __init__(self, error):
        self.error, self.n_passes = error, 0

    def __iter__(self):
        self.n_passes += 1
        yield 1 - NOISE[:30]
        if self.n_passes == 2:
            raise self.error("stopped")
        yield 1 - NOISE[30:]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("earlier", [False, True])
def test_what_stops_the_first_epoch_leaves_the_earlier_model(earlier, error):
    est = DCGMMEstimator(2, layers=STACK, **IMAGES)
    if earlier:
        est.fit(NOISE)
    attributes = dict(vars(est))
    with pytest.raises(error, match="stopped"):
        est.fit(Batches(error))
    assert vars(est) == attributes
    if earlier:
        np.testing.assert_array_equal(est.predict(NOISE), est.labels_)
        np.testing.assert_array_equal(
            est.score_samples(NOISE), clone(est).fit(NOISE).score_samples(NOISE)
        )


def test_threads_predict_what_one_thread_does(digits):
    X = digits[0]
    est = DCGMMEstimator(5, image_shape=(8, 8), max_epochs=2, random_state=0).fit(X)
    parts = np.array_split(X, 24)
    expected = [(est.predict_proba(part), est.score_samples(part)) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda p: (est.predict_proba(p), est.score_samples(p)), parts))
        drawn = list(pool.map(lambda seed: est.sample(5, random_state=seed)[0], range(8)))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
    for seed, images in enumerate(drawn):
        np.testing.assert_array_equal(images, est.sample(5, random_state=seed)[0])


def test_threads_fit_what_one_thread_does():
    def score(seed):
        return DCGMMEstimator(2, **{**IMAGES, "random_state": seed}).fit(NOISE).score(NOISE)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(score, range(4))) == [score(seed) for seed in range(4)]


def threads_after_fit(seed):
    DCGMMEstimator(2, **{**IMAGES, "random_state": seed}).fit(NOISE)
    return torch.get_num_threads()


def test_workers_share_the_cores():
    before = torch.get_num_threads()
    in_workers = Parallel(n_jobs=2)(delayed(threads_after_fit)(seed) for seed in range(2))
    assert max(in_workers) <= max(1, os.cpu_count() // 2)
    threads_after_fit(0)
    assert torch.get_num_threads() == before


FIT_AND_HASH = """
import hashlib, numpy as np
from sklearn.datasets import load_digits
from skdcgmm import DCGMMEstimator
X = load_digits().data[:200]
est = DCGMMEstimator(5, image_shape=(8, 8), max_epochs=2, random_state=0).fit(X)
print(hashlib.sha256(est.score_samples(X).tobytes() + est.sample(3)[0].tobytes()).hexdigest())
"""


def test_processes_agree(digits):
    X = (digits[0][:200] * 16).astype(np.float64)
    est = DCGMMEstimator(5, image_shape=(8, 8), max_epochs=2, random_state=0).fit(X)
    ours = hashlib.sha256(est.score_samples(X).tobytes() + est.sample(3)[0].tobytes())
    run = subprocess.run(
        [sys.executable, "-c", FIT_AND_HASH],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split()[-1] == ours.hexdigest()


def resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_long_use_takes_no_more_memory(tmp_path):
    est = DCGMMEstimator(2, layers=STACK, **IMAGES)

    def use(times):
        nonlocal est
        for _ in range(times):
            est.partial_fit(NOISE)
            est.score_samples(NOISE)
            est.sample(2)
            est.save(tmp_path / "model")
            est = DCGMMEstimator.load(tmp_path / "model")
            est.history_ = est.history_[-1:]  # one row a chunk, which is to grow

    use(30)
    before = resident_mib()
    use(100)
    assert resident_mib() - before < 3


def test_a_model_without_finite_scores_is_no_fit(digits, monkeypatch):
    """What was trained stays after an interrupt, but not if it turns out to be of no use."""
    X = digits[0][:300]
    est = DCGMMEstimator(3, image_shape=(8, 8), max_epochs=2, random_state=0).fit(X)
    before = est.predict_proba(X)

    def overflow(*arguments):
        raise FloatingPointError("images have no finite scores")

    monkeypatch.setattr("skdcgmm.estimators.clusterer.merge", overflow)
    with pytest.raises(ValueError, match="made training diverge"):
        est.set_params(max_epochs=1, random_state=1).fit(X)
    np.testing.assert_array_equal(est.predict_proba(X), before)
