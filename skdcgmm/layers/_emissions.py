"""What a mixture's components emit into their windows.

An emission answers two questions: how likely is what each window shows under each component
(`log_prob`), and what does a given component show (`sample`). A mixture layer asks nothing else
of it, so other emissions can take this one's place; what training and fitted parameters need of its
tensors stays with the objective and with `_parameters`.
"""

from __future__ import annotations

import torch
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


class GaussianEmission(nn.Module):
    """Gaussians with diagonal or spherical covariances.

    Parameters
    ----------
    n_positions : int
        1 if all positions share their Gaussians.
    n_components : int
    n_values : int
        Values in a window.
    spherical : bool
        Whether a component has one precision for all values.

    Attributes
    ----------
    means : Parameter of shape (P, K, D)
    root_precisions : Parameter of shape (P, K, D) or (P, K, 1)
        Inverse standard deviations.
    min_variance : float
        Floor of the variances.
    """

    root_precisions: nn.Parameter

    def __init__(
        self, n_positions: int, n_components: int, n_values: int, *, spherical: bool = False
    ) -> None:
        super().__init__()
        width = 1 if spherical else n_values
        self.spherical = spherical
        self.min_variance = _VARIANCE
        self.means = nn.Parameter(torch.zeros(n_positions, n_components, n_values))
        self.root_precisions = nn.Parameter(torch.ones(n_positions, n_components, width))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw the means at random and set the precisions to their published start."""
        start = torch.rand(
            self.means.shape,
            generator=generator,
            dtype=self.means.dtype,
            device=generator.device,
        )
        self.means.copy_(_MEAN_RANGE * (2 * start - 1))
        self.root_precisions.fill_(_VARIANCE**-0.5)
        self.constrain()

    @torch.no_grad()
    def constrain(self) -> None:
        """Put the precisions back into their bounds."""
        self.root_precisions.clamp_(_MIN_PRECISION**0.5, self.min_variance**-0.5)

    def log_prob(self, x: Tensor, kernel: Size, stride: Size) -> Tensor:
        """Log density of each window of (N, C, H, W) by component, (N, K, rows, columns)."""
        parameters = self.means, self.root_precisions
        if x.dtype == torch.float32 and self.min_variance < _FLOAT32_VARIANCE:
            means, roots = (parameter.double() for parameter in parameters)
            return _gaussian.log_prob(x.double(), means, roots, kernel, stride).to(x.dtype)
        return _gaussian.log_prob(x, *parameters, kernel, stride)

    def sample(
        self,
        components: Tensor,
        size: Size,
        kernel: Size,
        stride: Size,
        temperature: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Draw an input (N, C, *size) given the component (N, rows, columns) of each window."""
        patches = _gaussian.sample(
            self.means, self.root_precisions, components.flatten(1).T, temperature, generator
        )  # (rows * columns, N, D)
        return _windows.fold_mean(patches, size, kernel, stride)
