"""Folding followed by a mixture at every position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skdcgmm import _categorical
from skdcgmm._windows import Size
from skdcgmm.layers._base import (
    Generation,
    Layer,
    LayerSpec,
    Shape,
    check_kernel,
    check_pair,
    check_positive,
)
from skdcgmm.layers._emissions import GaussianEmission

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
        One variance for each value of a window, or one for all of them.
    shared : bool, default=True
        One mixture for all positions (convolutional), or each position its own.

    Notes
    -----
    Windows cover their input: a last window that reaches past the border uses only what is
    inside. The output has one channel for each component: its responsibilities.

    Examples
    --------
    >>> from skdcgmm import ConvGMM
    >>> ConvGMM(49, kernel_size=8, stride=2)
    ConvGMM(kernel_size=8, n_components=49, stride=2)
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

    def build(self, name: str, input_shape: Shape) -> MixtureLayer:
        """Make the torch module for an input of shape (channels, height, width)."""
        n_components = check_positive(f"{name}__n_components", self.n_components)
        kernel = check_kernel(f"{name}__kernel_size", self.kernel_size, input_shape[1:])
        stride = kernel if self.stride is None else check_pair(f"{name}__stride", self.stride)
        if self.covariance_type not in COVARIANCE_TYPES:
            raise ValueError(
                f"{name}__covariance_type must be one of {COVARIANCE_TYPES}; "
                f"got {self.covariance_type!r}."
            )
        return MixtureLayer(
            input_shape,
            n_components,
            kernel,
            stride,
            shared=bool(self.shared),
            spherical=self.covariance_type == "spherical",
        )


class MixtureLayer(Layer):
    """The torch module of `ConvGMM`: weights over components, and what the components emit.

    Attributes
    ----------
    logits : Parameter of shape (K, 1, 1), or (K, rows, columns) if each position has its own
        Weights before the softmax over components.
    emission : GaussianEmission
    """

    def __init__(
        self,
        input_shape: Shape,
        n_components: int,
        kernel: Size,
        stride: Size,
        *,
        shared: bool = True,
        spherical: bool = False,
    ) -> None:
        super().__init__(input_shape, n_components, kernel, stride)
        rows, columns = (1, 1) if shared else self.output_shape[1:]
        self.logits = nn.Parameter(torch.zeros(n_components, rows, columns))
        self.emission = GaussianEmission(
            rows * columns,
            n_components,
            input_shape[0] * kernel[0] * kernel[1],
            spherical=spherical,
        )

    @property
    def n_components(self) -> int:
        """Components of the mixture."""
        return self.output_shape[0]

    @property
    def n_mixtures(self) -> int:
        """Separate mixtures: 1 if positions share theirs, else the number of positions."""
        return self.logits[0].numel()

    @property
    def log_weights(self) -> Tensor:
        """Log mixture weights, normalised over components at each position."""
        return self.logits.log_softmax(0)  # (K, 1 or rows, 1 or columns)

    @torch.no_grad()
    def set_weights(self, weights: Tensor) -> None:
        """Set the mixture weights, of the shape of `logits`."""
        self.logits.copy_(weights.clamp_min(_MIN_WEIGHT).log())

    def initialise(self, generator: torch.Generator) -> None:
        """Start from random means, equal precisions and equal weights."""
        with torch.no_grad():
            self.logits.zero_()
        self.emission.initialise(generator)

    def scores(self, x: Tensor) -> Tensor:
        """Log of weight times density: (N, *input_shape) to (N, K, rows, columns)."""
        return self.emission.log_prob(x, self.kernel, self.stride) + self.log_weights

    def forward(self, x: Tensor) -> Tensor:
        """Responsibilities of the components for each window, (N, K, rows, columns)."""
        return self.scores(x).softmax(1)

    def down(self, control: Tensor, generation: Generation) -> Tensor:
        """Draw a component for each window from the control, then what it emits."""
        weights = control + _MIN_WEIGHT * self.log_weights.exp()  # (N, K, rows, columns)
        kept = _categorical.keep_largest(weights.movedim(1, -1), generation.top_s)
        components = _categorical.sample(kept, generation.generator)  # (N, rows, columns)
        return self.emission.sample(
            components,
            self.input_shape[1:],
            self.kernel,
            self.stride,
            generation.temperature,
            generation.generator,
        )
