"""Several processes that train one model together, each on images of its own.

They are those of `torch.distributed`, which the user starts and initialises. All of them call the
functions below at the same points of `fit`; without them, there is one process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")


def n_processes() -> int:
    """Number of processes that train together."""
    there = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if there else 1


def rank() -> int:
    """The number of this process among them; the first writes files."""
    return 0 if n_processes() == 1 else distributed.get_rank()


def gather(value: T) -> list[T]:
    """What every process has, in the order of their ranks."""
    if n_processes() == 1:
        return [value]
    values: list[T] = [value] * n_processes()
    distributed.all_gather_object(values, value)
    return values


def add_up(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the processes."""
    if n_processes() == 1:
        return tensor
    # NCCL knows tensors on GPUs only.
    gpu_only = distributed.get_backend() == "nccl" and tensor.device.type == "cpu"
    total = tensor.to("cuda") if gpu_only else tensor.clone()
    distributed.all_reduce(total)
    return total.to(tensor.device)


def add_gradients(parameters: Iterable[nn.Parameter], losses: list[Tensor]) -> list[Tensor]:
    """Make gradients those of all processes' images; the losses, (), summed likewise."""
    if n_processes() == 1:
        return losses
    trained = [p for p in parameters if p.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    # One message a step.
    flat = torch.cat([part.flatten() for part in [*gradients, *losses]])
    parts = torch.split(add_up(flat), [p.numel() for p in trained] + [1] * len(losses))
    for parameter, part in zip(trained, parts, strict=False):
        parameter.grad = part.view_as(parameter)
    return [part.view(()) for part in parts[len(trained) :]]


def same_start(network: nn.Module) -> None:
    """Give a network the parameters of the first process."""
    if n_processes() > 1:
        first, *_ = gather({name: value.cpu() for name, value in network.state_dict().items()})
        network.load_state_dict(first)


def same_random_state(rng: np.random.RandomState) -> np.random.RandomState:
    """A random state that draws the same in every process, as the first one's would."""
    if n_processes() == 1:
        return rng
    state, *_ = gather(rng.get_state())
    same = np.random.RandomState()
    same.set_state(state)
    return same
