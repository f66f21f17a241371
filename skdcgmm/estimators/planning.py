"""From parameters and images to a stack that training can begin with."""

import math
import warnings
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
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

# Rows that are looked at for pixels or units, and the least side of images that would be taken for
# pixels.
_N_LOOKED_AT, _LEAST_SIDE = 100, 8
_MAX_PIXEL = 2**16 - 1

# Images of a first chunk below which a stream is warned.
_FIRST_CHUNK = 60
# A later chunk is of other units than the first if a pixel of the images that are looked at varies
# by this many times as much.
_OTHER_UNITS = 10.0
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
    if stack.tiling:
        return {"pyramid": joint.PYRAMID, "atoms": joint.ATOMS}.get(stack.kind, joint.JOINT)
    return OBJECTIVES["layerwise"]


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
    estimator: Any,
    shape: Shape,
    n_images: int,
    n_classes: int | None,
    pixels: str,
    *,
    stream: bool,
) -> NamedSpecs:
    """The layers that the parameters of an estimator ask for."""
    layers = estimator.layers
    if is_auto(estimator):
        if estimator.objective == "joint":
            return specs.auto(
                shape, n_images, estimator.n_clusters, n_classes=n_classes, pixels=pixels,
                stream=stream,
            )  # fmt: skip
        return published.auto(shape, n_images, estimator.n_clusters)
    if isinstance(layers, str):
        return published.preset(layers, shape)
    reserved = set(estimator.get_params(deep=False))
    return [(name, clone(spec)) for name, spec in specs.check_layers(layers, reserved)]


def kinds_of(estimator: Any, shape: Shape, *, complete: bool = True) -> tuple[str, ...]:
    """The kinds of pixels that an estimator may have; of several, held-out images choose.

    The first is that of very many images, the last that of few.
    """
    kind: str = estimator.pixels
    if kind == "auto":
        free = is_auto(estimator) and estimator.reg_covar is None and shape[1:] != (1, 1)
        if estimator.objective != "joint" or not free or not estimator._chooses_pixels:
            return ("tiles",)
        # Clusters are best seen from coarse to fine.
        coarse = "pyramid" if complete else "tiles"
        return ("atoms", coarse) if estimator.n_clusters is None else (coarse,)
    if kind != "tiles" and estimator.objective != "joint":
        raise ValueError(
            f"pixels={kind!r} needs one density, which a layer-wise stack is not: choose "
            "objective='joint', or pixels='tiles'."
        )
    if kind == "pyramid" and not complete:
        refuse_missing("training")
    if kind == "atoms" and shape[1:] == (1, 1):
        raise ValueError(
            "pixels='atoms' is for images, and the rows of X are plain features. Give their "
            "image_shape=(height, width), or choose pixels='tiles'."
        )
    return (kind,)


def warn_of_pixels(rows: NDArray[Any]) -> None:
    """Warn if features are as many as the pixels of a square, and whole numbers as theirs are."""
    n_features = rows.shape[1]
    gray, colour = math.isqrt(n_features), math.isqrt(n_features // 3)
    shapes = [
        shape for shape in ((gray, gray), (colour, colour, 3)) if math.prod(shape) == n_features
    ]
    if not shapes or shapes[0][0] < _LEAST_SIDE:
        return
    some = rows[np.linspace(0, len(rows) - 1, _N_LOOKED_AT).astype(int)]
    some = some[~np.isnan(some)].astype(np.float64)
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


def goes_on(estimator: Any, stack: BaseStack) -> bool:
    """Whether a warm start goes on with the earlier stack; a warning if it cannot."""
    if not (estimator.warm_start and hasattr(estimator, "_stack")):
        return False
    if _is_asked_for(estimator, stack, estimator._stack):
        return True
    warnings.warn(
        "warm_start=True, but layers, pixels, objective or the shape of the images are no longer "
        "those of the earlier fit: the stack starts anew, and nothing of that fit goes on. Set "
        "them back to go on, or warm_start=False.",
        stacklevel=5,
    )
    return False


def _is_asked_for(estimator: Any, stack: BaseStack, earlier: BaseStack) -> bool:
    """Whether an earlier stack is what the parameters ask for.

    One that "auto" has chosen for another number of images is, if it can be merged into as many
    clusters as now; but a flat mixture has just as many components.
    """
    if not is_auto(estimator):
        return stack.same_layers(earlier)
    n_clusters, n_found = estimator.n_clusters or 1, earlier.top.n_components
    enough = n_found >= n_clusters if len(stack.names) > 1 else n_found == stack.top.n_components
    return enough and stack.same_layers(earlier, n_components=False)


def check_joint(stack: BaseStack, purpose: str) -> None:
    """Raise an error if a stack is not one density."""
    if not stack.is_density:
        raise ValueError(
            f"{purpose} needs one density over images, which a stack of several layers has "
            "only if it is trained as one: choose objective='joint'. For a layer-wise stack, "
            "choose score_method='layer', and give a grid search a scoring, such as "
            "'adjusted_rand_score' with known labels y."
        )


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
    pixels: str,
    stream: bool = False,
) -> BaseStack:
    """Build the stack that an estimator asks for, with a kind of pixels.

    `stream` says that more images are to come.

    Raises
    ------
    ValueError, TypeError
        If the layers do not fit, have more components than the images can feed, or fewer at the
        top than there are to be clusters; or if the pixels do not fit the images or the objective.
    """
    joint = estimator.objective == "joint"
    plan = _plan(estimator, shape, n_images, n_classes, pixels, stream=stream)
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
    covariance_type = mixtures[0].spec.covariance_type
    if estimator.pixels == "auto" and pixels == "pyramid" and len(mixtures) == 1:
        pixels = "tiles"
    if pixels != "tiles" and covariance_type != "diag":
        raise ValueError(
            f"{mixtures[0].name}__covariance_type must be 'diag' for pixels={pixels!r}; got "
            f"{covariance_type!r}. Or choose pixels='tiles'."
        )
    with torch.device(device):
        return Stack(layers, n_classes, pixels=pixels) if joint else LayerwiseStack(layers)


def check_first_chunk(estimator: Any, data: Images) -> bool:
    """Warn if a stream begins with images that tell too little of those to come.

    Returns whether they tell its units.
    """
    varies = any(moments.variance.any() for moments in ranks.gather(data.moments()))
    n_images = ranks.total(len(data))
    if not varies:
        warnings.warn(
            "X holds the same image many times, which gives a stream no units: the next chunk "
            "will start the stack anew. Begin with images that differ.",
            stacklevel=5,
        )
    elif is_auto(estimator) and data.shape[1:] != (1, 1) and n_images < _FIRST_CHUNK:
        warnings.warn(
            f"The stack of a stream is planned by its first chunk, and starts from it: of "
            f"{n_images} images, no layer can have more than {n_images} components. Begin with "
            "more images, some hundreds or thousands, or give layers.",
            stacklevel=5,
        )
    return varies


def check_units(stack: BaseStack, images: Images) -> None:
    """Warn if a chunk varies by far more than that by which a stream's units were set."""
    some = images.take(np.arange(min(len(images), _N_LOOKED_AT)))
    deviation = np.sqrt(some.moments().variance).reshape(-1, images.shape[0])  # (H * W, C)
    scale = stack.scale.double().expand(images.shape[0], 1, 1).flatten().numpy(force=True)
    if (deviation > _OTHER_UNITS * scale).any():
        warnings.warn(
            "X varies by far more than the first chunk of the stream, which has set the units and "
            "the bounds of the variances: what follows is learnt badly. Begin anew with images "
            "that vary as these do.",
            stacklevel=5,
        )


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
        n_units = max(n_starts, sample_size(data.shape) // 5)
        generator = make_generator(rng)  # first, so that it does not depend on how many are drawn
        some = data.sample(n_units, rng, weighted=True)
        x = replace(some, rows=ranks.together(some.rows)).tensor(slice(None), stack.like)
        stack.set_units(count, mean, variance, x, reg_covar)
        stack.start(x[:n_starts], generator)
    ranks.start_alike(stack)
