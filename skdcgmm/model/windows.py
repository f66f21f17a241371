"""Sizes and moves between images and the windows that slide over them.

Every grid of windows covers its input, unless a stride beyond the kernel leaves gaps: a last window
may reach past the right or bottom border, and what it would see there is missing. This file is the
authority on shapes.
"""

import math
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]
Shape = tuple[int, int, int]  # channels, height, width


class Windows(NamedTuple):
    """Windows that slide over an input.

    Attributes
    ----------
    input_shape : (channels, height, width)
    kernel, stride : (height, width)
    """

    input_shape: Shape
    kernel: Size
    stride: Size

    @property
    def size(self) -> Size:
        """Height and width of the input."""
        return self.input_shape[1:]

    @property
    def grid(self) -> Size:
        """Rows and columns of windows."""
        return grid_size(self.size, self.kernel, self.stride)

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return math.prod(self.grid)

    @property
    def n_values(self) -> int:
        """Number of values in a window."""
        return self.input_shape[0] * math.prod(self.kernel)

    @property
    def overhang(self) -> Size:
        """Rows and columns by which the last windows reach past the border."""
        sizes = zip(self.size, self.kernel, self.stride, self.grid, strict=True)
        rows, columns = (max(0, (g - 1) * s + k - n) for n, k, s, g in sizes)
        return rows, columns

    @property
    def mean_area(self) -> float:
        """Cells that a window holds inside the border, averaged over windows."""
        return float(cells_inside(self).double().mean())

    def pad(self, x: Tensor) -> Tensor:
        """Append zeros at the right and bottom so that every window is complete."""
        bottom, right = self.overhang
        return functional.pad(x, (0, right, 0, bottom)) if bottom or right else x

    def unfold(self, x: Tensor) -> Tensor:
        """The windows of an input as rows, by position; a view where the windows allow one.

        Else images come last in memory, so that windows are copied many values at a time.

        Parameters
        ----------
        x : Tensor of shape (N, C, H, W)
            Of any number of channels.

        Returns
        -------
        Tensor of shape (P, N, C * kernel height * kernel width)
            P positions in row-major order.
        """
        x = self.pad(x)
        if x.is_contiguous() and self.kernel != (x.shape[2], x.shape[3]):
            x = images_last(x)
        for axis, kernel, stride in zip((2, 3), self.kernel, self.stride, strict=True):
            x = x.unfold(axis, kernel, stride)
        windows = x.permute(2, 3, 1, 4, 5, 0)  # (R, Q, C, h, w, N)
        return windows.flatten(2, 4).flatten(0, 1).mT  # (P, N, D)

    def fold_mean(self, patches: Tensor) -> Tensor:
        """Lay patches on their windows and average where they overlap.

        Parameters
        ----------
        patches : Tensor of shape (P, N, C * kernel height * kernel width)

        Returns
        -------
        Tensor of shape (N, C, H, W)
            Pixels under no window, which only strides beyond the kernel leave, are 0.
        """
        (height, width), (bottom, right) = self.size, self.overhang
        if self.input_shape[0] == 0:
            return patches.new_zeros(patches.shape[1], *self.input_shape)
        fold = partial(
            functional.fold, output_size=(height + bottom, width + right),
            kernel_size=self.kernel, stride=self.stride,
        )  # fmt: skip
        columns = patches.permute(1, 2, 0)  # (N, D, P)
        count = fold(columns.new_ones(1, math.prod(self.kernel), columns.shape[2])).clamp_min(1)
        return (fold(columns) / count)[..., :height, :width]  # (N, C, H, W)


@lru_cache
def cells_inside(windows: Windows) -> Tensor:
    """Number of cells of each window inside the border, (rows, columns), on the CPU."""
    sizes = zip(windows.size, windows.kernel, windows.stride, windows.grid, strict=True)
    rows, columns = ((n - s * torch.arange(g, device="cpu")).clamp_max(k) for n, k, s, g in sizes)
    return rows[:, None] * columns


def grid_size(size: Size, kernel: Size, stride: Size) -> Size:
    """Numbers of windows (rows, columns) needed to cover an input of `size`."""
    # No window starts outside, which strides beyond the kernel would ask for.
    rows, columns = (
        min(max(0, -(-(n - k) // s)) + 1, -(-n // s))
        for n, k, s in zip(size, kernel, stride, strict=True)
    )
    return rows, columns


def images_last(x: Tensor) -> Tensor:
    """The values (N, ...) themselves, images last in memory."""
    return x.flatten(1).T.contiguous().T.view(x.shape)
