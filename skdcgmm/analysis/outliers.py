"""Outlier scores that compare how an image scores by layer with how training images did."""

from typing import Self, cast

import numpy as np
import torch
from numpy.random import RandomState
from scipy.special import logsumexp
from sklearn.mixture import GaussianMixture
from torch import Tensor

from skdcgmm.data import FloatArray
from skdcgmm.model.tree import MARGINAL, N_STATISTICS, SHORTFALL, Tree
from skdcgmm.model.windows import images_last

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
    x = images_last(x)  # as layers read them, which copies need not be
    kept = [x, x.flip(2), x.flip(3), x.flip(2, 3)]
    return kept + [view.mT for view in kept] if x.shape[2] == x.shape[3] else kept


class Typicality:
    """How usual the statistics of an image are, and whether it is the right way round.

    A sum of terms, each in standard deviations of the training images. They come from what
    `measure` says of images and of their views.

    Parameters
    ----------
    n_layers : int
        Of the mixtures of the stack.

    References
    ----------
    W. Morningstar et al.: Density of states estimation for out-of-distribution detection. AISTATS
    2021, which fits a density to statistics of other models.
    """

    def __init__(self, n_layers: int) -> None:
        self.n_layers = n_layers

    @staticmethod
    def measure(tree: Tree, x: Tensor, complete: bool = False) -> Tensor:
        """Rows of numbers that the score is made of.

        Statistics of the images (N, 6 (L - 1) + 1), as by `Tree.statistics`, the log densities of
        their views (N, V - 1), and what else a score asks of the views.
        """
        own, *others = views(x)
        log_prob = [tree.scores(view, complete).logsumexp(1) for view in others]  # each (N,)
        return torch.cat([tree.statistics(own, complete), torch.stack(log_prob, 1)], 1)

    def _terms(self, rows: FloatArray) -> FloatArray:
        """Terms of each image, (N, terms)."""
        return np.column_stack([self._typicality(rows), self._orientation(rows)])

    def fit(self, rows: FloatArray, rng: RandomState) -> Self:
        """Learn from what `measure` says of training images."""
        rows = rows.astype(np.float64)
        statistics = rows[:, : self._n_statistics]
        self._rounding = _NEGLIGIBLE * float(np.median(np.abs(statistics).max(1)))
        self._spread = max(float(self._contrasts(rows).std()), self._rounding, _TINY)
        self._typical = Density(self._profile(rows), self._rounding, rng)
        self._together = Sum(self._gains(rows), self._rounding)
        self._total = Sum(self._terms(rows), self._rounding)
        return self

    def score(self, rows: FloatArray) -> FloatArray:
        """Score of each image, (N,); the larger, the more normal.

        An image so far away that its statistics overflow scores -inf.
        """
        finite = np.isfinite(rows).all(1)
        scores = np.full(len(rows), -np.inf, rows.dtype)
        if finite.any():
            rows = rows[finite].astype(np.float64)
            # Of images that are all alike, no term can say what is usual but the first.
            alike = self._typical.alike
            scores[finite] = self._typicality(rows) if alike else self._total(self._terms(rows))
        return scores

    @property
    def _n_statistics(self) -> int:
        return N_STATISTICS * (self.n_layers - 1) + 1

    def _typicality(self, rows: FloatArray) -> FloatArray:
        """Log density of all that the stack says of an image, under a mixture of training images.

        So an image may also be an outlier for being too likely.
        """
        return self._typical(self._profile(rows))

    def _orientation(self, rows: FloatArray) -> FloatArray:
        """How much likelier an image is than its views: the soft minimum over them, in nats."""
        scaled = -self._contrasts(rows) / self._spread  # (N, V - 1)
        likeliest: FloatArray = logsumexp(scaled, axis=1) - np.log(scaled.shape[1])
        return -self._spread * likeliest

    def _profile(self, rows: FloatArray) -> FloatArray:
        """All statistics of the images, and the log densities of their views."""
        return rows

    def _contrasts(self, rows: FloatArray) -> FloatArray:
        """Log density of images over that of each view, (N, V - 1)."""
        profile = self._profile(rows)
        own = profile[:, self._n_statistics - 1 : self._n_statistics]  # (N, 1)
        return own - profile[:, self._n_statistics :]

    def _by_layer(self, rows: FloatArray, column: int) -> FloatArray:
        """A column of the statistics of the layers below the top, (N, L - 1)."""
        return rows[:, column : self._n_statistics - 1 : N_STATISTICS]

    def _gains(self, rows: FloatArray) -> FloatArray:
        """Log density of each layer's windows over that of the layer below, (N, L - 1)."""
        whole = rows[:, self._n_statistics - 1]  # (N,)
        return np.diff(np.column_stack([self._by_layer(rows, MARGINAL), whole]), axis=1)


class Surprise(Typicality):
    """How usual an image is, as in `Typicality`, and how well its parts fit together.

    How much less the windows of an image fall short of their best component, given the image's
    cluster, than those of its views do; and how much likelier the windows of each layer are
    together, in the windows of the layer above, than alone.
    """

    @staticmethod
    def measure(tree: Tree, x: Tensor, complete: bool = False) -> Tensor:
        """Statistics of the images, log densities of their views, and how these fall short."""
        own, *others = views(x)
        measured = [tree.shortfalls(view, complete) for view in others]
        shortfalls, log_prob = zip(*measured, strict=True)
        columns = [*log_prob, *(of_view.sum(1) for of_view in shortfalls)]  # each (N,)
        return torch.cat([tree.statistics(own, complete), torch.stack(columns, 1)], 1)

    def _profile(self, rows: FloatArray) -> FloatArray:
        return rows[:, : self._n_statistics + self._n_views(rows)]

    def _n_views(self, rows: FloatArray) -> int:
        return int(rows.shape[1] - self._n_statistics) // 2

    def _terms(self, rows: FloatArray) -> FloatArray:
        shortfall = self._by_layer(rows, SHORTFALL).sum(1)  # (N,)
        more = rows[:, -self._n_views(rows) :].mean(1) - shortfall  # (N,), of the views
        return np.column_stack([super()._terms(rows), more, self._together(self._gains(rows))])


class Sum:
    """Sum of columns, each in standard deviations from its mean."""

    def __init__(self, columns: FloatArray, rounding: float) -> None:
        spread = columns.std(0)
        self._mean = columns.mean(0)
        # Terms that the stack leaves no room to differ would only add rounding errors.
        self._scale = np.where(spread > rounding, spread, np.inf)

    def __call__(self, columns: FloatArray) -> FloatArray:
        """Sum of each row, (N,)."""
        return cast("FloatArray", ((columns - self._mean) / self._scale).sum(1))


class Density:
    """Log density of rows under a mixture of training rows, whitened."""

    def __init__(self, rows: FloatArray, rounding: float, rng: RandomState) -> None:
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
        return cast("FloatArray", (rows - self._mean) @ self._whitening)

    def __call__(self, rows: FloatArray) -> FloatArray:
        """Log density of each row, (N,)."""
        if self.alike:
            apart: FloatArray = np.abs(rows - self._mean).max(1) / max(self._rounding, _TINY)
            return np.minimum(0, 1 - apart)
        return cast("FloatArray", self._mixture.score_samples(self._whiten(rows)))


SCORES: dict[str, type[Typicality]] = {"surprise": Surprise, "typicality": Typicality}
