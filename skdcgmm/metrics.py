"""Scores by which models of images of any kind compare."""

from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state

from skdcgmm.analysis.bits import dequantise, level_step
from skdcgmm.data import FloatArray
from skdcgmm.estimators.checks import Seed
from skdcgmm.estimators.generative import GenerativeDCGMM


def bits_per_dim(
    estimator: Any, X: Any, *, n_levels: int = 256, random_state: Seed = None
) -> FloatArray:
    """Bits that each image takes under a fitted density, divided by the number of its values.

    The lower the better, and the same unit for stacks, their kinds of pixels, and mixtures of
    scikit-learn. A grid search ranks by ``lambda est, X, y=None: -bits_per_dim(est, X).mean()``.

    Parameters
    ----------
    estimator : estimator with `score_samples`
        Of this library: see `DCGMMEstimator.bits_per_dim`. Else `score_samples` must be the log
        density in units of X, in nats, such as that of `GaussianMixture`; uniform noise
        of one step is added to X, which gives a bound from above. A pipeline must end in such an
        estimator, and have no other step: those change the density.
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
        own = estimator.bits_per_dim(X, n_levels=n_levels, random_state=random_state)
        return np.asarray(own)
    rows = np.asarray(X)
    step = level_step(rows, n_levels)
    everywhere = np.ones(rows.shape, dtype=bool)
    noisy = dequantise(rows, step, check_random_state(random_state), everywhere)
    nats = np.asarray(estimator.score_samples(noisy)) + rows[0].size * np.log(step)
    bits: FloatArray = -nats / np.log(2) / rows[0].size
    return bits
