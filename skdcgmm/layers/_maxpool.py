"""Max over the responsibilities of neighbouring positions."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from skdcgmm import _windows
from skdcgmm._windows import Size
from skdcgmm.layers._base import (
    EmissionFactory,
    Generation,
    Layer,
    LayerSpec,
    Shape,
    check_kernel,
    check_pair,
)


class MaxPool(LayerSpec):
    """Max over the responsibilities inside a sliding window.

    Parameters
    ----------
    kernel_size : int or (int, int), default=2
        Height and width of the window.
    stride : int or (int, int), default=None
        Step between windows. None is the kernel size: windows tile.

    Notes
    -----
    Windows cover their input: a last window that reaches past the border uses only what is
    inside. On the way down, all positions of a window draw from the window's one table; where
    windows overlap, the tables are averaged. With ``objective="joint"``, that is all it means: the
    likelihood of what the positions show is the product over them.

    Examples
    --------
    >>> from skdcgmm import MaxPool
    >>> MaxPool(2)
    MaxPool()
    """

    kind = "maxpool"

    def __init__(self, kernel_size: int | Size = 2, stride: int | Size | None = None) -> None:
        self.kernel_size = kernel_size
        self.stride = stride

    def build(
        self, name: str, input_shape: Shape, emission: EmissionFactory | None = None
    ) -> PoolLayer:
        """Make the torch module.

        Parameters
        ----------
        name : str
            Of the layer, for messages.
        input_shape : (channels, height, width)
        emission : callable, default=None
            Not used.

        Returns
        -------
        PoolLayer

        Raises
        ------
        ValueError, TypeError
            If a parameter does not fit; the message names it.
        """
        kernel = check_kernel(f"{name}__kernel_size", self.kernel_size, input_shape[1:])
        stride = kernel if self.stride is None else check_pair(f"{name}__stride", self.stride)
        return PoolLayer(input_shape, input_shape[0], kernel, stride)


class PoolLayer(Layer):
    """The torch module of `MaxPool`."""

    @property
    def spec(self) -> MaxPool:
        """Parameters from which the layer can be built anew."""
        return MaxPool(self.kernel, self.stride)

    def forward(self, x: Tensor) -> Tensor:
        """The largest value in each window; the border's zeros never win over a responsibility."""
        return functional.max_pool2d(
            _windows.pad(x, self.kernel, self.stride), self.kernel, self.stride
        )

    def down(self, control: Tensor, generation: Generation) -> Tensor:
        """Hand each window's weights to all its positions."""
        weights = control.flatten(2).movedim(2, 0)  # (rows * columns, N, C)
        area = self.kernel[0] * self.kernel[1]
        patches = (
            weights[..., None].expand(-1, -1, -1, area).flatten(2)
        )  # (rows * columns, N, C * area)
        return _windows.fold_mean(patches, self.input_shape[1:], self.kernel, self.stride)
