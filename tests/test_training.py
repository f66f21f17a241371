"""The layer-wise objective, step by step; and the epochs around any objective."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from skdcgmm import ConvGMM, MaxPool
from skdcgmm.data import Batch
from skdcgmm.model.specs import lay_out, name_layers
from skdcgmm.published.objective import Layerwise
from skdcgmm.published.stack import LayerwiseStack
from skdcgmm.training import Standing, train


def make_stack(layers, image_shape=(1, 4, 4)):
    stack = LayerwiseStack(lay_out(name_layers(layers), image_shape, tiling=False)).double()
    stack.start(torch.zeros(1, *image_shape).double(), torch.Generator().manual_seed(0))
    return stack


@pytest.fixture
def images(rng):
    return torch.from_numpy(rng.normal(0, 0.3, (10, 1, 4, 4)))


def annealed(stack, **options):
    """An objective whose layers have all started and annealed."""
    objective = Layerwise(stack, n_steps=0, **options)
    for training in objective._trainings.values():
        training.state = training.state._replace(radius=training.schedule.final_radius)
    return objective


@pytest.mark.parametrize("shared", [True, False])
def test_a_step_is_the_published_gradient_ascent(images, shared):
    stack = make_stack([ConvGMM(3, 2, shared=shared), ConvGMM(2)])
    emission = stack.emission("convgmm1")
    parameters = [emission.means, emission.root_precisions, stack.weight_logits("convgmm1")]
    before = [p.detach().clone() for p in parameters]
    rate = 1e-3
    annealed(stack, learning_rate=rate).step(Batch(images))
    means, roots, _ = before

    gradients = [torch.zeros_like(p) for p in before]
    patches = images.unfold(2, 2, 2).unfold(3, 2, 2).reshape(10, 4, 4)  # (N, positions, D)
    for image in patches:
        for position, patch in enumerate(image):
            p = 0 if shared else position
            log_density = norm.logpdf(patch, means[p], 1 / roots[p]).sum(1)
            k = int(np.argmax(log_density))  # weights are equal at the start
            # The mean is over images, and over the positions that share the mixture.
            share = 1 / 10 / (4 if shared else 1)
            difference = patch - means[p, k]
            gradients[0][p, k] += share * roots[p, k] ** 2 * difference
            gradients[1][p, k] += share * (1 / roots[p, k] - roots[p, k] * difference**2)
            row, column = (0, 0) if shared else (position // 2, position % 2)
            gradients[2][:, row, column] -= share / 3
            gradients[2][k, row, column] += share
    relative = (1.0, 0.1, 0.2)
    expected = [b + rate * r * g for b, r, g in zip(before, relative, gradients, strict=True)]
    expected[1].clamp_(max=20**0.5)
    for found, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found.detach(), value, rtol=0, atol=1e-12)


def test_no_gradient_crosses_a_layer(images):
    def means_after(layers):
        stack = make_stack(layers)
        objective = annealed(stack)
        for _ in range(3):
            objective.step(Batch(images))
        return stack.pixels.means

    first = ConvGMM(3, 2, 1)
    stacks = [[first, ConvGMM(2)], [first, MaxPool(2), ConvGMM(4)]]
    assert torch.equal(*(means_after(stack) for stack in stacks))


def test_weights_wait_for_the_end_of_annealing(images):
    stack = make_stack([ConvGMM(3)])
    objective = Layerwise(stack, n_steps=100)
    objective.step(Batch(images))
    assert not stack.weight_logits("convgmm1").any()
    annealed_stack = make_stack([ConvGMM(3)])
    annealed(annealed_stack).step(Batch(images))
    assert annealed_stack.weight_logits("convgmm1").any()


def test_a_step_never_moves_a_mean_past_its_data_however_precise():
    stack = make_stack([ConvGMM(1)], (2, 1, 1))
    emission = stack.pixels
    emission.set_min_variance(torch.tensor(1e-8))
    with torch.no_grad():
        emission.means.zero_()
        emission.root_precisions.fill_(1e3)
    annealed(stack).step(Batch(torch.full((5, 2, 1, 1), 0.1, dtype=torch.float64)))
    assert ((emission.means >= 0) & (emission.means <= 0.1 + 1e-12)).all()
    # A precise component far from its data widens, by a tenth at most.
    assert (emission.root_precisions >= 0.9e3 - 1e-9).all()
    assert (emission.root_precisions < 1e3).all()


def test_evaluate_is_the_mean_maximum_score_of_all_layers(images):
    stack = make_stack([ConvGMM(3, 2), ConvGMM(2)])
    with torch.no_grad():
        chain = stack.chain()
        scores = [log_prob + chain.weights[name] for name, log_prob in chain.climb(images)]
        expected = sum(s.amax(1).mean((1, 2)) for s in scores)
    torch.testing.assert_close(Layerwise(stack, 10).evaluate(Batch(images)), expected)


def test_resumed_layers_go_on_whatever_the_new_plan(images):
    stack = make_stack([ConvGMM(3, 2), ConvGMM(2)])
    first = Layerwise(stack, n_steps=10)
    for _ in range(5):
        first.step(Batch(images))
    before = stack.emission("convgmm2").means.detach().clone()
    resumed = Layerwise(stack, n_steps=10_000, progress=first.progress)
    resumed.step(Batch(images))
    assert not torch.equal(stack.emission("convgmm2").means, before)
    assert math.isfinite(resumed.report()["convgmm2__loss"])


@pytest.mark.parametrize("rate", [1e-6, 0.5])
def test_a_resumed_training_takes_todays_learning_rate(images, rate):
    stack = make_stack([ConvGMM(3)])
    first = Layerwise(stack, n_steps=10, learning_rate=0.05)
    first.step(Batch(images))
    resumed = Layerwise(stack, n_steps=10, learning_rate=rate, progress=first.progress)
    assert rate / 1.1 <= resumed.progress.layers["convgmm1"].state.rate <= rate


def test_values_of_epochs_compare_once_all_layers_are_annealed(images):
    stack = make_stack([ConvGMM(3, 2), ConvGMM(2)])
    assert not Layerwise(stack, n_steps=100).comparable
    assert annealed(stack).comparable
    objective = annealed(stack)
    (first, *_) = objective._trainings.values()
    first.state = first.state._replace(radius=1.0)
    assert not objective.comparable


# --- the epochs around any objective ------------------------------------------------------------


class Scripted:
    """An objective that reports given sequences of losses and of validation losses.

    The only parameter of its stack is the number of the epoch that is trained.
    """

    annealed = True
    progress = None

    def __init__(self, losses, validation=(), comparable=None):
        self.losses, self.validation, self.shares = iter(losses), list(validation), []
        self.comparable_since = 1 if comparable is None else comparable
        self.stack = torch.nn.ParameterList([torch.zeros(())])

    @property
    def epoch(self):
        return int(self.stack[0].item())

    @property
    def comparable(self):
        return self.epoch >= self.comparable_since

    @torch.no_grad()
    def step(self, batch):
        self.stack[0] += 1

    def hurry(self, share):
        self.shares.append(share)

    def evaluate(self, batch):
        return batch.x + self.validation[self.epoch - 1]

    def report(self):
        return {"loss": next(self.losses)}


NOTHING = Batch(torch.zeros(1))


def train_scripted(objective, n_epochs, **options):
    with_validation = {"validation": lambda: [NOTHING]} if objective.validation else {}
    return train(
        objective,
        objective.stack,
        **{
            "batches": lambda: [NOTHING],
            "validation": None,
            "max_epochs": n_epochs,
            "tol": 0.1,
            "n_iter_no_change": 2,
            "on_epoch": lambda _: None,
            "on_step": lambda _: None,
            "standing": Standing([]),
            **with_validation,
            **options,
        },
    )


def run(losses, **options):
    return train_scripted(Scripted(losses), len(losses), **options)


def test_training_ends_when_the_loss_stands_still():
    outcome = run([1.0, 2.0, 3.0, 3.05, 3.09, 9.0])
    assert outcome.converged
    assert len(outcome.history) == 5  # two epochs without a gain of more than tol


def test_training_ends_within_an_epoch_when_its_time_is_over():
    objective = Scripted([1.0, 2.0, 9.0])
    clock = iter([0.2, 0.4, 0.6, 1.1])
    outcome = train_scripted(
        objective, 3, time_used=lambda: next(clock), batches=lambda: [NOTHING] * 3
    )
    assert not outcome.converged
    assert [row["loss"] for row in outcome.history] == [1.0, 2.0]
    assert objective.epoch == 4  # steps, the last one of which is the first of its epoch
    assert objective.shares == [0.2, 0.4, 0.6, 1.1]


def test_training_ends_with_the_last_epoch_otherwise():
    outcome = run([1.0, 2.0, 3.0, 3.05, 4.0])
    assert not outcome.converged
    assert [row["epoch"] for row in outcome.history] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_an_error(bad):
    with pytest.raises(FloatingPointError, match="after epoch 2"):
        run([1.0, bad])


@pytest.mark.parametrize(
    ("validation", "best"),
    [([1.0, 3.0, 2.0, 2.5], 2), ([4.0, 3.0, 2.0, 1.0], 1), ([1.0, 2.0, 3.0, 4.0], 4),
     ([1.0, 3.0, 2.0, 3.0], 2)],
)  # fmt: skip
def test_training_ends_with_the_epoch_of_the_best_validation(validation, best):
    objective = Scripted([1.0, 2.0, 3.0, 4.0], validation)
    outcome = train_scripted(objective, 4, n_iter_no_change=9)
    assert objective.epoch == best
    assert [row["validation_loss"] for row in outcome.history] == validation


def test_without_validation_training_ends_with_the_last_epoch():
    objective = Scripted([3.0, 2.0, 1.0])
    train_scripted(objective, 3, n_iter_no_change=9)
    assert objective.epoch == 3


@pytest.mark.parametrize(("since", "last"), [(9, 5), (5, 5), (3, 4), (2, 2)])
def test_only_epochs_that_compare_can_be_the_best(since, last):
    objective = Scripted([1.0] * 5, [9.0, 8.0, 2.0, 3.0, 1.0], comparable=since)
    train_scripted(objective, 5, n_iter_no_change=9)
    assert objective.epoch == last


def test_a_training_that_stands_still_ends_with_its_best_epoch():
    objective = Scripted([1.0] * 9, [1.0, 3.0, 2.0, 1.0, 9.0])
    outcome = train_scripted(objective, 5)
    assert outcome.converged
    assert len(outcome.history) == 4
    assert objective.epoch == 2


def test_a_training_that_goes_on_knows_its_best_epoch():
    reached = []

    def note(standing):
        reached.append(copy.deepcopy(standing))

    validation = [1.0, 5.0, 2.0, 3.0]
    whole = Scripted([1.0] * 4, validation)
    train_scripted(whole, 4, n_iter_no_change=9, on_step=note)
    resumed = Scripted([1.0] * 2, validation)
    resumed.stack[0].detach().fill_(3)
    # After the only step of the third epoch.
    outcome = train_scripted(resumed, 4, n_iter_no_change=9, standing=reached[2])
    assert [row["validation_loss"] for row in outcome.history] == validation
    assert resumed.epoch == whole.epoch == 2


@pytest.mark.parametrize("validation", [(), (1.0, 3.0, 2.0)])
def test_an_interrupted_training_ends_with_an_epoch_that_is_done(validation):
    objective = Scripted([1.0, 2.0, 3.0, 4.0], validation)

    def interrupt(_):
        if objective.epoch == 4:
            raise KeyboardInterrupt

    outcome = train_scripted(objective, 9, on_step=interrupt)
    assert outcome.interrupted
    assert not outcome.converged
    assert len(outcome.history) == 3
    assert objective.epoch == (2 if validation else 3)


def test_validation_is_a_weighted_mean_over_all_images():
    objective = Scripted([0.0], [0.0])
    batches = [
        Batch(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 2.0])),
        Batch(torch.tensor([5.0]), torch.tensor([3.0])),
    ]
    outcome = train_scripted(objective, 1, validation=lambda: batches)
    assert outcome.history[0]["validation_loss"] == pytest.approx((1 + 2 * 3 + 3 * 5) / 6)
    unweighted = [batch._replace(weight=None) for batch in batches]
    outcome = train_scripted(Scripted([0.0], [0.0]), 1, validation=lambda: unweighted)
    assert outcome.history[0]["validation_loss"] == pytest.approx((1 + 2 + 3 + 5) / 4)
