"""Leave one class out: train on nine classes, tell the tenth among all test images."""

import time

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks import models
from skdcgmm._outliers import CALIBRATIONS, N_CALIBRATION

# Scores of a deep stack that are the estimator's, too.
PLAIN_METHODS = ("contrast", "density", "layer")
MODELS = models.OUTLIERS


def tasks(quick):
    return [{"left_out": left_out} for left_out in (range(1, 9, 7) if quick else range(10))]


def measure(data, model, seed, fit_parameters, left_out):
    est = MODELS[model](image_shape=data.image_shape, seed=seed, **fit_parameters)
    X = data.X_train[data.y_train != left_out]
    deep = model == "DCGMM"
    if deep:
        est.set_params(score_method="density")
    start = time.perf_counter()
    est.fit(X)
    fit_s = time.perf_counter() - start
    for method, values, more_s, score_s in (deep_scores if deep else only_score)(
        est, X, data.X_test
    ):
        yield {
            "method": method,
            "auc": round(float(roc_auc_score(data.y_test == left_out, -values)), 4),
            "fit_s": round(fit_s + more_s, 2),
            "score_s": round(score_s, 2),
        }


def only_score(est, X, X_test):
    values, seconds = timed(est.score_samples, X_test)
    yield None, values, 0, seconds


def deep_scores(est, X, X_test):
    """All scores of one fitted stack: method, values, seconds to calibrate and to score.

    What takes most of the time of the calibrated scores is shared by both.
    """
    rng = np.random.RandomState(est.random_state)
    chosen = X[rng.permutation(len(X))[:N_CALIBRATION]]
    known, known_s = timed(est._statistics, est._check_fitted_images(chosen))
    found, found_s = timed(est._statistics, est._check_fitted_images(X_test))
    for method, make in CALIBRATIONS.items():
        calibration, fit_s = timed(make().fit, known, rng)
        values, score_s = timed(calibration.score, found)
        yield method, values, known_s + fit_s, found_s + score_s
    for method in PLAIN_METHODS:
        est.calibrate(X[:2], method)
        _, values, _, score_s = next(only_score(est, X, X_test))
        yield method, values, 0, score_s


def timed(function, *arguments):
    start = time.perf_counter()
    return function(*arguments), time.perf_counter() - start
