"""A training that is stopped, and goes on."""

import itertools
import json
import multiprocessing
import re
import time

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from skdcgmm import ConvGMM, DCGMMClassifier, DCGMMEstimator
from skdcgmm._checkpoint import pack_generator, unpack_generator
from skdcgmm._joint import Joint
from skdcgmm._layerwise import Layerwise

OBJECTIVES = {"joint": Joint, "layerwise": Layerwise}
N_STEPS = 5 * 12


class Stop(BaseException):
    """The end of a process, whenever it comes."""


def estimator(objective="joint", **parameters):
    return DCGMMEstimator(
        layers=[ConvGMM(5, 4, shared=False), ConvGMM(6)],
        image_shape=(8, 8),
        objective=objective,
        max_epochs=5,
        batch_size=25,
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
    assert first.history_ == second.history_
    for a, b in zip(first._network.parameters(), second._network.parameters(), strict=True):
        assert torch.equal(a, b)


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


def test_a_classifier_that_is_stopped_draws_the_same_again(digits, tmp_path, monkeypatch):
    """Without a seed: how labels spread, batches and the start are those of the first run."""
    X, y, path = digits[0][:300], np.where(np.arange(300) % 3, -1, digits[1][:300]), tmp_path / "c"

    def classifier(**parameters):
        layers = [ConvGMM(5, 4, shared=False), ConvGMM(6)]
        return DCGMMClassifier(layers=layers, image_shape=(8, 8), max_epochs=3, **parameters)

    rng = np.random.RandomState(5)
    undisturbed = classifier(random_state=rng).fit(X, y)
    with monkeypatch.context() as patch:
        stop_at(4, Joint, Stop, patch)
        rng = np.random.RandomState(5)
        est = classifier(random_state=rng, checkpoint=path, checkpoint_minutes=0)
        with pytest.raises(Stop):
            est.fit(X, y)
    rng = np.random.RandomState(77)
    assert_same(classifier(random_state=rng, checkpoint=path).fit(X, y), undisturbed)


@pytest.mark.parametrize("kind", ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"])
def test_every_generator_of_numpy_goes_on_from_its_state(kind):
    rng = np.random.RandomState(getattr(np.random, kind)(0))
    rng.normal(size=3), rng.randint(5)
    state = json.loads(json.dumps(pack_generator(rng)))
    back = unpack_generator(state)
    np.testing.assert_array_equal(back.normal(size=9), rng.normal(size=9))
    np.testing.assert_array_equal(back.randint(99, size=9), rng.randint(99, size=9))


@pytest.mark.parametrize("position", [-1, 5, 10**8])
def test_a_buffer_is_not_read_past_its_end(position):
    state = pack_generator(np.random.RandomState(np.random.Philox(0)))
    with pytest.raises(ValueError, match="out of range"):
        unpack_generator({**state, "buffer_pos": position})


@pytest.mark.parametrize("other", [{"w": torch.ones(3)}, {"version": 1, "network": {}}])
def test_another_file_of_torch_is_refused_and_stays(digits, tmp_path, other):
    path = tmp_path / "weights.pt"
    torch.save(other, path)
    content = path.read_bytes()
    message = f'checkpoint={str(path)!r} cannot be read (ValueError("it lacks'
    with pytest.raises(ValueError, match=re.escape(message)):
        estimator(checkpoint=path).fit(digits[0][:400])
    assert path.read_bytes() == content


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
    state = torch.load(path, weights_only=False)
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
    state = torch.load(path, weights_only=False)
    with pytest.raises(ValueError, match="seed is no bit generator"):
        unpack_generator({**state["start"], "bit_generator": "seed"})
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
        by_epoch.append([p.detach().clone() for p in self._network.parameters()])
        return report(self)

    with monkeypatch.context() as patch:
        patch.setattr(Joint, "report", reported)
        undisturbed = estimator().fit(X)
    stop_at(30, Joint, KeyboardInterrupt, monkeypatch)  # in the third epoch of twelve steps
    with pytest.warns(ConvergenceWarning, match="the model is that of epoch 2"):
        est = estimator().fit(X)
    assert est.history_ == undisturbed.history_[:2]
    assert not est.converged_
    for found, expected in zip(est._network.parameters(), by_epoch[1], strict=True):
        assert torch.equal(found, expected)


def test_ctrl_c_before_an_epoch_is_done_keeps_the_earlier_fit(digits, monkeypatch):
    X = digits[0][:400]
    est = estimator().fit(X)
    before = est.score_samples(X)
    stop_at(3, Joint, KeyboardInterrupt, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        est.fit(X[::-1])
    np.testing.assert_array_equal(est.score_samples(X), before)
