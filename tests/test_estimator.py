import copy
import itertools
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import config_context
from sklearn.base import clone, is_clusterer
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler
from torch.utils.data import TensorDataset

from skdcgmm import ConvGMM, DCGMMClassifier, DCGMMEstimator, DCGMMOutlierDetector, MaxPool
from skdcgmm.published.objective import LAYERWISE
from skdcgmm.training.joint import JOINT
from tests import oracle


def deep(**parameters):
    layers = [ConvGMM(5, kernel_size=3, stride=2), MaxPool(2), ConvGMM(4)]
    return DCGMMEstimator(
        **{
            "layers": layers,
            "image_shape": (8, 8),
            "objective": "layerwise",
            "score_method": "layer",
            "max_epochs": 3,
            "random_state": 0,
            **parameters,
        }
    )


@pytest.fixture(scope="module")
def fitted(digits):
    return deep(max_epochs=20).fit(digits[0])


# --- the model against the oracle ---------------------------------------------------------------


@st.composite
def stacks(draw):
    size = (draw(st.integers(3, 8)), draw(st.integers(3, 8)))
    channels = draw(st.integers(1, 2))
    layers = [
        ConvGMM(
            draw(st.integers(1, 4)),
            kernel_size=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
            stride=draw(st.integers(1, 2)),
            covariance_type=draw(st.sampled_from(["diag", "spherical"])),
            shared=draw(st.booleans()),
        )
    ]
    if draw(st.booleans()):
        layers.append(MaxPool(1 + draw(st.integers(0, 1)), stride=draw(st.sampled_from([None, 1]))))
    layers.append(ConvGMM(draw(st.integers(1, 4)), shared=draw(st.booleans())))
    return layers, (*size, channels), 10.0 ** draw(st.integers(-3, 3)), draw(st.integers(0, 1000))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_scores_equal_the_oracle_on_any_stack(dtype, tolerance):
    @settings(max_examples=30)
    @given(stacks())
    def check(case):
        layers, image_shape, scale, seed = case
        if any(isinstance(layer, MaxPool) and layer.kernel_size == 2 for layer in layers):
            image_shape = (*(max(side, 7) for side in image_shape[:2]), image_shape[2])
        rng = np.random.default_rng(seed)
        X = (scale * (rng.random((20, *image_shape)) + rng.normal())).astype(dtype)
        est = DCGMMEstimator(
            layers=layers, objective="layerwise", score_method="layer", max_epochs=3,
            batch_size=5, random_state=seed,
        ).fit(X)  # fmt: skip
        scores = oracle.stack_scores(est, X.astype(np.float64))
        for name, expected in scores.items():
            est.score_layer = name
            log_prob = oracle.layer_log_prob(expected)
            found = est.score_samples(X)
            assert found.dtype == dtype
            oracle.assert_close(found, log_prob, est.means_[name].shape[-1], tolerance)
        top = scores[name][:, 0, 0]
        expected = np.exp(top - oracle.logsumexp(top, axis=1, keepdims=True))
        np.testing.assert_allclose(est.predict_proba(X), expected, atol=20 * tolerance)

    check()


@pytest.mark.parametrize("covariance_type", ["diag", "spherical"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_flat_stack_with_its_parameters_is_a_gaussian_mixture(covariance_type, scale):
    X, _ = make_blobs(n_samples=300, n_features=5, centers=4, random_state=0)
    X *= scale
    flat = GaussianMixture(4, covariance_type=covariance_type, random_state=0).fit(X)
    layer = ConvGMM(4, covariance_type=covariance_type)
    est = DCGMMEstimator(layers=[layer], max_epochs=1, random_state=0).fit(X)
    est.weights_ = {"convgmm1": flat.weights_}
    est.means_ = {"convgmm1": flat.means_}
    est.covariances_ = {"convgmm1": flat.covariances_}

    for name in ("weights_", "means_", "covariances_", "precisions_"):
        np.testing.assert_allclose(getattr(est, name)["convgmm1"], getattr(flat, name))
    np.testing.assert_allclose(est.score_samples(X), flat.score_samples(X), rtol=1e-10)
    np.testing.assert_allclose(est.predict_proba(X), flat.predict_proba(X), atol=1e-10)
    np.testing.assert_array_equal(est.predict(X), flat.predict(X))
    assert est.score(X) == pytest.approx(flat.score(X))
    assert est.n_parameters_ == flat._n_parameters()

    n = 20_000
    drawn, labels = est.sample(n)
    np.testing.assert_allclose(
        np.bincount(labels, minlength=4) / n, flat.weights_, atol=5 * 0.5 / n**0.5
    )
    for k in range(4):
        cluster = drawn[labels == k]
        variance = np.broadcast_to(np.reshape(flat.covariances_[k], -1), 5)
        error = 5 * np.sqrt(variance / len(cluster))
        assert (np.abs(cluster.mean(0) - flat.means_[k]) < error).all()
        np.testing.assert_allclose(cluster.var(0), variance, rtol=5 * (2 / len(cluster)) ** 0.5)


def test_float32_scores_survive_tight_components_far_from_the_centre(rng):
    X = np.float32(rng.normal(size=(100, 3)) * [1e-2, 1, 1] + [3, 0, 0])
    est = DCGMMEstimator(2, max_epochs=1, random_state=0).fit(X)
    means = np.float32([[3, 0, 0], [3.01, 1, 1]])
    est.means_ = {"convgmm1": means}
    est.covariances_ = {"convgmm1": np.full((2, 3), [1e-4, 1, 1])}
    expected = oracle.stack_scores(est, np.float64(X)[:, None, None])["convgmm1"]
    oracle.assert_close(est.score_samples(X), oracle.layer_log_prob(expected), 3, 1e-5)


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 255.0, 1e-3])
def test_units_do_not_matter(digits, scale):
    X = digits[0].astype(np.float64)
    base = deep(layers=[ConvGMM(10)]).fit(X)
    moved = deep(layers=[ConvGMM(10)]).fit(scale * X + 7 * scale)
    assert adjusted_rand_score(base.labels_, moved.labels_) == 1
    shift = X.shape[1] * np.log(scale)
    np.testing.assert_allclose(
        moved.score_samples(scale * X + 7 * scale) + shift, base.score_samples(X), rtol=1e-6
    )


def test_flat_layerwise_training_finds_blobs():
    scores = []
    for seed in range(3):
        X, y = make_blobs(n_samples=500, n_features=4, centers=4, random_state=seed)
        est = DCGMMEstimator(4, objective="layerwise", random_state=seed).fit(X)
        scores.append(adjusted_rand_score(y, est.labels_))
        assert est.history_[-1]["convgmm1__radius"] == 0.01
    # A single run may end in a local optimum, as one of k-means may.
    assert np.median(scores) > 0.95


def test_weights_become_the_clusters_shares():
    X, y = make_blobs([600, 200, 200], n_features=4, random_state=0)
    est = DCGMMEstimator(3, max_epochs=400, n_iter_no_change=400, random_state=0).fit(X)
    assert adjusted_rand_score(y, est.labels_) == 1
    np.testing.assert_allclose(sorted(est.weights_["convgmm1"]), [0.2, 0.2, 0.6], atol=0.02)


def test_training_ascends_and_anneals_to_the_end(digits):
    est = deep(max_epochs=40).fit(digits[0])
    for name in ("convgmm1", "convgmm2"):
        assert est.history_[-1][f"{name}__radius"] == 0.01
    assert est.history_[-1]["convgmm1__loss"] > est.history_[0]["convgmm1__loss"]
    assert len(est.history_) == est.n_iter_ <= 40
    assert est.converged_ == (est.n_iter_ < 40)


def test_upper_layers_start_later(digits):
    history = deep(max_epochs=20).fit(digits[0]).history_
    started = [np.isfinite(row["convgmm2__loss"]) for row in history]
    assert not any(started[:2])
    assert all(started[3:])


def test_same_seed_gives_the_same_model_bit_by_bit(digits):
    a, b = (deep().fit(digits[0]) for _ in range(2))
    for name in a.means_:
        np.testing.assert_array_equal(a.means_[name], b.means_[name])
        np.testing.assert_array_equal(a.covariances_[name], b.covariances_[name])
    np.testing.assert_array_equal(a.sample(5)[0], b.sample(5)[0])
    other = deep(random_state=1).fit(digits[0])
    assert (other.means_["convgmm1"] != a.means_["convgmm1"]).any()


def test_fit_leaves_global_random_states_alone(digits):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    deep().fit(digits[0]).sample(3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_reg_covar_bounds_the_variances(digits):
    est = deep(reg_covar=0.08, max_epochs=10).fit(digits[0])
    assert est.covariances_["convgmm1"].min() >= 0.08 * (1 - 1e-5)


def test_early_stopping_on_held_out_images(digits):
    est = deep(layers=[ConvGMM(4)], max_epochs=200, validation_fraction=0.2, n_iter_no_change=2)
    est.fit(digits[0])
    assert est.n_iter_ < 200
    assert est.converged_
    assert np.isfinite([row["validation_loss"] for row in est.history_]).all()


def test_validation_keeps_the_best_epoch():
    X = load_digits().data / 16
    layers = [ConvGMM(100, 4, shared=False), ConvGMM(100)]
    est = DCGMMEstimator(
        layers=layers, reg_covar=0.005, validation_fraction=0.25, image_shape=(8, 8), random_state=0
    ).fit(X[:200])
    held_out = [row["validation_loss"] for row in est.history_]
    assert max(held_out) > held_out[-1] + 10  # the last one has learnt the images by heart
    assert est.score(X[400:]) > 15


@pytest.mark.parametrize("objective", ["joint", "layerwise"])
def test_images_of_ones_own_judge_the_progress(digits, objective):
    X = digits[0]
    parameters = {"image_shape": (8, 8), "objective": objective, "max_epochs": 4}
    est = DCGMMEstimator(batch_size=50, random_state=0, **parameters)
    own, others = X[:700], X[700:]
    plain = clone(est).fit(own)
    judged = clone(est).fit(own, X_val=others)
    assert [row["loss"] for row in judged.history_] == [row["loss"] for row in plain.history_]
    if objective == "joint":
        best = max(row["validation_loss"] for row in judged.history_)
        assert judged.score(others) == pytest.approx(best, rel=1e-5)
    streamed = clone(est).fit(TensorDataset(torch.from_numpy(own)), X_val=torch.from_numpy(others))
    assert np.isfinite([row["validation_loss"] for row in streamed.history_]).all()


def test_images_of_ones_own_in_the_other_estimators(digits):
    X, y = digits
    parameters = {"image_shape": (8, 8), "max_epochs": 4, "random_state": 0}
    new, others = X[900:], X[:900]
    detector = DCGMMOutlierDetector(contamination=0.2, **parameters).fit(others, X_val=new)
    assert np.mean(detector.predict(new) == -1) == pytest.approx(0.2, abs=0.05)
    clf = DCGMMClassifier(**parameters).fit(others, y[:900], X_val=new, y_val=y[900:])
    alone = DCGMMClassifier(**parameters).fit(others, y[:900], X_val=new)
    expected = np.mean(alone.score_samples(new))
    assert alone.history_[-1]["validation_loss"] == pytest.approx(expected, rel=1e-4)
    probabilities = clf.predict_proba(new)[np.arange(len(new)), y[900:]]
    expected = clf.score_samples(new).mean() + np.log(probabilities).mean()
    assert clf.history_[-1]["validation_loss"] == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match=r"y_val must be one of classes_.*got 12"):
        clf.fit(others, y[:900], X_val=new, y_val=y[900:] + 3)


@pytest.mark.parametrize(
    ("X_val", "parameters", "error", "message"),
    [
        (np.zeros((3, 5)), {}, ValueError, "X_val must be images like those of X: .*5 features"),
        (np.zeros((0, 64)), {}, ValueError, "X_val must be images like those of X: .*0 sample"),
        (["a"], {}, ValueError, "X_val must be images like those of X: "),
        (np.zeros((3, 64)), {"validation_fraction": 0.1}, ValueError, "must be None where X_val"),
    ],
)
def test_images_that_cannot_judge(digits, X_val, parameters, error, message):
    est = deep().fit(digits[0][:50])
    before = dict(vars(est))
    with pytest.raises(error, match=message):
        clone(est).set_params(**parameters).fit(digits[0][:50], X_val=X_val)
    with pytest.raises(error, match=message):
        est.set_params(**parameters).fit(digits[0][:50], X_val=X_val)
    assert {**vars(est), **before} == {**before, **vars(est), "validation_fraction": None}


@pytest.mark.parametrize("objective", ["joint", "layerwise"])
def test_training_ends_and_is_annealed_when_its_time_is_over(digits, objective, monkeypatch):
    """Each look at the clock is a second: of a thousand steps there is time for a few."""
    X, seconds = digits[0], itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: float(next(seconds)))
    layers = [ConvGMM(5, 4), ConvGMM(4)]
    parameters = {"layers": layers, "image_shape": (8, 8), "objective": objective}
    est = DCGMMEstimator(max_minutes=0.5, batch_size=50, random_state=0, **parameters).fit(X)
    assert est._progress.steps >= 1000
    assert est.n_iter_ == 1
    if objective == "layerwise":
        radii = [est.history_[-1][f"convgmm{i}__radius"] for i in (1, 2)]
        assert radii == [0.01, 0.01]
    else:
        # A short training of the same number of steps.
        short = DCGMMEstimator(max_epochs=1, batch_size=60, random_state=0, **parameters).fit(X)
        assert est._progress.steps == est._progress.n_steps
        assert est.score_samples(X).mean() > short.score_samples(X).mean() - 3


def test_time_enough_changes_nothing(digits):
    X = digits[0][:200]
    est = deep().fit(X)
    with_time = deep(max_minutes=60.0).fit(X)
    np.testing.assert_array_equal(with_time.predict_proba(X), est.predict_proba(X))
    with pytest.raises(ValueError, match="max_minutes must be a number > 0, or None"):
        deep(max_minutes=0).fit(X)


def test_warm_start_goes_on_where_the_fit_ended(digits):
    est = deep(warm_start=True, max_epochs=20).fit(digits[0])
    before = est.means_["convgmm1"]
    est.set_params(max_epochs=1).fit(digits[0])
    assert est.history_[0]["convgmm1__radius"] == 0.01  # no new annealing
    assert 0 < np.abs(est.means_["convgmm1"] - before).max() < 0.2
    with pytest.warns(UserWarning, match="warm_start=True, but layers"):
        est.set_params(layers=[ConvGMM(3)]).fit(digits[0])  # another stack starts anew
    assert list(est.means_) == ["convgmm1"]
    assert est.means_["convgmm1"].shape == (3, 64)


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [
        (DCGMMEstimator, {}),
        (DCGMMEstimator, {"n_clusters": 5}),
        (DCGMMEstimator, {"objective": "layerwise", "score_method": "layer"}),
        (DCGMMEstimator, {"image_shape": None, "n_clusters": 5}),
        (DCGMMClassifier, {}),
        (DCGMMOutlierDetector, {}),
    ],
)
def test_warm_start_goes_on_with_any_number_of_images(digits, cls, parameters):
    X, y = digits
    parameters = {"image_shape": (8, 8), "warm_start": True, "max_epochs": 20} | parameters
    est = cls(random_state=0, **parameters).fit(X[:700], y[:700])
    shapes = {name: means.shape for name, means in est.means_.items()}
    before = est.score_samples(X[700:]).mean()
    est.set_params(max_epochs=2, learning_rate=1e-3).fit(X, y)
    assert {name: means.shape for name, means in est.means_.items()} == shapes
    if cls is not DCGMMOutlierDetector:  # whose scores are relative to those of images held out
        assert est.score_samples(X[700:]).mean() > before - 2


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"pixels": "tiles"}),
        ({}, {"reg_covar": 0.01}),
        ({}, {"image_shape": (4, 16)}),
        ({}, {"layers": [ConvGMM(9, 4, shared=False), ConvGMM(9)]}),
        ({}, {"objective": "layerwise"}),
        ({"image_shape": None, "n_clusters": 3}, {"n_clusters": 5}),
        ({"n_clusters": None}, {"n_clusters": 101}),
    ],
)
def test_a_warm_start_that_is_none_warns(digits, first, then):
    X = digits[0]
    parameters = {"image_shape": (8, 8), "warm_start": True, "max_epochs": 1, "random_state": 0}
    est = DCGMMEstimator(**parameters | first).fit(X[:900])
    est.set_params(**then)
    with pytest.warns(UserWarning, match=r"warm_start=True, but layers.* the stack starts anew"):
        est.fit(X)
    means = clone(est).fit(X).means_  # as without an earlier fit
    for name, found in est.means_.items():
        np.testing.assert_array_equal(found, means[name])


def test_partial_fit_anneals_over_the_stream(digits):
    est = deep(layers=[ConvGMM(4)], batch_size=20)
    radii = []
    for _ in range(3):
        for start in range(0, 1700, 50):  # chunks that are no multiple of a block
            est.partial_fit(digits[0][start : start + 50])
            radii.append(est.history_[-1]["convgmm1__radius"])
    assert radii == sorted(radii, reverse=True)
    assert radii[-1] < radii[0]
    assert [row["epoch"] for row in est.history_] == list(range(1, len(radii) + 1))


def test_a_block_may_span_chunks_of_a_stream(digits):
    X = digits[0][:100]
    whole, parts = deep(layers=[ConvGMM(2)], batch_size=1), deep(layers=[ConvGMM(2)], batch_size=1)
    for _ in range(2):
        whole.partial_fit(X)
        for chunk in np.split(X, 20):
            parts.partial_fit(chunk)
    # Two hundred steps: the same number of blocks have ended, however they were cut.
    assert whole._progress.steps == parts._progress.steps == 200
    blocks = [est._progress.layers["convgmm1"].block for est in (whole, parts)]
    assert blocks[0][1] == blocks[1][1]


def test_divergence_is_reported_and_leaves_the_earlier_fit(digits):
    est = deep().fit(digits[0])
    before = est.predict_proba(digits[0])
    with pytest.raises(ValueError, match=r"learning_rate=1e\+30 made training diverge"):
        est.set_params(learning_rate=1e30).fit(digits[0])
    extreme = digits[0][:50].copy()
    extreme[3, 27] = 1e25
    with (
        pytest.raises(ValueError, match=r"diverge.*extreme values in X"),
        pytest.warns(UserWarning, match="X varies by far more than the first chunk"),
    ):
        est.set_params(learning_rate=None).partial_fit(extreme)
    np.testing.assert_array_equal(est.predict_proba(digits[0]), before)


def test_constant_images_fit_without_nan():
    X = np.full((30, 16), 3.0)
    est = DCGMMEstimator(2, image_shape=(4, 4), layers=[ConvGMM(2, 2), ConvGMM(2)], max_epochs=5)
    with pytest.warns(ConvergenceWarning, match="Only 1 of n_clusters=2 clusters have images"):
        est.fit(X)
    assert np.isfinite(est.score_samples(X)).all()
    assert all(np.isfinite(values).all() for values in est.means_.values())


# --- clusters, cut from the tree of top components ----------------------------------------------


@pytest.fixture(scope="module", params=["joint", "layerwise"])
def merged(request, digits):
    layers = [ConvGMM(6, 4, shared=False), ConvGMM(12)]
    return deep(layers=layers, n_clusters=4, objective=request.param).fit(digits[0][:300])


@pytest.mark.parametrize(
    ("parameters", "n_top"),
    [
        ({"layers": [ConvGMM(5, 4), ConvGMM(12)]}, 12),
        ({"layers": [ConvGMM(12)]}, 12),
        ({"layers": "dcgmm-b", "objective": "layerwise"}, 49),
        ({"layers": "auto"}, 60),
        # As many as clusters, where nothing is to be merged from more.
        ({"layers": "auto", "objective": "layerwise"}, 4),
        ({"layers": "auto", "image_shape": None}, 4),
        ({"layers": "auto", "image_shape": None, "objective": "layerwise"}, 4),
    ],
)
@pytest.mark.filterwarnings("ignore:Only 1 of n_clusters=4 clusters have images")
def test_n_clusters_leaves_the_top_as_it_is(digits, parameters, n_top):
    X = digits[0][:100]
    est = deep(**{"n_clusters": 4, "objective": "joint", "max_epochs": 1, **parameters}).fit(X)
    assert [len(weights) for weights in est.weights_.values()][-1] == n_top
    assert est.component_means_.shape == (n_top, 64)
    assert est.clusters_.shape == (n_top,)
    assert est.children_.shape == (n_top - 1, 2)
    assert est.predict_proba(X).shape == (100, 4)
    if isinstance(parameters["layers"], list):  # the parameter, too
        assert est.layers[-1].n_components == n_top


def test_criteria_say_that_they_do_not_tell_numbers_of_clusters(digits):
    X = digits[0][:300]
    est = DCGMMEstimator(4, image_shape=(8, 8), max_epochs=1, random_state=0).fit(X)
    values = []
    for n_clusters in (4, 20):
        est.set_params(n_clusters=n_clusters)
        for name in ("aic", "bic"):
            with pytest.warns(UserWarning, match=f"{name} is the same for all n_clusters"):
                values.append(getattr(est, name)(X))
    assert values[:2] == values[2:]
    est.set_params(n_clusters=None)  # the components themselves
    assert [est.aic(X), est.bic(X)] == values[:2]
    est = DCGMMEstimator(4, max_epochs=1).fit(X[:, 20:24])  # a flat mixture of four
    assert np.isfinite([est.aic(X[:, 20:24]), est.bic(X[:, 20:24])]).all()


def test_clusters_without_images_are_reported(rng):
    X = np.repeat(rng.normal(size=(3, 2)), 20, axis=0)
    with pytest.warns(ConvergenceWarning, match="Only 3 of n_clusters=5 clusters have images"):
        labels = DCGMMEstimator(5, random_state=0).fit_predict(X)
    assert len(set(labels)) == 3


def test_clusters_are_merged_without_a_change_of_the_density(merged, digits):
    X = digits[0][:300]
    components = clone(merged).set_params(n_clusters=None).fit(X)
    np.testing.assert_array_equal(components.score_samples(X), merged.score_samples(X))
    np.testing.assert_array_equal(components.children_, merged.children_)
    np.testing.assert_array_equal(components.clusters_, np.arange(12))
    posterior = components.predict_proba(X)
    assert posterior.shape == (300, 12)
    summed = posterior @ np.eye(4)[merged.clusters_]
    np.testing.assert_allclose(merged.predict_proba(X), summed, atol=1e-6)


def test_n_clusters_counts_without_training(merged, digits):
    X = digits[0][:300]
    est = copy.deepcopy(merged)
    density, labels = est.score_samples(X), est.labels_
    np.testing.assert_array_equal(labels, est.predict(X))
    posterior = est.set_params(n_clusters=None).predict_proba(X)
    weights, means = est.weights_["convgmm2"], est.component_means_
    finer = np.arange(12)
    for n_clusters in range(12, 0, -1):
        clusters = est.set_params(n_clusters=n_clusters).clusters_
        assert set(clusters) == set(range(n_clusters))
        assert len(set(zip(finer, clusters, strict=True))) == len(set(finer))  # nested
        members = clusters == np.arange(n_clusters)[:, None]  # (n_clusters, 12)
        if n_clusters < 12:
            assert (np.diff(members @ weights) <= 1e-6).all()  # the largest come first

        found = est.predict_proba(X)
        np.testing.assert_allclose(found, posterior @ members.T, atol=1e-6)
        np.testing.assert_array_equal(est.predict(X), found.argmax(1))
        np.testing.assert_array_equal(est.transform(X), found)
        names = [f"cluster{k}" for k in range(n_clusters)]
        assert list(est.get_feature_names_out()) == names
        centers = [np.average(means[part], axis=0, weights=weights[part]) for part in members]
        np.testing.assert_allclose(est.cluster_centers_, centers, atol=1e-5)
        np.testing.assert_array_equal(est.sample(3, cluster=n_clusters - 1)[1], n_clusters - 1)
        with pytest.raises(ValueError, match=f"cluster must be .* < {n_clusters}"):
            est.sample(cluster=n_clusters)
        np.testing.assert_array_equal(est.score_samples(X), density)
        finer = clusters
    np.testing.assert_array_equal(est.labels_, labels)  # those of fit
    assert est.history_ == merged.history_


def test_draws_of_a_cluster_are_from_its_components(digits):
    X = digits[0][:100]
    est = deep(layers=[ConvGMM(5)], objective="joint").fit(X)
    est.means_ = {"convgmm1": np.repeat(100.0 * np.arange(5)[:, None], 64, 1)}
    est.covariances_ = {"convgmm1": np.ones((5, 64))}
    est.weights_ = {"convgmm1": np.full(5, 0.2)}
    for n_clusters in (5, 4, 3, 2, 1):
        est.set_params(n_clusters=n_clusters)
        drawn, labels = est.sample(200)
        np.testing.assert_array_equal(est.predict(drawn), labels)
        for cluster in range(n_clusters):
            drawn, labels = est.sample(100, cluster=cluster)
            np.testing.assert_array_equal(labels, cluster)
            components = np.rint(drawn.mean(1) / 100).astype(int)
            assert set(components) == set(np.flatnonzero(est.clusters_ == cluster))


def test_draws_are_of_the_clusters_that_they_are_taken_for(merged):
    images, labels = merged.sample(2000, random_state=0)
    weights = merged.weights_["convgmm2"]
    n_clusters = merged.n_clusters
    expected = np.array([weights[merged.clusters_ == c].sum() for c in range(n_clusters)])
    found = np.bincount(labels, minlength=n_clusters) / 2000
    assert (np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / 2000) + 1e-3).all()
    if merged.objective == "joint":  # of the published stack, draws are pictures of their control
        assert (merged.predict(images) == labels).mean() > 0.8


def test_merged_clusters_find_more_than_as_many_components(digits):
    X, y = digits
    est = DCGMMEstimator(10, image_shape=(8, 8), max_epochs=15, random_state=0)
    merged = clone(est).fit(X)
    n_parts = merged.weights_["convgmm1"].shape[-1]
    few = est.set_params(layers=[ConvGMM(n_parts, 4, shared=False), ConvGMM(10)]).fit(X)
    scores = [normalized_mutual_info_score(y, e.labels_) for e in (merged, few)]
    assert scores[0] > scores[1]


def test_warm_starts_and_chunks_merge_anew(digits):
    X = digits[0]
    est = DCGMMEstimator(5, image_shape=(8, 8), max_epochs=2, warm_start=True, random_state=0)
    est.fit(X).set_params(n_clusters=7, max_epochs=1).fit(X)
    assert set(est.clusters_) == set(range(7))
    est.set_params(n_clusters=4)
    for part in np.array_split(X, 3):
        before = est.distances_
        est.partial_fit(part)
        assert set(est.clusters_) == set(range(4))
        assert not np.array_equal(est.distances_, before)


def test_the_tree_is_as_of_agglomerative_clustering(merged):
    est = copy.deepcopy(merged)
    children, distances = est.children_, est.distances_
    assert children.shape == (11, 2)
    assert distances.shape == (11,)
    assert children.dtype.kind == "i"
    assert (children < 12 + np.arange(11)[:, None]).all()  # what has been merged before
    np.testing.assert_array_equal(np.sort(children.ravel()), np.arange(22))  # each once
    assert np.isfinite(distances).all()
    assert (np.diff(distances) >= 0).all()
    groups = {k: {k} for k in range(12)}
    for merger, pair in enumerate(children):
        groups[12 + merger] = set.union(*(groups.pop(node) for node in pair))
        clusters = est.set_params(n_clusters=11 - merger).clusters_
        found = {frozenset(np.flatnonzero(clusters == k)) for k in set(clusters)}
        assert found == {frozenset(group) for group in groups.values()}


def test_one_component_has_no_tree(digits):
    est = deep(layers=[ConvGMM(1)], objective="joint").fit(digits[0][:50])
    assert not hasattr(est, "children_")
    np.testing.assert_array_equal(est.set_params(n_clusters=1).clusters_, [0])
    np.testing.assert_array_equal(est.predict(digits[0][:50]), 0)


# --- the scikit-learn face ----------------------------------------------------------------------


def test_is_a_clusterer_with_the_methods_of_a_mixture(fitted, digits):
    X, _ = digits
    assert is_clusterer(fitted)
    np.testing.assert_array_equal(fitted.labels_, fitted.predict(X))
    np.testing.assert_array_equal(fitted.predict(X), fitted.predict_proba(X).argmax(1))
    np.testing.assert_array_equal(fitted.transform(X), fitted.predict_proba(X))
    np.testing.assert_array_equal(clone(fitted).fit_predict(X), fitted.labels_)


def test_flat_score_is_the_mean_density_and_deep_score_says_why_not(fitted, digits):
    X, _ = digits
    flat = deep(layers=[ConvGMM(4)]).fit(X)
    assert flat.score(X) == pytest.approx(flat.score_samples(X).mean(), rel=1e-5)
    with pytest.raises(ValueError, match="objective='joint'"):
        fitted.score(X)


def test_score_layer_by_index_and_name(fitted, digits):
    X, _ = digits
    est = copy.deepcopy(fitted)
    by_index = [est.set_params(score_layer=i).score_samples(X) for i in (0, 1)]
    by_name = [est.set_params(score_layer=f"convgmm{i}").score_samples(X) for i in (1, 2)]
    np.testing.assert_array_equal(by_index, by_name)
    assert (by_index[0] != by_index[1]).all()


def test_named_layers_are_parameters(digits):
    est = deep(layers=[("parts", ConvGMM(5, 4)), ConvGMM(4)])
    assert est.get_params()["parts__n_components"] == 5
    assert est.get_params()["convgmm1__n_components"] == 4
    est.set_params(parts__n_components=6, convgmm1=ConvGMM(3)).fit(digits[0])
    assert est.weights_["parts"].shape == (6,)
    assert est.weights_["convgmm1"].shape == (3,)
    assert clone(est).get_params().keys() == est.get_params().keys()
    with pytest.raises(ValueError, match="Invalid parameter 'other'"):
        est.set_params(other__n_components=1)


def test_unshared_parameters_have_axes_of_positions(digits):
    est = deep(layers=[ConvGMM(5, 4, shared=False, covariance_type="spherical"), ConvGMM(3)])
    est.fit(digits[0])
    assert est.weights_["convgmm1"].shape == (2, 2, 5)
    assert est.means_["convgmm1"].shape == (2, 2, 5, 16)
    assert est.covariances_["convgmm1"].shape == (2, 2, 5)
    np.testing.assert_allclose(est.weights_["convgmm1"].sum(-1), 1, rtol=1e-5)
    means = {"convgmm1": est.means_["convgmm1"] + 1}
    est.means_ = means
    np.testing.assert_allclose(est.means_["convgmm1"], means["convgmm1"], rtol=1e-5)


@pytest.mark.parametrize(
    ("attribute", "values", "message"),
    [
        ("means_", {"other": np.zeros((4, 64))}, "must have keys among"),
        ("means_", {"convgmm1": np.zeros((4, 63))}, r"of shape \(4, 64\)"),
        ("means_", {"convgmm1": np.full((4, 64), np.nan)}, "must be finite"),
        (
            "precisions_",
            {"convgmm1": np.zeros((4, 64))},
            r"precisions_\['convgmm1'\] must be finite",
        ),
        ("weights_", {"convgmm1": [0.5, 0.5, 0.5, -0.5]}, "non-negative and sum to 1"),
        ("covariances_", {"convgmm1": np.zeros((4, 64))}, "must be positive"),
    ],
)
def test_assigned_parameters_are_checked(digits, attribute, values, message):
    est = deep(layers=[ConvGMM(4)]).fit(digits[0])
    before = est.score_samples(digits[0])
    with pytest.raises(ValueError, match=message):
        setattr(est, attribute, values)
    np.testing.assert_array_equal(est.score_samples(digits[0]), before)


def test_image_arrays_of_three_and_four_dimensions(digits, rng):
    X = digits[0]
    rows = deep().fit(X)
    images = deep(image_shape=None).fit(X.reshape(-1, 8, 8))
    np.testing.assert_array_equal(rows.labels_, images.labels_)
    assert images.image_shape_ == (8, 8, 1)
    assert images.n_features_in_ == 64
    assert images.sample(2)[0].shape == (2, 8, 8)
    np.testing.assert_array_equal(images.predict(X), rows.labels_)  # rows are accepted too

    colour = rng.random((40, 6, 5, 3))
    est = deep(image_shape=None, layers=[ConvGMM(3, (2, 3)), ConvGMM(2)]).fit(colour)
    assert est.means_["convgmm1"].shape == (3, 2 * 3 * 3)
    assert est.sharpen(colour, n_steps=1).shape == colour.shape
    flat = deep(image_shape=(6, 5, 3), layers=est.layers).fit(colour.reshape(40, -1))
    np.testing.assert_array_equal(flat.labels_, est.labels_)


def test_answers_have_the_type_of_the_input(fitted, digits):
    X = digits[0]
    for dtype in (np.float32, np.float64):
        for method in (fitted.predict_proba, fitted.score_samples, fitted.transform):
            assert method(X.astype(dtype)).dtype == dtype
    tensor = torch.from_numpy(X)
    for method in (fitted.predict, fitted.predict_proba, fitted.score_samples, fitted.sharpen):
        answer = method(tensor[:5])
        assert isinstance(answer, torch.Tensor)
        np.testing.assert_array_equal(answer, method(X[:5]))


def test_prediction_in_batches_equals_prediction_at_once(fitted, digits, monkeypatch):
    X = digits[0][:50]
    at_once = fitted.score_samples(X)
    monkeypatch.setattr("skdcgmm.data.images._BATCH_NUMBERS", 1)  # one image a batch
    oracle.assert_close(fitted.score_samples(X), at_once, 5 * 4, 1e-5)
    assert fitted.sample(3)[0].shape == (3, 64)


@pytest.mark.parametrize(
    "make",
    [
        lambda X: X.astype(np.float16),
        lambda X: (X * 255).astype(np.uint8),
        lambda X: (X * 255).astype(np.int64),
        lambda X: np.asfortranarray(X),
        lambda X: np.repeat(X, 2, axis=0)[::2],
        lambda X: X[::-1],
    ],
)
def test_layouts_and_types_of_x(digits, make):
    X = make(digits[0][:200])
    copied = X.copy()
    est = deep().fit(X)
    np.testing.assert_array_equal(X, copied)
    np.testing.assert_array_equal(est.predict(X), est.labels_)


def test_read_only_and_memory_mapped_x(digits, tmp_path):
    X = digits[0][:200].copy()
    X.flags.writeable = False
    expected = deep().fit(X).labels_
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    np.testing.assert_array_equal(deep().fit(mapped).labels_, expected)


def test_data_frames_in_and_out(digits):
    X = pd.DataFrame(digits[0], columns=[f"pixel{i}" for i in range(64)])
    est = deep().set_output(transform="pandas").fit(X)
    frame = est.transform(X)
    assert list(frame.columns) == list(est.get_feature_names_out())
    assert list(frame.columns) == [f"cluster{k}" for k in range(4)]
    assert list(est.feature_names_in_) == list(X.columns)


@pytest.mark.parametrize("store", ["pickle", "joblib", "deepcopy"])
def test_copies_predict_the_same_and_go_on_training(fitted, digits, store, tmp_path):
    if store == "pickle":
        copied = pickle.loads(pickle.dumps(fitted))
    elif store == "joblib":
        joblib.dump(fitted, tmp_path / "model")
        copied = joblib.load(tmp_path / "model")
    else:
        copied = copy.deepcopy(fitted)
    X = digits[0]
    np.testing.assert_array_equal(copied.score_samples(X), fitted.score_samples(X))
    np.testing.assert_array_equal(copied.sample(3)[0], fitted.sample(3)[0])
    before = fitted.means_["convgmm1"]
    copied.partial_fit(X[:100])
    np.testing.assert_array_equal(fitted.means_["convgmm1"], before)


def test_a_fit_for_another_device_predicts_where_there_is_none(fitted, digits):
    moved = pickle.loads(pickle.dumps(fitted)).set_params(device="cuda")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    np.testing.assert_array_equal(moved.predict(digits[0]), fitted.labels_)


def test_grid_search_over_estimators_stacks_and_layer_parameters(digits):
    X, y = digits[0][:300], digits[1][:300]
    search = GridSearchCV(
        Pipeline([("scale", MinMaxScaler()), ("model", deep())]),
        [
            {"model": [GaussianMixture(10, covariance_type="diag", reg_covar=0.05)]},
            {
                "model__layers": [
                    [ConvGMM(5, 4), ConvGMM(10)],
                    [ConvGMM(5, 3, 1), MaxPool(2), ConvGMM(10)],
                ],
                "model__convgmm1__n_components": [4, 6],
            },
        ],
        scoring="adjusted_rand_score",
        cv=2,
        error_score="raise",
    ).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(search.cv_results_["params"]) == 5
    for row in search.cv_results_["params"][1:]:
        est = clone(search.estimator).set_params(**row).fit(X)["model"]
        assert len(est.weights_["convgmm1"]) == row["model__convgmm1__n_components"]


def test_progress_bar_only_when_verbose(digits, capsys):
    deep(verbose=0).fit(digits[0])
    assert capsys.readouterr().err == ""
    deep(verbose=1).fit(digits[0])
    assert "epoch" in capsys.readouterr().err


def test_assigning_several_layers_is_all_or_nothing(fitted):
    before = {name: values.copy() for name, values in fitted.means_.items()}
    good, bad = before["convgmm1"] + 1, before["convgmm2"][:1]
    with pytest.raises(ValueError, match="convgmm2"):
        fitted.means_ = {"convgmm1": good, "convgmm2": bad}
    np.testing.assert_array_equal(fitted.means_["convgmm1"], before["convgmm1"])


@pytest.mark.parametrize("standardise", [False, True])
def test_flat_densities_come_near_maximum_likelihood(standardise):
    X, _ = make_blobs(n_samples=1500, n_features=4, centers=3, random_state=0)
    X = (X - X.mean(0)) / X.std(0) if standardise else X
    flat = GaussianMixture(3, covariance_type="diag", random_state=0).fit(X)
    assert DCGMMEstimator(3, random_state=0).fit(X).score(X) > flat.score(X) - 0.02


def test_grid_search_by_the_default_score_of_flat_mixtures():
    X, _ = make_blobs(n_samples=600, n_features=4, centers=3, random_state=0)
    grid = {"n_clusters": [1, 3]}
    search = GridSearchCV(DCGMMEstimator(random_state=0), grid, cv=2, error_score="raise").fit(X)
    assert search.best_params_ == {"n_clusters": 3}


def test_sharpened_samples_of_a_fit_to_a_data_frame(digits):
    X = pd.DataFrame(digits[0], columns=[f"pixel{i}" for i in range(64)])
    est = deep().fit(X)
    drawn = pd.DataFrame(est.sample(2)[0], columns=X.columns)
    assert est.sharpen(drawn, n_steps=2).shape == (2, 64)


def test_fit_inside_no_grad(digits):
    with torch.no_grad():
        est = deep().fit(digits[0])
    np.testing.assert_array_equal(est.labels_, deep().fit(digits[0]).labels_)


def test_precision_settings_are_given_back(digits):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        deep().fit(digits[0])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
def test_gpu_fits_draw_sharpen_and_stream(digits):
    X = digits[0]
    a, b = (deep(device="cuda").fit(X) for _ in range(2))
    np.testing.assert_allclose(a.means_["convgmm1"], b.means_["convgmm1"], rtol=1e-5)
    images, _ = a.sample(5)
    assert np.isfinite(a.sharpen(images, n_steps=3)).all()
    moved = pickle.loads(pickle.dumps(a)).partial_fit(X[:100])
    assert np.isfinite(moved.score_samples(X)).all()


@pytest.mark.gpu
def test_gpu_scores_equal_those_of_the_cpu(digits):
    X = digits[0]
    est = deep(device="cuda", max_epochs=20).fit(X)
    moved = pickle.loads(pickle.dumps(est)).set_params(device="cpu")
    np.testing.assert_allclose(est.score_samples(X), moved.score_samples(X), rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("objective", ["joint", "layerwise"])
def test_gpu_steps_wait_for_nothing(digits, objective):
    layers = [ConvGMM(5, 4, shared=False), ConvGMM(4)]
    est = deep(layers=layers, device="cuda", objective=objective, max_epochs=1).fit(digits[0])
    defaults = {"joint": JOINT, "layerwise": LAYERWISE}[objective]
    training = defaults.objective(est._stack, defaults.n_steps)
    images = est._check_fitted_images(digits[0])
    training.step(images.batch(np.arange(50), est._stack.like))
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for start in range(50, 500, 50):
            training.step(images.batch(np.arange(start, start + 50), est._stack.like))
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
def test_gpu_detects_and_merges(digits):
    X = digits[0]
    det = DCGMMOutlierDetector(image_shape=(8, 8), max_epochs=3, device="cuda").fit(X)
    assert set(det.predict(X)) == {-1, 1}
    est = DCGMMEstimator(10, image_shape=(8, 8), max_epochs=3, device="cuda").fit(X)
    assert est.predict_proba(X).shape == (len(X), 10)


def test_rows_that_look_like_pixels_are_warned_of(digits):
    X = np.rint(255 * digits[0][:100])
    with pytest.warns(UserWarning, match=r"64 whole numbers, .* set image_shape=\(8, 8\)"):
        DCGMMEstimator(max_epochs=1).fit(X)
    with pytest.warns(UserWarning, match=r"192 whole numbers, .* set image_shape=\(8, 8, 3\)"):
        DCGMMEstimator(max_epochs=1).fit(np.tile(X, 3))
    # Neither features of other kinds, nor where the mixture is meant to be flat.
    for features, layers in [(X / 255, "auto"), (X[:, 1:], "auto"), (X, [ConvGMM(2)])]:
        DCGMMEstimator(layers=layers, max_epochs=1).fit(features)


def test_score_is_a_weighted_mean(digits):
    X = digits[0]
    est = DCGMMEstimator(layers=[ConvGMM(3)], max_epochs=1, random_state=0).fit(X)
    weight = np.random.default_rng(0).random(len(X))
    expected = np.average(est.score_samples(X).astype(float), weights=weight)
    assert est.score(X, sample_weight=weight) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="sample_weight"):
        est.score(X, sample_weight=weight[1:])
    with config_context(enable_metadata_routing=True):
        weighted = clone(est).set_fit_request(sample_weight=True)
        weighted.set_score_request(sample_weight=True)
        folds = KFold(2)
        scores = cross_val_score(weighted, X, cv=folds, params={"sample_weight": weight})
    for score, (train, test) in zip(scores, folds.split(X), strict=True):
        fold = clone(est).fit(X[train], sample_weight=weight[train])
        assert score == pytest.approx(fold.score(X[test], sample_weight=weight[test]), rel=1e-6)


def test_score_leaves_out_what_has_no_weight(digits):
    X = digits[0].astype(np.float64)
    est = DCGMMEstimator(layers=[ConvGMM(3)], max_epochs=1, random_state=0).fit(X)
    far, weight = X[:5].copy(), np.r_[0.0, np.ones(4)]
    far[0, 20] = 1e200
    assert est.score(far) == -np.inf
    assert est.score(far, sample_weight=weight) == pytest.approx(est.score(X[1:5]))
    with pytest.raises(ValueError, match="zero"):
        est.score(far, sample_weight=np.zeros(5))
