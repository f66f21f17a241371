"""Held-out log density of images, in nats, at one variance floor."""

import time

from benchmarks import models

MODELS = models.DENSITY


def tasks(data, quick):
    return [{}]


def measure(data, model, seed, fit_parameters):
    est = MODELS[model](image_shape=data.image_shape, seed=seed, **fit_parameters)
    start = time.perf_counter()
    est.fit(data.X_train)
    fit_s = time.perf_counter() - start
    start = time.perf_counter()
    test_nats = float(est.score(data.X_test))
    yield {
        "test_nats": round(test_nats, 2),
        "train_nats": round(float(est.score(data.X_train)), 2),
        "fit_s": round(fit_s, 2),
        "score_s": round(time.perf_counter() - start, 2),
    }
