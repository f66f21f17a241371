"""Few images, many classes, many features: components enough, and a start that tells them apart."""

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.semi_supervised import SelfTrainingClassifier

from skdcgmm import DCGMMClassifier, DCGMMEstimator
from skdcgmm.model.specs import auto


def some_of_each(y, n_each, seed):
    """Numbers of a few images of each class, and of the others."""
    rng = np.random.default_rng(seed)
    few = np.concatenate(
        [rng.permutation(np.flatnonzero(y == label))[:n_each] for label in np.unique(y)]
    )
    return few, np.setdiff1d(np.arange(len(y)), few)


def test_more_classes_than_usual_components():
    make = {"n_features": 5, "cluster_std": 0.5, "center_box": (-30, 30), "random_state": 0}
    X, y = make_blobs(3000, centers=20, **make)
    clf = DCGMMClassifier(random_state=0).fit(X, y)
    assert len(set(clf.predict(X))) == 20
    assert clf.score(X, y) > 0.95


@pytest.mark.parametrize("seed", [0, 1])
def test_six_digits_of_each_class(digits, seed):
    X, y = digits
    few, rest = some_of_each(y, 6, seed)
    clf = DCGMMClassifier(image_shape=(8, 8), random_state=seed).fit(X[few], y[few])
    nearest = KNeighborsClassifier(1).fit(X[few], y[few]).score(X[rest], y[rest])
    assert clf.score(X[rest], y[rest]) > nearest - 0.08


def test_accuracy_rises_with_the_number_of_images(digits):
    X, y = digits
    scores = []
    for n_each in (3, 12, 50):
        few, rest = some_of_each(y, n_each, seed=0)
        clf = DCGMMClassifier(image_shape=(8, 8), random_state=0).fit(X[few], y[few])
        scores.append(clf.score(X[rest], y[rest]))
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > 0.93


def test_ten_classes_of_six_rows():
    rng = np.random.default_rng(0)
    x = 10.0 * np.arange(10).repeat(6)[:, None] + rng.normal(size=(60, 1))
    y = np.arange(10).repeat(6)
    assert DCGMMClassifier(random_state=0).fit(x, y).score(x, y) == 1


def test_forty_classes_of_eight_images():
    rng = np.random.default_rng(0)
    kinds = rng.random((40, 12, 12))
    y = np.arange(40).repeat(8)
    X = kinds[y] + 0.2 * rng.normal(size=(320, 12, 12))
    new = kinds[y] + 0.2 * rng.normal(size=(320, 12, 12))
    clf = DCGMMClassifier(random_state=0).fit(X, y)
    assert len(clf.class_probabilities_) >= 40
    assert clf.score(new, y) > 0.9


def test_self_training_from_few(digits):
    X, y = digits
    few, _ = some_of_each(y, 6, seed=0)
    known = np.where(np.isin(np.arange(len(y)), few), y, -1)[:1200]
    clf = DCGMMClassifier(image_shape=(8, 8), max_epochs=40, random_state=0)
    assert SelfTrainingClassifier(clf).fit(X[:1200], known).score(X[1200:], y[1200:]) > 0.7


@pytest.mark.parametrize("n_features", [256, 512])
def test_clusters_of_many_features(n_features):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, n_features)) * 5 / np.sqrt(n_features)
    kinds = rng.integers(0, 10, 2000)
    X = (centres[kinds] + rng.normal(size=(2000, n_features))).astype(np.float32)
    labels = DCGMMEstimator(10, random_state=0).fit_predict(X)
    assert adjusted_rand_score(kinds, labels) > 0.75


@pytest.mark.parametrize(
    ("n_images", "n_classes", "least"), [(60, 10, 40), (320, 40, 160), (9, 3, 9)]
)
def test_the_top_has_components_for_each_class(n_images, n_classes, least):
    *_, (_, top) = auto((1, 12, 12), n_images, n_classes=n_classes)
    assert least <= top.n_components <= n_images
