"""Held-out log density by stack, beside flat mixtures, at one variance floor.

    python -m benchmarks.density --data-home FOLDER --data mnist fashion_mnist --seeds 0 1

Prints a JSON line for each fit on all training images, pixels in 0-1: mean log density of the
training and the test images in nats, and the share of top components that the training images use.
`--models` picks some of the models by name.
"""

import argparse
import json
import time

import numpy as np
from sklearn.mixture import GaussianMixture

from skdcgmm import ConvGMM, DCGMMEstimator
from skdcgmm.datasets import load_images

REG_COVAR = 0.05


def tiles(n_components, kernel_size=4):
    return ConvGMM(n_components, kernel_size, shared=False)


STACKS = {
    "flat 49": [ConvGMM(49)],
    "two layers, 4x4/100, 100": [tiles(100), ConvGMM(100)],
    "two layers, 4x4/200, 100": [tiles(200), ConvGMM(100)],
    "two layers, 4x4/200, 400": [tiles(200), ConvGMM(400)],
    "two layers, 7x7/200, 100": [tiles(200, 7), ConvGMM(100)],
    "three layers, 4x4/200, 2x2/100, 100": [tiles(200), tiles(100, 2), ConvGMM(100)],
    "auto": "auto",
    "auto, 50 clusters": "auto",
    "auto, 400 clusters": "auto",
}
MODELS = ["GaussianMixture 49", *STACKS]


def make(name, image_shape, seed):
    if name == "GaussianMixture 49":
        return GaussianMixture(49, covariance_type="diag", reg_covar=REG_COVAR, random_state=seed)
    words = name.split()
    return DCGMMEstimator(
        int(words[1]) if words[-1] == "clusters" else None,
        layers=STACKS[name],
        image_shape=image_shape,
        reg_covar=REG_COVAR,
        random_state=seed,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["mnist", "fashion_mnist"])
    parser.add_argument("--data-home")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    options = parser.parse_args()
    for name in options.data:
        data = load_images(name, data_home=options.data_home)
        for seed in options.seeds:
            for model in options.models:
                est = make(model, data.image_shape, seed)
                start = time.perf_counter()
                est.fit(data.X_train)
                fit_time = time.perf_counter() - start
                used = np.unique(est.predict(data.X_train))
                n_clusters = est.predict_proba(data.X_test[:2]).shape[1]
                row = {
                    "data": name,
                    "seed": seed,
                    "model": model,
                    "test_nats": round(float(est.score(data.X_test)), 2),
                    "train_nats": round(float(est.score(data.X_train)), 2),
                    "clusters_used": round(len(used) / n_clusters, 3),
                    "fit_s": round(fit_time, 1),
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
