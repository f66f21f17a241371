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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from skdcgmm.model import tables
from skdcgmm.model.pixels.gaussian import LOG_2PI, GaussianDensity
from skdcgmm.model.pixels.pyramid import Basis
from skdcgmm.model.tables import Generation
from skdcgmm.model.windows import Size

# Variances of what is seen and of what is not, in units of the channels.
_SEEN, _MISSING = 1e-8, 1e4
# Numbers in the largest tensors of images that are looked at together.
_TOGETHER = 2**23


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

    def choose(self, components: Tensor, kernel: Size) -> Message:
        """Functions for the components (N, rows, columns) of the windows that cells are in."""
        if self.mean.shape[4] == 1:
            return self
        size = (self.mean.shape[0], self.mean.shape[1])
        index = tables.at_cells(components.permute(1, 2, 0), size, kernel)[..., None]
        by_colour = index[:, :, None].expand(*self.mean.shape[:4], 1)
        return Message(
            self.log_mass.gather(3, index),
            self.mean.gather(4, by_colour),
            self.variance.gather(4, by_colour),
        )


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
        scale = density.scale.double().expand(density.windows.input_shape).flatten(1).T[:, None]
        means = _by_colour(density.means.double() * scale, n_colours)
        roots = density.root_precisions.double()
        variances = _by_colour((scale / roots).square(), n_colours)
        n_each = density.windows.n_windows // len(means)  # where positions share Gaussians
        means, variances = (part.repeat(n_each, 1, 1, 1, 1) for part in (means, variances))
        return cls(means, variances, *(basis.to(means) for basis in bases))

    def choose(self, components: Tensor) -> Emission:
        """Emission by one component (N, rows, columns) of each window of each image."""
        chosen = components.flatten(1).T  # (R, N)
        window = torch.arange(len(chosen), device=chosen.device)[:, None]  # (R, 1)
        means, variances = (
            part[window, :, 0, chosen].transpose(1, 2)[:, :, :, None]  # (R, C, N, 1, n)
            for part in (self.means, self.variances)
        )
        return self._replace(means=means, variances=variances)


def _by_colour(values: Tensor, n_colours: int) -> Tensor:
    """Values (P, K, D) of details by colour, (P, C, 1, K, n)."""
    by_colour = values.reshape(*values.shape[:2], n_colours, -1)  # (P, K, C, n)
    return by_colour.transpose(1, 2)[:, :, None]


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
        parts, found = self._parts(x), []
        for colours, missing, _ in parts:
            with torch.enable_grad():
                *_, top = self._climb(colours.requires_grad_(), missing)
                log_prob = (top.flatten(1) + self.log_weights).logsumexp(1)
                (gradient,) = torch.autograd.grad(log_prob.sum(), colours)
            # Tweedie's formula, for what stands for missing pixels.
            found.append([torch.where(missing, _MISSING * gradient, colours.detach())])
        return self._filled(x, *_in_order(parts, found))

    @torch.no_grad()
    def draw(self, x: Tensor, generation: Generation) -> Tensor:
        """Images with missing pixels drawn given the others, (N, C, H, W).

        Components, and values of cells given these, are drawn from the top layer down.
        """
        parts = self._parts(x)
        return self._filled(x, *_in_order(parts, [[self._draw(*p[:2], generation)] for p in parts]))

    def _draw(self, colours: Tensor, missing: Tensor, generation: Generation) -> Tensor:
        """Colours (N, C, H, W) about the mean image."""
        generator = generation.generator
        known = [_seen(colours, missing)]  # of cells
        told: list[Message] = []  # of the means of windows
        for level, emission in enumerate(self.emissions):
            if level > 0:
                known.append(_mix(told[-1], self.mixtures[level - 1]))
            told.append(_up(known[-1], emission, top=level == len(self.emissions) - 1))
        scores = told[-1].log_mass.flatten(0, 2) + self.log_weights  # (N, K)
        chosen = tables.keep_largest(scores.softmax(1), generation.top_s)
        z = tables.sample(chosen, generator)[:, None, None]  # (N, 1, 1)
        values: Tensor | None = None
        for level in reversed(range(len(self.emissions))):
            kernel = self.basis.pyramid.kernels[level]
            cells, emission = known[level].choose(z, kernel), self.emissions[level].choose(z)
            values = _down(cells, emission, values, generation)  # (H, W, C, N)
            if level > 0:
                below = told[level - 1]
                apart = (values[..., None] - below.mean).square() / below.variance
                likely = below.log_mass - 0.5 * (apart + below.variance.log()).sum(2)
                z = tables.sample_below(
                    z, self.mixtures[level - 1], kernel, likely.permute(2, 3, 0, 1),
                    generation.top_s, generator,
                )  # (N, H, W)  # fmt: skip
        assert values is not None
        return values.permute(3, 2, 0, 1)

    def _filled(self, x: Tensor, colours: Tensor) -> Tensor:
        """Images, missing pixels of colours about the mean image."""
        return torch.where(x.isnan(), self.basis.turn_back(colours + self.centre).to(x), x)

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
            n_missing = float(missing.sum()) * colours.shape[1]
            excess = 0.5 * math.log(2 * math.pi * _MISSING) * n_missing
            yield masses + excess if top else masses

    def _parts(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Images of which the same pixels are missing: colours, what is missing, and indices."""
        masks, part = torch.unique(x.isnan().any(1), dim=0, return_inverse=True)
        colours = self.basis.turn(x.nan_to_num(nan=0.0)).double() - self.centre
        parts = []
        first = self.emissions[0].means  # (R, C, 1, K, n)
        n_together = max(1, _TOGETHER // max(1, first.numel()))
        for number, missing in enumerate(masks):
            (alike,) = torch.where(part == number)
            for index in torch.split(alike, n_together):
                parts.append((torch.where(missing, 0, colours[index]), missing, index))
        return parts


def _in_order(
    parts: Sequence[tuple[Tensor, Tensor, Tensor]], found: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """What has been found of each part of the images, in their order."""
    order = torch.cat([index for _, _, index in parts]).argsort()
    return [torch.cat(of_parts)[order] for of_parts in zip(*found, strict=True)]


def _seen(x: Tensor, missing: Tensor) -> Message:
    """What is seen of images (N, C, H, W), of which the same pixels (H, W) are missing."""
    n_images, _, height, width = x.shape
    variance = torch.full_like(x[0, 0], _SEEN).masked_fill(missing, _MISSING)  # (H, W)
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


class _Seen(NamedTuple):
    """What is known of the cells of windows, and how they come about.

    Attributes
    ----------
    y, v : Tensor of shape (R, C, N, K, m), or 1 where all are alike
        Functions N(y; u, v) of the values of cells.
    first : Tensor of shape (R, 1, 1, 1, 1, m)
        What the mean of a window does to its cells.
    known : Tensor of shape (R, 1, 1, 1, n, m)
        What the coefficients do which the window's component emits.
    covariance : Tensor of shape (R, C, N or 1, K, m, m)
        Of the cells, given the mean.
    factor : Tensor of the shape of the covariance
        Cholesky factor of the covariance of y.
    """

    y: Tensor
    v: Tensor
    first: Tensor
    known: Tensor
    covariance: Tensor
    factor: Tensor

    @classmethod
    def of(cls, message: Message, emission: Emission, *, top: bool) -> _Seen:
        """What is known of windows. The top emits its mean, too."""
        y = _windows(message.mean, emission)
        # Cells past the border are values without density.
        v = _windows(message.variance, emission, 0.5 / math.pi)
        basis = torch.einsum("rpi,sqj->rspqij", emission.rows, emission.columns)
        basis = basis.flatten(4, 5).flatten(2, 3).flatten(0, 1)[:, None, None, None]
        known = basis if top else basis[..., 1:, :]
        covariance = known.mT @ (emission.variances[..., None] * known)
        factor = torch.linalg.cholesky(covariance + torch.diag_embed(v))
        return cls(y, v, basis[..., :1, :], known, covariance, factor)


def _up(message: Message, emission: Emission, *, top: bool) -> Message:
    """What windows tell of their means, given what is known of their cells."""
    seen = _Seen.of(message, emission, top=top)
    residual = seen.y - (emission.means[..., None, :] @ seen.known)[..., 0, :]  # (R, C, N, K, m)
    log_det = 2 * seen.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (R, C, N or 1, K)
    alike = seen.factor.shape[2] == 1
    right = residual.movedim(2, -1)[:, :, None] if alike else residual[..., None]
    white = torch.linalg.solve_triangular(seen.factor, right, upper=False)
    white = white[:, :, 0].movedim(-1, 2) if alike else white[..., 0]  # (R, C, N, K, m)
    log_prob = -0.5 * (white.square().sum(-1) + log_det + white.shape[-1] * LOG_2PI)
    if top:
        mean = variance = log_prob
    else:
        first = seen.first.mT.expand(*seen.factor.shape[:-1], 1)
        along = torch.linalg.solve_triangular(seen.factor, first, upper=False)[..., 0]
        precision = along.square().sum(-1)  # (R, C, N or 1, K)
        projected = (white * along).sum(-1)  # (R, C, N, K)
        mean, variance = projected / precision, (1 / precision).expand_as(projected)
        log_prob = log_prob + 0.5 * (projected * mean + LOG_2PI - precision.log())
    of_cells = _windows(message.log_mass[:, :, None], emission).sum(-1)  # (R, 1, N, K)
    log_mass = (log_prob.sum(1, keepdim=True) + of_cells)[:, 0]  # (R, N, K)
    grid = len(emission.rows), len(emission.columns)
    return Message(
        log_mass.reshape(*grid, *log_mass.shape[1:]),
        mean.reshape(*grid, *mean.shape[1:]),
        variance.reshape(*grid, *variance.shape[1:]),
    )


def _down(
    cells: Message, emission: Emission, means: Tensor | None, generation: Generation
) -> Tensor:
    """Values of cells (H, W, C, N) drawn given the means (rows, columns, C, N) of their windows.

    Drawn without regard to what is seen, and moved by what that tells. The top has drawn no means.
    """
    seen = _Seen.of(cells, emission, top=means is None)

    def noise(variance: Tensor) -> Tensor:
        like = emission.means
        drawn = torch.randn(
            (*like.shape[:4], variance.shape[-1]),
            generator=generation.generator, dtype=like.dtype, device=like.device,
        )  # fmt: skip
        return (generation.temperature * variance).sqrt() * drawn

    coefficients = emission.means + noise(emission.variances)  # (R, C, N, 1, n)
    values = (coefficients[..., None, :] @ seen.known)[..., 0, :]  # (R, C, N, 1, m)
    if means is not None:
        values = values + means.flatten(0, 1)[..., None, None] * seen.first[..., 0, :]
    surprise = seen.y - values - noise(seen.v)
    told = torch.cholesky_solve(surprise[..., None], seen.factor.expand(*surprise.shape, -1))
    values = values + (seen.covariance @ told)[..., 0]
    (n_rows, height), (n_columns, width) = emission.rows.shape[:2], emission.columns.shape[:2]
    shape = (n_rows, n_columns, *values.shape[1:3], height, width)
    by_window = values[..., 0, :].reshape(shape)  # (rows, columns, C, N, h, w)
    laid: Tensor = by_window.permute(0, 4, 1, 5, 2, 3).flatten(2, 3).flatten(0, 1)  # (H, W, C, N)
    return laid[: cells.mean.shape[0], : cells.mean.shape[1]]


def _windows(cells: Tensor, emission: Emission, beyond: float = 0.0) -> Tensor:
    """Cells (H, W, C, N, K) by window, (R, C, N, K, m), and what they are past the border."""
    (n_rows, height), (n_columns, width) = emission.rows.shape[:2], emission.columns.shape[:2]
    past = (n_columns * width - cells.shape[1], n_rows * height - cells.shape[0])
    padded = functional.pad(cells, (0, 0) * 3 + (0, past[0], 0, past[1]), value=beyond)
    by_window = padded.view(n_rows, height, n_columns, width, *cells.shape[2:])
    return by_window.permute(0, 2, 4, 5, 6, 1, 3).flatten(5, 6).flatten(0, 1)
