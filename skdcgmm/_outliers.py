"""Outlier scores that compare how an image scores by layer with how training images did."""

from __future__ import annotations

from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from skdcgmm._tree import MARGINAL, N_STATISTICS, SHORTFALL

FloatArray = NDArray[np.floating[Any]]

# Spread of a term that is rounding, relative to the log densities it is a difference of.
_NEGLIGIBLE = 1e-6
# Of the mixture of `Typicality`, and of images that it is fitted to.
_N_COMPONENTS, _N_IMAGES = 30, 10_000
# Added to the variances of its statistics, which are scaled to 1.
_REG_COVAR = 0.01


class Calibration(Protocol):
    """A score of images by the statistics of `JointNetwork.statistics`."""

    def fit(self, statistics: FloatArray, rng: np.random.RandomState) -> Self:
        """Learn from the statistics of training images, (N, 6 (L - 1) + 1)."""

    def score(self, statistics: FloatArray) -> FloatArray:
        """Score of each image, (N,); the larger, the more normal."""


class Surprise:
    """How well the parts of an image fit its cluster and each other, in every layer.

    For each layer below the top: how far its windows fall short of their best component, given the
    image's cluster; and how much likelier they are together, in the windows of the layer above,
    than alone. Each in standard deviations of the training images.
    """

    def fit(self, statistics: FloatArray, rng: np.random.RandomState) -> Self:
        """Learn means and standard deviations."""
        terms = self._terms(statistics.astype(np.float64))
        spread = terms.std(0)
        self._mean = terms.mean(0)
        # Terms that the stack leaves no room to differ would only add rounding errors.
        self._scale = np.where(spread > _rounding(statistics), spread, np.inf)
        return self

    def score(self, statistics: FloatArray) -> FloatArray:
        """Sum of the terms."""
        terms = self._terms(statistics.astype(np.float64))
        total: FloatArray = ((terms - self._mean) / self._scale).sum(1)
        return total.astype(statistics.dtype)

    @staticmethod
    def _terms(statistics: FloatArray) -> FloatArray:
        by_layer = statistics[:, :-1].reshape(len(statistics), -1, N_STATISTICS)
        log_prob = np.column_stack([by_layer[:, :, MARGINAL], statistics[:, -1]])
        return np.hstack([-by_layer[:, :, SHORTFALL], np.diff(log_prob, axis=1)])


class Typicality:
    """How usual the statistics of an image are, whether they are high or low.

    The log density of all statistics under a Gaussian mixture of those of the training images.

    References
    ----------
    W. Morningstar et al.: Density of states estimation for out-of-distribution detection. AISTATS
    2021, which does so with the statistics of other models.
    """

    def fit(self, statistics: FloatArray, rng: np.random.RandomState) -> Self:
        """Learn the mixture."""
        n_components = max(1, min(_N_COMPONENTS, len(statistics) // 100))
        chosen = rng.permutation(len(statistics))[:_N_IMAGES]
        statistics = statistics[chosen].astype(np.float64)
        spread = np.sqrt(PCA().fit(statistics).explained_variance_)
        # Directions in which statistics do not differ hold rounding errors.
        n_directions = max(1, int((spread > _rounding(statistics)).sum()))
        self._whiten = PCA(n_directions, whiten=True, svd_solver="full")
        self._mixture = GaussianMixture(
            n_components, reg_covar=_REG_COVAR, max_iter=1000, random_state=rng
        )
        self._mixture.fit(self._whiten.fit_transform(statistics))
        return self

    def score(self, statistics: FloatArray) -> FloatArray:
        """Log density of the whitened statistics."""
        whitened = self._whiten.transform(statistics.astype(np.float64))
        log_prob: FloatArray = self._mixture.score_samples(whitened)
        return log_prob.astype(statistics.dtype)


def _rounding(statistics: FloatArray) -> float:
    """What may be rounding in differences of statistics."""
    return _NEGLIGIBLE * float(np.median(np.abs(statistics).max(1)))


CALIBRATIONS: dict[str, type[Surprise] | type[Typicality]] = {
    "surprise": Surprise,
    "typicality": Typicality,
}
