"""Pictures; matplotlib is imported only when something is drawn.

Displays are as scikit-learn's: `from_estimator` computes and draws, `plot` draws again, in other
axes or another style, and `ax_` and `figure_` are where.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skdcgmm.model.specs import check_number

__all__ = [
    "AnomalyDisplay",
    "DendrogramDisplay",
    "InpaintingDisplay",
    "PrototypesDisplay",
    "SamplesDisplay",
    "TrainingDisplay",
    "plot_images",
]

Array = NDArray[Any]

# Colour of missing pixels, which no gray is taken for.
_MISSING = (0.45, 0.6, 0.85)
# Colour of what is abnormal, and how much of it covers the image at most.
_ABNORMAL, _COVER = (0.9, 0.1, 0.1), 0.8
# Longer side of an image beside its map in inches, and height of its title as a share of that side.
_SIDE, _STRIP = 1.5, 0.16
# Of a dendrogram: space of a leaf along the axis, as scipy has it, and height and distance of the
# pictures below, as shares of the axes.
_LEAF, _PICTURE_HEIGHT, _GAP = 10, 0.25, 0.03


def plot_images(
    X: ArrayLike,
    *,
    image_shape: tuple[int, ...],
    n_columns: int = 10,
    ax: Any = None,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Any:
    """Draw images side by side in one axes.

    Parameters
    ----------
    X : array-like of shape (n_images, n_features) or (n_images, height, width[, channels])
    image_shape : (int, int) or (int, int, int)
        Height, width and, if there are several, channels.
    n_columns : int, default=10
    ax : matplotlib Axes, default=None
        None makes a new figure.
    vmin, vmax : float, default=None
        Pixel values that are drawn black and white; values beyond are cut. None: the 1st and 99th
        percentile. Missing pixels, NaN, are drawn in blue.

    Returns
    -------
    matplotlib Axes
    """
    import matplotlib as mpl

    height, width, channels = (*image_shape, 1)[:3]
    images = np.asarray(X, dtype=np.float64)
    whole = (height, width, channels)
    # A single channel needs no axis of its own.
    if images.shape[1:] not in [(math.prod(whole),), whole, whole[: 2 + (channels > 1)]]:
        raise ValueError(
            f"X must hold images of shape {tuple(image_shape)}, or rows of their pixels; got an "
            f"array of shape {images.shape}."
        )
    if channels not in (1, 3, 4):
        raise ValueError(
            f"image_shape must have one channel, or three or four for colours; got {image_shape}. "
            "Rows of plain features are no images: fit with image_shape=(height, width)."
        )
    images = images.reshape(-1, *whole)
    low, high = _limits(images, vmin, vmax)
    # Where all pixels are alike, they are black.
    images = np.clip((images - low) / (high - low if high > low else np.inf), 0, 1)
    n_columns = min(n_columns, len(images))
    n_rows = -(-len(images) // n_columns)
    # One pixel of frame around each image, and empty cells after the last: beyond white.
    canvas = np.full((n_rows * (height + 1) + 1, n_columns * (width + 1) + 1, channels), 2.0)
    for i, image in enumerate(images):
        top, left = (i // n_columns) * (height + 1) + 1, (i % n_columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    ax = _axes(ax, figsize=(n_columns, n_rows))
    cmap = mpl.colormaps["gray"].with_extremes(bad=_MISSING, over="white")
    if channels > 1:
        missing = np.isnan(canvas).any(-1, keepdims=True)
        canvas = np.where(missing, (*_MISSING, 1.0)[:channels], np.minimum(canvas, 1))
    ax.imshow(canvas, cmap=cmap, vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    return ax


def _limits(images: Array, vmin: float | None, vmax: float | None) -> tuple[float, float]:
    """Pixel values that are drawn black and white."""
    observed = images[~np.isnan(images)]
    low, high = np.percentile(observed, [1, 99]) if observed.size else (0.0, 1.0)
    return low if vmin is None else vmin, high if vmax is None else vmax


def _axes(ax: Any, **figure: Any) -> Any:
    """The given axes, or those of a new figure."""
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained", **figure)[1] if ax is None else ax


class _ImagesDisplay:
    """Images side by side."""

    def __init__(
        self, images: ArrayLike, *, image_shape: tuple[int, ...], n_columns: int = 10
    ) -> None:
        self.images = np.asarray(images)
        self.image_shape, self.n_columns = image_shape, n_columns

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
        style: dict[str, Any] = {"image_shape": self.image_shape, "n_columns": self.n_columns}
        self.ax_ = plot_images(self.images, ax=ax, vmin=vmin, vmax=vmax, **style)
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
        estimator : DCGMMEstimator
        n_columns : int, default=10
        ax : matplotlib Axes, default=None
        **kwargs
            For `plot`.

        Returns
        -------
        PrototypesDisplay
        """
        centers, image_shape = estimator.cluster_centers_, estimator.image_shape_
        return cls(centers, image_shape=image_shape, n_columns=n_columns).plot(ax=ax, **kwargs)


class SamplesDisplay(_ImagesDisplay):
    """Images drawn from a model, or any others.

    Parameters
    ----------
    images : array-like of shape (n_images, n_features) or (n_images, height, width[, channels])
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
        top_s, random_state
            As for the `sample` of the estimator.
        n_columns : int, default=10
        ax : matplotlib Axes, default=None
        **kwargs
            For `plot`.

        Returns
        -------
        SamplesDisplay
        """
        of = {name: value for name, value in (("cluster", cluster), ("y", y)) if value is not None}
        images, _ = estimator.sample(
            n_samples, temperature=temperature, top_s=top_s, random_state=random_state, **of
        )
        image_shape = estimator.image_shape_
        return cls(images, image_shape=image_shape, n_columns=n_columns).plot(ax=ax, **kwargs)


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
        temperature : float, default=0.0
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
        X = np.asarray(X, dtype=np.float64)
        if mask is not None:
            X = np.where(np.asarray(mask).reshape(X.shape), np.nan, X)
        draw = {"method": "sample", "random_state": np.random.RandomState(random_state)}
        ways: list[dict[str, Any]] = [{}, *[draw] * n_draws]
        rows = [X, *(estimator.impute(X, temperature=temperature, **way) for way in ways)]
        display = cls(np.concatenate(rows), image_shape=estimator.image_shape_, n_columns=len(X))
        return display.plot(ax=ax, **kwargs)


class AnomalyDisplay:
    """Images with their scores, and below each the same with its abnormal places in red.

    Parameters
    ----------
    images : array-like of shape (n_images, n_features) or (n_images, height, width[, channels])
    maps : array-like of shape (n_images, height, width)
        Scores of pixels, as of `DCGMMOutlierDetector.score_map`: abnormal if below 0.
    image_shape : (int, int) or (int, int, int)
        Height, width and, if there are several, channels.
    scores : array-like of shape (n_images,), default=None
        Scores of the images, which are written above them.
    n_columns : int, default=5

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    colorbar_ : matplotlib Colorbar or None
    """

    def __init__(
        self, images: ArrayLike, maps: ArrayLike, *,
        image_shape: tuple[int, ...], scores: ArrayLike | None = None, n_columns: int = 5,
    ) -> None:  # fmt: skip
        self.images, self.maps = np.asarray(images, dtype=np.float64), np.asarray(maps)
        self.scores = None if scores is None else np.asarray(scores)
        self.image_shape, self.n_columns = image_shape, n_columns

    def plot(
        self,
        *,
        ax: Any = None,
        low: float = -5.0,
        vmin: float | None = None,
        vmax: float | None = None,
        colorbar: bool = True,
    ) -> Self:
        """Draw the images and their abnormal places.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a new figure.
        low : float, default=-5.0
            Score, below 0, from which the red is full; at 0 there is none.
        vmin, vmax : float, default=None
            As for `plot_images`.
        colorbar : bool, default=True
            Whether a bar says which red is which score.

        Returns
        -------
        self
        """
        check_number("low", low, low=-np.inf, high=0, open_low=True)
        check_number("n_columns", self.n_columns, low=1, integer=True)
        height, width, channels = (*self.image_shape, 1)[:3]
        images = self.images.reshape(-1, height, width, channels)
        n_images = len(images)
        if self.maps.shape != (n_images, height, width):
            raise ValueError(
                f"maps must have the shape (n_images, height, width) of the images, "
                f"{images.shape[:3]}; got {self.maps.shape}."
            )
        if self.scores is not None and self.scores.shape != (n_images,):
            raise ValueError(f"scores must be of shape {(n_images,)}; got {self.scores.shape}.")
        black, white = _limits(images, vmin, vmax)
        images = np.clip((images - black) / (white - black if white > black else np.inf), 0, 1)
        shown = np.broadcast_to(images[..., :3], (n_images, height, width, 3))
        # Where there is no score there is nothing to show.
        share = _COVER * np.clip(np.nan_to_num(self.maps) / low, 0, 1)[..., None]
        marked = (1 - share) * shown + share * np.array(_ABNORMAL)
        # Each image above its marked one, and a white strip for its score above both.
        strip = 0 if self.scores is None else math.ceil(_STRIP * max(height, width))
        above, between = (np.ones((n_images, rows, width, 3)) for rows in (strip, 1))
        pairs = np.concatenate([above, shown, between, marked], 1)  # (n, strip + 2 h + 1, w, 3)
        n_columns = min(self.n_columns, n_images)
        if ax is None:
            n_rows, inch = -(-n_images // n_columns), _SIDE / max(height, width)
            size = inch * n_columns * (width + 1), inch * n_rows * (pairs.shape[1] + 1)
            ax = _axes(None, figsize=(size[0] + 1, size[1]))
        self.ax_ = plot_images(
            pairs, image_shape=pairs.shape[1:], n_columns=n_columns, ax=ax, vmin=0, vmax=1
        )
        for i, score in enumerate([] if self.scores is None else self.scores):
            row, column = divmod(i, n_columns)
            left, top = column * (width + 1) + 1, row * (pairs.shape[1] + 1) + 1
            middle = left + (width - 1) / 2, top + (strip - 1) / 2
            ax.text(*middle, f"score {score:.1f}", ha="center", va="center")
        self.figure_ = self.ax_.figure
        self.colorbar_ = _bar_of_reds(self.ax_, low) if colorbar else None
        return self

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, *, n_columns: int = 5, ax: Any = None, **kwargs: Any
    ) -> Self:
        """Draw where images are abnormal to a fitted detector.

        Parameters
        ----------
        estimator : DCGMMOutlierDetector
        X : array-like or Tensor, as in `fit`
        n_columns : int, default=5
        ax : matplotlib Axes, default=None
        **kwargs
            For `plot`.

        Returns
        -------
        AnomalyDisplay
        """
        maps, scores = (np.asarray(of(X)) for of in (estimator.score_map, estimator.score_samples))
        display = cls(
            X, maps, image_shape=estimator.image_shape_, scores=scores, n_columns=n_columns
        )
        return display.plot(ax=ax, **kwargs)


def _bar_of_reds(ax: Any, low: float) -> Any:
    """A colour bar of the scores of pixels, as they look on white."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    full = tuple(1 - _COVER * (1 - np.array(_ABNORMAL)))
    reds = LinearSegmentedColormap.from_list("reds", [full, (1.0, 1.0, 1.0)])
    scores = ScalarMappable(Normalize(low, 0), reds)
    return ax.figure.colorbar(
        scores, ax=ax, label="score of the pixel", shrink=0.8, aspect=30, extend="min"
    )


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
        columns = {key: [row[key] for row in self.history] for key in self.history[0]}
        if keys is None:
            keys = [key for key in columns if key.endswith("loss")]
        if not set(keys) <= set(columns):
            raise ValueError(f"keys must be columns of the history, {list(columns)}; got {keys!r}.")
        self.ax_ = _axes(ax)
        self.lines_ = [self.ax_.plot(columns["epoch"], columns[key], label=key)[0] for key in keys]
        losses = all(key.endswith("loss") for key in keys)
        self.ax_.set(xlabel="epoch", ylabel="log-likelihood in nats" if losses else "")
        self.ax_.legend()
        self.figure_ = self.ax_.figure
        return self

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None, **kwargs: Any) -> Self:
        """Draw the training of a fitted estimator.

        Parameters
        ----------
        estimator : DCGMMEstimator, DCGMMClassifier or DCGMMOutlierDetector
        ax : matplotlib Axes, default=None
        **kwargs
            For `plot`.

        Returns
        -------
        TrainingDisplay
        """
        check_is_fitted(estimator)
        return cls(estimator.history_).plot(ax=ax, **kwargs)


class DendrogramDisplay:
    """The last mergers of top components into clusters, as a tree above their mean images.

    Parameters
    ----------
    children, distances : ndarray of shape (n_leaves - 1, 2) and (n_leaves - 1,)
        Mergers, and their heights, as the `children_` and `distances_` of `DCGMMEstimator`.
    images : ndarray of shape (n_leaves, n_features)
        Mean image of each leaf.
    image_shape : (int, int, int)
        Of plain features, (1, 1, n_features), leaves show their numbers.
    n_clusters : int, default=None
        Where a dashed line cuts the tree; None draws none.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    leaves_ : list of int
        Numbers of the leaves from left to right.
    """

    def __init__(
        self, children: Array, distances: Array, images: Array, *,
        image_shape: tuple[int, ...], n_clusters: int | None = None,
    ) -> None:  # fmt: skip
        self.children, self.distances, self.images = children, distances, images
        self.image_shape, self.n_clusters = image_shape, n_clusters

    def plot(self, *, ax: Any = None, vmin: float | None = None, vmax: float | None = None) -> Self:
        """Draw the tree.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a new figure.
        vmin, vmax : float, default=None
            As for `plot_images`, of all mean images together.

        Returns
        -------
        self
        """
        from scipy.cluster.hierarchy import dendrogram

        n_leaves, shape = len(self.images), self.image_shape
        # The last column, numbers of leaves, does nothing to a tree that is drawn whole.
        mergers = np.column_stack([self.children, self.distances, np.ones(n_leaves - 1)])
        tree = dendrogram(mergers, no_plot=True)
        self.leaves_: list[int] = tree["leaves"]
        margin = 0.1 * np.ptp(self.distances) or 0.1
        heights = [max(0, self.distances[0] - margin), *self.distances, self.distances[-1] + margin]
        self.ax_ = ax = _axes(ax, figsize=(max(4, 0.5 * n_leaves), 4))
        ax.plot(np.transpose(tree["icoord"]), np.transpose(tree["dcoord"]), color="C0")
        if self.n_clusters is not None and self.n_clusters <= n_leaves:
            n_merged = n_leaves - self.n_clusters
            ax.axhline(np.mean(heights[n_merged : n_merged + 2]), color="gray", linestyle="--")
        ax.set(xlim=(0, _LEAF * n_leaves), ylim=(heights[0], heights[-1]))
        ax.set_ylabel("log(1 + distance in nats)")
        plain = tuple(shape[:2]) == (1, 1)
        names = tree["ivl"] if plain else [""] * n_leaves
        ax.set_xticks(_LEAF * (np.arange(n_leaves) + 0.5), names)
        vmin, vmax = _limits(self.images, vmin, vmax)
        for place, leaf in enumerate([] if plain else self.leaves_):
            box = _LEAF * place, -_GAP - _PICTURE_HEIGHT, _LEAF, _PICTURE_HEIGHT
            inset = ax.inset_axes(box, transform=ax.get_xaxis_transform(), anchor="N")
            plot_images(self.images[[leaf]], image_shape=shape, ax=inset, vmin=vmin, vmax=vmax)
        self.figure_ = ax.figure
        return self

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, n_leaves: int = 20, ax: Any = None, **kwargs: Any
    ) -> Self:
        """Draw how the top components of a fitted estimator are merged.

        Parameters
        ----------
        estimator : DCGMMEstimator
            Whose present `n_clusters` the dashed line shows.
        n_leaves : int, default=20
            Clusters from which the drawn tree begins; all components if they are fewer. They have
            the numbers, and the mean images, of the clusters for ``n_clusters=n_leaves``.
        ax : matplotlib Axes, default=None
        **kwargs
            For `plot`.

        Returns
        -------
        DendrogramDisplay
        """
        check_is_fitted(estimator)
        check_number("n_leaves", n_leaves, low=2, integer=True)
        if not hasattr(estimator, "children_"):
            raise ValueError(
                "estimator must have a tree of mergers, children_; got none. Fit DCGMMEstimator "
                "with several top components, and with n_clusters set if they are more than 1000."
            )
        n_components = len(estimator.children_) + 1
        n_leaves = min(n_leaves, n_components)
        n_merged = n_components - n_leaves
        leaves = copy.copy(estimator).set_params(n_clusters=n_leaves)
        # By node of the whole tree, the leaf that it is in, or its number in the drawn tree.
        numbers = leaves.clusters_.tolist()
        for one, _ in estimator.children_[:n_merged]:
            numbers.append(numbers[one])
        numbers += range(n_leaves, 2 * n_leaves - 1)
        children, distances = estimator.children_[n_merged:], estimator.distances_[n_merged:]
        display = cls(
            np.array(numbers)[children], distances, leaves.cluster_centers_,
            image_shape=estimator.image_shape_, n_clusters=estimator.n_clusters or n_components,
        )  # fmt: skip
        return display.plot(ax=ax, **kwargs)
