"""What every layer is: a spec that a user writes, and the torch module built from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from skdcgmm._windows import Size, grid_size, mean_window_area

Shape = tuple[int, int, int]  # channels, height, width
EmissionFactory = Callable[..., Any]  # with the parameters of an Emission


class Generation(NamedTuple):
    """How to draw on the way down.

    Attributes
    ----------
    temperature : float
        Factor of all Gaussian variances.
    top_s : int or None
        Number of likeliest components that may be drawn at a position; None is all.
    generator : torch.Generator or None
    """

    temperature: float = 1.0
    top_s: int | None = None
    generator: torch.Generator | None = None


class Layer(nn.Module, ABC):
    """A torch layer over windows: a way up (`forward`) and a way down (`down`)."""

    def __init__(self, input_shape: Shape, n_channels: int, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.kernel, self.stride = kernel, stride
        self.output_shape: Shape = (n_channels, *grid_size(input_shape[1:], kernel, stride))
        self.window_area = mean_window_area(input_shape[1:], kernel, stride)

    @property
    @abstractmethod
    def spec(self) -> LayerSpec:
        """Parameters from which the layer can be built anew, with all sizes spelt out."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map an input (N, *input_shape) to the next layer's (N, *output_shape)."""

    @abstractmethod
    def down(self, control: Tensor, generation: Generation) -> Tensor:
        """Draw an input (N, *input_shape) given non-negative weights (N, *output_shape)."""


class LayerSpec(BaseEstimator, ABC):
    """A layer's parameters, plain and cloneable; `build` makes the module."""

    # Names of layers without one are this and a number.
    kind: str

    @abstractmethod
    def build(
        self, name: str, input_shape: Shape, emission: EmissionFactory | None = None
    ) -> Layer:
        """Make the torch module for an input of shape (channels, height, width).

        A mixture makes what its components emit by `emission`, None being the Gaussians of the
        published recipe; other layers have no use for it.

        Raises
        ------
        ValueError, TypeError
            If a parameter does not fit; the message names it with the layer's `name`.
        """


def check_positive(name: str, value: object) -> int:
    """A positive integer, or an error that names the parameter."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a positive integer; got {value!r}.")
    number = value.__index__()
    if number < 1:
        raise ValueError(f"{name} must be at least 1; got {value!r}.")
    return int(number)


def check_pair(name: str, value: object) -> Size:
    """A positive integer or a pair of them, as a (height, width) pair."""
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ValueError(f"{name} must be one integer or (height, width); got {value!r}.")
        return check_positive(name, value[0]), check_positive(name, value[1])
    side = check_positive(name, value)
    return side, side


def check_kernel(name: str, value: object, size: Size) -> Size:
    """A kernel that fits its input; None is the whole input."""
    if value is None:
        return size
    kernel = check_pair(name, value)
    if kernel[0] > size[0] or kernel[1] > size[1]:
        remedy = "Choose a smaller kernel, or None for the whole input."
        if size == (1, 1):
            remedy += " If the rows of X are images, give their image_shape=(height, width)."
        raise ValueError(
            f"{name} must fit its input of height x width {size[0]}x{size[1]}; got {value!r}. "
            f"{remedy}"
        )
    return kernel
