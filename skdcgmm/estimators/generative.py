"""Methods of the estimators that score and make images."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skdcgmm.analysis.bits import dequantise, level_step
from skdcgmm.data import FloatArray, Images, make_generator
from skdcgmm.estimators.base import BaseDCGMM
from skdcgmm.estimators.checks import Seed, answer, check_mask
from skdcgmm.estimators.planning import check_joint
from skdcgmm.model import tables
from skdcgmm.model.specs import check_choice, check_number
from skdcgmm.model.tables import Generation
from skdcgmm.model.tree import Mixtures

IMPUTE_METHODS = ("mean", "sample")

# Draws of layer-wise stacks: the variances of upper layers are bounds rather than estimates.
_LAYERWISE_TEMPERATURE = 0.1
# Likeliest components of each table that pictures of a joint stack are made of.
_PICTURE_TOP_S = 2
# First step size of sharpening, relative to the scale of the pixels, and its factors after a step
# that raised the score and after one that did not.
_FIRST_RATE = 0.01
_FASTER, _SLOWER = 1.5, 0.3
# Levels of all values of all components whose probabilities are looked up: half a GiB.
_MAX_BINS = 2**27


class GenerativeDCGMM(BaseDCGMM):
    """Densities of images, draws from the fitted stack, and their sharpening."""

    def _sample(
        self,
        n_samples: int,
        of_components: Tensor,
        label: int | None,
        temperature: float | None,
        top_s: int | None,
        random_state: Seed,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Images in the shape of the rows of X, and labels.

        `of_components` are the probabilities of labels under each top component, (K, n_labels).
        With a `label`, all images have that one.
        """
        check_number("n_samples", n_samples, low=1, integer=True)
        if temperature == 0 and top_s is None and self._stack.is_density:
            top_s = _PICTURE_TOP_S
        generation = self._generation(temperature, top_s, random_state)
        with self._mixtures() as mixtures:
            log_weights = mixtures.log_weights  # (K,)
            labels = of_components.to(log_weights)  # (K, n_labels)
            if label is not None:
                log_weights = log_weights + labels[:, label].log()
            components = torch.multinomial(
                log_weights.softmax(0), n_samples, replacement=True, generator=generation.generator
            )  # (n_samples,)
            images, drawn = [], []
            for part in torch.split(components, Images.batch_size(mixtures.numbers_per_image)):
                images.append(rows_of(mixtures.sample(part, generation)).cpu())
                if label is not None:
                    drawn.append(torch.full_like(part, label).cpu())
                else:
                    drawn.append(tables.sample(labels[part], generation.generator).cpu())
        rows = self._like_data(torch.cat(images).numpy())
        return rows.reshape(n_samples, *self._row_shape), torch.cat(drawn).numpy()

    def _like_data(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Drawn rows as images of `fit` are: in their range, if that has ends, and whole numbers.

        A range has an end where many pixels are exactly there.
        """
        low, high = self._ends()
        rows = rows.clip(low, high)
        if self._integers is None:
            return rows
        limits = np.iinfo(self._integers)
        return rows.round().clip(limits.min, limits.max).astype(self._integers)

    def _ends(self) -> NDArray[Any]:
        """Lowest and highest value of each column of X, (2, n_features); infinite if not known."""
        ends = self._stack.ends.numpy(force=True).reshape(2, -1)  # (2, C)
        height, width, _ = self.image_shape_
        return np.tile(ends, height * width)

    def _criterion_density(self, X: Any, name: str) -> FloatArray:
        """Log density of each image for a criterion; a warning if it is asked about clusters."""
        check_is_fitted(self)
        n_components = self._stack.top.n_components
        if self.n_clusters not in (None, n_components):
            warnings.warn(
                f"{name} is the same for all n_clusters: {self.n_clusters} clusters are merged "
                f"from {n_components} components, and the density is that of the components. It "
                "compares layers. For a number of clusters, look at distances_, as by "
                "skdcgmm.plotting.DendrogramDisplay.",
                stacklevel=3,
            )
        return self._log_density(X)

    def _log_density(self, X: Any) -> FloatArray:
        """Log density of each image, in double precision."""
        return self._score(self._check_fitted_images(X), "density", -1).astype(np.float64)

    def bits_per_dim(self, X: Any, *, n_levels: int = 256, random_state: Seed = None) -> Any:
        """Bits that each image takes, divided by the number of its values.

        Minus the binary logarithm of the probability of images whose values are whole numbers. With
        tiles or atoms, the density is integrated over all that rounds to a value: summed over all
        images of the range, probabilities are 1. In a pyramid, and where tables of all levels would
        not fit in memory, uniform noise of one step is added to values that are no atoms: a bound
        from above.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
            Of whole numbers from 0 to `n_levels` - 1; or, in floating point with none above 1, of
            these divided by `n_levels` - 1. Missing values, NaN, take no bits.
        n_levels : int, default=256
            Number of values that a pixel may have: 256 for 8 bits.
        random_state : int, RandomState instance or None, default=None
            Seed of the noise; None is that of the estimator.

        Returns
        -------
        ndarray or Tensor of shape (n_samples,)

        Raises
        ------
        ValueError
            If values are no whole numbers in that range, or the stack is not one density.

        See Also
        --------
        skdcgmm.metrics.bits_per_dim : The same for any estimator with a density.
        """
        images = self._check_fitted_images(X)
        check_joint(self._stack, "bits")
        step = level_step(images.rows, n_levels)
        levels = step * torch.arange(n_levels, dtype=torch.float64)  # (V,)
        n_seen = np.maximum(1, (~np.isnan(images.rows)).sum(1))
        first = self._stack.layers[0]
        n_bins = first.n_mixtures * first.windows.n_values * n_levels * first.n_components
        if self._stack.pyramid is not None or n_bins > _MAX_BINS:
            rng = check_random_state(self.random_state if random_state is None else random_state)
            between = self._between(images)
            dense = replace(images, rows=dequantise(images.rows, step, rng, between))
            nats = self._score(dense, "density", -1) + between.sum(1) * np.log(step)
        else:
            with self._mixtures() as tree:
                bins = tree.log_bins(levels.to(tree.log_weights.device))

            def log_mass(tree: Any, x: Tensor) -> Tensor:
                codes = (x.nan_to_num(nan=-step) / step).round().long() + 1
                return cast("Tensor", tree.log_mass(codes, bins))

            nats = self._map(images, log_mass)
        return answer(X, -nats / np.log(2) / n_seen)

    def _between(self, images: Images) -> NDArray[np.bool_]:
        """Which values have a density, rather than being the atom at an end of the range."""
        rows = images.rows
        if self._stack.kind != "atoms":
            return cast("NDArray[np.bool_]", ~np.isnan(rows))
        edges = cast("Tensor", self._stack.pixels.edges)  # (2, C, 1, 1)
        low, high = edges.numpy(force=True).reshape(2, -1)  # (C,)
        by_channel = rows.reshape(len(rows), -1, len(low))
        return ((by_channel > low) & (by_channel < high)).reshape(rows.shape)

    def bic(self, X: Any) -> float:
        """Bayesian information criterion on X, which compares layers; the lower the better.

        It is the same for all `n_clusters` into which components are merged, with a warning.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        float
        """
        log_density = self._criterion_density(X, "bic")
        return float(self._stack.n_parameters * np.log(len(log_density)) - 2 * log_density.sum())

    def aic(self, X: Any) -> float:
        """Akaike information criterion on X, which compares layers; the lower the better.

        It is the same for all `n_clusters` into which components are merged, with a warning.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`

        Returns
        -------
        float
        """
        log_density = self._criterion_density(X, "aic")
        return float(2 * self._stack.n_parameters - 2 * log_density.sum())

    def sample_like(
        self,
        X: Any,
        *,
        layer: int | str = -1,
        n_samples: int = 1,
        temperature: float | None = None,
        top_s: int | None = None,
        random_state: Seed = None,
    ) -> Any:
        """Draw variants of images: what the model sees in them at a layer, drawn anew.

        From the top layer, another image of the same cluster; from a lower one, the same parts,
        drawn anew where they are. A joint stack draws the components of the layer and of those
        above from their exact posterior, and what is below as `sample` does. A layer-wise stack
        goes down from the responsibilities of the layer.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
            NaN where missing; variants are whole.
        layer : int or str, default=-1
            A mixture layer: its index among the mixture layers, or name.
        n_samples : int, default=1
            Variants of each image.
        temperature, top_s, random_state
            As for `sample`, but at any temperature, None keeps all components of a joint stack.

        Returns
        -------
        ndarray or Tensor of shape (n_images, n_samples, ...)
            In the shape of the rows of X in `fit`, and like its values, as of `sample`.
        """
        images, generation = self._to_draw(X, temperature, top_s, random_state)
        return answer(X, self._draw_like(images, layer, n_samples, generation))

    def _to_draw(
        self, X: Any, temperature: float | None, top_s: int | None, random_state: Seed
    ) -> tuple[Images, Generation]:
        images = self._check_fitted_images(X)
        return images, self._generation(temperature, top_s, random_state)

    def _draw_like(
        self, images: Images, layer: int | str, n_samples: int, generation: Generation
    ) -> NDArray[Any]:
        """Variants of images, (n_images, n_samples, ...)."""
        check_number("n_samples", n_samples, low=1, integer=True)
        name = self._mixture_name(self._stack, "layer", layer)

        def rows(mixtures: Mixtures, x: Tensor) -> Tensor:
            return rows_of(mixtures.variants(x, name, generation))

        repeated = images.take(np.repeat(np.arange(len(images)), n_samples))
        drawn = self._like_data(self._map(repeated, rows, n_each=n_samples))
        return drawn.reshape(len(images), n_samples, *images.row_shape)

    def impute(
        self,
        X: Any,
        *,
        mask: Any = None,
        method: str = "mean",
        temperature: float | None = None,
        top_s: int | None = None,
        random_state: Seed = None,
    ) -> Any:
        """Fill in missing pixels, given the observed ones.

        A joint stack takes the exact conditional distribution. In a layer-wise stack of several
        layers, missing pixels have no part in the scores of the first layer, and are then taken
        from a variant of the image, as by `sample_like` from the top layer.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
            NaN where missing. Observed pixels stay as they are.
        mask : array-like of bool of the shape of X, default=None
            True where X is to be taken as missing, besides NaN.
        method : {"mean", "sample"}, default="mean"
            The mean given the observed pixels, or a draw. A layer-wise stack takes the means of the
            likeliest components for a mean.
        temperature, top_s
            Of draws, as for `sample_like`: with a temperature of 0, each draw shows the means of
            its components, without pixel noise.
        random_state : int, RandomState instance or None, default=None
            Seed of the draws; None is that of the estimator.

        Returns
        -------
        ndarray or Tensor of the shape of X
            Draws are in the range of the values in `fit` if that has ends, and rounded if those
            were whole numbers of a small type.
        """
        images, generation = self._to_draw(X, temperature, top_s, random_state)
        return answer(X, self._fill_in(images, mask, method, generation))

    def _fill_in(
        self, images: Images, mask: Any, method: str, generation: Generation
    ) -> NDArray[Any]:
        """Images with missing pixels filled in, of the shape of X."""
        images = images.hide(check_mask(mask, images))
        check_choice("method", method, IMPUTE_METHODS)

        def rows(mixtures: Mixtures, x: Tensor) -> Tensor:
            if method == "mean":
                return rows_of(mixtures.impute_mean(x))
            return rows_of(mixtures.impute_sample(x, generation))

        filled = self._map(images, rows)
        if method == "sample":
            filled = self._like_data(filled)
        # Observed values exactly as they came, in whatever precision the stack computes.
        filled = np.where(np.isnan(images.rows), filled, images.rows)
        return filled.reshape(len(images), *images.row_shape)

    def sharpen(
        self,
        X: Any,
        *,
        layer: int | str | None = None,
        n_steps: int = 100,
        pull: float = 0.0,
        return_values: bool = False,
    ) -> Any:
        """Raise the likelihood of images by gradient ascent on their pixels.

        Averaging where windows overlap, and pooling, blur what is drawn. Each step follows the
        gradient of `score - pull * mean((x - x0)**2)` through the layers; steps that would lower it
        are taken back and shortened, so there is no rate to choose. Missing pixels stay missing.

        Parameters
        ----------
        X : array-like or Tensor, as in `fit`
        layer : int or str, default=None
            The mixture layer whose log-likelihood is the score: index among the mixture layers, or
            name. None is the log density of a joint stack; the sum over the layers of a layer-wise
            one, each counted once for its whole input.
        n_steps : int, default=100
        pull : float, default=0.0
            Weight of the pull towards the start x0; pixels are scaled to a variance of 0.1.
        return_values : bool, default=False
            Whether to return what was climbed, too.

        Returns
        -------
        images : ndarray or Tensor of the shape of X
        values : ndarray or Tensor of shape (n_samples, n_steps + 1)
            The objective at the start and after each step, which never falls; if `return_values`.
        """
        check_is_fitted(self)
        check_number("n_steps", n_steps, low=0, integer=True)
        check_number("pull", pull, low=0)
        name = None if layer is None else self._mixture_name(self._stack, "layer", layer)
        images = self._check_fitted_images(X)
        if name is not None:
            self._check_whole(images, "layer scores")
        scale = self._stack.scale

        def rows(mixtures: Mixtures, x: Tensor) -> Tensor:
            def score(x: Tensor) -> Tensor:
                return mixtures.layer_log_prob(x, name) if name else mixtures.stack_log_prob(x)

            sharp, values = sharpen(score, x, scale.to(x), n_steps, pull)
            return torch.cat([rows_of(sharp), values], 1)  # (N, D + n_steps + 1)

        sharp, values = np.hsplit(self._map(images, rows), [images.rows.shape[1]])
        sharp = answer(X, sharp.reshape(len(images), *images.row_shape))
        return (sharp, answer(X, values)) if return_values else sharp

    def _generation(
        self, temperature: float | None, top_s: int | None, random_state: Seed
    ) -> Generation:
        """How to draw: what is not given by the stack, or by the estimator."""
        check_number("temperature", temperature, low=0, optional="by the stack")
        check_number("top_s", top_s, low=1, integer=True, optional="by objective")
        exact = self._stack.is_density
        if temperature is None:
            temperature = 1.0 if exact else _LAYERWISE_TEMPERATURE
        if top_s is None and not exact:
            top_s = 1
        seed = self.random_state if random_state is None else random_state
        device = self._stack_in_place().like.device
        return Generation(temperature, top_s, make_generator(seed, device))


def rows_of(x: Tensor) -> Tensor:
    """Images (N, C, H, W) as rows (N, H * W * C)."""
    return x.permute(0, 2, 3, 1).flatten(1)


def sharpen(
    score: Callable[[Tensor], Tensor], x: Tensor, scale: Tensor, n_steps: int, pull: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Climb a score of images by gradient ascent on pixels.

    Each image has its own step size, which grows after a step that raised its objective
    `score(x) - pull * mean((x - x0)^2)` and shrinks, without the step, after one that did not.
    So the objective never falls, and no rate needs tuning.

    Parameters
    ----------
    score : callable
        From images to scores (N,), such as a log-likelihood.
    x : Tensor of shape (N, C, H, W)
    scale : Tensor of shape () or (C, 1, 1)
        Of the pixels.
    n_steps : int
    pull : float
        Weight of the pull towards the start, with pixels at that scale.

    Returns
    -------
    images : Tensor of shape (N, C, H, W)
    values : Tensor of shape (N, n_steps + 1)
        The objective at the start and after each step.
    """
    start = x

    def value_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            moved = ((x - start) / scale).nan_to_num()  # missing pixels stay missing
            distance = moved.square().mean((1, 2, 3))  # (N,)
            value = score(x) - pull * distance  # (N,)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    rate = _FIRST_RATE * torch.ones_like(x[:, :1, :1, :1])  # (N, 1, 1, 1)
    value, gradient = value_and_gradient(x)
    values = [value]
    for _ in range(n_steps):
        # Twice the scale, not its square, which may be beyond single precision.
        candidate = x + scale * (rate * (scale * gradient))  # (N, C, H, W)
        new_value, new_gradient = value_and_gradient(candidate)
        rose = new_value > value  # (N,)
        value = torch.where(rose, new_value, value)
        values.append(value)
        rose = rose[:, None, None, None]  # (N, 1, 1, 1)
        x = torch.where(rose, candidate, x)
        gradient = torch.where(rose, new_gradient, gradient)
        rate = torch.where(rose, _FASTER * rate, _SLOWER * rate)
    return x, torch.stack(values, 1)
