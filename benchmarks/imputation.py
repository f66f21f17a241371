"""Fill in the right half of test images: mean squared error on the hidden pixels."""

import time

import numpy as np

from benchmarks import models

MODELS = models.IMPUTATION
N_IMAGES = 2000


def tasks(data, quick):
    return [{"hidden": "right half"}]


def measure(data, model, seed, fit_parameters, hidden):
    height, width, channels = (*data.image_shape, 1)[:3]
    mask = np.zeros((height, width, channels), dtype=bool)
    mask[:, width // 2 :] = True
    mask = mask.ravel()
    X = data.X_test[:N_IMAGES]
    with_holes = np.where(mask, np.nan, X)
    est = MODELS[model](image_shape=data.image_shape, seed=seed, **fit_parameters)
    start = time.perf_counter()
    est.fit(data.X_train)
    fit_s = time.perf_counter() - start
    start = time.perf_counter()
    filled = est.impute(with_holes)
    impute_s = time.perf_counter() - start
    error = np.square(filled - X)[:, mask].mean()
    yield {
        "mse": round(float(error), 5),
        "fit_s": round(fit_s, 2),
        "score_s": round(impute_s, 2),
    }
