import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.metrics import normalized_mutual_info_score

from skdcgmm import ConvGMM, DCGMMEstimator
from skdcgmm._merging import merge

# Four groups of three components, each 1 apart from the next.
MEANS = (20.0 * np.arange(4)[:, None] + [-1.0, 0.0, 1.0]).reshape(-1, 1)


def groups(rng):
    """Scores of images from the groups."""
    x = rng.choice(MEANS.ravel(), 500) + rng.normal(size=500)
    return -0.5 * (x[:, None] - MEANS.ravel()) ** 2


def same_partition(a, b):
    return (np.equal.outer(a, a) == np.equal.outer(b, b)).all()


@pytest.mark.parametrize("sharpness", [1.0, 1e3, 1e6])
def test_components_that_overlap_merge(rng, sharpness):
    scores = sharpness * groups(rng)
    assert same_partition(merge(scores, MEANS, 4), np.repeat(np.arange(4), 3))


@given(st.integers(1, 12), st.permutations(range(12)), st.integers(0, 10))
def test_merging_follows_components_and_images(n_clusters, order, seed):
    rng = np.random.default_rng(seed)
    scores = groups(rng)
    labels = merge(scores, MEANS, n_clusters)
    assert sorted(set(labels)) == list(range(n_clusters))
    assert same_partition(merge(scores[:, order], MEANS[order], n_clusters), labels[order])
    shifted = scores + rng.normal(size=(500, 1))  # what all components share says nothing
    assert same_partition(merge(shifted, MEANS, n_clusters), labels)


def test_first_merger_is_the_pair_of_largest_overlap(rng):
    scores = rng.normal(size=(200, 5))
    posterior = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    mass = posterior.mean(0)
    ratio = {
        (i, j): (posterior[:, i] * posterior[:, j]).mean()
        / (min(mass[i], mass[j]) * max(mass[i], mass[j]) ** 0.5)
        for i, j in itertools.combinations(range(5), 2)
    }
    i, j = max(ratio, key=ratio.get)
    labels = merge(scores, np.zeros((5, 1)), 4)
    assert labels[i] == labels[j]
    assert len(set(labels)) == 4


def twins(means, sizes):
    """Scores of images at each mean, which two components share and no other comes near to."""
    scores = np.where(np.eye(len(means)) > 0, 0.0, -1e9)
    return np.repeat(np.repeat(scores, sizes, axis=0), 2, axis=1), np.repeat(means, 2, axis=0)


def test_first_merger_without_overlap_adds_least_to_squared_distances(rng):
    means, sizes = rng.normal(size=(6, 3)), rng.integers(5, 50, 6)
    added = {
        (i, j): (sizes[i] * sizes[j]) / (sizes[i] + sizes[j]) * np.square(means[i] - means[j]).sum()
        for i, j in itertools.combinations(range(6), 2)
    }
    i, j = min(added, key=added.get)
    labels = merge(*twins(means, sizes), 5)
    np.testing.assert_array_equal(labels[::2], labels[1::2])
    assert labels[2 * i] == labels[2 * j]
    assert len(set(labels)) == 5


def test_no_cluster_swallows_those_that_nothing_overlaps(rng):
    """Twelve kinds of images in four groups of near means."""
    means = (10 * rng.normal(size=(4, 1, 30)) + rng.normal(size=(4, 3, 30))).reshape(12, 30)
    order = rng.permutation(12)
    labels = merge(*twins(means[order], np.full(12, 20)), 4)
    assert same_partition(labels, np.repeat(order // 3, 2))


def test_the_heaviest_component_may_be_left_over(rng):
    """Of more kinds of few components than ten times the clusters, one is heavier than others."""
    n_kinds = 120
    means = np.concatenate([rng.normal(size=(n_kinds - 1, 5)), 1e3 * np.ones((1, 5))])
    sizes = np.r_[np.full(n_kinds - 1, 4), 5]
    labels = merge(*twins(means, sizes), 2)
    assert sorted(set(labels)) == [0, 1]
    assert len(labels) == 2 * n_kinds


@pytest.mark.parametrize("sharpness", [1.0, 1e3])
def test_weights_are_repetitions(rng, sharpness):
    scores = groups(rng)[:60]
    weight = rng.integers(1, 4, 60)
    scores *= sharpness
    for n_clusters in (2, 5):
        repeated = merge(np.repeat(scores, weight, 0), MEANS, n_clusters)
        assert same_partition(merge(scores, MEANS, n_clusters, weight.astype(float)), repeated)


def test_empty_components_join_others(rng):
    scores = groups(rng)
    scores = np.column_stack([scores, scores[:, 0] - 300, scores[:, 11] - 1e4])
    labels = merge(scores, np.vstack([MEANS, [[0.0], [1.0]]]), 4)
    assert same_partition(labels[:12], np.repeat(np.arange(4), 3))
    assert labels[12] == labels[0]
    assert sorted(set(labels)) == [0, 1, 2, 3]


def test_components_with_images_stay_apart_from_each_other(rng):
    """Fewer of them than clusters: empty ones fill up, none of the others merge."""
    scores = np.column_stack([50 * groups(rng)[:, [0, 4, 8]], np.full((500, 5), -1e9)])
    labels = merge(scores, np.zeros((8, 1)), 4)
    assert len(set(labels[:3])) == 3
    assert sorted(set(labels)) == [0, 1, 2, 3]


def test_large_clusters_come_first(rng):
    scores = groups(rng)
    labels = merge(scores, MEANS, 3)
    assert (np.diff(np.bincount(labels[scores.argmax(1)])) <= 0).all()


@pytest.fixture(scope="module")
def merged(digits):
    return DCGMMEstimator(10, image_shape=(8, 8), max_epochs=15, random_state=0).fit(digits[0])


def test_clusters_share_the_density_of_all_components(merged, digits):
    X = digits[0]
    full = clone(merged).set_params(n_components=None).fit(X)
    assert len(full.clusters_) > 10
    np.testing.assert_array_equal(merged.score_samples(X), full.score_samples(X))
    by_component = full.predict_proba(X)
    by_cluster = np.stack([by_component[:, merged.clusters_ == c].sum(1) for c in range(10)], 1)
    np.testing.assert_allclose(merged.predict_proba(X), by_cluster, atol=1e-6)
    assert same_partition(full.clusters_, np.arange(len(full.clusters_)))


def test_clusters_are_the_labels(merged, digits):
    X = digits[0]
    np.testing.assert_array_equal(merged.labels_, merged.predict(X))
    np.testing.assert_array_equal(merged.labels_, merged.predict_proba(X).argmax(1))
    assert len(set(merged.labels_)) > 5
    assert merged.transform(X).shape == (len(X), 10)
    assert len(merged.get_feature_names_out()) == 10


def test_draws_come_from_the_clusters(merged):
    images, labels = merged.sample(2000, random_state=0)
    weights = merged.weights_["convgmm2"]
    expected = np.array([weights[merged.clusters_ == c].sum() for c in range(10)])
    found = np.bincount(labels, minlength=10) / 2000
    assert (np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / 2000) + 1e-3).all()
    assert (merged.predict(images) == labels).mean() > 0.8
    images, labels = merged.sample(200, cluster=3, random_state=0)
    assert set(labels) == {3}
    assert (merged.predict(images) == 3).mean() > 0.8
    with pytest.raises(ValueError, match="cluster must be an integer >= 0 and < 10"):
        merged.sample(cluster=10)


def test_merged_clusters_find_more_than_as_many_components(merged, digits):
    X, y = digits
    n_parts = merged.weights_["convgmm1"].shape[-1]
    layers = [ConvGMM(n_parts, 4, shared=False), ConvGMM(10)]
    few = clone(merged).set_params(layers=layers).fit(X)
    assert len(few.clusters_) == 10
    scores = [normalized_mutual_info_score(y, est.labels_) for est in (merged, few)]
    assert scores[0] > scores[1]


def test_warm_start_takes_another_number_of_clusters(merged, digits):
    X = digits[0]
    est = clone(merged).set_params(max_epochs=1, warm_start=True).fit(X)
    est.set_params(n_components=7).fit(X)
    assert set(est.clusters_) == set(range(7))
    assert est.sample(3)[0].shape == (3, 64)


def test_partial_fit_merges(digits):
    est = DCGMMEstimator(5, image_shape=(8, 8), random_state=0)
    for part in np.array_split(digits[0], 3):
        est.partial_fit(part)
    assert set(est.clusters_) == set(range(5))


def test_a_component_of_few_images_is_no_cluster(rng):
    """Three groups of components, and one component far from all of them that has two images."""
    centres = np.array([0.0, 1.0, 20.0, 21.0, 40.0, 41.0, 500.0])
    sizes = [100, 100, 100, 100, 100, 100, 2]
    x = np.concatenate([rng.normal(c, 1, n) for c, n in zip(centres, sizes, strict=True)])
    scores = -((x[:, None] - centres) ** 2) / 2 + np.log(np.array(sizes) / sum(sizes))
    clusters = merge(scores, centres[:, None], 3)
    assert len({clusters[0], clusters[2], clusters[4]}) == 3
    np.testing.assert_array_equal(clusters[:6:2], clusters[1:6:2])
    # As many clusters as there is room for: then it is one.
    assert len(set(merge(scores, centres[:, None], 7))) == 7
