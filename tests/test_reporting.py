"""What an estimator says of itself: summary, HTML, progress bar, callbacks."""

import re

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils import estimator_html_repr

from skdcgmm import ConvGMM, DCGMMClassifier, DCGMMEstimator, DCGMMOutlierDetector, MaxPool
from skdcgmm.training.watchers import HAS_CALLBACKS

needs_callbacks = pytest.mark.skipif(not HAS_CALLBACKS, reason="scikit-learn before 1.9")
IMAGES = {"image_shape": (8, 8), "max_epochs": 3, "random_state": 0}


@pytest.fixture(scope="module")
def est(digits):
    return DCGMMEstimator(5, validation_fraction=0.1, **IMAGES).fit(digits[0][:300])


def columns(summary):
    """The table of a summary as rows of cells."""
    return [re.split(r"\s{2,}", line) for line in summary.splitlines()[1:]]


def test_summary_adds_up(est):
    title, *_ = est.summary().splitlines()
    assert title == "DCGMMEstimator, one density of images of 8 x 8 x 1"
    rows = [
        dict(zip(columns(est.summary())[0], row, strict=False)) for row in columns(est.summary())
    ]
    layers = {row["layer"]: row for row in rows if row["layer"].startswith("convgmm")}
    assert set(layers) == set(est.means_)
    counts = [int(row["parameters"].replace(",", "")) for row in layers.values()]
    assert sum(counts) == est.n_parameters_
    assert f"{est.n_parameters_:,} parameters." in est.summary()
    assert f"5 clusters, merged from {len(est.clusters_)} components." in est.summary()
    assert f"{est.n_iter_} epochs; log-likelihood {est.history_[-1]['loss']:.4g}, " in est.summary()
    best = max(est.history_, key=lambda row: row["validation_loss"])
    assert f"{best['validation_loss']:.4g} held out after epoch {best['epoch']}" in est.summary()


def test_active_components_are_those_with_weight(digits):
    est = DCGMMEstimator(layers=[ConvGMM(4)], **IMAGES).fit(digits[0][:100])
    est.weights_ = {"convgmm1": np.array([0.5, 0.44, 0.03, 0.03])}
    assert columns(est.summary())[1][4] == "4"
    est.weights_ = {"convgmm1": np.array([0.5, 0.46, 0.02, 0.02])}  # a tenth of 1/4 is .025
    assert columns(est.summary())[1][4] == "2"


def test_active_components_of_each_position(digits):
    layers = [ConvGMM(4, 4, shared=False), ConvGMM(1)]
    est = DCGMMEstimator(layers=layers, **IMAGES).fit(digits[0][:100])
    tables = np.zeros((1, 4, 4))  # of the only component: what each of four positions shows
    tables[0, np.arange(4), np.arange(4)] = 1
    est.means_ = {"convgmm2": tables.reshape(1, 16)}
    assert columns(est.summary())[1][4] == "1"


def test_summary_before_a_fit():
    stack = [("parts", ConvGMM(9, 4, 2)), MaxPool(2), ConvGMM(5)]
    est = DCGMMEstimator(layers=stack, objective="layerwise", image_shape=(8, 8))
    assert columns(est.summary())[1:4] == [
        ["parts", "4 x 4 by 2 x 2", "3 x 3", "9", "296"],
        ["maxpool1", "2 x 2", "2 x 2"],
        ["convgmm1", "2 x 2", "1 x 1", "5", "364"],
    ]
    assert "Not fitted." in est.summary()
    with pytest.raises(NotFittedError, match="set image_shape"):
        DCGMMEstimator().summary()


def test_html_ends_with_the_summary_and_never_fails(est):
    shown = est._repr_mimebundle_()["text/html"] if HAS_CALLBACKS else est._html_repr()
    assert shown.endswith(f"<pre>{est.summary()}</pre>")
    assert shown.startswith(estimator_html_repr(est)[:20])  # after what scikit-learn draws
    assert DCGMMOutlierDetector(image_shape=(8, 8))._html_repr().endswith("Not fitted.</pre>")
    for bad in (DCGMMEstimator(), DCGMMEstimator(layers=3, image_shape=(8, 8))):
        assert not bad._html_repr().endswith("</pre>")


def test_html_escapes_names(digits):
    name = "<script>"
    est = DCGMMEstimator(layers=[(name, ConvGMM(2, 4)), ConvGMM(2)], image_shape=(8, 8))
    summary = est._html_repr().rsplit("<pre>", 1)[-1]
    assert "&lt;script&gt;" in summary
    assert name not in summary


def test_progress_bar(digits, capsys):
    est = DCGMMEstimator(5, verbose=1, validation_fraction=0.1, **IMAGES).fit(digits[0][:100])
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    shown = printed.rsplit("\r", 1)[-1]
    assert "DCGMMEstimator: 100%" in shown
    assert f"{est.n_iter_}/3" in shown
    for figure in (
        "log-likelihood=",
        "held out=",
        f"active={len(est.clusters_)}/{len(est.clusters_)}",
    ):
        assert figure in shown
    clone(est).set_params(verbose=0).fit(digits[0][:100])
    assert capsys.readouterr().err == ""


class Log:
    """A callback that notes what it is told, and ends training after some epochs."""

    def __init__(self, last=None):
        self.events, self.fitted, self.last = [], [], last

    def setup(self, estimator, context):
        self.events.append(("setup", context.max_subtasks))

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None):
        self.events.append(("begin", context.task_name, len(X), y is None))

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.events.append(("end", context.task_name))
        self.fitted.append(fitted_estimator)
        return context.task_name == "epoch" and context.task_id + 1 == self.last

    def teardown(self, estimator, context):
        self.events.append(("teardown",))


EPOCH = [("begin", "epoch", 100, True), ("end", "epoch")]


@needs_callbacks
def test_callbacks_see_every_epoch(digits):
    X = digits[0][:100]
    plain = DCGMMEstimator(5, **IMAGES).fit(X)
    log = Log()
    est = clone(plain).set_callbacks(log).fit(X)
    assert log.events == [
        ("setup", 3), ("begin", "fit", 100, True), *(3 * EPOCH), ("end", "fit"), ("teardown",)
    ]  # fmt: skip
    # Being watched changes nothing, and the last epoch is what fit leaves.
    np.testing.assert_array_equal(est.score_samples(X), plain.score_samples(X))
    for last in log.fitted[-2:]:
        np.testing.assert_array_equal(last.predict_proba(X), plain.predict_proba(X))
    assert [len(fitted.history_) for fitted in log.fitted] == [1, 2, 3, 3]
    shorter = clone(plain).set_params(max_epochs=1)
    assert shorter.fit(X).n_features_in_ == log.fitted[0].n_features_in_
    est.partial_fit(X)
    assert log.events[-1] == ("teardown",)


@needs_callbacks
def test_being_watched_leaves_a_users_generator_alone(digits):
    X = digits[0][:100]
    scores = []
    for callbacks in ((), (Log(),)):
        rng = np.random.RandomState(0)
        detector = DCGMMOutlierDetector(**{**IMAGES, "random_state": rng})
        scores.append(detector.set_callbacks(*callbacks).fit(X).score_samples(X))
    np.testing.assert_array_equal(*scores)


@needs_callbacks
def test_a_callback_may_save_what_it_sees(digits, tmp_path):
    class Save(Log):
        def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
            fitted_estimator.save(tmp_path / "model")

    est = DCGMMEstimator(5, **IMAGES).set_callbacks(Save()).fit(digits[0][:100])
    saved = DCGMMEstimator.load(tmp_path / "model")
    np.testing.assert_array_equal(saved.predict(digits[0]), est.predict(digits[0]))


@needs_callbacks
def test_a_callback_can_end_training(digits):
    log = Log(last=2)
    est = DCGMMEstimator(5, **IMAGES).set_callbacks(log).fit(digits[0][:100])
    assert est.n_iter_ == 2
    assert log.events[-2:] == [("end", "fit"), ("teardown",)]


@needs_callbacks
def test_callbacks_are_let_go_when_training_fails(digits):
    log = Log()
    est = DCGMMEstimator(5, learning_rate=1e30, **IMAGES).set_callbacks(log)
    with pytest.raises(ValueError, match="diverge"):
        est.fit(digits[0][:100])
    assert log.events[-1] == ("teardown",)
    assert set(vars(est)) == {*est.get_params(), "_skl_callbacks"}


@needs_callbacks
def test_callbacks_are_let_go_when_merging_is_stopped(digits, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    log = Log(last=1)
    est = DCGMMEstimator(5, **IMAGES).fit(digits[0][:100])
    attributes = set(vars(est)) - {"labels_", "children_", "distances_"}
    monkeypatch.setattr("skdcgmm.estimators.clusterer.merge", stop)
    with pytest.raises(KeyboardInterrupt):
        est.set_callbacks(log).fit(digits[0][:100])
    assert log.events[-1] == ("teardown",)
    assert set(vars(est)) == attributes | {"_skl_callbacks"}


@needs_callbacks
def test_the_model_is_that_of_the_best_epoch_by_validation(digits):
    log = Log()
    layers = [ConvGMM(20, 4, shared=False), ConvGMM(20)]
    est = DCGMMEstimator(
        layers=layers, reg_covar=0.001, validation_fraction=0.3, **{**IMAGES, "max_epochs": 80}
    )
    est.set_callbacks(log).fit(digits[0][:60])
    best = int(np.argmax([row["validation_loss"] for row in est.history_]))
    assert best < est.n_iter_ - 1
    for name, means in est.means_.items():
        np.testing.assert_array_equal(means, log.fitted[best].means_[name])
        assert (means != log.fitted[est.n_iter_ - 1].means_[name]).any()
    assert f"held out after epoch {best + 1}" in est.summary()


@needs_callbacks
@pytest.mark.parametrize(
    ("est", "scoring"),
    [
        (DCGMMEstimator(5, **IMAGES), "adjusted_rand_score"),
        (DCGMMOutlierDetector(**IMAGES), "roc_auc"),
        (DCGMMClassifier(**IMAGES), "accuracy"),
    ],
)
def test_scikit_learns_monitor(digits, est, scoring):
    from sklearn.callback import ScoringMonitor

    X, y = digits[0][:300], np.where(digits[1][:300] == 0, -1, 1)
    if isinstance(est, DCGMMClassifier):
        y = digits[1][:300]
    monitor = ScoringMonitor(scoring=scoring)
    est = clone(est).set_callbacks(monitor).fit(X, y)
    scores = [row[scoring] for row in monitor.get_logs().data]
    assert len(scores) == 4
    assert np.isfinite(scores).all()


@needs_callbacks
def test_scikit_learns_progress_bar_in_a_search(digits, capsys):
    from sklearn.callback import ProgressBar

    search = GridSearchCV(DCGMMEstimator(**IMAGES), {"n_clusters": [2, 3]}, cv=2)
    search.set_callbacks(ProgressBar()).fit(digits[0][:60])
    assert "DCGMMEstimator - fit" in capsys.readouterr().out
