"""The stack as one torch module: from specs and an image shape to a network."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from skdcgmm import _categorical, _windows
from skdcgmm._windows import Size
from skdcgmm.layers import (
    CategoricalEmission,
    EmissionFactory,
    FlooredGaussianEmission,
    Generation,
    Layer,
    LayerSpec,
    MixtureLayer,
    PoolLayer,
    Shape,
)

NamedSpecs = Sequence[tuple[str, LayerSpec]]
Climb = Iterator[tuple[str, MixtureLayer, Tensor]]


class Network(nn.Module):
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
    """

    shift: Tensor
    scale: Tensor
    coverage: Tensor

    def __init__(self, layers: Sequence[tuple[str, Layer]]) -> None:
        super().__init__()
        self.names = tuple(name for name, _ in layers)
        self.layers = nn.ModuleList(layer for _, layer in layers)
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        first = layers[0][1]
        coverage = _windows.coverage(first.input_shape[1:], first.kernel, first.stride)
        self.register_buffer("coverage", coverage)

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
        """The last layer, whose components are the clusters."""
        return list(self.mixtures.values())[-1]

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
        return (x - self.shift) / self.scale

    def log_jacobian(self, x: Tensor) -> Tensor:
        """What a log density of images loses in their units, by observed pixel, (N, C, H, W)."""
        return (~x.isnan()) * self.scale.log()

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """Names and layers, from the image upwards."""
        for name, layer in zip(self.names, self.layers, strict=True):
            assert isinstance(layer, Layer)
            yield name, layer

    @abstractmethod
    def climb(self, x: Tensor, *, detach: bool = False) -> Climb:
        """Go up from images: each mixture layer's name, itself, and log densities by component.

        The log densities are (N, K, rows, columns). With `detach`, no gradient crosses from a layer
        to the one below.
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

    def scores(self, x: Tensor) -> Tensor:
        """Log of weight times density of the top components, (N, K)."""
        log_prob = next(log_prob for _, layer, log_prob in self.climb(x) if layer is self.top)
        return (log_prob + self.top.log_weights).flatten(1)

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
            if layer is self.first or isinstance(self, JointNetwork):
                jacobian = self.log_jacobian(x) * self.coverage  # (N, C, H, W)
                value = value - jacobian.sum((1, 2, 3)) / math.prod(layer.output_shape[1:])
            yield name, layer, value

    @abstractmethod
    def stack_log_prob(self, x: Tensor) -> Tensor:
        """Log-likelihood of images under the whole stack, (N,)."""


class LayerwiseNetwork(Network):
    """The published stack: each layer is a mixture over the responsibilities of the one below."""

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

    def climb(self, x: Tensor, *, detach: bool = False) -> Climb:
        """Go up from images; responsibilities are the input of the next layer."""
        z = self.normalise(x)  # (N, C, H, W)
        for name, layer in self.named_layers():
            if isinstance(layer, MixtureLayer):
                log_prob = layer.log_prob(z)  # (N, K, rows, columns)
                yield name, layer, log_prob
                scores = log_prob + layer.log_weights
                z = (scores.detach() if detach else scores).softmax(1)
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
        x = control.to(self.scale)[..., None, None]  # (N, K, 1, 1)
        for layer in reversed(self.layers):
            assert isinstance(layer, Layer)
            x = layer.down(x.clamp_min(0), generation)
        return x * self.scale + self.shift


class JointNetwork(Network):
    """One density: a tree of discrete choices that ends in Gaussians.

    A top component draws, by its tables, the components of the layer below, those of theirs, and
    those of the first layer draw their windows' pixels. Also any stack of one layer.
    """

    @property
    def mixture_layers(self) -> list[MixtureLayer]:
        """The mixture layers from the image upwards."""
        return list(self.mixtures.values())

    @property
    def numbers_per_image(self) -> int:
        """Numbers that a pass up the stack holds for one image, an upper estimate."""
        total = 6 * math.prod(self.image_shape)
        cells = 0
        for layer in self.mixture_layers:
            # For each cell of a window, log densities, their exponentials and their mixtures.
            total += 2 * cells * layer.n_components
            cells = math.prod(layer.output_shape[1:])
            total += 3 * cells * layer.n_components
        return total

    def climb(self, x: Tensor, *, detach: bool = False) -> Climb:
        """Go up from images; log densities by component are the input of the next layer."""
        z = self.normalise(x)  # (N, C, H, W)
        for name, layer in self.mixtures.items():
            z = layer.log_prob(z.detach() if detach else z)  # (N, K, rows, columns)
            yield name, layer, z

    @torch.no_grad()
    def initialise(self, x: Tensor, generator: torch.Generator) -> None:
        """Start every component of every layer as a random window of the images."""
        below = z = self.normalise(x)  # (N, C, H, W)
        for layer in self.mixture_layers:
            layer.initialise(below, generator)
            z = layer.log_prob(z)  # (N, K, rows, columns)
            below = z.softmax(1)

    @torch.no_grad()
    def log_weights(self) -> dict[str, Tensor]:
        """Log marginal probability of the components at each position, (K, rows, columns)."""
        weights = self.top.log_weights.exp()  # (K, 1, 1)
        by_name = {}
        for name, layer in reversed(self.mixtures.items()):
            by_name[name] = weights.log()
            if isinstance(layer.emission, CategoricalEmission):
                size = self._size_below(layer)
                weights = layer.emission.weights_below(weights, size)  # (J, H, W)
        return dict(reversed(by_name.items()))

    def log_prob(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        """Log density of images, in their units; missing pixels, NaN, are marginalised.

        Parameters
        ----------
        x : Tensor of shape (N, C, H, W)
        temperature : float
            Above 1, all top components get a share of an image: ``T logsumexp(scores / T)``.

        Returns
        -------
        Tensor of shape (N,)
        """
        value = temperature * (self.scores(x) / temperature).logsumexp(1)  # (N,)
        return value - self.log_jacobian(x).sum((1, 2, 3))

    def stack_log_prob(self, x: Tensor) -> Tensor:
        """The log density."""
        return self.log_prob(x)

    def contrast(self, x: Tensor) -> Tensor:
        """Log density of images over that of their first layer's windows, were they independent.

        Both are densities of this model: the second is the product of its marginals.
        """
        (name, _, windows), *_, (_, top, whole) = self.climb(x)
        independent = (windows + self.log_weights()[name]).logsumexp(1).sum((1, 2))  # (N,)
        return (whole + top.log_weights).flatten(1).logsumexp(1) - independent

    def responsibilities(self, x: Tensor) -> Tensor:
        """Posterior of the first layer's components at each position, (N, K, rows, columns)."""
        with torch.enable_grad():
            z = self.first.log_prob(self.normalise(x)).detach().requires_grad_()
            below = z
            for layer in self.mixture_layers[1:]:
                below = layer.log_prob(below)
            value = (below + self.top.log_weights).logsumexp(1).sum()
            # The posterior is the derivative of the log density by what it weighs.
            return torch.autograd.grad(value, z)[0]

    def impute_mean(self, x: Tensor) -> Tensor:
        """Images with each missing pixel at its mean given the observed ones, (N, C, H, W)."""
        mean = self.first.gaussian.mean(
            self.responsibilities(x), self.image_shape[1:], self.first.stride
        )
        return torch.where(x.isnan(), mean * self.scale + self.shift, x)

    def impute_sample(self, x: Tensor, generation: Generation) -> Tensor:
        """Images with missing pixels drawn given the observed ones, (N, C, H, W)."""
        evidence = [log_prob for _, _, log_prob in self.climb(x)]
        posterior = (evidence[-1] + self.top.log_weights).flatten(1).softmax(1)  # (N, K)
        kept = _categorical.keep_largest(posterior, generation.top_s)
        components = _categorical.sample(kept, generation.generator)  # (N,)
        drawn = self._descend(components, evidence[:-1], generation)
        return torch.where(x.isnan(), drawn, x)

    def down(self, components: Tensor, generation: Generation) -> Tensor:
        """Images drawn from top components."""
        nothing = [
            self.scale.new_zeros(()).expand(len(components), *layer.output_shape)
            for layer in self.mixture_layers[:-1]
        ]
        return self._descend(components, nothing, generation)

    def _descend(
        self, components: Tensor, evidence: list[Tensor], generation: Generation
    ) -> Tensor:
        """Images drawn from top components (N,), given what is known below each component."""
        z = components[:, None, None]  # (N, 1, 1)
        for layer, known in zip(self.mixture_layers[:0:-1], reversed(evidence), strict=True):
            assert isinstance(layer.emission, CategoricalEmission)
            z = layer.emission.sample(z, known, generation.top_s, generation.generator)
        images = self.first.gaussian.sample(
            z,
            self.image_shape[1:],
            self.first.stride,
            generation.temperature,
            generation.generator,
        )
        return images * self.scale + self.shift

    def _size_below(self, layer: MixtureLayer) -> Size:
        layers = self.mixture_layers
        return layers[layers.index(layer) - 1].output_shape[1:]


def build(specs: NamedSpecs, image_shape: Shape, *, joint: bool) -> Network:
    """Build the network of a stack.

    Parameters
    ----------
    specs : sequence of (str, LayerSpec)
        From the image upwards.
    image_shape : (channels, height, width)
    joint : bool
        Whether it is to be trained as one density, or layer by layer.

    Raises
    ------
    ValueError, TypeError
        If a layer does not fit its input, or the stack does not begin and end in a mixture, the
        last over one position, or is to be one density and has windows that do not tile.
    """
    layers: list[tuple[str, Layer]] = []
    shape = image_shape
    pool: Size = (1, 1)
    for name, spec in specs:
        emission: EmissionFactory | None = None
        if joint:
            first = not layers
            emission = FlooredGaussianEmission if first else partial(CategoricalEmission, pool=pool)
        layer = spec.build(name, shape, emission)
        if joint:
            _check_tiling(name, layer)
            pooled = isinstance(layer, PoolLayer)
            height, width = layer.kernel
            pool = (pool[0] * height, pool[1] * width) if pooled else (1, 1)
        layers.append((name, layer))
        shape = layer.output_shape
    for name, layer in (layers[0], layers[-1]):
        if not isinstance(layer, MixtureLayer):
            raise ValueError(
                f"layers must begin and end with a ConvGMM; {name!r} is none. Pooling is for the "
                "responsibilities between two of them."
            )
    if shape[1:] != (1, 1):
        raise ValueError(
            f"layers must end in one position; {layers[-1][0]!r} has {shape[1]}x{shape[2]}. "
            "Let the last layer see its whole input: ConvGMM(n_components), kernel_size=None."
        )
    n_mixtures = sum(isinstance(layer, MixtureLayer) for _, layer in layers)
    network = (JointNetwork if joint or n_mixtures == 1 else LayerwiseNetwork)(layers)
    if joint:
        for mixture in list(network.mixtures.values())[:-1]:
            mixture.logits = None  # weights follow from the tables above
    return network


def _check_tiling(name: str, layer: Layer) -> None:
    if layer.stride != layer.kernel and layer.output_shape[1:] != (1, 1):
        raise ValueError(
            f"{name}__stride is {layer.stride} and the kernel {layer.kernel}: windows that do not "
            "tile have no joint density. Leave stride=None, or choose objective='layerwise'."
        )
