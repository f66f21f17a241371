"""A training that is stopped, and goes on."""

import itertools
import multiprocessing
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from skdcgmm import ConvGMM, DCGMMClassifier, DCGMMEstimator, DCGMMOutlierDetector, files
from skdcgmm.estimators import clusterer, saving
from skdcgmm.published.objective import Layerwise
from skdcgmm.training import watchers
from skdcgmm.training.joint import Joint

OBJECTIVES = {"joint": Joint, "layerwise": Layerwise}
STACK = {"layers": [ConvGMM(5, 4, shared=False), ConvGMM(6)], "image_shape": (8, 8)}
N_STEPS = 5 * 12


class Stop(BaseException):
    """The end of a process, whenever it comes."""


class Batches:
    """Arrays, anew in every pass."""

    def __init__(self, X):
        self.X = X

    def __iter__(self):
        return iter(np.array_split(self.X, 8))


def estimator(objective="joint", **parameters):
    return DCGMMEstimator(
        objective=objective,
        max_epochs=5,
        batch_size=25,
        **STACK,
        **{"random_state": 0, "validation_fraction": 0.25, "tol": 0.0, **parameters},
    )


def stop_at(step, kind, exception, monkeypatch):
    """Let training end with an exception at one of its steps."""
    count, undisturbed = itertools.count(), kind.step

    def disturbed(self, batch):
        if next(count) == step:
            raise exception
        undisturbed(self, batch)

    monkeypatch.setattr(kind, "step", disturbed)


def assert_same(first, second):
    assert repr(first.history_) == repr(second.history_)  # nan before a layer starts
    states = first._stack.state_dict(), second._stack.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, found in states[0].items():
        assert torch.equal(found, states[1][name]), name
    learnt = set(vars(second)) - set(second.get_params())
    assert set(vars(first)) - set(first.get_params()) == learnt
    for name in learnt & {"labels_", "children_", "distances_", "classes_", "offset_"}:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("step", [1, 11, 12, 37, N_STEPS - 1])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_fit_that_is_stopped_ends_in_the_same_model(
    digits, tmp_path, monkeypatch, objective, step
):
    X, path = digits[0][:400], tmp_path / "fit.checkpoint"
    undisturbed = estimator(objective).fit(X)
    with monkeypatch.context() as patch:
        stop_at(step, OBJECTIVES[objective], Stop, patch)
        with pytest.raises(Stop):
            estimator(objective, checkpoint=path, checkpoint_minutes=0).fit(X)
    assert path.exists()
    steps, step_of = [], OBJECTIVES[objective].step
    monkeypatch.setattr(
        OBJECTIVES[objective], "step", lambda self, batch: (steps.append(1), step_of(self, batch))
    )
    again = estimator(objective, checkpoint=path).fit(X)
    assert len(steps) == N_STEPS - step  # nothing is done twice
    assert not path.exists()
    assert_same(again, undisturbed)


KINDS = {
    "merged": (DCGMMEstimator, {"n_clusters": 3}),
    "classifier": (DCGMMClassifier, {}),
    "classifier with validation": (DCGMMClassifier, {"validation_fraction": 0.2}),
    "detector": (DCGMMOutlierDetector, {}),
    "detector with validation": (DCGMMOutlierDetector, {"validation_fraction": 0.2}),
    "layerwise detector": (DCGMMOutlierDetector, {"objective": "layerwise"}),
    "stream": (DCGMMEstimator, {}),
    "layerwise stream": (DCGMMEstimator, {"objective": "layerwise"}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [2, 13])
def test_every_kind_of_fit_goes_on_to_the_same_model(digits, tmp_path, monkeypatch, kind, step):
    """Without a seed: how labels spread, batches and the start are those of the first run."""
    cls, parameters = KINDS[kind]
    X, y = digits[0][:300], np.where(np.arange(300) % 3, -1, digits[1][:300])
    data = (X, y) if cls is DCGMMClassifier else (Batches(X),) if "stream" in kind else (X,)
    path = tmp_path / "fit.checkpoint"

    def fit(seed, **more):
        rng = np.random.RandomState(seed)
        est = cls(max_epochs=3, batch_size=40, random_state=rng, **STACK, **parameters, **more)
        return est.fit(*data)

    undisturbed = fit(5)
    with monkeypatch.context() as patch:
        objective = OBJECTIVES[parameters.get("objective", "joint")]
        stop_at(step, objective, Stop, patch)
        with pytest.raises(Stop):
            fit(5, checkpoint=path, checkpoint_minutes=0)
    assert_same(fit(77, checkpoint=path), undisturbed)
    assert not path.exists()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_best_epoch_before_a_stop_is_kept(digits, tmp_path, monkeypatch, objective):
    """It is the first that counts, where images held out seem the less likely the later it is."""
    X, path, kind = digits[0][:120], tmp_path / "fit.checkpoint", OBJECTIVES[objective]
    by_epoch, report = [], kind.report

    def fit(**parameters):
        est = estimator(objective, n_iter_no_change=100, **parameters)
        return est.set_params(max_epochs=20).fit(X)

    def reported(self):
        by_epoch.append([p.detach().clone() for p in self._stack.parameters()])
        return report(self)

    monkeypatch.setattr(
        kind, "evaluate", lambda self, batch: torch.full((len(batch.x),), -1.0 * self._steps)
    )
    with monkeypatch.context() as patch:
        patch.setattr(kind, "report", reported)
        undisturbed = fit()
    assert [row["validation_loss"] for row in undisturbed.history_] == [
        -4 * e for e in range(1, 21)
    ]
    best = 0
    if objective == "layerwise":  # upper layers still see other inputs, until all are annealed
        radii = [(row["convgmm1__radius"], row["convgmm2__radius"]) for row in undisturbed.history_]
        best = [max(of_epoch) <= 0.01 for of_epoch in radii].index(True)
        assert 0 < best < 18
    for found, expected in zip(undisturbed._stack.parameters(), by_epoch[best], strict=True):
        assert torch.equal(found, expected)
    with monkeypatch.context() as patch:
        stop_at(4 * 19 + 1, kind, Stop, patch)
        with pytest.raises(Stop):
            fit(checkpoint=path, checkpoint_minutes=0)
    assert_same(fit(checkpoint=path), undisturbed)


@pytest.mark.parametrize("other", [{"w": torch.ones(3)}, {"version": 1, "network": {}}])
def test_another_file_of_torch_is_refused_and_stays(digits, tmp_path, other):
    path = tmp_path / "weights.pt"
    torch.save(other, path)
    content = path.read_bytes()
    message = f"checkpoint={str(path)!r} cannot be read (it is no whole file of skdcgmm"
    with pytest.raises(ValueError, match=re.escape(message)):
        estimator(checkpoint=path).fit(digits[0][:400])
    assert path.read_bytes() == content


def test_a_checkpoint_has_the_format_of_saved_estimators(digits, tmp_path, monkeypatch):
    X, path = digits[0][:400], tmp_path / "fit.checkpoint"
    with monkeypatch.context() as patch:
        stop_at(15, Joint, Stop, patch)
        with pytest.raises(Stop):
            estimator(checkpoint=path, checkpoint_minutes=0).fit(X)
    state = files.read(path, "checkpoint", saving.CLASSES)
    assert state["progress"].steps == 15
    assert state["standing"].n_batches == 15 - 12
    assert [row["epoch"] for row in state["standing"].history] == [1]
    est = estimator().set_params(max_epochs=1).fit(X)
    shapes = {name: tuple(value.shape) for name, value in est._stack.state_dict().items()}
    assert {name: value.shape for name, value in state["stack"].items()} == shapes
    with pytest.raises(ValueError, match="it holds a checkpoint") as error:
        DCGMMEstimator.load(path)
    assert "checkpoint.load" not in str(error.value)  # there is no such thing


def test_a_saved_estimator_is_no_checkpoint_and_stays(digits, tmp_path):
    X, path = digits[0][:400], tmp_path / "model"
    estimator().set_params(max_epochs=1).fit(X).save(path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"cannot be read \(it holds a DCGMMEstimator"):
        estimator(checkpoint=path).fit(X)
    assert path.read_bytes() == content


def test_checkpoints_are_written_as_minutes_pass(digits, tmp_path, monkeypatch):
    clock, written, write = itertools.count(0, 60), [], files.write
    monkeypatch.setattr(watchers, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(files, "write", lambda *a: (written.append(a[0]), write(*a)))
    path = tmp_path / "fit.checkpoint"
    estimator(checkpoint=path, checkpoint_minutes=10).fit(digits[0][:400])
    assert 0.8 * N_STEPS / 10 < len(written) <= N_STEPS / 10
    assert not path.exists()


def test_a_checkpoint_behind_a_link_is_removed_at_the_end(digits, tmp_path):
    link, path = tmp_path / "link", tmp_path / "fit.checkpoint"
    link.symlink_to(path)
    estimator(checkpoint=link, checkpoint_minutes=0).set_params(max_epochs=1).fit(digits[0][:100])
    assert link.is_symlink()
    assert not path.exists()


def fit_forever(X, path):
    est = estimator(checkpoint=path, checkpoint_minutes=0).set_params(max_epochs=2000)
    est.fit(X)


def test_a_process_that_is_killed_leaves_a_whole_file(digits, tmp_path):
    X, path = digits[0][:400], tmp_path / "fit.checkpoint"
    process = multiprocessing.get_context("spawn").Process(target=fit_forever, args=(X, path))
    process.start()
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    process.kill()
    process.join()
    state = files.read(path, "checkpoint", saving.CLASSES)
    assert state["progress"].steps > 0
    # Of another training: its max_epochs differ.
    with pytest.raises(ValueError, match="of another training: its max_epochs is 2000, not 5"):
        estimator(checkpoint=path).fit(X)


def test_other_images_or_a_broken_file_are_refused(digits, tmp_path, monkeypatch):
    X, path = digits[0][:400], tmp_path / "fit.checkpoint"
    with monkeypatch.context() as patch:
        stop_at(3, Joint, Stop, patch)
        with pytest.raises(Stop):
            estimator(checkpoint=path, checkpoint_minutes=0).fit(X)
    pixel = X.copy()
    pixel[252, 30] += 1
    weight = np.arange(400)
    for other in ({"X": pixel}, {"X": X[::-1]}, {"X": X, "sample_weight": weight}):
        with pytest.raises(ValueError, match="its X is 400 of shape"):
            estimator(checkpoint=path).fit(**other)
    path.write_bytes(path.read_bytes()[:1000])
    message = f"checkpoint={str(path)!r} cannot be read"
    with pytest.raises(ValueError, match=re.escape(message)):
        estimator(checkpoint=path).fit(X)
    with pytest.raises(ValueError, match="checkpoint must be a file in a folder that is there"):
        estimator(checkpoint=tmp_path / "nowhere" / "file").fit(X)
    with pytest.raises(TypeError, match="checkpoint must be the path of a file"):
        estimator(checkpoint=3).fit(X)


def test_ctrl_c_leaves_the_model_of_the_last_complete_epoch(digits, monkeypatch):
    X, by_epoch, report = digits[0][:400], [], Joint.report

    def reported(self):
        by_epoch.append([p.detach().clone() for p in self._stack.parameters()])
        return report(self)

    with monkeypatch.context() as patch:
        patch.setattr(Joint, "report", reported)
        undisturbed = estimator().fit(X)
    stop_at(30, Joint, KeyboardInterrupt, monkeypatch)  # in the third epoch of twelve steps
    with pytest.warns(ConvergenceWarning, match="the model is that of the 2 epochs"):
        est = estimator().fit(X)
    assert est.history_ == undisturbed.history_[:2]
    assert not est.converged_
    assert est.history_[1]["validation_loss"] > est.history_[0]["validation_loss"]
    for found, expected in zip(est._stack.parameters(), by_epoch[1], strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(digits, tmp_path, monkeypatch, objective):
    X, path = digits[0][:400], tmp_path / "fit.checkpoint"
    undisturbed = estimator(objective).fit(X)
    est = estimator(objective, checkpoint=path, checkpoint_minutes=0)
    with monkeypatch.context() as patch:
        stop_at(30, OBJECTIVES[objective], KeyboardInterrupt, patch)
        with pytest.warns(ConvergenceWarning, match="was interrupted"):
            est.fit(X)
    assert est.n_iter_ == 2
    assert path.exists()
    assert_same(est.fit(X), undisturbed)
    assert not path.exists()


PASSES = {
    "merging": (DCGMMEstimator, clusterer, "merge"),
    "labels": (DCGMMEstimator, DCGMMEstimator, "_predict_images"),
    "calibration": (DCGMMOutlierDetector, DCGMMOutlierDetector, "_measure"),
}


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_error_after_the_last_epoch_leaves_what_is_trained(
    digits, tmp_path, monkeypatch, name, error
):
    """And the checkpoint, from which the same call goes on."""
    cls, owner, function = PASSES[name]
    X, path = digits[0][:300], tmp_path / "fit.checkpoint"
    parameters = {
        "max_epochs": 3, "batch_size": 40, "random_state": 0, "validation_fraction": None, **STACK
    }  # fmt: skip
    undisturbed = cls(**parameters).fit(X)
    est = cls(checkpoint=path, checkpoint_minutes=0, **parameters).fit(X[:200])  # an earlier fit

    def stopped(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, stopped)
        with pytest.raises(error):
            est.fit(X)
    assert est.history_ == undisturbed.history_
    for found, expected in zip(
        est._stack.parameters(), undisturbed._stack.parameters(), strict=True
    ):
        assert torch.equal(found, expected)
    for attribute in ("labels_", "children_", "distances_", "offset_"):
        assert not hasattr(est, attribute)
    assert path.exists()
    state = files.read(path, "checkpoint", saving.CLASSES)
    assert state["progress"].steps == 3 * 8
    assert_same(est.fit(X), undisturbed)
    assert not path.exists()


def test_ctrl_c_before_an_epoch_is_done_keeps_the_earlier_fit(digits, monkeypatch):
    X = digits[0][:400]
    est = estimator().fit(X)
    before = est.score_samples(X)
    stop_at(3, Joint, KeyboardInterrupt, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        est.fit(X[::-1])
    np.testing.assert_array_equal(est.score_samples(X), before)
