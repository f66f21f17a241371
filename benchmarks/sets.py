"""Sets of images in npz files, read in one way."""

import os
from pathlib import Path

import numpy as np
from scipy.ndimage import zoom
from sklearn.utils import Bunch

from skdcgmm.datasets import load_images

# Sets whose images are made square, of this side.
SIDES = {"att_faces": 64}


def read(name, data_home=None):
    """Images as rows in 0-1, labels, and masks of defects where there are some.

    Without test images of its own, all images of a set are both. Sets without a file are those of
    `load_images`.
    """
    parts = arrays(name, data_home)
    if parts is None:
        return load_images(name, data_home=data_home)
    X, y = parts["X_train"], parts.get("y_train")
    masks = [parts[key] > 0 for key in ("mask_test", "boxmask_test") if key in parts]
    return Bunch(
        X_train=rows(X), y_train=labels(y),
        X_test=rows(parts.get("X_test", X)), y_test=labels(parts.get("y_test", y)),
        image_shape=X.shape[1:], mask=masks[0] if masks else None,
    )  # fmt: skip


def arrays(name, data_home=None):
    """The arrays of FOLDER/NAME.npz as they are, images of bytes; None if there is no such file."""
    home = data_home if data_home is not None else os.environ.get("SKDCGMM_DATA", ".")
    path = Path(home) / f"{name}.npz"
    if not path.is_file():
        return None
    with np.load(path) as file:
        parts = {{"X": "X_train", "y": "y_train"}.get(key, key): file[key] for key in file}
    if name in SIDES:
        parts["X_train"] = squared(parts["X_train"], SIDES[name])
    return parts


def squared(X, side):
    small = zoom(X.astype(np.float32), (1, side / X.shape[1], side / X.shape[2]), order=1)
    return small.clip(0, 255).astype(np.uint8)


def rows(X):
    return X.reshape(len(X), -1).astype(np.float32) / np.float32(255)


def labels(y):
    return None if y is None else y.astype(np.int64)
