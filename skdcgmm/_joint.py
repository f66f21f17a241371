"""The joint objective: maximum likelihood of the whole stack, end to end."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skdcgmm import _annealing, _distributed
from skdcgmm._batch import Batch
from skdcgmm._running import RunningMean, State
from skdcgmm._tree import JointNetwork

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
    losses: State
    tempered: bool

    def again(self) -> Progress:
        """Where another training of the same network begins.

        With a new cycle of the rate, but untempered: components that have settled would have to do
        so again.
        """
        return Progress(0, self.n_steps, [], (0.0, 0), tempered=False)


class Joint:
    """Ascend the log density by Adam under a one-cycle rate, all parameters together.

    Parameters
    ----------
    network : JointNetwork
        Trained in place.
    n_steps : int
        Planned number of steps; after them the rate stays at its last.
    learning_rate : float
        Largest rate.
    progress : Progress or None
        Where an earlier training of the network stood that now goes on: at the same share of the
        planned steps.
    """

    def __init__(
        self,
        network: JointNetwork,
        n_steps: int,
        learning_rate: float = LEARNING_RATE,
        progress: Progress | None = None,
    ) -> None:
        self._network = network
        self._n_steps, self._learning_rate = n_steps, learning_rate
        self._steps = 0
        self._tempered = _tempers(network)
        self._since_report = RunningMean(network.scale)
        self._optimizer = torch.optim.Adam(
            network.parameters(), lr=learning_rate, betas=_BETAS, maximize=True, fused=True
        )
        if progress is not None:
            self._steps = round(progress.steps / progress.n_steps * n_steps)
            self._tempered = progress.tempered
            self._since_report = RunningMean(network.scale, progress.losses)
            _check_fit(progress.optimizer, list(network.parameters()))
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
        self._tempered = _tempers(self._network)

    @property
    def annealed(self) -> bool:
        """Whether the rate is near its end, so that epochs compare."""
        return self._steps >= _SETTLED * self._n_steps

    def step(self, batch: Batch) -> None:
        """One step of gradient ascent."""
        done = self._steps / self._n_steps
        temperature = max(1.0, _TEMPERATURE ** (1 - done / _TEMPERING)) if self._tempered else 1.0
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * _annealing.one_cycle(done)
        values = self._network.log_prob(
            batch.x, temperature, batch.y, batch.label_weight, batch.complete
        )  # (N,)
        total = (values if batch.weight is None else values * batch.weight).sum()
        loss = total / (batch.n_together or len(batch.x))
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        (loss,) = _distributed.add_gradients(self._network.parameters(), [loss.detach()])
        self._optimizer.step()
        self._steps += 1
        self._since_report.add(loss)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """What a step raises for each image, without tempering, (N,)."""
        return self._network.log_prob(
            batch.x, y=batch.y, label_weight=batch.label_weight, complete=batch.complete
        )

    def report(self) -> dict[str, float]:
        """Mean of what steps have raised, tempered as it was, since the last report."""
        return {"loss": self._since_report.take()}


def _check_fit(states: list[dict[str, Tensor]], parameters: list[Tensor]) -> None:
    """Raise an error if states are not of these parameters: Adam would read past their ends."""
    expected = [
        {"step": torch.Size(()), "exp_avg": p.shape, "exp_avg_sq": p.shape} for p in parameters
    ]
    found = [{name: value.shape for name, value in state.items()} for state in states]
    if found not in ([], expected):
        raise ValueError("the optimizer's state is that of another network")


def _tempers(network: JointNetwork) -> bool:
    """Whether training begins with a tempered posterior.

    Components of few features, whose scores differ by a few nats, would all become the same.
    """
    return network.image_shape[1:] != (1, 1)
