"""Pixels at the resolution of the data, with atoms at both ends of their range.

A component says of a pixel what a Gaussian does, and that all beyond an end is at that end, as in a
camera: of the values that round to the end too. The log density is with respect to length plus a
point at each end. So black is black, and variances may be as small as an error of rounding.
Parameters are those of `gaussian`, of what there is before it is cut off.

References
----------
J. Tobin: Estimation of relationships for limited dependent variables. Econometrica 26(1), 1958.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from skdcgmm.model import tables
from skdcgmm.model.bins import log_bins
from skdcgmm.model.pixels import PixelDensity, find_ends, find_steps, no_ends
from skdcgmm.model.pixels.gaussian import (
    INTERNAL_VARIANCE,
    LOG_2PI,
    Gaussian,
    natural_parameters,
)
from skdcgmm.model.windows import Size, Windows

# Goal of the floor of the variances, in squared steps of the data's resolution; and the least in
# variances of a channel, for data without steps.
_STEP_FLOOR, _LEAST_FLOOR = 0.25, 1e-5
# What it falls from, half of the variance of a channel, and the share of training that this takes.
_START_FLOOR, _FALL = 0.5 * INTERNAL_VARIANCE, 0.4
# Standard deviations below the mean from which the tail is computed on its own.
_FAR = -5.0
# How far a level may be from an end, in levels, to be that end.
_SLACK = 0.01


@dataclass(frozen=True, eq=False)
class AtomsDensity(PixelDensity):
    """Density of windows of Gaussian values, of which those beyond an end of their range are at it.

    Attributes
    ----------
    means, root_precisions : Tensor of shape (P, K, D)
        Of the values before they are cut off.
    windows : Windows
    shift, scale : Tensor of shape (C, 1, 1)
        Images enter as (x - shift) / scale.
    ends : Tensor of shape (2, C, 1, 1)
        Lowest and highest value of each channel; infinite where it is no atom.
    edges : Tensor of shape (2, C, 1, 1)
        What is at most the first is at the lowest value, and so on.
    in_double : bool
        Whether single precision would not do.
    """

    means: Tensor
    root_precisions: Tensor
    windows: Windows
    shift: Tensor
    scale: Tensor
    ends: Tensor
    edges: Tensor
    in_double: bool = False

    def log_prob(self, x: Tensor, complete: bool = False) -> Tensor:
        """Log density of each window by component; missing values, NaN, are left out."""
        low, high, between = self._places(x)
        weights = self._weights  # (P, K, 5 D)
        values = torch.where(between, (x - self.shift) / self.scale, 0).to(weights)  # (N, C, H, W)
        parts = (low, high, between, values, values.square())
        unfolded = [self.windows.unfold(part.to(weights)) for part in parts]  # each (R, N, D)
        features = torch.cat(unfolded, 2)  # (R, N, 5 D)
        scores = weights.expand(len(features), -1, -1) @ features.mT  # (R, K, N)
        by_window = scores.to(x).view(*self.windows.grid, *scores.shape[1:])
        return by_window.permute(3, 2, 0, 1)

    def _places(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which values (N, C, H, W) are the lowest, the highest, and between; missing ones none."""
        low, high = x <= self.edges[0], x >= self.edges[1]  # (N, C, H, W)
        high &= ~low  # of a channel of one value, both are the same
        return low, high, ~(low | high | x.isnan())

    @cached_property
    def _weights(self) -> Tensor:
        """Weights of the features of `log_prob`, (P, K, 5 D)."""
        means, roots = self.means, self.root_precisions
        if self.in_double:
            means, roots = means.double(), roots.double()
        linear, quadratic, constant = natural_parameters(means, roots, summed=False)
        # Of an end that is no atom there are no features, and any edge will do.
        edges = torch.where(self.edges.isfinite(), self.edges, self.shift)  # (2, C, 1, 1)
        below, above = self._standardised(means, roots, edges)
        low, high = _log_normal_cdf(below), _log_normal_cdf(-above)  # (P, K, D)
        return torch.cat([low, high, constant, linear, quadratic], 2)

    def _standardised(self, means: Tensor, roots: Tensor, edges: Tensor) -> list[Tensor]:
        """Edges less the means, in standard deviations, each (P, K, D)."""
        return [
            (self._by_value((edge - self.shift) / self.scale) - means) * roots for edge in edges
        ]

    def log_volume(self, x: Tensor, complete: bool = False) -> Tensor:
        """Logarithms of the scale, summed over the values of each window that are between."""
        _, _, between = self._places(x)
        volumes = self.windows.unfold(between * self.scale.log()).sum(2)  # (R, N)
        return volumes.T.view(-1, *self.windows.grid)

    def sample(
        self, components: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Images (N, C, H, W) drawn given the component (N, rows, columns) of each window.

        At a temperature of 0, means of what is cut off.
        """
        by_window = components.flatten(1).T  # (R, N)
        rows = torch.arange(len(by_window), device=by_window.device)[:, None]  # (R, 1)
        chosen = rows % len(self.means), by_window
        if temperature == 0:
            return self.windows.fold_mean(self._mean_values[chosen])
        means = self.means[chosen]  # (R, N, D)
        noise = torch.randn(
            means.shape, generator=generator, dtype=means.dtype, device=means.device
        )
        noise *= math.sqrt(temperature) / self.root_precisions[chosen]
        x = self.windows.fold_mean(means + noise) * self.scale + self.shift  # (N, C, H, W)
        low, high, _ = self._places(x)
        return torch.where(low, self.ends[0], torch.where(high, self.ends[1], x))

    def mean(self, weights: Tensor) -> Tensor:
        """Mean images (N, C, H, W) given weights (N, K, rows, columns) of the components."""
        by_window = weights.flatten(2).permute(2, 0, 1)  # (R, N, K)
        return self.windows.fold_mean(by_window @ self._mean_values)

    @cached_property
    def _mean_values(self) -> Tensor:
        """Mean of each value by component, cut off, in units of the images, (P, K, D)."""
        roots = self.root_precisions
        below, above = self._standardised(self.means, roots, self.edges)  # (P, K, D)
        low: Tensor = torch.special.ndtr(below)
        high: Tensor = torch.special.ndtr(-above)
        lowest, highest = (self._by_value(end.nan_to_num(posinf=0, neginf=0)) for end in self.ends)
        # Of a Gaussian between two edges, times its probability there.
        within = 1 - low - high  # (P, K, D)
        between = self.means * within + (_normal(below) - _normal(above)) / roots
        in_units = between * self._by_value(self.scale) + within * self._by_value(self.shift)
        return low * lowest + high * highest + in_units

    def _by_value(self, of_channels: Tensor) -> Tensor:
        """What channels (C, 1, 1) have, by the values of a window, (D,)."""
        return of_channels.flatten().repeat_interleave(math.prod(self.windows.kernel))

    def log_bins(self, levels: Tensor) -> Tensor:
        """Log probability of each level that a value may round to, (P, K, D, V)."""
        means = self.means * self._by_value(self.scale) + self._by_value(self.shift)  # (P, K, D)
        roots = self.root_precisions / self._by_value(self.scale)  # (P, K, D)
        bins = log_bins(levels, means.double(), roots.double())  # (P, K, D, V)
        slack = _SLACK * (levels[1:] - levels[:-1]).amin() if len(levels) > 1 else 0
        lowest, highest = (self._by_value(end)[:, None] for end in self.ends)  # (D, 1)
        at_low, at_high = levels <= lowest + slack, levels >= highest - slack  # (D, V)
        at_high &= ~at_low
        next_up, next_down = at_low.roll(-1, 1), at_high.roll(1, 1)  # (D, V)
        next_up[:, -1], next_down[:, 0] = False, False
        for at_end, beyond in ((at_low, at_low & next_up), (at_high, at_high & next_down)):
            together = bins.masked_fill(~at_end, -math.inf).logsumexp(3, keepdim=True)
            # Levels beyond an end, which no image has had, share next to nothing of it.
            n_beyond = beyond.sum(1, keepdim=True)  # (D, 1)
            rest = math.log(tables.FLOOR) - n_beyond.clamp_min(1).log()
            most = torch.where(n_beyond > 0, math.log1p(-tables.FLOOR), 0.0)
            bins = torch.where(at_end, together + torch.where(beyond, rest, most), bins)
        return bins


class Atoms(Gaussian):
    """Gaussians that are cut off at the ends, whose floor falls to the resolution of the data.

    Parameters
    ----------
    windows, n_components, positions
        As for `Pixels`.

    Attributes
    ----------
    means, log_excess, shift, scale, min_variance
        As of `Gaussian`, of the values before they are cut off.
    ends, edges : Tensor of shape (2, C, 1, 1)
        As of `AtomsDensity`.
    goal_variance : Tensor of the shape of `min_variance`
        Where its fall ends.
    """

    by_pixel = False
    # With variances this small, single precision loses a hundredth of a nat of a window.
    float32_variance = 5e-4

    ends: Tensor
    edges: Tensor
    goal_variance: Tensor

    def __init__(self, windows: Windows, n_components: int, positions: Size) -> None:
        super().__init__(windows, n_components, positions)
        self.register_buffer("ends", no_ends(windows.input_shape[0]))
        self.register_buffer("edges", no_ends(windows.input_shape[0]))
        self.register_buffer("goal_variance", self.min_variance.clone())
        self.goal_least = self.least_variance

    def forward(self) -> AtomsDensity:
        """The density at the present parameters."""
        learns = torch.is_grad_enabled()
        # A training step bears what single precision loses.
        in_double = not learns and self.means.dtype == torch.float32
        in_double &= self.least_variance < self.float32_variance
        return AtomsDensity(
            self.means if learns else self.means.detach(), self.root_precisions, self.windows,
            self.shift, self.scale, self.ends, self.edges, in_double,
        )  # fmt: skip

    @torch.no_grad()
    def set_units(
        self, count: Tensor, mean: Tensor, variance: Tensor, x: Tensor, reg_covar: float | None
    ) -> None:
        """Shift and scale channels to a common variance; find the ends and the resolution."""
        super().set_units(count, mean, variance, x, reg_covar)
        steps = find_steps(x).to(self.scale)  # (C, 1, 1)
        self.ends = find_ends(x).to(self.means)
        self.edges = self.ends + torch.stack([steps, -steps]) / 2
        if reg_covar is None:
            least = _STEP_FLOOR * (steps / self.scale).square()
        else:
            least = reg_covar / self.scale.square()
        least = least.clamp(_LEAST_FLOOR * INTERNAL_VARIANCE, _START_FLOOR)
        by_value = least.flatten().repeat_interleave(math.prod(self.windows.kernel))  # (D,)
        self.goal_variance = by_value.expand(self.goal_variance.shape).clone()
        self.goal_least = float(by_value.min())
        self.anneal(0.0)

    def anneal(self, done: float) -> None:
        """Let the floor of the variances fall, geometrically, from its start to its goal."""
        left = max(0.0, 1 - done / _FALL)
        above = (_START_FLOOR / self.goal_variance) ** left  # (1, 1, D)
        self.min_variance = self.goal_variance * above
        self.least_variance = self.goal_least * (_START_FLOOR / self.goal_least) ** left

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if not self.goal_variance.is_meta:
            self.goal_least = min(self.goal_variance.flatten().tolist(), default=math.inf)


def _log_normal_cdf(z: Tensor) -> Tensor:
    """Log of the standard normal distribution function.

    Far below, the gradient of PyTorch's own is wrong by orders in single precision.
    """
    far = z.clamp_max(_FAR)
    tail = (0.5 * torch.special.erfcx(-far / math.sqrt(2))).log() - 0.5 * far.square()
    return torch.where(z < _FAR, tail, torch.special.log_ndtr(z.clamp_min(_FAR)))


def _normal(z: Tensor) -> Tensor:
    """Density of the standard normal distribution."""
    return (-0.5 * (z.square() + LOG_2PI)).exp()
