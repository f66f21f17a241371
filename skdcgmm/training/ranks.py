"""Several processes that train one model together, each on images of its own.

They are those of `torch.distributed`, which the user starts and initialises. All of them call the
functions below at the same points; without them, or where they are not `joined`, there is one.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from skdcgmm.data import Images, Stream

T = TypeVar("T")


_together: ContextVar[bool] = ContextVar("together", default=False)


@contextmanager
def joined(together: bool | None) -> Iterator[None]:
    """Let processes train together in this context, or this one alone."""
    token = _together.set(bool(together))
    try:
        yield
    finally:
        _together.reset(token)


def are_there() -> bool:
    """Whether there are processes that could train together."""
    return distributed.is_available() and distributed.is_initialized()


def n_processes() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if _together.get() and are_there() else 1


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


def of_first(value: T) -> T:
    """What the first process has."""
    return gather(value)[0]


def total(value: Any) -> Any:
    """Sum of a number over the processes."""
    return sum(gather(value))


def together(values: NDArray[Any]) -> NDArray[Any]:
    """Rows of all processes."""
    return values if n_processes() == 1 else np.concatenate(gather(values))


def start_alike(stack: nn.Module) -> None:
    """Give a stack the parameters of that of the first process."""
    if n_processes() > 1:
        values = {name: value.cpu() for name, value in stack.state_dict().items()}
        stack.load_state_dict(of_first(values))


def sum_over(tensor: Tensor) -> Tensor:
    """Sum of a tensor over the processes."""
    if n_processes() == 1:
        return tensor
    # NCCL knows tensors on GPUs only.
    gpu_only = distributed.get_backend() == "nccl" and tensor.device.type == "cpu"
    total = tensor.to("cuda") if gpu_only else tensor.clone()
    distributed.all_reduce(total)
    return total.to(tensor.device)


def average_gradients(
    parameters: Iterable[nn.Parameter], losses: list[Tensor], n_images: int
) -> list[Tensor]:
    """Make gradients those of the mean loss over all processes' images; the losses, (), likewise.

    Gradients and losses are those of the mean over the `n_images` of this process.
    """
    if n_processes() == 1:
        return losses
    trained = [p for p in parameters if p.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    # One message a step.
    flat = torch.cat([part.flatten() for part in [*gradients, *losses]])
    total = sum_over(torch.cat([n_images * flat, flat.new_full((1,), n_images)]))
    sizes = [p.numel() for p in trained] + [1] * len(losses)
    parts = torch.split(total[:-1] / total[-1].clamp_min(1), sizes)
    for parameter, part in zip(trained, parts, strict=False):
        parameter.grad = part.view_as(parameter)
    return [part.view(()) for part in parts[len(trained) :]]


def check_together(data: Images | Stream) -> None:
    """Raise an error if processes that train together have images that do not go together."""
    kinds = gather((data.shape, str(data.dtype)))
    if len(set(kinds)) > 1:
        raise ValueError(f"X must be of one shape and type in all processes; got {kinds}.")
    if isinstance(data, Stream) and len(set(counts := gather(data.n_batches))) > 1:
        raise ValueError(f"X must have as many batches in all processes; got {counts}.")
