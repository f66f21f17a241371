"""The life of an estimator: whatever happens in whatever order, the invariants hold."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sklearn.base import clone

from skdcgmm import ConvGMM, DCGMMEstimator, DCGMMOutlierDetector

N, SIDE = 40, 4
IMAGES = np.random.default_rng(0).random((N, SIDE * SIDE)).astype(np.float32)
BAD_IMAGES = {
    "infinite": np.where(np.eye(N, SIDE * SIDE, dtype=bool), np.inf, IMAGES),
    "narrow": IMAGES[:, 1:],
    "one image": IMAGES[0],
    "none": IMAGES[:0],
    "text": np.full(IMAGES.shape, "a"),
    "objects": np.full(IMAGES.shape, {}, dtype=object),
    "complex": IMAGES * 1j,
}
GOOD_PARAMETERS = {
    "n_clusters": [None, 2, 3],
    "layers": ["auto", [ConvGMM(4)], [("parts", ConvGMM(5, 2)), ConvGMM(3)]],
    "score_method": ["density", "layer"],
    "max_epochs": [1, 2],
    "batch_size": [None, 7],
    "validation_fraction": [None, 0.2],
    "warm_start": [False, True],
    "reg_covar": [None, 0.01],
    "random_state": [0, 1],
}
BAD_PARAMETERS = {
    "n_clusters": [0, 2.5, N + 1],
    "layers": [[], [ConvGMM(3, 9)], "dcgmm-z", 3],
    "score_method": ["other"],
    "max_epochs": [0],
    "batch_size": [-1],
    "validation_fraction": [1.0],
    "reg_covar": [0],
    "learning_rate": [-1, 1e30],
    "image_shape": [(4, 5), (4,)],
    "device": ["tpu9"],
}


def choices(parameters):
    return st.sampled_from([(name, value) for name in parameters for value in parameters[name]])


class Life(RuleBasedStateMachine):
    """What a user may do to one estimator."""

    @initialize(objective=st.sampled_from(["joint", "layerwise"]))
    def born(self, objective):
        self.est = DCGMMEstimator(
            objective=objective, image_shape=(SIDE, SIDE), max_epochs=1, random_state=0
        )
        if objective == "layerwise":
            self.est.set_params(score_method="layer")

    @property
    def fitted(self):
        return hasattr(self, "est") and hasattr(self.est, "n_iter_")

    @property
    def clusters(self):
        """Whether the fitted stack has enough components for the clusters that are asked for."""
        n_clusters = self.est.n_clusters
        return self.fitted and (n_clusters is None or n_clusters <= self.n_top)

    @property
    def n_top(self):
        return len(self.est.component_means_)

    def copied(self):
        return copy.deepcopy(self.est)

    def check_same(self, other):
        assert set(vars(other)) == set(vars(self.est))
        if self.fitted:
            for answer in self.answers():
                np.testing.assert_array_equal(answer(other), answer(self.est))

    def answers(self):
        """What an estimator of the present parameters can answer, as functions of it."""
        answers = [lambda est: est.component_means_]
        if self.clusters:
            answers.append(lambda est: est.predict_proba(IMAGES))
        if not self.other_score:
            answers.append(lambda est: est.score_samples(IMAGES))
        return answers

    @rule(n=st.integers(10, N))
    def fit(self, n):
        self.est.fit(IMAGES[:n])
        assert self.est.n_iter_ == len(self.est.history_) <= self.est.max_epochs

    @rule(first=st.integers(0, N - 10))
    def partial_fit(self, first):
        before = self.est.n_iter_ if self.fitted else 0
        if self.fitted and not self.clusters:
            unchanged = self.copied()
            with pytest.raises(ValueError, match="n_clusters must be at most"):
                self.est.partial_fit(IMAGES[first:])
            self.check_same(unchanged)
            return
        self.est.partial_fit(IMAGES[first:])
        assert self.est.n_iter_ == before + 1

    @rule(chosen=choices(GOOD_PARAMETERS))
    def set_params(self, chosen):
        name, value = chosen
        if name == "score_method" and self.est.objective == "layerwise":
            value = "layer"
        self.est.set_params(**{name: value})

    @rule(chosen=choices(BAD_PARAMETERS))
    def fit_with_a_bad_parameter(self, chosen):
        name, value = chosen
        good = getattr(self.est, name)
        before = self.copied()
        self.est.set_params(**{name: value})
        with pytest.raises((ValueError, TypeError), match=rf"{name}|convgmm|parts__"):
            self.est.fit(IMAGES)
        self.est.set_params(**{name: good})
        self.check_same(before)

    @rule(
        name=st.sampled_from(sorted(BAD_IMAGES)),
        method=st.sampled_from(["fit", "partial_fit", "predict", "transform", "impute"]),
    )
    def give_bad_images(self, name, method):
        if name == "narrow" and method in ("fit", "partial_fit") and not self.fitted:
            return
        before = self.copied()
        with pytest.raises((ValueError, TypeError)):
            getattr(self.est, method)(BAD_IMAGES[name])
        self.check_same(before)

    @rule()
    def clone(self):
        cloned = clone(self.est)
        assert not hasattr(cloned, "n_iter_")
        assert repr(cloned.get_params()) == repr(self.est.get_params())

    @rule()
    def pickle(self):
        before, self.est = self.est, pickle.loads(pickle.dumps(self.est))
        self.check_same(before)

    @precondition(lambda self: self.fitted)
    @rule()
    def save_and_load(self):
        path = self.folder / "model"
        self.est.save(path)
        before, self.est = self.est, DCGMMEstimator.load(path)
        self.check_same(before)

    @precondition(lambda self: self.fitted)
    @rule(fraction=st.floats(0, 1))
    def reset_annealing(self, fraction):
        if self.est.objective == self.est._fitted_objective:
            self.est.reset_annealing(fraction)

    @precondition(lambda self: self.clusters)
    @rule()
    def assign_the_same_parameters(self):
        before = self.est.predict_proba(IMAGES)
        self.est.means_ = self.est.means_
        np.testing.assert_allclose(self.est.predict_proba(IMAGES), before, atol=1e-4)

    @precondition(lambda self: self.clusters)
    @rule(n_samples=st.integers(1, 5))
    def sample(self, n_samples):
        images, labels = self.est.sample(n_samples, random_state=0)
        assert images.shape == (n_samples, SIDE * SIDE)
        assert np.isfinite(images).all()
        assert np.isin(labels, np.unique(self.est.clusters_)).all()

    @precondition(lambda self: self.fitted)
    @rule(n_clusters=st.integers(1, 6))
    def cut_elsewhere(self, n_clusters):
        as_it_was = self.est.n_clusters
        self.est.set_params(n_clusters=n_clusters)
        if n_clusters <= self.n_top:
            assert self.est.predict_proba(IMAGES).shape == (N, n_clusters)
        else:
            with pytest.raises(ValueError, match="n_clusters must be at most"):
                self.est.predict_proba(IMAGES)
        self.est.set_params(n_clusters=as_it_was)

    @invariant()
    def describes_itself(self):
        if hasattr(self, "est"):
            assert "window" in self.est.summary()

    @precondition(lambda self: self.clusters)
    @invariant()
    def responsibilities_are_probabilities(self):
        posterior = self.est.predict_proba(IMAGES)
        assert posterior.shape == (N, self.est.n_clusters or self.n_top)
        np.testing.assert_allclose(posterior.sum(1), 1, atol=1e-5)
        assert (posterior >= 0).all()
        np.testing.assert_array_equal(self.est.predict(IMAGES), posterior.argmax(1))

    @precondition(lambda self: self.fitted)
    @invariant()
    def the_tree_joins_all_components(self):
        if self.n_top == 1:
            assert not hasattr(self.est, "children_")
            return
        merged = np.sort(self.est.children_.ravel())
        np.testing.assert_array_equal(merged, np.arange(2 * self.n_top - 2))
        assert (np.diff(self.est.distances_) >= 0).all()

    @precondition(lambda self: self.fitted)
    @invariant()
    def parameters_are_in_their_ranges(self):
        for weights in self.est.weights_.values():
            np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-4)
        for variances in self.est.covariances_.values():
            assert np.isfinite(variances).all()
            assert (variances > 0).all()
        assert np.isfinite(self.est.score_samples(IMAGES)).all() or self.other_score

    @property
    def other_score(self):
        """Whether the score method is one that the fitted stack does not have."""
        return self.est.objective != self.est._fitted_objective


@pytest.fixture
def folder(tmp_path):
    Life.folder = tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore:(The stack of a stream|warm_start=True, but|Only . of n_clus)")
class TestLife(Life.TestCase):
    settings = settings(max_examples=10, stateful_step_count=12, deadline=None)


@pytest.mark.parametrize("name", sorted(BAD_IMAGES))
@pytest.mark.parametrize(
    "method", ["fit", "predict", "score_samples", "decision_function", "calibrate"]
)
def test_bad_images_harm_no_detector(name, method):
    detector = DCGMMOutlierDetector(layers=[ConvGMM(2)], max_epochs=1, random_state=0).fit(IMAGES)
    if name == "narrow" and method == "fit":
        return
    before, attributes = detector.score_samples(IMAGES), dict(vars(detector))
    with pytest.raises((ValueError, TypeError), match=r"X|image_shape|1D|sample"):
        getattr(detector, method)(BAD_IMAGES[name])
    assert vars(detector) == attributes
    np.testing.assert_array_equal(detector.score_samples(IMAGES), before)
