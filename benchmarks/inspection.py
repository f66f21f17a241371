"""Find defects, and say where: detectors fitted to good images only.

    python -m benchmarks inspection --data-home FOLDER --seeds 0 1

FOLDER holds sets as NAME.npz with X_train (good images; of others, y_train says which are: 0),
X_test, y_test (1 is a defect) and, for some, mask_test or boxmask_test: where. The patch mixture is
scikit-learn's GaussianMixture of full covariances over all overlapping windows; an image has the
score of its least likely one.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

from benchmarks import models
from benchmarks.clock import timed
from skdcgmm import DCGMMOutlierDetector

DATA = ["pcb", "tiles", "pneumonia"]
CONTAMINATION = 0.01


class PatchMixture:
    """A mixture over windows of 6 x 6 pixels, wherever they lie."""

    def __init__(self, image_shape, seed, n_components=30, side=6, n_windows=40_000):
        self.image_shape, self.side, self.n_windows = image_shape, side, n_windows
        self._mixture = GaussianMixture(n_components, reg_covar=1e-3, random_state=seed)
        self._rng = np.random.RandomState(seed)

    def _windows(self, X):
        images = X.reshape(len(X), *self.image_shape[:2])
        return sliding_window_view(images, (self.side, self.side), (1, 2))

    def fit(self, X):
        windows = self._windows(X)
        index = tuple(self._rng.randint(n, size=self.n_windows) for n in windows.shape[:3])
        self._mixture.fit(windows[index].reshape(self.n_windows, -1))
        return self

    def score_samples(self, X):
        def lowest(image):
            return self._mixture.score_samples(image.reshape(-1, self.side**2)).min()

        return np.array([lowest(image[::2, ::2]) for image in self._windows(X)])


def detector(image_shape, seed, **parameters):
    return DCGMMOutlierDetector(
        image_shape=image_shape, contamination=CONTAMINATION, random_state=seed, **parameters
    )


BASELINES = ["PCA reconstruction", "GaussianMixture full 10 after PCA", "nearest neighbour",
             "IsolationForest"]  # fmt: skip
MODELS = {
    "DCGMM": detector,
    **{name: models.OUTLIERS[name] for name in BASELINES},
    "patch mixture": PatchMixture,
}


def tasks(data, quick):
    return [{}]


def measure(data, model, seed, fit_parameters):
    est = MODELS[model](image_shape=data.image_shape, seed=seed, **fit_parameters)
    good_train = data.X_train if data.y_train is None else data.X_train[data.y_train == 0]
    _, fit_s = timed(est.fit, good_train)
    scores, score_s = timed(est.score_samples, data.X_test)
    row = {
        "auc": round(float(roc_auc_score(data.y_test, -scores)), 4),
        "fit_s": round(fit_s, 2),
        "score_s": round(score_s, 2),
    }
    if model == "DCGMM":
        good = data.X_test[data.y_test == 0]
        row["called"] = round(float((est.predict(good) == -1).mean()), 4)
        if data.mask is not None:
            row |= where(est.score_map(data.X_test), data.mask)
    yield row


def where(maps, masks):
    """Pixel-wise areas under the ROC curve: of all pixels, and the mean of those by image."""
    some = (masks.any((1, 2))) & ~masks.all((1, 2))
    by_image = [
        roc_auc_score(mask.ravel(), -scores.ravel())
        for mask, scores in zip(masks[some], maps[some], strict=True)
    ]
    whole = roc_auc_score(masks.ravel(), -maps.ravel())
    return {"pixel_auc": round(float(whole), 4), "pixel_auc_by_image": round(np.mean(by_image), 4)}
