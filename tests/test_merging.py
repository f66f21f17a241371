import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, is_valid_linkage
from sklearn.metrics import adjusted_rand_score

from skdcgmm.analysis.merging import cut, merge

# Four groups of three components, each 1 apart from the next.
MEANS = (20.0 * np.arange(4)[:, None] + [-1.0, 0.0, 1.0]).reshape(-1, 1)


def groups(rng, n_images=500):
    """Scores of images from the groups."""
    x = rng.choice(MEANS.ravel(), n_images) + rng.normal(size=n_images)
    return -0.5 * (x[:, None] - MEANS.ravel()) ** 2


def twins(means, sizes, n_twins=2):
    """Scores of images at each mean, which two components share and no other comes near to."""
    scores = np.where(np.eye(len(means)) > 0, 0.0, -1e9)
    scores = np.repeat(np.repeat(scores, sizes, axis=0), n_twins, axis=1)
    return scores, np.repeat(means, n_twins, axis=0)


def kinds(rng, shares, n_components, noise=0.1, n_images=2000):
    """Kinds of images, of some components each, which no component of another kind comes near to.

    Returns the scores, means, and the kind of each image.
    """
    n_kinds = len(shares)
    kind = rng.choice(n_kinds, n_images, p=np.array(shares) / np.sum(shares))
    of_component = np.repeat(np.arange(n_kinds), n_components)
    scores = np.where(of_component == kind[:, None], 0.0, -200.0)
    scores += noise * rng.normal(size=scores.shape)
    return scores, 10 * np.eye(n_kinds)[of_component], kind


def posterior(scores):
    values = np.exp(scores - scores.max(1, keepdims=True))
    return values / values.sum(1, keepdims=True)


def clusters(scores, means, n_clusters, weight=None):
    mass = np.average(posterior(scores), axis=0, weights=weight)
    return cut(merge(scores, means, weight)[0], n_clusters, mass)


def labels_of_images(scores, of_component):
    one_hot = np.eye(of_component.max() + 1)[of_component]
    return (posterior(scores) @ one_hot).argmax(1)


def steepest(distances, most=None):
    """The number of clusters, up to the most in question, that the rule in `merge` tells."""
    rises = np.diff(distances, prepend=0.0)[::-1]  # at n = 2, 3, ...
    return 2 + int(rises[: most and most - 1].argmax())


def same_partition(a, b):
    return (np.equal.outer(a, a) == np.equal.outer(b, b)).all()


def apart(one, other, p, means, scatter):
    """The distance of two clusters, sets of components, as `merge` describes it."""
    p_one, p_other = p[:, list(one)].sum(1), p[:, list(other)].sum(1)
    cosine = p_one @ p_other / np.linalg.norm(p_one) / np.linalg.norm(p_other)
    if cosine >= 1e-4:
        smaller = min(p_one.mean(), p_other.mean())
        return -np.log(cosine) + 0.5 * np.log(p.shape[1] * smaller)
    within = [squares(c, p.mean(0), means) for c in (one, other, one | other)]
    added = (within[2] - within[0] - within[1]) / scatter
    return (0.5 * np.log(p.shape[1]) - np.log(1e-4)) * (1 + added)


def squares(cluster, mass, means):
    """Squared distances from the mean of a cluster."""
    members = sorted(cluster)
    centre = np.average(means[members], axis=0, weights=mass[members])
    return mass[members] @ np.square(means[members] - centre).sum(1)


def plain_tree(p, means):
    """Mergers and how far apart those are that join, all computed anew for each."""
    n_components = p.shape[1]
    found = {i: {i} for i in range(n_components)}
    scatter = squares(range(n_components), p.mean(0), means)
    children, distances = [], []
    for step in range(n_components - 1):
        mass = {node: p[:, list(c)].sum(1).mean() for node, c in found.items()}
        smallest = min(mass, key=mass.get)
        pairs = list(itertools.combinations(found, 2))
        left_over = mass[smallest] * len(found) < 0.05
        if left_over:
            pairs = [pair for pair in pairs if smallest in pair]
        values = [apart(found[i], found[j], p, means, scatter) for i, j in pairs]
        i, j = pairs[int(np.argmin(values))]
        children.append((i, j))
        distances.append(max(0.0 if left_over else min(values), *distances[-1:], 0.0))
        found[n_components + step] = found.pop(i) | found.pop(j)
    return np.array(children), np.array(distances)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("n_kinds", [1, 3])
def test_mergers_are_those_of_the_definition(seed, n_kinds):
    """Components of one kind overlap, those of others do not; some have hardly any images."""
    rng = np.random.default_rng(seed)
    of_component = rng.permutation(np.arange(7) % n_kinds)
    kind = rng.integers(n_kinds, size=300)
    scores = np.where(of_component == kind[:, None], 0.0, -1e3) + rng.normal(size=(300, 7))
    scores[:, 3] -= 5 * (seed % 2)
    means = rng.normal(size=(7, 4))
    children, distances = merge(scores, means)
    expected_children, expected_distances = plain_tree(posterior(scores), means)
    np.testing.assert_array_equal(children, expected_children)
    np.testing.assert_allclose(distances, np.log1p(expected_distances), atol=1e-5)


@given(st.integers(1, 30), st.integers(0, 100), st.sampled_from([1.0, 30.0, 1e6]))
def test_mergers_are_a_tree_whose_cuts_are_nested(n_components, seed, sharpness):
    rng = np.random.default_rng(seed)
    scores = sharpness * rng.normal(size=(50, n_components))
    children, distances = merge(scores, rng.normal(size=(n_components, 3)))
    assert children.shape == (n_components - 1, 2)
    assert distances.shape == (n_components - 1,)
    assert np.isfinite(distances).all()
    assert (np.diff(distances, prepend=0.0) >= 0).all()
    sizes = [1] * n_components
    for pair in children:
        sizes.append(sizes[pair[0]] + sizes[pair[1]])
    # Ranks for heights: then scipy has no ties.
    ranks = np.arange(1.0, n_components)
    linkage = np.column_stack([children, ranks, sizes[n_components:]])
    mass = rng.random(n_components)
    finer = np.arange(n_components)
    for n_clusters in range(n_components, 0, -1):
        labels = cut(children, n_clusters, mass)
        assert sorted(set(labels)) == list(range(n_clusters))
        assert (np.diff(np.bincount(labels, mass)) <= 0).all()
        assert len(set(zip(finer, labels, strict=True))) <= n_clusters + 1  # one cluster splits
        finer = labels
        if n_components > 1:
            assert is_valid_linkage(linkage)
            height = n_components - n_clusters + 0.5  # above the mergers that are not undone
            assert same_partition(labels, fcluster(linkage, height, "distance"))


def test_one_component_is_one_cluster():
    children, distances = merge(np.zeros((3, 1)), np.zeros((1, 2)))
    assert children.shape == (0, 2)
    assert distances.shape == (0,)
    assert cut(children, 1, np.ones(1)).tolist() == [0]


@pytest.mark.parametrize("sharpness", [1.0, 1e3, 1e6])
def test_components_that_overlap_merge(rng, sharpness):
    scores = sharpness * groups(rng)
    assert same_partition(clusters(scores, MEANS, 4), np.repeat(np.arange(4), 3))


@given(st.permutations(range(12)), st.integers(0, 10), st.sampled_from([1.0, 1e3]))
def test_merging_follows_components_and_images(order, seed, sharpness):
    rng = np.random.default_rng(seed)
    scores = sharpness * groups(rng)
    children, distances = merge(scores, MEANS)
    moved = merge(scores[:, order], MEANS[order])
    shuffled = merge(rng.permutation(scores), MEANS)
    # What all components share says nothing, nor do units and origin of the means.
    shifted = merge(scores + rng.normal(size=(500, 1)), 3 * MEANS + 7)
    np.testing.assert_allclose(moved[1], distances, atol=1e-4)
    np.testing.assert_allclose(shuffled[1], distances, atol=1e-4)
    np.testing.assert_allclose(shifted[1], distances, atol=1e-4)
    for n_clusters in range(1, 13):
        labels = cut(children, n_clusters, np.ones(12))
        assert same_partition(cut(moved[0], n_clusters, np.ones(12)), labels[list(order)])
        assert same_partition(cut(shuffled[0], n_clusters, np.ones(12)), labels)
        assert same_partition(cut(shifted[0], n_clusters, np.ones(12)), labels)


def test_distances_of_sharp_posteriors_are_in_nats(rng):
    """Scores ten times as far apart give the same tree, ten times as high."""
    scores = 300 * groups(rng)
    children, distances = merge(scores, MEANS)
    tenfold = merge(10 * scores, MEANS)
    np.testing.assert_array_equal(tenfold[0], children)
    np.testing.assert_allclose(np.expm1(tenfold[1]), 10 * np.expm1(distances), rtol=5e-3)


@pytest.mark.parametrize("sharpness", [1.0, 1e3])
def test_weights_are_repetitions(rng, sharpness):
    scores = sharpness * groups(rng, 60)
    weight = rng.integers(0, 4, 60)
    weighted = merge(scores, MEANS, weight.astype(float))
    repeated = merge(np.repeat(scores, weight, 0), MEANS)
    np.testing.assert_array_equal(weighted[0], repeated[0])
    np.testing.assert_allclose(weighted[1], repeated[1], atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_are_left_alone(rng, dtype):
    arrays = [groups(rng).astype(dtype), MEANS.astype(dtype), np.ones(500)]
    copies = [a.copy() for a in arrays]
    merge(*arrays)
    for array, before in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, before)


def test_copies_of_a_component_stay_together(rng):
    scores = np.column_stack([groups(rng)] * 2) - np.log(2)
    labels = clusters(scores, np.vstack([MEANS, MEANS]), 12)
    np.testing.assert_array_equal(labels[:12], labels[12:])


def test_the_first_merger_is_of_those_that_are_least_apart(rng):
    scores = rng.normal(size=(200, 5))
    p = posterior(scores)
    values = {
        (i, j): apart({i}, {j}, p, np.zeros((5, 1)), 1.0)
        for i, j in itertools.combinations(range(5), 2)
    }
    children, _ = merge(scores, np.zeros((5, 1)))
    assert tuple(children[0]) == min(values, key=values.get)


@pytest.mark.parametrize("n_twins", [1, 2])
def test_the_first_merger_without_overlap_adds_least_to_squared_distances(rng, n_twins):
    means, sizes = rng.normal(size=(6, 3)), rng.integers(5, 50, 6)
    added = {
        (i, j): (sizes[i] * sizes[j]) / (sizes[i] + sizes[j]) * np.square(means[i] - means[j]).sum()
        for i, j in itertools.combinations(range(6), 2)
    }
    i, j = min(added, key=added.get)
    labels = clusters(*twins(means, sizes, n_twins), 5)
    np.testing.assert_array_equal(labels[::n_twins], labels[n_twins - 1 :: n_twins])
    assert labels[n_twins * i] == labels[n_twins * j]
    assert len(set(labels)) == 5


@pytest.mark.parametrize("n_twins", [1, 2])
def test_no_cluster_swallows_those_that_nothing_overlaps(rng, n_twins):
    """Twelve kinds of images in four groups of near means."""
    means = (10 * rng.normal(size=(4, 1, 30)) + rng.normal(size=(4, 3, 30))).reshape(12, 30)
    order = rng.permutation(12)
    labels = clusters(*twins(means[order], np.full(12, 20), n_twins), 4)
    assert same_partition(labels, np.repeat(order // 3, n_twins))


@pytest.mark.parametrize("noise", [0.1, 1.0, 5.0, 20.0])
@pytest.mark.parametrize(
    ("shares", "n_components"),
    [
        ([1, 1, 1, 1, 1], [26] * 5),
        ([2, 10, 20, 28, 40], [26] * 5),
        ([2, 10, 20, 28, 40], [1, 1, 10, 40, 60]),
        ([40, 28, 20, 10, 2], [1, 1, 10, 40, 60]),
        ([2] + 12 * [8], [10] * 13),
    ],
)
def test_no_cluster_holds_two_kinds_of_images(rng, shares, n_components, noise):
    scores, means, kind = kinds(rng, shares, n_components, noise)
    n_kinds = len(shares)
    children, distances = merge(scores, means)
    assert steepest(distances, most=2 * n_kinds) == n_kinds
    for n_clusters in (n_kinds, n_kinds + 1, n_kinds + 3, 2 * n_kinds, 30):
        of_component = cut(children, n_clusters, posterior(scores).mean(0))
        labels = labels_of_images(scores, of_component)
        assert len(set(zip(kind, labels, strict=True))) == len(set(labels)) >= n_kinds
        if n_clusters <= 2 * n_kinds:
            assert adjusted_rand_score(kind, labels) > 0.5


@pytest.mark.parametrize("n_components", [1, 3])
@pytest.mark.parametrize("n_clusters", [5, 10, 20, 30])
def test_blobs_stay_whole_in_clusters_of_like_size(n_components, n_clusters):
    if n_clusters > 20 * n_components:
        return
    for seed in range(5):
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(20, 50)) * 8
        blob = np.arange(1000) % 20
        means = np.repeat(centres, n_components, axis=0)
        means = means + 0.3 * rng.normal(size=means.shape) * (n_components > 1)
        x = centres[blob] + rng.normal(size=(1000, 50))
        scores = -0.5 * np.square(x[:, None] - means).sum(2)
        children, distances = merge(scores, means)
        assert steepest(distances) == 20
        labels = labels_of_images(scores, cut(children, n_clusters, np.ones(len(means))))
        pairs = len(set(zip(blob, labels, strict=True)))
        assert pairs == max(20, len(set(labels)))
        assert np.bincount(labels).max() <= (2.5 * 1000 / n_clusters if n_clusters < 20 else 50)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_blobs_as_far_from_each_as_from_all_are_shared_out(rng, noise):
    scores = np.where(np.arange(20) == np.arange(1000)[:, None] % 20, 0.0, -300.0)
    scores += noise * rng.normal(size=scores.shape)
    for n_clusters in (2, 5, 10):
        sizes = np.bincount(clusters(scores, 10 * np.eye(20), n_clusters))
        assert sizes.max() <= 2 * 20 / n_clusters


def test_the_number_of_blobs_shows_though_one_has_more_components(rng):
    of_component = np.r_[np.arange(20), 3]
    scores = np.where(of_component == np.arange(1000)[:, None] % 20, 0.0, -300.0)
    scores += 0.1 * rng.normal(size=scores.shape)
    assert steepest(merge(scores, 10 * np.eye(20)[of_component])[1]) == 20


def test_empty_components_join_others(rng):
    scores = groups(rng)
    scores = np.column_stack([scores, scores[:, 0] - 300, scores[:, 11] - 1e4])
    labels = clusters(scores, np.vstack([MEANS, [[0.0], [60.0]]]), 4)
    assert same_partition(labels[:12], np.repeat(np.arange(4), 3))
    assert labels[12] == labels[0]
    assert labels[13] == labels[11]


def test_components_with_images_stay_apart_from_each_other(rng):
    """Fewer of them than clusters: empty ones fill up, none of the others merge."""
    scores = np.column_stack([50 * groups(rng)[:, [0, 4, 8]], np.full((500, 5), -1e9)])
    labels = clusters(scores, np.zeros((8, 1)), 4)
    assert len(set(labels[:3])) == 3
    assert sorted(set(labels)) == [0, 1, 2, 3]


@pytest.mark.parametrize("n_far", [1, 4])
def test_components_of_few_images_are_no_clusters(rng, n_far):
    """Three groups of components, and some components far from all that have two images each."""
    centres = np.r_[0.0, 1.0, 20.0, 21.0, 40.0, 41.0, 500.0 * np.arange(1, n_far + 1)]
    sizes = np.r_[np.full(6, 100), np.full(n_far, 2)]
    x = np.repeat(centres, sizes) + rng.normal(size=sizes.sum())
    scores = -((x[:, None] - centres) ** 2) / 2 + np.log(sizes / sizes.sum())
    children, distances = merge(scores, centres[:, None])
    labels = cut(children, 3, sizes)
    assert len({labels[0], labels[2], labels[4]}) == 3
    np.testing.assert_array_equal(labels[:6:2], labels[1:6:2])
    # They say nothing of how far apart others are.
    assert steepest(distances) == 3
    # As many clusters as there is room for: then they are some.
    assert same_partition(cut(children, 6 + n_far, sizes), np.arange(6 + n_far))


def test_the_heaviest_component_may_be_left_over(rng):
    """Of very many kinds of few components, one is far from all others and a bit heavier."""
    n_kinds = 120
    means = np.concatenate([rng.normal(size=(n_kinds - 1, 5)), 1e3 * np.ones((1, 5))])
    labels = clusters(*twins(means, np.r_[np.full(n_kinds - 1, 4), 5]), 2)
    assert sorted(set(labels)) == [0, 1]
    np.testing.assert_array_equal(labels[::2], labels[1::2])
