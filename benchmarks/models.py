"""The models that the benchmarks compare, by name."""

from functools import partial

import numpy as np
from scipy.special import softmax
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.impute import KNNImputer
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.semi_supervised import SelfTrainingClassifier

from skdcgmm import ConvGMM, DCGMMClassifier, DCGMMEstimator, DCGMMImputer, DCGMMOutlierDetector

# Of images in 0-1, for all mixtures on pixels, so that their densities compare.
REG_COVAR = 0.05
# In the space of principal components, variances are those of the data: the floor only keeps
# covariances invertible.
PCA_COMPONENTS, PCA_REG_COVAR = 100, 1e-3
# What a model needs beside the library, by its name.
REQUIRES = {"PyOD AutoEncoder": "pyod", "UMAP": "umap"}


class NearestNeighbourDistance:
    """Outlier score: the distance to the nearest training image."""

    def fit(self, X):
        self._neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(X)
        return self

    def score_samples(self, X):
        return -self._neighbours.kneighbors(X)[0][:, 0]


class Reconstruction:
    """Outlier score: the squared error of the reconstruction from 30 principal components."""

    def __init__(self, seed):
        self._pca = PCA(30, random_state=seed)

    def fit(self, X):
        self._pca.fit(X)
        return self

    def score_samples(self, X):
        return -((X - self._pca.inverse_transform(self._pca.transform(X))) ** 2).sum(1)


class PyODAutoEncoder:
    """PyOD's autoencoder with its defaults."""

    def __init__(self, seed):
        from pyod.models.auto_encoder import AutoEncoder

        self._model = AutoEncoder(random_state=seed, verbose=0)

    def fit(self, X):
        self._model.fit(X)
        return self

    def score_samples(self, X):
        return -self._model.decision_function(X)


def detector(image_shape, seed, **parameters):
    return DCGMMOutlierDetector(image_shape=image_shape, random_state=seed, **parameters)


def deep(n_clusters, image_shape, seed, **parameters):
    return DCGMMEstimator(
        n_clusters, image_shape=image_shape, reg_covar=REG_COVAR, random_state=seed, **parameters
    )


def clusters(n_clusters, image_shape, seed, **parameters):
    """The default, whose floor is its own: clusters need not compare densities."""
    return DCGMMEstimator(n_clusters, image_shape=image_shape, random_state=seed, **parameters)


def flat(n_components, image_shape, seed, **parameters):
    return deep(None, image_shape, seed, layers=[ConvGMM(n_components)], **parameters)


def published(below, n_components, image_shape, seed, **parameters):
    """A published stack, of which `below` are the layers under its top."""
    return DCGMMEstimator(
        layers=[*below, ConvGMM(n_components)],
        objective="layerwise",
        score_method="layer",
        image_shape=image_shape,
        random_state=seed,
        **parameters,
    )


def diagonal(n_components, image_shape, seed):
    return GaussianMixture(
        n_components, covariance_type="diag", reg_covar=REG_COVAR, random_state=seed
    )


class MixtureImputer:
    """The exact conditional mean of a flat mixture with diagonal covariances."""

    def __init__(self, mixture):
        self._mixture = mixture

    def fit(self, X):
        self._mixture.fit(X)
        return self

    def impute(self, X):
        means, variances = self._mixture.means_, self._mixture.covariances_
        seen, filled = ~np.isnan(X), np.nan_to_num(X)
        # Missing pixels drop out of the sums over pixels.
        scores = -0.5 * (
            filled**2 @ (1 / variances).T - 2 * filled @ (means / variances).T
            + seen @ (means**2 / variances + np.log(variances)).T
        ) + np.log(self._mixture.weights_)  # fmt: skip
        return np.where(seen, X, softmax(scores, axis=1) @ means)


class PCAImputer:
    """The exact conditional mean of probabilistic PCA, for images that miss the same pixels."""

    def __init__(self, seed, n_components=PCA_COMPONENTS):
        self._pca = PCA(n_components, random_state=seed)

    def fit(self, X):
        self._pca.fit(X)
        return self

    def impute(self, X):
        pca, seen = self._pca, ~np.isnan(X[0])
        scales = np.sqrt(np.maximum(pca.explained_variance_ - pca.noise_variance_, 0))
        loadings = pca.components_ * scales[:, None]  # (L, D)
        known = loadings[:, seen]
        precision = known @ known.T + pca.noise_variance_ * np.eye(len(known))
        latent = np.linalg.solve(precision, known @ (X - pca.mean_)[:, seen].T)  # (L, N)
        return np.where(seen, X, pca.mean_ + latent.T @ loadings)


class NeighbourImputer:
    """scikit-learn's imputation by the 20 nearest of at most 5000 training images."""

    def __init__(self, seed):
        self._imputer, self._seed = KNNImputer(n_neighbors=20), seed

    def fit(self, X):
        chosen = np.random.RandomState(self._seed).permutation(len(X))[:5000]
        self._imputer.fit(X[chosen])
        return self

    def impute(self, X):
        return self._imputer.transform(X)


def imputer(image_shape, seed, **parameters):
    return DCGMMImputer(image_shape=image_shape, random_state=seed, **parameters)


def classifier(image_shape, seed, **parameters):
    return DCGMMClassifier(
        image_shape=image_shape, reg_covar=REG_COVAR, random_state=seed, **parameters
    )


def full_after_pca(n_components, image_shape, seed, n_directions=PCA_COMPONENTS):
    mixture = GaussianMixture(n_components, reg_covar=PCA_REG_COVAR, random_state=seed)
    return make_pipeline(PCA(n_directions, random_state=seed), mixture)


def umap(n_clusters, image_shape, seed):
    """A map of the images as the page on clustering of UMAP's documentation has it."""
    from umap import UMAP

    return UMAP(n_neighbors=30, min_dist=0.0, n_components=2, random_state=seed, n_jobs=1)


# By name, with a number of top components to be given; as published it is 49.
PUBLISHED = {
    "published a": partial(published, []),
    "published b": partial(published, [ConvGMM(49, 8, 2)]),
    # The lower layer has a mixture at each position, as in the authors' experiments.
    "published b, unshared": partial(published, [ConvGMM(49, 8, 2, shared=False)]),
    "published e": partial(published, [ConvGMM(25, 3, 1), ConvGMM(25, 4, 2)]),
}
OUTLIERS = {
    "DCGMM": detector,
    **{name: partial(make, 49) for name, make in PUBLISHED.items()},
    "GaussianMixture diag 49": partial(diagonal, 49),
    "GaussianMixture diag 400": partial(diagonal, 400),
    "GaussianMixture full 10 after PCA": partial(full_after_pca, 10),
    "GaussianMixture full 49 after PCA": partial(full_after_pca, 49),
    "PCA reconstruction": lambda image_shape, seed: Reconstruction(seed),
    "IsolationForest": lambda image_shape, seed: IsolationForest(random_state=seed),
    "nearest neighbour": lambda image_shape, seed: NearestNeighbourDistance(),
    "PyOD AutoEncoder": lambda image_shape, seed: PyODAutoEncoder(seed),
}
# Measured with one seed.
ONCE = {"UMAP"}
# Measured once, and again only by name: they take hours.
SLOW = {"GaussianMixture diag 400", "GaussianMixture full 49 after PCA", "PyOD AutoEncoder",
        *PUBLISHED}  # fmt: skip
CLUSTERING = {
    "DCGMM": clusters,
    **PUBLISHED,
    "KMeans": lambda k, image_shape, seed: KMeans(k, random_state=seed),
    "GaussianMixture diag": diagonal,
    "PCA, GaussianMixture full": partial(full_after_pca, n_directions=50),
    "UMAP": umap,
}
GENERATIVE = {
    "DCGMM": partial(deep, None),
    "published b": partial(PUBLISHED["published b"], 49),
    "GaussianMixture diag 49": partial(diagonal, 49),
    "GaussianMixture diag 400": partial(diagonal, 400),
    "GaussianMixture full 10 after PCA": partial(full_after_pca, 10),
    "GaussianMixture full 49 after PCA": partial(full_after_pca, 49),
}
# A floor of the variances of some steps between values, so that the density is not that of noise.
BITS = {
    "DCGMM": lambda image_shape, seed, **parameters: DCGMMEstimator(
        image_shape=image_shape, random_state=seed, **parameters
    ),
    "DCGMM pyramid": lambda image_shape, seed, **parameters: DCGMMEstimator(
        image_shape=image_shape, pixels="pyramid", random_state=seed, **parameters
    ),
    "GaussianMixture diag 49": lambda image_shape, seed: GaussianMixture(
        49, covariance_type="diag", reg_covar=1e-4, random_state=seed
    ),
}
CLASSIFICATION = {
    "DCGMM": classifier,
    "LogisticRegression": lambda image_shape, seed: LogisticRegression(max_iter=1000),
    "SelfTrainingClassifier": lambda image_shape, seed: SelfTrainingClassifier(
        LogisticRegression(max_iter=1000)
    ),
    "nearest neighbour": lambda image_shape, seed: KNeighborsClassifier(1, algorithm="brute"),
}
INPAINTING = {
    "DCGMM": imputer,
    "DCGMM atoms": partial(imputer, pixels="atoms"),
    "DCGMM pyramid": partial(imputer, pixels="pyramid"),
    "GaussianMixture diag 49": lambda image_shape, seed: MixtureImputer(
        diagonal(49, image_shape, seed)
    ),
    "GaussianMixture diag 400": lambda image_shape, seed: MixtureImputer(
        diagonal(400, image_shape, seed)
    ),
    "probabilistic PCA": lambda image_shape, seed: PCAImputer(seed),
    "KNNImputer": lambda image_shape, seed: NeighbourImputer(seed),
}
