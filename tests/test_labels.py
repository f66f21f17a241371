"""Labels that spread to neighbours."""

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import make_moons

from skdcgmm.analysis.spreading import (
    _N_NEIGHBOURS,
    _N_STEPS,
    _SPREAD,
    _graph,
    _moved,
    _neighbours,
    spread,
)


def images_of(rows, side):
    return torch.from_numpy(np.asarray(rows, dtype=np.float64)).view(-1, 1, side, side)


def test_labels_follow_the_shape_of_the_data():
    X, y = make_moons(600, noise=0.05, random_state=0)
    few = np.full(600, -1)
    for label in range(2):
        few[np.flatnonzero(y == label)[0]] = label
    found = spread(torch.from_numpy(X)[:, :, None, None], few)
    assert (found == y).mean() > 0.98
    # The nearest labelled point would tell less.
    known = np.flatnonzero(few >= 0)
    nearest = few[known][((X[:, None] - X[known]) ** 2).sum(2).argmin(1)]
    assert (nearest == y).mean() < 0.95


def test_spreading_is_a_walk_with_restarts_on_the_graph_of_neighbours(rng):
    points = rng.normal(size=(40, 3))
    y = np.full(40, -1)
    y[:4] = [0, 1, 2, 0]
    scaled = (points - points.mean(0)) / points.std(0)
    squared = ((scaled[:, None] - scaled) ** 2).sum(2)
    np.fill_diagonal(squared, np.inf)
    near = np.argsort(squared, 1)[:, :_N_NEIGHBOURS]
    local = np.sort(squared, 1)[:, _N_NEIGHBOURS - 1]
    weights = np.zeros((40, 40))
    for i, j in itertools.product(range(40), range(40)):
        if j in near[i] or i in near[j]:
            weights[i, j] = np.exp(-4 * squared[i, j] / np.sqrt(local[i] * local[j]))
    degree = weights.sum(1)
    expected = weights / np.sqrt(degree[:, None] * degree)
    x = torch.from_numpy(points)[:, :, None, None]
    np.testing.assert_allclose(_graph(*_neighbours(x, _N_NEIGHBOURS)).toarray(), expected)
    known = np.zeros((40, 3))
    known[np.arange(4), y[:4]] = 1
    walk = sum(np.linalg.matrix_power(_SPREAD * expected, n) @ known for n in range(_N_STEPS + 1))
    label = (walk / walk.sum(0)).argmax(1)
    np.testing.assert_array_equal(spread(x, y), np.where(y >= 0, y, label))


def test_known_labels_stay_and_islands_get_none(rng):
    # Two groups far apart, each larger than a neighbourhood; only one has a label.
    x = torch.from_numpy(np.r_[rng.normal(size=(20, 2)), 100 + rng.normal(size=(20, 2))])
    y = np.full(40, -1)
    y[3] = 0
    found = spread(x[:, :, None, None], y)
    assert (found[:20] == 0).all()
    assert (found[20:] == -1).all()
    assert spread(x[:5, :, None, None], np.arange(5)).tolist() == [0, 1, 2, 3, 4]


@given(st.integers(0, 100), st.sampled_from([1e-3, 1.0, 255.0]), st.floats(-3, 3))
def test_distances_are_those_of_the_best_move_in_any_units(seed, scale, offset):
    rng = np.random.default_rng(seed)
    x = images_of(rng.normal(size=(12, 9)), 3)
    distances, indices = _neighbours(scale * (x + offset), 11)
    moves = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
    for i, (values, others) in enumerate(zip(distances, indices, strict=True)):
        assert i not in others
        for distance, j in zip(values, others, strict=True):
            padded = np.pad(x[j, 0].numpy(), 1, mode="edge")
            moved = [padded[1 + d : 4 + d, 1 + r : 4 + r].ravel() for d, r in moves]
            best = max(np.corrcoef(x[i].flatten(), m)[0, 1] for m in moved)
            np.testing.assert_allclose(distance, 2 * (1 - best), atol=1e-5)


def test_a_moved_image_is_near_itself(rng):
    x = images_of(rng.normal(size=(30, 64)), 8)
    together = torch.cat([x, *[view[:1] for view in _moved(x)]])
    distances, indices = _neighbours(together, 4)
    assert (indices[30:, 0] == 0).all()
    np.testing.assert_allclose(distances[30:, 0], 0, atol=1e-5)
    assert set(indices[0]) == {30, 31, 32, 33}


def test_missing_and_constant_pixels(rng):
    pattern = rng.normal(size=(2, 16))
    y = np.arange(40) % 2
    x = images_of(pattern[y] + 0.3 * rng.normal(size=(40, 16)), 4)
    x[:, :, 0, 0] = 0
    x[rng.random(40) < 0.3, :, 1, 1] = torch.nan
    x[:, :, 2, 2] = torch.nan
    x[4] = 0
    distances, _ = _neighbours(x, 5)
    assert np.isfinite(distances).all()
    few = np.where(np.arange(40) < 2, y, -1)
    found = spread(x, few)
    others = np.arange(40) != 4
    assert (found == y)[others].mean() > 0.9


def test_frequent_labels_do_not_drown_rare_ones(rng):
    """Two groups of like size, one with ten times the labels: the border stays between them."""
    points = np.r_[rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + np.array([6, 0])]
    y = np.repeat([0, 1], 200)
    few = np.full(400, -1)
    few[:50], few[200:205] = 0, 1
    found = spread(torch.from_numpy(points)[:, :, None, None], few)
    assert (found == y).mean() > 0.95
