"""Clusters of the training images, judged by the classes of the test images."""

import time

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.metrics import (
    adjusted_rand_score,
    davies_bouldin_score,
    normalized_mutual_info_score,
)
from sklearn.metrics.cluster import contingency_matrix

from benchmarks import models

MODELS = models.CLUSTERING
# Of the test images, for the Dunn index: it takes all their distances.
N_DUNN = 1000


def tasks(quick):
    return [{"n_clusters": n_clusters} for n_clusters in (10, 50)]


def measure(data, model, seed, fit_parameters, n_clusters):
    est = MODELS[model](n_clusters, image_shape=data.image_shape, seed=seed, **fit_parameters)
    start = time.perf_counter()
    est.fit(data.X_train)
    fit_s = time.perf_counter() - start
    start = time.perf_counter()
    labels = est.predict(data.X_test)
    predict_s = time.perf_counter() - start
    counts = contingency_matrix(labels, data.y_test)  # (clusters, classes)
    matched = counts[linear_sum_assignment(-counts)].sum()
    yield {
        "nmi": round(float(normalized_mutual_info_score(data.y_test, labels)), 4),
        "ari": round(float(adjusted_rand_score(data.y_test, labels)), 4),
        "accuracy": round(float(matched / counts.sum()), 4),
        "purity": round(float(counts.max(1).sum() / counts.sum()), 4),
        **indices_of_pixels(data.X_test, labels),
        "used": len(np.unique(labels)),
        "fit_s": round(fit_s, 2),
        "score_s": round(predict_s, 2),
    }


def indices_of_pixels(X, labels):
    """Davies-Bouldin and Dunn index; a single cluster has none."""
    if len(np.unique(labels[:N_DUNN])) == 1:
        return {}
    return {
        "davies_bouldin": round(float(davies_bouldin_score(X, labels)), 3),
        "dunn": round(dunn_index(X[:N_DUNN], labels[:N_DUNN]), 4),
    }


def dunn_index(X, labels):
    """Least distance between images of two clusters over the largest within one."""
    distances = cdist(X, X)
    same = labels[:, None] == labels
    return float(distances[~same].min() / distances[same].max())
