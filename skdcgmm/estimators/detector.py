"""`DCGMMOutlierDetector`: the stack as a scikit-learn outlier detector."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from sklearn.base import OutlierMixin
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import KFold
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skdcgmm import files
from skdcgmm.analysis.outliers import (
    N_CALIBRATION,
    Calibrated,
    Extremes,
    Surprise,
    weighted_quantile,
)
from skdcgmm.data import Data, FloatArray, HeldOut, Images, make_generator
from skdcgmm.estimators.attributes import NamedLayers
from skdcgmm.estimators.base import SCORE_METHODS, BaseDCGMM
from skdcgmm.estimators.checks import answer, refuse_stream, unchanged_on_failure
from skdcgmm.estimators.planning import check_joint
from skdcgmm.model import computing, ordinary_tensors
from skdcgmm.model.patches import N_WINDOWS, Patches, usual_stride
from skdcgmm.model.specs import check_number
from skdcgmm.model.stack import BaseStack
from skdcgmm.model.tree import Mixtures, Tree
from skdcgmm.model.windows import Size
from skdcgmm.training import ranks

# Parts of the images to calibrate with, each scored by what the others teach, and number of images
# below which each image is a part: a fifth less would teach too little.
_N_FOLDS, _MIN_FOLDED = 5, 100
# Least number of images held out that know the whole, which does not count beside windows else.
_MIN_WHOLE = 30
# Share of the images held out by default, and least number of images for that: of fewer, those that
# are left would teach too little.
_HELD_OUT, _MIN_HELD_OUT_OF = 0.2, 50
# Side of windows.
_WINDOW = 6
# Most steps in which windows are learnt, and images and values of a step.
_N_STEPS, _STEP_IMAGES, _STEP_VALUES = 60, 250, 2**22
# Whether the score by that name says something of windows, and of the whole.
_CALIBRATED = {"both": (True, True), "windows": (True, False), "surprise": (False, True)}


@dataclass(kw_only=True, eq=False, repr=False)
class DCGMMOutlierDetector(NamedLayers, OutlierMixin, BaseDCGMM):
    """Outlier detection by a deep convolutional Gaussian mixture model.

    The density of a deep stack alone is a poor detector: a simple image, whatever it shows, is
    likelier than an intricate one; and a small defect hardly changes it. The default score looks at
    every window of an image, in several resolutions, for one that is unlikely, and for windows that
    are together likelier than they should be; and at the image as a whole: whether its parts fit
    its cluster and each other, whether it is the right way round, and whether all these figures are
    usual. `score_map` says where.

    Parameters
    ----------
    layers, image_shape
        The stack, as for `DCGMMEstimator`.
    pixels : {"auto", "tiles", "pyramid", "atoms"}, default="auto"
        As for `DCGMMEstimator`; "auto" is "tiles".
    objective : {"joint", "layerwise"}, default="joint"
        As for `DCGMMEstimator`.
    score_method : str, default="auto"
        What `score_samples` returns.

        - "both": the score "windows", plus twice the score "surprise" in its standard deviations
          times how far the images held out are told from their turned views: by 1 where all are
          likelier than these, as digits and clothes are, by 0 where half are or fewer, as of
          boards, textures and parts that lie anyhow. As far as they are, an unlikely window counts
          only by what it is below those of nineteen of twenty normal images. Where fewer
          than 30 images are held out, and of fewer than 50 if none is, only "windows" counts.
        - "windows": the lowest value of `score_map`, but no more than nine of ten normal images
          have; less, if the windows in full resolution have on average a higher log density than
          in normal images with as low a value, by three quarters of the square of how many
          standard deviations. So an image is abnormal for a scratch, and for being smooth where a
          texture should be. 0 for an image without a complete window.
        - "surprise": the sum of four terms, each in standard deviations of the images held out.
          How usual the log densities of the image in all layers, and those of its turned views,
          are; how much likelier it is than its views; how much better its parts fit its cluster
          than theirs; and how much likelier its parts are together than alone.
        - "density", "layer": as for `DCGMMEstimator`.
        - "auto": "both" if the stack is one density of several layers, "density" if it is a flat
          mixture, "layer" if it is layer-wise.
    score_layer, reg_covar, max_epochs, batch_size, learning_rate, tol, n_iter_no_change
        As for `DCGMMEstimator`.
    validation_fraction : float or None, default="auto"
        Share of X set aside to judge progress, and to learn from how images score that the stack
        has not seen. "auto": 0.2 of 50 images or more in an array; none of plain features, to
        which a flat mixture fits less closely, nor of batches. With None, new images score lower
        than those of the training, and too many are called outliers: a fifth of new digits, and
        most of new clothes, where a tenth or less was asked for.
    warm_start, device, random_state, verbose, checkpoint, checkpoint_minutes, max_minutes, \
distributed
        As for `DCGMMEstimator`.
    contamination : float, default=0.1
        Share of the images held out that `predict` calls outliers, in (0, 0.5], and so about that
        of new images; of the training images if none are held out. It may be changed after `fit`,
        and the next `predict` uses it.
    window_size : int or (int, int), default=None
        Height and width of the windows that are looked at. None: 6, or the side of the images.
    window_stride : int or (int, int), default=None
        Step between windows in full resolution; half of it, rounded up, in the next, and so on.
        None: 1, on images of 28 pixels and more 2, of 42 and more 3. A smaller one sees more
        sharply and takes longer.

    Attributes
    ----------
    offset_ : float
        Score below which an image is an outlier, in the units of the score, for the present
        `contamination`.
    weights_, means_, covariances_, precisions_, n_parameters_, image_shape_
        As of `DCGMMEstimator`.
    detail_means_, detail_covariances_
        As of `DCGMMEstimator`.
    history_, n_iter_, converged_, n_features_in_, feature_names_in_
        As of `DCGMMEstimator`.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdcgmm import DCGMMOutlierDetector
    >>> X, y = load_digits(return_X_y=True)
    >>> detector = DCGMMOutlierDetector(image_shape=(8, 8), max_epochs=20, random_state=0)
    >>> outliers = detector.fit(X[y != 0]).predict(X[y == 0]) == -1
    >>> bool(outliers.mean() > 0.8)
    True
    """

    _score_methods = ("auto", *_CALIBRATED, *SCORE_METHODS)
    _LEARNT_FROM_STACK = (
        "_method", "_layer", "_calibrated", "_extremes", "_usual", "_usual_weight",
    )  # fmt: skip

    contamination: float = 0.1
    score_method: str = "auto"
    validation_fraction: float | str | None = "auto"
    window_size: int | tuple[int, int] | None = None
    window_stride: int | tuple[int, int] | None = None

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, *, X_val: Any = None) -> Self:
        """Train the stack, and learn how normal images score.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, height, width) or \
(n_samples, height, width, channels), Tensor, Dataset or iterable of batches
            As for `DCGMMEstimator`. They should be normal: outliers are learnt from like others.
        y : Ignored
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the images: in the loss, in the choice of windows to learn from, and in
            `contamination`. None weighs all the same.
        X_val : array-like or Tensor, default=None
            Normal images to judge progress by and to learn from how new ones score, instead of a
            share of X.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If a parameter or X does not fit; the message names it and what would. An earlier fit
            stays as it is.
        """
        return self._fit(X, y, sample_weight, X_val=X_val)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Go once over a chunk of images, and learn from it how normal ones score.

        As `DCGMMEstimator.partial_fit`. The first chunk fixes the scale of the images; the windows
        go on learning, and later chunks count the less the more there have been.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
        y : Ignored
        sample_weight : array-like of shape (n_samples,), default=None
            As in `fit`, of the chunk.

        Returns
        -------
        self
        """
        return self._partial_fit(X, sample_weight)

    def reset_annealing(self, fraction: float = 1.0) -> Self:
        """Open the schedules of the stack's training again, so that chunks can change it.

        As `DCGMMEstimator.reset_annealing`.

        Parameters
        ----------
        fraction : float, default=1.0
            Share of the schedule that is gone through again: 1 is all of it, 0 none.

        Returns
        -------
        self
        """
        return self._reset_annealing(fraction)

    def fit_predict(self, X: Any, y: Any = None, **kwargs: Any) -> NDArray[Any]:
        """Train the stack, and say whether each image is an outlier.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
        y : Ignored
        **kwargs
            Of `fit`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples,)
            -1 for outliers, 1 for the others.

        Raises
        ------
        TypeError
            If X comes in batches, whose order may change.
        """
        refuse_stream(X, "fit_predict", "fit, then predict")
        return cast("NDArray[Any]", super().fit_predict(X, y, **kwargs))

    def calibrate(self, X: Any, score_method: str | None = None) -> Self:
        """Learn anew how normal images score, without training again.

        From these images alone: what was learnt from those held out is replaced. Scores are in
        units of how these images vary, so `offset_` and thresholds of one's own change.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
            Images that `fit` has not seen, with no larger a share of outliers than
            `contamination`. Of more than 10 000, as many are drawn.
        score_method : str, default=None
            The score from now on; None is the parameter of that name.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the stack does not have that score, or there are fewer than two images.
        """
        with unchanged_on_failure(self):
            if score_method is not None:
                self.score_method = score_method
            self._check_parameters()
            rng = ranks.of_first(check_random_state(self.random_state))
            images = self._check_fitted_images(X)
            if self._patches is None:  # the fit was stopped before it had learnt windows
                self._learn_windows(images, rng)
            self._calibrate(images.sample(N_CALIBRATION, rng), rng, seen=False)
        return self

    @property
    def offset_(self) -> float:
        """Score below which an image is an outlier."""
        self._check_calibrated()
        self._check_contamination()
        return weighted_quantile(self._usual, self._usual_weight, self.contamination)

    def score_samples(self, X: Any) -> Any:
        """Score of each image, the lower the more abnormal.

        By the `score_method` and `score_layer` at the last `fit` or `calibrate`. Densities
        and layers are in nats, the others in standard deviations of normal images.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        ndarray or Tensor of shape (n_samples,)
        """
        return answer(X, self._scores(self._check_fitted_images(X)))

    def score_map(self, X: Any) -> Any:
        """Score of each pixel, the lower the more abnormal.

        The log density of the least likely of all windows, in whatever resolution, that see the
        pixel, in standard deviations, by resolution, of the least likely windows of normal images:
        in one of two normal images some pixel is below 0, in one of six below -1. Its lowest value
        is what the score of an image begins with, see `score_method`.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        ndarray or Tensor of shape (n_samples, height, width)
            NaN for pixels under no window that is complete: if others are missing around.

        Raises
        ------
        ValueError
            If X is of plain features, which have no place; or if no image that the windows
            learnt from had one without missing pixels.
        """
        images = self._check_fitted_images(X)
        self._check_calibrated()
        if not self._sees_windows:
            raise ValueError(
                "X must hold images to say where they are abnormal, and this detector was fitted "
                "to plain features, or to images without a window that has all its pixels. Fit "
                "with image_shape=(height, width), or a smaller window_size."
            )
        patches = cast("Patches", self._patches)

        def lowest(_: Mixtures, x: Tensor) -> Tensor:
            values = self._extremes.standardise(patches.log_prob(x))
            return patches.lowest((x.shape[2], x.shape[3]), values)

        return answer(X, self._map(images, lowest, more=self._numbers_of_windows()))

    def decision_function(self, X: Any) -> Any:
        """Score of each image less `offset_`: negative for outliers.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        ndarray or Tensor of shape (n_samples,)
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Any:
        """Whether each image is an outlier.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        ndarray or Tensor of shape (n_samples,)
            -1 for outliers, 1 for the others.
        """
        return answer(X, self._predict_images(self._check_fitted_images(X)))

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._check_contamination()
        for name in ("window_size", "window_stride"):
            value = getattr(self, name)
            for side in value if isinstance(value, tuple | list) else (value,):
                check_number(name, side, low=1, integer=True, optional="by the size of the images")
            if isinstance(value, tuple | list) and len(value) != 2:
                raise ValueError(f"{name} must be one integer or (height, width); got {value!r}.")

    def _check_contamination(self) -> None:
        check_number(
            "contamination", self.contamination, low=0, high=0.5, open_low=True, closed_high=True
        )

    def _check_validation_fraction(self) -> None:
        if not isinstance(self.validation_fraction, str):
            super()._check_validation_fraction()
        elif self.validation_fraction != "auto":
            raise ValueError(
                "validation_fraction must be 'auto', a number > 0 and < 1, or None (no "
                f"validation); got {self.validation_fraction!r}."
            )

    def _share_held_out(self, data: Data) -> float | None:
        if not isinstance(self.validation_fraction, str):
            return self.validation_fraction
        many = isinstance(data, Images) and ranks.total(len(data)) >= _MIN_HELD_OUT_OF
        return _HELD_OUT if many and data.shape[1:] != (1, 1) else None

    def _start(self, data: Data, rng: RandomState, **kwargs: Any) -> tuple[BaseStack, Any]:
        self._windows(data.shape[1:])
        self._patches: Patches | None = None
        return super()._start(data, rng, **kwargs)

    def _windows(self, size: Size) -> tuple[Size, Size]:
        """Height and width of windows, and their stride, on images of a size."""

        def pair(value: Any) -> Size:
            height, width = value if isinstance(value, tuple | list) else (value, value)
            return int(height), int(width)

        largest = (min(_WINDOW, size[0]), min(_WINDOW, size[1]))
        kernel = largest if self.window_size is None else pair(self.window_size)
        if kernel[0] > size[0] or kernel[1] > size[1]:
            raise ValueError(
                f"window_size must fit the images of height x width {size[0]}x{size[1]}; got "
                f"{self.window_size!r}. Choose a smaller one, or None for 6 or the images' side."
            )
        stride = usual_stride(size, kernel)
        return kernel, stride if self.window_stride is None else pair(self.window_stride)

    def _check_stack(self, stack: BaseStack) -> None:
        self._resolved_method(stack)

    def _finish(self, data: Data, held_out: HeldOut | None, rng: RandomState) -> None:
        # A number draws as in `calibrate`; a generator goes on, also after a stop.
        seed = self.random_state if isinstance(self.random_state, int | np.integer) else rng
        rng = ranks.of_first(check_random_state(seed))
        self._learn_windows(data, rng)
        new = None if held_out is None else held_out(N_CALIBRATION)
        if new is None or min(ranks.gather(len(new))) < 2:
            self._calibrate(data.sample(N_CALIBRATION, rng), rng, seen=True)
        else:
            self._calibrate(new, rng, seen=False)

    def _learn_windows(self, data: Data, rng: RandomState) -> None:
        """Go on learning the windows of the images that are not held out."""
        if data.shape[1:] == (1, 1):
            return
        # Of its own, since processes draw different numbers.
        draws = copy.deepcopy(rng)
        generator = make_generator(draws)
        n_kept = len(data.kept) if isinstance(data, Images) else len(data)
        n_all = ranks.total(n_kept)
        n_pixels = n_all * data.shape[1] * data.shape[2]
        most = max(1, min(_STEP_IMAGES, _STEP_VALUES // math.prod(data.shape)))
        n_drawn = -(-min(most, n_all) * n_kept // n_all)
        patches = self._patches
        with computing(self._stack.like.device), torch.no_grad():
            for _ in range(max(1, min(_N_STEPS, n_pixels // N_WINDOWS))):
                some = data.sample(n_drawn, draws, weighted=True)
                some = replace(some, rows=ranks.together(some.rows))
                x = some.tensor(slice(None), self._stack.like)
                patches = patches or Patches.of(x, *self._windows(data.shape[1:]))
                patches = patches.learn(x, n_pixels, generator)
        self._patches = ranks.of_first(patches)

    def _predict_images(self, images: Images) -> NDArray[Any]:
        return np.where(self._scores(images) < self.offset_, -1, 1)

    def _resolved_method(self, stack: BaseStack) -> str:
        """The score method that "auto" stands for; an error if the stack does not have the one."""
        deep = len(stack.names) > 1
        if self.score_method == "auto":
            return ("both" if deep else "density") if stack.is_density else "layer"
        purpose = f"score_method={self.score_method!r}"
        of_windows, of_whole = _CALIBRATED.get(self.score_method, (False, False))
        if of_whole or self.score_method == "density":
            check_joint(stack, purpose)
        if of_whole and not deep:
            raise ValueError(
                f"{purpose} compares a stack with its lower layers, but this one has one "
                "layer. Choose score_method='windows' or 'density', or a stack of several layers."
            )
        if of_windows and stack.image_shape[1:] == (1, 1):
            raise ValueError(
                f"{purpose} looks at windows of images, and plain features have none. Choose "
                "score_method='density', or give the image_shape=(height, width) of the rows of X."
            )
        return self.score_method

    def _calibrate(self, images: Images, rng: RandomState, *, seen: bool) -> None:
        """Learn how images score: some that the stack has `seen`, or some like new ones."""
        if len(images) < 2:
            raise ValueError(
                "X must hold at least two images, to learn how normal ones score; "
                f"got {len(images)}."
            )
        self._method = self._resolved_method(self._stack)
        self._layer = self._mixture_name(self._stack, "score_layer", self.score_layer)
        self._calibrated: Calibrated | None = None
        if self._sees_windows:
            windows = ranks.together(self._measure(images, windows=True))
            check_no_overflow(windows)
            self._extremes = Extremes().fit(windows)
        if self._method in _CALIBRATED:
            n_images = ranks.total(len(images))
            few = n_images < (_MIN_HELD_OUT_OF if seen else _MIN_WHOLE)
            of_windows, of_whole = self._parts_of_score(few=few)
            rows = ranks.together(self._measure(images, windows=of_windows, whole=of_whole))
            check_no_overflow(rows)
            n_layers = len(self._stack.names) if of_whole else 0
            n_windows = windows.shape[1] if of_windows else 0
            self._calibrated = Calibrated(n_windows, n_layers).fit(rows, rng)
            scores = self._calibrated.score(rows)
            if not seen and len(rows) > 2:
                # What is learnt from an image makes it score higher than a new one.
                n_folds = _N_FOLDS if len(rows) >= _MIN_FOLDED else len(rows)
                for learnt, new in KFold(n_folds, shuffle=True, random_state=rng).split(rows):
                    folded = Calibrated(n_windows, n_layers).fit(rows[learnt], rng)
                    scores[new] = folded.score(rows[new])
        else:
            scores = ranks.together(self._score(images, self._method, self._layer))
        check_no_overflow(scores)
        self._usual = scores
        self._usual_weight = None if images.weight is None else ranks.together(images.weight)

    @property
    def _sees_windows(self) -> bool:
        """Whether there were windows to learn."""
        return self._patches is not None and bool(self._patches.parts)

    def _parts_of_score(self, *, few: bool) -> tuple[bool, bool]:
        """Whether the score is one of windows, and of the whole; `few` images know windows only."""
        of_windows, of_whole = _CALIBRATED[self._method]
        if of_windows and not of_whole and not self._sees_windows:
            raise ValueError(
                f"score_method={self._method!r} needs windows, and no image of fit had one without "
                "missing pixels, NaN. Choose a smaller window_size, or score_method='surprise'."
            )
        of_windows = of_windows and self._sees_windows
        return of_windows, of_whole and not (of_windows and few)

    def _measure(self, images: Images, *, windows: bool = False, whole: bool = False) -> FloatArray:
        """Rows of numbers that a score of windows, of the whole, or of both is made of."""
        if whole:
            self._check_whole(images, "calibrated scores")

        def measure(mixtures: Mixtures, x: Tensor) -> Tensor:
            columns = []
            if windows:
                columns.append(Extremes.measure(cast("Patches", self._patches), x))
            if whole:
                columns.append(Surprise.measure(cast("Tree", mixtures), x, images.complete))
            return torch.cat(columns, 1)

        more = self._numbers_of_windows() if windows else 0
        return self._map(images, measure, n_held=3 if whole else 1, more=more)

    def _numbers_of_windows(self) -> int:
        return cast("Patches", self._patches).numbers_per_image(self._stack.image_shape)

    def _check_calibrated(self) -> None:
        check_is_fitted(self)
        if not hasattr(self, "_usual"):
            raise NotFittedError(
                "The fit was stopped before this detector had learnt how normal images score. Call "
                "calibrate with some of them, or fit again."
            )

    def _scores(self, images: Images) -> FloatArray:
        self._check_calibrated()
        if self._calibrated is None:
            return self._score(images, self._method, self._layer)
        of_windows, of_whole = self._calibrated.n_windows > 0, self._calibrated.n_layers > 0
        return self._calibrated.score(self._measure(images, windows=of_windows, whole=of_whole))

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if state.get("_patches") is not None:
            state["_patches"] = files.arrays_of(self._patches)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if getattr(self, "_patches", None) is not None:
            with ordinary_tensors():
                self._patches = files.tensors_of(self._patches)


def check_no_overflow(values: FloatArray) -> None:
    """Raise an error if images have no finite values that tell how normal ones score."""
    if np.isinf(values).any():
        raise ValueError(
            "X has images with values so far from those of fit that their densities overflow, "
            "which tell nothing of how normal ones score. Leave them out."
        )
