"""The layer-wise objective, step by step."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from skdcgmm import ConvGMM, MaxPool, _build
from skdcgmm._batch import Batch
from skdcgmm._composition import name_layers
from skdcgmm._layerwise import Layerwise
from skdcgmm._training import Standing, train


def make_network(layers, image_shape=(1, 4, 4)):
    network = _build.build(name_layers(layers), image_shape, joint=False).double()
    network.initialise(torch.zeros(1, *image_shape).double(), torch.Generator().manual_seed(0))
    return network


@pytest.fixture
def images(rng):
    return torch.from_numpy(rng.normal(0, 0.3, (10, 1, 4, 4)))


def annealed(network, **options):
    """An objective whose layers have all started and annealed."""
    objective = Layerwise(network, n_steps=0, **options)
    for training in objective._trainings.values():
        training.state = training.state._replace(radius=training.schedule.final_radius)
    return objective


@pytest.mark.parametrize("shared", [True, False])
def test_a_step_is_the_published_gradient_ascent(images, shared):
    network = make_network([ConvGMM(3, 2, shared=shared), ConvGMM(2)])
    layer = network.mixtures["convgmm1"]
    emission = layer.emission
    before = [p.detach().clone() for p in (emission.means, emission.root_precisions, layer.logits)]
    rate = 1e-3
    annealed(network, learning_rate=rate).step(Batch(images))
    after = [emission.means, emission.root_precisions, layer.logits]
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
    for found, value in zip(after, expected, strict=True):
        torch.testing.assert_close(found.detach(), value, rtol=0, atol=1e-12)


def test_no_gradient_crosses_a_layer(images):
    def means_after(layers):
        network = make_network(layers)
        objective = annealed(network)
        for _ in range(3):
            objective.step(Batch(images))
        return network.mixtures["convgmm1"].emission.means

    first = ConvGMM(3, 2, 1)
    stacks = [[first, ConvGMM(2)], [first, MaxPool(2), ConvGMM(4)]]
    assert torch.equal(*(means_after(stack) for stack in stacks))


def test_weights_wait_for_the_end_of_annealing(images):
    network = make_network([ConvGMM(3)])
    objective = Layerwise(network, n_steps=100)
    objective.step(Batch(images))
    assert not network.top.logits.any()
    annealed_network = make_network([ConvGMM(3)])
    annealed(annealed_network).step(Batch(images))
    assert annealed_network.top.logits.any()


def test_a_step_never_moves_a_mean_past_its_data_however_precise():
    network = make_network([ConvGMM(1)], (2, 1, 1))
    emission = network.top.emission
    emission.set_min_variance(torch.tensor(1e-8))
    with torch.no_grad():
        emission.means.zero_()
        emission.root_precisions.fill_(1e3)
    annealed(network).step(Batch(torch.full((5, 2, 1, 1), 0.1, dtype=torch.float64)))
    assert ((emission.means >= 0) & (emission.means <= 0.1 + 1e-12)).all()
    # A precise component far from its data widens, by a tenth at most.
    assert (emission.root_precisions >= 0.9e3 - 1e-9).all()
    assert (emission.root_precisions < 1e3).all()


def test_evaluate_is_the_mean_maximum_score_of_all_layers(images):
    network = make_network([ConvGMM(3, 2), ConvGMM(2)])
    with torch.no_grad():
        scores = [log_prob + layer.log_weights for _, layer, log_prob in network.climb(images)]
        expected = sum(s.amax(1).mean((1, 2)) for s in scores)
    torch.testing.assert_close(Layerwise(network, 10).evaluate(Batch(images)), expected)


def test_resumed_layers_go_on_whatever_the_new_plan(images):
    network = make_network([ConvGMM(3, 2), ConvGMM(2)])
    first = Layerwise(network, n_steps=10)
    for _ in range(5):
        first.step(Batch(images))
    before = network.top.emission.means.detach().clone()
    resumed = Layerwise(network, n_steps=10_000, progress=first.progress)
    resumed.step(Batch(images))
    assert not torch.equal(network.top.emission.means, before)
    assert math.isfinite(resumed.report()["convgmm2__loss"])


@pytest.mark.parametrize("rate", [1e-6, 0.5])
def test_a_resumed_training_takes_todays_learning_rate(images, rate):
    network = make_network([ConvGMM(3)])
    first = Layerwise(network, n_steps=10, learning_rate=0.05)
    first.step(Batch(images))
    resumed = Layerwise(network, n_steps=10, learning_rate=rate, progress=first.progress)
    assert rate / 1.1 <= resumed.progress.layers["convgmm1"].state.rate <= rate


class Scripted:
    """An objective that reports a given sequence of losses."""

    annealed = True
    progress = None

    def __init__(self, losses):
        self.losses = iter(losses)

    def step(self, batch):
        pass

    def evaluate(self, batch):
        return batch.x

    def report(self):
        return {"loss": next(self.losses)}


def run(losses, **options):
    return train(
        Scripted(losses),
        torch.nn.Linear(1, 1),
        lambda: [],
        None,
        on_epoch=lambda _: None,
        on_step=lambda _: None,
        standing=Standing([]),
        **{"max_epochs": len(losses), "tol": 0.1, "n_iter_no_change": 2, **options},
    )


def test_training_ends_when_the_loss_stands_still():
    history, converged, _ = run([1.0, 2.0, 3.0, 3.05, 3.09, 9.0])
    assert converged
    assert len(history) == 5  # two epochs without a gain of more than tol


def test_training_ends_with_the_last_epoch_otherwise():
    history, converged, _ = run([1.0, 2.0, 3.0, 3.05, 4.0])
    assert not converged
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_an_error(bad):
    with pytest.raises(FloatingPointError, match="after epoch 2"):
        run([1.0, bad])
