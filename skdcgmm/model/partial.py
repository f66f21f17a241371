"""Images with missing pixels under a pyramid: Gaussian messages about means go up.

Where pixels are missing, the mean of a window is not known, but what is seen of the window tells of
it. Each component of a layer sends up a Gaussian function of that mean, and mixtures of these by
tables are taken to be one Gaussian of the same mass, mean and variance (assumed density filtering).
So marginals are approximations. Given the components of all windows, means are exact.

References
----------
T. Minka: Expectation Propagation for Approximate Bayesian Inference. UAI 2001.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from skdcgmm.model.pixels.gaussian import LOG_2PI, GaussianDensity
from skdcgmm.model.pixels.pyramid import Basis

# Variances of what is seen and of what is not, in units of the channels.
_SEEN, _MISSING = 1e-8, 1e3


class Message(NamedTuple):
    """Gaussian functions ``exp(log_mass) N(mean; u, variance)`` of the values u of cells.

    Attributes
    ----------
    log_mass : Tensor of shape (H, W, N, K)
    mean, variance : Tensor of shape (H, W, C, N, K)
    """

    log_mass: Tensor
    mean: Tensor
    variance: Tensor


class Emission(NamedTuple):
    """Gaussians of the coefficients of a layer's windows, about the mean image.

    Attributes
    ----------
    means, variances : Tensor of shape (R, C, N or 1, K, n)
        R windows, C colours, for each image or for all alike, n coefficients.
    rows, columns : Tensor
        Bases of the windows, as of a `Pyramid`.
    """

    means: Tensor
    variances: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, density: GaussianDensity, bases: tuple[Tensor, Tensor], n_colours: int) -> Emission:
        """Emission by the Gaussians of details."""
        n_windows = density.windows.n_windows
        scale = density.scale.double().expand(density.windows.input_shape).flatten(1).T[:, None]
        means = (density.means.double() * scale).unflatten(2, (n_colours, -1))  # (R, K, C, n)
        roots = density.root_precisions.double()
        variances = (scale / roots).square().unflatten(2, (n_colours, -1))  # (R, K, C, n)
        assert len(means) == n_windows
        by_colour = (part.transpose(1, 2)[:, :, None] for part in (means, variances))
        return cls(*by_colour, *(basis.to(means) for basis in bases))

    def choose(self, components: Tensor) -> Emission:
        """Emission by one component (N, rows, columns) of each window of each image."""
        chosen = components.flatten(1).T  # (R, N)
        window = torch.arange(len(chosen), device=chosen.device)[:, None]  # (R, 1)
        means, variances = (
            part[window, :, 0, chosen].transpose(1, 2)[:, :, :, None]  # (R, C, N, 1, n)
            for part in (self.means, self.variances)
        )
        return self._replace(means=means, variances=variances)

    def of_images(self, index: Tensor) -> Emission:
        """The part for some of the images."""
        return self._replace(means=self.means[:, :, index], variances=self.variances[:, :, index])


@dataclass(frozen=True, eq=False)
class PartialTree:
    """A pyramid that is shown images with missing pixels; in double precision.

    A pixel is missing if one of its channels is.

    Attributes
    ----------
    basis : Basis
    centre : Tensor of shape (1, C, H, W)
        Colours of the mean image.
    emissions : sequence of Emission
        Of each layer, from the image upwards.
    mixtures : sequence of Tensor of shape (H, W, K, J)
        Tables of the upper layers.
    log_weights : Tensor of shape (K,)
    """

    basis: Basis
    centre: Tensor
    emissions: Sequence[Emission]
    mixtures: Sequence[Tensor]
    log_weights: Tensor

    @torch.no_grad()
    def masses(self, x: Tensor) -> list[Tensor]:
        """Log masses of the components of each layer, (N, K, rows, columns).

        Those of the top are log densities, in units of the channels.
        """
        parts = self._parts(x)
        return _in_order(parts, [list(self._climb(*part[:2])) for part in parts])

    def responsibilities(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        """Posteriors of the components of some layers, each (N, K, rows, columns)."""
        parts, found = self._parts(x), []
        for colours, missing, _ in parts:
            with torch.enable_grad():
                masses = list(self._climb(colours.requires_grad_(), missing))
                log_prob = (masses[-1].flatten(1) + self.log_weights).logsumexp(1)
                found.append(torch.autograd.grad(log_prob.sum(), [masses[i] for i in levels]))
        return _in_order(parts, found)

    def means(self, x: Tensor) -> Tensor:
        """Images with missing pixels at their means given the others, (N, C, H, W)."""

        def log_prob(colours: Tensor, missing: Tensor, index: Tensor) -> Tensor:
            *_, top = self._climb(colours, missing)
            return (top.flatten(1) + self.log_weights).logsumexp(1)

        return self._means(x, log_prob)

    def means_given(self, x: Tensor, components: Sequence[Tensor]) -> Tensor:
        """The same given the components (N, rows, columns) of each layer, too; exact."""
        pairs = zip(self.emissions, components, strict=True)
        chosen = [emission.choose(of_layer) for emission, of_layer in pairs]

        def log_prob(colours: Tensor, missing: Tensor, index: Tensor) -> Tensor:
            message = _seen(colours, missing)
            for level, emission in enumerate(chosen):
                top = level == len(chosen) - 1
                message = _up(message, emission.of_images(index), top=top)
            return message.log_mass.flatten()

        return self._means(x, log_prob)

    def _climb(self, colours: Tensor, missing: Tensor) -> Iterator[Tensor]:
        message = _seen(colours, missing)
        for level, emission in enumerate(self.emissions):
            top = level == len(self.emissions) - 1
            if level > 0:
                message = _mix(message, self.mixtures[level - 1])
            message = _up(message, emission, top=top)
            masses = message.log_mass.permute(2, 3, 0, 1)  # (N, K, rows, columns)
            # What follows depends on what has been handed out, for gradients.
            message = message._replace(log_mass=masses.permute(2, 3, 0, 1))
            # What stands for missing pixels has a density of its own.
            excess = 0.5 * math.log(2 * math.pi * _MISSING) * missing.sum() * colours.shape[1]
            yield masses + excess if top else masses

    def _parts(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Images of which the same pixels are missing: colours, what is missing, and indices."""
        masks, part = x.isnan().any(1).unique(dim=0, return_inverse=True)
        colours = self.basis.turn(x.nan_to_num(nan=0.0)).double() - self.centre
        parts = []
        for number, missing in enumerate(masks):
            (index,) = torch.where(part == number)
            parts.append((torch.where(missing, 0, colours[index]), missing, index))
        return parts

    def _means(self, x: Tensor, log_prob: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Means by Tweedie's formula, from the gradient of what stands for missing pixels."""
        parts, found = self._parts(x), []
        for colours, missing, index in parts:
            with torch.enable_grad():
                value = log_prob(colours.requires_grad_(), missing, index)
                (gradient,) = torch.autograd.grad(value.sum(), colours)
            found.append([torch.where(missing, _MISSING * gradient, colours.detach())])
        (colours,) = _in_order(parts, found)
        return torch.where(x.isnan(), self.basis.turn_back(colours + self.centre).to(x), x)


def _in_order(
    parts: Sequence[tuple[Tensor, Tensor, Tensor]], found: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """What has been found of each part of the images, in their order."""
    order = torch.cat([index for _, _, index in parts]).argsort()
    return [torch.cat(of_parts)[order] for of_parts in zip(*found, strict=True)]


def _seen(x: Tensor, missing: Tensor) -> Message:
    """What is seen of images (N, C, H, W), of which the same pixels (H, W) are missing."""
    n_images, _, height, width = x.shape
    variance = torch.where(missing, _MISSING, _SEEN).to(x)  # (H, W)
    return Message(
        x.new_zeros(height, width, n_images, 1),
        x.permute(2, 3, 1, 0)[..., None],
        variance[..., None, None, None],
    )


def _mix(message: Message, tables: Tensor) -> Message:
    """Mixtures by tables (H, W, K, J) of Gaussians as one Gaussian of their moments."""
    log_mass, mean, variance = message
    peak = log_mass.detach().amax(3, keepdim=True)  # (H, W, N, 1)
    mass = (log_mass - peak).exp()[:, :, None]  # (H, W, 1, N, J)
    by_table = tables.mT[:, :, None]  # (H, W, 1, J, K)
    total = mass @ by_table  # (H, W, 1, N, K)
    first = (mass * mean) @ by_table / total  # (H, W, C, N, K)
    second = (mass * (variance + mean.square())) @ by_table / total
    # Where all are one value, which is seen, rounding leaves less than it is known to.
    spread = (second - first.square()).clamp_min(_SEEN)
    return Message(total[:, :, 0].log() + peak, first, spread)


def _up(message: Message, emission: Emission, *, top: bool) -> Message:
    """What windows tell of their means, given what is known of their cells."""
    rows, columns = emission.rows, emission.columns  # (R, h, h), (S, w, w)
    size = len(rows), rows.shape[1], len(columns), columns.shape[1]
    y = _windows(message.mean, size)  # (R, C, N, K, m)
    # Cells past the border are values without density.
    v = _windows(message.variance, size, 0.5 / math.pi)  # (R, C or 1, N or 1, K, m)
    basis = torch.einsum("rpi,sqj->rspqij", rows, columns)
    basis = basis.flatten(4, 5).flatten(2, 3).flatten(0, 1)[:, None, None, None]  # (..., n, m)
    known = basis if top else basis[..., 1:, :]
    means, variances = emission.means, emission.variances
    residual = y - (means[..., None, :] @ known)[..., 0, :]  # (R, C, N, K, m)
    covariance = known.mT @ (variances[..., None] * known) + torch.diag_embed(v)
    factor = torch.linalg.cholesky(covariance)  # (R, C, N or 1, K, m, m)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (R, C, N or 1, K)
    alike = factor.shape[2] == 1
    right = residual.movedim(2, -1)[:, :, None] if alike else residual[..., None]
    white = torch.linalg.solve_triangular(factor, right, upper=False)
    white = white[:, :, 0].movedim(-1, 2) if alike else white[..., 0]  # (R, C, N, K, m)
    log_prob = -0.5 * (white.square().sum(-1) + log_det + y.shape[-1] * LOG_2PI)
    if top:
        mean = variance = log_prob
    else:
        first = basis[..., :1, :].mT.expand(*factor.shape[:-1], 1)
        along = torch.linalg.solve_triangular(factor, first, upper=False)[..., 0]
        precision = along.square().sum(-1)  # (R, C, N or 1, K)
        projected = (white * along).sum(-1)  # (R, C, N, K)
        mean, variance = projected / precision, (1 / precision).expand_as(projected)
        log_prob = log_prob + 0.5 * (projected * mean + LOG_2PI - precision.log())
    of_cells = _windows(message.log_mass[:, :, None], size).sum(-1)  # (R, 1, N, K)
    log_mass = (log_prob.sum(1, keepdim=True) + of_cells)[:, 0]  # (R, N, K)
    grid = size[0], size[2]
    return Message(log_mass.unflatten(0, grid), mean.unflatten(0, grid), variance.unflatten(0, grid))


def _windows(cells: Tensor, size: tuple[int, int, int, int], beyond: float = 0.0) -> Tensor:
    """Cells (H, W, C, N, K) by window, (R, C, N, K, m), and what they are past the border."""
    n_rows, height, n_columns, width = size
    past = (n_columns * width - cells.shape[1], n_rows * height - cells.shape[0])
    padded = functional.pad(cells, (0, 0) * 3 + (0, past[0], 0, past[1]), value=beyond)
    by_window = padded.view(n_rows, height, n_columns, width, *cells.shape[2:])
    return by_window.permute(0, 2, 4, 5, 6, 1, 3).flatten(5, 6).flatten(0, 1)
