"""Tree of mergers of the components of a mixture, as pure functions of arrays."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

# Of K components, an image belongs at least to K to this power when overlaps are looked at.
_SHARED_EXPONENT = 0.1
# An image has nothing to do with components that are further below its likeliest than both this
# many nats and this many times the temperature. Else, of kinds of images that are all far apart,
# the most central would overlap most with all others, and swallow them.
_MOST_NATS, _MOST_TEMPERED = 15.0, math.log(10)
# Clusters whose posteriors have a smaller cosine have nothing to do with each other.
_LEAST_COSINE = 1e-4
# A cluster that holds less of an equal share than this is what was left over: it joins another.
_LEFT_OVER = 0.05
# Mass of components without images, which lets their means tell what they join.
_LEAST_MASS = 1e-9
# Of mergers that add as much to squared distances, the one of less mass comes first.
_TIE = 1e-6
# Images whose posteriors are multiplied at a time.
_BLOCK = 1000
# Stands for nothing where one divides by it.
_TINY = 1e-60
# No score is less than this, which is within single precision.
_NEVER = -1e30

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]


def merge(
    scores: FloatArray,
    means: FloatArray,
    weight: FloatArray | None = None,
    neighbours: IntArray | None = None,
) -> tuple[IntArray, FloatArray]:
    """Tree of mergers, first of components whose posteriors overlap most, until one is left.

    With p_i the posterior of component i given an image, two components are apart by

        -log(cosine of p_i and p_j) + log(K * smaller of E[p_i] and E[p_j]) / 2,

    where E[p_i p_j] is the scalar product, of one image's posteriors and as much of an image's and
    its neighbours': the most alike join, and small ones before large ones.
    Posteriors add up when components merge. Those that hardly overlap are farther apart than all
    that do, and join as in Ward's method, by the squared distances of their means. A cluster of
    hardly any images, of less than 0.05 / n of all mass while n clusters are left, does not wait
    for that: it joins the one it is least apart from.

    Most images of many pixels are likelier by hundreds of nats in one component than in any other,
    so that nothing would overlap. Then scores are divided by a temperature, by which distances are
    multiplied, so that they are in nats again.

    Parameters
    ----------
    scores : ndarray of shape (n_images, K)
        Log of weight times density.
    means : ndarray of shape (K, n_features)
        Mean images of the components.
    weight : ndarray of shape (n_images,) or None
    neighbours : ndarray of int of shape (n_images, n) or None
        Numbers of the images that are most like each; None looks at each alone.

    Returns
    -------
    children : ndarray of shape (K - 1, 2)
        Nodes that join: those below K are components, node K + i is what merger i leads to, as in
        `sklearn.cluster.AgglomerativeClustering`.
    distances : ndarray of shape (K - 1,)
        Log of one plus the distance in nats at each merger, or at the farthest before it. A good
        number of clusters n is where they rise most: the one of the largest
        ``distances[K - n] - distances[K - n - 1]``, or ``distances[0]`` for n = K, of all numbers
        in question.

    References
    ----------
    C. Hennig: Methods for merging Gaussian mixture components. Advances in Data Analysis and
    Classification 4, 2010, which merges by the overlap of posteriors, too.

    J. H. Ward: Hierarchical grouping to optimize an objective function. Journal of the American
    Statistical Association 58, 1963.
    """
    share = np.ones(len(scores)) if weight is None else weight.astype(np.float64)
    share /= share.sum()
    posterior, temperature = _overlapping_posterior(scores, share)  # (N, K)
    mass = np.maximum(share @ posterior, _LEAST_MASS)  # (K,)
    mass /= mass.sum()
    overlap = np.zeros((len(mass), len(mass)))
    for start in range(0, len(posterior), _BLOCK):  # in double precision, a part at a time
        block = slice(start, start + _BLOCK)
        part = posterior[block] * share[block, None]
        overlap += part.T @ posterior[block]
        if neighbours is not None:
            overlap += part.T @ posterior[neighbours[block]].mean(1)
    overlap = (overlap + overlap.T) / 2
    sums = mass[:, None] * (means - mass @ means)  # (K, n_features)
    scatter = (np.square(sums).sum(1) / mass).sum()
    products = np.stack([overlap, sums @ sums.T / max(scatter, _TINY)])
    children, distances = _agglomerate(products, mass)
    farthest = np.maximum.accumulate(np.maximum(distances, 0.0))  # (K - 1,)
    return children, np.log1p(temperature * farthest)


def cut(children: IntArray, n_clusters: int, mass: FloatArray) -> IntArray:
    """Clusters of components that are left when the last mergers of a tree are undone.

    Parameters
    ----------
    children : ndarray of shape (K - 1, 2)
        As from `merge`.
    n_clusters : int
        From 1 to K.
    mass : ndarray of shape (K,)
        Mass of each component, such as its mixture weight.

    Returns
    -------
    ndarray of shape (K,)
        The cluster of each component, from 0; those of large mass come first.
    """
    n_components = len(children) + 1
    nodes = np.arange(2 * n_components - n_clusters)
    for i in reversed(range(n_components - n_clusters)):  # from the last merger down
        nodes[children[i]] = nodes[n_components + i]
    labels = np.unique(nodes[:n_components], return_inverse=True)[1]
    order = np.argsort(-np.bincount(labels, mass), kind="stable")
    return cast("IntArray", np.argsort(order)[labels])


def _agglomerate(products: FloatArray, mass: FloatArray) -> tuple[IntArray, FloatArray]:
    """Mergers of the two clusters least apart, or of one that is left over, until one is left.

    Parameters
    ----------
    products : ndarray of shape (2, K, K)
        Scalar products of posteriors, and of sums of centred means. Both add up.
    mass : ndarray of shape (K,)

    Returns
    -------
    children : ndarray of shape (K - 1, 2)
    distances : ndarray of shape (K - 1,)
        Minus infinity where a cluster was left over.
    """
    products, mass = products.copy(), mass.copy()
    n_components = len(mass)
    nodes = np.arange(n_components)
    gone = np.zeros(n_components, dtype=bool)
    apart = np.stack([_apart(i, products, mass) for i in range(n_components)])
    children = np.empty((n_components - 1, 2), dtype=np.int64)
    distances = np.empty(n_components - 1)
    for step in range(n_components - 1):
        i = int(np.where(gone, np.inf, mass).argmin())
        if mass[i] * (n_components - step) < _LEFT_OVER:
            j = int(apart[i].argmin())
            distances[step] = -np.inf
        else:
            i, j = divmod(int(apart.argmin()), n_components)
            distances[step] = apart[i, j]
        children[step] = sorted((nodes[i], nodes[j]))
        nodes[i] = n_components + step
        products[:, i] += products[:, j]
        products[:, :, i] += products[:, :, j]
        mass[i] += mass[j]
        gone[j] = True
        apart[i] = np.where(gone, np.inf, _apart(i, products, mass))
        apart[:, i] = apart[i]
        apart[j] = apart[:, j] = np.inf
    return children, distances


def _apart(i: int, products: FloatArray, mass: FloatArray) -> FloatArray:
    """Distances, as described in `merge`, of one cluster from all; infinite from itself.

    Clusters that hardly overlap are apart by as much as any that do, and more by that part of the
    scatter of means which joining them moves into clusters.
    """
    overlap, product = products
    squares = np.maximum(np.diagonal(overlap), _TINY)
    cosine = overlap[i] / np.sqrt(squares[i] * squares)  # (K,)
    smaller, both = np.minimum(mass[i], mass), mass[i] + mass  # (K,)
    near = 0.5 * np.log(len(mass) * smaller) - np.log(np.maximum(cosine, _LEAST_COSINE))
    lengths = np.diagonal(product) / mass**2
    squared = lengths[i] + lengths - 2 * product[i] / (mass[i] * mass)  # (K,)
    added = squared * mass[i] * mass / both * (1 + _TIE * both)
    far = (0.5 * np.log(len(mass)) - np.log(_LEAST_COSINE)) * (1 + added)
    apart: FloatArray = np.where(cosine < _LEAST_COSINE, far, near)
    apart[i] = np.inf
    return apart


def _overlapping_posterior(scores: FloatArray, share: FloatArray) -> tuple[FloatArray, float]:
    """Posteriors, tempered where an image belongs to too few components to show overlaps.

    Parameters
    ----------
    scores : ndarray of shape (N, K)
    share : ndarray of shape (N,)
        Of each image in the average; adds up to one.

    Returns
    -------
    posterior : ndarray of shape (N, K)
    temperature : float
        At least 1.
    """
    # Single precision is enough, and several times as fast.
    nats = (scores - scores.max(1, keepdims=True)).astype(np.float32, copy=False)  # (N, K)
    np.maximum(nats, _NEVER, out=nats)

    def excess(log_temperature: float) -> float:
        """Excess of the mean entropy over what is wanted."""
        coldness = np.float32(math.exp(-log_temperature))
        values = np.exp(nats * coldness)
        sums = values.sum(1)
        entropy = np.log(sums) - coldness * np.einsum("nk,nk->n", values, nats) / sums  # (N,)
        return float(share @ entropy) - _SHARED_EXPONENT * math.log(nats.shape[1])

    temperature, high = 1.0, 1.0
    if excess(0.0) < 0:
        while excess(high) < 0:
            high *= 2
        temperature = math.exp(brentq(excess, 0.0, high, xtol=1e-3))
    nats[nats < -max(_MOST_NATS, _MOST_TEMPERED * temperature)] = -np.inf
    nats /= np.float32(temperature)
    posterior = np.exp(nats, out=nats)
    posterior /= posterior.sum(1, keepdims=True)
    return posterior, temperature
