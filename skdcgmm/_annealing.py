"""Schedules: neighbourhood annealing (Gepperth & Pfülb, 2021), and the one-cycle learning rate.

In neighbourhood annealing of the max-component likelihood, components lie on a periodic grid. While
the neighbourhood is wide, the winning component draws its neighbours along, which keeps components
from dying; when it has shrunk, the loss is the plain max-component bound of the log-likelihood.
Nothing here knows of layers or images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Below this radius a neighbour's weight is under 1e-21: the neighbourhood is the identity.
_POINT_RADIUS = 0.1
# Of a one-cycle learning rate: share of training in which it rises, and its first and last factor.
_RISE, _FIRST_FACTOR, _LAST_FACTOR = 0.1, 0.04, 1e-3


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


def one_cycle(progress: float) -> float:
    """Factor of the largest learning rate: a short rise, then half a cosine towards zero.

    Parameters
    ----------
    progress : float
        Share of the training that is done; from 1 on the factor stays at its last.

    References
    ----------
    L. N. Smith, N. Topin: Super-Convergence. arXiv:1708.07120.
    """
    if progress < _RISE:
        return _FIRST_FACTOR + (1 - _FIRST_FACTOR) * progress / _RISE
    fallen = min(1.0, (progress - _RISE) / (1 - _RISE))
    return _LAST_FACTOR + (1 - _LAST_FACTOR) * (1 + math.cos(math.pi * fallen)) / 2
