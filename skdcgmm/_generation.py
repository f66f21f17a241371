"""Top-down generation: draws through the stack, and their sharpening."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from skdcgmm import _categorical
from skdcgmm._gaussian import computing
from skdcgmm._network import Network
from skdcgmm.layers import Generation

# First step size of sharpening, relative to the scale of the layers' inputs, and its factors
# after a step that raised the score and after one that did not.
_FIRST_RATE = 0.01
_FASTER, _SLOWER = 1.5, 0.3


@torch.no_grad()
def sample(
    network: Network,
    n_samples: int,
    tables: Tensor,
    label: int | None,
    generation: Generation,
    batch_size: int,
    sharpening_steps: int = 0,
) -> tuple[Tensor, Tensor]:
    """Draw images and labels.

    Parameters
    ----------
    network : Network
    n_samples : int
    tables : Tensor of shape (K, n_labels)
        Probability of each label under each top component.
    label : int or None
        That of all images; None draws top components by the mixture weights, and labels from them.
    generation : Generation
    batch_size : int
        Number of images to draw at a time.
    sharpening_steps : int

    Returns
    -------
    images : Tensor of shape (n_samples, C, H, W), on the CPU
    labels : Tensor of shape (n_samples,), on the CPU
    """
    with computing(network.scale.device):
        log_weights = network.top.log_weights.flatten()  # (K,)
        if label is not None:
            log_weights = log_weights + tables[:, label].log()
        weights = log_weights.softmax(0)
        components = torch.multinomial(
            weights, n_samples, replacement=True, generator=generation.generator
        )  # (n_samples,)
        images, labels = [], []
        for part in torch.split(components, batch_size):
            drawn = network.down(part, generation)  # (N, C, H, W)
            images.append(sharp(network, drawn, sharpening_steps).cpu())
            if label is not None:
                labels.append(torch.full_like(part, label).cpu())
            else:
                labels.append(_categorical.sample(tables[part], generation.generator).cpu())
        return torch.cat(images), torch.cat(labels)


def sharp(network: Network, x: Tensor, n_steps: int, free: Tensor | None = None) -> Tensor:
    """Images (N, C, H, W) sharpened for the whole stack."""
    if n_steps == 0:
        return x
    with computing(x.device):
        return sharpen(network, x, network.stack_log_prob, n_steps, free=free)[0]


def sharpen(
    network: Network,
    x: Tensor,
    score: Callable[[Tensor], Tensor],
    n_steps: int,
    pull: float = 0.0,
    free: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Climb a score of images by gradient ascent on pixels.

    Each image has its own step size, which grows after a step that raised its objective
    `score(x) - pull * mean((x - x0)^2)` and shrinks, without the step, after one that did not.
    So the objective never falls, and no rate needs tuning.

    Parameters
    ----------
    network : Network
    x : Tensor of shape (N, C, H, W)
    score : callable
        From images to scores (N,), such as a log-likelihood of the network.
    n_steps : int
    pull : float
        Weight of the pull towards the start, with pixels at the layers' scale.
    free : Tensor of shape (N, C, H, W) or None
        The pixels that may change; None is all.

    Returns
    -------
    images : Tensor of shape (N, C, H, W)
    values : Tensor of shape (N, n_steps + 1)
        The objective at the start and after each step.
    """
    start = x

    def value_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            moved = ((x - start) / network.scale).nan_to_num()  # missing pixels stay missing
            distance = moved.square().mean((1, 2, 3))  # (N,)
            value = score(x) - pull * distance  # (N,)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient if free is None else gradient * free

    rate = _FIRST_RATE * network.scale**2 * torch.ones_like(x[:, :1, :1, :1])  # (N, 1 or C, 1, 1)
    value, gradient = value_and_gradient(x)
    values = [value]
    for _ in range(n_steps):
        candidate = x + rate * gradient  # (N, C, H, W)
        new_value, new_gradient = value_and_gradient(candidate)
        rose = new_value > value  # (N,)
        value = torch.where(rose, new_value, value)
        values.append(value)
        rose = rose[:, None, None, None]  # (N, 1, 1, 1)
        x = torch.where(rose, candidate, x)
        gradient = torch.where(rose, new_gradient, gradient)
        rate = torch.where(rose, _FASTER * rate, _SLOWER * rate)
    return x, torch.stack(values, 1)
