"""The stack as one density: a tree of discrete choices that ends in Gaussians."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skdcgmm import _categorical
from skdcgmm._network import Climb, Network
from skdcgmm._windows import Size
from skdcgmm.layers import CategoricalEmission, Generation, Layer, MixtureLayer

# Columns of the statistics of a layer.
MARGINAL, PREDICTED, EXPECTED, BEST, SHORTFALL, WORST = range(6)
N_STATISTICS = 6


class JointNetwork(Network):
    """One density: a tree of discrete choices that ends in Gaussians.

    A top component draws, by its tables, the components of the layer below, those of theirs, and
    those of the first layer draw their windows' pixels. Also any stack of one layer.

    Attributes
    ----------
    class_logits : Parameter of shape (K, n_classes) or None
        If images have classes: by what table each top component draws that of its image.
    """

    of_pixels = True

    def __init__(self, layers: Sequence[tuple[str, Layer]]) -> None:
        super().__init__(layers)
        self.class_logits: nn.Parameter | None
        self.register_parameter("class_logits", None)

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

    def climb(self, x: Tensor, *, detach: bool = False, complete: bool = False) -> Climb:
        """Go up from images; log densities by component are the input of the next layer."""
        z = self.normalise(x)  # (N, C, H, W)
        for name, layer in self.mixtures.items():
            z = layer.log_prob(z.detach() if detach else z, complete)  # (N, K, rows, columns)
            yield name, layer, z

    @torch.no_grad()
    def initialise(self, x: Tensor, generator: torch.Generator) -> None:
        """Start every component of every layer as a random window of the images."""
        below = z = self.normalise(x)  # (N, C, H, W)
        for layer in self.mixture_layers:
            layer.initialise(below, generator)
            if layer is not self.top:
                z = layer.log_prob(z)  # (N, K, rows, columns)
                below = z.softmax(1)

    @torch.no_grad()
    def log_weights(self) -> dict[str, Tensor]:
        """Log marginal probability of the components at each position, (K, rows, columns)."""
        weights = self._weights_below(self.top.log_weights.exp()[None])
        return {name: of_layer[0].log() for name, of_layer in weights.items()}

    def _weights_below(self, weights: Tensor) -> dict[str, Tensor]:
        """Weights of the components of each layer, (N, K, rows, columns), given those of the top.

        From the image upwards, the given ones last.
        """
        by_name = {}
        for name, layer in reversed(self.mixtures.items()):
            by_name[name] = weights
            if isinstance(layer.emission, CategoricalEmission):
                weights = layer.emission.weights_below(weights, self._size_below(layer))
        return dict(reversed(by_name.items()))

    def add_classes(self, n_classes: int) -> None:
        """Let images have one of some classes, equally likely under every component."""
        self.class_logits = nn.Parameter(self.scale.new_zeros(self.top.n_components, n_classes))

    @property
    def class_tables(self) -> Tensor:
        """Probability of each class under each top component, (K, n_classes)."""
        assert self.class_logits is not None
        return _categorical.tables(self.class_logits)

    def class_probabilities(self, x: Tensor) -> Tensor:
        """Posterior of the classes given images, (N, n_classes)."""
        return _categorical.posterior(self.scores(x)) @ self.class_tables

    def log_prob(
        self,
        x: Tensor,
        temperature: float = 1.0,
        y: Tensor | None = None,
        label_weight: float = 1.0,
        complete: bool = False,
    ) -> Tensor:
        """Log density of images, in their units; missing pixels, NaN, are marginalised.

        Parameters
        ----------
        x : Tensor of shape (N, C, H, W)
        temperature : float
            Above 1, all top components get a share of an image: ``T logsumexp(scores / T)``.
        y : Tensor of int of shape (N,) or None
            Their classes, -1 where unknown. If the network knows of classes, this adds their log
            probabilities given the images.
        label_weight : float
            Factor of what `y` adds.
        complete : bool
            Promise that no pixel is missing.

        Returns
        -------
        Tensor of shape (N,)
        """
        scores = self.scores(x, complete)  # (N, K)
        value = _categorical.soft_maximum(scores, temperature)  # (N,)
        if y is not None and self.class_logits is not None:
            # The last column, that of -1, is for any class.
            by_class = nn.functional.pad(self.class_tables.log(), (0, 1))  # (K, n_classes + 1)
            together = _categorical.soft_maximum(scores + by_class[:, y].mT, temperature)  # (N,)
            value = value + label_weight * (together - value)
        return value - self.log_jacobian(x, complete).sum((1, 2, 3))

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

    def statistics(self, x: Tensor) -> Tensor:
        """Numbers by which outliers stand out, in nats at the scale of the layers.

        For each layer below the top six: sums over its windows of their log density alone, of that
        given the posterior of the top components, of its mean over what that predicts, and of the
        log density under the best component; then the root mean square and the maximum of the best
        less the predicted. At the end the log density of the image.

        Parameters
        ----------
        x : Tensor of shape (N, C, H, W)

        Returns
        -------
        Tensor of shape (N, 6 * (L - 1) + 1)
        """
        marginal_weights = self._weights_below(self.top.log_weights.exp()[None])
        climbed = list(self.climb(x))
        _, top, whole = climbed.pop()
        evidence = whole + top.log_weights  # (N, K, 1, 1)
        expected = self._weights_below(evidence.softmax(1))
        columns = []
        for name, _, log_prob in climbed:
            weights = expected[name]  # (N, K, rows, columns)
            best = log_prob.amax(1)  # (N, rows, columns)
            # Weights are positive: no sum below is smaller than that of the best component.
            likelihood = (log_prob - best[:, None]).exp_()  # (N, K, rows, columns)
            marginal = (likelihood * marginal_weights[name]).sum(1).log()  # (N, rows, columns)
            shortfall = -(likelihood * weights).sum(1).log()  # (N, rows, columns)
            columns += [
                (best + marginal).sum((1, 2)),
                (best - shortfall).sum((1, 2)),
                (log_prob * weights).sum((1, 2, 3)),
                best.sum((1, 2)),
                shortfall.square().mean((1, 2)).sqrt(),
                shortfall.amax((1, 2)),
            ]  # each (N,)
        return torch.stack([*columns, evidence.flatten(1).logsumexp(1)], 1)

    def responsibilities(self, x: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Posteriors of the components of mixture layers, each (N, K, rows, columns)."""
        with torch.no_grad():
            z = self.first.log_prob(self.normalise(x))  # (N, K, rows, columns)
        with torch.enable_grad():
            z.requires_grad_()
            by_name = {}
            for name, layer in self.mixtures.items():
                z = z if layer is self.first else layer.log_prob(z)
                by_name[name] = z
            value = (z + self.top.log_weights).logsumexp(1)  # (N, 1, 1)
            value = _categorical.check_finite(value).sum()
            # The posterior is the derivative of the log density by what it weighs.
            return list(torch.autograd.grad(value, [by_name[name] for name in names]))

    @torch.no_grad()
    def component_means(self) -> Tensor:
        """Mean image of each top component, (K, C, H, W)."""
        device, dtype = self.scale.device, self.scale.dtype
        each = torch.eye(self.top.n_components, device=device, dtype=dtype)  # (K, K)
        return self._mean(next(iter(self._weights_below(each[..., None, None]).values())))

    def impute_mean(self, x: Tensor) -> Tensor:
        """Images with each missing pixel at its mean given the observed ones, (N, C, H, W)."""
        (first,) = self.responsibilities(x, [next(iter(self.mixtures))])  # (N, K, rows, columns)
        return torch.where(x.isnan(), self._mean(first), x)

    def _mean(self, weights: Tensor) -> Tensor:
        """Mean images given weights of the first layer's components, (N, K, rows, columns)."""
        size, stride = self.image_shape[1:], self.first.stride
        return self.first.gaussian.mean(weights, size, stride) * self.scale + self.shift

    def impute_sample(self, x: Tensor, generation: Generation) -> Tensor:
        """Images with missing pixels drawn given the observed ones, (N, C, H, W)."""
        return torch.where(x.isnan(), self.variants(x, next(iter(self.mixtures)), generation), x)

    def variants(self, x: Tensor, name: str, generation: Generation) -> Tensor:
        """Images drawn given what images show to the components of a layer.

        The components of that layer and of those above are drawn from their posterior; what is
        below them is drawn as if there were no images.
        """
        *evidence, whole = [log_prob for _, _, log_prob in self.climb(x)]
        posterior = _categorical.posterior((whole + self.top.log_weights).flatten(1))  # (N, K)
        kept = _categorical.keep_largest(posterior, generation.top_s)
        components = _categorical.sample(kept, generation.generator)  # (N,)
        level = list(self.mixtures).index(name)
        known = [torch.zeros_like(z) for z in evidence[:level]] + evidence[level:]
        return self._descend(components, known, generation)

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
