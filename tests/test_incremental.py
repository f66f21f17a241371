"""Schedules that open again, and searches in several processes."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joblib import parallel_config
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

from skdcgmm import ConvGMM, DCGMMEstimator
from skdcgmm.published import objective as annealing

DEEP = [ConvGMM(8, 4, shared=False), ConvGMM(12)]


def estimator(objective="joint", **parameters):
    return DCGMMEstimator(
        **{"layers": DEEP, "image_shape": (8, 8), "batch_size": 50, "max_epochs": 20}
        | {"objective": objective, "random_state": 0, "score_method": "layer", **parameters}
    )


def test_an_opened_schedule_learns_what_a_finished_one_no_longer_does(digits):
    X, y = digits
    known, new = X[y < 5], X[y >= 5]
    gains = {}
    for fraction in (0, 0.5, 1):
        est = estimator(max_epochs=10).fit(known)
        before = est.score_samples(new).mean()
        est.reset_annealing(fraction)
        for chunk in np.array_split(new, 3) * 3:
            est.partial_fit(chunk)
        gains[fraction] = est.score_samples(new).mean() - before
    assert gains[0] < 0.7 * gains[0.5]
    assert gains[0] < 0.7 * gains[1]


def test_neighbourhoods_of_a_layerwise_stack_open_and_close_again(digits):
    est = estimator("layerwise", max_epochs=10).fit(digits[0])
    radii = []
    for fraction in (0, 0.5, 1):
        est.reset_annealing(fraction).partial_fit(digits[0][:50])  # one step
        radii.append(est.history_[-1]["convgmm1__radius"])
    schedule = annealing.make_schedule(8, 0.05)
    middle = np.sqrt(schedule.radius * schedule.final_radius)
    np.testing.assert_allclose(radii, [schedule.final_radius, middle, schedule.radius], rtol=0.02)
    for _ in range(6):
        est.partial_fit(digits[0])
    assert est.history_[-1]["convgmm1__radius"] < radii[-1]


def test_a_schedule_that_has_hardly_begun_stays_where_it_is(digits):
    histories = []
    for fraction in (None, 0, 0.5):
        est = estimator("layerwise").partial_fit(digits[0][:300])
        if fraction is not None:
            est.reset_annealing(fraction)
        for _ in range(3):
            est.partial_fit(digits[0])
        histories.append([row["convgmm1__radius"] for row in est.history_])
    assert histories[0] == histories[1] == histories[2]


@pytest.mark.parametrize("objective", ["joint", "layerwise"])
def test_a_fit_ends_its_schedule(digits, objective):
    """However few its steps were: chunks after it change little."""
    est = estimator(objective, max_epochs=4).fit(digits[0])
    before = est.means_["convgmm1"]
    est.partial_fit(digits[0][:300])
    change = np.abs(est.means_["convgmm1"] - before).max()
    est.reset_annealing().partial_fit(digits[0][:300])
    assert change < np.abs(est.means_["convgmm1"] - before).max()


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1))
def test_reopening_goes_back_along_the_schedule(n_components, fraction, more):
    schedule = annealing.make_schedule(n_components, 0.05)
    start = annealing.start(schedule)
    end = start._replace(radius=schedule.final_radius, rate=schedule.final_rate, first=1.0)
    states = [annealing.reopen(schedule, end, f) for f in sorted((0, fraction, more, 1))]
    assert states[0].radius == pytest.approx(schedule.final_radius)
    assert states[-1].radius == pytest.approx(schedule.radius)
    assert [s.radius for s in states] == sorted(s.radius for s in states)
    assert [s.rate for s in states] == sorted(s.rate for s in states)
    assert all(s == end or s.first is None for s in states)
    # What has not got as far stays where it is.
    assert annealing.reopen(schedule, start, 0.99 * fraction) == start


def test_what_cannot_be_reopened(digits):
    with pytest.raises(NotFittedError):
        estimator().reset_annealing()
    est = estimator(max_epochs=1).fit(digits[0])
    with pytest.raises(ValueError, match="fraction must be a number >= 0 and <= 1"):
        est.reset_annealing(1.5)


@pytest.mark.parametrize("n_blank", [1, 2])
@pytest.mark.parametrize("pixels", ["tiles", "pyramid"])
def test_a_stream_begins_once_images_differ(digits, n_blank, pixels):
    X = digits[0]
    est = DCGMMEstimator(5, image_shape=(8, 8), pixels=pixels, random_state=0)
    expected = clone(est).partial_fit(X[:300]).partial_fit(X[300:])
    for _ in range(n_blank):
        with pytest.warns(UserWarning, match="X holds the same image many times"):
            est.partial_fit(np.full((200, 64), 7, dtype=np.float32))
        est = pickle.loads(pickle.dumps(est))
    est.partial_fit(X[:300]).partial_fit(X[300:])
    np.testing.assert_array_equal(est.score_samples(X), expected.score_samples(X))
    assert est.n_iter_ == 2
    est.partial_fit(X[:1])  # goes on


def test_a_stream_is_planned_for_more_than_its_first_chunk(digits):
    X = digits[0]
    est = DCGMMEstimator(image_shape=(8, 8), pixels="pyramid", random_state=0).partial_fit(X[:150])
    assert [weights.shape[-1] for weights in est.weights_.values()] == [100, 150]
    with pytest.warns(UserWarning, match="of 30 images, no layer can have more than 30 components"):
        clone(est).partial_fit(X[:30])
    with pytest.raises(ValueError, match="n_clusters must be at most 150"):
        clone(est).set_params(n_clusters=200).partial_fit(X[:150])
    # Plain features do not need as many.
    assert DCGMMEstimator(3).partial_fit(X[:30]).weights_["convgmm1"].shape == (3,)


def test_chunks_in_other_units_than_the_first(digits):
    X = digits[0]
    for est in (estimator(), estimator("layerwise"), estimator(pixels="pyramid")):
        est.partial_fit(X / 255)
        with pytest.warns(UserWarning, match="X varies by far more than the first chunk"):
            est.partial_fit(X)
        est.partial_fit(X / 255)
        est.partial_fit(X / 255 / 1000)


def search(X):
    stacks = [[ConvGMM(4)], [ConvGMM(4, 4, shared=False), ConvGMM(6)]]
    est = estimator(max_epochs=3, score_method="density")
    return GridSearchCV(est, {"layers": stacks}, cv=2).fit(X)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loky", "dask"])
def test_grid_searches_in_processes_find_the_same(digits, backend):
    X = digits[0][:400]
    expected = search(X).cv_results_["mean_test_score"]
    if backend == "loky":
        with parallel_config("loky", n_jobs=2):
            found = search(X)
    else:
        from distributed import Client, LocalCluster

        with (
            LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster),
            parallel_config("dask"),
        ):
            found = search(X)
    np.testing.assert_allclose(found.cv_results_["mean_test_score"], expected, rtol=1e-4)
