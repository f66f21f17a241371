"""The published stack: each layer is a mixture over the responsibilities of the one below."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from skdcgmm.model import tables
from skdcgmm.model.pixels import PixelDensity
from skdcgmm.model.pixels.gaussian import Gaussian
from skdcgmm.model.specs import Layer, check_choice
from skdcgmm.model.stack import MIN_WEIGHT, BaseStack
from skdcgmm.model.tables import Generation
from skdcgmm.model.tree import Climb, Mixtures, Tree
from skdcgmm.model.windows import Windows

# Published start: means within +-0.1, root precisions at sqrt(20), which is also their cap on
# inputs in 0-1 (Gepperth & Pfülb, 2021).
_MEAN_RANGE, _START_VARIANCE = 0.1, 0.05
# Floor of the precisions, so that a logarithm never sees zero.
_MIN_PRECISION = 1e-4


@dataclass(frozen=True, eq=False)
class Chain(Mixtures):
    """The published stack at given numbers: responsibilities are the input of the next layer.

    Attributes
    ----------
    layers : tuple of Layer
        Mixtures and pooling, from the image upwards.
    densities : dict of str to PixelDensity
        Of the inputs of each mixture.
    weights : dict of str to Tensor
        Log mixture weights of each, (K, 1, 1) or (K, rows, columns).
    """

    layers: tuple[Layer, ...]
    densities: dict[str, PixelDensity]
    weights: dict[str, Tensor]

    @property
    def numbers_per_image(self) -> int:
        """Numbers that a pass up the stack holds for one image, an upper estimate."""
        total = 0
        for layer in self.layers:
            total += 2 * (math.prod(layer.windows.input_shape) + math.prod(layer.output_shape))
            total += 2 * layer.windows.n_windows * layer.windows.n_values
        return total

    def climb(self, x: Tensor, complete: bool = False, *, detach: bool = False) -> Climb:
        """Go up from images; with `detach`, no gradient crosses from a layer to the one below."""
        for layer in self.layers:
            if not layer.is_mixture:
                x = _pool(x, layer.windows)
                continue
            # Responsibilities are never missing.
            observed = complete or layer is not self.layers[0]
            log_prob = self.densities[layer.name].log_prob(x, observed)  # (N, K, rows, columns)
            yield layer.name, log_prob
            with torch.set_grad_enabled(torch.is_grad_enabled() and not detach):
                x = tables.responsibilities(log_prob + self.weights[layer.name])

    def layer_log_weights(self) -> dict[str, Tensor]:
        """Log mixture weights, which every layer has of its own."""
        return self.weights

    def responsibilities(
        self, x: Tensor, names: Sequence[str], complete: bool = False
    ) -> list[Tensor]:
        """Responsibilities of the components of mixture layers, each (N, K, rows, columns)."""
        by_name = {
            name: tables.responsibilities(log_prob + self.weights[name])
            for name, log_prob in self.climb(x, complete)
        }
        return [by_name[name] for name in names]

    def stack_log_prob(self, x: Tensor) -> Tensor:
        """Sum over mixture layers of the log-likelihoods of their whole inputs, (N,).

        A layer counts its mean over windows as often as windows without overlap would cover its
        input.
        """
        of_layers = {layer.name: layer.windows for layer in self.layers}
        total = torch.zeros_like(x[:, 0, 0, 0])
        for name, log_prob in self.window_means(x):
            of_layer = of_layers[name]
            total = total + log_prob * (math.prod(of_layer.size) / of_layer.mean_area)
        return total

    def sample(self, components: Tensor, generation: Generation) -> Tensor:
        """Images drawn from top components: what a layer draws weighs the components below."""
        control = functional.one_hot(components, len(self.log_weights)).to(self.log_weights)
        return self._down_from(self.names[-1], control[..., None, None], generation)

    def component_means(self) -> Tensor:
        """Images from the likeliest path down from each top component, without noise."""
        components = torch.arange(len(self.log_weights), device=self.log_weights.device)
        return self.sample(components, self._likeliest())

    def variants(self, x: Tensor, name: str, generation: Generation) -> Tensor:
        """Images drawn from the responsibilities of a mixture layer, given images."""
        (control,) = self.responsibilities(x, [name])  # (N, K, rows, columns)
        return self._down_from(name, control, generation)

    def impute_mean(self, x: Tensor) -> Tensor:
        """Missing pixels from the means of the likeliest components, from the top layer down."""
        return self.impute_sample(x, self._likeliest())

    def impute_sample(self, x: Tensor, generation: Generation) -> Tensor:
        """Missing pixels from a variant of the image; they had no part in its scores."""
        return torch.where(x.isnan(), self.variants(x, self.names[-1], generation), x)

    def _likeliest(self) -> Generation:
        """Means of the likeliest components; a generator of its own leaves torch's alone."""
        generator = torch.Generator(self.log_weights.device)
        return Generation(temperature=0.0, top_s=1, generator=generator)

    def _down_from(self, name: str, control: Tensor, generation: Generation) -> Tensor:
        """Images given weights of the components of the named layer, (N, K, rows, columns)."""
        started = [layer.name for layer in self.layers].index(name)
        for layer in reversed(self.layers[: started + 1]):
            control = control.clamp_min(0)
            if not layer.is_mixture:
                control = _spread(control, layer.windows)
                continue
            weights = control + MIN_WEIGHT * self.weights[layer.name].exp()  # (N, K, rows, columns)
            kept = tables.keep_largest(weights.movedim(1, -1), generation.top_s)
            components = tables.sample(kept, generation.generator)  # (N, rows, columns)
            control = self.densities[layer.name].sample(
                components, generation.temperature, generation.generator
            )
        return control

    def _volume_of_windows(self, x: Tensor, name: str, log_prob: Tensor) -> Tensor | float:
        # Only the first layer's likelihood is a density of pixels.
        return self.pixels.log_volume(x).mean((1, 2)) if name == self.names[0] else 0.0


def _pool(x: Tensor, pool: Windows) -> Tensor:
    """The largest value in each window; the border's zeros never win over a responsibility."""
    return functional.max_pool2d(pool.pad(x), pool.kernel, pool.stride)


def _spread(control: Tensor, pool: Windows) -> Tensor:
    """The weights (N, C, rows, columns) of each window for all its positions, (N, C, H, W)."""
    weights = control.flatten(2).movedim(2, 0)  # (rows * columns, N, C)
    area = math.prod(pool.kernel)
    return pool.fold_mean(weights.repeat_interleave(area, 2))  # of (rows * columns, N, C * area)


class LayerwiseStack(BaseStack):
    """Raw parameters of the published stack; calling it gives the `Chain`.

    A stack of one layer is one density: calling it gives a `Tree`.

    Parameters
    ----------
    layers : sequence of Layer
    n_classes : None
    """

    tiling = False

    def __init__(
        self, layers: Sequence[Layer], n_classes: None = None, *, pixels: str = "tiles"
    ) -> None:
        del n_classes, pixels  # which only one density has
        mixtures = [layer for layer in layers if layer.is_mixture]
        emissions = []
        for layer in mixtures:
            kind = layer.spec.covariance_type
            check_choice(f"{layer.name}__covariance_type", kind, ("diag", "spherical"))
            size = layer.windows, layer.n_components, layer.positions
            emissions.append(Clipped(*size, spherical=kind == "spherical"))
        super().__init__(layers, emissions)
        self.logits = nn.ParameterList(
            torch.zeros(layer.n_components, *layer.positions) for layer in mixtures
        )

    def forward(self) -> Mixtures:
        """What the stack says and draws at the present parameters."""
        chain = self.chain()
        return Tree(self.names, chain.pixels, chain.log_weights) if self.is_density else chain

    def chain(self) -> Chain:
        """The stack as a chain of layers, also if it is one density."""
        weights = {name: self.weight_logits(name).log_softmax(0) for name in self.names}
        densities = {name: self.emission(name)() for name in self.names}
        top, first = self.names[-1], self.names[0]
        return Chain(
            self.names, densities[first], weights[top].flatten(), self.layers, densities, weights
        )

    def emission(self, name: str) -> "Clipped":
        """What the components of a mixture emit."""
        return cast("Clipped", super().emission(name))

    def weight_logits(self, name: str) -> nn.Parameter:
        """Weights of a mixture before the softmax, (K, 1, 1) or (K, rows, columns)."""
        return cast("nn.Parameter", self.logits[self.names.index(name)])

    @torch.no_grad()
    def start(self, x: Tensor, generator: torch.Generator) -> None:
        """Start from small random means, whatever the images."""
        for name in self.names:
            self.weight_logits(name).zero_()
            self.emission(name).start(x, generator)


class Clipped(Gaussian):
    """Gaussians of the published recipe: root precisions that are clipped after every step.

    Attributes
    ----------
    roots : Parameter of shape (P, K, D) or (P, K, 1)
        Root precisions.
    """

    # The published recipe knows one scale of all pixels.
    by_pixel = False

    def _add_variances(self, zeros: Tensor) -> None:
        self.roots = nn.Parameter(torch.ones_like(zeros))

    @property
    def root_precisions(self) -> Tensor:
        """Inverse standard deviations."""
        return self.roots if torch.is_grad_enabled() else self.roots.detach()

    @torch.no_grad()
    def start(
        self, x: Tensor, generator: torch.Generator, chosen: Tensor | None = None
    ) -> Tensor | None:
        """Draw small means, whatever the inputs; the published start."""
        start = torch.rand(
            self.means.shape, generator=generator, dtype=self.means.dtype, device=generator.device
        )
        self.means.copy_(_MEAN_RANGE * (2 * start - 1))
        self.roots.fill_(_START_VARIANCE**-0.5)
        self.constrain()
        return None

    @torch.no_grad()
    def constrain(self) -> None:
        """Put the precisions back into their bounds."""
        self.roots.clamp_(min=_MIN_PRECISION**0.5)
        torch.minimum(self.roots, self.min_variance.rsqrt().to(self.roots), out=self.roots)

    @torch.no_grad()
    def set_variances(self, variances: Tensor) -> None:
        """Set the variances; the floor gives way to smaller ones."""
        lowest = variances.amin((0, 1), keepdim=True)
        self.set_min_variance(torch.minimum(self.min_variance, lowest))
        self.roots.copy_(variances.rsqrt())
