"""Labels that spread to neighbours."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import make_moons

from skdcgmm._classes import _N_NEIGHBOURS, _SPREAD, _graph, _neighbours, shifted, spread_labels


def images_of(rows, side):
    return torch.from_numpy(np.asarray(rows, dtype=np.float64)).view(-1, 1, side, side)


def test_labels_follow_the_shape_of_the_data():
    X, y = make_moons(600, noise=0.05, random_state=0)
    few = np.full(600, -1)
    for label in range(2):
        few[np.flatnonzero(y == label)[0]] = label
    spread = spread_labels(torch.from_numpy(X)[:, :, None, None], few)
    assert (spread == y).mean() > 0.98
    # The nearest labelled point would tell less.
    known = np.flatnonzero(few >= 0)
    nearest = few[known][((X[:, None] - X[known]) ** 2).sum(2).argmin(1)]
    assert (nearest == y).mean() < 0.95


def test_spreading_solves_its_linear_system(rng):
    """Enough steps reach the fixed point (I - a S)^-1 Y of Zhou et al."""
    x = torch.from_numpy(rng.normal(size=(40, 3, 1, 1)))
    y = np.full(40, -1)
    y[:4] = [0, 1, 2, 0]
    graph = _graph(*_neighbours(x, _N_NEIGHBOURS)).toarray()
    np.testing.assert_allclose(graph, graph.T)
    known = np.eye(3)[y[:4]]
    mass = np.linalg.solve(np.eye(40) - _SPREAD * graph, np.r_[known, np.zeros((36, 3))])
    expected = (mass / mass.sum(0)).argmax(1)
    found = spread_labels(x, y)
    np.testing.assert_array_equal(found[:4], y[:4])
    np.testing.assert_array_equal(found[4:], expected[4:])


def test_known_labels_stay_and_islands_get_none(rng):
    # Two groups far apart, each larger than a neighbourhood; only one has a label.
    x = torch.from_numpy(np.r_[rng.normal(size=(20, 2)), 100 + rng.normal(size=(20, 2))])
    y = np.full(40, -1)
    y[3] = 0
    spread = spread_labels(x[:, :, None, None], y)
    assert (spread[:20] == 0).all()
    assert (spread[20:] == -1).all()
    assert spread_labels(x[:5, :, None, None], np.arange(5)).tolist() == [0, 1, 2, 3, 4]


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
    together = torch.cat([x, *[view[:1] for view in shifted(x)[1:]]])
    distances, indices = _neighbours(together, 4)
    assert (indices[30:, 0] == 0).all()
    np.testing.assert_allclose(distances[30:, 0], 0, atol=1e-5)
    assert set(indices[0]) == {30, 31, 32, 33}


def test_missing_and_constant_pixels(rng):
    x = images_of(rng.normal(size=(30, 16)), 4)
    x[:, :, 0] = 0
    x[rng.random(30) < 0.3, :, 1, 1] = torch.nan
    x[:, :, 2, 2] = torch.nan
    x[4] = 0
    y = np.full(30, -1)
    y[:2] = [0, 1]
    assert set(spread_labels(x, y)) <= {-1, 0, 1}
