"""`DCGMMImputer`: the stack as a scikit-learn transformer that fills in missing values."""

import warnings
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from sklearn.base import OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import Tags

from skdcgmm.data import Images, is_stream
from skdcgmm.estimators.attributes import NamedLayers
from skdcgmm.estimators.checks import answer, refuse_stream
from skdcgmm.estimators.generative import IMPUTE_METHODS, GenerativeDCGMM
from skdcgmm.model.specs import check_choice


@dataclass(kw_only=True, eq=False, repr=False)
class DCGMMImputer(OneToOneFeatureMixin, NamedLayers, TransformerMixin, GenerativeDCGMM):
    """Imputation of missing values by a deep convolutional Gaussian mixture model.

    A step of a pipeline: the density is learnt from the observed values of the training images, and
    fills in those that are missing, NaN, in any others, given what is observed of each.

    Parameters
    ----------
    layers, image_shape
        The stack, as for `DCGMMEstimator`.
    pixels : {"auto", "tiles", "pyramid", "atoms"}, default="auto"
        As for `DCGMMEstimator`; "auto" is "tiles", which can be fitted to images with missing
        values, and are exact.
    objective, score_method, score_layer, reg_covar, max_epochs, batch_size, learning_rate
        As for `DCGMMEstimator`.
    tol, n_iter_no_change, validation_fraction, warm_start, device, random_state, verbose, \
checkpoint, checkpoint_minutes, max_minutes, distributed
        As for `DCGMMEstimator`.
    method : {"mean", "sample"}, default="mean"
        What missing values are filled in with: their mean given the observed ones, or a draw, as
        several imputations of the same images need.

    Attributes
    ----------
    weights_, means_, covariances_, precisions_, n_parameters_, image_shape_
        As of `DCGMMEstimator`.
    detail_means_, detail_covariances_
        As of `DCGMMEstimator`.
    history_, n_iter_, converged_, n_features_in_, feature_names_in_
        As of `DCGMMEstimator`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from skdcgmm import DCGMMImputer
    >>> X, y = load_digits(return_X_y=True)
    >>> X[np.random.default_rng(0).random(X.shape) < 0.3] = np.nan
    >>> imputer = DCGMMImputer(image_shape=(8, 8), max_epochs=20, random_state=0)
    >>> model = make_pipeline(imputer, LogisticRegression(max_iter=1000))
    >>> bool(model.fit(X[:1200], y[:1200]).score(X[1200:], y[1200:]) > 0.8)
    True
    """

    method: str = "mean"

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, *, X_val: Any = None) -> Self:
        """Train the stack.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, height, width) or \
(n_samples, height, width, channels), Tensor, Dataset or iterable of batches
            As for `DCGMMEstimator`; NaN where missing.
        y : Ignored
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the images in the loss; None weighs all the same.
        X_val : array-like or Tensor, default=None
            As for `DCGMMEstimator`.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If a parameter or X does not fit; the message names it and what would. An earlier fit
            stays as it is.
        """
        self._fit(X, y, sample_weight, X_val=X_val)
        if not is_stream(X):
            _warn_of_unseen(self._check_fitted_images(X))
        return self

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Train the stack, and fill in missing values of the images that it was trained on.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
        y : Ignored
        **fit_params
            Of `fit`.

        Returns
        -------
        ndarray or Tensor of the shape of X

        Raises
        ------
        TypeError
            If X comes in batches, whose order may change.
        """
        refuse_stream(X, "fit_transform", "fit, then transform")
        return super().fit_transform(X, y, **fit_params)

    def transform(self, X: Any) -> Any:
        """Fill in missing values, given the observed ones.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
            NaN where missing. Observed values stay as they are.

        Returns
        -------
        ndarray or Tensor of the shape of X
            Draws are seeded by `random_state`.
        """
        images, generation = self._to_draw(X, None, None, None)
        return answer(X, self._fill_in(images, None, self.method, generation))

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_choice("method", self.method, IMPUTE_METHODS)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _warn_of_unseen(images: Images) -> None:
    """Warn of features of which nothing is known."""
    if images.complete:
        return
    unseen = np.flatnonzero(images.moments().n_values == 0)
    if len(unseen):
        warnings.warn(
            f"X has {len(unseen)} features without any observed value, the first of which is "
            f"{unseen[0]}: what they are filled in with means nothing. Leave them out.",
            stacklevel=3,
        )
