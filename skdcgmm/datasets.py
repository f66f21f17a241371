"""Image data sets for examples, tests and benchmarks."""

import gzip
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import fetch_openml, load_digits
from sklearn.utils import Bunch

__all__ = ["load_images"]

# Names on OpenML of the data sets of 28 x 28 pixels; their last 10 000 images are for tests.
_OPENML = {"mnist": "mnist_784", "fashion_mnist": "Fashion-MNIST"}
_N_TEST = 10_000
# The last digits of scikit-learn's bundled set, by other writers, are for tests.
_N_TEST_DIGITS = 360

# The arrays of a set, and the idx files that hold them.
_FILES = {
    "X_train": "train-images-idx3-ubyte", "y_train": "train-labels-idx1-ubyte",
    "X_test": "t10k-images-idx3-ubyte", "y_test": "t10k-labels-idx1-ubyte",
}  # fmt: skip

Parts = dict[str, NDArray[Any]]


def load_images(name: str = "digits", *, data_home: str | Path | None = None) -> Bunch:
    """Load a labelled set of images.

    Parameters
    ----------
    name : {"digits", "mnist", "fashion_mnist"}, default="digits"
        "digits" (8 x 8 pixels, 1797 images) comes with scikit-learn. The others (28 x 28 pixels,
        70 000 images) are read from local files, else fetched from OpenML; scikit-learn keeps
        those in its own folder, `sklearn.datasets.get_data_home()`.
    data_home : str or Path, default=None
        Folder that holds `mnist.npz` (with arrays X_train, y_train, X_test, y_test), or a folder
        `mnist`, or itself, with the four idx files of the set, gzipped or not; for the other set
        likewise. None is the environment variable `SKDCGMM_DATA`.

    Returns
    -------
    Bunch
        `X_train`, `X_test`: float32 arrays of shape (n_samples, n_features), pixels in 0-1;
        `y_train`, `y_test`: int64 arrays of class labels; `image_shape`: (height, width).

    Raises
    ------
    ValueError
        If the name is unknown.
    FileNotFoundError
        If there is no local file and the set cannot be fetched.

    Examples
    --------
    >>> from skdcgmm.datasets import load_images
    >>> load_images("digits").X_train.shape
    (1437, 64)
    """
    if name == "digits":
        X, y = load_digits(return_X_y=True)
        return _bunch(_split(X, y, _N_TEST_DIGITS), 16)
    if name not in _OPENML:
        raise ValueError(f"name must be one of {('digits', *_OPENML)}; got {name!r}.")
    home = data_home if data_home is not None else os.environ.get("SKDCGMM_DATA")
    parts = (_read_npz(Path(home), name) or _read_idx(Path(home), name)) if home else None
    return _bunch(parts or _fetch(name, home), 255)


def _split(X: Any, y: Any, n_test: int) -> Parts:
    """Arrays by their names, the last images for tests."""
    return dict(zip(_FILES, (X[:-n_test], y[:-n_test], X[-n_test:], y[-n_test:]), strict=True))


def _bunch(parts: Parts, maximum: int) -> Bunch:
    side = math.isqrt(math.prod(parts["X_train"].shape[1:]))
    arrays: Parts = {name: values.astype(np.int64) for name, values in parts.items()}
    for name in ("X_train", "X_test"):
        pixels = parts[name].reshape(len(parts[name]), -1).astype(np.float32)
        arrays[name] = pixels / np.float32(maximum)
    return Bunch(**arrays, image_shape=(side, side))


def _read_npz(home: Path, name: str) -> Parts | None:
    path = home / f"{name}.npz"
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        return {key: arrays[key] for key in _FILES}


def _read_idx(home: Path, name: str) -> Parts | None:
    for folder in (home / name, home):
        paths = [_idx_path(folder, file) for file in _FILES.values()]
        if all(paths):
            return {key: _parse_idx(path) for key, path in zip(_FILES, paths, strict=True) if path}
    return None


def _idx_path(folder: Path, file: str) -> Path | None:
    return next((p for p in (folder / file, folder / f"{file}.gz") if p.is_file()), None)


def _parse_idx(path: Path) -> NDArray[np.uint8]:
    """Parse an idx file of bytes: magic 0, 0, 8, n_dims, then big-endian sizes, then the values."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no idx file of unsigned bytes.")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(tuple(shape))


def _fetch(name: str, home: str | Path | None) -> Parts:
    try:
        X, y = fetch_openml(_OPENML[name], version=1, return_X_y=True, as_frame=False)
    except Exception as error:
        raise FileNotFoundError(
            f"name={name!r} was not found: neither {name}.npz nor its idx files are in "
            f"data_home={home!r}, and OpenML could not be reached ({error}). Give data_home, or "
            f"set the environment variable SKDCGMM_DATA to, a folder that holds {name}.npz."
        ) from error
    return _split(X, y.astype(np.uint8), _N_TEST)
