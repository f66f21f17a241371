"""A grid search over layers and kinds of pixels, beside a flat mixture, in bits.

`GridSearchCV` ranks by bits a value of held-out images; the same fits on the test images say
whether it ranks well.
"""

import numpy as np
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.pipeline import Pipeline

from skdcgmm import ConvGMM, DCGMMEstimator
from skdcgmm.metrics import bits_per_dim

DATA = ["mnist", "fashion_mnist"]
MODELS = {"GridSearchCV": None}
N_IMAGES, N_TEST, MAX_EPOCHS = 5000, 1000, 30
# Of images in 0-1: some steps between values.
REG_COVAR = 1e-4

N_SEEDS = 1


def unshared(n_components, kernel_size):
    return ConvGMM(n_components, kernel_size, shared=False)


STACKS = {
    "49": [ConvGMM(49)],
    "4x4/100, 100": [unshared(100, 4), ConvGMM(100)],
    "4x4/100, 2x2/100, 100": [unshared(100, 4), unshared(100, 2), ConvGMM(100)],
}
CANDIDATES = {
    ("GaussianMixture", "49"): {"model": [
        GaussianMixture(49, covariance_type="diag", reg_covar=REG_COVAR, random_state=0)
    ]},
    **{("tiles", name): {"model__layers": [stack], "model__reg_covar": [REG_COVAR]}
       for name, stack in STACKS.items()},
    **{("atoms", name): {"model__layers": [stack], "model__pixels": ["atoms"]}
       for name, stack in STACKS.items()},
    **{("pyramid", name): {"model__layers": [stack], "model__pixels": ["pyramid"]}
       for name, stack in STACKS.items() if name != "49"},
}  # fmt: skip


def tasks(data, quick):
    return [{}]


def measure(data, model, seed, fit_parameters):
    deep = DCGMMEstimator(
        image_shape=data.image_shape,
        random_state=seed,
        **{"max_epochs": MAX_EPOCHS, **fit_parameters},
    )
    chosen = np.random.RandomState(seed).permutation(len(data.X_train))[:N_IMAGES]
    X_test = data.X_test[:N_TEST]

    def bits(est, X, y=None):
        """Of these and of the test images; a search takes the higher for the better."""
        found = {"held_out": X, "test": X_test}
        return {k: -bits_per_dim(est, v, random_state=seed).mean() for k, v in found.items()}

    search = GridSearchCV(
        Pipeline([("model", deep)]),
        list(CANDIDATES.values()),
        scoring=bits,
        refit=False,
        cv=ShuffleSplit(1, test_size=0.2, random_state=seed),
        error_score="raise",
    )
    found = search.fit(data.X_train[chosen]).cv_results_
    for rank, index in enumerate(np.argsort(-found["mean_test_held_out"]), start=1):
        pixels, layers = list(CANDIDATES)[index]
        yield {
            "candidate": f"{pixels}: {layers}",
            "rank": rank,
            "held_out_bits": round(-float(found["mean_test_held_out"][index]), 3),
            "test_bits": round(-float(found["mean_test_test"][index]), 3),
            "fit_s": round(float(found["mean_fit_time"][index]), 1),
        }
