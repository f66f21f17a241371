"""Pixels at the resolution of the data, with atoms at both ends of their range.

A component says of a pixel that it is exactly the lowest value, exactly the highest, or between
them, and then Gaussian. The log density is with respect to length plus a point at each end. So
black is black, and variances may be as small as an error of rounding. Parameters are ordered as
those of `gaussian`; the probabilities of a value are (lowest, highest, between).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from skdcgmm.model import tables
from skdcgmm.model.bins import log_bins
from skdcgmm.model.pixels import PixelDensity, find_ends, find_steps, no_ends, take_windows
from skdcgmm.model.pixels.gaussian import INTERNAL_VARIANCE, Gaussian, natural_parameters
from skdcgmm.model.windows import Size, Windows

# Goal of the floor of the variances, in squared steps of the data's resolution; and the least in
# variances of a channel, for data without steps.
_STEP_FLOOR, _LEAST_FLOOR = 0.25, 1e-5
# What it falls from, half of the variance of a channel, and the share of training that this takes.
_START_FLOOR, _FALL = 0.5 * INTERNAL_VARIANCE, 0.4
# Of the probabilities that components start with: how much is of all windows, and how much even.
_START_AVERAGE, _START_EVEN = 0.3, 0.1


@dataclass(frozen=True, eq=False)
class AtomsDensity(PixelDensity):
    """Density of windows whose values are at an end of their range, or Gaussian between the ends.

    Attributes
    ----------
    probabilities : Tensor of shape (P, K, D, 3)
        Of the lowest value, the highest, and those between; zero of an end that is no atom.
    means, root_precisions : Tensor of shape (P, K, D)
        Of the values between.
    windows : Windows
    shift, scale : Tensor of shape (C, 1, 1)
        Images enter as (x - shift) / scale.
    ends : Tensor of shape (2, C, 1, 1)
        Lowest and highest value of each channel; infinite where it is no atom.
    in_double : bool
        Whether single precision would not do.
    """

    probabilities: Tensor
    means: Tensor
    root_precisions: Tensor
    windows: Windows
    shift: Tensor
    scale: Tensor
    ends: Tensor
    in_double: bool = False

    def log_prob(self, x: Tensor, complete: bool = False) -> Tensor:
        """Log density of each window by component; missing values, NaN, are left out."""
        low, high, between = places(x, self.ends)
        weights = self._weights  # (P, K, 5 D)
        values = torch.where(between, (x - self.shift) / self.scale, 0).to(weights)  # (N, C, H, W)
        parts = (low, high, between, values, values.square())
        unfolded = [self.windows.unfold(part.to(weights)) for part in parts]  # each (R, N, D)
        features = torch.cat(unfolded, 2)  # (R, N, 5 D)
        scores = weights.expand(len(features), -1, -1) @ features.mT  # (R, K, N)
        by_window = scores.to(x).view(*self.windows.grid, *scores.shape[1:])
        return by_window.permute(3, 2, 0, 1)

    @cached_property
    def _weights(self) -> Tensor:
        """Weights of the features of `log_prob`, (P, K, 5 D)."""
        logs = self._logs
        means, roots = self.means, self.root_precisions
        if self.in_double:
            logs, means, roots = logs.double(), means.double(), roots.double()
        linear, quadratic, constant = natural_parameters(means, roots, summed=False)
        low, high, between = logs.unbind(3)  # (P, K, D)
        return torch.cat([low, high, between + constant, linear, quadratic], 2)

    @property
    def _logs(self) -> Tensor:
        """Logarithms of the probabilities; those of zero are finite, and have no features."""
        return self.probabilities.clamp_min(torch.finfo(self.means.dtype).tiny).log()

    def log_volume(self, x: Tensor, complete: bool = False) -> Tensor:
        """Logarithms of the scale, summed over the values of each window that are between."""
        _, _, between = places(x, self.ends)
        volumes = self.windows.unfold(between * self.scale.log()).sum(2)  # (R, N)
        return volumes.T.view(-1, *self.windows.grid)

    def sample(
        self, components: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Images (N, C, H, W) drawn given the component (N, rows, columns) of each window.

        At a temperature of 0, means; else ends are drawn as they are.
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
        values = (means + noise) * self._by_value(self.scale) + self._by_value(self.shift)
        low, high, _ = self.probabilities[chosen].unbind(3)  # (R, N, D)
        place = torch.rand(low.shape, generator=generator, dtype=low.dtype, device=low.device)
        lowest, highest = (self._by_value(end) for end in self.ends)
        values = torch.where(place < low, lowest, values)
        values = torch.where(place >= 1 - high, highest, values)
        return self.windows.fold_mean(values)

    def mean(self, weights: Tensor) -> Tensor:
        """Mean images (N, C, H, W) given weights (N, K, rows, columns) of the components."""
        by_window = weights.flatten(2).permute(2, 0, 1)  # (R, N, K)
        return self.windows.fold_mean(by_window @ self._mean_values)

    @cached_property
    def _mean_values(self) -> Tensor:
        """Mean of each value by component, ends included, in units of the images, (P, K, D)."""
        low, high, between = self.probabilities.unbind(3)  # (P, K, D)
        lowest, highest = (self._by_value(end.nan_to_num(posinf=0, neginf=0)) for end in self.ends)
        values = self.means * self._by_value(self.scale) + self._by_value(self.shift)
        return low * lowest + high * highest + between * values

    def _by_value(self, of_channels: Tensor) -> Tensor:
        """What channels (C, 1, 1) have, by the values of a window, (D,)."""
        return of_channels.flatten().repeat_interleave(math.prod(self.windows.kernel))

    def log_bins(self, levels: Tensor) -> Tensor:
        """Log probability of each level that a value may round to, (P, K, D, V)."""
        low, high, between = self._logs.double().unbind(3)  # (P, K, D)
        lowest, highest = (self._by_value(end)[:, None] for end in self.ends)  # (D, 1)
        at_low, at_high = levels <= lowest, levels >= highest  # (D, V)
        at_high &= ~at_low
        means = self.means * self._by_value(self.scale) + self._by_value(self.shift)  # (P, K, D)
        roots = self.root_precisions / self._by_value(self.scale)  # (P, K, D)
        inside = ~(at_low | at_high)  # (D, V)
        bins = log_bins(levels, inside, means.double(), roots.double()) + between[..., None]
        # Where no level is between, its probability is that of the ends.
        rest = torch.where(inside.any(1), 0, (-between.expm1()).log())  # (P, K, D)
        for at_end, of_end in ((at_low, low), (at_high, high)):
            # Levels beyond an end, which no image has had, share its probability.
            share = (of_end - rest)[..., None] - at_end.sum(1, keepdim=True).clamp_min(1).log()
            bins = torch.where(at_end, share, bins)
        return bins


class Atoms(Gaussian):
    """Gaussians whose floor falls to the resolution of the data, and probabilities of the ends.

    Parameters
    ----------
    windows, n_components, positions
        As for `Pixels`.

    Attributes
    ----------
    means, log_excess, shift, scale, min_variance
        As of `Gaussian`, of the values between the ends.
    logits : Parameter of shape (P, K, D, 3)
        Of the probabilities of the ends, and of what is between, before the softmax.
    ends : Tensor of shape (2, C, 1, 1)
        Lowest and highest value of each channel; infinite where it is no atom.
    goal_variance : Tensor of the shape of `min_variance`
        Where its fall ends.
    """

    by_pixel = False
    # With variances this small, single precision loses a hundredth of a nat of a window.
    float32_variance = 5e-4

    ends: Tensor
    goal_variance: Tensor

    def __init__(self, windows: Windows, n_components: int, positions: Size) -> None:
        super().__init__(windows, n_components, positions)
        self.logits = nn.Parameter(torch.zeros(*self.means.shape, 3))
        self.register_buffer("ends", no_ends(windows.input_shape[0]))
        self.register_buffer("goal_variance", self.min_variance.clone())
        self.goal_least = self.least_variance

    def forward(self) -> AtomsDensity:
        """The density at the present parameters."""
        learns = torch.is_grad_enabled()
        # A training step bears what single precision loses.
        in_double = not learns and self.means.dtype == torch.float32
        in_double &= self.least_variance < self.float32_variance
        return AtomsDensity(
            self._probabilities(), self.means if learns else self.means.detach(),
            self.root_precisions, self.windows, self.shift, self.scale, self.ends, in_double,
        )  # fmt: skip

    def _probabilities(self) -> Tensor:
        """Probabilities of the ends and of what is between, (P, K, D, 3)."""
        there = self._there()  # (D, 3)
        spread = self.logits.masked_fill(~there, -math.inf).softmax(3)
        even = there / there.sum(1, keepdim=True)  # (D, 3)
        return torch.add(tables.FLOOR * even.to(spread), spread, alpha=1 - tables.FLOOR)

    def _there(self) -> Tensor:
        """Which of the ends of a value are atoms, and that something is between, (D, 3)."""
        finite = self.ends.isfinite().flatten(1)  # (2, C)
        finite = torch.cat([finite, torch.ones_like(finite[:1])])  # (3, C)
        return finite.T.repeat_interleave(math.prod(self.windows.kernel), 0)

    @torch.no_grad()
    def set_units(
        self, count: Tensor, mean: Tensor, variance: Tensor, x: Tensor, reg_covar: float | None
    ) -> None:
        """Shift and scale channels to a common variance; find the ends and the resolution."""
        super().set_units(count, mean, variance, x, reg_covar)
        self.ends = find_ends(x).to(self.means)
        if reg_covar is None:
            least = _STEP_FLOOR * (find_steps(x).to(self.scale) / self.scale).square()
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

    @torch.no_grad()
    def start(
        self, x: Tensor, generator: torch.Generator, chosen: Tensor | None = None
    ) -> Tensor | None:
        """Start every component as a window of `x`, a random one unless chosen, and some noise."""
        chosen = super().start(x, generator, chosen)
        shares = [self.windows.unfold(place.to(x)) for place in places(x, self.ends)]  # (R, N, D)
        parts = [part.reshape(len(self.means), -1, part.shape[2]) for part in shares]  # (P, M, D)
        average = torch.stack([part.mean(1, keepdim=True) for part in parts], -1)  # (P, 1, D, 3)
        picked = average
        if chosen is not None:
            picked = torch.stack([take_windows(part, chosen) for part in parts], -1)  # (P, K, D, 3)
        started = picked + _START_AVERAGE * (average - picked) + _START_EVEN
        self.logits.copy_(started.log())
        return chosen

    @property
    def n_parameters(self) -> int:
        """Means, variances, and probabilities of the ends, of the values inside the border."""
        # Before images are known, as if values had no ends.
        n_ends = 0.0 if self.ends.is_meta else 2 * float(self.ends.isfinite().double().mean())
        return round(super().n_parameters / 2 * (2 + n_ends))


def places(x: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which values (N, C, H, W) are the lowest, the highest, and between; of missing ones none."""
    low, high = x <= ends[0], x >= ends[1]  # (N, C, H, W)
    high &= ~low  # of a channel of one value, both are the same
    return low, high, ~(low | high | x.isnan())
