"""Pictures of images; matplotlib is imported only here, and only when something is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["plot_images"]


def plot_images(
    X: ArrayLike,
    *,
    image_shape: tuple[int, ...],
    n_columns: int = 10,
    ax: Any = None,
    vmin: float = 0.0,
    vmax: float = 1.0,
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
    vmin, vmax : float, default=0.0, 1.0
        Pixel values that are drawn black and white; values beyond are cut.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    import matplotlib.pyplot as plt

    height, width, channels = (*image_shape, 1)[:3]
    images = np.asarray(X, dtype=np.float64).reshape(-1, height, width, channels)
    n_columns = min(n_columns, len(images))
    n_rows = -(-len(images) // n_columns)
    # One pixel of frame around each image, and empty cells after the last.
    canvas = np.full((n_rows * (height + 1) + 1, n_columns * (width + 1) + 1, channels), np.nan)
    for i, image in enumerate(images):
        top, left = (i // n_columns) * (height + 1) + 1, (i % n_columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    canvas = np.clip((canvas - vmin) / (vmax - vmin), 0, 1)
    if ax is None:
        _, ax = plt.subplots(figsize=(n_columns, n_rows))
    if channels == 1:
        ax.imshow(canvas[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        ax.imshow(np.nan_to_num(canvas, nan=1.0), interpolation="nearest")
    ax.set_axis_off()
    return ax
