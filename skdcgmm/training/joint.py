"""The joint objective: maximum likelihood of the whole stack, end to end."""

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from skdcgmm.data import Batch
from skdcgmm.model import tables
from skdcgmm.model.stack import Stack
from skdcgmm.model.tree import Tree
from skdcgmm.training import Defaults, RunningMean, ranks

# Defaults. The rate is relative to inputs of variance 0.1, and to logits.
LEARNING_RATE = 0.05
N_STEPS = 1000
BATCH_SIZE = 250

_BETAS = (0.9, 0.99)
# Temperature of the top posterior at the start, and the share of training until it is 1. In a flat
# mixture it lets components settle before they specialise; a deep stack, whose scores differ by
# hundreds of nats, hardly feels it.
_TEMPERATURE, _TEMPERING = 4.0, 0.3
# Share of training after which the values of epochs compare: rates are small by then.
_SETTLED = 0.9
# Of the one-cycle rate: share of training in which it rises, and its first and last factor.
_RISE, _FIRST_FACTOR, _LAST_FACTOR = 0.1, 0.04, 1e-3


class Progress(NamedTuple):
    """Where a training stands.

    Attributes
    ----------
    steps, n_steps : int
        Done, and planned.
    optimizer : list of dict
        State of the optimizer by parameter, on the CPU.
    losses : (float, int)
        Sum and number of those since the last report.
    tempered : bool
        Whether it begins with a tempered posterior.
    """

    steps: int
    n_steps: int
    optimizer: list[dict[str, Tensor]]
    losses: tuple[float, int]
    tempered: bool

    def again(self) -> "Progress":
        """Where another training of the same stack begins.

        With a new cycle of the rate, but untempered: components that have settled would have to do
        so again.
        """
        return Progress(0, self.n_steps, [], (0.0, 0), tempered=False)


class Joint:
    """Ascend the log density by Adam under a one-cycle rate, all parameters together.

    Parameters
    ----------
    stack : Stack
        Trained in place.
    n_steps : int
        Planned number of steps; after them the rate stays at its last.
    learning_rate : float
        Largest rate.
    progress : Progress or None
        Where an earlier training of the stack stood that now goes on: at the same share of the
        planned steps.
    """

    def __init__(
        self,
        stack: Stack,
        n_steps: int,
        learning_rate: float = LEARNING_RATE,
        progress: Progress | None = None,
    ) -> None:
        self._stack = stack
        self._n_steps, self._learning_rate = n_steps, learning_rate
        self._steps = 0
        self._tempered = _tempers(stack)
        self._since_report = RunningMean(stack.like)
        self._optimizer = torch.optim.Adam(
            stack.parameters(), lr=learning_rate, betas=_BETAS, maximize=True, fused=True
        )
        if progress is not None:
            self._steps = round(progress.steps / progress.n_steps * n_steps)
            self._tempered = progress.tempered
            self._since_report = RunningMean(stack.like, progress.losses)
            _check_fit(progress.optimizer, list(stack.parameters()))
            state = self._optimizer.state_dict()
            # A copy: the earlier training may be taken up again should this one fail.
            state["state"] = dict(enumerate(copy.deepcopy(progress.optimizer)))
            self._optimizer.load_state_dict(state)

    @property
    def progress(self) -> Progress:
        """Where the training stands."""
        by_parameter: dict[int, dict[str, Any]] = self._optimizer.state_dict()["state"]
        states = [
            {name: value.to("cpu", copy=True) for name, value in by_parameter[index].items()}
            for index in sorted(by_parameter)
        ]
        losses = self._since_report.state
        return Progress(self._steps, self._n_steps, states, losses, self._tempered)

    def reopen(self, fraction: float) -> None:
        """Go back by a fraction of the planned steps from their end, as far as they are done."""
        self._steps = min(self._steps, round((1 - fraction) * self._n_steps))
        self._tempered = _tempers(self._stack)

    def hurry(self, share: float) -> None:
        """Go forward to a share of the planned steps, if they are not done."""
        self._steps = max(self._steps, round(min(1.0, share) * self._n_steps))

    @property
    def annealed(self) -> bool:
        """Whether the rate is near its end, so that epochs compare."""
        return self._steps >= _SETTLED * self._n_steps

    @property
    def comparable(self) -> bool:
        """Whether log densities of epochs compare: without tempering, they always do."""
        return True

    def step(self, batch: Batch) -> None:
        """One step of gradient ascent."""
        done = self._steps / self._n_steps
        temperature = max(1.0, _TEMPERATURE ** (1 - done / _TEMPERING)) if self._tempered else 1.0
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * one_cycle(done)
        self._stack.anneal(done if self._tempered else 1.0)
        values = log_prob(self._stack(), batch, temperature)  # (N,)
        total = (values if batch.weight is None else values * batch.weight).sum()
        loss = total / max(1, len(batch.x))
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        (loss,) = ranks.average_gradients(self._stack.parameters(), [loss.detach()], len(batch.x))
        self._optimizer.step()
        self._steps += 1
        self._since_report.add(loss)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """What a step raises for each image, without tempering, (N,)."""
        return log_prob(self._stack(), batch)

    def report(self) -> dict[str, float]:
        """Mean of what steps have raised, tempered as it was, since the last report."""
        return {"loss": self._since_report.take()}


JOINT = Defaults(Joint, LEARNING_RATE, N_STEPS, BATCH_SIZE)
# Parts of two by two pixels learn as much from half the steps.
ATOMS = JOINT._replace(n_steps=N_STEPS // 2)
# Details in units of their own bear larger steps, and need fewer.
PYRAMID = Defaults(Joint, 2 * LEARNING_RATE, N_STEPS // 2, BATCH_SIZE, n_few=150)


def log_prob(tree: Tree, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Log density of images in their units, and log probability of their classes if they have some.

    Parameters
    ----------
    tree : Tree
    batch : Batch
        Labels count if the tree knows of classes: times `label_weight`.
    temperature : float
        Above 1, all top components get a share of an image: ``T logsumexp(scores / T)``.

    Returns
    -------
    Tensor of shape (N,)
    """
    scores = tree.scores(batch.x, batch.complete)  # (N, K)
    value = tables.soft_maximum(scores, temperature)  # (N,)
    if batch.y is not None and tree.class_tables is not None:
        # The last column, that of -1, is for any class.
        by_class = functional.pad(tree.class_tables.log(), (0, 1))  # (K, n_classes + 1)
        together = tables.soft_maximum(scores + by_class[:, batch.y].mT, temperature)  # (N,)
        value = value + batch.label_weight * (together - value)
    return tree.in_units(value, batch.x, batch.complete)


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


def _check_fit(states: list[dict[str, Tensor]], parameters: list[Tensor]) -> None:
    """Raise an error if states are not of these parameters: Adam would read past their ends."""
    expected = [
        {"step": torch.Size(()), "exp_avg": p.shape, "exp_avg_sq": p.shape} for p in parameters
    ]
    found = [{name: value.shape for name, value in state.items()} for state in states]
    if found not in ([], expected):
        raise ValueError("the optimizer's state is that of another stack")


def _tempers(stack: Stack) -> bool:
    """Whether training begins with a tempered posterior.

    Components of few features, whose scores differ by a few nats, would all become the same.
    """
    return stack.image_shape[1:] != (1, 1)
