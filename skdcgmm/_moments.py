"""Means and variances of data that come in parts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# What is beyond double precision ends as a moment that is not finite.
_beyond = np.errstate(over="ignore", invalid="ignore")


class Moments(NamedTuple):
    """Of observed values, in double precision, over all of them or by feature.

    Attributes
    ----------
    n_values, mean : ndarray of shape () or (features,)
    squares : ndarray of shape () or (features,)
        Sum of the squared differences from the mean.
    """

    n_values: Floats
    mean: Floats
    squares: Floats

    @classmethod
    def none(cls) -> Moments:
        """Those of no values at all."""
        return cls(*(np.zeros(()) for _ in cls._fields))

    @classmethod
    @_beyond
    def of(cls, rows: NDArray[Any], *, by_feature: bool) -> Moments:
        """Those of some rows; NaN are not observed."""
        values = rows.astype(np.float64)
        seen = ~np.isnan(values)
        values[~seen] = 0
        axis = 0 if by_feature else None
        count = np.asarray(seen.sum(axis), dtype=np.float64)
        mean = values.sum(axis) / np.maximum(count, 1)
        values -= mean
        values[~seen] = 0
        return cls(count, np.asarray(mean), np.asarray(np.square(values, out=values).sum(axis)))

    @_beyond
    def add(self, other: Moments) -> Moments:
        """Those of the values of both.

        References
        ----------
        T. Chan, G. Golub, R. LeVeque: Algorithms for Computing the Sample Variance: Analysis and
        Recommendations. The American Statistician 37(3), 1983.
        """
        count = self.n_values + other.n_values
        share = other.n_values / np.maximum(count, 1)
        difference = other.mean - self.mean
        return Moments(
            count,
            self.mean + share * difference,
            self.squares + other.squares + self.n_values * share * np.square(difference),
        )

    @_beyond
    def pooled(self) -> Moments:
        """Those over all features."""
        count = self.n_values.sum()
        mean = (self.n_values * self.mean).sum() / np.maximum(count, 1)
        between = self.n_values * np.square(self.mean - mean)
        return Moments(count, np.asarray(mean), (self.squares + between).sum())

    @property
    def variance(self) -> Floats:
        """Mean squared difference from the mean; 0 where nothing is observed."""
        return self.squares / np.maximum(self.n_values, 1)
