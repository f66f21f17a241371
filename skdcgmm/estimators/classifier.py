"""`DCGMMClassifier`: the stack as a scikit-learn classifier that learns from unlabelled images."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import check_is_fitted

from skdcgmm.data import FloatArray, Images, as_array
from skdcgmm.estimators.attributes import NamedLayers
from skdcgmm.estimators.checks import (
    Seed,
    answer,
    encode_labels,
    is_known,
    read_labels,
    score_weights,
)
from skdcgmm.estimators.generative import GenerativeDCGMM
from skdcgmm.training import ranks


@dataclass(kw_only=True, eq=False, repr=False)
class DCGMMClassifier(NamedLayers, ClassifierMixin, GenerativeDCGMM):
    """Classification by a deep convolutional Gaussian mixture model, from few labels or many.

    One density of images and classes: each top component draws the class of its image, too. What
    images look like is learnt from all of them, labelled or not.

    Parameters
    ----------
    layers, image_shape
        The stack, as for `DCGMMEstimator`.
    pixels : {"auto", "tiles", "pyramid", "atoms"}, default="auto"
        As for `DCGMMEstimator`; "auto" is "tiles".
    score_method, score_layer, reg_covar, max_epochs, batch_size, learning_rate
        As for `DCGMMEstimator`.
    tol, n_iter_no_change, validation_fraction, warm_start, device, random_state, verbose, \
checkpoint, checkpoint_minutes, max_minutes, distributed
        As for `DCGMMEstimator`.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The classes, without -1.
    class_probabilities_ : ndarray of shape (K, n_classes)
        Probability of each class under each top component.
    weights_, means_, covariances_, precisions_, n_parameters_, image_shape_
        As of `DCGMMEstimator`.
    detail_means_, detail_covariances_
        As of `DCGMMEstimator`.
    history_, n_iter_, converged_, n_features_in_, feature_names_in_
        As of `DCGMMEstimator`; `loss` is the objective below.

    Notes
    -----
    Before the stack is trained, labels spread from labelled images to those that resemble them
    most, moved by at most a pixel [2]_: among at most 10 000 images (fewer if they are large),
    labelled ones first. All classes spread alike, however many labels they have. What labels say
    weighs as if all images had one: the objective is the mean log density of all images, plus the
    mean log probability of the class given the image over those with a label.

    References
    ----------
    .. [1] A. Gepperth, B. Pfülb: Image Modeling with Deep Convolutional Gaussian Mixture Models.
       IJCNN 2021. arXiv:2104.12686, where classes are read out linearly.

    .. [2] D. Zhou et al.: Learning with local and global consistency. NIPS 2003.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from skdcgmm import DCGMMClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> few = np.where(np.arange(len(y)) < 100, y, -1)
    >>> clf = DCGMMClassifier(image_shape=(8, 8), max_epochs=30, random_state=0).fit(X, few)
    >>> bool(clf.score(X[100:], y[100:]) > 0.8)
    True
    """

    objective: ClassVar[str] = "joint"  # type: ignore[misc]

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, *, X_val: Any = None, y_val: Any = None
    ) -> Self:
        """Train the stack on images with and without labels.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, height, width) or \
(n_samples, height, width, channels), or Tensor
            As for `DCGMMEstimator`.
        y : array-like of shape (n_samples,)
            Classes; -1 where unknown. Names of classes are then of dtype object, as in
            ``np.where(known, names.astype(object), -1)``; numbers are of a signed type.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the images; None weighs all the same.
        X_val : array-like or Tensor, default=None
            Images to judge progress by, instead of a share of X.
        y_val : array-like of shape (n_val,), default=None
            Their classes, -1 where unknown; None judges by the images alone.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If a parameter, X or y does not fit; the message names it and what would. An earlier fit
            stays as it is.
        """
        with ranks.joined(self.distributed):
            classes, encoded = encode_labels(y)
        going_on = self.warm_start and hasattr(self, "classes_")
        if going_on and not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"y must have the classes of the fit that warm_start goes on from, "
                f"{self.classes_}; got {classes}. Fit anew with warm_start=False."
            )
        return self._fit(X, y, sample_weight, encoded, classes, X_val=X_val, y_val=y_val)

    def score_samples(self, X: Any, y: Any = None) -> Any:
        """Log density of each image, or that among the images of a class.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
        y : one of `classes_`, or array-like of shape (n_samples,), default=None
            The class of all images, or of each, -1 where unknown. None, or -1, gives the density of
            an image whatever its class.

        Returns
        -------
        ndarray or Tensor of shape (n_samples,)
            In nats and the units of X, by `score_method`, which must be "density" for a class.
        """
        images = self._of_classes(X, y)
        if y is not None and self.score_method != "density":
            raise ValueError(
                "score_method must be 'density' where y is given: one layer's likelihood does not "
                f"depend on the class. Got {self.score_method!r}."
            )
        return answer(X, self._score_images(images))

    def impute(
        self,
        X: Any,
        *,
        y: Any = None,
        mask: Any = None,
        method: str = "mean",
        temperature: float | None = None,
        top_s: int | None = None,
        random_state: Seed = None,
    ) -> Any:
        """Fill in missing pixels, given the observed ones, and the class if it is known.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
            NaN where missing. Observed pixels stay as they are.
        y : one of `classes_`, or array-like of shape (n_samples,), default=None
            The class of all images, or of each, -1 where unknown.
        mask, method, temperature, top_s, random_state
            As for `DCGMMEstimator.impute`.

        Returns
        -------
        ndarray or Tensor of the shape of X
        """
        images = self._of_classes(X, y)
        generation = self._generation(temperature, top_s, random_state)
        return answer(X, self._fill_in(images, mask, method, generation))

    def sample_like(
        self,
        X: Any,
        *,
        y: Any = None,
        layer: int | str = -1,
        n_samples: int = 1,
        temperature: float | None = None,
        top_s: int | None = None,
        random_state: Seed = None,
    ) -> Any:
        """Draw variants of images, of a class if it is known.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
        y : one of `classes_`, or array-like of shape (n_images,), default=None
            The class of all images, or of each, -1 where unknown; of another class than the image,
            what is like it there.
        layer, n_samples, temperature, top_s, random_state
            As for `DCGMMEstimator.sample_like`.

        Returns
        -------
        ndarray or Tensor of shape (n_images, n_samples, ...)
            In the shape of the rows of X in `fit`.
        """
        images = self._of_classes(X, y)
        generation = self._generation(temperature, top_s, random_state)
        return answer(X, self._draw_like(images, layer, n_samples, generation))

    def _of_classes(self, X: Any, y: Any) -> Images:
        """Fitted images, with the numbers of their classes if y gives these."""
        images = self._check_fitted_images(X)
        if y is None:
            return images
        y = np.full(len(images), y) if np.ndim(as_array(y, "y")) == 0 else y
        labels = self._numbers(y, "y")
        check_consistent_length(images.rows, labels)
        return replace(images, y=labels)

    def _numbers(self, y: Any, name: str) -> NDArray[np.int64]:
        labels = read_labels(y, name)
        numbers = {label: number for number, label in enumerate(self.classes_.tolist())}
        found = [numbers.get(label, -1) for label in labels.tolist()]
        unknown = [label for label in labels[is_known(labels)].tolist() if label not in numbers]
        if unknown:
            raise ValueError(
                f"{name} must be one of classes_, {self.classes_}, or -1 where unknown; got "
                f"{unknown[0]!r}."
            )
        return np.array(found, dtype=np.int64)

    def predict(self, X: Any) -> Any:
        """Most probable class of each image.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        ndarray of shape (n_samples,)
            A Tensor if X is one and classes are numbers.
        """
        classes = self._predict_images(self._check_fitted_images(X))
        return answer(X, classes) if classes.dtype.kind in "iuf" else classes

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy on images with labels.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
        y : array-like of shape (n_samples,)
            Images whose class is unknown, -1, do not count.
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If no class is known, or some are missing otherwise.
        """
        images, labels = self._check_fitted_images(X), read_labels(y, "y")
        check_consistent_length(images.rows, labels)
        known = np.flatnonzero(is_known(labels))
        if not len(known):
            raise ValueError("y must hold the class of some images; all are -1, which is unknown.")
        weight = score_weights(sample_weight, labels)
        weight = None if weight is None else weight[known]
        predicted = self._predict_images(images.take(known))
        truth = np.array(labels[known].tolist())  # numbers and names of any type of array
        return float(accuracy_score(truth, predicted, sample_weight=weight))

    def predict_proba(self, X: Any) -> Any:
        """Probability of each class given the image; missing pixels are marginalised.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        return answer(X, self._class_probabilities(self._check_fitted_images(X)))

    def predict_log_proba(self, X: Any) -> Any:
        """Logarithms of `predict_proba`.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_classes)
        """
        probabilities = self._class_probabilities(self._check_fitted_images(X))
        with np.errstate(divide="ignore"):
            return answer(X, np.log(probabilities))

    def sample(
        self,
        n_samples: int = 1,
        *,
        y: Any = None,
        temperature: float | None = None,
        top_s: int | None = None,
        random_state: Seed = None,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Draw images, of one class or with their classes.

        Parameters
        ----------
        n_samples : int, default=1
        y : one of `classes_`, default=None
            The class of all images; None draws images and classes as they come.
        temperature, top_s, random_state
            As for `DCGMMEstimator.sample`.

        Returns
        -------
        images : ndarray of shape (n_samples, ...)
            In the shape of the rows of X in `fit`.
        y : ndarray of shape (n_samples,)
            Their classes.
        """
        check_is_fitted(self)
        label = None
        if y is not None:
            if np.ndim(y) or not is_known(read_labels([y], "y")):
                raise ValueError(f"y must be one of classes_, {self.classes_}; got {y!r}.")
            label = int(self._numbers([y], "y")[0])
        classes = torch.from_numpy(self.class_probabilities_)
        images, labels = self._sample(n_samples, classes, label, temperature, top_s, random_state)
        return images, self.classes_[labels]

    @property
    def class_probabilities_(self) -> FloatArray:
        """Probability of each class under each top component, (K, n_classes)."""
        check_is_fitted(self)
        with self._mixtures() as tree:
            return cast("FloatArray", tree.class_tables.cpu().numpy())

    def _predict_images(self, images: Images) -> NDArray[Any]:
        return cast("NDArray[Any]", self.classes_[self._class_probabilities(images).argmax(1)])

    def _class_probabilities(self, images: Images) -> FloatArray:
        return self._map(images, lambda tree, x: tree.class_probabilities(x, images.complete))
