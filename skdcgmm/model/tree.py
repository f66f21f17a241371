"""A stack of mixtures at given numbers: what it says of images, and what it draws.

`Tree` is the stack as one density: a tree of discrete choices that ends in pixels.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from skdcgmm.model import tables
from skdcgmm.model.bins import look_up
from skdcgmm.model.partial import Emission, PartialTree
from skdcgmm.model.pixels import PixelDensity
from skdcgmm.model.pixels.gaussian import GaussianDensity
from skdcgmm.model.pixels.pyramid import Basis
from skdcgmm.model.tables import Generation
from skdcgmm.model.windows import Size

# Names of mixture layers and log densities of their windows by component, (N, K, rows, columns).
Climb = Iterator[tuple[str, Tensor]]

# Columns of the statistics of a layer.
MARGINAL, PREDICTED, EXPECTED, BEST, SHORTFALL, WORST = range(6)
N_STATISTICS = 6
# A component is active if it has this share of an equal weight.
_ACTIVE_SHARE = 0.1


class Level(NamedTuple):
    """An upper layer of a tree, whose components draw those of the layer below.

    Attributes
    ----------
    tables : Tensor of shape (H, W, K, J)
        One for each cell of the layer below and each component of this layer.
    kernel : (height, width)
        Of a window, in cells of the layer below.
    details : PixelDensity or None
        Of the details of the windows of a pyramid.
    """

    tables: Tensor
    kernel: Size
    details: PixelDensity | None = None


def n_active(weights: Tensor) -> float:
    """Number of components with at least a tenth of an equal weight, averaged over positions.

    Parameters
    ----------
    weights : Tensor of shape (K, rows, columns)
    """
    return float((weights > _ACTIVE_SHARE / len(weights)).sum(0).float().mean())


@dataclass(frozen=True, eq=False)
class Mixtures(ABC):
    """A stack of mixtures at given numbers.

    Attributes
    ----------
    names : tuple of str
        Mixture layers from the image upwards.
    pixels : PixelDensity
        Of the first layer.
    log_weights : Tensor of shape (K,)
        Log mixture weights of the top layer.
    """

    names: tuple[str, ...]
    pixels: PixelDensity
    log_weights: Tensor

    @property
    @abstractmethod
    def numbers_per_image(self) -> int:
        """Numbers that a pass up the stack holds for one image, an upper estimate."""

    @abstractmethod
    def climb(self, x: Tensor, complete: bool = False) -> Climb:
        """Go up from images (N, C, H, W): each mixture layer's name, and its log densities.

        `complete` promises that no pixel is missing.
        """

    @abstractmethod
    def layer_log_weights(self) -> dict[str, Tensor]:
        """Log mixture weights by layer, (K, 1, 1) if all positions share them, or by position."""

    @abstractmethod
    def responsibilities(
        self, x: Tensor, names: Sequence[str], complete: bool = False
    ) -> list[Tensor]:
        """Posteriors of the components of mixture layers, each (N, K, rows, columns)."""

    @abstractmethod
    def sample(self, components: Tensor, generation: Generation) -> Tensor:
        """Images (N, C, H, W) drawn from the given top components (N,)."""

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

    @abstractmethod
    def stack_log_prob(self, x: Tensor) -> Tensor:
        """Log-likelihood of images under the whole stack, (N,)."""

    def scores(self, x: Tensor, complete: bool = False) -> Tensor:
        """Log of weight times density of the top components, (N, K), in units of the layers."""
        ((_, whole),) = deque(self.climb(x, complete), maxlen=1)
        return whole.flatten(1) + self.log_weights

    def posterior(self, x: Tensor, complete: bool = False) -> Tensor:
        """Responsibilities of the top components, (N, K)."""
        return tables.posterior(self.scores(x, complete))

    def layer_log_prob(self, x: Tensor, name: str) -> Tensor:
        """Log-likelihood of a layer, averaged over its windows, in units of the images, (N,)."""
        return next(value for current, value in self.window_means(x) if current == name)

    def window_means(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Go up: each mixture layer's log-likelihood, averaged over its windows, (N,)."""
        log_weights = self.layer_log_weights()
        for name, log_prob in self.climb(x):
            windows = (log_prob + log_weights[name]).logsumexp(1)  # (N, rows, columns)
            yield name, windows.mean((1, 2)) - self._volume_of_windows(x, name, log_prob)

    @abstractmethod
    def _volume_of_windows(self, x: Tensor, name: str, log_prob: Tensor) -> Tensor | float:
        """What a log density of a layer's windows loses on average in units of images."""


@dataclass(frozen=True, eq=False)
class Tree(Mixtures):
    """One density: a tree of discrete choices that ends in pixels.

    A top component draws, by its tables, the components of the layer below, those of theirs, and
    those of the first layer draw their windows' pixels. Also any stack of one layer.

    Attributes
    ----------
    levels : tuple of Level
        The upper layers, from the image upwards.
    basis : Basis or None
        In which every layer emits the details of its windows, if the tree is a pyramid. Else the
        first layer emits pixels.
    class_tables : Tensor of shape (K, n_classes) or None
        Probability of each class under each top component, if images have classes.
    """

    levels: tuple[Level, ...] = ()
    basis: Basis | None = None
    class_tables: Tensor | None = None

    @property
    def numbers_per_image(self) -> int:
        """Numbers that a pass up the tree holds for one image, an upper estimate."""
        windows = self.pixels.windows
        n_components = self.levels[0].tables.shape[3] if self.levels else len(self.log_weights)
        total = 6 * math.prod(windows.input_shape) + 3 * windows.n_windows * n_components
        cells = windows.n_windows
        for level in self.levels:
            # For each cell of a window, log densities, their exponentials and their mixtures.
            height, width, n_components, _ = level.tables.shape
            total += 2 * cells * n_components
            cells = -(-height // level.kernel[0]) * -(-width // level.kernel[1])
            total += 3 * cells * n_components
        return total

    def climb(self, x: Tensor, complete: bool = False) -> Climb:
        """Go up from images; log densities by component are the input of the next layer."""
        if self._is_partial(x, complete):
            masses = [values.to(x) for values in self._partial.masses(x)]
            return zip(self.names, masses, strict=True)
        views = self.views(x)
        return self._climb_from(lambda: self.pixels.log_prob(views[0], complete), views)

    def _is_partial(self, x: Tensor, complete: bool) -> bool:
        """Whether pixels are missing that a pyramid needs."""
        return self.basis is not None and not complete and bool(x.isnan().any())

    @property
    def _emissions(self) -> list[PixelDensity]:
        """What the components of each layer of a pyramid emit."""
        return [self.pixels, *(cast("PixelDensity", level.details) for level in self.levels)]

    @cached_property
    def _partial(self) -> PartialTree:
        """The pyramid as it looks at images with missing pixels."""
        basis = cast("Basis", self.basis)
        densities = cast("list[GaussianDensity]", self._emissions)
        n_colours = basis.pyramid.image_shape[0]
        shifts = [d.shift.double().expand(d.windows.input_shape)[None] for d in densities]
        return PartialTree(
            basis,
            basis.pyramid.join(shifts),
            [
                Emission.of(density, basis.pyramid.bases(level), n_colours)
                for level, density in enumerate(densities)
            ],
            [level.tables.double() for level in self.levels],
            self.log_weights.double(),
        )

    def views(self, x: Tensor) -> list[Tensor]:
        """What each layer sees of images itself: their pixels, or its details; or nothing."""
        return [x] if self.basis is None else self.basis.split(x)

    def _climb_from(self, first: Callable[[], Tensor], views: list[Tensor]) -> Climb:
        # Nothing but the loop refers to what is below, so that memory holds two layers at a time.
        z = first()  # (N, K, rows, columns)
        yield self.names[0], z
        for i, level in enumerate(self.levels, 1):
            z = tables.log_prob(z, level.tables, level.kernel)  # (N, K, rows, columns)
            if level.details is not None:
                z = z + level.details.log_prob(views[i], complete=True)
            yield self.names[i], z

    def log_prob(self, x: Tensor, complete: bool = False) -> Tensor:
        """Log density of images, in their units; missing pixels, NaN, are marginalised, (N,)."""
        return self.in_units(tables.soft_maximum(self.scores(x, complete)), x, complete)

    def stack_log_prob(self, x: Tensor) -> Tensor:
        """The log density."""
        return self.log_prob(x)

    def log_bins(self, levels: Tensor) -> Tensor:
        """Log probability of each level (V,) that a pixel may round to, (P, D, V + 1, K).

        By component of the first layer; the first code is that of missing pixels.
        """
        by_level = self.pixels.log_bins(levels).permute(0, 2, 3, 1)  # (P, D, V, K)
        return functional.pad(by_level, (0, 0, 1, 0)).to(self.log_weights)

    def log_mass(self, codes: Tensor, log_bins: Tensor) -> Tensor:
        """Log probability of images of levels, (N,), given `log_bins` and codes (N, C, H, W)."""
        windows = self.pixels.windows
        climb = self._climb_from(lambda: look_up(log_bins, codes, windows), [])
        ((_, whole),) = deque(climb, maxlen=1)
        return tables.soft_maximum(whole.flatten(1) + self.log_weights)

    def in_units(self, log_prob: Tensor, x: Tensor, complete: bool = False) -> Tensor:
        """Log densities (N,) of what the layers see, as those of images, of another volume."""
        return log_prob - sum(volume.sum((1, 2)) for volume in self._volumes(x, complete))

    def _volumes(self, x: Tensor, complete: bool) -> Iterator[Tensor]:
        """What windows of each layer lose in units of images, (1 or N, rows, columns)."""
        if self.basis is None:
            yield self.pixels.log_volume(x, complete)
            return
        if self._is_partial(x, complete):
            # Densities of images with missing pixels are in units of the channels.
            observed = ~x.isnan().any(1)  # (N, H, W)
            yield observed * self.basis.scale.log().sum()
            return
        for i, density in enumerate(self._emissions):
            yield density.log_volume(x, complete=True) + self.basis.log_volume(i)

    def given_class(self, label: int) -> "Tree":
        """The density of the images of a class, or of all if its number is -1."""
        if label < 0:
            return self
        assert self.class_tables is not None
        log_weights = self.log_weights + self.class_tables[:, label].log()  # (K,)
        return replace(self, log_weights=log_weights.log_softmax(0))

    def map_by_class(
        self, function: Callable[["Tree", Tensor], Tensor], x: Tensor, labels: Tensor
    ) -> Tensor:
        """A function (N, ...) of the density of each image's class, (N,), and of the images."""
        parts, order = [], []
        for label in sorted(set(labels.tolist())):
            chosen = torch.where(labels == label)[0]
            try:
                parts.append(function(self.given_class(label), x[chosen]))
            except tables.ImageOverflowError as error:
                raise tables.ImageOverflowError(int(chosen[error.image])) from error
            order.append(chosen)
        return torch.cat(parts)[torch.cat(order).argsort()]

    def class_probabilities(self, x: Tensor, complete: bool = False) -> Tensor:
        """Posterior of the classes given images, (N, n_classes)."""
        assert self.class_tables is not None
        return self.posterior(x, complete) @ self.class_tables

    def layer_log_weights(self) -> dict[str, Tensor]:
        """Log marginal probability of the components at each position, (K, rows, columns)."""
        weights = self._weights_below(self.log_weights.exp()[None, :, None, None])
        return {name: of_layer[0].log() for name, of_layer in zip(self.names, weights, strict=True)}

    def _weights_below(self, weights: Tensor, lowest: int = 0) -> list[Tensor]:
        """Weights of the components of each layer, (N, K, rows, columns), given those of the top.

        From the layer of index `lowest` upwards, the given ones last.
        """
        found = [weights]
        for level in reversed(self.levels[lowest:]):
            found.append(tables.weights_below(found[-1], level.tables, level.kernel))
        return found[::-1]

    def _mix(self, x: Tensor, complete: bool) -> tuple[list[tuple[Tensor, tables.Mix]], Tensor]:
        """Scores of cells (H, W, J, N) and their mixtures by level; scores of the top, (N, K)."""
        views = self.views(x)
        z = self.pixels.log_prob(views[0], complete)  # (N, K, rows, columns)
        climbed = []
        for i, level in enumerate(self.levels, 1):
            mixed = tables.mix(z, level.tables, level.kernel)
            climbed.append((z.permute(2, 3, 1, 0), mixed))
            z = mixed.log_prob
            if level.details is not None:
                z = z + level.details.log_prob(views[i], complete=True)
        return climbed, z.flatten(1) + self.log_weights

    @torch.no_grad()
    def statistics(self, x: Tensor, complete: bool = False) -> Tensor:
        """Numbers by which outliers stand out, in nats at the scale of the layers.

        For each layer below the top six: sums over its windows of their log density alone, of that
        given the posterior of the top components, of its mean over what that predicts, and of the
        log density under the best component; then the root mean square and the maximum of the best
        less the predicted. At the end the log density of the image.

        Returns
        -------
        Tensor of shape (N, 6 * (L - 1) + 1)
        """
        prior = self._weights_below(self.log_weights.exp()[None, :, None, None])
        climbed, evidence = self._mix(x, complete)
        expected = self._weights_below(evidence.softmax(1)[..., None, None])
        columns = []
        # The top has no window of its own.
        for (scores, mixed), before, after in zip(climbed, prior, expected, strict=False):
            best = mixed.peak[:, :, 0]  # (H, W, N)
            weights = after.permute(2, 3, 1, 0)  # (H, W, J, N)
            # Weights are positive: no sum below is smaller than that of the best component.
            marginal = (before.permute(2, 3, 0, 1) @ mixed.likelihoods)[:, :, 0].log()  # (H, W, N)
            shortfall = -(mixed.likelihoods * weights).sum(2).log()  # (H, W, N)
            columns += [
                (best + marginal).sum((0, 1)),
                (best - shortfall).sum((0, 1)),
                (scores * weights).sum((0, 1, 2)),
                best.sum((0, 1)),
                shortfall.square().mean((0, 1)).sqrt(),
                shortfall.amax((0, 1)),
            ]  # each (N,)
        return torch.stack([*columns, evidence.logsumexp(1)], 1)

    @torch.no_grad()
    def shortfalls(self, x: Tensor, complete: bool = False) -> tuple[Tensor, Tensor]:
        """The column SHORTFALL of the `statistics` of each layer, and the log density.

        At less cost: what a cell's components are expected to show is a mixture, by weights of the
        components above, of what has been computed on the way up.

        Returns
        -------
        shortfalls : Tensor of shape (N, L - 1)
        log_prob : Tensor of shape (N,)
        """
        climbed, evidence = self._mix(x, complete)
        weights = self._weights_below(evidence.softmax(1)[..., None, None], lowest=1)
        columns = []
        for level, (_, mixed), above in zip(self.levels, climbed, weights, strict=True):
            size = (level.tables.shape[0], level.tables.shape[1])
            shortfall = tables.shortfalls(mixed.mixtures, above, size, level.kernel)  # (N, H, W)
            columns.append(shortfall.square().mean((1, 2)).sqrt())
        return torch.stack(columns, 1), evidence.logsumexp(1)

    def responsibilities(
        self, x: Tensor, names: Sequence[str], complete: bool = False
    ) -> list[Tensor]:
        """Posteriors of the components of mixture layers, each (N, K, rows, columns)."""
        if self._is_partial(x, complete):
            levels = [self.names.index(name) for name in names]
            return [values.to(x) for values in self._partial.responsibilities(x, levels)]
        with torch.no_grad():
            views = self.views(x)
            z = self.pixels.log_prob(views[0], complete)  # (N, K, rows, columns)
        with torch.enable_grad():
            z.requires_grad_()
            by_name = dict(self._climb_from(lambda: z, views))
            whole = by_name[self.names[-1]].flatten(1)  # (N, K)
            value = tables.check_finite((whole + self.log_weights).logsumexp(1)).sum()
            # The posterior is the derivative of the log density by what it weighs.
            return list(torch.autograd.grad(value, [by_name[name] for name in names]))

    def component_means(self) -> Tensor:
        """Mean image of each top component, (K, C, H, W)."""
        each = torch.eye(
            len(self.log_weights), device=self.log_weights.device, dtype=self.log_weights.dtype
        )  # (K, K)
        weights = self._weights_below(each[..., None, None])
        if self.basis is None:
            return self.pixels.mean(weights[0])
        pairs = zip(self._emissions, weights, strict=True)
        return self.basis.join([density.mean(of_layer) for density, of_layer in pairs])

    def impute_mean(self, x: Tensor) -> Tensor:
        """Images with each missing pixel at its mean given the observed ones, (N, C, H, W)."""
        if self._is_partial(x, complete=False):
            return self._partial.means(x)
        if self.basis is not None:
            self.posterior(x)  # an error of images beyond all
            return x
        (first,) = self.responsibilities(x, self.names[:1])  # (N, K, rows, columns)
        return torch.where(x.isnan(), self.pixels.mean(first), x)

    def impute_sample(self, x: Tensor, generation: Generation) -> Tensor:
        """Images with missing pixels drawn given the observed ones, (N, C, H, W)."""
        if self._is_partial(x, complete=False):
            return self._partial.draw(x, generation)
        return torch.where(x.isnan(), self.variants(x, self.names[0], generation), x)

    def variants(self, x: Tensor, name: str, generation: Generation) -> Tensor:
        """Images drawn given what images show to the components of a layer.

        The components of that layer and of those above are drawn from their posterior; what is
        below them is drawn as if there were no images.
        """
        return self._emit(self._posterior_draws(x, name, generation), generation)

    def _posterior_draws(self, x: Tensor, name: str, generation: Generation) -> list[Tensor]:
        """Components of all layers, given what images show to those of a layer."""
        *evidence, whole = [log_prob for _, log_prob in self.climb(x)]
        posterior = tables.posterior(whole.flatten(1) + self.log_weights)  # (N, K)
        kept = tables.keep_largest(posterior, generation.top_s)
        components = tables.sample(kept, generation.generator)  # (N,)
        level = self.names.index(name)
        known = [torch.zeros_like(z) for z in evidence[:level]] + evidence[level:]
        return self._descend(components, known, generation)

    def sample(self, components: Tensor, generation: Generation) -> Tensor:
        """Images drawn from top components."""
        nothing = self.log_weights.new_zeros(())
        known = []
        for level in self.levels:
            height, width, _, n_below = level.tables.shape
            known.append(nothing.expand(len(components), n_below, height, width))
        return self._emit(self._descend(components, known, generation), generation)

    def _descend(
        self, components: Tensor, evidence: list[Tensor], generation: Generation
    ) -> list[Tensor]:
        """Components (N, rows, columns) of all layers drawn from those of the top, (N,).

        From the image upwards; given what is known below each component.
        """
        drawn = [components[:, None, None]]  # (N, 1, 1)
        for level, known in zip(reversed(self.levels), reversed(evidence), strict=True):
            below = tables.sample_below(
                drawn[-1], level.tables, level.kernel, known, generation.top_s,
                generation.generator,
            )  # (N, H, W)  # fmt: skip
            drawn.append(below)
        return drawn[::-1]

    def _emit(self, components: list[Tensor], generation: Generation) -> Tensor:
        """Images drawn from the components of all layers."""
        noise = generation.temperature, generation.generator
        if self.basis is None:
            return self.pixels.sample(components[0], *noise)
        pairs = zip(self._emissions, components, strict=True)
        return self.basis.join([density.sample(z, *noise) for density, z in pairs])

    def _volume_of_windows(self, x: Tensor, name: str, log_prob: Tensor) -> Tensor:
        below = islice(self._volumes(x, complete=False), 1 + self.names.index(name))
        total = torch.stack([volume.sum((1, 2)).expand(len(x)) for volume in below]).sum(0)  # (N,)
        return total / math.prod(log_prob.shape[2:])
