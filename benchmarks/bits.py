"""Bits a value of held-out images of eight bits."""

import time

from benchmarks import models
from skdcgmm.metrics import bits_per_dim

MODELS = models.BITS


def tasks(data, quick):
    return [{}]


def measure(data, model, seed, fit_parameters):
    est = MODELS[model](image_shape=data.image_shape, seed=seed, **fit_parameters)
    start = time.perf_counter()
    est.fit(data.X_train)
    fit_s = time.perf_counter() - start
    start = time.perf_counter()
    bits = bits_per_dim(est, data.X_test, random_state=seed)
    yield {
        "bits": round(float(bits.mean()), 4),
        "fit_s": round(fit_s, 2),
        "score_s": round(time.perf_counter() - start, 2),
    }
