"""Leave one class out: train on nine classes, tell the tenth among all test images."""

import time

from sklearn.metrics import roc_auc_score

from benchmarks import models

METHODS = ("surprise", "typicality", "contrast", "density", "layer")
MODELS = models.OUTLIERS
# Images that show each score how normal ones score.
N_CALIBRATION = 10_000


def tasks(quick):
    return [{"left_out": left_out} for left_out in (range(1, 9, 7) if quick else range(10))]


def measure(data, model, seed, fit_parameters, left_out):
    make = MODELS[model]
    est = make(image_shape=data.image_shape, seed=seed, **fit_parameters)
    X = data.X_train[data.y_train != left_out]
    start = time.perf_counter()
    est.fit(X)
    fit_s = time.perf_counter() - start
    for method in METHODS if model == "DCGMM" else [None]:
        if method is not None:
            est.calibrate(X[:N_CALIBRATION], method)
        start = time.perf_counter()
        scores = est.score_samples(data.X_test)
        yield {
            "method": method,
            "auc": round(float(roc_auc_score(data.y_test == left_out, -scores)), 4),
            "fit_s": round(fit_s, 2),
            "score_s": round(time.perf_counter() - start, 2),
        }
