"""Tree of mergers of the components of a mixture, as pure functions of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

# Of K components, an image belongs at least to K to this power when overlaps are looked at.
_SHARED_EXPONENT = 0.1
# Clusters whose posteriors have a smaller cosine have nothing to do with each other.
_LEAST_COSINE = 1e-4
# A cluster that holds less of an equal share than this is what was left over: it joins another.
_LEFT_OVER = 0.02
# Stands for nothing where one divides by it, and can be squared.
_TINY = 1e-60
# What no score is less than, within single precision.
_NEVER = np.float32(-1e30)

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]


def merge(
    scores: FloatArray, means: FloatArray, weight: FloatArray | None = None
) -> tuple[IntArray, FloatArray]:
    """Tree by which components join whose posteriors overlap most, until one cluster is left.

    With p_i the posterior of cluster i given an image, which adds up when clusters merge, two
    clusters are as far apart as -log cos(p_i, p_j), with E[p_i p_j] as scalar product, plus half
    the log of the mass E[p_i] of the smaller one, relative to 1 / K: those join that are most
    alike, and small ones before large ones. Where hardly any overlap is left, those join whose
    means are nearest, as in Ward's method. A cluster of hardly any images joins another before all
    that, at no distance of its own: with n clusters left, each has at least 0.02 / n of all mass.

    Most likely images of many pixels differ by hundreds of nats, so that no posteriors overlap.
    Then they are tempered, scores divided by a temperature, until some do; and distances are
    multiplied by it, which makes them nats again.

    Parameters
    ----------
    scores : ndarray of shape (n_images, K)
        Log of weight times density.
    means : ndarray of shape (K, n_features)
        Mean images of the components.
    weight : ndarray of shape (n_images,) or None

    Returns
    -------
    children : ndarray of shape (K - 1, 2)
        Nodes that join: those below K are components, node K + i is what merger i leads to, as in
        `sklearn.cluster.AgglomerativeClustering`.
    distances : ndarray of shape (K - 1,)
        Log of one plus the distance in nats at which they join; it never decreases. A good number
        of clusters is one before the largest step up, the n of largest
        ``distances[K - n] - distances[K - n - 1]``, where n = K has ``distances[0]``.

    References
    ----------
    C. Hennig: Methods for merging Gaussian mixture components. Advances in Data Analysis and
    Classification 4, 2010, which merges by the overlap of posteriors, too.

    J. H. Ward: Hierarchical grouping to optimize an objective function. Journal of the American
    Statistical Association 58, 1963.
    """
    n_components = scores.shape[1]
    share = np.ones(len(scores)) if weight is None else weight.astype(np.float64)
    share /= share.sum()
    posterior, temperature = _overlapping_posterior(scores, share)  # (N, K)
    rooted = posterior * np.sqrt(share)[:, None]  # (N, K) float64
    mass = np.maximum(share @ posterior, _TINY)  # (K,)
    mass /= mass.sum()
    sums = mass[:, None] * (means - mass @ means)  # (K, n_features)
    children, apart = _agglomerate(np.stack([rooted.T @ rooted, sums @ sums.T]), mass)
    distances = np.log1p(temperature * np.maximum.accumulate(np.maximum(apart, 0.0)))
    assert len(children) == n_components - 1
    return children, distances


def cut(children: IntArray, n_clusters: int, mass: FloatArray) -> IntArray:
    """Clusters of components that are left when the last mergers of a tree are undone.

    Parameters
    ----------
    children : ndarray of shape (K - 1, 2)
        As from `merge`.
    n_clusters : int
        From 1 to K.
    mass : ndarray of shape (K,)
        Of each component, such as its mixture weight.

    Returns
    -------
    ndarray of shape (K,)
        The cluster of each component, from 0; those of large mass come first.
    """
    n_components = len(children) + 1
    nodes = np.arange(n_components)
    for i, pair in enumerate(children[: n_components - n_clusters]):
        nodes[np.isin(nodes, pair)] = n_components + i
    labels = np.unique(nodes, return_inverse=True)[1]
    order = np.argsort(-np.bincount(labels, mass), kind="stable")
    ranks: IntArray = np.argsort(order)[labels]
    return ranks


def _agglomerate(products: FloatArray, mass: FloatArray) -> tuple[IntArray, FloatArray]:
    """Join the two nearest clusters, or the smallest if it is left over, until one is left.

    Parameters
    ----------
    products : ndarray of shape (2, K, K)
        Scalar products of posteriors, and of sums of centred means, which both add up.
    mass : ndarray of shape (K,)

    Returns
    -------
    children : ndarray of shape (K - 1, 2)
    distances : ndarray of shape (K - 1,)
        Minus infinity where a cluster was left over.
    """
    products, mass = products.copy(), mass.copy()
    n_components = len(mass)
    scatter = max(float((np.diagonal(products[1]) / mass).sum()), _TINY)
    apart = np.stack(
        [_distances(i, products, mass, n_components, scatter) for i in range(n_components)]
    )
    nodes = np.arange(n_components)
    alive = np.ones(n_components, dtype=bool)
    children = np.empty((n_components - 1, 2), dtype=np.int64)
    distances = np.empty(n_components - 1)
    for step in range(n_components - 1):
        smallest = int(np.where(alive, mass, np.inf).argmin())
        if mass[smallest] * (n_components - step) < _LEFT_OVER:
            i, j, distances[step] = smallest, int(apart[smallest].argmin()), -np.inf
        else:
            i, j = (int(n) for n in np.unravel_index(apart.argmin(), apart.shape))
            distances[step] = apart[i, j]
        children[step] = sorted((nodes[i], nodes[j]))
        nodes[i] = n_components + step
        products[:, i] += products[:, j]
        products[:, :, i] += products[:, :, j]
        mass[i] += mass[j]
        alive[j] = False
        apart[i] = _distances(i, products, mass, n_components, scatter)
        apart[i, ~alive] = np.inf
        apart[:, i] = apart[i]
        apart[j] = apart[:, j] = np.inf
    return children, distances


def _distances(
    i: int, products: FloatArray, mass: FloatArray, n_components: int, scatter: float
) -> FloatArray:
    """How far one cluster is from all, and infinitely far from itself.

    Beyond all that overlap are those that hardly do, by what share of the scatter of means joining
    them adds to that within clusters.
    """
    overlap, product = products
    squares = np.maximum(np.diagonal(overlap), _TINY)
    cosine = overlap[i] / np.sqrt(squares[i] * squares)  # (K,)
    small = np.minimum(mass[i], mass)  # (K,)
    near = 0.5 * np.log(n_components * small) - np.log(np.maximum(cosine, _LEAST_COSINE))
    lengths = np.diagonal(product) / mass**2
    squared = lengths[i] + lengths - 2 * product[i] / (mass[i] * mass)  # (K,)
    added = squared * mass[i] * mass / (mass[i] + mass) / scatter
    far = (0.5 * np.log(n_components) - np.log(_LEAST_COSINE)) * (1 + added)
    distances: FloatArray = np.where(cosine < _LEAST_COSINE, far, near)
    distances[i] = np.inf
    return distances


def _overlapping_posterior(scores: FloatArray, share: FloatArray) -> tuple[FloatArray, float]:
    """Posteriors, tempered where an image belongs to too few components to show overlaps.

    Parameters
    ----------
    scores : ndarray of shape (N, K)
    share : ndarray of shape (N,)
        Of each image in the average, sums to one.

    Returns
    -------
    posterior : ndarray of shape (N, K)
    temperature : float
        At least 1.
    """
    # Single precision is enough, and several times as fast.
    relative = np.maximum(scores - scores.max(1, keepdims=True), _NEVER).astype(np.float32)

    def excess(log_temperature: float) -> float:
        coldness = np.float32(np.exp(-log_temperature))
        values = np.exp(relative * coldness)
        sums = values.sum(1)
        mean = np.einsum("nk,nk->n", values, relative) / sums * coldness
        return float(share @ (np.log(sums) - mean)) - target

    target = _SHARED_EXPONENT * np.log(scores.shape[1])
    log_temperature, high = 0.0, 1.0
    if excess(0.0) < 0:
        while excess(high) < 0:
            high *= 2
        log_temperature = float(brentq(excess, 0.0, high, xtol=1e-3))
    temperature = float(np.exp(log_temperature))
    posterior = np.exp(relative / np.float32(temperature))
    return posterior / posterior.sum(1, keepdims=True), temperature
