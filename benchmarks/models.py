"""The models that the benchmarks compare, by name."""

from functools import partial

from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline

from skdcgmm import DCGMMEstimator, DCGMMOutlierDetector

# Of images in 0-1, for all mixtures on pixels, so that their densities compare.
REG_COVAR = 0.05
# In the space of principal components, variances are those of the data: the floor only keeps
# covariances invertible.
PCA_COMPONENTS, PCA_REG_COVAR = 100, 1e-3


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
    return DCGMMOutlierDetector(
        image_shape=image_shape, reg_covar=REG_COVAR, random_state=seed, **parameters
    )


def deep(n_components, image_shape, seed, **parameters):
    return DCGMMEstimator(
        n_components, image_shape=image_shape, reg_covar=REG_COVAR, random_state=seed, **parameters
    )


def published(name, n_components, image_shape, seed, **parameters):
    return DCGMMEstimator(
        n_components,
        layers=f"dcgmm-{name}",
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


def full_after_pca(n_components, image_shape, seed):
    mixture = GaussianMixture(n_components, reg_covar=PCA_REG_COVAR, random_state=seed)
    return make_pipeline(PCA(PCA_COMPONENTS, random_state=seed), mixture)


OUTLIERS = {
    "DCGMM": detector,
    "published a": partial(published, "a", None),
    "published b": partial(published, "b", None),
    "published e": partial(published, "e", None),
    "GaussianMixture diag 49": partial(diagonal, 49),
    "GaussianMixture diag 400": partial(diagonal, 400),
    "GaussianMixture full 10 after PCA": partial(full_after_pca, 10),
    "GaussianMixture full 49 after PCA": partial(full_after_pca, 49),
    "PCA reconstruction": lambda image_shape, seed: Reconstruction(seed),
    "IsolationForest": lambda image_shape, seed: IsolationForest(random_state=seed),
    "nearest neighbour": lambda image_shape, seed: NearestNeighbourDistance(),
    "PyOD AutoEncoder": lambda image_shape, seed: PyODAutoEncoder(seed),
}
CLUSTERING = {
    "DCGMM": deep,
    "published a": partial(published, "a"),
    "published b": partial(published, "b"),
    "published e": partial(published, "e"),
    "GaussianMixture diag": diagonal,
    "KMeans": lambda k, image_shape, seed: KMeans(k, random_state=seed),
    "MiniBatchKMeans": lambda k, image_shape, seed: MiniBatchKMeans(k, random_state=seed),
}
GENERATIVE = {
    "DCGMM": partial(deep, None),
    "published b": partial(published, "b", None),
    "GaussianMixture diag 49": partial(diagonal, 49),
    "GaussianMixture diag 400": partial(diagonal, 400),
    "GaussianMixture full 10 after PCA": partial(full_after_pca, 10),
    "GaussianMixture full 49 after PCA": partial(full_after_pca, 49),
}
DENSITY = {
    "DCGMM": partial(deep, None),
    "flat DCGMM 49": partial(deep, 49, layers="dcgmm-a"),
    "GaussianMixture diag 49": partial(diagonal, 49),
    "GaussianMixture diag 400": partial(diagonal, 400),
}
