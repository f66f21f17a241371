"""One class is normal: train on its training images, tell it among all test images.

The protocol of the literature, as of Ruff et al., "Deep One-Class Classification" (ICML 2018).
"""

from sklearn.metrics import roc_auc_score

from benchmarks import models
from benchmarks.clock import timed

MODELS = {
    name: models.OUTLIERS[name]
    for name in (
        "DCGMM", "PCA reconstruction", "GaussianMixture full 10 after PCA", "nearest neighbour",
    )
}  # fmt: skip
N_SEEDS = 1


def tasks(data, quick):
    return [{"normal": normal} for normal in (range(2) if quick else range(10))]


def measure(data, model, seed, fit_parameters, normal):
    est = MODELS[model](image_shape=data.image_shape, seed=seed, **fit_parameters)
    _, fit_s = timed(est.fit, data.X_train[data.y_train == normal])
    scores, score_s = timed(est.score_samples, data.X_test)
    yield {
        "auc": round(float(roc_auc_score(data.y_test == normal, scores)), 4),
        "fit_s": round(fit_s, 2),
        "score_s": round(score_s, 2),
    }
