"""What a mixture's components emit into their windows.

An emission answers two questions: how likely is what each window shows under each component
(`log_prob`), and what does a given component show (`sample`, whose arguments depend on what is
drawn). Gaussians emit numbers, such as pixels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from sklearn.cluster import kmeans_plusplus
from torch import Tensor, nn

from skdcgmm import _gaussian, _windows
from skdcgmm._windows import Size

# Published start: means within +-0.1, root precisions at sqrt(20), which is also their cap on
# inputs in 0-1 (Gepperth & Pfülb, 2021).
_MEAN_RANGE = 0.1
_VARIANCE = 0.05
# The expanded square loses about precision * value^2 * 6e-8 in float32. Where variances may be
# smaller than this, at inputs of variance 0.1, scores are computed in double.
_FLOAT32_VARIANCE = 0.01
# Floor of the precisions, so that a logarithm never sees zero.
_MIN_PRECISION = 1e-4
# Standard deviation of the noise on means that start as windows: equal windows must part.
_SEED_NOISE = 0.1
# Share of the average window's chance to be picked that every window has.
_SEED_FLOOR = 0.01


class Emission(nn.Module, ABC):
    """What the components of a mixture layer emit.

    Parameters
    ----------
    positions : (rows, columns)
        Of windows that have a mixture of their own; (1, 1) if all share one.
    n_components : int
    n_channels : int
        Of the input.
    kernel : (height, width)
    spherical : bool
        Whether a Gaussian has one variance for all values; others have no use for it.
    """

    def __init__(
        self, positions: Size, n_components: int, n_channels: int, kernel: Size, *, spherical: bool
    ) -> None:
        super().__init__()
        self.positions, self.kernel = positions, kernel
        self.n_components, self.n_channels = n_components, n_channels
        self.spherical = spherical

    def constrain(self) -> None:
        """Put parameters back into their bounds after a step."""

    @abstractmethod
    def log_prob(self, x: Tensor, stride: Size, complete: bool = False) -> Tensor:
        """Log density of each window of (N, C, H, W) by component, (N, K, rows, columns).

        `complete` promises that no value is missing.
        """

    @abstractmethod
    def initialise(self, x: Tensor, stride: Size, generator: torch.Generator) -> None:
        """Start at random, given some inputs `x` (N, C, H, W)."""

    @abstractmethod
    def n_parameters(self, n_inside: float) -> int:
        """Free parameters; `n_inside` values of a window, on average, are inside the border."""

    def _pick(self, windows: Tensor, generator: torch.Generator) -> Tensor:
        """For each component one of the windows (R, N, D) of its position, (P, K, D).

        Parts of the input are drawn with probability proportional to the squared distance from the
        mean window: most windows at a border are blank, and components that start there would never
        leave. Whole images are drawn evenly, since far ones may be outliers; inputs of one
        position, such as plain features, by k-means++: few of them leave little room to move past
        another component.
        """
        whole = len(windows) == 1
        if whole and self.kernel == (1, 1):
            rows = windows[0].cpu().numpy()
            seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
            _, picked = kmeans_plusplus(rows, min(self.n_components, len(rows)), random_state=seed)
            return windows[:, np.resize(picked, self.n_components)]
        windows = windows.reshape(math.prod(self.positions), -1, windows.shape[2])  # (P, M, D)
        distance = (windows - windows.mean(1, keepdim=True)).square().sum(2)  # (P, M)
        weights = distance + _SEED_FLOOR * distance.mean(1, keepdim=True) + 1e-12  # (P, M)
        weights = torch.ones_like(weights) if whole else weights
        # Gumbel noise draws without replacement; `multinomial` allows only 2^24 candidates.
        uniform = torch.rand(
            weights.shape, generator=generator, dtype=torch.float32, device=generator.device
        )
        noise = -(-uniform.clamp_min(1e-30).log()).log()  # (P, M)
        order = (weights.log() + noise.to(weights)).argsort(1, descending=True)  # (P, M)
        # More components than windows, which weights of zero may leave, share them.
        turn = torch.arange(self.n_components, device=order.device) % order.shape[1]  # (K,)
        picked = order[:, turn]  # (P, K)
        return windows.gather(1, picked[..., None].expand(-1, -1, windows.shape[2]))


class GaussianEmission(Emission):
    """Gaussians with diagonal or spherical covariances.

    Attributes
    ----------
    means : Parameter of shape (P, K, D)
        D values of a window in the order (channel, row, column).
    min_variance : Tensor of shape () or (D,)
        Floor of the variances.
    least_variance : float
        Its minimum, known without asking a GPU.
    """

    min_variance: Tensor

    def __init__(
        self, positions: Size, n_components: int, n_channels: int, kernel: Size, *, spherical: bool
    ) -> None:
        super().__init__(positions, n_components, n_channels, kernel, spherical=spherical)
        n_values = n_channels * math.prod(kernel)
        self.means = nn.Parameter(torch.zeros(math.prod(positions), n_components, n_values))
        self.register_buffer("min_variance", torch.tensor(_VARIANCE, dtype=torch.float64))
        self.least_variance = _VARIANCE

    @property
    def _variances_shape(self) -> tuple[int, int, int]:
        n_positions, n_components, n_values = self.means.shape
        return n_positions, n_components, 1 if self.spherical else n_values

    @property
    @abstractmethod
    def root_precisions(self) -> Tensor:
        """Inverse standard deviations, (P, K, D), or (P, K, 1) if spherical."""

    @torch.no_grad()
    def set_min_variance(self, min_variance: Tensor) -> None:
        """Set the floor of the variances, () or (D,); spherical Gaussians take the largest."""
        floor = min_variance.max() if self.spherical else min_variance
        self.min_variance = floor.to(self.means)
        self.least_variance = float(floor.min())

    @abstractmethod
    def set_variances(self, variances: Tensor) -> None:
        """Set the variances, of the shape of the root precisions; the floor gives way."""

    def log_prob(self, x: Tensor, stride: Size, complete: bool = False) -> Tensor:
        """Log density of each window by component; missing values, NaN, are left out."""
        in_double = x.dtype == torch.float32 and self.least_variance < _FLOAT32_VARIANCE
        values = (x, self.means, self.root_precisions)
        x, means, roots = (v.double() for v in values) if in_double else values
        scores = _gaussian.log_prob(x, means, roots, self.kernel, stride, complete)
        return scores.to(values[0].dtype)

    def n_parameters(self, n_inside: float) -> int:
        """Means and variances of the values inside the border."""
        n_gaussians = math.prod(self.positions) * self.n_components
        n_means = round(n_inside * n_gaussians)
        return n_means + (n_gaussians if self.spherical else n_means)

    def sample(
        self,
        components: Tensor,
        size: Size,
        stride: Size,
        temperature: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Draw an input (N, C, *size) given the component (N, rows, columns) of each window."""
        patches = _gaussian.sample(
            self.means, self.root_precisions, components.flatten(1).T, temperature, generator
        )  # (rows * columns, N, D)
        return _windows.fold_mean(patches, size, self.kernel, stride)

    def mean(self, responsibilities: Tensor, size: Size, stride: Size) -> Tensor:
        """Mean input (N, C, *size) given responsibilities (N, K, rows, columns)."""
        weights = responsibilities.flatten(2).permute(2, 0, 1)  # (rows * columns, N, K)
        return _windows.fold_mean(weights @ self.means, size, self.kernel, stride)


class ClippedGaussianEmission(GaussianEmission):
    """Gaussians of the published recipe: root precisions that are clipped after every step.

    Attributes
    ----------
    roots : Parameter of shape (P, K, D) or (P, K, 1)
        Root precisions.
    """

    def __init__(
        self, positions: Size, n_components: int, n_channels: int, kernel: Size, *, spherical: bool
    ) -> None:
        super().__init__(positions, n_components, n_channels, kernel, spherical=spherical)
        self.roots = nn.Parameter(torch.ones(self._variances_shape))

    @property
    def root_precisions(self) -> Tensor:
        """Inverse standard deviations."""
        return self.roots

    @torch.no_grad()
    def initialise(self, x: Tensor, stride: Size, generator: torch.Generator) -> None:
        """Draw small means, whatever the inputs; the published start."""
        start = torch.rand(
            self.means.shape,
            generator=generator,
            dtype=self.means.dtype,
            device=generator.device,
        )
        self.means.copy_(_MEAN_RANGE * (2 * start - 1))
        self.roots.fill_(_VARIANCE**-0.5)
        self.constrain()

    @torch.no_grad()
    def constrain(self) -> None:
        """Put the precisions back into their bounds."""
        self.roots.clamp_(min=_MIN_PRECISION**0.5)
        torch.minimum(self.roots, self.min_variance.rsqrt().to(self.roots), out=self.roots)

    @torch.no_grad()
    def set_variances(self, variances: Tensor) -> None:
        """Set the variances; the floor gives way to smaller ones."""
        self.set_min_variance(torch.minimum(self.min_variance, variances.amin((0, 1))))
        self.roots.copy_(variances.rsqrt())


class FlooredGaussianEmission(GaussianEmission):
    """Gaussians that learn how far their variances are above the smallest.

    Attributes
    ----------
    log_excess : Parameter of shape (P, K, D) or (P, K, 1)
        Logarithm of the variances above the floor.
    """

    def __init__(
        self, positions: Size, n_components: int, n_channels: int, kernel: Size, *, spherical: bool
    ) -> None:
        super().__init__(positions, n_components, n_channels, kernel, spherical=spherical)
        self.log_excess = nn.Parameter(torch.zeros(self._variances_shape))

    @torch.no_grad()
    def initialise(self, x: Tensor, stride: Size, generator: torch.Generator) -> None:
        """Start every mean as a random window of `x` and some noise."""
        windows = _windows.unfold(x.nan_to_num(nan=0.0), self.kernel, stride)  # (R, N, D)
        noise = torch.randn(
            self.means.shape, generator=generator, dtype=x.dtype, device=generator.device
        ).to(x)
        self.means.copy_(self._pick(windows, generator) + _SEED_NOISE * noise)
        self.set_variances(self.min_variance + torch.full_like(self.root_precisions, _VARIANCE))

    @property
    def root_precisions(self) -> Tensor:
        """Inverse standard deviations."""
        return (self.min_variance + self.log_excess.exp()).rsqrt()

    @torch.no_grad()
    def set_variances(self, variances: Tensor) -> None:
        """Set the variances; the floor gives way to smaller ones."""
        # An excess this small is lost in the sum, also in double precision.
        self.set_min_variance(torch.minimum(self.min_variance, variances.amin((0, 1))))
        excess = (variances - self.min_variance).clamp_min(1e-20 * self.min_variance)
        self.log_excess.copy_(excess.log())
