"""Clusters of the training images, judged by the classes of the test images."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier

from benchmarks import models
from benchmarks.clock import timed

MODELS = models.CLUSTERING
# Numbers of clusters, by set: that of the classes, and for two of them more.
N_CLUSTERS = {"mnist": [10, 50], "fashion_mnist": [10, 50], "usps": [10], "kannada": [10],
              "coil20": [20], "gtsrb": [43]}  # fmt: skip
DATA = list(N_CLUSTERS)
# What UMAP's page on clustering takes for MNIST: 500 of its 70 000 images, 10 at the least.
HDBSCAN_SHARE, HDBSCAN_LEAST = 1 / 140, 10


def tasks(data, quick):
    return [{}]


def measure(data, model, seed, fit_parameters):
    make = MODELS[model]
    route = {"DCGMM": one_fit, "UMAP": mapped}.get(model, fit_for_each)
    for found, labels, fit_s in route(make, data, seed, **fit_parameters):
        yield {**found, **judged(labels, data.y_test), "fit_s": round(fit_s, 2)}


def fit_for_each(make, data, seed):
    """What was asked for, labels of the test images, and seconds of the fit, one model each."""
    for n_clusters in N_CLUSTERS[data.name]:
        est = make(n_clusters, image_shape=data.image_shape, seed=seed)
        _, fit_s = timed(est.fit, data.X_train)
        yield {"n_clusters": n_clusters}, est.predict(data.X_test), fit_s


def one_fit(make, data, seed, **parameters):
    """The same of a stack, whose one fit serves all numbers of clusters."""
    n_clusters, *others = N_CLUSTERS[data.name]
    est = make(n_clusters, image_shape=data.image_shape, seed=seed, **parameters)
    _, fit_s = timed(est.fit, data.X_train)
    for number in (n_clusters, *others):
        est.set_params(n_clusters=number)
        yield {"n_clusters": number}, est.predict(data.X_test), fit_s


def mapped(make, data, seed):
    """The same in a map of the images, by mixtures and by density.

    HDBSCAN finds a number of its own, and leaves images out: test images are of the cluster of the
    nearest training image that is in one.
    """
    umap = make(None, data.image_shape, seed)
    _, map_s = timed(umap.fit, data.X_train)
    points, points_test = umap.embedding_, umap.transform(data.X_test)
    for n_clusters in N_CLUSTERS[data.name]:
        mixture = GaussianMixture(n_clusters, random_state=seed)
        _, fit_s = timed(mixture.fit, points)
        found = {"n_clusters": n_clusters, "then": "GaussianMixture full"}
        yield found, mixture.predict(points_test), map_s + fit_s
    least = max(HDBSCAN_LEAST, round(HDBSCAN_SHARE * len(points)))
    dense = HDBSCAN(min_cluster_size=least, min_samples=10, copy=True)
    _, fit_s = timed(dense.fit, points)
    inside = dense.labels_ >= 0
    nearest = KNeighborsClassifier(1).fit(points[inside], dense.labels_[inside])
    yield {"n_clusters": None, "then": "HDBSCAN"}, nearest.predict(points_test), map_s + fit_s


def judged(labels, y):
    counts = contingency_matrix(labels, y)  # (clusters, classes)
    matched = counts[linear_sum_assignment(-counts)].sum()
    return {
        "nmi": round(float(normalized_mutual_info_score(y, labels)), 4),
        "ari": round(float(adjusted_rand_score(y, labels)), 4),
        "accuracy": round(float(matched / counts.sum()), 4),
        "purity": round(float(counts.max(1).sum() / counts.sum()), 4),
        "used": len(np.unique(labels)),
    }
