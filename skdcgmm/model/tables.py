"""The way through tables of probabilities, up and down, as pure functions of tensors.

A component of an upper layer holds, for each cell of its window, a table over the components of the
layer below, and each cell draws its component from its table. Tables are (H, W, K, J): one for each
cell of the layer below and each of K components above, over J components below. Windows tile.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from skdcgmm.model.windows import Size, grid_size

# Share of every table that is spread evenly, so that no path is impossible.
FLOOR = 1e-4
# Differences of log-probabilities beyond which one is no longer told from zero: far beyond
# precision, and short of denormal numbers, which slow arithmetic down.
_LARGEST_DIFFERENCE = {torch.float32: 60.0, torch.float64: 600.0}


def tables(logits: Tensor) -> Tensor:
    """Tables from logits over the last axis."""
    even = logits.new_full((), FLOOR / logits.shape[-1])
    return torch.add(even, logits.softmax(-1), alpha=1 - FLOOR)


def logits(tables: Tensor) -> Tensor:
    """Logits of tables over the last axis; entries below the floor are raised to it."""
    floor = FLOOR / tables.shape[-1]
    return (tables - floor).clamp_min(1e-3 * floor).log()


def soft_maximum(scores: Tensor, temperature: float = 1.0) -> Tensor:
    """``T logsumexp(scores / T)`` over the second axis of (N, K)."""
    largest, likelihoods = _likelihoods(scores / temperature, 1)
    return temperature * (likelihoods.sum(1).log() + largest[:, 0])


def responsibilities(scores: Tensor) -> Tensor:
    """Softmax over the components of scores (N, K, rows, columns), images last in memory."""
    _, likelihoods = _likelihoods(scores.permute(2, 3, 1, 0), 2)  # (rows, columns, K, N)
    return (likelihoods / likelihoods.sum(2, keepdim=True)).permute(3, 2, 0, 1)


def posterior(scores: Tensor) -> Tensor:
    """Softmax over the components of scores (N, K).

    Raises
    ------
    ImageOverflowError
        If all scores of an image have overflowed, which then tell nothing of its component.
    """
    return check_finite(scores.softmax(1))


class ImageOverflowError(FloatingPointError):
    """The densities of an image have overflowed.

    Attributes
    ----------
    image : int
        Its number in the batch.
    """

    def __init__(self, image: int) -> None:
        super().__init__(f"the densities of image {image} overflow")
        self.image = image


def check_finite(values: Tensor) -> Tensor:
    """The values (N, ...), or an `ImageOverflowError` if those of an image are not finite."""
    finite = values.isfinite()
    if not finite.all():
        raise ImageOverflowError(int(finite.view(len(values), -1).all(1).int().argmin()))
    return values


def _likelihoods(scores: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The largest score along an axis, and exponentials of what others differ from it."""
    largest = scores.detach().amax(axis, keepdim=True)
    # Where all are minus infinity, in overflow, no component is better than another.
    finite = largest.clamp_min(torch.finfo(scores.dtype).min)
    differences = (scores - finite).clamp_(min=-_LARGEST_DIFFERENCE[scores.dtype])
    return largest, differences.exp_()


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
        Images come last in memory, as they best do in `scores`.
    """
    by_cell = scores.permute(2, 3, 1, 0)  # (H, W, J, N)
    mix: Callable[..., Tensor] = _WindowMixture.apply
    return mix(by_cell, tables, kernel).permute(3, 2, 0, 1)


class Mix(NamedTuple):
    """What `log_prob` is made of, without gradients.

    Attributes
    ----------
    log_prob : Tensor of shape (N, K, rows, columns)
    peak : Tensor of shape (H, W, 1, N)
        Of the scores of each cell.
    likelihoods : Tensor of shape (H, W, J, N)
        Exponentials of the scores less their peak.
    mixtures : Tensor of shape (rows * h, columns * w, K, N)
        Mixtures of the likelihoods by tables.
    """

    log_prob: Tensor
    peak: Tensor
    likelihoods: Tensor
    mixtures: Tensor


@torch.no_grad()
def mix(scores: Tensor, tables: Tensor, kernel: Size) -> Mix:
    """`log_prob` without gradients, and the likelihoods that it is made of."""
    peak, likelihoods = _likelihoods(scores.permute(2, 3, 1, 0), 2)  # (H, W, 1 or J, N)
    mixtures = _mixtures(likelihoods, tables, kernel)  # (rows * h, columns * w, K, N)
    log_mixtures = _log_products(peak, mixtures, kernel, tables.shape[-1])
    return Mix(log_mixtures.permute(3, 2, 0, 1), peak, likelihoods, mixtures)


def shortfalls(mixtures: Tensor, weights: Tensor, size: Size, kernel: Size) -> Tensor:
    """How far cells fall short of their best component, given weights of those above.

    This is the logarithm of the best likelihood over the expected one.

    Parameters
    ----------
    mixtures : Tensor of shape (rows * h, columns * w, K, N)
        As by `mix`; overwritten.
    weights : Tensor of shape (N, K, rows, columns)
    size : (H, W)
        Of the layer of the cells.
    kernel : (h, w)

    Returns
    -------
    Tensor of shape (N, H, W)
    """
    by_window = _by_window(mixtures, kernel)  # (rows, h, columns, w, K, N)
    by_window.mul_(weights.permute(2, 3, 1, 0)[:, None, :, None])
    expected = mixtures.sum(2)[: size[0], : size[1]]  # (H, W, N)
    return -expected.log().permute(2, 0, 1)


def weights_below(weights: Tensor, tables: Tensor, kernel: Size) -> Tensor:
    """Weights (N, J, H, W) of the components of cells, given those (N, K, rows, columns) above."""
    size = (tables.shape[0], tables.shape[1])
    by_cell = at_cells(weights.permute(2, 3, 1, 0), size, kernel)  # (H, W, K, N)
    return (tables.mT @ by_cell).permute(3, 2, 0, 1)


def sample_below(
    components: Tensor,
    tables: Tensor,
    kernel: Size,
    evidence: Tensor,
    top_s: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw the components of the cells below.

    Parameters
    ----------
    components : Tensor of shape (N, rows, columns)
        Of the windows.
    tables : Tensor of shape (H, W, K, J)
    kernel : (height, width)
    evidence : Tensor of shape (N, J, H, W)
        Log-probability of what is seen below each cell, by component; zero if nothing is.
    top_s : int or None
        Number of likeliest components to draw from.
    generator : torch.Generator or None

    Returns
    -------
    Tensor of shape (N, H, W)
    """
    height, width = tables.shape[:2]
    by_cell = at_cells(components.permute(1, 2, 0), (height, width), kernel)  # (H, W, N)
    rows = torch.arange(height, device=by_cell.device)[:, None]  # (H, 1)
    columns = torch.arange(width, device=by_cell.device)  # (W,)
    prior = tables[rows, columns, by_cell.permute(2, 0, 1)]  # (N, H, W, J)
    weights = (prior.log() + evidence.movedim(1, -1)).softmax(-1)  # (N, H, W, J)
    return sample(keep_largest(weights, top_s), generator)


def at_cells(x: Tensor, size: Size, kernel: Size) -> Tensor:
    """What windows (rows, columns, ...) hold, handed to each of their cells, (H, W, ...)."""
    row = torch.arange(size[0], device=x.device)[:, None] // kernel[0]  # (H, 1)
    column = torch.arange(size[1], device=x.device) // kernel[1]  # (W,)
    return x[row, column]


class _WindowMixture(torch.autograd.Function):
    """The sums of `log_prob`, with one exponential, one product and few logarithms a cell.

    Taped operation by operation, the element-wise passes take several times as long as the matrix
    products. Here the logarithm is taken of products over cells, and the way back needs only what
    the way up has computed: the exponentials and their mixtures.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, tables: Tensor, kernel: Size) -> Tensor:
        peak, likelihoods = _likelihoods(scores, 2)  # (H, W, 1, N), (H, W, J, N)
        mixtures = _mixtures(likelihoods, tables, kernel)  # (rows * h, columns * w, K, N)
        ctx.save_for_backward(likelihoods, mixtures, tables)
        ctx.kernel = kernel
        return _log_products(peak, mixtures, kernel, tables.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        likelihoods, mixtures, tables = ctx.saved_tensors
        height, width = tables.shape[:2]
        to_scores = torch.empty_like(likelihoods)
        to_tables = torch.empty_like(tables) if ctx.needs_input_grad[1] else None
        # Row by row, quotients stay in the cache.
        for row in range(height):
            by_window = gradient[row // ctx.kernel[0]]  # (columns, K, N)
            quotients = mixtures[row].unflatten(0, (len(by_window), ctx.kernel[1]))
            quotients = (by_window[:, None] / quotients).flatten(0, 1)[:width]  # (W, K, N)
            torch.bmm(tables[row].mT, quotients, out=to_scores[row])
            if to_tables is not None:
                torch.bmm(quotients, likelihoods[row].mT, out=to_tables[row])
        return to_scores.mul_(likelihoods), to_tables, None


def _by_window(cells: Tensor, kernel: Size) -> Tensor:
    """Cells (rows * h, columns * w, C, N) by tiling window, (rows, h, columns, w, C, N)."""
    (height, width), (h, w) = cells.shape[:2], kernel
    return cells.view(height // h, h, width // w, w, *cells.shape[2:])


def _mixtures(likelihoods: Tensor, tables: Tensor, kernel: Size) -> Tensor:
    """Mixtures by tables of likelihoods (H, W, J, N) by cell, (rows * h, columns * w, K, N).

    Those of cells past the border are 1.
    """
    height, width = likelihoods.shape[:2]
    rows, columns = grid_size((height, width), kernel, kernel)
    shape = (rows * kernel[0], columns * kernel[1], tables.shape[2], likelihoods.shape[3])
    mixtures = tables.new_empty(shape)  # (rows * h, columns * w, K, N)
    mixtures[height:] = mixtures[:, width:] = 1
    for row in range(height):
        torch.bmm(tables[row], likelihoods[row], out=mixtures[row, :width])
    return mixtures


def _log_products(peak: Tensor, mixtures: Tensor, kernel: Size, n_below: int) -> Tensor:
    """Logarithms of mixtures of likelihoods relative to a peak (H, W, 1, N), summed by window."""
    past_border = (0, mixtures.shape[1] - peak.shape[1], 0, mixtures.shape[0] - peak.shape[0])
    peak = functional.pad(peak, (0, 0, 0, 0, *past_border))  # (rows * h, columns * w, 1, N)
    log_mixtures = _by_window(peak, kernel).sum((1, 3))  # (rows, columns, 1, N)
    cells = [c for row in _by_window(mixtures, kernel).unbind(1) for c in row.unbind(2)]
    # As many factors as have no denormal product: the largest likelihood of a cell is 1.
    tiny = torch.finfo(mixtures.dtype).tiny
    n_factors = int(math.log(tiny) / math.log(FLOOR / n_below))
    for start in range(0, len(cells), n_factors):
        product = functools.reduce(torch.mul, cells[start : start + n_factors])
        log_mixtures = log_mixtures + product.log()  # (rows, columns, K, N)
    return log_mixtures


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
