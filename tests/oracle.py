"""The model once more, slow and plain: float64, loops over windows, scipy's Gaussians.

Images are (N, H, W, C). Parameters are in the form of the fitted attributes: (K,), (K, D) if
shared, with axes (rows, columns) in front if not; D runs over (row, column, channel).
"""

import itertools

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
    for name, _, windows in estimator._stack.layers:
        if name in estimator.means_:
            scores[name] = window_scores(
                x,
                *(np.float64(p[name]) for p in (
                    estimator.weights_, estimator.means_, estimator.covariances_
                )),
                windows.kernel,
                windows.stride,
            )  # fmt: skip
            x = softmax(scores[name], axis=-1)
        else:
            x = pooled(x, windows.kernel, windows.stride)
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


# --- one density: every path through the tree ---------------------------------------------------


def tree_layers(estimator):
    """Mixture layers from the image upwards: name, windows' size in cells below, pooling, tables.

    Tables are a function of a window's position and a cell's place in it.
    """
    pool, found = (1, 1), []
    for name, _, windows in estimator._stack.layers:
        if name not in estimator.means_:
            pool = (pool[0] * windows.kernel[0], pool[1] * windows.kernel[1])
            continue
        means = estimator.means_[name].astype(np.float64)
        if means.ndim == 2:
            means = np.broadcast_to(means, (*windows.grid, *means.shape))
        found.append((name, windows.kernel, pool, means))
        pool = (1, 1)
    return found


def paths(estimator):
    """Every choice of components in the whole tree: its probability, and its pixels' Gaussians.

    Yields (choices, probability, means (H, W, C), variances (H, W, C)). Choices are the components
    of each layer from the top down, one tuple of all positions for each.
    """
    (first, kernel, _, first_means), *upper = tree_layers(estimator)
    height, width, channels = estimator.image_shape_
    variances = estimator.covariances_[first].astype(np.float64)
    if variances.ndim < estimator.means_[first].ndim:
        variances = np.repeat(variances[..., None], first_means.shape[-1], -1)
    variances = np.broadcast_to(variances, first_means.shape)

    def pixels(components):
        images = []
        for values in (first_means, variances):
            image = np.empty((height, width, channels))
            for (row, column), k in components.items():
                patch = values[row, column, k].reshape(*kernel, channels)
                top, left = row * kernel[0], column * kernel[1]
                part = image[top : top + kernel[0], left : left + kernel[1]]
                part[...] = patch[: part.shape[0], : part.shape[1]]
            images.append(image)
        return images

    def descend(components, level):
        """Choices below the given components {(row, column): k} of a layer."""
        choices = (tuple(components.values()),)
        if level < 0:
            yield choices, 1.0, components
            return
        _, (h, w), (ph, pw), means = upper[level]
        below = (first_means if level == 0 else upper[level - 1][3]).shape
        cells, tables = list(itertools.product(range(below[0]), range(below[1]))), []
        for row, column in cells:
            window = row // (h * ph), column // (w * pw)
            table = means[window][components[window]].reshape(h, w, below[2])
            tables.append(table[row // ph % h, column // pw % w])
        for choice in itertools.product(range(below[2]), repeat=len(cells)):
            probability = np.prod([t[j] for t, j in zip(tables, choice, strict=True)])
            chosen = dict(zip(cells, choice, strict=True))
            for below, further, lowest in descend(chosen, level - 1):
                yield choices + below, probability * further, lowest

    top = tree_layers(estimator)[-1][0]
    for y, weight in enumerate(estimator.weights_[top].astype(np.float64)):
        for choices, probability, components in descend({(0, 0): y}, len(upper) - 1):
            yield choices, weight * probability, *pixels(components)


class Enumeration:
    """The density as one flat mixture with a component for each path."""

    def __init__(self, estimator):
        choices, probabilities, means, variances = zip(*paths(estimator), strict=True)
        self.choices, self.probabilities = choices, np.array(probabilities)
        self.y = np.array([top for ((top,), *_) in choices])
        self.means = np.array(means).reshape(len(choices), -1)
        self.variances = np.array(variances).reshape(len(choices), -1)

    def joint(self, X):
        """Log of probability times density of the observed values, (N, paths)."""
        terms = norm.logpdf(X[:, None], self.means, np.sqrt(self.variances))
        return np.log(self.probabilities) + np.nansum(terms, 2)

    def log_prob(self, X):
        """Log density (N,)."""
        return logsumexp(self.joint(X), axis=1)

    def top_responsibilities(self, X):
        """Posterior of the top components, (N, K)."""
        posterior = softmax(self.joint(X), axis=1)
        return np.stack([posterior[:, self.y == k].sum(1) for k in np.unique(self.y)], 1)

    def conditional_mean(self, X):
        """Images with missing values at their mean given the observed ones."""
        mean = softmax(self.joint(X), axis=1) @ self.means
        return np.where(np.isnan(X), mean, X)

    def given_layers(self, x, n_layers):
        """Probability of each path if the upper layers choose given an image (D,), others anew."""
        posterior = softmax(self.joint(x[None])[0])
        groups = [choices[:n_layers] for choices in self.choices]
        seen = dict.fromkeys(groups, 0.0)
        prior = dict(seen)
        for group, p, q in zip(groups, posterior, self.probabilities, strict=True):
            seen[group] += p
            prior[group] += q
        return self.probabilities * np.array([seen[group] / prior[group] for group in groups])

    def moments(self, probabilities=None):
        """Mean (D,) and covariance (D, D), given other probabilities of the paths than theirs."""
        if probabilities is None:
            probabilities = self.probabilities
        mean = probabilities @ self.means
        second = np.einsum("p,pi,pj->ij", probabilities, self.means, self.means)
        variances = np.diag(probabilities @ self.variances)
        return mean, second + variances - np.outer(mean, mean)
