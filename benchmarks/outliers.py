"""Leave one class out: train on nine classes, tell the tenth among all test images."""

from sklearn.metrics import roc_auc_score

from benchmarks import models
from benchmarks.clock import timed

# The density is compared by its order alone, so that few images tell its threshold.
N_CALIBRATION = 1000
MODELS = models.OUTLIERS


def tasks(data, quick):
    return [{"left_out": left_out} for left_out in (range(1, 9, 7) if quick else range(10))]


def measure(data, model, seed, fit_parameters, left_out):
    est = MODELS[model](image_shape=data.image_shape, seed=seed, **fit_parameters)
    X = data.X_train[data.y_train != left_out]
    _, fit_s = timed(est.fit, X)
    for method in ("both", "density") if model == "DCGMM" else (None,):
        if method == "density":
            est.calibrate(X[:N_CALIBRATION], method)
        values, score_s = timed(est.score_samples, data.X_test)
        yield {
            "method": method,
            "auc": round(float(roc_auc_score(data.y_test == left_out, -values)), 4),
            "fit_s": round(fit_s, 2),
            "score_s": round(score_s, 2),
        }
