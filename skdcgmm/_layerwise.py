"""The published objective: every layer on its own (Gepperth & Pfülb, 2021)."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from skdcgmm import _annealing, _distributed
from skdcgmm._annealing import ScheduleState
from skdcgmm._batch import Batch
from skdcgmm._network import Network
from skdcgmm._running import RunningMean, State
from skdcgmm.layers import GaussianEmission, MixtureLayer

# Published constants: steps in a block of the radius schedule, learning rates relative to that of
# the means, and the share of training after which each further layer starts.
_BLOCK_STEPS = 100
_ROOT_PRECISION_RATE = 0.1
_LOGIT_RATE = 0.2
_DELAY, _MAX_DELAY = 0.1, 0.3
# A short training shortens the blocks so that all reductions fit in the first share of a layer's
# time, and no layer anneals longer than the second.
_ANNEALING_SHARE, _ANNEALING_DEADLINE = 0.6, 0.9
# The precisions for which the published rates were made, and the rate of log root precisions,
# relative to that of root precisions, where variances may fall far below.
_PUBLISHED_PRECISION = 20.0
_RELATIVE_PRECISION_RATE = 5.0

# Defaults. The published rate of 0.011 needs about 12 000 steps to the same end.
LEARNING_RATE = 0.05
N_STEPS = 4000
BATCH_SIZE = 100


class LayerProgress(NamedTuple):
    """Where the training of a layer stands.

    Attributes
    ----------
    state : ScheduleState
    first_step : int
    block, losses : (float, int)
        Sum and number of losses, of the block of steps that is under way and since the last report.
    """

    state: ScheduleState
    first_step: int
    block: State
    losses: State


class Progress(NamedTuple):
    """Where a layer-wise training stands, so that it can go on later."""

    steps: int
    layers: dict[str, LayerProgress]

    def again(self) -> Progress:
        """Where another training of the same network begins: annealing goes on."""
        return self


class _LayerTraining:
    """One mixture layer's loss, schedule and running sums."""

    def __init__(
        self, layer: MixtureLayer, first_step: int, n_steps: int, learning_rate: float
    ) -> None:
        self.layer = layer
        self.first_step = first_step
        self.schedule = _annealing.make_schedule(layer.n_components, learning_rate)
        self.state = _annealing.start(self.schedule)
        available = n_steps - first_step
        share = int(_ANNEALING_SHARE * available / max(1, self.schedule.n_reductions))
        self._block_length = max(1, min(_BLOCK_STEPS, share))
        self._deadline = max(1, int(_ANNEALING_DEADLINE * available))
        self._block, self._since_report = (RunningMean(layer.gaussian.means) for _ in range(2))

    @cached_property
    def _distances(self) -> Tensor:
        # Not before a loss needs them: many components have very many distances.
        return _annealing.grid_distances(self.layer.n_components)

    @property
    def progress(self) -> LayerProgress:
        return LayerProgress(
            self.state, self.first_step, self._block.state, self._since_report.state
        )

    def resume(self, progress: LayerProgress) -> None:
        """Go on from there, within the bounds of today's learning rate."""
        rate = min(max(progress.state.rate, self.schedule.final_rate), self.schedule.rate)
        self.state = progress.state._replace(rate=rate)
        self.first_step = progress.first_step
        means = self.layer.gaussian.means
        self._block = RunningMean(means, progress.block)
        self._since_report = RunningMean(means, progress.losses)

    def reopen(self, fraction: float, step: int) -> None:
        """Widen the neighbourhood to that at a fraction of the schedule from its end."""
        reopened = _annealing.reopen(self.schedule, self.state, fraction)
        if reopened == self.state:
            return
        self.state = reopened
        self.first_step = max(self.first_step, step - round((1 - fraction) * self._deadline))
        self._block.take()

    @property
    def annealed(self) -> bool:
        return _annealing.finished(self.schedule, self.state)

    def loss(self, log_prob: Tensor, batch: Batch) -> Tensor:
        self._distances = self._distances.to(log_prob)
        scores = log_prob + self.layer.log_weights  # (N, K, rows, columns)
        values = _annealing.annealed_max(scores, self._distances, self.state.radius)
        values = values.mean((1, 2))  # (N,)
        total = (values if batch.weight is None else values * batch.weight).sum()
        return total / (batch.n_together or len(batch.x))

    @torch.no_grad()
    def ascend(self) -> None:
        """Move the parameters along their gradients, each at its rate."""
        _precondition(self.layer.gaussian)
        relative_rates = {
            self.layer.gaussian.means: 1.0,
            self.layer.gaussian.root_precisions: _ROOT_PRECISION_RATE,
            # While a layer anneals, unequal weights would starve components that win late.
            self.layer.logits: _LOGIT_RATE if self.annealed else 0.0,
        }
        for parameter, relative in relative_rates.items():
            assert parameter is not None
            assert parameter.grad is not None
            # The loss is a mean over positions, of which an unshared mixture sees only one.
            rate = self.state.rate * relative * self.layer.n_mixtures
            parameter.add_(parameter.grad, alpha=rate)
        self.layer.emission.constrain()

    def record(self, loss: Tensor, step: int) -> None:
        """Keep the loss of a step; at the end of a block move the schedule."""
        self._since_report.add(loss)
        self._block.add(loss)
        if self._block.n_losses >= self._block_length:
            elapsed = min(1.0, (step + 1 - self.first_step) / self._deadline)
            start, end = self.schedule.radius, self.schedule.final_radius
            ceiling = end if elapsed == 1 else start * (end / start) ** elapsed
            self.state = _annealing.update(self.schedule, self.state, self._block.take(), ceiling)

    def report(self) -> tuple[float, float]:
        """Mean loss since the last report (nan before the first step), and the radius."""
        return self._since_report.take(), self.state.radius


class Layerwise:
    """Every mixture layer ascends its own annealed max-component loss (Gepperth & Pfülb, 2021).

    No gradient crosses a layer. Upper layers start later, once the layers below have taken shape.

    Parameters
    ----------
    network : Network
        Trained in place.
    n_steps : int
        Planned number of steps, from which the starts of upper layers follow.
    learning_rate : float
        First learning rate of the means.
    progress : Progress or None
        Where an earlier training of the same network stood.
    """

    def __init__(
        self,
        network: Network,
        n_steps: int,
        learning_rate: float = LEARNING_RATE,
        progress: Progress | None = None,
    ) -> None:
        self._network = network
        self._steps = 0
        self._trainings: dict[str, _LayerTraining] = {}
        for index, (name, layer) in enumerate(network.mixtures.items()):
            first_step = round(n_steps * min(_DELAY * index, _MAX_DELAY))
            self._trainings[name] = _LayerTraining(layer, first_step, n_steps, learning_rate)
        if progress is not None:
            self._steps = progress.steps
            for name, layer_progress in progress.layers.items():
                self._trainings[name].resume(layer_progress)

    @property
    def progress(self) -> Progress:
        """Where the training stands."""
        layers = {name: training.progress for name, training in self._trainings.items()}
        return Progress(self._steps, layers)

    def reopen(self, fraction: float) -> None:
        """Go back by a fraction of the annealing of every layer, as far as it has got."""
        for training in self._trainings.values():
            training.reopen(fraction, self._steps)

    @property
    def annealed(self) -> bool:
        """Whether the radius of every layer has reached its floor."""
        return all(training.annealed for training in self._trainings.values())

    def step(self, batch: Batch) -> None:
        """One step of gradient ascent on every layer that has started."""
        trainings = [t for t in self._trainings.values() if t.first_step <= self._steps]
        climb = self._network.climb(batch.x, detach=True, complete=batch.complete)
        losses = [
            training.loss(log_prob, batch)
            for training, (_, _, log_prob) in zip(trainings, climb, strict=False)
        ]
        self._network.zero_grad()
        torch.autograd.backward(losses)
        sums = [loss.detach() for loss in losses]
        sums = _distributed.add_gradients(self._network.parameters(), sums)
        for training, loss in zip(trainings, sums, strict=True):
            training.ascend()
            training.record(loss, self._steps)
        self._steps += 1

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """Sum over layers of the max-component log-likelihood, averaged over positions, (N,)."""
        total = batch.x.new_zeros(len(batch.x))
        for _, layer, log_prob in self._network.climb(batch.x, complete=batch.complete):
            total += (log_prob + layer.log_weights).amax(1).mean((1, 2))
        return total

    def report(self) -> dict[str, float]:
        """Mean losses since the last report, their sum over the layers that have started, radii."""
        row: dict[str, float] = {"loss": 0.0}
        for name, training in self._trainings.items():
            row[f"{name}__loss"], row[f"{name}__radius"] = training.report()
            if self._steps > training.first_step:
                row["loss"] += row[f"{name}__loss"]
        return row


@torch.no_grad()
def _precondition(emission: GaussianEmission) -> None:
    """Scale gradients to precisions that may exceed those of the published rates by far.

    Means then move by a share of their distance, however precise, and root precisions by a share
    of themselves, at most a tenth at the default rate.
    """
    means, roots = emission.means.grad, emission.root_precisions.grad
    if means is None or roots is None or emission.least_variance > 0.9 / _PUBLISHED_PRECISION:
        return
    precisions = emission.root_precisions.square()
    means *= (_PUBLISHED_PRECISION / precisions).clamp_max(1)
    limit = 0.1 / (_ROOT_PRECISION_RATE * LEARNING_RATE) * emission.root_precisions
    roots *= _RELATIVE_PRECISION_RATE * precisions
    roots.copy_(roots.clamp(-limit, limit))
