"""Sizes and moves between images and the windows that slide over them.

Every grid of windows covers its input, unless a stride beyond the kernel leaves gaps: a last window
may reach past the right or bottom border, and what it would see there is missing. This file is the
authority on shapes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]


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


def coverage(size: Size, kernel: Size, stride: Size) -> Tensor:
    """Number of windows that see each pixel, (height, width)."""
    sides = []
    for n, k, s, g in zip(size, kernel, stride, grid_size(size, kernel, stride), strict=True):
        pixel = torch.arange(n)
        first = (pixel - k).div(s, rounding_mode="floor").add(1).clamp_min(0)
        last = (pixel // s).clamp_max(g - 1)
        sides.append((last - first + 1).clamp_min(0))  # (n,)
    return sides[0][:, None] * sides[1]


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
