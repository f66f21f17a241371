"""The epochs around any objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from skdcgmm import _joint, _layerwise
from skdcgmm._batch import Batch
from skdcgmm._gaussian import exact_products

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


def train(
    objective: Objective,
    batches: Batches,
    validation: Batches | None,
    *,
    device: torch.device,
    max_epochs: int,
    tol: float,
    n_iter_no_change: int,
    on_epoch: Callable[[HistoryRow], None],
) -> tuple[list[HistoryRow], bool]:
    """Go through the epochs until the objective stands still.

    Parameters
    ----------
    objective : Objective
    batches : callable
        Makes the batches of an epoch.
    validation : callable or None
        Makes the batches of images on which progress is judged; None is the epoch's own mean.
    device : torch.device
        Where the batches are.
    max_epochs : int
    tol, n_iter_no_change : float, int
        Training ends when the value has not risen by more than `tol` for this many epochs since
        annealing ended.
    on_epoch : callable
        Called with the history row of each epoch.

    Returns
    -------
    history : list of dict
    converged : bool
        Whether training ended before `max_epochs`.

    Raises
    ------
    FloatingPointError
        If the loss is not finite.
    """
    history: list[HistoryRow] = []
    best, stale = -math.inf, 0
    for epoch in range(1, max_epochs + 1):
        with exact_products(device), torch.enable_grad():
            for batch in batches():
                objective.step(batch)
            row = {"epoch": epoch, **objective.report()}
            if validation is not None:
                row["validation_loss"] = _weighted_mean(objective, validation())
        value = row.get("validation_loss", row["loss"])
        if not math.isfinite(value + row["loss"]):
            raise FloatingPointError(f"the loss is {value} after epoch {epoch}")
        history.append(row)
        on_epoch(row)
        if objective.annealed:
            stale = 0 if value > best + tol else stale + 1
            best = max(best, value)
        if stale >= n_iter_no_change:
            return history, True
    return history, False


def _weighted_mean(objective: Objective, batches: Iterable[Batch]) -> float:
    """Mean value of images by their weights."""
    total = count = 0.0
    for batch in batches:
        values = objective.evaluate(batch)  # (N,)
        weight = torch.ones_like(values) if batch.weight is None else batch.weight
        total += (values * weight).sum().item()
        count += weight.sum().item()
    return total / count
