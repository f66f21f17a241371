"""The stack as one torch module, and the published kind of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from skdcgmm import _categorical, _windows
from skdcgmm.layers import (
    Generation,
    Layer,
    MixtureLayer,
    Shape,
)

Climb = Iterator[tuple[str, MixtureLayer, Tensor]]


class Network(nn.Module, ABC):
    """Named layers on images that one affine map brings to a common scale.

    Parameters
    ----------
    layers : sequence of (str, Layer)
        From the image upwards; the last is a mixture over a single position.

    Attributes
    ----------
    shift, scale : Tensor of shape () or (C, 1, 1)
        Images enter the layers as (x - shift) / scale.
    coverage : Tensor of shape (H, W)
        Windows of the first layer that see each pixel.
    n_clusters : int
        Clusters; as many as top components, or fewer if those are to be merged.
    clusters : Tensor of shape (K,)
        The cluster of each top component.
    """

    # Whether the likelihoods of all layers, and not only of the first, are densities of pixels.
    of_pixels: bool
    shift: Tensor
    scale: Tensor
    coverage: Tensor
    clusters: Tensor

    def __init__(self, layers: Sequence[tuple[str, Layer]]) -> None:
        super().__init__()
        self.names = tuple(name for name, _ in layers)
        self.layers = nn.ModuleList(layer for _, layer in layers)
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        first = layers[0][1]
        coverage = _windows.coverage(first.input_shape[1:], first.kernel, first.stride)
        self.register_buffer("coverage", coverage)
        self.n_clusters = layers[-1][1].output_shape[0]
        self.register_buffer("clusters", torch.arange(self.n_clusters))

    @property
    def image_shape(self) -> Shape:
        """Channels, height and width of an image."""
        return self.first.input_shape

    @property
    def mixtures(self) -> dict[str, MixtureLayer]:
        """The mixture layers by name, from the image upwards."""
        return {n: layer for n, layer in self.named_layers() if isinstance(layer, MixtureLayer)}

    @property
    def first(self) -> MixtureLayer:
        """The first layer, whose components emit pixels."""
        return next(iter(self.mixtures.values()))

    @property
    def top(self) -> MixtureLayer:
        """The last layer, whose components are the clusters, or are merged into them."""
        return list(self.mixtures.values())[-1]

    @property
    def cluster_tables(self) -> Tensor:
        """Which cluster each top component belongs to, as probabilities, (K, n_clusters)."""
        return nn.functional.one_hot(self.clusters, self.n_clusters).to(self.scale)

    @property
    @abstractmethod
    def numbers_per_image(self) -> int:
        """Numbers that a pass up the stack holds for one image, an upper estimate."""

    @property
    def n_parameters(self) -> int:
        """Free parameters."""
        return sum(layer.n_parameters for layer in self.mixtures.values())

    def normalise(self, x: Tensor) -> Tensor:
        """Images as the layers see them."""
        return (x - self.shift).div_(self.scale)

    def log_jacobian(self, x: Tensor, complete: bool = False) -> Tensor:
        """What a log density of images loses in their units, by observed pixel, (N, C, H, W).

        One row for all images if they are complete.
        """
        if complete:
            return self.scale.log().expand(1, *self.image_shape)
        return (~x.isnan()) * self.scale.log()

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """Names and layers, from the image upwards."""
        for name, layer in zip(self.names, self.layers, strict=True):
            assert isinstance(layer, Layer)
            yield name, layer

    @abstractmethod
    def climb(self, x: Tensor, *, detach: bool = False, complete: bool = False) -> Climb:
        """Go up from images: each mixture layer's name, itself, and log densities by component.

        The log densities are (N, K, rows, columns). With `detach`, no gradient crosses from a layer
        to the one below. `complete` promises that no pixel is missing.
        """

    @abstractmethod
    def initialise(self, x: Tensor, generator: torch.Generator) -> None:
        """Start every mixture at random, given some images (N, C, H, W)."""

    @abstractmethod
    def log_weights(self) -> dict[str, Tensor]:
        """Log mixture weights by layer, (K, 1, 1) if all positions share them, or by position."""

    @abstractmethod
    def down(self, components: Tensor, generation: Generation) -> Tensor:
        """Images (N, C, H, W) drawn from the given top components (N,)."""

    @abstractmethod
    def responsibilities(self, x: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Posteriors of the components of mixture layers, each (N, K, rows, columns)."""

    @abstractmethod
    def component_means(self) -> Tensor:
        """Mean image of each top component, (K, C, H, W)."""

    @abstractmethod
    def variants(self, x: Tensor, name: str, generation: Generation) -> Tensor:
        """Images drawn anew from the posterior of a mixture layer, given images (N, C, H, W)."""

    @abstractmethod
    def impute_mean(self, x: Tensor) -> Tensor:
        """Images with each missing pixel at its mean given the observed ones, (N, C, H, W)."""

    @abstractmethod
    def impute_sample(self, x: Tensor, generation: Generation) -> Tensor:
        """Images with missing pixels drawn given the observed ones, (N, C, H, W)."""

    def scores(self, x: Tensor, complete: bool = False) -> Tensor:
        """Log of weight times density of the top components, (N, K)."""
        climb = self.climb(x, complete=complete)
        log_prob = next(log_prob for _, layer, log_prob in climb if layer is self.top)
        return (log_prob + self.top.log_weights).flatten(1)

    def cluster_probabilities(self, x: Tensor) -> Tensor:
        """Posterior of the clusters: the responsibilities of their components, (N, n_clusters)."""
        posterior = _categorical.posterior(self.scores(x))  # (N, K)
        if self.n_clusters == self.top.n_components:
            return posterior
        return posterior @ self.cluster_tables

    def layer_log_prob(self, x: Tensor, name: str) -> Tensor:
        """Log-likelihood of a mixture layer, averaged over its windows, in units of the images.

        Parameters
        ----------
        x : Tensor of shape (N, C, H, W)
        name : str
            A mixture layer.

        Returns
        -------
        Tensor of shape (N,)
        """
        return next(log_prob for current, _, log_prob in self.window_means(x) if current == name)

    def window_means(self, x: Tensor) -> Climb:
        """Go up: each mixture layer and its log-likelihood, averaged over windows, (N,)."""
        log_weights = self.log_weights()
        for name, layer, log_prob in self.climb(x):
            value = (log_prob + log_weights[name]).logsumexp(1).mean((1, 2))  # (N,)
            if layer is self.first or self.of_pixels:
                jacobian = self.log_jacobian(x) * self.coverage  # (N, C, H, W)
                value = value - jacobian.sum((1, 2, 3)) / math.prod(layer.output_shape[1:])
            yield name, layer, value

    @abstractmethod
    def stack_log_prob(self, x: Tensor) -> Tensor:
        """Log-likelihood of images under the whole stack, (N,)."""


class LayerwiseNetwork(Network):
    """The published stack: each layer is a mixture over the responsibilities of the one below."""

    of_pixels = False

    @property
    def numbers_per_image(self) -> int:
        """Numbers that a pass up the stack holds for one image, an upper estimate."""
        total = 0
        for _, layer in self.named_layers():
            n_windows = math.prod(layer.output_shape[1:])
            window = layer.input_shape[0] * math.prod(layer.kernel)
            total += 2 * (math.prod(layer.input_shape) + math.prod(layer.output_shape))
            total += 2 * n_windows * window
        return total

    def climb(self, x: Tensor, *, detach: bool = False, complete: bool = False) -> Climb:
        """Go up from images; responsibilities are the input of the next layer."""
        z = self.normalise(x)  # (N, C, H, W)
        for name, layer in self.named_layers():
            if isinstance(layer, MixtureLayer):
                # Responsibilities are never missing.
                observed = complete or layer is not self.first
                log_prob = layer.log_prob(z, observed)  # (N, K, rows, columns)
                yield name, layer, log_prob
                with torch.set_grad_enabled(torch.is_grad_enabled() and not detach):
                    z = layer.responsibilities(log_prob)
            else:
                z = layer(z)

    @torch.no_grad()
    def initialise(self, x: Tensor, generator: torch.Generator) -> None:
        """Start from small random means, whatever the images."""
        for layer in self.mixtures.values():
            layer.initialise(x, generator)

    def log_weights(self) -> dict[str, Tensor]:
        """Log mixture weights, which every layer has of its own."""
        return {name: layer.log_weights for name, layer in self.mixtures.items()}

    def stack_log_prob(self, x: Tensor) -> Tensor:
        """Sum over mixture layers of the log-likelihoods of their whole inputs, (N,).

        A layer counts its mean over windows as often as windows without overlap would cover its
        input.
        """
        total = torch.zeros_like(x[:, 0, 0, 0])
        for _, layer, log_prob in self.window_means(x):
            total = total + log_prob * (math.prod(layer.input_shape[1:]) / layer.window_area)
        return total

    def down(self, components: Tensor, generation: Generation) -> Tensor:
        """Images drawn from top components: what a layer draws weighs the components below."""
        control = nn.functional.one_hot(components, self.top.n_components)
        return self._down_from(self.names[-1], control.to(self.scale)[..., None, None], generation)

    @torch.no_grad()
    def component_means(self) -> Tensor:
        """Images from the likeliest path down from each top component, without noise."""
        components = torch.arange(self.top.n_components, device=self.scale.device)
        return self.down(components, self._likeliest())

    def responsibilities(self, x: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Responsibilities of the components of mixture layers, each (N, K, rows, columns)."""
        by_name = {
            name: layer.responsibilities(log_prob) for name, layer, log_prob in self.climb(x)
        }
        return [by_name[name] for name in names]

    def variants(self, x: Tensor, name: str, generation: Generation) -> Tensor:
        """Images drawn from the responsibilities of a mixture layer, given images."""
        (control,) = self.responsibilities(x, [name])  # (N, K, rows, columns)
        return self._down_from(name, control, generation)

    def impute_mean(self, x: Tensor) -> Tensor:
        """Missing pixels from the means of the likeliest components, from the top layer down."""
        return self.impute_sample(x, self._likeliest())

    def impute_sample(self, x: Tensor, generation: Generation) -> Tensor:
        """Missing pixels from a variant of the image; they had no part in its scores."""
        drawn = self.variants(x, self.names[-1], generation)
        return torch.where(x.isnan(), drawn, x)

    def _likeliest(self) -> Generation:
        """Means of the likeliest components; a generator of its own leaves torch's alone."""
        generator = torch.Generator(self.scale.device)
        return Generation(temperature=0.0, top_s=1, generator=generator)

    def _down_from(self, name: str, control: Tensor, generation: Generation) -> Tensor:
        """Images given weights of the components of the named layer, (N, K, rows, columns)."""
        x = control
        for layer in reversed(self.layers[: self.names.index(name) + 1]):
            assert isinstance(layer, Layer)
            x = layer.down(x.clamp_min(0), generation)
        return x * self.scale + self.shift
