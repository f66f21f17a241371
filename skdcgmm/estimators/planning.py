"""From parameters and images to a stack that training can begin with."""

from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.random import RandomState
from sklearn.base import clone

from skdcgmm import published
from skdcgmm.data import Data, Images, make_generator, sample_size
from skdcgmm.model import computing, specs
from skdcgmm.model.specs import NamedSpecs
from skdcgmm.model.stack import BaseStack, Stack
from skdcgmm.model.windows import Shape
from skdcgmm.published import objective as layerwise
from skdcgmm.published.stack import LayerwiseStack
from skdcgmm.training import Defaults, joint, ranks

OBJECTIVES = {"joint": joint.JOINT, "layerwise": layerwise.LAYERWISE}

# Usual number of images that a stack starts from.
_N_STARTS = 256
# Number of rows of plain features, of which a start sees more.
_N_ROWS = 2000
# Share of the memory of a prediction that a training step may fill with the numbers of one pass up
# the stack: it holds those of the way down, too.
_STEP_SHARE = 0.5
# Images of the smallest step that is chosen.
_LEAST_STEP = 4


def defaults_of(stack: BaseStack) -> Defaults:
    """What the parameters of a stack's training are where a user leaves them open."""
    if stack.pyramid is not None:
        return joint.PYRAMID
    return OBJECTIVES["joint" if stack.tiling else "layerwise"]


def largest_step(stack: BaseStack) -> int:
    """Number of images whose training step fills a bounded memory.

    Of smaller steps, as many are taken: their gradients are the same in expectation.
    """
    with computing(stack.like.device), torch.no_grad():
        n_numbers = stack().numbers_per_image
    return max(_LEAST_STEP, int(_STEP_SHARE * Images.batch_size(n_numbers)))


def is_auto(estimator: Any) -> bool:
    """Whether an estimator's stack is chosen by the images."""
    return isinstance(estimator.layers, str) and bool(estimator.layers == "auto")


def _plan(
    estimator: Any, shape: Shape, n_images: int, n_classes: int | None, *, pyramid: bool
) -> NamedSpecs:
    """The layers that the parameters of an estimator ask for."""
    layers = estimator.layers
    if is_auto(estimator):
        if estimator.objective == "joint":
            n_clusters = estimator.n_clusters
            return specs.auto(shape, n_images, n_clusters, n_classes=n_classes, pyramid=pyramid)
        return published.auto(shape, n_images, estimator.n_clusters)
    if isinstance(layers, str):
        return published.preset(layers, shape)
    reserved = set(estimator.get_params(deep=False))
    return [(name, clone(spec)) for name, spec in specs.check_layers(layers, reserved)]


def _takes_pyramid(estimator: Any, *, complete: bool) -> bool:
    """Whether an estimator asks for a pyramid, or would have one if it has layers for that."""
    joint = estimator.objective == "joint"
    if estimator.pixels == "auto":
        chosen = is_auto(estimator) and estimator._auto_pixels == "pyramid"
        return joint and complete and bool(chosen) and estimator.reg_covar is None
    if estimator.pixels == "pyramid":
        if not joint:
            raise ValueError(
                "pixels='pyramid' needs one density, which a layer-wise stack is not: choose "
                "objective='joint', or pixels='tiles'."
            )
        if not complete:
            refuse_missing("training")
    return bool(estimator.pixels == "pyramid")


def refuse_missing(purpose: str) -> NoReturn:
    """Raise an error: missing pixels are not for this purpose in a pyramid."""
    raise ValueError(
        f"X has missing values, NaN, which have no place in the {purpose} of a pyramid: the mean "
        "of a window needs all its pixels. Choose pixels='tiles', for which missing values are "
        "exact, and fit anew."
    )


def build(
    estimator: Any,
    shape: Shape,
    n_images: int,
    n_classes: int | None = None,
    device: str = "cpu",
    *,
    complete: bool = True,
) -> BaseStack:
    """Build the stack that an estimator asks for.

    `complete` says that no pixel is missing.

    Raises
    ------
    ValueError, TypeError
        If the layers do not fit, have more components than the images can feed, or fewer at the
        top than there are to be clusters; or if the pixels do not fit the images or the objective.
    """
    joint = estimator.objective == "joint"
    pyramid = _takes_pyramid(estimator, complete=complete)
    plan = _plan(estimator, shape, n_images, n_classes, pyramid=pyramid)
    layers = specs.lay_out(plan, shape, tiling=joint)
    mixtures = [layer for layer in layers if layer.is_mixture]
    for layer in mixtures:
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
    diagonal = mixtures[0].spec.covariance_type == "diag"
    if estimator.pixels == "auto":
        pyramid = pyramid and diagonal and len(mixtures) > 1
    elif pyramid and not diagonal:
        raise ValueError(
            f"{mixtures[0].name}__covariance_type must be 'diag' in a pyramid, whose details have "
            f"units of their own; got {mixtures[0].spec.covariance_type!r}. Or choose "
            "pixels='tiles'."
        )
    with torch.device(device):
        return Stack(layers, n_classes, pyramid=pyramid) if joint else LayerwiseStack(layers)


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
    largest = max(layer.n_components for layer in stack.mixtures.values())
    with computing(stack.like.device), torch.no_grad():
        n_starts = min(_N_STARTS, Images.batch_size(stack().numbers_per_image))
        n_starts = max(n_starts, 2 * largest)
        if data.shape[1:] == (1, 1):
            n_starts = max(n_starts, min(_N_ROWS, sample_size(data.shape)))
        n_units = n_starts if stack.pyramid is None else max(n_starts, sample_size(data.shape) // 5)
        generator = make_generator(rng)  # first, so that it does not depend on how many are drawn
        some = data.sample(n_units, rng, weighted=True)
        x = replace(some, rows=ranks.together(some.rows)).tensor(slice(None), stack.like)
        stack.set_units(count, mean, variance, x, reg_covar)
        stack.start(x[:n_starts], generator)
    ranks.start_alike(stack)
