"""`DCGMMClassifier`: the stack as a scikit-learn classifier that learns from unlabelled images."""

from __future__ import annotations

import os
from typing import Any, Self, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted

from skdcgmm._generative import GenerativeDCGMM
from skdcgmm._images import FloatArray, Images
from skdcgmm._labels import as_array, encode
from skdcgmm._network import Network
from skdcgmm._stream import Stream
from skdcgmm._tree import JointNetwork
from skdcgmm._validation import answer, check_choice

READOUTS = ("joint", "linear")


class DCGMMClassifier(ClassifierMixin, GenerativeDCGMM):
    """Classification by a deep convolutional Gaussian mixture model, from few labels or many.

    One density of images and classes: each top component draws the class of its image, too. What
    images look like is learnt from all of them, labelled or not.

    Parameters
    ----------
    layers, image_shape
        The stack, as for `DCGMMEstimator`.
    objective : {"joint", "layerwise"}, default="joint"
        As for `DCGMMEstimator`; "layerwise" needs `readout="linear"`.
    readout : {"joint", "linear"}, default="joint"
        Where classes come from. "joint": from a table of each top component over the classes,
        trained together with the stack on the log density of images and their classes. "linear":
        from a logistic regression on responsibilities, after the stack has been trained as if there
        were no labels.
    readout_layers : int, str or list of these, default=-1
        The mixture layers whose responsibilities a linear readout reads: by index, or name.
    score_method, score_layer, reg_covar, max_epochs, batch_size, learning_rate
        As for `DCGMMEstimator`.
    tol, n_iter_no_change, validation_fraction, warm_start, device, random_state, verbose, \
checkpoint, checkpoint_minutes
        As for `DCGMMEstimator`.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The classes, without -1.
    class_probabilities_ : ndarray of shape (K, n_classes)
        Probability of each class under each top component, if the readout is joint.
    readout_ : LogisticRegression
        The linear readout, if that is what was asked for.
    weights_, means_, covariances_, precisions_, n_parameters_, image_shape_
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

    n_components: int | None = None
    classes_: NDArray[Any]

    def __init__(
        self,
        *,
        layers: Any = "auto",
        image_shape: tuple[int, ...] | None = None,
        objective: str = "joint",
        readout: str = "joint",
        readout_layers: Any = -1,
        score_method: str = "density",
        score_layer: int | str = -1,
        reg_covar: float | None = None,
        max_epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        tol: float = 1e-3,
        n_iter_no_change: int = 5,
        validation_fraction: float | None = None,
        warm_start: bool = False,
        device: str | torch.device = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_minutes: float = 10.0,
    ) -> None:
        self.layers = layers
        self.image_shape = image_shape
        self.objective = objective
        self.readout = readout
        self.readout_layers = readout_layers
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

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train the stack on images with and without labels.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, height, width) or \
(n_samples, height, width, channels), or Tensor
            As for `DCGMMEstimator`.
        y : array-like of shape (n_samples,)
            Classes; -1 where unknown. Names of classes are then of dtype object, as in
            ``np.where(known, names.astype(object), -1)``.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the images; None weighs all the same.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If a parameter, X or y does not fit; the message names it and what would. An earlier fit
            stays as it is.
        """
        with self._unchanged_on_failure():
            classes, encoded = encode(y)
            going_on = self.warm_start and hasattr(self, "classes_")
            if going_on and not np.array_equal(classes, self.classes_):
                raise ValueError(
                    f"y must have the classes of the fit that warm_start goes on from, "
                    f"{self.classes_}; got {classes}. Fit anew with warm_start=False."
                )
            self.classes_ = classes
            self.__dict__.pop("readout_", None)
            self._fit(X, y, sample_weight, encoded)
        return self

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
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        float
        """
        predicted = self._predict_images(self._check_fitted_images(X))
        return float(accuracy_score(as_array(y), predicted, sample_weight=sample_weight))

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
        sharpening_steps: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Draw images, of one class or with their classes.

        Parameters
        ----------
        n_samples : int, default=1
        y : one of `classes_`, default=None
            The class of all images; None draws images and classes as they come.
        temperature, top_s, sharpening_steps, random_state
            As for `DCGMMEstimator.sample`.

        Returns
        -------
        images : ndarray of shape (n_samples, ...)
            In the shape of the rows of X in `fit`.
        y : ndarray of shape (n_samples,)
            Their classes: those drawn with the images, or, of a linear readout, the predicted ones.

        Raises
        ------
        ValueError
            If a linear readout, which does not know what images of a class look like, is asked for
            a class.
        """
        check_is_fitted(self)
        network = self._network_in_place()
        drawing = (temperature, top_s, sharpening_steps, random_state)
        if not _has_classes(network):
            if y is not None:
                raise ValueError("sample(y=...) needs a classifier with readout='joint'.")
            rows, _ = self._sample(n_samples, network.cluster_tables, None, *drawing)
            images = Images(rows.reshape(n_samples, -1), network.image_shape, self._row_shape)
            return rows, self._predict_images(images)
        label = None
        if y is not None:
            if np.ndim(y) or y not in self.classes_:
                raise ValueError(f"y must be one of classes_, {self.classes_}; got {y!r}.")
            label = int(np.flatnonzero(self.classes_ == y)[0])
        rows, labels = self._sample(n_samples, network.class_tables.detach(), label, *drawing)
        return rows, self.classes_[labels]

    @property
    def class_probabilities_(self) -> FloatArray:
        """Probability of each class under each top component, (K, n_classes)."""
        check_is_fitted(self)
        if not _has_classes(self._network):
            raise AttributeError("class_probabilities_ is there if readout='joint'.")
        return self._network.class_tables.detach().cpu().numpy()

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_choice("readout", self.readout, READOUTS)
        if self.readout == "joint" and self.objective != "joint":
            raise ValueError(
                "readout='joint' needs objective='joint', which trains its table of classes; got "
                f"{self.objective!r}. Choose readout='linear', or objective='joint'."
            )

    def _build(self, images: Images | Stream) -> Network:
        network = super()._build(images)
        if self.readout == "joint":
            assert isinstance(network, JointNetwork)
            network.add_classes(len(self.classes_))
        return network

    def _check_network(self, network: Network) -> None:
        self._mixture_names(network, "readout_layers", self.readout_layers)

    def _finish(self, data: Images | Stream, held_out: NDArray[np.integer[Any]] | None) -> None:
        if self.readout == "linear":
            assert isinstance(data, Images)
            self._fit_readout(data)

    def _fit_readout(self, images: Images) -> None:
        assert images.y is not None
        labelled = images.take(np.flatnonzero(images.y >= 0)) if (images.y < 0).any() else images
        assert labelled.y is not None
        y = images.of_all(labelled.y)
        present = np.unique(y)
        if len(present) < 2:
            raise ValueError(
                "y must have at least two classes for readout='linear'; got 1 class, "
                f"{self.classes_[present[0]]}. Choose readout='joint'."
            )
        names = self._mixture_names(self._network, "readout_layers", self.readout_layers)
        features = images.of_all(self._responsibilities(labelled, names))
        weight = None if labelled.weight is None else images.of_all(labelled.weight)
        self._readout_names = names
        self.readout_ = LogisticRegression(max_iter=1000)
        self.readout_.fit(features, y, weight)

    def _predict_images(self, images: Images) -> NDArray[Any]:
        probabilities = self._class_probabilities(images)
        predicted: NDArray[Any] = self.classes_[probabilities.argmax(1)]
        return predicted

    def _class_probabilities(self, images: Images) -> FloatArray:
        network = self._network_in_place()
        if _has_classes(network):
            return self._map(images, lambda _, x: network.class_probabilities(x))
        features = self._responsibilities(images, self._readout_names)
        probabilities = np.zeros((len(images), len(self.classes_)), features.dtype)
        # Classes whose images all had a weight of zero are unknown to the regression.
        probabilities[:, self.readout_.classes_] = self.readout_.predict_proba(features)
        return probabilities


def _has_classes(network: Network) -> TypeGuard[JointNetwork]:
    """Whether the density of the network is one of images and classes."""
    return isinstance(network, JointNetwork) and network.class_logits is not None
