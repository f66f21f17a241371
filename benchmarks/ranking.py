"""Whether a grid search over stacks ranks them as the test set does.

    python -m benchmarks.ranking --data-home FOLDER --data mnist

`GridSearchCV` with its default scoring, over five stacks and a `GaussianMixture`, on the training
images; then the refitted candidates on the test images. Prints a JSON line for each candidate, by
rank.
"""

import argparse
import json

import numpy as np
from sklearn.base import clone
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler

from benchmarks.models import REG_COVAR
from skdcgmm import ConvGMM, DCGMMEstimator
from skdcgmm.datasets import load_images


def tiles(n_components, kernel_size=4):
    return ConvGMM(n_components, kernel_size, shared=False)


STACKS = {
    "two layers, 4x4/100, 100": [tiles(100), ConvGMM(100)],
    "two layers, 4x4/200, 100": [tiles(200), ConvGMM(100)],
    "two layers, 7x7/200, 100": [tiles(200, 7), ConvGMM(100)],
    "three layers, 4x4/200, 2x2/100, 100": [tiles(200), tiles(100, 2), ConvGMM(100)],
    "auto": "auto",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-home")
    parser.add_argument("--n-images", type=int, default=60_000)
    options = parser.parse_args()
    data = load_images(options.data, data_home=options.data_home)
    X = data.X_train[: options.n_images]
    deep = DCGMMEstimator(image_shape=data.image_shape, reg_covar=REG_COVAR, random_state=0)
    flat = GaussianMixture(49, covariance_type="diag", reg_covar=REG_COVAR, random_state=0)
    pipeline = Pipeline([("scale", MinMaxScaler()), ("model", deep)])
    grid = [
        {"model": [flat]},
        {"model": [deep], "model__layers": list(STACKS.values())},
    ]
    split = ShuffleSplit(1, test_size=0.2, random_state=0)
    search = GridSearchCV(pipeline, grid, cv=split, refit=False, error_score="raise").fit(X)
    order = np.argsort(-search.cv_results_["mean_test_score"])
    names = ["GaussianMixture 49", *STACKS]
    for rank, index in enumerate(order, start=1):
        best = clone(pipeline).set_params(**search.cv_results_["params"][index]).fit(X)
        row = {
            "data": options.data,
            "rank": rank,
            "model": names[index],
            "cv_nats": round(float(search.cv_results_["mean_test_score"][index]), 2),
            "test_nats": round(float(best.score(data.X_test)), 2),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
