"""Draws from tables of probabilities, as pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_largest(weights: Tensor, top_s: int | None) -> Tensor:
    """Zero all but the `top_s` largest entries along the last axis (None: keep all)."""
    if top_s is None or top_s >= weights.shape[-1]:
        return weights
    values, index = weights.topk(top_s, -1)
    return torch.zeros_like(weights).scatter(-1, index, values)


def sample(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw one index along the last axis with probability proportional to the weights.

    Parameters
    ----------
    weights : Tensor of shape (..., K)
        Non-negative; each row has a positive sum.

    Returns
    -------
    Tensor of shape (...,)
    """
    rows = weights.flatten(0, -2)  # (rows, K)
    drawn = torch.multinomial(rows, 1, generator=generator)  # (rows, 1)
    return drawn.view(weights.shape[:-1])
