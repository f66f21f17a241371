"""Ready-made stacks: the published architectures, and a choice by image size."""

from __future__ import annotations

from collections.abc import Callable

from skdcgmm._windows import Size, grid_size
from skdcgmm.layers import ConvGMM, LayerSpec, MaxPool, Shape

# Architectures a-g of Gepperth & Pfülb (2021), for 28 x 28 pixels; a whole-input kernel is None.
PRESETS: dict[str, Callable[[], list[LayerSpec]]] = {
    "dcgmm-a": lambda: [ConvGMM(49)],
    "dcgmm-b": lambda: [ConvGMM(49, 8, 2), ConvGMM(49)],
    "dcgmm-c": lambda: [ConvGMM(49, 8, 1), MaxPool(2), ConvGMM(49)],
    "dcgmm-d": lambda: [
        ConvGMM(25, 3, 1), MaxPool(2), ConvGMM(25, 4, 1), MaxPool(2), ConvGMM(25),
    ],
    "dcgmm-e": lambda: [ConvGMM(25, 3, 1), ConvGMM(25, 4, 2), ConvGMM(49)],
    "dcgmm-f": lambda: [ConvGMM(25, 3, 1), ConvGMM(25, 4, 2), ConvGMM(25, 4, 2), ConvGMM(49)],
    "dcgmm-g": lambda: [
        ConvGMM(25, 3, 1), MaxPool(2), ConvGMM(25, 3, 1), MaxPool(2), ConvGMM(25, 3, 1), MaxPool(2),
        ConvGMM(49),
    ],
}  # fmt: skip


def preset(name: str, image_shape: Shape) -> list[LayerSpec]:
    """The layers of a published architecture, its kernels cut to what is left of a small image.

    Raises
    ------
    ValueError
        If there is no preset of that name.
    """
    if name not in PRESETS:
        raise ValueError(
            f"layers={name!r} is no known stack. Choose 'auto', one of {', '.join(PRESETS)}, or "
            "give a list of layers such as [ConvGMM(50, kernel_size=4, shared=False), ConvGMM(50)]."
        )
    layers = PRESETS[name]()
    size = image_shape[1:]
    if size == (1, 1) and len(layers) > 1:
        raise ValueError(
            f"layers={name!r} is a stack for images, but X has plain features. If its rows are "
            "images, give their image_shape=(height, width)."
        )
    for layer in layers:
        if layer.kernel_size is not None:
            kernel = (min(layer.kernel_size, size[0]), min(layer.kernel_size, size[1]))
            stride = kernel if layer.stride is None else (layer.stride, layer.stride)
            layer.set_params(kernel_size=kernel)
            size = grid_size(size, kernel, stride)
    return layers


def auto(image_shape: Shape, n_samples: int) -> list[LayerSpec]:
    """A stack of one density for images of this shape; a flat mixture for plain features.

    Tiles of four pixels, then windows of two by two until few are left, then the top. Fewer
    components where they would see less than 15 images on average. The wider a window, the more
    there is to tell apart: the upper layers have the more components.
    """
    size: Size = image_shape[1:]
    n_clusters = max(1, n_samples // 15)
    if size == (1, 1):
        return [ConvGMM(min(8, n_clusters))]
    tile = (min(4, size[0]), min(4, size[1]))
    if tile == size:
        return [ConvGMM(min(100, n_clusters))]
    layers: list[LayerSpec] = [ConvGMM(min(100, n_clusters), tile, shared=False)]
    size = grid_size(size, tile, tile)
    while max(size) > 2:
        kernel = (min(2, size[0]), min(2, size[1]))
        size = grid_size(size, kernel, kernel)
        n_parts = 100 if max(size) > 2 else 200
        layers.append(ConvGMM(min(n_parts, n_clusters), kernel, shared=False))
    return [*layers, ConvGMM(min(400, n_clusters))]


def auto_layerwise(image_shape: Shape, n_samples: int) -> list[LayerSpec]:
    """The same for layer-wise training: overlapping windows as in architecture b."""
    size: Size = image_shape[1:]
    n_clusters = max(1, n_samples // 15)
    if size == (1, 1):
        return [ConvGMM(min(8, n_clusters))]
    # Windows of two sevenths of each side, four of which overlap.
    kernel = (_auto_kernel(size[0]), _auto_kernel(size[1]))
    stride = (max(1, kernel[0] // 4), max(1, kernel[1] // 4))
    n_parts = 49 if kernel[0] * kernel[1] >= 49 else 25
    return [ConvGMM(min(n_parts, n_samples), kernel, stride), ConvGMM(min(49, n_clusters))]


def _auto_kernel(side: int) -> int:
    return min(side, max(3, round(side * 2 / 7)))
