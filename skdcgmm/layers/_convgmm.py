"""Folding followed by a mixture at every position."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from skdcgmm import _categorical
from skdcgmm._windows import Size, grid_size
from skdcgmm.layers._base import (
    EmissionFactory,
    Generation,
    Layer,
    LayerSpec,
    Shape,
    check_kernel,
    check_pair,
    check_positive,
)
from skdcgmm.layers._emissions import ClippedGaussianEmission, Emission, GaussianEmission

COVARIANCE_TYPES = ("diag", "spherical")

# Weight of a component that training has emptied, and of one that the control of a draw leaves
# out everywhere: small enough not to matter, large enough to have a logarithm.
_MIN_WEIGHT = 1e-12


class ConvGMM(LayerSpec):
    """A mixture model at every position of a sliding window.

    Parameters
    ----------
    n_components : int
        Number of components of the mixture.
    kernel_size : int or (int, int), default=None
        Height and width of the window. None is the whole input: the top layer of a stack.
    stride : int or (int, int), default=None
        Step between windows. None is the kernel size: windows tile.
    covariance_type : {"diag", "spherical"}, default="diag"
        One variance for each value of a window, or one for all of them. Above the first layer of a
        joint stack there are no Gaussians, and this means nothing.
    shared : bool, default=True
        One mixture for all positions (convolutional), or each position its own. Where images are
        centred, as in "auto", False describes them better.

    Notes
    -----
    Windows cover their input: a last window that reaches past the border uses only what is
    inside. With ``objective="joint"``, windows must tile: leave `stride` at None.

    Examples
    --------
    >>> from skdcgmm import ConvGMM
    >>> ConvGMM(50, kernel_size=4, shared=False)
    ConvGMM(kernel_size=4, n_components=50, shared=False)
    """

    kind = "convgmm"

    def __init__(
        self,
        n_components: int,
        kernel_size: int | Size | None = None,
        stride: int | Size | None = None,
        covariance_type: str = "diag",
        shared: bool = True,
    ) -> None:
        self.n_components = n_components
        self.kernel_size = kernel_size
        self.stride = stride
        self.covariance_type = covariance_type
        self.shared = shared

    def build(
        self, name: str, input_shape: Shape, emission: EmissionFactory | None = None
    ) -> MixtureLayer:
        """Make the torch module.

        Parameters
        ----------
        name : str
            Of the layer, for messages.
        input_shape : (channels, height, width)
        emission : callable, default=None
            What makes what the components emit; None makes the Gaussians of the published recipe.

        Returns
        -------
        MixtureLayer

        Raises
        ------
        ValueError, TypeError
            If a parameter does not fit; the message names it.
        """
        n_components = check_positive(f"{name}__n_components", self.n_components)
        kernel = check_kernel(f"{name}__kernel_size", self.kernel_size, input_shape[1:])
        stride = kernel if self.stride is None else check_pair(f"{name}__stride", self.stride)
        if self.covariance_type not in COVARIANCE_TYPES:
            raise ValueError(
                f"{name}__covariance_type must be one of {COVARIANCE_TYPES}; "
                f"got {self.covariance_type!r}."
            )
        if not isinstance(self.shared, bool | np.bool_):
            raise TypeError(f"{name}__shared must be True or False; got {self.shared!r}.")
        rows, columns = grid_size(input_shape[1:], kernel, stride)
        positions = (1, 1) if self.shared else (rows, columns)
        spherical = self.covariance_type == "spherical"
        make = emission or ClippedGaussianEmission
        emitted = make(positions, n_components, input_shape[0], kernel, spherical=spherical)
        return MixtureLayer(input_shape, stride, emitted)


class MixtureLayer(Layer):
    """The torch module of `ConvGMM`: weights over components, and what the components emit.

    Attributes
    ----------
    logits : Parameter of shape (K, 1, 1), or (K, rows, columns) if each position has its own
        Weights before the softmax over components; None where the layer above gives the weights.
    emission : Emission
    """

    def __init__(self, input_shape: Shape, stride: Size, emission: Emission) -> None:
        super().__init__(input_shape, emission.n_components, emission.kernel, stride)
        self.emission = emission
        self.logits: nn.Parameter | None = nn.Parameter(
            torch.zeros(emission.n_components, *emission.positions)
        )

    @property
    def spec(self) -> ConvGMM:
        """Parameters from which the layer can be built anew."""
        return ConvGMM(
            self.n_components,
            self.kernel,
            self.stride,
            COVARIANCE_TYPES[self.emission.spherical],
            shared=self.emission.positions == (1, 1),
        )

    @property
    def n_components(self) -> int:
        """Components of the mixture."""
        return self.output_shape[0]

    @property
    def n_mixtures(self) -> int:
        """Separate mixtures: 1 if positions share theirs, else the number of positions."""
        return math.prod(self.emission.positions)

    @property
    def n_parameters(self) -> int:
        """Free parameters; those of values beyond the border do not count."""
        n_weights = 0 if self.logits is None else self.logits.numel() - self.n_mixtures
        inside = self.input_shape[0] * self.window_area
        if self.n_mixtures == 1:
            inside = self.input_shape[0] * math.prod(self.kernel)
        return n_weights + self.emission.n_parameters(inside)

    @property
    def gaussian(self) -> GaussianEmission:
        """The emission of a layer that emits numbers."""
        assert isinstance(self.emission, GaussianEmission)
        return self.emission

    @property
    def log_weights(self) -> Tensor:
        """Log mixture weights, normalised over components at each position."""
        assert self.logits is not None
        return self.logits.log_softmax(0)  # (K, 1 or rows, 1 or columns)

    @torch.no_grad()
    def set_weights(self, weights: Tensor) -> None:
        """Set the mixture weights, of the shape of `logits`."""
        assert self.logits is not None
        self.logits.copy_(weights.clamp_min(_MIN_WEIGHT).log())

    @torch.no_grad()
    def initialise(self, x: Tensor, generator: torch.Generator) -> None:
        """Start with equal weights and at random, given some inputs (N, C, H, W)."""
        if self.logits is not None:
            self.logits.zero_()
        self.emission.initialise(x, self.stride, generator)

    def log_prob(self, x: Tensor, complete: bool = False) -> Tensor:
        """Log density of each window under each component, (N, K, rows, columns).

        `complete` promises that no value is missing.
        """
        return self.emission.log_prob(x, self.stride, complete)

    def responsibilities(self, log_prob: Tensor) -> Tensor:
        """Responsibilities of the components given log densities (N, K, rows, columns)."""
        return _categorical.responsibilities(log_prob + self.log_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Responsibilities of the components for each window, (N, K, rows, columns)."""
        return self.responsibilities(self.log_prob(x))

    def down(self, control: Tensor, generation: Generation) -> Tensor:
        """Draw a component for each window from the control, then what it emits."""
        weights = control + _MIN_WEIGHT * self.log_weights.exp()  # (N, K, rows, columns)
        kept = _categorical.keep_largest(weights.movedim(1, -1), generation.top_s)
        components = _categorical.sample(kept, generation.generator)  # (N, rows, columns)
        return self.gaussian.sample(
            components,
            self.input_shape[1:],
            self.stride,
            generation.temperature,
            generation.generator,
        )
