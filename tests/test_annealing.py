import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skdcgmm.published import objective
from skdcgmm.published.objective import Schedule, ScheduleState
from skdcgmm.training.joint import one_cycle


@given(st.integers(1, 200))
def test_grid_holds_all_components_in_the_squarest_shape(n_components):
    a, b = objective.grid_shape(n_components)
    assert a * b == n_components
    assert a <= b
    assert not any(n_components % c == 0 for c in range(a + 1, math.isqrt(n_components) + 1))


def test_grid_is_periodic():
    distances = objective.grid_distances(49)
    assert distances[0, 6] == 1  # the last of the first row is beside the first
    assert distances[0, 42] == 1  # and so is the first of the last row
    assert distances[0, 24] == 18  # the middle is three steps away in both directions
    assert torch.equal(distances, distances.T)


@given(st.integers(1, 50), st.floats(0.01, 10))
def test_neighbourhood_is_a_gaussian_with_rows_that_sum_to_one(n_components, radius):
    distances = objective.grid_distances(n_components).double()
    weights = objective.neighbourhood(distances, radius)
    expected = np.exp(-distances.numpy() / (2 * radius**2))
    np.testing.assert_allclose(weights, expected / expected.sum(1, keepdims=True), atol=1e-12)


def test_annealed_max_equals_its_definition(rng):
    scores = torch.from_numpy(rng.normal(size=(3, 6, 2, 2)))
    distances = objective.grid_distances(6).double()
    weights = objective.neighbourhood(distances, 0.8)
    found = objective.annealed_max(scores, distances, 0.8)
    for n, i, j in np.ndindex(3, 2, 2):
        expected = max(float(weights[k] @ scores[n, :, i, j]) for k in range(6))
        assert found[n, i, j].item() == pytest.approx(expected, rel=1e-12)


def test_annealed_max_of_a_small_radius_is_the_maximum(rng):
    scores = torch.from_numpy(rng.normal(size=(3, 6, 2, 2)))
    distances = objective.grid_distances(6).double()
    for radius in (0.11, 0.1, 0.01):  # on both sides of the shortcut
        found = objective.annealed_max(scores, distances, radius)
        torch.testing.assert_close(found, scores.amax(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("radius", [0.8, 0.01])
def test_gradients_of_the_annealed_max_are_exact(rng, radius):
    scores = torch.from_numpy(rng.normal(size=(3, 6, 2, 2))).requires_grad_()
    distances = objective.grid_distances(6).double()

    def function(scores):
        return objective.annealed_max(scores, distances, radius)

    assert torch.autograd.gradcheck(function, scores)


def test_equal_components_share_the_gradient_of_the_maximum():
    scores = torch.tensor([1.0, 2.0, 2.0, 0.0])[None, :, None, None].requires_grad_()
    distances = objective.grid_distances(4)
    objective.annealed_max(scores, distances, 0.01).sum().backward()
    assert scores.grad.flatten().tolist() == [0, 0.5, 0.5, 0]


def run(losses, schedule, ceiling=math.inf):
    states = [objective.start(schedule)]
    for loss in losses:
        states.append(objective.update(schedule, states[-1], loss, ceiling))
    return states


SCHEDULE = Schedule(radius=2.0)


@pytest.mark.parametrize(
    ("third", "reduces"),
    [
        # First block 0, second 100: the relative gain of the third is (third - 100) / 100.
        (100.0, True),
        (104.9, True),
        (105.1, False),
        (150.0, False),
        (90.1, True),
        (89.9, False),
    ],
)
def test_radius_falls_at_a_standstill_only(third, reduces):
    radius = run([0.0, 100.0, third], SCHEDULE)[-1].radius
    assert radius == pytest.approx(1.8 if reduces else 2.0)


@pytest.mark.parametrize(
    ("losses", "reduces"), [([100.0, 0.0, 8.0], True), ([100.0, 0.0, 12.0], False),
                            ([100.0, 0.0, -4.0], True), ([100.0, 0.0, -6.0], False)],
)  # fmt: skip
def test_relative_gain_keeps_its_sign_when_the_loss_has_fallen(losses, reduces):
    assert run(losses, SCHEDULE)[-1].radius == pytest.approx(1.8 if reduces else 2.0)


def test_first_block_only_sets_the_reference():
    state = run([5.0], SCHEDULE)[-1]
    assert state == ScheduleState(radius=2.0, rate=0.011, first=5.0, last=5.0)


def test_a_second_block_equal_to_the_first_is_a_standstill():
    assert run([5.0, 5.0], SCHEDULE)[-1].radius == pytest.approx(1.8)


def test_rate_falls_with_the_radius_and_both_stop_at_their_floors():
    states = run([0.0, 100.0] + [100.0] * 60, SCHEDULE)
    assert states[3].rate == 0.01  # 0.011 * 0.9 is below the floor
    assert states[-1].radius == SCHEDULE.final_radius
    assert objective.finished(SCHEDULE, states[-1])
    finished = [objective.finished(SCHEDULE, state) for state in states]
    assert finished.index(True) == 2 + SCHEDULE.n_reductions


@given(st.lists(st.floats(-1e6, 1e6), max_size=50), st.integers(1, 400))
def test_radius_never_rises_nor_leaves_its_bounds(losses, n_components):
    schedule = objective.make_schedule(n_components, 0.011)
    assert schedule.radius == pytest.approx(0.25 * math.sqrt(2 * n_components))
    radii = [state.radius for state in run(losses, schedule)]
    assert all(b <= a for a, b in itertools.pairwise(radii))
    assert schedule.final_radius <= radii[-1] <= schedule.radius


def test_ceiling_overrides_a_loss_that_never_stands_still():
    growing = [2.0**i for i in range(10)]
    assert run(growing, SCHEDULE)[-1].radius == 2.0
    assert run(growing, SCHEDULE, ceiling=0.5)[-1].radius == 0.5


# --- the rate of the joint objective ------------------------------------------------------------


@given(st.floats(0, 3), st.floats(0, 3))
def test_the_one_cycle_rate_rises_then_falls(a, b):
    early, late = sorted((a, b))
    assert 1e-3 <= one_cycle(early) <= 1
    if late <= 0.1:
        assert one_cycle(early) <= one_cycle(late)
    elif early >= 0.1:
        assert one_cycle(early) >= one_cycle(late)


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0.0, 0.04), (0.05, 0.52), (0.1, 1.0), (0.55, (1 + 1e-3) / 2), (1.0, 1e-3), (7.0, 1e-3)],
)
def test_the_one_cycle_rate_has_its_known_values(progress, factor):
    assert one_cycle(progress) == pytest.approx(factor)
