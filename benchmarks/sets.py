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

    Without test images of its own, all images of a set are both. FOLDER/NAME.npz holds bytes as
    X_train (or X), X_test, and labels and masks beside them; other sets are those of `load_images`.
    """
    home = data_home if data_home is not None else os.environ.get("SKDCGMM_DATA", ".")
    path = Path(home) / f"{name}.npz"
    if not path.is_file():
        return load_images(name, data_home=data_home)
    with np.load(path) as arrays:
        parts = dict(arrays)
    X = squared(parts.get("X_train", parts.get("X")), SIDES.get(name))
    y = parts.get("y_train", parts.get("y"))
    masks = [parts[key] > 0 for key in ("mask_test", "boxmask_test") if key in parts]
    return Bunch(
        X_train=rows(X), y_train=labels(y),
        X_test=rows(parts.get("X_test", X)), y_test=labels(parts.get("y_test", y)),
        image_shape=X.shape[1:], mask=masks[0] if masks else None,
    )  # fmt: skip


def squared(X, side):
    if side is None:
        return X
    small = zoom(X.astype(np.float32), (1, side / X.shape[1], side / X.shape[2]), order=1)
    return small.clip(0, 255).astype(np.uint8)


def rows(X):
    return X.reshape(len(X), -1).astype(np.float32) / np.float32(255)


def labels(y):
    return None if y is None else y.astype(np.int64)
