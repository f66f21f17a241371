"""The published objective: every layer on its own, by neighbourhood annealing.

In neighbourhood annealing of the max-component likelihood (Gepperth & Pfülb, 2021), components lie
on a periodic grid. While the neighbourhood is wide, the winning component draws its neighbours
along, which keeps components from dying; when it has shrunk, the loss is the plain max-component
bound of the log-likelihood.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from skdcgmm.data import Batch
from skdcgmm.published.stack import Clipped, LayerwiseStack
from skdcgmm.training import Defaults, RunningMean, ranks

# Below this radius a neighbour's weight is under 1e-21: the neighbourhood is the identity.
_POINT_RADIUS = 0.1
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


# --- annealing, which knows nothing of layers or images ------------------------------------------


def grid_shape(n_components: int) -> tuple[int, int]:
    """The most nearly square a x b grid that holds exactly `n_components`."""
    a = max(a for a in range(1, math.isqrt(n_components) + 1) if n_components % a == 0)
    return a, n_components // a


def grid_distances(n_components: int) -> Tensor:
    """Squared distances (K, K) between the cells of the periodic grid."""
    a, b = grid_shape(n_components)
    index = torch.arange(n_components, device="cpu")
    total = torch.zeros(n_components, n_components, device="cpu")
    for coordinate, period in ((index // b, a), (index % b, b)):
        difference = (coordinate[:, None] - coordinate).abs()
        total += torch.minimum(difference, period - difference).square()
    return total  # (K, K)


def neighbourhood(squared_distances: Tensor, radius: float) -> Tensor:
    """Gaussian weights (K, K) of radius `radius` in grid cells; rows sum to 1."""
    return torch.softmax(-squared_distances / (2 * radius**2), 1)


def annealed_max(scores: Tensor, squared_distances: Tensor, radius: float) -> Tensor:
    """The largest neighbourhood-averaged score, max_k sum_j g_kj score_j.

    Parameters
    ----------
    scores : Tensor of shape (N, K, H, W)
    squared_distances : Tensor of shape (K, K)
    radius : float

    Returns
    -------
    Tensor of shape (N, H, W)
    """
    by_position = scores.permute(2, 3, 1, 0).flatten(0, 1)  # (H * W, K, N)
    if radius > _POINT_RADIUS:
        weights = neighbourhood(squared_distances, radius)  # (K, K)
        by_position = weights.expand(len(by_position), -1, -1) @ by_position
    largest: Callable[..., Tensor] = _Largest.apply
    return largest(by_position).T.reshape(len(scores), *scores.shape[2:])


class _Largest(torch.autograd.Function):
    """The maximum over the second axis; its gradient in half the passes of `amax`."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        largest = scores.amax(1)  # (P, N)
        ctx.save_for_backward(scores, largest)
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        scores, largest = ctx.saved_tensors
        winners = torch.empty_like(scores)
        torch.eq(scores, largest[:, None], out=winners)  # (P, K, N)
        # Components that are equally good share.
        share = winners.sum(1).reciprocal_().mul_(gradient)  # (P, N)
        return winners.mul_(share[:, None])


class Schedule(NamedTuple):
    """Constants of the radius schedule; the defaults are the published ones.

    Attributes
    ----------
    radius, final_radius : float
        First and last radius, in grid cells.
    rate, final_rate : float
        First and last learning rate.
    decay : float
        Factor of radius and rate at a reduction.
    tolerance : float
        A block's relative gain r counts as standstill if -2 tolerance < r < tolerance.
    """

    radius: float
    final_radius: float = 0.01
    rate: float = 0.011
    final_rate: float = 0.01
    decay: float = 0.9
    tolerance: float = 0.05

    @property
    def n_reductions(self) -> int:
        """Reductions from the first radius to the last."""
        return max(0, math.ceil(math.log(self.final_radius / self.radius) / math.log(self.decay)))


class ScheduleState(NamedTuple):
    """Where a schedule stands, and the mean losses of its first and its latest block."""

    radius: float
    rate: float
    first: float | None = None
    last: float | None = None


def make_schedule(n_components: int, rate: float) -> Schedule:
    """The published schedule of a layer: radius from sqrt(2 K) / 4, rate from 1.1 to 1 parts."""
    return Schedule(radius=math.sqrt(2 * n_components) / 4, rate=rate, final_rate=rate / 1.1)


def start(schedule: Schedule) -> ScheduleState:
    """The state before the first block."""
    return ScheduleState(schedule.radius, schedule.rate)


def update(
    schedule: Schedule, state: ScheduleState, loss: float, ceiling: float = math.inf
) -> ScheduleState:
    """The state after a block of steps.

    Parameters
    ----------
    schedule : Schedule
    state : ScheduleState
    loss : float
        Mean over the block of the loss that training raises.
    ceiling : float
        The radius is at most this, standstill or not: a deadline for layers whose inputs keep
        moving.

    Returns
    -------
    ScheduleState
    """
    radius, rate = state.radius, state.rate
    if state.first is not None and state.last is not None:
        gain, progress = loss - state.last, state.last - state.first
        relative = gain / progress if progress else math.copysign(math.inf, gain) if gain else 0.0
        if -2 * schedule.tolerance < relative < schedule.tolerance:
            radius, rate = schedule.decay * radius, schedule.decay * rate
    first = loss if state.first is None else state.first
    return ScheduleState(
        radius=max(min(radius, ceiling), schedule.final_radius),
        rate=max(rate, schedule.final_rate),
        first=first,
        last=loss,
    )


def finished(schedule: Schedule, state: ScheduleState) -> bool:
    """Whether the radius has reached its floor."""
    return state.radius <= schedule.final_radius


def reopen(schedule: Schedule, state: ScheduleState, fraction: float) -> ScheduleState:
    """The state from which a fraction of the schedule, of its logarithmic way, is yet to come.

    A schedule that stands before that stays where it is; another one compares blocks anew.
    """
    radius = schedule.final_radius * (schedule.radius / schedule.final_radius) ** fraction
    if radius <= state.radius:
        return state
    rate = schedule.final_rate * (schedule.rate / schedule.final_rate) ** fraction
    return ScheduleState(radius, max(state.rate, rate))


# --- training -----------------------------------------------------------------------------------


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
    block: tuple[float, int]
    losses: tuple[float, int]


class Progress(NamedTuple):
    """Where a layer-wise training stands, so that it can go on later."""

    steps: int
    layers: dict[str, LayerProgress]

    def again(self) -> "Progress":
        """Where another training of the same stack begins: annealing goes on."""
        return self


class _LayerTraining:
    """One mixture layer's loss, schedule and running sums."""

    def __init__(
        self,
        emission: Clipped,
        logits: nn.Parameter,
        first_step: int,
        n_steps: int,
        learning_rate: float,
    ) -> None:
        self.emission, self.logits = emission, logits
        self.first_step = first_step
        self.schedule = make_schedule(emission.n_components, learning_rate)
        self.state = start(self.schedule)
        available = n_steps - first_step
        share = int(_ANNEALING_SHARE * available / max(1, self.schedule.n_reductions))
        self._block_length = max(1, min(_BLOCK_STEPS, share))
        self._deadline = max(1, int(_ANNEALING_DEADLINE * available))
        self._block, self._since_report = (RunningMean(emission.means) for _ in range(2))

    @cached_property
    def _distances(self) -> Tensor:
        # Not before a loss needs them: many components have very many distances.
        return grid_distances(self.emission.n_components)

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
        means = self.emission.means
        self._block = RunningMean(means, progress.block)
        self._since_report = RunningMean(means, progress.losses)

    def reopen(self, fraction: float, step: int) -> None:
        """Widen the neighbourhood to that at a fraction of the schedule from its end."""
        reopened = reopen(self.schedule, self.state, fraction)
        if reopened == self.state:
            return
        self.state = reopened
        self.first_step = max(self.first_step, step - round((1 - fraction) * self._deadline))
        self._block.take()

    @property
    def annealed(self) -> bool:
        return finished(self.schedule, self.state)

    def loss(self, log_prob: Tensor, batch: Batch) -> Tensor:
        self._distances = self._distances.to(log_prob)
        scores = log_prob + self.logits.log_softmax(0)  # (N, K, rows, columns)
        values = annealed_max(scores, self._distances, self.state.radius)
        values = values.mean((1, 2))  # (N,)
        total = (values if batch.weight is None else values * batch.weight).sum()
        return total / max(1, len(batch.x))

    @torch.no_grad()
    def ascend(self) -> None:
        """Move the parameters along their gradients, each at its rate."""
        _precondition(self.emission)
        relative_rates = {
            self.emission.means: 1.0,
            self.emission.roots: _ROOT_PRECISION_RATE,
            # While a layer anneals, unequal weights would starve components that win late.
            self.logits: _LOGIT_RATE if self.annealed else 0.0,
        }
        for parameter, relative in relative_rates.items():
            assert parameter.grad is not None
            # The loss is a mean over positions, of which an unshared mixture sees only one.
            rate = self.state.rate * relative * len(self.emission.means)
            parameter.add_(parameter.grad, alpha=rate)
        self.emission.constrain()

    def record(self, loss: Tensor, step: int) -> None:
        """Keep the loss of a step; at the end of a block move the schedule."""
        self._since_report.add(loss)
        self._block.add(loss)
        if self._block.n_losses >= self._block_length:
            ceiling = self._ceiling(step + 1)
            self.state = update(self.schedule, self.state, self._block.take(), ceiling)

    def hurry(self, step: int) -> None:
        """Narrow the neighbourhood to what it is to be at a step at the latest."""
        ceiling = self._ceiling(step)
        self.state = self.state._replace(radius=min(self.state.radius, ceiling))

    def _ceiling(self, step: int) -> float:
        """Largest radius at a step: a deadline for layers whose inputs keep moving."""
        elapsed = min(1.0, max(0.0, (step - self.first_step) / self._deadline))
        start, end = self.schedule.radius, self.schedule.final_radius
        return end if elapsed == 1 else start * (end / start) ** elapsed

    def report(self) -> tuple[float, float]:
        """Mean loss since the last report (nan before the first step), and the radius."""
        return self._since_report.take(), self.state.radius


class Layerwise:
    """Every mixture layer ascends its own annealed max-component loss (Gepperth & Pfülb, 2021).

    No gradient crosses a layer. Upper layers start later, once the layers below have taken shape.

    Parameters
    ----------
    stack : LayerwiseStack
        Trained in place.
    n_steps : int
        Planned number of steps, from which the starts of upper layers follow.
    learning_rate : float
        First learning rate of the means.
    progress : Progress or None
        Where an earlier training of the same stack stood.
    """

    def __init__(
        self,
        stack: LayerwiseStack,
        n_steps: int,
        learning_rate: float = LEARNING_RATE,
        progress: Progress | None = None,
    ) -> None:
        self._stack, self._n_steps = stack, n_steps
        self._steps = 0
        self._trainings: dict[str, _LayerTraining] = {}
        for index, name in enumerate(stack.names):
            first_step = round(n_steps * min(_DELAY * index, _MAX_DELAY))
            self._trainings[name] = _LayerTraining(
                stack.emission(name), stack.weight_logits(name), first_step, n_steps, learning_rate
            )
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

    def hurry(self, share: float) -> None:
        """Go forward to a share of the planned steps, and narrow neighbourhoods as by then."""
        steps = round(min(1.0, share) * self._n_steps)
        if steps > self._steps:
            self._steps = steps
            for training in self._trainings.values():
                training.hurry(steps)

    @property
    def annealed(self) -> bool:
        """Whether the radius of every layer has reached its floor."""
        return all(training.annealed for training in self._trainings.values())

    @property
    def comparable(self) -> bool:
        """Whether values compare: not while the layers below still change what upper ones see."""
        return self.annealed

    def step(self, batch: Batch) -> None:
        """One step of gradient ascent on every layer that has started."""
        trainings = [t for t in self._trainings.values() if t.first_step <= self._steps]
        climb = self._stack.chain().climb(batch.x, batch.complete, detach=True)
        losses = [
            training.loss(log_prob, batch)
            for training, (_, log_prob) in zip(trainings, climb, strict=False)
        ]
        self._stack.zero_grad()
        torch.autograd.backward(losses)
        means = [loss.detach() for loss in losses]
        means = ranks.average_gradients(self._stack.parameters(), means, len(batch.x))
        for training, loss in zip(trainings, means, strict=True):
            training.ascend()
            training.record(loss, self._steps)
        self._steps += 1

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """Sum over layers of the max-component log-likelihood, averaged over positions, (N,)."""
        total = batch.x.new_zeros(len(batch.x))
        chain = self._stack.chain()
        log_weights = chain.layer_log_weights()
        for name, log_prob in chain.climb(batch.x, batch.complete):
            total += (log_prob + log_weights[name]).amax(1).mean((1, 2))
        return total

    def report(self) -> dict[str, float]:
        """Mean losses since the last report, their sum over the layers that have started, radii."""
        row: dict[str, float] = {"loss": 0.0}
        for name, training in self._trainings.items():
            row[f"{name}__loss"], row[f"{name}__radius"] = training.report()
            if self._steps > training.first_step:
                row["loss"] += row[f"{name}__loss"]
        return row


LAYERWISE = Defaults(Layerwise, LEARNING_RATE, N_STEPS, BATCH_SIZE)


@torch.no_grad()
def _precondition(emission: Clipped) -> None:
    """Scale gradients to precisions that may exceed those of the published rates by far.

    Means then move by a share of their distance, however precise, and root precisions by a share
    of themselves, at most a tenth at the default rate.
    """
    means, roots = emission.means.grad, emission.roots.grad
    if means is None or roots is None or emission.least_variance > 0.9 / _PUBLISHED_PRECISION:
        return
    precisions = emission.roots.square()
    means *= (_PUBLISHED_PRECISION / precisions).clamp_max(1)
    limit = 0.1 / (_ROOT_PRECISION_RATE * LEARNING_RATE) * emission.roots
    roots *= _RELATIVE_PRECISION_RATE * precisions
    roots.copy_(roots.clamp(-limit, limit))
