"""Training: the epochs around any objective."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from skdcgmm.data import Batch
from skdcgmm.training import ranks

# Bytes of the largest block from which the C library still learns.
_LARGE_BLOCK = 31 * 2**20

# Of few images, as many as there is a step for.
_IMAGES_A_STEP = 16

HistoryRow = dict[str, float]
Batches = Callable[[], Iterable[Batch]]


class Objective(Protocol):
    """What training needs of an objective."""

    @property
    def annealed(self) -> bool:
        """Whether the objective has its final form, so that its values compare."""

    @property
    def comparable(self) -> bool:
        """Whether what `evaluate` says of this epoch compares with that of earlier ones."""

    @property
    def progress(self) -> Any:
        """Where the training stands, to go on later."""

    def reopen(self, fraction: float) -> None:
        """Take the schedules back by a fraction, so that new images can change the stack."""

    def hurry(self, share: float) -> None:
        """Bring the schedules to a share of the training, if they are not as far."""

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
        Makes the objective for a stack, from it, a number of steps, a learning rate and progress.
    learning_rate : float
    n_steps : int
        Number of steps that a training is to take, and a stream is planned for.
    batch_size : int
    n_few : int or None
        Number of steps for few images; None is that for many.
    """

    objective: Callable[..., Objective]
    learning_rate: float
    n_steps: int
    batch_size: int
    n_few: int | None = None

    def steps_for(self, n_images: int) -> int:
        """Number of steps that a training on so many images is to take.

        More would only fit few images too closely.
        """
        few = self.n_steps if self.n_few is None else self.n_few
        return min(self.n_steps, max(few, n_images // _IMAGES_A_STEP))


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
    best_validation : float
        Largest validation loss of all epochs.
    best_parameters : sequence of Tensor
        Parameters of the epoch that had it; none before there is one.
    """

    history: list[HistoryRow]
    best: float = -math.inf
    stale: int = 0
    n_batches: int = 0
    best_validation: float = -math.inf
    best_parameters: Sequence[Tensor] = ()


class Outcome(NamedTuple):
    """How training ended.

    Attributes
    ----------
    history : list of dict
    converged : bool
        Whether training ended before `max_epochs` since the value stood still.
    interrupted : bool
        Whether the user stopped it.
    progress : Any
        Where the objective stands, to go on later.
    """

    history: list[HistoryRow]
    converged: bool
    interrupted: bool = False
    progress: Any = None


def train(
    objective: Objective,
    stack: nn.Module,
    batches: Batches,
    validation: Batches | None,
    *,
    max_epochs: int,
    tol: float,
    n_iter_no_change: int,
    on_epoch: Callable[[HistoryRow], bool],
    on_step: Callable[[Standing], None],
    standing: Standing,
    time_used: Callable[[], float] = lambda: 0.0,
) -> Outcome:
    """Go through the epochs until the objective stands still, or the user ends them.

    With validation, the stack ends as in the epoch of the largest validation loss.

    Parameters
    ----------
    objective : Objective
    stack : Module
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
    time_used : callable
        Share of the time for training that is over; the schedules keep up with it, and training
        ends with it, also within an epoch.

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
    _keep_memory()
    now = standing._replace(history=list(standing.history))
    parameters = [parameter.detach() for parameter in stack.parameters()]
    of_last_epoch = [torch.empty_like(parameter) for parameter in parameters]
    converged = interrupted = False
    used = 0.0
    try:
        for epoch in range(len(now.history) + 1, max_epochs + 1):
            with torch.enable_grad():
                for batch in itertools.islice(batches(), now.n_batches, None):
                    objective.step(batch)
                    now = now._replace(n_batches=now.n_batches + 1)
                    on_step(now)
                    used = time_used()
                    objective.hurry(used)
                    if used >= 1:
                        break
            row = {"epoch": epoch, **objective.report()}
            if validation is not None:
                row["validation_loss"] = _weighted_mean(objective, validation())
            value = row.get("validation_loss", row["loss"])
            if not math.isfinite(value + row["loss"]):
                raise FloatingPointError(f"the loss is {value} after epoch {epoch}")
            torch._foreach_copy_(of_last_epoch, parameters)
            now.history.append(row)
            now = now._replace(n_batches=0)
            if validation is not None and objective.comparable and value > now.best_validation:
                best = [parameter.clone() for parameter in parameters]
                now = now._replace(best_validation=value, best_parameters=best)
            stop = on_epoch(row) or used >= 1
            if objective.annealed:
                stale = 0 if value > now.best + tol else now.stale + 1
                now = now._replace(best=max(now.best, value), stale=stale)
            converged = now.stale >= n_iter_no_change
            if converged or stop:
                break
    except KeyboardInterrupt:
        # Several processes would not stop at the same step.
        if len(now.history) == len(standing.history) or ranks.n_processes() > 1:
            raise
        objective.report()  # of steps that no longer count
        torch._foreach_copy_(parameters, of_last_epoch)
        interrupted = True
    if now.best_parameters:
        torch._foreach_copy_(parameters, list(now.best_parameters))
    return Outcome(now.history, converged, interrupted, objective.progress)


def share_of_time(minutes: float | None) -> Callable[[], float]:
    """Makes the share that is over of some minutes from now, the same in all processes."""
    if minutes is None:
        return lambda: 0.0
    start = time.monotonic()
    return lambda: ranks.of_first((time.monotonic() - start) / (60 * minutes))


def check_finite(objective: Objective, batch: Batch) -> None:
    """Raise a FloatingPointError if the last step has led to no finite values.

    A loss is that before its step: the last one is still to be checked.
    """
    values = objective.evaluate(batch)
    if not values.isfinite().all():
        raise FloatingPointError(f"the loss is {values.mean().item()} after the last step")


def _keep_memory() -> None:
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
    value, count = ranks.sum_over(total)
    return float(value / count)


class RunningMean:
    """The mean of losses, summed where they are, so that no step waits for a GPU.

    Parameters
    ----------
    like : Tensor
        On the device of the losses.
    state : (float, int)
        Sum and number of losses to go on from.
    """

    def __init__(self, like: Tensor, state: tuple[float, int] = (0.0, 0)) -> None:
        total, self.n_losses = state
        self._total = torch.tensor(total, dtype=torch.float64, device=like.device)

    @property
    def state(self) -> tuple[float, int]:
        """Sum and number of the losses."""
        return self._total.item(), self.n_losses

    def add(self, loss: Tensor) -> None:
        """Take one more loss, (), into account."""
        self._total += loss
        self.n_losses += 1

    def take(self) -> float:
        """The mean, nan of none; and start anew."""
        mean = self._total.item() / self.n_losses if self.n_losses else math.nan
        self._total.zero_()
        self.n_losses = 0
        return mean
