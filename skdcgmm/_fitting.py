"""From a user's parameters and images to a trained network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone

from skdcgmm import _build, _distributed, _presets, _spreading
from skdcgmm._batch import Batch
from skdcgmm._checkpoint import Checkpoint
from skdcgmm._composition import check_layers, name_layers
from skdcgmm._gaussian import computing
from skdcgmm._images import Images, sample_size
from skdcgmm._merging import merge
from skdcgmm._network import Network
from skdcgmm._reporting import Report
from skdcgmm._stream import Stream
from skdcgmm._training import OBJECTIVES, Outcome, Standing, train
from skdcgmm._validation import make_generator
from skdcgmm.layers import ConvGMM, LayerSpec, Shape

# Images enter the layers with this variance, about that of images in 0-1, for which the published
# constants were made.
_INTERNAL_VARIANCE = 0.1
# Default floor of the first layer's variances, relative to the variance of all pixels, or of each
# plain feature.
_IMAGE_REG_COVAR, _FEATURE_REG_COVAR = 0.5, 1e-6
# Least number of passes over the data, and usual number of images that a stack starts from.
_MIN_EPOCHS = 3
_N_SEEDS = 256
# Rows that are looked at for pixels, and the least side of images that would be taken for such.
_N_LOOKED_AT, _LEAST_SIDE = 100, 8
_MAX_PIXEL = 2**16 - 1
# Largest number of values in the images among which labels spread.
_MAX_SPREAD_VALUES = 2**25


class Settings(NamedTuple):
    """Parameters of training, as checked; None leaves a choice to the objective."""

    objective: str
    max_epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    tol: float
    n_iter_no_change: int
    validation_fraction: float | None


class Plan(NamedTuple):
    """The layers of a stack, and how many clusters their top components are merged into."""

    layers: list[tuple[str, LayerSpec]]
    n_merged: int | None = None


def plan_stack(
    layers: Any,
    n_components: int | None,
    shape: Shape,
    n_images: int,
    reserved: set[str],
    objective: str,
) -> Plan:
    """The stack that the parameters `layers` and `n_components` ask for.

    Raises
    ------
    ValueError, TypeError
        If they ask for no possible one.
    """
    joint = objective == "joint"
    auto = isinstance(layers, str) and layers == "auto"
    if auto:
        choose = _presets.auto if joint else _presets.auto_layerwise
        named = name_layers(choose(shape, n_images))
    elif isinstance(layers, str):
        named = name_layers(_presets.preset(layers, shape))
    else:
        named = [(name, clone(spec)) for name, spec in check_layers(layers, reserved)]
    top = named[-1][1]
    if n_components is not None and isinstance(top, ConvGMM):
        # Few components of a deep stack of our choice would tell little apart: merge many.
        if auto and joint and len(named) > 1 and n_components < top.n_components:
            return Plan(named, n_components)
        top.set_params(n_components=n_components)
    return Plan(named)


def build_stack(
    plan: Plan, images: Images | Stream, objective: str, *, overridden: bool
) -> Network:
    """Build the network of a plan for some images.

    `overridden` says whether the number of top components is the estimator's `n_components`.

    Raises
    ------
    ValueError, TypeError
        If the layers do not fit, or have more components than the images can feed.
    """
    joint = objective == "joint"
    # First without memory: a component too many may be a million too many.
    _check_components(outline(plan, images.shape, objective), images, overridden=overridden)
    with torch.device("cpu"):
        network = _build.build(plan.layers, images.shape, joint=joint)
    if plan.n_merged is not None:
        network.n_clusters = plan.n_merged
    return network


def outline(plan: Plan, shape: Shape, objective: str) -> Network:
    """The network of a plan without memory for its numbers."""
    with torch.device("meta"):
        return _build.build(plan.layers, shape, joint=objective == "joint")


def _check_components(network: Network, images: Images | Stream, *, overridden: bool) -> None:
    for name, layer in network.mixtures.items():
        n_windows = images.n_images * int(np.prod(layer.output_shape[1:])) // layer.n_mixtures
        if layer.n_components > n_windows:
            own = overridden and layer is network.top
            parameter = "n_components" if own else f"{name}__n_components"
            raise ValueError(
                f"{parameter} must be at most {n_windows}, the number of windows that a mixture "
                f"sees in {images.n_images} "
                f"images; got {layer.n_components}. Choose fewer components or fit more images."
            )


def same_stack(new: Network, old: Network) -> bool:
    """Whether two networks have the same layers on the same images."""
    shapes = [
        (
            network.names,
            network.image_shape,
            [(layer.kernel, layer.stride) for _, layer in network.named_layers()],
            [(name, parameter.shape) for name, parameter in network.named_parameters()],
            network.first.emission.spherical,
        )
        for network in (new, old)
    ]
    return shapes[0] == shapes[1]


def warn_of_pixels(images: Images | Stream) -> None:
    """Warn if features are as many as the pixels of a square, and whole numbers as theirs are."""
    n_features, *size = images.shape
    gray, colour = math.isqrt(n_features), math.isqrt(n_features // 3)
    shapes = [
        shape for shape in ((gray, gray), (colour, colour, 3)) if math.prod(shape) == n_features
    ]
    if size != [1, 1] or not shapes or shapes[0][0] < _LEAST_SIDE or not isinstance(images, Images):
        return
    some = images.rows[np.linspace(0, len(images) - 1, _N_LOOKED_AT).astype(int)]
    some = some[~np.isnan(some)] if some.dtype.kind == "f" else some.ravel()
    if not some.size:
        return
    # Zeros and ones are as well the answers to questions.
    if 1 < some.max() <= _MAX_PIXEL and (some >= 0).all() and (some == np.rint(some)).all():
        warnings.warn(
            f"X has rows of {n_features} whole numbers, which are taken for plain features. If "
            f"they are pixels, set image_shape={shapes[0]}; if not, name the flat mixture, for "
            "instance layers=[ConvGMM(8)].",
            stacklevel=5,
        )


def initialise(
    network: Network,
    images: Images | Stream,
    reg_covar: float | None,
    rng: np.random.RandomState,
) -> None:
    """Scale a network to the images, give it their dtype, and start it at random."""
    plain = images.shape[1:] == (1, 1)
    # A spherical Gaussian is one in the units of X: all features keep one scale.
    moments = images.moments(by_feature=plain and not network.first.emission.spherical)
    shape = (-1, 1, 1) if moments.mean.ndim else ()
    mean, variance = moments.mean.reshape(shape), moments.variance.reshape(shape)
    if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
        raise ValueError(
            "X has values whose variance is beyond double precision. Scale X, for instance with "
            "sklearn.preprocessing.RobustScaler."
        )
    overall = float(variance.mean()) if (variance > 0).any() else 1.0
    variance = np.where(variance > 0, variance, overall)
    scale = np.sqrt(variance / _INTERNAL_VARIANCE)
    floor: Any = reg_covar
    if reg_covar is None:
        floor = variance * (_FEATURE_REG_COVAR if plain else _IMAGE_REG_COVAR)
    network.to(images.dtype)
    network.shift = torch.as_tensor(mean, device="cpu").to(network.shift)
    network.scale = torch.as_tensor(scale, device="cpu").to(network.scale)
    relative = torch.as_tensor(floor / scale**2, device="cpu")
    network.first.gaussian.set_min_variance(relative.flatten() if relative.ndim else relative)
    largest = max(layer.n_components for layer in network.mixtures.values())
    n_seeds = min(_N_SEEDS, Images.batch_size(network.numbers_per_image))
    seeds = images.sample(max(n_seeds, 2 * largest), rng, weighted=True)
    with computing(network.scale.device):
        network.initialise(seeds.tensor(slice(None), network.scale), make_generator(rng))
    _distributed.same_start(network)


def merge_components(network: Network, images: Images | Stream, rng: np.random.RandomState) -> None:
    """Merge the top components, by some of the images, if clusters are to be fewer.

    Raises
    ------
    FloatingPointError
        If training has led to parameters without finite scores.
    """
    if network.n_clusters == network.top.n_components:
        return
    some = images.sample(sample_size(images.shape), rng)
    scores = some.map(lambda x: network.scores(x), network.scale, network.numbers_per_image)
    if not np.isfinite(scores).all():
        raise FloatingPointError("images have no finite scores")
    with computing(network.scale.device):
        means = (network.component_means() / network.scale).flatten(1).numpy(force=True)
    clusters = merge(scores, means, network.n_clusters, some.weight)
    network.clusters = torch.from_numpy(clusters).to(network.clusters)


def spread_labels(images: Images, rng: np.random.RandomState, device: torch.device) -> Images:
    """The images, more of them with a class: some without get that of images like them.

    Raises
    ------
    ValueError
        If no image has a class.
    """
    assert images.y is not None
    y = images.of_all(images.y).copy()
    if not (y >= 0).any():
        raise ValueError("sample_weight must leave some labelled image a weight; all are zero.")
    if (y >= 0).all():
        return images
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order] < 0, kind="stable")]
    order = order[: min(sample_size(images.shape), _MAX_SPREAD_VALUES // images.rows.shape[1])]
    like = torch.zeros((), dtype=images.dtype, device=device)
    with computing(device):
        y[order] = _spreading.spread(images.collect(order).tensor(slice(None), like), y[order])
    return replace(images, y=images.of_own(y))


class Result(NamedTuple):
    """What training leaves besides the network; and which images it has held out."""

    outcome: Outcome
    progress: Any
    held_out: NDArray[np.integer[Any]] | None


def train_network(
    network: Network,
    progress: Any,
    data: Images | Stream,
    rng: np.random.RandomState,
    settings: Settings,
    *,
    stream: bool = False,
    report: Report,
    checkpoint: Checkpoint | None = None,
) -> Result:
    """Train a network in place on all images, or go once over a chunk of a stream.

    Parameters
    ----------
    network : Network
    progress : Progress or None
        Where an earlier training of it stands that this one goes on from.
    data : Images or Stream
    rng : RandomState
        Of the order of the images.
    settings : Settings
    stream : bool
        Whether the images are a chunk of a stream.
    report : Report
        Told of each epoch.
    checkpoint : Checkpoint or None
        Where to note how far training has got; it goes on from what an earlier one has noted.

    Raises
    ------
    FloatingPointError
        If training diverges.
    KeyboardInterrupt
        If the user stops training before an epoch is done.
    """
    defaults = OBJECTIVES[settings.objective]
    batch_size = settings.batch_size or defaults.batch_size
    fraction = None if stream else settings.validation_fraction
    epochs = data.epochs(rng, batch_size, fraction, network.scale)
    max_epochs = settings.max_epochs
    if max_epochs is None:
        max_epochs = max(_MIN_EPOCHS, round(defaults.n_steps / epochs.n_batches))
    n_steps = defaults.n_steps if stream else epochs.n_batches * max_epochs
    rate = settings.learning_rate or defaults.learning_rate
    standing = Standing([])
    if checkpoint is not None and (earlier := checkpoint.restore(network, rng)) is not None:
        progress, standing = earlier
    training = defaults.objective(network, n_steps, rate, progress)
    report.start(1 if stream else max_epochs, standing.history, epochs.held_out)

    def batches() -> Iterable[Batch]:
        if checkpoint is not None:
            checkpoint.start_epoch(rng)
        report.begin_epoch()
        return epochs.batches()

    def on_step(reached: Standing) -> None:
        if checkpoint is not None:
            checkpoint.note(network, training, reached)

    with computing(network.scale.device):
        outcome = train(
            training,
            network,
            batches,
            epochs.validation,
            max_epochs=1 if stream else max_epochs,
            tol=settings.tol,
            n_iter_no_change=settings.n_iter_no_change,
            on_epoch=report.end_epoch,
            on_step=on_step,
            standing=standing,
        )
        network.zero_grad(set_to_none=True)
        # A loss is that before its step: the last step is still to be checked.
        # Few images say nothing of what a label weighs.
        some = replace(data.sample(batch_size, rng), y=None)
        values = training.evaluate(some.batch(np.arange(len(some)), network.scale))
    if not values.isfinite().all():
        raise FloatingPointError(f"the loss is {values.mean().item()} after the last step")
    return Result(outcome, training.progress, epochs.held_out)
