"""Means of losses while training goes on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

State = tuple[float, int]  # sum and number


class RunningMean:
    """The mean of losses, summed where they are, so that no step waits for a GPU.

    Parameters
    ----------
    like : Tensor
        On the device of the losses.
    state : (float, int)
        Sum and number of losses to go on from.
    """

    def __init__(self, like: Tensor, state: State = (0.0, 0)) -> None:
        total, self.n_losses = state
        self._total = torch.tensor(total, dtype=torch.float64, device=like.device)

    @property
    def state(self) -> State:
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
