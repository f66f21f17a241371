"""Outlier scores that compare how an image scores by layer with how training images did."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.mixture import GaussianMixture
from torch import Tensor

from skdcgmm._tree import MARGINAL, N_STATISTICS, SHORTFALL

FloatArray = NDArray[np.floating[Any]]

# Images whose scores are learned from.
N_CALIBRATION = 10_000
# Spread of a term that is rounding, relative to the log densities it is a difference of.
_NEGLIGIBLE = 1e-6
_N_COMPONENTS = 30
# Added to the variances of whitened statistics.
_REG_COVAR = 0.01
_TINY = np.finfo(np.float64).tiny


def views(x: Tensor) -> list[Tensor]:
    """Images, and what they look like mirrored and turned: all symmetries of their frame.

    Parameters
    ----------
    x : Tensor of shape (N, C, H, W)

    Returns
    -------
    list of Tensor of shape (N, C, H, W)
        The images themselves first; eight if they are square, else four.
    """
    kept = [x, x.flip(2), x.flip(3), x.flip(2, 3)]
    return kept + [view.mT for view in kept] if x.shape[2] == x.shape[3] else kept


class Calibration(ABC):
    """A sum of terms, each in standard deviations of the training images.

    The terms come from the statistics, as by `JointNetwork.statistics`, of images and their views.
    """

    def fit(self, statistics: FloatArray, rng: np.random.RandomState) -> Self:
        """Learn from the statistics of training images, (N, views, 6 (L - 1) + 1)."""
        statistics = statistics.astype(np.float64)
        self._rounding = _NEGLIGIBLE * float(np.median(np.abs(statistics[:, 0]).max(1)))
        self._spread = max(float(_contrasts(statistics).std()), self._rounding, _TINY)
        self._typical = Density(_profile(statistics), self._rounding, rng)
        self._together = Sum(_gains(statistics), self._rounding)
        self._total = Sum(self._terms(statistics), self._rounding)
        return self

    def score(self, statistics: FloatArray) -> FloatArray:
        """Score of each image, (N,); the larger, the more normal.

        That of an image so far away that its statistics overflow is -inf.
        """
        finite = np.isfinite(statistics).all((1, 2))
        scores = np.full(len(statistics), -np.inf, statistics.dtype)
        if finite.any():
            statistics = statistics[finite].astype(np.float64)
            # Of images that are all alike, no term can say what is usual but the first.
            alike = self._typical.alike
            values = self._typicality(statistics) if alike else self._total(self._terms(statistics))
            scores[finite] = values
        return scores

    @abstractmethod
    def _terms(self, statistics: FloatArray) -> FloatArray:
        """Terms of each image, (N, terms)."""

    def _typicality(self, statistics: FloatArray) -> FloatArray:
        """Log density of all that the stack says of an image, under a mixture of training images.

        So an image may also be an outlier for being too likely.
        """
        return self._typical(_profile(statistics))

    def _orientation(self, statistics: FloatArray) -> FloatArray:
        """How much likelier an image is than its views: the soft minimum over them, in nats."""
        scaled = -_contrasts(statistics) / self._spread  # (N, views)
        likeliest: FloatArray = logsumexp(scaled, axis=1) - np.log(scaled.shape[1])
        return -self._spread * likeliest


class Typicality(Calibration):
    """How usual the statistics of an image are, and whether it is the right way round.

    References
    ----------
    W. Morningstar et al.: Density of states estimation for out-of-distribution detection. AISTATS
    2021, which fits a density to statistics of other models.
    """

    def _terms(self, statistics: FloatArray) -> FloatArray:
        return np.column_stack([self._typicality(statistics), self._orientation(statistics)])


class Surprise(Calibration):
    """The same, and how well the parts of an image fit its cluster and each other.

    How much less the windows of an image fall short of their best component, given the image's
    cluster, than those of its views do; and how much likelier the windows of each layer are
    together, in the windows of the layer above, than alone.
    """

    def _terms(self, statistics: FloatArray) -> FloatArray:
        shortfall = _by_layer(statistics)[..., SHORTFALL].sum(2)  # (N, views)
        return np.column_stack(
            [
                self._typicality(statistics),
                self._orientation(statistics),
                shortfall[:, 1:].mean(1) - shortfall[:, 0],
                self._together(_gains(statistics)),
            ]
        )


class Sum:
    """Sum of columns, each in standard deviations from its mean."""

    def __init__(self, columns: FloatArray, rounding: float) -> None:
        spread = columns.std(0)
        self._mean = columns.mean(0)
        # Terms that the stack leaves no room to differ would only add rounding errors.
        self._scale = np.where(spread > rounding, spread, np.inf)

    def __call__(self, columns: FloatArray) -> FloatArray:
        total: FloatArray = ((columns - self._mean) / self._scale).sum(1)
        return total


class Density:
    """Log density of rows under a mixture of training rows, whitened."""

    def __init__(self, rows: FloatArray, rounding: float, rng: np.random.RandomState) -> None:
        self._mean, self._rounding = rows.mean(0), rounding
        _, singular, directions = np.linalg.svd(rows - self._mean, full_matrices=False)
        spread = singular / np.sqrt(len(rows) - 1)
        # Directions in which statistics do not differ hold rounding errors.
        kept = spread > rounding
        self._whitening = directions[kept].T / spread[kept]  # (statistics, directions)
        n_components = max(1, min(_N_COMPONENTS, len(rows) // 100))
        self._mixture = GaussianMixture(
            n_components, reg_covar=_REG_COVAR, max_iter=1000, random_state=rng
        )
        if not self.alike:
            self._mixture.fit(self._whiten(rows))

    @property
    def alike(self) -> bool:
        """Whether training rows differ by no more than rounding errors."""
        return not self._whitening.size

    def _whiten(self, rows: FloatArray) -> FloatArray:
        white: FloatArray = (rows - self._mean) @ self._whitening
        return white

    def __call__(self, rows: FloatArray) -> FloatArray:
        if self.alike:
            apart: FloatArray = np.abs(rows - self._mean).max(1) / max(self._rounding, _TINY)
            return np.minimum(0, 1 - apart)
        log_prob: FloatArray = self._mixture.score_samples(self._whiten(rows))
        return log_prob


def _by_layer(statistics: FloatArray) -> FloatArray:
    """Statistics of the layers below the top, (N, views, L - 1, 6)."""
    return statistics[:, :, :-1].reshape(*statistics.shape[:2], -1, N_STATISTICS)


def _profile(statistics: FloatArray) -> FloatArray:
    """All statistics of the images, and the log densities of their views."""
    return np.hstack([statistics[:, 0], statistics[:, 1:, -1]])


def _contrasts(statistics: FloatArray) -> FloatArray:
    """Log density of images over that of each view, (N, views - 1)."""
    return statistics[:, :1, -1] - statistics[:, 1:, -1]


def _gains(statistics: FloatArray) -> FloatArray:
    """Log density of each layer's windows over that of the layer below, (N, L - 1)."""
    marginal = _by_layer(statistics)[:, 0, :, MARGINAL]
    return np.diff(np.column_stack([marginal, statistics[:, 0, -1]]), axis=1)


CALIBRATIONS: dict[str, type[Calibration]] = {"surprise": Surprise, "typicality": Typicality}
