"""Merging components of a mixture into clusters, as pure functions of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

# Of K components, an image belongs at least to K to this power when overlaps are looked at.
_SHARED_EXPONENT = 0.1
# Least mass of a component that takes part, in images; the others join where they overlap.
_MIN_MASS = 0.5
# A cluster that holds less of an equal share than this, or than one over the number of clusters, is
# what was left over: its components join others.
_LEFT_OVER = 0.1
_TINY = np.finfo(np.float64).tiny

FloatArray = NDArray[np.floating[Any]]


def merge(
    scores: FloatArray,
    n_clusters: int,
    weight: FloatArray | None = None,
) -> NDArray[np.int64]:
    """Merge the components of a mixture whose posteriors overlap most, until few are left.

    With p_i the posterior of component i given an image, two clusters overlap by E[p_i p_j] over
    the smaller of their masses E[p_i] and E[p_j], and over the root of the larger one. This is half
    way between the share of the smaller cluster that the larger would take, by which small ones
    merge into large ones, and the ratio to what chance would make of it, by which clusters become
    of like size. Posteriors add up when components merge. The density of the mixture stays as it
    is. Where clusters of hardly any images would be left over, their components join where they
    overlap, and the others are merged again.

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
    ratio = overlap / _expected(mass[:, None], mass)
    by_mass = np.argsort(-mass, kind="stable")
    joining = np.sort(by_mass[: max(n_clusters, (mass >= _MIN_MASS).sum())])
    left_over = min(_LEFT_OVER, 1 / n_clusters) * weight.sum() / n_clusters
    while True:
        roots = _join(overlap, mass, joining, n_clusters)
        kept = np.bincount(roots, mass[joining], n_components)[roots] >= left_over
        if kept.all() or kept.sum() < n_clusters:
            break
        joining = joining[kept]
    parent = np.arange(n_components)
    parent[joining] = roots
    left_out = np.setdiff1d(np.arange(n_components), joining)
    if len(left_out):
        joined = joining[ratio[np.ix_(left_out, joining)].argmax(1)]
        alone = ~ratio[np.ix_(left_out, joining)].any(1)
        parent[left_out] = np.where(alone, by_mass[0], joined)
    parent = parent[parent]
    roots, labels = np.unique(parent, return_inverse=True)
    order = np.argsort(-np.bincount(labels, mass, len(roots)), kind="stable")
    return np.argsort(order)[labels]


def _join(
    overlap: FloatArray, mass: FloatArray, joining: NDArray[np.integer[Any]], n_clusters: int
) -> NDArray[np.integer[Any]]:
    """Join the two clusters that overlap most, until few are left; one component of each's own."""
    roots = np.arange(len(joining))
    grown, shared = mass[joining].copy(), overlap[np.ix_(joining, joining)].copy()
    similarity = shared / _expected(grown[:, None], grown)
    np.fill_diagonal(similarity, -1)
    gone = np.zeros(len(joining), dtype=bool)
    for _ in range(len(joining) - n_clusters):
        i, j = sorted(np.unravel_index(similarity.argmax(), similarity.shape))
        roots[roots == j] = i
        shared[i] += shared[j]
        shared[:, i] += shared[:, j]
        grown[i] += grown[j]
        gone[j] = True
        similarity[i] = shared[i] / _expected(grown[i], grown)
        similarity[:, i] = similarity[i]
        similarity[i, i] = similarity[i, gone] = similarity[gone, i] = -1
        similarity[j] = similarity[:, j] = -1
    found: NDArray[np.integer[Any]] = joining[roots]
    return found


def _expected(mass: FloatArray, other: FloatArray) -> FloatArray:
    """What overlaps of components of these masses are relative to."""
    relative: FloatArray = np.minimum(mass, other) * np.sqrt(np.maximum(mass, other))
    return np.maximum(relative, _TINY)


def _overlapping_posterior(scores: FloatArray, weight: FloatArray) -> FloatArray:
    """Responsibilities, tempered where an image belongs to too few components to show overlaps.

    Images of many pixels differ by thousands of nats, and the posteriors of no two components would
    overlap within the range of floating-point numbers.
    """
    scores = scores - scores.max(1, keepdims=True)

    def posterior(log_temperature: float) -> FloatArray:
        values: FloatArray = np.exp(scores * np.exp(-log_temperature))
        values /= values.sum(1, keepdims=True)
        return values

    def excess(log_temperature: float) -> float:
        p = posterior(log_temperature)
        entropy = -(p * np.log(np.maximum(p, _TINY))).sum(1)  # (N,)
        return float(np.average(entropy, weights=weight) - target)

    target = _SHARED_EXPONENT * np.log(scores.shape[1])
    if excess(0.0) >= 0:
        return posterior(0.0)
    high = 1.0
    while excess(high) < 0:
        high *= 2
    return posterior(brentq(excess, 0.0, high, xtol=1e-3))
