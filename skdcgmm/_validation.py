"""The border: arrays, devices and seeds from a user to torch and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, validate_data
from torch import Tensor

from skdcgmm._batch import Batch
from skdcgmm._gaussian import exact_products
from skdcgmm.layers import Shape

EXPECTED_X = (
    "X must be a dense array or data frame of real numbers, finite or NaN where missing, of shape "
    "(n_samples, n_features), (n_samples, height, width) or (n_samples, height, width, channels)."
)

FloatArray = NDArray[np.floating[Any]]

# Numbers in the tensors that a batch of predictions may fill: bounds the memory of predictions.
_BATCH_NUMBERS = 2**25


@dataclass(frozen=True)
class Images:
    """Rows of pixels that become tensors a batch at a time.

    Attributes
    ----------
    rows : ndarray of shape (n_samples, height * width * channels)
        Of any real type that float32 holds exactly, or float64.
    shape : (channels, height, width)
    row_shape : tuple of int
        Shape of an image as the user gave it.
    weight : ndarray of shape (n_samples,) or None
        Relative weights; None weighs all the same.
    y : ndarray of int of shape (n_samples,) or None
        Number of the class of each image, -1 where unknown.
    """

    rows: NDArray[Any]
    shape: Shape
    row_shape: tuple[int, ...]
    weight: FloatArray | None = None
    y: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dtype(self) -> torch.dtype:
        """The type to compute in: double precision for rows in double precision."""
        return torch.float64 if self.rows.dtype == np.float64 else torch.float32

    def take(self, index: NDArray[Any]) -> Images:
        """Some of the images."""
        weight = None if self.weight is None else self.weight[index]
        y = None if self.y is None else self.y[index]
        return replace(self, rows=self.rows[index], weight=weight, y=y)

    def hide(self, mask: NDArray[np.bool_]) -> Images:
        """The same with pixels missing where the mask (n_samples, features) is true."""
        if not mask.any():
            return self
        rows = self.rows.astype(np.float64 if self.dtype == torch.float64 else np.float32)
        rows[mask] = np.nan
        return replace(self, rows=rows)

    def tensor(self, index: slice | NDArray[np.integer[Any]], like: Tensor) -> Tensor:
        """Some images (N, C, H, W), copied, with the dtype and device of `like`."""
        channels, height, width = self.shape
        rows = torch.from_numpy(np.array(self.rows[index]))
        x = rows.to(like).view(-1, height, width, channels)  # (N, H, W, C)
        return x.permute(0, 3, 1, 2)  # (N, C, H, W)

    def batch(self, index: NDArray[np.integer[Any]], like: Tensor) -> Batch:
        """Some images to learn from, with the dtype and device of `like`."""
        x = self.tensor(index, like)
        weight = None if self.weight is None else torch.from_numpy(self.weight[index]).to(x)
        y = None if self.y is None else torch.from_numpy(self.y[index]).to(x.device)
        return Batch(x, weight, y, self._label_weight)

    @cached_property
    def _label_weight(self) -> float:
        """Number of images that a label stands for, by weight."""
        if self.y is None:
            return 1.0
        weight = np.ones(len(self)) if self.weight is None else self.weight
        return float(weight.sum() / weight[self.y >= 0].sum())

    @staticmethod
    def batch_size(numbers_per_image: int) -> int:
        """Number of images whose passes through a network fill a bounded memory."""
        return max(1, _BATCH_NUMBERS // numbers_per_image)

    def slices(self, size: int) -> Iterator[slice]:
        """Consecutive slices of at most `size` images."""
        return (slice(start, start + size) for start in range(0, len(self), size))

    def moments(self, *, by_feature: bool) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of the observed values, in double precision.

        Of each feature, of shape (features, 1, 1), or over all of them, of shape ().
        """
        axis, shape = (0, (-1, 1, 1)) if by_feature else (None, ())
        parts = [self.rows[part] for part in self.slices(1000)]
        count = sum(np.sum(~np.isnan(part), axis=axis) for part in parts)
        count = np.maximum(count, 1)  # nothing observed: mean and variance are 0
        mean = sum(np.nansum(part, axis=axis, dtype=np.float64) for part in parts) / count
        squares = sum(
            np.nansum(np.square(np.subtract(part, mean, dtype=np.float64)), axis=axis)
            for part in parts
        )
        return np.reshape(mean, shape), np.reshape(squares / count, shape)

    def map(
        self, function: Callable[[Tensor], Tensor], like: Tensor, numbers_per_image: int
    ) -> NDArray[Any]:
        """Apply a function of image tensors (N, C, H, W) in batches of bounded memory.

        Real values are answered in the type to compute in.
        """
        slices = self.slices(self.batch_size(numbers_per_image))
        with torch.no_grad(), exact_products(like.device):
            values = torch.cat([function(self.tensor(part, like)).cpu() for part in slices])
        return (values.to(self.dtype) if values.is_floating_point() else values).numpy()


def check_images(
    estimator: BaseEstimator, X: Any, image_shape: Shape | None, *, reset: bool
) -> Images:
    """Validate X as scikit-learn does, and give it the form of images.

    Parameters
    ----------
    estimator : BaseEstimator
        Whose `n_features_in_` is set (`reset`) or compared.
    X : array-like or Tensor
    image_shape : (channels, height, width) or None
        None: from the shape of X; rows are images of one pixel with n_features channels.
    reset : bool
        Whether this is the data that the estimator learns its features from.

    Raises
    ------
    ValueError, TypeError
        If X cannot be such an array.
    """
    if isinstance(X, Tensor):
        X = (X.float() if X.dtype == torch.bfloat16 else X).detach().cpu().numpy()
    try:
        if not hasattr(X, "ndim"):
            X = np.asarray(X)
        row_shape = None
        if X.ndim in (3, 4):
            X = np.asarray(X)
            row_shape = X.shape[1:]
            image_shape = _check_trailing(row_shape, image_shape)
            X = X.reshape(len(X), -1)
        rows = validate_data(
            estimator,
            X,
            # Small types stay as they are until a batch is made of them.
            dtype=None if _exact_in_float32(X) else np.float64,
            reset=reset,
            ensure_all_finite="allow-nan",
            ensure_min_samples=2 if reset else 1,
        )
    except (ValueError, TypeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{error} {EXPECTED_X}") from error
    if reset and rows.dtype.kind == "f" and np.isnan(rows).all():
        raise ValueError("X has no observed value: all are NaN. Give images of which some is seen.")
    shape = image_shape or (rows.shape[1], 1, 1)
    if rows.shape[1] != shape[0] * shape[1] * shape[2]:
        raise ValueError(
            f"image_shape={_as_user_shape(shape)} asks for {shape[0] * shape[1] * shape[2]} "
            f"features a row; X has {rows.shape[1]}. Give image_shape the height, width (and "
            "channels) of your images, or None for plain features."
        )
    return Images(rows, shape, row_shape or rows.shape[1:])


def check_image_shape(value: object) -> Shape | None:
    """The parameter `image_shape` as (channels, height, width)."""
    if value is None:
        return None
    if not isinstance(value, tuple | list) or len(value) not in (2, 3):
        raise ValueError(
            "image_shape must be (height, width), (height, width, channels) or None; "
            f"got {value!r}."
        )
    if any(isinstance(side, bool) or not hasattr(side, "__index__") or side < 1 for side in value):
        raise ValueError(f"image_shape must hold positive integers; got {value!r}.")
    height, width, channels = (*value, 1)[:3]
    return int(channels), int(height), int(width)


def _as_user_shape(shape: Shape) -> tuple[int, int, int]:
    return shape[1], shape[2], shape[0]


def _check_trailing(trailing: tuple[int, ...], image_shape: Shape | None) -> Shape | None:
    shape = check_image_shape(trailing) if 0 not in trailing else None
    if image_shape is not None and shape != image_shape:
        raise ValueError(
            f"X has images of shape {trailing}, but image_shape (height, width, channels) is "
            f"{_as_user_shape(image_shape)}."
        )
    return shape


def _exact_in_float32(X: object) -> bool:
    """Whether X is of a type that float32 holds exactly."""
    dtype = getattr(X, "dtype", None)
    if not isinstance(dtype, np.dtype) or not dtype.isnative:
        return False
    return dtype != np.float64 and np.can_cast(dtype, np.float32)


def check_weights(sample_weight: Any, images: Images) -> Images:
    """The images that have a positive weight, with their weights, scaled to a mean of 1.

    Without weights if `sample_weight` is None, or if all weigh the same.

    Raises
    ------
    ValueError
        If they are not one non-negative number an image, or all are zero.
    """
    if sample_weight is None:
        return images
    weight: FloatArray = _check_sample_weight(
        sample_weight, images.rows, dtype=np.float64, ensure_non_negative=True
    )
    if not weight.any():
        raise ValueError("sample_weight must have a positive sum; all weights are zero.")
    kept = weight > 0
    seen = images if kept.all() else images.take(kept)
    weight = weight[kept] / weight.max()  # in two steps: the sum might overflow
    return seen if np.ptp(weight) == 0 else replace(seen, weight=weight / weight.mean())


def answer(X: object, values: NDArray[Any]) -> Any:
    """The values as a tensor beside X where X is a tensor."""
    return torch.from_numpy(values).to(X.device) if isinstance(X, Tensor) else values


def check_device(device: Any) -> torch.device:
    """The parameter `device` as a device that is there.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(
            f"device must be 'auto', 'cpu', or a GPU that torch finds here, such as 'cuda' or "
            f"'cuda:0'; got {device!r} ({error})."
        ) from error
    return chosen


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that a parameter is one of some strings.

    Raises
    ------
    ValueError
        Naming the parameter, the choices and the value.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {value!r}.")


def check_number(
    name: str,
    value: Any,
    *,
    low: float,
    high: float = float("inf"),
    integer: bool = False,
    open_low: bool = False,
    closed_high: bool = False,
    optional: str = "",
) -> None:
    """Check that a parameter is a number in its range; `optional` says what None means.

    Raises
    ------
    TypeError, ValueError
        Naming the parameter, the range and the value.
    """
    if value is None and optional:
        return
    kind = "an integer" if integer else "a number"
    bounds = f"{'>' if open_low else '>='} {low}" + (
        f" and {'<=' if closed_high else '<'} {high}" if high < np.inf else ""
    )
    expected = f"{name} must be {kind} {bounds}" + (f", or None ({optional})" if optional else "")
    types = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, types):
        raise TypeError(f"{expected}; got {value!r}.")
    inside = (low < value if open_low else low <= value) and (
        value <= high if closed_high else value < high
    )
    if not inside:
        raise ValueError(f"{expected}; got {value!r}.")


def check_mask(mask: Any, images: Images) -> NDArray[np.bool_]:
    """A mask of missing pixels as rows, (n_samples, features); None hides nothing."""
    if mask is None:
        return np.zeros(images.rows.shape, dtype=bool)
    if isinstance(mask, Tensor):
        mask = mask.cpu()
    hidden: NDArray[np.bool_] = np.asarray(mask)
    if hidden.dtype != bool:
        raise TypeError(f"mask must hold booleans, true where X is missing; got {hidden.dtype}.")
    expected = (len(images), *images.row_shape)
    if hidden.shape not in (expected, images.rows.shape):
        raise ValueError(f"mask must have the shape of X, {expected}; got {hidden.shape}.")
    return hidden.reshape(images.rows.shape)


def make_generator(random_state: Any, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded from a scikit-learn `random_state`."""
    seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
    return torch.Generator(device=device).manual_seed(seed)
