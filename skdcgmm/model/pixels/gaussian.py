"""Gaussians of independent pixels, with a variance for each value of a window or one for all.

Means are (P, K, D): P positions (one if shared), K components, D values in a window, ordered
(channel, row, column). Root precisions, the inverse standard deviations, are (P, K, D), or
(P, K, 1) for spherical Gaussians.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from skdcgmm.model.bins import log_bins
from skdcgmm.model.pixels import (
    PixelDensity,
    Pixels,
    choose_windows,
    few_centres,
    n_inside,
    take_windows,
)
from skdcgmm.model.windows import Shape, Size, Windows, images_last

LOG_2PI = math.log(2 * math.pi)

# Images enter the layer with this variance, about that of images in 0-1, for which the published
# constants were made.
INTERNAL_VARIANCE = 0.1
# Default floor of the variances, relative to the variance of a channel about its mean, about its
# mean at each pixel (both come to the same for centred images), or of each plain feature.
_CHANNEL_REG_COVAR, _PIXEL_REG_COVAR, _FEATURE_REG_COVAR = 0.5, 0.7, 1e-6
# What variances start with above their floor, and the standard deviation of the noise on means that
# start as windows: equal windows must part.
_START_EXCESS, _START_NOISE = 0.05, 0.1

_ZERO, _ONE = torch.tensor([0.0, 1.0], device="cpu")

# Of a sum of products: weights (P, K, D or 1), and what they weigh.
Terms = list[tuple[Tensor, Tensor]]
# Weights of x and x^2 in a score, and its constant by value or summed.
Natural = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class GaussianDensity(PixelDensity):
    """Density of windows under Gaussians.

    The square is expanded, so that a score is linear in (x, x^2): one convolution where
    positions share their Gaussians, else one batched matrix product over positions. No
    difference x - mean is materialised.

    Attributes
    ----------
    means : Tensor of shape (P, K, D)
    root_precisions : Tensor of shape (P, K, D) or (P, K, 1)
    windows : Windows
    shift, scale : Tensor that broadcasts to (C, H, W)
        Images enter as (x - shift) / scale.
    inside : Tensor of shape (C, H, W) or None
        Whether there is a value, or not: those are zero, and have no density. None: all are there.
    in_double : bool
        Whether single precision would not do.
    """

    means: Tensor
    root_precisions: Tensor
    windows: Windows
    shift: Tensor = _ZERO
    scale: Tensor = _ONE
    inside: Tensor | None = None
    in_double: bool = False

    def log_prob(self, x: Tensor, complete: bool = False) -> Tensor:
        """Log density of each window by component; missing values, NaN, are left out."""
        dtype = x.dtype
        x = (x - self.shift).div_(self.scale)
        if self.inside is not None:
            x.mul_(self.inside)
        if self.in_double:
            x = x.double()
        kernel, stride, (rows, columns) = *self.windows[1:], self.windows.grid
        missing = None if complete else x.isnan()  # (N, C, H, W)
        if missing is not None and not missing.any():
            missing = None
        full = missing is None and self.inside is None and self.windows.overhang == (0, 0)
        linear, quadratic, constant = self._natural_summed if full else self._natural
        if missing is not None:
            # Each value brings its own constant, and a missing one brings none.
            x = torch.where(missing, 0, x)
            bias = torch.zeros_like(constant[..., :1])  # (P, K, 1)
        elif full:
            bias = constant  # (P, K, 1)
        else:
            bias = constant @ self._inside_windows().to(constant).mT  # (R, K, 1)
        overlapping = stride[0] < kernel[0] or stride[1] < kernel[1]
        if len(self.means) == 1 and overlapping and rows * columns > 1:
            terms = [(linear, x), (quadratic, x.square())]
            terms += [] if missing is None else [(constant, (~missing).to(x))]
            return _convolved(terms, bias, self.windows).to(dtype)
        windows = self.windows.unfold(x)  # (R, N, D) with R = rows * columns
        terms = [(linear, windows), (quadratic, windows.square())]
        terms += [] if missing is None else [(constant, self.windows.unfold((~missing).to(x)))]
        scores = _multiplied(terms, bias).to(dtype)  # (R, K, N)
        return scores.view(rows, columns, *scores.shape[1:]).permute(3, 2, 0, 1)

    def log_volume(self, x: Tensor, complete: bool = False) -> Tensor:
        """Logarithms of the scale, summed over the observed values of each window."""
        logs = self.scale.log().expand(self.windows.input_shape)  # (C, H, W)
        if self.inside is not None:
            logs = logs * self.inside
        observed = logs[None] if complete else (~x.isnan()) * logs  # (1 or N, C, H, W)
        volumes = self.windows.unfold(observed).sum(2)  # (R, 1 or N)
        return volumes.T.view(-1, *self.windows.grid)

    def _inside_windows(self) -> Tensor:
        """Which values of each window there are, (R, 1, D)."""
        inside = self.inside
        if inside is None:
            inside = self.means.new_ones(()).expand(self.windows.input_shape)
        return self.windows.unfold(inside[None])

    def sample(
        self, components: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Images (N, C, H, W) drawn given the component (N, rows, columns) of each window."""
        by_window = components.flatten(1).T  # (R, N)
        rows = torch.arange(len(by_window), device=by_window.device)[:, None]  # (R, 1)
        chosen = rows % len(self.means), by_window
        patches = self.means[chosen]  # (R, N, D)
        if temperature != 0:
            noise = torch.randn(
                patches.shape, generator=generator, dtype=patches.dtype, device=patches.device
            )
            patches = patches + math.sqrt(temperature) / self.root_precisions[chosen] * noise
        return self.windows.fold_mean(patches) * self.scale + self.shift

    def mean(self, weights: Tensor) -> Tensor:
        """Mean images (N, C, H, W) given weights (N, K, rows, columns) of the components."""
        by_window = weights.flatten(2).permute(2, 0, 1)  # (R, N, K)
        return self.windows.fold_mean(by_window @ self.means) * self.scale + self.shift

    def log_bins(self, levels: Tensor) -> Tensor:
        """Log probability of each level that a value may round to, (P, K, D, V)."""
        shift, scale = (
            self.windows.unfold(units.expand(self.windows.input_shape)[None])[: len(self.means)]
            for units in (self.shift, self.scale)
        )  # each (P, 1, D); zero past a border
        means = self.means * scale + shift  # (P, K, D)
        roots = self.root_precisions / torch.where(scale > 0, scale, 1)  # (P, K, D)
        return log_bins(levels, means.double(), roots.double())

    @cached_property
    def _natural(self) -> Natural:
        return self._natural_parameters(summed=False)

    @cached_property
    def _natural_summed(self) -> Natural:
        return self._natural_parameters(summed=True)

    def _natural_parameters(self, *, summed: bool) -> Natural:
        means, roots = self.means, self.root_precisions
        if self.in_double:
            means, roots = means.double(), roots.double()
        return natural_parameters(means, roots, summed=summed)


class Gaussian(Pixels):
    """Gaussians that learn how far their variances are above the smallest.

    Parameters
    ----------
    windows, n_components, positions
        As for `Pixels`.
    spherical : bool
        Whether a Gaussian has one variance for all values.

    Attributes
    ----------
    means : Parameter of shape (P, K, D)
    log_excess : Parameter of shape (P, K, D) or (P, K, 1)
        Logarithm of the variances above the floor.
    shift : Tensor of shape (C, H, W), or (C, 1, 1) if positions share Gaussians
    scale : Tensor of the shape of the shift, or (C, 1, 1)
        Units of the images.
    min_variance : Tensor of shape (1, 1, D) or (1, 1, 1)
        Floor of the variances; of shape (P, 1, D) if positions have their own.
    least_variance : float
        The smallest of them, known without asking a GPU.
    """

    # Whether what does not vary at a pixel is left out where pixels have Gaussians of their own.
    by_pixel = True
    # The expanded square loses about precision * value^2 * 6e-8 in float32. Where variances may be
    # smaller than this, scores are computed in double.
    float32_variance = 0.01

    shift: Tensor
    min_variance: Tensor

    def __init__(
        self, windows: Windows, n_components: int, positions: Size, *, spherical: bool = False
    ) -> None:
        super().__init__(windows, n_components, positions)
        self.spherical = spherical
        n_mixtures = math.prod(positions)
        self.means = nn.Parameter(torch.zeros(n_mixtures, n_components, windows.n_values))
        n_variances = 1 if spherical else windows.n_values
        self._add_variances(torch.zeros(n_mixtures, n_components, n_variances))
        self.register_buffer("shift", torch.zeros(self._shift_shape()))
        self.register_buffer("scale", torch.ones(self._scale_shape()))
        floor = torch.full((self._n_floors(), 1, n_variances), _START_EXCESS, dtype=torch.float64)
        self.register_buffer("min_variance", floor)
        self.least_variance = _START_EXCESS

    def _add_variances(self, zeros: Tensor) -> None:
        self.log_excess = nn.Parameter(zeros)

    def _shift_shape(self) -> Shape:
        """Shape of the shift: by pixel, or by channel."""
        own = self.by_pixel and self.windows.n_windows == math.prod(self.positions)
        return self.windows.input_shape if own else (self.windows.input_shape[0], 1, 1)

    def _scale_shape(self) -> Shape:
        return (self.windows.input_shape[0], 1, 1)

    def _n_floors(self) -> int:
        return 1

    def _inside(self) -> Tensor | None:
        """Which values there are, (C, H, W), where some are not."""
        return None

    @property
    def _window(self) -> Size:
        """Height and width of what a window shows."""
        return self.windows.kernel

    @property
    def root_precisions(self) -> Tensor:
        """Inverse standard deviations, (P, K, D), or (P, K, 1) if spherical."""
        return (self.min_variance + self.log_excess.exp()).rsqrt()

    def forward(self) -> PixelDensity:
        """The density at the present parameters."""
        # Without gradients now, none later: not even through natural parameters.
        means = self.means if torch.is_grad_enabled() else self.means.detach()
        in_double = means.dtype == torch.float32 and self.least_variance < self.float32_variance
        return GaussianDensity(
            means, self.root_precisions, self.windows, self.shift, self.scale, self._inside(),
            in_double,
        )  # fmt: skip

    @torch.no_grad()
    def set_units(
        self, count: Tensor, mean: Tensor, variance: Tensor, x: Tensor, reg_covar: float | None
    ) -> None:
        """Shift and scale channels to a common variance; plain features one by one.

        Where pixels have Gaussians of their own, they are shifted one by one, so that a pattern
        which all images have in common means nothing. A spherical Gaussian is one in the units of
        X: all channels keep one scale.
        """
        plain, by_pixel = self.windows.size == (1, 1), self.shift.shape[1:] != (1, 1)
        if not (plain or by_pixel):
            pooled = average(mean, count, (1, 2))  # (C, 1, 1)
            mean, variance = pooled, variance + (mean - pooled).square()
        if self.spherical:
            variance = average(variance, count, (0, 1, 2)).expand(self.scale.shape)  # (C, 1, 1)
        elif not plain:
            variance = average(variance, count, (1, 2))  # (C, 1, 1)
        overall = variance.mean() if (variance > 0).any() else torch.ones_like(variance)
        variance = torch.where(variance > 0, variance, overall)
        share = _PIXEL_REG_COVAR if by_pixel else _CHANNEL_REG_COVAR
        share = _FEATURE_REG_COVAR if plain else share
        floor = share * variance if reg_covar is None else torch.full_like(variance, reg_covar)
        scale = (variance / INTERNAL_VARIANCE).sqrt()
        self.shift = mean.to(self.means).expand(self.shift.shape).clone()
        self.scale = scale.to(self.means).expand(self.scale.shape).clone()
        by_value = (floor / scale.square()).expand(-1, *self.windows.kernel).flatten()  # (D,)
        self.set_min_variance(by_value.amax() if self.spherical else by_value)

    @torch.no_grad()
    def set_min_variance(self, min_variance: Tensor) -> None:
        """Set the floor of the variances, of a shape that broadcasts to that of the present one."""
        self.min_variance = min_variance.to(self.means).expand(self.min_variance.shape).clone()
        self.least_variance = min(min_variance.flatten().tolist(), default=math.inf)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if not self.min_variance.is_meta:  # else it is of another shape, or missing
            self.least_variance = min(self.min_variance.flatten().tolist(), default=math.inf)

    @torch.no_grad()
    def set_variances(self, variances: Tensor) -> None:
        """Set the variances, of the shape of the root precisions; the floor gives way."""
        # An excess this small is lost in the sum, also in double precision.
        axes = [a for a in (0, 1, 2) if self.min_variance.shape[a] == 1]
        self.set_min_variance(torch.minimum(self.min_variance, variances.amin(axes, keepdim=True)))
        excess = (variances - self.min_variance).clamp_min(1e-20 * self.min_variance)
        self.log_excess.copy_(excess.log())

    @torch.no_grad()
    def start(
        self, x: Tensor, generator: torch.Generator, chosen: Tensor | None = None
    ) -> Tensor | None:
        """Start every mean as a window of `x`, a random one unless chosen, and some noise.

        Returns the numbers of the windows, (P, K); None if means are no windows.
        """
        x = (x - self.shift) / self.scale
        windows = self.windows.unfold(x.nan_to_num(nan=0.0))  # (R, N, D)
        n_each = self.windows.n_windows * len(x) // len(self.means)
        windows = windows.reshape(len(self.means), n_each, windows.shape[2])  # (P, M, D)
        plain = self.windows.size == (1, 1) == self._window
        if plain and chosen is None:
            picked = few_centres(windows[0], self.n_components, generator)  # (1, K, D)
        else:
            if chosen is None:
                grid = self.windows.grid
                chosen = choose_windows(windows, self.n_components, grid, self._window, generator)
            picked = take_windows(windows, chosen)  # (P, K, D)
        noise = torch.randn(
            self.means.shape, generator=generator, dtype=x.dtype, device=generator.device
        ).to(x)
        # What does not vary tells components from each other neither now nor later.
        noise *= (windows != windows[:, :1]).any(1, keepdim=True)
        self.means.copy_(picked if plain else picked + _START_NOISE * noise)
        excess = torch.full_like(self.root_precisions, _START_EXCESS)
        self.set_variances(self.min_variance + excess)
        return chosen

    @property
    def n_parameters(self) -> int:
        """Means and variances of the values inside the border."""
        n_gaussians = math.prod(self.positions) * self.n_components
        n_means = round(n_inside(self.windows, self.positions) * n_gaussians)
        return n_means + (n_gaussians if self.spherical else n_means)

    @torch.no_grad()
    def arrays(self) -> dict[str, Tensor]:
        """Means and covariances in units of the images."""
        shift, scale = self._by_value(self.shift), self._by_value(self.scale, beyond=1)
        # Squares of units of the images may be beyond single precision.
        covariances = (scale.double() / self.root_precisions).square()  # (P, K, D)
        if self.spherical:
            covariances = covariances[..., 0]
        return {"means": self.means * scale + shift, "covariances": covariances}

    @torch.no_grad()
    def assign(self, name: str, values: Tensor) -> None:
        """Set means or covariances."""
        shift, scale = self._by_value(self.shift), self._by_value(self.scale, beyond=1)
        if name == "means":
            self.means.copy_((values - shift) / scale)
        else:
            values = values[..., None] if self.spherical else values
            variances = (values / scale.double().square()).to(self.means)  # (P, K, D)
            self.set_variances(variances[..., : self.min_variance.shape[2]])

    def _by_value(self, units: Tensor, beyond: float = 0.0) -> Tensor:
        """Shift or scale of the values of each window, (P, 1, D), and what it is past a border."""
        units = units.expand(self.windows.input_shape)
        by_window = self.windows.unfold(units[None])  # (R, 1, D)
        inside = self.windows.unfold(torch.ones_like(units)[None])
        by_window = torch.where(inside > 0, by_window, beyond)
        return by_window if len(self.means) == len(by_window) else by_window[:1]


def natural_parameters(means: Tensor, root_precisions: Tensor, *, summed: bool) -> Natural:
    """Weights of (x, x^2) in the log density, and its constant by value or summed over values.

    They are (P, K, D), (P, K, D or 1), and (P, K, D) or (P, K, 1).
    """
    natural: Callable[..., Natural] = _NaturalParameters.apply
    return natural(means, root_precisions, summed)


class _NaturalParameters(torch.autograd.Function):
    """The arithmetic of `natural_parameters`.

    Where mixtures are not shared there are as many parameters as values in a batch: a tape would
    take thrice the passes.
    """

    @staticmethod
    def forward(ctx: Any, means: Tensor, roots: Tensor, summed: bool) -> Natural:
        zero = means.new_zeros(())
        quadratic = torch.addcmul(zero, roots, roots, value=-0.5)  # (P, K, D or 1)
        linear = torch.addcmul(zero, quadratic, means, value=-2)  # (P, K, D)
        constant = linear * means  # (P, K, D)
        if summed:
            n_each = means.shape[2] // max(1, roots.shape[2])
            constant = constant.sum(2, keepdim=True)  # (P, K, 1)
            logs = n_each * _sum_of_logs(roots)  # (P, K, 1)
            constant.add_(means.shape[2] * LOG_2PI)
        else:
            logs = roots.log()  # (P, K, D or 1)
            constant.add_(LOG_2PI)
        ctx.save_for_backward(means, roots, quadratic)
        return linear, quadratic, torch.sub(logs, constant, alpha=0.5)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, linear: Tensor, quadratic: Tensor, constant: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        # The gradients are, over what is seen, the sums of x, x^2 and 1, weighed.
        means, roots, halves = ctx.saved_tensors  # halves: of the precisions, negative
        centred = torch.addcmul(linear, constant, means, value=-1)  # (P, K, D)
        second = (linear + centred).mul_(means)  # (P, K, D)
        if roots.shape[2] < means.shape[2]:
            second = second.sum(2, keepdim=True)  # (P, K, 1)
            constant = constant.expand_as(means).sum(2, keepdim=True)  # (P, K, 1)
        torch.sub(quadratic, second, out=second)
        to_roots = torch.addcmul(constant, halves, second, value=2).div_(roots)
        to_means = torch.addcmul(means.new_zeros(()), halves, centred, value=-2)  # (P, K, D)
        return to_means, to_roots, None


def average(values: Tensor, count: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Mean of values over axes, which stay, weighed by counts; zero of none."""
    total = (values * count).sum(axes, keepdim=True)
    return total / count.sum(axes, keepdim=True).clamp_min(1)


def _sum_of_logs(x: Tensor) -> Tensor:
    """Sum of the logarithms over the last axis (P, K, D) of numbers near 1, (P, K, 1).

    A logarithm costs as much as many products: it is taken of four factors at once.
    """
    quarter = x.shape[2] // 4
    if quarter == 0:
        return x.log().sum(2, keepdim=True)
    a, b, c, d = x[..., : 4 * quarter].chunk(4, 2)
    logs = (a * b).mul_(c).mul_(d).log_().sum(2, keepdim=True)  # (P, K, 1)
    return logs.add_(x[..., 4 * quarter :].log().sum(2, keepdim=True))


def _convolved(terms: Terms, bias: Tensor, windows: Windows) -> Tensor:
    """Scores of shared components, of images (N, C, H, W): one convolution of all terms."""
    inputs, weights = [], []
    for weight, x in terms:
        if weight.shape[2] == 1 < windows.n_values:  # spherical
            x, weight = x.sum(1, keepdim=True), weight.expand(-1, -1, math.prod(windows.kernel))
        inputs.append(windows.pad(x))
        weights.append(weight.view(weight.shape[1], x.shape[1], *windows.kernel))
    features = torch.cat(inputs, 1).contiguous(memory_format=torch.channels_last)
    weight = torch.cat(weights, 1)  # (K, channels of the features, h, w)
    shared = bias[0, :, 0] if len(bias) == 1 else None
    scores = functional.conv2d(features, weight, shared, windows.stride)  # (N, K, rows, columns)
    scores = images_last(scores.movedim(1, 3)).movedim(3, 1)
    if shared is not None:
        return scores
    return scores + bias.mT.reshape(*scores.shape[2:], -1).movedim(-1, 0)


def _multiplied(terms: Terms, bias: Tensor) -> Tensor:
    """Scores by position, (R, K, N), of windows (R, N, D): one batched product for each term."""
    factors = []
    for weight, x in terms:
        if weight.shape[2] == 1 < x.shape[2]:  # spherical
            x = x.sum(2, keepdim=True)  # (R, N, 1)
        factors.append((weight.expand(len(x), -1, -1), x.mT))
    scores = torch.baddbmm(bias, *factors[0])  # (R, K, N)
    for weight, x in factors[1:]:
        scores.baddbmm_(weight, x)
    return scores
