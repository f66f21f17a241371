"""Pyramid of means and details: an orthonormal basis of images, and Gaussians in it.

Each window of a layer is one mean and details, in each colour. The means make the image that the
layer above sees; the details are what a component of the layer itself emits. The top emits its
mean, too. So light and colour are drawn from coarse to fine, over the whole image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from skdcgmm.model.pixels.gaussian import INTERNAL_VARIANCE, Gaussian, average
from skdcgmm.model.windows import Shape, Size, Windows, grid_size

# Share of a coefficient's variance at all positions in its squared unit, besides that at its own:
# rare strokes at a border, where hardly anything varies, would else be far beyond all Gaussians.
_POOLED = 0.5
# Default floor of the variances, relative to the variance of a detail: what it is of the square of
# the share that the finest details have in the variance of images, and the least. From a layer to
# the next it rises by one plus that share. Strokes are all details, which hardly predict each
# other: the floor is high. Where light and surfaces vary, it is low.
_FLOOR, _LEAST_FLOOR = 0.5, 0.01


class Pyramid(NamedTuple):
    """Windows of layers, each over the means of the windows below.

    Attributes
    ----------
    image_shape : (channels, height, width)
    kernels : tuple of (height, width)
        Of the tiling windows of each layer, from the image upwards, in cells of the layer below.
    """

    image_shape: Shape
    kernels: tuple[Size, ...]

    @property
    def n_levels(self) -> int:
        """Number of layers."""
        return len(self.kernels)

    def shape(self, level: int) -> Shape:
        """Details of a window, and rows and columns of windows."""
        size = self.image_shape[1:]
        for kernel in self.kernels[: level + 1]:
            size = grid_size(size, kernel, kernel)
        n_coefficients = math.prod(self.kernels[level]) - (level < self.n_levels - 1)
        return (self.image_shape[0] * n_coefficients, *size)

    def inside(self, level: int) -> Tensor:
        """Which details there are, (D, rows, columns): windows at a border have fewer."""
        return _inside(self, level)

    def split(self, x: Tensor) -> list[Tensor]:
        """Details of the windows of each layer, (N, D, rows, columns), of images (N, C, H, W).

        In the order (channel, coefficient); at the top, the mean is the first coefficient.
        """
        parts = []
        for level in range(self.n_levels):
            rows, columns = (basis.to(x) for basis in self.bases(level))  # (R, h, h), (S, w, w)
            n_rows, height = rows.shape[:2]
            n_columns, width = columns.shape[:2]
            past = (0, n_columns * width - x.shape[3], 0, n_rows * height - x.shape[2])
            shape = (*x.shape[:2], n_rows, height, n_columns, width)
            windows = functional.pad(x, past).reshape(shape)  # (N, C, R, h, S, w)
            coefficients = torch.einsum("rpi,ncrisj,sqj->ncpqrs", rows, windows, columns)
            coefficients = coefficients.flatten(2, 3)  # (N, C, h * w, R, S)
            if level < self.n_levels - 1:
                x, coefficients = coefficients[:, :, 0], coefficients[:, :, 1:]
            parts.append(coefficients.flatten(1, 2))
        return parts

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Images (N, C, H, W) of given details; the inverse of `split`."""
        x = parts[-1].new_zeros(0)
        for level in reversed(range(self.n_levels)):
            rows, columns = (basis.to(parts[-1]) for basis in self.bases(level))
            n_colours, (_, *grid) = self.image_shape[0], self.shape(level)
            coefficients = parts[level].reshape(len(parts[level]), n_colours, -1, *grid)
            if level < self.n_levels - 1:
                coefficients = torch.cat([x[:, :, None], coefficients], 2)  # (N, C, h * w, R, S)
            height, width = self.kernels[level]
            shape = (len(coefficients), n_colours, height, width, *grid)
            coefficients = coefficients.reshape(shape)
            windows = torch.einsum("rpi,ncpqrs,sqj->ncrisj", rows, coefficients, columns)
            below = self.image_shape if level == 0 else self.shape(level - 1)
            x = windows.flatten(4, 5).flatten(2, 3)[:, :, : below[1], : below[2]]
        return x

    def bases(self, level: int) -> tuple[Tensor, Tensor]:
        """Bases of the rows and of the columns of a layer's windows, on the CPU."""
        _, height, width = self.image_shape
        rows = _axis_bases(height, tuple(kernel[0] for kernel in self.kernels))
        columns = _axis_bases(width, tuple(kernel[1] for kernel in self.kernels))
        return rows[level], columns[level]


@lru_cache
def _axis_bases(size: int, kernels: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Orthonormal bases of the windows of each layer along one axis, each (windows, k, k).

    The first vector is the mean: constant if weighed by the number of pixels that a cell stands
    for, so that an image of one colour has no details, whatever windows reach past its border. The
    others are cosines, made orthogonal. Of a window of m cells only m vectors and values are not 0.
    """
    areas, bases = torch.ones(size, dtype=torch.float64, device="cpu"), []
    for kernel in kernels:
        parts = torch.split(areas, kernel)
        basis = areas.new_zeros(len(parts), kernel, kernel)
        for i, area in enumerate(parts):
            basis[i, : len(area), : len(area)] = _cosines(area.sqrt()).T
        bases.append(basis)
        areas = torch.stack([area.sum() for area in parts])
    return tuple(bases)


def _cosines(first: Tensor) -> Tensor:
    """Orthonormal basis whose columns are a positive vector (n,), scaled, and cosines along it."""
    cells = torch.arange(len(first), dtype=first.dtype, device=first.device)
    waves = first[:, None] * torch.cos(math.pi * (cells[:, None] + 0.5) * cells / len(first))
    basis: Tensor = torch.linalg.qr(waves).Q
    return basis * (basis * waves).sum(0).sign()


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthonormal basis of images, once their channels are in units of their own.

    Attributes
    ----------
    pyramid : Pyramid
    scale : Tensor of shape (C, 1, 1)
        Units of the channels.
    colours : Tensor of shape (C, C)
        Orthonormal: the colours, in rows, that channels are turned to.
    """

    pyramid: Pyramid
    scale: Tensor
    colours: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """Colours (N, C, H, W) of images, in units of their channels."""
        turned: Tensor = torch.einsum("dc,nchw->ndhw", self.colours, x / self.scale)
        return turned

    def split(self, x: Tensor) -> list[Tensor]:
        """Details of the windows of each layer, (N, D, rows, columns), of images (N, C, H, W)."""
        return self.pyramid.split(self.turn(x))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Images (N, C, H, W) of given details; the inverse of `split`."""
        return self.turn_back(self.pyramid.join(parts))

    def turn_back(self, colours: Tensor) -> Tensor:
        """Images (N, C, H, W) of given colours; the inverse of `turn`."""
        turned: Tensor = torch.einsum("dc,ndhw->nchw", self.colours.to(colours), colours)
        return turned * self.scale

    def log_volume(self, level: int) -> Tensor:
        """What a layer's log density loses by the units of channels, (1, rows, columns)."""
        inside = self.pyramid.inside(level).sum(0, keepdim=True).to(self.scale)
        return inside * self.scale.log().mean()


class Units(nn.Module):
    """Units of the channels of images, and colours that tell the ones that vary apart.

    Parameters
    ----------
    pyramid : Pyramid
    """

    scale: Tensor
    colours: Tensor

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.pyramid = pyramid
        n_channels, *_ = pyramid.image_shape
        self.register_buffer("scale", torch.ones(n_channels, 1, 1))
        self.register_buffer("colours", torch.eye(n_channels))

    def forward(self) -> Basis:
        """The basis in these units."""
        return Basis(self.pyramid, self.scale, self.colours)

    def set_units(self, count: Tensor, variance: Tensor) -> None:
        """Bring channels to a common variance about their means at each pixel, (C, H, W).

        The first colour is grey, the mean of the channels; those that do not vary have no part in
        colours.
        """
        by_channel = average(variance, count, (1, 2)).flatten()  # (C,)
        varies = by_channel > 0
        overall = by_channel[varies].mean() if varies.any() else by_channel.new_ones(())
        scale = torch.where(varies, by_channel, overall).sqrt()
        self.scale = scale.to(self.scale)[:, None, None]
        n_varying = int(varies.sum())
        colours = torch.eye(len(scale), dtype=torch.float64, device=scale.device)
        if n_varying:
            chosen = torch.where(varies)[0]
            turned = _cosines(torch.ones(n_varying, dtype=torch.float64, device=scale.device)).T
            colours[chosen[:, None], chosen] = turned
        self.colours = colours.to(self.colours)


class Details(Gaussian):
    """Gaussians of the details of a layer's windows, each in a unit of its own.

    Parameters
    ----------
    pyramid : Pyramid
    level : int
    n_components : int
    positions : (rows, columns)
        Of windows that have Gaussians of their own; (1, 1) if all share them.
    """

    def __init__(self, pyramid: Pyramid, level: int, n_components: int, positions: Size) -> None:
        windows = Windows(pyramid.shape(level), (1, 1), (1, 1))
        super().__init__(windows, n_components, positions)
        self.pyramid, self.level = pyramid, level

    def _scale_shape(self) -> Shape:
        return self._shift_shape()

    def _n_floors(self) -> int:
        return math.prod(self.positions)

    @property
    def _window(self) -> Size:
        return self.pyramid.kernels[self.level]

    def set_floor(self, share: float) -> None:
        """Set the floor of the variances relative to those of the details."""
        self.set_min_variance(torch.full_like(self.min_variance, share * INTERNAL_VARIANCE))

    def _inside(self) -> Tensor | None:
        """Which details there are, (D, rows, columns); None if all are."""
        inside = self.pyramid.inside(self.level)
        return None if inside.all() else inside.to(self.means)

    # With variances this small, single precision loses a hundredth of a nat.
    float32_variance = 5e-4

    @torch.no_grad()
    def set_units(
        self, count: Tensor, mean: Tensor, variance: Tensor, x: Tensor, reg_covar: float | None
    ) -> None:
        """Shift and scale each detail by its own mean and standard deviation.

        By position where those have Gaussians of their own, so that a pattern which all images have
        in common means nothing.
        """
        if self.shift.shape[1:] != variance.shape[1:]:  # shared
            pooled = average(mean, count, (1, 2))  # (D, 1, 1)
            mean, variance = pooled, average(variance + (mean - pooled).square(), count, (1, 2))
        else:
            everywhere = average(variance, count, (1, 2))  # (D, 1, 1)
            variance = variance + _POOLED * (everywhere - variance)
        varies = (variance > 0) & (count > 0).any(2, keepdim=True).any(1, keepdim=True)
        overall = variance[varies].mean() if varies.any() else variance.new_ones(())
        variance = torch.where(varies, variance, overall)
        self.shift = mean.to(self.means).expand(self.shift.shape).clone()
        self.scale = (variance / INTERNAL_VARIANCE).sqrt().to(self.means).clone()
        if reg_covar is not None:
            self.set_min_variance(self._by_value(reg_covar / self.scale.double().square()))

    @property
    def n_parameters(self) -> int:
        """Means and variances of the details that there are."""
        n_details = self.means.shape[0] * self.means.shape[2]
        if len(self.means) > 1:
            n_details = int(self.pyramid.inside(self.level).sum())
        return 2 * n_details * self.n_components


def floors(variances: Sequence[Tensor]) -> list[float]:
    """Floors of the variances of each layer, relative to those of its details.

    Parameters
    ----------
    variances : sequence of Tensor of shape (D, rows, columns)
        Of the details of each layer.
    """
    totals = [float(variance.sum()) for variance in variances]
    share = totals[0] / sum(totals) if sum(totals) > 0 else 1.0
    lowest = max(_FLOOR * share**2, _LEAST_FLOOR)
    return [lowest * (1 + share) ** level for level in range(len(totals))]


@lru_cache
def _inside(pyramid: Pyramid, level: int) -> Tensor:
    rows, columns = pyramid.bases(level)
    there = (rows.any(2)[:, :, None, None] & columns.any(2)).permute(1, 3, 0, 2)
    flat = there.flatten(0, 1)[int(level < pyramid.n_levels - 1) :]  # (D / C, rows, columns)
    return flat.repeat(pyramid.image_shape[0], 1, 1)
