"""Gaussians with diagonal precisions, as pure functions of tensors.

Means are (P, K, D): P positions (one if shared), K components, D values in a window, ordered
(channel, row, column). Root precisions, the inverse standard deviations, are (P, K, D), or
(P, K, 1) for spherical Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from skdcgmm._windows import Size, grid_size, pad, unfold

LOG_2PI = math.log(2 * math.pi)

Terms = list[tuple[Tensor, Tensor]]  # of a sum of products: what is seen, and its weights


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Keep products exact and reproducible while in this context.

    The expanded square does not survive the ten bits of TF32, nor those of bfloat16.
    """
    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        if device.type == "cuda":
            cudnn = torch.backends.cudnn
            with cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False):
                yield
        else:
            yield
    finally:
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)


def log_prob(
    x: Tensor, means: Tensor, root_precisions: Tensor, kernel: Size, stride: Size
) -> Tensor:
    """Log density of every window of `x` under every component.

    The square is expanded, so that a score is linear in (x, x^2): one convolution where
    positions share their Gaussians, else one batched matrix product over positions. No
    difference x - mean is materialised.

    Parameters
    ----------
    x : Tensor of shape (N, C, H, W)
        Missing values are NaN: their terms are dropped, which marginalises them.
    means : Tensor of shape (P, K, D)
    root_precisions : Tensor of shape (P, K, D) or (P, K, 1)
    kernel, stride : (height, width)

    Returns
    -------
    Tensor of shape (N, K, rows, columns)
    """
    precisions = root_precisions.square()  # (P, K, D or 1)
    linear = precisions * means  # (P, K, D)
    quadratic = -precisions / 2  # (P, K, D or 1)
    constant = root_precisions.log() - (precisions * means.square() + LOG_2PI) / 2  # (P, K, D)
    size = (x.shape[2], x.shape[3])
    rows, columns = grid_size(size, kernel, stride)
    missing = x.isnan()  # (N, C, H, W)
    if missing.any():
        # Each value brings its own constant, and a missing one brings none.
        x = torch.where(missing, 0, x)
        seen = pad((~missing).to(x), kernel, stride)  # (N, C, H', W')
        bias = torch.zeros_like(constant[..., 0])  # (P, K)
    else:
        seen = None
        bias = _window_constants(constant, size, kernel, stride)  # (P, K) or (rows * columns, K)
    overlapping = stride[0] < kernel[0] or stride[1] < kernel[1]
    if len(means) == 1 and overlapping and rows * columns > 1:
        terms = [(x, linear[0]), (x.square(), quadratic[0])]
        terms += [] if seen is None else [(seen, constant[0])]
        return _convolved(terms, bias, kernel, stride)
    patches = unfold(x, kernel, stride)  # (rows * columns, N, D)
    terms = [(patches, linear), (patches.square(), quadratic)]
    terms += [] if seen is None else [(unfold(seen, kernel, stride), constant)]
    scores = _multiplied(terms, bias)  # (rows * columns, N, K)
    return scores.permute(1, 2, 0).reshape(len(x), -1, rows, columns)  # (N, K, rows, columns)


def _window_constants(constant: Tensor, size: Size, kernel: Size, stride: Size) -> Tensor:
    """Sum the constants (P, K, D) of the values inside the border: (P, K), or one row a window."""
    inside = torch.ones(1, 1, *size).to(constant)  # (1, 1, H, W)
    if pad(inside, kernel, stride) is inside:
        return constant.sum(2)  # (P, K)
    seen = unfold(inside, kernel, stride)[:, 0]  # (rows * columns, h * w)
    by_pixel = constant.view(*constant.shape[:2], -1, seen.shape[1]).sum(2)  # (P, K, h * w)
    if len(by_pixel) == 1:
        return seen @ by_pixel[0].mT
    return (by_pixel * seen[:, None]).sum(2)


def _convolved(terms: Terms, bias: Tensor, kernel: Size, stride: Size) -> Tensor:
    """Scores of shared components: one convolution of all terms, weights (K, D or 1) each."""
    inputs, weights = [], []
    for x, weight in terms:
        if weight.shape[1] == 1 < x.shape[1] * kernel[0] * kernel[1]:  # spherical
            x, weight = x.sum(1, keepdim=True), weight.expand(-1, kernel[0] * kernel[1])
        inputs.append(pad(x, kernel, stride))
        weights.append(weight.reshape(len(weight), x.shape[1], *kernel))
    features = torch.cat(inputs, 1).contiguous(memory_format=torch.channels_last)
    weight = torch.cat(weights, 1)  # (K, channels of the features, h, w)
    if len(bias) == 1:
        return functional.conv2d(features, weight, bias[0], stride)
    scores = functional.conv2d(features, weight, None, stride)  # (N, K, rows, columns)
    return scores + bias.T.view(scores.shape[1:])


def _multiplied(terms: Terms, bias: Tensor) -> Tensor:
    """Scores by position: terms of patches (R, N, D) and weights (P, K, D or 1) to (R, N, K)."""
    inputs, weights = [], []
    for x, weight in terms:
        spherical = weight.shape[2] == 1 < x.shape[2]
        inputs.append(x.sum(2, keepdim=True) if spherical else x)
        weights.append(weight)
    features, weight = torch.cat(inputs, 2), torch.cat(weights, 2)
    if len(weight) == 1:
        return features @ weight[0].mT + bias[:, None]
    return torch.baddbmm(bias[:, None], features, weight.mT)


def sample(
    means: Tensor,
    root_precisions: Tensor,
    components: Tensor,
    temperature: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw one window from the given component of each position.

    Parameters
    ----------
    means : Tensor of shape (P, K, D)
    root_precisions : Tensor of shape (P, K, D) or (P, K, 1)
    components : Tensor of shape (rows * columns, N)
        Component indices.
    temperature : float
        Factor of the variances; 0 gives the means.
    generator : torch.Generator or None
        On the device of the parameters.

    Returns
    -------
    Tensor of shape (rows * columns, N, D)
    """
    position = torch.arange(len(components), device=components.device) % len(means)
    chosen = means[position[:, None], components]  # (rows * columns, N, D)
    if temperature == 0:
        return chosen
    noise = torch.randn(chosen.shape, generator=generator, dtype=chosen.dtype, device=chosen.device)
    deviations = math.sqrt(temperature) / root_precisions[position[:, None], components]
    return chosen + deviations * noise
