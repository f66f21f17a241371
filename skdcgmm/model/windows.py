"""Sizes and moves between images and the windows that slide over them.

Every grid of windows covers its input, unless a stride beyond the kernel leaves gaps: a last window
may reach past the right or bottom border, and what it would see there is missing. This file is the
authority on shapes.
"""

import math
from functools import lru_cache
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
    def mean_area(self) -> float:
        """Cells that a window holds inside the border, averaged over windows."""
        return mean_window_area(self.size, self.kernel, self.stride)

    def unfold(self, x: Tensor) -> Tensor:
        """The windows of an input (N, C, H, W) as rows, (rows * columns, N, n_values)."""
        return unfold(x, self.kernel, self.stride)

    def fold_mean(self, patches: Tensor) -> Tensor:
        """Average of patches (rows * columns, N, n_values) on their windows, (N, C, H, W)."""
        return fold_mean(patches, self.size, self.kernel, self.stride)


@lru_cache
def cells_inside(windows: Windows) -> Tensor:
    """Number of cells of each window inside the border, (rows, columns), on the CPU."""
    rows, columns = (
        (n - s * torch.arange(g, device="cpu")).clamp_max(k)
        for n, k, s, g in zip(
            windows.size, windows.kernel, windows.stride, windows.grid, strict=True
        )
    )
    inside: Tensor = rows[:, None] * columns
    return inside


def grid_size(size: Size, kernel: Size, stride: Size) -> Size:
    """Numbers of windows (rows, columns) needed to cover an input of `size`."""
    # No window starts outside, which strides beyond the kernel would ask for.
    rows, columns = (
        min(max(0, -(-(n - k) // s)) + 1, -(-n // s))
        for n, k, s in zip(size, kernel, stride, strict=True)
    )
    return rows, columns


def mean_window_area(size: Size, kernel: Size, stride: Size) -> float:
    """Pixels that a window holds inside the border, averaged over windows."""
    area = 1.0
    for k, g, outside in zip(
        kernel, grid_size(size, kernel, stride), overhang(size, kernel, stride), strict=True
    ):
        area *= k - outside / g  # only the last window reaches past the border
    return area


def overhang(size: Size, kernel: Size, stride: Size) -> Size:
    """Rows and columns by which the last windows reach past the border."""
    rows, columns = (
        max(0, (g - 1) * s + k - n)
        for n, k, s, g in zip(size, kernel, stride, grid_size(size, kernel, stride), strict=True)
    )
    return rows, columns


def pad(x: Tensor, kernel: Size, stride: Size) -> Tensor:
    """Append zeros at the right and bottom so that every window is complete."""
    bottom, right = overhang((x.shape[-2], x.shape[-1]), kernel, stride)
    return functional.pad(x, (0, right, 0, bottom)) if bottom or right else x


def images_last(x: Tensor) -> Tensor:
    """The values (N, ...) themselves, images last in memory."""
    return x.flatten(1).T.contiguous().T.view(x.shape)


def unfold(x: Tensor, kernel: Size, stride: Size) -> Tensor:
    """The windows of `x` as rows, by position; a view where the windows allow one.

    Else images come last in memory, so that windows are copied many values at a time.

    Parameters
    ----------
    x : Tensor of shape (N, C, H, W)

    Returns
    -------
    Tensor of shape (P, N, C * kernel height * kernel width)
        P positions in row-major order.
    """
    x = pad(x, kernel, stride)
    if x.is_contiguous() and kernel != (x.shape[2], x.shape[3]):
        x = images_last(x)
    windows = x.unfold(2, kernel[0], stride[0]).unfold(
        3, kernel[1], stride[1]
    )  # (N, C, R, Q, h, w)
    windows = windows.permute(2, 3, 1, 4, 5, 0)  # (R, Q, C, h, w, N)
    rows, columns = windows.shape[:2]
    return windows.reshape(rows * columns, math.prod(windows.shape[2:5]), len(x)).mT  # (P, N, D)


def fold_mean(patches: Tensor, size: Size, kernel: Size, stride: Size) -> Tensor:
    """Lay patches on their windows and average where they overlap.

    Parameters
    ----------
    patches : Tensor of shape (P, N, C * kernel height * kernel width)
    size : (height, width) of the result

    Returns
    -------
    Tensor of shape (N, C, H, W)
        Pixels under no window, which only strides beyond the kernel leave, are 0.
    """
    bottom, right = overhang(size, kernel, stride)
    padded = (size[0] + bottom, size[1] + right)
    columns = patches.permute(1, 2, 0)  # (N, D, P)
    total = functional.fold(columns, padded, kernel, stride=stride)  # (N, C, H + bottom, W + right)
    ones = columns.new_ones(1, kernel[0] * kernel[1], columns.shape[2])
    count = functional.fold(ones, padded, kernel, stride=stride).clamp_min(
        1
    )  # (1, 1, H + bottom, W + right)
    return (total / count)[..., : size[0], : size[1]]  # (N, C, H, W)
