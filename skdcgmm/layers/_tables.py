"""Tables of probabilities: what the components of an upper layer emit in a joint stack."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from skdcgmm import _categorical, _windows
from skdcgmm._windows import Size
from skdcgmm.layers._emissions import Emission

# Share of the average table in tables that start as responsibilities of a window.
_SEED_AVERAGE = 0.2
_MIN_SEED_PROBABILITY = 1e-4


class CategoricalEmission(Emission):
    """Tables: each cell of a window draws its component of the layer below from its own.

    All cells of a pooled window draw, independently, from the one table of that window.

    Parameters
    ----------
    pool : (height, width)
        Cells of the layer below that share a table.

    Attributes
    ----------
    logits : Parameter of shape (rows, kernel height, columns, kernel width, K, J)
        Of the tables, over J components below. Rows and columns of windows are 1 if shared.
    """

    def __init__(
        self,
        positions: Size,
        n_components: int,
        n_channels: int,
        kernel: Size,
        *,
        spherical: bool = False,
        pool: Size = (1, 1),
    ) -> None:
        super().__init__(positions, n_components, n_channels, kernel, spherical=spherical)
        self.pool = pool
        (rows, columns), (height, width) = positions, kernel
        shape = (rows, height, columns, width, n_components, n_channels)
        self.logits = nn.Parameter(torch.zeros(shape))

    @property
    def window(self) -> Size:
        """Height and width of a window in cells of the layer below."""
        return self.kernel[0] * self.pool[0], self.kernel[1] * self.pool[1]

    def tables(self, size: Size) -> Tensor:
        """The table of each cell of the layer below, which has `size` cells, (H, W, K, J)."""
        rows, height, columns, width = self.logits.shape[:4]
        n_rows, n_columns = _windows.grid_size(size, self.window, self.window)
        if (rows, columns) == (n_rows, n_columns) and self.pool == (1, 1):
            logits = self.logits.flatten(2, 3).flatten(0, 1)  # (rows * height, columns * width, ..)
            return _categorical.tables(logits[: size[0], : size[1]])
        device = self.logits.device
        row = torch.arange(size[0], device=device)[:, None] // self.pool[0]  # (H, 1)
        column = torch.arange(size[1], device=device) // self.pool[1]  # (W,)
        return _categorical.tables(self.logits)[
            row // height % rows, row % height, column // width % columns, column % width
        ]

    def log_prob(self, x: Tensor, stride: Size, complete: bool = False) -> Tensor:
        """Log density of each window, given those of its cells by component (N, J, H, W)."""
        size = (x.shape[2], x.shape[3])
        return _categorical.log_prob(x, self.tables(size), self.window)

    @torch.no_grad()
    def initialise(self, x: Tensor, stride: Size, generator: torch.Generator) -> None:
        """Start every table as the responsibilities in a random window of `x`, smoothed."""
        pooled = functional.avg_pool2d(x, self.pool, ceil_mode=True, count_include_pad=False)
        windows = _windows.unfold(pooled, self.kernel, self.kernel)  # (R, N, D)
        picked = self._pick(windows, generator)  # (P, K, D)
        average = windows.reshape(len(picked), -1, windows.shape[2]).mean(1, keepdim=True)
        seeds = picked + _SEED_AVERAGE * (average - picked)  # (P, K, D)
        self.logits.copy_(self.from_windows(seeds.clamp_min(_MIN_SEED_PROBABILITY).log()))

    def n_parameters(self, n_inside: float) -> int:
        """Free entries of the tables of cells inside the border."""
        n_tables = round(math.prod(self.positions) * n_inside / self.n_channels)
        return n_tables * self.n_components * (self.n_channels - 1)

    def from_windows(self, values: Tensor) -> Tensor:
        """(P, K, D), with D in the order (channel, row, column), to the shape of `logits`."""
        by_cell = values.view(
            *self.positions, self.n_components, self.n_channels, *self.kernel
        )  # (rows, columns, K, J, height, width)
        return by_cell.permute(0, 4, 1, 5, 2, 3)

    def to_windows(self, values: Tensor) -> Tensor:
        """The inverse of `from_windows`."""
        by_window = values.permute(0, 2, 4, 5, 1, 3)  # (rows, columns, K, J, height, width)
        return by_window.flatten(0, 1).flatten(2)  # (P, K, D)

    @torch.no_grad()
    def weights_below(self, weights: Tensor, size: Size) -> Tensor:
        """Weights (N, J, H, W) of the cells below, given those of the windows."""
        by_cell = self._by_cell(weights, size).permute(2, 3, 0, 1)  # (H, W, N, K)
        return (by_cell @ self.tables(size)).permute(2, 3, 0, 1)

    def sample(
        self,
        components: Tensor,
        evidence: Tensor,
        top_s: int | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Draw the components of the cells below.

        Parameters
        ----------
        components : Tensor of shape (N, rows, columns)
            Of the windows.
        evidence : Tensor of shape (N, J, H, W)
            Log-probability of what is seen below each cell, by component; zero if nothing is.
        top_s : int or None
            Number of likeliest components to draw from.
        generator : torch.Generator or None

        Returns
        -------
        Tensor of shape (N, H, W)
        """
        size = (evidence.shape[2], evidence.shape[3])
        by_cell = self._by_cell(components[:, None], size)[:, 0]  # (N, H, W)
        rows = torch.arange(size[0], device=by_cell.device)[:, None]  # (H, 1)
        columns = torch.arange(size[1], device=by_cell.device)  # (W,)
        prior = self.tables(size)[rows, columns, by_cell]  # (N, H, W, J)
        weights = (prior.log() + evidence.movedim(1, -1)).softmax(-1)  # (N, H, W, J)
        return _categorical.sample(_categorical.keep_largest(weights, top_s), generator)

    def _by_cell(self, x: Tensor, size: Size) -> Tensor:
        """Hand what windows (N, C, rows, columns) hold to their cells (N, C, *size)."""
        height, width = self.window
        row = torch.arange(size[0], device=x.device)[:, None] // height  # (H, 1)
        column = torch.arange(size[1], device=x.device) // width  # (W,)
        # By positions first, as layers leave their values in memory.
        return x.permute(2, 3, 0, 1)[row, column].permute(2, 3, 0, 1)
