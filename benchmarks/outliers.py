"""Leave one class out: train on nine classes, tell the tenth among all test images."""

from sklearn.metrics import roc_auc_score

from benchmarks import models
from benchmarks.clock import timed

METHODS = ("both", "windows", "surprise", "density")
MODELS = models.OUTLIERS


def tasks(data, quick):
    return [{"left_out": left_out} for left_out in (range(1, 9, 7) if quick else range(10))]


def measure(data, model, seed, fit_parameters, left_out):
    est = MODELS[model](image_shape=data.image_shape, seed=seed, **fit_parameters)
    X = data.X_train[data.y_train != left_out]
    deep = model == "DCGMM"
    if deep:
        est.set_params(score_method="density")
    _, fit_s = timed(est.fit, X)
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
    """All scores of one fitted stack: method, values, seconds to calibrate and to score."""
    for method in METHODS:
        _, calibrate_s = timed(est.calibrate, X, method)
        values, score_s = timed(est.score_samples, X_test)
        yield method, values, calibrate_s, score_s
