"""`DCGMMOutlierDetector`: the stack as a scikit-learn outlier detector."""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import OutlierMixin
from sklearn.model_selection import KFold
from sklearn.utils import check_random_state
from torch import Tensor

from skdcgmm import _distributed
from skdcgmm._base import SCORE_METHODS, check_deep, check_joint
from skdcgmm._images import FloatArray, Images
from skdcgmm._learning import LearningDCGMM
from skdcgmm._network import Network
from skdcgmm._outliers import CALIBRATIONS, N_CALIBRATION, Calibration, views
from skdcgmm._stream import Stream, refuse_stream
from skdcgmm._tree import JointNetwork
from skdcgmm._validation import answer, check_number

# Parts of the images to calibrate with that are scored by what the others say, and images for that.
_N_FOLDS, _MIN_FOLDED = 5, 50
# Share of the images held out by default, and least number of images for that: of fewer, those that
# are left would teach too little.
_HELD_OUT, _MIN_HELD_OUT_OF = 0.2, 500


class DCGMMOutlierDetector(OutlierMixin, LearningDCGMM):
    """Outlier detection by a deep convolutional Gaussian mixture model.

    The density of a deep stack alone is a poor detector: a simple image, whatever it shows, is
    likelier than an intricate one. The default score asks instead whether an image is likelier than
    itself mirrored and turned, whether the parts of each layer fit its cluster and each other, and
    whether all these figures are usual. Missing values, NaN, are marginalised; images with other
    shares of them than the training images do not compare with `offset_`.

    Parameters
    ----------
    contamination : float, default=0.1
        Share of the images held out that `predict` calls outliers, in (0, 0.5], and so about that
        of new images; of the training images if none are held out.
    layers, image_shape, objective
        The stack, as for `DCGMMEstimator`.
    score_method : str, default="auto"
        What `score_samples` returns.

        - "surprise": the sum of four terms, each in standard deviations of the images held out, or
          of the training images if none are.
          How usual the log densities of the image in all layers, and those of its mirrored and
          turned views, are; how much likelier it is than its views; how much better its parts fit
          its cluster than theirs; and how much likelier its parts are together than alone.
        - "typicality": the sum of the first two. For images of textures rather than shapes.
        - "density", "contrast", "layer": as for `DCGMMEstimator`.
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
    warm_start, device, random_state, verbose, checkpoint, checkpoint_minutes
        As for `DCGMMEstimator`.

    Attributes
    ----------
    offset_ : float
        Score below which an image is an outlier, in the units of the score.
    weights_, means_, covariances_, precisions_, n_parameters_, image_shape_
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

    n_components: int | None = None
    _score_methods = ("auto", *CALIBRATIONS, *SCORE_METHODS)

    def __init__(
        self,
        *,
        contamination: float = 0.1,
        layers: Any = "auto",
        image_shape: tuple[int, ...] | None = None,
        objective: str = "joint",
        score_method: str = "auto",
        score_layer: int | str = -1,
        reg_covar: float | None = None,
        max_epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        tol: float = 1e-3,
        n_iter_no_change: int = 5,
        validation_fraction: float | str | None = "auto",
        warm_start: bool = False,
        device: str | torch.device = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_minutes: float = 10.0,
    ) -> None:
        self.contamination = contamination
        self.layers = layers
        self.image_shape = image_shape
        self.objective = objective
        self.score_method = score_method
        self.score_layer = score_layer
        self.reg_covar = reg_covar
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.validation_fraction = validation_fraction
        self.warm_start = warm_start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint = checkpoint
        self.checkpoint_minutes = checkpoint_minutes

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train the stack, and learn how normal images score.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, height, width) or \
(n_samples, height, width, channels), Tensor, Dataset or iterable of batches
            As for `DCGMMEstimator`. They should be normal: outliers are learnt from like others.
        y : Ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If a parameter or X does not fit; the message names it and what would. An earlier fit
            stays as it is.
        """
        with self._unchanged_on_failure():
            self._fit(X, y)
        return self

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
        predicted: NDArray[Any] = super().fit_predict(X, y, **kwargs)
        return predicted

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
        with self._unchanged_on_failure():
            if score_method is not None:
                self.score_method = score_method
            self._check_parameters()
            rng = check_random_state(self.random_state)
            images = self._check_fitted_images(X)
            self._calibrate(images.sample(N_CALIBRATION, rng), rng, seen=False)
        return self

    def score_samples(self, X: Any) -> Any:
        """Score of each image, the lower the more abnormal.

        By the `score_method` and `score_layer` at the last `fit` or `calibrate`. Densities,
        contrasts and layers are in nats; surprise and typicality in standard deviations.

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

    def _share_held_out(self, data: Images | Stream) -> float | None:
        if not isinstance(self.validation_fraction, str):
            return self.validation_fraction
        many = isinstance(data, Images) and data.n_images >= _MIN_HELD_OUT_OF
        return _HELD_OUT if many and data.shape[1:] != (1, 1) else None

    def _check_network(self, network: Network) -> None:
        self._resolved_method(network)

    def _finish(self, data: Images | Stream, held_out: NDArray[np.integer[Any]] | None) -> None:
        rng = _distributed.same_random_state(check_random_state(self.random_state))
        if held_out is None or len(held_out) < 2:
            self._calibrate(data.sample(N_CALIBRATION, rng), rng, seen=True)
        else:
            assert isinstance(data, Images)
            self._calibrate(data.collect(held_out[:N_CALIBRATION]), rng, seen=False)

    def _predict_images(self, images: Images) -> NDArray[Any]:
        return np.where(self._scores(images) < self.offset_, -1, 1)

    def _resolved_method(self, network: Network) -> str:
        """The score method that "auto" stands for; an error if the stack does not have the one."""
        joint = isinstance(network, JointNetwork)
        if self.score_method == "auto":
            deep = "surprise" if len(network.mixtures) > 1 else "density"
            return deep if joint else "layer"
        if self.score_method != "layer":
            purpose = f"score_method={self.score_method!r}"
            check_joint(network, purpose)
            if self.score_method != "density":
                check_deep(network, purpose)
        return self.score_method

    def _calibrate(self, images: Images, rng: np.random.RandomState, *, seen: bool) -> None:
        """Learn how images score: some that the stack has `seen`, or some like new ones."""
        if len(images) < 2:
            raise ValueError(
                "X must hold at least two images, to learn how normal ones score; "
                f"got {len(images)}."
            )
        self._method = self._resolved_method(self._network)
        self._layer = self._mixture_name(self._network, "score_layer", self.score_layer)
        self._calibration: Calibration | None = None
        if self._method in CALIBRATIONS:
            statistics = self._statistics(images)
            _check_finite(statistics)
            make = CALIBRATIONS[self._method]
            self._calibration = make().fit(statistics, rng)
            scores = self._calibration.score(statistics)
            if not seen and len(images) >= _MIN_FOLDED:
                # What is learnt from an image makes it score higher than a new one.
                for learnt, new in KFold(_N_FOLDS, shuffle=True, random_state=rng).split(
                    statistics
                ):
                    scores[new] = make().fit(statistics[learnt], rng).score(statistics[new])
        else:
            scores = self._scores(images)
            _check_finite(scores)
        self.offset_ = float(np.quantile(scores, self.contamination))

    def _statistics(self, images: Images) -> FloatArray:
        """Statistics of images and their views, (N, views, statistics)."""

        def of_views(network: JointNetwork, x: Tensor) -> Tensor:
            return torch.stack([network.statistics(view) for view in views(x)], 1)

        return self._map_joint(images, "a calibrated score", of_views)

    def _scores(self, images: Images) -> FloatArray:
        if self._calibration is None:
            return self._score_images(images, self._method, self._layer)
        return self._calibration.score(self._statistics(images))


def _check_finite(scores: FloatArray) -> None:
    """Raise an error if images have none that tell how normal ones score."""
    if not np.isfinite(scores).all():
        raise ValueError(
            "X has images with values so far from those of fit that their densities overflow, "
            "which tell nothing of how normal ones score. Leave them out."
        )
