"""The published model, trained layer by layer (Gepperth & Pfülb, 2021), and its architectures."""

from collections.abc import Callable
from typing import Any

from skdcgmm.model.specs import ConvGMM, MaxPool, NamedSpecs, name_layers
from skdcgmm.model.windows import Shape, Size, grid_size

# Architectures a-g of Gepperth & Pfülb (2021), for 28 x 28 pixels; a whole-input kernel is None.
PRESETS: dict[str, Callable[[], list[Any]]] = {
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


def preset(name: str, image_shape: Shape) -> NamedSpecs:
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
    return name_layers(layers)


def auto(image_shape: Shape, n_samples: int, n_clusters: int | None = None) -> NamedSpecs:
    """A stack for layer-wise training: overlapping windows as in architecture b.

    The top has as many components as clusters are asked for.
    """
    size: Size = image_shape[1:]
    most = max(1, n_samples // 15)
    if size == (1, 1):
        return name_layers([ConvGMM(n_clusters or min(8, most))])
    # Windows of two sevenths of each side, four of which overlap.
    kernel = (_auto_kernel(size[0]), _auto_kernel(size[1]))
    stride = (max(1, kernel[0] // 4), max(1, kernel[1] // 4))
    n_parts = 49 if kernel[0] * kernel[1] >= 49 else 25
    parts = ConvGMM(min(n_parts, n_samples), kernel, stride)
    return name_layers([parts, ConvGMM(n_clusters or min(49, most))])


def _auto_kernel(side: int) -> int:
    return min(side, max(3, round(side * 2 / 7)))
