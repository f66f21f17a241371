"""Several processes train one model, each on images of its own."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import distributed, multiprocessing

from skdcgmm import ConvGMM, DCGMMClassifier, DCGMMEstimator, DCGMMOutlierDetector
from skdcgmm.analysis import spreading
from skdcgmm.data import Batch
from skdcgmm.model.specs import lay_out, name_layers
from skdcgmm.model.stack import Stack
from skdcgmm.training import joint, ranks

STACK = {"layers": [ConvGMM(5, 4, shared=False), ConvGMM(6)], "image_shape": (8, 8)}
# So uneven that the second process has no image of most batches.
SHARES = (117, 3)
FEW = {**STACK, "max_epochs": 4, "batch_size": 16, "random_state": 3, "distributed": True}
ALONE = {"distributed": False}
CASES = {
    "joint": DCGMMEstimator(**FEW),
    "weighted": DCGMMEstimator(**FEW),
    "features": DCGMMEstimator(3, **FEW | {"layers": "auto", "image_shape": None}),
    "held out": DCGMMEstimator(3, validation_fraction=0.2, **FEW | {"layers": "auto"}),
    "layerwise": DCGMMEstimator(objective="layerwise", **FEW),
    "layerwise, held out": DCGMMEstimator(objective="layerwise", validation_fraction=0.2, **FEW),
    "classifier": DCGMMClassifier(**FEW),
    "classifier, held out": DCGMMClassifier(validation_fraction=0.2, **FEW),
    "labels in one": DCGMMClassifier(**FEW),
    "detector": DCGMMOutlierDetector(**FEW),
    "detector, held out": DCGMMOutlierDetector(validation_fraction=0.5, **FEW),
    "stream": DCGMMEstimator(**FEW),
}
LEARNT = {
    DCGMMEstimator: {"children_", "distances_"},
    DCGMMClassifier: {"classes_"},
    DCGMMOutlierDetector: {"offset_"},
}
# Of one step: shares of the images, and what goes on.
STEP_SHARES = (70, 50)
STEPS = {
    "joint": DCGMMEstimator(**FEW),
    "layerwise": DCGMMEstimator(objective="layerwise", **FEW),
    "classifier": DCGMMClassifier(**FEW),
}
# Of a model that is worth something: images, and shares of them.
N_TRAINED, GOOD_SHARES = 1200, (900, 300)
GOOD = DCGMMEstimator(
    layers=[ConvGMM(20, 4, shared=False), ConvGMM(40)], image_shape=(8, 8), max_epochs=15,
    batch_size=100, random_state=0, distributed=True,
)  # fmt: skip


class Batches:
    """Arrays, anew in every pass."""

    def __init__(self, X, n_batches=3):
        self.X, self.n_batches = X, n_batches

    def __iter__(self):
        return iter(np.array_split(self.X, self.n_batches))


class Stop(BaseException):
    """The end of a process, whenever it comes."""


def own(rank, shares):
    """The images of a process."""
    return slice(0, shares[0]) if rank == 0 else slice(shares[0], None)


def labels(y):
    """Those of a half of the images, by odd and even numbers."""
    return np.where(np.arange(len(y)) % 2, y, -1)


def fit_case(name, X, y, weight, rank):
    est, part = CASES[name], own(rank, SHARES)
    X, y, weight = X[part], labels(y[: sum(SHARES)])[part], weight[part]
    if name == "stream":
        return est.fit(Batches(X))
    if name == "features":
        return est.fit(X[:, 20:30])
    if name == "labels in one":
        y = np.where(rank == 0, y, -1)
    if isinstance(est, DCGMMClassifier):
        return est.fit(X, y)
    return est.fit(X, sample_weight=weight) if name == "weighted" else est.fit(X)


def one_step(name, path, X, y, weight):
    """An earlier fit, and a step more on all images."""
    est = type(STEPS[name]).load(path).set_params(warm_start=True, max_epochs=1, batch_size=1000)
    est.set_params(distributed=distributed.is_initialized())
    if name == "classifier":
        return est.fit(X, y, sample_weight=weight)
    return est.fit(X, sample_weight=weight)


def by_class(X, y):
    """Images to learn from, the lower digits first."""
    return X[:N_TRAINED][np.argsort(y[:N_TRAINED], kind="stable")]


def gradients(rank, n_images):
    """Those of a small stack on images that processes have, averaged, and of all images."""
    torch.manual_seed(0)
    layers = name_layers([ConvGMM(3, 2, shared=False), ConvGMM(4)])
    stack = Stack(lay_out(layers, (1, 4, 4), tiling=True), n_classes=2).double()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter)
    x, y = torch.randn(sum(n_images), 1, 4, 4).double(), torch.arange(sum(n_images)) % 2

    def losses(part):
        values = joint.log_prob(stack(), Batch(x[part], y=y[part]))
        loss = values.sum() / max(1, len(values))
        stack.zero_grad()
        loss.backward()
        return loss.detach()

    part = own(rank, n_images)
    found = ranks.average_gradients(stack.parameters(), [losses(part)], n_images[rank])
    averaged = [*found, *(p.grad.clone() for p in stack.parameters())]
    return averaged, [losses(slice(None)), *(p.grad for p in stack.parameters())]


def stopped_and_again(path, X):
    """A fit with a checkpoint that ends at a step, and again to the end."""
    est = CASES["joint"].set_params(checkpoint=path, checkpoint_minutes=0)
    count, undisturbed = itertools.count(), joint.Joint.step

    def disturbed(self, batch):
        if next(count) == 11:
            raise Stop
        undisturbed(self, batch)

    joint.Joint.step = disturbed
    with pytest.raises(Stop):
        est.fit(X)
    joint.Joint.step = undisturbed
    distributed.barrier()
    return est.fit(X)


def work(rank, folder, X, y, few, weight):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    for name in CASES:
        fit_case(name, few, y, weight, rank).save(f"{folder}/{name}-{rank}")
    errors, two = [], DCGMMEstimator(2, max_epochs=1, distributed=True)
    for fit in (
        lambda: two.fit(few[:, 20 : 30 + rank]),
        lambda: two.fit(few[:, 20:30], sample_weight=weight if rank else None),
        lambda: two.fit(Batches(few[:, 20:30], 3 + rank)),
        lambda: two.fit(few[:, 20:30], X_val=few[:, 20:30] if rank else None),
    ):
        with pytest.raises(ValueError) as error:
            fit()
        errors.append(str(error.value))
    with ranks.joined(True):
        averaged = [gradients(rank, n_images) for n_images in ((9, 2), (5, 0), (4, 4))]
    if rank == 0:  # the other one does not take part
        DCGMMEstimator(**FEW | ALONE).fit(few).save(f"{folder}/alone")
        with pytest.warns(UserWarning, match="this process trains a model of its own"):
            DCGMMEstimator(**FEW | {"distributed": None}).fit(few).save(f"{folder}/warned")
    part = own(rank, SHARES)
    stopped_and_again(f"{folder}/checkpoint", few[part]).save(f"{folder}/resumed-{rank}")
    GOOD.fit(by_class(X, y)[own(rank, GOOD_SHARES)]).save(f"{folder}/good-{rank}")
    spreading.spread = lambda _, y: y  # among own images only
    part = own(rank, STEP_SHARES)
    for name in STEPS:
        start = f"{folder}/start-{name}"
        est = one_step(name, start, few[part], labels(y[: sum(SHARES)])[part], weight[part])
        est.save(f"{folder}/step-{name}-{rank}")
    torch.save({"errors": errors, "gradients": averaged}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def few(digits):
    """Some images in double precision, with missing values, and very unequal weights."""
    X = digits[0][: sum(SHARES)].astype(np.float64)
    X[SHARES[0] :, :20] = np.nan  # in one process only
    weight = np.random.RandomState(0).rand(sum(SHARES))
    weight[STEP_SHARES[0] :] *= 30
    return X, weight


@pytest.fixture(scope="module")
def folder(digits, few, tmp_path_factory):
    """What two processes have learnt."""
    folder = tmp_path_factory.mktemp("processes")
    X, y = digits
    for name, est in STEPS.items():
        given = (few[0], y[: sum(SHARES)])
        est = clone(est).set_params(**ALONE).fit(*given[: 2 if name == "classifier" else 1])
        est.save(folder / f"start-{name}")
    multiprocessing.start_processes(work, (folder, X, y, *few), nprocs=2, start_method="spawn")
    return Path(folder)


def assert_same(first, second):
    """Two estimators are the same but for what they know of their own images."""
    assert repr(first.history_) == repr(second.history_)
    states = first._stack.state_dict(), second._stack.state_dict()
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    for attribute in ("offset_", "children_", "distances_", "classes_", "converged_"):
        assert hasattr(first, attribute) == hasattr(second, attribute)
        if hasattr(first, attribute):
            np.testing.assert_array_equal(getattr(first, attribute), getattr(second, attribute))


@pytest.mark.parametrize("name", CASES)
def test_all_processes_end_with_the_same_model(folder, few, digits, name):
    first, second = (type(CASES[name]).load(folder / f"{name}-{rank}") for rank in range(2))
    assert_same(first, second)
    X = few[0][:, 20:30] if name == "features" else few[0]
    np.testing.assert_array_equal(first.predict(X), second.predict(X))
    losses = [row.get("validation_loss", row["loss"]) for row in first.history_]
    assert np.isfinite(losses).all()
    assert all(hasattr(first, name) for name in LEARNT[type(first)])
    if hasattr(first, "labels_"):
        part = own(0, SHARES)
        np.testing.assert_array_equal(first.labels_, first.predict(X[part]))


@pytest.mark.parametrize("index", range(3))
def test_gradients_are_those_of_all_images(folder, index):
    for rank in range(2):
        averaged, expected = torch.load(folder / f"{rank}.pt")["gradients"][index]
        assert len(averaged) > 4
        for found, value in zip(averaged, expected, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_that_of_one_process_with_all_images(folder, few, digits, name, monkeypatch):
    monkeypatch.setattr(spreading, "spread", lambda _, y: y)
    (X, weight), y = few, labels(digits[1][: sum(SHARES)])
    start = folder / f"start-{name}"
    alone = one_step(name, start, X, y, weight)
    moved = 0.0
    for rank in range(2):
        est = type(alone).load(folder / f"step-{name}-{rank}")
        assert est.history_[-1]["loss"] == pytest.approx(alone.history_[-1]["loss"], rel=1e-10)
        earlier = type(alone).load(start)._stack.state_dict()
        for key, value in alone._stack.state_dict().items():
            found = est._stack.state_dict()[key]
            torch.testing.assert_close(found, value, rtol=1e-8, atol=1e-8)
            moved = max(moved, float((value - earlier[key]).abs().max()))
    assert moved > 1e-3
    if name == "joint":  # untempered, and so the loss is the weighted mean of what score tells
        score = DCGMMEstimator.load(start).score(X, sample_weight=weight)
        assert est.history_[-1]["loss"] == pytest.approx(score, rel=1e-10)


def test_two_processes_learn_as_well_as_one(folder, digits):
    """Although the first has all low digits, and the second most of the high ones.

    Other seeds change the scores of low digits by 0.2, those of high ones by 0.5 nats. With means
    over images that do not count how many each process has, low digits would lose 1 nat; with
    those of the first process only, high ones would lose 3.
    """
    X, y = digits
    new, low = X[N_TRAINED:], y[N_TRAINED:] < 7
    first, second = (DCGMMEstimator.load(folder / f"good-{rank}") for rank in range(2))
    assert_same(first, second)
    together = first.score_samples(new)
    alone = clone(GOOD).set_params(**ALONE).fit(by_class(X, y)).score_samples(new)
    assert together[low].mean() == pytest.approx(alone[low].mean(), abs=0.5)
    assert together[~low].mean() == pytest.approx(alone[~low].mean(), abs=1)


def test_a_stopped_training_of_processes_goes_on_to_the_same_model(folder):
    for rank in range(2):
        resumed = DCGMMEstimator.load(folder / f"resumed-{rank}")
        assert_same(resumed, DCGMMEstimator.load(folder / f"joint-{rank}"))
    assert not (folder / "checkpoint").exists()


MESSAGES = [
    "X must be of one shape and type in all processes",
    "sample_weight must be given in all processes, or in none",
    "X must have as many batches in all processes",
    "X_val must be given in all processes, or in none",
]


def test_a_process_may_train_alone(folder, few):
    alone = DCGMMEstimator(**FEW | ALONE).fit(few[0])
    for name in ("alone", "warned"):
        assert_same(DCGMMEstimator.load(folder / name), alone)


def test_processes_that_are_not_there(few):
    with pytest.raises(ValueError, match=r"distributed=True needs processes.*torchrun"):
        DCGMMEstimator(**FEW).fit(few[0])
    with pytest.raises(TypeError, match="distributed must be True or False"):
        DCGMMEstimator(**FEW | {"distributed": "yes"}).fit(few[0])


@pytest.mark.parametrize(("index", "message"), list(enumerate(MESSAGES)))
def test_processes_must_agree(folder, index, message):
    for rank in range(2):
        assert message in torch.load(folder / f"{rank}.pt")["errors"][index]
