"""The border: arrays, labels, devices and seeds from a user to torch and back."""

import math
import numbers
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.base import BaseEstimator
from sklearn.utils import (
    assert_all_finite,
    check_consistent_length,
    column_or_1d,
)
from sklearn.utils._missing import is_pandas_na, is_scalar_nan
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from skdcgmm.analysis.spreading import spread_labels
from skdcgmm.data import Data, FloatArray, Images, Stream, as_array, is_stream
from skdcgmm.data.images import blocks, is_complete
from skdcgmm.model import ordinary_tensors
from skdcgmm.model.specs import check_bool, check_number
from skdcgmm.model.windows import Shape
from skdcgmm.training import ranks

Seed = int | RandomState | None

# Devices of torch on which no stack can be, and why.
_NO_DEVICES = {
    "meta": "it holds no numbers",
    "mps": "it has no double precision, which training needs: choose device='cpu'",
}

EXPECTED_X = (
    "X must be a dense array or data frame of real numbers, finite or NaN where missing, of shape "
    "(n_samples, n_features), (n_samples, height, width) or (n_samples, height, width, channels)."
)


def read_images(
    estimator: Any,
    X: Any,
    sample_weight: Any,
    labels: NDArray[np.int64] | None,
    batch_size: int,
    rng: RandomState,
) -> tuple[Images | None, Data]:
    """All images, None if they come in batches; and those to train on, with labels.

    Parameters
    ----------
    estimator : BaseDCGMM
    X, sample_weight : Any
        As for `fit`.
    labels : ndarray of int of shape (n_samples,) or None
        Numbers of classes, -1 where unknown; they spread to images like those that have one.
    batch_size : int
        For a dataset.
    rng : RandomState
    """
    image_shape = check_image_shape(estimator.image_shape)
    if labels is None and is_stream(X):
        if sample_weight is not None:
            raise ValueError(
                "sample_weight must be None for X that comes in batches; weights need an array."
            )
        read = partial(check_batch, estimator, image_shape)
        stream = Stream(X, read, batch_size, rng)
        ranks.check_together(stream)
        return None, stream
    images = check_images(estimator, X, image_shape, reset=True, min_samples=2)
    if labels is not None:
        check_consistent_length(images.rows, labels)
    data = check_weights(sample_weight, replace(images, y=labels))
    if data.y is not None:
        if not any(ranks.gather((data.y >= 0).any())):
            raise ValueError("sample_weight must leave some labelled image a weight; all are zero.")
        data = spread_labels(data, rng, check_device(estimator.device))
    return images, data


def read_judge(estimator: Any, shape: Shape, X_val: Any, y_val: Any) -> Images | None:
    """Images of the user's own by which progress is judged, if there are some.

    Raises
    ------
    ValueError, TypeError
        If they are not like those of X, or not in all processes, or a share of X judges, too.
    """
    given = ranks.gather(X_val is not None)
    if len(set(given)) > 1:
        raise ValueError(f"X_val must be given in all processes, or in none; got {given}.")
    if X_val is None:
        if y_val is not None:
            raise ValueError("y_val must be None where X_val is: it holds the classes of those.")
        return None
    if isinstance(estimator.validation_fraction, numbers.Real):
        raise ValueError(
            "validation_fraction must be None where X_val is given: progress is judged by these "
            f"images or by a share of X, not both; got {estimator.validation_fraction!r}."
        )
    try:
        judge = check_images(estimator, X_val, shape, reset=False)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"X_val must be images like those of X: {error}") from error
    if y_val is None:
        return judge
    labels = estimator._numbers(y_val, "y_val")
    check_consistent_length(judge.rows, labels)
    return replace(judge, y=labels)


def check_images(
    estimator: BaseEstimator,
    X: Any,
    image_shape: Shape | None,
    *,
    reset: bool,
    min_samples: int = 1,
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
    min_samples : int
        Least number of images.

    Raises
    ------
    ValueError, TypeError
        If X cannot be such an array.
    """
    X = as_array(X, "X")
    if isinstance(X, Dataset | DataLoader):
        raise TypeError(
            f"X must be an array here; got {type(X).__name__}. Only fit, without classes, takes "
            "data loaders and datasets: give an array of their images, or each batch."
        )
    try:
        if not (hasattr(X, "ndim") or _is_frame(X)):
            rows = isinstance(X, list | tuple)
            X = np.asarray([as_array(row, "X") for row in X] if rows else X)
        if np.ma.is_masked(X):
            X = X.astype(np.result_type(X.dtype, np.float32)).filled(np.nan)
        n_axes = getattr(X, "ndim", 2)
        if n_axes > 4:
            raise ValueError(f"Found X with {n_axes} dimensions; 2, 3 or 4 are expected")
        row_shape = None
        if image_shape is not None:
            _check_several(tuple(X.shape), image_shape)
        if n_axes in (3, 4):
            X = np.asarray(X)
            row_shape = X.shape[1:]
            image_shape = _check_trailing(row_shape, image_shape)
            X = X.reshape(len(X), -1)
        with config_context(array_api_dispatch=False):
            rows = validate_data(
                estimator,
                X,
                # These types stay as they are until a batch is made of them.
                dtype=None if _stays(X) else np.float64,
                reset=reset,
                ensure_all_finite=False,
                ensure_min_samples=min_samples,
            )
        complete = is_complete(rows)
    except (ValueError, TypeError) as error:
        says_all = ("expecting", "feature names", "X[None]")
        if any(part in str(error) for part in says_all):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{str(error).rstrip('.')}. {EXPECTED_X}") from error
    if reset and not complete and all(np.isnan(block).all() for block in blocks(rows)):
        raise ValueError("X has no observed value: all are NaN. Give images of which some is seen.")
    shape = image_shape or (rows.shape[1], 1, 1)
    _check_size(shape, rows.shape[1], known=not reset)
    return Images(rows, shape, row_shape or rows.shape[1:], complete=complete)


def check_batch(
    estimator: BaseEstimator, image_shape: Shape | None, batch: Any, first: bool
) -> Images:
    """Validate a batch of a data loader; its images may have their channels first, as in torch.

    Raises
    ------
    ValueError, TypeError
        If the batch is no array or tensor of images, or they are not of `image_shape`.
    """
    if not hasattr(batch, "ndim"):
        raise TypeError(
            "X must have batches that are arrays or tensors of images, or tuples that begin with "
            f"one; got a batch of type {type(batch).__name__}. Take the images out of it, as in "
            "the collate_fn of a DataLoader."
        )
    shape = tuple(batch.shape[1:])
    if image_shape is not None and shape == image_shape and shape != _as_user_shape(image_shape):
        batch = batch.movedim(1, -1) if isinstance(batch, Tensor) else np.moveaxis(batch, 1, -1)
    return check_images(estimator, batch, image_shape, reset=first)


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


def _check_size(shape: Shape, n_features: int, *, known: bool) -> None:
    """Raise an error if rows are not of an image shape; warn of one that looks turned, if new."""
    if n_features != math.prod(shape):
        raise ValueError(
            f"image_shape={_as_user_shape(shape)} asks for {math.prod(shape)} features a row; X "
            f"has {n_features}. Give image_shape the height, width (and channels) of your images, "
            "or None for plain features."
        )
    if not known and _looks_channels_first(_as_user_shape(shape)):
        warnings.warn(
            f"image_shape={_as_user_shape(shape)} is (height, width, channels), and looks like "
            "channels first. If they come first, move them last, as by np.moveaxis(X, 1, -1).",
            stacklevel=6,
        )


def _check_several(shape: tuple[int, ...], image_shape: Shape) -> None:
    """Raise an error if X has the shape of one image, and not that of several."""
    whole = _as_user_shape(image_shape)
    one = (whole, whole[:2]) if whole[2] == 1 else (whole,)
    if shape in one and math.prod(shape[1:]) != math.prod(whole):
        raise ValueError(
            f"X has the shape of one image, {shape}; images must be several, along a first axis. "
            "For one, give X[None]."
        )


def _looks_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether images would else be wider than high, and have more channels than rows."""
    return len(shape) == 3 and shape[0] < min(shape[1:]) and shape[2] > 4


def _check_trailing(trailing: tuple[int, ...], image_shape: Shape | None) -> Shape | None:
    shape = check_image_shape(trailing) if 0 not in trailing else None
    if image_shape is None and _looks_channels_first(trailing):
        raise ValueError(
            f"X has images of shape {trailing}, which looks like channels first; they must come "
            "last. Move them, as by np.moveaxis(X, 1, -1), or give image_shape=(height, width, "
            "channels)."
        )
    if image_shape is not None and shape != image_shape:
        raise ValueError(
            f"X has images of shape {trailing}, but image_shape (height, width, channels) is "
            f"{_as_user_shape(image_shape)}. If channels come first, move them last, as by "
            "np.moveaxis(X, 1, -1)."
        )
    return shape


def _is_frame(X: Any) -> bool:
    """Whether X is a data frame, as of pandas or polars."""
    return hasattr(X, "head") and hasattr(X, "to_numpy")


def _stays(X: Any) -> bool:
    """Whether X is of a type that float32 holds exactly, or float64, in any order of bytes."""
    if _is_frame(X):
        X = X.head(0).to_numpy()  # of the type that all columns have in common
        if X.dtype == bool:  # missing values would make objects of them
            return False
    dtype = getattr(X, "dtype", None)
    if not isinstance(dtype, np.dtype):
        return False
    return dtype.newbyteorder("=") == np.float64 or np.can_cast(dtype, np.float32)


def check_weights(sample_weight: Any, images: Images) -> Images:
    """The images that have a positive weight, with their weights, scaled to a mean of 1.

    The mean is that over all processes which train together. Without weights if `sample_weight` is
    None, or if all weigh the same.

    Raises
    ------
    ValueError
        If they are not one non-negative number an image, or all are zero.
    """
    ranks.check_together(images)
    given = ranks.gather(sample_weight is not None)
    if len(set(given)) > 1:
        raise ValueError(f"sample_weight must be given in all processes, or in none; got {given}.")
    if sample_weight is None:
        return images
    weight = _weights(sample_weight, images.rows)
    if not any(ranks.gather(weight.any())):
        raise ValueError("sample_weight must have a positive sum; all weights are zero.")
    kept = weight > 0
    seen = images if kept.all() else images.take(np.flatnonzero(kept))
    # In two steps: the sum might overflow.
    weight = weight[kept] / max(ranks.gather(weight.max()))
    of_all = ranks.together(weight)
    return seen if np.ptp(of_all) == 0 else replace(seen, weight=weight / of_all.mean())


def score_weights(sample_weight: Any, values: NDArray[Any]) -> FloatArray | None:
    """Weights of values in their mean, the largest of which is 1; None weighs all the same.

    Raises
    ------
    ValueError
        If they are not one non-negative number a value, or all are zero.
    """
    if sample_weight is None:
        return None
    weight = _weights(sample_weight, values)
    if not weight.any():
        raise ValueError("sample_weight must have a positive sum; all weights are zero.")
    return cast("FloatArray", weight / weight.max())


def _weights(sample_weight: Any, rows: NDArray[Any]) -> FloatArray:
    weight = as_array(sample_weight, "sample_weight")
    try:
        weight = _check_sample_weight(weight, rows, dtype=np.float64, ensure_non_negative=True)
    except (ValueError, TypeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"sample_weight must be one non-negative number for each of {len(rows)} images, or "
            f"None ({error})."
        ) from error
    return cast("FloatArray", weight)


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
        if chosen.type in _NO_DEVICES:
            raise RuntimeError(_NO_DEVICES[chosen.type])
        torch.empty(0, device=chosen)
    except (RuntimeError, TypeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"device must be 'auto', 'cpu', or a GPU that torch finds here, such as 'cuda' or "
            f"'cuda:0'; got {device!r} ({error})."
        ) from error
    return chosen


def check_checkpoint(path: Any, minutes: Any) -> None:
    """Check the parameters of checkpoints.

    Raises
    ------
    TypeError, ValueError
        If there is no such folder, or no such time.
    """
    check_number("checkpoint_minutes", minutes, low=0)
    if path is None:
        return
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"checkpoint must be the path of a file, or None; got {path!r}.")
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path) or "."):
        raise ValueError(f"checkpoint must be a file in a folder that is there; got {path!r}.")


def check_distributed(value: Any) -> None:
    """Check whether processes are to train together, and say so if that is left open.

    Raises
    ------
    TypeError, ValueError
        If it is not true, false or None, or true where there are no processes.
    """
    if value is not None:
        check_bool("distributed", value)
    if value and not ranks.are_there():
        raise ValueError(
            "distributed=True needs processes that torch.distributed knows: start them by torchrun "
            "and call torch.distributed.init_process_group first. Or choose distributed=False."
        )
    if value is None and ranks.are_there():
        warnings.warn(
            "torch.distributed is initialised, but this process trains a model of its own. Set "
            "distributed=True for one model of all processes, each with a part of the images, or "
            "False for this one.",
            stacklevel=5,
        )


def check_mask(mask: Any, images: Images) -> NDArray[np.bool_]:
    """A mask of missing pixels as rows, (n_samples, features); None hides nothing."""
    if mask is None:
        return np.zeros(images.rows.shape, dtype=bool)
    hidden: NDArray[np.bool_] = np.asarray(as_array(mask, "mask"))
    if hidden.dtype != bool:
        raise TypeError(f"mask must hold booleans, true where X is missing; got {hidden.dtype}.")
    expected = (len(images), *images.row_shape)
    if hidden.shape not in (expected, images.rows.shape):
        raise ValueError(f"mask must have the shape of X, {expected}; got {hidden.shape}.")
    return hidden.reshape(images.rows.shape)


def refuse_stream(X: object, method: str, others: str) -> None:
    """Raise an error if X comes in batches, whose order may change, before anything is trained."""
    if is_stream(X):
        kind = type(X).__name__
        raise TypeError(f"{method} needs an array; got {kind}. Call {others}.")


# What scikit-learn sets on an estimator while callbacks watch it.
_OF_CALLBACKS = ("_callback_fit_ctx", "_skl_callbacks_to_teardown")


@contextmanager
def unchanged_on_failure(estimator: Any) -> Iterator[Callable[[], None]]:
    """Take back what has been set on an estimator, should an error occur.

    The context gives a function: what has been set before it is called is kept, unless the error
    is that of a value, which says that it is of no use.
    """
    before = kept = estimator.__dict__.copy()

    def keep() -> None:
        nonlocal kept
        kept = {k: v for k, v in estimator.__dict__.items() if k not in _OF_CALLBACKS}

    try:
        # What is fitted inside is arrays.
        with (
            ordinary_tensors(),
            config_context(array_api_dispatch=False),
            ranks.joined(estimator.distributed),
        ):
            yield keep
    except BaseException as error:
        estimator.__dict__ = before if isinstance(error, ValueError | TypeError) else kept
        raise


def read_labels(y: Any, name: str) -> NDArray[Any]:
    """Labels as an array of which none is missing.

    Raises
    ------
    ValueError
        If they are not one value an image, or some are NaN, NA, None or infinite.
    """
    with config_context(array_api_dispatch=False):
        labels: NDArray[Any] = column_or_1d(as_array(y, name), warn=True)
    if labels.dtype.kind == "f":
        missing = bool(np.isnan(labels).any())
    else:
        values = labels.tolist() if labels.dtype.kind in "OMm" else []
        missing = any(v is None or is_scalar_nan(v) or is_pandas_na(v) for v in values)
    if missing:
        raise ValueError(f"{name} contains NaN, NA or None. Give -1 where the class is unknown.")
    assert_all_finite(labels, input_name=name)
    return labels


def is_known(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Where labels are not -1, which means unknown."""
    if labels.dtype.kind in "biuf":
        return cast("NDArray[np.bool_]", labels != -1)
    # Names may be arrays or dates, whose comparison with a number need not be one truth.
    return np.array([not (isinstance(v, numbers.Real) and v == -1) for v in labels.tolist()], bool)


def encode_labels(y: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Classes, and the number of the class of each image, -1 where unknown.

    Raises
    ------
    ValueError
        If there are no labels, or those of no classification.
    TypeError
        If some are numbers and others names.
    """
    if y is None:
        raise ValueError(
            "DCGMMClassifier requires y to be passed, but the target y is None. Give each image "
            "its class, or -1 where it is unknown."
        )
    own = read_labels(y, "y")
    of_all = ranks.gather(own)
    labels = np.concatenate(of_all)
    if labels.dtype.kind in "US" and (labels == "-1").any():
        raise ValueError(
            "y holds '-1' among names: with -1 for unknown, y must be of dtype object, such as "
            "np.array(['cat', -1], dtype=object)."
        )
    if labels.dtype.kind == "u" and (labels == np.iinfo(labels.dtype).max).any():
        raise ValueError(
            f"y is of type {labels.dtype}, in which -1 for unknown becomes {labels.max()}, and it "
            "holds that. Give signed integers: y.astype(int), before any are set to -1."
        )
    known = np.flatnonzero(is_known(labels))
    if not len(known):
        raise ValueError(
            f"y must hold the class of some images; all of {len(labels)} are -1, which is unknown."
        )
    values = labels[known]
    if values.dtype == object:
        named = [isinstance(value, str) for value in values]
        if any(named) and not all(named):
            # As one array, numbers would become names.
            raise TypeError(
                "y must hold numbers or names of classes, not both, and -1 where unknown; got "
                f"{sorted({type(value).__name__ for value in values})}."
            )
        # Numbers among unknowns of another kind are numbers still.
        values = np.array(values.tolist())
    if values.dtype == object:
        raise ValueError("y must hold numbers or names of classes, and -1 where unknown.")
    with warnings.catch_warnings():
        # With few labels, many classes for each are no sign of a regression.
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        check_classification_targets(values)
    classes, numbers = np.unique(values, return_inverse=True)
    if len(classes) == 1 and len(known) < len(labels):
        raise ValueError(
            "y must hold at least two classes besides -1, which means unknown; got 1 class, "
            f"{classes[0]}. If -1 is one of two classes, name it otherwise."
        )
    encoded = np.full(len(labels), -1, dtype=np.int64)
    encoded[known] = numbers
    first = sum(len(part) for part in of_all[: ranks.rank()])
    return classes, encoded[first : first + len(own)]
