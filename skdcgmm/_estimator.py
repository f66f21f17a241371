"""`DCGMMEstimator`: the stack as a scikit-learn clusterer, transformer and density."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClusterMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from skdcgmm._features import FeaturesMixin
from skdcgmm._incremental import IncrementalDCGMM
from skdcgmm._stream import refuse_stream
from skdcgmm._validation import answer, check_number


class DCGMMEstimator(ClusterMixin, FeaturesMixin, IncrementalDCGMM):
    """Deep convolutional Gaussian mixture model.

    A stack of mixture layers, linked by convolution and pooling, that clusters, scores, samples,
    completes and embeds images. By default it is one normalised density over images, trained by
    maximum likelihood from random initialisation with stochastic gradients. A stack of one layer is
    a flat Gaussian mixture. Missing values, NaN, are marginalised everywhere.

    Parameters
    ----------
    n_components : int, default=None
        Number of clusters. It overrides that of top components, the last of `layers`; None keeps
        it. With `layers="auto"`, the top of a deep stack has up to 400 components, and those whose
        responsibilities overlap most are merged into this many clusters; the density is that of
        all.
    layers : str or list, default="auto"
        The stack from the image upwards: a list of `ConvGMM` and `MaxPool`, or of (name, layer)
        pairs; the name of a published architecture, "dcgmm-a" to "dcgmm-g", meant for
        `objective="layerwise"`; or "auto", which chooses by objective, image size
        and number of images; plain features get a flat mixture. Layers without a name are called
        `convgmm1`, `maxpool1`, `convgmm2`, ...
    image_shape : (int, int) or (int, int, int), default=None
        Height, width and, if there are several, channels of the images in the rows of X. None:
        from X if it has three or four dimensions; rows of a two-dimensional X are then plain
        features.
    objective : {"joint", "layerwise"}, default="joint"
        What training maximises. "joint": the log density of the images under the whole stack;
        windows must tile. "layerwise": each layer's own annealed max-component likelihood, as
        published; windows may overlap.
    score_method : {"density", "contrast", "layer"}, default="density"
        What `score_samples` returns. "density": the log density of each image. "contrast": that
        less the log density if the windows of the first layer were independent: whether the parts
        fit together, however simple the image. "layer": the log-likelihood of one mixture layer,
        averaged over its windows; all that a layer-wise stack of several layers has.
    score_layer : int or str, default=-1
        The mixture layer for `score_method="layer"`: its index among the mixture layers, or name.
    transform_layers : int, str or list of these, default=None
        The mixture layers whose responsibilities `transform` returns; None: those of the clusters.
    reg_covar : float, default=None
        Lower bound of the variances of the first layer, in squared units of X; greater than 0.
        "joint" learns what is above it, the published "layerwise" training clips. None: half of the
        variance of all pixels for images (0.05 for MNIST in 0-1), 1e-6 of each plain feature's.
        Densities compare at the same value.
    max_epochs : int, default=None
        Largest number of passes over the data. None: about 1000 steps ("joint") or 4000
        ("layerwise"), but at least 3. Few images need many passes, not few.
    batch_size : int, default=None
        Number of images in a training step. None: 250 ("joint") or 100 ("layerwise").
    learning_rate : float, default=None
        Largest learning rate, independent of the units of X. None: 0.05.
    tol : float, default=1e-3
        Training ends when the epoch's loss (the validation loss if there is one) has not risen by
        more than `tol` nats for `n_iter_no_change` epochs after annealing has ended, which with
        "joint" is in the last tenth of the training.
    n_iter_no_change : int, default=5
        Number of epochs without progress that end training.
    validation_fraction : float, default=None
        Share of X set aside to judge progress. None judges by the training loss.
    warm_start : bool, default=False
        Whether `fit` starts from the earlier fit if the stack is the same; then also in its
        precision and with its `reg_covar`, and if layer-wise with its annealing where it stood.
    device : str or torch.device, default="auto"
        Where to compute: "auto" is the GPU if there is one, else the CPU.
    random_state : int, RandomState instance or None, default=None
        Seed of initialisation, batches and draws. An int gives the same model in every run on the
        same machine.
    verbose : int, default=0
        1 shows a progress bar.
    checkpoint : str or path-like, default=None
        A file that `fit` writes from time to time, and removes at its end. If `fit` finds one, of a
        training with the same parameters and images that was killed, it goes on from it and ends in
        the model that the other would have ended in.
    checkpoint_minutes : float, default=10
        Time between two writings of it.

    Attributes
    ----------
    weights_ : dict of str to ndarray of shape (K,) or (rows, columns, K)
        Mixture weights of each mixture layer. Unshared layers have axes of positions in front,
        here and below, if they have several. Below the top of a joint stack, they are the
        probabilities of components by position, which follow from the tables above. Assigning a
        dictionary, such as `est.means_ = {"convgmm1": means}`, sets the parameters of the layers in
        it; changing the arrays themselves does not, they are copies.
    means_ : dict of str to ndarray of shape (..., K, D)
        Means; the values of a window are in the order (row, column, channel) of the rows of X,
        and those of the first layer in units of X. Above the first layer of a joint stack, these
        are tables: the probability, by cell of the window, of each component below.
    covariances_, precisions_ : dict of str to ndarray of shape (..., K, D) or (..., K)
        Variances and their inverses, of layers that hold Gaussians; without the last axis if
        spherical.
    clusters_ : ndarray of shape (K,)
        The cluster of each top component.
    cluster_centers_ : ndarray of shape (n_clusters, n_features)
        Mean image of each cluster. A layer-wise stack has none: the image without noise of the
        likeliest path down, or the mean of several.
    labels_ : ndarray of shape (n_samples,)
        Clusters of the images of the last `fit`, or of the last chunk; not there after a `fit` of
        batches, whose order may change.
    history_ : list of dict
        One row an epoch: `epoch`, `loss`, which training raises (the mean log density if joint,
        tempered in the first 30 % of the training), `validation_loss`, and, if layer-wise, each
        layer's loss (nan before it starts) and annealing radius, such as `convgmm1__radius`.
    n_iter_ : int
        Number of epochs.
    converged_ : bool
        Whether training ended by `tol` rather than by `max_epochs`.
    image_shape_ : (int, int, int)
        Height, width and channels.
    n_features_in_ : int
        Number of values in an image.
    feature_names_in_ : ndarray of shape (n_features,)
        Column names, if X was a data frame.
    n_parameters_ : int
        Number of free parameters.

    References
    ----------
    A. Gepperth, B. Pfülb: Image Modeling with Deep Convolutional Gaussian Mixture Models. IJCNN
    2021. arXiv:2104.12686.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdcgmm import DCGMMEstimator
    >>> X, _ = load_digits(return_X_y=True)
    >>> est = DCGMMEstimator(10, image_shape=(8, 8), max_epochs=20, random_state=0).fit(X)
    >>> est.sample(3)[0].shape
    (3, 64)
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        layers: Any = "auto",
        image_shape: tuple[int, ...] | None = None,
        objective: str = "joint",
        score_method: str = "density",
        score_layer: int | str = -1,
        transform_layers: int | str | Sequence[int | str] | None = None,
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
        self.n_components = n_components
        self.layers = layers
        self.image_shape = image_shape
        self.objective = objective
        self.score_method = score_method
        self.score_layer = score_layer
        self.transform_layers = transform_layers
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

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train the stack.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, height, width) or \
(n_samples, height, width, channels), Tensor, Dataset or iterable of batches
            Channels last, NaN where missing. float64 and wide integers are computed with in double
            precision, all else in single. Arrays mapped from a file are read a batch at a time. A
            `torch.utils.data.Dataset`, a `DataLoader`, or any other iterable of batches that starts
            anew in every epoch is gone through once more to begin with; batches are arrays, or
            tuples that begin with one; with `image_shape=(height, width, channels)` they may be of
            shape (n, channels, height, width), as in torch.
        y : Ignored
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the images in the loss; None weighs all the same.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If a parameter or X does not fit; the message names it and what would. An earlier fit
            stays as it is.

        Notes
        -----
        Where `torch.distributed` is initialised, each process gives its own part of the images, and
        all end with the same model. Ctrl-C ends the training with a warning, and the model of the
        last complete epoch.
        """
        with self._unchanged_on_failure():
            images, _ = self._fit(X, y, sample_weight)
            self.__dict__.pop("labels_", None)
            if images is not None:
                self.labels_ = self._predict_images(images)
        return self

    def fit_predict(self, X: Any, y: Any = None, **kwargs: Any) -> NDArray[Any]:
        """Train the stack, and return the cluster of each image.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
        y : Ignored
        **kwargs
            Of `fit`.

        Returns
        -------
        ndarray of shape (n_samples,)

        Raises
        ------
        TypeError
            If X comes in batches, whose order may change.
        """
        refuse_stream(X, "fit_predict", "fit, then predict")
        return self.fit(X, y, **kwargs).labels_

    def predict(self, X: Any) -> Any:
        """Cluster of each image: that of largest responsibility.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        ndarray or Tensor of shape (n_samples,)
        """
        images = self._check_fitted_images(X)
        return answer(X, self._predict_images(images))

    def predict_proba(self, X: Any) -> Any:
        """Responsibilities of the clusters for each image.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_clusters)
        """
        return self._apply(X, lambda network, x: network.cluster_probabilities(x))

    def sample(
        self,
        n_samples: int = 1,
        *,
        cluster: int | None = None,
        temperature: float | None = None,
        top_s: int | None = None,
        sharpening_steps: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Draw images from the model, from the top layer down.

        A joint stack draws from its density: a top component by the mixture weights, then by its
        tables the components below, then the pixels. A component of an upper layer of a layer-wise
        stack draws what it saw in training, the responsibilities below; clipped at zero they are
        the weights by which each position below draws its component, and patches are averaged where
        they overlap.

        Parameters
        ----------
        n_samples : int, default=1
        cluster : int, default=None
            The cluster of all images; None draws from all by their weights.
        temperature : float, default=None
            Factor of all Gaussian variances: 1 draws from the Gaussians as fitted, 0 takes their
            means, for pictures. None is 1 for a joint stack or a flat mixture, whose draws are then
            exact, and 0.1 for a layer-wise deep stack, whose upper variances are bounds rather than
            estimates.
        top_s : int, default=None
            Number of likeliest components that may be drawn at a position of a lower layer. None
            is all for a joint stack, but 2 with `temperature=0`: fewer of the tables' rare
            combinations make better, and less various, pictures. It is 1 for a layer-wise stack.
        sharpening_steps : int, default=0
            Steps of `sharpen`.
        random_state : int, RandomState instance or None, default=None
            Seed of the draws; None is that of the estimator.

        Returns
        -------
        images : ndarray of shape (n_samples, ...)
            In the shape of the rows of X in `fit`.
        labels : ndarray of shape (n_samples,)
            The clusters.
        """
        check_is_fitted(self)
        network = self._network_in_place()
        n_clusters = network.n_clusters
        check_number("cluster", cluster, low=0, high=n_clusters, integer=True, optional="drawn")
        return self._sample(
            n_samples, network.cluster_tables, cluster, temperature, top_s, sharpening_steps,
            random_state,
        )  # fmt: skip

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Mean log density of the images, whatever `score_method`; the larger the better.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
        y : Ignored
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        float
            In nats and the units of X: another scaler before the stack gives other densities.
            Comparable, at the same `reg_covar`, between any two joint stacks; and with
            `sklearn.mixture.GaussianMixture.score`, whose `reg_covar` is added to variances that it
            only bounds here, to the disadvantage of that mixture.

        Raises
        ------
        ValueError
            If the model has no normalised density: a layer-wise one of several layers; or if
            weights are not one non-negative number an image, or all are zero.
        """
        values = self._log_density(X)
        if sample_weight is None:
            return float(values.mean())
        weight = _check_sample_weight(sample_weight, values, ensure_non_negative=True)
        counted = weight > 0  # so that an image of no weight may have no density
        if not counted.any():
            raise ValueError("sample_weight must have a positive sum; all weights are zero.")
        return float(np.average(values[counted], weights=weight[counted]))
