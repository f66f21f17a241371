"""From parameters and images to a stack that training can begin with."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from sklearn.base import clone

from skdcgmm import published
from skdcgmm.data import Data, Images, make_generator
from skdcgmm.model import computing, specs
from skdcgmm.model.specs import NamedSpecs
from skdcgmm.model.stack import BaseStack, Stack
from skdcgmm.model.windows import Shape
from skdcgmm.published import objective as layerwise
from skdcgmm.published.stack import LayerwiseStack
from skdcgmm.training import joint, ranks

OBJECTIVES = {"joint": joint.JOINT, "layerwise": layerwise.LAYERWISE}

# Usual number of images that a stack starts from.
_N_STARTS = 256


def is_auto(estimator: Any) -> bool:
    """Whether an estimator's stack is chosen by the images."""
    return isinstance(estimator.layers, str) and bool(estimator.layers == "auto")


def _plan(estimator: Any, shape: Shape, n_images: int) -> NamedSpecs:
    """The layers that the parameters of an estimator ask for."""
    layers = estimator.layers
    if is_auto(estimator):
        choose = specs.auto if estimator.objective == "joint" else published.auto
        return choose(shape, n_images, estimator.n_clusters)
    if isinstance(layers, str):
        return published.preset(layers, shape)
    reserved = set(estimator.get_params(deep=False))
    return [(name, clone(spec)) for name, spec in specs.check_layers(layers, reserved)]


def build(
    estimator: Any, shape: Shape, n_images: int, n_classes: int | None = None, device: str = "cpu"
) -> BaseStack:
    """Build the stack that an estimator asks for.

    Raises
    ------
    ValueError, TypeError
        If the layers do not fit, have more components than the images can feed, or fewer at the
        top than there are to be clusters.
    """
    joint = estimator.objective == "joint"
    layers = specs.lay_out(_plan(estimator, shape, n_images), shape, tiling=joint)
    for layer in (layer for layer in layers if layer.is_mixture):
        n_windows = n_images * layer.windows.n_windows // layer.n_mixtures
        if layer.n_components > n_windows:
            own = layer is layers[-1] and layer.n_components == estimator.n_clusters
            by_clusters = own and is_auto(estimator)
            parameter = "n_clusters" if by_clusters else f"{layer.name}__n_components"
            raise ValueError(
                f"{parameter} must be at most {n_windows}, the number of windows that a mixture "
                f"sees in {n_images} images; got {layer.n_components}. Choose fewer or fit more "
                "images."
            )
    check_n_clusters(estimator.n_clusters, layers[-1].n_components)
    with torch.device(device):
        return Stack(layers, n_classes) if joint else LayerwiseStack(layers)


def check_n_clusters(n_clusters: int | None, n_components: int) -> None:
    """Raise an error if clusters are not to be merged from that many top components."""
    specs.check_number("n_clusters", n_clusters, low=1, integer=True, optional="one for each")
    if n_clusters is not None and n_clusters > n_components:
        raise ValueError(
            f"n_clusters must be at most {n_components}, the number of components of the top "
            f"layer, which are merged into clusters; got {n_clusters}. Give that layer more "
            "components, or choose fewer clusters."
        )


def start(stack: BaseStack, data: Data, reg_covar: float | None, rng: RandomState) -> None:
    """Bring a stack to the type and the units of the images, and start it from some of them."""
    stack.to(data.dtype)
    total, *others = ranks.gather(data.moments())
    for moments in others:
        total = total.add(moments)
    if not (np.isfinite(total.mean).all() and np.isfinite(total.variance).all()):
        raise ValueError(
            "X has values whose variance is beyond double precision. Scale X, for instance with "
            "sklearn.preprocessing.RobustScaler."
        )
    channels, height, width = data.shape
    count, mean, variance = (
        torch.from_numpy(part.reshape(height, width, channels)).permute(2, 0, 1)
        for part in (total.n_values, total.mean, total.variance)
    )  # each (C, H, W)
    stack.pixels.set_units(count, mean, variance, reg_covar)
    largest = max(layer.n_components for layer in stack.mixtures.values())
    with computing(stack.like.device), torch.no_grad():
        n_starts = min(_N_STARTS, Images.batch_size(stack().numbers_per_image))
        starts = data.sample(max(n_starts, 2 * largest), rng, weighted=True)
        starts = replace(starts, rows=ranks.together(starts.rows))
        stack.start(starts.tensor(slice(None), stack.like), make_generator(rng))
    ranks.start_alike(stack)
