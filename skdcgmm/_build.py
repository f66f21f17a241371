"""From specs and an image shape to a network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from skdcgmm._network import LayerwiseNetwork, Network
from skdcgmm._tree import JointNetwork
from skdcgmm._windows import Size
from skdcgmm.layers import (
    CategoricalEmission,
    EmissionFactory,
    FlooredGaussianEmission,
    Layer,
    LayerSpec,
    MixtureLayer,
    PoolLayer,
    Shape,
)

NamedSpecs = Sequence[tuple[str, LayerSpec]]


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
            _check_kind(name, layer)
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
    flat = n_mixtures == 1 and layers[0][1].kernel == image_shape[1:]
    network = (JointNetwork if joint or flat else LayerwiseNetwork)(layers)
    if joint:
        for mixture in list(network.mixtures.values())[:-1]:
            mixture.logits = None  # weights follow from the tables above
    return network


def _check_kind(name: str, layer: Layer) -> None:
    if not isinstance(layer, MixtureLayer | PoolLayer):
        raise ValueError(
            f"{name!r} is a {type(layer).__name__}, which a joint density has no part for: it "
            "knows of ConvGMM and MaxPool. Choose objective='layerwise'."
        )


def _check_tiling(name: str, layer: Layer) -> None:
    if layer.stride != layer.kernel and layer.kernel != layer.input_shape[1:]:
        raise ValueError(
            f"{name}__stride is {layer.stride} and the kernel {layer.kernel}: windows that do not "
            "tile have no joint density. Choose objective='layerwise', which the presets with "
            "overlapping windows are for, layers='auto', or layers that leave stride=None."
        )
