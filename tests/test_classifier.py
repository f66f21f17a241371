"""The classifier: one density of images and classes, against enumeration and by its uses."""

import itertools
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from skdcgmm import ConvGMM, DCGMMClassifier, DCGMMEstimator
from skdcgmm.analysis import spreading
from skdcgmm.data import Batch, Images
from skdcgmm.model.specs import lay_out, name_layers
from skdcgmm.model.stack import Stack
from skdcgmm.model.tables import FLOOR
from skdcgmm.training.joint import Joint, log_prob
from tests import oracle
from tests.test_joint import TINY, randomised

STACK = [ConvGMM(10, 4, shared=False), ConvGMM(20)]


def classifier(**parameters):
    return DCGMMClassifier(
        **{"layers": STACK, "image_shape": (8, 8), "max_epochs": 30, "random_state": 0} | parameters
    )


def stack_of(layers, image_shape, n_classes):
    """A stack for images in the units of the layers."""
    stack = Stack(lay_out(name_layers(layers), image_shape, tiling=True), n_classes)
    one = torch.ones(image_shape, dtype=torch.float64)
    stack.pixels.set_units(one, 0 * one, 0.1 * one, one[None], 0.01)
    return stack


def with_classes(layers, image_shape, seed, n_classes=3):
    """A classifier with random parameters, the same as an estimator's, and its class tables."""
    est = randomised(layers, image_shape, seed)
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(30, *image_shape))
    clf = DCGMMClassifier(layers=layers, max_epochs=1, random_state=seed)
    clf.fit(X, np.arange(30) % n_classes)
    clf.means_, clf.covariances_ = est.means_, est.covariances_
    top = list(est.weights_)[-1]
    clf.weights_ = {top: est.weights_[top]}
    logits = rng.normal(size=clf.class_probabilities_.shape)
    with torch.no_grad():
        clf._stack.class_logits.copy_(torch.from_numpy(logits))
    return est, clf, clf.class_probabilities_


@pytest.fixture(scope="module")
def fitted(digits):
    X, y = digits
    stack = [ConvGMM(40, 4, shared=False), ConvGMM(80)]
    return classifier(layers=stack, max_epochs=80).fit(X[:1200], y[:1200])


@settings(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from(TINY), st.floats(0, 0.6))
def test_class_posteriors_equal_enumeration(seed, stack, missing):
    layers, image_shape = stack
    est, clf, tables = with_classes(layers, image_shape, seed)
    np.testing.assert_allclose(tables.sum(1), 1, rtol=1e-12)
    enumeration = oracle.Enumeration(est)
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(5, int(np.prod(image_shape))))
    X[rng.random(X.shape) < missing] = np.nan
    expected = enumeration.top_responsibilities(X) @ tables
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-9)
    np.testing.assert_allclose(clf.predict_log_proba(X), np.log(expected), atol=1e-6)
    np.testing.assert_array_equal(clf.predict(X), expected.argmax(1))
    oracle.assert_close(clf.score_samples(X), enumeration.log_prob(X), X.shape[1], 1e-10)


@pytest.mark.parametrize(("layers", "image_shape"), TINY)
def test_samples_of_a_class_have_its_exact_mean(layers, image_shape):
    est, clf, tables = with_classes(layers, image_shape, seed=5)
    enumeration = oracle.Enumeration(est)
    of_top = np.array([choices[0][0] for choices in enumeration.choices])
    n = 20_000
    for label in range(3):
        probabilities = enumeration.probabilities * tables[of_top, label]
        mean, covariance = enumeration.moments(probabilities / probabilities.sum())
        drawn, y = clf.sample(n, y=label, random_state=label)
        drawn = drawn.reshape(n, -1)
        assert (y == label).all()
        deviation = np.sqrt(np.diag(covariance))
        assert (abs(drawn.mean(0) - mean) < 5 * deviation / np.sqrt(n)).all()
    drawn, y = clf.sample(n, random_state=0)
    drawn = drawn.reshape(n, -1)
    share = enumeration.probabilities @ tables[of_top]
    np.testing.assert_allclose(np.bincount(y, minlength=3) / n, share, atol=5 / np.sqrt(n) / 2)
    # Images and classes belong together: the mean image of those drawn with a class.
    probabilities = enumeration.probabilities * tables[of_top, 0]
    mean, covariance = enumeration.moments(probabilities / probabilities.sum())
    error = np.sqrt(np.diag(covariance) / (y == 0).sum())
    assert (abs(drawn[y == 0].mean(0) - mean) < 5 * error).all()


def test_responsibilities_of_every_layer_equal_enumeration():
    for layers, image_shape in TINY:
        est = randomised(layers, image_shape, seed=8)
        enumeration = oracle.Enumeration(est)
        X = np.random.default_rng(2).normal(size=(3, int(np.prod(image_shape))))
        X[0, 0] = np.nan
        names = list(est.means_)
        features = est.set_params(transform_layers=names[::-1]).transform(X)
        assert len(est.get_feature_names_out()) == features.shape[1]
        joint = enumeration.joint(X)
        posterior = np.exp(joint - enumeration.log_prob(X)[:, None])  # (images, paths)
        columns = []
        for level, name in enumerate(names[::-1]):
            n_components = est._stack.mixtures[name].n_components
            chosen = np.array([choices[level] for choices in enumeration.choices])
            for position, k in itertools.product(range(chosen.shape[1]), range(n_components)):
                columns.append(posterior[:, chosen[:, position] == k].sum(1))
        np.testing.assert_allclose(features, np.stack(columns, 1), atol=1e-9)


def test_transform_of_layerwise_stacks_are_responsibilities(digits):
    X, _ = digits
    est = DCGMMEstimator(
        layers=STACK, image_shape=(8, 8), objective="layerwise", max_epochs=1, random_state=0
    ).fit(X)
    one = est.set_params(transform_layers="convgmm1").transform(X[:5])
    assert one.shape == (5, 2 * 2 * 10)
    np.testing.assert_allclose(one.reshape(5, 4, 10).sum(2), 1, rtol=1e-5)
    both = est.set_params(transform_layers=[0, -1]).transform(X[:5])
    np.testing.assert_array_equal(both[:, :40], one)
    top = est.set_params(transform_layers=-1).transform(X[:5])
    np.testing.assert_allclose(top, est.predict_proba(X[:5]), rtol=1e-6)


@given(st.integers(0, 1000), st.floats(1, 50), st.floats(1, 4))
def test_the_objective_weighs_labels_as_if_all_images_had_one(seed, label_weight, temperature):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn((6, 1, 2, 2), generator=rng, dtype=torch.float64)
    stack = stack_of([ConvGMM(3, 1), ConvGMM(4)], (1, 2, 2), 3).double()
    stack.start(x, rng)
    with torch.no_grad():
        stack.class_logits.normal_(generator=rng)
    y = torch.tensor([0, 1, 2, -1, 0, -1])
    tree = stack()
    plain = log_prob(tree, Batch(x), temperature)
    found = log_prob(tree, Batch(x, y=y, label_weight=label_weight), temperature)
    weights = (tree.scores(x) / temperature).softmax(1)  # (N, K)
    for n, label in enumerate(y.tolist()):
        expected = plain[n]
        if label >= 0:
            share = (weights[n] * tree.class_tables[:, label] ** (1 / temperature)).sum()
            expected = expected + label_weight * temperature * share.log()
        torch.testing.assert_close(found[n], expected)


def test_a_label_stands_for_as_many_images(digits, monkeypatch):
    def label_weights(images):
        rng, like = np.random.RandomState(0), torch.zeros(())
        return {batch.label_weight for batch in images.epochs(rng, 2, like).batches()}

    images = Images(np.zeros((6, 4)), (1, 2, 2), (4,), y=np.array([0, 1, -1, -1, -1, -1]))
    assert label_weights(images) == {3}
    weighted = Images(
        np.zeros((3, 4)), (1, 2, 2), (4,), np.array([0.5, 1.0, 1.5]), np.array([-1, 0, -1])
    )
    assert label_weights(weighted) == {3}
    assert label_weights(Images(np.zeros((6, 4)), (1, 2, 2), (4,))) == {1}
    seen, step = [], Joint.step
    monkeypatch.setattr(spreading, "_MAX_VALUES", 64 * 20)  # labels do not spread
    monkeypatch.setattr(Joint, "step", lambda self, batch: (seen.append(batch), step(self, batch)))
    few = np.where(np.arange(60) < 20, digits[1][:60], -1)
    classifier(max_epochs=1, batch_size=15).fit(digits[0][:60], few)
    assert [batch.label_weight for batch in seen] == [3] * 4


def test_training_learns_the_shares_of_classes():
    """A component of one class and one of two: their tables are the shares in the data."""
    rng = torch.Generator().manual_seed(0)
    x = torch.cat([torch.full((100, 1, 1, 1), -1.0), torch.full((100, 1, 1, 1), 1.0)])
    x = x + 0.01 * torch.randn(x.shape, generator=rng)
    y = torch.cat([torch.zeros(100), torch.arange(100) % 4 == 0]).long()
    stack = stack_of([ConvGMM(2)], (1, 1, 1), 2)
    stack.start(x[[0, 150]], rng)
    objective = Joint(stack, 400)
    for _ in range(400):
        objective.step(Batch(x, None, y))
    tree = stack()
    low = tree.scores(x).argmax(1)[0]
    found = tree.class_tables.detach()
    torch.testing.assert_close(found[low], torch.tensor([1.0, 0.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(found[1 - low], torch.tensor([0.75, 0.25]), atol=0.02, rtol=0)


def test_it_classifies_from_many_labels_and_from_few(digits, fitted):
    X, y = digits
    assert fitted.score(X[1200:], y[1200:]) > 0.85
    few = np.where(np.arange(1200) < 60, y[:1200], -1)
    labelled = LogisticRegression(max_iter=1000).fit(X[:60], y[:60]).score(X[1200:], y[1200:])
    clf = clone(fitted).fit(X[:1200], few)
    assert clf.score(X[1200:], y[1200:]) > labelled + 0.03
    np.testing.assert_array_equal(clf.classes_, np.arange(10))


def test_samples_of_a_class_are_of_that_class(digits, fitted):
    X, y = digits
    judge = LogisticRegression(max_iter=1000).fit(X[:1200], y[:1200])
    for label in (0, 3, 7):
        images, drawn = fitted.sample(50, y=label, temperature=0)
        assert (drawn == label).all()
        assert (judge.predict(images) == label).mean() > 0.8
    images, drawn = fitted.sample(300, temperature=0)
    assert (judge.predict(images) == drawn).mean() > 0.8
    for wrong in (10, [1, 2], [3], "three"):
        with pytest.raises(ValueError, match=r"y must be one of classes_, \[0 1 .*got"):
            fitted.sample(y=wrong)


@pytest.mark.parametrize("objective", ["joint", "layerwise"])
def test_a_linear_readout_is_a_pipeline(digits, objective):
    X, y = digits
    est = DCGMMEstimator(
        layers=STACK, image_shape=(8, 8), objective=objective, max_epochs=5, random_state=0,
        transform_layers=[0, 1],
    )  # fmt: skip
    pipeline = make_pipeline(est, LogisticRegression(max_iter=1000)).fit(X[:600], y[:600])
    assert pipeline.score(X[600:], y[600:]) > 0.7


def test_names_of_classes_tensors_and_frames(digits, fitted):
    X, y = digits
    letters = np.array(list("abcdefghij"))
    clf, numbers = classifier(max_epochs=5), classifier(max_epochs=5)
    clf.fit(X[:400], letters[y[:400]])
    assert clf.classes_.tolist() == letters.tolist()
    same = numbers.fit(X[:400], y[:400]).predict(X)
    np.testing.assert_array_equal(clf.predict(X), letters[same])
    assert clf.score(X, letters[y]) == numbers.score(X, y)
    assert clf.sample(3, y="b")[1].tolist() == ["b"] * 3
    few = np.where(np.arange(400) < 50, y[:400], -1)
    some = np.where(few >= 0, letters[few].astype(object), -1)
    clf.fit(X[:400], some)
    assert clf.classes_.tolist() == letters.tolist()
    numbers.fit(X[:400], few)
    np.testing.assert_array_equal(clf.predict_proba(X[:20]), numbers.predict_proba(X[:20]))
    tensor = torch.from_numpy(X[:20])
    assert torch.equal(fitted.predict(tensor), torch.from_numpy(fitted.predict(X[:20])))
    assert isinstance(fitted.predict_proba(tensor), torch.Tensor)
    again = classifier(max_epochs=2).fit(tensor, torch.arange(20) % 2)
    assert again.classes_.tolist() == [0, 1]


def test_pipelines_searches_and_storing(digits, fitted):
    X, y = digits
    search = GridSearchCV(
        make_pipeline(MinMaxScaler(), classifier(max_epochs=2)),
        {"dcgmmclassifier__layers": [STACK, "dcgmm-a"]},
        cv=2,
    ).fit(X[:300], y[:300])
    assert search.best_score_ > 0.2
    restored = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(restored.predict_proba(X[:9]), fitted.predict_proba(X[:9]))
    est = DCGMMEstimator(layers=fitted.layers, image_shape=(8, 8), max_epochs=1).fit(X[:1200])
    assert fitted.n_parameters_ == est.n_parameters_  # those of the density of images


def test_warm_start_goes_on_with_the_same_classes(digits):
    X, y = digits
    clf = classifier(max_epochs=3, warm_start=True).fit(X[:300], y[:300])
    before = clf.score_samples(X[:300]).mean()
    clf.fit(X[:300], y[:300])
    assert clf.score_samples(X[:300]).mean() > before
    expected = clf.predict_proba(X[:9])
    with pytest.raises(ValueError, match=r"y must have the classes of the fit.*\[0 1 2 3 4 5"):
        clf.fit(X[:300], y[:300] % 5)
    np.testing.assert_array_equal(clf.predict_proba(X[:9]), expected)


@pytest.mark.parametrize(
    ("make_y", "error", "message"),
    [
        (lambda y: np.full(len(y), -1), ValueError, "y must hold the class of some images"),
        (lambda y: np.where(y == 0, 1, -1), ValueError, "at least two classes besides -1"),
        (lambda y: y[:-1], ValueError, "inconsistent numbers of samples"),
        (lambda _: None, ValueError, "requires y to be passed"),
        (lambda y: ["a" if v > 4 else -1 for v in y], ValueError, "dtype object"),
        (lambda y: np.where(y > 4, np.nan, 1.0), ValueError, "Give -1 where"),
        (lambda y: np.where(y > 4, None, "a"), ValueError, "Give -1 where"),
        (lambda y: np.where(y > 4, pd.NA, "a"), ValueError, "Give -1 where"),
        (lambda y: pd.Series(y, dtype="Int64").where(y > 4), ValueError, "Give -1 where"),
        (lambda _: pd.Series(["a"] * 99 + [None], dtype="string"), ValueError, "Give -1 where"),
        (lambda _: pd.Series(["a"] * 99 + [None], dtype="category"), ValueError, "Give -1 where"),
        (lambda _: pl.Series(["a"] * 99 + [None]), ValueError, "Give -1 where"),
        (lambda y: torch.from_numpy(y).to_sparse(), TypeError, "y must be a dense tensor"),
        (
            lambda y: np.where(y > 4, y.astype(np.uint8), -1).astype(np.uint8),
            ValueError,
            "becomes 255",
        ),
        (lambda y: y + 0.5, ValueError, "Unknown label type: continuous"),
        (
            lambda y: np.where(y > 4, y.astype(object), "c1"),
            TypeError,
            r"numbers or names of classes, not both.*\['int', 'str'\]",
        ),
    ],
)
def test_bad_labels(digits, fitted, make_y, error, message):
    X, y = digits[0][:100], digits[1][:100]
    clf = pickle.loads(pickle.dumps(fitted))
    before = clf.__dict__.copy()
    with pytest.raises(error, match=f"(?s){message}"):
        clf.fit(X, make_y(y))
    assert clf.__dict__ == before


def test_densities_of_classes_add_up_to_the_density(digits, fitted):
    X, y = digits[0][:50], digits[1][:50]
    of_classes = np.stack([fitted.score_samples(X, label) for label in fitted.classes_], 1)
    prior = fitted.weights_["convgmm2"] @ fitted.class_probabilities_
    expected = fitted.score_samples(X)
    np.testing.assert_allclose(logsumexp(of_classes, 1, b=prior), expected, rtol=1e-4, atol=1e-3)
    posterior = np.exp(of_classes - expected[:, None]) * prior
    np.testing.assert_allclose(posterior, fitted.predict_proba(X), atol=1e-3)
    # Each its own, or none.
    some = np.where(np.arange(50) % 2, y, -1)
    own = np.where(some >= 0, of_classes[np.arange(50), y], expected)
    np.testing.assert_allclose(fitted.score_samples(X, some), own, rtol=1e-4)


@pytest.mark.parametrize("pixels", ["tiles", "pyramid"])
def test_what_is_filled_in_and_drawn_is_of_the_class(digits, pixels):
    X, y = digits
    clf = classifier(pixels=pixels, max_epochs=15).fit(X[:900], y[:900])
    upper = X[900:1000].copy()
    upper[:, 32:] = np.nan
    known, truth = y[900:1000], X[900:1000]
    errors = [np.square(clf.impute(upper, y=labels) - truth).mean() for labels in (None, known)]
    assert errors[1] < 0.95 * errors[0]
    shares = []
    for labels in (None, known):
        drawn = {"method": "sample", "temperature": 0, "random_state": 0}
        whole = clf.impute(upper, y=labels, **drawn)
        similar = clf.sample_like(upper, y=labels, temperature=0, random_state=0)[:, 0]
        shares.append([(clf.predict(images) == known).mean() for images in (whole, similar)])
    assert (np.array(shares[1]) > np.array(shares[0]) + 0.05).all()
    # One class for all, and whatever order they are in.
    threes = np.full(100, 3)
    np.testing.assert_array_equal(clf.impute(upper, y=3), clf.impute(upper, y=threes))
    order = np.argsort(known)
    np.testing.assert_allclose(
        clf.impute(upper[order], y=known[order]), clf.impute(upper, y=known)[order], atol=1e-5
    )


@pytest.mark.parametrize("method", ["score_samples", "impute", "sample_like"])
def test_classes_that_there_are_not(digits, fitted, method):
    X = digits[0][:4]
    call = getattr(fitted, method)
    with pytest.raises(ValueError, match=r"y must be one of classes_.*got 11"):
        call(X, y=[1, 2, 11, -1])
    with pytest.raises(ValueError, match="y must be one of classes_"):
        call(X, y="three")
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        call(X, y=[1, 2])
    with pytest.raises(ValueError, match="Give -1 where"):
        call(X, y=[1, 2, None, 3])
    far = X.copy()
    far[2, 5] = 1e20
    if method == "impute":
        with pytest.raises(ValueError, match="the first such image is row 2"):
            call(far, y=[1, 2, 1, 3])
    if method == "score_samples":
        clf = pickle.loads(pickle.dumps(fitted)).set_params(score_method="layer")
        with pytest.raises(ValueError, match="score_method must be 'density' where y is given"):
            clf.score_samples(X, 3)


@pytest.mark.parametrize("names", [False, True])
def test_images_of_unknown_class_do_not_count_in_the_score(digits, fitted, names):
    X, y = digits[0][:200], digits[1][:200]
    clf = fitted
    if names:
        y = np.array(list("abcdefghij"))[y].astype(object)
        clf = classifier(max_epochs=2).fit(X, y)
    known = np.arange(200) % 3 == 0
    few = np.where(known, y, -1)
    assert clf.score(X, few) == clf.score(X[known], y[known])
    of_objects = np.array([np.int64(label) if label == -1 else label for label in few], object)
    assert clf.score(X, of_objects) == clf.score(X, few)
    weight = np.linspace(0, 1, 200)
    expected = clf.score(X[known], y[known], sample_weight=weight[known])
    found = clf.score(X, few, sample_weight=torch.from_numpy(weight))
    assert found == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="y must hold the class of some images"):
        clf.score(X, np.full(200, -1))
    with pytest.raises(ValueError, match="Give -1 where"):
        clf.score(X, np.where(known, y, None))


def test_a_search_over_images_of_which_few_are_labelled(digits):
    X, y = digits
    few = np.where(np.arange(600) < 150, y[:600], -1)
    search = GridSearchCV(classifier(), {"max_epochs": [1, 30]}, cv=2).fit(X[:600], few)
    assert search.best_params_ == {"max_epochs": 30}
    assert search.best_score_ > 0.6


def test_weights_choose_what_is_learnt(digits):
    X, y = digits[0][:200], digits[1][:200]
    with pytest.raises(ValueError, match="leave some labelled image a weight"):
        classifier().fit(X, np.where(np.arange(200) < 100, y, -1), np.arange(200) >= 100)
    clf = classifier(layers=[ConvGMM(1)]).fit(X, y % 2, sample_weight=np.where(y % 2, 3.0, 1.0))
    odd = 3 * (y % 2).sum()
    share = odd / (odd + (y % 2 == 0).sum())
    np.testing.assert_allclose(clf.class_probabilities_, [[1 - share, share]], atol=0.03)


def test_floors_of_class_tables_keep_every_class_possible(fitted):
    assert fitted.class_probabilities_.min() >= 0.9 * FLOOR / 10


def test_a_class_without_weight_is_known_but_not_found(digits):
    X, y = digits[0][:300], digits[1][:300] % 3
    clf = classifier(max_epochs=10).fit(X, y, sample_weight=y != 1)
    assert clf.classes_.tolist() == [0, 1, 2]
    assert clf.predict_proba(X).shape == (300, 3)
    assert (clf.predict(X)[y != 1] == y[y != 1]).mean() > 0.8
    assert not (clf.predict(X) == 1).any()


def test_weights_stay_with_their_images_when_labels_spread(digits):
    """Images of weight zero change nothing, wherever they stand."""
    X, y = digits[0][:300], digits[1][:300]
    few = np.where(np.arange(300) < 100, y, -1)
    expected = classifier(max_epochs=3).fit(X, few, np.linspace(1, 2, 300))
    with_others = np.insert(X, [0, 50, 200], X[:3][::-1], axis=0)
    labels = np.insert(few, [0, 50, 200], [5, 5, -1])
    weights = np.insert(np.linspace(1, 2, 300), [0, 50, 200], 0)
    found = clone(expected).fit(with_others, labels, weights)
    np.testing.assert_allclose(found.predict_proba(X), expected.predict_proba(X), atol=1e-6)


def test_all_labelled_images_take_part_in_spreading(monkeypatch, rng):
    monkeypatch.setattr("skdcgmm.data.images._N_SAMPLE", 50)
    y = np.full(200, -1)
    y[rng.choice(200, 20, replace=False)] = np.arange(20) % 2
    images = Images(rng.normal(size=(200, 2)), (2, 1, 1), (2,), y=y)
    spread = spreading.spread_labels(images, np.random.RandomState(0), torch.device("cpu"))
    assert (spread.y >= 0).sum() == 50
    np.testing.assert_array_equal(spread.y[y >= 0], y[y >= 0])


def test_unknown_transform_layers_are_found_before_training(digits):
    X = digits[0][:100]
    for layers, message in (("other", "transform_layers must be a mixture"), ([], "at least one")):
        with pytest.raises(ValueError, match=message):
            DCGMMEstimator(
                layers=STACK, image_shape=(8, 8), transform_layers=layers, max_epochs=10**6
            ).fit(X)


@pytest.mark.gpu
def test_classes_on_a_gpu(digits):
    X, y = digits
    few = np.where(np.arange(len(y)) < 100, y, -1)
    tensor = torch.from_numpy(X).cuda()
    clf = classifier(device="cuda").fit(tensor, few)
    assert clf.predict(tensor).is_cuda
    assert clf.score(tensor, torch.from_numpy(y).cuda()) > 0.7
    assert clf.sample(5, y=3, temperature=0)[0].shape == (5, 64)
    np.testing.assert_allclose(
        pickle.loads(pickle.dumps(clf)).set_params(device="cpu").predict_proba(X[:50]),
        clf.predict_proba(X[:50]),
        atol=1e-3,
    )


def test_a_fit_whose_last_sample_has_no_label_is_a_fit(digits, monkeypatch):
    monkeypatch.setattr(spreading, "_MAX_VALUES", 64 * 5)
    X, y = digits[0][:400], np.full(400, -1)
    y[:5] = digits[1][:5]
    clf = DCGMMClassifier(layers=STACK, image_shape=(8, 8), max_epochs=1, batch_size=20)
    for seed in range(5):
        assert np.isfinite(clf.set_params(random_state=seed).fit(X, y).predict_proba(X)).all()
