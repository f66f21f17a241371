"""The model once more, slow and plain: float64, loops over windows, scipy's Gaussians.

Images are (N, H, W, C). Parameters are in the form of the fitted attributes: (K,), (K, D) if
shared, with axes (rows, columns) in front if not; D runs over (row, column, channel).
"""

import numpy as np
from scipy.special import logsumexp, softmax
from scipy.stats import norm


def positions(size, kernel, stride):
    """Corners of the windows that cover one side."""
    corners = [0]
    while corners[-1] + kernel < size and corners[-1] + stride < size:
        corners.append(corners[-1] + stride)
    return corners


def window_scores(x, weights, means, variances, kernel, stride):
    """Log of weight times density, (N, rows, columns, K)."""
    n, height, width, channels = x.shape
    rows, columns = positions(height, kernel[0], stride[0]), positions(width, kernel[1], stride[1])
    n_components = means.shape[-2]
    if weights.ndim == 1:
        weights = np.broadcast_to(weights, (len(rows), len(columns), *weights.shape))
        means = np.broadcast_to(means, (len(rows), len(columns), *means.shape))
        variances = np.broadcast_to(variances, (len(rows), len(columns), *variances.shape))
    if variances.ndim < means.ndim:
        variances = np.broadcast_to(variances[..., None], means.shape)
    scores = np.empty((n, len(rows), len(columns), n_components))
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            patch = x[:, top : top + kernel[0], left : left + kernel[1]]
            seen = (slice(0, patch.shape[1]), slice(0, patch.shape[2]))
            for k in range(n_components):
                mean = means[i, j, k].reshape(*kernel, channels)[seen]
                deviation = np.sqrt(variances[i, j, k].reshape(*kernel, channels)[seen])
                log_density = norm.logpdf(patch, mean, deviation).sum((1, 2, 3))
                scores[:, i, j, k] = np.log(weights[i, j, k]) + log_density
    return scores


def pooled(x, kernel, stride):
    """Max over windows, cut at the border, (N, rows, columns, K)."""
    rows = positions(x.shape[1], kernel[0], stride[0])
    columns = positions(x.shape[2], kernel[1], stride[1])
    return np.stack(
        [
            np.stack(
                [x[:, r : r + kernel[0], c : c + kernel[1]].max((1, 2)) for c in columns], axis=1
            )
            for r in rows
        ],
        axis=1,
    )


def stack_scores(estimator, x):
    """Window scores of every mixture layer of a fitted estimator, by name."""
    scores = {}
    for name, layer in estimator._network.named_layers():
        if name in estimator.means_:
            scores[name] = window_scores(
                x,
                *(np.float64(p[name]) for p in (
                    estimator.weights_, estimator.means_, estimator.covariances_
                )),
                layer.kernel,
                layer.stride,
            )  # fmt: skip
            x = softmax(scores[name], axis=-1)
        else:
            x = pooled(x, layer.kernel, layer.stride)
    return scores


def layer_log_prob(scores):
    """Log-likelihood averaged over positions, (N,)."""
    return logsumexp(scores, axis=-1).mean((1, 2))


def assert_close(found, expected, n_values, tolerance):
    """Compare log-likelihoods, relative to their size or to that of their constant part.

    A log-likelihood may pass through zero where its parts, n_values logarithms of 2 pi among them,
    cancel; no more than those parts' precision is to be had there.
    """
    floor = np.log(2 * np.pi) / 2 * n_values
    error = np.abs(np.asarray(found, dtype=np.float64) - expected)
    assert (error <= tolerance * np.maximum(np.abs(expected), floor)).all(), error.max()
