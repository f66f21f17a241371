"""`DCGMMOutlierDetector`: the stack as a scikit-learn outlier detector."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Self, cast

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from sklearn.base import OutlierMixin
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import KFold
from sklearn.utils import check_random_state
from torch import Tensor

from skdcgmm.analysis.outliers import N_CALIBRATION, SCORES, Typicality
from skdcgmm.data import Data, FloatArray, Images
from skdcgmm.estimators.attributes import NamedLayers
from skdcgmm.estimators.base import SCORE_METHODS, BaseDCGMM, HeldOut
from skdcgmm.estimators.checks import answer, refuse_stream, unchanged_on_failure
from skdcgmm.estimators.planning import check_joint
from skdcgmm.model.specs import check_number
from skdcgmm.model.stack import BaseStack
from skdcgmm.model.tree import Tree
from skdcgmm.training import ranks

# Parts of the images to calibrate with that are scored by what the others say, and images for that.
_N_FOLDS, _MIN_FOLDED = 5, 50
# Share of the images held out by default, and least number of images for that: of fewer, those that
# are left would teach too little.
_HELD_OUT, _MIN_HELD_OUT_OF = 0.2, 500


@dataclass(kw_only=True, eq=False, repr=False)
class DCGMMOutlierDetector(NamedLayers, OutlierMixin, BaseDCGMM):
    """Outlier detection by a deep convolutional Gaussian mixture model.

    The density of a deep stack alone is a poor detector: a simple image, whatever it shows, is
    likelier than an intricate one. The default score asks instead whether an image is likelier than
    itself mirrored and turned, whether the parts of each layer fit its cluster and each other, and
    whether all these figures are usual. Missing values, NaN, are marginalised; images with other
    shares of them than the training images do not compare with `offset_`.

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

        - "surprise": the sum of four terms, each in standard deviations of the images held out, or
          of the training images if none are.
          How usual the log densities of the image in all layers, and those of its mirrored and
          turned views, are; how much likelier it is than its views; how much better its parts fit
          its cluster than theirs; and how much likelier its parts are together than alone.
        - "typicality": the sum of the first two. For images of textures rather than shapes.
        - "density", "layer": as for `DCGMMEstimator`.
        - "auto": "surprise" if the stack is one density of several layers, "density" if it is a
          flat mixture, "layer" if it is layer-wise.
    score_layer, reg_covar, max_epochs, batch_size, learning_rate, tol, n_iter_no_change
        As for `DCGMMEstimator`.
    validation_fraction : float or None, default="auto"
        Share of X set aside to judge progress, and to learn from how images score that the stack
        has not seen. "auto": 0.2 of 500 images or more in an array; none of plain features, to
        which a flat mixture fits less closely, nor of batches. With None, new images score lower
        than those of the training, and too many are called outliers: a fifth of new digits, and
        most of new clothes, where a tenth or less was asked for.
    warm_start, device, random_state, verbose, checkpoint, checkpoint_minutes, max_minutes, \
distributed
        As for `DCGMMEstimator`.
    contamination : float, default=0.1
        Share of the images held out that `predict` calls outliers, in (0, 0.5], and so about that
        of new images; of the training images if none are held out.

    Attributes
    ----------
    offset_ : float
        Score below which an image is an outlier, in the units of the score.
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

    _score_methods = ("auto", *SCORES, *SCORE_METHODS)
    _LEARNT_FROM_STACK = ("offset_", "_method", "_layer", "_outlier_score")

    contamination: float = 0.1
    score_method: str = "auto"
    validation_fraction: float | str | None = "auto"

    def fit(self, X: Any, y: Any = None, *, X_val: Any = None) -> Self:
        """Train the stack, and learn how normal images score.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, height, width) or \
(n_samples, height, width, channels), Tensor, Dataset or iterable of batches
            As for `DCGMMEstimator`. They should be normal: outliers are learnt from like others.
        y : Ignored
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
        return self._fit(X, y, X_val=X_val)

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
        """Learn anew how normal images score, without training the stack again.

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
            self._calibrate(images.sample(N_CALIBRATION, rng), rng, seen=False)
        return self

    def score_samples(self, X: Any) -> Any:
        """Score of each image, the lower the more abnormal.

        By the `score_method` and `score_layer` at the last `fit` or `calibrate`. Densities
        and layers are in nats; surprise and typicality in standard deviations.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        ndarray or Tensor of shape (n_samples,)
        """
        return answer(X, self._scores(self._check_fitted_images(X)))

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

    def _check_stack(self, stack: BaseStack) -> None:
        self._resolved_method(stack)

    def _finish(self, data: Data, held_out: HeldOut, rng: RandomState) -> None:
        # A number draws as in `calibrate`; a generator goes on, also after a stop.
        seed = self.random_state if isinstance(self.random_state, int | np.integer) else rng
        rng = ranks.of_first(check_random_state(seed))
        new = None if held_out is None else held_out(N_CALIBRATION)
        if new is None or min(ranks.gather(len(new))) < 2:
            self._calibrate(data.sample(N_CALIBRATION, rng), rng, seen=True)
        else:
            self._calibrate(new, rng, seen=False)

    def _predict_images(self, images: Images) -> NDArray[Any]:
        return np.where(self._scores(images) < self.offset_, -1, 1)

    def _resolved_method(self, stack: BaseStack) -> str:
        """The score method that "auto" stands for; an error if the stack does not have the one."""
        deep = len(stack.names) > 1
        if self.score_method == "auto":
            return ("surprise" if deep else "density") if stack.is_density else "layer"
        if self.score_method != "layer":
            purpose = f"score_method={self.score_method!r}"
            check_joint(stack, purpose)
            if self.score_method in SCORES and not deep:
                raise ValueError(
                    f"{purpose} compares a stack with its lower layers, but this one has one "
                    "layer. Choose score_method='density', or a stack of several layers."
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
        self._outlier_score: Typicality | None = None
        if self._method in SCORES:
            make = partial(SCORES[self._method], len(self._stack.names))
            rows = ranks.together(self._measure(images, make()))
            _check_finite(rows)
            self._outlier_score = make().fit(rows, rng)
            scores = self._outlier_score.score(rows)
            if not seen and len(rows) >= _MIN_FOLDED:
                # What is learnt from an image makes it score higher than a new one.
                for learnt, new in KFold(_N_FOLDS, shuffle=True, random_state=rng).split(rows):
                    scores[new] = make().fit(rows[learnt], rng).score(rows[new])
        else:
            scores = ranks.together(self._scores(images))
            _check_finite(scores)
        self.offset_ = float(np.quantile(scores, self.contamination))

    def _measure(self, images: Images, score: Typicality) -> FloatArray:
        """Rows of numbers that a score is made of."""
        self._check_whole(images, "calibrated scores")

        def measure(tree: Tree, x: Tensor) -> Tensor:
            return score.measure(tree, x, images.complete)

        return self._map(images, measure, n_held=3)

    def _scores(self, images: Images) -> FloatArray:
        if not hasattr(self, "_outlier_score"):
            raise NotFittedError(
                "The fit was stopped before this detector had learnt how normal images score. Call "
                "calibrate with some of them, or fit again."
            )
        if self._outlier_score is None:
            return self._score(images, self._method, self._layer)
        return self._outlier_score.score(self._measure(images, self._outlier_score))


def _check_finite(scores: FloatArray) -> None:
    """Raise an error if images have none that tell how normal ones score."""
    if not np.isfinite(scores).all():
        raise ValueError(
            "X has images with values so far from those of fit that their densities overflow, "
            "which tell nothing of how normal ones score. Leave them out."
        )
