"""Tables of probabilities over components below, as pure functions of tensors.

A component of an upper layer holds, for each cell of its window, a table over the components of the
layer below, and each cell draws its component from its table. Tables are (H, W, K, J): one for each
cell of the layer below and each of K components above, over J components below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skdcgmm._windows import Size, grid_size

# Share of every table that is spread evenly, so that no path is impossible.
FLOOR = 1e-4
# Factors multiplied before a logarithm is taken. Each is at least FLOOR / J, so that the product of
# four stays far from the smallest float32.
_FACTORS = 4
# Differences of log-probabilities beyond which one is no longer told from zero: far beyond
# precision, and short of denormal numbers, which slow arithmetic down.
_LARGEST_DIFFERENCE = {torch.float32: 60.0, torch.float64: 600.0}


def tables(logits: Tensor) -> Tensor:
    """Tables from logits over the last axis."""
    even = logits.new_tensor(FLOOR / logits.shape[-1])
    return torch.add(even, logits.softmax(-1), alpha=1 - FLOOR)


def logits(tables: Tensor) -> Tensor:
    """Logits of tables over the last axis; entries below the floor are raised to it."""
    floor = FLOOR / tables.shape[-1]
    return (tables - floor).clamp_min(1e-3 * floor).log()


def log_prob(scores: Tensor, tables: Tensor, kernel: Size) -> Tensor:
    """Log-probability of what tiling windows show under each component above.

    This is the sum over the window's cells of ``log sum_j table_kj exp(score_j)``. Cells past the
    border are missing and contribute nothing.

    Parameters
    ----------
    scores : Tensor of shape (N, J, H, W)
        Log-probability of what is below each cell, under each component there.
    tables : Tensor of shape (H, W, K, J)
    kernel : (height, width)
        Windows tile: this is the stride, too.

    Returns
    -------
    Tensor of shape (N, K, rows, columns)
    """
    by_cell = scores.permute(2, 3, 0, 1)  # (H, W, N, J)
    mix: Callable[..., Tensor] = _WindowMixture.apply
    return mix(by_cell, tables, kernel).permute(2, 3, 0, 1)


class _WindowMixture(torch.autograd.Function):
    """The sums of `log_prob`, with one exponential, one product and few logarithms a cell.

    Taped operation by operation, the element-wise passes take several times as long as the matrix
    products. Here the logarithm is taken of products over cells, and the way back needs only what
    the way up has computed: the exponentials and their mixtures.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, tables: Tensor, kernel: Size) -> Tensor:
        height, width, n_images, n_below = scores.shape
        peak = scores.amax(-1, keepdim=True)  # (H, W, N, 1)
        likelihoods = scores - peak
        likelihoods.clamp_(min=-_LARGEST_DIFFERENCE[scores.dtype]).exp_()  # (H, W, N, J)
        mixtures = torch.bmm(
            likelihoods.reshape(-1, n_images, n_below), tables.flatten(0, 1).mT
        ).view(height, width, n_images, -1)  # (H, W, N, K)
        rows, columns = grid_size((height, width), kernel, kernel)
        total = peak.new_zeros(rows, columns, n_images, 1)
        log_mixtures = mixtures.new_zeros(rows, columns, n_images, tables.shape[2])
        product = torch.empty_like(log_mixtures)
        cells = _cells(kernel, (height, width))
        for start in range(0, len(cells), _FACTORS):
            product.fill_(1)
            for cell in cells[start : start + _FACTORS]:
                factor = mixtures[cell]
                product[: len(factor), : factor.shape[1]] *= factor
                total[: len(factor), : factor.shape[1]] += peak[cell]
            log_mixtures += product.log_()
        ctx.save_for_backward(likelihoods, mixtures, tables)
        ctx.kernel = kernel
        return log_mixtures.add_(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        likelihoods, mixtures, tables = ctx.saved_tensors
        by_cell = torch.empty_like(mixtures)
        for cell in _cells(ctx.kernel, (mixtures.shape[0], mixtures.shape[1])):
            factor = mixtures[cell]
            torch.div(gradient[: len(factor), : factor.shape[1]], factor, out=by_cell[cell])
        by_cell = by_cell.flatten(0, 1)  # (H * W, N, K)
        to_scores = to_tables = None
        if ctx.needs_input_grad[0]:
            to_scores = torch.bmm(by_cell, tables.flatten(0, 1)).view_as(likelihoods)
            to_scores *= likelihoods
        if ctx.needs_input_grad[1]:
            to_tables = torch.bmm(by_cell.mT, likelihoods.flatten(0, 1)).view_as(tables)
        return to_scores, to_tables, None


def _cells(kernel: Size, size: Size) -> list[tuple[slice, slice]]:
    """For each cell of a window, that cell of all windows that hold it."""
    return [
        (slice(row, None, kernel[0]), slice(column, None, kernel[1]))
        for row in range(min(kernel[0], size[0]))
        for column in range(min(kernel[1], size[1]))
    ]


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
