"""Scores by which models of images of any kind compare."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, check_random_state
from torch.nn import functional

from skdcgmm.analysis.bits import dequantise, level_step
from skdcgmm.data import FloatArray, Images
from skdcgmm.estimators.checks import Seed
from skdcgmm.estimators.generative import GenerativeDCGMM
from skdcgmm.model.bins import log_bins, look_up
from skdcgmm.model.windows import Windows


def bits_per_dim(
    estimator: Any, X: Any, *, n_levels: int = 256, random_state: Seed = None
) -> FloatArray:
    """Bits that each image takes under a fitted density, divided by the number of its values.

    The lower the better, and the same unit for stacks, their kinds of pixels, and mixtures of
    scikit-learn. A grid search ranks by ``lambda est, X, y=None: -bits_per_dim(est, X).mean()``.

    Parameters
    ----------
    estimator : estimator with `score_samples`
        Of this library: see `DCGMMEstimator.bits_per_dim`. A `GaussianMixture` of
        diagonal or spherical covariances is integrated as tiles are. Else `score_samples` must be
        the log density in units of X, in nats; uniform noise of one step is added to X, which gives
        a bound from above: far above, where many values are at the ends of their range, beyond
        which a density has mass, too. A pipeline must end in such an estimator, and have no other
        step: those change the density.
    X : array-like of shape (n_samples, n_features)
        Of whole numbers from 0 to `n_levels` - 1, or of these divided by `n_levels` - 1.
    n_levels : int, default=256
        Number of values that a pixel may have.
    random_state : int, RandomState instance or None, default=None
        Seed of the noise.

    Returns
    -------
    ndarray of shape (n_samples,)

    Raises
    ------
    ValueError
        If values are no whole numbers in that range, or a pipeline has more than one step.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.mixture import GaussianMixture
    >>> from skdcgmm.metrics import bits_per_dim
    >>> X, _ = load_digits(return_X_y=True)
    >>> mixture = GaussianMixture(10, covariance_type="diag", reg_covar=0.1, random_state=0).fit(X)
    >>> bool(bits_per_dim(mixture, X, n_levels=17, random_state=0).mean() < 4.1)  # log2 of 17
    True
    """
    if isinstance(estimator, Pipeline):
        steps = [step for _, step in estimator.steps if step not in (None, "passthrough")]
        if len(steps) != 1:
            raise ValueError(
                f"estimator must not change X before its density is taken; got a pipeline of "
                f"{len(steps)} steps. Leave out the scaler: the stacks scale by themselves."
            )
        (estimator,) = steps
    if isinstance(estimator, GenerativeDCGMM):
        return np.asarray(estimator.bits_per_dim(X, n_levels=n_levels, random_state=random_state))
    rows = np.asarray(X)
    step = level_step(rows, n_levels)
    if isinstance(estimator, GaussianMixture) and estimator.covariance_type in (
        "diag",
        "spherical",
    ):
        codes = np.round(check_array(rows) / step).astype(np.int64)
        own = -_log_mass(estimator, codes, step, n_levels) / np.log(2) / rows.shape[1]
        return np.asarray(own)
    everywhere = np.ones(rows.shape, dtype=bool)
    noisy = dequantise(rows, step, check_random_state(random_state), everywhere)
    nats = np.asarray(estimator.score_samples(noisy)) + rows[0].size * np.log(step)
    bits: FloatArray = -nats / np.log(2) / rows[0].size
    return bits


def _log_mass(
    mixture: GaussianMixture, codes: NDArray[np.int64], step: float, n_levels: int
) -> FloatArray:
    """Log probability of rows of levels under a mixture whose values are independent, (N,)."""
    means = torch.from_numpy(mixture.means_)[None]  # (1, K, D)
    variances = torch.from_numpy(np.reshape(mixture.covariances_, (len(mixture.means_), -1)))
    roots = variances.expand(means.shape[1:]).rsqrt()[None]  # (1, K, D)
    levels = step * torch.arange(n_levels, dtype=torch.float64)  # (V,)
    n_values = means.shape[2]
    windows = Windows((n_values, 1, 1), (1, 1), (1, 1))
    by_level = log_bins(levels, means, roots).permute(0, 2, 3, 1)  # (1, D, V, K)
    by_code = functional.pad(by_level, (0, 0, 1, 0))  # (1, D, V + 1, K)
    log_weights = torch.from_numpy(mixture.weights_).log()  # (K,)
    found = []
    size = Images.batch_size(n_values * len(log_weights))
    for part in torch.split(torch.from_numpy(codes + 1), size):
        scores = look_up(by_code, part[..., None, None], windows).flatten(1)  # (N, K)
        found.append((scores + log_weights).logsumexp(1))
    return torch.cat(found).numpy()
