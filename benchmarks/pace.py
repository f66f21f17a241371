"""Time from nothing to the held-out density of a flat mixture by expectation maximisation.

    python -m benchmarks.pace --data-home FOLDER

JSON lines: the seconds that GaussianMixture takes to fit, and its mean log density of the test
images; then those after which ours has that density, trained on chunks of images as they come, by
its default plan. The density is looked at between chunks, outside the time.
"""

import argparse
import json
import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from benchmarks import models
from skdcgmm import ConvGMM, DCGMMEstimator
from skdcgmm.datasets import load_images

N_CHUNK = 2500
STACKS = {"flat 49": [ConvGMM(49)], "auto": "auto"}


def mixture(data, seed):
    est = models.diagonal(49, data.image_shape, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        start = time.perf_counter()
        est.fit(data.X_train)
    return time.perf_counter() - start, est.score(data.X_test)


def pace(data, layers, seed, target):
    """Seconds of training, and the density, once that is at least the target."""
    order = np.random.RandomState(seed).permutation(len(data.X_train))
    est = DCGMMEstimator(
        layers=layers, image_shape=data.image_shape, reg_covar=models.REG_COVAR, random_state=seed
    )
    seconds, reached = 0.0, -np.inf
    for start in range(0, len(order), N_CHUNK):
        chunk = data.X_train[order[start : start + N_CHUNK]]
        begin = time.perf_counter()
        est.partial_fit(chunk)
        seconds += time.perf_counter() - begin
        reached = est.score(data.X_test)
        if reached >= target:
            return seconds, reached
    raise RuntimeError(f"one epoch has reached {reached}, not {target}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-home")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    options = parser.parse_args()
    data = load_images(options.data, data_home=options.data_home)
    for seed in options.seeds:
        whole, target = mixture(data, seed)
        row = {"data": options.data, "seed": seed, "model": "GaussianMixture diag 49"}
        print(json.dumps({**row, "fit_s": round(whole, 2), "density": round(target, 2)}))
        for stack, layers in STACKS.items():
            seconds, reached = pace(data, layers, seed, target)
            found = {"fit_s": round(seconds, 2), "density": round(reached, 2)}
            ratio = {"share_of_mixture": round(seconds / whole, 3)}
            print(json.dumps({**row, "model": f"DCGMM {stack}", **found, **ratio}), flush=True)


if __name__ == "__main__":
    main()
