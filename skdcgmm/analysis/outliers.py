"""Outlier scores: how an image scores by its windows, and as a whole, beside how normal ones do."""

from typing import Any, Self, cast

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.mixture import GaussianMixture
from torch import Tensor

from skdcgmm.data import FloatArray
from skdcgmm.model.patches import Patches
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
# A low quantile of a normal distribution, and how far below the mean it is.
_LOW, _LOW_SD = 0.1, 1.2816
# Least spread of log densities of windows, in nats.
_LEAST_SPREAD = 1e-3
# Weights, beside the unlikeliest window, of the whole, and of the square of how much too likely all
# windows are.
_WHOLE_WEIGHT, _LEVEL_WEIGHT = 2.0, 0.75
# Share of normal images whose unlikeliest window counts where the whole is told from its views.
_RARE_SHARE = 0.05
# Least number of images for each direction in which statistics are learnt to vary.
_IMAGES_EACH = 10


def views(x: Tensor) -> list[Tensor]:
    """Images, and what they look like turned.

    Parameters
    ----------
    x : Tensor of shape (N, C, H, W)

    Returns
    -------
    list of Tensor of shape (N, C, H, W)
        The images themselves first; then turned by a quarter if they are square, and by a half.
    """
    x = images_last(x)  # as layers read them, which copies need not be
    turns = (0, 1, 2) if x.shape[2] == x.shape[3] else (0, 2)
    return [x.rot90(turn, (2, 3)) for turn in turns]


class Extremes:
    """How unusual the windows of an image are: its unlikeliest one, and all of them together.

    The log density of each window is compared with the lowest of an image, which in half of the
    normal images is at least 0 and in about a sixth below -1. An image is abnormal if a window of
    it is unlikely, in whatever resolution; and if its windows are together likelier than those of
    normal images with as unlikely a window are: where a texture should be is none. That all windows
    are likelier than in nine of ten normal images makes none more normal.
    """

    @staticmethod
    def measure(patches: Patches, x: Tensor) -> Tensor:
        """Lowest log density in each resolution, and the mean in full resolution, (N, S + 1).

        NaN where the image has no complete window.
        """
        of_windows = [values.flatten(1) for values in patches.log_prob(x)]  # each (N, R * Q)
        lowest = [torch.where(values.isnan(), torch.inf, values).amin(1) for values in of_windows]
        columns = torch.stack([*lowest, of_windows[0].nanmean(1)], 1)  # (N, S + 1)
        return torch.where(columns == torch.inf, torch.nan, columns)

    def fit(self, rows: FloatArray) -> Self:
        """Learn from what `measure` says of normal images."""
        rows = rows[~np.isnan(rows[:, -1])].astype(np.float64)
        self._known = len(rows) > 0
        usual, spread = [], []
        for lowest in rows[:, :-1].T:
            seen = lowest[~np.isnan(lowest)]
            usual.append(np.median(seen) if len(seen) else np.nan)
            below = (usual[-1] - np.quantile(seen, _LOW)) / _LOW_SD if len(seen) else np.nan
            spread.append(max(below, _LEAST_SPREAD))
        self._usual, self._spread = np.array(usual), np.array(spread)
        if self._known:
            worst = self.worst(rows)
            self._highest = float(np.quantile(worst, 1 - _LOW))
            self._rare = float(np.quantile(worst, _RARE_SHARE))
            design = np.column_stack([np.ones(len(rows)), np.minimum(worst, self._highest)])
            self._line = np.linalg.lstsq(design, rows[:, -1], rcond=None)[0]
            residuals = rows[:, -1] - design @ self._line
            self._level_spread = max(float(residuals.std()), _LEAST_SPREAD)
        return self

    def standardise(self, of_windows: list[Tensor]) -> list[Tensor]:
        """Log densities of windows, as of `Patches.log_prob`, in the units of the score."""
        levels = zip(of_windows, self._usual.tolist(), self._spread.tolist(), strict=True)
        return [(values - usual) / spread for values, usual, spread in levels]

    def worst(self, rows: FloatArray) -> FloatArray:
        """Lowest of the standardised log densities of an image's windows, (N,)."""
        return cast("FloatArray", np.nanmin((rows[:, :-1] - self._usual) / self._spread, 1))

    def score(self, rows: FloatArray, upright: float = 0.0) -> FloatArray:
        """Score of each image, (N,); 0 if nothing is known of its windows.

        `upright` is `Surprise.upright`. Where the stack knows what belongs together, it tells more
        of ordinary images than their unlikeliest window, which counts only if it is a rare one.
        """
        scores = np.zeros(len(rows), rows.dtype)
        known = ~np.isnan(rows[:, -1]) & self._known
        if not known.any():
            return scores
        rows = rows[known].astype(np.float64)
        worst = np.minimum(self.worst(rows), self._highest)
        rare = np.minimum(0, worst - self._rare)
        with np.errstate(invalid="ignore"):
            above = rows[:, -1] - self._line[0] - self._line[1] * worst
            lowest = rare + (1 - upright) * (worst - rare)
        level = np.maximum(0, above / self._level_spread)
        with np.errstate(over="ignore"):  # single precision has -inf for it
            scores[known] = np.where(worst == -np.inf, -np.inf, lowest - _LEVEL_WEIGHT * level**2)
        return scores


class Surprise:
    """How usual an image is as a whole, which way round it is, and how well its parts fit.

    A sum of four terms, each in standard deviations of the training images. They come from what
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
        their views (N, V - 1), and how these fall short (N, V - 1).
        """
        own, *others = views(x)
        measured = [tree.shortfalls(view, complete) for view in others]
        shortfalls, log_prob = zip(*measured, strict=True)
        columns = [*log_prob, *(of_view.sum(1) for of_view in shortfalls)]  # each (N,)
        return torch.cat([tree.statistics(own, complete), torch.stack(columns, 1)], 1)

    def fit(self, rows: FloatArray, rng: RandomState) -> Self:
        """Learn from what `measure` says of training images."""
        rows = rows.astype(np.float64)
        statistics = rows[:, : self._n_statistics]
        self._rounding = _NEGLIGIBLE * float(np.median(np.abs(statistics).max(1)))
        self._spread = max(float(self._contrasts(rows).std()), self._rounding, _TINY)
        profile = self._profile(rows)
        # Views that are not like images at all may be of another magnitude.
        by_column = _NEGLIGIBLE * np.median(np.abs(profile), 0)
        self._typical = Density(profile, np.maximum(by_column, self._rounding), rng)
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

    def upright(self, rows: FloatArray) -> float:
        """How far images are told from their views: 1 if all are likelier than these, 0 by chance.

        Of images that lie any way round, the stack can know no parts that belong together.
        """
        share = float((self._orientation(rows.astype(np.float64)) > 0).mean())
        return max(0.0, 2 * share - 1)

    @property
    def _n_statistics(self) -> int:
        return N_STATISTICS * (self.n_layers - 1) + 1

    def _terms(self, rows: FloatArray) -> FloatArray:
        """Terms of each image, (N, 4)."""
        shortfall = self._by_layer(rows, SHORTFALL).sum(1)  # (N,)
        more = rows[:, -self._n_views(rows) :].mean(1) - shortfall  # (N,), of the views
        return np.column_stack([
            self._typicality(rows), self._orientation(rows), more,
            self._together(self._gains(rows)),
        ])  # fmt: skip

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
        return rows[:, : self._n_statistics + self._n_views(rows)]

    def _n_views(self, rows: FloatArray) -> int:
        return int(rows.shape[1] - self._n_statistics) // 2

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


class Calibrated:
    """A score of windows, of the whole, or of both, that has learnt how normal images score.

    Both: the score of the windows, and twice that of the whole in standard deviations. How far
    images have a right way round that the stack knows (`Surprise.upright`) is the weight of the
    whole; and so much less weighs an unlikeliest window that is no rare one.

    Parameters
    ----------
    n_windows : int
        Columns of the rows that say something of windows; 0 for a score of the whole.
    n_layers : int
        Of the mixtures of the stack; 0 for a score of windows.
    """

    def __init__(self, n_windows: int, n_layers: int) -> None:
        self.n_windows, self.n_layers = n_windows, n_layers

    def fit(self, rows: FloatArray, rng: RandomState) -> Self:
        """Learn from rows of what `Extremes` and `Surprise` measure of normal images."""
        self._upright, self._weight = 0.0, 1.0 if self.n_layers else 0.0
        if self.n_windows:
            self._extremes = Extremes().fit(rows[:, : self.n_windows])
        if self.n_layers:
            whole = rows[:, self.n_windows :]
            self._surprise = Surprise(self.n_layers).fit(whole, rng)
            if self.n_windows:
                scores = self._surprise.score(whole)
                spread = float(scores[np.isfinite(scores)].std())
                self._upright = self._surprise.upright(whole) if spread > 0 else 0.0
                self._weight = _WHOLE_WEIGHT * self._upright / spread if spread > 0 else 0.0
        return self

    def score(self, rows: FloatArray) -> FloatArray:
        """Score of each image, (N,); the larger, the more normal."""
        scores = np.zeros(len(rows), rows.dtype)
        if self.n_windows:
            scores += self._extremes.score(rows[:, : self.n_windows], self._upright)
        if self._weight:
            whole = self._surprise.score(rows[:, self.n_windows :])
            scores += np.where(np.isfinite(whole), self._weight * whole, whole)
        return scores


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
    """Log density of rows under a mixture of training rows, whitened.

    `rounding` says how large rounding errors of the columns are.
    """

    def __init__(self, rows: FloatArray, rounding: FloatArray, rng: RandomState) -> None:
        self._mean, self._unit = rows.mean(0), np.maximum(rounding, _TINY)
        _, singular, directions = np.linalg.svd(self._in_units(rows), full_matrices=False)
        spread = singular / np.sqrt(len(rows) - 1)
        # Directions in which statistics do not differ hold rounding errors; of few images, those in
        # which they differ least are of these images alone.
        n_most = max(1, len(rows) // _IMAGES_EACH)
        kept = (spread > 1) & (np.arange(len(spread)) < n_most)
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

    def _in_units(self, rows: FloatArray) -> FloatArray:
        return cast("FloatArray", (rows - self._mean) / self._unit)

    def _whiten(self, rows: FloatArray) -> FloatArray:
        return cast("FloatArray", self._in_units(rows) @ self._whitening)

    def __call__(self, rows: FloatArray) -> FloatArray:
        """Log density of each row, (N,)."""
        if self.alike:
            apart: FloatArray = np.abs(self._in_units(rows)).max(1)
            return np.minimum(0, 1 - apart)
        return cast("FloatArray", self._mixture.score_samples(self._whiten(rows)))


def weighted_quantile(values: FloatArray, weight: NDArray[Any] | None, share: float) -> float:
    """Value below which there is a share of the weight; None weighs all the same."""
    if weight is None:
        return float(np.quantile(values, share))
    order = np.argsort(values)
    reached = np.cumsum(weight[order]) / weight.sum()
    return float(values[order][np.searchsorted(reached, share)])
