"""Bits a value of held-out images of eight bits, of models as they come."""

from benchmarks import models
from benchmarks.clock import timed
from skdcgmm.metrics import bits_per_dim

MODELS = models.BITS
N_SEEDS = 1


def tasks(data, quick):
    return [{}]


def measure(data, model, seed, fit_parameters):
    est = MODELS[model](image_shape=data.image_shape, seed=seed, **fit_parameters)
    _, fit_s = timed(est.fit, data.X_train)
    bits, score_s = timed(lambda: bits_per_dim(est, data.X_test, random_state=seed))
    yield {
        "bits": round(float(bits.mean()), 4),
        "fit_s": round(fit_s, 2),
        "score_s": round(score_s, 2),
    }
