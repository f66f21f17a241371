"""From a user's parameters and images to a trained network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from torch import Tensor

from skdcgmm import _network, _presets
from skdcgmm._composition import check_layers, name_layers
from skdcgmm._network import Network
from skdcgmm._training import N_STEPS, OBJECTIVES, HistoryRow, Progress, train
from skdcgmm._validation import Images, make_generator
from skdcgmm.layers import ConvGMM

# Images enter the layers with this variance, about that of images in 0-1, for which the published
# constants were made.
_INTERNAL_VARIANCE = 0.1
# Default lower bound of the first layer's variances, relative to the variance of all pixels.
_IMAGE_REG_COVAR, _FEATURE_REG_COVAR = 0.5, 1e-6
_MIN_EPOCHS, _MAX_EPOCHS = 5, 200


def build_stack(
    layers: Any, n_components: int | None, images: Images, reserved: set[str]
) -> Network:
    """Build the network that the parameters `layers` and `n_components` ask for.

    Raises
    ------
    ValueError, TypeError
        If they ask for no possible stack, or for more components than the images can feed.
    """
    if layers == "auto":
        named = name_layers(_presets.auto(images.shape, len(images)))
    elif isinstance(layers, str):
        named = name_layers(_presets.preset(layers, images.shape))
    else:
        named = [(name, clone(spec)) for name, spec in check_layers(layers, reserved)]
    top = named[-1][1]
    if n_components is not None and isinstance(top, ConvGMM):
        top.set_params(n_components=n_components)
    # First without memory: a component too many may be a million too many.
    with torch.device("meta"):
        _check_components(_network.build(named, images.shape), images, n_components)
    with torch.device("cpu"):
        return _network.build(named, images.shape)


def _check_components(network: Network, images: Images, n_components: int | None) -> None:
    for name, layer in network.mixtures.items():
        n_windows = len(images) * int(np.prod(layer.output_shape[1:])) // layer.n_mixtures
        if layer.n_components > n_windows:
            overridden = layer is network.top and n_components is not None
            raise ValueError(
                f"{'n_components' if overridden else f'{name}__n_components'} must be at most "
                f"{n_windows}, the number of windows that a mixture sees in {len(images)} images; "
                f"got {layer.n_components}. Choose fewer components or fit more images."
            )


def same_stack(new: Network, old: Network) -> bool:
    """Whether two networks have the same layers on the same images."""
    shapes = [
        (
            network.names,
            network.image_shape,
            [(layer.kernel, layer.stride) for _, layer in network.named_layers()],
            [parameter.shape for parameter in network.parameters()],
            [layer.emission.spherical for layer in network.mixtures.values()],
        )
        for network in (new, old)
    ]
    return shapes[0] == shapes[1]


def initialise(
    network: Network, images: Images, reg_covar: float | None, rng: np.random.RandomState
) -> None:
    """Scale a network to the images, give it their dtype, and start it at random."""
    mean, variance = images.moments()
    if not np.isfinite(variance):
        raise ValueError(
            "X has values whose variance is beyond double precision. Scale X, for instance with "
            "sklearn.preprocessing.RobustScaler."
        )
    variance = variance or 1.0  # constant images
    if reg_covar is None:
        plain = images.shape[1:] == (1, 1)
        reg_covar = variance * (_FEATURE_REG_COVAR if plain else _IMAGE_REG_COVAR)
    scale = (variance / _INTERNAL_VARIANCE) ** 0.5
    network.to(images.dtype)
    network.shift.fill_(mean)
    network.scale.fill_(scale)
    next(iter(network.mixtures.values())).emission.min_variance = reg_covar / scale**2
    network.initialise(make_generator(rng))


class Result(NamedTuple):
    """What training leaves besides the network."""

    history: list[HistoryRow]
    converged: bool
    progress: Progress


def train_network(
    network: Network,
    progress: Progress | None,
    images: Images,
    rng: np.random.RandomState,
    *,
    objective: str,
    stream: bool,
    max_epochs: int | None,
    batch_size: int,
    learning_rate: float,
    tol: float,
    n_iter_no_change: int,
    validation_fraction: float | None,
    on_epoch: Callable[[HistoryRow], None],
) -> Result:
    """Train a network in place on all images, or go once over a chunk of a stream.

    Raises
    ------
    FloatingPointError
        If training diverges.
    """
    order = rng.permutation(len(images))
    n_held_out = 0
    if validation_fraction is not None and not stream:
        n_held_out = min(len(images) - 1, max(1, round(validation_fraction * len(images))))
    held_out, kept = order[:n_held_out], order[n_held_out:]
    n_batches = -(-len(kept) // batch_size)
    if max_epochs is None:
        max_epochs = min(_MAX_EPOCHS, max(_MIN_EPOCHS, -(-N_STEPS // n_batches)))
    n_steps = N_STEPS if stream else n_batches * max_epochs
    training = OBJECTIVES[objective](network, n_steps, learning_rate, progress)

    def batches(index: NDArray[np.integer[Any]]) -> Iterator[Tensor]:
        for start in range(0, len(index), batch_size):
            yield images.tensor(index[start : start + batch_size], network.scale)

    history, converged = train(
        training,
        lambda: batches(rng.permutation(kept)),
        (lambda: batches(held_out)) if n_held_out else None,
        device=network.scale.device,
        max_epochs=1 if stream else max_epochs,
        tol=tol,
        n_iter_no_change=n_iter_no_change,
        on_epoch=on_epoch,
    )
    network.zero_grad(set_to_none=True)
    return Result(history, converged, training.progress)
