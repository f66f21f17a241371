"""Merging components of a mixture into clusters, as pure functions of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

# Of K components, an image belongs at least to K to this power when overlaps are looked at.
_SHARED_EXPONENT = 0.1
# Least mass of a component that takes part, in images; the others join where they overlap.
_MIN_MASS = 0.5
# Clusters that overlap less have nothing to do with each other.
_LEAST_OVERLAP = 0.003
# A cluster that holds less of an equal share than this, or than one over the number of clusters, is
# what was left over: its components join others.
_LEFT_OVER = 0.1
_TINY = np.finfo(np.float64).tiny

FloatArray = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
# Of one cluster and all, given their sums, (D,) and (K, D), and masses, () and (K,).
Strength = Callable[[FloatArray, FloatArray, FloatArray, FloatArray], FloatArray]


def merge(
    scores: FloatArray,
    means: FloatArray,
    n_clusters: int,
    weight: FloatArray | None = None,
) -> Labels:
    """Merge the components of a mixture whose posteriors overlap most, until few are left.

    With p_i the posterior of component i given an image, two clusters overlap by E[p_i p_j] over
    the smaller of their masses E[p_i] and E[p_j], and over the root of the larger one. This is half
    way between the share of the smaller cluster that the larger would take, by which small ones
    merge into large ones, and the ratio to what chance would make of it, by which clusters become
    of like size. Posteriors add up when components merge. Where hardly any overlap is left between
    more clusters than asked for, those join whose means are nearest, as in Ward's method. The
    density of the mixture stays as it is. Where clusters of hardly any images would be left over,
    their components join where they overlap, and the others are merged again.

    Parameters
    ----------
    scores : ndarray of shape (n_images, K)
        Log of weight times density.
    means : ndarray of shape (K, n_features)
        Mean images of the components.
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

    J. H. Ward: Hierarchical grouping to optimize an objective function. Journal of the American
    Statistical Association 58, 1963.
    """
    n_components = scores.shape[1]
    if weight is None:
        weight = np.ones(len(scores))
    posterior = _overlapping_posterior(scores.astype(np.float64), weight)  # (N, K)
    share = weight / weight.sum()
    mass = share @ posterior  # (K,)
    overlap = (posterior * share[:, None]).T @ posterior  # (K, K)
    by_mass = np.argsort(-mass, kind="stable")
    n_filled = (mass * weight.sum() >= _MIN_MASS).sum()
    joining = np.sort(by_mass[: max(n_clusters, n_filled)])
    left_over = min(_LEFT_OVER, 1 / n_clusters) / n_clusters
    while True:
        sums = np.hstack([overlap[np.ix_(joining, joining)], np.eye(len(joining))])
        found = _agglomerate(sums, mass[joining], _overlap, n_clusters)
        if found.max() >= n_clusters:
            masses = np.bincount(found, mass[joining]).astype(np.float64)
            sums = np.zeros((len(masses), means.shape[1]))
            np.add.at(sums, found, mass[joining, None] * means[joining])
            if sums.shape[1] > len(sums):  # distances do not need more axes than clusters
                sums = np.transpose(np.linalg.qr(sums.T, mode="r"))
            found = _agglomerate(sums, masses, _nearness, n_clusters)[found]
        kept = np.bincount(found, mass[joining])[found] >= left_over
        if kept.all() or kept.sum() < n_clusters:
            break
        joining = joining[kept]
    labels = np.full(n_components, found[mass[joining].argmax()])
    labels[joining] = found
    left_out = np.setdiff1d(np.arange(n_components), joining)
    if len(left_out):
        expected = _expected(mass[left_out, None], mass[joining])  # (left out, joining)
        relative = overlap[np.ix_(left_out, joining)] / expected
        some = relative.any(1)
        labels[left_out[some]] = found[relative[some].argmax(1)]
    order = np.argsort(-np.bincount(labels, mass), kind="stable")
    ranks: Labels = np.argsort(order)[labels]
    return ranks


def _agglomerate(sums: FloatArray, mass: FloatArray, strength: Strength, n_clusters: int) -> Labels:
    """Join the two clusters of largest strength, until few are left, or none have any.

    Parameters
    ----------
    sums : ndarray of shape (K, D)
        What adds up when clusters join.
    mass : ndarray of shape (K,)
    strength : callable
        Minus infinity for clusters that are not to join.
    n_clusters : int

    Returns
    -------
    ndarray of shape (K,)
        Labels from 0.
    """
    sums, mass, labels = sums.copy(), mass.copy(), np.arange(len(mass))
    strengths = np.stack([strength(s, m, sums, mass) for s, m in zip(sums, mass, strict=True)])
    np.fill_diagonal(strengths, -np.inf)
    for _ in range(len(mass) - n_clusters):
        i, j = sorted(np.unravel_index(strengths.argmax(), strengths.shape))
        if strengths[i, j] == -np.inf:
            break
        labels[labels == j] = i
        sums[i] += sums[j]
        mass[i] += mass[j]
        strengths[i] = strength(sums[i], mass[i], sums, mass)
        gone = np.setdiff1d(np.arange(len(mass)), labels)
        strengths[i, gone] = strengths[i, i] = -np.inf
        strengths[:, i] = strengths[i]
        strengths[j] = strengths[:, j] = -np.inf
    return np.unique(labels, return_inverse=True)[1]


def _overlap(
    one: FloatArray, mass: FloatArray, others: FloatArray, masses: FloatArray
) -> FloatArray:
    """How much clusters overlap; minus infinity where hardly.

    What adds up are overlaps with each component, and, behind them, which components are members.
    """
    members = len(one) // 2
    relative = others[:, members:] @ one[:members] / _expected(mass, masses)
    strengths: FloatArray = np.where(relative < _LEAST_OVERLAP, -np.inf, relative)
    return strengths


def _nearness(
    one: FloatArray, mass: FloatArray, others: FloatArray, masses: FloatArray
) -> FloatArray:
    """Less what joining adds to the squared distances from the means."""
    apart = np.square(others / masses[:, None] - one / mass).sum(1)
    added: FloatArray = apart * mass * masses / (mass + masses)
    return -added


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
