"""The stack as one torch module: from specs and an image shape to a network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from skdcgmm.layers import Generation, Layer, LayerSpec, MixtureLayer, Shape

NamedSpecs = Sequence[tuple[str, LayerSpec]]


class Network(nn.Module):
    """Named layers on images that one affine map brings to a common scale.

    Parameters
    ----------
    layers : sequence of (str, Layer)
        From the image upwards; the last is a mixture over a single position.

    Attributes
    ----------
    shift, scale : Tensor
        Images enter the layers as (x - shift) / scale.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, layers: Sequence[tuple[str, Layer]]) -> None:
        super().__init__()
        self.names = tuple(name for name, _ in layers)
        self.layers = nn.ModuleList(layer for _, layer in layers)
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    @property
    def image_shape(self) -> Shape:
        """Channels, height and width of an image."""
        first = self.layers[0]
        assert isinstance(first, Layer)
        return first.input_shape

    @property
    def mixtures(self) -> dict[str, MixtureLayer]:
        """The mixture layers by name, from the image upwards."""
        return {n: layer for n, layer in self.named_layers() if isinstance(layer, MixtureLayer)}

    @property
    def top(self) -> MixtureLayer:
        """The last layer, whose components are the clusters."""
        return list(self.mixtures.values())[-1]

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

    def initialise(self, generator: torch.Generator) -> None:
        """Start every mixture at random."""
        for layer in self.mixtures.values():
            layer.initialise(generator)

    def normalise(self, x: Tensor) -> Tensor:
        """Images as the layers see them."""
        return (x - self.shift) / self.scale

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """Names and layers, from the image upwards."""
        for name, layer in zip(self.names, self.layers, strict=True):
            assert isinstance(layer, Layer)
            yield name, layer

    def climb(
        self, x: Tensor, *, detach: bool = False
    ) -> Iterator[tuple[str, MixtureLayer, Tensor]]:
        """Go up from images: each mixture layer's name, itself, and its scores.

        With `detach`, no gradient crosses from a layer to the one below.
        """
        z = self.normalise(x)  # (N, C, H, W)
        for name, layer in self.named_layers():
            if isinstance(layer, MixtureLayer):
                scores = layer.scores(z)  # (N, K, rows, columns)
                yield name, layer, scores
                z = (scores.detach() if detach else scores).softmax(1)
            else:
                z = layer(z)

    def scores(self, x: Tensor) -> Tensor:
        """Log of weight times density of the top components, (N, K)."""
        return next(scores for _, layer, scores in self.climb(x) if layer is self.top).flatten(1)

    def _log_probs(self, x: Tensor) -> Iterator[tuple[str, MixtureLayer, Tensor]]:
        """Go up: each mixture layer and its log-likelihood, averaged over windows, (N,)."""
        for name, layer, scores in self.climb(x):
            log_prob = scores.logsumexp(1).mean((1, 2))  # (N,)
            if layer is self.layers[0]:  # to the units of the images
                log_prob = log_prob - layer.input_shape[0] * layer.window_area * self.scale.log()
            yield name, layer, log_prob

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
        return next(log_prob for current, _, log_prob in self._log_probs(x) if current == name)

    def stack_log_prob(self, x: Tensor) -> Tensor:
        """Sum over mixture layers of the log-likelihoods of their whole inputs, (N,).

        A layer counts its mean over windows as often as windows without overlap would cover its
        input.
        """
        total = torch.zeros_like(x[:, 0, 0, 0])
        for _, layer, log_prob in self._log_probs(x):
            total = total + log_prob * (math.prod(layer.input_shape[1:]) / layer.window_area)
        return total

    def down(self, components: Tensor, generation: Generation) -> Tensor:
        """Images (N, C, H, W) drawn from the given top components (N,)."""
        control = nn.functional.one_hot(components, self.top.n_components)
        x = control.to(self.scale)[..., None, None]  # (N, K, 1, 1)
        for layer in reversed(self.layers):
            assert isinstance(layer, Layer)
            x = layer.down(x.clamp_min(0), generation)
        return x * self.scale + self.shift


def build(specs: NamedSpecs, image_shape: Shape) -> Network:
    """Build the network of a stack.

    Parameters
    ----------
    specs : sequence of (str, LayerSpec)
        From the image upwards.
    image_shape : (channels, height, width)

    Raises
    ------
    ValueError, TypeError
        If a layer does not fit its input, or the stack does not begin and end in a mixture, the
        last over one position.
    """
    layers: list[tuple[str, Layer]] = []
    shape = image_shape
    for name, spec in specs:
        layer = spec.build(name, shape)
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
    return Network(layers)
