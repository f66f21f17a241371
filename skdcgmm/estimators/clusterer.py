"""`DCGMMEstimator`: the stack as a scikit-learn clusterer, transformer and density."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from sklearn.base import ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn import functional

from skdcgmm.analysis.merging import cut, merge
from skdcgmm.analysis.spreading import neighbours
from skdcgmm.data import Data, FloatArray, HeldOut, Images, IntArray, sample_size
from skdcgmm.estimators import checks
from skdcgmm.estimators.attributes import NamedLayers
from skdcgmm.estimators.checks import Seed
from skdcgmm.estimators.generative import GenerativeDCGMM, rows_of
from skdcgmm.estimators.planning import check_n_clusters
from skdcgmm.model.specs import check_number
from skdcgmm.model.stack import BaseStack
from skdcgmm.model.tree import Mixtures
from skdcgmm.training import ranks

# Top components up to which they are merged into a tree of clusters unless fewer are asked for.
_MAX_MERGED = 1000


@dataclass(kw_only=True, eq=False, repr=False)
class DCGMMEstimator(NamedLayers, ClusterMixin, TransformerMixin, GenerativeDCGMM):
    """Deep convolutional Gaussian mixture model.

    A stack of mixture layers, linked by convolution and pooling, that clusters, scores, samples,
    completes and embeds images. By default it is one normalised density over images, trained by
    maximum likelihood from random initialisation with stochastic gradients. A stack of one layer is
    a flat Gaussian mixture. Missing values, NaN, are marginalised everywhere.

    Parameters
    ----------
    n_clusters : int, default=None
        Number of clusters, into which the top components are merged: a cut through the tree of
        mergers (`children_`). It may be changed after `fit`, and the next `predict` uses it. None
        is one for each top component. The density does not depend on its value, but whether
        there is one decides on `pixels="auto"`; and a flat mixture or a layer-wise stack by
        `layers="auto"` gets as many top components.
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
    pixels : {"auto", "tiles", "pyramid", "atoms"}, default="auto"
        What the components emit. "tiles": those of the first layer emit pixels, independent of each
        other. "pyramid": the mean of each window, in each colour, is what the layer above sees of
        it, and components of every layer emit the details of their windows, in an orthonormal
        basis, each in units of its own; so light and colour are drawn from coarse to fine.
        "atoms": tiles of pixels at the resolution of the data; Gaussians are cut off at an end of
        the range that many pixels have exactly, such as black: what is beyond is at it, and the log
        density is with respect to length plus these points (see `bits_per_dim`). "auto", if
        `layers="auto"` and `reg_covar` is None: with `n_clusters`, a pyramid, or tiles if pixels
        are missing or there is one layer only; without, that of atoms and these under which
        held-out images have the fewest bits, after short trainings. Else tiles. All are exact
        densities. Missing pixels are exact with tiles and atoms; a pyramid can be asked about them,
        but approximates, takes seconds, and cannot be fitted to them.
    objective : {"joint", "layerwise"}, default="joint"
        What training maximises. "joint": the log density of the images under the whole stack;
        windows must tile. "layerwise": each layer's own annealed max-component likelihood, as
        published; windows may overlap.
    score_method : {"density", "layer"}, default="density"
        What `score_samples` returns. "density": the log density of each image. "layer": the
        log-likelihood of one mixture layer, averaged over its windows; all that a layer-wise stack
        of several layers has.
    score_layer : int or str, default=-1
        The mixture layer for `score_method="layer"`: its index among the mixture layers, or name.
    reg_covar : float, default=None
        Lower bound of the variances of the first layer, in squared units of X; greater than 0.
        "joint" learns what is above it, the published "layerwise" training clips. None: with tiles,
        0.7 of the variance of the pixels about their means (0.05 for MNIST in 0-1; half of that of
        all pixels where positions share components), 1e-6 of each plain feature's; in a pyramid, a
        share of each detail's variance, the higher the more of the images is details: 0.01 for
        photographs, 0.3 for strokes; with atoms, a quarter of the squared smallest difference
        between two values, to which it falls in training. Densities compare at the same value.
    max_epochs : int, default=None
        Largest number of passes over the data. None: about 1000 steps ("joint"; 500 with
        atoms or a pyramid, there fewer for less than 8000 images, 150 for 2400) or 4000
        ("layerwise"), but at least 3. Few images need many passes, not few.
    batch_size : int, default=None
        Number of images in a training step. None: 250 ("joint") or 100 ("layerwise").
    learning_rate : float, default=None
        Largest learning rate, independent of the units of X. None: 0.05, or 0.1 for a pyramid.
    tol : float, default=1e-3
        Training ends when the epoch's loss (the validation loss if there is one) has not risen by
        more than `tol` nats for `n_iter_no_change` epochs after annealing has ended, which with
        "joint" is in the last tenth of the training.
    n_iter_no_change : int, default=5
        Number of epochs without progress that end training.
    validation_fraction : float, default=None
        Share of X set aside to judge progress; the model is then that of the epoch in which they
        were likeliest, of a layer-wise stack of those after annealing. None judges by the training
        loss, or by the images given to `fit` as `X_val`.
    warm_start : bool, default=False
        Whether `fit` starts from the earlier fit if the stack is the same, or "auto" as before, for
        any number of images; then also in its precision and with its `reg_covar`, and if layer-wise
        with its annealing where it stood. It warns if the stack is another one, and starts anew.
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
    max_minutes : float, default=None
        Time for training, after which it ends, also within an epoch: learning rates, temperatures
        and neighbourhoods keep up with it, so that they are annealed by then. What comes before and
        after, such as labels, takes its own. How many steps there is time for depends on the
        machine: no seed gives the same model. None sets no limit.
    distributed : bool, default=None
        Whether the processes of `torch.distributed`, which must be initialised, train one model,
        each with a part of the images. None trains one of this process alone, as False, but warns
        where there are others.
    transform_layers : int, str or list of these, default=None
        The mixture layers whose responsibilities `transform` returns; None: those of the clusters.

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
        and those of the first layer in units of X, but in a pyramid; with atoms, of Gaussians that
        are not yet cut off. Above the first layer of a joint stack, these are tables: the
        probability, by cell of the window, of each component below.
    covariances_, precisions_ : dict of str to ndarray of shape (..., K, D) or (..., K)
        Variances and their inverses, of layers that hold Gaussians; without the last axis if
        spherical.
    detail_means_, detail_covariances_ : dict of str to ndarray of shape (..., K, D)
        Means and variances of the details that the upper layers of a pyramid emit. The values, as
        of `means_` of its first layer, are coefficients of cosines in the order (colour, row,
        column), the first colour being grey, and in units of the standard deviations of the
        channels, not of X; only the top's begin with the mean.
    pixels_bits_ : dict of str to float
        Bits a value of held-out images by kind of pixels, if `pixels="auto"` has compared some.
    children_ : ndarray of shape (K - 1, 2)
        The tree by which the K top components are merged, as of
        `AgglomerativeClustering`: numbers below K are components, K + i is
        what the merger i has made. Of one component there is none, of more than 1000 only if
        `n_clusters` is given.
    distances_ : ndarray of shape (K - 1,)
        How far apart what is merged is, never falling. A large jump between two of the last tells
        a good number of clusters; see :class:`skdcgmm.plotting.DendrogramDisplay`.
    clusters_ : ndarray of shape (K,)
        The cluster of each top component, for the present `n_clusters`; of merged ones, the largest
        come first.
    component_means_ : ndarray of shape (K, n_features)
        Mean image of each top component. A layer-wise stack has none: the image without noise of
        the likeliest path down.
    cluster_centers_ : ndarray of shape (n_clusters, n_features)
        Mean image of each cluster, for the present `n_clusters`.
    labels_ : ndarray of shape (n_samples,)
        Clusters of the images of the last `fit`, or of the last chunk, for `n_clusters` as it was;
        not there after a `fit` of batches, whose order may change.
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

    _LEARNT_FROM_STACK = ("labels_", "children_", "distances_", "_without_units")
    _chooses_pixels: ClassVar[bool] = True

    n_clusters: int | None = field(default=None, kw_only=False)
    transform_layers: int | str | Sequence[int | str] | None = None

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, *, X_val: Any = None) -> Self:
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
        X_val : array-like or Tensor, default=None
            Images to judge progress by, instead of a share of X, `validation_fraction`: of groups,
            or in order of time, a random share is no fair judge. X may then come in batches.

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
        With `distributed=True`, each process gives its own part of the images, and all end with the
        same model. Ctrl-C ends the training with a warning, and the model of the
        last complete epoch; after the last epoch it is an error, but what has been trained stays.
        """
        self._fit(X, y, sample_weight, X_val=X_val)
        if self.n_clusters is not None and hasattr(self, "labels_"):
            with ranks.joined(self.distributed):
                found = np.concatenate(ranks.gather(np.unique(self.labels_)))
            n_found = len(np.unique(found))
            if n_found < self.n_clusters:
                warnings.warn(
                    f"Only {n_found} of n_clusters={self.n_clusters} clusters have images of X, "
                    "which may hold fewer kinds of images, or the same ones many times. Choose "
                    "fewer clusters.",
                    ConvergenceWarning,
                    stacklevel=2,
                )
        return self

    def _check_stack(self, stack: BaseStack) -> None:
        if self.transform_layers is not None:
            self._feature_names(stack)

    def _finish(self, data: Data, held_out: HeldOut | None, rng: RandomState) -> None:
        """Merge the top components, by some of the images."""
        n_components = self._stack.top.n_components
        if (self.n_clusters is None and n_components > _MAX_MERGED) or n_components == 1:
            return
        n_images = sample_size(data.shape)
        if isinstance(data, Images) and len(data) <= n_images:
            some = data
        else:
            some = data.sample(n_images, rng)
        scores = self._map(some, lambda mixtures, x: mixtures.scores(x, some.complete))
        if not np.isfinite(scores).all():
            raise FloatingPointError("images have no finite scores")
        with self._mixtures() as mixtures:
            means = (mixtures.component_means() / self._stack.scale).flatten(1)
        weight = None if some.weight is None else ranks.together(some.weight)
        near = None
        scores, rows = ranks.together(scores), ranks.together(some.rows)
        if data.shape[1:] != (1, 1) and len(rows) > 1:
            near = neighbours(replace(some, rows=rows), self._stack.like)
        self.children_, self.distances_ = ranks.of_first(
            merge(scores, means.numpy(force=True), weight, near)
        )

    def _set_labels(self, images: Images | None) -> None:
        if images is not None:
            self.labels_ = self._predict_images(images)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Go once over a chunk of images.

        The first chunk fixes the scale of the images and the stack, whose components start from its
        images: let it hold as many as it can, and various ones. The stack of `layers="auto"` is
        planned for more images to come, and has as many components as the first chunk can start. A
        first chunk that tells no units, or very few images, are warned of. Each chunk merges top
        components anew into clusters, whose numbers may change.
        The learning rate is planned for 1000 steps of `batch_size` images ("joint") or 4000
        ("layerwise"), and the model is of little use before most of them are done; after them, and
        after a `fit`, it stays at its small last value, unless `reset_annealing` opens it again.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
        y : Ignored
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the images of the chunk, relative to their mean.

        Returns
        -------
        self
        """
        return self._partial_fit(X, sample_weight)

    def reset_annealing(self, fraction: float = 1.0) -> Self:
        """Open the schedules of training again, so that `partial_fit` can learn new images.

        At the end of its schedule, a model hardly changes. Taken back by a fraction of it, learning
        rates, the temperature and the neighbourhoods of components are as wide again as they were
        then: the more, the faster what is new is learnt, and what is not seen again forgotten.

        Parameters
        ----------
        fraction : float, default=1.0
            Share of the schedule that is gone through again: 1 is all of it, 0 none.

        Returns
        -------
        self

        References
        ----------
        B. Pfülb, A. Gepperth: Overcoming Catastrophic Forgetting with Gaussian Mixture Replay.
        IJCNN 2021. arXiv:2104.09220.
        """
        return self._reset_annealing(fraction)

    @property
    def clusters_(self) -> IntArray:
        """The cluster of each top component."""
        check_is_fitted(self)
        n_components = self._stack.top.n_components
        check_n_clusters(self.n_clusters, n_components)
        if self.n_clusters is None or self.n_clusters == n_components:
            return np.arange(n_components)
        if not hasattr(self, "children_"):
            raise ValueError(
                f"n_clusters={self.n_clusters} needs a tree of mergers, and this model has none: "
                "it has more than 1000 components, or its fit was stopped before it made one. Fit "
                "with n_clusters set, or set n_clusters=None for its components."
            )
        return cut(self.children_, self.n_clusters, self._stack.top_weights.cpu().numpy())

    @property
    def component_means_(self) -> FloatArray:
        """Mean image of each top component, (K, n_features)."""
        check_is_fitted(self)
        with self._mixtures() as mixtures:
            return cast("FloatArray", rows_of(mixtures.component_means()).cpu().numpy())

    @property
    def cluster_centers_(self) -> FloatArray:
        """Mean image of each cluster, (n_clusters, n_features)."""
        clusters = self.clusters_
        members = clusters == np.arange(clusters.max() + 1)[:, None]  # (n_clusters, K)
        shares = members * self._stack.top_weights.cpu().numpy()
        return cast("FloatArray", (shares / shares.sum(1, keepdims=True)) @ self.component_means_)

    def _cluster_probabilities(self, images: Images) -> FloatArray:
        """Posterior of the clusters: the responsibilities of their components."""
        tables = self._cluster_tables()  # (K, n_clusters)

        def probabilities(mixtures: Mixtures, x: Tensor) -> Tensor:
            posterior = mixtures.posterior(x, images.complete)  # (N, K)
            merged = len(tables) > tables.shape[1]
            return posterior @ tables.to(posterior) if merged else posterior

        return self._map(images, probabilities)

    def _cluster_tables(self) -> Tensor:
        """Whether each top component belongs to each cluster, (K, n_clusters)."""
        return functional.one_hot(torch.from_numpy(self.clusters_).long())

    def _predict_images(self, images: Images) -> NDArray[Any]:
        """What `predict` answers."""
        return cast("IntArray", self._cluster_probabilities(images).argmax(1))

    def fit_predict(self, X: Any, y: Any = None, **kwargs: Any) -> Any:
        """Train the stack, and return the cluster of each image.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
        y : Ignored
        **kwargs
            Of `fit`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples,)

        Raises
        ------
        TypeError
            If X comes in batches, whose order may change.
        """
        checks.refuse_stream(X, "fit_predict", "fit, then predict")
        return checks.answer(X, self.fit(X, y, **kwargs).labels_)

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
        return checks.answer(X, self._predict_images(images))

    def predict_proba(self, X: Any) -> Any:
        """Responsibilities of the clusters for each image.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_clusters)
        """
        return checks.answer(X, self._cluster_probabilities(self._check_fitted_images(X)))

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Train the stack, and return the responsibilities as features.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
        y : Ignored
        **fit_params
            Of `fit`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out)
            As of `transform`.

        Raises
        ------
        TypeError
            If X comes in batches, whose order may change.
        """
        checks.refuse_stream(X, "fit_transform", "fit, then transform")
        return super().fit_transform(X, y, **fit_params)

    def transform(self, X: Any) -> Any:
        """Responsibilities of the clusters, or of the components of chosen layers, as features.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out)
            `n_clusters` features; with `transform_layers`, those of one layer after the other, each
            in the order (row, column, component). Without either, and with `layers="auto"`, as many
            as the number of images allowed components: set `n_clusters` where all folds of a
            cross-validation must have as many.
        """
        if self.transform_layers is None:
            return self.predict_proba(X)
        images = self._check_fitted_images(X)
        return checks.answer(X, self._responsibilities(images, self._feature_names(self._stack)))

    def _feature_names(self, stack: BaseStack) -> list[str]:
        """Mixture layers given by `transform_layers`: one name or index, or a list of them."""
        value: Any = self.transform_layers
        values = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
        if not values:
            raise ValueError(
                f"transform_layers must name at least one mixture layer; got {value!r}. "
                f"There are {list(stack.names)}."
            )
        return [self._mixture_name(stack, "transform_layers", each) for each in values]

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the features that `transform` returns.

        Parameters
        ----------
        input_features : Ignored

        Returns
        -------
        ndarray of str
            Such as "cluster3"; with `transform_layers`, such as "convgmm1_0_2_17", a component by
            row and column of its window, and "convgmm2_17" where there is one window.
        """
        check_is_fitted(self)
        if self.transform_layers is None:
            names = [f"cluster{index}" for index in range(self.clusters_.max() + 1)]
            return np.array(names, dtype=object)
        names = []
        for layer in self._feature_names(self._stack):
            n_components, rows, columns = self._stack.mixtures[layer].output_shape
            for row, column, component in product(range(rows), range(columns), range(n_components)):
                place = f"_{row}_{column}" if rows * columns > 1 else ""
                names.append(f"{layer}{place}_{component}")
        return np.array(names, dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def sample(
        self,
        n_samples: int = 1,
        *,
        cluster: int | None = None,
        temperature: float | None = None,
        top_s: int | None = None,
        random_state: Seed = None,
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
        random_state : int, RandomState instance or None, default=None
            Seed of the draws; None is that of the estimator.

        Returns
        -------
        images : ndarray of shape (n_samples, ...)
            In the shape of the rows of X in `fit`, and like its values: clipped to their range
            where that has ends, which many pixels have exactly, and whole numbers of the type of X
            if that was small integers, such as uint8.
        labels : ndarray of shape (n_samples,)
            The clusters.
        """
        check_is_fitted(self)
        of_components = self._cluster_tables()  # (K, n_clusters)
        check_number(
            "cluster", cluster, low=0, high=of_components.shape[1], integer=True, optional="drawn"
        )
        return self._sample(n_samples, of_components, cluster, temperature, top_s, random_state)

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
            The same for all `n_clusters` into which components are merged: it compares layers.
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
        weight = checks.score_weights(sample_weight, values)
        if weight is None:
            return float(values.mean())
        counted = weight > 0  # so that an image of no weight may have no density
        return float(np.average(values[counted], weights=weight[counted]))
