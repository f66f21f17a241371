"""The epochs around any objective."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from skdcgmm import _distributed, _joint, _layerwise
from skdcgmm._batch import Batch

# Bytes of the largest block from which the C library still learns.
_LARGE_BLOCK = 31 * 2**20

HistoryRow = dict[str, float]
Batches = Callable[[], Iterable[Batch]]


class Objective(Protocol):
    """What training needs of an objective."""

    @property
    def annealed(self) -> bool:
        """Whether the objective has its final form, so that its values compare."""

    @property
    def progress(self) -> Any:
        """Where the training stands, to go on later."""

    def reopen(self, fraction: float) -> None:
        """Take the schedules back by a fraction, so that new images can change the network."""

    def step(self, batch: Batch) -> None:
        """Learn from a batch of images."""

    def evaluate(self, batch: Batch) -> Tensor:
        """The value of each image (N,), without annealing; training raises its mean."""

    def report(self) -> HistoryRow:
        """Figures of the steps since the last report; `loss` is what training raises."""


class Defaults(NamedTuple):
    """What the parameters of training are where a user leaves them to the objective.

    Attributes
    ----------
    objective : callable
        Makes the objective for a network.
    learning_rate : float
    n_steps : int
        Number of steps that a training is to take, and a stream is planned for.
    batch_size : int
    """

    objective: Callable[..., Objective]
    learning_rate: float
    n_steps: int
    batch_size: int


OBJECTIVES = {
    "joint": Defaults(_joint.Joint, _joint.LEARNING_RATE, _joint.N_STEPS, _joint.BATCH_SIZE),
    "layerwise": Defaults(
        _layerwise.Layerwise, _layerwise.LEARNING_RATE, _layerwise.N_STEPS, _layerwise.BATCH_SIZE
    ),
}


class Standing(NamedTuple):
    """How far the epochs have got.

    Attributes
    ----------
    history : list of dict
        Of the epochs that are done.
    best : float
        Largest value since annealing ended.
    stale : int
        Epochs since it was reached.
    n_batches : int
        Batches of the next epoch that are done.
    """

    history: list[HistoryRow]
    best: float = -math.inf
    stale: int = 0
    n_batches: int = 0


class Outcome(NamedTuple):
    """How training ended.

    Attributes
    ----------
    history : list of dict
    converged : bool
        Whether training ended before `max_epochs` since the value stood still.
    interrupted : bool
        Whether the user stopped it; the network is that of the last epoch in the history.
    """

    history: list[HistoryRow]
    converged: bool
    interrupted: bool = False


def train(
    objective: Objective,
    network: nn.Module,
    batches: Batches,
    validation: Batches | None,
    *,
    max_epochs: int,
    tol: float,
    n_iter_no_change: int,
    on_epoch: Callable[[HistoryRow], bool],
    on_step: Callable[[Standing], None],
    standing: Standing,
) -> Outcome:
    """Go through the epochs until the objective stands still, or the user ends them.

    Parameters
    ----------
    objective : Objective
    network : Module
        What the objective trains.
    batches : callable
        Makes the batches of an epoch.
    validation : callable or None
        Makes the batches of images on which progress is judged; None is the epoch's own mean.
    max_epochs : int
    tol, n_iter_no_change : float, int
        Training ends when the value has not risen by more than `tol` for this many epochs since
        annealing ended.
    on_epoch : callable
        Called with the history row of each epoch; training ends if it says so.
    on_step : callable
        Called after each step with how far the epochs have got.
    standing : Standing
        How far an earlier training had got that now goes on.

    Returns
    -------
    Outcome

    Raises
    ------
    FloatingPointError
        If the loss is not finite.
    KeyboardInterrupt
        If the user stops training before an epoch is done, or one of several processes.
    """
    keep_memory()
    history, best, stale, n_done = standing
    history = list(history)
    parameters = [parameter.detach() for parameter in network.parameters()]
    of_last_epoch = [torch.empty_like(parameter) for parameter in parameters]
    try:
        for epoch in range(len(history) + 1, max_epochs + 1):
            with torch.enable_grad():
                for batch in itertools.islice(batches(), n_done, None):
                    objective.step(batch)
                    n_done += 1
                    on_step(Standing(history, best, stale, n_done))
            n_done = 0
            row = {"epoch": epoch, **objective.report()}
            if validation is not None:
                row["validation_loss"] = _weighted_mean(objective, validation())
            value = row.get("validation_loss", row["loss"])
            if not math.isfinite(value + row["loss"]):
                raise FloatingPointError(f"the loss is {value} after epoch {epoch}")
            torch._foreach_copy_(of_last_epoch, parameters)
            history.append(row)
            stop = on_epoch(row)
            if objective.annealed:
                stale = 0 if value > best + tol else stale + 1
                best = max(best, value)
            if stale >= n_iter_no_change:
                return Outcome(history, converged=True)
            if stop:
                break
    except KeyboardInterrupt:
        # Several processes would not stop at the same step.
        if len(history) == len(standing.history) or _distributed.n_processes() > 1:
            raise
        objective.report()  # of steps that no longer count
        torch._foreach_copy_(parameters, of_last_epoch)
        return Outcome(history, converged=False, interrupted=True)
    return Outcome(history, converged=False)


def keep_memory() -> None:
    """Let steps use the memory that the steps before have given back.

    The C library of Linux gives large blocks back to the system, and asks for them again in every
    step, until it has seen one as large given back (mallopt(3), on M_MMAP_THRESHOLD). New pages
    would take a quarter of a step's time. This block is never touched, and takes none.
    """
    torch.empty(_LARGE_BLOCK, dtype=torch.uint8, device="cpu")


def _weighted_mean(objective: Objective, batches: Iterable[Batch]) -> float:
    """Mean value of images by their weights, of all processes."""
    total = torch.zeros(2, dtype=torch.float64, device="cpu")
    for batch in batches:
        values = objective.evaluate(batch).double().cpu()  # (N,)
        weight = torch.ones_like(values) if batch.weight is None else batch.weight.double().cpu()
        total += torch.stack([(values * weight).sum(), weight.sum()])
    value, count = _distributed.add_up(total)
    return float(value / count)
