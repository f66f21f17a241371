"""Images side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# Colour of missing pixels, which no gray is taken for.
_MISSING = (0.45, 0.6, 0.85)


def plot_images(
    X: ArrayLike,
    *,
    image_shape: tuple[int, ...],
    n_columns: int = 10,
    ax: Any = None,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Any:
    """Draw images side by side in one axes.

    Parameters
    ----------
    X : array-like of shape (n_images, n_features)
    image_shape : (int, int) or (int, int, int)
        Height, width and, if there are several, channels.
    n_columns : int, default=10
    ax : matplotlib Axes, default=None
        None makes a new figure.
    vmin, vmax : float, default=None
        Pixel values that are drawn black and white; values beyond are cut. None: the 1st and 99th
        percentile. Missing pixels, NaN, are drawn in blue.

    Returns
    -------
    matplotlib Axes
    """
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    height, width, channels = (*image_shape, 1)[:3]
    images = np.asarray(X, dtype=np.float64)
    shapes = [(height * width * channels,), (height, width, channels)]
    if channels == 1:
        shapes.append((height, width))
    if images.shape[1:] not in shapes:
        raise ValueError(
            f"X must hold images of shape {tuple(image_shape)}, or rows of their pixels; got an "
            f"array of shape {images.shape}."
        )
    if channels not in (1, 3, 4):
        raise ValueError(
            f"image_shape must have one channel, or three or four for colours; got {image_shape}. "
            "Rows of plain features are no images: fit with image_shape=(height, width)."
        )
    images = images.reshape(-1, height, width, channels)
    observed = images[~np.isnan(images)]
    low, high = np.percentile(observed, [1, 99]) if observed.size else (0.0, 1.0)
    low = low if vmin is None else vmin
    high = high if vmax is None else vmax
    # Where all pixels are alike, they are black.
    images = np.clip((images - low) / (high - low if high > low else np.inf), 0, 1)
    n_columns = min(n_columns, len(images))
    n_rows = -(-len(images) // n_columns)
    # One pixel of frame around each image, and empty cells after the last: beyond white.
    canvas = np.full((n_rows * (height + 1) + 1, n_columns * (width + 1) + 1, channels), 2.0)
    for i, image in enumerate(images):
        top, left = (i // n_columns) * (height + 1) + 1, (i % n_columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    if ax is None:
        _, ax = plt.subplots(figsize=(n_columns, n_rows), layout="constrained")
    if channels == 1:
        cmap = mpl.colormaps["gray"].with_extremes(bad=_MISSING, over="white")
        ax.imshow(canvas[..., 0], cmap=cmap, vmin=0, vmax=1, interpolation="nearest")
    else:
        missing = np.isnan(canvas).any(-1, keepdims=True)
        ax.imshow(
            np.where(missing, (*_MISSING, 1.0)[:channels], np.minimum(canvas, 1)),
            interpolation="nearest",
        )
    ax.set_axis_off()
    return ax
