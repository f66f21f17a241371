"""Pictures; matplotlib is imported only when something is drawn.

Displays are as scikit-learn's: `from_estimator` computes and draws, `plot` draws again, in other
axes or another style, and `ax_` and `figure_` are where.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from skdcgmm._pictures import plot_images

__all__ = [
    "InpaintingDisplay",
    "PrototypesDisplay",
    "SamplesDisplay",
    "TrainingDisplay",
    "plot_images",
]


class _ImagesDisplay:
    """Images side by side."""

    def __init__(
        self, images: ArrayLike, *, image_shape: tuple[int, ...], n_columns: int = 10
    ) -> None:
        self.images = np.asarray(images)
        self.image_shape = image_shape
        self.n_columns = n_columns

    def plot(self, *, ax: Any = None, vmin: float | None = None, vmax: float | None = None) -> Self:
        """Draw the images.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a new figure.
        vmin, vmax : float, default=None
            As for `plot_images`.

        Returns
        -------
        self
        """
        self.ax_ = plot_images(
            self.images,
            image_shape=self.image_shape,
            n_columns=self.n_columns,
            ax=ax,
            vmin=vmin,
            vmax=vmax,
        )
        self.figure_ = self.ax_.figure
        return self


class PrototypesDisplay(_ImagesDisplay):
    """The mean image of each cluster.

    Parameters
    ----------
    images, image_shape, n_columns
        As for `SamplesDisplay`.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdcgmm import DCGMMEstimator
    >>> from skdcgmm.plotting import PrototypesDisplay
    >>> X, _ = load_digits(return_X_y=True)
    >>> est = DCGMMEstimator(10, image_shape=(8, 8), max_epochs=20, random_state=0).fit(X)
    >>> PrototypesDisplay.from_estimator(est).images.shape
    (10, 64)
    """

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, n_columns: int = 10, ax: Any = None, **kwargs: Any
    ) -> Self:
        """Draw the clusters of a fitted estimator.

        Parameters
        ----------
        estimator : DCGMMEstimator or DCGMMClassifier
        n_columns : int, default=10
        ax : matplotlib Axes, default=None
        **kwargs
            For `plot`.

        Returns
        -------
        PrototypesDisplay
        """
        check_is_fitted(estimator)
        centers = estimator.cluster_centers_
        display = cls(centers, image_shape=estimator.image_shape_, n_columns=n_columns)
        return display.plot(ax=ax, **kwargs)


class SamplesDisplay(_ImagesDisplay):
    """Images drawn from a model, or any others.

    Parameters
    ----------
    images : ndarray of shape (n_images, n_features)
    image_shape : (int, int) or (int, int, int)
        Height, width and, if there are several, channels.
    n_columns : int, default=10

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    """

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        n_samples: int = 50,
        cluster: int | None = None,
        y: Any = None,
        temperature: float | None = 0.0,
        top_s: int | None = None,
        sharpening_steps: int = 0,
        random_state: Any = None,
        n_columns: int = 10,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw images from a fitted estimator.

        Parameters
        ----------
        estimator : DCGMMEstimator or DCGMMClassifier
        n_samples : int, default=50
        cluster, y
            As for the `sample` of the estimator.
        temperature : float, default=0.0
            As for `DCGMMEstimator.sample`; without pixel noise, for pictures.
        top_s, sharpening_steps, random_state
            As for the `sample` of the estimator.
        n_columns : int, default=10
        ax : matplotlib Axes, default=None
        **kwargs
            For `plot`.

        Returns
        -------
        SamplesDisplay
        """
        check_is_fitted(estimator)
        images, _ = estimator.sample(
            n_samples,
            temperature=temperature,
            top_s=top_s,
            sharpening_steps=sharpening_steps,
            random_state=random_state,
            **{k: v for k, v in {"cluster": cluster, "y": y}.items() if v is not None},
        )
        shape = estimator.image_shape_
        return cls.from_images(images, image_shape=shape, n_columns=n_columns, ax=ax, **kwargs)

    @classmethod
    def from_images(
        cls,
        images: ArrayLike,
        *,
        image_shape: tuple[int, ...],
        n_columns: int = 10,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw images that are there.

        Parameters
        ----------
        images : array-like of shape (n_images, ...)
        image_shape : (int, int) or (int, int, int)
        n_columns : int, default=10
        ax : matplotlib Axes, default=None
        **kwargs
            For `plot`.

        Returns
        -------
        SamplesDisplay
        """
        images = np.asarray(images)
        display = cls(images.reshape(len(images), -1), image_shape=image_shape, n_columns=n_columns)
        return display.plot(ax=ax, **kwargs)


class InpaintingDisplay(_ImagesDisplay):
    """Images with missing pixels, their mean given the observed ones, and draws, in rows.

    Parameters
    ----------
    images, image_shape, n_columns
        As for `SamplesDisplay`.
    """

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        n_draws: int = 3,
        temperature: float | None = 0.0,
        sharpening_steps: int = 0,
        random_state: int | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Fill in images by a fitted estimator.

        Parameters
        ----------
        estimator : DCGMMEstimator or DCGMMClassifier
        X : array-like of shape (n_images, ...)
            NaN where missing.
        mask : array-like of bool of the shape of X, default=None
            True where X is to be taken as missing, besides NaN.
        n_draws : int, default=3
            Rows of draws below that of the means.
        temperature, sharpening_steps
            As for `DCGMMEstimator.impute`; draws are without pixel noise, for pictures.
        random_state : int or None, default=None
            Seed of the first draw; others count on.
        ax : matplotlib Axes, default=None
        **kwargs
            For `plot`.

        Returns
        -------
        InpaintingDisplay
        """
        check_is_fitted(estimator)
        X = np.asarray(X, dtype=np.float64)
        if mask is not None:
            X = np.where(np.asarray(mask).reshape(X.shape), np.nan, X)
        rng = np.random.RandomState(random_state)
        arguments = {"temperature": temperature, "sharpening_steps": sharpening_steps}
        draws = [
            estimator.impute(X, method="sample", random_state=rng, **arguments)
            for _ in range(n_draws)
        ]
        rows = [X, estimator.impute(X, **arguments), *draws]
        images = np.concatenate([row.reshape(len(X), -1) for row in rows])
        display = cls(images, image_shape=estimator.image_shape_, n_columns=len(X))
        return display.plot(ax=ax, **kwargs)


class TrainingDisplay:
    """The loss by epoch, a log-likelihood that training raises, and the radii if layer-wise.

    Parameters
    ----------
    history : sequence of dict
        Rows of `history_`.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    lines_ : list of matplotlib Line2D
    """

    def __init__(self, history: Sequence[dict[str, float]]) -> None:
        self.history = history

    def plot(self, *, ax: Any = None, keys: Sequence[str] | None = None) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a new figure.
        keys : sequence of str, default=None
            Columns of the history, such as "convgmm1__radius"; None is every loss.

        Returns
        -------
        self
        """
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots()
        if keys is None:
            keys = [key for key in self.history[0] if key.endswith("loss")]
        columns = {key: [row[key] for row in self.history] for key in self.history[0]}
        if not set(keys) <= set(columns):
            raise ValueError(f"keys must be columns of the history, {list(columns)}; got {keys!r}.")
        self.lines_ = [ax.plot(columns["epoch"], columns[key], label=key)[0] for key in keys]
        losses = all(key.endswith("loss") for key in keys)
        ax.set(xlabel="epoch", ylabel="log-likelihood in nats" if losses else "")
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, ax: Any = None, keys: Sequence[str] | None = None
    ) -> Self:
        """Draw the training of a fitted estimator.

        Parameters
        ----------
        estimator : DCGMMEstimator, DCGMMClassifier or DCGMMOutlierDetector
        ax : matplotlib Axes, default=None
        keys : sequence of str, default=None
            As for `plot`.

        Returns
        -------
        TrainingDisplay
        """
        check_is_fitted(estimator)
        return cls.from_history(estimator.history_, ax=ax, keys=keys)

    @classmethod
    def from_history(
        cls,
        history: Sequence[dict[str, float]],
        *,
        ax: Any = None,
        keys: Sequence[str] | None = None,
    ) -> Self:
        """Draw a history.

        Parameters
        ----------
        history : sequence of dict
        ax : matplotlib Axes, default=None
        keys : sequence of str, default=None
            As for `plot`.

        Returns
        -------
        TrainingDisplay
        """
        return cls(history).plot(ax=ax, keys=keys)
