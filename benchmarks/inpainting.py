"""Fill in one half of test images: mean squared error on the hidden pixels, in levels of 0-255."""

import numpy as np

from benchmarks import models
from benchmarks.clock import timed

DATA = ["mnist", "fashion_mnist", "att_faces"]
MODELS = models.INPAINTING
N_SEEDS = 1
N_IMAGES = 2000
# Of forty people, ten images each, those from this one on are to be filled in.
FIRST_HELD_OUT = 35


def tasks(data, quick):
    return [{}]


def measure(data, model, seed, fit_parameters):
    X_train, X = split(data)
    est = MODELS[model](image_shape=data.image_shape, seed=seed, **fit_parameters)
    _, fit_s = timed(est.fit, X_train)
    for hidden in ("left", "lower") if data.name == "att_faces" else ("right",):
        mask = half(data.image_shape, hidden)
        filled, impute_s = timed(est.impute, np.where(mask, np.nan, X))
        error = np.square(255 * (filled - X)[:, mask]).mean()
        yield {
            "hidden": hidden,
            "mse": round(float(error), 1),
            "fit_s": round(fit_s, 2),
            "score_s": round(impute_s, 2),
        }


def split(data):
    if data.name != "att_faces":
        return data.X_train, data.X_test[:N_IMAGES]
    held_out = data.y_train >= FIRST_HELD_OUT
    return data.X_train[~held_out], data.X_train[held_out]


def half(image_shape, name):
    height, width, channels = (*image_shape, 1)[:3]
    mask = np.zeros((height, width, channels), dtype=bool)
    where = {
        "left": np.s_[:, : width // 2],
        "right": np.s_[:, width // 2 :],
        "lower": np.s_[height // 2 :],
    }
    mask[where[name]] = True
    return mask.ravel()
