"""Merging components of a mixture into clusters, as pure functions of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Perplexity that posteriors must have on average to show which components overlap.
_MIN_PERPLEXITY = 1.05
# Least mass of a component that takes part, in images; the others join where they overlap.
_MIN_MASS = 0.5
_TINY = np.finfo(np.float64).tiny


def merge(
    scores: NDArray[np.floating[Any]],
    n_clusters: int,
    weight: NDArray[np.floating[Any]] | None = None,
) -> NDArray[np.int64]:
    """Merge the components of a mixture whose posteriors overlap most, until few are left.

    With p_i the posterior of component i given an image, two clusters overlap by E[p_i p_j] /
    (E[p_i] E[p_j]), the ratio of how often they share an image to how often they would by chance.
    Posteriors add up when components merge: this is average linkage, weighted by mass. The density
    of the mixture stays as it is.

    Parameters
    ----------
    scores : ndarray of shape (n_images, K)
        Log of weight times density.
    n_clusters : int
        At most K.
    weight : ndarray of shape (n_images,) or None

    Returns
    -------
    ndarray of shape (K,)
        The cluster of each component, from 0; large clusters first.

    References
    ----------
    C. Hennig: Methods for merging Gaussian mixture components. Advances in Data Analysis and
    Classification 4, 2010, which merges by the overlap of posteriors, too.
    """
    n_components = scores.shape[1]
    if weight is None:
        weight = np.ones(len(scores))
    posterior = _overlapping_posterior(scores.astype(np.float64), weight)  # (N, K)
    weighted = posterior * weight[:, None]
    mass = weighted.sum(0)  # (K,)
    overlap = weighted.T @ posterior  # (K, K)
    ratio = overlap / np.maximum(mass[:, None] * mass, _TINY)
    by_mass = np.argsort(-mass, kind="stable")
    joining = np.sort(by_mass[: max(n_clusters, (mass >= _MIN_MASS).sum())])
    parent = np.arange(n_components)
    grown, shared = mass[joining].copy(), overlap[np.ix_(joining, joining)].copy()
    similarity = ratio[np.ix_(joining, joining)].copy()
    np.fill_diagonal(similarity, -1)
    gone = np.zeros(len(joining), dtype=bool)
    for _ in range(len(joining) - n_clusters):
        i, j = sorted(np.unravel_index(similarity.argmax(), similarity.shape))
        parent[joining[j]] = joining[i]
        shared[i] += shared[j]
        shared[:, i] += shared[:, j]
        grown[i] += grown[j]
        gone[j] = True
        similarity[i] = shared[i] / np.maximum(grown[i] * grown, _TINY)
        similarity[:, i] = similarity[i]
        similarity[i, i] = similarity[i, gone] = similarity[gone, i] = -1
        similarity[j] = similarity[:, j] = -1
    left_out = np.setdiff1d(np.arange(n_components), joining)
    if len(left_out):
        joined = joining[ratio[np.ix_(left_out, joining)].argmax(1)]
        alone = ~ratio[np.ix_(left_out, joining)].any(1)
        parent[left_out] = np.where(alone, by_mass[0], joined)
    while (parent != parent[parent]).any():
        parent = parent[parent]
    roots, labels = np.unique(parent, return_inverse=True)
    order = np.argsort(-np.bincount(labels, mass, len(roots)), kind="stable")
    return np.argsort(order)[labels]


def _overlapping_posterior(
    scores: NDArray[np.float64], weight: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Responsibilities; where they tell all components apart, at the least doubled temperature.

    Images of many pixels differ by thousands of nats, and the posteriors of no two components would
    overlap within the range of floating-point numbers.
    """
    scores = scores - scores.max(1, keepdims=True)
    temperature = 1.0
    while True:
        posterior = np.exp(scores / temperature)
        posterior /= posterior.sum(1, keepdims=True)
        entropy = -(posterior * np.log(np.maximum(posterior, _TINY))).sum(1)  # (N,)
        if not np.average(entropy, weights=weight) < np.log(_MIN_PERPLEXITY):
            return posterior
        temperature *= 2
